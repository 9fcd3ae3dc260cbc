"""Every byte that has arrived is kept, whatever interrupts a download, and none is wrong."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from magistral_mlx.errors import HubError, StorageError
from magistral_mlx.hub import partial, resolve, transfer
from magistral_mlx.hub.transfer import ATTEMPTS
from tests.fake_hub import FakeHub, write_repo
from tests.unit.hub.conftest import CONFIG, weights

REPO = "some/model"
SIZE = 1_234_567  # 13 segments, the last one shorter


@pytest.fixture
def content(hub: FakeHub, tmp_path: Path) -> bytes:
    """The weights of REPO, which is on the hub."""
    content = weights(SIZE, 7)
    hub.add(
        REPO, write_repo(tmp_path / "one", {"config.json": CONFIG, "model.safetensors": content})
    )
    return content


def downloaded() -> bytes:
    return (resolve(REPO) / "model.safetensors").read_bytes()


def leftovers(home: Path) -> list[Path]:
    return [*home.rglob("*.incomplete"), *home.rglob("*.parts")]


def starts(hub: FakeHub) -> list[int]:
    """Where in the weights each request for some of them begins."""
    served = hub.downloads("model.safetensors")
    ranges = [request.range or "bytes=0-" for request in served]
    return [int(asked.removeprefix("bytes=").split("-")[0]) for asked in ranges]


def inside_segments(hub: FakeHub) -> list[int]:
    """Those that go on in the middle of a segment, of which the beginning had arrived."""
    return [start for start in starts(hub) if start % 100_000]


def test_a_large_file_comes_over_several_connections(hub: FakeHub, content: bytes, home: Path):
    assert downloaded() == content
    assert sorted(starts(hub)) == list(range(0, SIZE, 100_000))
    assert leftovers(home) == []


def test_a_broken_connection_goes_on_where_it_broke(hub: FakeHub, content: bytes):
    hub.faults.cut_after, hub.faults.cuts = 65_536, 5
    assert downloaded() == content
    assert inside_segments(hub)
    assert sum(r.sent for r in hub.downloads("model.safetensors")) < SIZE + 5 * 65_536


def test_a_run_that_gave_up_is_continued_by_the_next(
    hub: FakeHub, content: bytes, home: Path, monkeypatch: pytest.MonkeyPatch
):
    hub.faults.cut_after, hub.faults.cuts = 65_536, 1
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    with pytest.raises(HubError, match=r"the connection to .* broke .*what has arrived is kept"):
        resolve(REPO)
    first = len(hub.requests)
    assert downloaded() == content
    assert sum(request.sent for request in hub.requests[first:]) <= SIZE - 65_536
    assert leftovers(home) == []


def test_a_killed_process_is_continued_by_the_next(hub: FakeHub, content: bytes, home: Path):
    hub.faults.hold_after = 65_536
    code = f"from magistral_mlx.hub import resolve; resolve({REPO!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    parts = _wait_for_bytes(home, hub, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.faults.hold_after = 0
    hub.release.set()
    assert sum(path.stat().st_size for path in parts) > 0
    assert not inside_segments(hub)
    assert downloaded() == content
    assert inside_segments(hub)
    assert leftovers(home) == []


def _wait_for_bytes(home: Path, hub: FakeHub, process: subprocess.Popen) -> list[Path]:
    """Until the other process has noted bytes on the disk; the server holds it from then on."""
    assert hub.held.wait(60)
    while process.poll() is None:
        tables = list(home.rglob("*.parts"))
        if any(any(table.read_bytes()[8:]) for table in tables):
            return list(home.rglob("*.incomplete"))
    raise AssertionError("the download ended although the server held it")


def test_an_interrupt_leaves_what_has_arrived(hub: FakeHub, content: bytes, home: Path):
    hub.faults.hold_after = 65_536
    with pytest.raises(KeyboardInterrupt):
        resolve(REPO, on_progress=_raise_at(65_536))
    assert not list(home.rglob("model.safetensors"))
    hub.faults.hold_after = 0
    hub.release.set()
    assert not inside_segments(hub)
    assert downloaded() == content
    assert inside_segments(hub)


def test_a_signed_address_that_runs_out_is_asked_for_again(hub: FakeHub, content: bytes):
    hub.faults.expire_after = 10
    assert downloaded() == content
    assert hub.signature == 1


def test_a_busy_server_is_asked_again(hub: FakeHub, content: bytes):
    hub.faults.status, hub.faults.refusals = 503, ATTEMPTS - 1
    assert downloaded() == content


def test_a_server_that_stays_busy_is_named(hub: FakeHub, content: bytes):
    hub.faults.status, hub.faults.refusals = 429, 10_000
    with pytest.raises(HubError, match=r"limits this address for now \(status 429\)"):
        resolve(REPO)


def test_a_server_without_ranges_sends_the_file_in_one_piece(hub: FakeHub, content: bytes):
    hub.faults.ignore_ranges = True
    assert downloaded() == content


def test_a_server_without_ranges_starts_again_after_a_break(
    hub: FakeHub, content: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(partial, "SEGMENT", 2 * SIZE)
    hub.faults.ignore_ranges = True
    hub.faults.cut_after, hub.faults.cuts = 700_000, 2
    assert downloaded() == content
    assert [r.sent for r in hub.downloads("model.safetensors")] == [700_000, 700_000, SIZE]


def test_damaged_content_is_never_kept(hub: FakeHub, content: bytes, home: Path):
    hub.faults.corrupt = True
    with pytest.raises(HubError, match=r"arrived damaged .* Run the command again"):
        resolve(REPO)
    assert leftovers(home) == []
    assert not list(home.rglob("model.safetensors"))
    hub.faults.corrupt = False
    assert downloaded() == content


@pytest.mark.parametrize("table", [b"", b"garbage", b"\xff" * 8 * 14, b"\0" * 8 * 14])
def test_a_damaged_note_of_progress_starts_the_file_again(
    hub: FakeHub, content: bytes, home: Path, table: bytes
):
    hub.faults.hold_after = 65_536
    with pytest.raises(KeyboardInterrupt):
        resolve(REPO, on_progress=_raise_at(65_536))
    hub.faults.hold_after = 0
    hub.release.set()
    (parts,) = home.rglob("*.parts")
    parts.write_bytes(table)
    assert downloaded() == content


def _raise_at(limit: int):
    def on_progress(done: int, total: int) -> None:
        if done > limit:
            raise KeyboardInterrupt

    return on_progress


def test_a_disk_that_fills_up_is_named_and_what_arrived_is_used(
    hub: FakeHub, content: bytes, monkeypatch: pytest.MonkeyPatch
):
    real, written = os.pwrite, 0

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > 500_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", pwrite)
        with pytest.raises(StorageError, match=r"the disk is full .*HF_HOME"):
            resolve(REPO)
    before = hub.bytes_served
    assert downloaded() == content
    assert hub.bytes_served - before < SIZE - 300_000


def test_an_empty_file_is_downloaded_as_one(hub: FakeHub, tmp_path: Path):
    files = {"config.json": CONFIG, "SYSTEM_PROMPT.txt": "", "model.safetensors": b"x"}
    hub.add("some/empty", write_repo(tmp_path / "empty", files))
    assert (resolve("some/empty") / "SYSTEM_PROMPT.txt").read_bytes() == b""


def test_two_at_once_download_it_once(hub: FakeHub, content: bytes):
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(resolve(REPO))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders[0] == folders[1]
    assert (folders[0] / "model.safetensors").read_bytes() == content
    assert sum(r.sent for r in hub.downloads("model.safetensors")) == SIZE


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_breaks_gives_the_same_bytes(hub: FakeHub, content: bytes, seed: int):
    rng = random.Random(seed)
    for _ in range(20):
        hub.faults.cut_after, hub.faults.cuts = rng.randrange(100_000), rng.randrange(1, 60)
        try:
            assert downloaded() == content
            break
        except HubError:
            continue
    else:
        hub.faults.cuts = 0
        assert downloaded() == content
