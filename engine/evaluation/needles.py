"""Long texts with sentences hidden in them that say a word, and what a model is to continue with that word.

A base model answers no questions: it is given the beginning of the sentence again, and the word should come next. A
document holds a sentence for every depth, each about another place, so that one reading serves all questions, and
the word must be found by its place and not by being the only one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from briolette.compiler.errors import BrioletteError
from briolette.engine.tokenizer import Tokenizer
from briolette.engine.words import many

SEED = 1
HIDDEN = "\nThe magic word for {place} is {word}.\n"
ASKED, ANSWER = "\nRemember: the magic word for {place} is", " {word}"
PLACES = """\
Lisbon Oslo Cairo Lima Quito Delhi Hanoi Paris Rome Vienna Prague Dublin Berlin Madrid Athens Warsaw Sofia Tokyo Seoul
Manila Jakarta Tehran Baghdad Nairobi Accra Dakar Tunis Havana Bogota Santiago Toronto Boston Denver Dallas Miami
Chicago Sydney Geneva Moscow Istanbul"""
WORDS = """\
velvet lantern orchid pebble harbour copper meadow thunder basket ladder pepper silver feather anchor blanket candle
butter garden hammer island jacket kettle lemon mirror needle ocean pencil rabbit saddle ticket umbrella violin window
yellow button cotton dragon engine falcon ginger"""


@dataclass(frozen=True)
class Question:
    """The beginning of a hidden sentence, and the word that should come next, as token ids. depth: where the sentence
    stands, from 0 (the beginning) to 1 (the end)."""

    depth: float
    asked: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Document:
    """Token ids with a sentence hidden at every depth, and the questions, each of which follows the document. With the
    longest question and its answer it takes `length` positions."""

    length: int
    ids: tuple[int, ...]
    questions: tuple[Question, ...]


def documents(
    text: str, tokenizer: Tokenizer, lengths: Sequence[int], depths: Sequence[float], trials: int
) -> list[Document]:
    """For each length so many documents, each from another part of the text, with other places and words.

    The same every time. A text that is too short begins again. Raises BrioletteError for a length that has no room for
    the sentences, for an empty text, and for more depths than there are places.
    """
    most = min(len(PLACES.split()), len(WORDS.split()))
    if len(depths) > most:
        raise BrioletteError(f"there are words for {most} sentences in a text, not for {len(depths)} depths")
    hay = tokenizer.encode(text, add_bos=False, special=False)
    if not hay:
        raise BrioletteError("the text to hide sentences in is empty")
    return [
        _document(
            hay[len(hay) * trial // trials :] + hay, tokenizer, length, depths, Random(f"{SEED} {length} {trial}")
        )
        for length in lengths
        for trial in range(trials)
    ]


def _document(
    hay: Sequence[int], tokenizer: Tokenizer, length: int, depths: Sequence[float], random: Random
) -> Document:
    places, words = (random.sample(each.split(), len(depths)) for each in (PLACES, WORDS))
    pairs = list(zip(places, words, strict=True))
    hidden = [tokenizer.encode(HIDDEN.format(place=p, word=w), add_bos=False, special=False) for p, w in pairs]
    questions = [Question(depth, *asked(tokenizer, *pair)) for depth, pair in zip(depths, pairs, strict=True)]
    first = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    taken = len(first) + sum(map(len, hidden)) + max(len(q.asked) + len(q.answer) for q in questions)
    room = length - taken
    if room < len(depths):
        raise BrioletteError(
            f"a text of {many(length, 'token')} has no room for {many(len(depths), 'sentence')}, which take {taken} "
            "with a question: larger --lengths, or fewer --depths"
        )
    straw = [hay[i % len(hay)] for i in range(room)]
    ids, at = list(first), 0
    for place in sorted(range(len(depths)), key=lambda i: depths[i]):
        to = round(room * depths[place])
        ids += straw[at:to] + hidden[place]
        at = to
    return Document(length, tuple(ids + straw[at:]), tuple(questions))


def asked(tokenizer: Tokenizer, place: str, word: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A question and its answer: the tokens of both together, parted where those of the question end."""
    question = ASKED.format(place=place)
    both, alone = (
        tokenizer.encode(text, add_bos=False, special=False) for text in (question + ANSWER.format(word=word), question)
    )
    same = next((i for i, (a, b) in enumerate(zip(both, alone, strict=False)) if a != b), min(len(both), len(alone)))
    return tuple(both[:same]), tuple(both[same:])
