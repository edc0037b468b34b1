"""What stands between the page and its visitors: which hosts and routes it answers, and how much each may ask for."""

import asyncio
import ipaddress
import logging
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gradio.blocks import Blocks
from gradio.queueing import Event
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddpm_hf.demo.visitor_input import Limits

logger = logging.getLogger(__name__)

API = "/gradio_api"
JOIN, LISTEN, UPLOAD = f"{API}/queue/join", f"{API}/queue/data", f"{API}/upload"
ROUTES = {
    "GET": re.compile(
        r"/|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|pwa_icon)/?|/(assets|static|svelte|pwa_icon)/.+|"
        rf"{API}/(info|app_id|theme\.css|startup-events|upload_progress|queue/data)/?|{API}/(heartbeat/|file=).+"
    ),
    "POST": re.compile(rf"{API}/(queue/join|run/predict|api/predict|cancel|reset|upload)/?"),
}
"""What the page in the browser asks for. gradio answers more: its API to call functions by name, a proxy, a monitor."""

MAX_BODY_BYTES = 2**20
"""Of a request that is no upload."""

SECONDS_TO_LISTEN = 10
"""A job whose visitor does not listen for its progress for so long after asking for it is dropped."""


class RefusedError(Exception):
    """A request is not answered.

    Args:
        status: of HTTP.
        reason: for the visitor.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Gate:
    """ASGI middleware around the page.

    Args:
        app: the page's.
        page: whose queue tells what each visitor has asked for.
        limits: of a visitor's requests.
        hosts: names in the Host header that are answered beside addresses; None for any. A page of another site cannot
            read this one by a name that it lets point here (DNS rebinding).
        folder: of uploaded files and results.
    """

    def __init__(self, app: ASGIApp, page: Blocks, limits: Limits, hosts: set[str] | None, folder: Path) -> None:
        self.app = app
        self.page = page
        self.limits = limits
        self.hosts = hosts
        self.folder = folder
        self.listening: Counter[str] = Counter()
        self.uploads: list[tuple[float, str]] = []
        self.tasks: set[asyncio.Task] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or say why not; an error inside gradio is one line of the log."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, has_begun = Request(scope), False

        async def watched_send(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        session = request.query_params.get("session_hash", "") if request.url.path == LISTEN else ""
        self.listening[session] += 1
        try:
            self._check(request)
            await self.app(scope, self._bounded(request, receive), watched_send)
            if request.url.path == JOIN:
                self._start(self._drop_unheard())
            if request.url.path in (JOIN, UPLOAD):
                await asyncio.to_thread(keep_below, self.folder, self.limits.stored_bytes)
        except ClientDisconnect:
            pass
        except Exception as error:
            refused = error if isinstance(error, RefusedError) else RefusedError(400, "The request is not valid.")
            if refused is not error:
                logger.warning("%s %s failed: %s", request.method, request.url.path, type(error).__name__)
            if not has_begun:
                await _answer(request, refused)(scope, receive, send)
        finally:
            self.listening[session] -= 1
            self.listening += Counter()  # drops the zeros

    def _check(self, request: Request) -> None:
        """Refuse what the page would not ask for, or a visitor may not ask for now."""
        if self.hosts is not None and not is_known_host(request.headers.get("host", ""), self.hosts):
            raise RefusedError(403, "This page does not answer to the host name of the request; see --allowed_hosts.")
        routes = ROUTES.get("GET" if request.method == "HEAD" else request.method)
        if request.method != "OPTIONS" and (routes is None or not routes.fullmatch(request.url.path)):
            raise RefusedError(404, "Not found")
        if request.url.path == JOIN:
            jobs = sum(visitor(event.request) == visitor(request) for event in self._jobs())
            if jobs >= self.limits.jobs:
                raise RefusedError(429, f"{jobs} of your requests are waiting or running; wait until one has ended.")
        if request.url.path == UPLOAD:
            now = time.monotonic()
            self.uploads = [each for each in self.uploads if each[0] > now - 60]
            if sum(each == visitor(request) for _, each in self.uploads) >= self.limits.uploads:
                raise RefusedError(429, f"More than {self.limits.uploads} uploads within a minute; wait a little.")
            self.uploads.append((now, visitor(request)))

    def _bounded(self, request: Request, receive: Receive) -> Receive:
        """Receive the body of a request up to its largest size."""
        allowed = MAX_BODY_BYTES + (self.limits.upload_bytes if request.url.path == UPLOAD else 0)
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > allowed:
                raise RefusedError(413, f"The request is larger than {allowed:,} bytes.")
            return message

        return bounded

    def _jobs(self) -> list[Event]:
        """All jobs that wait or run."""
        queue = self.page._queue
        waiting = [event for each in queue.event_queue_per_concurrency_id.values() for event in each.queue]
        return waiting + [event for events in queue.active_jobs for event in events or ()]

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)  # asyncio itself keeps weak references only
        task.add_done_callback(self.tasks.discard)

    async def _drop_unheard(self) -> None:
        """Drop the jobs whose visitor has gone without listening; gradio notices only those who listened once."""
        await asyncio.sleep(SECONDS_TO_LISTEN)
        for event in self._jobs():
            waited = time.monotonic() - event.enqueue_time
            if event.session_hash not in self.listening and waited >= SECONDS_TO_LISTEN:
                await self.page._queue.clean_events(event_id=event._id)


def _answer(request: Request, refused: RefusedError) -> Response:
    """A refusal as the page shows it."""
    if request.url.path == UPLOAD:
        return PlainTextResponse(str(refused), refused.status)
    return JSONResponse({"detail": str(refused), "error": str(refused)}, refused.status)


def visitor(request: Any) -> str:
    """Who asks: the address, in a Space the one that its proxy names."""
    forwarded = request.headers.get("x-forwarded-for", "").split(",")[-1].strip() if _is_space() else ""
    return forwarded or (request.client.host if request.client else "")


def known_hosts(host: str | None, further: Iterable[str] = ()) -> set[str] | None:
    """Names that a page answers to; None for all, in a Space, which is public.

    Args:
        host: that it listens at.
        further: names that its owner gives.
    """
    return None if _is_space() else {each.lower() for each in ("localhost", socket.gethostname(), host or "", *further)}


def _is_space() -> bool:
    return bool(os.environ.get("SPACE_ID"))


def is_known_host(header: str, hosts: set[str]) -> bool:
    """Whether a Host header holds an address, which cannot be rebound, or one of these names."""
    try:
        name = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return bool(name) and name in hosts
    return True


def keep_below(folder: Path, most: int) -> None:
    """Remove the oldest files until those that stay take no more bytes than this.

    Args:
        folder: in which, and in the folders in it, files are removed.
        most: bytes of all files together.
    """
    found = []
    for file in folder.rglob("*"):
        try:
            status = file.stat()
        except OSError:  # removed meanwhile
            continue
        if file.is_file():
            found.append((status.st_mtime, status.st_size, file))
    total = sum(size for _, size, _ in found)
    for _, size, file in sorted(found):
        if total <= most:
            break
        file.unlink(missing_ok=True)
        total -= size
