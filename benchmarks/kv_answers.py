"""Does an 8-bit cache change any answer? The demo model's held-out cases, greedily.

    python -m benchmarks.kv_answers [--cases 200] [--kv 8/8]

Window and first tokens are set to 0, so that every token of the cache is quantized; the whole
output, the thinking included, is compared with that of a cache in full precision.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from magistral_mlx.cache.scheme import FULL, KVScheme
from magistral_mlx.chat.messages import Picture, User
from magistral_mlx.chat.prompt import Prompt, encode
from magistral_mlx.chat.system import default_system
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model, load_vision
from magistral_mlx.demo.cases import KINDS, Case, cases
from magistral_mlx.engine.generate import Request, Token, generate
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.library import locate
from magistral_mlx.model.magistral import MagistralModel

LONGEST = 96  # tokens of an answer with its thinking


def prompt_of(case: Case, tokenizer: Tokenizer, folder: Path) -> Prompt:
    """The prompt that `generate` would make of a case."""
    system = default_system(folder, thinks=tokenizer.thinks)
    user = User((*(Picture.open(image) for image in case.images), case.question))
    return encode([system, user] if system else [user], tokenizer)


def output(model: MagistralModel, prompt: Prompt, scheme: KVScheme, eos: int) -> list[int]:
    """The tokens that the model writes, greedily."""
    request = Request(
        prompt.tokens,
        prompt.pictures,
        Sampling(temperature=0),
        LONGEST,
        scheme=scheme,
        stop_tokens=frozenset([eos]),
    )
    return [step.id for step in generate(model, request) if isinstance(step, Token)]


def main() -> None:
    """Print, for each kind, how many outputs are the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="a folder, or demo")
    parser.add_argument("--cases", type=int, default=200, help="of each kind")
    parser.add_argument("--kv", default="8/8")
    options = parser.parse_args()
    folder = locate(options.model)
    checkpoint = Checkpoint.open(folder)
    tokenizer = Tokenizer.load(folder)
    model = load_model(checkpoint)
    load_vision(model, checkpoint)
    scheme = KVScheme.parse(options.kv).without_window()
    eos = tokenizer.special.eos
    for kind in KINDS:
        same = 0
        for case in cases(kind, "held_out", options.cases):
            prompt = prompt_of(case, tokenizer, folder)
            same += output(model, prompt, FULL, eos) == output(model, prompt, scheme, eos)
        print(f"{kind:14} {same}/{options.cases} outputs the same with {options.kv}")


if __name__ == "__main__":
    main()
