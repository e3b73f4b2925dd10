"""What each op of block form costs in one form of the program: the sum of what its ops cost that are left of it.

Costs are told of the program before ops become kernels: the cache has its element type by then, and what needs
only the last token is narrowed to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from briolette.backends.formats import element_bytes
from briolette.compiler.cost import Cost, Costs
from briolette.compiler.ir import Block, Module, Node, called
from briolette.compiler.text import statements

from .follow import Instances, Story

Layers = tuple[int | None, ...]
MAIN = "main"


@dataclass(frozen=True)
class Step:
    """A step to tell costs of: so many tokens, the last of them at the end of `context`."""

    name: str
    tokens: int
    context: int


class BlockCosts:
    """Costs of block form's ops in a step. What several ops became one of is told of the first of them."""

    def __init__(
        self, module: Module, layers: dict[str, tuple[int, ...]], instances: Instances, story: Story, step: Step
    ):
        stage = story.before_kernels
        self.costs = Costs(story.modules[stage], element_bytes, step.tokens, step.context)
        self.own: dict[tuple[str, Node, int | None], Cost] = {}
        self.of_blocks: dict[tuple[str, int | None], Cost] = {}
        told: set[Node] = set()
        for block in (None, *module.blocks()):
            name = MAIN if block is None else block.name
            where: Layers = (None,) if block is None else layers.get(name, (None,))
            for item, _, _ in statements(module, block):
                for layer, nodes in instances.of(name, item, where).items() if not called(item) else ():
                    left = dict.fromkeys(now for node in nodes for now in story.now[stage].get(node, ()))
                    fresh = [now for now in left if now not in told]
                    told.update(fresh)
                    self.own[name, item, layer] = sum((self.costs.of(now) for now in fresh), Cost())
        self.blocks = {block.name: [s[0] for s in statements(module, block)] for block in module.blocks()}

    def of(self, block: str, item: Node, layers: Layers) -> Cost:
        """Of an op over layers; a call costs what its block does."""
        return sum((self._one(block, item, layer) for layer in layers), Cost())

    def of_block(self, block: Block, layers: Layers) -> Cost:
        """Of a block and what it calls, over layers."""
        return sum((self._block(block.name, layer) for layer in layers), Cost())

    def total(self) -> Cost:
        """Of the whole step, with what the stages added that comes from no op: tables of angles."""
        return self.costs.total()

    def _one(self, block: str, item: Node, layer: int | None) -> Cost:
        if item.op == "layers":
            return sum((self._block(inner.name, index) for index, inner in item["table"]), Cost())
        if item.op == "call":
            return self._block(item["block"].name, layer)
        return self.own.get((block, item, layer), Cost())

    def _block(self, name: str, layer: int | None) -> Cost:
        if (name, layer) not in self.of_blocks:
            parts = (self._one(name, item, layer) for item in self.blocks[name])
            self.of_blocks[name, layer] = sum(parts, Cost())
        return self.of_blocks[name, layer]


def numbers(cost: Cost) -> list[float]:
    """A cost as data: operations; bytes of weights, of cache and of values."""
    return [round(part, 1) for part in (cost.flops, cost.weights, cost.cache, cost.values)]
