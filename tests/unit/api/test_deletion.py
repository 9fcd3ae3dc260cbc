"""What deleting a model takes away, and what it leaves to other models and other programs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from magistral_mlx import InvalidOption, ModelNotFound, delete_model, list_models, paths
from magistral_mlx.hub.client import hub_cache
from tests import command_line
from tests.unit.test_gguf_checkpoint import split
from tests.unit.test_library_gguf import STEM, model, ollama_model, tower

REPO = "someone/Magistral-GGUF"
COMMIT = "a" * 40


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "OLLAMA_MODELS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MAGISTRAL_MLX_HOME", str(tmp_path / "home"))
    return tmp_path


def names() -> list[str]:
    return [model.name for model in list_models()]


def files(folder: Path) -> set[str]:
    found = folder.rglob("*") if folder.exists() else ()
    return {path.relative_to(folder).as_posix() for path in found if not path.is_dir()}


def download(home: Path, commit: str, *kinds: str, branch: str | None = "main") -> Path:
    """GGUF models in the hub's cache, each a link to its content, with a tower."""
    repo = home / "hf/hub/models--someone--Magistral-GGUF"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for kind in kinds:
        blob = repo / "blobs" / f"blob-{kind}"
        if not blob.exists():
            model(blob, kind)
        (snapshot / f"{STEM}-{kind}.gguf").symlink_to(f"../../blobs/{blob.name}")
    if not (repo / "blobs/tower").exists():
        tower(repo / "blobs/tower")
    (snapshot / "mmproj-F16.gguf").symlink_to("../../blobs/tower")
    if branch:
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / branch).write_text(commit)
    return repo


# Of other programs


def test_the_models_of_ollama_are_its_own(home: Path):
    ollama_model(home, "magistral", "24b")
    before = files(home / ".ollama")
    for name in ("magistral:24b", "magistral"):
        with pytest.raises(InvalidOption, match="Ollama: delete it with `ollama rm magistral:24b`"):
            delete_model(name)
    refused = command_line.run("rm", "magistral:24b")
    assert "belongs to Ollama" in refused.refusal
    assert files(home / ".ollama") == before and names() == ["magistral:24b"]


def test_the_gguf_files_of_lm_studio_are_its_own(home: Path):
    theirs = model(home / f".lmstudio/models/{REPO}/{STEM}-Q4_0.gguf")
    for name in (REPO, f"{REPO}:Q4_0"):
        with pytest.raises(InvalidOption, match="LM Studio"):
            delete_model(name)
    assert theirs.is_file()


def test_of_one_name_in_two_places_the_download_is_deleted(home: Path):
    theirs = home / ".lmstudio/models/someone/thing"
    ours = home / "hf/hub/models--someone--thing"
    for folder in (theirs, ours / "snapshots" / COMMIT):
        shutil.copytree(paths.demo_dir(), folder)
    (ours / "refs").mkdir()
    (ours / "refs/main").write_text(COMMIT)
    assert f"{ours / 'snapshots' / COMMIT} (" in command_line.run("rm", "someone/thing").refusal
    assert command_line.run("rm", "someone/thing", "--yes").status == 0
    assert not ours.exists() and theirs.is_dir()
    with pytest.raises(InvalidOption, match="LM Studio"):
        delete_model("someone/thing")


# GGUF files among conversions


def test_a_gguf_model_is_deleted_with_all_its_parts_and_the_tower_stays_for_the_others():
    folder = paths.conversions_dir() / "mine"
    split(model(folder / f"{STEM}-Q8_0.gguf", "Q8_0"), 2)
    model(folder / f"{STEM}-Q4_0.gguf")
    tower(folder / "mmproj-F16.gguf")
    size = sum(path.stat().st_size for path in folder.glob("*Q8_0*"))
    assert delete_model("MINE:q8_0") == size
    assert files(folder) == {f"{STEM}-Q4_0.gguf", "mmproj-F16.gguf"}
    assert names() == ["mine:Q4_0"]
    assert "0.00 GB are free" in command_line.run("rm", "mine:Q4_0", "-y").stderr
    assert not folder.exists()


