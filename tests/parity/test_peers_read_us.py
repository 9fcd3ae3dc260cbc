"""One output loads in mlx-vlm (images and text) and gives the same logits there as here.

mlx-vlm lives in an environment of its own, `.venv-mlx-vlm`, which `make test` builds: its pins of
other libraries clash with ours. mlx-lm is compared in test_convert_mlx_lm.py.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from magistral_convert import ConvertOptions, convert
from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model, load_vision
from magistral_mlx.engine.images import encode_images
from tests.checkpoints import tiny_config, write_hf_checkpoint, write_mistral_checkpoint

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-mlx-vlm/bin/python"
SCRIPT = Path(__file__).with_name("run_in_mlx_vlm.py")

IMG, BREAK, END = 10, 12, 13
SIZES = [(56, 84), (84, 28)]  # height and width in pixels: 2 x 3 and 3 x 1 tokens
CASES = {
    "4bit": ("classic", ConvertOptions()),
    "vision too": ("classic", ConvertOptions(quantize_vision=True)),
    "vision in small groups": ("new", ConvertOptions(quantize_vision=True, group_size=32, bits=6)),
    "mixed": ("new", ConvertOptions(recipe="4bit-plus", quantize_vision=True)),
    "calibrated": ("classic", ConvertOptions(calibration=("default",), calibration_tokens=512)),
    "mxfp4": ("classic", ConvertOptions(mode="mxfp4", quantize_vision=True)),
    "nvfp4": ("classic", ConvertOptions(mode="nvfp4")),
    "from Mistral's layout": ("mistral", ConvertOptions(bits=8)),
}
Logits = NDArray[np.float32]


def random(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def inputs() -> dict[str, NDArray]:
    ids = [1, 3, 1050]
    for height, width in SIZES:
        ids += [*(([IMG] * (width // 28) + [BREAK]) * (height // 28))[:-1], END, 1101]
    pixels = np.zeros((len(SIZES), 3, 84, 84), np.float32)
    for number, (height, width) in enumerate(SIZES):
        pixels[number, :, :height, :width] = random((3, height, width), number)
    text = np.random.default_rng(9).integers(1000, 1280, (1, 33))
    return {
        "ids": np.array([[*ids, 4, 1007]]),
        "pixels": pixels,
        "sizes": np.array(SIZES),
        "text": text,
    }


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("peers")
    folders = {}
    for number, (case, (layout, options)) in enumerate(CASES.items()):
        source = root / f"source-{number}"
        if layout == "mistral":
            write_mistral_checkpoint(source, seed=number)
        else:
            write_hf_checkpoint(
                source, seed=number, config=tiny_config(layers=9, names=layout), names=layout
            )
        folders[case] = convert(source, root / f"converted-{number}", options)
    return folders


@pytest.fixture(scope="module")
def mlx_vlm(converted: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    """Case -> its logits in mlx-vlm: `images` and `text`. One process loads them all."""
    folder = tmp_path_factory.mktemp("logits")
    np.savez(folder / "inputs.npz", **inputs())
    outputs = {case: folder / f"{number}.npz" for number, case in enumerate(converted)}
    pairs = [str(path) for case, output in outputs.items() for path in (converted[case], output)]
    command = [str(PYTHON), str(SCRIPT), str(folder / "inputs.npz"), *pairs]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return {case: np.load(output) for case, output in outputs.items()}


@pytest.mark.parametrize("case", CASES)
def test_mlx_vlm_sees_images_as_we_do(case: str, converted: dict[str, Path], mlx_vlm):
    given = inputs()
    model = load_all(converted[case])
    images = [
        pixels[:, :height, :width]
        for pixels, (height, width) in zip(given["pixels"], SIZES, strict=True)
    ]
    features = encode_images(model, images)
    h = model.embed(mx.array(given["ids"]))
    places = np.flatnonzero(given["ids"][0] == IMG)
    h[0, mx.array(places)] = features
    ours = np.array(model.logits(model(h, model.make_caches())))
    assert_same_logits(ours, mlx_vlm[case]["images"])


@pytest.mark.parametrize("case", CASES)
def test_mlx_vlm_reads_text_as_we_do(case: str, converted: dict[str, Path], mlx_vlm):
    model = load_all(converted[case])
    ids = mx.array(inputs()["text"])
    ours = np.array(model.logits(model(model.embed(ids), model.make_caches())))
    assert_same_logits(ours, mlx_vlm[case]["text"])


def load_all(folder: Path):
    checkpoint = Checkpoint.open(folder)
    model = load_model(checkpoint, mx.float32)
    load_vision(model, checkpoint)
    return model


def assert_same_logits(ours: Logits, theirs: Logits):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
