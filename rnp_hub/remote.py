"""Asking the Hub with patience: what passes is tried again, what does not becomes one sentence."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import (
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import logging as client_log
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from rnp_hub import publisher
from rnp_hub.errors import PushError, causes, reason, transport_errors

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be another one a moment later."""

LONGEST_PAUSE = 120.0
"""Seconds; who asks for a longer one (`Retry-After`) is told to the person instead."""

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with the write role"

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long the Hub is waited for.

    Attributes:
        tries: of one request, before it is given up.
        pause: seconds before the second try; doubled for each further one.
        timeout: seconds that one answer may be silent; huggingface_hub itself would wait for ever.
    """

    tries: int = 5
    pause: float = 1.0
    timeout: float = 120.0


def _silent(sentence: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Remote:
    """The Hub, asked with patience.

    Attributes:
        api: the client; its token is the one of the environment or of `hf auth login`.
        patience: see there.
        say: told of each failure that is not the last.
    """

    api: HfApi = field(default_factory=HfApi)
    patience: Patience = field(default_factory=Patience)
    say: Callable[[str], None] = _silent

    def ask(
        self,
        call: Callable[[], T],
        *,
        found: Callable[[], T | None] = lambda: None,
        leave: Callable[[BaseException], bool] = lambda _: False,
    ) -> T:
        """The answer to a call, which is made again while its failure is one that passes.

        Args:
            call: may be made more than once.
            found: looks, after each failure, whether the call did its work all the same; what it
                finds is the answer then.
            leave: failures that are the caller's to handle; they come through as they are.

        Raises:
            PushError: the failure does not pass, or not in time.
        """
        for attempt in itertools.count(1):
            get_session().timeout = self.patience.timeout
            try:
                return call()
            except _failures() as error:
                done = found()
                if done is not None:
                    return done
                if leave(error):
                    raise
                pause = self._pause(error, attempt)
                if pause is None:
                    raise PushError(explain(error)) from error
                self.say(f"{explain(error).partition(';')[0]}; trying again in {pause:.0f} s")
                time.sleep(pause)
        raise AssertionError("the loop above has no end of its own")

    def _pause(self, error: BaseException, attempt: int) -> float | None:
        """Seconds before the next try; `None` where there shall be none."""
        if not passes(error) or attempt >= self.patience.tries:
            return None
        wished = retry_after(error)
        if wished is None:
            return float(self.patience.pause * 2 ** (attempt - 1))
        return wished if wished <= LONGEST_PAUSE else None


@contextlib.contextmanager
def quiet_client() -> Iterator[None]:
    """The client's own bars and warnings are left out: failures are told by `Remote`, once."""
    verbosity, hidden = client_log.get_verbosity(), are_progress_bars_disabled()
    client_log.set_verbosity_error()
    disable_progress_bars()
    try:
        yield
    finally:
        client_log.set_verbosity(verbosity)
        if not hidden:
            enable_progress_bars()


def _failures() -> tuple[type[BaseException], ...]:
    """What the client raises on purpose: uploads wrap theirs in `RuntimeError`, and a card whose
    metadata the Hub does not take is a `ValueError`."""
    return transport_errors(RuntimeError, ValueError)


def status_of(error: BaseException) -> int | None:
    """The Hub's answer behind an error; `None` where there was none.

    An upload's status stands on the cause.
    """
    for link in causes(error):
        response = getattr(link, "response", None)
        if response is not None:
            return int(response.status_code)
    return None


def retry_after(error: BaseException) -> float | None:
    """Seconds that the Hub asks to be left alone."""
    for link in causes(error):
        response = getattr(link, "response", None)
        value = "" if response is None else response.headers.get("Retry-After", "")
        if value.strip().isdigit():
            return float(value)
    return None


def passes(error: BaseException) -> bool:
    """Whether the same call may well succeed in a moment."""
    status = status_of(error)
    if status is not None:
        return status in PASSING
    return not (_is_xet(error) or _is_offline(error)) and _is_cut(error)


def _is_cut(error: BaseException) -> bool:
    """No answer, or half of one."""
    http_error = transport_errors()[0]
    kinds = (ConnectionError, TimeoutError, http_error)
    return any(isinstance(link, kinds) for link in causes(error))


def _is_offline(error: BaseException) -> bool:
    return any(isinstance(link, OfflineModeIsEnabled) for link in causes(error))


def _is_xet(error: BaseException) -> bool:
    """A server without Xet storage: the 404 comes out of a library of its own, with no answer."""
    return any("/xet-" in str(link) and "404" in str(link) for link in causes(error))


def explain(error: BaseException) -> str:
    """One sentence on a failed call, with its remedy."""
    status = status_of(error)
    if _is_offline(error):
        return "HF_HUB_OFFLINE is set; unset it to push"
    if _is_xet(error):
        return (
            "this Hub has no Xet storage, which huggingface_hub uploads to unless told otherwise; "
            "set HF_HUB_DISABLE_XET=1 and push again"
        )
    if any(isinstance(link, LocalTokenNotFoundError) for link in causes(error)):
        return f"there is no Hub token; {LOG_IN}"
    if (refused := publisher.refusal(error)) is not None:
        return refused
    if isinstance(error, HFValidationError):
        return f"this is no repository id ({reason(error)}); give it as you/name"
    if status is not None:
        return _explain_status(status, error)
    if _is_cut(error):
        return (
            f"the connection to the Hub broke ({_shown(error)}); check the network and push again"
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "there is no room for temporary files; free some, or set TMPDIR to another disk"
    return f"the Hub cannot be used ({_shown(error)})"


def _explain_status(status: int, error: BaseException) -> str:
    if status == 401:
        return f"the Hub does not accept the token (401); {LOG_IN}"
    if status == 403:
        return (
            "the token may not do this (403); make one with the write role for this namespace at "
            f"{_endpoint()}/settings/tokens, and set HF_TOKEN to it"
        )
    if status in (402, 413, 507):
        return (
            f"the Hub has no room for these files ({status}); free some of your storage there, or "
            "raise your quota, and push again"
        )
    if status == 429:
        wished = retry_after(error)
        when = "later" if wished is None else f"in {wished:.0f} s"
        return f"the Hub asks to be left alone for a while (429); push again {when}"
    if status in PASSING:
        return f"the Hub is in trouble (it answers {status}); push again later"
    return f"the Hub refuses (it answers {status}: {_shown(error)})"


def _shown(error: BaseException) -> str:
    """The innermost cause: the outer ones say only what was being done."""
    innermost = list(causes(error))[-1]
    return reason(error if status_of(error) else innermost)


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
