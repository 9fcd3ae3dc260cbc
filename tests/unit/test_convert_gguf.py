"""Converting GGUF models: what is kept bit for bit, what is asked for, and the way back."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from magistral_convert import ConvertOptions, convert, prepare
from magistral_convert.outcomes import outcomes
from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model, load_vision
from magistral_mlx.errors import CheckpointError, InvalidOption
from magistral_mlx.quantization import Quantization
from tests.checkpoints import (
    SYSTEM_PROMPT,
    Weights,
    random_weights,
    tiny_config,
    write_hf_checkpoint,
    write_tekken,
)
from tests.data import GGUF
from tests.gguf_files import everything, write_mmproj, write_text_gguf

CONFIG = tiny_config(layers=2, hidden_size=256, intermediate_size=512)
WEIGHTS = random_weights(CONFIG, seed=11)
MIXED = {"attn_v": "Q6_K", "ffn_down": "Q5_K", "output": "Q6_K", "token_embd": "Q4_1"}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MAGISTRAL_MLX_HOME", str(tmp_path / "home"))


def mixed(name: str) -> str:
    """Types as Q4_K_M mixes them."""
    if "norm" in name:
        return "F32"
    return next((kind for part, kind in MIXED.items() if part in name), "Q4_K")


def write(folder: Path, kind: Any = mixed, *, tower: str | None = "F16") -> tuple[Path, Weights]:
    """A model file with all that goes with it, and the weights that it has."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = write_text_gguf(folder / "Model.gguf", CONFIG, WEIGHTS, kind)
    if tower:
        stored |= write_mmproj(folder / "mmproj-Model.gguf", CONFIG, WEIGHTS, everything(tower))
    write_tekken(folder / "tekken.json", 280)
    (folder / "SYSTEM_PROMPT.txt").write_text(SYSTEM_PROMPT)
    return folder / "Model.gguf", stored


def arrays(path: Path, dtype: mx.Dtype = mx.float16) -> dict[str, NDArray[Any]]:
    """All parameters of a model, as they are loaded."""
    from mlx.utils import tree_flatten

    checkpoint = Checkpoint.open(path)
    model = load_model(checkpoint, dtype)
    if checkpoint.config.vision:
        load_vision(model, checkpoint)
    return {name: np.array(array) for name, array in tree_flatten(model.parameters())}


def same(first: dict[str, NDArray[Any]], second: dict[str, NDArray[Any]]) -> bool:
    """Whether two models are, but for a head that was rounded to bfloat16 in one of them."""
    assert first.keys() == second.keys()
    head = "language_model.lm_head.weight"
    np.testing.assert_allclose(first[head], second[head], rtol=2**-8, atol=1e-6)
    return all(np.array_equal(first[name], second[name]) for name in first if name != head)


def test_a_conversion_holds_what_the_file_gives_when_it_is_run_itself(tmp_path: Path):
    path, _ = write(tmp_path / "gguf")
    target = convert(path, tmp_path / "out")
    assert same(arrays(path), arrays(target))
    assert (target / "SYSTEM_PROMPT.txt").read_text() == SYSTEM_PROMPT
    assert (target / "tekken.json").is_file()


def test_a_file_of_llama_cpp_converts_with_a_tokenizer_that_is_named(tmp_path: Path):
    tekken = tmp_path / "tekken.json"
    write_tekken(tekken, 1024)
    (tmp_path / "SYSTEM_PROMPT.txt").write_text("")
    path = GGUF / "small.Q4_K_M.gguf"
    target = convert(path, tmp_path / "out", ConvertOptions(tokenizer=str(tekken)))
    assert same(arrays(path), arrays(target))
    assert (target / "SYSTEM_PROMPT.txt").read_text() == ""  # as beside the tokenizer


