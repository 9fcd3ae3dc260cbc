"""The process on each machine that answers the first one's requests and starts its rank.

It reads requests from stdin and writes answers to stdout, a JSON object a line: what is started and
with what travels this way and never stands on a command line. When stdin ends, because the command
ended or the connection was lost, the rank is ended too.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from typing import Any, TextIO

from magistral_mlx.errors import MagistralError

ANSWER = "magistral-mlx"  # key of every answer; a login shell may print other lines
END_SECONDS = 5.0  # that a rank has to end by itself


def run_agent(requests: TextIO, answers: TextIO) -> int:
    """Answer requests until they end -> the exit status."""
    agent = _Agent(answers)
    try:
        for line in requests:
            agent.handle(json.loads(line))
    except (ValueError, KeyboardInterrupt):
        pass
    finally:
        agent.end()
    return 0


class _Agent:
    """State of an agent: its listener, and the rank that it has started."""

    def __init__(self, answers: TextIO) -> None:
        self._answers = answers
        self._lock = threading.Lock()
        self._listener: Any = None
        self._rank: subprocess.Popen[bytes] | None = None
        self._files: dict[str, str] = {}

    def handle(self, request: dict[str, Any]) -> None:
        """Do what is asked, and answer."""
        try:
            result = getattr(self, f"_do_{request['do']}")(**request["with"])
        except MagistralError as error:
            result = {"error": str(error)}
        except (OSError, EOFError) as error:
            result = {"error": getattr(error, "strerror", None) or "the connection was lost"}
        self._answer(result or {})

    def end(self) -> None:
        """End the rank and close the listener."""
        self._do_close()
        rank = self._rank
        if rank is not None and rank.poll() is None:
            try:
                rank.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                rank.terminate()
                try:
                    rank.wait(END_SECONDS)
                except subprocess.TimeoutExpired:
                    rank.kill()
                    rank.wait()
        remove_files(self._files)

    def _answer(self, result: dict[str, Any]) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._answers.write(json.dumps({ANSWER: result}) + "\n")
            self._answers.flush()

    def _do_facts(self, **asked: Any) -> dict[str, Any]:
        from magistral_mlx.machines.facts import machine_facts

        return machine_facts(**asked)

    def _do_listen(self, address: str, port: int) -> dict[str, Any]:
        from magistral_mlx.machines.links import LinkListener

        self._do_close()
        self._listener = LinkListener(address, port)
        return {"port": self._listener.port, "token": self._listener.token}

    def _do_measure(self, **asked: Any) -> dict[str, Any]:
        from magistral_mlx.machines.links import measure_link

        link = measure_link(**asked)
        return {"latency": link.latency, "bandwidth": link.bandwidth}

    def _do_close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _do_start(self, environment: dict[str, str], files: dict[str, Any]) -> dict[str, Any]:
        """Start the rank: its stdin is empty, and what it prints goes to stderr.

        It has no arguments, as rank 0 tells it what to do.

        Args:
            files: variable of the environment -> what the file that it names holds, as JSON.
        """
        self._files = write_files(files)
        self._rank = subprocess.Popen(
            [sys.executable, "-m", "magistral_mlx"],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            env=os.environ | environment | self._files,
        )
        threading.Thread(target=self._wait, args=(self._rank,), daemon=True).start()
        return {"pid": self._rank.pid}

    def _wait(self, rank: subprocess.Popen[bytes]) -> None:
        self._answer({"ended": rank.wait()})


def write_files(files: Mapping[str, Any]) -> dict[str, str]:
    """Write JSON files for the variables of an environment -> the variables, with their names."""
    names = {}
    for variable, content in files.items():
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(content, file)
        names[variable] = file.name
    return names


def remove_files(files: Mapping[str, str]) -> None:
    """Remove what `write_files` has written."""
    for name in files.values():
        with contextlib.suppress(OSError):
            os.unlink(name)
