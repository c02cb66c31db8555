"""A local server that speaks the part of the hub's API that `snapshot_download` uses."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1", COMMIT)


@dataclass
class Hub:
    """A server with one repository, `tiny/model`; `tiny/gated` exists and is restricted.

    files: the repository's files. token: required to read, if not None. downloads: the names of
    the files that were fetched, in order.
    """

    files: Path
    token: str | None = None
    url: str = ""
    requests: list[str] = field(default_factory=list)

    @property
    def downloads(self) -> list[str]:
        fetched = [path for path in self.requests if path.startswith("GET") and "/resolve/" in path]
        return [path.split(f"/resolve/{COMMIT}/")[1] for path in fetched]


@contextmanager
def serving(files: Path, token: str | None = None) -> Iterator[Hub]:
    """Serve the files of a directory as the repository `tiny/model`."""
    hub = Hub(files, token)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, body: bool) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            parts = self.path.split("?")[0].strip("/").split("/")
            api = parts[:2] == ["api", "models"]
            repository = "/".join(parts[2:4] if api else parts[:2])
            rest = parts[4:] if api else parts[2:]
            if repository == "tiny/gated":
                return self.send(403, b"{}", {"X-Error-Code": "GatedRepo"})
            allowed = hub.token in (None, self.headers.get("Authorization", "")[len("Bearer ") :])
            if repository != "tiny/model" or not allowed:
                return self.send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            revision = rest[1]
            if revision not in REVISIONS:
                return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            names = [p.relative_to(files).as_posix() for p in files.rglob("*") if p.is_file()]
            if rest[0] == "revision":
                info = {"id": repository, "sha": COMMIT, "siblings": [], "tags": []}
                return self.send(200, json.dumps(info).encode())
            if rest[0] == "tree":
                tree = [
                    {"type": "file", "path": n, "size": (files / n).stat().st_size, "oid": n}
                    for n in names
                ]
                return self.send(200, json.dumps(tree).encode())
            data = (files / "/".join(rest[2:])).read_bytes()
            etag = hashlib.sha256(data).hexdigest()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}
            return self.send(200, data, headers, body)

        def send(
            self,
            code: int,
            data: bytes,
            headers: dict[str, str] | None = None,
            body: bool = True,
        ) -> None:
            self.send_response(code)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
