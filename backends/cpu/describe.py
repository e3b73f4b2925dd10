"""Kernel descriptions from nodes: what a kernel is specialised to, and how its operands lie."""

from __future__ import annotations

from briolette.compiler.dims import Dim, product
from briolette.compiler.ir import Node
from briolette.compiler.ops import attributes
from briolette.compiler.plan import base
from briolette.compiler.views import view_of

from .kernels import Place, linear, rows
from .packing import row_bytes


def kernel_key(item: Node, spec: object) -> str:
    """What a kernel depends on: its body (without the cache slot), and how its operands lie."""
    names: dict[Node, str] = {}
    lines = []
    for at in item["block"].order:
        names[at] = f"%{len(names)}"
        attrs = ", ".join(f"{k}={v!r}" for k, v in at.attrs if k not in ("slot", "plane", "name"))
        lines.append(f"{names[at]} = {at.op}({', '.join(names[a] for a in at.args)}) {attrs} : {at.type}")
    operands = getattr(spec, "operands", ())
    return "\n".join([item["family"], *lines, *map(repr, operands)])


def tiling(item: Node) -> tuple[int, int, int]:
    """Of a `quantize`: how many rows lie interleaved, the bits of an integer, how many of them share a scale."""
    given = attributes(item)
    return given["tile"], given["bits"], given["block"]


def quantised(item: Node) -> tuple[int, int, int] | None:
    """The same of a product's input; None where that is no quantised one."""
    found = {tiling(arg) for arg in item.args if arg.op == "quantize"}
    assert len(found) < 2
    return found.pop() if found else None


def known(dim: Dim) -> int:
    assert isinstance(dim, int), f"{dim} must be known when the program is compiled"
    return dim


def row_shape(item: Node) -> tuple[Dim, ...]:
    """The shape whose last axis a rows kernel walks: the result's, or what it sums up to one number a row."""
    root = item["block"].result
    shape = (root.args[0] if root.op == "cache_write" else root).shape
    summed = {n.args[0].shape[-1] for n in item["block"].order if n.op in rows.REDUCTIONS} - {1}
    widths = summed | ({shape[-1]} - {1})
    if len(widths) > 1:
        raise NotImplementedError(f"a kernel over rows of {list(shape)} that sums rows of {widths}")
    return (*shape[:-1], *(widths or {1}))


def rows_spec(item: Node) -> rows.Rows:
    """The operands of a rows kernel, by how its body uses them."""
    block = item["block"]
    shape = row_shape(item)
    columns, heads = shape[-1], product(shape[1:-1])
    assert isinstance(columns, int) and isinstance(heads, int)
    roles: dict[Node, str] = {}
    for at in block.order:
        if at.op == "embed":
            roles |= {at.args[0]: "weight", at.args[1]: "ids"}
        elif at.op == "rotate":
            roles[at.args[1]] = "table"
        elif at.op == "cache_write":
            roles[at.args[1]] = "positions"
    operands = []
    for param, arg in zip(block.params, item.args, strict=True):
        match roles.get(param):
            case None:
                operands.append(rows.Operand(*_place(param.shape, shape, arg)))
            case "table":
                operands.append(rows.Operand("table", Place(view_of(arg).strides[0])))
            case "weight":
                operands.append(rows.Operand("weight", format=param.type.dtype, row_bytes=row_stride(arg)))
            case role:
                operands.append(rows.Operand(role))
                in_order(arg)
    single = block.result.op != "cache_write" and block.result.shape != shape
    return rows.Rows(block, tuple(operands), columns, heads, single)


def _place(shape: tuple[Dim, ...], walked: tuple[Dim, ...], arg: Node) -> tuple[str, Place]:
    """How an operand of a kernel over rows of the shape `walked` is read, as numpy broadcasts it."""
    shape = (1,) * (len(walked) - len(shape)) + shape
    leading, rows_of = shape[:-1], walked[:-1]
    if shape[-1] not in (1, walked[-1]):
        raise NotImplementedError(f"a kernel over rows of {list(walked)} cannot read {list(shape)}")
    wide = shape[-1] == walked[-1]
    if all(size == 1 for size in leading):
        if wide and view_of(arg).strides[-1:] not in ((1,), (0,), ()):
            raise NotImplementedError(f"a vector that lies in columns of {list(base(arg).shape)}")
        return ("vector" if wide else "scalar"), Place()
    role, stride = ("row" if wide else "summary"), view_of(arg).row_stride()
    for axis in range(len(leading)):
        before, after = rows_of[:axis], rows_of[axis:]
        if leading == before + (1,) * len(after):
            return role, Place(stride, repeat=known(product(after)))
        if leading == (1,) * len(before) + after:
            return role, Place(stride, period=known(product(after)) if axis else 0)
    raise NotImplementedError(f"a kernel over rows of {list(walked)} cannot read {list(shape)}")


def in_order(item: Node) -> None:
    if not view_of(item).contiguous:
        raise NotImplementedError(f"{item} would have to be copied first")


def row_stride(weight: Node) -> int:
    """Bytes from one row of a stored matrix to the next."""
    if weight.type.dtype == "f32":
        return 4 * view_of(weight).strides[-2]
    return row_bytes(weight.type.dtype, weight.shape[-1], packed=base(weight).op == "pack")


def linear_spec(item: Node) -> linear.Linear:
    """The operands of a product kernel, by how its body uses them."""
    block = item["block"]
    root = block.result
    products = [n for n in block.order if n.op in ("linear", "expert_linear")]
    first = products[0]
    x, w = first.args[:2]
    weights = {p.args[1] for p in products}
    operands = []
    for param, arg in zip(block.params, item.args, strict=True):
        if param is x:
            operands.append(linear.Operand("x", Place(view_of(arg).row_stride())))
        elif param in weights:
            row, whole = row_stride(arg), base(arg)
            expert = whole.shape[-2] * row if len(whole.shape) == 3 else 0
            operands.append(linear.Operand("weight", format=arg.type.dtype, row_bytes=row, expert_bytes=expert))
        elif first.op == "expert_linear" and param is first.args[2]:
            operands.append(linear.Operand("ids"))
            in_order(arg)
        elif first.op == "expert_linear" and param in first.args[3:]:
            operands.append(linear.Operand("order"))
        else:
            operands.append(linear.Operand(*_place(param.shape, root.shape, arg)))
    used = first.args[2].shape[-1] if first.op == "expert_linear" else 0
    return linear.Linear(
        block,
        tuple(operands),
        inputs=w.shape[-1],
        outputs=w.shape[-2],
        single=product(root.shape[:-1]) == 1,
        experts=used,
        shared_input=len(x.shape) < len(root.shape),
    )
