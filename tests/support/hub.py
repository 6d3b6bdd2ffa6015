"""A Hub of one's own on this machine: repositories, consent, downloads that stall, a second host for large files.

It speaks as much of the Hub's protocol as huggingface_hub needs to list and download. Knows nothing of models.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + 34 * "0"


@dataclass
class Repository:
    """Files of one repository. token: what a request must bring. gated: only downloads ask for it.

    commits: files at other commits; refs: the commits of branches and tags, where main is not COMMIT. later: what the
    repository is once the list of its files was asked for.
    """

    files: dict[str, bytes]
    token: str = ""
    gated: bool = False
    elsewhere: "Hub | None" = None  # another Hub, which has the same files and gets the downloads
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    later: "Repository | None" = None

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit of a revision and its files; None where there is no such revision."""
        known = {COMMIT: self.files} | self.commits
        commit = ({"main": COMMIT} | self.refs).get(revision, revision)
        return (commit, known[commit]) if commit in known else None


@dataclass
class Hub:
    """A running server. asked: method, path and headers of each request."""

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    stall_after: int | None = None  # bytes of a download, after which it hangs
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    broken: int = 0  # the status of every answer, where it is not 0

    def downloads(self) -> list[dict[str, str]]:
        """The headers of each request for a file's content."""
        return [headers for method, path, headers in self.asked if method == "GET" and "/resolve/" in path]

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """What a process needs to ask this Hub, and to keep its files in `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        kept = {name: value for name, value in kept.items() if not name.startswith("HF_")}
        return kept | {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"} | more


class Handler(BaseHTTPRequestHandler):
    """Answers /api/models/USER/REPO, the same with /revision/REVISION, and /USER/REPO/resolve/REVISION/FILE."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is logged."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, {name.lower(): value for name, value in self.headers.items()}))
        api = path.startswith("/api/models/")
        name, _, file = path.removeprefix("/api/models").removeprefix("/").partition("/resolve/")
        name, _, revision = name.partition("/revision/")
        repository = self.hub.repositories.get(name)
        if self.hub.broken:
            self._refuse(self.hub.broken, "")
        elif repository is None:
            self._refuse(404, "RepoNotFound")
        elif repository.token and self.headers["Authorization"] != f"Bearer {repository.token}" and not (
            api and repository.gated
        ):  # fmt: skip
            self._refuse(
                403 if self.headers["Authorization"] else 401, "GatedRepo" if repository.gated else "RepoNotFound"
            )
        else:
            revision, _, file = (revision or "main", "", "") if api else file.partition("/")
            found = repository.at(revision)
            if found is None:
                self._refuse(404, "RevisionNotFound")
            elif api:
                self._tell(name, *found)
                self.hub.repositories[name] = repository.later or repository
            else:
                self._give(file, repository, *found)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _tell(self, name: str, commit: str, files: dict[str, bytes]) -> None:
        body = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _give(self, file: str, repository: Repository, commit: str, files: dict[str, bytes]) -> None:
        data = files.get(file)
        if data is None:
            self._refuse(404, "EntryNotFound")
            return
        tag = hashlib.sha256(data).hexdigest()
        if repository.elsewhere:
            self.send_response(302)
            self.send_header("Location", repository.elsewhere.url + self.path)
            self.send_header("X-Linked-Etag", f'"{tag}"')
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{tag}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            self._send(data[start:])

    def _send(self, data: bytes) -> None:
        stop = self.hub.stall_after
        self.wfile.write(data[:stop])
        if stop is not None:
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.go_on.wait(60)
            self.close_connection = True


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub on a free port, without repositories."""
    hub = Hub("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
