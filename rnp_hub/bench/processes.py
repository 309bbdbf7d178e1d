"""Measurements that each run in a process of their own, with limits, and can be taken up again.

A worker is a module that prints what it knows so far as one JSON object a line; the last counts.
What is known when a limit ends it is kept, with the reason beside it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from rnp_hub.errors import reason

Row = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Of one process: seconds, and MiB of memory that it really uses."""

    seconds: float = 300.0
    mib: float = 8192.0


def rows(
    worker: str,
    jobs: Sequence[Sequence[str]],
    log: Path,
    limits: Limits,
    read: Callable[[Row], T],
    say: Callable[[T], None] = lambda _: None,
) -> list[T]:
    """What the worker says of each job; jobs that stand in the log are not run again.

    Args:
        worker: name of a module that runs with the words of a job behind it.
        jobs: words.
        log: one JSON line a job.
        limits: of each job's process.
        read: makes of a row what it stands for.
        say: told each new one.

    Returns:
        A row for each job, the first word of the job as its `model`. `error` says what ended it
        early, `None` where nothing did.
    """
    done = _known(log, worker)
    log.parent.mkdir(parents=True, exist_ok=True)
    for job in map(tuple, jobs):
        if job not in done:
            done[job] = _in_a_process(worker, job, limits)
            with log.open("a", encoding="utf-8") as lines:
                line = {"worker": worker, "job": job, "row": done[job]}
                lines.write(json.dumps(line) + "\n")
            say(read(done[job]))
    return [read(done[tuple(job)]) for job in jobs]


def tell(
    found: Row,
    figures: Iterable[Mapping[str, Any]],
    sentences: tuple[type[Exception], ...] = (),
) -> None:
    """Say what is known so far, each time there is more; for workers.

    A failure on the way leaves its reason in `error`, with the name of its class unless that is one
    of `sentences`, and the figures that were known before it.
    """
    try:
        for more in figures:
            found = found | dict(more)
            print(json.dumps(found), flush=True)
    except sentences as error:
        print(json.dumps(found | {"error": str(error)}), flush=True)
    except Exception as error:  # a network may fail in any way; the table says which
        why = f"{type(error).__name__}: {reason(error)}"
        print(json.dumps(found | {"error": why}), flush=True)


def _known(log: Path, worker: str) -> dict[tuple[str, ...], Row]:
    if not log.is_file():
        return {}
    known = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        # Lines of other versions, or cut off half-way, are of jobs that were not run.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            if entry["worker"] == worker:
                known[tuple(entry["job"])] = entry["row"]
    return known


def _in_a_process(worker: str, job: Sequence[str], limits: Limits) -> Row:
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as trouble:
        process = subprocess.Popen(
            [sys.executable, "-m", worker, *job], stdout=said, stderr=trouble, text=True
        )
        try:
            beyond = _watch(process, start, limits)
        finally:
            process.kill()
        known = _lines(said)
        row: Row = {"model": job[0], **(json.loads(known[-1]) if known else {})}
        if process.returncode != 0:
            last = (_lines(trouble) or [f"exit code {process.returncode}"])[-1]
            row["error"] = beyond or last
    row.setdefault("error", None)
    return row


def _lines(file: IO[str]) -> list[str]:
    file.seek(0)
    return file.read().strip().splitlines()


def _watch(process: subprocess.Popen[str], start: float, limits: Limits) -> str | None:
    """Wait for the process; end it where it goes beyond a limit, and say which."""
    while True:
        try:
            process.wait(0.25)
            return None
        except subprocess.TimeoutExpired:
            used = _used_mib(process.pid)
            if time.monotonic() - start > limits.seconds:
                beyond = f"more than {limits.seconds:.0f} s"
            elif used > limits.mib:
                beyond = f"more than {limits.mib:.0f} MiB"
            else:
                continue
            process.kill()
            process.wait()
            return beyond


def _used_mib(pid: int) -> float:
    """Memory that a process holds; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    held = [line.split()[1] for line in lines if line.startswith("VmRSS")]
    return int(held[0]) / 1024 if held else 0.0
