"""Publishing a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from magistral_mlx.errors import HubError, ModelNotFound
from magistral_mlx.hub import upload
from tests.fake_hub import FakeHub, write_repo

FILES = {
    "config.json": '{"model_type": "mistral3"}',
    "README.md": "---\nbase_model: mistralai/Magistral-Small-2509\n---\n# A conversion\n",
    "model-00001-of-00001.safetensors": b"\0" * 5000,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished conversion, with files of ours and of the system's beside it."""
    extra = {".DS_Store": "x", "model.safetensors.incomplete": "x"}
    return write_repo(tmp_path / "conversion", FILES | extra)


@pytest.fixture
def writable(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """The hub, with the token that may write."""
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub


def as_bytes(files: dict[str, bytes | str]) -> dict[str, bytes]:
    return {n: data.encode() if isinstance(data, str) else data for n, data in files.items()}


def test_the_files_arrive_in_a_new_repository(writable: FakeHub, folder: Path):
    assert upload(folder, "jo/Magistral-4bit", FILES) == f"{writable.url}/jo/Magistral-4bit"
    assert writable.files("jo/Magistral-4bit") == as_bytes(FILES)
    assert not writable.repos["jo/Magistral-4bit"].private


def test_large_files_travel_by_lfs(
    writable: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    writable.lfs_uploads = True
    upload(folder, "jo/Magistral-4bit", FILES)
    assert writable.files("jo/Magistral-4bit") == as_bytes(FILES)
    assert list(writable.lfs.values()) == [b"\0" * 5000]


def test_a_second_upload_adds_to_what_is_there(writable: FakeHub, folder: Path, tmp_path: Path):
    upload(folder, "jo/Magistral-4bit", FILES)
    upload(
        write_repo(tmp_path / "more", {"README.md": "# New\n"}), "jo/Magistral-4bit", ["README.md"]
    )
    expected = as_bytes(FILES | {"README.md": "# New\n"})
    assert writable.files("jo/Magistral-4bit") == expected


def test_without_a_token_it_says_which_one_is_needed(hub: FakeHub, folder: Path):
    with pytest.raises(HubError, match=r"does not let this account write to jo/x.*HF_TOKEN.*jo"):
        upload(folder, "jo/x", FILES)
    assert "jo/x" not in hub.repos


def test_a_name_that_is_none(hub: FakeHub, folder: Path):
    with pytest.raises(ModelNotFound, match="'x' is not the name of a repository"):
        upload(folder, "x", FILES)


def test_a_folder_that_is_not_there(hub: FakeHub, tmp_path: Path):
    with pytest.raises(ModelNotFound, match=r"there is no folder .* to upload"):
        upload(tmp_path / "gone", "jo/x", FILES)


def test_offline(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        upload(folder, "jo/x", FILES)
    assert hub.requests == []