def test_the_configuration_says_how_each_matrix_is_stored(tmp_path: Path):
    target = convert(write(tmp_path / "gguf")[0], tmp_path / "out")
    config = json.loads((target / "config.json").read_text())
    rule = config["quantization"]
    assert (rule["bits"], rule["group_size"], rule["mode"]) == (4, 32, "affine")
    layer = "language_model.model.layers.0."
    assert rule[layer + "mlp.down_proj"]["bits"] == 5
    assert rule[layer + "self_attn.v_proj"] == {"group_size": 32, "bits": 8, "mode": "affine"}
    assert rule["language_model.lm_head"] is False  # Q6_K, which MLX does not have
    assert layer + "self_attn.q_proj" not in rule
    assert config["text_config"]["rope_theta"] == 1e6
    assert config["vision_config"]["image_size"] == 1540


def test_mlx_lm_reads_the_text_part_alike(tmp_path: Path):
    from mlx_lm.utils import load_model as load_in_mlx_lm

    target = convert(write(tmp_path / "gguf", tower=None)[0], tmp_path / "out")
    ids = np.random.default_rng(0).integers(100, 1280, (1, 20))
    model = load_model(Checkpoint.open(target), mx.float32)
    ours = np.array(model.logits(model(model.embed(mx.array(ids)), model.make_caches())))
    peer, _ = load_in_mlx_lm(target)
    peer.set_dtype(mx.float32)
    theirs = np.array(peer(mx.array(ids)))
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.slow
def test_plain_files_go_the_way_of_any_source(tmp_path: Path):
    path, stored = write(tmp_path / "gguf", everything("F16"))
    source = write_hf_checkpoint(tmp_path / "hf", config=CONFIG, weights=stored, dtype="float32")
    for options in (ConvertOptions(), ConvertOptions(bits=6, group_size=32)):
        ours = convert(path, tmp_path / f"ours-{options.label}", options)
        theirs = convert(source, tmp_path / f"theirs-{options.label}", options)
        assert same(arrays(ours), arrays(theirs))


def test_a_plain_matrix_of_a_quantized_file_stays_unless_asked(tmp_path: Path):
    path, _ = write(
        tmp_path / "gguf", lambda name: "F16" if name == "output.weight" else mixed(name)
    )
    kept = Checkpoint.open(convert(path, tmp_path / "kept"))
    assert kept.tensors["language_model.lm_head.weight"].dtype == "BF16"
    asked = Checkpoint.open(convert(path, tmp_path / "asked", ConvertOptions(bits=8)))
    assert asked.quantized["language_model.lm_head.weight"].bits == 8
    assert asked.quantized["language_model.model.layers.0.mlp.up_proj.weight"].bits == 4
    assert "for MLX; others in 8 bits, groups of 64 |" in (tmp_path / "asked/README.md").read_text()


def test_a_quantized_tower_is_taken_as_it_is(tmp_path: Path):
    path, _ = write(tmp_path / "gguf", tower="Q8_0")
    target = convert(path, tmp_path / "out")
    assert same(arrays(path), arrays(target))
    card = (target / "README.md").read_text()
    assert "| vision tower and projector | Q8_0 of a GGUF file, laid out for MLX |" in card
    assert "Q8_0" not in next(line for line in card.splitlines() if "| decoder |" in line)


@pytest.mark.parametrize("calibration", [("none",), ("default",)])
def test_a_quantized_tower_leaves_a_plain_decoder_the_way_of_any_source(
    tmp_path: Path, calibration: tuple[str]
):
    path, _ = write(tmp_path / "gguf", everything("F16"), tower="Q8_0")
    conversion = prepare(path, None, ConvertOptions(calibration=calibration))
    plan = conversion.plan
    assert conversion.target.name == "Model-4bit"
    assert conversion.calibrates == (calibration == ("default",))
    schemes = {
        place: {t.scheme for t in plan.tensors if t.name.startswith(place) and t.scheme}
        for place in ("language_model.", "vision_tower.", "multi_modal_projector.")
    }
    laid_out = {Quantization(8, 32)}
    assert schemes == {
        "language_model.": {Quantization(4, 64)},
        "vision_tower.": laid_out,
        "multi_modal_projector.": laid_out,
    }
    assert plan.quantization["group_size"] == 64


