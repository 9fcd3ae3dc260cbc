"""Quality of quantized KV caches: next-token distributions, and attention itself.

    python -m benchmarks.kv_quality [--full] [--model demo|FOLDER]

First, held-out cases of the demo model (sums, images): the answer of a full-precision cache is
fed token by token through each cache, and its next-token distributions are compared: the mean
Kullback-Leibler divergence in nats, and how often the likeliest token is the same. Prompts of the
demo are shorter than the window that schemes keep in full precision, so every scheme stands there
twice: as users have it, and with nothing kept, where all tokens but the newest are quantized.

Second, random keys of which some channels are outliers, as trained models have them: the relative
error of attention over 4,096 tokens, with and without the Hadamard rotation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Record, arguments, console, show
from magistral_mlx.backend import mx
from magistral_mlx.cache.kv import KVCache, make_cache
from magistral_mlx.cache.scheme import FULL, SCHEMES, KVScheme
from magistral_mlx.chat.messages import Image, User
from magistral_mlx.chat.prompt import Prompt, encode
from magistral_mlx.chat.system import default_system
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model, load_vision
from magistral_mlx.demo.cases import KINDS, cases
from magistral_mlx.divergence import divergence, log_softmax
from magistral_mlx.engine.images import encode_images
from magistral_mlx.engine.prefill import prefill
from magistral_mlx.library import locate
from magistral_mlx.model.magistral import MagistralModel

LONGEST = 96  # tokens of an answer with its thinking
TOKENS, HEADS, KV_HEADS, WIDTH = 4096, 8, 2, 128
OUTLIERS = {"none": 0, "4 of 128 channels x 20": 4, "16 of 128 channels x 20": 16}


def schemes() -> dict[str, KVScheme]:
    """Every quantized scheme, with and without the rotation, with and without its window."""
    found = {}
    for name in SCHEMES[1:]:
        for rotate in (True, False):
            scheme = replace(KVScheme.parse(name), rotate=rotate)
            label = name if rotate else f"{name}, not rotated"
            found[label] = scheme
            found[f"{label}, nothing kept"] = scheme.without_window()
    return found


# On the demo's cases


@dataclass(frozen=True)
class Answer:
    """A case's prompt, the features of its images, and the greedy answer at full precision."""

    prompt: Prompt
    features: mx.array | None
    tokens: list[int]
    logprobs: mx.array  # (answer, vocabulary)


def prompts(tokenizer: Tokenizer, folder: Path, count: int, kinds: Any) -> Iterator[Prompt]:
    system = default_system(folder, thinking=tokenizer.has_thinking_tokens)
    for kind in kinds:
        for case in cases(kind, "held_out", count):
            images = tuple(Image(image) for image in case.images)
            content = (*images, case.question) if images else case.question
            messages = [User(content)] if system is None else [system, User(content)]
            yield encode(messages, tokenizer)


def fill(model: MagistralModel, answer: Prompt, features: Any, caches: list[KVCache]) -> mx.array:
    """The prompt into the caches -> (1, vocabulary) logits."""
    steps = prefill(model, caches, answer.tokens, features)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value


def step(model: MagistralModel, token: int, caches: list[KVCache]) -> mx.array:
    """One token into the caches -> (1, vocabulary) logits of the next."""
    logits = model.logits(model(model.embed(mx.array([[token]])), caches))[:, 0]
    mx.eval(logits, [array for cache in caches for array in cache.state])
    return logits


def answer_of(model: MagistralModel, prompt: Prompt, eos: int) -> Answer:
    features = encode_images(model, prompt.images)
    caches = model.make_caches(FULL)
    logits = fill(model, prompt, features, caches)
    tokens, rows = [], []
    while len(tokens) < LONGEST:
        rows.append(log_softmax(logits))
        tokens.append(int(mx.argmax(logits).item()))
        if tokens[-1] == eos:
            break
        logits = step(model, tokens[-1], caches)
    return Answer(prompt, features, tokens, mx.concatenate(rows))


def compare(model: MagistralModel, answer: Answer, scheme: KVScheme) -> tuple[list[float], int]:
    """Run the same tokens through another cache; return divergences, and the top-1 agreement.

    The first token is left out: it comes from the prefill.
    """
    caches = model.make_caches(scheme)
    fill(model, answer.prompt, answer.features, caches)
    divergences, agreeing = [], 0
    for place, token in enumerate(answer.tokens[:-1]):
        other = log_softmax(step(model, token, caches))[0]
        right = answer.logprobs[place + 1]
        divergences.append(float(divergence(right, other).item()))
        agreeing += int(mx.argmax(other).item()) == int(mx.argmax(right).item())
    return divergences, agreeing


