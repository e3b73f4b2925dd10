"""GGUF model files: a header reader that costs milliseconds, and views of the tensor bytes.

A vocabulary of 262,144 strings is most of a header, and building a Python string for each is most of the
time and memory of reading one. So a large array stays where it is, in the mapped file: numpy finds where its
elements start, and `StringArray` or `NumberArray` makes Python values of those that someone asks for.

Nothing in a file is trusted. A count or length is compared with the bytes that are left before anything is
allocated for it, and whatever does not fit is a `BrioletteError` that names the file, the place and the way
out.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little endian.
"""

from __future__ import annotations

import difflib
import itertools
import math
import mmap
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, NoReturn, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.errors import BrioletteError
from briolette.compiler.header import Header, TensorInfo

from . import mapping

# Format number -> (name, weights in a block, bytes in a block), from enum ggml_type and the structs of
# ggml-common.h. A missing number is a format that ggml has removed.
FORMATS: dict[int, tuple[str, int, int]] = {
    0: ("f32", 1, 4), 1: ("f16", 1, 2), 2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20),
    6: ("q5_0", 32, 22), 7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34), 9: ("q8_1", 32, 40),
    10: ("q2_k", 256, 84), 11: ("q3_k", 256, 110), 12: ("q4_k", 256, 144), 13: ("q5_k", 256, 176),
    14: ("q6_k", 256, 210), 15: ("q8_k", 256, 292), 16: ("iq2_xxs", 256, 66), 17: ("iq2_xs", 256, 74),
    18: ("iq3_xxs", 256, 98), 19: ("iq1_s", 256, 50), 20: ("iq4_nl", 32, 18), 21: ("iq3_s", 256, 110),
    22: ("iq2_s", 256, 82), 23: ("iq4_xs", 256, 136), 24: ("i8", 1, 1), 25: ("i16", 1, 2),
    26: ("i32", 1, 4), 27: ("i64", 1, 8), 28: ("f64", 1, 8), 29: ("iq1_m", 256, 56),
    30: ("bf16", 1, 2), 34: ("tq1_0", 256, 54), 35: ("tq2_0", 256, 66), 39: ("mxfp4", 32, 17),
    40: ("nvfp4", 64, 36), 41: ("q1_0", 128, 18), 42: ("q2_0", 64, 18),
}  # fmt: skip

# Value type number -> (struct code, numpy dtype); 8 is a string and 9 an array.
_SCALARS: dict[int, tuple[struct.Struct, str]] = {
    number: (struct.Struct("<" + code), dtype)
    for number, code, dtype in [
        (0, "B", "u1"), (1, "b", "i1"), (2, "H", "<u2"), (3, "h", "<i2"), (4, "I", "<u4"), (5, "i", "<i4"),
        (6, "f", "<f4"), (7, "B", "?"), (10, "Q", "<u8"), (11, "q", "<i8"), (12, "d", "<f8"),
    ]
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_LAZY_LENGTH = 1024  # an array at least this long stays in the file
_MAX_NESTING = 8  # arrays in arrays: deeper is an attack on the stack, not a model
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_AGAIN = "download or convert the file again"
_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

T = TypeVar("T")
_Places = dict[str, tuple[NDArray[np.uint8], int, int]]  # name -> the mapped file, offset and length in bytes


class _FileArray(Sequence[T], Generic[T]):
    """An array left in the file; it compares equal to the list of its elements."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, list | _FileArray):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(repr(self[i]) for i in range(min(3, len(self))))
        return f"[{shown}, … {len(self)} in all]"


class StringArray(_FileArray[str]):
    """A long array of strings. `encoded(i)` is element i as UTF-8 bytes, without decoding it."""

    __slots__ = ("_data", "_starts", "end")

    def __init__(self, data: mmap.mmap | bytes, starts: NDArray[np.int64], end: int):
        # An element is its length, a u64, and then its bytes; `starts` holds where the bytes begin.
        self._data, self._starts, self.end = data, starts, end

    def __len__(self) -> int:
        return len(self._starts)

    def encoded(self, index: int) -> bytes:
        start = int(self._starts[index])
        return self._data[start : start + _U64.unpack_from(self._data, start - 8)[0]]

    def iter_encoded(self) -> Iterator[bytes]:
        """Every element as UTF-8 bytes: faster than one by one, with a block of them in memory at a time."""
        for first in range(0, len(self), 1 << 14):
            starts: list[int] = self._starts[first : first + (1 << 14) + 1].tolist()
            if first + len(starts) == len(self):
                starts.append(self.end + 8)
            base = starts[0]
            block = self._data[base : starts[-1] - 8]
            for start, following in itertools.pairwise(starts):
                yield block[start - base : following - base - 8]

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where the bytes of each string begin in `raw`."""
        found: NDArray[np.int64] = self._starts - (self._starts[0] - 8)
        return found

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many bytes each string has."""
        found: NDArray[np.int64] = np.diff(self._starts, append=self.end + 8) - 8
        return found

    def raw(self) -> memoryview:
        """The array as it lies in the file: for each string its length as a u64, then its bytes."""
        return memoryview(self._data)[int(self._starts[0]) - 8 : self.end]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self.encoded(i).decode() for i in range(*index.indices(len(self)))]
        return self.encoded(index).decode()

    def __iter__(self) -> Iterator[str]:
        return (element.decode() for element in self.iter_encoded())


class NumberArray(_FileArray[int | float | bool]):
    """A long array of numbers. `array` is the same as a read-only numpy view, shape (length,)."""

    __slots__ = ("array",)

    def __init__(self, array: NDArray[np.generic]):
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> int | float | bool: ...
    @overload
    def __getitem__(self, index: slice) -> list[int | float | bool]: ...
    def __getitem__(self, index: int | slice) -> int | float | bool | list[int | float | bool]:
        return self.array[index].tolist()  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[int | float | bool]:
        return iter(self.array.tolist())


@dataclass(frozen=True)
class GgufFile:
    """An open model: one file, or all the shards of a split one.

    `path` is the file that was asked for, `shards` every file of the model in order and `size` their bytes
    together. The metadata of a split model is its first shard's.
    """

    path: Path
    header: Header
    shards: tuple[Path, ...]
    size: int
    _places: _Places

    def tensor_bytes(self, name: str) -> NDArray[np.uint8]:
        """The stored blocks of a tensor: a read-only uint8 view onto the mapped file, shape (bytes,).

        Nothing is copied, and nothing is read from the disk before it is used.
        Raises BrioletteError where the model has no such tensor.
        """
        if name not in self._places:
            near = difflib.get_close_matches(name, self._places, n=3)
            hint = f"; the nearest names are {', '.join(near)}" if near else ""
            raise BrioletteError(f"{self.path}: the model has no tensor {name!r}{hint}")
        data, start, length = self._places[name]
        return data[start : start + length]

    def forget(self, name: str) -> None:
        """Lets the system have the pages of a tensor, which has been copied. Reading it again maps them again."""
        mapping.forget(*self._places[name])

    def scattered(self) -> None:
        """Tells the system that small parts of the file are read from now on."""
        mapping.scattered(data for data, _, _ in self._places.values())


def open_gguf(path: str | Path) -> GgufFile:
    """Open a GGUF model; any shard of a split one opens them all.

    Raises BrioletteError where a file is missing, is no GGUF of version 2 or 3, or is damaged.
    """
    if not str(path):
        raise BrioletteError("the name of the model is empty; give a GGUF file")
    path = Path(path)
    if not (matched := _SHARD.fullmatch(path.name)):
        opened = _read(path)
        if (parts := opened.header.metadata.get("split.count", 1)) not in (0, 1):
            raise BrioletteError(
                f"{path}: this is one of {parts} files of a split model, but its name does not say which; "
                f"give the files their names back, such as NAME-00001-of-00003.gguf"
            )
        return opened
    count = int(matched["count"])
    if not 1 <= int(matched["number"]) <= count:
        raise BrioletteError(f"{path}: the name says file {matched['number']} of {count}; give the file its name back")
    shards = [path.with_name(f"{matched['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    # All of them first: it is kinder to hear of the missing file before the others are read.
    if missing := [shard for shard in shards if not shard.exists()] if path.exists() else []:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BrioletteError(
            f"{missing[0]}: this part{others} of the {count}-file model is missing; put it beside {path.name}"
        )
    return _join(path, [_read(shard) for shard in shards])


def _join(path: Path, parts: list[GgufFile]) -> GgufFile:
    tensors: dict[str, TensorInfo] = {}
    places: _Places = {}
    for number, part in enumerate(parts):
        said_count = part.header.metadata.get("split.count", len(parts))
        said_number = part.header.metadata.get("split.no", number)
        if (said_count, said_number) != (len(parts), number) and not (len(parts) == 1 and said_count == 0):
            raise BrioletteError(
                f"{part.path}: inside, the file says it is part {said_number} (from 0) of {said_count}, "
                f"which is not what its name says; {_AGAIN}"
            )
        if twice := tensors.keys() & part.header.tensors.keys():
            raise BrioletteError(f"{part.path}: tensor {min(twice)!r} is in an earlier part of the model too; {_AGAIN}")
        tensors.update(part.header.tensors)
        places.update(part._places)
    first = parts[0].header
    if (told := first.metadata.get("split.tensors.count", len(tensors))) != len(tensors):
        raise BrioletteError(f"{parts[0].path}: the parts hold {len(tensors)} tensors together, not {told}; {_AGAIN}")
    header = replace(first, tensors=tensors, source=str(path))
    return GgufFile(path, header, tuple(p.path for p in parts), sum(p.size for p in parts), places)


def _read(path: Path) -> GgufFile:
    if path.is_dir():
        raise BrioletteError(f"{path}: this is a folder; give the .gguf file in it")
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except FileNotFoundError:
        raise BrioletteError(f"{path}: {_missing(str(path))}") from None
    except (OSError, ValueError) as error:
        raise BrioletteError(f"{path}: the file cannot be read ({error}); check its permissions") from None
    if data[:4] != b"GGUF":
        found = f"it begins with {data[:4]!r}" if size else "it is empty"
        raise BrioletteError(f"{path}: this is not a GGUF file ({found}); give a model in GGUF format")
    assert isinstance(data, mmap.mmap)
    return _Reader(path, data).file()


def _missing(name: str) -> str:
    """What to do about a file that is not there, which may be meant as the name of an architecture."""
    from briolette.spec.syntax import shipped

    name, known = name.partition("@")[0], list(shipped())
    if name in known:
        return f"this is an architecture, and a model file is wanted here; give a GGUF file and --spec {name}"
    if near := difflib.get_close_matches(name.lower(), known):
        meant = f"if an architecture is meant, {' or '.join(f'`{one}`' for one in near)}"
        return f"there is no such file; check the path, or, {meant}, which `show` and `diff` take by name"
    return "there is no such file; check the path"


class _Reader:
    """A cursor over one mapped file. `where` says what is being read, for the error messages."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.size = path, data, len(data)
        self.pos, self.where = 4, "the file's first bytes"

    def fail(self, what: str, do: str = _AGAIN) -> NoReturn:
        raise BrioletteError(f"{self.path}: {what}; {do}")

    def need(self, count: int, least: int = 1) -> int:
        """`count` if that many elements of at least `least` bytes can still follow; raises otherwise."""
        if count * least > self.size - self.pos:
            left = self.size - self.pos
            self.fail(f"the file ends inside {self.where}, which needs {count * least} bytes where {left} are left")
        return count

    def scalar(self, kind: struct.Struct) -> int:
        self.need(kind.size)
        (value,) = kind.unpack_from(self.data, self.pos)
        self.pos += kind.size
        return value  # type: ignore[no-any-return]

    def string(self) -> str:
        length = self.need(self.scalar(_U64))
        raw = self.data[self.pos : self.pos + length]
        self.pos += length
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fail(f"{self.where} is not valid UTF-8")

    def file(self) -> GgufFile:
        version = self.scalar(_U32)
        if version and version & 0xFFFF == 0:
            self.fail("this is a big-endian GGUF file, for machines of another kind", "get the little-endian file")
        if version == 1:
            self.fail("this is a GGUF file of the old version 1", "convert the model again, to version 3")
        if version not in (2, 3):
            self.fail(f"this is a GGUF file of version {version}, where 2 and 3 are known", "update briolette")
        tensor_count, key_count = self.scalar(_U64), self.scalar(_U64)
        self.where = "the metadata"
        self.need(key_count, 8 + 4 + 1)
        self.where = "the tensor list"
        self.need(tensor_count, 8 + 4 + 4 + 8)

        metadata: dict[str, object] = {}
        for number in range(key_count):
            self.where = f"the name of metadata key {number + 1} of {key_count}"
            key = self.string()
            if key in metadata:
                self.fail(f"metadata key {key!r} is there twice")
            self.where = f"the value of metadata key {key!r}"
            metadata[key] = self.value(self.scalar(_U32))
        tensors: dict[str, TensorInfo] = {}
        spans: list[tuple[str, int, int]] = []
        for number in range(tensor_count):
            self.where = f"the name of tensor {number + 1} of {tensor_count}"
            name = self.string()
            if name in tensors:
                self.fail(f"tensor {name!r} is there twice")
            self.where = f"the description of tensor {name!r}"
            tensors[name], length, offset = self.tensor(name)
            spans.append((name, length, offset))
        places = self.places(metadata, spans)
        return GgufFile(self.path, Header(metadata, tensors, str(self.path)), (self.path,), self.size, places)

    def value(self, kind: int) -> object:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(1)
        if kind not in _SCALARS:
            self.fail(f"{self.where} has the unknown type {kind}", "update briolette, or convert the file again")
        value = self.scalar(_SCALARS[kind][0])
        return bool(value) if kind == _BOOL else value

    def array(self, depth: int) -> object:
        if depth > _MAX_NESTING:
            self.fail(f"{self.where} nests arrays more than {_MAX_NESTING} deep")
        kind, count = self.scalar(_U32), self.scalar(_U64)
        if kind == _STRING:
            strings = self.strings(self.need(count, 8))
            return strings if count >= _LAZY_LENGTH else list(strings)
        if kind == _ARRAY:
            return [self.array(depth + 1) for _ in range(self.need(count, 4 + 8))]
        if kind not in _SCALARS:
            self.fail(
                f"{self.where} is an array of the unknown type {kind}",
                "update briolette, or convert the file again",
            )
        dtype = np.dtype(_SCALARS[kind][1])
        self.need(count, dtype.itemsize)
        raw = np.frombuffer(self.data, "u1" if kind == _BOOL else dtype, count, self.pos)
        array = raw != 0 if kind == _BOOL else raw
        self.pos += count * dtype.itemsize
        return NumberArray(array) if count >= _LAZY_LENGTH else array.tolist()

    def strings(self, count: int) -> StringArray:
        """Find `count` strings from here on and check that each is UTF-8."""
        starts = np.empty(count, np.int64)
        done = 0
        while done < count:
            block = self.block(count - done) if count - done > 64 else starts[:0]
            starts[done : done + len(block)] = block
            done += len(block)
            # One by one past what the block reader could not take, and far enough that a new try is cheap.
            for index in range(done, min(done + 1024, count) if len(block) < 1024 else done):
                length = self.need(self.scalar(_U64))
                starts[index] = self.pos
                self.check_utf8(self.pos, self.pos + length)
                self.pos += length
                done += 1
        return StringArray(self.data, starts, self.pos)

    def block(self, most: int) -> NDArray[np.int64]:
        """Read up to `most` strings with numpy and move past them; where the first few bytes of each begin.

        A string of 1 to 127 bytes begins with a u64 below 128: a byte and seven zeros, which text does not
        hold. So every such u64, at any offset, is taken for a length, and then checked: each must begin where
        the one before it ends. The first that does not (a longer or an empty string, a text with zeros) ends
        the block. A length is then an ASCII character followed by NULs, so that the block is UTF-8 if each
        string in it is, and is checked as one.
        """
        width = min(self.size - self.pos - 7, 1 << 17)
        if width <= 0:
            return np.empty(0, np.int64)
        words = np.ndarray((width,), "<u8", self.data, self.pos, (1,))
        found = np.flatnonzero(words - np.uint64(1) < 127)[:most]  # a zero wraps around to the largest u64
        if not len(found) or found[0]:
            return found[:0]
        ends = found + 8 + words[found].astype(np.int64)
        broken = np.flatnonzero(found[1:] != ends[:-1])
        whole = int(broken[0]) + 1 if len(broken) else len(found)
        if ends[whole - 1] > width:  # it may run past the file: leave it to the next block
            whole -= 1
        if not whole:
            return found[:0]
        begin = self.pos
        self.pos += int(ends[whole - 1])
        self.check_utf8(begin, self.pos)
        return found[:whole] + (begin + 8)

    def check_utf8(self, start: int, end: int) -> None:
        try:
            self.data[start:end].decode()
        except UnicodeDecodeError:
            self.fail(f"a string in {self.where} is not valid UTF-8")

    def tensor(self, name: str) -> tuple[TensorInfo, int, int]:
        """The tensor's description, its length in bytes and its offset in the data section."""
        dimensions = self.scalar(_U32)
        if dimensions > _MAX_DIMENSIONS:
            self.fail(f"tensor {name!r} has {dimensions} dimensions, where {_MAX_DIMENSIONS} are the most")
        shape = tuple(self.scalar(_U64) for _ in range(dimensions))[::-1]
        kind, offset = self.scalar(_U32), self.scalar(_U64)
        if kind not in FORMATS:
            self.fail(
                f"tensor {name!r} has the unknown format {kind}",
                "update briolette, or quantise the model differently",
            )
        format_, per_block, block_bytes = FORMATS[kind]
        row = shape[-1] if shape else 1
        if row % per_block:
            self.fail(f"tensor {name!r} has rows of {row} weights, not whole {format_} blocks of {per_block}")
        return TensorInfo(name, shape, format_), math.prod(shape) // per_block * block_bytes, offset

    def places(self, metadata: dict[str, object], spans: list[tuple[str, int, int]]) -> _Places:
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            self.fail(f"general.alignment is {alignment!r}, which is no power of two")
        base = -(-self.pos // alignment) * alignment
        data = np.frombuffer(self.data, np.uint8)
        for name, length, offset in spans:
            if offset % alignment:
                self.fail(f"tensor {name!r} begins at offset {offset}, no multiple of the alignment {alignment}")
            if base + offset + length > self.size:
                self.fail(
                    f"tensor {name!r} needs the file's bytes {base + offset} to {base + offset + length}, "
                    f"but the file has {self.size} bytes",
                    "the download stopped early: fetch the file again",
                )
        return {name: (data, base + offset, length) for name, length, offset in spans}
