"""Converting a repository: one shard on the disk at a time, the same result as from a folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magistral_convert import (
    ConversionProgress,
    Converting,
    ConvertOptions,
    Downloading,
    convert,
    prepare,
)
from magistral_convert.publish import publish
from magistral_mlx.errors import HubError, InvalidOption, StorageError
from tests.checkpoints import params_of, tiny_config, write_hf_checkpoint, write_mistral_checkpoint
from tests.fake_hub import Content, FakeHub
from tests.fp8_files import quantize_folder

REPO = "mistralai/Magistral-Small-2509"
SHARDS = 4


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Both layouts side by side, as the official repository has them."""
    folder = tmp_path / "published"
    write_hf_checkpoint(folder, seed=6, shards=SHARDS)
    mistral = write_mistral_checkpoint(tmp_path / "mistral", seed=6)
    shutil.copy(mistral / "consolidated.safetensors", folder)
    shutil.copy(mistral / "params.json", folder)
    return folder


@pytest.fixture
def hub(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with FakeHub({REPO: published}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


class Stop(Exception):
    """The test's own interruption."""


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shard(number: int) -> str:
    return f"model-{number:05d}-of-{SHARDS:05d}.safetensors"


def weights_on_disk(root: Path) -> int:
    """Whole or arriving."""
    files = [path for path in root.rglob("model-*.safetensors*") if path.is_file()]
    return len([path for path in files if path.suffix != ".parts"])


def test_the_result_equals_that_of_the_folder(hub: FakeHub, published: Path, tmp_path: Path):
    folder = shutil.copytree(published, tmp_path / "Magistral-Small-2509")
    assert content(convert(REPO, tmp_path / "a" / "out")) == content(
        convert(folder, tmp_path / "b" / "out")
    )


def test_only_one_shard_is_on_the_disk_at_a_time(hub: FakeHub, tmp_path: Path):
    most = 0

    def count(report: ConversionProgress) -> None:
        nonlocal most
        most = max(most, weights_on_disk(tmp_path / "out.partial" / "source"))
        assert weights_on_disk(tmp_path / "hf") == 0

    convert(REPO, tmp_path / "out", on_progress=count)
    assert most == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out"]


def test_only_one_layout_is_fetched_and_each_shard_once(hub: FakeHub, tmp_path: Path):
    convert(REPO, tmp_path / "out")
    assert hub.downloads("consolidated.safetensors") == []
    for number in range(1, SHARDS + 1):
        path = tmp_path / "published" / shard(number)
        sent = sum(request.sent for request in hub.downloads(shard(number)))
        assert sent < path.stat().st_size + (140 << 10)  # the header, once more


def test_the_plan_needs_no_more_than_headers(hub: FakeHub, published: Path, tmp_path: Path):
    conversion = prepare(REPO, tmp_path / "out")
    assert conversion.plan.index == prepare(published, tmp_path / "out").plan.index
    assert all(request.range for number in range(1, SHARDS + 1)
               for request in hub.downloads(shard(number)))  # fmt: skip
    place, passing = conversion.space_needed[1]
    assert place == tmp_path / "out.partial" / "source"
    largest = max((published / shard(n)).stat().st_size for n in range(1, SHARDS + 1))
    assert passing == largest


def test_a_target_size_says_first_that_the_weights_are_not_here(hub: FakeHub, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("Mine.")
    with pytest.raises(InvalidOption, match=f"hf download {REPO}"):
        prepare(REPO, tmp_path / "out", ConvertOptions(target_bits=4.0))
    commit = hub.repos[REPO].head
    with pytest.raises(InvalidOption, match=f"hf download {REPO} --revision {commit}`"):
        prepare(f"{REPO}@{commit}", tmp_path / "out", ConvertOptions(target_bits=4.0))


def test_an_interrupted_one_fetches_only_what_is_missing_though_the_card_is_new(
    hub: FakeHub, tmp_path: Path
):
    expected = content(convert(REPO, tmp_path / "expected" / "out"))

    def stop(report: ConversionProgress) -> None:
        if isinstance(report, Converting) and report.bytes_done > 0.6 * report.bytes_total:
            raise Stop

    with pytest.raises(Stop):
        convert(REPO, tmp_path / "out", on_progress=stop)
    hub.repos[REPO].commit([Content("README.md", data=b"# New words\n")], keep=True)
    reports: list[ConversionProgress] = []
    assert content(convert(REPO, tmp_path / "out", on_progress=reports.append)) == expected
    fetched = {report.file for report in reports if isinstance(report, Downloading)}
    assert shard(1) not in fetched
    assert shard(4) in fetched


def test_a_download_that_breaks_is_one_error_and_goes_on(hub: FakeHub, tmp_path: Path):
    prepare(REPO, tmp_path / "out")  # small files and headers arrive before the trouble
    hub.faults.status, hub.faults.refusals = 403, 10**6
    with pytest.raises(HubError, match="refused"):
        convert(REPO, tmp_path / "out")
    hub.faults.refusals = 0
    assert not (tmp_path / "out").exists()
    assert (convert(REPO, tmp_path / "out") / "config.json").is_file()


def test_new_weights_start_over(hub: FakeHub, published: Path, tmp_path: Path):
    def stop(report: ConversionProgress) -> None:
        if isinstance(report, Converting) and report.bytes_done > 0.6 * report.bytes_total:
            raise Stop

    with pytest.raises(Stop):
        convert(REPO, tmp_path / "out", on_progress=stop)
    write_hf_checkpoint(published, seed=7, shards=SHARDS)
    hub.add(REPO, published)
    folder = convert(REPO, tmp_path / "out")
    expected = write_hf_checkpoint(tmp_path / "Magistral-Small-2509", seed=7, shards=SHARDS)
    name = "model-00001-of-00001.safetensors"
    again = convert(expected, tmp_path / "expected")
    assert (folder / name).read_bytes() == (again / name).read_bytes()


def test_keep_source_leaves_it_in_the_hubs_cache(hub: FakeHub, tmp_path: Path):
    convert(REPO, tmp_path / "out", ConvertOptions(keep_source=True))
    hub.requests.clear()
    convert(REPO, tmp_path / "8bit", ConvertOptions(bits=8))
    assert hub.requests == []


def test_mistrals_layout_alone_is_taken_where_there_is_no_other(
    hub: FakeHub, tmp_path: Path, published: Path
):
    for path in [*published.glob("model*"), published / "config.json"]:
        path.unlink()
    hub.add(REPO, published)
    assert params_of(tiny_config())["dim"] == 128
    assert (convert(REPO, tmp_path / "out") / "config.json").is_file()


def test_a_server_that_ignores_ranges_still_serves(hub: FakeHub, tmp_path: Path):
    hub.faults.ignore_ranges = True
    assert (convert(REPO, tmp_path / "out") / "config.json").is_file()


def test_disk_for_output_and_one_shard_is_asked_for(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    conversion = prepare(REPO, tmp_path / "out")
    needed = sum(nbytes for _, nbytes in conversion.space_needed)
    usage = shutil.disk_usage(tmp_path)._replace(free=needed)  # and nothing to spare
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match="the conversion needs"):
        convert(REPO, tmp_path / "out")


def test_the_result_is_uploaded_and_nothing_that_others_have_put_beside_it(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = convert(REPO, tmp_path / "out", ConvertOptions(name="someone/magistral-4bit"))
    converted = {name for name in content(folder) if not name.startswith(".")}
    (folder / "my notes.txt").write_text("mine")
    (folder / "keys").mkdir()
    for name in ("id_rsa", "config.json"):
        (folder / "keys" / name).write_text("mine")
    with pytest.raises(HubError, match=r"out --exclude 'keys/\*' --exclude 'my notes.txt'`"):
        publish(folder, "someone/magistral-4bit")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    publish(folder, "someone/magistral-4bit")
    assert hub.files("someone/magistral-4bit").keys() == converted


def test_scales_in_another_shard_than_their_weight_are_fetched_and_kept_as_long_as_needed(
    hub: FakeHub, tmp_path: Path
):
    def move_scales(shards: list[dict[str, torch.Tensor]]) -> None:
        first, *_, last = shards
        for name in [name for name in first if name.endswith("scale_inv")][:2]:
            last[name] = first.pop(name)
        for name in [name for name in last if name.endswith("scale_inv")][-2:]:
            first[name] = last.pop(name)

    plain = write_hf_checkpoint(tmp_path / "plain", seed=6, shards=SHARDS)
    folder = tmp_path / "fp8"
    quantize_folder(plain, folder, granularity="block")
    files = sorted(folder.glob("*.safetensors"))
    shards = [load_file(file) for file in files]
    move_scales(shards)
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, file)
    hub.add("some/fp8", folder)
    conversion = prepare("some/fp8", tmp_path / "a" / "out")
    _, needed = conversion.source.space_needed()
    most = 0

    def measure(report: ConversionProgress) -> None:
        nonlocal most
        source = tmp_path / "a" / "out.partial" / "source"
        most = max(most, sum(path.stat().st_size for path in source.glob("*.safetensors")))

    convert("some/fp8", tmp_path / "a" / "out", on_progress=measure)
    assert (
        content(tmp_path / "a" / "out").keys()
        == content(convert(folder, tmp_path / "b" / "out")).keys()
    )
    for name in ("model-00001-of-00001.safetensors", "config.json"):
        assert (tmp_path / "a" / "out" / name).read_bytes() == (
            tmp_path / "b" / "out" / name
        ).read_bytes()
    assert 0 < most <= needed


def test_calibrated_it_fetches_each_shard_once(hub: FakeHub, published: Path, tmp_path: Path):
    folder = shutil.copytree(published, tmp_path / "Magistral-Small-2509")
    options = ConvertOptions(calibration=("default",), calibration_tokens=512)
    from_hub = content(convert(REPO, tmp_path / "a" / "out", options))
    for number in range(1, SHARDS + 1):
        sent = sum(request.sent for request in hub.downloads(shard(number)))
        assert sent < (published / shard(number)).stat().st_size + (140 << 10)
    assert from_hub == content(convert(folder, tmp_path / "b" / "out", options))
