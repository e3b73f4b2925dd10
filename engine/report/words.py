"""What stages and rules do, in a sentence each, for a page that shows what they did."""

from __future__ import annotations

STAGES = {
    "elaborated": "The spec meets the file's header: conditionals are settled, every tensor and key is accounted for.",
    "unrolled": "Blocks and layers inline; cache slots become the writes they name.",
    "bound": "One token a step, where that is the form: T is 1.",
    "simplified": "Constants folded, views merged.",
    "head": "Where only the last token's logits are wanted, what needs only its row is narrowed to it; "
    "of values with a part for each layer, earlier tokens get those of the layers that they pass.",
    "angles": "Rope becomes rotate, by a table of angles that all heads of a kind share.",
    "cache": "Every plane of the KV cache gets its element type, or its codec.",
    "integers": "Where weights are packed for it, products with quantised weights are made in integers.",
    "fused": "Views that no kernel can walk are copied; ops are grouped into kernels.",
}
RULES = {
    "fold-constants": "an op on numbers is a number",
    "constant-right": "numbers stand on the right",
    "multiply-by-one": "times 1 is dropped",
    "add-zero": "plus 0 is dropped",
    "reshape-of-reshape": "two reshapes are one",
    "reshape-to-same": "a reshape to the same shape is dropped",
    "slice-of-everything": "a slice of all is dropped",
    "slice-of-slice": "two slices are one",
    "parts-of-layers": "made in two parts: the second for layers that only the last token passes",
    "last-token-only": "computed for the last token alone",
    "share-rope-angles": "heads turn by a table of angles computed once a step",
    "cache-type": "cache writes get the type that the policy says",
    "cache-rotate": "heads are turned before they are coded, and what attention gives is turned back",
    "cache-once": "K is kept but for what V tells: its rotary part",
    "cache-near": "attention reads the nearest positions from planes of their own",
    "integer-linear": "products in integers: inputs quantised once, weights packed",
    "integer-experts": "products with experts in integers",
    "integer-attend": "attention rounds what it multiplies codes with, for products in integers",
    "copy-view": "values copied into an order that a kernel can walk",
    "fuse-linear": "kernels of products of one input, with the elementwise work on them",
    "fuse-experts": "kernels of products with each token's own experts",
    "fuse-rows": "kernels of work along rows: norms, residuals, rotation, look-ups, cache writes",
}
