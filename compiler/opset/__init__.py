"""The declarations of the op table, one file a theme. Shapes are row-major; `...` are any leading axes."""
