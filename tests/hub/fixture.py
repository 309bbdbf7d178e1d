"""Start a Hub; as a pytest fixture, one per test session (import it in conftest.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hub.client import REPO_ROOT, Hub


@contextmanager
def running_hub(work: Path) -> Iterator[Hub]:
    """Run a Hub in a process of its own, with everything it keeps below `work`.

    Its standard input is a pipe from here: it ends when the block does, or when this process dies
    in whatever way.
    """
    command = [sys.executable, "-m", "tests.hub.server", "--root", str(work / "root")]
    process = subprocess.Popen(
        command,
        cwd=REPO_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the tests; the server goes when they do
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        first_line = process.stdout.readline()
        if not first_line:
            raise RuntimeError(f"the Hub did not start: exit code {process.wait()}")
        yield Hub(json.loads(first_line)["endpoint"], work)
    finally:
        process.stdin.close()
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub on loopback, in a process of its own; tests keep apart by their repositories' names."""
    with running_hub(tmp_path_factory.mktemp("hub")) as running:
        yield running
