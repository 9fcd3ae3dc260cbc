"""A calibrated conversion: what it records, what reads it, and that it can be cut anywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.sparse import write_sparse_checkpoint
from magistral_convert import (
    ConversionProgress,
    ConvertOptions,
    Measuring,
    convert,
    prepare,
    run,
)
from magistral_convert.calibration import sensitivity, text
from magistral_convert.calibration.files import in_layer_order, most_at_once
from magistral_convert.calibration.gptq import Factor, factorize
from magistral_convert.calibration.memory import peak_bytes, state_bytes
from magistral_convert.plan import ConversionPlan
from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.errors import InvalidOption, OutOfMemory, StorageError, TargetExists
from tests.checkpoints import random_weights, tiny_config, write_hf_checkpoint
from tests.e2e.test_convert_interrupted import content, run_and_die

TOKENS = 1024
DEFAULT = ConvertOptions(bits=3, calibration=("default",), calibration_tokens=TOKENS)


@pytest.fixture(autouse=True)
def short_texts(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("MAGISTRAL_MLX_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setattr(text, "SEQUENCE", 64)
    monkeypatch.setattr(text, "HELD_OUT", 4)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with outliers, and channels that are louder than others, as trained ones have."""
    config = tiny_config(vision=False, layers=2)
    rng = np.random.default_rng(0)
    weights = random_weights(config, 0)
    for name, values in weights.items():
        if name.endswith("norm.weight"):
            values *= np.exp(rng.standard_normal(values.shape)).astype(np.float32)
        elif values.ndim == 2 and "embed" not in name:
            values *= np.exp(0.5 * rng.standard_normal(values.shape)).astype(np.float32)
    return write_hf_checkpoint(
        tmp_path_factory.mktemp("source"), config=config, weights=weights, shards=3
    )


def quality(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_bytes())["magistral_mlx"]["quality"]


def logits(folder: Path, dtype: mx.Dtype = mx.float32) -> mx.array:
    model = load_model(Checkpoint.open(folder), dtype)
    found = text.calibration_text((), folder / "tekken.json", 1280, TOKENS).held_out
    rows = (mx.array(ids)[None] for ids in found)
    return mx.concatenate([model.logits(model(model.embed(r), model.make_caches())) for r in rows])


def test_it_is_nearer_to_the_original_than_plain_quantization(source: Path, tmp_path: Path):
    right = logits(source)
    errors = {}
    for name, options in {
        "plain": ConvertOptions(bits=3, calibration=("none",)),
        "searched": DEFAULT,
        "compensated": ConvertOptions(bits=3, method="gptq", calibration_tokens=TOKENS),
    }.items():
        folder = convert(source, tmp_path / name, options)
        errors[name] = float(mx.square(logits(folder) - right).mean().item())
    assert errors["searched"] < 0.85 * errors["plain"], errors
    assert errors["compensated"] < 0.85 * errors["plain"], errors
    recorded = quality(tmp_path / "searched")
    assert recorded["divergence"] > 0
    assert recorded["tokens"] == 256
    card = (tmp_path / "searched/README.md").read_text()
    assert f"{recorded['divergence']:.4f} nats" in card
    assert "GPTQ" in (tmp_path / "compensated/README.md").read_text()


def test_without_calibration_the_bytes_are_those_of_mlx(source: Path, tmp_path: Path):
    folder = convert(source, tmp_path / "out", ConvertOptions(calibration=("none",)))
    assert "magistral_mlx" not in json.loads((folder / "config.json").read_bytes())
    name = "model.layers.1.mlp.down_proj"
    weights = Checkpoint.open(source).tensors[f"language_model.{name}.weight"]
    original = mx.load(str(weights.file))[weights.name]
    shards = [mx.load(str(path)) for path in sorted(folder.glob("*.safetensors"))]
    found = {key: value for shard in shards for key, value in shard.items()}
    for part, expected in zip(
        ("weight", "scales", "biases"), mx.quantize(original, 64, 4), strict=True
    ):
        assert mx.array_equal(found[f"{name}.{part}"], expected)


def test_killed_anywhere_it_goes_on_with_the_same_bytes(source: Path, tmp_path: Path):
    whole = tmp_path / "whole/out"
    count = int(run_and_die(source, whole, 0, "calibrated").stdout)
    for share in (0.3, 0.8):
        target = tmp_path / f"{share}/out"
        run_and_die(source, target, round(share * count), "calibrated")
        assert not target.exists()
        assert content(convert(source, target, DEFAULT)) == content(whole)
        assert list(target.parent.iterdir()) == [target]


