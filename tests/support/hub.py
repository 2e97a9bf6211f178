"""A hub on loopback: it serves what huggingface_hub downloads, and takes what it uploads."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from ffcv_train.models import published

COMMIT = "c0ffee" + "0" * 34
REVISIONS = ("main", "v1", "refs/pr/1", COMMIT)
_REPO = r"(?P<repo>[^/]+/[^/]+)"


@dataclass
class Hub:
    """What a hub holds and how it answers."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """By repository, "org/name", and path; every one of `REVISIONS` has them"""
    gated: set[str] = field(default_factory=set)
    """Repositories that are not served without leave"""
    broken: set[str] = field(default_factory=set)
    """Repositories whose transfers break off"""
    refuse: int = 0
    """The status with which making a repository is answered; 0: it is made"""
    refuse_storage: int = 0
    """The status with which an upload into the store of large files is answered; 0: it is taken"""
    large: int = 10_000_000
    """From this size on, in bytes, files go into that store, as Git LFS has it"""
    part: int = 0
    """Bytes of a part there; 0: files go in one"""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of what was asked"""
    private: dict[str, bool] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    stored: dict[str, bytes] = field(default_factory=dict)
    """The store of large files, by SHA-256"""
    endpoint: str = ""
    """Where it listens, as HF_ENDPOINT takes it"""


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Answer on `hub.endpoint` while the context lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub, "parts": {}}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    parts: dict[str, dict[int, bytes]]
    """Of large files that arrive in parts, by SHA-256 and number"""

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        if self.path.startswith("/api/"):
            self._note()
            repo = re.match(f"/api/models/{_REPO}", self.path)
            name = repo["repo"] if repo else ""
            known = name in self.hub.files
            self._answer({"id": name, "modelId": name, "sha": COMMIT, "siblings": []}, 200 if known else 404)
        else:
            self._serve(body=True)

    def do_PUT(self) -> None:
        self._note()
        body = self._body()
        _, _, oid, *number = self.path.split("/")
        if self.hub.refuse_storage:
            self._answer({}, self.hub.refuse_storage)
        elif number:
            self.parts.setdefault(oid, {})[int(number[0])] = body
            self._answer({}, ETag=f'"{number[0]}"')
        else:
            self._store(oid, body)

    def do_POST(self) -> None:
        self._note()
        hub, body = self.hub, self._body()
        hub.tokens.add(self.headers.get("Authorization", ""))
        if self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := re.match(f"/api/models/{_REPO}/preupload/", self.path):
            modes = ("regular", "lfs")
            files = [
                {"path": file["path"], "uploadMode": modes[file["size"] >= hub.large], "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif re.match(f"/{_REPO}\\.git/info/lfs/objects/batch", self.path):
            self._answer({"transfer": "basic", "objects": [self._lfs(**one) for one in json.loads(body)["objects"]]})
        elif self.path.startswith("/parts/"):
            oid, parts = self.path.split("/")[2], json.loads(body)["parts"]
            self._store(oid, b"".join(self.parts[oid][part["partNumber"]] for part in parts))
        elif self.path == "/verify":
            asked = json.loads(body)
            sound = len(self.hub.stored.get(asked["oid"], b"")) == asked["size"]
            self._answer({}, 200 if sound else 404)
        elif found := re.match(f"/api/models/{_REPO}/commit/", self.path):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.files[found["repo"]][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.files[found["repo"]][value["path"]] = hub.stored[value["oid"]]
            self._answer({"commitUrl": f"{hub.endpoint}/{found['repo']}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._answer({"error": f"unknown {self.path}"}, 404)

    def _create(self, asked: dict[str, Any]) -> None:
        hub = self.hub
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if hub.refuse:
            return self._answer({"error": "refused"}, hub.refuse)
        hub.files.setdefault(name, {})
        hub.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
        return self._answer({"url": f"{hub.endpoint}/{name}", "id": "1", "name": name})

    def _lfs(self, oid: str, size: int) -> dict[str, Any]:
        """What LFS's batch protocol says of an object: nothing to do where it is there, else where to put it."""
        one: dict[str, Any] = {"oid": oid, "size": size}
        if oid in self.hub.stored:
            return one
        at, part = self.hub.endpoint, self.hub.part
        upload: dict[str, Any] = {"href": f"{at}/store/{oid}"}
        if part:
            numbers = range(1, -(-size // part) + 1)
            header = {str(number): f"{at}/store/{oid}/{number}" for number in numbers}
            upload = {"href": f"{at}/parts/{oid}", "header": {"chunk_size": str(part), **header}}
        return {**one, "actions": {"upload": upload, "verify": {"href": f"{at}/verify"}}}

    def _store(self, oid: str, content: bytes) -> None:
        sound = hashlib.sha256(content).hexdigest() == oid
        if sound:
            self.hub.stored[oid] = content
        self._answer({}, 200 if sound else 400)

    def _serve(self, body: bool) -> None:
        self._note()
        hub = self.hub
        # A revision with slashes arrives quoted.
        org, name, _, revision, file = (*urlsplit(self.path).path.strip("/").split("/", 4), "", "", "", "", "")[:5]
        repo, revision, file = f"{org}/{name}", unquote(revision), unquote(file)
        if repo not in hub.files:
            return self._refuse(401, "RepoNotFound")  # what the Hub says to those who are not logged in
        if repo in hub.gated:
            return self._refuse(403, "GatedRepo")
        if revision not in REVISIONS:
            return self._refuse(404, "RevisionNotFound")
        content = hub.files[repo].get(file)
        if content is None:
            return self._refuse(404, "EntryNotFound", **{"X-Repo-Commit": COMMIT})
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if repo in hub.broken else content)
        self.close_connection = True
        return None

    def _note(self) -> None:
        self.hub.requests.append((self.command, unquote(urlsplit(self.path).path)))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"X-Error-Code": code, "X-Error-Message": code, "Content-Length": "0", **headers}.items():
            self.send_header(key, value)
        self.end_headers()


def in_place(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put `hub` in the place of the real one, and `cache` in that of the user's, in this process.

    What huggingface_hub reads from the environment on import.
    """
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    published._download.cache_clear()
