"""llama.cpp's side of a paired benchmark: run with a Python that has llama-cpp-python, which ours need not have.

Reads one JSON request a line from standard input and answers each with one line, `{"seconds": ...}`:

    {"fill": [ids]}                       before every run, the cache holds as many tokens as these
    {"prefill": [ids], "logits": "last"}  so many tokens at once, with the last one's logits, or with "all" of them
    {"decode": [[ids], [ids]]}            steps, of one token of each of some sequences

Each also has `"kv": ["q8_0", "q4_0"]`, the types of K and of V. There is a context for each, which shares the model;
where there cannot be one, the answer is `{"failed": ...}`.

Calls the C API directly, so that no Python loop over logits is timed, and with the settings of llama-bench: no cache
beyond the window in layers that have one. Sequences have their caches apart (kv_unified is off), as they have in
llama-batched-bench where nothing else is asked for: each holds what was filled in by itself, and no token looks through
those of others. Flash attention is on where V is quantised, which needs it, and else as llama.cpp chooses. The first
line it writes has its version. With `--first-token`, it reads no requests: it makes the first token after a text and
writes the peak memory of the process in MB.
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

PLAIN = ("f32", "f16", "bf16")
PART = 512  # tokens that a deep cache is filled with again and again
BATCH = 2048  # tokens that llama_decode takes at once: the default of llama-bench
FLASH = 1  # enum llama_flash_attn_type: enabled


def type_of(name: str) -> int | None:
    """The number of enum ggml_type; None where there is no such type."""
    known = {"bf16": 30}  # it has no name in llama-cpp-python
    return getattr(llama_cpp, f"GGML_TYPE_{name.upper()}", known.get(name))


class Context:
    """A cache for a model, which before every run holds what was filled in last. `context` is nothing where there
    can be none of these types."""

    def __init__(self, model: Any, options: argparse.Namespace, keys: str, values: str):
        types = type_of(keys), type_of(values)
        params = llama_cpp.llama_context_default_params()
        params.n_seq_max, params.kv_unified = options.sequences, False
        params.n_ctx, params.n_batch, params.n_ubatch = options.context * options.sequences, BATCH, 512
        params.n_threads = params.n_threads_batch = options.threads
        params.swa_full = False
        if None not in types:
            params.type_k, params.type_v = types
        if values not in PLAIN:
            params.flash_attn_type = FLASH
        self.model, self.params = model, params
        self.context = None if None in types else llama_cpp.llama_init_from_model(model, params)
        self.kept: Any = None
        self.states: dict[int, Any] = {0: None}  # by how many tokens were filled in

    def fill(self, ids: Sequence[int]) -> None:
        """Has the cache hold as many tokens from now on."""
        if len(ids) not in self.states:
            self.states[len(ids)] = Filler(self.model, self.params).state(ids)
        self.kept = self.states[len(ids)]

    def answer(self, request: dict[str, Any]) -> float:
        """Has something run; its seconds."""
        if "fill" in request:
            self.fill(request["fill"])
            return 0.0
        if "prefill" in request:
            self.rewind()
            return self.prefill(request["prefill"], request["logits"])
        self.rewind(len(request["decode"][0]))
        return self.decode(request["decode"])

    def rewind(self, sequences: int = 1) -> None:
        """So many sequences hold what was filled in, and nothing else. Each is given it here: llama_memory_seq_cp would
        copy within the next step, which is timed."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        for sequence in range(sequences if self.kept is not None else 0):
            load(self.context, self.kept, sequence)

    def prefill(self, ids: Sequence[int], logits: str) -> float:
        """Seconds for tokens at once."""
        start = time.perf_counter()
        prefill(self.context, ids, self.position(), 0, logits)
        return time.perf_counter() - start

    def first_token(self, text: bytes) -> int:
        """The likeliest token after a text."""
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        room = (llama_cpp.llama_token * (len(text) + 2))()
        count = llama_cpp.llama_tokenize(vocabulary, text, len(text), room, len(room), True, True)
        self.prefill(room[:count], "last")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return max(range(llama_cpp.llama_vocab_n_tokens(vocabulary)), key=lambda token: logits[token])

    def decode(self, steps: Sequence[Sequence[int]]) -> float:
        """Seconds for steps of one token of each sequence."""
        position, batches = self.position(), []
        for at, step in enumerate(steps):
            batch = llama_cpp.llama_batch_init(len(step), 0, 1)
            batch.n_tokens = len(step)
            for sequence, token in enumerate(step):
                put(batch, sequence, token, position + at, sequence, True)
            batches.append(batch)
        start = time.perf_counter()
        for batch in batches:
            run(self.context, batch)
        seconds = time.perf_counter() - start
        for batch in batches:
            llama_cpp.llama_batch_free(batch)
        return seconds

    def position(self) -> int:
        """Where the next token of the first sequence belongs; of the others, too, where they were filled."""
        return llama_cpp.llama_memory_seq_pos_max(llama_cpp.llama_get_memory(self.context), 0) + 1


