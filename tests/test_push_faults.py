"""Pushing through faults: the command's sentence and exit code, and a head that is old or whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.hub.client import Hub
from tests.pushing import hashes, is_refused, named, on_hub
from tests.worker import Worker

Fault = dict[str, Any]
COMMIT = {"method": "POST", "path": "/commit/"}


@pytest.fixture
def repo(hub: Hub, request: pytest.FixtureRequest) -> str:
    """A repository with nothing but its first commit."""
    name = named(request)
    hub.create_repo(name)
    return name


# --- faults that pass: the push ends well, with one commit


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"action": "status", "status": 500, **COMMIT}, r"in trouble \(it answers 500\)"),
        (
            {"action": "status", "status": 429, "retry_after": 2, **COMMIT},
            r"left alone for a while \(429\); trying again in 2 s",
        ),
        pytest.param(
            {"action": "cut_upload", "after_bytes": 100, **COMMIT},
            "the connection to the Hub broke",
            marks=pytest.mark.slow,
        ),
        ({"action": "lose_reply", "status": 504, **COMMIT}, None),
        pytest.param(
            {"action": "cut", "after_bytes": 10, **COMMIT}, None, marks=pytest.mark.slow
        ),
        ({"action": "delay", "seconds": 1.5, **COMMIT}, None),
        pytest.param(  # the client's own second try
            {"action": "cut_upload", "after_bytes": 1000}, None, marks=pytest.mark.slow
        ),
        (
            {"action": "cut", "after_bytes": 1000, "reset": True, "path": "/resolve/.*safetensors"},
            "the connection to the Hub broke",
        ),
        ({"action": "race"}, "another commit got in first; it touches none of these files"),
    ],
    ids=[
        "refused", "slow-down", "request-cut", "answer-lost", "answer-cut", "too-slow",
        "upload-cut", "download-cut", "race",
    ],
)  # fmt: skip
def test_a_fault_that_passes_is_overcome(
    hub: Hub, rnp: Worker, shipped: Path, repo: str, fault: Fault, told: str | None
) -> None:
    with hub.faults(fault) as fired:
        done = rnp("push", shipped, repo, "--timeout", "1", "--json")
        assert fired() == [1]

    assert done.code == 0, done.stderr
    assert told is None or re.search(f"^Note: .*{told}", done.stderr), done.stderr
    assert done.json["commit"] == hub.head(repo)
    others = {"race.txt"} if fault["action"] == "race" else set()
    assert on_hub(hub, repo).keys() - others == hashes(shipped).keys()
    titles = [commit["title"] for commit in hub.history(repo)]
    assert titles.count("Sanitize plain with rnp-hub 0.1.0") == 1, "never twice"


def test_a_lost_answer_does_not_make_a_second_repository_or_pull_request(
    hub: Hub, rnp: Worker, shipped: Path, request: pytest.FixtureRequest
) -> None:
    repo = named(request)
    lost = {"action": "lose_reply", "status": 504}
    with hub.faults({**lost, "path": "/api/repos/create"}, {**lost, **COMMIT}):
        assert rnp("push", shipped, repo).code == 0
    assert len(hub.history(repo)) == 2
    hub.add_files(repo, {"README.md": "mine"})

    with hub.faults({**lost, **COMMIT}):
        done = rnp("push", shipped, repo, "--force", "--json")

    assert done.code == 0, done.stderr
    assert done.json["revision"] == "refs/pr/1"
    assert hub.head(repo, "refs/pr/1") == done.json["commit"]
    with pytest.raises(ValueError, match="refs/pr/2"):
        hub.head(repo, "refs/pr/2")


# --- faults that do not pass: one sentence, exit code 2, the head as it was


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (
            {"action": "disk_full", "after_bytes": 1000},
            r"^Error: the Hub has no room for these files \(507\); free some of your storage "
            "there, or raise your quota, and push again; {repo} stands as it was, at {head}$",
        ),
        (
            {"action": "status", "status": 503, "times": None, **COMMIT},
            r"^Error: the Hub is in trouble \(it answers 503\); push again later; {repo} was last "
            "seen as it was, at {head}$",
        ),
        (
            {"action": "status", "status": 429, "retry_after": 3600, "times": None, **COMMIT},
            r"^Error: the Hub asks to be left alone for a while \(429\); push again in 3600 s; ",
        ),
        pytest.param(
            {"action": "cut_upload", "times": None, **COMMIT},
            r"^Error: the connection to the Hub broke \(.*\); check the network and push again; "
            "{repo} was last seen as it was, at {head}$",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["disk-full", "down", "come-back-in-an-hour", "cut-for-good"],
)
def test_a_fault_that_stays_leaves_the_head(
    hub: Hub, rnp: Worker, shipped: Path, repo: str, fault: Fault, sentence: str
) -> None:
    head = hub.head(repo)
    with hub.faults(fault):
        done = rnp("push", shipped, repo, "--tries", "2")

    is_refused(done, sentence.format(repo=repo, head=head[:7]))
    assert hub.head(repo) == head
    assert hub.unfinished_uploads() == []


def test_another_commit_on_the_same_files_is_not_run_over(
    hub: Hub, rnp: Worker, shipped: Path, repo: str
) -> None:
    with hub.faults({"action": "delay", "seconds": 1.5, "path": f"/{repo}/preupload/"}) as fired:
        pushing = rnp.start("push", shipped, repo)
        while fired() != [1]:
            pass
        head = hub.add_files(repo, {"config.json": "{}", "other.txt": "another"})
        done = pushing.wait()

    is_refused(
        done,
        rf"another commit \({head[:7]}\) changed config\.json of {repo} meanwhile; nothing was "
        "pushed: look at it, and push again if these files shall replace it$",
    )
    assert hub.head(repo) == head


def test_a_commit_that_cannot_be_pulled_back_is_checked_by_the_next_push(
    hub: Hub, rnp: Worker, shipped: Path, repo: str
) -> None:
    with hub.faults({"action": "status", "status": 404, "path": "/tree/", "times": None}):
        done = rnp("push", shipped, repo)
    head = hub.head(repo)
    is_refused(done, f"commit {head} of {repo} was made, but cannot be pulled back and compared")
    assert on_hub(hub, repo) == hashes(shipped)

    done = rnp("push", shipped, repo, "--json")
    assert (done.code, done.json["commit"]) == (0, head)
