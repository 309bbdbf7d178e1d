"""How a long stage tells what it is doing: a plain function, called with the figures that move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    def __call__(self, stage: str, done: float, figures: Mapping[str, float]) -> None:
        """Take note that `stage` is `done` (share in [0, 1]); `figures` by name."""


def quiet(stage: str, done: float, figures: Mapping[str, float]) -> None:
    """Say nothing."""
