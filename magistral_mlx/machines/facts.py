"""What each machine tells of itself before it holds a part of a model."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from magistral_mlx import __version__

_COMMAND_SECONDS = 5.0
_PORT = re.compile(r"Hardware Port: (.+)\nDevice: (\S+)")
_RDMA = re.compile(r"^\s*(rdma_\w+|mlx\d+_\d+|\w+_\d+)\s+[0-9a-f]{12,}", re.MULTILINE)


def machine_facts(models: list[list[str]]) -> dict[str, Any]:
    """Describe this machine: versions, memory, network, and its copies of models.

    Args:
        models: the name of each model as the user gave it, and where the first machine has it.
    """
    from dataclasses import asdict

    from magistral_mlx.memory.machine import this_machine

    machine = this_machine()
    return {
        "version": __version__,
        "mlx": importlib.metadata.version("mlx"),
        "system": f"{platform.system()} {platform.release()}",
        "machine": {
            "name": machine.name,
            "memory": machine.memory,
            "limit": machine.limit,
            "available": machine.available,
            "chip": asdict(machine.chip) if machine.chip else None,
            "is_mac": machine.is_mac,
        },
        "addresses": own_addresses(),
        "rdma": rdma_devices(),
        "models": [_model(name, path) for name, path in models],
    }


def own_addresses() -> list[dict[str, Any]]:
    """IPv4 addresses of this machine but loopback, with the kind of their link, fast ones first.

    link: "thunderbolt", "wifi", "ethernet" or None where it cannot be told.
    """
    import socket

    import psutil

    ports = hardware_ports(_output("networksetup", "-listallhardwareports") or "")
    states = psutil.net_if_stats()
    found = []
    for device, addresses in psutil.net_if_addrs().items():
        if device not in states or not states[device].isup:
            continue
        for one in addresses:
            if one.family == socket.AF_INET and not one.address.startswith("127."):
                link = link_kind(ports[device]) if device in ports else None
                found.append({"device": device, "address": one.address, "link": link})
    order = ["thunderbolt", "ethernet", None, "wifi"]
    return sorted(found, key=lambda one: order.index(one["link"]))


def hardware_ports(text: str) -> dict[str, str]:
    """Device -> port of the output of macOS's `networksetup -listallhardwareports`."""
    return {device: port for port, device in _PORT.findall(text)}


def link_kind(port: str) -> str:
    """The kind of a hardware port that macOS names, as in "Thunderbolt Bridge"."""
    if "Thunderbolt" in port and "Ethernet" not in port:
        return "thunderbolt"
    return "wifi" if port == "Wi-Fi" else "ethernet"


def rdma_devices() -> list[str] | None:
    """RDMA devices that `ibv_devices` lists; None where it cannot be told."""
    output = _output("ibv_devices")
    return None if output is None else rdma_names(output)


def rdma_names(output: str) -> list[str]:
    """Names of the devices in the output of `ibv_devices`."""
    return [found[1] for found in _RDMA.finditer(output)]


def _output(*command: str) -> str | None:
    """What a program prints; None if it is not here or fails."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_COMMAND_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _model(name: str, path: str) -> dict[str, str | None]:
    """Where this machine has a model and the digest of its content, or why it has none."""
    from magistral_mlx.checkpoint.folder import Checkpoint
    from magistral_mlx.checkpoint.part import content_digest
    from magistral_mlx.errors import MagistralError

    try:
        found = _find(name, path)
        if found is None:
            return {"path": None, "digest": None, "problem": None}
        digest = content_digest(Checkpoint.open(found))
        return {"path": str(found), "digest": digest, "problem": None}
    except MagistralError as error:
        return {"path": None, "digest": None, "problem": str(error)}


def _find(name: str, path: str) -> Path | None:
    """The model at the same place as on the first machine, else by its name."""
    from magistral_mlx.library import find_by_name, find_models
    from magistral_mlx.paths import DEMO, demo_dir

    if name == DEMO:
        return demo_dir()
    if Path(path).exists():
        return Path(path)
    known = {model.name: model.path for model in find_models() if model.complete}
    for wanted in (name, Path(path).name):
        if found := known.get(wanted) or find_by_name(wanted):
            return found
    return None
