"""A record of every request: what was asked, what was answered, how many bytes went each way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Exchange:
    """One request and its answer. Bytes are those of the bodies, without headers."""

    number: int
    method: str
    path: str
    range: str | None = None
    user: str | None = None
    status: int = 0  # 0: the connection was closed without an answer
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    error: str | None = None


class Journal:
    """All exchanges since the last reset, in the order in which they began."""

    def __init__(self) -> None:
        self._exchanges: list[Exchange] = []
        self._next_number = 1
        self._under_way = 0
        self._quiet = threading.Condition()

    @contextmanager
    def exchange(self, method: str, path: str, range_header: str | None) -> Iterator[Exchange]:
        """Record one exchange; what the caller notes on it counts until the block ends."""
        with self._quiet:
            entry = Exchange(self._next_number, method, path, range_header)
            self._next_number += 1
            self._under_way += 1
            self._exchanges.append(entry)
        began = time.monotonic()
        try:
            yield entry
        finally:
            with self._quiet:
                entry.seconds = round(time.monotonic() - began, 4)
                self._under_way -= 1
                self._quiet.notify_all()

    def since(self, number: int, patience: float = 5.0) -> list[dict[str, Any]]:
        """Return the exchanges from `number` on, when no exchange is under way any more.

        A client has its answer a moment before the server has noted the last byte; without the
        wait (at most `patience` seconds) the last line would now and then be wrong.
        """
        with self._quiet:
            self._quiet.wait_for(lambda: self._under_way == 0, timeout=patience)
            return [asdict(entry) for entry in self._exchanges if entry.number >= number]

    @property
    def next_number(self) -> int:
        """The number that the next exchange will have."""
        return self._next_number

    def clear(self) -> None:
        """Forget all exchanges; numbers go on counting."""
        with self._quiet:
            self._exchanges.clear()
