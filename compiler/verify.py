"""Checks a module between stages: types re-inferred, only ops that belong there, names that exist."""

from __future__ import annotations

from collections.abc import Mapping

from .header import TensorInfo
from .ir import Block, Module, Node, called, nodes_of
from .ops import OPS, TypeRuleError, attributes

BLOCK_FORM_ONLY = frozenset({"call", "layers", "cache"})


class VerifyError(AssertionError):
    """A stage of the compiler produced an ill-formed program: a bug of ours, not of the spec."""


def verify(module: Module, stage: str = "", without: frozenset[str] = frozenset()) -> None:
    """Raises VerifyError naming the stage and the node that is wrong.

    `without` are ops that this and later stages must not contain.
    """
    tensors = {t.name: t for t in module.tensors}
    illegal = without | (BLOCK_FORM_ONLY if module.form == "unrolled" else frozenset())
    params = {p for block in module.blocks() for p in block.params}
    for item in nodes_of(module):
        where = f"after {stage}: {item.op}" if stage else item.op
        declared = OPS.get(item.op)
        if declared is None:
            raise VerifyError(f"{where} is no op")
        if item.op in illegal:
            raise VerifyError(f"{where} does not belong in this stage")
        try:
            inferred = declared.infer(*(arg.type for arg in item.args), **attributes(item))
        except TypeRuleError as error:
            raise VerifyError(f"{where}: {error}") from None
        if inferred != item.type:
            raise VerifyError(f"{where} says {item.type}, its operands give {inferred}")
        if item.op == "param" and item not in params:
            raise VerifyError(f"{where} %{item['name']} belongs to no block")
        if item.op == "weight" and module.form == "unrolled":
            _check_weight(item, tensors, where)
        for block in called(item):
            _check_block(block, where)


def _check_weight(item: Node, tensors: Mapping[str, TensorInfo], where: str) -> None:
    if item["name"] not in tensors:
        raise VerifyError(f"{where} @{item['name']} is not in the tensor table")


def _check_block(block: Block, where: str) -> None:
    names = [p["name"] for p in block.params]
    if len(set(names)) != len(names):
        raise VerifyError(f"{where}: {block.name} has two parameters of one name")
