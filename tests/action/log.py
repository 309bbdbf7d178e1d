"""What a runner makes of a step's output: lines to show, and commands to obey.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions; both forms that the
runner reads: `::name key=value::data` at the start of a line, and `##[name]data` anywhere in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

KNOWN = {
    "add-mask", "add-matcher", "add-path", "debug", "echo", "endgroup", "error", "group", "notice",
    "remove-matcher", "save-state", "set-env", "set-output", "stop-commands", "warning",
}  # fmt: skip
SECOND = re.compile(r"^\s*::(?P<name>[\w-]+)(?: (?P<properties>[^:]*))?::(?P<data>.*)$")
FIRST = re.compile(r"##\[(?P<name>[\w-]+)(?: (?P<properties>[^\]]*))?\](?P<data>.*)$")


@dataclass(frozen=True)
class Command:
    """A command that was obeyed."""

    name: str
    properties: dict[str, str]
    data: str


def commands(output: str) -> list[Command]:
    """Those that a runner obeys, in their order."""
    return list(_obeyed(output))


def _obeyed(output: str) -> Iterator[Command]:
    resume: str | None = None
    for line in re.split(r"\r\n|\n|\r", output):
        if resume is not None:
            resume = None if line.strip() == f"::{resume}::" else resume
            continue
        found = SECOND.match(line) or FIRST.search(line)
        if found is None or found["name"] not in KNOWN:
            continue
        if found["name"] == "stop-commands":
            resume = found["data"]
            continue
        yield Command(found["name"], _properties(found["properties"] or ""), _plain(found["data"]))


def _properties(text: str) -> dict[str, str]:
    pairs = (each.partition("=") for each in text.split(",") if each.strip())
    return {key.strip(): _plain(value, also=True) for key, _, value in pairs}


def _plain(text: str, *, also: bool = False) -> str:
    text = text.replace("%0D", "\r").replace("%0A", "\n")
    if also:
        text = text.replace("%3A", ":").replace("%2C", ",")
    return text.replace("%25", "%")