def test_files_are_read_once_and_in_the_order_of_layers(source: Path, tmp_path: Path):
    conversion = prepare(source, tmp_path / "out", DEFAULT)
    numbers = [
        int(tensor.name.split(".layers.")[1].split(".")[0])
        for tensor in conversion.plan.tensors
        if ".layers." in tensor.name
    ]
    assert numbers == sorted(numbers)


def test_bad_text_leaves_nothing_behind(source: Path, tmp_path: Path):
    options = ConvertOptions(calibration=(str(tmp_path / "none.txt"),))
    with pytest.raises(InvalidOption, match=r"none\.txt cannot be read"):
        convert(source, tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["search", "gptq"])
def test_memory_stays_within_the_plan(method: str, tmp_path: Path):
    config = tiny_config(vision=False, layers=1, hidden_size=256, intermediate_size=1024)
    folder = write_hf_checkpoint(tmp_path / "source", config=config)
    options = ConvertOptions(calibration=("default",), calibration_tokens=512, method=method)
    conversion = prepare(folder, tmp_path / "out", options)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    run(conversion)
    used = mx.get_peak_memory() - before
    assert conversion.peak_bytes is not None
    assert used <= conversion.peak_bytes


def test_the_weights_of_a_layer_are_freed_before_its_products_are_factorized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = tiny_config(vision=False, layers=1, hidden_size=256, intermediate_size=512)
    folder = write_hf_checkpoint(tmp_path / "source", config=config)
    conversion = prepare(
        folder, tmp_path / "out", ConvertOptions(method="gptq", calibration_tokens=64)
    )
    layer = [t for t in conversion.plan.tensors if ".layers." in t.name]
    weights = sum(4 * t.rows * t.columns for t in layer)
    products = 4 * (3 * 256**2 + 512**2)
    states = 4 * 256 * text.SEQUENCE * (1 + 2 * text.HELD_OUT)
    used = []

    def factorize_watched(block: np.ndarray) -> Factor:
        used.append(mx.get_active_memory() - before)
        return factorize(block)

    monkeypatch.setattr("magistral_convert.calibration.pipeline.factorize", factorize_watched)
    mx.clear_cache()
    before = mx.get_active_memory()
    run(conversion)
    assert max(used) < states + products + weights // 4


def in_shards(plan: ConversionPlan, first: Callable[[str], bool]) -> ConversionPlan:
    """The plan, were its source in files of 5 GB that begin with the tensors of certain names."""
    files: dict[str, Path] = {}
    number = size = 0
    for tensor in sorted(plan.tensors, key=lambda tensor: not first(tensor.name)):
        size += tensor.source.nbytes
        if size > 5 * 10**9:
            number, size = number + 1, tensor.source.nbytes
        files[tensor.name] = Path(f"shard-{number}")
    tensors = [replace(t, source=replace(t.source, file=files[t.name])) for t in plan.tensors]
    return replace(plan, tensors=tuple(tensors))


def test_the_full_size_model_is_calibrated_within_six_gigabytes_and_thirty_of_disk(tmp_path: Path):
    """Memory is beside the hidden states, on a GPU, where values have two bytes; nothing is
    converted."""
    folder = write_sparse_checkpoint(tmp_path / "full")
    for method in ("search", "gptq"):
        options = ConvertOptions(calibration=("default",), method=method)
        conversion = prepare(folder, tmp_path / "out", options)
        config = conversion.source.checkpoint.config.text
        peak = peak_bytes(
            conversion.plan,
            config,
            options.text_tokens,
            float_bytes=2,
            compensates=method == "gptq",
        )
        states = state_bytes(config, options.text_tokens, float_bytes=2)
        assert states <= 0.4e9 if method == "search" else states <= 0.9e9
        assert 2e9 < peak - states < 6e9
        for starts_with_text in (False, True):
            plan = in_shards(
                conversion.plan,
                lambda name, text=starts_with_text: name.startswith("language_model.") == text,
            )
            assert 20e9 < plan.output_bytes + states + most_at_once(plan) < 29.8e9


