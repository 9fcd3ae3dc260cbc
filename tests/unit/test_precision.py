"""The dtype of a model without `--dtype`: float16 on M1 and M2, if the model's values fit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from magistral_mlx.backend import backend, emulates_bfloat16, mx
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.model.magistral import MagistralModel
from magistral_mlx.paths import demo_dir
from magistral_mlx.runtime import precision


@pytest.fixture(autouse=True)
def on_an_m1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGISTRAL_MLX_HOME", str(tmp_path / "home"))
    m1 = replace(backend(), dtype=mx.bfloat16, prefers_float16=True)
    monkeypatch.setattr(precision, "backend", lambda: m1)


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each probe had an image."""
    seen, right = list[bool](), precision.largest_value

    def record(model: MagistralModel, given: Checkpoint, *, images: bool, **rest: str) -> float:
        seen.append(images)
        return right(model, given, images=images)

    monkeypatch.setattr(precision, "largest_value", record)
    return seen


def scaled(monkeypatch: pytest.MonkeyPatch, path: str, factor: float) -> None:
    """Let loaded models have a matrix that is larger by a factor."""
    right: Callable[..., MagistralModel] = precision.load_model

    def load(*given: object) -> MagistralModel:
        model = right(*given)
        module = model.language_model.model.layers[1]
        for name in path.split("."):
            module = module[name]
        module.weight = (module.weight.astype(mx.float32) * factor).astype(model.dtype)
        return model

    monkeypatch.setattr(precision, "load_model", load)


DEMO = Checkpoint.open(demo_dir())


def test_a_model_that_fits_is_probed_once_and_loaded_in_float16(probes: list[bool]) -> None:
    assert precision.default_dtype(DEMO) == mx.bfloat16  # not known yet
    assert precision.load_in_default_dtype(DEMO).dtype == mx.float16
    model = precision.load_in_default_dtype(DEMO)
    assert model.dtype == mx.float16 and not model.vision_loaded
    assert probes == [True]
    assert precision.default_dtype(DEMO) == mx.float16


@pytest.mark.parametrize(
    ("path", "factor"),
    [("self_attn.o_proj", 1e4), ("mlp.down_proj", 3e3), ("mlp.down_proj", float("nan"))],
)
def test_a_model_that_overflows_is_loaded_in_bfloat16_from_then_on(
    path: str,
    factor: float,
    probes: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scaled(monkeypatch, path, factor)
    with caplog.at_level(logging.WARNING, "magistral_mlx"):
        assert precision.load_in_default_dtype(DEMO).dtype == mx.bfloat16
    assert "do not fit into float16" in caplog.text
    assert precision.load_in_default_dtype(DEMO, images=False).dtype == mx.bfloat16
    assert probes == [True]
    assert precision.default_dtype(DEMO) == mx.bfloat16


def test_a_probe_without_an_image_does_not_answer_for_images(probes: list[bool]) -> None:
    for images in (False, False, True, False, True):
        assert precision.load_in_default_dtype(DEMO, images=images).dtype == mx.float16
    assert probes == [False, True]


def test_an_answer_that_cannot_be_kept_stops_nothing(
    tmp_path: Path, probes: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "home").write_text("a file in place of the folder")
    for _ in range(2):
        assert precision.load_in_default_dtype(DEMO, images=False).dtype == mx.float16
    assert len(probes) == 2 and "is not kept" in caplog.text


def test_other_chips_are_not_probed(probes: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    m4 = replace(precision.backend(), prefers_float16=False)
    monkeypatch.setattr(precision, "backend", lambda: m4)
    assert precision.load_in_default_dtype(DEMO).dtype == backend().dtype
    assert precision.default_dtype(DEMO) == mx.bfloat16
    assert not probes


@pytest.mark.parametrize(
    ("architecture", "emulated"),
    [
        ("applegpu_g13g", True),
        ("applegpu_g13s", True),
        ("applegpu_g14c", True),
        ("applegpu_g14d", True),
        ("applegpu_g15s", False),
        ("applegpu_g16p", False),
        ("applegpu_g17g", False),
        ("unknown", False),
        ("", False),
    ],
)
def test_m1_and_m2_emulate_bfloat16(architecture: str, emulated: bool) -> None:
    assert emulates_bfloat16(architecture) == emulated
