"""huggingface_hub with what it lacks: a time limit on every answer, retries around every call, clear errors."""

import logging
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

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
        timeout: seconds to wait for an answer.
        sleep: waits for a number of seconds; may raise Stopped.
    """

    attempts: int = 7
    base: float = 1.0
    longest: float = 60.0
    timeout: float = 120.0
    sleep: Callable[[float], object] = time.sleep

    def pause(self, attempt: int, error: BaseException) -> float:
        """Seconds to wait after an attempt, counted from 1: random, in the upper half of the back-off."""
        asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
        if asked.isdigit():
            return min(float(asked) + random.uniform(0, self.base), self.longest)
        return min(self.base * 2 ** (attempt - 1) * random.uniform(0.5, 1.0), self.longest)


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

    def call(self, task: str, act: Callable[[], T], repo_id: str = "") -> T:
        """Make a call to the Hub, and retry it while it fails with transient errors.

        Args:
            task: for messages, such as "uploading".
            act: makes the call; it is called again after a failure, so it must be safe to repeat.
            repo_id: for messages.

        Raises:
            UserError: if the token, the repository or the content is refused, which is not retried.
            HubUnreachableError: if every attempt failed.
        """
        attempt = 0
        while True:
            attempt += 1
            self._limit_waiting()
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
                # the first pause is short; a longer failure is reported once
                level = logging.WARNING if attempt == 2 else logging.INFO
                logger.log(level, "%s: %s; attempt %d follows in %.1f s", task, text, attempt + 1, seconds)
                self.retries.sleep(seconds)

    def _limit_waiting(self) -> None:
        """Set a time limit in huggingface_hub's session, which waits for an answer forever by default."""
        session = get_session()
        if session.timeout.read is None:
            session.timeout = self.retries.timeout


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
        return f"the connection to the Hub failed ({type(error).__name__})"
    return redact(str(error).strip() or type(error).__name__)


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
