"""Commits on the loopback Hub: what they may do, and that they are atomic."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

from tests.hub.client import Hub, attempt


def noise(size: int, seed: int = 0) -> bytes:
    """Return bytes that do not compress and do not look like text."""
    return b"\0" + random.Random(seed).randbytes(size - 1)


def commit_in_many_ways(repo_id: str) -> dict[str, Any]:
    from huggingface_hub import (
        CommitOperationAdd,
        CommitOperationCopy,
        CommitOperationDelete,
        HfApi,
    )

    api = HfApi()

    def commit(*operations: Any, **more: Any) -> Any:
        made = api.create_commit(repo_id, operations=operations, commit_message="step", **more)
        return made.oid

    start = api.model_info(repo_id).sha
    changed = commit(
        CommitOperationAdd("c.txt", b"new"),
        CommitOperationCopy("weights.bin", "copied.bin"),
        CommitOperationDelete("a.txt"),
        CommitOperationDelete("folder/", is_folder=True),
        parent_commit=start,
    )
    late = CommitOperationAdd("late.txt", b"late")
    history = api.list_repo_commits(repo_id)
    return {
        "changed": changed,
        "short_parent": commit(CommitOperationAdd("d.txt", b"d"), parent_commit=changed[:7]),
        "stale": attempt(lambda: commit(late, parent_commit=start)),
        "missing": attempt(lambda: commit(CommitOperationDelete("never-there.txt"))),
        "unknown_branch": attempt(lambda: commit(late, revision="nowhere")),
        "history": [[entry.commit_id, entry.title, entry.authors] for entry in history],
        "paths": [info.path for info in api.get_paths_info(repo_id, ["c.txt", "no.txt"])],
    }


def test_commit_operations_and_stale_parents(hub: Hub) -> None:
    initial = hub.create_repo("me/commits")
    files: dict[str, bytes | str | Path] = {
        "a.txt": "a",
        "folder/x.txt": "x",
        "folder/y/z.txt": "z",
        "folder-like.txt": "stays",
        "weights.bin": noise(2000),
    }
    start = hub.add_files("me/commits", files, message="Start")

    seen = hub.call(commit_in_many_ways, token=hub.token, uses=[attempt], repo_id="me/commits")

    kept = [".gitattributes", "c.txt", "copied.bin", "folder-like.txt", "weights.bin"]
    assert list(hub.files("me/commits", seen["changed"])) == kept
    assert hub.read("me/commits", "copied.bin") == noise(2000)
    assert seen["stale"] == ["HfHubHTTPError", 412]
    assert seen["missing"] == ["RemoteEntryNotFoundError", 404]
    assert seen["unknown_branch"] == ["RevisionNotFoundError", 404]
    assert seen["history"] == [
        [seen["changed"], "step", ["me"]],
        [start, "Start", ["hub"]],
        [initial, "initial commit", ["hub"]],
    ]
    assert seen["paths"] == ["c.txt"]
    assert hub.head("me/commits") == seen["short_parent"], "refused commits left no trace"
    assert "late.txt" not in hub.files("me/commits")


def race(repo_id: str, parent: str, runners: int) -> list[Any]:
    import threading
    from concurrent.futures import ThreadPoolExecutor

    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    together = threading.Barrier(runners)

    def run(number: int) -> Any:
        operation = CommitOperationAdd(f"{number}.txt", b"mine")
        api.preupload_lfs_files(repo_id, [operation])
        together.wait()
        return attempt(
            lambda: (
                api.create_commit(
                    repo_id, [operation], commit_message=f"runner {number}", parent_commit=parent
                ).oid
            )
        )

    with ThreadPoolExecutor(runners) as pool:
        return list(pool.map(run, range(runners)))


def test_of_commits_that_race_exactly_one_wins(hub: Hub) -> None:
    parent = hub.create_repo("me/race")

    outcomes = hub.call(
        race, token=hub.token, uses=[attempt], repo_id="me/race", parent=parent, runners=6
    )

    winners = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, str)]
    losers = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    assert losers == [["HfHubHTTPError", 412]] * 5
    assert hub.head("me/race") == outcomes[winners[0]]
    assert list(hub.files("me/race")) == [".gitattributes", f"{winners[0]}.txt"]


def test_reader_sees_only_complete_commits(hub: Hub) -> None:
    hub.create_repo("me/atomic")
    hub.add_files("me/atomic", {"a.txt": "0", "b.txt": "0"})
    done = threading.Event()

    def write() -> None:
        for number in range(1, 40):
            hub.add_files("me/atomic", {"a.txt": f"{number}", "b.txt": f"{number}"})
        done.set()

    seen = set()
    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        files = hub.files("me/atomic")
        seen.add((files["a.txt"].sha256, files["b.txt"].sha256))
    writer.join()

    assert len(seen) > 1, "the reader saw the head move"
    assert [pair for pair in seen if pair[0] != pair[1]] == []
