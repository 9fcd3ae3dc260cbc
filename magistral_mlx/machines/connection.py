"""Connections to the agents of machines: by ssh, or to a process of this machine."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, Queue
from typing import Any

from magistral_mlx import __version__
from magistral_mlx.errors import MachineError
from magistral_mlx.machines.agent import ANSWER, END_SECONDS
from magistral_mlx.machines.hosts import Host

AGENT = "machine-agent"  # the hidden command that an agent is
_ANSWER_SECONDS = 60.0  # for a digest of a model on a slow disk
_SSH = (
    *("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)
# What ssh or the remote shell says -> what is wrong and what to do, with {name} and {version}.
_FAILURES = (
    (
        r"Could not resolve|Name or service not known|nodename nor servname",
        "its name is not known: check the name, or give its address",
    ),
    (
        r"Permission denied|Too many authentication failures|publickey",
        "ssh is not let in without a password: run `ssh-copy-id {target}`, and try again",
    ),
    (
        r"Host key verification failed|REMOTE HOST IDENTIFICATION",
        "its key is not known to ssh: run `ssh {target}` once by hand and accept it",
    ),
    (
        r"Connection refused",
        "it takes no ssh: turn on Remote Login there (System Settings > General > Sharing)",
    ),
    (
        r"timed out|No route to host|Host is down|Network is unreachable",
        "it cannot be reached: check that it is on, awake and on this network",
    ),
    (
        r"no command machine-agent",
        "it has another version of magistral-mlx: install the same checkout ({version}) there, as "
        "the README says",
    ),
    (
        r"not found|No module named|No such file",
        "magistral-mlx was not found there: install the same checkout ({version}) there, as the "
        "README says, where a login shell finds it, or with the same Python as here",
    ),
)


class Connection:
    """One machine's agent. Requests are answered in order; the end of its rank comes unasked."""

    def __init__(
        self, host: Host, rank: int, on_line: Callable[[str], None], *, several: bool = False
    ) -> None:
        """Start the agent. several: name its rank as well.

        on_line: gets each line of its stderr from its first answer on. What is said before, by ssh
        or a shell, is in the error if it never answers.

        Raises:
            MachineError: there is no ssh here.
        """
        self.host, self.rank = host, rank
        self.label = f"{host.name} (rank {rank})" if several else host.name
        self.ended: int | None = None  # exit status of its rank
        self._on_line = on_line
        self._lines: deque[str] = deque(maxlen=20)  # the last ones of stderr
        self._answers: Queue[dict[str, Any] | None] = Queue()
        self._has_answered = self._closing = False
        try:
            self._process = subprocess.Popen(
                _command(host),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="backslashreplace",
                start_new_session=True,  # Ctrl-C is this machine's to pass on
            )
        except OSError as error:
            raise MachineError(
                f"{host.name} cannot be reached: {_SSH[0]} is not installed here "
                f"({error.strerror}). Install OpenSSH's client."
            ) from None
        self._lines_reader = threading.Thread(target=self._read_lines, daemon=True)
        self._lines_reader.start()
        self._answers_reader = threading.Thread(target=self._read_answers, daemon=True)
        self._answers_reader.start()

    @property
    def last_line(self) -> str:
        """The last line that the agent or its rank wrote to stderr; "" for none."""
        return self._lines[-1] if self._lines else ""

    @property
    def lost(self) -> bool:
        """Whether the connection has ended."""
        return self._process.poll() is not None

    def send(self, do: str, **arguments: Any) -> None:
        """Send a request, whose answer `answer` returns."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # the answer tells
            self._process.stdin.write(json.dumps({"do": do, "with": arguments}) + "\n")
            self._process.stdin.flush()

    def answer(self, seconds: float = _ANSWER_SECONDS) -> dict[str, Any]:
        """Return the answer to the oldest request that has none yet.

        Raises:
            MachineError: the machine is lost, does not answer, or says what is wrong.
        """
        try:
            answer = self._answers.get(timeout=seconds)
        except Empty:
            raise MachineError(
                f"{self.label} has not answered for {seconds:.0f} seconds: check that it is awake "
                "and that its disk and network work, then try again."
            ) from None
        if answer is None:
            self._answers.put(None)
            raise MachineError(f"{self.label} cannot be used: {self._failure()}.")
        if "error" in answer:
            raise MachineError(f"{self.label}: {answer['error'].rstrip('.')}.")
        return answer

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """`send`, then `answer`."""
        self.send(do, **arguments)
        return self.answer()

    def close(self) -> None:
        """Let the agent end its rank and itself; kill it if it does not."""
        self._closing = True
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(3 * END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for reader in (self._lines_reader, self._answers_reader):
            reader.join(1)

    def _failure(self) -> str:
        """Why the agent ended, in words."""
        said = "\n".join(self._lines)
        words = {"target": self.host.target, "name": self.host.name, "version": __version__}
        for pattern, advice in _FAILURES:
            if re.search(pattern, said):
                return advice.format(**words)
        last = self.last_line or f"its process ended with status {self._process.wait()}"
        return f"{last.rstrip('.')} (try `ssh {self.host.target}` by hand)"

    def _read_answers(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                answer = json.loads(line)[ANSWER]
            except (ValueError, KeyError, TypeError):
                continue  # what a login shell prints
            self._has_answered = True
            if "ended" in answer:
                self.ended = answer["ended"]
            else:
                self._answers.put(answer)
        self._process.wait()
        self._lines_reader.join(1)  # what it said last
        self._answers.put(None)

    def _read_lines(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            text = line.rstrip("\r\n")
            self._lines.append(text)
            if self._has_answered and not self._closing:
                self._on_line(text)


def _command(host: Host) -> Sequence[str]:
    """The command that starts the agent of a machine."""
    if host.is_local:
        return [sys.executable, "-m", "magistral_mlx", AGENT]
    # The same Python as here if it is there, else what a login shell finds.
    python = shlex.quote(sys.executable)
    script = (
        f"if [ -x {python} ] && {python} -c 'import magistral_mlx' 2>/dev/null; "
        f"then exec {python} -m magistral_mlx {AGENT}; fi; "
        f'exec "${{SHELL:-/bin/sh}}" -lc "exec magistral-mlx {AGENT}"'
    )
    return [*_SSH, "--", host.target, f"exec /bin/sh -c {shlex.quote(script)}"]


def connect(hosts: Sequence[Host], on_line: Callable[[int, str], None]) -> list[Connection]:
    """Start the agents of all machines at once.

    Raises:
        MachineError: there is no ssh here.
    """
    from functools import partial

    names = [host.name for host in hosts]
    found: list[Connection] = []
    try:
        for rank, host in enumerate(hosts):
            several = names.count(host.name) > 1
            found.append(Connection(host, rank, partial(on_line, rank), several=several))
    except BaseException:
        close_all(found)
        raise
    return found


def close_all(connections: Sequence[Connection]) -> None:
    """Close all connections at once."""
    threads = [threading.Thread(target=connection.close) for connection in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
