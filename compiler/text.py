"""The program as text, and back: `parse(print_module(m)) == m`, node for node, at every stage.

    block ffn.local(%y: [T, 64] f32) {
      %u = rms_norm(%y, dequant(@blk.{i}.ffn_norm.weight[64]:stored)) {eps = 1e-06} : [T, 64] f32   # gemma4.arch:71
      ...
      return %d
    }

Weights (`@name[shape]:format`), numbers and views of weights are written where they are used.
Names and the spec lines behind `#` are for people; they are read back, but are no part of the program.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from briolette.spec.errors import Span

from .dims import Affine, Dim, parse_dim
from .errors import BrioletteError
from .header import TensorInfo
from .ir import Block, Module, Node, Type, topological
from .ops import OPS, TypeRuleError, node, weight_below

Found = TypeVar("Found")


def print_module(module: Module, tensors: bool = True) -> str:
    """The whole program. `tensors=False` leaves the tensor table out, for reading."""
    lines = [f"module {module.name} {module.form}"]
    lines += [f"param {name} = {attribute_text(value)}" for name, value in module.params]
    for name, layers, entries in module.kinds:
        inside = ", ".join(f"{key} = {attribute_text(value)}" for key, value in entries)
        lines.append(f"kind {name} {layer_ranges(layers)} {{{inside}}}")
    if tensors:
        lines += [f"tensor {t.name} {_dims(t.shape)} {t.format}" for t in module.tensors]
    for block in module.blocks():
        params = ", ".join(f"%{p['name']}: {p.type}" for p in block.params)
        printer = _Printer(module, {p: f"%{p['name']}" for p in block.params})
        lines += ["", f"block {block.name}({params}) {{", *printer.body(block.effects, (block.result,)), "}"]
    lines += ["", "main {", *_Printer(module, {}).body(module.effects, module.outputs), "}"]
    return "\n".join(lines) + "\n"


Statement = tuple[Node, str, str]


def statements(module: Module, block: Block | None = None) -> Iterator[Statement]:
    """What is printed of a block, or of `main`, line by line: a value, its name, and the expression that makes it."""
    params = () if block is None else block.params
    printer = _Printer(module, {p: f"%{p['name']}" for p in params})
    return printer.statements(module.roots if block is None else block.roots)


class _Printer:
    def __init__(self, module: Module, names: dict[Node, str]):
        self.module, self.names = module, dict(names)
        self.taken = set(names.values())
        self.numbered = 0

    def statements(self, roots: tuple[Node, ...]) -> Iterator[Statement]:
        for item in topological(roots):
            if item not in self.names and not _inline(item):
                self.names[item] = self.name(item)
                yield item, self.names[item], self.expression(item)

    def body(self, effects: tuple[Node, ...], results: tuple[Node, ...]) -> Iterator[str]:
        for item, name, expression in self.statements((*effects, *results)):
            text = f"  {name} = {expression} : {item.type}"
            where = [span.place for span in self.module.origins.get(item, ())]
            yield f"{text}   # {', '.join(dict.fromkeys(where[:3]))}" if where else text
        if effects:
            yield "  effect " + ", ".join(map(self.operand, effects))
        yield "  return " + ", ".join(map(self.operand, results))

    def name(self, item: Node) -> str:
        hint = self.module.names.get(item)
        if hint is None:
            self.numbered += 1
            return f"%{self.numbered - 1}"
        name, copy = f"%{hint}", 2
        while name in self.taken:
            name, copy = f"%{hint}'{copy}", copy + 1
        self.taken.add(name)
        return name

    def operand(self, item: Node) -> str:
        return self.names.get(item) or self.expression(item)

    def expression(self, item: Node) -> str:
        if item.op == "const":
            return repr(item["value"])
        if item.op == "weight":
            return f"@{item['name']}{_dims(item.shape)}:{item.type.dtype}"
        attrs = ", ".join(f"{key} = {attribute_text(value)}" for key, value in item.attrs)
        call = f"{item.op}({', '.join(map(self.operand, item.args))})"
        return f"{call} {{{attrs}}}" if attrs else call


def _inline(item: Node) -> bool:
    return item.op == "const" or weight_below(item) is not None


def _dims(shape: Iterable[Dim]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def attribute_text(value: Any) -> str:
    """An attribute as it is printed."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case int() | float() | Affine() | Type():
            return repr(value) if isinstance(value, int | float) else str(value)
        case str():
            return f'"{value}"'
        case Block():
            return f"&{value.name}"
        case tuple() if value and isinstance(value[0], tuple) and isinstance(value[0][1], Block):
            groups: dict[Block, list[int]] = {}
            for index, block in value:
                groups.setdefault(block, []).append(index)
            return "<" + "; ".join(f"{layer_ranges(layers)}: &{b.name}" for b, layers in groups.items()) + ">"
        case tuple():
            return "(" + "".join(f"{attribute_text(item)}, " for item in value).rstrip() + ")"
    raise TypeError(f"no text for {value!r}")


