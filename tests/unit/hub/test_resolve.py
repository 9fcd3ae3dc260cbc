"""From a name to a folder: what is downloaded, what is not, and what is said when it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from magistral_mlx.errors import (
    CheckpointError,
    HubError,
    ModelNotFound,
    StorageError,
    UnsupportedModel,
)
from magistral_mlx.hub import resolve
from tests.fake_hub import FakeHub, write_repo
from tests.unit.hub.conftest import CONFIG, REPO, SHARDS, weights

NEEDED = {
    "config.json",
    "generation_config.json",
    "params.json",
    "tekken.json",
    "SYSTEM_PROMPT.txt",
    "README.md",
    "model.safetensors.index.json",
    *SHARDS,
}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_that_exists_wins(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path(REPO).mkdir(parents=True)
    assert resolve(REPO) == Path(REPO)
    assert hub.requests == []


def test_only_the_needed_files_of_one_layout_are_downloaded(
    hub: FakeHub, model_files: dict[str, bytes | str]
):
    folder = resolve(REPO)
    assert names(folder) == NEEDED
    for shard in SHARDS:
        assert (folder / shard).read_bytes() == model_files[shard]
    assert hub.bytes_served == sum(len(model_files[name]) for name in NEEDED)


def test_mistrals_layout_is_taken_where_there_is_no_other(
    hub: FakeHub, tmp_path: Path, model_files: dict[str, bytes | str]
):
    files = {name: model_files[name] for name in ("config.json", "consolidated.safetensors")}
    hub.add("some/consolidated", write_repo(tmp_path / "mistral", files))
    assert names(resolve("some/consolidated")) == set(files)


def test_a_complete_snapshot_is_used_without_asking_the_hub(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
):
    first = resolve(REPO)
    asked = len(hub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve(REPO) == first
    assert len(hub.requests) == asked


def test_what_huggingface_hub_has_downloaded_is_found(hub: FakeHub):
    from huggingface_hub import snapshot_download

    cache = Path(os.environ["HF_HOME"]) / "hub"
    theirs = snapshot_download(REPO, endpoint=hub.url, cache_dir=cache)
    asked = len(hub.requests)
    assert resolve(REPO) == Path(theirs)
    assert len(hub.requests) == asked


def test_huggingface_hub_finds_what_was_downloaded_here(hub: FakeHub):
    from huggingface_hub import snapshot_download

    ours = resolve(REPO)
    cache = Path(os.environ["HF_HOME"]) / "hub"
    assert Path(snapshot_download(REPO, cache_dir=cache, local_files_only=True)) == ours


def test_update_fetches_only_what_has_changed(
    hub: FakeHub, tmp_path: Path, model_files: dict[str, bytes | str]
):
    old = resolve(REPO)
    changed = model_files | {SHARDS[1]: weights(90_000, 9)}
    hub.add(REPO, write_repo(tmp_path / "second", changed))
    assert resolve(REPO) == old
    served = hub.bytes_served
    new = resolve(REPO, update=True)
    assert new != old
    assert (new / SHARDS[1]).read_bytes() == changed[SHARDS[1]]
    assert hub.bytes_served - served == 90_000
    assert resolve(REPO) == new


def test_update_is_content_with_what_is_here_when_the_hub_is_away(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
):
    folder = resolve(REPO)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve(REPO, update=True) == folder


def test_a_revision_can_be_named(hub: FakeHub, tmp_path: Path, model_files: dict[str, bytes | str]):
    first = hub.repos[REPO].head
    hub.add(REPO, write_repo(tmp_path / "second", model_files | {"SYSTEM_PROMPT.txt": "New."}))
    assert (resolve(f"{REPO}@{first}") / "SYSTEM_PROMPT.txt").read_text() == "Think."
    assert (resolve(REPO) / "SYSTEM_PROMPT.txt").read_text() == "New."


def test_progress_counts_all_files_up_to_the_last_byte(
    hub: FakeHub, model_files: dict[str, bytes | str], capfd: pytest.CaptureFixture[str]
):
    seen: list[tuple[int, int]] = []
    resolve(REPO, on_progress=lambda done, total: seen.append((done, total)))
    total = sum(len(model_files[name]) for name in NEEDED)
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    assert {of for _, of in seen} == {total}
    assert capfd.readouterr() == ("", "")


def test_it_works_in_a_process_of_its_own(hub: FakeHub, home: Path):
    code = f"from magistral_mlx.hub import resolve; print(resolve({REPO!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert names(Path(done.stdout.strip())) == NEEDED
    assert done.stderr == ""
    assert Path(done.stdout.strip()).is_relative_to(home)


def test_the_token_goes_to_the_hub_and_to_nobody_else(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
):
    hub.gated.add(REPO)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    resolve(REPO)
    signed = [request for request in hub.requests if request.path.startswith("/cdn/")]
    resolved = [request for request in hub.requests if "/resolve/" in request.path]
    assert {request.authorization for request in signed} == {None}
    assert {request.authorization for request in resolved} == {f"Bearer {hub.token}"}


def test_a_gated_repository_says_how_to_get_in(hub: FakeHub):
    hub.gated.add(REPO)
    with pytest.raises(HubError, match=f"{REPO} is gated.*{hub.url}/{REPO}.*HF_TOKEN"):
        resolve(REPO)


@pytest.mark.parametrize("token", [None, "hf_right"])
def test_an_unknown_repository(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, token: str | None):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ModelNotFound, match=r"no folder some/thing here.*no repository some/thing"):
        resolve("some/thing")


def test_an_unknown_revision(hub: FakeHub):
    with pytest.raises(ModelNotFound, match=f"{REPO} has no revision 'v9'"):
        resolve(f"{REPO}@v9")


@pytest.mark.parametrize("name", ["./models/thing", "thing", "/no/such/folder", "a/b/c", "a b/c"])
def test_what_is_neither_a_folder_nor_a_repository(hub: FakeHub, name: str):
    with pytest.raises(ModelNotFound, match=f"there is no folder {name}, and it is not the name"):
        resolve(name)
    assert hub.requests == []


def test_a_file_is_not_a_folder(tmp_path: Path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelNotFound, match=r"is a file, and not a GGUF one\."):
        resolve(tmp_path / "model.safetensors")


def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"cannot reach http://127\.0\.0\.1:9 for some/thing"):
        resolve("some/thing")


def test_offline_and_not_here(hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match=f"{REPO} is not on this machine and HF_HUB_OFFLINE is set"):
        resolve(REPO)
    assert hub.requests == []


def test_an_endpoint_that_is_no_hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/elsewhere")
    with pytest.raises(HubError, match=r"elsewhere failed on some/thing \(status 404\)"):
        resolve("some/thing")


def test_too_little_disk_is_said_before_any_weights_come(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 100 * 2**20 + 500_000))
    with pytest.raises(StorageError, match=r"needs 0\.0 GB more .* has 0\.1 GB free.*HF_HOME"):
        resolve(REPO)
    assert not any(hub.downloads(shard) for shard in SHARDS)


def test_another_architecture_is_refused_before_its_weights_come(hub: FakeHub, tmp_path: Path):
    files = {"config.json": {"model_type": "llama"}, "model.safetensors": weights(1000)}
    hub.add("meta/llama", write_repo(tmp_path / "llama", files))
    with pytest.raises(UnsupportedModel, match="llama"):
        resolve("meta/llama")
    assert not hub.downloads("model.safetensors")


INT4 = {"config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}}}
FP8_GROUPS = {"config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}}}


@pytest.mark.parametrize(
    ("repo", "quantization", "instead"),
    [
        ("some/awq", {"quant_method": "awq"}, "mistralai/Magistral-Small-2509"),
        (
            "some/Devstral-Small-2507-GPTQ",
            {"quant_method": "gptq", "bits": 4},
            "mistralai/Devstral-Small-2507",
        ),
        (
            "mistralai/Ministral-3-8B-Instruct-2512-NVFP4",
            {"quant_method": "compressed-tensors"} | INT4,
            "mistralai/Ministral-3-8B-Instruct-2512-BF16",
        ),
        (
            "some/Ministral-3-14B-Reasoning-2512-bnb-4bit",
            {"quant_method": "bitsandbytes"},
            "mistralai/Ministral-3-14B-Reasoning-2512",
        ),
    ],
)
def test_a_foreign_format_is_refused_before_weights_come_and_one_in_bfloat16_is_named(
    hub: FakeHub, tmp_path: Path, repo: str, quantization: dict[str, Any], instead: str
):
    config = CONFIG | {"quantization_config": quantization}
    files = {"config.json": config, "model.safetensors": weights(1000)}
    folder = write_repo(tmp_path / repo, files)
    hub.add(repo, folder)
    message = f"{quantization['quant_method']} format.* Take {instead} in bfloat16"
    with pytest.raises(UnsupportedModel, match=message):
        resolve(repo)
    assert not hub.downloads("model.safetensors")
    with pytest.raises(UnsupportedModel, match=message):
        resolve(folder)


@pytest.mark.parametrize(
    "quantization", [{"quant_method": "fp8"}, {"quant_method": "compressed-tensors"} | FP8_GROUPS]
)
def test_fp8_is_no_foreign_format(hub: FakeHub, tmp_path: Path, quantization: dict[str, Any]):
    config = CONFIG | {"quantization_config": quantization}
    files = {"config.json": config, "model.safetensors": weights(1000)}
    hub.add("some/fp8", write_repo(tmp_path / "fp8", files))
    assert (resolve("some/fp8") / "model.safetensors").is_file()


def test_a_repository_without_a_checkpoint(hub: FakeHub, tmp_path: Path):
    hub.add("some/gguf", write_repo(tmp_path / "gguf", {"model.gguf": "x", "config.json": "{}"}))
    with pytest.raises(ModelNotFound, match="some/gguf holds no checkpoint that runs here"):
        resolve("some/gguf")


def test_a_repository_that_lacks_a_shard(
    hub: FakeHub, tmp_path: Path, model_files: dict[str, bytes | str]
):
    del model_files[SHARDS[1]]
    hub.add("some/broken", write_repo(tmp_path / "broken", model_files))
    with pytest.raises(
        CheckpointError, match=f"incomplete on the hub: its index names {SHARDS[1]}"
    ):
        resolve("some/broken")


def test_a_cache_that_cannot_be_written(hub: FakeHub, home: Path):
    home.write_text("a file where the folder should be")
    with pytest.raises(StorageError, match=f"{home}.* could not be written"):
        resolve(REPO)


def test_a_damaged_index_is_not_taken_for_complete(hub: FakeHub):
    folder = resolve(REPO)
    index = folder / "model.safetensors.index.json"
    index.unlink()
    index.write_text("{")
    with pytest.raises(CheckpointError, match=r"index\.json is damaged\. Delete it and try again"):
        resolve(REPO)
    index.unlink()
    assert resolve(REPO) == folder
