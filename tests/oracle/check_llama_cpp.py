"""Runs every oracle model through llama.cpp, one process each, and prints how far its logits are from ours.

    python tests/oracle/check_llama_cpp.py DIR [NAME ...]

A wrong permutation, key or tensor name shows here. Needs llama-cpp-python. llama.cpp looks GELU up in an
fp16 table, hence a few 1e-3 on Gemma and 1e-6 on the others.
"""

import argparse
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
from catalog import MODELS

LIMIT = 2e-2


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def compare(directory: Path, name: str) -> None:
    import llama_cpp

    want = np.load(directory / f"{name}.npz")
    model = llama_cpp.Llama(
        str(directory / f"{name}.gguf"),
        n_ctx=64,
        n_batch=64,
        n_threads=1,
        logits_all=True,
        flash_attn=False,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        kv_overrides=MODELS[name].llama_cpp_overrides or None,
        verbose=False,
    )
    tokens = want["tokens"].tolist()
    model.eval(tokens)
    print(relative_error(np.array(model.scores[: len(tokens)]), want["logits"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--here", action="store_true", help="in this process: llama.cpp may abort it")
    args = parser.parse_args()
    wrong = []
    for name in args.names or MODELS:
        if args.here:
            compare(args.directory, name)
            continue
        command = [sys.executable, __file__, str(args.directory), name, "--here"]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode == 0:
            error = float(run.stdout.split()[-1])
            print(f"{name:18} {error:.1e}")
        else:
            error = math.inf
            said = [line for line in run.stderr.splitlines() if "ASSERT" in line or "rror" in line]
            print(f"{name:18} exit {run.returncode}: {(said or ['no message'])[0]}")
        if (error < LIMIT) != MODELS[name].llama_cpp_runs:
            wrong.append(name)
    if wrong:
        sys.exit(f"not as expected: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