def plain(value: object) -> str:
    """An attribute for people: texts without quotes, numbers with six digits."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e9 else f"{value:.6g}"
    return value if isinstance(value, str) else attribute_text(value)


def layer_ranges(layers: Iterable[int]) -> str:
    """`0-3, 5`: layer numbers, runs shortened."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def layers_of_ranges(text: str) -> list[int]:
    """The inverse of `layer_ranges`."""
    layers: list[int] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        first, _, last = part.partition("-")
        layers += range(int(first), int(last or first) + 1)
    return layers


# --- text to program ------------------------------------------------------------------------------------

_TERM = r"(?:-?\d+\*)?[A-Za-z]\w*"
_TOKEN = re.compile(
    rf"""\s*(?:
      (?P<name>%[\w.'@]+) | (?P<block>&[\w.]+) | (?P<weight>@[^\s\[]+) | (?P<string>"[^"]*")
    | (?P<table><[^>]*>)
    | (?P<float>-?(?:\d+\.\d*(?:e[+-]?\d+)?|\d+e[+-]?\d+|inf|nan)(?![\w*]))
    | (?P<affine>{_TERM}(?:\ \+\ (?:{_TERM}|-?\d+))*)
    | (?P<int>-?\d+)
    | (?P<punct>[()\[\]{{}},=:])
    )""",
    re.VERBOSE,
)


def _matched(pattern: str, text: str, form: str) -> tuple[str, ...]:
    """The groups of a pattern that all of a text must match."""
    match = re.fullmatch(pattern, text)
    if match is None:
        raise ValueError(f"expected `{form}`")
    return match.groups()


def parse_module(text: str) -> Module:
    """The program a text stands for. Raises BrioletteError with the line that is wrong."""
    return _Parser(text).module()


