"""Which files belong to a checkpoint, and which of them a folder lacks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from magistral_mlx.hub.repository import missing_weights, needed_files, select_weight_files

SHARDS = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        ([*SHARDS, INDEX, "consolidated.safetensors"], SHARDS),
        ([*SHARDS, INDEX, "model.safetensors"], SHARDS),
        ([*SHARDS, "model.safetensors"], ["model.safetensors"]),
        (SHARDS, SHARDS),
        (["consolidated.safetensors", "params.json"], ["consolidated.safetensors"]),
        (
            ["consolidated-00001-of-00002.safetensors", "consolidated-00002-of-00002.safetensors"],
            ["consolidated-00001-of-00002.safetensors", "consolidated-00002-of-00002.safetensors"],
        ),
        (["onnx/model.safetensors", "adapter_model.safetensors", "model.gguf"], []),
    ],
)
def test_weights_of_one_layout(names: list[str], expected: list[str]):
    assert select_weight_files(names) == expected


def test_small_files_come_first_and_only_the_index_of_the_layout():
    names = [*SHARDS, INDEX, "config.json", "consolidated.safetensors.index.json", "vocab.json"]
    assert needed_files(names) == ["config.json", INDEX, *SHARDS]


def folder_with(tmp_path: Path, names: list[str], index: object = None) -> Path:
    for name in names:
        (tmp_path / name).touch()
    if index is not None:
        (tmp_path / INDEX).write_text(json.dumps(index))
    return tmp_path


@pytest.mark.parametrize(
    ("names", "index", "missing"),
    [
        (["model.safetensors"], None, []),
        (SHARDS, {"weight_map": dict(enumerate(SHARDS))}, []),
        (SHARDS[:2], {"weight_map": dict(enumerate(SHARDS))}, SHARDS[2:]),
        ([], {"weight_map": dict(enumerate(SHARDS))}, SHARDS),
        (SHARDS[1:], None, SHARDS[:1]),
        (SHARDS, {"weight_map": {}}, [INDEX]),
        (SHARDS, [], [INDEX]),
        (["consolidated.safetensors"], None, []),
        ([], None, ["model.safetensors"]),
    ],
)
def test_what_a_folder_lacks(tmp_path: Path, names: list[str], index: object, missing: list[str]):
    assert missing_weights(folder_with(tmp_path, names, index)) == missing


def test_a_link_to_a_blob_that_is_gone_counts_as_missing(tmp_path: Path):
    folder_with(tmp_path, SHARDS[:2])
    (tmp_path / SHARDS[2]).symlink_to(tmp_path / "blob")
    assert missing_weights(tmp_path) == SHARDS[2:]
