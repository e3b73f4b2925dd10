"""Tokenizers: the ids of llama.cpp, text that survives the round trip, errors that name the trouble."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from briolette.compiler.errors import BrioletteError
from briolette.compiler.header import Header
from briolette.engine.bpe import StringIndex, merge
from briolette.engine.gguf import StringArray, open_gguf
from briolette.engine.pretokenize import BYTE_SYMBOLS, PRETOKENIZERS
from briolette.engine.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "golden"
PATHS = {"gemma3": "gemma3_path", "gemma4": "gemma4_vocab_path", "smollm2": "smollm2_path"}


@pytest.fixture(scope="module", params=PATHS)
def named(request: pytest.FixtureRequest) -> tuple[str, Tokenizer]:
    return request.param, Tokenizer.from_gguf(request.getfixturevalue(PATHS[request.param]))


@pytest.fixture(scope="module")
def tokenizer(named: tuple[str, Tokenizer]) -> Tokenizer:
    return named[1]


@pytest.fixture(scope="module")
def gemma4(gemma4_vocab_path: Path) -> Tokenizer:
    return Tokenizer.from_gguf(open_gguf(gemma4_vocab_path))


# Against llama.cpp.


def test_ids_are_those_of_llama_cpp(named: tuple[str, Tokenizer]) -> None:
    name, tokenizer = named
    cases = json.loads((GOLDEN / f"tokens_{name}.json").read_text())["cases"]
    assert len(cases) > 60
    for text, special, ids in cases:
        if (name, special) == ("gemma3", False) and "</s>" in text:
            # By its file </s> is a word, as all of HTML; llama.cpp takes it for the end of a text.
            ids = tokenizer.encode(text, add_bos=False, special=True)
        assert tokenizer.encode(text, add_bos=False, special=special) == ids, (text, special)


def test_the_cases_that_come_with_gemma4(gemma4: Tokenizer, gemma4_vocab_path: Path) -> None:
    texts = Path(f"{gemma4_vocab_path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{gemma4_vocab_path}.out").read_text().splitlines()
    for text, line in zip(texts, lines, strict=True):
        ids = [int(token) for token in line.split()]
        assert gemma4.encode(text, add_bos=False) == ids, text
        assert gemma4.decode(ids) == text


@pytest.mark.parametrize(
    ("name", "bos", "eos", "add_bos", "stops"),
    [
        ("gemma3", 2, 1, True, ["<end_of_turn>", "<eos>"]),
        ("gemma4", 2, 1, True, ["<eos>", "<turn|>", "<|tool_response>"]),
        ("smollm2", 1, 2, False, ["<reponame>", "<|endoftext|>", "<|im_end|>"]),
    ],
)
def test_special_ids(request: pytest.FixtureRequest, name, bos, eos, add_bos, stops) -> None:
    tokenizer = Tokenizer.from_gguf(request.getfixturevalue(PATHS[name]))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (bos, eos, add_bos)
    assert sorted(map(tokenizer.token_text, tokenizer.stop_ids)) == stops
    assert tokenizer.encode("") == [bos] * add_bos


def test_the_stop_set_of_gemma4_in_ids(gemma4: Tokenizer) -> None:
    assert gemma4.stop_ids == {1, 106, 50}
    assert gemma4.decode([2, 106, 50, 1]) == ""
    assert gemma4.decode([2, 106, 50], special=True) == "<bos><turn|><|tool_response>"


# Properties of every tokenizer.

TEXT = (
    st.text()
    | st.text("ab \n\t'.<>1é🙂")
    | st.lists(st.sampled_from(["<b>", " the", "\n\n", "  ", "🙂", ">"])).map("".join)
)
PROPERTY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@PROPERTY
@given(text=TEXT)
@example(text="👩‍👩‍👧‍👦 > </x> \x00\x85\u2028")
def test_round_trip_and_streaming(tokenizer: Tokenizer, text: str) -> None:
    text = text.replace("▁", "_")  # which stands for a space
    if tokenizer.model == "gpt2":  # SmolLM2 has no tokens for a dozen bytes
        text = "".join(c for c in text if all(tokenizer._vocab.lookup(BYTE_SYMBOLS[b]) for b in c.encode()))
    ids = tokenizer.encode(text, special=False)
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream(start=True)
    pushed = [stream.push(token) for token in ids]
    assert "".join(pushed) + stream.flush() == text
    assert "\ufffd" in text or not any("\ufffd" in part for part in pushed)


@PROPERTY
@given(ids=st.lists(st.integers(0, 49151), max_size=20))
def test_streaming_any_ids_equals_decoding(tokenizer: Tokenizer, ids: list[int]) -> None:
    stream = tokenizer.stream(special=True, start=True)
    assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids, special=True)


@PROPERTY
@given(text=TEXT)
def test_cutting_before_merging_changes_nothing(tokenizer: Tokenizer, text: str) -> None:
    text = text.replace(" ", "▁").replace("\n", "")
    if text and tokenizer.model != "gpt2":
        pieces = [token for piece in tokenizer._split(text) for token in tokenizer._encode_piece(piece)]
        assert pieces == list(tokenizer._encode_piece(text))


def test_half_characters_wait(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\U00010348", add_bos=False)
    assert len(ids) > 1
    stream = tokenizer.stream()
    assert [stream.push(token) for token in ids] == [""] * (len(ids) - 1) + ["\U00010348"]
    assert stream.push(ids[0]) == ""
    assert stream.flush() == "\ufffd"


def test_lone_surrogates_become_replacement_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a\udc80b") == tokenizer.encode("a\ufffdb")


def test_names_and_ids_of_tokens(tokenizer: Tokenizer) -> None:
    for token in (0, 5, 1000, tokenizer.vocab_size - 1):
        assert tokenizer.token_id(tokenizer.token_text(token)) == token
    assert tokenizer.token_id("no such token") is None
    for token in (-1, tokenizer.vocab_size):
        with pytest.raises(BrioletteError, match="there is no token"):
            tokenizer.decode([token])


def test_decoding_builds_nothing(gemma4_vocab_path: Path) -> None:
    tokenizer = Tokenizer.from_gguf(gemma4_vocab_path)
    assert tokenizer.decode([2, 9259, 1902]) == "Hello world"
    assert not {"lookup", "_rank", "_boundary"} & ({*vars(tokenizer)} | {*vars(tokenizer._vocab)})


def test_encoding_does_not_import_hf_tokenizers_for_gemma(gemma4_vocab_path: Path) -> None:
    code = (
        "import sys; from briolette.engine.tokenizer import Tokenizer; "
        f"t = Tokenizer.from_gguf({str(gemma4_vocab_path)!r}); assert t.encode('Hi'); "
        "assert 'tokenizers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bos_is_never_doubled(gemma4: Tokenizer) -> None:
    assert gemma4.encode("Hi")[0] == 2
    assert gemma4.encode("<bos>Hi") == gemma4.encode("Hi")
    assert gemma4.encode("<bos>Hi", add_bos=True)[:2] == [2, 2]
    assert gemma4.encode("Hi", add_bos=False)[0] != 2


def test_string_index_finds_all_and_nothing_else(gemma4_vocab_path: Path) -> None:
    tokens = open_gguf(gemma4_vocab_path).header.metadata["tokenizer.ggml.tokens"]
    index = StringIndex(tokens)
    for place in range(0, len(tokens), 613):
        assert index.get(tokens.encoded(place)) == place
        assert index.get(tokens.encoded(place) + b"\xff") is None


def string_array(texts: list[bytes]) -> StringArray:
    """Texts as they lie in a file, with something before them."""
    raw, starts = b"before", []
    for text in texts:
        raw += struct.pack("<Q", len(text))
        starts.append(len(raw))
        raw += text
    return StringArray(raw, np.array(starts), len(raw))


@example([b"", b"a", b"\0", b"12345678", b"123456789", b"", b"a" * 256, b"a" * 257, bytes(300)])
@given(st.lists(st.binary(max_size=40) | st.integers(0, 600).map(lambda n: b"x" * n), min_size=1, max_size=60))
def test_string_index_is_a_dictionary(texts: list[bytes]) -> None:
    strings = string_array(texts)
    last, first = StringIndex(strings), StringIndex(strings, first=True)
    for text in texts:
        assert first.get(text) == texts.index(text)
        assert last.get(text) == len(texts) - 1 - texts[::-1].index(text)
        assert (first.get(text + b"!") is None) == (text + b"!" not in texts)


def test_strings_spread_over_the_index(gemma4_vocab_path: Path) -> None:
    """A search looks at a few strings: pairs of tokens, which have much in common, are the hardest."""
    index = StringIndex(open_gguf(gemma4_vocab_path).header.metadata["tokenizer.ggml.merges"])
    assert np.diff(np.array(index._ends)).max() <= 12


# Small vocabularies, written out.


def header(**keys: object) -> Header:
    return Header({f"tokenizer.ggml.{key}": value for key, value in keys.items()}, source="m.gguf")


def spm(words: dict[str, float], **keys: object) -> Tokenizer:
    special = {"<unk>": 2, "<s>": 3, "</s>": 3}
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    types = [*special.values(), *[6] * 256, *[1] * len(words)]
    scores = [0.0] * (len(special) + 256) + [*words.values()]
    return Tokenizer(header(model="llama", tokens=tokens, token_type=types, scores=scores, **keys))


def texts(tokenizer: Tokenizer, text: str, **options: bool) -> list[str]:
    return [tokenizer.token_text(token) for token in tokenizer.encode(text, **options)]


def test_spm_merges_by_score_and_then_from_the_left() -> None:
    letters = dict.fromkeys("abc▁", -100.0)
    assert texts(spm({**letters, "ab": -1, "bc": -2}), "abc") == ["<s>", "▁", "ab", "c"]
    assert texts(spm({**letters, "ab": -2, "bc": -1}), "abc") == ["<s>", "▁", "a", "bc"]
    # Equal scores of different tokens: leftmost. A ranking of pairs, as in BPE, cannot say this.
    assert texts(spm({**letters, "ab": -1, "bc": -1}), "abcbc") == ["<s>", "▁", "ab", "c", "bc"]
    assert texts(spm({**letters, "bc": -1, "ab": -1}), "abcbc") == ["<s>", "▁", "ab", "c", "bc"]
    assert texts(spm({**letters, "aa": -1, "aaaa": -2}), "aaaaaa")[2:] == ["aaaa", "aa"]


def test_spm_spells_unknown_characters_in_bytes() -> None:
    tokenizer = spm({"▁": -1})
    assert texts(tokenizer, "é") == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("é")) == "é"
    bare = Tokenizer(header(model="llama", tokens=["<unk>", "<s>", "</s>", "▁"], scores=[0.0] * 4))
    assert bare.encode("é") == [1, 3, 0]


def test_spm_sets_a_space_before_text_and_after_special_tokens() -> None:
    tokenizer = spm({"▁": -5, "a": -5, "▁a": -1})
    assert texts(tokenizer, "a</s>a a") == ["<s>", "▁a", "</s>", "▁a", "▁a"]
    assert texts(tokenizer, " a") == ["<s>", "▁", "▁a"]
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"
    assert tokenizer.decode(tokenizer.encode("a a", add_bos=False)) == "a a"
    stream = tokenizer.stream()  # in the middle of a text the space belongs to it
    assert stream.push(tokenizer.token_id("▁a")) == " a"
    plain = spm({"▁": -5, "a": -5, "▁a": -1}, add_space_prefix=False, add_bos_token=False)
    assert texts(plain, "a a") == ["a", "▁a"]


def test_spm_pieces_may_join_over_a_space_where_a_token_does() -> None:
    tokenizer = spm({**dict.fromkeys("abc▁", -9.0), "b▁": -2, "b▁c": -1, "▁c": -3, "a▁": -4})
    assert texts(tokenizer, "ab cb c", add_bos=False) == ["▁", "a", "b▁c", "b▁c"]


def test_longest_special_token_first_wherever_it_is() -> None:
    tokens = ["<unk>", "<s>", "</s>", *"abcd", "ab", "bcd"]
    tokenizer = Tokenizer(
        header(model="llama", tokens=tokens, token_type=[2, 3, 3, 1, 1, 1, 1, 4, 4], scores=[0.0] * 9)
    )
    assert texts(tokenizer, "abcd", add_bos=False)[-2:] == ["a", "bcd"]
    assert texts(tokenizer, "abab", add_bos=False) == ["ab", "ab"]


def gpt2(**keys: object) -> Tokenizer:
    tokens = [*(symbol.decode() for symbol in BYTE_SYMBOLS), "ab", "Ġa", "<|im_end|>"]
    return Tokenizer(header(**{"model": "gpt2", "tokens": tokens, "merges": ["a b", "Ġ a"], **keys}))


def test_a_forgotten_end_of_turn_is_special_all_the_same() -> None:
    tokenizer = gpt2(token_type=[1] * 259)
    assert texts(tokenizer, "ab<|im_end|>") == ["ab", "<|im_end|>"]
    assert tokenizer.stop_ids == {258}
    assert tokenizer.decode([256, 258]) == "ab"


def test_gpt2_without_bos() -> None:
    tokenizer = gpt2(pre="gpt-2")
    assert texts(tokenizer, "ab a") == ["ab", "Ġa"]
    assert tokenizer.decode(tokenizer.encode("ab aé🙂")) == "ab aé🙂"
    with pytest.raises(BrioletteError, match="no BOS token"):
        tokenizer.encode("a", add_bos=True)


def test_gemma4_gets_bos_even_if_its_file_says_no() -> None:
    keys = {"model": "gemma4", "tokens": ["<bos>", "a", "▁"], "merges": ["a ▁"], "bos_token_id": 0}
    assert Tokenizer(header(**keys, add_bos_token=False)).encode("a") == [0, 1]


def test_eos_token_ids_are_stops() -> None:
    assert gpt2(eos_token_id=1, eot_token_id=2, eos_token_ids=[3, 4]).stop_ids == {1, 2, 3, 4, 258}


def test_ignore_merges_takes_whole_words() -> None:
    tokens = [*(symbol.decode() for symbol in BYTE_SYMBOLS), "ab", "abc"]
    keys = {"model": "gpt2", "tokens": tokens, "merges": ["a b"], "bos_token_id": 0}
    assert texts(Tokenizer(header(**keys, pre="llama-bpe")), "abc", add_bos=False) == ["abc"]
    assert texts(Tokenizer(header(**keys, pre="qwen2")), "abc", add_bos=False) == ["ab", "c"]
    assert Tokenizer(header(**keys, pre="llama-bpe")).add_bos


@PROPERTY
@given(text=st.text("ab 'sS.,\n\r\t1Ⅷé中🙂"), stretch=st.integers(1, 9))
@pytest.mark.parametrize("pre", [*{repr(p): name for name, p in PRETOKENIZERS.items()}.values()])
def test_words_join_to_the_text_and_do_not_depend_on_stretches(pre: str, text: str, stretch: int) -> None:
    words = list(PRETOKENIZERS[pre].splitter()(text))
    assert "".join(words) == text
    assert list(PRETOKENIZERS[pre].splitter(stretch)(text)) == words


@given(symbols=st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=30))
def test_merge_does_what_its_slow_definition_does(symbols: list[bytes]) -> None:
    ranks = {
        (b"a", b"b"): 2,
        (b"b", b"c"): 1,
        (b"a", b"a"): 2,
        (b"aa", b"ab"): 0,
        (b"ab", b"c"): 3,
        (b"bc", b"bc"): 1,
    }
    rank = lambda left, right: ranks.get((left, right))  # noqa: E731
    slow = list(symbols)
    while pairs := [(r, i) for i in range(len(slow) - 1) if (r := rank(slow[i], slow[i + 1])) is not None]:
        _, place = min(pairs)
        slow[place : place + 2] = [slow[place] + slow[place + 1]]
    assert merge(list(symbols), rank) == slow


GOOD = {"model": "llama", "tokens": ["<unk>", "<s>", "</s>"], "scores": [0.0] * 3, "token_type": [2, 3, 3]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, r"the file holds no tokenizer: there is no tokenizer\.ggml\.model"),
        ({"model": "rwkv"}, r"tokenizer\.ggml\.model is 'rwkv'.*it knows gemma4, llama, gpt2"),
        ({"model": "gpt2", "pre": "odd"}, r"tokenizer\.ggml\.pre is 'odd'.*it knows default, .*qwen2"),
        ({"tokens": None}, r"key tokenizer\.ggml\.tokens is missing"),
        ({"tokens": [1, 2, 3]}, r"tokenizer\.ggml\.tokens is no list of strings"),
        ({"scores": None}, r"tokenizer\.ggml\.scores is missing"),
        ({"scores": [0.0]}, r"tokenizer\.ggml\.scores is no list of numbers, one for each of 3 tokens"),
        ({"token_type": ["a", "b", "c"]}, r"tokenizer\.ggml\.token_type is no list of numbers"),
        ({"model": "gpt2"}, r"tokenizer\.ggml\.merges is missing"),
        ({"model": "gemma4"}, r"tokenizer\.ggml\.merges is missing"),
        ({"eos_token_id": 3}, r"tokenizer\.ggml\.eos_token_id is 3, where the vocabulary has 3 tokens"),
    ],
)
def test_errors_name_the_key(change: dict[str, object], message: str) -> None:
    keys = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(BrioletteError, match=message) as caught:
        Tokenizer(header(**keys)).encode("some text")
    assert str(caught.value).startswith("m.gguf: ")
