"""llama.cpp's side of an evaluation: run with a Python that has llama-cpp-python, which ours need not have.

Reads one JSON request a line from standard input, and answers each with one line:

    {"role": "base", "kv": "q8_0/q4_0", "fill": [ids]}    begins anew, with a cache of such types of K and V    {}
    {"role": "base", "logits": [ids]}                     goes on there                            {"rows": n}

The second answer is followed by float32[n, vocabulary] as bytes: the logits after each of the ids. Each role has one
context at a time, made as `perplexity -fa on` makes one; where there cannot be one, the answer is {"failed": kv}. All
share the model. The first line that is written has the version and the size of the vocabulary.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from collections.abc import Sequence
from typing import Any

import llama_cpp

UBATCH = 512  # tokens computed together: the default
FLASH = 1  # enum llama_flash_attn_type: enabled, without which V cannot be quantised


def type_of(name: str) -> int | None:
    """The number of enum ggml_type; None where there is no such type."""
    known = {"bf16": 30}  # it has no name in llama-cpp-python
    return getattr(llama_cpp, f"GGML_TYPE_{name.upper()}", known.get(name))


class Contexts:
    """A model, and a context for every role."""

    def __init__(self, options: argparse.Namespace):
        params = llama_cpp.llama_model_default_params()
        self.model, self.options = llama_cpp.llama_model_load_from_file(options.model.encode(), params), options
        self.made: dict[str, tuple[str, Any]] = {}  # by role
        self.ends: dict[str, int] = {}  # positions that are cached
        vocabulary = llama_cpp.llama_model_get_vocab(self.model) if self.model else None
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary) if self.model else 0

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], memoryview | None]:
        """To a request; with the bytes that follow."""
        role = request["role"]
        if "logits" in request:
            return {"rows": len(request["logits"])}, self.logits(role, request["logits"])
        kv = request["kv"]
        if self.made.get(role, ("", None))[0] != kv:
            if role in self.made:
                llama_cpp.llama_free(self.made.pop(role)[1])
            context = self.make(*kv.split("/"))
            if not context:
                return {"failed": kv}, None
            self.made[role] = kv, context
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.made[role][1]), True)
        self.ends[role] = 0
        self.decode(role, request["fill"], wanted=False)
        return {}, None

    def make(self, keys: str, values: str) -> Any:
        """A context with a cache of such types; nothing where there cannot be one."""
        types = type_of(keys), type_of(values)
        if None in types:
            return None
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = self.options.context
        params.n_ubatch = UBATCH
        params.n_threads = params.n_threads_batch = self.options.threads
        params.type_k, params.type_v = types
        params.flash_attn_type = FLASH
        params.swa_full = False
        return llama_cpp.llama_init_from_model(self.model, params)

    def logits(self, role: str, ids: Sequence[int]) -> memoryview:
        """After each of the ids, as bytes."""
        self.decode(role, ids, wanted=True)
        found = llama_cpp.llama_get_logits(self.made[role][1]).contents
        size = ctypes.c_float * (len(ids) * self.vocabulary)
        return memoryview(size.from_address(ctypes.addressof(found)))

    def decode(self, role: str, ids: Sequence[int], wanted: bool) -> None:
        if not ids:
            return
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, self.ends[role] + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = wanted
        if llama_cpp.llama_decode(self.made[role][1], batch) != 0:
            raise SystemExit("llama_decode failed")
        llama_cpp.llama_batch_free(batch)
        self.ends[role] += len(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=512)
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    contexts = Contexts(parser.parse_args())
    told = {"version": llama_cpp.__version__, "loaded": bool(contexts.model), "vocabulary": contexts.vocabulary}
    out = sys.stdout.buffer
    out.write(json.dumps(told).encode() + b"\n")
    out.flush()
    for line in sys.stdin:
        answer, following = contexts.answer(json.loads(line))
        out.write(json.dumps(answer).encode() + b"\n")
        if following is not None:
            out.write(following)
        out.flush()


if __name__ == "__main__":
    main()