def test_files_that_are_no_models_stay_beside_one_that_is_deleted():
    folder = paths.conversions_dir() / "mine"
    model(folder / f"BF16/{STEM}-BF16.gguf", "BF16")
    for name in ("tekken.json", "notes.txt", "._notes.txt"):
        (folder / name).write_text("")
    delete_model("mine:BF16")
    assert files(folder) == {"notes.txt"} and not (folder / "BF16").exists()


def test_all_gguf_models_of_a_folder_are_deleted_by_its_name():
    model(paths.conversions_dir() / f"mine/{STEM}-Q4_0.gguf")
    model(paths.conversions_dir() / f"mine/{STEM}-Q8_0.gguf", "Q8_0")
    delete_model("mine")
    assert files(paths.conversions_dir()) == set()


def test_gguf_files_of_a_linked_folder_are_not_deleted(home: Path):
    file = model(home / f"elsewhere/{STEM}-Q4_0.gguf")
    paths.conversions_dir().mkdir(parents=True)
    link = paths.conversions_dir() / "mine"
    link.symlink_to(file.parent)
    with pytest.raises(InvalidOption, match=r"to which .*mine is a link"):
        delete_model("mine:Q4_0")
    assert delete_model("mine") == 0
    assert file.is_file() and not link.exists()


# GGUF files in the hub's cache


def test_one_type_of_a_download_is_deleted_and_the_others_stay(home: Path):
    repo = download(home, COMMIT, "Q4_0", "Q8_0")
    size = (repo / "blobs/blob-Q4_0").stat().st_size
    assert delete_model(f"{REPO}:Q4_0") == size
    assert names() == [f"{REPO}:Q8_0"]
    assert files(repo / "blobs") == {"blob-Q8_0", "tower"}
    assert delete_model(f"{REPO}:Q8_0") > size
    assert not repo.exists()


def test_all_types_of_a_download_are_deleted_by_the_name_of_the_repository(home: Path):
    repo = download(home, COMMIT, "Q4_0", "Q8_0")
    assert str(repo) in command_line.run("rm", REPO).refusal
    assert command_line.run("rm", REPO, "-y").status == 0
    assert not repo.exists() and hub_cache().is_dir()


@pytest.mark.parametrize("reference", [None, "b" * 40])
def test_a_download_whose_branch_is_not_here_is_deleted(home: Path, reference: str | None):
    repo = download(home, COMMIT, "Q4_0", branch=None)
    if reference:
        (repo / "refs").mkdir()
        (repo / "refs/main").write_text(reference)
    assert names() == [f"{REPO}@{COMMIT}:Q4_0"]
    assert delete_model(names()[0]) > 0
    assert names() == [] and not repo.exists()


def test_of_one_revision_what_another_uses_stays(home: Path):
    older = "b" * 40
    repo = download(home, older, "Q4_0", branch="old")
    download(home, COMMIT, "Q4_0", "Q8_0", branch="new")
    os.utime(repo / "snapshots" / older, (1, 1))
    named = f"{REPO}@{COMMIT}:Q8_0"
    assert named in names()
    delete_model(named)
    assert files(repo / "blobs") == {"blob-Q4_0", "tower"}
    delete_model(f"{REPO}@{COMMIT}")
    assert files(repo / "blobs") == {"blob-Q4_0", "tower"}
    assert files(repo / "refs") == {"old"}
    assert names() == [f"{REPO}@{older}:Q4_0"]


@pytest.mark.parametrize("name", ["mine:Q8_0", "mine:", "min", ":Q4_0"])
def test_a_type_that_is_not_here_deletes_nothing(name: str):
    model(paths.conversions_dir() / f"mine/{STEM}-Q4_0.gguf")
    with pytest.raises(ModelNotFound, match="to delete"):
        delete_model(name)
    assert names() == ["mine:Q4_0"]
