"""The writing half of the fake hub: creating repositories, large contents, commits.

Weights travel by LFS where `FakeHub.lfs_uploads` is set (for a client with Xet switched off), else
inside the commit: the Xet protocol is not played.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from tests.fake_hub_handler import Handler

_PREUPLOAD = re.compile(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)")
_COMMIT = re.compile(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)")
_LFS_BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")


class Uploads:
    """POST and PUT of `Handler`."""

    def do_PUT(self: Handler) -> None:
        """The bytes of a large file, to the address that the batch answer gave."""
        self.record()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rsplit("/", 1)[1]
        if hashlib.sha256(body).hexdigest() != oid:
            self.answer(b"hash differs", 400)
            return
        self.hub.lfs[oid] = body
        self.answer()

    def do_POST(self: Handler) -> None:
        self.record()
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        if not self.authorized:
            self.answer_json({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.answer_json({"errors": [], "warnings": []})
        elif _PREUPLOAD.fullmatch(path):
            self._preupload(json.loads(body))
        elif match := _LFS_BATCH.fullmatch(path):
            self._lfs_batch(json.loads(body))
        elif path.endswith("/verify"):
            self.answer_json({})
        elif match := _COMMIT.fullmatch(path):
            self._commit(match[1], body)
        else:
            self.answer_json({"error": "Not Found"}, 404)

    def _body(self: Handler) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while length := int(self.rfile.readline(), 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _create(self: Handler, request: dict[str, Any]) -> None:
        from tests.fake_hub import Repo

        name = f"{request['organization']}/{request['name']}"
        if name in self.hub.repos:
            url = f"{self.hub.url}/{name}"
            self.answer_json({"error": "You already created this model repo", "url": url}, 409)
            return
        repo = self.hub.repos[name] = Repo(private=request.get("visibility") == "private")
        repo.commit([])
        self.answer_json({"url": f"{self.hub.url}/{name}", "name": name})

    def _preupload(self: Handler, request: dict[str, Any]) -> None:
        large = ".safetensors" if self.hub.lfs_uploads else None
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if large and file["path"].endswith(large) else "regular",
                "shouldIgnore": False,
            }
            for file in request["files"]
        ]
        self.answer_json({"files": files})

    def _lfs_batch(self: Handler, request: dict[str, Any]) -> None:
        objects = []
        for item in request["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.url}/lfs/{item['oid']}", "header": {}},
                "verify": {"href": f"{self.hub.url}/lfs/{item['oid']}/verify", "header": {}},
            }
            known = item["oid"] in self.hub.lfs
            objects.append(item if known else item | {"actions": actions})
        self.answer_json({"transfer": "basic", "objects": objects})

    def _commit(self: Handler, name: str, body: bytes) -> None:
        from tests.fake_hub import Content

        files = []
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                data = base64.b64decode(value["content"])
                files.append(Content(value["path"], data=data))
            elif entry["key"] == "lfsFile":
                files.append(Content(value["path"], data=self.hub.lfs[value["oid"]]))
        sha = self.hub.repos[name].commit(files, keep=True)
        self.answer_json({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})
