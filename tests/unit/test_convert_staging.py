"""When interrupted work is continued and when it is not, and who may write."""

from __future__ import annotations

import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from magistral_convert import Converting, ConvertOptions, check, convert, prepare
from magistral_convert.calibration.states import HiddenStates, SavedStates
from magistral_convert.conversion import run
from magistral_convert.staging import StagingFolder
from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.errors import InvalidOption, StorageError, TargetExists
from tests.checkpoints import write_hf_checkpoint, write_mistral_checkpoint


class Stop(Exception):
    """The test's own interruption."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_hf_checkpoint(tmp_path / "source", shards=3)


def interrupt(source: Path, target: Path, options: ConvertOptions | None = None) -> int:
    """Stop a conversion after the second source file; the tensors that it has noted as done."""
    done = [0]

    def stop(report: Converting) -> None:
        done.append(report.tensors_done)
        if report.bytes_done > 0.8 * report.bytes_total:
            raise Stop

    with pytest.raises(Stop):
        convert(source, target, options, on_progress=stop)
    return done[-1]


def first_report(source: Path, target: Path, options: ConvertOptions | None = None) -> Converting:
    reports: list[Converting] = []
    convert(source, target, options, on_progress=reports.append)
    return reports[0]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_command_goes_on(source: Path, tmp_path: Path):
    interrupt(source, tmp_path / "out")
    assert first_report(source, tmp_path / "out").tensors_done > 0


def test_other_options_start_over(source: Path, tmp_path: Path):
    interrupt(source, tmp_path / "out")
    options = ConvertOptions(bits=8)
    assert first_report(source, tmp_path / "out", options).tensors_done == 0
    undisturbed = convert(source, tmp_path / "undisturbed", options)
    assert (
        (tmp_path / "out" / "model-00001-of-00001.safetensors").read_bytes()
        == (undisturbed / "model-00001-of-00001.safetensors").read_bytes()
    )  # fmt: skip


def test_a_source_that_has_changed_starts_over(source: Path, tmp_path: Path):
    interrupt(source, tmp_path / "out")
    write_hf_checkpoint(source, seed=99, shards=3)
    os.utime(source / "model-00001-of-00003.safetensors", ns=(1, 1))
    assert first_report(source, tmp_path / "out").tensors_done == 0
    expected = convert(source, tmp_path / "again" / "out")
    assert content(tmp_path / "out") == content(expected)


@pytest.mark.parametrize("damage", ["state", "shard", "no shard"])
def test_a_work_folder_that_somebody_has_damaged_starts_over(
    damage: str, source: Path, tmp_path: Path
):
    interrupt(source, tmp_path / "out")
    work = tmp_path / "out.partial"
    shard = work / "model" / "model-00001-of-00001.safetensors"
    if damage == "state":
        (work / "state.json").write_text("{")
    elif damage == "shard":
        os.truncate(shard, 1000)
    else:
        shutil.rmtree(work / "model")
    assert first_report(source, tmp_path / "out").tensors_done == 0
    assert content(tmp_path / "out") == content(convert(source, tmp_path / "b" / "out"))


def test_a_second_process_on_the_same_target_is_refused(source: Path, tmp_path: Path):
    conversion = prepare(source, tmp_path / "out")
    with (
        StagingFolder(conversion.target, conversion.plan, {"source": "", "output": ""}),
        pytest.raises(StorageError, match="another conversion is writing"),
    ):
        run(conversion)


def test_a_target_that_is_there_needs_force(source: Path, tmp_path: Path):
    convert(source, tmp_path / "out", ConvertOptions(bits=8))
    before = content(tmp_path / "out")
    with pytest.raises(TargetExists, match="exists already"):
        convert(source, tmp_path / "out")
    assert content(tmp_path / "out") == before
    convert(source, tmp_path / "out", ConvertOptions(force=True))
    assert content(tmp_path / "out") != before


def test_an_empty_folder_is_a_fine_target(source: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    assert (convert(source, tmp_path / "out") / "config.json").is_file()


@pytest.mark.parametrize("file", ["chapter-1.tex", "config.json", "model.safetensors", ".hidden"])
def test_force_replaces_nothing_but_a_conversion(source: Path, tmp_path: Path, file: str):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / file).write_text("Years of work")
    with pytest.raises(TargetExists, match="does not hold an earlier conversion"):
        convert(source, tmp_path / "thesis", ConvertOptions(force=True))
    assert (tmp_path / "thesis" / file).read_text() == "Years of work"


def test_force_replaces_no_checkpoint_of_others(source: Path, tmp_path: Path):
    theirs = write_hf_checkpoint(tmp_path / "theirs", seed=9)
    before = content(theirs)
    with pytest.raises(TargetExists, match="does not hold an earlier conversion"):
        convert(source, theirs, ConvertOptions(force=True))
    assert content(theirs) == before


FOREIGN = ("notes.txt", "adapters.safetensors", ".gitignore", "evaluation/results.json")


def test_force_keeps_what_others_have_put_beside_a_conversion(source: Path, tmp_path: Path):
    target = convert(source, tmp_path / "out", ConvertOptions(bits=8))
    for name in FOREIGN:
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text(f"this is {name}")
    convert(source, target, ConvertOptions(force=True))
    for name in FOREIGN:
        assert (target / name).read_text() == f"this is {name}"
    once_more = convert(source, tmp_path / "fresh")
    own = {path.name for path in once_more.iterdir()}
    assert {path.name for path in target.iterdir()} == own | {
        "notes.txt", "adapters.safetensors", ".gitignore", "evaluation"
    }  # fmt: skip
    assert Checkpoint.open(target)


def test_force_keeps_them_though_the_process_dies_while_it_publishes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target = convert(source, tmp_path / "out", ConvertOptions(bits=8))
    (target / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch:
        # The earlier conversion has been moved aside, and the new one is in its place.
        patch.setattr(
            StagingFolder,
            "_keep_foreign_files",
            lambda self: sys.exit(9) if (self.path / "replaced").exists() else None,
        )
        with pytest.raises(SystemExit):
            convert(source, target, ConvertOptions(force=True))
    assert not (target / "notes.txt").exists()
    convert(source, target, ConvertOptions(force=True, bits=6))
    assert (target / "notes.txt").read_text() == "mine"


def test_a_link_stands_for_the_folder_that_it_leads_to(source: Path, tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    for name, folder in (("link", "disk"), ("dangling", "new")):
        assert convert(source, tmp_path / name) == tmp_path / folder
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / name / "config.json").is_file()
        with pytest.raises(TargetExists):
            convert(source, tmp_path / name)
        convert(source, tmp_path / name, ConvertOptions(bits=8, force=True))
        assert (tmp_path / name).is_symlink()


@pytest.mark.parametrize("output", ["loop", "loop/inside", "one", "two"])
def test_a_link_that_leads_back_to_itself_is_no_target(source: Path, tmp_path: Path, output: str):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    with pytest.raises(InvalidOption, match="leads back to itself"):
        convert(source, tmp_path / output)


@pytest.mark.parametrize("output", ["out", "out/inside", "out/deep/inside"])
def test_a_file_is_no_target_and_holds_none(output: str, source: Path, tmp_path: Path):
    (tmp_path / "out").write_text("")
    conversion = prepare(source, tmp_path / output, ConvertOptions(force=True))
    with pytest.raises(TargetExists, match="out is a file"):
        check(conversion)


@pytest.mark.parametrize("output", ["", "/"])
def test_an_output_without_a_name_is_refused(output: str, source: Path):
    with pytest.raises(InvalidOption, match="names no folder"):
        convert(source, output)


@pytest.mark.parametrize("place", [".", "inside", ".."])
def test_the_output_may_not_overlap_the_source(place: str, source: Path):
    with pytest.raises(InvalidOption, match="overlap"):
        convert(source, source / place, ConvertOptions(force=True))
    assert (source / "config.json").is_file()


@pytest.mark.parametrize("place", ["", "a link"])
def test_a_source_where_the_output_would_be_prepared_is_refused(
    place: str, source: Path, tmp_path: Path
):
    work = tmp_path / "out.partial"
    theirs = source
    if place == "a link":
        work.symlink_to(source)
    else:
        theirs = shutil.copytree(source, work / place)
        (work / "lock").touch()  # as a conversion leaves it
    with pytest.raises(InvalidOption, match=r"is prepared in .*out\.partial, and the source"):
        convert(theirs, tmp_path / "out")
    assert content(theirs).keys() >= content(source).keys()


@pytest.mark.parametrize("file", ["model/thesis.tex", "state.json", "lock", ""])
def test_a_folder_of_others_where_the_output_would_be_prepared_is_left_alone(
    file: str, source: Path, tmp_path: Path
):
    theirs = tmp_path / "out.partial" / file
    theirs.parent.mkdir(parents=True, exist_ok=True)
    theirs.write_text('{"years": "of work"}')
    with pytest.raises(TargetExists, match=r"out\.partial .*no conversion has made it"):
        convert(source, tmp_path / "out")
    assert theirs.read_text() == '{"years": "of work"}'
    assert [path for path in (tmp_path / "out.partial").rglob("*") if path.is_file()] == (
        [theirs] if file else []
    )


def test_what_others_put_into_the_work_folder_stays_there(source: Path, tmp_path: Path):
    interrupt(source, tmp_path / "out")
    for name in (".DS_Store", "notes.txt"):
        (tmp_path / "out.partial" / name).write_text("mine")
    assert first_report(source, tmp_path / "out").tensors_done > 0
    assert content(tmp_path / "out.partial") == {"notes.txt": b"mine"}


def test_a_target_that_appears_meanwhile_is_not_overwritten(source: Path, tmp_path: Path):
    target = tmp_path / "out"

    def put_something_there(report: Converting) -> None:
        target.mkdir(exist_ok=True)
        (target / "mine").write_text("")

    with pytest.raises(TargetExists, match="was created meanwhile"):
        convert(source, target, on_progress=put_something_there)
    assert [path.name for path in target.iterdir()] == ["mine"]


def test_too_little_disk_is_said_before_the_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(StorageError, match=r"needs 0.1 GB more on the disk of .* 0.0 GB free"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_what_is_done_already_needs_no_room_again(source: Path, tmp_path: Path):
    before = prepare(source, tmp_path / "out").space_needed
    interrupt(source, tmp_path / "out")
    after = prepare(source, tmp_path / "out").space_needed
    assert after[0][1] < before[0][1]


def test_a_disk_that_fills_up_is_one_error_and_the_work_is_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written = [0]
    pwrite = os.pwrite

    def full(file: int, data: bytes, offset: int) -> int:
        written[0] += len(data)
        if written[0] > 1_200_000:
            raise OSError(28, os.strerror(28))
        return pwrite(file, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StorageError, match=r"the disk is full at .*run the same command again"):
            convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert first_report(source, tmp_path / "out").tensors_done > 0


@pytest.mark.linux("macOS has no /dev/full")
def test_a_disk_that_fills_up_with_hidden_states_is_the_same_error(tmp_path: Path):
    (tmp_path / "partial-layer-3.safetensors").symlink_to("/dev/full")
    states = mx.zeros((2, 4, 8))
    with pytest.raises(StorageError, match=r"the disk is full at .*run the same command again"):
        SavedStates(tmp_path).save(3, HiddenStates(states, states, states))


def test_no_permission_is_one_error(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, os.strerror(13), str(self))

    conversion = prepare(source, tmp_path / "out")
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match="no permission to write"):
        run(conversion)


def test_writes_that_the_system_cuts_short_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = write_mistral_checkpoint(tmp_path / "source")
    expected = convert(source, tmp_path / "a" / "out")
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: pwrite(file, data[:5000], offset))
    assert content(convert(source, tmp_path / "b" / "out")) == content(expected)
