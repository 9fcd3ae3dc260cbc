"""Damaged and hostile files of a checkpoint are refused in one line, at once, and never hang."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.header import LENGTH_BYTES, parse_header, read_header
from magistral_mlx.config_files import read_config
from magistral_mlx.errors import CheckpointError
from magistral_mlx.hub.repository import missing_weights
from tests.checkpoints import params_of, tiny_config, write_hf_checkpoint

DEEP = '{"a":' * 100_000
SHARD = "model-00001-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_hf_checkpoint(tmp_path / "model")


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def read_or_message(read: Callable[[], Any]) -> Any:
    """What `read` gives, or the one line of its error; anything else than that fails."""
    try:
        return read()
    except CheckpointError as error:
        message = str(error)
    assert "\n" not in message
    return message


def write_header(file: Path, header: bytes, data: bytes) -> None:
    file.write_bytes(len(header).to_bytes(LENGTH_BYTES, "little") + header + data)


def edit_header(file: Path, edit: Any) -> str:
    """Let `edit` change the header's entries in place; the name that it returns."""
    content = file.read_bytes()
    length = int.from_bytes(content[:LENGTH_BYTES], "little")
    header = json.loads(content[LENGTH_BYTES : LENGTH_BYTES + length])
    name = edit(header)
    write_header(file, json.dumps(header).encode(), content[LENGTH_BYTES + length :])
    return str(name)


def first_two(header: dict[str, Any]) -> tuple[str, str]:
    names = [name for name in header if name != "__metadata__"]
    names.sort(key=lambda name: header[name]["data_offsets"])
    return names[0], names[1]


# Headers


def overlap(header: dict[str, Any]) -> str:
    first, second = first_two(header)
    header[second]["data_offsets"] = [value - 2 for value in header[second]["data_offsets"]]
    return f"{first} and {second} overlap"


def gap(header: dict[str, Any]) -> str:
    first, second = first_two(header)
    header[second]["data_offsets"] = [value + 2 for value in header[second]["data_offsets"]]
    return f"{first} and {second} leave a gap"


def shifted(header: dict[str, Any]) -> str:
    for name, entry in header.items():
        if name != "__metadata__":
            entry["data_offsets"] = [value + 2 for value in entry["data_offsets"]]
    return "is truncated"


def twice(header: dict[str, Any]) -> str:
    first, second = first_two(header)
    header[second] = header[first] | {}
    return "overlap"


def unused_end(header: dict[str, Any]) -> str:
    last = max(
        (name for name in header if name != "__metadata__"),
        key=lambda name: header[name]["data_offsets"],
    )
    del header[last]
    return "bytes follow the data of"


@pytest.mark.parametrize("damage", [overlap, gap, shifted, twice, unused_end])
def test_offsets_that_do_not_cover_the_data_once_are_refused(folder: Path, damage: Any):
    message = edit_header(folder / SHARD, damage)
    assert message in refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [1280.0, 128]},
        {"shape": [-1280, -128]},
        {"shape": ["1280", 128]},
        {"shape": [True, 128]},
        {"shape": [[1280], 128]},
        {"shape": 128},
        {"shape": None},
        {"data_offsets": [0.0, 8.0]},
        {"data_offsets": [0]},
        {"data_offsets": [0, 1, 2]},
        {"data_offsets": [8, 0]},
        {"dtype": "F4"},
        {"dtype": ["BF16"]},
        {"dtype": None},
    ],
)
def test_an_entry_that_makes_no_sense_names_its_tensor(folder: Path, change: dict[str, Any]):
    def edit(header: dict[str, Any]) -> str:
        name = first_two(header)[0]
        header[name] |= change
        return name

    name = edit_header(folder / SHARD, edit)
    message = refusal(folder)
    assert f"entry for {name}" in message
    assert SHARD in message


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (DEEP.encode(), "its header is not JSON"),
        ('{"a": 1}'.encode("utf-16"), "its header is not JSON"),
        ('{"a": 1}'.encode("utf-16-le"), "its header is not JSON"),
        ('{"a": 1}'.encode("utf-32"), "its header is not JSON"),
        (b'{"a": "\xff"}', "its header is not JSON"),
        (b"[1, 2]", "is not a JSON object"),
        (b'{"a": 1}', "entry for a lacks dtype, shape or data_offsets"),
        (b'{"a": {}, "a": {}}', "two entries for a"),
    ],
)
def test_a_header_that_is_something_else(tmp_path: Path, header: bytes, message: str):
    write_header(tmp_path / "model.safetensors", header, b"")
    with pytest.raises(CheckpointError, match=message):
        read_header(tmp_path / "model.safetensors")


