"""A hub on loopback that serves what `hf_hub_download` asks for."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Hub:
    """Repositories by "org/name", each with its files by path; some are gated, some break off what they send."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    """The paths that were asked for"""
    address: str = ""
    """Where it listens, as HF_ENDPOINT takes it"""


@contextmanager
def serve(hub: Hub) -> Iterator[None]:
    """Answer on `hub.address` while the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(path)
            org, name, _, revision, file = (*path.strip("/").split("/", 4), "", "", "", "", "")[:5]
            repo = f"{org}/{name}"
            if repo not in hub.files:
                return self.refuse(401, "RepoNotFound")  # what the Hub says to those who are not logged in
            if repo in hub.gated:
                return self.refuse(403, "GatedRepo")
            if revision not in ("main", "v1", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            content = hub.files[repo].get(file)
            if content is None:
                return self.refuse(404, "EntryNotFound", **{"X-Repo-Commit": COMMIT})
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Connection", "close")
            self.end_headers()
            if body:
                self.wfile.write(content[: len(content) // 2] if repo in hub.broken else content)
            self.close_connection = True

        def refuse(self, status: int, code: str, **headers: str) -> None:
            self.send_response(status)
            for key, value in {"X-Error-Code": code, "X-Error-Message": code, "Content-Length": "0", **headers}.items():
                self.send_header(key, value)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
