"""Every fault that the loopback Hub can inject, as the unmodified client sees it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.hub.client import Hub, attempt

SIZE = 300_000
WEIGHTS = (bytes(range(256)) * (SIZE // 256 + 1))[:SIZE]


def download(repo_id: str, **more: Any) -> Any:
    """Return the size and hash of the weights, or how the download failed."""
    import hashlib
    from pathlib import Path

    from huggingface_hub import hf_hub_download

    def fetch() -> Any:
        content = Path(hf_hub_download(repo_id, "model.safetensors", **more)).read_bytes()
        return [len(content), hashlib.sha256(content).hexdigest()]

    return attempt(fetch)


def upload(repo_id: str, folder: str, tries: int = 1, parent: str | None = None) -> list[Any]:
    """Return the commit of each try to upload a folder, or how the try failed."""
    from huggingface_hub import HfApi

    def push() -> str:
        made = HfApi().upload_folder(repo_id=repo_id, folder_path=folder, parent_commit=parent)
        return made.oid

    return [attempt(push) for _ in range(tries)]


def outline(exchanges: list[dict[str, Any]], part: str, method: str) -> list[list[Any]]:
    """Return status, range and bytes of the exchanges with this method and part in the path."""
    return [
        [exchange["status"], exchange["range"], exchange["bytes_in"], exchange["bytes_out"]]
        for exchange in exchanges
        if part in exchange["path"] and exchange["method"] == method
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    return tmp_path


@pytest.fixture(scope="module")
def source(hub: Hub) -> str:
    """A repository with weights to download."""
    hub.create_repo("org/source")
    hub.add_files("org/source", {"model.safetensors": WEIGHTS})
    return "org/source"


@pytest.fixture
def target(hub: Hub, request: pytest.FixtureRequest) -> str:
    """An empty repository of the test's own."""
    repo_id = f"me/{re.sub('[^a-z]+', '-', request.node.name).strip('-')}"
    hub.create_repo(repo_id)
    return repo_id


def whole(hub: Hub, source: str) -> list[Any]:
    """Return what a complete download gives."""
    weights = hub.files(source)["model.safetensors"]
    return [weights.size, weights.sha256]


def list_tree(repo_id: str) -> list[str]:
    from huggingface_hub import HfApi

    return [entry.path for entry in HfApi().list_repo_tree(repo_id)]


def test_client_tries_again_after_a_status(hub: Hub, source: str) -> None:
    fault = {"action": "status", "status": 500, "path": "/tree/"}

    with hub.faults(fault) as fired, hub.recording() as exchanges:
        listed = hub.call(list_tree, repo_id=source)
        assert fired() == [1]

    assert listed == [".gitattributes", "model.safetensors"]
    assert [exchange[0] for exchange in outline(exchanges, "/tree/", "GET")] == [500, 200]


def test_cut_download_is_resumed_where_it_ended(hub: Hub) -> None:
    # The client keeps what it got in steps of 10 MiB; below that it starts anew.
    size, cut, kept = 12_000_000, 11_000_000, 10 * 1024 * 1024
    hub.create_repo("org/large")
    hub.add_files("org/large", {"model.safetensors": bytes(size)})
    fault = {"action": "cut", "after_bytes": cut, "path": "safetensors"}

    with hub.faults(fault), hub.recording() as exchanges:
        got = hub.call(download, uses=[attempt], repo_id="org/large")

    assert got == whole(hub, "org/large")
    assert outline(exchanges, "safetensors", "GET") == [
        [200, None, 0, cut],
        [206, f"bytes={kept}-", 0, size - kept],
    ]


def test_reset_connection_fails_the_download(hub: Hub, source: str) -> None:
    fault = {"action": "cut", "after_bytes": 100_000, "path": "safetensors", "reset": True}

    with hub.faults(fault), hub.recording() as exchanges:
        got = hub.call(download, uses=[attempt], repo_id=source)

    assert got == ["ReadError", None]
    assert outline(exchanges, "safetensors", "GET") == [[200, None, 0, 100_000]]


