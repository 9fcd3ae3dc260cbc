"""Chat on the terminal: Ctrl-C stops an answer, Ctrl-D ends the chat.

python examples/chat.py [MODEL]
"""

import sys

from magistral_mlx import Finished, Magistral, Text


def main(model: str = "demo") -> None:
    with Magistral.load(model) as magistral:
        chat = magistral.chat(overflow="drop", temperature=0)
        while True:
            try:
                question = input("> ")
            except EOFError:
                return
            try:
                for event in chat.stream(question):
                    if isinstance(event, Text):
                        print(event.text, end="", flush=True)
                    elif isinstance(event, Finished):
                        used = event.stats.prompt_tokens + event.stats.completion_tokens
                        print(f"\n({used} of {magistral.context} tokens used)")
            except KeyboardInterrupt:
                print(" (stopped)")


if __name__ == "__main__":
    main(*sys.argv[1:])
