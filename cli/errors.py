"""What becomes of an exception at the terminal: one sentence on stderr and an exit code.

0 done, 1 the answer is no, 2 the tool failed, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from rnp_hub.errors import RnpHubError
from rnp_hub.text import one_line

FAILED, INTERRUPTED = 2, 130


class OneSentenceGroup(TyperGroup):
    """Commands whose expected failures are one sentence."""

    def invoke(self, ctx: Any) -> Any:
        with _noticing_ctrl_c() as noticed:
            try:
                return super().invoke(ctx)
            except typer.Exit:
                raise
            except (KeyboardInterrupt, Exception) as error:
                if noticed or isinstance(error, KeyboardInterrupt):
                    own = str(error) if isinstance(error, KeyboardInterrupt) else ""
                    print(own or "Stopped; nothing was written.", file=sys.stderr)
                    raise typer.Exit(INTERRUPTED) from error
                if not isinstance(error, RnpHubError):
                    raise
                # One line, whatever libraries and repositories put into their messages.
                print(f"Error: {one_line(str(error))}", file=sys.stderr)
                raise typer.Exit(FAILED) from error


@contextlib.contextmanager
def _noticing_ctrl_c() -> Iterator[list[int]]:
    """Yields a list that is no longer empty once Ctrl-C was pressed.

    Code below Python may make another error of it: an import that it cut short, say.
    """
    noticed: list[int] = []

    def notice(number: int, frame: FrameType | None) -> None:
        noticed.append(number)
        signal.default_int_handler(number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield noticed  # only the main thread is told of signals
        return
    before = signal.signal(signal.SIGINT, notice)
    try:
        yield noticed
    finally:
        signal.signal(signal.SIGINT, before)
