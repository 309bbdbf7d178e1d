"""The command line: parse, one library call, print."""

from rnp_hub.cli.app import main

__all__ = ["main"]
