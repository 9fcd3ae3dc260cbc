"""Parts of a model that ranks hold, how ranks find each other, and when one counts as lost."""

import json
import os
import shutil
import socket
import threading
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from magistral_convert import ConvertOptions, convert
from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.checkpoint.part import content_digest, part_of, read_part
from magistral_mlx.config import ModelConfig, QueryScaling, Yarn
from magistral_mlx.distributed.lending import Lender, borrowed_checkpoint, told_config
from magistral_mlx.distributed.link import Link
from magistral_mlx.distributed.meeting import join, meet
from magistral_mlx.distributed.model import FollowingModel
from magistral_mlx.distributed.place import Place, place
from magistral_mlx.errors import CheckpointError, InvalidOption, RankLost
from magistral_mlx.memory.peak import loaded_weights
from magistral_mlx.model.linear import matrices_of, rows_of
from magistral_mlx.split import Split, SplitKind, divided_config, equal_shares
from tests.checkpoints import tiny_config, write_hf_checkpoint, write_mistral_checkpoint
from tests.gguf_files import GGUF
from tests.ranks import free_ports

pytestmark = pytest.mark.slow

Matrices = dict[str, NDArray[np.float32]]


def load_part(
    checkpoint: Checkpoint, split: Split, lent: Checkpoint | None = None
) -> tuple[Any, Matrices]:
    """A rank's part as it is loaded: the model, and its matrices by their paths."""

    def build(config: ModelConfig, dtype: mx.Dtype) -> FollowingModel:
        group: Any = SimpleNamespace(sum=None)
        return FollowingModel(config, dtype, split, group)

    part = lent or part_of(checkpoint, split)
    model = (
        load_model(part, mx.float32, build=build) if split.rank else load_model(part, mx.float32)
    )
    return model, matrices(model)


def matrices(model: Any) -> Matrices:
    return {path: np.array(rows_of(module, rows)) for path, module, rows in matrices_of(model)}


def folder_of(layout: str, folder: Path) -> Path:
    if layout == "mistral":
        return write_mistral_checkpoint(folder / "mistral", config=tiny_config(vision=False))
    if layout == "gguf":
        return Path(shutil.copy(GGUF / "small.Q4_K_M.gguf", folder))
    plain = write_hf_checkpoint(folder / "hf", config=tiny_config(vision=False))
    if layout == "4-bit":
        convert(plain, folder / "4-bit", ConvertOptions(bits=4, group_size=32))
        return folder / "4-bit"
    return plain


