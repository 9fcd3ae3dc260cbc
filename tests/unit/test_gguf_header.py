"""Headers of GGUF files: what is read from a good one, and how each bad one ends in one line."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magistral_mlx.checkpoint.gguf.header import read_gguf
from magistral_mlx.errors import CheckpointError, MagistralError, UnsupportedModel
from tests.data import GGUF

U32, STRING, ARRAY = 4, 8, 9
F32, IQ2_XXS = 0, 16


def text(value: str | bytes, length: int | None = None) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = F32, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


def gguf(
    *parts: bytes, tensors: int = 0, pairs: int = 0, version: int = 3, data: bytes = b""
) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + b"".join(parts)
    return header + b"\0" * (-len(header) % 32) + data


@pytest.fixture
def write(tmp_path: Path):
    def write(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


def test_metadata_and_places_of_tensors_are_those_of_the_file(write):
    data = np.arange(8, dtype=np.float32).tobytes()
    path = write(
        gguf(
            pair("general.architecture", STRING, text("llama")),
            pair("llama.block_count", U32, struct.pack("<I", 40)),
            pair("tokens", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("bc")),
            pair("mean", ARRAY, struct.pack("<IQ3f", 6, 3, 0.5, 0.25, 1.0)),
            tensor("one", (4, 1)),
            tensor("two", (4,), offset=16),
            tensors=2,
            pairs=4,
            data=data,
        )
    )
    found = read_gguf(path)
    assert found.architecture == "llama"
    assert found.metadata["llama.block_count"] == 40
    assert found.metadata["tokens"] is None  # a vocabulary is passed over
    assert found.metadata["mean"] == [0.5, 0.25, 1.0]
    assert found.tensors["one"].shape == (1, 4)
    two = found.tensors["two"]
    assert path.read_bytes()[two.offset : two.offset + two.nbytes] == data[16:]


def test_a_file_of_llama_cpp_is_read():
    found = read_gguf(GGUF / "small.Q4_K_M.gguf")
    assert found.architecture == "mistral3"
    assert found.tensors["output.weight"].dtype == "Q6_K"
    assert found.tensors["blk.0.ffn_down.weight"].shape == (256, 768)
    assert len(found.tensors) == 30


HUGE = 2**63
BAD = {
    "no magic": b"GGML" + bytes(60),
    "nothing": b"",
    "three bytes": b"GGU",
    "only a magic": b"GGUF",
    "a count of tensors of 2^63": gguf(tensors=HUGE),
    "a count of pairs of 2^64 - 1": gguf(pairs=2**64 - 1),
    "more tensors than there are": gguf(tensors=3),
    "a key of 2^63 bytes": gguf(text(b"key", HUGE), pairs=1),
    "a key beyond the end": gguf(text(b"key", 1000), pairs=1),
    "a string of 2^63 bytes": gguf(pair("k", STRING, text(b"", HUGE)), pairs=1),
    "a value of no known type": gguf(pair("k", 99, b""), pairs=1),
    "an array of 2^62 numbers": gguf(pair("k", ARRAY, struct.pack("<IQ", 10, 2**62)), pairs=1),
    "an array of 2^60 strings": gguf(pair("k", ARRAY, struct.pack("<IQ", STRING, 2**60)), pairs=1),
    "an array of strings, one of 2^63": gguf(
        pair("k", ARRAY, struct.pack("<IQ", STRING, 1) + text(b"", HUGE)), bytes(64), pairs=1
    ),
    "an array of arrays": gguf(pair("k", ARRAY, struct.pack("<IQ", ARRAY, 1)), bytes(64), pairs=1),
    "a key twice": gguf(*2 * [pair("k", U32, bytes(4))], pairs=2),
    "a tensor twice": gguf(*2 * [tensor("t", (1,))], tensors=2, data=bytes(64)),
    "no dimensions": gguf(tensor("t", ()), tensors=1, data=bytes(64)),
    "nine dimensions": gguf(tensor("t", (1,) * 9), tensors=1, data=bytes(64)),
    "an empty tensor": gguf(tensor("t", (4, 0)), tensors=1, data=bytes(64)),
    "a tensor of 2^126 weights": gguf(tensor("t", (HUGE, HUGE)), tensors=1, data=bytes(64)),
    "a tensor beyond the end": gguf(tensor("t", (17,)), tensors=1, data=bytes(64)),
    "an offset beyond the end": gguf(tensor("t", (1,), offset=HUGE), tensors=1, data=bytes(64)),
    "a row that no block divides": gguf(tensor("t", (33,), kind=2), tensors=1, data=bytes(64)),
    "an alignment of 0": gguf(pair("general.alignment", U32, bytes(4)), pairs=1),
    "an alignment that is text": gguf(pair("general.alignment", STRING, text("32")), pairs=1),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_a_bad_file_ends_in_one_line_that_names_it(write, content: bytes):
    path = write(content)
    with pytest.raises(CheckpointError) as caught:
        read_gguf(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    assert message.endswith("Fetch that file again.")


@pytest.mark.parametrize("version", [1, 4, 3 << 24])  # the last is big-endian
def test_other_versions_are_refused_by_number(write, version: int):
    with pytest.raises(UnsupportedModel, match=f"version {version}"):
        read_gguf(write(gguf(version=version)))


@pytest.mark.parametrize(("kind", "name"), [(IQ2_XXS, "IQ2_XXS"), (39, "MXFP4"), (77, "type 77")])
def test_types_that_are_not_read_are_refused_by_name(write, kind: int, name: str):
    content = gguf(tensor("t", (256,), kind), tensors=1, data=bytes(512))
    with pytest.raises(UnsupportedModel, match=f"stores t as {name}.*Q4_K_M"):
        read_gguf(write(content))


GOOD = (GGUF / "small.Q4_K_M.gguf").read_bytes()[:4096]


@pytest.mark.slow
@settings(max_examples=200)
@given(
    cut=st.integers(0, 4096), flips=st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)))
)
def test_a_header_with_wrong_bytes_raises_nothing_else(tmp_path_factory, cut: int, flips):
    content = bytearray(GOOD)
    for place, value in flips:
        content[place] = value
    path = tmp_path_factory.mktemp("fuzz") / "model.gguf"
    path.write_bytes(content[:cut])
    with pytest.raises(MagistralError):  # it is cut in any case
        read_gguf(path)
