"""What can be switched off is found in any tree, and what is left is a tree as good as any."""

from __future__ import annotations

import pytest
import tiny

from briolette.compiler.elaborate import elaborate
from briolette.spec.errors import SpecError
from briolette.spec.format import format
from briolette.spec.switches import replaced, switches
from briolette.spec.syntax import load, parse, shipped
from briolette.spec.tree import Assign, Number, walk

SHIPPED = {name: load(path) for name, path in shipped().items()}
SPEC = tiny.SPEC.replace("param L", 'param cap = "cap" or 0\nparam L').replace(
    "  return x |> rms(output_norm) |> linear(token_embd) : [T, V]",
    """  y = gelu(x * D ** 0.5 * output_scale)
  y = y / 2 when cap > 0
  logits = x |> rms(output_norm) |> linear(token_embd) : [T, V]
  return logits |> softcap(cap) if cap > 0 else logits""",
)


def off(text: str) -> dict[str, str]:
    """What each switch leaves of the lines of a text that it changes."""
    tree = parse(text)
    whole = format(tree).splitlines()
    found = {}
    for switch in switches(tree):
        after = format(switch.tree).splitlines()
        changed = [" ".join(line.split()) for line in after if line not in whole]
        found[f"{switch.span.line}: {switch.what}"] = "\n".join(changed)
    return found


def test_what_each_switch_leaves():
    found = off(SPEC)
    attend = "return attend(q, cache[i], scale=hd ** -0.5{}) |> linear(attn_output) : [T, D]"
    assert found == {
        "20: no norm attn_norm": "h = x",
        "20: unweighted norm, no attn_norm": "h = x |> rms()",
        "21: no rotation": "q = h |> linear(attn_q) : [T, H, hd]",
        "21: no dims=rot": "q = h |> linear(attn_q) : [T, H, hd] |> rope(10000)",
        "22: no rotation": "k = h |> linear(attn_k) : [T, KV[i], hd]",
        "22: no dims=rot": "k = h |> linear(attn_k) : [T, KV[i], hd] |> rope(10000)",
        "25: scale=hd ** -0.5, as is usual": "",  # it is the usual one already
        "25: no window=window": attend.format(""),
        "29: no residual x": "return attention(x, i)",
        "29: no attention(x, i)": "return x",
        "35: no activation": "y = x * D ** 0.5 * output_scale",
        "35: no factor D ** 0.5": "y = gelu(x * output_scale)",
        "35: no factor output_scale": "y = gelu(x * D ** 0.5)",
        "36: not divided by 2": "y = y when cap > 0",
        "36: no y = ... when cap > 0": "",
        "37: no norm output_norm": "logits = x |> linear(token_embd) : [T, V]",
        "37: unweighted norm, no output_norm": "logits = x |> rms() |> linear(token_embd) : [T, V]",
        "38: no softcap": "return logits if cap > 0 else logits",
        '3: as if the file had no "cap": 0': "param cap = 0",
        '7: as if the file had no "head_count_kv": H': "param KV[i] = H",
        '8: as if the file had no "key_length": D // H': "param hd = D // H",
        '9: as if the file had no "rotary": hd': "param rot = hd",
        '11: as if the file had no "pattern": false': "param local[i] = false",
        "16: no layers of the kind near": "",
        "38: as if cap > 0": "return logits |> softcap(cap)",
        "38: as if not cap > 0": "return logits",
    }


def test_sizes_subscripts_and_conditions_are_no_values():
    changed = off(SPEC.replace("linear(attn_q) :", "linear(attn_q[:H * hd]) :"))
    assert not any("no factor hd" in what or "no factor H" in what for what in changed)
    assert not any("has(" in switch.what for tree in SHIPPED.values() for switch in switches(tree))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_tree_is_printed_and_read_again(name):
    tree = SHIPPED[name]
    found = switches(tree)
    assert len(found) > 20
    for switch in found:
        assert parse(format(switch.tree)) == switch.tree, switch.what
        assert switch.source in tree.source
        assert switch.span.file.endswith(f"{name}.arch")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_file_itself_stays(name):
    before = format(SHIPPED[name])
    switches(SHIPPED[name])
    assert format(SHIPPED[name]) == before


def test_a_piece_is_replaced_by_identity():
    tree = parse(SPEC)
    numbers = [part for part in walk(tree) if isinstance(part, Number) and part.text == "0.5"]
    one, *others = numbers
    changed = replaced(tree, one, Number("0.25"))
    texts = [part.text for part in walk(changed) if isinstance(part, Number) and part.text in ("0.5", "0.25")]
    assert texts == ["0.25", *["0.5"] * len(others)]
    assert replaced(tree, Number("0.5"), Number("0.25")) is tree  # equal, and not the very piece


def test_a_line_is_left_out():
    tree = parse(SPEC)
    line = next(part for part in walk(tree) if isinstance(part, Assign) and part.when is not None)
    assert line not in [part for part in walk(replaced(tree, line, None)) if isinstance(part, Assign)]


def test_what_is_left_may_leave_tensors_and_declarations_unread():
    tree = parse(tiny.SPEC)
    found = {switch.what: switch.tree for switch in switches(tree)}
    without = found["no attention(x, i)"]
    module = elaborate(without, tiny.header(), strict=False)
    assert {t.name for t in module.tensors} == {"token_embd.weight", "output_norm.weight"}
    with pytest.raises(SpecError, match="`attention` is never used"):
        elaborate(without, tiny.header())