class _Parser:
    def __init__(self, text: str):
        self.lines: list[tuple[int, str]] = []
        self.comments: dict[int, str] = {}  # by line number: where nodes came from
        for number, line in enumerate(text.splitlines(), 1):
            code, _, comment = line.partition("   # ")
            if code.strip():
                self.lines.append((number, code.rstrip()))
                self.comments[number] = comment
        self.blocks: dict[str, Block] = {}
        self.hints: dict[Node, str] = {}
        self.origins: dict[Node, tuple[Span, ...]] = {}
        self.at = 0

    def module(self) -> Module:
        name, form = "", ""
        kinds: list[Any] = []
        params: list[tuple[str, Any]] = []
        tensors: list[TensorInfo] = []
        outputs: tuple[Node, ...] = ()
        effects: tuple[Node, ...] = ()
        while self.at < len(self.lines):
            try:
                line = self.line()
                word = line.split(" ", 1)[0]
                if word == "module":
                    name, form = _matched(r"module (\S+) (\S+)", line, "module NAME FORM")
                elif word == "param":
                    called, value = _matched(r"param (\w+) = (.+)", line, "param NAME = VALUE")
                    tokens = _Tokens(value, self)
                    params.append((called, tokens.all(tokens.value)))
                elif word == "kind":
                    kinds.append(self.kind(line))
                elif word == "tensor":
                    called, sizes, format = _matched(r"tensor (\S+) \[(.*)\] (\S+)", line, "tensor NAME [SHAPE] FORMAT")
                    shape = tuple(int(size) for size in sizes.split(",") if size.strip())
                    tensors.append(TensorInfo(called, shape, format))
                elif word == "block":
                    self.block(line)
                elif line == "main {":
                    effects, outputs = self.body({})
                else:
                    raise ValueError(f"unexpected `{word}`")
            except ValueError as error:
                number, shown = self.lines[min(self.at, len(self.lines)) - 1]
                raise BrioletteError(f"IR text, line {number}: {error}\n  {shown.strip()}") from None
        if not name or not outputs:
            last = self.lines[-1][0] if self.lines else 1
            raise BrioletteError(f"IR text, line {last}: the text ends without its `{'main' if name else 'module'}`")
        return Module(
            name, form, outputs, effects, tuple(tensors), tuple(kinds), tuple(params), self.origins, self.hints
        )

    def line(self) -> str:
        """The next line, taken."""
        if self.at >= len(self.lines):
            raise ValueError("the text ends inside of a block")
        self.at += 1
        return self.lines[self.at - 1][1].strip()

    def called(self, name: str) -> Block:
        if name not in self.blocks:
            raise ValueError(f"block &{name} is not defined above")
        return self.blocks[name]

    def kind(self, line: str) -> Any:
        name, layers, rest = _matched(r"kind (\S+) ([\d, -]+) (\{.*\})", line, "kind NAME LAYERS {ATTRIBUTES}")
        tokens = _Tokens(rest, self)
        return name, tuple(layers_of_ranges(layers)), tuple(tokens.all(tokens.attrs).items())

    def block(self, line: str) -> None:
        tokens = _Tokens(line.removeprefix("block "), self)
        name = tokens.take("affine")
        while tokens.peek() != "(":
            name += tokens.raw()
        tokens.expect("(")
        params: list[Node] = []
        while tokens.peek() != ")":
            if params:
                tokens.expect(",")
            param = tokens.take("name")[1:]
            tokens.expect(":")
            params.append(node("param", name=param, type=tokens.type()))
        tokens.expect(")")
        tokens.all(lambda: tokens.expect("{"))
        effects, results = self.body({f"%{p['name']}": p for p in params})
        if len(results) != 1:
            raise ValueError(f"{name} returns {len(results)} values; a block returns one")
        if name in self.blocks:
            raise ValueError(f"there is a block {name} above")
        self.blocks[name] = Block(name, tuple(params), results[0], effects)

    def body(self, scope: dict[str, Node]) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
        effects: tuple[Node, ...] = ()
        while True:
            line = self.line()
            if line.startswith("effect "):
                tokens = _Tokens(line.removeprefix("effect "), self, scope)
                effects = tokens.all(tokens.operands)
            elif line.startswith("return "):
                tokens = _Tokens(line.removeprefix("return "), self, scope)
                results = tokens.all(tokens.operands)
                if self.line() != "}":
                    raise ValueError("expected the block's `}` after its `return`")
                return effects, results
            else:
                tokens = _Tokens(line, self, scope)
                name = tokens.take("name")
                tokens.expect("=")
                made = tokens.operand()
                tokens.expect(":")
                declared = tokens.all(tokens.type)
                if declared != made.type:
                    raise ValueError(f"{name} is {made.type}, the text says {declared}")
                if name in scope:
                    raise ValueError(f"{name} is defined twice")
                scope[name] = made
                where = re.findall(r"(\S+):(\d+)", self.comments[self.lines[self.at - 1][0]])
                if where:
                    self.origins.setdefault(made, tuple(Span(int(n), 1, int(n), 1, file) for file, n in where))
                if not name[1:].isdigit():
                    self.hints.setdefault(made, name[1:])


