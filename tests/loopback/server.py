"""The HTTP side: one thread per connection, every request recorded, faults applied in one place."""

import io
import json
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopback.faults import Fault, Faults
from loopback.storage import Commit, Repository, any_file
from loopback.xet import read_shards


@dataclass
class Request:
    """What was asked, and what came of it: a status, or 0 where the connection was dropped."""

    route: str
    method: str
    path: str
    host: str
    token: str
    status: int = 0


class Refusal(Exception):  # noqa: N818  (the Hub's, not the test's)
    """An answer that is not 2xx."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body
        self.headers: dict[str, str] = {}


class Dropped(Exception):  # noqa: N818
    """The connection is closed without an answer."""


class LoopbackHub:
    """A Hub for one test.

    Args:
        users: name of each user by token; write access is to the user's own namespace and to `orgs`.
        orgs: organisations that every user belongs to.
        xet: an empty folder, if large files shall travel by Xet.
    """

    def __init__(
        self, users: dict[str, str] | None = None, orgs: tuple[str, ...] = ("lab",), xet: Path | None = None
    ) -> None:
        self.users = users or {TOKEN: "ada"}
        self.orgs, self.xet = orgs, xet
        self.roles: dict[str, str] = {}
        self.repos: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[Request] = []
        self.faults = Faults()
        self.num_flooded = 0
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.cdn_url = f"http://localhost:{self._server.server_port}"  # another origin: no token may go there

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.faults.end()
        self._server.shutdown()
        self._server.server_close()

    def fault(self, route: str, **what: Any) -> Fault:
        """Let something go wrong; see `Fault`."""
        fault = Fault(route, **what)
        self.faults.arm(fault)
        return fault

    def put(
        self, repo_id: str, files: dict[str, bytes], kind: str = "model", branch: str = "main", private: bool = False
    ) -> Commit:
        """Commit files as somebody else would; the repository and branch are made if need be."""
        repo = self.repos.setdefault((kind, repo_id), Repository(kind, repo_id, private))
        repo.branches.setdefault(branch, repo.branches["main"])
        stored = {path: any_file(path, data) for path, data in files.items()}
        self.large.update({file.sha256: file.data for file in stored.values() if file.sha256 and file.data is not None})
        return repo.commit(branch, "by another hand", stored)

    def repo(self, repo_id: str, kind: str = "model") -> Repository:
        return self.repos[kind, repo_id]

    def requests(self, route: str) -> list[Request]:
        return [request for request in self.log if request.route == route]

    def xet_hashes(self) -> dict[str, str]:
        return read_shards(self.xet) if self.xet else {}


TOKEN = "hf_loopbackTokenOfAda00000000000000"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for an acknowledgement
    hub: LoopbackHub

    def log_message(self, *_: object) -> None:  # the test reads hub.log instead
        pass

    def _serve(self) -> None:
        from loopback.routes import find_route

        self.body = self._read_body()
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        name, act, parts = find_route(self.command, url.path)
        self.struck = self.hub.faults.take(name)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.request_seen = Request(name, self.command, self.path, self.headers["Host"], token)
        self.hub.log.append(self.request_seen)
        try:
            try:
                self._work(act, {key: unquote(value) if value else value for key, value in parts.items()})
            except Refusal as refusal:
                headers = {**refusal.headers, "X-Error-Message": refusal.message}
                if refusal.code:
                    headers["X-Error-Code"] = refusal.code
                self.answer(refusal.status, {"error": refusal.message, **refusal.body}, headers)
        except (Dropped, BrokenPipeError, ConnectionResetError):
            self.close_connection = True
            self.request_seen.status = 0

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _work(self, act: Any, parts: dict[str, str]) -> None:
        fault = self.struck
        if fault is None:
            return act(self, **parts)
        if fault.hang:
            fault.over.wait(fault.hang)
        if fault.drop == "before":
            raise Dropped
        if fault.status:
            refusal = Refusal(fault.status, "injected")
            refusal.headers = fault.headers
            raise refusal
        if fault.drop == "after" or fault.then:
            connection, self.wfile = self.wfile, io.BytesIO()
            try:
                act(self, **parts)
                answer = self.wfile.getvalue()
            finally:
                self.wfile = connection
            if fault.drop:
                raise Dropped
            fault.then()
            self.wfile.write(answer)
            return None
        return act(self, **parts)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def answer(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        """Send bytes as they are, anything else as JSON."""
        raw = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
        self.request_seen.status = status
        self.send_response(status)
        fault = self.struck
        if fault and fault.flood and self.command != "HEAD":
            headers = {**(headers or {}), "Connection": "close", "Content-Length": str(2**40)}
        if fault and fault.endless:
            headers = {**(headers or {}), "Link": f'<{self.hub.url}{self.path}>; rel="next"'}
        if fault and fault.compressed:
            headers = {**(headers or {}), "Content-Encoding": "gzip"}
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(raw)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        while fault and fault.flood:
            self.wfile.write(b" " * 2**16)
            self.hub.num_flooded += 2**16
        if fault and fault.drip:
            for byte in raw:
                fault.over.wait(fault.drip)
                self.wfile.write(bytes([byte]))
            return
        if fault and fault.flip and raw:
            raw = raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :]
        if fault and fault.cut is not None:
            self.wfile.write(raw[: fault.cut])
            self.wfile.flush()
            raise Dropped
        self.wfile.write(raw)

    def answer_range(self, data: bytes, headers: dict[str, str]) -> None:
        """Send a file, or the part of it that the client asks for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self.answer(200, data, {**headers, "Accept-Ranges": "bytes"})
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        if first > last:
            raise Refusal(416, "range not satisfiable")
        return self.answer(
            206, data[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
        )

    # who asks, and what they may

    def user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if token and token not in self.hub.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def role(self) -> str:
        return self.hub.roles.get(self.user() or "", "write")

    def may_write(self, namespace: str) -> bool:
        return namespace in (self.user(), *self.hub.orgs) and self.role() == "write"

    def repository(self, kinds: str | None, repo_id: str, write: bool = False) -> Repository:
        kind = (kinds or "models").strip("/").removesuffix("s")
        user, found = self.user(), self.hub.repos.get((kind, repo_id))
        seen_by = (user, *self.hub.orgs) if user else ()
        if found is None or (found.private and repo_id.split("/", maxsplit=1)[0] not in seen_by):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise Refusal(401, "Invalid username or password.")
        if write and not self.may_write(repo_id.split("/", maxsplit=1)[0]):
            raise Refusal(403, "Forbidden: no write access")
        return found

    def commit_of(self, repo: Repository, revision: str | None) -> Commit:
        commit = repo.find(revision or "main")
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit
