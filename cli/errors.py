"""What becomes of an exception at the terminal: one sentence on stderr and an exit code.

0 done, 1 the answer is no, 2 the tool failed, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from rnp_hub.errors import RnpHubError

FAILED, INTERRUPTED = 2, 130


class OneSentenceGroup(TyperGroup):
    """Commands whose expected failures are one sentence."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RnpHubError as error:
            # One line, whatever the libraries below put into their own messages.
            print(f"Error: {' '.join(str(error).splitlines())}", file=sys.stderr)
            raise typer.Exit(FAILED) from error
        except KeyboardInterrupt as error:
            print(str(error) or "Stopped; nothing was written.", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from error