@pytest.mark.parametrize("mode", ["affine", "nvfp4"])
def test_the_configuration_tells_how_a_tower_is_quantized_beside_blocks(tmp_path: Path, mode: str):
    path, _ = write(tmp_path / "gguf", everything("Q4_0"))
    options = ConvertOptions(mode=mode, quantize_vision=True)
    plan = prepare(path, tmp_path / "out", options).plan
    rule = plan.quantization
    assert (rule["bits"], rule["group_size"], rule["mode"]) == (4, 32, "affine")
    for tensor in plan.tensors:
        if tensor.scheme:
            module = tensor.outputs[0].name.removesuffix(".weight")
            told = rule.get(module, rule)
            scheme = {key: told[key] for key in ("bits", "group_size", "mode")}
            assert scheme == asdict(tensor.scheme), tensor.name


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 6},
        {"group_size": 32},
        {"recipe": "4bit-plus"},
        {"mode": "mxfp4"},
    ],
)
def test_what_is_quantized_is_not_quantized_again(tmp_path: Path, options: dict[str, Any]):
    path, _ = write(tmp_path / "gguf")
    with pytest.raises(InvalidOption, match=r"quantized already \(Q4_1, Q4_K, Q5_K, Q6_K\)"):
        convert(path, tmp_path / "out", ConvertOptions(**options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "gptq"}, "--method gptq"),
        ({"calibration": ("default",)}, "--calibration"),
        ({"method": "gptq", "calibration": ("default",)}, "--method gptq"),
    ],
)
def test_what_calibrates_is_named_where_there_is_nothing_to_calibrate(
    tmp_path: Path, options: dict[str, Any], named: str
):
    path, _ = write(tmp_path / "gguf")
    with pytest.raises(InvalidOption, match=f"Leave {named} out, or convert the original"):
        convert(path, tmp_path / "out", ConvertOptions(**options))


def test_a_tower_elsewhere_is_named(tmp_path: Path):
    path, _ = write(tmp_path / "gguf", tower=None)
    assert Checkpoint.open(convert(path, tmp_path / "text")).config.vision is None
    elsewhere = tmp_path / "elsewhere.gguf"
    write_mmproj(elsewhere, CONFIG, WEIGHTS, everything("F16"))
    options = ConvertOptions(mmproj=str(elsewhere))
    assert Checkpoint.open(convert(path, tmp_path / "out", options)).config.vision is not None
    with pytest.raises(InvalidOption, match=r"--mmproj .*no-such\.gguf is no file"):
        convert(path, tmp_path / "x", ConvertOptions(mmproj=str(tmp_path / "no-such.gguf")))
    with pytest.raises(InvalidOption, match="goes with a GGUF model"):
        convert("demo", tmp_path / "x", options)


def test_the_target_may_lie_beside_the_file_and_has_its_name_by_default(tmp_path: Path):
    path, _ = write(tmp_path / "gguf", tower=None)
    assert convert(path, path.parent / "out").parent == path.parent
    assert convert(path).name == "Model"
    assert prepare(path, None, ConvertOptions(mode="none")).target.name == "Model-bf16"
    for target in (path, path.parent):  # where --force would delete it
        with pytest.raises(InvalidOption, match="overlap"):
            convert(path, target, ConvertOptions(force=True))


