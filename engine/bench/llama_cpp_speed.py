"""llama.cpp's side of a paired benchmark: run with a Python that has llama-cpp-python, which ours need not have.

Reads one JSON request a line from standard input and answers each with one line, `{"seconds": ...}`:

    {"fill": [ids]}                       what the cache holds before every run
    {"prefill": [ids], "logits": "last"}  so many tokens at once, with the last one's logits, or with "all" of them
    {"decode": [ids]}                     tokens one by one

Calls the C API directly, so that no Python loop over logits is timed, and with the settings of llama-bench: no cache
beyond the window in layers that have one. The first line it writes has its version. With `--first-token`, it reads no
requests: it makes the first token after a text and writes the peak memory of the process in MB.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp

KV_TYPES = {"f32": 0, "f16": 1, "bf16": 30}  # enum ggml_type
BATCH = 2048  # tokens that llama_decode takes at once: the default of llama-bench


class Context:
    """A model and its cache, which before every run holds what was filled in last."""

    def __init__(self, options: argparse.Namespace):
        model = llama_cpp.llama_model_load_from_file(options.model.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = options.context, BATCH, 512
        params.n_threads = params.n_threads_batch = options.threads
        params.type_k = params.type_v = KV_TYPES[options.kv]
        params.swa_full = False
        self.model, self.context = model, llama_cpp.llama_init_from_model(model, params) if model else None
        self.kept: Any = None

    def fill(self, ids: Sequence[int]) -> float:
        self.kept = None
        self.rewind()
        seconds = self.prefill(ids, "last") if ids else 0.0
        if ids:
            size = llama_cpp.llama_state_seq_get_size(self.context, 0)
            self.kept = (ctypes.c_uint8 * size)()
            llama_cpp.llama_state_seq_get_data(self.context, self.kept, size, 0)
        return seconds

    def rewind(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        if self.kept is not None and not llama_cpp.llama_state_seq_set_data(self.context, self.kept, len(self.kept), 0):
            raise SystemExit("llama_state_seq_set_data failed")

    def prefill(self, ids: Sequence[int], logits: str) -> float:
        """Seconds for tokens at once."""
        position = llama_cpp.llama_memory_seq_pos_max(llama_cpp.llama_get_memory(self.context), 0) + 1
        batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        start = time.perf_counter()
        for first in range(0, len(ids), BATCH):
            part = ids[first : first + BATCH]
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i] = token, position + first + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = logits == "all" or first + i == len(ids) - 1
            self.decode_batch(batch)
        seconds = time.perf_counter() - start
        llama_cpp.llama_batch_free(batch)
        return seconds

    def first_token(self, text: bytes) -> int:
        """The likeliest token after a text."""
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        room = (llama_cpp.llama_token * (len(text) + 2))()
        count = llama_cpp.llama_tokenize(vocabulary, text, len(text), room, len(room), True, True)
        self.prefill(room[:count], "last")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return max(range(llama_cpp.llama_vocab_n_tokens(vocabulary)), key=lambda token: logits[token])

    def decode(self, ids: Sequence[int]) -> float:
        """Seconds for tokens one by one."""
        arrays = [(llama_cpp.llama_token * 1)(token) for token in ids]
        start = time.perf_counter()
        for array in arrays:
            pointer = ctypes.cast(array, ctypes.POINTER(llama_cpp.llama_token))
            self.decode_batch(llama_cpp.llama_batch_get_one(pointer, 1))
        return time.perf_counter() - start

    def decode_batch(self, batch: Any) -> None:
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama_decode failed")
        llama_cpp.llama_get_logits_ith(self.context, -1)  # waits until they are there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--kv", choices=KV_TYPES, default="f16")
    parser.add_argument("--first-token", metavar="TEXT")
    options = parser.parse_args()
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    context = Context(options)
    if options.first_token is not None:
        context.first_token(options.first_token.encode())
        print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
        return
    print(json.dumps({"version": llama_cpp.__version__, "loaded": bool(context.context)}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "fill" in request:
            seconds = context.fill(request["fill"])
        else:
            context.rewind()
            if "prefill" in request:
                seconds = context.prefill(request["prefill"], request["logits"])
            else:
                seconds = context.decode(request["decode"])
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
