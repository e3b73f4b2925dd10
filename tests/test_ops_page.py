"""docs/ops.md is what the op table and the backends say now, and what they say is so."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from briolette.backends import reference
from briolette.backends.cpu import engine as cpu
from briolette.backends.cpu.support import kernels
from briolette.backends.cuda import engine as cuda
from briolette.backends.cuda.support import kernels as cuda_kernels
from briolette.backends.support import OWN
from briolette.compiler.ir import topological
from briolette.compiler.ops import OPS
from briolette.compiler.pipeline import Form, front, optimise
from briolette.engine.gguf import open_gguf
from briolette.engine.source import architecture

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import ops_page  # noqa: E402

MODELS = sorted((ROOT / "tests" / "oracle" / "models").glob("*.gguf"))


def test_the_page_is_fresh():
    run = subprocess.run([sys.executable, ROOT / "tests" / "ops_page.py"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_stale_page_says_what_to_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ops_page, "PAGE", tmp_path / "ops.md")
    monkeypatch.setattr(sys, "argv", ["ops_page.py"])
    assert ops_page.main() == 1
    assert capsys.readouterr().err == "docs/ops.md is not what the op table says: python tests/ops_page.py --update\n"
    monkeypatch.setattr(sys, "argv", ["ops_page.py", "--update"])
    assert ops_page.main() == 0
    assert (tmp_path / "ops.md").read_text(encoding="utf-8") == ops_page.page() + "\n"


def test_every_op_and_every_format_is_there():
    text = (ROOT / "docs" / "ops.md").read_text(encoding="utf-8")
    matrix, formats = text.split("\n## Op and backend")[1].split("\n## Ops on weights")
    assert all(f"| `{name}` | numpy | " in matrix for name in OPS)
    assert all(f"| `{name}` | " in formats for name in ops_page.formats.FORMATS)
    assert all(f"| `{op.name}({', '.join(op.operands)})` | " in text for op in OPS.values())


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_an_op_that_nothing_runs_is_no_page(backend, monkeypatch):
    """The one way to add an op that a backend cannot run is not to notice: so it is an error here."""
    known = ops_page.NATIVE[backend]
    monkeypatch.setitem(ops_page.NATIVE, backend, lambda: {n: k for n, k in known().items() if n != "combine"})
    assert OPS["combine"].body is None
    with pytest.raises(SystemExit, match=f"nothing runs the op combine on {backend}"):
        ops_page.page()


def test_a_format_without_a_kernel_is_told():
    for emit in ops_page.EMITTERS.values():
        assert ops_page.emits("linear", "q4_k", emit)
        with pytest.raises(Exception, match="block format 'q9_k' is not supported"):
            ops_page.emits("linear", "q9_k", emit)


def test_backends_tell_their_ops():
    assert reference.ops() == set(OPS)
    for backend, known in ((cpu, kernels()), (cuda, cuda_kernels())):
        assert backend.ops() == set(known)
        assert {"linear", "attend", "softmax", "embed", "cache_write"} <= backend.ops()
        assert not {"rope", "reshape", "weight", "layers"} & backend.ops()


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_ops_are_computed_where_the_page_says(path):
    """In every form of a model's program: each op inside a kernel of a family that the page names, or by itself."""
    header = open_gguf(path).header
    module, tables = front(architecture(None, header), header), (kernels(), cuda_kernels())
    forms = [optimise(module, form) for form in (Form(tokens=1), Form(), Form(logits="all"))]
    for native, form in product(tables, forms):
        for item in topological(form.roots):
            if item.op == "fused":
                inside = [n for n in topological(item["block"].roots) if n.op not in ("param", "const")]
                assert all(item["family"] in native[n.op] for n in inside)
            elif item.op in native:
                assert native[item.op] == (OWN,)
            else:
                assert OPS[item.op].traits & {"view", "leaf"} or item.op == "dequant"
