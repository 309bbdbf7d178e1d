"""Fifty pushes, each with a fault at a random point: the head is the old or the new commit."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub.client import Hub
from tests.hub.fixture import running_hub
from tests.models import Run
from tests.pushing import hashes, on_hub
from tests.worker import Finished, Worker, running_worker

Fault = dict[str, Any]
RUNS, SEED = 50, 2023
TRIES = 3


@pytest.fixture(scope="module")
def quiet_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Worker]]:
    """A Hub that nobody else speaks to, so that requests can be counted."""
    work = tmp_path_factory.mktemp("faults")
    with running_hub(work) as hub, running_worker(hub.env(hub.token), work) as worker:
        yield hub, worker


def _kinds(exchange: dict[str, Any], draw: random.Random) -> list[Fault]:
    """The faults that can strike a request, each with random figures."""
    size, method = exchange["bytes_out"], exchange["method"]
    kinds: list[Fault] = [
        {"action": "status", "status": draw.choice([429, 500, 502, 503, 504])},
        {"action": "lose_reply", "status": draw.choice([500, 502, 504])},
        {"action": "delay", "seconds": draw.uniform(1.5, 3)},
        {"action": "status", "status": draw.choice([401, 403, 404])},
    ]
    if method != "HEAD" and size:
        after, reset = draw.randrange(size), draw.random() < 0.5
        kinds.append({"action": "cut", "after_bytes": after, "reset": reset})
    if exchange["bytes_in"]:
        kinds.append({"action": "cut_upload", "after_bytes": draw.randrange(exchange["bytes_in"])})
    if method == "PUT":
        kinds.append({"action": "disk_full", "after_bytes": draw.randrange(exchange["bytes_in"])})
    if "/commit/" in exchange["path"]:
        kinds.append({"action": "race"})
    return kinds


def _kind(exchange: dict[str, Any]) -> str:
    """Its method and route: `GET resolve` whatever the file, `PUT _lfs` whatever the object."""
    names = ("resolve", "tree", "_lfs", "preupload", "commit", "batch", "verify", "whoami", "yaml")
    route = next((name for name in names if name in exchange["path"]), "repository")
    return f"{exchange['method']} {route}"


def _rule(exchanges: list[dict[str, Any]], clean: str, repo: str, draw: random.Random) -> Fault:
    """A fault at one of the requests of a clean push, whichever, in the words of another repo."""

    def pattern(exchange: dict[str, Any]) -> str:
        path = re.escape(exchange["path"].replace(clean, repo))
        return f"^{re.sub('[0-9a-f]{40}|[0-9a-f]{32}', '[0-9a-f]+', path)}$"

    # A clean push downloads far more often than it commits: the kind of request is drawn first.
    kinds = sorted({_kind(exchange) for exchange in exchanges})
    kind = draw.choice(kinds)
    struck = draw.choice([exchange for exchange in exchanges if _kind(exchange) == kind])
    alike = [
        each
        for each in exchanges
        if (each["method"], pattern(each)) == (struck["method"], pattern(struck))
    ]
    return {
        **draw.choice(_kinds(struck, draw)),
        "method": struck["method"],
        "path": pattern(struck),
        "skip": alike.index(struck),
        "times": draw.choice([1, 1, 2, None]),
    }


def _state(hub: Hub, repo: str, old: dict[str, str] | None, new: dict[str, str]) -> str:
    """What the head holds: `old`, `new`, or something that must never be."""
    try:
        found = on_hub(hub, repo)
    except ValueError:
        return "old" if old is None else "lost"
    found.pop("race.txt", None)
    if found == new:
        return "new"
    return "old" if found == (old or {}) else "half"


def _outcome(done: Finished, state: str) -> str:
    """What came of it; an assertion where code, sentence and head contradict each other."""
    last = (done.stderr.splitlines() or [""])[-1]
    if done.code == 0:
        assert state == "new", done.stderr
        assert "Pulled back by that commit" in done.stdout
        return "recovered"
    assert done.code == 2, (done.code, done.stderr)
    assert last.startswith("Error: "), done.stderr
    assert done.stdout == ""
    if state == "new":  # it arrived, and the command says that it cannot tell, or not prove it
        assert re.search("cannot be pulled back|cannot be asked|was last seen", last), last
        return "arrived, unproved"
    assert "was made, but" not in last, last
    return "refused"


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_fifty_faults_at_random_points(
    quiet_hub: tuple[Hub, Worker], plain_run: Run, tmp_path: Path
) -> None:
    hub, rnp = quiet_hub
    folder = Path(shutil.copytree(plain_run.folder, tmp_path / "out"))
    (folder / "README.md").write_text("# The card of this push\n")
    older = Path(shutil.copytree(plain_run.folder, tmp_path / "older"))
    (older / "README.md").write_text("# The card of an earlier push\n")
    (older / "stale.png").write_bytes(b"an earlier push left this")
    clean = {}
    for name, first in (("me/clean-new", None), ("me/clean-old", older)):
        assert first is None or rnp("push", first, name).code == 0
        with hub.recording() as exchanges:
            assert rnp("push", folder, name).code == 0
        clean[name] = exchanges
    draw, rows = random.Random(SEED), []
    for number in range(RUNS):
        name = draw.choice(sorted(clean))
        repo, old = f"me/run-{number}", None
        if name == "me/clean-old":
            assert rnp("push", older, repo).code == 0
            old = hashes(older)
        rule = _rule(clean[name], name, repo, draw)
        with hub.faults(rule) as fired:
            done = rnp("push", folder, repo, "--tries", str(TRIES), "--timeout", "1")
            struck = fired()[0]
            hub.log(1 << 30)  # waits for requests that the client has given up
        state = _state(hub, repo, old, hashes(folder))
        assert state in ("old", "new"), (rule, state, done.stderr)
        outcome = _outcome(done, state)
        titles = [commit["title"] for commit in hub.history(repo)] if state == "new" else []
        assert titles.count("Sanitize plain with rnp-hub 0.1.0") <= (2 if old else 1), rule
        print(f"{number:>3}  {outcome:<18} {rule['action']:<11} {rule['method']} {rule['path']}")
        said = (done.stderr.splitlines() or [""])[-1] if done.code else ""
        rows.append(
            {"run": number, "fault": rule, "struck": struck, "outcome": outcome, "head": state}
            | {"code": done.code, "said": said}
        )
    _write_summary(rows)
    assert all(row["struck"] for row in rows), "a fault that never strikes shows nothing"


def _write_summary(rows: list[dict[str, Any]]) -> None:
    """Counts by kind of fault, printed and written to bench-out/faults.json."""
    heads = ("recovered", "refused", "arrived, unproved")
    counts = Counter((row["fault"]["action"], row["outcome"], row["head"]) for row in rows)
    actions = sorted({action for action, _, _ in counts})
    table = {
        action: {
            **{
                outcome: sum(n for (a, o, _), n in counts.items() if (a, o) == (action, outcome))
                for outcome in heads
            },
            **{
                f"head {head}": sum(
                    n for (a, _, h), n in counts.items() if (a, h) == (action, head)
                )
                for head in ("old", "new")
            },
        }
        for action in actions
    }
    out = Path("bench-out")
    out.mkdir(exist_ok=True)
    summary = {"seed": SEED, "runs": len(rows), "by_fault": table, "each": rows}
    (out / "faults.json").write_text(json.dumps(summary, indent=1) + "\n")
    print()
    for action, line in table.items():
        print(f"{action:>12}", *(f"{name}: {n}" for name, n in line.items()), sep="  ")
