"""Broken specs, and exactly what a person is told: see broken_syntax.txt."""

from __future__ import annotations

from pathlib import Path

import golden
import pytest

from briolette.spec.errors import BrioletteError, SpecError
from briolette.spec.syntax import find, load, parse


def block(*lines: str) -> str:
    """An architecture with one block of these lines, which start at line 3."""
    return "arch a\nblock f(x: [T]) -> [T] {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


CASES = {
    "empty file": "",
    "only comments": "# nothing\n\n",
    "missing arch line": 'param L = "block_count"\n',
    "arch without name": 'arch\nparam L = "x"\n',
    "two archs": "arch a\narch b\n",
    "unknown keyword": 'arch a\nparm L = "block_count"\n',
    "unknown keyword 2": "arch a\nfunction f(x) {\n}\n",
    "missing =": 'arch a\nparam L "block_count"\n',
    "missing value": "arch a\nparam L =\n",
    "colon equals": 'arch a\nparam L := "block_count"\n',
    "colon equals in block": block("y := x", "return y"),
    "arrow =>": "arch a\nblock f(x) => [T] {\n  return x\n}\n",
    "=> compare": block("return x if L => 3 else y"),
    "=<": block("return x if L =< 3 else y"),
    "missing arrow": "arch a\nblock f(x: [T]) {\n  return x\n}\n",
    "missing shape": "arch a\nblock f(x: [T]) -> {\n  return x\n}\n",
    "missing brace to open": "arch a\nblock f(x) -> [T]\n  return x\n}\n",
    "missing } before block": "arch a\nblock f(x) -> [T] {\n  return x\n\nblock g(x) -> [T] {\n}\n",
    "missing } at end": "arch a\nmodel(x) -> [T] {\n  return x\n",
    "missing inner }": "arch a\nmodel(x) -> [T] {\n  if L > 2 {\n    y = x\n  return y\n}\n",
    "missing )": block("y = rms(x, w", "z = y", "return z"),
    "missing ) at }": block("return rms(x, w"),
    "missing ]": block("y = x : [T, D", "return y"),
    "] for )": block("return rms(x, w]"),
    "stray }": "arch a\nblock f(x: [T]) -> [T] {\n  return x\n}\n}\n",
    "stray )": block("return rms(x))"),
    "stray ]": 'arch a\nparam L] = "x"\n',
    "bad character": block("return x @ w"),
    "curly quotes": "arch a\nparam L = “block_count”\n",
    "nbsp": 'arch a\nparam\xa0L = "block_count"\n',
    "and &&": block("y = x if a && b else x"),
    "!x": block("y = x if !a else x"),
    "||": block("y = x if a || b else x"),
    "unterminated key": 'arch a\nparam L = "block_count\nparam D = "x"\n',
    "unterminated text": "arch a\nrequire L == 'linear, 'no'\n",
    "tab": 'arch a\n\tparam\tL\t"block_count"\n',
    "crlf": 'arch a\r\nparam L "block_count"\r\n',
    "wide": 'arch a\nlet 模型 = 1 if "日本語" 2\n',
    "combining": "arch a\nlet é = 1 1\n",
    "keyword as param name": 'arch a\nparam kind = "x"\n',
    "keyword as arg": "arch a\nblock f(in: [T]) -> [T] {\n  return in\n}\n",
    "keyword as local": block("last = x", "return last"),
    "keyword as block": "arch a\nblock model(x) -> [T] {\n  return x\n}\n",
    "let in block": block("let y = x", "return y"),
    "expression statement": block("rms(x)", "return x"),
    "pipe statement": block("x |> rms()", "return x"),
    "typo return": block("retrun x"),
    "return nothing": block("return"),
    "plus equals": block("x += 1", "return x"),
    "else if": block("if a {", "  y = x", "} else if b {", "  y = x", "}", "return y"),
    "else alone": block("else {", "  y = x", "}", "return y"),
    "= in condition": block("if L = 3 {", "  return x", "}"),
    "chained comparison": block("y = x when 1 < L < 3", "return y"),
    "pipe no call": block("return x |> rms"),
    "pipe end": block("return x |>"),
    "missing comma": block("return rms(x w)"),
    "two values": block("y = x w", "return y"),
    "ignore name top": "arch a\nignore context_length\n",
    "ignore key in block": block('ignore "attn_k"', "return x"),
    "kind without when": "arch a\nkind local { window = 1 }\n",
    "kind no else": "arch a\nkind local when { window = 1 }\n",
    "require no reason": "arch a\nrequire L == 3\n",
    "require key reason": 'arch a\nrequire L == 3, "three layers"\n',
    "single quoted key ignore": "arch a\nignore 'context_length'\n",
    "choose no else": block("y = x if L > 3", "return y"),
    "double operator": block("y = x + * 3", "return y"),
    "for no in": block("for i L {", "  y = x", "}", "return y"),
    "positional after named": block("return rope(x, theta=1, 2)"),
    "big number": "arch a\nlet x = 1e99\n",
    "float no digit": "arch a\nlet x = .5\n",
    "number name": 'arch a\nparam 2x = "x"\n',
    "index not name": 'arch a\nparam F[3] = "x"\n',
    "dotted": "arch a\nlet a.b = 3\n",
    "top statement": "arch a\nx = 3\n",
    "empty shape": "arch a\nblock f(x: []) -> [T] {\n  return x\n}\n",
    "bom": '\ufeffarch a\nparam L "x"\n',
    "too many )": block("return rms((x)))"),
    "unclosed ( before a block": "arch a\nblock f(x) -> [T] {\n  y = rms(x\n}\nblock g(x) -> [T] {\n}\n",
    "wide characters in a comment do not matter": "arch a  # 日本語\nlet x = 日\n",
    "carets after wide characters": 'arch a\nlet x = "日本語" 2\n',
    "carets after a combining accent": 'arch a\nlet x = "e\u0301" 2\n',
    "carets after tabs": "arch a\nlet\tx\t=\t1\t2\n",
    "form feed": "arch a\x0c\n",
    "line separator": "arch a\u2028let x = 1\n",
    "NUL": "arch a\n\x00\n",
    "semicolon at the top": "arch a; dim T\n",
    "last without a test": block("y = x when last(j < 3) == 2", "return y"),
    "range outside a subscript": block("y = 1:2", "return y"),
    "a key as a function": block('return "x"(3)'),
    "import": "arch a\nimport math\n",
    "at without a name": "arch a\nblock f(x) -> [T] at {\n  return x\n}\n",
    "division sign": block("return x ÷ 2"),
}
NAMES = list(CASES)


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_spec_says_what_and_where(name: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(CASES[name], "a.arch")
    golden.check("broken_syntax.txt", name, str(caught.value), NAMES)


def test_the_table_has_no_stale_entries() -> None:
    assert golden.names("broken_syntax.txt") == set(CASES)


def test_carriage_returns_and_a_byte_order_mark_are_accepted() -> None:
    plain = parse("arch a\n# one\ndim T  # two\n")
    assert parse("\ufeffarch a\r\n# one\r\ndim T  # two\r\n") == plain
    assert parse("arch a\r# one\rdim T  # two\r") == plain


def test_unreadable_files(tmp_path: Path) -> None:
    def told(data: bytes | None) -> str:
        path = tmp_path / "x.arch"
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(BrioletteError) as caught:
            load(path if data is not None else tmp_path / "absent.arch")
        return str(caught.value).replace(str(tmp_path), "DIR")

    assert told(None) == "cannot read the architecture file DIR/absent.arch: No such file or directory"
    assert told(b"arch a\n# caf\xe9\n") == "DIR/x.arch:2: byte 0xe9 is not UTF-8 text; save the file as UTF-8"
    assert told(b"GGUF\x03") == ("DIR/x.arch is a model file; an architecture file is text and starts with `arch NAME`")


def test_an_unknown_architecture_is_told_which_there_are() -> None:
    with pytest.raises(BrioletteError) as caught:
        find("gemma5")
    assert str(caught.value) == (
        "there is no architecture file for 'gemma5'; there are gemma2, gemma3, gemma4, llama, qwen3\n"
        "  did you mean gemma4?"
    )
    assert find("gemma4").name == "gemma4"


@pytest.mark.parametrize(
    "text",
    [
        "let x = " + "(" * 5000 + "1" + ")" * 5000,
        "let x = " + "-" * 20000 + "1",
        "let x = " + "not " * 20000 + "1",
        "let x = " + "1 + " * 20000 + "1",
    ],
    ids=["parentheses", "minus", "not", "plus"],
)
def test_deep_nesting_is_an_error_or_parses(text: str) -> None:
    try:
        parse(f"arch a\n{text}\n")
    except SpecError as error:
        told = str(error)
    else:
        told = "nested too deeply"  # deep, but not too deep
    assert "nested too deeply" in told
