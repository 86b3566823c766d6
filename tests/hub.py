"""A hub on loopback that speaks as much of the Hugging Face hub's protocol as an upload needs."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "canary" * 6
LARGE_BYTES = 2_000


@dataclass
class Hub:
    """Repositories by name: whether they are private, and their files by path. Large files come by hash."""

    url: str = ""
    token: str = TOKEN
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    broken_uploads: int = 0
    hold: threading.Event = field(default_factory=threading.Event)  # cleared: uploads wait


@contextmanager
def hub() -> Iterator[Hub]:
    """Start a hub without repositories."""
    state = Hub()
    state.hold.set()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, values: Any = None) -> None:
            content = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers["Content-Length"]))

        def is_admitted(self) -> bool:
            state.paths.append(f"{self.command} {self.path}")
            is_known = self.headers.get("Authorization") == f"Bearer {state.token}"
            if not is_known:
                self.answer(401, {"error": "Invalid username or password."})
            return is_known

        def do_GET(self) -> None:
            name = self.path.removeprefix("/api/models/")
            if self.is_admitted():
                facts = {"id": name, "private": state.private[name], "siblings": [], "tags": []}
                self.answer(200, facts)

        def do_POST(self) -> None:
            content = self.body()
            if not self.is_admitted():
                return
            if self.path == "/api/repos/create":
                self.create(json.loads(content))
            elif self.path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                files = json.loads(content)["files"]
                self.answer(200, {"files": [self.mode(one) for one in files]})
            elif self.path.endswith("/info/lfs/objects/batch"):
                objects = json.loads(content)["objects"]
                self.answer(200, {"transfer": "basic", "objects": [self.target(one) for one in objects]})
            elif "/commit/" in self.path:
                self.commit(content)
            else:
                self.answer(404, {"error": "not found"})

        def create(self, values: dict[str, Any]) -> None:
            name = f"{values['organization']}/{values['name']}"
            if name.startswith("foreign/"):
                self.answer(403, {"error": "You don't have the rights to create a model there"})
                return
            status = 409 if name in state.private else 200
            state.private.setdefault(name, values.get("visibility", "public") == "private")
            self.answer(status, {"url": f"{state.url}/{name}", "error": "exists"})

        def mode(self, one: dict[str, Any]) -> dict[str, Any]:
            mode = "lfs" if one["size"] > LARGE_BYTES else "regular"
            return {"path": one["path"], "uploadMode": mode, "shouldIgnore": False}

        def target(self, one: dict[str, Any]) -> dict[str, Any]:
            return {**one, "actions": {"upload": {"href": f"{state.url}/blobs/{one['oid']}"}}}

        def do_PUT(self) -> None:
            content = self.body()
            state.paths.append(f"PUT {self.path}")
            state.hold.wait(30)
            if state.broken_uploads:
                state.broken_uploads -= 1
                self.answer(400, {"error": "broken"})
                return
            oid = self.path.removeprefix("/blobs/")
            assert hashlib.sha256(content).hexdigest() == oid
            state.blobs[oid] = content
            self.answer(200)

        def commit(self, content: bytes) -> None:
            name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            files = state.files.setdefault(name, {})
            for line in map(json.loads, content.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = state.blobs[value["oid"]]
            oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
            self.answer(200, {"commitUrl": f"{state.url}/{name}/commit/{oid}", "commitOid": oid})

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield state
        server.shutdown()
