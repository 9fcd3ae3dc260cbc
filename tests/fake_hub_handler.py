"""The requests that the fake hub answers."""

from __future__ import annotations

import json
import re
import socket
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.fake_hub import Content, FakeHub, Repo, Served
from tests.fake_hub_uploads import Uploads

_INFO = re.compile(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?")
_TREE = re.compile(r"/api/(?:models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?")
_FILE = re.compile(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_CDN = re.compile(r"/cdn/([^/]+/[^/]+)/([^/]+)/(.+)")
_PIECE = 64 * 2**10


class Handler(Uploads, BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def hub(self) -> FakeHub:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent; `FakeHub.requests` is the log."""

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def record(self) -> Served:
        """Note the request."""
        headers = self.headers
        served = Served(self.command, self.path, headers.get("Range"), headers.get("Authorization"))
        with self.hub.lock:
            self.hub.requests.append(served)
        return served

    def answer_json(self, content: object, status: int = 200, **headers: str) -> None:
        self.answer(
            json.dumps(content).encode(), status, Content_Type="application/json", **headers
        )

    def answer(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        """A whole answer; underscores in header names stand for dashes."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer_json({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    @property
    def authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _get(self) -> None:
        served = self.record()
        path = unquote(urlsplit(self.path).path)
        if match := _TREE.fullmatch(path):
            self._listing(match[1], match[2], self.hub.tree)
        elif match := _INFO.fullmatch(path):
            self._listing(match[1], match[2] or "main", self.hub.listing)
        elif match := _CDN.fullmatch(path):
            self._signed(match[1], match[2], match[3], served)
        elif match := _FILE.fullmatch(path):
            self._file(match[1], match[2], match[3], served)
        else:
            self.answer_json({"error": "Not Found"}, 404)

    def _repo(self, name: str, revision: str) -> tuple[Repo, str] | None:
        """The repository and commit; None after answering that there is none."""
        repo = self.hub.repos.get(name)
        if repo is None and not self.authorized:  # as the real one answers strangers
            self.answer_json({"error": "Invalid username or password."}, 401)
            return None
        if repo is None:
            self.refuse(404, "RepoNotFound", "Repository not found")
            return None
        sha = repo.at(revision)
        if sha is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo, sha

    def _listing(self, name: str, revision: str, answer: object) -> None:
        found = self._repo(name, revision)
        if found is not None:
            self.answer_json(answer(name, found[1]))  # type: ignore[operator]

    def _file(self, name: str, revision: str, filename: str, served: Served) -> None:
        found = self._repo(name, revision)
        if found is None:
            return
        repo, sha = found
        if name in self.hub.gated and not self.authorized:
            self.refuse(401, "GatedRepo", f"Access to model {name} is restricted.")
            return
        file = repo.commits[sha].get(filename)
        if file is None:
            self.refuse(404, "EntryNotFound", "Entry not found")
            return
        if not file.large:
            self._send(file, served, X_Repo_Commit=sha, ETag=f'"{file.etag}"')
            return
        target = f"{self.hub.cdn}/{name}/{sha}/{quote(filename)}?signature={self.hub.signature}"
        self.answer(
            b"", 302, Location=target, X_Repo_Commit=sha,
            X_Linked_ETag=f'"{file.etag}"', X_Linked_Size=str(file.size),
        )  # fmt: skip

    def _signed(self, name: str, sha: str, filename: str, served: Served) -> None:
        signature = parse_qs(urlsplit(self.path).query)["signature"][0]
        faults = self.hub.faults
        if signature != str(self.hub.signature):
            self.answer(b"Request has expired", 403)
        elif faults.refusals > 0:
            faults.refusals -= 1
            self.answer(b"busy", faults.status)
        else:
            with self.hub.lock:
                faults.expire_after -= 1
                self.hub.signature += faults.expire_after == 0
            self._send(self.hub.repos[name].commits[sha][filename], served, faulty=True)

    def _send(self, file: Content, served: Served, *, faulty: bool = False, **headers: str) -> None:
        """The bytes of a file, or the range of them that was asked for."""
        faults = self.hub.faults
        start, end, status = 0, file.size, 200
        if served.range and not faults.ignore_ranges:
            first, last = served.range.removeprefix("bytes=").split("-")
            start, end, status = int(first), min(int(last or file.size) + 1, file.size), 206
            headers["Content_Range"] = f"bytes {start}-{end - 1}/{file.size}"
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = end
        with self.hub.lock:
            if faulty and faults.cuts > 0 and end - start > faults.cut_after:
                faults.cuts -= 1
                stop = start + faults.cut_after
        if faulty and faults.hold_after:
            middle = min(start + faults.hold_after, stop)
            self._send_bytes(file, start, middle, served, corrupt=False)
            self.wfile.flush()
            self.hub.held.set()
            self.hub.release.wait(30)
            start = middle
        self._send_bytes(file, start, stop, served, corrupt=faulty and faults.corrupt)
        if stop < end:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send_bytes(
        self, file: Content, start: int, stop: int, served: Served, *, corrupt: bool
    ) -> None:
        for offset in range(start, stop, _PIECE):
            piece = file.read(offset, min(offset + _PIECE, stop))
            if corrupt and offset == 0:
                piece = bytes([piece[0] ^ 255]) + piece[1:]
            try:
                self.wfile.write(piece)
            except OSError:  # the client has gone
                self.close_connection = True
                return
            served.sent += len(piece)
