"""The runtime library, by ctypes: layouts of runtime/launch.h and the functions that it exports."""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, c_char, c_char_p, c_int, c_uint, c_uint64, c_void_p

from . import build

Triple = c_uint * 3


class Launch(ctypes.Structure):
    """struct Launch of runtime/launch.h."""

    _fields_ = [
        ("entry", c_void_p),
        ("shared_anchor", c_void_p),
        ("shared_before", c_uint64),
        ("shared_bytes", c_uint64),
        ("arguments", c_void_p),
        ("dynamic_shared_bytes", c_uint64),
        ("grid", Triple),
        ("block", Triple),
        ("seed", c_uint64),
        ("seeded", c_int),
        ("workers", c_int),
        ("milliseconds", c_int),
        ("races", c_int),
    ]


class Fault(ctypes.Structure):
    """struct Fault of runtime/launch.h."""

    _fields_ = [
        ("message", c_char * 512),
        ("file", c_char * 256),
        ("line", c_int),
        ("in_source", c_int),
        ("block", Triple),
        ("thread", Triple),
        ("program_counter", c_uint64),
        ("second_counter", c_uint64),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    """The runtime, built where it is not; its symbols are global, for modules refer to them."""
    runtime = ctypes.CDLL(str(build.runtime()), mode=ctypes.RTLD_GLOBAL)
    signatures = {
        "emulator_launch": (c_int, [POINTER(Launch), POINTER(Fault)]),
        "emulator_allocate": (c_uint64, [c_uint64, c_uint64, c_char_p]),
        "emulator_check": (c_uint64, [c_uint64]),
        "emulator_free": (c_int, [c_uint64, c_int]),
        "emulator_segment": (c_int, [c_void_p, POINTER(c_uint64), POINTER(c_uint64)]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(runtime, name)
        function.restype, function.argtypes = result, arguments
    return runtime
