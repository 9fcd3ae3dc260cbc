"""Models before one is loaded: listed, downloaded, planned and deleted."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from magistral_mlx import (
    InvalidOption,
    LoadProgress,
    Magistral,
    ModelNotFound,
    OutOfMemory,
    StorageError,
    delete_model,
    download_model,
    list_models,
    paths,
    plan_model,
)
from magistral_mlx.hub.client import hub_cache
from magistral_mlx.memory.limits import PROCESS
from tests.checkpoints import tiny_config, write_hf_checkpoint
from tests.fake_hub import FakeHub

REPO = "some/model"
GIB = 1 << 30


class Enough(Exception):
    pass


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "model"
    return write_hf_checkpoint(folder, config=tiny_config(layers=2))


@pytest.fixture(autouse=True)
def hub(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one model, and a user's home with none."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "MAGISTRAL_MLX_HOME", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    with FakeHub({REPO: published}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def names() -> list[str]:
    return [model.name for model in list_models()]


def test_a_model_is_downloaded_with_progress_and_once(hub: FakeHub, published: Path):
    reports: list[LoadProgress] = []
    folder = download_model(REPO, on_progress=reports.append)
    assert (folder / "config.json").read_bytes() == (published / "config.json").read_bytes()
    assert {report.stage for report in reports} == {"download"}
    assert reports[-1].fraction == 1 and names() == [REPO]
    served = hub.bytes_served
    assert download_model(REPO) == folder
    assert hub.bytes_served - served < 100_000


def test_an_exception_of_the_callback_stops_a_download_which_goes_on_later():
    def stop(progress: LoadProgress) -> None:
        raise Enough

    with pytest.raises(Enough):
        download_model(REPO, on_progress=stop)
    with pytest.raises(Enough):
        Magistral.load(REPO, on_progress=stop)
    assert (download_model(REPO) / "config.json").is_file()


@pytest.mark.parametrize("name", ["some/other", "nothing", ""])
def test_a_model_that_is_nowhere_is_not_downloaded(name: str):
    with pytest.raises(ModelNotFound):
        download_model(name)


def test_a_downloaded_model_is_deleted():
    folder = download_model(REPO)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert delete_model(REPO.upper()) >= size
    assert names() == [] and not any(hub_cache().rglob("*.safetensors"))
    assert download_model(REPO) == folder


def test_a_conversion_is_deleted_and_nothing_else(published: Path):
    for name in ("mine", "mine-too"):
        shutil.copytree(published, paths.conversions_dir() / name)
    size = sum(path.stat().st_size for path in published.iterdir())
    assert delete_model("mine") == size
    assert names() == ["mine-too"]
    assert [path.name for path in paths.conversions_dir().iterdir()] == ["mine-too"]


def test_of_a_linked_conversion_the_link_is_deleted(published: Path):
    paths.conversions_dir().mkdir(parents=True)
    (paths.conversions_dir() / "mine").symlink_to(published)
    delete_model("mine")
    assert names() == [] and (published / "config.json").is_file()


def test_the_models_of_lm_studio_are_its_own(published: Path, tmp_path: Path):
    theirs = tmp_path / ".lmstudio" / "models" / "owner" / "model"
    shutil.copytree(published, theirs)
    with pytest.raises(InvalidOption, match="LM Studio"):
        delete_model("owner/model")
    assert theirs.is_dir()


@pytest.mark.parametrize("name", ["nothing", "", ".", "..", "../../etc", "demo"])
def test_only_a_model_that_is_listed_is_deleted(name: str, published: Path):
    shutil.copytree(published, paths.conversions_dir() / "mine")
    with pytest.raises(ModelNotFound, match="to delete"):
        delete_model(name)
    assert names() == ["mine"]


def test_a_folder_that_cannot_be_deleted_is_one_error(
    published: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    shutil.copytree(published, paths.conversions_dir() / "mine")
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StorageError, match="cannot be deleted: Permission denied"):
        delete_model("mine")
    assert names() == ["mine"]


def test_a_model_on_the_hub_is_planned_by_its_headers(hub: FakeHub):
    plan = plan_model(REPO, machine="32GB", context=64, images=0)
    assert plan.context == 64 and plan.machine.memory == 32 * GIB
    assert names() == []
    local = download_model(REPO)
    assert plan_model(local, machine="32GB", context=64, images=0).peak == plan.peak


def test_a_plan_is_that_of_the_loaded_model_and_holds_no_memory():
    planned = PROCESS.planned
    plan = plan_model("demo", context=512, kv="8/8")
    assert PROCESS.planned == planned
    with Magistral.load("demo", context=512, kv="8/8") as magistral:
        assert magistral.plan.peak == plan.peak
        assert (magistral.plan.context, magistral.plan.scheme) == (plan.context, plan.scheme)


@pytest.mark.parametrize("asked", [{"memory_limit": 64 * 10**6}, {"context": 10**9}])
def test_what_does_not_fit_is_refused_before_it_is_loaded(asked: dict[str, int]):
    with pytest.raises((OutOfMemory, InvalidOption)):
        plan_model("demo", **asked)  # type: ignore[arg-type]


def test_a_model_has_a_name(published: Path, tmp_path: Path):
    with Magistral.load("demo", images=0) as demo:
        assert demo.name == "demo"
    folder = Path(shutil.copytree(demo.folder, tmp_path / "mine"))
    linked = tmp_path / "linked"
    os.symlink(folder, linked)
    with Magistral.load(linked, images=0) as mine:
        assert mine.name == "mine"
    snapshot = hub_cache() / "models--owner--model" / "snapshots" / ("0" * 40)
    shutil.copytree(demo.folder, snapshot)
    with Magistral.load(snapshot, images=0) as cached:
        assert cached.name == "owner/model"
        chat = cached.chat()
        chat.append("Hi")
        chat.save(tmp_path / "chat.json")
    assert '"model": "owner/model"' in (tmp_path / "chat.json").read_text()
