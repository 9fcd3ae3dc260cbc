"""The plan of an output: everything is known, and adds up, before a weight is read."""

import json
import math
import re
from pathlib import Path

import pytest

from magistral_convert import ConvertOptions, convert, prepare
from magistral_convert.calibration.sizing import expected_schemes
from magistral_convert.plan import ConversionPlan, plan_conversion
from magistral_convert.recipe import Recipe
from magistral_convert.summary import bits_by_matrix, summarize
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.header import read_header
from magistral_mlx.errors import InvalidOption
from tests.checkpoints import tiny_config, write_hf_checkpoint, write_mistral_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("source"), shards=3)


def plan_of(source: Path, shard_bytes: int, **asked) -> ConversionPlan:
    checkpoint = Checkpoint.open(source)
    recipe = Recipe.of(ConvertOptions(**asked), checkpoint.config)
    return plan_conversion(checkpoint, recipe, flat=False, shard_bytes=shard_bytes)


def test_shards_keep_to_the_limit_and_lose_nothing(source: Path):
    limit = 1_400_000
    plan = plan_of(source, limit)
    assert len(plan.shards) > 2
    assert all(shard.nbytes <= limit for shard in plan.shards)
    count = len(plan.shards)
    assert [shard.file for shard in plan.shards] == [
        f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)
    ]
    one = plan_of(source, 10**9)
    assert {part.name for tensor in plan.tensors for part in tensor.outputs} == set(
        one.index["weight_map"]
    )


def test_the_parts_of_a_shard_lie_end_to_end_behind_its_header(source: Path):
    plan = plan_of(source, 1_400_000, quantize_vision=True)
    for number, shard in enumerate(plan.shards):
        end = len(shard.header)
        assert end % 8 == 0
        parts = [part for tensor in plan.tensors for part in tensor.outputs if part.shard == number]
        for part in sorted(parts, key=lambda part: part.offset):
            assert part.offset == end, part.name
            end += part.nbytes
        assert end == shard.nbytes


def test_work_goes_in_the_order_of_the_source_files(source: Path):
    places = [(t.source.file.name, t.source.offset) for t in plan_of(source, 10**9).tensors]
    assert places == sorted(places)


def test_the_planned_headers_are_what_stands_in_the_files(source: Path, tmp_path: Path):
    conversion = prepare(source, tmp_path / "out", ConvertOptions(bits=5))
    folder = convert(source, tmp_path / "out", ConvertOptions(bits=5))
    for shard in conversion.plan.shards:
        file = folder / shard.file
        assert file.stat().st_size == shard.nbytes
        stored = read_header(file)
        parts = [p for tensor in conversion.plan.tensors for p in tensor.outputs]
        assert {(t.name, t.dtype, t.shape, t.offset) for t in stored.values()} == {
            (p.name, p.dtype, p.shape, p.offset) for p in parts
        }


def test_the_index_has_the_size_of_the_tensors_and_the_file_of_each(source: Path):
    plan = plan_of(source, 1_400_000)
    index = plan.index
    headers = sum(len(shard.header) for shard in plan.shards)
    assert index["metadata"]["total_size"] == plan.output_bytes - headers
    assert list(index["weight_map"]) == sorted(index["weight_map"])
    assert set(index["weight_map"].values()) == {shard.file for shard in plan.shards}


@pytest.mark.parametrize(
    ("asked", "bits"),
    [
        ({}, 4.5),
        ({"group_size": 32}, 5.0),
        ({"bits": 8, "group_size": 128}, 8.25),
        ({"mode": "mxfp4"}, 4.25),
        ({"mode": "nvfp4"}, 4.5),
    ],
)
def test_bits_a_weight_count_the_scales(asked: dict, bits: float, source: Path):
    groups = {group.name: group for group in summarize(plan_of(source, 10**9, **asked))}
    assert groups["MLP"].bits_per_weight == bits
    assert groups["head"].bits_per_weight == bits
    assert groups["vision tower"].bits_per_weight == 16


def test_the_summary_accounts_for_every_byte_and_parameter(source: Path):
    plan = plan_of(source, 10**9)
    groups = summarize(plan)
    assert sum(group.parameters for group in groups) == plan.parameters
    assert sum(group.source_bytes for group in groups) == plan.source_bytes
    assert sum(group.output_bytes for group in groups) == plan.index["metadata"]["total_size"]


