"""llama.cpp's side of a paired benchmark: run with the peers' Python, which has llama-cpp-python.

Reads one JSON request a line from standard input and answers each with one line:
`{"prefill": 512, "decode": 64}` -> `{"prefill_s": ..., "decode_s": ...}`: seconds for a prompt of that many
tokens in an empty cache, and for so many single tokens after it. Calls the C API directly, so that no
Python loop over logits is timed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time

import llama_cpp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=4096)
    options = parser.parse_args()
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(options.model.encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = options.context, options.context, 512
    params.n_threads = params.n_threads_batch = options.threads
    context = llama_cpp.llama_init_from_model(model, params)
    print(json.dumps({"version": llama_cpp.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        prefill = step(context, [3 + i % 1000 for i in range(request["prefill"])])
        decode = sum(step(context, [5 + i]) for i in range(request["decode"]))
        print(json.dumps({"prefill_s": prefill, "decode_s": decode}), flush=True)


def step(context: object, tokens: list[int]) -> float:
    """Seconds one call takes, the last token's logits included."""
    array = (llama_cpp.llama_token * len(tokens))(*tokens)
    start = time.perf_counter()
    batch = llama_cpp.llama_batch_get_one(ctypes.cast(array, ctypes.POINTER(llama_cpp.llama_token)), len(tokens))
    if llama_cpp.llama_decode(context, batch) != 0:
        raise SystemExit("llama_decode failed")
    llama_cpp.llama_get_logits_ith(context, -1)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
