"""A --cache-dir that keeps nothing: said at start, in /health, and once in the log."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Any

import pytest

from magistral_mlx.api.disk_cache import DiskCacheConfig
from magistral_mlx.api.load_options import LoadOptions
from magistral_mlx.cache import writer
from magistral_mlx.server.settings import Settings
from tests.serving import live_server, wait_until


def settings_of(folder: Path) -> Settings:
    return Settings(models=("demo",), load=LoadOptions(cache_dir=str(folder), wire=False))


def test_a_file_is_no_folder_and_health_says_so(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with live_server(settings_of(tmp_path / "file")) as server:
        assert server.ask("Hi", max_tokens=2)[0] == 200
        assert str(tmp_path / "file") in (server.service.pool.disk_problem or "")
        status, health = server.get("/health")
    assert (status, health["status"]) == (200, "ok")
    (told,) = health["details"]
    assert told.startswith("Prompts cannot be kept in --cache-dir: ")
    assert str(tmp_path) not in told
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_can_be_written_to_is_no_problem(tmp_path: Path):
    assert DiskCacheConfig(tmp_path / "new" / "kept", 10**9).problem() is None
    assert list((tmp_path / "new" / "kept").iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_what_keeps_a_folder_from_being_written_to_is_told(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> None:
        raise OSError(number, "not now")

    monkeypatch.setattr(Path, "write_bytes", fail)
    problem = DiskCacheConfig(tmp_path, 10**9).problem()
    assert problem is not None and str(tmp_path) in problem
    assert ("the disk is full" if number == errno.ENOSPC else "not now") in problem


def test_a_disk_that_fills_up_is_told_once_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "write", full)
    with (
        caplog.at_level(logging.WARNING, "magistral_mlx"),
        live_server(settings_of(tmp_path)) as server,
    ):
        assert server.get("/health")[1]["details"] == []
        for n in range(3):
            assert server.ask(f"{n} " * 400, max_tokens=2)[0] == 200
        wait_until(lambda: server.get("/health")[1]["details"] != [])
        (told,) = server.get("/health")[1]["details"]
        assert server.ask("Hi", max_tokens=2)[0] == 200
    assert "the disk is full" in told
    logged = [record.message for record in caplog.records if "the disk is full" in record.message]
    assert len(logged) == 1 and str(tmp_path) in logged[0]