class _Tokens:
    """One line's tokens, with a grammar of a few short methods."""

    def __init__(self, text: str, parser: _Parser, scope: dict[str, Node] | None = None):
        self.parser, self.scope = parser, scope if scope is not None else {}
        self.tokens: list[tuple[str, str]] = []
        place = 0
        while place < len(text.rstrip()):
            match = _TOKEN.match(text, place)
            if match is None:
                # block names have dots after a plain word
                self.tokens.append(("raw", text[place]))
                place += 1
                continue
            assert match.lastgroup is not None
            self.tokens.append((match.lastgroup, match[match.lastgroup]))
            place = match.end()
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def all(self, part: Callable[[], Found]) -> Found:
        """What `part` reads, which must be all that is left."""
        found = part()
        if self.at < len(self.tokens):
            raise ValueError(f"unexpected `{self.peek()}`")
        return found

    def raw(self) -> str:
        if self.at >= len(self.tokens):
            raise ValueError("the line ends too early")
        self.at += 1
        return self.tokens[self.at - 1][1]

    def take(self, kind: str) -> str:
        if self.at >= len(self.tokens) or self.tokens[self.at][0] != kind:
            raise ValueError(f"expected {kind}, found {self.peek() or 'the end of the line'}")
        return self.raw()

    def expect(self, text: str) -> None:
        if self.peek() != text:
            raise ValueError(f"expected `{text}`, found {self.peek() or 'the end of the line'}")
        self.at += 1

    def separated(self, close: str) -> Iterator[None]:
        """Once per comma-separated item up to `close`, which is taken."""
        while self.peek() != close:
            yield
            if self.peek() != close:
                self.expect(",")
        self.expect(close)

    def operands(self) -> tuple[Node, ...]:
        found = [self.operand()]
        while self.peek() == ",":
            self.expect(",")
            found.append(self.operand())
        return tuple(found)

    def operand(self) -> Node:
        kind, text = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        if kind == "name":
            self.at += 1
            if text not in self.scope:
                raise ValueError(f"{text} is not defined above")
            return self.scope[text]
        if kind == "float":
            return node("const", value=float(self.raw()))
        if kind == "weight":
            self.at += 1
            shape = self.dims()
            self.expect(":")
            return node("weight", name=text[1:], type=Type(shape, self.take("affine")))
        op = self.take("affine")
        if op not in OPS:
            raise ValueError(f"unknown op `{op}`")
        self.expect("(")
        args = [self.operand() for _ in self.separated(")")]
        attrs = self.attrs() if self.peek() == "{" else {}
        try:
            return node(op, *args, **attrs)
        except TypeRuleError as error:
            raise ValueError(str(error)) from None

    def attrs(self) -> dict[str, Any]:
        self.expect("{")
        found = {}
        for _ in self.separated("}"):
            key = self.take("affine")
            self.expect("=")
            found[key] = self.value()
        return found

    def value(self) -> Any:
        kind, text = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        if text == "(":
            self.at += 1
            return tuple(self.value() for _ in self.separated(")"))
        if text == "[":
            return self.type()
        self.raw()
        match kind:
            case "int":
                return int(text)
            case "float":
                return float(text)
            case "string":
                return text[1:-1]
            case "block":
                return self.parser.called(text[1:])
            case "table":
                rows = [_matched(r"([\d, -]+): &(\S+)", part, "LAYERS: &BLOCK") for part in text[1:-1].split("; ")]
                table = [(i, self.parser.called(name)) for layers, name in rows for i in layers_of_ranges(layers)]
                return tuple(sorted(table, key=lambda row: row[0]))
            case "affine":
                return (
                    {"true": True, "false": False, "none": None}[text]
                    if text in ("true", "false", "none")
                    else parse_dim(text)
                )
        raise ValueError(f"unexpected `{text}`")

    def dims(self) -> tuple[Dim, ...]:
        self.expect("[")
        return tuple(parse_dim(self.raw()) for _ in self.separated("]"))

    def type(self) -> Type:
        return Type(self.dims(), self.take("affine"))