@pytest.mark.parametrize("layout", ["hf", "mistral", "4-bit", "gguf"])
def test_parts_of_all_ranks_are_the_whole(layout: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(folder_of(layout, tmp_path))
    size = 2
    whole = matrices(load_model(checkpoint, mx.float32))
    parts = [load_part(checkpoint, Split("tensor", rank, size))[1] for rank in range(size)]
    for path, matrix in whole.items():
        if ".layers." not in path:
            assert path not in parts[1]
            joined = parts[0][path]
        else:
            by_columns = path.endswith(("o_proj", "down_proj"))
            joined = np.concatenate([part[path] for part in parts], axis=int(by_columns))
        assert np.array_equal(joined, matrix), path


@pytest.mark.parametrize("layout", ["mistral", "4-bit", "gguf"])
def test_weights_that_rank_0_sends_are_those_of_the_files(layout: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(folder_of(layout, tmp_path))
    split = Split("tensor", 1, 2)
    lender = Lender("127.0.0.1", checkpoint, split)
    try:
        offer = json.loads(json.dumps(lender.offer(1)))
        part, source = borrowed_checkpoint(offer, split)
        lent, own = load_part(checkpoint, split, part)[1], load_part(checkpoint, split)[1]
        assert lent.keys() == own.keys()
        assert all(np.array_equal(lent[path], matrix) for path, matrix in own.items())
        source.close()
        stranger, _ = borrowed_checkpoint(offer | {"token": "0" * 32}, split)
        with pytest.raises(CheckpointError, match="no longer sends weights"):
            load_part(checkpoint, split, stranger)
    finally:
        lender.close()
    with pytest.raises(RankLost, match="weights cannot be read"):
        borrowed_checkpoint(offer, split)


def test_a_configuration_is_told_whole(tmp_path: Path) -> None:
    config = Checkpoint.open(write_hf_checkpoint(tmp_path)).config
    stretched = replace(config.text, yarn=Yarn(8.0, 512), query_scaling=QueryScaling(0.1, 512))
    for wanted in (config, config.without_vision(), replace(config, text=stretched)):
        assert told_config(json.loads(json.dumps(asdict(wanted)))) == wanted


def test_a_pipeline_of_unequal_shares_holds_each_layer_once(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_hf_checkpoint(tmp_path, config=tiny_config(vision=False)))
    whole = matrices(load_model(checkpoint, mx.float32))
    first, second = (load_part(checkpoint, Split("pipeline", n, 2, (1, 2)))[1] for n in range(2))
    layers = [
        {path.split(".layers.")[1].split(".")[0] for path in part if ".layers." in path}
        for part in (first, second)
    ]
    assert layers == [{"0"}, {"0", "1"}]
    for path, matrix in second.items():
        number = int(path.split(".")[3])
        assert np.array_equal(matrix, whole[path.replace(f".{number}.", f".{number + 1}.", 1)])


def test_bytes_of_a_part_are_those_that_it_loads(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(folder_of("4-bit", tmp_path))
    for rank in range(2):
        part = part_of(checkpoint, Split("tensor", rank, 2))
        model, _ = load_part(checkpoint, Split("tensor", rank, 2))
        held = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
        assert held == loaded_weights(part, 4).decoder


@pytest.mark.parametrize(
    ("heads", "size", "fitting"),
    [((4, 2), 3, "2 machines"), ((8, 8), 3, "2 or 4 or 8 machines"), ((6, 3), 2, "use the split")],
)
def test_heads_that_cannot_be_divided_are_refused(
    heads: tuple[int, int], size: int, fitting: str, tmp_path: Path
) -> None:
    config = Checkpoint.open(write_hf_checkpoint(tmp_path)).config
    text = replace(config.text, num_attention_heads=heads[0], num_key_value_heads=heads[1])
    with pytest.raises(InvalidOption, match=fitting):
        divided_config(replace(config, text=text), Split("tensor", 0, size))


def test_groups_are_never_cut(tmp_path: Path) -> None:
    config = tiny_config(vision=False, num_attention_heads=2, num_key_value_heads=2, head_dim=32)
    plain = write_hf_checkpoint(tmp_path / "hf", config=config)
    convert(plain, tmp_path / "4-bit", ConvertOptions(bits=4, group_size=64))
    checkpoint = Checkpoint.open(tmp_path / "4-bit")
    with pytest.raises(InvalidOption, match=r"o_proj\.\w+ has 1 columns"):
        part_of(checkpoint, Split("tensor", 0, 2))


@pytest.mark.parametrize(("count", "size", "shares"), [(5, 2, (2, 3)), (40, 3, (13, 13, 14))])
def test_equal_shares_leave_the_first_no_more(
    count: int, size: int, shares: tuple[int, ...]
) -> None:
    assert equal_shares(count, size) == shares


def test_copies_have_the_same_digest_and_changed_weights_another(tmp_path: Path) -> None:
    folder = write_hf_checkpoint(tmp_path / "a")
    copy = Path(shutil.copytree(folder, tmp_path / "b"))
    other = write_hf_checkpoint(tmp_path / "c", seed=1)
    for file in copy.iterdir():
        os.utime(file, (1, 1))
    digests = [content_digest(Checkpoint.open(one)) for one in (folder, copy, other)]
    assert digests[0] == digests[1] != digests[2]


def test_a_file_that_became_shorter_is_told(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_hf_checkpoint(tmp_path, shards=1))
    part = part_of(checkpoint, Split("tensor", 1, 2))
    tensor: Any = max(part.tensors.values(), key=lambda one: one.offset)
    os.truncate(tensor.file, 1000)
    with pytest.raises(CheckpointError, match="has become shorter"):
        read_part(tensor)


@pytest.mark.parametrize(
    "environment",
    [
        {"MLX_RANK": "2", "MLX_HOSTFILE": "HOSTS"},
        {"MLX_RANK": "one", "MLX_HOSTFILE": "HOSTS"},
        {"MLX_RANK": "0", "MLX_HOSTFILE": "/nowhere"},
        {"MLX_RANK": "1", "MLX_JACCL_COORDINATOR": "10.0.0.1:5000"},
    ],
)
def test_an_environment_of_no_rank_is_refused(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([["127.0.0.1:1"], ["127.0.0.1:2"]]))
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("HOSTS", str(hosts)))
    with pytest.raises(InvalidOption, match="MLX_RANK is"):
        place()


def test_a_process_alone_is_no_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place() is None
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([["127.0.0.1:1"]]))
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))
    assert place() is None


