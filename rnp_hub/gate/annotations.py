"""Violations as workflow commands of GitHub Actions, which shows them on the run's page.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

from rnp_hub.gate.result import GateReport
from rnp_hub.text import one_line

SHOWN = 10
"""GitHub shows ten errors of a step."""


def as_commands(report: GateReport) -> str:
    """One command a line; nothing within a value can begin another."""
    lines = [
        command("error", f"{each.id} {each.rule.name}", f"{each.measured} ({each.where})", report)
        for each in report.violations[:SHOWN]
    ]
    if len(report.violations) > SHOWN:
        more = len(report.violations) - SHOWN
        lines.append(command("error", "rnp-hub", f"{more} more violations", report))
    return "".join(lines)


def command(kind: str, title: str, message: str, report: GateReport) -> str:
    """`::error file=…,title=…::message`."""
    file = f"file={_property(report.reference)},"
    return f"::{kind} {file}title={_property(title)}::{_data(message)}\n"


def _data(text: str) -> str:
    return one_line(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
