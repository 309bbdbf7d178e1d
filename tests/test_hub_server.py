"""Files and revisions of the loopback Hub, asked by the unmodified client."""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from tests.hub.client import Hub, attempt

README = "---\nlicense: mit\ntags: [image-classification]\n---\n# A model\n"


def noise(size: int, seed: int = 0) -> bytes:
    """Return bytes that do not compress and do not look like text."""
    return b"\0" + random.Random(seed).randbytes(size - 1)


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def upload_twice_and_download(folder: str, repo_id: str) -> dict[str, Any]:
    from huggingface_hub import HfApi, snapshot_download

    api = HfApi()
    first_url = api.create_repo(repo_id, private=True)
    again_url = api.create_repo(repo_id, private=True, exist_ok=True)
    uploaded = api.upload_folder(repo_id=repo_id, folder_path=folder)
    repeated = api.upload_folder(repo_id=repo_id, folder_path=folder)
    info = api.model_info(repo_id, files_metadata=True, securityStatus=True)
    assert info.siblings is not None
    return {
        "urls": [first_url.repo_id, again_url.repo_id],
        "user": api.whoami()["name"],
        "oids": [uploaded.oid, repeated.oid, info.sha],
        "private": info.private,
        "tags": info.tags,
        "sizes": {file.rfilename: file.size for file in info.siblings},
        "in_lfs": {file.rfilename: file.lfs.sha256 for file in info.siblings if file.lfs},
        "local": snapshot_download(repo_id, revision=uploaded.oid),
    }


def test_uploaded_folder_comes_back_byte_for_byte(hub: Hub, tmp_path: Path) -> None:
    weights = noise(300_000)
    files = {
        "README.md": README.encode(),
        "config.json": b'{"architecture": "resnet18"}',
        "model.safetensors": weights,
        "slim/ganz klein ü.txt": "größer als nichts".encode(),
        "empty.txt": b"",
    }
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)

    with hub.recording() as exchanges:
        seen = hub.call(
            upload_twice_and_download, token=hub.token, folder=tmp_path, repo_id="me/round-trip"
        )

    assert seen["urls"] == ["me/round-trip", "me/round-trip"]
    assert seen["user"] == "me"
    assert seen["private"] is True
    assert seen["tags"] == ["image-classification", "license:mit"]
    assert seen["oids"] == [hub.head("me/round-trip")] * 3
    assert seen["in_lfs"] == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    downloaded = contents(Path(seen["local"]))
    assert seen["sizes"] == {path: len(content) for path, content in downloaded.items()}
    assert downloaded.pop(".gitattributes").startswith(b"*.bin filter=lfs")
    assert downloaded == files
    uploads = [exchange["bytes_in"] for exchange in exchanges if exchange["method"] == "PUT"]
    assert uploads == [len(weights)]
    commits = [exchange for exchange in exchanges if "/commit/" in exchange["path"]]
    assert [exchange["status"] for exchange in commits] == [200], "no-op not committed"
    assert [exchange["error"] for exchange in exchanges if exchange["error"]] == []


def upload_file(path: str, repo_id: str) -> str:
    from huggingface_hub import HfApi

    commit = HfApi().upload_file(
        path_or_fileobj=path, path_in_repo="model.safetensors", repo_id=repo_id
    )
    return commit.oid


