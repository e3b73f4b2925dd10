"""The program as text, and back: `parse(print_module(m)) == m`, node for node, at every stage.

    block ffn.local(%y: [T, 64] f32) {
      %u = rms_norm(%y, dequant(@blk.{i}.ffn_norm.weight[64]:stored)) {eps = 1e-06} : [T, 64] f32   # gemma4.arch:71
      ...
      return %d
    }

Weights (`@name[shape]:format`), numbers and views of weights are written where they are used.
Names and the spec lines behind `#` are for people; they are no part of the program.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from .dims import Affine, Dim, parse_dim
from .errors import BrioletteError
from .header import TensorInfo
from .ir import Block, Module, Node, Type, topological
from .ops import OPS, TypeRuleError, node

_INLINE = {"const", "weight"}
_INLINE_OVER_WEIGHT = {"dequant", "slice"}


def print_module(module: Module, tensors: bool = True) -> str:
    """The whole program. `tensors=False` leaves the tensor table out, for reading."""
    lines = [f"module {module.name} {module.form}"]
    for name, layers, entries in module.kinds:
        inside = ", ".join(f"{key} = {_value(value)}" for key, value in entries)
        lines.append(f"kind {name} {_ranges(layers)} {{{inside}}}")
    if tensors:
        lines += [f"tensor {t.name} {_dims(t.shape)} {t.format}" for t in module.tensors]
    for block in module.blocks():
        params = ", ".join(f"%{p['name']}: {p.type}" for p in block.params)
        printer = _Printer(module, {p: f"%{p['name']}" for p in block.params})
        lines += ["", f"block {block.name}({params}) {{", *printer.body(block.effects, (block.result,)), "}"]
    lines += ["", "main {", *_Printer(module, {}).body(module.effects, module.outputs), "}"]
    return "\n".join(lines) + "\n"


class _Printer:
    def __init__(self, module: Module, names: dict[Node, str]):
        self.module, self.names = module, dict(names)
        self.taken = set(names.values())
        self.numbered = 0

    def body(self, effects: tuple[Node, ...], results: tuple[Node, ...]) -> Iterator[str]:
        for item in topological((*effects, *results)):
            if item in self.names or _inline(item):
                continue
            self.names[item] = self.name(item)
            text = f"  {self.names[item]} = {self.expression(item)} : {item.type}"
            where = [f"{_file(span.file)}:{span.line}" for span in self.module.origins.get(item, ())]
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
        attrs = ", ".join(f"{key} = {_value(value)}" for key, value in item.attrs)
        call = f"{item.op}({', '.join(map(self.operand, item.args))})"
        return f"{call} {{{attrs}}}" if attrs else call


def _inline(item: Node) -> bool:
    while item.op in _INLINE_OVER_WEIGHT and item.args[0].op in (*_INLINE_OVER_WEIGHT, "weight"):
        item = item.args[0]
    return item.op in _INLINE


def _file(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _dims(shape: Iterable[Dim]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _value(value: Any) -> str:
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
            return "<" + "; ".join(f"{_ranges(layers)}: &{b.name}" for b, layers in groups.items()) + ">"
        case tuple():
            return "(" + "".join(f"{_value(item)}, " for item in value).rstrip() + ")"
    raise TypeError(f"no text for {value!r}")


def _ranges(layers: Iterable[int]) -> str:
    """`0-3, 5`: layer numbers, runs shortened."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def _unranges(text: str) -> list[int]:
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


def parse_module(text: str) -> Module:
    """The program a text stands for. Raises BrioletteError with the line that is wrong."""
    return _Parser(text).module()


class _Parser:
    def __init__(self, text: str):
        self.lines = [(n, line.split("   # ")[0].rstrip()) for n, line in enumerate(text.splitlines(), 1)]
        self.lines = [(n, line) for n, line in self.lines if line.strip()]
        self.blocks: dict[str, Block] = {}
        self.hints: dict[Node, str] = {}
        self.at = 0

    def module(self) -> Module:
        name, form = "", ""
        kinds: list[Any] = []
        tensors: list[TensorInfo] = []
        outputs: tuple[Node, ...] = ()
        effects: tuple[Node, ...] = ()
        while self.at < len(self.lines):
            line = self.lines[self.at][1]
            self.at += 1
            word = line.split(" ", 1)[0]
            try:
                if word == "module":
                    _, name, form = line.split()
                elif word == "kind":
                    kinds.append(self.kind(line))
                elif word == "tensor":
                    match = re.fullmatch(r"tensor (\S+) \[(.*)\] (\S+)", line)
                    assert match is not None
                    shape = tuple(int(d) for d in match[2].split(",") if d.strip())
                    tensors.append(TensorInfo(match[1], shape, match[3]))
                elif word == "block":
                    self.block(line)
                elif word == "main":
                    effects, outputs = self.body({})
                else:
                    raise ValueError(f"unexpected `{word}`")
            except (ValueError, AssertionError, KeyError) as error:
                number, shown = self.lines[self.at - 1]
                raise BrioletteError(f"IR text, line {number}: {error}\n  {shown.strip()}") from None
        return Module(name, form, outputs, effects, tuple(tensors), tuple(kinds), names=self.hints)

    def kind(self, line: str) -> Any:
        match = re.fullmatch(r"kind (\S+) ([\d, -]+) (\{.*\})", line)
        assert match is not None
        return match[1], tuple(_unranges(match[2])), tuple(_Tokens(match[3], self).attrs().items())

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
        effects, results = self.body({f"%{p['name']}": p for p in params})
        self.blocks[name] = Block(name, tuple(params), results[0], effects)

    def body(self, scope: dict[str, Node]) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
        effects: tuple[Node, ...] = ()
        while True:
            line = self.lines[self.at][1].strip()
            self.at += 1
            if line.startswith("effect "):
                effects = _Tokens(line.removeprefix("effect "), self, scope).operands()
            elif line.startswith("return "):
                results = _Tokens(line.removeprefix("return "), self, scope).operands()
                self.at += 1  # the closing brace
                return effects, results
            else:
                tokens = _Tokens(line, self, scope)
                name = tokens.take("name")
                tokens.expect("=")
                made = tokens.operand()
                tokens.expect(":")
                declared = tokens.type()
                if declared != made.type:
                    raise ValueError(f"{name} is {made.type}, the text says {declared}")
                scope[name] = made
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

    def raw(self) -> str:
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
            return node("weight", name=text[1:], type=Type(shape, self.raw()))
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
        kind, text = self.tokens[self.at]
        if text == "(":
            self.at += 1
            return tuple(self.value() for _ in self.separated(")"))
        if text == "[":
            return self.type()
        self.at += 1
        match kind:
            case "int":
                return int(text)
            case "float":
                return float(text)
            case "string":
                return text[1:-1]
            case "block":
                return self.parser.blocks[text[1:]]
            case "table":
                rows = (part.split(": &") for part in text[1:-1].split("; "))
                table = [(i, self.parser.blocks[name]) for layers, name in rows for i in _unranges(layers)]
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
        return Type(self.dims(), self.raw())
