"""Ask two questions, one of them about an image.

python examples/script.py [MODEL]
"""

import sys
from pathlib import Path

from magistral_mlx import Magistral

IMAGE = Path(__file__).with_name("circle.png")


def main(model: str = "demo") -> None:
    with Magistral.load(model) as magistral:
        sum_ = magistral.generate("What is 37 + 85?", temperature=0)
        print("thinking:", sum_.thinking)
        print("answer:", sum_.text)

        seen = magistral.generate("What is in the picture?", images=[IMAGE], temperature=0)
        print("image:", seen.text)
        print(f"{seen.usage.prompt_tokens} tokens read, {seen.usage.completion_tokens} written")


if __name__ == "__main__":
    main(*sys.argv[1:])
