"""huggingface_hub with what it lacks: limits on the size and time of every answer, retries, clear errors."""

import logging
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_session, get_token, resolve_revision
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from ddpm_hf._version import __version__
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import write_text_atomic
from ddpm_hf.runtime.signals import Stopped

logger = logging.getLogger(__name__)

T = TypeVar("T")

TRANSPORT_ERROR = HfHubHTTPError.__bases__[0]
"""The base class of the errors of huggingface_hub's HTTP library, which depends on its version."""

HTTP = sys.modules[TRANSPORT_ERROR.__module__.partition(".")[0]]
"""huggingface_hub's HTTP library, httpx or what follows it."""

LISTING_BYTES = 16 * 2**20
"""What an attempt may receive beside the files that it transfers: lists of files, and other answers in JSON."""

ANSWER_BYTES = 1024
"""What every answer counts at least: a listing may have pages without end, and nothing on them."""

LOOKUP_ATTEMPTS = 5
"""To ask the Hub for something that the cache may have."""

SECONDS_OF_SILENCE = 10.0
"""Longest wait on a terminal without a word."""

STALE = 412
"""The branch has changed since its head was read."""

REFUSALS = (HfHubHTTPError, OfflineModeIsEnabled, LocalTokenNotFoundError, HFValidationError)
"""Errors that the user has to fix, unless they are transient."""

TRANSIENT_STATUS = {408, 409, STALE, 423, 425, 429}
"""Status codes below 500 that are retried."""


class HubUnreachableError(RuntimeError):
    """Every attempt failed with an error that may be transient."""


@dataclass(frozen=True)
class RetryPolicy:
    """Retries of transient errors, with exponential back-off and jitter.

    Attributes:
        attempts: calls in all, at least 1.
        base: seconds before the second attempt; the pause doubles with every further attempt.
        longest: limit of a pause in seconds, also of one that the Hub asks for.
        timeout: seconds to wait for an answer, or for the next part of one.
        total: seconds that an attempt may take in all, beside its transfers.
        slowest: bytes a second of transfers, at least.
        sleep: waits for a number of seconds; may raise Stopped.
    """

    attempts: int = 7
    base: float = 1.0
    longest: float = 60.0
    timeout: float = 120.0
    total: float = 600.0
    slowest: float = 10_000.0
    sleep: Callable[[float], object] = time.sleep

    def pause(self, attempt: int, error: BaseException) -> float:
        """Seconds to wait after an attempt, counted from 1: random, in the upper half of the back-off."""
        asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
        if asked.isdigit():
            return min(float(asked) + random.uniform(0, self.base), self.longest)
        return min(self.base * 2 ** (attempt - 1) * random.uniform(0.5, 1.0), self.longest)


class _Limit:
    """What an attempt may receive, and until when."""

    def __init__(self, task: str, num_bytes: int, retries: RetryPolicy) -> None:
        self.task, self.max_bytes = task, LISTING_BYTES + 2 * num_bytes  # twice, where a transfer begins anew
        self.seconds = retries.total + num_bytes / retries.slowest
        self.deadline, self.received = time.monotonic() + self.seconds, 0

    def excess(self) -> Exception | None:
        """The error of an attempt that is beyond its limits."""
        if self.received > self.max_bytes:
            return UserError(f"{self.task}: the Hub sends more than the {self.max_bytes:,} bytes that this may have")
        if time.monotonic() > self.deadline:
            return HubUnreachableError(f"{self.task}: the Hub has not answered in full within {self.seconds:.0f} s")
        return None


_limits: list[_Limit] = []
"""Of all attempts at this time; threads of huggingface_hub receive the downloads, and cannot tell for whom."""


def _check_limits(_: object = None) -> None:
    excesses = [limit.excess() for limit in _limits]
    for excess in excesses[:1]:
        if excess is not None and all(excesses):
            raise excess


def _limit_response(response: Any) -> None:
    """Bound the body of an answer, whose length is not known before it ends; called before it is received."""
    if not _limits:
        return
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":  # a few bytes may stand for many
        raise UserError(f"the Hub's answer is compressed ({encoding}), which was not asked for; it is not read")
    for limit in _limits:
        limit.received += ANSWER_BYTES
    response.stream = _BoundedStream(response.stream)


