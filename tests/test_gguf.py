"""The GGUF reader: equal to gguf-py's on whole files, lazy and exact on arrays, clear about every damage."""

from __future__ import annotations

import contextlib
import struct
import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from briolette.compiler.errors import BrioletteError
from briolette.engine.gguf import FORMATS, NumberArray, StringArray, open_gguf

TYPES = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8, "arr": 9}
TYPES |= {"u64": 10, "i64": 11, "f64": 12}
CODES = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "?"}
CODES |= {"u64": "Q", "i64": "q", "f64": "d"}


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def type_number(kind: str | tuple) -> int:
    return TYPES["arr" if isinstance(kind, tuple) else kind]


def payload(kind: str | tuple, value: object) -> bytes:
    if kind == "str":
        return text(value)
    if isinstance(kind, tuple):  # ("arr", kind of the elements)
        head = struct.pack("<IQ", type_number(kind[1]), len(value))
        return head + b"".join(payload(kind[1], element) for element in value)
    return struct.pack("<" + CODES[kind], value)


def pair(key: str | bytes, kind: str | tuple, value: object) -> bytes:
    return text(key) + struct.pack("<I", type_number(kind)) + payload(kind, value)


def tensor(name: str, dims: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def model(pairs=(), tensors=(), data=b"", version=3, alignment=32, counts=None) -> bytes:
    counts = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return head + b"\0" * (-len(head) % alignment) + data


EVERY_VALUE = [
    ("a.u8", "u8", 255),
    ("a.i8", "i8", -128),
    ("a.u16", "u16", 65535),
    ("a.i16", "i16", -32768),
    ("a.u32", "u32", 2**32 - 1),
    ("a.i32", "i32", -(2**31)),
    ("a.f32", "f32", 0.5),
    ("a.yes", "bool", True),
    ("a.no", "bool", False),
    ("a.str", "str", "naïve ▁ 🙂"),
    ("a.empty", "str", ""),
    ("a.u64", "u64", 2**64 - 1),
    ("a.i64", "i64", -(2**63)),
    ("a.f64", "f64", 1e300),
    ("a.ints", ("arr", "i32"), [1, -2, 3]),
    ("a.bools", ("arr", "bool"), [True, False]),
    ("a.strs", ("arr", "str"), ["", "é", "x" * 300]),
    ("a.nothing", ("arr", "f64"), []),
    ("a.nested", ("arr", ("arr", ("arr", "u8"))), [[[1], []], [[2, 3]]]),
    ("a.nested_strs", ("arr", ("arr", "str")), [["a", ""], []]),
]
PAIRS = [pair(*entry) for entry in EVERY_VALUE]
TENSORS = [tensor("w", [64, 3], 8, 0), tensor("b", [5], 0, 224)]


def write(folder: Path, content: bytes, name: str = "m.gguf") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.fixture
def small() -> bytes:
    pairs = [*PAIRS, pair("long.strs", ("arr", "str"), [f"t{i}" for i in range(1500)])]
    return model(pairs, TENSORS, bytes(range(204)) + b"\0" * 20 + b"\7" * 20)


def same_as_reference(path: Path) -> None:
    reader, ours = gguf.GGUFReader(path), open_gguf(path)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.header.metadata) == list(fields)
    for key, field in fields.items():
        assert ours.header.metadata[key] == field.contents(), key
    assert list(ours.header.tensors) == [t.name for t in reader.tensors]
    for theirs in reader.tensors:
        info, data = ours.header.tensors[theirs.name], ours.tensor_bytes(theirs.name)
        assert info.shape == tuple(int(n) for n in reversed(theirs.shape))
        assert info.format == theirs.tensor_type.name.lower()
        assert data.dtype == np.uint8
        assert np.array_equal(data, theirs.data.reshape(-1).view(np.uint8)), theirs.name


def test_gemma3_is_as_gguf_py_reads_it(gemma3_path: Path) -> None:
    same_as_reference(gemma3_path)


def test_smollm2_is_as_gguf_py_reads_it(smollm2_path: Path) -> None:
    same_as_reference(smollm2_path)


def test_format_table_is_that_of_ggml() -> None:
    theirs = {int(t): (t.name.lower(), *size) for t, size in gguf.GGML_QUANT_SIZES.items()}
    assert {number: FORMATS[number] for number in theirs} == theirs


@pytest.mark.parametrize("version", [2, 3])
def test_every_kind_of_value(tmp_path: Path, version: int) -> None:
    metadata = open_gguf(write(tmp_path, model(PAIRS, version=version))).header.metadata
    assert metadata == {key: value for key, _, value in EVERY_VALUE}
    assert all(type(metadata[key]) is type(value) for key, _, value in EVERY_VALUE)


def test_tensors_are_read_only_views(tmp_path: Path, small: bytes) -> None:
    opened = open_gguf(write(tmp_path, small))
    assert opened.size == len(small)
    assert opened.header.source == str(tmp_path / "m.gguf")
    assert opened.header.tensors["w"].shape == (3, 64)
    assert opened.tensor_bytes("b").tobytes() == b"\7" * 20
    assert not opened.tensor_bytes("w").flags.writeable
    assert np.shares_memory(opened.tensor_bytes("w"), opened.tensor_bytes("w"))
    with pytest.raises(BrioletteError, match="no tensor 'ww'; the nearest names are w"):
        opened.tensor_bytes("ww")


