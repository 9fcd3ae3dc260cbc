"""Searched scales and compensated errors lower the error of outputs; text is checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from magistral_convert.calibration.allocation import SchemeChoice, allocate
from magistral_convert.calibration.gptq import blocks, compensate, factorize
from magistral_convert.calibration.layers import InputStatistics
from magistral_convert.calibration.memory import LOGITS_ROWS
from magistral_convert.calibration.quality import compare
from magistral_convert.calibration.search import fit, pack, search
from magistral_convert.calibration.text import SEQUENCE, calibration_text, encode_marked
from magistral_convert.options import ConvertOptions
from magistral_mlx.backend import mx
from magistral_mlx.errors import InvalidOption, TokenizerError
from magistral_mlx.quantization import AFFINE_BITS, Quantization
from tests.tekken import small_tokenizer, tekken_folder

ROWS, COLUMNS = 32, 256
VOCABULARY = 2024


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    """(T, COLUMNS): some columns are loud, and columns go together."""
    rng = np.random.default_rng(1)
    mixing = np.eye(COLUMNS) + 0.3 * rng.standard_normal((COLUMNS, COLUMNS))
    loudness = np.exp(rng.standard_normal(COLUMNS))
    return (rng.standard_normal((1024, COLUMNS)) @ mixing * loudness).astype(np.float32)


@pytest.fixture(scope="module")
def weights() -> mx.array:
    rng = np.random.default_rng(2)
    return mx.array(0.02 * rng.standard_t(5, (ROWS, COLUMNS)).astype(np.float32)).astype(
        mx.bfloat16
    )


def output_error(parts, weights: mx.array, scheme: Quantization, inputs: np.ndarray) -> float:
    found = mx.dequantize(*parts, group_size=scheme.group_size, bits=scheme.bits)
    difference = found.astype(mx.float32) - weights.astype(mx.float32)
    return float(mx.square(mx.array(inputs) @ difference.T).mean().item())


@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_search_and_compensation_lower_the_error_of_outputs(bits: int, weights, inputs):
    scheme = Quantization(bits, 64)
    statistics = InputStatistics(products=True)
    for start in range(0, len(inputs), 256):
        statistics.add("x", mx.array(inputs[None, start : start + 256]))
    importance = np.array(statistics.mean_squares("x"))
    factors = [factorize(np.array(block)) for block in statistics.take_products("x")]
    plain = mx.quantize(weights, group_size=64, bits=bits)
    rows = np.array(weights.astype(mx.float32))
    searched = search(rows, importance, scheme)
    compensated = compensate(rows, importance, factors, scheme)
    for parts in (searched, compensated):
        assert [(p.shape, p.dtype) for p in parts] == [(p.shape, p.dtype) for p in plain]
    usual = output_error(plain, weights, scheme, inputs)
    least = output_error(searched, weights, scheme, inputs)
    assert least < 0.8 * usual
    assert output_error(compensated, weights, scheme, inputs) < 0.8 * least


def weighted_error(
    rows: np.ndarray, importance: np.ndarray, lowest: np.ndarray, step: np.ndarray, bits: int
) -> np.ndarray:
    """(R,) errors of rows of one group, with three fits after a grid from `lowest`, (R,)."""
    for _ in range(4):
        codes = np.clip(np.rint((rows - lowest[:, None]) / step[:, None]), 0, 2**bits - 1)
        root = np.sqrt(importance)
        for row, target in enumerate(rows):
            design = np.stack([codes[row] * root, root], axis=1)
            (step[row], lowest[row]), *_ = np.linalg.lstsq(design, target * root)
        step = np.maximum(step, 1e-6)
    return (codes * step[:, None] + lowest[:, None] - rows) ** 2 @ importance


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_search_is_near_the_best_of_many_more_starts(bits: int):
    rng = np.random.default_rng(bits)
    rows = rng.standard_t(4, (24, 64)).astype(np.float32)
    importance = np.exp(2 * rng.standard_normal(64)).astype(np.float32)  # a few columns decide
    low, high = rows.min(axis=1), rows.max(axis=1)
    best = np.full(len(rows), np.inf)
    for share in np.linspace(1.05, 0.4, 14):
        for end in (0, 0.25, 0.5, 0.75, 1):
            width = (high - low) * share
            start = low + (high - low - width) * end
            found = weighted_error(rows, importance, start, width / (2**bits - 1), bits)
            best = np.minimum(best, found)
    scales, biases, codes = fit(rows, importance, Quantization(bits, 64))
    errors = (codes * scales + biases - rows) ** 2 @ importance
    assert errors.sum() < 1.15 * best.sum()


def test_compensation_from_few_tokens_helps_with_others(weights, inputs):
    few, others = inputs[:128], inputs[512:]
    importance = (few * few).mean(axis=0)
    rows = np.array(weights.astype(mx.float32))
    scheme = Quantization(4, 64)
    searched = search(rows, importance, scheme)
    factors = [factorize(few.T @ few / len(few))]
    compensated = compensate(rows, importance, factors, scheme)
    errors = [output_error(p, weights, scheme, others) for p in (searched, compensated)]
    assert errors[1] < 0.98 * errors[0]


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_groups_that_are_all_alike_come_back(group_size: int):
    values = mx.array([0.0, 0.25, -3.0, 1e-3])[:, None]
    rows = np.array(mx.broadcast_to(values, (4, 256)).astype(mx.float32))
    parts = search(rows, np.ones(256, np.float32), Quantization(4, group_size))
    found = mx.dequantize(*parts, group_size=group_size, bits=4)
    assert np.allclose(np.array(found.astype(mx.float32)), rows, 0.01)


def test_an_input_that_is_always_zero_does_not_disturb_the_others(weights, inputs):
    silent = inputs.copy()
    silent[:, :70] = 0
    importance = (silent * silent).mean(axis=0)
    rows = np.array(weights.astype(mx.float32))
    products = silent.T @ silent / len(silent)
    scheme = Quantization(4, 64)
    plain = mx.quantize(weights, group_size=64, bits=4)
    for parts in (
        search(rows, importance, scheme),
        compensate(rows, importance, [factorize(products)], scheme),
    ):
        assert output_error(parts, weights, scheme, silent) < 0.8 * output_error(
            plain, weights, scheme, silent
        )


@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_codes_are_packed_as_mlx_unpacks_them(bits: int):
    codes = np.random.default_rng(bits).integers(0, 2**bits, (3, 192), np.uint8)
    ones, zeros = mx.ones((3, 3)), mx.zeros((3, 3))
    found = mx.dequantize(pack(codes, bits), ones, zeros, group_size=64, bits=bits)
    assert np.array_equal(np.array(found), codes)


def test_rows_and_columns_that_fill_no_tile_are_searched_like_the_others():
    rows = np.random.default_rng(3).standard_normal((131, 64 * 19)).astype(np.float32)
    importance = np.ones(64 * 19, np.float32)
    scales, _, codes = fit(rows, importance, Quantization(4, 64))
    for first, last in ((0, 1), (130, 131), (5, 77)):
        part = fit(rows[first:last, -64:].copy(), importance[-64:], Quantization(4, 64))
        assert np.allclose(part[0][:, 0], scales[first:last, -1], rtol=1e-2)
        assert np.mean(part[2] == codes[first:last, -64:]) > 0.99


def test_products_are_kept_for_blocks_of_columns():
    assert blocks(5120) == [slice(0, 5120)]
    assert blocks(32768) == [slice(n, n + 8192) for n in range(0, 32768, 8192)]


# Quality


def test_quality_is_that_of_float32_logits_whatever_the_states_are():
    rng = np.random.default_rng(4)
    vocabulary, width, tokens = 10_000, 64, 160
    h = rng.standard_normal((tokens, width)).astype(np.float32)
    head = rng.standard_normal((vocabulary, width)).astype(np.float32)
    arrays = (h, h + 0.02 * rng.standard_normal(h.shape), head, head * 1.001)
    parts = [mx.array(array.astype(np.float32)).astype(mx.bfloat16) for array in arrays]
    mx.eval(parts)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    found = compare(*parts)
    assert mx.get_peak_memory() - before < 6.5 * LOGITS_ROWS * vocabulary * 4
    first, second, one, other = (part.astype(mx.float32) for part in parts)
    right, near = first @ one.T, second @ other.T
    p, q = (mx.softmax(logits, axis=-1) for logits in (right, near))
    expected = float((p * mx.log(p / q)).sum(axis=-1).mean().item())
    assert found.divergence == pytest.approx(expected, rel=1e-3)
    same = (right.argmax(axis=-1) == near.argmax(axis=-1)).mean().item()
    assert (found.same_top, found.tokens) == (pytest.approx(same), tokens)


# Sizes


def choices(*costs: float) -> list[SchemeChoice]:
    """Choices of 100, 200, … bytes."""
    return [
        SchemeChoice(Quantization(bits), 100 * (n + 1), cost)
        for n, (bits, cost) in enumerate(zip(AFFINE_BITS, costs, strict=False))
    ]


def test_bytes_go_where_they_save_most():
    found = allocate({"loud": choices(9, 3, 1), "quiet": choices(2, 1.5, 1.4)}, 400)
    assert {name: choice.nbytes for name, choice in found.items()} == {"loud": 300, "quiet": 100}


def test_a_step_that_saves_nothing_is_passed_over():
    found = allocate({"odd": choices(9, 9.5, 1), "even": choices(5, 4.9)}, 400)
    assert found["odd"].nbytes == 300


def test_a_budget_is_never_passed_and_too_small_a_one_is_refused():
    rng = np.random.default_rng(0)
    many = {str(n): choices(*sorted(rng.random(6), reverse=True)) for n in range(20)}
    for budget in (2000, 3333, 6010, 10**6):
        assert sum(choice.nbytes for choice in allocate(many, budget).values()) <= budget
    with pytest.raises(ValueError, match="do not fit"):
        allocate(many, 1999)


# Text


def read(*files: str | Path, tokens: int = 4096, vocab_size: int = VOCABULARY):
    return calibration_text(
        [str(file) for file in files], tekken_folder() / "tekken.json", vocab_size, tokens
    )


def test_the_text_that_ships_is_cut_into_sequences():
    text = read(tokens=4096)
    assert text.tokens.shape == (8, SEQUENCE)
    assert text.held_out.shape[1] == SEQUENCE
    assert text.is_default


def test_control_tokens_are_read_in_the_text_that_ships_only(tmp_path: Path):
    tokenizer = small_tokenizer()
    think = tokenizer.special.think
    assert think in encode_marked("[INST]Why?[/INST][THINK]Hm.[/THINK]So.", tokenizer)
    file = tmp_path / "mine.txt"
    file.write_text("[INST]Why?[/INST][THINK]Hm.[/THINK]So. " * 200)
    mine = read(file)
    assert think not in mine.tokens
    assert not mine.is_default


def test_a_users_file_replaces_the_text_that_ships_or_joins_it(tmp_path: Path):
    file = tmp_path / "mine.txt"
    file.write_text("All that is said of boats. " * 1000)
    alone, joined = read(file, tokens=1 << 20), read("default", file, tokens=1 << 20)
    shipped = read(tokens=1 << 20)
    assert len(joined.tokens) == len(alone.tokens) + len(shipped.tokens)
    assert len({text.identity for text in (alone, joined, shipped)}) == 3


def test_an_enormous_file_is_taken_from_all_over(tmp_path: Path):
    file = tmp_path / "long.txt"
    file.write_text("first part. " * 20_000 + "LAST PART! " * 20_000)
    tokens = read(file, tokens=2048).tokens
    assert tokens.shape == (4, SEQUENCE)
    tokenizer = small_tokenizer()
    assert "first" in tokenizer.decode(tokens[0].tolist())
    assert "LAST" in tokenizer.decode(tokens[-1].tolist())


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "has 0 tokens"),
        (b"Too short to tell anything.", "at least 1,024 are needed"),
        (bytes(range(256)) * 100, "is not text in UTF-8"),
        ("Zu kurz".encode("utf-16") * 3000, "is not text in UTF-8"),
    ],
)
def test_what_is_no_text_is_refused(content: bytes, complaint: str, tmp_path: Path):
    file = tmp_path / "some.txt"
    file.write_bytes(content)
    with pytest.raises(InvalidOption, match=complaint):
        read(file)


def test_a_file_that_is_missing_is_refused(tmp_path: Path):
    with pytest.raises(InvalidOption, match="cannot be read: No such file"):
        read(tmp_path / "none.txt")


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(TokenizerError, match="and the model has 1100"):
        read(vocab_size=1100)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"calibration": ("none", "a.txt")}, "none goes with no other value"),
        ({"calibration": ("default",), "mode": "none"}, "--mode none has none"),
        ({"calibration": ("none",), "method": "gptq"}, "--calibration none does without"),
        ({"method": "gptq", "mode": "nvfp4"}, "--mode nvfp4 does without"),
        ({"target_bits": 4.25, "bits": 4}, "which --bits contradicts"),
        ({"target_size": 10**9, "target_bits": 4.0}, "which --target-bits contradicts"),
        ({"target_size": 10**9, "mode": "mxfp8"}, "which --mode mxfp8 contradicts"),
        ({"target_bits": 1.5}, "between 2 and 9"),
        ({"method": "awq"}, "Choose one of search, gptq"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict, complaint: str):
    with pytest.raises(InvalidOption, match=complaint):
        ConvertOptions(**options)
