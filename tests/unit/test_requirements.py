"""A machine that cannot run MLX is told so in one line that names what to do."""

from __future__ import annotations

import pytest

from magistral_mlx import requirements
from magistral_mlx.errors import UnsupportedPlatform


def fake(monkeypatch: pytest.MonkeyPatch, system: str, machine: str, macos: str = "") -> None:
    monkeypatch.setattr(requirements.platform, "system", lambda: system)
    monkeypatch.setattr(requirements.platform, "machine", lambda: machine)
    monkeypatch.setattr(requirements.platform, "mac_ver", lambda: (macos, ("", "", ""), machine))


def test_an_intel_python_is_told_to_become_arm64(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "Darwin", "x86_64", "15.1")
    with pytest.raises(UnsupportedPlatform, match=r"built for x86_64.*install an arm64 Python"):
        requirements.check_platform()


def test_an_old_macos_is_told_to_update(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "Darwin", "arm64", "13.6.1")
    with pytest.raises(UnsupportedPlatform, match=r"macOS 13\.6\.1.*needs macOS 14.*Update macOS"):
        requirements.check_platform()


def test_windows_is_told_where_mlx_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "Windows", "AMD64")
    with pytest.raises(UnsupportedPlatform, match=r"does not run on Windows.*Use a Mac"):
        requirements.check_platform()


@pytest.mark.parametrize("machine", [("Darwin", "arm64", "14.0"), ("Linux", "x86_64", "")])
def test_machines_that_can_run_it_pass(
    monkeypatch: pytest.MonkeyPatch, machine: tuple[str, str, str]
) -> None:
    fake(monkeypatch, *machine)
    requirements.check_platform()