def test_the_alignment_is_that_of_the_file(tmp_path: Path) -> None:
    pairs = [pair("general.alignment", "u32", 256)]
    tensors = [tensor("a", [1], 24, 0), tensor("b", [2], 24, 256)]
    content = model(pairs, tensors, b"\1" + b"\0" * 255 + b"\2\3", alignment=256)
    assert open_gguf(write(tmp_path, content)).tensor_bytes("b").tobytes() == b"\2\3"


# Long arrays: what the block reader takes at once, what it must leave to the slow path, and their edges.
EDGES = ["", "\0", "\0" * 9, "x" * 127, "x" * 128, "é" * 200, "\0\0\0\0\0\0\0\0a", "a\0\0\0\0\0\0\0"]
WORDS = st.lists(st.text(max_size=6) | st.sampled_from(EDGES), max_size=12)


@settings(max_examples=30, deadline=None)
@given(words=WORDS, repeat=st.integers(100, 400), tail=WORDS)
def test_long_string_arrays(words: list[str], repeat: int, tail: list[str]) -> None:
    strings = ["plain"] * 700 + words * repeat + tail + ["z"] * 400
    with tempfile.TemporaryDirectory() as folder:
        content = model([pair("k", ("arr", "str"), strings), pair("after", "u8", 7)])
        metadata = open_gguf(write(Path(folder), content)).header.metadata
    array = metadata["k"]
    assert isinstance(array, StringArray)
    assert metadata["after"] == 7
    assert list(array) == strings
    assert array == strings
    assert array != [*strings[:-1], "y"]
    assert array[-1] == "z"
    assert array[698:704] == strings[698:704]
    assert [array[i] for i in range(0, len(array), 97)] == strings[::97]
    assert list(array.iter_encoded()) == [s.encode() for s in strings]


def test_long_number_arrays(tmp_path: Path) -> None:
    floats = [i / 2 for i in range(2000)]
    pairs = [pair("f", ("arr", "f32"), floats), pair("b", ("arr", "bool"), [True, False] * 999)]
    metadata = open_gguf(write(tmp_path, model(pairs))).header.metadata
    assert isinstance(metadata["f"], NumberArray)
    assert metadata["f"] == floats
    assert type(metadata["f"][3]) is float
    assert metadata["f"].array.dtype == np.float32
    assert metadata["b"][0] is True
    assert metadata["b"][:2] == [True, False]
    assert repr(metadata["b"]) == "[True, False, True, … 1998 in all]"


def shards(folder: Path, said: int = 3, tensors: int = 3, no: int | None = None, name: str = "t{}") -> list[Path]:
    paths = []
    for number in range(3):
        pairs = [
            pair("split.no", "u16", number if no is None else no),
            pair("split.count", "u16", said),
            pair("split.tensors.count", "i32", tensors),
        ]
        pairs += [pair("general.architecture", "str", "x")] if number == 0 else []
        content = model(pairs, [tensor(name.format(number), [4], 24, 0)], bytes([number] * 4))
        paths.append(write(folder, content, f"m-{number + 1:05d}-of-00003.gguf"))
    return paths


