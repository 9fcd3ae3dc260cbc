"""Importance matrices in both of llama.cpp's formats: names, shapes, and files that are damaged."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest

from magistral_convert.calibration.imatrix import by_part, read_importance_matrix
from magistral_convert.options import ConvertOptions
from magistral_convert.plan import ConversionPlan, plan_conversion
from magistral_convert.recipe import Recipe
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.errors import InvalidOption, MagistralError
from tests.checkpoints import tiny_config, write_hf_checkpoint

LAYER = "language_model.model.layers.1."
VALUES = {
    "blk.1.attn_q.weight": np.arange(128, dtype=np.float32),
    "blk.1.attn_output.weight": np.full(256, 2.5, np.float32),
    "blk.0.ffn_down.weight": np.linspace(0, 9, 256, dtype=np.float32),
    "output.weight": np.ones(128, np.float32),
    "token_embd.weight": np.full(128, 0.5, np.float32),
}
PASSES = 4


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ConversionPlan:
    folder = write_hf_checkpoint(
        tmp_path_factory.mktemp("source"), config=tiny_config(vision=False, layers=2)
    )
    checkpoint = Checkpoint.open(folder)
    recipe = Recipe.of(ConvertOptions(), checkpoint.config)
    return plan_conversion(checkpoint, recipe, flat=True)


def legacy(values: Mapping[str, np.ndarray], passes: int = PASSES, trailer: bytes = b"") -> bytes:
    """As `llama-imatrix` writes it: sums over `passes`."""
    parts = [struct.pack("<i", len(values))]
    for name, mean in values.items():
        encoded = name.encode()
        parts.append(struct.pack("<i", len(encoded)) + encoded)
        parts.append(struct.pack("<ii", passes, len(mean)))
        parts.append((mean * passes).astype("<f4").tobytes())
    return b"".join(parts) + trailer


def write_gguf(path: Path, values: Mapping[str, np.ndarray], passes: float = PASSES) -> Path:
    writer = gguf.GGUFWriter(path, arch="")
    writer.add_type("imatrix")
    writer.add_uint32("imatrix.chunk_count", 10)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, mean in values.items():
        writer.add_tensor(f"{name}.in_sum2", (mean * passes).astype(np.float32)[None])
        writer.add_tensor(f"{name}.counts", np.array([[passes]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def file_of(kind: str, folder: Path, values: Mapping[str, np.ndarray]) -> str:
    path = folder / f"imatrix.{kind}"
    if kind == "gguf":
        return str(write_gguf(path, values))
    path.write_bytes(legacy(values, trailer=struct.pack("<ii", 10, 4) + b"wiki"))
    return str(path)


@pytest.mark.parametrize("kind", ["dat", "gguf"])
def test_both_formats_give_means_by_our_names(kind: str, plan: ConversionPlan, tmp_path: Path):
    given = VALUES | {"blk.0.ffn_gate_inp.weight": np.ones(128, np.float32)}
    found = read_importance_matrix(file_of(kind, tmp_path, given), plan)
    wanted = {
        LAYER + "self_attn.q_proj.weight": VALUES["blk.1.attn_q.weight"],
        LAYER + "self_attn.o_proj.weight": VALUES["blk.1.attn_output.weight"],
        "language_model.model.layers.0.mlp.down_proj.weight": VALUES["blk.0.ffn_down.weight"],
        "language_model.lm_head.weight": VALUES["output.weight"],
        "language_model.model.embed_tokens.weight": VALUES["token_embd.weight"],
    }
    assert found.columns.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(found.columns[name], values, rtol=1e-6)
    assert found.unknown == ("blk.0.ffn_gate_inp.weight",)
    assert len(found.missing) == 2 * 7 + 2 - len(wanted)
    assert dict(by_part(found.missing))["language_model.model.layers.*.mlp.up_proj"] == "0-1"
    assert dict(by_part(found.missing))["language_model.model.layers.*.self_attn.q_proj"] == "0"


def test_layers_are_told_as_ranges():
    names = [f"language_model.model.layers.{n}.mlp.up_proj.weight" for n in (10, 0, 1, 2, 9, 5)]
    found = dict(by_part(("language_model.lm_head.weight", *names)))
    assert found["language_model.model.layers.*.mlp.up_proj"] == "0-2 5 9-10"
    assert found["language_model.lm_head"] == ""


@pytest.mark.parametrize("kind", ["dat", "gguf"])
def test_the_same_values_have_one_identity(kind: str, plan: ConversionPlan, tmp_path: Path):
    one = read_importance_matrix(file_of(kind, tmp_path, VALUES), plan)
    reverse = dict(reversed(VALUES.items()))
    same = read_importance_matrix(file_of(kind, tmp_path, reverse), plan)
    changed = {**VALUES, "output.weight": np.full(128, 3, np.float32)}
    other = read_importance_matrix(file_of(kind, tmp_path, changed), plan)
    assert one.identity == same.identity != other.identity


def test_a_matrix_that_was_never_used_is_missing(plan: ConversionPlan, tmp_path: Path):
    path = tmp_path / "imatrix.gguf"
    values = {"blk.0.attn_q.weight": np.ones(128, np.float32)}
    with pytest.raises(InvalidOption, match="values for 0 matrices"):
        read_importance_matrix(str(write_gguf(path, values, passes=0)), plan)
    path.write_bytes(legacy(values, passes=0))
    with pytest.raises(InvalidOption, match="values for 0 matrices"):
        read_importance_matrix(str(path), plan)


@pytest.mark.parametrize("kind", ["dat", "gguf"])
@pytest.mark.parametrize(
    ("name", "values", "complaint"),
    [
        ("blk.0.attn_q.weight", np.ones(256), "matrix has 128 columns"),
        ("blk.7.attn_q.weight", np.ones(128), "none is one that is quantized"),
        ("blk.0.attn_norm.weight", np.ones(128), "none is one that is quantized"),
        ("blk.0.attn_q.weight", np.full(128, np.nan), "negative or no numbers"),
        ("blk.0.attn_q.weight", np.full(128, np.inf), "negative or no numbers"),
        ("blk.0.attn_q.weight", np.full(128, -1.0), "negative or no numbers"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    kind: str, name: str, values: np.ndarray, complaint: str, plan: ConversionPlan, tmp_path: Path
):
    with pytest.raises(InvalidOption, match=complaint):
        read_importance_matrix(file_of(kind, tmp_path, {name: values}), plan)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "ends after 0 bytes"),
        (b"\x01\x00", "ends after 2 bytes"),
        (struct.pack("<i", -3), "the number of matrices is -3"),
        (struct.pack("<i", 2**30), "the number of matrices is 1,073,741,824"),
        (struct.pack("<ii", 1, -1), "the length of a name is -1"),
        (struct.pack("<ii", 1, 2**30), "the length of a name is 1,073,741,824"),
        (struct.pack("<ii2sii", 1, 2, b"ab", 1, 2**31 - 1), "in the middle of"),
        (struct.pack("<ii2sii", 1, 2, b"ab", 1, -9), "the number of values of ab is -9"),
        (struct.pack("<ii2sii", 1, 2, b"ab", -1, 1), "the number of passes of ab is -1"),
        (legacy(VALUES)[:-40], "in the middle of an entry"),
        (struct.pack("<i", 2) + 2 * legacy({"a": np.ones(4)})[4:], "it has a twice"),
        (b"This is a letter, not a matrix.", "the number of matrices is"),
    ],
)
def test_damaged_files_end_in_one_line(
    content: bytes, complaint: str, plan: ConversionPlan, tmp_path: Path
):
    path = tmp_path / "imatrix.dat"
    path.write_bytes(content)
    with pytest.raises(InvalidOption, match=complaint) as caught:
        read_importance_matrix(str(path), plan)
    assert "\n" not in str(caught.value)


def test_truncated_anywhere_a_file_is_refused(plan: ConversionPlan, tmp_path: Path):
    for kind in ("dat", "gguf"):
        whole = Path(file_of(kind, tmp_path, {"output.weight": VALUES["output.weight"]}))
        content = whole.read_bytes()
        for length in range(0, len(content) - 64, 23):
            whole.write_bytes(content[:length])
            with pytest.raises(MagistralError) as caught:
                read_importance_matrix(str(whole), plan)
            assert "\n" not in str(caught.value)


def test_other_gguf_files_are_told_apart(plan: ConversionPlan, tmp_path: Path):
    path = tmp_path / "model.gguf"
    for names, complaint in (
        (("output.weight",), "but no importance matrix"),
        (("output.weight.in_sum2",), "without their counts"),
    ):
        writer = gguf.GGUFWriter(path, arch="")
        for name in names:
            writer.add_tensor(name, np.ones((1, 128), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(InvalidOption, match=complaint):
            read_importance_matrix(str(path), plan)
    path.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(MagistralError):
        read_importance_matrix(str(path), plan)


def test_what_is_no_file_is_refused(plan: ConversionPlan, tmp_path: Path):
    for name, complaint in (("", "is no file"), ("none.dat", "there is no importance matrix")):
        with pytest.raises(InvalidOption, match=complaint):
            read_importance_matrix(str(tmp_path / name), plan)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"calibration": ("none",)}, "--calibration none searches none"),
        ({"mode": "none"}, "--mode none searches none"),
        ({"calibration": ("notes.txt",)}, "both tell what the columns count"),
        ({"calibration": ("default",), "mode": "mxfp4"}, "both tell what the columns count"),
    ],
)
def test_options_that_say_the_same_or_the_opposite_are_refused(options: dict, complaint: str):
    with pytest.raises(InvalidOption, match=complaint):
        ConvertOptions(imatrix="imatrix.dat", **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "gptq", "calibration": ("notes.txt",)},
        {"target_bits": 4.25, "calibration": ("notes.txt",)},
        {"mode": "nvfp4"},
    ],
)
def test_an_importance_matrix_alone_calibrates(options: dict):
    assert ConvertOptions(imatrix="imatrix.dat", **options).calibrates
