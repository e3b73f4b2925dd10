"""Records a trace from llama.cpp, through llama-cpp-python and the callback that sees every value of its graph.

On the processor, with a KV cache in f32 and without flash attention, one batch over the prompt. Where weights are
quantised llama.cpp rounds activations to 8 bits, and it reads GELU from a table in f16.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from briolette.compiler.errors import BrioletteError

from .recording import Array, Reference, main, not_installed
from .table import Theirs

try:
    import llama_cpp
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    not_installed(missing)

DIMS, SOURCES, PARAMS, NAME = 4, 10, 16, 64  # GGML_MAX_DIMS, _SRC, _OP_PARAMS / 4, _NAME of ggml.h
READ = {0: np.float32, 26: np.int32}  # ggml_type -> what a value of it is


class Tensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * DIMS),  # elements along each axis, the fastest first
    ("nb", ctypes.c_size_t * DIMS),  # bytes from one to the next
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * PARAMS),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * SOURCES),
    ("view_src", ctypes.POINTER(Tensor)),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * NAME),
]


def ggml() -> ctypes.CDLL:
    """ggml's own functions, in the copy of the library that llama.cpp itself runs on."""
    library = llama_cpp.llama_cpp._lib  # what is looked up there is looked up in what it is linked with, too
    library.ggml_op_name.restype = ctypes.c_char_p
    library.ggml_nbytes.restype = ctypes.c_size_t
    library.ggml_nbytes.argtypes = [ctypes.c_void_p]
    library.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    library.ggml_backend_tensor_get.restype = None
    library.ggml_set_abort_callback(_stopped)
    return library


@ctypes.CFUNCTYPE(None, ctypes.c_char_p)
def _stopped(message: bytes) -> None:
    """What ggml calls before it ends the process, which nothing can keep it from."""
    reason = message.decode(errors="replace").strip().rsplit("/", 1)[-1]  # without the folders of its source
    sys.stderr.write(f"error: llama.cpp cannot run this model: {reason}\n")
    sys.stderr.flush()
    os._exit(2)


class Watch:
    """The eval callback: asked of every node whether it is wanted, then shown those that are."""

    def __init__(self, reference: Reference):
        self.reference, self.library = reference, ggml()
        self.wanted = reference.wanted("llama.cpp values")
        self.error: BrioletteError | None = None

    def __call__(self, address: int, ask: bool, _data: Any) -> bool:
        tensor = ctypes.cast(address, ctypes.POINTER(Tensor)).contents
        labels = [self.wanted[one] for one in self.names(tensor) if one in self.wanted]
        labels = [label for label in labels if label not in self.reference.values]
        if ask:
            return bool(labels)
        try:
            value = self.value(address, tensor)
            for label in labels:
                self.reference.put(label, value)
        except BrioletteError as error:  # nothing may be raised through C
            self.error = self.error or error
        return True

    def names(self, tensor: Tensor) -> Iterator[Theirs]:
        """What a value may be called in a table: its name, and its op with each of its operands."""
        yield Theirs(tensor.name.decode())
        op = self.library.ggml_op_name(tensor.op).decode().lower()
        for source in tensor.src:
            if source:
                yield Theirs(source.contents.name.decode(), op)

    def value(self, address: int, tensor: Tensor) -> Array:
        """A copy, slowest axis first; views have gaps."""
        if tensor.type not in READ:
            raise BrioletteError(f"llama.cpp keeps {tensor.name.decode()} in a format that is no value's")
        data = np.empty(self.library.ggml_nbytes(address), np.uint8)
        self.library.ggml_backend_tensor_get(address, data.ctypes.data, 0, data.nbytes)
        shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
        return as_strided(data.view(READ[tensor.type]), shape, strides).copy()


def record(reference: Reference) -> dict[str, str]:
    """Runs the prompt and keeps every value that the table names."""
    watch = Watch(reference)
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    path = str(reference.file.path)
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise BrioletteError(f"llama.cpp cannot load {path}")
    callback = llama_cpp.ggml_backend_sched_eval_callback(watch)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = max(64, len(reference.tokens))
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
    params.cb_eval = callback
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise BrioletteError(f"llama.cpp can make no context for {path}")
    batch = _batch(reference.tokens)
    failed = llama_cpp.llama_decode(context, batch)
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    if watch.error is not None:
        raise watch.error
    if failed:
        raise BrioletteError(f"llama.cpp cannot run {path}: llama_decode gives {failed}")
    producer = f"llama.cpp via llama-cpp-python {llama_cpp.__version__}"
    return {"producer": producer, "precision": precision(reference)}


def precision(reference: Reference) -> str:
    """What llama.cpp computes in: activations are rounded to 8 bits, or to 16, where weights are stored so."""
    formats = {tensor.format for tensor in reference.module.tensors if len(tensor.shape) > 1}
    if not formats <= {"f32", "f16", "bf16"}:
        return "q8"
    if "bf16" in formats:
        return "bf16"
    table = any(node.op == "gelu" for node in reference.nodes.values())  # of GELU, in f16
    return "f16" if table or "f16" in formats else "f32"


def _batch(tokens: list[int]) -> Any:
    """A batch of one sequence from position 0 that asks for the logits of all tokens."""
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for at, token in enumerate(tokens):
        batch.token[at], batch.pos[at], batch.logits[at] = token, at, 1
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
    return batch


if __name__ == "__main__":
    main("llama_cpp", __doc__.partition("\n")[0], record)