def test_sensitivities_are_measured_with_text_from_all_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sensitivity, "TOKENS", 32)
    monkeypatch.setattr(sensitivity, "AFFINE_BITS", (4,))
    folder = write_hf_checkpoint(tmp_path, config=tiny_config(vision=False, layers=1))
    conversion = prepare(folder, tmp_path / "out", DEFAULT)
    config = conversion.source.checkpoint.config.text
    plan = in_layer_order(conversion.plan, conversion.source.checkpoint.config)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (9, 16))
    ends = sensitivity.measure(plan, config, tokens[[0, -1]], 64)
    assert sensitivity.measure(plan, config, tokens, 64) == ends


def test_a_token_of_enormous_values_does_not_decide_what_matrices_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sensitivity, "AFFINE_BITS", (4,))
    config = tiny_config(vision=False, layers=2)
    weights = random_weights(config, 0)
    (embedding,) = (name for name in weights if "embed_tokens" in name)
    weights[embedding][7] *= 1000
    folder = write_hf_checkpoint(tmp_path, config=config, weights=weights)
    conversion = prepare(folder, tmp_path / "out", DEFAULT)
    model = conversion.source.checkpoint.config
    plan = in_layer_order(conversion.plan, model)
    tokens = np.random.default_rng(0).integers(8, model.text.vocab_size, (2, 64))
    without = sensitivity.measure(plan, model.text, tokens, 64)
    tokens[:, 0] = 7
    found = sensitivity.measure(plan, model.text, tokens, 64)
    for name in (name for name in found if ".layers." in name):
        assert found[name][0].cost == pytest.approx(without[name][0].cost, rel=0.25)


def test_what_stands_in_the_way_of_a_target_is_said_before_anything_is_measured(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("magistral_convert.calibration.sizing.measure", None)
    asked = ConvertOptions(target_bits=4.0, calibration_tokens=TOKENS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/diary.txt").write_text("Mine.")
    with pytest.raises(TargetExists, match="exists already"):
        prepare(source, tmp_path / "mine", asked)
    with pytest.raises(InvalidOption, match="smaller than all matrices at 2 bits"):
        prepare(source, tmp_path / "out", ConvertOptions(target_bits=2.01))
    plan = prepare(source, tmp_path / "out", ConvertOptions(bits=3, calibration=("none",))).plan
    room = shutil.disk_usage(tmp_path)._replace(free=plan.output_bytes)
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda _: room)
        with pytest.raises(StorageError, match="Free some space"):
            prepare(source, tmp_path / "out", asked)
    small = SimpleNamespace(limit=10**6)
    monkeypatch.setattr("magistral_convert.calibration.memory.this_machine", lambda: small)
    for dry_run in (False, True):
        with pytest.raises(OutOfMemory, match="in place of --target-bits"):
            prepare(source, tmp_path / "out", asked, dry_run=dry_run)


def test_a_target_chooses_bits_by_what_errors_cost(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = ConvertOptions(target_bits=4.0, calibration_tokens=TOKENS)
    reports: list[ConversionProgress] = []
    folder = convert(source, tmp_path / "out", asked, reports.append)
    measuring = [report for report in reports if isinstance(report, Measuring)]
    assert reports[: len(measuring)] == measuring
    assert (measuring[0].tensors_done, measuring[0].bytes_done) == (0, 0)
    last = measuring[-1]
    assert last.tensors_done == last.tensors == len(Checkpoint.open(source).tensors)
    assert last.bytes_done == last.bytes_total
    checkpoint = Checkpoint.open(folder)
    bits = {scheme.bits for scheme in checkpoint.quantized.values()}
    assert len(bits) > 1
    plan = prepare(source, tmp_path / "other", asked).plan
    matrices = [tensor for tensor in plan.tensors if tensor.scheme]
    weights = sum(tensor.rows * tensor.columns for tensor in matrices)
    mean = 8 * sum(tensor.nbytes for tensor in matrices) / weights
    assert 3.7 < mean <= 4.0
    first = prepare(source, tmp_path / "other", asked).sizing
    assert first and first.uniform[8] < first.error < first.uniform[2]
    monkeypatch.setattr("magistral_convert.calibration.sizing.measure", None)  # kept
    assert first == prepare(source, tmp_path / "third", asked).sizing
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    larger = ConvertOptions(target_size=size + 2 * 10**6, calibration_tokens=TOKENS)
    assert prepare(source, tmp_path / "larger", larger).plan.output_bytes <= larger.target_size
    with pytest.raises(InvalidOption, match="smaller than all matrices at 2 bits"):
        prepare(
            source, tmp_path / "least", ConvertOptions(target_size=1000, calibration_tokens=TOKENS)
        )
