"""What becomes of an exception at the terminal: one sentence on stderr and an exit code.

0 done, 1 the answer is no, 2 the tool failed, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from rnp_hub.errors import RnpHubError
from rnp_hub.text import one_line

FAILED, INTERRUPTED = 2, 130


class OneSentenceGroup(TyperGroup):
    """Commands whose expected failures are one sentence."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RnpHubError as error:
            # One line, whatever libraries and repositories put into their messages.
            print(f"Error: {one_line(str(error))}", file=sys.stderr)
            raise typer.Exit(FAILED) from error
        except KeyboardInterrupt as error:
            print(str(error) or "Stopped; nothing was written.", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from error
