"""`rnp-hub` in a process of its own, without importing torch anew each time.

A worker imports everything once, in the environment of a Hub's client; each command then runs in a
fork of it, with the real entry point, real streams and a real exit code. Run as a module it is that
worker; :func:`running_worker` is the tests' hold on it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from tests.patches import PATCHES_ONLY, reconstruct_patches

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


class Running:
    """A command that is under way."""

    def __init__(self, process: subprocess.Popen[str], place: Path) -> None:
        self._process, self._place = process, place
        self._pid = int(self._line())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.kill(self._pid, signal.SIGINT)

    def wait(self) -> Finished:
        code = int(self._line())
        shown = [(self._place / name).read_text() for name in ("stdout", "stderr")]
        return Finished(code, *shown)

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the worker died"
        return line


class Worker:
    """Runs commands, one at a time."""

    def __init__(self, process: subprocess.Popen[str], place: Path) -> None:
        self._process, self._place = process, place

    def start(self, *words: str | Path, settings: Mapping[str, str] | None = None) -> Running:
        """Begin a command; `settings` are more environment variables, read when it runs."""
        assert self._process.stdin is not None
        order = {"words": [*map(str, words)], "place": str(self._place), "env": settings or {}}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Running(self._process, self._place)

    def __call__(self, *words: str | Path, settings: Mapping[str, str] | None = None) -> Finished:
        return self.start(*words, settings=settings).wait()


@contextmanager
def running_worker(environment: Mapping[str, str], place: Path) -> Iterator[Worker]:
    """A worker whose commands run in the folder `place`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.worker"],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Worker(process, place)
    finally:
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()


def serve() -> None:
    """Import once, then one fork for each line of standard input."""
    import onnxruntime  # noqa: F401
    import timm  # noqa: F401

    import rnp_hub.cli.terminal
    import rnp_hub.plan  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        if (child := os.fork()) == 0:
            os._exit(_run(order))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(order: dict[str, Any]) -> int:
    place = Path(order["place"])
    os.chdir(place)
    os.environ |= order["env"]
    with (place / "stdout").open("w") as stdout, (place / "stderr").open("w") as stderr:
        for stream, number in ((stdout, 1), (stderr, 2)):
            os.dup2(stream.fileno(), number)
        sys.stdout, sys.stderr = stdout, stderr
        return exit_code(order["words"])


def exit_code(words: Sequence[str]) -> int:
    """Of the real entry point with these words; 70 where it ends in a traceback."""
    from rnp_hub.cli import main

    if PATCHES_ONLY in os.environ:
        mock.patch("rnp_hub.scan.reconstruct", reconstruct_patches).start()
    sys.argv = ["rnp-hub", *words]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


if __name__ == "__main__":
    serve()
