"""Download of one file over HTTP, by ranges on several connections, resumable at any byte.

huggingface_hub (1.31 to 2.4 at least) deletes an unfinished file when its process ends, and a shard
is 5 GB. Here an interrupted download continues at the byte where it stopped, whatever stopped it,
and the content is checked against the hub's hash.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from magistral_mlx.errors import HubError
from magistral_mlx.hub.client import http_module, raise_for_status
from magistral_mlx.hub.partial import Partial

DownloadProgress = Callable[[int, int], None]
"""Called with the bytes received and the size, from the caller's thread."""

CONNECTIONS = 8
ATTEMPTS = 6
FIRST_PAUSE = 1.0  # seconds before the second attempt; doubles up to LONGEST_PAUSE
LONGEST_PAUSE = 30.0
_POLL = 0.1  # seconds between reports of progress
_BUSY = (408, 429, 500, 502, 503, 504)


class _RangesIgnored(Exception):
    """The server sent the whole file where a part was asked for."""


class _Retry(Exception):
    """A temporary failure; `pause` is the wait that the server asked for, in seconds."""

    def __init__(self, cause: Exception, pause: float = 0.0) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.pause = pause


def fetch(
    url: str,
    target: Path,
    *,
    size: int,
    etag: str,
    headers: dict[str, str],
    on_progress: DownloadProgress | None = None,
) -> None:
    """Download `url` to `target`, which appears only once it is whole and its hash is right.

    `size` (bytes) and `etag` are those of the hub's listing. Raises what huggingface_hub and its
    HTTP client raise (see `failures.hub_errors`), and `HubError` for a damaged file.
    """
    try:
        intact = _fetch(url, Partial(target, size, etag), headers, on_progress)
    except _RangesIgnored:
        intact = _fetch(url, Partial(target, size, etag, whole=True), headers, on_progress)
    if not intact:
        raise HubError(
            f"{target.name} arrived damaged (its hash is not the hub's). Run the command again."
        )


def _fetch(
    url: str, partial: Partial, headers: dict[str, str], on_progress: DownloadProgress | None
) -> bool:
    with partial:
        _Download(url, partial, headers).run(on_progress)
        return partial.finish()


class _Download:
    """The threads that fill one `Partial`."""

    def __init__(self, url: str, partial: Partial, headers: dict[str, str]) -> None:
        self._hub_url = url
        self._headers = headers | {"Accept-Encoding": "identity"}
        self._partial = partial
        self._direct_url: str | None = None  # where the hub redirected to, while it is valid
        self._stop = threading.Event()
        self._errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self._work: queue.SimpleQueue[int] = queue.SimpleQueue()

    def run(self, on_progress: DownloadProgress | None) -> None:
        """Fetch every pending segment, reporting progress; re-raise the first failure."""
        pending = self._partial.pending()
        for index in pending:
            self._work.put(index)
        workers = [
            threading.Thread(target=self._worker, name="hub-download", daemon=True)
            for _ in range(min(CONNECTIONS, len(pending)))
        ]
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                while worker.is_alive():
                    worker.join(_POLL)
                    self._report(on_progress)
            self._report(on_progress)
        finally:
            self._stop.set()  # one that hangs in a read ends by its time limit, writing nothing
        if not self._errors.empty():
            raise self._errors.get()

    def _report(self, on_progress: DownloadProgress | None) -> None:
        if on_progress is not None:
            on_progress(self._partial.received, self._partial.size)

    def _worker(self) -> None:
        try:
            while not self._stop.is_set():
                self._fill(self._work.get_nowait())
        except queue.Empty:
            return
        except BaseException as error:
            self._errors.put(error)
            self._stop.set()

    def _fill(self, index: int) -> None:
        """Fetch what segment `index` lacks, trying again while attempts bring bytes."""
        failures = 0
        while not self._stop.is_set():
            start, end = self._partial.span(index)
            if start >= end:
                return
            try:
                self._request(index, start, end)
            except _Retry as retry:
                if self._partial.span(index)[0] > start:
                    failures = 0
                failures += 1
                if failures >= ATTEMPTS:
                    raise retry.cause from retry
                pause = min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE)
                self._stop.wait(min(max(pause, retry.pause), LONGEST_PAUSE))

    def _request(self, index: int, start: int, end: int) -> None:
        """One request for bytes `start` up to `end` of segment `index`."""
        from huggingface_hub import constants, get_session

        httpx = http_module()
        url = self._direct_url or self._hub_url
        headers = dict(self._headers)
        if urlsplit(url).netloc != urlsplit(self._hub_url).netloc:
            headers.pop("authorization", None)  # a signed address; the token is the hub's alone
        if (start, end) != (0, self._partial.size):
            headers["Range"] = f"bytes={start}-{end - 1}"
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        try:
            with get_session().stream(
                "GET", url, headers=headers, timeout=timeout, follow_redirects=True
            ) as response:
                self._check_status(response, signed=url != self._hub_url or bool(response.history))
                if response.status_code == 200 and "Range" in headers:
                    if not self._partial.whole:
                        raise _RangesIgnored
                    self._partial.clear(index)
                elif "Range" in headers:
                    _check_range(response, start)
                if response.history:
                    self._direct_url = str(response.url)
                for piece in response.iter_bytes():
                    if self._stop.is_set():
                        return
                    self._partial.write(index, piece)
        except httpx.TransportError as error:
            raise _Retry(error) from error
        start, end = self._partial.span(index)
        if start < end:
            early = f"{self._hub_url} ended {end - start} bytes early. Run the command again."
            raise _Retry(HubError(early))

    def _check_status(self, response: Any, *, signed: bool) -> None:
        """Raise the hub's error, or `_Retry` where the next attempt may do better."""
        from huggingface_hub.errors import HfHubHTTPError

        try:
            raise_for_status(response)
        except HfHubHTTPError as error:
            if signed and response.status_code in (401, 403, 404, 410):
                self._direct_url = None  # the signed address has run out: ask the hub again
                raise _Retry(error) from error
            if response.status_code in _BUSY:
                raise _Retry(error, _retry_after(response)) from error
            raise


def _check_range(response: Any, start: int) -> None:
    """Raise `HubError` where a partial answer is not the part that was asked for."""
    answered = response.headers.get("Content-Range", "")
    if not answered.startswith(f"bytes {start}-"):
        raise HubError(
            f"{response.url.host} was asked for bytes from {start} and sent "
            f"{answered or 'no range'}. Check HF_ENDPOINT."
        )


def _retry_after(response: Any) -> float:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0