def test_slow_answer_outlasts_the_clients_patience(hub: Hub, source: str) -> None:
    fault = {"action": "delay", "seconds": 1.0, "method": "HEAD"}

    with hub.faults(fault), hub.recording() as exchanges:
        got = hub.call(download, uses=[attempt], repo_id=source, etag_timeout=0.3)

    assert got == whole(hub, source)
    waits = [exchange["seconds"] for exchange in exchanges if exchange["method"] == "HEAD"]
    assert len(waits) == 2, "the client gave up on the first and asked again"
    assert waits[0] >= 1.0 > waits[1]


def test_cut_upload_is_sent_again(hub: Hub, folder: Path, target: str) -> None:
    fault = {"action": "cut_upload", "after_bytes": 100_000}

    with hub.faults(fault), hub.recording() as exchanges:
        [oid] = hub.call(upload, token=hub.token, uses=[attempt], repo_id=target, folder=folder)

    first, second = outline(exchanges, "/_lfs/", "PUT")
    assert first[0] == 0
    assert 100_000 <= first[2] < SIZE
    assert second == [200, None, SIZE, 0]
    assert hub.read(target, "model.safetensors", oid) == WEIGHTS


def test_full_disk_leaves_the_head_and_no_remains(hub: Hub, folder: Path, target: str) -> None:
    before = hub.head(target)

    with hub.faults({"action": "disk_full", "after_bytes": 200_000}) as fired:
        failed, succeeded = hub.call(
            upload, token=hub.token, uses=[attempt], repo_id=target, folder=folder, tries=2
        )
        assert fired() == [1]

    assert failed == ["RuntimeError", 507]
    assert [commit["oid"] for commit in hub.history(target)] == [succeeded, before]
    assert hub.read(target, "model.safetensors") == WEIGHTS
    assert hub.unfinished_uploads() == []


def test_commit_race_makes_the_parent_stale_once(hub: Hub, folder: Path, target: str) -> None:
    before = hub.head(target)

    with hub.faults({"action": "race"}):
        tries = hub.call(
            upload,
            token=hub.token,
            uses=[attempt],
            repo_id=target,
            folder=folder,
            parent=before,
            tries=2,
        )

    assert tries == [["HfHubHTTPError", 412]] * 2, "the second is stale by the same commit"
    assert list(hub.files(target)) == [".gitattributes", "race.txt"]
    [late] = hub.call(
        upload,
        token=hub.token,
        uses=[attempt],
        repo_id=target,
        folder=folder,
        parent=hub.head(target),
    )
    assert hub.head(target) == late
    assert list(hub.files(target)) == [
        ".gitattributes",
        "config.json",
        "model.safetensors",
        "race.txt",
    ]


@pytest.mark.parametrize(
    ("fault", "error", "committed"),
    [
        ({"action": "status", "status": 500}, ["HfHubHTTPError", 500], False),
        ({"action": "lose_reply", "status": 504}, ["HfHubHTTPError", 504], True),
        ({"action": "cut", "after_bytes": 10}, ["RemoteProtocolError", None], True),
        ({"action": "cut_upload", "after_bytes": 10}, ["RemoteProtocolError", None], False),
    ],
    ids=["refused", "answer-lost", "answer-cut", "request-cut"],
)
def test_failed_commit_is_either_whole_or_absent(
    hub: Hub, folder: Path, target: str, fault: dict[str, Any], error: list[Any], committed: bool
) -> None:
    before = hub.head(target)

    with hub.faults({**fault, "method": "POST", "path": "/commit/"}) as fired:
        tries = hub.call(upload, token=hub.token, uses=[attempt], repo_id=target, folder=folder)
        assert fired() == [1]

    assert tries == [error]
    expected = [".gitattributes", "config.json", "model.safetensors"]
    assert list(hub.files(target)) == (expected if committed else [".gitattributes"])
    assert (hub.head(target) == before) is not committed


def test_rules_skip_and_stop(hub: Hub, source: str) -> None:
    rule = {"action": "status", "status": 418, "path": "/api/models/", "skip": 1, "times": 2}

    with hub.faults(rule):
        statuses = [hub.fetch(f"api/models/{source}").status for _ in range(5)]

    assert statuses == [200, 418, 418, 200, 200]
    assert hub.fetch(f"api/models/{source}").status == 200


@pytest.mark.parametrize("rule", [{"action": "explode"}, {"action": "cut", "bytes": 3}])
def test_rule_that_means_nothing_is_refused(hub: Hub, rule: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no such fault"), hub.faults(rule):
        pass
