"""`briolette run` and `briolette chat`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from briolette.compiler.errors import BrioletteError
from briolette.engine.backends import room_of
from briolette.engine.model import Model, Usage, load
from briolette.engine.session import Chat, Piece

from .telling import tell_of_prefill
from .terminal import Bar, busy, error, note, result, result_json, styled

HELP = """\
  /reset        forget the conversation
  /think        switch thinking on or off, where the model's template can
  /help         this list
  /exit         leave (Ctrl-D does too)
  Ctrl-C        stop the reply; at the prompt: leave
  A line that ends in \\ goes on in the next."""


def prepare(model: Model) -> None:
    """Compiles what the first token needs, or fetches it from the cache of objects."""
    device = "this processor (kept for the next time)" if room_of(model.backend.name) is None else "the device"
    with busy(f"compiling {model.source.name} for {device}"):
        _ = model.tokenizer
        model.engine.prepare()


@contextlib.contextmanager
def prompt_bar(model: Model) -> Iterator[None]:
    """While a long prompt is computed, a bar on the terminal."""
    bar = Bar("reading the prompt", least=2 * model.options.chunk)
    model.progress = bar if sys.stderr.isatty() else None
    try:
        yield
    finally:
        bar.close()


def usage_line(usage: Usage) -> str:
    reused = f" ({usage.reused} of them cached)" if usage.reused else ""
    return (
        f"prompt {usage.prompt} tokens{reused} in {usage.prefill:.2f} s: {usage.prompt_rate:.1f} tok/s; "
        f"decoded {usage.generated} tokens in {usage.decode:.2f} s: {usage.decode_rate:.1f} tok/s"
    )


def usage_json(usage: Usage) -> dict[str, Any]:
    rates = {"prompt_rate": usage.prompt_rate, "decode_rate": usage.decode_rate}
    return {
        key: round(value, 4) if isinstance(value, float) else value for key, value in (asdict(usage) | rates).items()
    }


def prompt_text(argument: str | None, file: str | None) -> str:
    """The prompt from where it was given; one newline at its end is a habit of files and no part of it."""
    if argument is not None and file is not None:
        raise BrioletteError("there are two prompts: give either PROMPT or --file")
    if argument is not None:
        return argument
    if file is None and sys.stdin.isatty():
        raise BrioletteError("there is no prompt: give it after the model, with --file, or on standard input")
    if file is None or file == "-":
        text = sys.stdin.read()
        if not text:
            raise BrioletteError("the prompt is empty: standard input has nothing; give it after the model, or --file")
    else:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except OSError as problem:
            raise BrioletteError(f"cannot read the prompt file {file}: {problem.strerror}") from None
        except UnicodeDecodeError:
            raise BrioletteError(f"the prompt file {file} is not UTF-8 text; save it as UTF-8") from None
    return text.removesuffix("\n")


def run(
    path: str,
    prompt: str,
    options: dict[str, Any],
    sampling: dict[str, Any],
    max_tokens: int,
    stop: list[str],
    echo: bool,
    stats: bool,
    as_json: bool,
) -> None:
    began = time.perf_counter()
    with busy("reading the model"):
        model = load(path, **options)
    tell_of_prefill(options["prefill"], model.options.weights)
    seconds = {"open": time.perf_counter() - began}
    prepare(model)
    seconds["compile"] = time.perf_counter() - began - seconds["open"]
    ids = model.tokenize(prompt)
    pieces = model.generate(ids, max_tokens=max_tokens, stop=stop, **sampling)
    if echo and not as_json:
        result(styled(prompt, "2", sys.stdout), end="")
    text = ""
    try:
        with prompt_bar(model):
            for piece in pieces:
                seconds.setdefault("first_token", time.perf_counter() - began)
                text += piece
                if piece and not as_json:
                    result(piece, end="")
    except KeyboardInterrupt:
        if not as_json:
            result("")
        raise
    usage = model.usage
    assert usage is not None
    if as_json:
        rounded = {key: round(value, 4) for key, value in seconds.items()}
        result_json({"text": text, "usage": usage_json(usage), "seconds": rounded})
    elif not text.endswith("\n"):
        result("")
    if stats:
        note(usage_line(usage))
        names = {"open": "opened in", "compile": "compiled in", "first_token": "first token after"}
        note(", ".join(f"{names[key]} {value:.2f} s" for key, value in seconds.items()))


def chat(
    path: str,
    options: dict[str, Any],
    sampling: dict[str, Any],
    system: str,
    think: bool | None,
    max_tokens: int | None,
    messages: list[str],
    stats: bool,
    as_json: bool,
) -> None:
    asked = bool(messages) or not sys.stdin.isatty()  # by a script: no prompt, no commands' answers
    if as_json and not asked:
        raise BrioletteError("--json is for scripts: give the messages with --message or on standard input")
    with busy("reading the model"):
        model = load(path, **options)
    tell_of_prefill(options["prefill"], model.options.weights)
    session = Chat(model, system, think, **sampling)  # says what is wrong before anything is compiled
    prepare(model)
    if not asked:
        note(f"{model.header.metadata.get('general.name', path)}: /help lists the commands, /exit leaves")
    turns = []
    for message in messages or (_lines() if asked else _typed(session)):
        try:
            turns.append(_turn(session, message, max_tokens, stats, as_json, asked))
        except BrioletteError as problem:
            if asked:
                raise
            error(f"{problem}\n  /reset starts afresh")
    if as_json:
        result_json({"turns": turns, "messages": session.messages})


def _turn(
    session: Chat, message: str, max_tokens: int | None, stats: bool, as_json: bool, asked: bool
) -> dict[str, Any]:
    """One message and its reply, written as it comes."""
    texts = {True: "", False: ""}
    pieces = session.say(message, max_tokens)
    try:
        with prompt_bar(session.model):
            for piece in pieces:
                texts[piece.thinking] += piece.text
                if not as_json:
                    _write(piece)
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
        if asked:
            result("")
            raise
    if not as_json:
        result("")
    usage = session.usage
    if usage is None:
        return {}
    if stats:
        note(usage_line(usage))
    return {
        "message": message,
        "reply": texts[False].rstrip(),
        "thoughts": texts[True].rstrip(),
        "usage": usage_json(usage),
    }


def _write(piece: Piece) -> None:
    """The reply is a result; thoughts are not, and go with the notes unless both are on one terminal."""
    if piece.thinking:
        sys.stderr.write(styled(piece.text, "2;3", sys.stderr))
        sys.stderr.flush()
    else:
        result(piece.text, end="")


def _lines() -> Iterator[str]:
    """Messages from a pipe: one a line."""
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\n")


def _typed(session: Chat) -> Iterator[str]:
    """Messages from a person; commands are answered on the way."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives input() editing and a history
    while True:
        try:
            line = input("> ")
            while line.endswith("\\"):
                line = line[:-1] + "\n" + input("  ")
        except EOFError:
            note("")
            return
        match line.strip().split(" ")[0]:
            case "":
                continue
            case "/exit" | "/quit" | "/bye":
                return
            case "/reset":
                session.reset()
                note("the conversation is forgotten")
            case "/think":
                _toggle(session)
            case "/help":
                note(HELP)
            case command if command.startswith("/"):
                note(f"there is no command {command}; there are\n{HELP}")
            case _:
                yield line


def _toggle(session: Chat) -> None:
    if not session.thinks:
        note("this model's template has no switch for thinking")
        return
    session.think = not session.think
    note(f"thinking is {'on' if session.think else 'off'}")
