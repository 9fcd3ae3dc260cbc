"""The engine as it runs on Metal: the same tokens as on the CPU, in its own dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from magistral_mlx.backend import mx, wide_products
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.engine.decode import decode
from magistral_mlx.engine.prefill import ComputedPrefix
from magistral_mlx.engine.sampler import Sampler
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.engine.speculate.costs import PassCosts
from magistral_mlx.engine.speculate.speculator import Speculation, Speculator
from tests.engine_models import ids_of, start, tiny_folder, tiny_model
from tests.metal import recorded_kernels, use_metal

pytestmark = pytest.mark.slow

WARM = Sampling(temperature=0.7, seed=3)
SCHEMES = {
    "full": KVScheme(),
    "8/8": KVScheme.parse("8/8"),
    "4/4": KVScheme.parse("4/4"),
    "an early 6/4": replace(KVScheme.parse("6/4"), window=32, first=2),
}
FROM_TEXT = Speculation(PassCosts(((1, 1.0), (16, 1.0))))  # every draft token is worth checking
EACH_SCHEME = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random tokens of which a stretch comes again."""
    fresh = np.random.default_rng(seed).integers(1000, 1280, length - 10).tolist()
    return fresh + fresh[20:30]


def together(requests: Sequence[dict[str, Any]]) -> list[list[int]]:
    """The tokens of requests that decode in the same passes."""
    generations = [start(tiny_model(), **request) for request in requests]
    for generation in generations:
        while generation.prefilling:
            generation.prefill()
    ids: list[list[int]] = [[] for _ in generations]
    while going := [n for n, generation in enumerate(generations) if not generation.ended]:
        passed = decode(tiny_model(), [generations[n] for n in going])
        for n, tokens in zip(going, passed, strict=True):
            ids[n] += [token.id for token in tokens]
    return ids


@EACH_SCHEME
@pytest.mark.parametrize(
    "options",
    [{}, {"chunk": 64}, {"chunk": 50, "snapshots": 3}, {"speculation": FROM_TEXT}],
    ids=["one chunk", "chunks", "snapshots", "speculation"],
)
def test_tokens_are_those_of_the_cpu(
    scheme: KVScheme, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"prompt": prompt(300), "scheme": scheme, "sampling": WARM, "limit": 40} | options
    expected = ids_of(start(tiny_model(), **given))
    use_metal(monkeypatch)
    assert ids_of(start(tiny_model(), **given)) == expected


