"""huggingface_hub with what it leaves out: a limit on waiting, retries around every call, errors in words."""

import logging
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_session, get_token
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
)

from ddpm_hf._version import __version__
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.signals import Stopped

logger = logging.getLogger(__name__)

T = TypeVar("T")

TRANSPORT_ERROR = HfHubHTTPError.__bases__[0]
"""What the client's HTTP library raises; which library that is depends on the client's version."""

STALE = 412
"""Somebody else has committed since the head was read."""

REFUSALS = (HfHubHTTPError, OfflineModeIsEnabled, LocalTokenNotFoundError, HFValidationError)
"""What only the person can mend, unless it may pass."""

PASSING = {408, 409, 412, 423, 425, 429}
"""Answers below 500 that another attempt may change."""


class HubUnreachableError(RuntimeError):
    """The Hub did not do what was asked, however often, for reasons that may pass."""


@dataclass(frozen=True)
class Patience:
    """How long a call goes on in the face of faults that may pass.

    Attributes:
        attempts: calls in all, at least 1.
        base: seconds before the second attempt, twice as many before the third and so on.
        longest: seconds of the longest pause, of one that the Hub asks for too.
        answer: seconds without a byte after which an attempt is given up.
        sleep: makes a pause; may raise Stopped to end the call.
    """

    attempts: int = 7
    base: float = 1.0
    longest: float = 60.0
    answer: float = 120.0
    sleep: Callable[[float], object] = time.sleep

    def pause(self, attempt: int, error: BaseException) -> float:
        """Seconds to wait after an attempt, counted from 1: at random, in the upper half of the doubled base."""
        asked = _retry_after(error)
        backoff = self.base * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
        return min(backoff if asked is None else asked + random.uniform(0, self.base), self.longest)


class HubClient:
    """The Hub, for one token.

    Args:
        endpoint: address of the Hub; None is the one that huggingface_hub knows (HF_ENDPOINT).
        token: None is the one that huggingface_hub knows (HF_TOKEN, or that of `hf auth login`).
        patience: with faults that may pass.
    """

    def __init__(self, endpoint: str | None = None, token: str | None = None, patience: Patience | None = None) -> None:
        self.api = HfApi(endpoint=endpoint, token=token, library_name="ddpm-hf", library_version=__version__)
        self.token = token
        self.patience = patience or Patience()

    def with_patience(self, patience: Patience) -> "HubClient":
        """The same Hub and token with another patience."""
        return HubClient(self.api.endpoint, self.token, patience)

    @property
    def has_token(self) -> bool:
        """Whether there is a token at all."""
        return bool(self.token or get_token())

    def call(self, doing: str, act: Callable[[], T], repo_id: str = "") -> T:
        """Do something on the Hub, again and again while what goes wrong may pass.

        Args:
            doing: what is done, for messages, such as "uploading".
            act: does it; called again after a fault, so it must be safe to repeat.
            repo_id: for messages.

        Raises:
            UserError: the token, the repository or what was sent is refused; asked once.
            HubUnreachableError: every attempt failed.
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
                if not may_pass(cause):
                    if isinstance(cause, REFUSALS):
                        raise UserError(text) from None
                    raise
                if attempt >= self.patience.attempts:
                    raise HubUnreachableError(f"{doing} failed {attempt} times, at last because {text}") from None
                seconds = self.patience.pause(attempt, cause)
                # the first pause is short; what goes on for longer is told once
                level = logging.WARNING if attempt == 2 else logging.INFO
                logger.log(level, "%s: %s; attempt %d follows in %.1f s", doing, text, attempt + 1, seconds)
                self.patience.sleep(seconds)

    def _limit_waiting(self) -> None:
        """Give the client's session a limit, where it has none: by default it waits for an answer for ever."""
        session = get_session()
        if session.timeout.read is None:
            session.timeout = self.patience.answer


def root_cause(error: BaseException) -> BaseException:
    """The error of the HTTP library or the Hub behind those that were raised from it, if there is one."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, (HfHubHTTPError, TRANSPORT_ERROR, OfflineModeIsEnabled)):
            return found
        found = found.__cause__ or found.__context__
    return error


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status >= 500 or status in PASSING
    if isinstance(error, (OfflineModeIsEnabled, LocalTokenNotFoundError, FileNotFoundError, PermissionError)):
        return False
    # hf_xet, which moves large files, raises plain RuntimeErrors
    return isinstance(error, (TRANSPORT_ERROR, ConnectionError, TimeoutError)) or type(error) is RuntimeError


def explain(error: BaseException, repo_id: str = "") -> str:
    """Say what a fault means and how to mend it, without the token."""
    where = f"the repository {repo_id}" if repo_id else "that"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked; unset it to go online"
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token for the Hub; make one (huggingface.co/settings/tokens) and run: hf auth login"
    if isinstance(error, GatedRepoError):
        return f"access to {where} has to be asked for on its page on the Hub"
    if isinstance(error, RevisionNotFoundError):
        return f"{where} has no such branch, tag or commit"
    if isinstance(error, EntryNotFoundError):
        return f"{where} has no such file"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no repository {repo_id} on the Hub, or the token may not see it (hf auth whoami says whose)"
    if status == 401:
        return "the Hub does not know the token, or it has run out; run: hf auth login (HF_TOKEN goes before it)"
    if status == 403:
        return f"the token may not write to {where}; use one with the role write, or a namespace that is yours"
    if status == STALE:
        return f"{where} was changed by somebody else meanwhile"
    if status == 429:
        return "the Hub is asked too often (429)"
    if status is not None and status >= 500:
        return f"the Hub has trouble of its own ({status})"
    if isinstance(error, BadRequestError):
        return f"the Hub refuses what was sent: {redact(error.server_message or str(error))}"
    if isinstance(error, HfHubHTTPError):
        return f"the Hub answers {status} for {where}: {redact(error.server_message or 'without a reason')}"
    if isinstance(error, (TRANSPORT_ERROR, ConnectionError, TimeoutError)):
        return f"the connection to the Hub failed ({type(error).__name__})"
    return redact(str(error).strip() or type(error).__name__)


def redact(text: str) -> str:
    """Blot out everything that is, or looks like, a token."""
    token = get_token()
    if token:
        text = text.replace(token, "hf_***")
    return re.sub(r"hf_[A-Za-z0-9]{8,}", "hf_***", text)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids every request."""
    return bool(constants.HF_HUB_OFFLINE)


def _retry_after(error: BaseException) -> float | None:
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return float(asked) if asked.isdigit() else None
