"""Where operands of a kernel lie: C++ expressions of a row's place along the axes before the last one."""

from __future__ import annotations

from dataclasses import dataclass

from briolette.compiler.dims import Dim, product
from briolette.compiler.ir import Node
from briolette.compiler.views import view_of


@dataclass(frozen=True)
class Axes:
    """The axes before the last one of what a kernel walks; the first may have a size known at run time."""

    sizes: tuple[Dim, ...]

    @property
    def rows(self) -> Dim:
        return product(self.sizes)

    def declarations(self, row: str = "row") -> list[str]:
        """`a0`, `a1`, …: the place of a row along each axis."""
        lines, rest = [], row
        for axis in reversed(range(1, len(self.sizes))):
            lines.append(f"const int a{axis} = {rest} % {self.sizes[axis]};")
            rest = f"({rest} / {self.sizes[axis]})"
        return [*lines, f"const int a0 = {rest};"] if self.sizes else lines

    def offset(self, item: Node) -> str:
        """Elements from where `item`'s view begins to a row of it, as numpy broadcasts it."""
        view = view_of(item)
        return self._sum(view.shape[:-1], view.strides[:-1])

    def place(self, item: Node) -> str:
        """The same where `item` has one value for each row, without an axis for it."""
        view = view_of(item)
        return self._sum(view.shape, view.strides)

    def _sum(self, shape: tuple[Dim, ...], strides: tuple[int, ...]) -> str:
        first = len(self.sizes) - len(shape)
        sized = enumerate(zip(shape, strides, strict=True), first)
        return " + ".join(f"(i64)a{axis} * {stride}" for axis, (size, stride) in sized if size != 1 and stride) or "0"


def last_stride(item: Node) -> int:
    """Elements from one value of a row to the next; 0 where a row is one value."""
    view = view_of(item)
    return 0 if not view.shape or view.shape[-1] == 1 else view.strides[-1]