def test_infinite_scales_end_the_conversion(tmp_path: Path):
    path, _ = write(tmp_path / "gguf", everything("Q4_0"), tower=None)
    place = Checkpoint.open(path).blocks["language_model.model.layers.1.mlp.up_proj.weight"].offset
    with path.open("r+b") as stream:
        stream.seek(place + 18 * 7)
        stream.write(np.array([np.inf], np.float16).tobytes())
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.weight .* holds infinities"):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_becomes_of_each_type_is_told_with_its_error(tmp_path: Path):
    path, _ = write(tmp_path / "gguf", everything("Q5_1"))
    found = {outcome.kind: outcome for outcome in outcomes(prepare(path, tmp_path / "out").plan)}
    assert found["Q5_1"].done == "codes as they are, 5 bits in groups of 32"
    assert found["Q5_1"].error == 0
    assert found["F16"].done == "bfloat16"
    plan = prepare(GGUF / "small.Q4_K_M.gguf", tmp_path / "out").plan
    found = {outcome.kind: outcome for outcome in outcomes(plan) if "deq" not in outcome.done}
    assert found["Q6_K"].done == "fitted, 8 bits in groups of 32"
    assert 0.005 < found["Q6_K"].error < 0.01
    assert 0 < found["Q4_K"].error < 0.001
    assert sum(outcome.output_bytes for outcome in found.values()) < plan.output_bytes


# The way back


def floats(path: Path) -> dict[str, NDArray[np.float32]]:
    """Every tensor of an unquantized checkpoint by its canonical name."""
    checkpoint = Checkpoint.open(path)
    assert not checkpoint.quantized
    assert "quantization" not in json.loads((path / "config.json").read_text())
    found = {}
    for name, tensor in checkpoint.tensors.items():
        array = mx.load(str(tensor.file))[tensor.name]
        if array.ndim == 4:
            array = array.transpose(0, 3, 1, 2)
        found[name] = np.array(array.astype(mx.float32))
    return found


def as_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.array(mx.array(values).astype(mx.bfloat16).astype(mx.float32))


def test_blocks_become_the_nearest_bfloat16(tmp_path: Path):
    path, stored = write(tmp_path / "gguf")
    found = floats(convert(path, tmp_path / "out", ConvertOptions(mode="none")))
    assert found.keys() == stored.keys()
    for name, values in stored.items():
        np.testing.assert_array_equal(found[name], as_bfloat16(values), name)


@pytest.mark.parametrize(
    "options",
    [
        ConvertOptions(),
        ConvertOptions(bits=3, group_size=128),
        ConvertOptions(mode="mxfp4", quantize_vision=True),
        ConvertOptions(mode="nvfp4"),
        ConvertOptions(recipe="4bit-plus"),
    ],
    ids=lambda options: options.label,
)
def test_a_conversion_of_mlx_becomes_bfloat16_again(tmp_path: Path, options: ConvertOptions):
    source = write_hf_checkpoint(tmp_path / "source", config=CONFIG, weights=WEIGHTS)
    quantized = convert(source, tmp_path / "quantized", options)
    back = convert(quantized, tmp_path / "back", ConvertOptions(mode="none"))
    wanted = Checkpoint.open(quantized)
    for name, values in floats(back).items():
        scheme = wanted.quantized.get(name)
        if scheme is None:
            np.testing.assert_array_equal(values, WEIGHTS[name])
            continue
        module = name.removesuffix("weight")
        parts = [wanted.tensors.get(module + part) for part in ("weight", "scales", "biases")]
        weight, *scales = (mx.load(str(part.file))[part.name] for part in parts if part)
        scales = [s.astype(mx.float32) if scheme.has_biases else s for s in scales]
        dense = mx.dequantize(
            weight, *scales, group_size=scheme.group_size, bits=scheme.bits, mode=scheme.mode
        )
        np.testing.assert_array_equal(values, as_bfloat16(np.array(dense.astype(mx.float32))))


def test_a_plain_source_is_written_as_it_is(tmp_path: Path):
    source = write_hf_checkpoint(tmp_path / "source", config=CONFIG, weights=WEIGHTS)
    found = floats(convert(source, tmp_path / "out", ConvertOptions(mode="none")))
    for name, values in WEIGHTS.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize(
    "options", [{"bits": 4}, {"group_size": 64}, {"recipe": "4bit"}, {"quantize_vision": True}]
)
def test_no_quantization_and_a_wish_for_one_contradict_each_other(options: dict[str, Any]):
    with pytest.raises(InvalidOption, match="--mode none quantizes nothing"):
        ConvertOptions(mode="none", **options)