def test_large_file_goes_up_in_parts(hub: Hub, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(noise(150_000, seed=1))
    hub.create_repo("me/parts")

    with hub.tuned(multipart_bytes=65_536), hub.recording() as exchanges:
        oid = hub.call(upload_file, token=hub.token, path=weights, repo_id="me/parts")

    sent = [exchange["bytes_in"] for exchange in exchanges if exchange["method"] == "PUT"]
    assert sent == [65_536, 65_536, 18_928]
    assert hub.read("me/parts", "model.safetensors", oid) == weights.read_bytes()


def test_upload_of_other_bytes_than_announced_is_refused(hub: Hub) -> None:
    hub.create_repo("me/liar")
    announced, sent = noise(1000, seed=2), noise(1000, seed=3)
    headers = {"Authorization": f"Bearer {hub.token}"}

    def offer(content: bytes, size: int) -> dict[str, Any]:
        item = {"oid": hashlib.sha256(content).hexdigest(), "size": size}
        body = json.dumps({"operation": "upload", "objects": [item]}).encode()
        path = "me/liar.git/info/lfs/objects/batch"
        answer = hub.fetch(path, headers=headers, method="POST", body=body)
        offered: dict[str, Any] = json.loads(answer.body)["objects"][0]
        return offered

    def put(offered: dict[str, Any], *content: bytes) -> int:
        href = offered["actions"]["upload"]["href"]
        return hub.fetch(href, method="PUT", body=content).status

    assert put(offer(announced, 1000), sent) == 400
    assert put(offer(announced, 999), announced) == 400
    assert put(offer(announced, 1000), announced[:10], announced[10:]) == 200
    assert "actions" not in offer(announced, 1000), "the repository has it now"
    assert "actions" in offer(sent, 1000), "and what was refused it has not"
    assert hub.unfinished_uploads() == []


def try_upload(path: str, repo_id: str) -> list[str]:
    try:
        return [upload_file(path, repo_id)]
    except Exception as error:
        return [type(error).__name__, str(error)]


def test_this_hub_has_no_xet_and_the_client_says_so(hub: Hub, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(noise(5000))
    head = hub.create_repo("me/xet")

    [error, message] = hub.call(
        try_upload,
        token=hub.token,
        uses=[upload_file],
        settings={"HF_HUB_DISABLE_XET": "0"},
        path=weights,
        repo_id="me/xet",
    )

    assert error == "ConnectionError"
    assert "404 Not Found" in message
    assert "/api/models/me/xet/xet-write-token/main" in message
    assert hub.head("me/xet") == head


def use_references(repo_id: str, stranger: str) -> dict[str, Any]:
    from pathlib import Path

    from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download

    api = HfApi()
    guest = HfApi(token=stranger)

    def read(revision: str, name: str = "a.txt") -> str:
        return Path(hf_hub_download(repo_id, name, revision=revision)).read_text()

    api.create_tag(repo_id, tag="v1")
    api.create_branch(repo_id, branch="trial/one")
    add = [CommitOperationAdd("a.txt", b"two"), CommitOperationAdd("w.bin", b"\0\1")]
    on_branch = api.create_commit(repo_id, add, commit_message="two", revision="trial/one")
    add = [CommitOperationAdd("a.txt", b"proposed"), CommitOperationAdd("w.bin", b"\0\2")]
    proposed = guest.create_commit(repo_id, add, commit_message="Fix", create_pr=True)
    draft = guest.create_pull_request(repo_id, "Draft")
    guest.upload_file(
        path_or_fileobj=b"drafted", path_in_repo="a.txt", repo_id=repo_id, revision="refs/pr/2"
    )
    details = api.get_discussion_details(repo_id, 1)
    refs = api.list_repo_refs(repo_id, include_pull_requests=True)
    seen = {
        "texts": [read(name) for name in ("main", "v1", "trial/one", "refs/pr/1", "refs/pr/2")],
        "by_sha": read(on_branch.oid),
        "proposed": [proposed.pr_revision, proposed.pr_num, proposed.oid],
        "details": [details.title, details.author, details.status, details.git_reference],
        "draft": [draft.num, draft.status],
        "discussions": [item.num for item in api.get_repo_discussions(repo_id)],
        "branches": {ref.name: ref.target_commit for ref in refs.branches},
        "tags": [ref.ref for ref in refs.tags],
        "pulls": {ref.name: ref.target_commit for ref in refs.pull_requests or []},
        "tag_twice": attempt(lambda: api.create_tag(repo_id, tag="v1")),
        "no_such_revision": attempt(lambda: read("v2")),
        "no_such_file": attempt(lambda: read("main", "b.txt")),
        "stranger_on_main": attempt(
            lambda: guest.upload_file(path_or_fileobj=b"", path_in_repo="a.txt", repo_id=repo_id)
        ),
    }
    api.delete_tag(repo_id, tag="v1")
    api.delete_branch(repo_id, branch="trial/one")
    api.update_repo_settings(repo_id, private=True)
    seen["after"] = [[ref.name for ref in api.list_repo_refs(repo_id).branches + refs.converts]]
    seen["private"] = attempt(lambda: guest.model_info(repo_id))
    return seen


def test_revisions_and_pull_requests(hub: Hub) -> None:
    hub.create_repo("me/refs")
    head = hub.add_files("me/refs", {"a.txt": "one"})
    stranger = hub.add_user("stranger")

    seen = hub.call(
        use_references, token=hub.token, uses=[attempt], repo_id="me/refs", stranger=stranger
    )

    assert seen["texts"] == ["one", "one", "two", "proposed", "drafted"]
    assert seen["by_sha"] == "two"
    assert seen["proposed"] == ["refs/pr/1", 1, hub.head("me/refs", "refs/pr/1")]
    assert seen["details"] == ["Fix", "stranger", "open", "refs/pr/1"]
    assert seen["draft"] == [2, "draft"]
    assert seen["discussions"] == [1, 2]
    assert set(seen["branches"]) == {"main", "trial/one"}
    assert seen["branches"]["main"] == head == hub.head("me/refs"), "main did not move"
    assert seen["tags"] == ["refs/tags/v1"]
    assert seen["pulls"]["1"] == hub.head("me/refs", "refs/pr/1")
    assert hub.read("me/refs", "w.bin", "refs/pr/1") == b"\0\2"
    assert seen["tag_twice"] == ["HfHubHTTPError", 409]
    assert seen["no_such_revision"] == ["RevisionNotFoundError", 404]
    assert seen["no_such_file"] == ["RemoteEntryNotFoundError", 404]
    assert seen["stranger_on_main"] == ["HfHubHTTPError", 403]
    assert seen["after"] == [["main"]]
    assert seen["private"] == ["RepositoryNotFoundError", 404]


def list_files(repo_id: str) -> dict[str, list[str]]:
    from huggingface_hub import HfApi

    api = HfApi()
    return {
        "all": [entry.path for entry in api.list_repo_tree(repo_id, recursive=True)],
        "top": [entry.path for entry in api.list_repo_tree(repo_id)],
        "inside": [entry.path for entry in api.list_repo_tree(repo_id, path_in_repo="d/e")],
        "files": sorted(api.list_repo_files(repo_id)),
    }


def test_listing_comes_in_pages(hub: Hub) -> None:
    hub.create_repo("me/pages")
    names = ["a", "b", "c", "d/e/f", "d/g"]
    hub.add_files("me/pages", {name: name for name in names})

    with hub.tuned(page_size=3), hub.recording() as exchanges:
        seen = hub.call(list_files, repo_id="me/pages")

    assert seen["all"] == [".gitattributes", "a", "b", "c", "d", "d/e", "d/e/f", "d/g"]
    assert seen["top"] == [".gitattributes", "a", "b", "c", "d"]
    assert seen["inside"] == ["d/e/f"]
    assert seen["files"] == [".gitattributes", *names]
    listings = [exchange["path"] for exchange in exchanges if "/tree/" in exchange["path"]]
    cursors = [re.findall(r"cursor=(\d+)", path) for path in listings]
    assert cursors[:6] == [[], ["3"], ["6"], [], ["3"], []]


@pytest.fixture(scope="module")
def digits(hub: Hub) -> str:
    """The commit of a repository with ten bytes to read."""
    hub.create_repo("org/digits")
    return hub.add_files("org/digits", {"digits.txt": "0123456789"})


@pytest.mark.parametrize(
    ("asked", "status", "content", "content_range"),
    [
        (None, 200, b"0123456789", None),
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=0-", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=1-2,4-5", 200, b"0123456789", None),
    ],
)
def test_ranges(
    hub: Hub,
    digits: str,
    asked: str | None,
    status: int,
    content: bytes | None,
    content_range: str | None,
) -> None:
    headers = {} if asked is None else {"Range": asked}

    answer = hub.fetch(f"org/digits/resolve/{digits}/digits.txt", headers=headers)

    assert answer.status == status
    assert content is None or answer.body == content
    assert answer.headers.get("Content-Range") == content_range
    if status != 416:
        assert answer.headers["X-Repo-Commit"] == digits
        assert answer.headers["ETag"] == '"ad471007bd7f5983d273b9584e5629230150fd54"'
