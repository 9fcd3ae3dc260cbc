"""Runtimes in processes of their own, and their installed versions."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from magistral_mlx.errors import BenchmarkError, InvalidOption

_WORKER = Path(__file__).with_name("worker.py")
PEERS = ("mlx-lm", "mlx-vlm")
OURS = "magistral-mlx"


@dataclass(frozen=True)
class Program:
    """A runtime that can be started.

    label: its name in tables. package: its distribution. command: starts its process.
    preload: a library loaded before all others, so that MLX's matrix products use it.
    remote: a server that holds a model already, elsewhere or in another program.
    """

    label: str
    package: str
    command: tuple[str, ...]
    preload: str | None = None
    remote: bool = False


def ours(kv: str = "full", adapter: str | None = None) -> Program:
    """Return this package's runtime, with an adapter or without."""
    more = () if adapter is None else (adapter,)
    return Program(OURS, OURS, (sys.executable, "-m", "magistral_mlx.bench.ours", kv, *more))


def peer(wanted: str) -> Program:
    """Return a peer: "mlx-lm" or "mlx-vlm", or one of another environment, as in
    "mlx-vlm=…/bin/python".

    Raises:
        InvalidOption: no such peer, or no such Python.
    """
    name, _, python = wanted.partition("=")
    if name not in PEERS:
        raise InvalidOption(f"the peer is {name!r}; it must be one of {', '.join(PEERS)}.")
    python = python or sys.executable
    if shutil.which(python) is None:
        raise InvalidOption(
            f"{python} is not a program; give the Python that {name} is installed in."
        )
    return Program(name, name, (python, "-P", str(_WORKER), name))


def server(wanted: str, key_variable: str = "") -> Program:
    """Return a server with OpenAI's API: an address, or ADDRESS=MODEL.

    Args:
        key_variable: name of the environment's variable that holds the API key; empty for none.

    Raises:
        InvalidOption: no such variable.
        BenchmarkError: it does not answer, or has no such model.
    """
    from magistral_mlx.bench.remote import RemoteServer

    if key_variable and not os.environ.get(key_variable):
        raise InvalidOption(
            f"api_key_env is {key_variable!r}, and no such variable is set. Export it first."
        )
    url, _, model = wanted.partition("=")
    RemoteServer(url, model, os.environ.get(key_variable, "")).check()
    module = (sys.executable, "-m", "magistral_mlx.bench.remote")
    label = url.partition("://")[2].removesuffix("/").removesuffix("/v1")
    return Program(label, "", (*module, url, model, key_variable), remote=True)


def is_address(wanted: str) -> bool:
    """Whether `wanted` is the address of a server rather than the name of a peer."""
    return wanted.startswith(("http://", "https://"))


def with_library(program: Program, library: str) -> Program:
    """Return the same program with a BLAS loaded first."""
    return replace(program, label=f"{program.label} + OpenBLAS", preload=library)


@cache
def version(program: Program) -> str | None:
    """Return the installed version of a program's package; None if it is not installed."""
    if program.command[0] == sys.executable:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(program.package)
        return None
    code = f"import importlib.metadata as m; print(m.version({program.package!r}))"
    done = subprocess.run([program.command[0], "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


class RuntimeProcess:
    """A running program that executes one task after the other."""

    def __init__(self, program: Program) -> None:
        environment = dict(os.environ)
        if program.preload:
            environment["LD_PRELOAD"] = program.preload
        self.program = program
        self._process = subprocess.Popen(
            program.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, task: str, **arguments: Any) -> dict[str, Any]:
        """Run a task and return its answer.

        Raises:
            BenchmarkError: the runtime failed, or ended.
        """
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"task": task, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line.endswith("\n"):  # empty, or a line that a dying process did not finish
            status = self._process.wait()
            raise BenchmarkError(
                f"{self.program.label} ended with status {status} while it was asked to {task}. "
                "It may have run out of memory: try a smaller model or context."
            )
        answer = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(f"{self.program.label} cannot {task}: {answer['error']}.")
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # it ended without reading its last task
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> RuntimeProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