def test_bits_are_told_by_matrix_apart_for_decoder_and_tower(source: Path):
    plan = plan_of(source, 10**9, bits=3, quantize_vision=True)
    config = Checkpoint.open(source).config
    assert config.vision
    decoder, tower = config.text.num_hidden_layers, config.vision.num_hidden_layers
    bits = bits_by_matrix(plan)
    assert bits["q_proj"] == decoder * [3]
    assert bits["vision tower q_proj"] == tower * [3]
    assert bits["lm_head"] == bits["projector linear_1"] == [3]


def test_exceptions_of_a_mixed_recipe_are_listed_by_module(tmp_path: Path):
    source = write_hf_checkpoint(tmp_path / "a", config=tiny_config(layers=8))
    quantization = plan_of(source, 10**9, recipe="4bit-plus").quantization
    assert quantization.pop("bits") == 4
    assert quantization.pop("group_size") == 64
    assert quantization.pop("mode") == "affine"
    six = {"bits": 6, "group_size": 64, "mode": "affine"}
    assert quantization["language_model.lm_head"] == six
    assert quantization["language_model.model.layers.7.mlp.down_proj"] == six
    assert len(quantization) == 1 + 2 * 4


def test_a_matrix_left_in_bfloat16_is_listed_as_such(tmp_path: Path):
    config = tiny_config(intermediate_size=240, layers=1)
    source = write_hf_checkpoint(tmp_path / "a", config=config)
    quantization = plan_of(source, 10**9).quantization
    assert quantization["language_model.model.layers.0.mlp.down_proj"] is False


def test_a_target_that_is_too_small_names_one_that_is_enough(tmp_path: Path):
    source = write_hf_checkpoint(tmp_path / "a", config=tiny_config(vision=False))
    plan = plan_of(source, 10**9)
    with pytest.raises(InvalidOption) as refusal:
        expected_schemes(plan, ConvertOptions(target_size=1000))
    found = re.search(r"take ([\d.,]+) MB in all, or ([\d.]+) bits", str(refusal.value))
    assert found
    size, bits = round(float(found[1]) * 1e6), float(found[2])
    for options in (ConvertOptions(target_size=size), ConvertOptions(target_bits=bits)):
        assert expected_schemes(plan, options)
    for options in (
        ConvertOptions(target_size=size - 100_001),
        ConvertOptions(target_bits=bits - 0.011),
    ):
        with pytest.raises(InvalidOption, match=re.escape(found[0])):
            expected_schemes(plan, options)


def test_the_same_weights_in_any_layout_give_the_same_files(tmp_path: Path):
    sources = [
        write_hf_checkpoint(tmp_path / "classic", seed=4, shards=3),
        write_hf_checkpoint(tmp_path / "new", seed=4, names="new", shards=1),
        write_mistral_checkpoint(tmp_path / "mistral", seed=4),
        write_mistral_checkpoint(tmp_path / "mistral-shards", seed=4, shards=4),
    ]
    first, *others = (convert(source, tmp_path / f"{source.name}-out") for source in sources)
    for name in ("model-00001-of-00001.safetensors", "model.safetensors.index.json"):
        for other in others:
            assert (first / name).read_bytes() == (other / name).read_bytes(), (other, name)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (first, *others)]
    for config in configs[1:]:
        for part in ("text_config", "vision_config", "quantization"):
            same = configs[0][part]
            assert {key: config[part].get(key) for key in same} == same


def test_a_full_size_plan_has_the_size_that_arithmetic_gives(tmp_path: Path):
    from benchmarks.sparse import write_sparse_checkpoint

    plan = prepare(write_sparse_checkpoint(tmp_path / "full"), tmp_path / "out").plan
    text = 23_572_403_200  # parameters: matrices of the decoder, and its norms
    vision = plan.parameters - text
    norms = 81 * 5120
    assert plan.parameters == 24_011_361_280
    expected = (text - norms) * 4.5 / 8 + 2 * (norms + vision)
    assert plan.index["metadata"]["total_size"] == math.ceil(expected)
    assert len(plan.shards) == 3
    assert max(shard.nbytes for shard in plan.shards) <= 5 * 10**9
