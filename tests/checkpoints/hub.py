"""A model hub on this machine: enough of its protocol for the hub's own client, with a record of what is asked for."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_cached(cache: Path, name: str, commit: str, model: Path) -> None:
    """Put a model into a hub's cache as a commit of `org/name`, and let `main` mean it."""
    place = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(model, place / "snapshots" / commit)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text(commit)


class Hub:
    """The repositories below a folder (`org/name`), each with one commit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sent: dict[str, int] = {}
        """Bytes of file contents sent, by `org/name/file`."""
        self.ranges: list[str] = []
        """The ranges that were asked for."""
        self.url = ""

    def answer(self, path: str, wanted: str | None) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body."""
        match = re.fullmatch(r"/(api/models/)?([\w.-]+/[\w.-]+)(?:/(revision|tree|resolve)/[^/]+)?(?:/(.+))?", path)
        folder = self.root / match[2] if match else self.root / "nowhere"
        if match is None or not folder.is_dir():
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if match[1]:
            return 200, {"Content-Type": "application/json"}, json.dumps(self._facts(match[2], match[3])).encode()
        return self._file(folder / match[4], wanted)

    def _facts(self, name: str, of: str | None) -> Any:
        files = sorted((self.root / name).iterdir())
        if of == "tree":
            return [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _digest(file.read_bytes())}
                for file in files
            ]
        return {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file.name} for file in files]}

    def _file(self, file: Path, wanted: str | None) -> tuple[int, dict[str, str], bytes]:
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        data = file.read_bytes()
        headers = {"ETag": f'"{_digest(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if wanted is None:
            return 200, headers, data
        self.ranges.append(wanted)
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        part = data[first : last + 1]
        return 206, headers | {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(data)}"}, part


def _digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    """Serve a folder of repositories on a free port of this machine."""
    hub = Hub(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self, *, with_body: bool) -> None:
            path = unquote(self.path.partition("?")[0])
            status, headers, body = hub.answer(path, self.headers.get("Range"))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                if "/resolve/" in path:
                    name = re.sub("/resolve/[^/]+/", "/", path).removeprefix("/")
                    hub.sent[name] = hub.sent.get(name, 0) + len(body)
                self.wfile.write(body)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def log_message(self, *args: object) -> None:
            del args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
