"""What ports get wrong most often: the line that is named, and that nothing untrue is said of it."""

from __future__ import annotations

import pytest
from runs import against, model, recorded

from briolette.engine.tracing.judge import Finding

E2B, GEMMA3 = "gemma4_e2b", "gemma3_period"
EPS = 'param eps    = "attention.layer_norm_rms_epsilon"'
PATTERN = "(i + 1) % pattern[i] > 0"


def wrong(name: str, old: str, new: str) -> tuple[list[Finding], list[str]]:
    """What is found of a spec with one edit, and its lines."""
    text = model(name).tree.source
    assert text.count(old) == 1
    text = text.replace(old, new)
    return against(name, recorded(name), text).findings, ["", *text.split("\n")]


def said(finding: Finding) -> str:
    assert finding.cause is not None
    return finding.cause.text


@pytest.mark.parametrize("factor", ["2", "0.1", "10", "100", "1000"])
def test_a_wrong_eps_is_one_finding_and_leads_to_its_param(factor: str) -> None:
    findings, lines = wrong(E2B, EPS, f"{EPS} * {factor}")
    assert len(findings) == 1
    assert findings[0].place is not None
    assert lines[findings[0].place.span.line].startswith("param eps")
    ours = float(factor) * 1e-6
    assert said(findings[0]) == f"the reference has eps 1e-06 (attention.layer_norm_rms_epsilon), ours {ours:g}"
    assert len(findings[0].labels) > 5


@pytest.mark.parametrize(
    ("name", "new"),
    [(GEMMA3, "i % pattern[i] > 0"), ("gemma3_scaled", "i % pattern[i] > 0"), ("gemma2_caps", "i % pattern[i] > 0")],
)
def test_a_wrong_pattern_of_kinds_leads_to_its_line(name: str, new: str) -> None:
    findings, lines = wrong(name, PATTERN, new)
    assert len(findings) == 1
    assert findings[0].place is not None
    assert lines[findings[0].place.span.line].startswith("let swa")
    assert "`local` in the reference and `global` in ours" in said(findings[0])
    assert "`global` in the reference and `local` in ours" in said(findings[0])


def test_one_layer_of_the_wrong_kind_is_told_by_number() -> None:
    findings, _ = wrong(GEMMA3, "kind local when swa[i]", "kind local when swa[i] or i == 2")
    assert [said(finding) for finding in findings] == [
        "layer 2 is `global` in the reference and `local` in ours: by theta, window"
    ]


def test_where_all_layers_are_of_one_kind_their_number_may_still_be_right() -> None:
    findings, lines = wrong(GEMMA3, "false if W == 0 else", "false if W > 0 else")
    assert all(finding.place is not None for finding in findings)
    assert {lines[finding.place.span.line][:7] for finding in findings if finding.place is not None} == {"let swa"}


def test_a_wrong_entry_of_a_kind_is_no_wrong_pattern() -> None:
    findings, lines = wrong(GEMMA3, 'theta = "rope.freq_base";', 'theta = "rope.freq_base" * 2;')
    assert findings[0].place is not None
    assert 'theta = "rope.freq_base" * 2' in lines[findings[0].place.span.line]
    assert "theta" in findings[0].place.why


FFN = "gelu(u |> linear(ffn_gate)) * (u |> linear(ffn_up))"
CAUSES = [
    (E2B, FFN, FFN.replace("gelu", "silu"), "the reference has gelu here, ours silu"),
    (E2B, FFN, FFN.replace("gelu", "tanh"), "the reference has gelu here, ours tanh"),
    (
        E2B,
        FFN,
        "(u |> linear(ffn_gate)) * gelu(u |> linear(ffn_up))",
        "the reference has gelu of `blk.0.ffn_gate` here, ours of `blk.0.ffn_up`: the two are swapped",
    ),
    (E2B, "gelu(z |> linear(inp_gate))", "silu(z |> linear(inp_gate))", "the reference has gelu here, ours silu"),
    ("gemma4_moe", "g = gelu(", "g = silu(", "the reference has gelu here, ours silu"),
    (
        E2B,
        "|> rms(attn_q_norm) |> rope(theta, dims=rot, freqs=freqs)",
        "|> rope(theta, dims=rot, freqs=freqs) |> rms(attn_q_norm)",
        "the reference has rms_norm before rope here, ours after it",
    ),
    (
        E2B,
        "logits = x |> rms(output_norm)",
        "ignore output_norm\n  logits = x |> rms()",
        "the reference multiplies by `output_norm` here, ours does not",
    ),
    (
        E2B,
        "k = c |> rms(attn_k_norm)",
        "ignore attn_k_norm\n    k = c |> rms()",
        "the reference multiplies by `attn_k_norm` here, ours does not",
    ),
    (
        "gemma3_array",
        "cache[i] <- k, v\n",
        "cache[i] <- v, k\n",
        "the reference has here what ours has as `blk.0.attention.k`",
    ),
]


@pytest.mark.parametrize(("name", "old", "new", "says"), CAUSES, ids=lambda v: "")
def test_the_cause_is_told_and_the_line_named(name: str, old: str, new: str, says: str) -> None:
    findings, lines = wrong(name, old, new)
    assert said(findings[0]) == says
    assert findings[0].place is not None
    assert new.split("\n")[1 if new.startswith("ignore") else 0] in lines[findings[0].place.span.line]
