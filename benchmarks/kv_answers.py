"""Answers changed by an 8-bit cache: the demo model's held-out cases, decoded greedily.

    python -m benchmarks.kv_answers [--full] [--cases N] [--kv 8/8]

Window and first tokens are set to 0, so that every token of the cache is quantized; the whole
output, the thinking included, is compared with that of a cache in full precision. 20 cases of each
kind, 200 with --full.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import OURS_COLOUR, Record, arguments, console, show
from magistral_mlx.cache.scheme import FULL, KVScheme
from magistral_mlx.chat.messages import Image, User
from magistral_mlx.chat.prompt import Prompt, encode
from magistral_mlx.chat.system import default_system
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model, load_vision
from magistral_mlx.demo.cases import KINDS, Case, cases
from magistral_mlx.engine.generate import Generation
from magistral_mlx.engine.inputs import SequenceInputs
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.engine.sequence import Token
from magistral_mlx.library import locate
from magistral_mlx.model.magistral import MagistralModel

LONGEST = 96  # tokens of an answer with its thinking


def prompt_of(case: Case, tokenizer: Tokenizer, folder: Path) -> Prompt:
    """The prompt that `generate` would make of a case."""
    system = default_system(folder, thinking=tokenizer.has_thinking_tokens)
    user = User((*(Image.open(image) for image in case.images), case.question))
    return encode([system, user] if system else [user], tokenizer)


def output(model: MagistralModel, prompt: Prompt, scheme: KVScheme, eos: int) -> list[int]:
    """The tokens that the model writes, greedily."""
    request = SequenceInputs(
        prompt.tokens,
        prompt.images,
        Sampling(temperature=0),
        LONGEST,
        scheme=scheme,
        stop_tokens=frozenset([eos]),
    )
    return [step.id for step in Generation(model, request) if isinstance(step, Token)]


def main() -> None:
    given = arguments(
        __doc__ or "",
        full=True,
        model={"default": "demo", "help": "demo or a folder"},
        cases={"type": int, "help": "of each kind; default 20, 200 with --full"},
        kv={"default": "8/8", "help": "bits of keys and values; default 8/8"},
    )
    count = given.cases or (200 if given.full else 20)
    record = Record("kv_answers")
    folder = locate(given.model)
    checkpoint = Checkpoint.open(folder)
    tokenizer = Tokenizer.load(folder)
    model = load_model(checkpoint)
    if checkpoint.config.vision:
        load_vision(model, checkpoint)
    scheme = KVScheme.parse(given.kv).without_window()
    eos = tokenizer.special.eos
    same: dict[str, int] = {}
    for kind in KINDS if checkpoint.config.vision else ("text",):
        console.print(kind, style="dim")
        prompts = [prompt_of(case, tokenizer, folder) for case in cases(kind, "held_out", count)]
        same[kind] = sum(
            output(model, prompt, FULL, eos) == output(model, prompt, scheme, eos)
            for prompt in prompts
        )
    rows = [[kind, equal, count, f"{equal / count:.1%}"] for kind, equal in same.items()]
    title = f"{given.model}: outputs that are the same with {given.kv} as in full precision"
    show(title, ["kind", "the same", "of", "share"], rows)
    with record.plot(given.out, title=title) as (ax,):
        ax.bar(list(same), [100 * equal / count for equal in same.values()], color=OURS_COLOUR)
        ax.set(ylabel=f"% of {count} outputs", ylim=(0, 100))
    record.save(given.out, model=given.model, kv=given.kv, cases=count, same=same)


if __name__ == "__main__":
    main()
