"""Chat templates: the files' own, rendered as their models expect, and unable to leave the sandbox."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from briolette.compiler.errors import BrioletteError
from briolette.engine.chat import render_chat
from briolette.engine.gguf import open_gguf

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <b>"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


@pytest.fixture(scope="module")
def gemma4(gemma4_vocab_path: Path) -> object:
    return open_gguf(gemma4_vocab_path).header.metadata["tokenizer.chat_template"]


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> object:
    return open_gguf(smollm2_path).header.metadata["tokenizer.chat_template"]


def test_smollm2(smollm2: object) -> None:
    assert render_chat(smollm2, CHAT) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b><|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render_chat(smollm2, CHAT[1:2], add_generation_prompt=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi <b><|im_end|>\n"
    )


def test_gemma4_without_thinking_closes_the_thought(gemma4: object) -> None:
    expected = (
        "<bos><|turn>system\nBe brief.<turn|>\n<|turn>user\nHi <b><turn|>\n<|turn>model\nHello<turn|>\n"
        "<|turn>user\nBye<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"
    )
    assert render_chat(gemma4, CHAT, bos_token="<bos>") == expected
    assert render_chat(gemma4, CHAT, bos_token="<bos>", enable_thinking=False) == expected


def test_gemma4_with_thinking_leaves_it_open(gemma4: object) -> None:
    text = render_chat(gemma4, CHAT[1:2], bos_token="<bos>", enable_thinking=True)
    assert text == "<bos><|turn>system\n<|think|><turn|>\n<|turn>user\nHi <b><turn|>\n<|turn>model\n"


def test_gemma4_declares_tools(gemma4: object) -> None:
    text = render_chat(gemma4, CHAT[1:2], tools=TOOLS, bos_token="<bos>")
    assert '<|tool>declaration:weather{description:<|"|>The weather<|"|>' in text


def test_what_templates_are_given() -> None:
    assert render_chat("{{ messages|length }} {{ tools }} {{ add_generation_prompt }}", CHAT) == "4 None True"
    assert render_chat("{{ {'é': '<b>'}|tojson }}", CHAT) == '{"é": "<b>"}'
    assert render_chat("{{ [1]|tojson(indent=1) }}", CHAT) == "[\n 1\n]"
    assert render_chat("{{ strftime_now('%Y')|length }}{{ unknown }}", CHAT) == "4"
    loop = "{% for m in messages %}\n  {% if loop.index > 1 %}{% break %}{% endif %}\n{{ m.role }}\n{% endfor %}"
    assert render_chat(loop, CHAT) == "system\n"
    assert render_chat("{% generation %}a{% endgeneration %}b", CHAT) == "ab"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "ok\n\n{{ raise_exception('System role not supported') }}",
            r"line 3: .*refuses.*System role not supported",
        ),
        ("ok\n{% if %}", r"line 2: Expected an expression"),
        ("ok\n{{ messages[0].content + none }}", r"line 2: .*cannot take"),
        ("{{ nothing.at.all }}", r"line 1: .*'nothing' is undefined"),
        ("{% for i in range(1000000000) %}{% endfor %}", "line 1: .*Range too big"),
    ],
)
def test_errors_name_the_line_of_the_template(template: str, message: str) -> None:
    with pytest.raises(BrioletteError, match="the model's chat template, " + message) as caught:
        render_chat(template, CHAT)
    assert str(caught.value).splitlines()[1].strip() in template


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__.co_consts }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ messages[0].pop('role') }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ ('a'|attr('__class__')).__mro__ }}",
        "{% set f = ''.join.__self__.__class__ %}{{ f.mro() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
    ],
)
def test_the_sandbox_holds(attack: str) -> None:
    chat = [dict(message) for message in CHAT]
    text = ""
    with contextlib.suppress(BrioletteError):
        text = render_chat(attack, chat)
    assert text == ""  # what may not be read is an error, or undefined and so nothing
    assert chat == CHAT


@pytest.mark.parametrize("template", [None, "", "  \n", 7])
def test_without_a_template_the_way_out_is_named(template: object) -> None:
    with pytest.raises(BrioletteError, match=r"no chat template.*`briolette run`"):
        render_chat(template, CHAT)


@pytest.mark.parametrize("message", ["Hi", {"content": "Hi"}, {"role": 1, "content": "Hi"}])
def test_messages_need_a_role(message: object) -> None:
    with pytest.raises(BrioletteError, match=r"message 2 of the chat is .*give an object with a role"):
        render_chat("x", [CHAT[0], message])