@EACH_SCHEME
def test_rows_that_share_a_pass_get_the_tokens_of_the_cpu(
    scheme: KVScheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[dict[str, Any]] = [
        {"prompt": prompt(length, n), "scheme": scheme, "sampling": replace(WARM, seed=n)}
        for n, length in enumerate((40, 210, 300))
    ]
    expected = [ids_of(start(tiny_model(), **request)) for request in requests]
    use_metal(monkeypatch)
    assert together(requests) == expected


@EACH_SCHEME
def test_a_prompt_that_begins_like_an_earlier_one_goes_on_from_its_caches(
    scheme: KVScheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = prompt(240), [*prompt(240)[:230], *prompt(60, seed=1)]
    expected = ids_of(start(tiny_model(), second, scheme=scheme, sampling=WARM))
    use_metal(monkeypatch)
    earlier = start(tiny_model(), first, scheme=scheme, sampling=WARM, limit=1)
    ids_of(earlier)
    prefix = ComputedPrefix(earlier.caches, earlier.caches[0].trimmable(230))
    going_on = start(tiny_model(), second, scheme=scheme, sampling=WARM, prefix=prefix)
    assert ids_of(going_on) == expected


@EACH_SCHEME
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=["bfloat16", "float16"])
def test_nothing_leaves_the_compute_dtype(
    scheme: KVScheme, dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A float32 on the way would be carried through the rest of the model."""
    use_metal(monkeypatch, dtype=dtype)
    model = load_model(Checkpoint.open(tiny_folder()), dtype)
    logits: list[mx.Dtype] = []
    compute = type(model).logits

    def record(self: Any, h: mx.array) -> mx.array:
        y = compute(self, h)
        logits.extend((h.dtype, y.dtype))
        return y

    monkeypatch.setattr(type(model), "logits", record)
    generation = start(model, prompt(220), scheme=scheme, sampling=WARM, speculation=FROM_TEXT)
    ids_of(generation)
    assert set(logits) == {dtype}
    held = {array.dtype for cache in generation.caches for array in cache.state}
    # bfloat16 is too coarse for the scales of quantized tokens.
    assert held == ({mx.float16, mx.uint32} if scheme.quantized else {dtype})


@pytest.mark.parametrize(
    ("scheme", "options"),
    [("8/8", {}), ("8/8", {"speculation": FROM_TEXT}), ("6/4", {"chunk": 64}), ("4/4", {})],
)
def test_cuda_multiplies_no_quantized_tokens_as_they_are_stored(
    scheme: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLX has no such kernel there for arrays with spare capacity, and raises an error."""
    given = {"prompt": prompt(300), "scheme": KVScheme.parse(scheme), "sampling": WARM} | options
    expected = ids_of(start(tiny_model(), **given))
    use_metal(monkeypatch, name="cuda", packed_attention=False)
    with recorded_kernels() as kernels:
        assert ids_of(start(tiny_model(), **given)) == expected
    assert not kernels  # the model's own matrices are not quantized


# Speculation


@pytest.mark.parametrize("scheme", ["full", "8/8"])
@pytest.mark.parametrize("tokens", [100, 8100, 9000, 20_000])
def test_draft_tokens_over_a_long_context_keep_to_the_vector_kernel(
    tokens: int, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes 8 queries; over quantized keys a wider pass would dequantize them all."""
    use_metal(monkeypatch)
    sampler = Sampler(WARM, np.array([], np.int32), 1280)
    text = [1000 + n % 100 for n in range(tokens)]  # a draft token is always right
    speculator = Speculator(FROM_TEXT, text, KVScheme.parse(scheme), sampler)
    speculator.observe(1000 + tokens % 100)
    assert speculator.in_sight(50)
    guesses = speculator.guesses(1000 + (tokens + 1) % 100, 50)
    assert len(guesses) == (15 if tokens < 8192 and scheme == "full" else 7)


def test_draft_tokens_over_a_long_context_cost_what_was_measured_there() -> None:
    costs = PassCosts(((1, 1.0), (8, 1.0)), long=((1, 1.0), (3, 1.0), (8, 20.0)))
    sampler = Sampler(WARM, np.array([], np.int32), 1280)
    found = []
    for tokens in (1000, 8192, 9000):
        text = [1000 + n % 100 for n in range(tokens)]
        speculator = Speculator(Speculation(costs), text, KVScheme(), sampler)
        speculator.observe(1000 + tokens % 100)
        speculator.in_sight(50)
        found.append(len(speculator.guesses(1000 + (tokens + 1) % 100, 50)))
    assert found == [7, 2, 2]


@pytest.mark.parametrize(
    ("architecture", "costs"),
    [
        ("applegpu_g13s", (2.3, 4.5, 4.5)),
        ("applegpu_g14g", (2.3, 4.5, 4.5)),
        ("applegpu_g15d", (2.2, 2.6, 3.2)),
        ("applegpu_g17s", (2.2, 2.6, 3.2)),
        ("unknown", (2.2, 2.6, 3.2)),
    ],
)
def test_passes_of_six_rows_and_more_cost_more_before_m3(
    architecture: str, costs: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their quantized products go to a kernel for matrices."""
    metal = use_metal(monkeypatch, wide_products=wide_products(architecture))
    estimated = PassCosts(metal.pass_costs)
    assert [estimated(rows) for rows in (5, 6, 8)] == pytest.approx(costs, abs=0.11)
