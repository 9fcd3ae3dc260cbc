"""Exchanges as JSON files, one each, for whoever wants to look at them later (`traces`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magistral_mlx.errors import StorageError
from magistral_mlx.runtime.result import Result

if TYPE_CHECKING:
    from magistral_mlx.server.exchange import Exchange

FORMAT, VERSION = "magistral-mlx exchange", 1
_log = logging.getLogger("magistral_mlx.server")


class Recorder:
    """Writes each exchange to a file of its own in one folder, for its owner only to read."""

    def __init__(self, folder: Path) -> None:
        """Make the folder, and see whether it can be written to.

        Raises:
            StorageError: it cannot.
        """
        self.folder = folder.expanduser()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            reason = error.strerror or str(error)
            raise StorageError(f"exchanges cannot be recorded in {folder}: {reason}.") from error
        if self.folder.stat().st_mode & 0o077:
            _log.warning(
                "others on this machine can list %s: their owner alone can read the files of "
                "exchanges, but when they were is seen. chmod 700 closes it.",
                folder,
            )

    async def write(self, exchange: Mapping[str, Any]) -> None:
        """Write one. A disk that is full must not stop the server: it is told in the log."""
        try:
            await asyncio.to_thread(self._write, exchange)
        except (OSError, ValueError) as error:
            _log.warning("an exchange could not be recorded: %s", error)

    def _write(self, exchange: Mapping[str, Any]) -> None:
        now = datetime.now(UTC)
        content = {"format": FORMAT, "version": VERSION, "time": now.isoformat(), **exchange}
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


def exchange_record(exchange: Exchange, error: Exception | None) -> dict[str, Any]:
    """An exchange as JSON types: what was asked, what came of it, and how long it took."""
    times = exchange.times
    result = exchange.collected.result
    samples = [] if result is None else result.samples or (result,)
    return {
        "endpoint": exchange.endpoint,
        "model": exchange.model,
        "request": exchange.body,
        "samples": [_sample(sample) for sample in samples],
        "error": None if error is None else {"type": type(error).__name__, "message": str(error)},
        "seconds": {
            "waited": times.began,
            "first_token": times.first_token,
            "total": times.ended,
        },
    }


def log_exchange(exchange: Exchange, error: Exception | None, *, prompts: bool) -> None:
    """One line for an exchange; what was said only where that was asked for."""
    result = exchange.collected.result
    if error is not None:
        _log.info("%s %s: %s", exchange.endpoint, exchange.model, type(error).__name__)
    elif result is not None:
        usage = result.usage
        _log.info(
            "%s %s: %d + %d tokens in %.2f s, %s",
            exchange.endpoint,
            exchange.model,
            usage.prompt_tokens,
            usage.completion_tokens,
            exchange.times.ended or 0.0,
            result.finish_reason,
        )
    if prompts:
        said = json.dumps(exchange.body, ensure_ascii=False, default=str)
        answer = None if result is None else {"thinking": result.thinking, "text": result.text}
        _log.info("asked %s, answered %s", said, json.dumps(answer, ensure_ascii=False))


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
