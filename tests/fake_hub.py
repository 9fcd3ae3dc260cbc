"""A hub on 127.0.0.1 that serves folders, for tests of downloads and uploads.

    with FakeHub({"owner/name": folder}) as hub:
        ...  # HF_ENDPOINT=hub.url, in a subprocess or in this process

It answers what huggingface_hub and magistral_mlx.hub ask: listings, `resolve` with HEAD and GET,
a redirect of large files to signed addresses of another host name, ranges, the errors for unknown
and gated repositories, and uploads (see fake_hub_uploads). It can break connections, let signed
addresses run out and ignore ranges, and it records every request.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

LARGE = 10 * 2**20  # bytes from which any file is "large": served by redirect, hashed by SHA-256


@dataclass
class Content:
    """The bytes of one file, on disk or in memory."""

    name: str
    path: Path | None = None
    data: bytes = b""

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path else len(self.data)

    @property
    def large(self) -> bool:
        return self.name.endswith(".safetensors") or self.size >= LARGE

    def read(self, start: int, end: int) -> bytes:
        if self.path is None:
            return self.data[start:end]
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    @cached_property
    def etag(self) -> str:
        """SHA-256 of a large file, git's blob hash of a small one."""
        prefix = b"" if self.large else b"blob %d\0" % self.size
        digest = hashlib.sha256() if self.large else hashlib.sha1(prefix, usedforsecurity=False)
        for start in range(0, self.size, 2**22):
            digest.update(self.read(start, min(start + 2**22, self.size)))
        return digest.hexdigest()


@dataclass
class Served:
    """One request and what became of it. `sent` counts bytes of files only."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    sent: int = 0


@dataclass
class Faults:
    """What shall go wrong; counts run down as it does."""

    cut_after: int = 0  # bytes of a large file after which the connection breaks
    cuts: int = 0
    status: int = 0  # status with which requests for large files are answered
    refusals: int = 0
    hold_after: int = 0  # bytes of a large file after which the answer waits for `release`
    ignore_ranges: bool = False
    expire_after: int = 0  # answers by signed address after which they all run out, once
    bare_listing: bool = False  # no sizes and hashes in listings, as some mirrors do it
    corrupt: bool = False  # flip the first byte of large files


@dataclass
class Repo:
    """A repository: its commits, oldest first, each a table of files."""

    commits: dict[str, dict[str, Content]] = field(default_factory=dict)
    private: bool = False

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    def commit(
        self, files: Iterable[Content], *, keep: bool = False, sha: str | None = None
    ) -> str:
        """Add a commit with these files, and with those of the last one for `keep`.

        `sha`: its hash, for a test that has to know it beforehand.
        """
        table = dict(self.commits[self.head]) if keep and self.commits else {}
        table |= {file.name: file for file in files}
        tree = "".join(f"{name}{file.etag}" for name, file in sorted(table.items()))
        sha = (
            sha
            or hashlib.sha1(
                f"{len(self.commits)}{tree}".encode(), usedforsecurity=False
            ).hexdigest()
        )
        self.commits[sha] = table
        return sha

    def at(self, revision: str) -> str | None:
        """The commit that a revision means."""
        if revision == "main":
            return self.head
        return revision if revision in self.commits else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # many connections open at once


class FakeHub:
    """The server, from `with` to its end. Repositories may be added and changed meanwhile."""

    def __init__(self, repos: Mapping[str, Path] | None = None, *, token: str = "hf_right") -> None:
        self.token = token  # the one that opens gated repositories and may write
        self.gated: set[str] = set()
        self.faults = Faults()
        self.held, self.release = threading.Event(), threading.Event()
        self.signature = 0  # of redirects; older ones are refused
        self.requests: list[Served] = []
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}  # uploaded large contents by SHA-256
        self.lfs_uploads = False  # whether weights travel by LFS or inside the commit
        self.lock = threading.Lock()
        for name, folder in (repos or {}).items():
            self.add(name, folder)

    def __enter__(self) -> FakeHub:
        from tests.fake_hub_handler import Handler

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def cdn(self) -> str:
        """Where large files are: the same server by another name, so that clients see two hosts."""
        return f"http://localhost:{self._server.server_address[1]}/cdn"

    def add(self, name: str, folder: Path, sha: str | None = None) -> str:
        """Make the files of `folder` the newest commit of `owner/name`; its hash, or `sha`."""
        files = [
            Content(path.relative_to(folder).as_posix(), path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        return self.repos.setdefault(name, Repo()).commit(files, sha=sha)

    def files(self, name: str) -> dict[str, bytes]:
        """What a repository holds now."""
        repo = self.repos[name]
        return {n: file.read(0, file.size) for n, file in repo.commits[repo.head].items()}

    def downloads(self, filename: str) -> list[Served]:
        """The GET requests that sent bytes of that file, in order."""
        served = [r for r in self.requests if r.method == "GET" and r.sent]
        return [r for r in served if r.path.split("?")[0].endswith(f"/{filename}")]

    @property
    def bytes_served(self) -> int:
        """Bytes of files sent so far."""
        return sum(request.sent for request in self.requests)

    def listing(self, name: str, sha: str) -> dict[str, object]:
        """The answer of /api/models/NAME with sizes and hashes."""
        siblings = []
        for file in self.repos[name].commits[sha].values():
            entry: dict[str, object] = {"rfilename": file.name}
            siblings.append(entry)
            if self.faults.bare_listing:
                continue
            entry["size"] = file.size
            if file.large:
                entry["lfs"] = {"sha256": file.etag, "size": file.size, "pointerSize": 134}
                entry["blobId"] = hashlib.sha1(
                    file.etag.encode(), usedforsecurity=False
                ).hexdigest()
            else:
                entry["blobId"] = file.etag
        gated = "auto" if name in self.gated else False
        return {"id": name, "sha": sha, "private": False, "gated": gated, "siblings": siblings}

    def tree(self, name: str, sha: str) -> list[dict[str, object]]:
        """The answer of /api/models/NAME/tree/REVISION."""
        entries: list[dict[str, object]] = []
        for file in self.repos[name].commits[sha].values():
            entry: dict[str, object] = {
                "type": "file", "path": file.name, "size": file.size, "oid": file.etag[:40],
            }  # fmt: skip
            if file.large:
                entry["lfs"] = {"oid": file.etag, "size": file.size, "pointerSize": 134}
            entries.append(entry)
        return entries


def write_repo(folder: Path, files: Mapping[str, bytes | str | dict]) -> Path:
    """Write small test files (text, bytes, or JSON from a dict) into `folder`; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = json.dumps(content) if isinstance(content, dict) else content
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder
