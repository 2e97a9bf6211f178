"""A hub on loopback that takes what huggingface_hub uploads."""

import base64
import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """What was uploaded, by repository and file; `refuse`, a status, is what creating one is answered with."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.tokens: set[str] = set()
        self.refuse = 0
        self.endpoint = ""


@contextlib.contextmanager
def hub_on_loopback() -> Iterator[Hub]:
    """A running `Hub`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, content: Any, status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def do_GET(self) -> None:
            repo = re.match(r"/api/models/([^/]+/[^/?]+)", self.path)
            known = repo is not None and repo[1] in hub.files
            name = repo[1] if repo else ""
            self._answer({"id": name, "modelId": name, "sha": "0" * 40, "siblings": []}, 200 if known else 404)

        def do_POST(self) -> None:
            body = self._body()
            hub.tokens.add(self.headers.get("Authorization", ""))
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                if hub.refuse:
                    self._answer({"error": "refused"}, hub.refuse)
                    return
                hub.files.setdefault(name, {})
                hub.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
                self._answer({"url": f"{hub.endpoint}/{name}", "id": "1", "name": name})
            elif self.path == "/api/validate-yaml":
                self._answer({"errors": [], "warnings": []})
            elif found := re.match(r"/api/models/([^/]+/[^/]+)/preupload/", self.path):
                files = json.loads(body)["files"]
                regular = {"uploadMode": "regular", "shouldIgnore": False}
                self._answer({"files": [{"path": file["path"], **regular} for file in files]})
            elif found := re.match(r"/api/models/([^/]+/[^/]+)/commit/", self.path):
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        hub.files[found[1]][line["value"]["path"]] = content
                self._answer({"commitUrl": f"{hub.endpoint}/{found[1]}/commit/{'1' * 40}", "commitOid": "1" * 40})
            else:
                self._answer({"error": f"unknown {self.path}"}, 404)

    return Handler
