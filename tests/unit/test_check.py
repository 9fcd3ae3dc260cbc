"""The checks of `doctor --check`: what is wrong is found, and what is measured is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from magistral_mlx.backend import DISPATCH_SECONDS, DTYPES, keep_dispatches_short, mx
from magistral_mlx.bench import pass_costs
from magistral_mlx.cache import quantized
from magistral_mlx.cache.attention import queries_per_call
from magistral_mlx.check import attended, compared, resources, run
from magistral_mlx.check.finding import Finding
from magistral_mlx.check.subject import Subject, make_slice
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.fp8 import FP8
from magistral_mlx.config import ModelConfig, TextConfig, VisionConfig
from magistral_mlx.errors import OutOfMemory
from magistral_mlx.measurements import (
    NOTHING_MEASURED,
    Measurements,
    read_measurements,
    store_measurements,
)
from magistral_mlx.memory import estimate
from magistral_mlx.memory.choose import make_plan
from magistral_mlx.memory.known import magistral_small
from magistral_mlx.memory.limits import PROCESS
from magistral_mlx.memory.machine import named_machine, this_machine
from magistral_mlx.memory.peak import GPU, Peak, Weights
from magistral_mlx.model.magistral import MagistralModel
from magistral_mlx.paths import demo_dir
from magistral_mlx.quantization import Quantization
from tests.metal import use_metal

CONFIG = ModelConfig(
    TextConfig(128, 256, 3, 4, 2, 64, 512, 4096, 1e-5, 1e4),
    VisionConfig(64, 128, 3, 2, 32, 280, 14, 3, 1e4),
)
LAYER = "language_model.model.layers.0"
SCHEMES = {
    f"{LAYER}.mlp.down_proj.weight": Quantization(),
    f"{LAYER}.mlp.gate_proj.weight": Quantization(8, 32),
    f"{LAYER}.mlp.up_proj.weight": Quantization(8, 32),
    f"{LAYER}.self_attn.o_proj.weight": Quantization(4, 32, "mxfp4"),
    "language_model.lm_head.weight": Quantization(6, 64),
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAGISTRAL_MLX_HOME", str(tmp_path))
    monkeypatch.setitem(attended._KEYS, "cpu", 400)
    return tmp_path


@pytest.fixture(scope="module")
def model() -> MagistralModel:
    return make_slice(subject(), mx.float32)


def subject() -> Subject:
    return Subject("small", CONFIG, SCHEMES, Weights(0, 0))


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


# Kernels


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_all_kernels_of_a_mixed_model_are_as_on_the_cpu(dtype: str) -> None:
    found = list(compared.compare_kernels(make_slice(subject(), DTYPES[dtype])))
    assert {finding.verdict for finding in found} == {"good"}
    assert {finding.what for finding in found} >= {
        "matrix products",
        "attention, KV cache full",
        "attention, KV cache 4/4",
        "sampling",
        "vision tower",
    }
    errors = found[0].figures["errors"]
    assert {name.partition(",")[0] for name in errors} == {
        "qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "what"), [("matmul", "matrix products"), ("swiglu", "norm, rope, SwiGLU")]
)
def test_a_kernel_that_is_off_by_a_percent_is_bad(
    kernel: str, what: str, model: MagistralModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(compared, kernel)
    monkeypatch.setattr(compared, kernel, lambda *given: right(*given) * 1.01)
    found = by_name(list(islice(compared.compare_kernels(model), 2)))
    assert [name for name, one in found.items() if one.verdict == "bad"] == [what]
    assert "wrong" in found[what].words and "update macOS and MLX" in found[what].advice


@pytest.mark.parametrize("broken", ["one value", "NaN", "an output"])
def test_a_single_wrong_value_is_found(
    broken: str, model: MagistralModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = compared.matmul

    def matmul(x: mx.array, module: Any) -> mx.array:
        y = right(x, module)
        if broken == "one value":
            y[0, 0, 0] = y[0, 0, 0] + 1
        elif broken == "NaN":
            y[0, -1, 0] = mx.nan
        else:
            y[:, :, -1] = 0
        return y

    monkeypatch.setattr(compared, "matmul", matmul)
    first = next(compared.compare_kernels(model))
    assert first.verdict == "bad" and first.words.startswith("15 of 15 wrong")


def test_attention_that_is_off_with_quantized_caches_is_bad_for_each_of_them(
    model: MagistralModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = quantized.attend
    monkeypatch.setattr(quantized, "attend", lambda *given, **more: right(*given, **more) * 1.05)
    found = by_name(list(compared.compare_kernels(model)))
    bad = {name for name, one in found.items() if one.verdict == "bad"}
    assert bad == {name for name in found if "KV cache" in name and "full" not in name}


# Memory


def test_a_run_beyond_its_plan_is_bad_and_plans_take_more_from_then_on(
    model: MagistralModel, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    machine = this_machine()
    findings, excess = resources.check_peaks(model, machine)
    assert {one.verdict for one in findings} == {"good"} and excess == 0
    monkeypatch.setattr(resources, "predict", lambda *given: Peak(1000, 0, 0, 1000))
    findings, excess = resources.check_peaks(model, machine)
    assert {one.verdict for one in findings} == {"bad"} and excess > 100_000
    assert "plans add" in findings[0].advice
    before = plan_here_bytes()
    store_measurements(machine.name, Measurements(excess=excess))
    assert plan_here_bytes() == before + excess


def plan_here_bytes() -> int:
    from magistral_mlx.memory.here import profile

    small = magistral_small()
    return make_plan(small, named_machine("64GB"), profile()).peak.total


def test_a_machine_that_is_too_small_for_the_check_is_told(model: MagistralModel) -> None:
    findings, _ = resources.check_peaks(model, replace(this_machine(), limit=1 << 20))
    assert {one.verdict for one in findings} == {"warning"}
    assert "not measured" in findings[0].words


# The GPU's watchdog


@pytest.mark.parametrize(
    ("attention", "product", "verdict", "advice"),
    [
        (0.1, 0.2, "good", ""),
        (0.7, 0.2, "warning", "fewer tokens at once from now on"),
        (0.1, 0.9, "warning", "close other programs"),
        (1.5, 1.2, "bad", "fewer tokens at once from now on"),
        (0.4, 1.2, "bad", "close other programs"),
    ],
)
def test_work_that_macos_may_stop_is_told_and_attention_takes_shorter_calls(
    attention: float,
    product: float,
    verdict: str,
    advice: str,
    model: MagistralModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = 4 * 4 * 64 * 1024 * 30  # 30 queries to 1,024 keys in a layer of the model
    metal = use_metal(monkeypatch, prefill_chunk=64, dispatch_flops=limit)
    monkeypatch.setattr(resources, "backend", lambda: metal)
    times = iter([attention])
    monkeypatch.setattr(resources, "_seconds", lambda *_, **__: next(times, product))
    finding, speed = resources.check_dispatch(model, 1024, NOTHING_MEASURED)
    assert finding.verdict == verdict and advice in finding.advice
    assert speed == pytest.approx(limit / attention)
    q = mx.zeros((1, 4, 64, 64))
    assert queries_per_call(q, 1024) == 30
    mac = replace(named_machine("M1 64GB"), measured=Measurements(attention=speed))
    plan = make_plan(magistral_small(), mac, GPU)
    PROCESS.hold(plan)
    try:
        assert min(64, queries_per_call(q, 1024)) == min(64, int(30 * DISPATCH_SECONDS / attention))
    finally:
        PROCESS.release(plan)
        keep_dispatches_short(None)


# Pass costs


@pytest.mark.parametrize(
    ("fused", "limit", "long"),
    [(True, 29 << 20, True), (True, 27 << 20, False), (False, 29 << 20, False)],
    ids=["a GPU", "too little memory", "the CPU"],
)
def test_passes_over_a_long_context_are_measured_where_it_matters(
    fused: bool, limit: int, long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = replace(pass_costs.backend(), fused_attention=fused)
    monkeypatch.setattr(pass_costs, "backend", lambda: gpu)
    # 4 MiB of weights, and 12 MiB for each cache: 2 x 3 layers x 2 heads x 64 x 8,192 in 16 bits.
    assert pass_costs.long_context_fits(CONFIG.text, 4 << 20, 2, limit) == long


# The whole model


@pytest.mark.parametrize("is_gpu", [True, False], ids=["a GPU", "the CPU"])
def test_a_model_that_is_larger_in_memory_than_on_disk_is_not_loaded_beyond_the_limit(
    is_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = Checkpoint.open(demo_dir())
    tensors = {
        name: replace(tensor, dtype=FP8, nbytes=tensor.nbytes // 2)
        for name, tensor in demo.tensors.items()
    }
    stored = sum(tensor.nbytes for tensor in tensors.values())
    checkpoint = replace(demo, tensors=tensors)
    machine = replace(this_machine(), limit=stored * 3 // 2)
    if is_gpu:
        metal = use_metal(monkeypatch)
        monkeypatch.setattr(run, "backend", lambda: metal)
    else:
        monkeypatch.setattr(run, "_SMALL", stored * 3 // 2)
    for loads in ("load_model", "measure_pass_costs"):
        monkeypatch.delattr(run, loads)
    assert run._check_float16(checkpoint, machine).words.startswith("not tried")
    dtype = run.default_dtype(checkpoint)
    described = Subject.of(checkpoint, "FP8", dtype)
    finding = run._check_passes(checkpoint, described, machine, lambda stage: None)
    assert finding.words.startswith("not measured")


# Errors, and what is kept


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[METAL] Command buffer execution failed:\nImpacting Interactivity"),
        OutOfMemory("it does not fit."),
        MemoryError(),
    ],
)
def test_an_error_of_a_check_is_a_finding(error: Exception) -> None:
    def stopped() -> list[Finding]:
        raise error

    (finding,) = run._guarded("kernels", stopped)
    assert finding.verdict == "bad" and "\n" not in finding.words
    assert finding.words.startswith("stopped by an error: ")


def test_speeds_are_kept_for_the_machine_and_used_by_estimates(home: Path) -> None:
    mac = named_machine("M1 16GB")
    plan = make_plan(magistral_small(), replace(mac, limit=64 << 30), GPU)
    published = estimate.decode_tokens_per_second(plan, 0)
    store_measurements("M1", Measurements(bandwidth=34e9, flops=1e12, attention=2e12))
    measured = read_measurements("M1")
    assert measured == Measurements(34e9, 1e12, 0, 2e12)
    assert read_measurements("M2") == NOTHING_MEASURED
    plan = replace(plan, machine=replace(plan.machine, measured=measured))
    assert published is not None and plan.machine.chip is not None
    half = published * 34 / plan.machine.chip.bandwidth
    assert estimate.decode_tokens_per_second(plan, 0) == pytest.approx(half)
    slow = estimate.prefill_seconds(plan)
    plan = replace(plan, machine=replace(plan.machine, measured=Measurements(34e9, 2e12)))
    assert slow == pytest.approx(2 * (estimate.prefill_seconds(plan) or 0), rel=0.05)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"machines": []}',
        '{"machines": {"KEY": 3}}',
        '{"machines": {"KEY": {"bandwidth": "fast", "excess": null, "flops": -1}}}',
    ],
)
def test_a_damaged_file_of_measurements_counts_as_none(content: str, home: Path) -> None:
    path = store_measurements("M1", Measurements(bandwidth=1.0))
    (key,) = json.loads(path.read_text())["machines"]
    path.write_text(content.replace("KEY", key))
    assert read_measurements("M1") == NOTHING_MEASURED
    store_measurements("M1", Measurements(bandwidth=2.0))
    assert read_measurements("M1").bandwidth == 2.0
