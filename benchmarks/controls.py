"""Cost of the controls of a generation: penalties, filters, DRY, thinking, grammars.

    python -m benchmarks.controls

The first table is decoding time per token on a random model of one small layer and 1,280 ids, where
nothing is left to hide behind: what a control adds is what the host and its few operations take.
The second is the time of a grammar's masks over the full 131,072 ids, along answers of 30 schemas.
Takes about a minute and a half.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import replace
from typing import Any

from benchmarks.common import OURS_COLOUR, Record, arguments, show
from magistral_mlx.engine.constraint import GrammarCompiler, GrammarMask
from magistral_mlx.engine.dry import Dry
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.engine.thinking import ThinkingRules
from tests.engine_models import (
    ids_of,
    start,
    tiny_model,
    tiny_tokenizer,
    tiny_vocabulary,
    vocabulary_of,
)
from tests.parity.test_structured_output import biases
from tests.schemas import SCHEMAS
from tests.tekken import full_tokenizer

TOKENS = 300
ROUNDS = 9
PLAIN = Sampling(temperature=1.0, top_p=1.0)
INSIDE = ThinkingRules(34, 35, inside=True, minimum=10**6)


def controls() -> dict[str, dict[str, Any]]:
    """Options measured against plain sampling at temperature 1."""
    letters = GrammarCompiler(tiny_vocabulary()).regex(r"(.|\n)*")
    return {
        "none": {},
        "top_p 0.95": {"sampling": replace(PLAIN, top_p=0.95)},
        "top_k 40": {"sampling": replace(PLAIN, top_k=40)},
        "min_p 0.05": {"sampling": replace(PLAIN, min_p=0.05)},
        "logit_bias of 10": {"sampling": replace(PLAIN, logit_bias=dict.fromkeys(range(10), 1))},
        "repetition penalty": {"sampling": replace(PLAIN, repetition_penalty=1.1)},
        "presence and frequency": {
            "sampling": replace(PLAIN, presence_penalty=0.1, frequency_penalty=0.1)
        },
        "log-probabilities, top 5": {"logprobs": 5},
        "thinking budget": {"thinking": replace(INSIDE, minimum=0, budget=10**6, loops=None)},
        "thinking with loop detector": {"thinking": INSIDE},
        "DRY": {"sampling": replace(PLAIN, dry=Dry())},
        "grammar": {"grammar": letters},
    }


def decode_seconds(asked: dict[str, Any]) -> float:
    """Seconds for a token, the prefill left out."""
    given = {"sampling": PLAIN, "limit": TOKENS, **asked}
    generation = start(tiny_model(1), [1, 3, 1100, 4], **given)
    while generation.prefilled is None:
        next(generation)
    began = time.perf_counter()
    count = len(ids_of(generation))
    return (time.perf_counter() - began) / count


def measure_controls() -> dict[str, float]:
    """Control -> microseconds a token; the median over rounds in which each has its turn."""
    measured: dict[str, list[float]] = {}
    cases = controls()
    for _ in range(ROUNDS):
        for name, asked in cases.items():
            measured.setdefault(name, []).append(decode_seconds(asked))
    return {name: statistics.median(times) * 1e6 for name, times in measured.items()}


def answer_for(schema: dict[str, Any], compiler: GrammarCompiler) -> str:
    """A valid answer by the random model, laid out as models lay JSON out."""
    generation = start(
        tiny_model(1),
        [1, 3, 1100, 4],
        sampling=Sampling(1, 1, 1, logit_bias=biases(3)),
        limit=1000,
        stop_tokens=frozenset([2]),
        grammar=compiler.json_schema(schema),
    )
    text = tiny_tokenizer().decode(ids_of(generation))
    values = json.loads(text, parse_float=lambda _: 0.5)  # some are beyond what floats hold
    return json.dumps(values, indent=2, ensure_ascii=False)


def measure_masks() -> dict[str, float]:
    """Seconds for the compiler, milliseconds for a grammar, microseconds for a mask."""
    vocabulary = vocabulary_of(full_tokenizer())
    small = GrammarCompiler(tiny_vocabulary())
    began = time.perf_counter()
    compiler = GrammarCompiler(vocabulary)
    built = time.perf_counter() - began
    compiled, masks = [], []
    for schema in SCHEMAS.values():
        began = time.perf_counter()
        grammar = compiler.json_schema(schema)
        compiled.append((time.perf_counter() - began) * 1e3)
        mask = GrammarMask(grammar, len(vocabulary.tokens))
        for token in [*full_tokenizer().encode(answer_for(schema, small)), None]:
            before = mask.cost.seconds
            mask.next()
            if token is not None:
                mask.accept(token)
            masks.append((mask.cost.seconds - before) * 1e6)
    masks.sort()
    return {
        "compiler, s": built,
        "grammar, median ms": statistics.median(compiled),
        "grammar, largest ms": max(compiled),
        "masks": len(masks),
        "mask, median us": statistics.median(masks),
        "mask, mean us": statistics.fmean(masks),
        "mask, 99 % us": masks[int(0.99 * len(masks))],
        "mask, largest us": masks[-1],
    }


def main() -> None:
    given = arguments(__doc__ or "")
    record = Record("controls")
    costs, masks = measure_controls(), measure_masks()
    added = {name: cost - costs["none"] for name, cost in costs.items()}
    rows = [[name, f"{cost:.0f}", f"{added[name]:+.0f}"] for name, cost in costs.items()]
    show("Decoding, tiny model", ["control", "us a token", "added"], rows)
    rows = [[name, f"{value:,.2f}"] for name, value in masks.items()]
    show("Grammars over 131,072 ids", ["figure", "value"], rows)
    with record.plot(given.out, title="What a control adds to a token") as (ax,):
        names = [name for name in added if name != "none"]
        ax.barh(names, [added[name] for name in names], color=OURS_COLOUR)
        ax.invert_yaxis()
        ax.set(xlabel="microseconds")
    record.save(given.out, controls=costs, masks=masks)


if __name__ == "__main__":
    main()
