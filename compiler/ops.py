"""THE op table: every op declared once, in `opset/`, one file a theme.

A declaration says the op's operands and attributes, how its type follows from theirs (`infer`), what
it computes (`evaluate`, in numpy), what it costs (`flops`), how to draw a random legal use of it
(`sample`), and, for compound ops, what it means in simpler ones (`body`). The verifier, printer,
interpreter, generated docs, property tests and the backends' support tables all read this table.

Traits, which rewrites and backends go by:

* `elementwise`: broadcasts as numpy does and acts value by value;
* `row`: acts on each row of the last axis alone;
* `token`: row t of the result needs only row t of those operands that have a row for each token;
* `view`: the same elements, or some of them, without moving any;
* `shows`: the numbers of its operand, or some of them: what shows a weight is the file's as much as the weight is;
* `leaf`: has no operands; `effect`: writes a cache;
* `structure`: exists in block form, or inside fused nodes, only.
"""

from __future__ import annotations

from .opset import attention, basic, matrices, rows, structure
from .opset.attention import CACHE_DTYPES, inverse_frequencies, rounded
from .optable import (
    F32,
    OPS,
    REQUIRED,
    Array,
    Context,
    Draw,
    Op,
    Sample,
    TypeRuleError,
    attributes,
    need,
    node,
    op,
    weight_below,
    with_args,
)

__all__ = [
    "CACHE_DTYPES",
    "F32",
    "OPS",
    "REQUIRED",
    "Array",
    "Context",
    "Draw",
    "Op",
    "Sample",
    "TypeRuleError",
    "attention",
    "attributes",
    "basic",
    "inverse_frequencies",
    "matrices",
    "need",
    "node",
    "op",
    "rounded",
    "rows",
    "structure",
    "weight_below",
    "with_args",
]
