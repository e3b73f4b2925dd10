"""Two turns of a chat: `python examples/chat_turns.py [MODEL.gguf]`, by default SmolLM2 from its package."""

import sys

import briolette
from briolette.engine.session import Chat

from models import smollm2


def main(path: str) -> None:
    chat = Chat(briolette.load(path), temperature=0.0)
    for message in ("What is the capital of France?", "And what is it known for?"):
        print(f"> {message}")
        for piece in chat.say(message, max_tokens=48):
            print(piece.text, end="", flush=True)
        usage = chat.usage
        assert usage is not None
        print(f"\n  ({usage.prompt - usage.reused} of {usage.prompt} prompt tokens were computed)")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else smollm2())
