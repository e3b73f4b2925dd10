"""Conversations as the text a model was trained on: the model file's own jinja template, in a sandbox.

The template comes with the model, from anywhere; so it runs in jinja's immutable sandbox, where it can
neither change what it is given nor reach Python. The rest of its world is what HF transformers gives such
templates (utils/chat_template_utils.py), because that is what they are written for.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from briolette.compiler.errors import BrioletteError

_FILE = "<template>"  # jinja's name for a template that is not a file


class _Generation(Extension):
    """`{% generation %}` marks the model's own words for training; here its body is just text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(value: object, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter writes < as \u003c, for web pages; a model must see what the tools are called.
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


@lru_cache(maxsize=8)
def _compile(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment.from_string(template)


def _fail(template: str, line: int | None, message: str) -> NoReturn:
    lines = template.splitlines()
    where = f", line {line}" if line else ""
    shown = f"\n  {lines[line - 1].strip()}" if line and line <= len(lines) else ""
    raise BrioletteError(f"the model's chat template{where}: {message}{shown}") from None


def render_chat(
    template: object,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """A conversation as text, ready for `Tokenizer.encode`.

    `template` is the file's `tokenizer.chat_template`. Each message has a `role`, mostly system, user or
    assistant, and `content`. `add_generation_prompt` ends the text where the model's reply begins.
    `variables` are the template's own: `bos_token` and `eos_token` as text, which most expect, and others
    such as `enable_thinking`.

    Raises BrioletteError where the model has no template, and, with the template's line, where the template
    is broken or refuses the messages.
    """
    if not isinstance(template, str) or not template.strip():
        raise BrioletteError(
            "the model file has no chat template, so it is no chat model or was converted without one; "
            "use `briolette run` to continue a plain text"
        )
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise BrioletteError(
                f"message {number} of the chat is {message!r}; give an object with a role (system, user, "
                f"assistant) and content"
            )
    try:
        return _compile(template).render(
            messages=list(messages),
            tools=list(tools) if tools else None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
    except TemplateSyntaxError as error:
        _fail(template, error.lineno, f"{error.message}; this template is broken, give another")
    except Exception as error:  # a template can fail in every way that Python can
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _FILE]
        refused = type(error) is TemplateError
        why = "the template refuses these messages" if refused else "the template cannot take these messages"
        _fail(template, frames[-1].lineno if frames else None, f"{why}: {error}")
