"""Checks a module between stages: types re-inferred, only ops that belong there, names that exist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from weakref import WeakSet

from .header import TensorInfo
from .ir import Block, Module, Node, Type, called
from .ops import OPS, TypeRuleError, attributes
from .plan import writes_cache

BLOCK_FORM_ONLY = frozenset({"call", "layers", "cache"})


class VerifyError(AssertionError):
    """A stage of the compiler produced an ill-formed program: a bug of ours, not of the spec."""


def verify(module: Module, stage: str = "", without: frozenset[str] = frozenset()) -> None:
    """Raises VerifyError naming the stage and the node that is wrong.

    `without` are ops that this and later stages must not contain.
    """
    tensors = {t.name: t for t in module.tensors}
    illegal = without | (BLOCK_FORM_ONLY if module.form == "unrolled" else frozenset())
    graphs, after = module.graphs(), f"after {stage}: " if stage else ""
    for block, order in graphs.items():
        _check_params(order, () if block is None else block.params, f"{after}{'main' if block is None else block.name}")
    nodes = [item for order in graphs.values() for item in order]
    if module.form == "unrolled":
        _check_writes(nodes, f"{after}cache_write")
    for item in nodes:
        where = f"{after}{item.op}"
        if item.op in illegal:
            raise VerifyError(f"{where} does not belong in this stage")
        if item not in _SOUND:
            _check_node(item, where)
            _SOUND.add(item)
        if item.op == "weight" and module.form == "unrolled":
            _check_weight(item, tensors, where)


# Nodes whose types have been inferred and are as they say: they never change, and most are in many stages.
_SOUND: WeakSet[Node] = WeakSet()


def _check_node(item: Node, where: str) -> None:
    declared = OPS.get(item.op)
    if declared is None:
        raise VerifyError(f"{where} is no op")
    try:
        inferred = declared.infer(*(arg.type for arg in item.args), **attributes(item))
    except TypeRuleError as error:
        raise VerifyError(f"{where}: {error}") from None
    if inferred != item.type:
        raise VerifyError(f"{where} says {item.type}, its operands give {inferred}")
    if item.op == "attend":
        _check_planes(item, where)
    for block in called(item):
        _check_block(block, where)


def _check_weight(item: Node, tensors: Mapping[str, TensorInfo], where: str) -> None:
    found = tensors.get(item["name"])
    if found is None:
        raise VerifyError(f"{where} @{item['name']} is not in the tensor table")
    if item.type != Type(found.shape, found.format):
        raise VerifyError(f"{where} @{item['name']} is {item.type}, the file has {Type(found.shape, found.format)}")


def _check_params(order: Iterable[Node], params: tuple[Node, ...], where: str) -> None:
    for item in order:
        if item.op == "param" and item not in params:
            raise VerifyError(f"{where}: param %{item['name']} is none of its own")


def _check_writes(nodes: Iterable[Node], where: str) -> None:
    """A step writes each plane of each slot once: attention reads a plane as the step leaves it."""
    written: dict[tuple[object, object], Node] = {}
    for item in nodes:
        if item.op == "cache_write" and written.setdefault((item["slot"], item["plane"]), item) is not item:
            raise VerifyError(f"{where}: slot {item['slot']}, plane {item['plane']} is written twice")


def _check_planes(item: Node, where: str) -> None:
    """Attention reads caches as they lie: a view of one, or a value that is in none, is not what a kernel expects."""
    for name, source in zip("kv", item.args[1:3], strict=True):
        if source.op != "cache" and writes_cache(source) is None:
            raise VerifyError(f"{where}: {name} is a {source.op}, not a cache plane")


def _check_block(block: Block, where: str) -> None:
    names = [p["name"] for p in block.params]
    if len(set(names)) != len(names):
        raise VerifyError(f"{where}: {block.name} has two parameters of one name")
