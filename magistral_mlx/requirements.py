"""Checks of the platform and of optional packages, with one-line errors instead of tracebacks."""

from __future__ import annotations

import importlib.util
import os
import platform

from magistral_mlx.errors import InvalidOption, MissingExtra, UnsupportedPlatform

OLDEST_MACOS = 14  # MLX's wheels need it


def check_platform() -> None:
    """Check system and architecture, without importing MLX.

    Raises:
        UnsupportedPlatform: naming what is wrong and what to install.
    """
    system, machine = platform.system(), platform.machine()
    if system == "Darwin":
        if machine != "arm64":
            raise UnsupportedPlatform(
                f"this Python is built for {machine}, and MLX runs on arm64 only. On an Apple "
                "Silicon Mac install an arm64 Python (python.org, Homebrew in /opt/homebrew, or "
                "uv) and install magistral-mlx with that; Intel Macs are not supported."
            )
        version = platform.mac_ver()[0]
        if version and int(version.split(".")[0]) < OLDEST_MACOS:
            raise UnsupportedPlatform(
                f"this is macOS {version}, and MLX needs macOS {OLDEST_MACOS} or later. "
                "Update macOS in System Settings > General > Software Update."
            )
    elif system != "Linux":
        raise UnsupportedPlatform(
            f"MLX does not run on {system}. Use a Mac with Apple Silicon, or Linux."
        )


def check_environment() -> None:
    """Check the variables that huggingface_hub reads as it is imported.

    Raises:
        InvalidOption: one that is not the number that it expects.
    """
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        value = os.environ.get(name)
        if value and not value.strip().lstrip("+-").isdecimal():
            raise InvalidOption(f"{name} is {value!r}; it must be a whole number of seconds.")


def check_extra(command: str, extra: str, *modules: str, instead: str = "") -> None:
    """Check that the packages of an extra are installed, without importing them.

    Args:
        instead: a sentence on how to do without.

    Raises:
        MissingExtra: with the command that installs them.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingExtra(
            f"{command} needs {' and '.join(missing)}. Install the extra in a checkout, as the "
            f"README says: `uv tool install '.[{extra}]'`, or `pip install '.[{extra}]'`."
            f"{instead and ' ' + instead}"
        )
