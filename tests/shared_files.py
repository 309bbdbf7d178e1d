"""Models and data sets that may lie beside the repository; tests that need them skip without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("RNP_HUB_SHARED", Path(__file__).parents[2] / "shared"))


def shared(name: str) -> Path:
    """The path of a shared file or folder; the test is skipped, with a reason, where it is not."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"shared/{name} is not on this machine (RNP_HUB_SHARED says where it lies)")
    return path
