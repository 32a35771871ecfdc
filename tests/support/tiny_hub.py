"""A hub of its own for tests: speaks as much of the Hugging Face hub's protocol as its library asks for, from memory.

Repositories list their files with sizes and hashes; small files come from the hub itself, large ones (Git LFS) from a
second server, as the hub's content network is one: a redirect to another host, which must never see a token.
"""

from __future__ import annotations

import abc
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

_LARGE = (".safetensors", ".pt", ".pth", ".model", ".zip")


class Request(NamedTuple):
    """One that a server got."""

    host: str
    method: str
    path: str
    token: str | None
    range: str | None


@dataclass
class Repository:
    """Files of one revision, or of any.

    Attributes:
        files: by path.
        gated: whether a token with access is needed for content.
        revision: the only one there is; ``None`` answers every commit with these files.
        listed: hashes that the list gives instead of the files' own.
    """

    files: dict[str, bytes]
    gated: bool = False
    revision: str | None = None
    listed: dict[str, str] = field(default_factory=dict)


class TinyHub:
    """Two servers, the hub and its content network.

    Attributes:
        repositories: by ``owner/name``.
        access: tokens that may read gated repositories.
        known: tokens of accounts that may not.
        requests: what was asked, in order.
        archives: what the content network has by plain paths, e.g. RAFT's.
        cut_at: how many bytes of a large file are sent before the connection breaks; popped, one for each request.
        refuse_with: statuses of the content network's next answers; popped, ``None`` serves.
        spoil: what is done to a large file's bytes on their way.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.access: set[str] = set()
        self.known: set[str] = set()
        self.requests: list[Request] = []
        self.archives: dict[str, bytes] = {}
        self.cut_at: list[int | None] = []
        self.refuse_with: list[int | None] = []
        self.spoil: Callable[[bytes], bytes] = lambda content: content
        self._servers = [_serve(self, kind) for kind in (_HubHandler, _ContentHandler)]
        self.url, self.content_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def large(self, digest: str) -> bytes | None:
        """A large file's bytes by its hash."""
        contents = (content for repo in self.repositories.values() for content in repo.files.values())
        return next((content for content in contents if hashlib.sha256(content).hexdigest() == digest), None)

    def of_content(self) -> list[Request]:
        """What the content network was asked."""
        return [request for request in self.requests if request.host == urlsplit(self.content_url).netloc]


def is_large(path: str) -> bool:
    return path.endswith(_LARGE)


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: TinyHub


def _serve(hub: TinyHub, handler: type[BaseHTTPRequestHandler]) -> _Server:
    server = _Server(("127.0.0.1", 0), handler)
    server.hub = hub
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler, abc.ABC):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._take()

    def do_HEAD(self) -> None:
        self._take()

    def _take(self) -> None:
        self.hub = self.server.hub
        authorization = self.headers.get("Authorization")
        self.token = authorization.removeprefix("Bearer ") if authorization else None
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(
            Request(self.headers["Host"], self.command, path, self.token, self.headers.get("Range"))
        )
        self.answer(path)

    @abc.abstractmethod
    def answer(self, path: str) -> None:
        """Reply to a request for this path."""

    def reply(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class _HubHandler(_Handler):
    def answer(self, path: str) -> None:
        if path.startswith("/api/models/"):
            name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            self.list(name, revision)
        elif "/resolve/" in path:
            name, _, rest = path[1:].partition("/resolve/")
            revision, _, file = rest.partition("/")
            self.resolve(name, revision, file)
        else:
            self.reply(404)

    def repository(self, name: str, revision: str) -> tuple[Repository, str] | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self.reply(401, X_Error_Code="RepoNotFound")
            return None
        if repository.revision is not None and revision not in (repository.revision, "main"):
            self.reply(404, X_Error_Code="RevisionNotFound")
            return None
        commit = repository.revision or (revision if len(revision) == 40 else "f" * 40)
        return repository, commit

    def list(self, name: str, revision: str) -> None:
        if (found := self.repository(name, revision)) is None:
            return
        repository, commit = found
        siblings = []
        for path, content in repository.files.items():
            digest = repository.listed.get(path, hashlib.sha256(content).hexdigest())
            entry = {"rfilename": path, "size": len(content), "blobId": git_hash(content)}
            if is_large(path):
                entry["lfs"] = {"size": len(content), "sha256": digest, "pointerSize": 135}
            siblings.append(entry)
        document = {"_id": "0", "id": name, "modelId": name, "sha": commit, "tags": [], "siblings": siblings}
        self.reply(200, json.dumps(document).encode(), Content_Type="application/json")

    def resolve(self, name: str, revision: str, file: str) -> None:
        if (found := self.repository(name, revision)) is None:
            return
        repository, commit = found
        if repository.gated and self.token not in self.hub.access:
            status = 403 if self.token in self.hub.known else 401
            self.reply(status, X_Error_Code="GatedRepo", X_Error_Message="Access to model is restricted")
        elif file not in repository.files:
            self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        elif is_large(file):
            content = repository.files[file]
            digest = hashlib.sha256(content).hexdigest()
            linked = {"X_Linked_Etag": f'"{digest}"', "X_Linked_Size": str(len(content)), "X_Repo_Commit": commit}
            self.reply(302, Location=f"{self.hub.content_url}/{digest}?Signature=secret-of-the-address", **linked)
        else:
            content = repository.files[file]
            self.reply(200, content, ETag=f'"{git_hash(content)}"', X_Repo_Commit=commit)


class _ContentHandler(_Handler):
    def answer(self, path: str) -> None:
        content = self.hub.archives.get(path) or self.hub.large(path[1:])
        if self.hub.refuse_with and (status := self.hub.refuse_with.pop(0)) is not None:
            self.reply(status)
        elif content is None:
            self.reply(404)
        else:
            self.send(self.hub.spoil(content))

    def send(self, content: bytes) -> None:
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if wanted and start >= len(content):
            self.reply(416, Content_Range=f"bytes */{len(content)}")
            return
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut = self.hub.cut_at.pop(0) if self.hub.cut_at else None
        self.wfile.write(content[start : len(content) if cut is None else cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