NUMBERS = st.one_of(
    st.integers(-(2**65), 2**65), st.floats(), st.booleans(), st.none(), st.text(max_size=3)
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from(["BF16", "F32", "U32", "F8_E4M3", "Q4"]), NUMBERS),
        "shape": st.one_of(st.lists(st.integers(-2, 4), max_size=3), st.lists(NUMBERS, max_size=3)),
        "data_offsets": st.one_of(st.lists(st.integers(-8, 64), max_size=3), NUMBERS),
    },
)


@given(
    header=st.dictionaries(
        st.text(max_size=5), st.one_of(ENTRIES, NUMBERS, st.just({"__metadata__": {}})), max_size=4
    ),
    size=st.integers(0, 200),
)
def test_any_header_is_read_or_refused(header: dict[str, Any], size: int):
    raw = json.dumps(header).encode()
    total = LENGTH_BYTES + len(raw) + size
    tensors = read_or_message(lambda: parse_header(Path("model.safetensors"), raw, total))
    if isinstance(tensors, dict):
        assert sum(tensor.nbytes for tensor in tensors.values()) == size


@given(raw=st.binary(max_size=60))
def test_any_bytes_for_a_header_are_read_or_refused(raw: bytes):
    size = LENGTH_BYTES + len(raw)
    read_or_message(lambda: parse_header(Path("model.safetensors"), raw, size))


# The index


@pytest.mark.parametrize(
    "content",
    [
        '{"weight_map": {"a": null}}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": ["model.safetensors"]}}',
        '{"weight_map": {"a": "../model.safetensors"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": {"a": ""}}',
        '{"weight_map": []}',
        '{"weight_map": {}}',
        "{}",
        "[]",
        DEEP,
    ],
)
def test_a_damaged_index_is_named(folder: Path, content: str):
    (folder / INDEX).write_text(content)
    assert INDEX in refusal(folder)
    assert missing_weights(folder) == [INDEX]


@pytest.mark.parametrize("count", ["99999999999", "9" * 5000 + ""])
def test_a_count_of_shards_beyond_reason_is_not_enumerated(folder: Path, count: str):
    (folder / INDEX).unlink()
    try:
        (folder / SHARD).rename(folder / f"model-00001-of-{count}.safetensors")
    except OSError:  # too long a name for this disk
        return
    assert missing_weights(folder)


# The configuration


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 10**30),
        ("num_hidden_layers", 2.0),
        ("num_hidden_layers", True),
        ("num_hidden_layers", "3"),
        ("hidden_size", 10**18),
        ("vocab_size", 10**18),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", -2),
        ("num_key_value_heads", float("inf")),
        ("head_dim", 63),
        ("head_dim", 1.5),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", float("inf")),
        ("rope_theta", -1),
        ("max_position_embeddings", 10**30),
        ("max_position_embeddings", []),
    ],
)
def test_a_size_of_the_decoder_beyond_reason_is_refused(folder: Path, key: str, value: Any):
    config = tiny_config()
    config["text_config"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("image_size", 10**9),
        ("image_size", 13),
        ("patch_size", 10**9),
        ("patch_size", 0),
        ("num_channels", -3),
        ("num_channels", "3"),
        ("head_dim", 62),
        ("rope_theta", "x"),
    ],
)
def test_a_size_of_the_tower_beyond_reason_is_refused(folder: Path, key: str, value: Any):
    config = tiny_config()
    config["vision_config"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize("value", [10**9, 0, -2, 1.5, "2", [], {}])
def test_a_merge_size_beyond_reason_is_refused(folder: Path, value: Any):
    (folder / "config.json").write_text(json.dumps(tiny_config() | {"spatial_merge_size": value}))
    assert "config.json" in refusal(folder)


SETTINGS = sorted(params_of(tiny_config()))


@given(key=st.sampled_from(SETTINGS), value=st.one_of(NUMBERS, st.just([]), st.just({})))
def test_any_value_in_params_json_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
):
    folder = tmp_path_factory.getbasetemp() / "params"
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params_of(tiny_config()) | {key: value}))
    read_or_message(lambda: read_config(folder))


@pytest.mark.parametrize("content", [DEEP, "[" * 100_000, "\ufeff{", "nul", "{]", ""])
def test_a_configuration_that_is_no_json_is_named(folder: Path, content: str):
    (folder / "config.json").write_text(content)
    assert "config.json" in refusal(folder)


def test_a_configuration_as_large_as_a_model_is_not_read(folder: Path):
    os.truncate(folder / "config.json", 10**9)
    assert "config.json is too large" in refusal(folder)