class Filler:
    """Makes what a cache holds: PART tokens, computed and repeated at one position after the other, which takes
    seconds where a prefill takes minutes. What they are does not change speed: decoding SmolLM2 behind 4096 tokens of
    either kind took the same time, within the noise of a machine."""

    def __init__(self, model: Any, params: Any):
        self.params = type(params).from_buffer_copy(params)
        self.params.n_seq_max, self.params.kv_unified = 2, True  # one that is filled, and what is put into it
        self.params.n_ctx = params.n_ctx // params.n_seq_max + PART
        self.model = model

    def state(self, ids: Sequence[int]) -> Any:
        """A sequence that holds as many tokens, as llama_state_seq_get_data gives it."""
        context = llama_cpp.llama_init_from_model(self.model, self.params)
        if not context:
            raise SystemExit("llama_init_from_model failed: the caches of two sequences take too much memory")
        if len(ids) <= PART:
            prefill(context, ids, 0, 0)
        else:
            self.repeat(context, ids)
        found = saved(context, 0)
        llama_cpp.llama_free(context)
        return found

    def repeat(self, context: Any, ids: Sequence[int]) -> None:
        """Has the first sequence hold as many tokens, with the second one's help."""
        memory = llama_cpp.llama_get_memory(context)
        prefill(context, ids[:PART], 0, 1)
        part = saved(context, 1)
        llama_cpp.llama_memory_clear(memory, True)
        for at in range(0, len(ids), PART):
            load(context, part, 1)
            llama_cpp.llama_memory_seq_add(memory, 1, 0, -1, at)
            llama_cpp.llama_memory_seq_cp(memory, 1, 0, 0, -1)
            llama_cpp.llama_memory_seq_rm(memory, 1, 0, -1)
            prefill(context, ids[:1], at + PART, 0)  # keys are turned to their positions in a step
            llama_cpp.llama_memory_seq_rm(memory, 0, min(at + PART, len(ids)), -1)


def saved(context: Any, sequence: int) -> Any:
    """What a sequence holds."""
    size = llama_cpp.llama_state_seq_get_size(context, sequence)
    state = (ctypes.c_uint8 * size)()
    llama_cpp.llama_state_seq_get_data(context, state, size, sequence)
    return state


def load(context: Any, state: Any, sequence: int) -> None:
    """Has a sequence hold that."""
    if not llama_cpp.llama_state_seq_set_data(context, state, len(state), sequence):
        raise SystemExit("llama_state_seq_set_data failed")


def prefill(context: Any, ids: Sequence[int], position: int, sequence: int, logits: str = "last") -> None:
    """Runs tokens at once, at a position and those after it."""
    batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
    for first in range(0, len(ids), BATCH):
        part = ids[first : first + BATCH]
        batch.n_tokens = len(part)
        for i, token in enumerate(part):
            put(batch, i, token, position + first + i, sequence, logits == "all" or first + i == len(ids) - 1)
        run(context, batch)
    llama_cpp.llama_batch_free(batch)


def run(context: Any, batch: Any) -> None:
    """One step."""
    if llama_cpp.llama_decode(context, batch) != 0:
        raise SystemExit("llama_decode failed")
    llama_cpp.llama_get_logits_ith(context, -1)  # waits until they are there


def put(batch: Any, at: int, token: int, position: int, sequence: int, logits: bool) -> None:
    """A token's place in a llama_batch."""
    batch.token[at], batch.pos[at], batch.logits[at] = token, position, logits
    batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--first-token", metavar="TEXT")
    options = parser.parse_args()
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(options.model.encode(), llama_cpp.llama_model_default_params())
    if options.first_token is not None:
        Context(model, options, "f16", "f16").first_token(options.first_token.encode())
        print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
        return
    print(json.dumps({"version": llama_cpp.__version__, "loaded": bool(model)}), flush=True)
    contexts: dict[tuple[str, str], Context] = {}
    for line in sys.stdin:
        request = json.loads(line)
        kv = tuple(request["kv"])
        if kv not in contexts:
            contexts[kv] = Context(model, options, *kv)
        made = contexts[kv]
        answer = {"seconds": made.answer(request)} if made.context else {"failed": kv}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