def test_any_shard_opens_all(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    for path in paths:
        opened = open_gguf(path)
        assert opened.path == path
        assert list(opened.shards) == paths
        assert opened.header.architecture == "x"
        assert opened.size == sum(p.stat().st_size for p in paths)
        for number in range(3):
            assert opened.tensor_bytes(f"t{number}").tobytes() == bytes([number] * 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"said": 4}, r"part 0 \(from 0\) of 4"),
        ({"no": 2}, r"part 2 \(from 0\) of 3"),
        ({"tensors": 9}, "hold 3 tensors together, not 9"),
        ({"name": "same"}, "'same' is in an earlier part"),
    ],
)
def test_shards_that_disagree(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = shards(tmp_path, **change)[0]
    with pytest.raises(BrioletteError, match=message):
        open_gguf(path)


def test_missing_and_renamed_shards(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    paths[1].unlink()
    with pytest.raises(BrioletteError, match=r"m-00002-of-00003\.gguf: this part of the 3-file model is missing"):
        open_gguf(paths[2])
    renamed = paths[0].rename(tmp_path / "model.gguf")
    with pytest.raises(BrioletteError, match="one of 3 files of a split model"):
        open_gguf(renamed)
    with pytest.raises(BrioletteError, match="file 00004 of 3"):
        open_gguf(tmp_path / "m-00004-of-00003.gguf")
    with pytest.raises(BrioletteError, match="there is no such file"):
        open_gguf(tmp_path / "n-00001-of-00003.gguf")


HUGE = 2**63
ONE = [1]


def value(number: int, *rest: int) -> bytes:
    return model([text("k") + struct.pack("<I", number) + struct.pack("<IQ", *rest)])


DAMAGED = {
    "empty": (b"", "it is empty"),
    "magic": (b"ELF\x7f" + b"\0" * 40, "not a GGUF file"),
    "cut magic": (b"GG", "not a GGUF file"),
    "no counts": (b"GGUF\3\0\0\0", "ends inside the file's first bytes"),
    "version 1": (model(version=1), "old version 1"),
    "version 9": (model(version=9), "version 9, where 2 and 3"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "keys": (model(counts=(0, HUGE)), "inside the metadata"),
    "tensors": (model(counts=(HUGE, 0)), "inside the tensor list"),
    "key length": (model([struct.pack("<Q", HUGE) + b"k" * 20]), "name of metadata key 1 of 1"),
    "key text": (model([pair(b"\xff", "u64", 1)]), "name of metadata key 1 of 1 is not valid UTF-8"),
    "cut key": (model([pair("abc", "u64", 1)], alignment=1)[:-1], "value of metadata key 'abc'"),
    "string": (model([text("k") + struct.pack("<IQ", 8, HUGE)]), "value of metadata key 'k'"),
    "string text": (model([pair("k", "str", b"\x80")]), "metadata key 'k' is not valid UTF-8"),
    "type": (value(13, 0, 0), "unknown type 13"),
    "array type": (value(9, 99, 1), "array of the unknown type 99"),
    "array": (value(9, 6, HUGE), "inside the value of metadata key 'k'"),
    "strings": (value(9, 8, HUGE), "inside the value of metadata key 'k'"),
    "arrays": (value(9, 9, HUGE), "inside the value of metadata key 'k'"),
    "nesting": (model([text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000]), "than 8 deep"),
    "list": (model([pair("k", ("arr", "str"), ["a"] * 1500 + [b"\xc3"] * 2)]), "a string in the value"),
    "twice": (model([pair("k", "u64", 1)] * 2), "'k' is there twice"),
    "alignment": (model([pair("general.alignment", "u32", 24)]), "24, which is no power of two"),
    "alignment type": (model([pair("general.alignment", "str", "32")]), "no power of two"),
    "name": (model((), [struct.pack("<Q", HUGE) + b"x" * 40]), "name of tensor 1 of 1"),
    "dimensions": (model((), [tensor("t", ONE * 5, 0, 0)]), "5 dimensions"),
    "cut tensor": (model((), [tensor("t", ONE, 0, 0)], alignment=1)[:-4], "description of tensor 't'"),
    "format": (model((), [tensor("t", ONE, 4, 0)]), "'t' has the unknown format 4"),
    "rows": (model((), [tensor("t", [33], 8, 0)], b"\0" * 99), "rows of 33 weights, not whole q8_0"),
    "offset": (model((), [tensor("t", ONE, 24, 1)], b"\0" * 9), "no multiple of the alignment 32"),
    "data": (model((), [tensor("t", [32, 2], 8, 0)], b"\0" * 67), "'t' needs .* 96 to 164, .* has 163"),
    "far": (model((), [tensor("t", ONE, 24, HUGE)], b"\0" * 9), "'t' needs the file's bytes"),
    "wide": (model((), [tensor("t", [2**32] * 4, 0, 0)], b"\0" * 9), "'t' needs the file's bytes"),
    "tensor twice": (model((), [tensor("t", ONE, 24, 0)] * 2, b"\0" * 9), "'t' is there twice"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    content, message = DAMAGED[name]
    path = write(tmp_path, content)
    with pytest.raises(BrioletteError, match=message) as caught:
        open_gguf(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(BrioletteError, match="this is a folder"):
        open_gguf(tmp_path)
    with pytest.raises(BrioletteError, match=r"no\.gguf: there is no such file"):
        open_gguf(str(tmp_path / "no.gguf"))


def read_all(path: Path) -> None:
    opened = open_gguf(path)
    for found in opened.header.metadata.values():
        assert repr(found)
        assert not isinstance(found, StringArray | NumberArray) or len(list(found)) == len(found)
    for name in opened.header.tensors:
        opened.tensor_bytes(name).sum()


def test_every_truncation_is_an_error(tmp_path: Path, small: bytes) -> None:
    read_all(write(tmp_path, small))
    for length in [*range(0, 1200, 7), *range(1200, len(small), 301)]:
        path = write(tmp_path, small[:length], f"{length}.gguf")  # never write over a mapped file
        with pytest.raises(BrioletteError):
            open_gguf(path)


BYTES = st.sampled_from([0, 1, 4, 8, 9, 0x7F, 0x80, 0xFF])
CHANGES = st.lists(st.tuples(st.integers(0, 900), BYTES), max_size=4)


@settings(max_examples=300, deadline=None)
@given(changes=CHANGES, cut=st.none() | st.integers(0, 12000))
def test_no_damage_raises_anything_else(changes: list[tuple[int, int]], cut: int | None) -> None:
    content = bytearray(model([*PAIRS, pair("l", ("arr", "str"), ["t"] * 1100)], TENSORS, b"\1" * 300))
    for place, byte in changes:
        content[place] = byte
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(BrioletteError):
        read_all(write(Path(folder), bytes(content[:cut])))
