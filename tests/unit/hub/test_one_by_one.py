"""Files brought here one after the other, as the converter wants them."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from magistral_mlx.errors import HubError, ModelNotFound, StorageError
from magistral_mlx.hub import download_file, remote_files, require_repo, resolve
from tests.fake_hub import FakeHub, write_repo
from tests.unit.hub.conftest import REPO, SHARDS, weights

REF = require_repo(REPO)


def test_a_listing_names_the_files_of_one_layout_with_their_sizes(
    hub: FakeHub, model_files: dict[str, bytes | str]
):
    model = remote_files(REF)
    assert model.commit == hub.repos[REPO].head
    assert [file.name for file in model.weights] == list(SHARDS)
    assert {file.name: file.size for file in model.files} == {
        file.name: len(model_files[file.name]) for file in model.files
    }
    assert model.size == sum(len(model_files[file.name]) for file in model.files)
    assert "consolidated.safetensors" not in {file.name for file in model.files}
    assert hub.bytes_served == 0


def test_a_mirror_that_lists_no_sizes_is_asked_file_by_file(hub: FakeHub):
    full = remote_files(REF)
    hub.faults.bare_listing = True
    assert remote_files(REF) == full


def test_a_shard_goes_to_a_folder_and_frees_the_disk_when_deleted(
    hub: FakeHub, tmp_path: Path, home: Path, model_files: dict[str, bytes | str]
):
    model = remote_files(REF)
    work = tmp_path / "work" / "source"
    for file in model.weights:
        path = download_file(model, file, work)
        assert path == work / file.name
        assert path.read_bytes() == model_files[file.name]
        path.unlink()
    assert list(work.iterdir()) == []
    assert not list(home.rglob("*.safetensors"))
    assert hub.bytes_served == sum(file.size for file in model.weights)


def test_a_shard_that_is_there_is_not_fetched_again(hub: FakeHub, tmp_path: Path):
    model = remote_files(REF)
    download_file(model, model.weights[0], tmp_path)
    served = hub.bytes_served
    download_file(model, model.weights[0], tmp_path)
    assert hub.bytes_served == served


def test_an_interrupted_shard_goes_on_in_its_folder(hub: FakeHub, tmp_path: Path):
    model = remote_files(REF)
    shard = model.weights[0]
    hub.faults.hold_after = 50_000

    def interrupt(done: int, total: int) -> None:
        assert total == shard.size
        if done >= 50_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_file(model, shard, tmp_path / "work", on_progress=interrupt)
    assert not (tmp_path / "work" / shard.name).exists()
    hub.faults.hold_after = 0
    hub.release.set()
    first = len(hub.requests)
    assert download_file(model, shard, tmp_path / "work").stat().st_size == shard.size
    assert sum(request.sent for request in hub.requests[first:]) <= shard.size - 50_000


def test_a_change_on_the_hub_does_not_mix_versions(
    hub: FakeHub, tmp_path: Path, model_files: dict[str, bytes | str]
):
    model = remote_files(REF)
    first = download_file(model, model.weights[0], tmp_path / "work")
    changed = model_files | {shard: weights(100_000, 8) for shard in SHARDS}
    hub.add(REPO, write_repo(tmp_path / "changed", changed))
    second = download_file(model, model.weights[1], tmp_path / "work")
    assert first.read_bytes() == model_files[SHARDS[0]]
    assert second.read_bytes() == model_files[SHARDS[1]]
    again = remote_files(require_repo(f"{REPO}@{model.commit}"))
    assert again.files == model.files


def test_what_the_cache_holds_is_linked_and_outlives_the_link(
    hub: FakeHub, tmp_path: Path, model_files: dict[str, bytes | str]
):
    cached = resolve(REPO)
    model = remote_files(REF)
    served = hub.bytes_served
    path = download_file(model, model.weights[0], tmp_path / "work")
    assert path.is_symlink()
    assert hub.bytes_served == served
    path.unlink()
    assert (cached / SHARDS[0]).read_bytes() == model_files[SHARDS[0]]


def test_without_a_folder_a_file_goes_to_the_cache(hub: FakeHub, home: Path):
    model = remote_files(REF)
    path = download_file(model, model.weights[0])
    assert path.is_relative_to(home)
    assert path.stat().st_size == model.weights[0].size


def test_a_full_disk_is_said_before_a_shard_comes(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = remote_files(REF)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1000))
    with pytest.raises(
        StorageError, match=r"the download needs .* choose a folder on another disk"
    ):
        download_file(model, model.weights[0], tmp_path / "work")
    assert hub.bytes_served == 0


def test_offline_says_which_file_is_missing(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = remote_files(REF)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match=f"{SHARDS[0]} of {REPO} is not on this machine"):
        download_file(model, model.weights[0], tmp_path / "work")


@pytest.mark.parametrize("name", ["thing", "a/b/c", "https://huggingface.co/a/b", "../x", "a/b@"])
def test_a_name_that_is_no_repository(name: str):
    with pytest.raises(ModelNotFound, match="Expected owner/name, optionally with @revision"):
        require_repo(name)