def ring(rank: int, size: int, port: int) -> Place:
    return Place(rank, size, "ring", tuple(("127.0.0.1", port + n) for n in range(size)))


def test_a_rank_that_does_not_come_is_named() -> None:
    (port,) = free_ports(1)
    late = threading.Thread(target=lambda: _joined(ring(1, 3, port)))
    late.start()
    with pytest.raises(RankLost, match=r"^rank 2 \(127\.0\.0\.1\) did not come within 2 seconds"):
        meet(ring(0, 3, port), 2)
    late.join()


def test_rank_0_that_is_not_there_is_told() -> None:
    (port,) = free_ports(1)
    with pytest.raises(RankLost, match="rank 0 cannot be reached"):
        join(ring(1, 2, port), 0.1)


def _joined(place: Place) -> str:
    try:
        join(place, 10)
    except RankLost as error:
        return str(error)
    return ""


def test_a_stranger_does_not_take_a_ranks_place() -> None:
    (port,) = free_ports(1)
    found: list[Any] = []
    rank0 = threading.Thread(target=lambda: found.extend(meet(ring(0, 2, port), 20)))
    rank0.start()
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\2[]", b'\0\0\0\x0a{"rank":1}'):
        with _connected(port) as stranger:
            stranger.sendall(said)
            with suppress(ConnectionResetError):
                assert stranger.recv(10) == b""
    assert _joined(ring(1, 2, port)) == ""
    rank0.join()
    assert [one.rank for one in found] == [1]


def connected_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        other = socket.create_connection(listener.getsockname())
        return listener.accept()[0], other


def _connected(port: int) -> socket.socket:
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 20)
        except ConnectionRefusedError:
            continue


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (lambda other: None, "gave no sign of life for 0.3 seconds"),
        (lambda other: other.close(), "has ended"),
        (lambda other: other.sendall(b"\0\0\0\1["), "sent something that is no message"),
        (lambda other: other.sendall(b"\xff" * 4), "sent something that is no message"),
    ],
)
def test_a_rank_is_lost_when_it_is_silent_or_ends(does: Any, reason: str) -> None:
    ours, other = connected_pair()
    reasons: list[str] = []
    lost = threading.Event()

    def lose(reason: str) -> None:
        reasons.append(reason)
        lost.set()

    link = Link(ours, lambda _: None, lose, 0.3)
    does(other)
    assert lost.wait(30) and reasons == [reason]
    link.close()
    other.close()


def test_messages_come_in_order_and_signs_of_life_keep_a_link() -> None:
    ours, other = connected_pair()
    got: list[Any] = []
    done = threading.Event()

    def hear(message: Any) -> None:
        got.append(message)
        if message == "last":
            done.set()

    lost: list[str] = []
    left, right = Link(ours, hear, lost.append, 2.0), Link(other, hear, lost.append, 2.0)
    for n in range(100):
        right.send(["pass", n])
    right.send("last")
    assert done.wait(30)
    assert got == [*(["pass", n] for n in range(100)), "last"] and not lost
    left.close()
    right.close()


@pytest.mark.parametrize("kind", ["tensor", "pipeline"])
def test_a_part_has_its_own_fingerprint(kind: SplitKind, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_hf_checkpoint(tmp_path))
    parts = [part_of(checkpoint, Split(kind, rank, 2)) for rank in range(2)]
    assert len({one.fingerprint() for one in (checkpoint, *parts)}) == 3
