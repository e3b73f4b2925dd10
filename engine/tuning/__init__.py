"""Which layers of a model need their bits of KV cache most: measured, chosen under a budget, and measured again."""