def on_cases(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Scheme -> mean and worst divergence, agreement, tokens."""
    checkpoint = Checkpoint.open(folder)
    tokenizer = Tokenizer.load(folder)
    model = load_model(checkpoint, mx.float32)
    kinds = KINDS if checkpoint.config.vision else ("text",)
    if checkpoint.config.vision:
        load_vision(model, checkpoint)
    eos = tokenizer.special.eos
    answers = [answer_of(model, p, eos) for p in prompts(tokenizer, folder, count, kinds)]
    results = {}
    for label, scheme in schemes().items():
        console.print(label, style="dim")
        divergences: list[float] = []
        agreeing = 0
        for answer in answers:
            some, same = compare(model, answer, scheme)
            divergences += some
            agreeing += same
        results[label] = {
            "mean": float(np.mean(divergences)),
            "worst": max(divergences),
            "agreement": agreeing / len(divergences),
            "tokens": len(divergences),
        }
    return results


# On keys with outliers


def on_outliers(outliers: int, seed: int = 0) -> dict[str, float]:
    """Scheme -> relative error of attention, over queries that look for one of the keys."""
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((1, KV_HEADS, TOKENS, WIDTH), dtype=np.float32)
    values = rng.standard_normal((1, KV_HEADS, TOKENS, WIDTH), dtype=np.float32)
    channels = rng.choice(WIDTH, outliers, replace=False)
    # An outlier channel is large in every token and varies little, as in trained models.
    signs = rng.choice([-20, 20], outliers)
    keys[..., channels] = signs * (1 + 0.1 * keys[..., channels])
    wanted = rng.integers(0, TOKENS, 64)
    group = HEADS // KV_HEADS
    queries = np.repeat(keys[:, :, wanted], group, axis=1)
    queries[..., channels] = rng.standard_normal((1, HEADS, 64, outliers))
    queries += 0.5 * rng.standard_normal(queries.shape)
    exact = _attend(FULL, queries.astype(np.float32), keys, values)
    errors = {}
    for label, scheme in schemes().items():
        other = _attend(scheme, queries.astype(np.float32), keys, values)
        errors[label] = float(np.linalg.norm(other - exact) / np.linalg.norm(exact))
    return errors


def _attend(scheme: KVScheme, queries: Any, keys: Any, values: Any) -> Any:
    """Each query alone over the whole cache: (HEADS, 64, WIDTH)."""
    cache = make_cache(scheme)
    k, v = mx.array(keys), mx.array(values)
    cache.append(k[:, :, :-1], v[:, :, :-1])
    found = []
    for place in range(queries.shape[2]):
        q = mx.array(queries[:, :, place : place + 1])
        y = cache.attend(q, k[:, :, -1:], v[:, :, -1:], scale=WIDTH**-0.5)
        found.append(np.array(y[0, :, 0]))
        cache.trim(TOKENS - 1)
    return np.stack(found, axis=1)


def main() -> None:
    given = arguments(
        __doc__ or "", full=True, model={"default": "demo", "help": "demo or a folder"}
    )
    record = Record("kv_quality")
    folder = Path(locate(given.model))
    quality = on_cases(folder, 60 if given.full else 8)
    header = ["KV cache", "mean KL", "worst KL", "same top token", "tokens"]
    rows: list[list[Any]] = [
        [k, f"{f['mean']:.2e}", f"{f['worst']:.2e}", f"{f['agreement']:.2%}", f["tokens"]]
        for k, f in quality.items()
    ]
    show(f"{given.model}: next-token distributions against a full-precision cache", header, rows)
    errors = {name: on_outliers(count) for name, count in OUTLIERS.items()}
    kept = [label for label in schemes() if label.endswith("nothing kept")]
    rows = [[label, *(f"{errors[name][label]:.2%}" for name in OUTLIERS)] for label in kept]
    header = ["KV cache", *(f"outliers: {name}" for name in OUTLIERS)]
    show(f"Relative error of attention over {TOKENS:,} tokens", header, rows)
    with record.plot(given.out, title="Error of attention, keys with outlier channels") as (ax,):
        width = 0.8 / len(kept)
        for n, label in enumerate(kept):
            values = [errors[name][label] for name in OUTLIERS]
            places = np.arange(len(OUTLIERS)) + n * width
            ax.bar(places, values, width, label=label.removesuffix(", nothing kept"))
        ax.set(yscale="log", ylabel="relative error")
        names = [name.replace(" channels", "\nchannels") for name in OUTLIERS]
        ax.set_xticks(np.arange(len(OUTLIERS)) + 0.4, names, fontsize=8)
        ax.legend(frameon=False, fontsize=7)
    record.save(given.out, quality=quality, errors=errors)


if __name__ == "__main__":
    main()
