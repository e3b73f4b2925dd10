"""Write tokens_*.json beside this file: texts and the ids that llama.cpp makes of them.

    PEER_PYTHON tests/golden/make_tokens.py NAME=MODEL.gguf ...

PEER_PYTHON has llama-cpp-python. The names in use are gemma3, gemma4 (of which the vocabulary file is enough)
and smollm2.
"""
# ruff: noqa: RUF001

import ctypes
import json
import sys
from pathlib import Path

import llama_cpp

# All are encoded with control tokens parsed; those of SPECIAL once more without.
TEXTS = [
    "",
    " ",
    "  ",
    "       ",
    "\n",
    "\n\n",
    "\n\n\n\n\n",
    "\n" * 40,
    "\r\n\r\n",
    "\t",
    "\t\t\t\tx",
    " \n \t\n  \r\n x",
    "Hello",
    " Hello",
    "   Hello",
    "Hello world",
    "Hello  world ",
    "Hello, world! How are you?",
    "The quick brown fox jumps over the lazy dog.",
    "I'm sure they'll've said it's Y'ALL'S, WE'RE 'tisn't",
    "don’t ‘quote’ “me” — ever…",
    "0 1 12 123 1234 12345 1234567890",
    "3.14159e-10, 1,000,000.00; 0xFF 1_000",
    "½ Ⅷ ² ٣ ३",
    "camelCaseIdentifier snake_case_identifier SCREAMING_CASE kebab-case",
    "def f(x):\n    if x:\n        return [y for y in x]\n\n\nclass A(B):\n\tpass\n",
    "for (int i = 0; i < n; ++i) { a[i] += b->c; } // done",
    '<html><body class="x"><h1>Title</h1>\n<p>a &amp; b</p></s></body></html>',
    '{"a": [1, 2.5, null, true], "b": "\\n"}',
    "https://example.com/path?q=1&r=%20#frag user@host.org",
    "!!!!!! ?????? ...... ------ ====== ######## ******** ________",
    "a\u00a0b\u2003c\u3000d\u200be\u2028f",
    "café cafe\u0301 naïve Ångström ß İı ǅ ﬁ",
    "Straße, Größe, Übermaß; señor; façade; Łódź; čeština",
    "Привет, как дела? Съешь ещё этих мягких французских булок.",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم ١٢٣",
    "नमस्ते दुनिया क्षत्रिय",
    "สวัสดีชาวโลก",
    "កាន់តែពិសេសអាច",
    "你好，世界！我想在apple工作1314151天～",
    "こんにちは世界。カタカナとひらがな。",
    "안녕하세요 세계",
    "Cửa Việt",
    "ქართული ენა",
    "🙂",
    "🙂🙃😉",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 😶‍🌫️",
    "a🦙b 🦙 🦙🦙",
    "\U00010348\U0001f9ff\U000e0041",
    "\x01\x02\x7f\x85",
    "\ufffd\ufeffx",
    "zażółć gęślą jaźń" * 3,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    " " * 70 + "x",
    "x>  </y> >▁</ ▁▁ _▁_",
    "<0x0A><0xFF> <0x4",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "Ünïcödé ｆｕｌｌｗｉｄｔｈ 𝒎𝒂𝒕𝒉 ℌ𝔢𝔩𝔩𝔬",
    "E = mc² ∑∫√∞≠≤ αβγ → ⇒ ∀x∈ℝ",
]
SPECIAL = [
    "<bos>Hello<eos>",
    "<s>Hello</s>",
    "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    "<|turn>user\nHi<turn|>\n<|turn>model\n<|channel>thought\n<channel|>",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a <|im_end|> b<|endoftext|> c",
    '<|tool_call>call:f{a:<|"|>x<|"|>}<tool_call|><|tool_response>',
    " <end_of_turn> <turn|> <end_of_turn",
    "<unk><pad><mask><unused5><|think|>",
    "<table><tr><td>1</td></tr></table>\n\n\n<code>",
]


def main() -> None:
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    for argument in sys.argv[1:]:
        name, path = argument.split("=", 1)
        options = llama_cpp.llama_model_default_params()
        options.vocab_only = True
        model = llama_cpp.llama_model_load_from_file(path.encode(), options)
        vocab = llama_cpp.llama_model_get_vocab(model)
        lines = []
        for text, special in [(t, True) for t in TEXTS + SPECIAL] + [(t, False) for t in SPECIAL]:
            raw = text.encode()
            ids = (llama_cpp.llama_token * (len(raw) + 8))()
            count = llama_cpp.llama_tokenize(vocab, raw, len(raw), ids, len(ids), False, special)
            lines.append(json.dumps([text, special, list(ids[:count])]))
        body = ",\n".join(lines)
        made_by = f"llama-cpp-python {llama_cpp.__version__}"
        file = Path(__file__).with_name(f"tokens_{name}.json")
        file.write_text(f'{{"made_by": "{made_by}", "cases": [\n{body}\n]}}\n', encoding="ascii")
        print(file, len(lines))


if __name__ == "__main__":
    main()
