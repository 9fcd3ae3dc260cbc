"""A conversion killed at any moment goes on, and ends with the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from magistral_convert import Converting, ConvertOptions, convert
from magistral_mlx.checkpoint.folder import Checkpoint
from tests.checkpoints import write_hf_checkpoint

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("dying_convert.py")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("source"), seed=3, shards=3)


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return content(convert(source, tmp_path_factory.mktemp("undisturbed") / "out"))


@pytest.fixture(scope="module")
def operations(source: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many operations on the disk a conversion takes."""
    target = tmp_path_factory.mktemp("counted") / "out"
    return int(run_and_die(source, target, 0).stdout)


def run_and_die(source: Path, target: Path, number: int, *rest: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), str(source), str(target), str(number), *rest]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == (-signal.SIGKILL if number else 0), result.stderr
    return result


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_killed_while_it_works(share: float, source, undisturbed, operations, tmp_path: Path):
    target = tmp_path / "out"
    run_and_die(source, target, 1 + round(share * (operations - 1)))
    assert not target.exists()
    assert content(convert(source, target)) == undisturbed
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("before_the_end", [3, 2, 1, 0])
def test_killed_while_it_finishes(
    before_the_end: int, source, undisturbed, operations, tmp_path: Path
):
    target = tmp_path / "out"
    run_and_die(source, target, operations - before_the_end)
    if target.exists():
        assert content(target) == undisturbed
    else:
        assert content(convert(source, target)) == undisturbed


def test_killed_again_and_again(source, undisturbed, operations, tmp_path: Path):
    target = tmp_path / "out"
    for share in (0.2, 0.2, 0.3, 0.4):
        run_and_die(source, target, round(share * operations))
        assert not target.exists()
    assert content(convert(source, target)) == undisturbed


def test_what_is_done_is_not_done_again(source, operations, tmp_path: Path):
    target = tmp_path / "out"
    run_and_die(source, target, round(0.8 * operations))
    reports: list[Converting] = []
    convert(source, target, on_progress=reports.append)
    assert reports[0].tensors_done > 10
    assert reports[0].bytes_done > 0
    assert reports[-1].tensors_done == reports[-1].tensors
    assert reports[-1].bytes_done == reports[-1].bytes_total


@pytest.mark.parametrize("before_the_end", [3, 2, 1, 0])
def test_the_earlier_conversion_stands_until_the_new_one_is_finished(
    before_the_end: int, source, undisturbed, operations, tmp_path: Path
):
    target = tmp_path / "out"
    convert(source, target, ConvertOptions(bits=8))
    # One operation more than without an earlier one: it is moved aside.
    run_and_die(source, target, operations + 1 - before_the_end, "force")
    if target.exists():
        Checkpoint.open(target)  # the earlier or the new, but whole
    assert content(convert(source, target, ConvertOptions(force=True))) == undisturbed
    assert list(tmp_path.iterdir()) == [target]


def test_an_exception_from_the_caller_stops_it_where_it_can_go_on(
    source, undisturbed, tmp_path: Path
):
    target = tmp_path / "out"
    reports = []

    def stop_soon(report: Converting) -> None:
        reports.append(report)
        if report.tensors_done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, target, on_progress=stop_soon)
    assert not target.exists()
    assert content(convert(source, target)) == undisturbed
