"""How a program is put together: calls of blocks, the layer stack, and groups that run as one kernel."""

from __future__ import annotations

from ..ir import Block, Type
from ..optable import REQUIRED, Array, Context, need, op


def _call_type(*args: Type, block: Block) -> Type:
    need(len(args) == len(block.params), f"{block.name} takes {len(block.params)} values, not {len(args)}")
    for given, wanted in zip(args, block.params, strict=True):
        need(given == wanted.type, f"{block.name}: {wanted['name']} is {wanted.type}, not {given}")
    return block.result.type


@op("args*", infer=_call_type, traits="structure", block=REQUIRED)
def call(context: Context, *args: Array, block: Block) -> Array:
    """A block applied to values (block form)."""
    return context.run(block, args)


def _layers_type(*args: Type, table: tuple[tuple[int, Block], ...]) -> Type:
    need(len(args) > 0, "layers needs the state that they pass on")
    for layer, block in table:
        result = _call_type(*args, block=block)
        need(result == args[0], f"layer {layer} makes {result} of {args[0]}")
    return args[0]


@op("x rest*", infer=_layers_type, traits="structure", table=REQUIRED)
def layers(context: Context, x: Array, *rest: Array, table: tuple[tuple[int, Block], ...]) -> Array:
    """The layer stack (block form): each layer's block on the state and on what all layers share."""
    for index, block in table:
        x = context.run(block, (x, *rest), index)
    return x


def _fused_type(*args: Type, block: Block, family: str) -> Type:
    return _call_type(*args, block=block)


@op("args*", infer=_fused_type, traits="structure", block=REQUIRED, family=REQUIRED)
def fused(context: Context, *args: Array, block: Block, family: str) -> Array:
    """A block that a backend runs as one kernel of a family; it means what its body means."""
    return context.run(block, args)