class _BoundedStream(HTTP.SyncByteStream):  # type: ignore[name-defined]  # of a library by another name
    """The body of an answer, up to the limits."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        for part in self._stream:
            for limit in _limits:
                limit.received += len(part)
            _check_limits()
            yield part

    def close(self) -> None:
        self._stream.close()


class HubClient:
    """The Hub, with one token.

    Args:
        endpoint: address of the Hub; None: that of huggingface_hub (HF_ENDPOINT).
        token: None: that of huggingface_hub (HF_TOKEN, or that of `hf auth login`).
        retries: of transient errors.
    """

    def __init__(
        self, endpoint: str | None = None, token: str | None = None, retries: RetryPolicy | None = None
    ) -> None:
        self.api = HfApi(endpoint=endpoint, token=token, library_name="ddpm-hf", library_version=__version__)
        self.token = token
        self.retries = retries or RetryPolicy()

    @property
    def has_token(self) -> bool:
        """Whether there is a token at all."""
        return bool(self.token or get_token())

    def call(self, task: str, act: Callable[[], T], repo_id: str = "", num_bytes: int = 0) -> T:
        """Make a call to the Hub, and retry it while it fails with transient errors.

        Args:
            task: for messages, such as "uploading".
            act: makes the call; it is called again after a failure, so it must be safe to repeat.
            repo_id: for messages.
            num_bytes: of the files that it transfers, on which its limits depend.

        Raises:
            UserError: if the token, the repository or the content is refused, or the answer is too long; neither is
                retried.
            HubUnreachableError: if every attempt failed, or one took too long in all.
        """
        attempt = 0
        while True:
            attempt += 1
            self._limit_session()
            limit = _Limit(task, num_bytes, self.retries)
            _limits.append(limit)
            try:
                return act()
            except (UserError, HubUnreachableError, Stopped):
                raise
            except Exception as error:
                cause = root_cause(error)
                text = explain(cause, repo_id)
                if not is_transient(cause):
                    if isinstance(cause, REFUSALS):
                        raise UserError(text) from None
                    raise
                if attempt >= self.retries.attempts:
                    raise HubUnreachableError(
                        f"could not reach {self.api.endpoint} after {attempt} attempts ({task}): {text}"
                    ) from None
                seconds = self.retries.pause(attempt, cause)
                # the first pause is short, and one under ten seconds needs no second word
                level = logging.WARNING if attempt == 2 or seconds > SECONDS_OF_SILENCE / 2 else logging.INFO
                logger.log(level, "%s: %s; attempt %d follows in %.1f s", task, text, attempt + 1, seconds)
            finally:
                _limits.remove(limit)
            self.retries.sleep(seconds)

    def _limit_session(self) -> None:
        """Have huggingface_hub's session keep the limits; by default it waits for an answer forever."""
        session = get_session()
        hooks = session.event_hooks
        if _check_limits not in hooks["request"]:
            session.event_hooks = {
                "request": [*hooks["request"], _check_limits],
                "response": [*hooks["response"], _limit_response],
            }
            session.headers["Accept-Encoding"] = "identity"
        if session.timeout.read is None:
            limits = type(session.timeout)
            session.timeout = limits(self.retries.timeout, connect=min(self.retries.timeout, SECONDS_OF_SILENCE))

    @property
    def for_lookups(self) -> "HubClient":
        """The same Hub with about ten seconds of retries: somebody waits, and the cache is an alternative."""
        retries = replace(self.retries, attempts=min(self.retries.attempts, LOOKUP_ATTEMPTS))
        return HubClient(self.api.endpoint, self.token, retries)


def root_cause(error: BaseException) -> BaseException:
    """The error of the Hub or the HTTP library that an error was raised from, or else the error itself."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, (HfHubHTTPError, TRANSPORT_ERROR, OfflineModeIsEnabled)):
            return found
        found = found.__cause__ or found.__context__
    return error


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status >= 500 or status in TRANSIENT_STATUS
    if isinstance(error, (OfflineModeIsEnabled, LocalTokenNotFoundError, FileNotFoundError, PermissionError)):
        return False
    # hf_xet, which transfers large files, raises plain RuntimeErrors
    return isinstance(error, (TRANSPORT_ERROR, ConnectionError, TimeoutError)) or type(error) is RuntimeError


def explain(error: BaseException, repo_id: str = "") -> str:
    """Say what an error means and how to fix it, without the token."""
    where = f"the repository {repo_id}" if repo_id else "that"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked; unset it to go online"
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token for the Hub; make one (huggingface.co/settings/tokens) and run: hf auth login"
    if isinstance(error, GatedRepoError):
        return f"access to {where} has to be requested on its page on the Hub"
    if isinstance(error, RevisionNotFoundError):
        return f"{where} has no such branch, tag or commit"
    if isinstance(error, EntryNotFoundError):
        return f"{where} has no such file"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no repository {repo_id} on the Hub, or the token may not see it (hf auth whoami says whose)"
    if status == 401:
        return "the Hub does not know the token, or it has expired; run: hf auth login (HF_TOKEN takes precedence)"
    if status == 403:
        return f"the token may not write to {where}; use one with the role write, or a namespace that is yours"
    if status == STALE:
        return f"{where} was changed by somebody else meanwhile"
    if status == 429:
        return "too many requests to the Hub (429)"
    if status is not None and status >= 500:
        return f"the Hub has a problem of its own ({status})"
    if isinstance(error, BadRequestError):
        return f"the Hub refuses what was sent: {redact(error.server_message or str(error))}"
    if isinstance(error, HfHubHTTPError):
        return f"the Hub answers {status} for {where}: {redact(error.server_message or 'without a reason')}"
    if isinstance(error, (TRANSPORT_ERROR, ConnectionError, TimeoutError)):
        reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error).strip())
        return f"the connection to the Hub failed{f' ({redact(reason)})' if reason else ''}"
    return redact(str(error).strip() or "it failed without a reason")


def redact(text: str) -> str:
    """Replace everything that is, or looks like, a token."""
    token = get_token()
    if token:
        text = text.replace(token, "hf_***")
    return re.sub(r"hf_[A-Za-z0-9]{8,}", "hf_***", text)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids every request."""
    return bool(constants.HF_HUB_OFFLINE)


def remember_commit(repo_id: str, repo_type: str, revision: str | None, commit: str) -> None:
    """Store the commit of a branch in huggingface_hub's cache, which offline work then uses.

    huggingface_hub itself stores it before a download; we do after it, so that an interrupted download leaves the
    commit that is cached completely.

    Args:
        repo_id: user/name.
        repo_type: "model" or "dataset".
        revision: branch or tag; None: main.
        commit: hash.
    """
    if revision != commit:
        folder = f"{repo_type}s--{repo_id.replace('/', '--')}"
        write_text_atomic(
            Path(constants.HF_HUB_CACHE) / folder / "refs" / (revision or constants.DEFAULT_REVISION), commit
        )


def cached_commit(repo_id: str, repo_type: str, revision: str | None) -> str | None:
    """The commit that a branch was last known to be at; None if the cache does not know it."""
    try:
        return resolve_revision(repo_id, repo_type=repo_type, revision=revision, local_files_only=True).resolved
    except RevisionResolutionError:
        return None
