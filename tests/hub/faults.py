"""Faults on demand: rules that say which requests are to fail, how, and how often.

======================  ===========================================================================
action                  what happens to a request that the rule strikes
======================  ===========================================================================
``status``              `status` is answered, and the request is not carried out; with
                        `retry_after`, it names these seconds
``lose_reply``          the request is carried out, and `status` is answered all the same
``cut``                 the connection closes after `after_bytes` of the answer's body
``cut_upload``          the connection closes after `after_bytes` of the request's body
``delay``               the answer waits for `seconds`
``disk_full``           an LFS upload: `after_bytes` are written, then thrown away; 507
``race``                a commit: another commit gets in just before it
======================  ===========================================================================
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

# For each action the method and path it is meant for, where the rule itself names none.
DEFAULT_TARGETS = {
    "status": ("", ""),
    "lose_reply": ("", ""),
    "cut": ("GET", ""),
    "cut_upload": ("PUT", "^/_lfs/"),
    "delay": ("", ""),
    "disk_full": ("PUT", "^/_lfs/"),
    "race": ("POST", "/commit/"),
}


@dataclass
class Rule:
    """One fault: the requests it strikes and what it does to them.

    `path` is a regular expression, searched for in the readable path with its query; an empty
    `method` means any. The first `skip` matching requests are left alone and the next `times`
    struck (None: all that come). `reset` makes a cut a TCP reset instead of an early end.
    """

    action: str
    method: str = ""
    path: str = ""
    times: int | None = 1
    skip: int = 0
    status: int = 503
    retry_after: int | None = None
    after_bytes: int = 0
    seconds: float = 0.0
    reset: bool = False
    seen: int = 0
    fired: int = 0

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Rule:
        """Return the rule; ValueError when it has an unknown action, key or expression."""
        unknown = set(raw) - {item.name for item in fields(cls)}
        if raw.get("action") not in DEFAULT_TARGETS or unknown:
            raise ValueError(f"no such fault: {dict(raw)}; actions: {', '.join(DEFAULT_TARGETS)}")
        rule = cls(**raw)
        method, path = DEFAULT_TARGETS[rule.action]
        rule.method, rule.path = rule.method or method, rule.path or path
        re.compile(rule.path)
        return rule

    def strikes(self, method: str, target: str) -> bool:
        """Say whether this request is to fail, and count it."""
        if self.method not in ("", method) or not re.search(self.path, target):
            return False
        self.seen += 1
        if self.seen <= self.skip or (self.times is not None and self.fired >= self.times):
            return False
        self.fired += 1
        return True


class Faults:
    """The rules in force."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []
        self._lock = threading.Lock()

    def replace(self, rules: Iterable[Rule]) -> None:
        """Put these rules in the place of those in force."""
        with self._lock:
            self._rules = list(rules)

    def striking(self, method: str, target: str) -> list[Rule]:
        """Return the rules that strike a request, and count it in each."""
        with self._lock:
            return [rule for rule in self._rules if rule.strikes(method, target)]

    def to_json(self) -> list[dict[str, Any]]:
        """Return the rules with how many requests each has seen and struck."""
        with self._lock:
            return [asdict(rule) for rule in self._rules]
