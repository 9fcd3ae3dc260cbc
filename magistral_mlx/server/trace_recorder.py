"""Traces: each exchange as a JSON file, for `magistral-mlx traces` to read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from magistral_mlx.errors import StorageError
from magistral_mlx.files import user_path
from magistral_mlx.runtime.request import Request
from magistral_mlx.runtime.result import Result

FORMAT, VERSION = "magistral-mlx exchange", 1
_log = logging.getLogger("magistral_mlx.server")


@dataclass(frozen=True)
class ExchangeTrace:
    """One exchange that is over: request, answers or error, and times.

    body: the request as received. request: that of the runtime; None if it was never queued there.
    timed_out: whether the server's time limit ended it. arrived, ended: on the clock of `request`.
    """

    endpoint: str
    model: str
    body: Mapping[str, Any]
    error: Exception | None
    request: Request | None
    timed_out: bool
    arrived: float
    ended: float

    @property
    def results(self) -> list[Result]:
        """The answers that have ended, the last one perhaps by the time limit."""
        if self.request is None or self.request.times.started is None:
            return []
        finished = [each for each in self.request.results if each.finish_reason is not None]
        if self.timed_out and finished and finished[-1].finish_reason == "cancelled":
            finished[-1] = replace(finished[-1], finish_reason="length")
        return finished

    @property
    def waited(self) -> float | None:
        """Seconds from arrival until generation began, if it did."""
        return None if self.request is None else self._seconds(self.request.times.started)

    @property
    def first_token(self) -> float | None:
        """Seconds from arrival to the first token, if it came."""
        return None if self.request is None else self._seconds(self.request.times.first_token)

    @property
    def total(self) -> float:
        """Seconds from arrival to the end."""
        return self.ended - self.arrived

    def _seconds(self, moment: float | None) -> float | None:
        return None if moment is None else moment - self.arrived

    def as_dict(self) -> dict[str, Any]:
        """The trace as JSON types."""
        error = self.error
        failure = None if error is None else {"type": type(error).__name__, "message": str(error)}
        return {
            "endpoint": self.endpoint,
            "model": self.model,
            "request": self.body,
            "samples": [_sample(sample) for sample in self.results],
            "error": failure,
            "seconds": {
                "waited": self.waited,
                "first_token": self.first_token,
                "total": self.total,
            },
        }


class TraceRecorder:
    """Writes traces to files of their own in one folder, readable by their owner only."""

    def __init__(self, folder: Path) -> None:
        """Make the folder, and check that it can be written to.

        Raises:
            StorageError: it cannot be written to.
        """
        self.folder = user_path(folder)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            reason = error.strerror or str(error)
            raise StorageError(f"traces cannot be written to {folder}: {reason}.") from error
        if self.folder.stat().st_mode & 0o077:
            _log.warning(
                "others on this machine can list %s: only its owner can read the traces, but their "
                "times are seen. chmod 700 closes it.",
                folder,
            )

    async def write(self, trace: ExchangeTrace) -> None:
        """Write one trace. A failure, such as a full disk, is logged and stops nothing."""
        try:
            await asyncio.to_thread(self._write, trace)
        except (OSError, ValueError) as error:
            _log.warning("a trace could not be written: %s", error)

    def _write(self, trace: ExchangeTrace) -> None:
        now = datetime.now(UTC)
        head = {"format": FORMAT, "version": VERSION, "time": now.isoformat()}
        content = head | trace.as_dict()
        text = json.dumps(content, ensure_ascii=True, indent=1) + "\n"
        descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=self.folder)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:  # mkstemp makes it 0600
                file.write(text)
            os.replace(
                temporary, self.folder / f"{now:%Y%m%dT%H%M%S.%f}-{secrets.token_hex(4)}.json"
            )
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def log_exchange(trace: ExchangeTrace, *, prompts: bool) -> None:
    """Log one line for an exchange; prompt and answer only if `prompts`."""
    result = next(iter(trace.results), None)
    if trace.error is not None:
        _log.info("%s %s: %s", trace.endpoint, trace.model, type(trace.error).__name__)
    elif result is not None:
        usage = result.usage
        _log.info(
            "%s %s: %d + %d tokens in %.2f s, %s",
            trace.endpoint,
            trace.model,
            usage.prompt_tokens,
            usage.completion_tokens,
            trace.total,
            result.finish_reason,
        )
    if prompts:
        asked = json.dumps(trace.body, ensure_ascii=False, default=str)
        answer = None if result is None else {"thinking": result.thinking, "text": result.text}
        _log.info("asked %s, answered %s", asked, json.dumps(answer, ensure_ascii=False))


def _sample(result: Result) -> dict[str, Any]:
    return {
        "thinking": result.thinking,
        "text": result.text,
        "tool_calls": [
            {"name": call.name, "arguments": call.arguments, "id": call.id}
            for call in result.tool_calls
        ],
        "malformed_calls": [
            {"text": call.text, "problem": call.problem} for call in result.malformed_calls
        ],
        "finish_reason": result.finish_reason,
        "seed": result.seed,
        "stats": result.stats.as_dict(),
    }
