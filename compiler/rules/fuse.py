"""Groups ops into kernels: what one pass over memory can do becomes one `fused` node.

Families:
* `linear`: matrix products of one input, and elementwise work on their results (gate, up and
  activation; a residual; a softcap);
* `experts`: the same for products with each token's own experts;
* `rows`: work along rows of the last axis (norms, softmax, residuals, rotation, an embedding look-up),
  ending in a buffer or in the KV cache.

A fused node's body is the very ops it replaces, so what it means needs no second definition. A value
that several kernels want is computed again rather than waited for, where that costs one pass over a row.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ..codecs import is_codec
from ..dims import Dim
from ..ir import Block, Module, Node, carry, topological, users
from ..ops import OPS, node, with_args

PRODUCTS = {"linear": "linear", "expert_linear": "experts"}
ROW_OPS = frozenset({"rms_norm", "softmax", "sum", "mean", "max", "rotate", "embed"})
LEAVES = frozenset({"const", "weight", "tokens", "position", "dequant", "pack"})


def fuse(module: Module, hits: Counter[str] | None = None) -> Module:
    """The unrolled module with every kernel-sized group of ops in one node."""
    return _Fuser(module, Counter() if hits is None else hits).run()


def elementwise(item: Node) -> bool:
    return "elementwise" in OPS[item.op].traits


def rowwise(item: Node) -> bool:
    return elementwise(item) or item.op in ROW_OPS


def encodes(item: Node) -> bool:
    """Whether a cache write makes codes, which takes a kernel of its own."""
    return item.op == "cache_write" and is_codec(item.type.dtype)


def row_length(item: Node) -> Dim | None:
    """How long the rows are that an op works along; None for one number a row, which any kernel can take."""
    if item.op in ROW_OPS:
        return (item if item.op == "embed" else item.args[0]).shape[-1]
    return None if item.shape[-1:] in ((), (1,)) else item.shape[-1]


class _Fuser:
    def __init__(self, module: Module, hits: Counter[str]):
        self.module, self.hits = module, hits
        self.users = users(module.roots)
        self.roots = frozenset(module.roots)
        self.blocks: dict[tuple[object, ...], Block] = {}
        self.counts: Counter[str] = Counter()
        self.order = topological(module.roots)
        self.place = {item: i for i, item in enumerate(self.order)}
        self.kept = {n for n in self.order if self.materialised(n)}
        self.groups = self.grouped()

    def run(self) -> Module:
        done: dict[Node, Node] = {}
        for item in self.order:
            if item in self.groups:
                done[item] = self.fused(*self.groups[item], item, done)
            elif item in self.kept or item.op in LEAVES:
                done[item] = with_args(item, tuple(done[arg] for arg in item.args))
        outputs = tuple(done[n] for n in self.module.outputs)
        effects = tuple(done[n] for n in self.module.effects)
        return replace(self.module, outputs=outputs, effects=effects, **carry(self.module, done))

    # --- which values get a buffer ---------------------------------------------------------------------

    def materialised(self, item: Node) -> bool:
        """Whether a value must exist in memory; the others live inside the kernel of their only reader."""
        if item.op in LEAVES:
            return False
        if not rowwise(item) and item.op not in PRODUCTS:
            return True
        readers = self.users[item]
        if item in self.roots or len(readers) != 1:
            return True
        reader = readers[0]
        if reader.op == "cache_write":
            return not rowwise(item) or encodes(reader)
        if item.op == "rotate":
            return True  # works on pairs of values, so a kernel can only end with it
        if item.op in PRODUCTS:
            return not (elementwise(reader) and reader.shape == item.shape)
        return not (rowwise(reader) and self.same_rows(item, reader))

    def same_rows(self, item: Node, reader: Node) -> bool:
        """Whether a reader walks the same rows, over the values or over one summary of each row."""
        if reader.op in ("rotate", "rms_norm", "embed") and reader.args[0] is not item:
            return False
        return len(item.shape) > 0 and item.shape[:-1] == reader.shape[:-1]

    # --- kernels ---------------------------------------------------------------------------------------

    def grouped(self) -> dict[Node, tuple[str, frozenset[Node]]]:
        """Each kernel's root with its family and what it computes.

        A value that a kernel reads and does not compute itself gets a buffer after all.
        """
        while True:
            groups = {item: found for item in self.order if item in self.kept and (found := self.group(item))}
            read = {arg for _, inside in groups.values() for item in inside for arg in item.args if arg not in inside}
            lost = {n for n in read if n not in self.kept and n.op not in LEAVES}
            if not lost:
                return groups
            self.kept |= lost

    def group(self, item: Node) -> tuple[str, frozenset[Node]] | None:
        """The kernel that ends in `item`; None for an op that has a kernel of its own, or is a view."""
        if item.op in PRODUCTS:
            return PRODUCTS[item.op], frozenset({item})
        if item.op == "cache_write":
            return None if encodes(item) else ("rows", self.inside_rows(item.args[0]) | {item})
        if not rowwise(item):
            return None
        products = self.inside_products(item) if elementwise(item) else None
        return products or ("rows", self.inside_rows(item))

    def inside_products(self, root: Node) -> tuple[str, frozenset[Node]] | None:
        """Products of one input, and the elementwise ops between them and `root`, if that is all there is."""
        inside: set[Node] = {root}
        products: list[Node] = []
        pending = list(root.args)
        while pending:
            item = pending.pop()
            if item in self.kept or item.op in LEAVES or item in inside:
                continue
            inside.add(item)
            if item.op in PRODUCTS:
                products.append(item)
            elif elementwise(item) and item.shape == root.shape:
                pending += item.args
            else:
                return None
        if not products or root.shape != products[0].shape:
            return None
        first = products[0]
        alike = all((p.op, p.args[0], p.args[2:]) == (first.op, first.args[0], first.args[2:]) for p in products)
        return (PRODUCTS[first.op], frozenset(inside)) if alike else None

    def inside_rows(self, start: Node) -> frozenset[Node]:
        """The rowwise ops that a kernel over `start`'s rows computes, those of one level of shared values too.

        All its rows are of one length, that of the first op found that tells; of others it reads sums.
        """
        inside: set[Node] = set()
        length: Dim | None = None
        pending = [(start, 1)] if rowwise(start) else []
        while pending:
            item, budget = pending.pop()
            if item.op in LEAVES or item in inside or not rowwise(item):
                continue
            if item.op == "rotate" and item is not start:
                continue  # a kernel can only end with it
            if item in self.kept and item is not start:
                if budget == 0 or item.shape != start.shape or self.inside_products(item) is not None:
                    continue
                budget -= 1
            own = row_length(item)
            if None not in (own, length) and own != length:
                continue
            length = length if own is None else own
            inside.add(item)
            pending += [(arg, budget) for arg in item.args]
        return frozenset(inside)

    def fused(self, family: str, inside: frozenset[Node], root: Node, done: dict[Node, Node]) -> Node:
        """A node that stands for `inside`, its operands what `inside` reads from elsewhere."""
        args: dict[Node, Node] = {}
        body: dict[Node, Node] = {}

        def param(value: Node) -> Node:
            if value.op == "const":
                return value
            if value not in args:
                args[value] = node("param", name=f"p{len(args)}", type=done[value].type)
            return args[value]

        for item in sorted(inside, key=self.place.__getitem__):
            body[item] = with_args(item, tuple(body[a] if a in inside else param(a) for a in item.args))
        content = (family, tuple(args.values()), body[root])
        if content not in self.blocks:
            self.counts[family] += 1
            self.blocks[content] = Block(f"{family}.{self.counts[family]}", tuple(args.values()), body[root])
        self.hits[f"fuse-{family}"] += 1
        return node("fused", *(done[a] for a in args), block=self.blocks[content], family=family)
