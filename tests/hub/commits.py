"""Routes that change a repository's content: preupload, commit, pull requests."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from typing import Any

from tests.hub import access, cards, errors
from tests.hub.access import Account
from tests.hub.blobs import FileEntry, belongs_in_lfs, lfs_entry, regular_entry
from tests.hub.messages import Reply, Request, json_reply
from tests.hub.site import Router, Site
from tests.hub.storage import Commit, Discussion, Draft, Repository, Step

router = Router()
REPO = "/api/{kind}/{ns}/{name}"


@router.on("POST", REPO + "/preupload/{rev}")
def preupload(site: Site, request: Request) -> Reply:
    """Say for each file whether it is to come with the commit or as an LFS object before it."""
    repo = site.repo(request)
    _committer(request, repo)
    commit = repo.commit_at(request.args["rev"])
    attributes_entry = commit.files.get(".gitattributes")
    attributes = site.store.blobs.read(attributes_entry.sha256) if attributes_entry else b""
    files = [
        _upload_mode(file, commit.files.get(file["path"]), attributes.decode())
        for file in request.json()["files"]
    ]
    return json_reply({"files": files})


def _upload_mode(
    file: dict[str, Any], current: FileEntry | None, attributes: str
) -> dict[str, Any]:
    sample = base64.b64decode(file.get("sample", ""))
    lfs = belongs_in_lfs(file["path"], file["size"], sample, attributes)
    answer = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular"}
    known = {"oid": current.etag} if current else {}
    return {**answer, "shouldIgnore": False, **known}


@router.on("POST", REPO + "/commit/{rev}")
def commit(site: Site, request: Request) -> Reply:
    """Make a commit, on a branch, on a pull request, or as a new pull request."""
    repo = site.repo(request)
    author = _committer(request, repo)
    header, steps = _read_payload(site, repo, request.body.read())
    draft = Draft(steps, header["summary"], header.get("description", ""), author.name)
    if request.fault("race"):
        _commit_of_somebody_else(site, repo, request.args["rev"])
    parent = header.get("parentCommit")
    if request.flag("create_pr"):
        base = repo.commit_oid(parent or request.args["rev"])
        opened, made = repo.open_pull_request(base, draft)
        return _committed(site, repo, made, opened)
    reference = repo.reference(request.args["rev"])
    return _committed(site, repo, repo.commit(reference, draft, parent))


def _committer(request: Request, repo: Repository) -> Account:
    """Return the caller when they may commit; to a pull request, everybody who can write may."""
    if request.flag("create_pr") or request.args["rev"].startswith("refs/pr/"):
        return access.writer(request.caller)
    return access.owner(request.caller, repo.repo_id)


def _committed(
    site: Site, repo: Repository, made: Commit, opened: Discussion | None = None
) -> Reply:
    page = site.url(repo.url_path)
    answer = {
        "success": True,
        "commitOid": made.oid,
        "commitUrl": f"{page}/commit/{made.oid}",
        "hookOutput": "",
    }
    if opened:
        answer["pullRequestUrl"] = f"{page}/discussions/{opened.num}"
    return json_reply(answer)


def _commit_of_somebody_else(site: Site, repo: Repository, revision: str) -> None:
    reference = repo.reference(revision)
    content = f"got in before {repo.refs()[reference]}\n".encode()
    site.store.blobs.keep([content])
    step = Step("add", "race.txt", regular_entry(content))
    repo.commit(reference, Draft([step], "A commit that got in first", author="somebody-else"))


# --- the payload: one JSON object per line, the header first


def _read_payload(
    site: Site, repo: Repository, payload: bytes
) -> tuple[dict[str, Any], list[Step]]:
    try:
        lines = [json.loads(line) for line in payload.splitlines() if line.strip()]
    except ValueError as error:
        raise errors.bad_request(f"Commit payload is not NDJSON: {error}") from error
    if not lines or lines[0].get("key") != "header" or not lines[0]["value"].get("summary"):
        raise errors.bad_request("The first line of a commit is its header, with a summary")
    return lines[0]["value"], list(_steps(site, repo, lines[1:]))


def _steps(site: Site, repo: Repository, lines: list[dict[str, Any]]) -> Iterator[Step]:
    for line in lines:
        value = line["value"]
        path = _checked_path(value["path"])
        if line["key"] == "file":
            yield Step("add", path, _regular_file(site, path, value))
        elif line["key"] == "lfsFile":
            yield Step("add", path, _lfs_file(site, repo, value))
        elif line["key"] in ("deletedFile", "deletedFolder"):
            yield Step("delete_file" if line["key"] == "deletedFile" else "delete_folder", path)
        else:
            raise errors.bad_request(f"Unknown operation: {line['key']}")


def _checked_path(path: str) -> str:
    parts = path.rstrip("/").split("/")
    if any(part in ("", ".", "..", ".git") for part in parts):
        raise errors.bad_request(f"Invalid path: {path!r}")
    return path


def _regular_file(site: Site, path: str, value: dict[str, Any]) -> FileEntry:
    try:
        content = base64.b64decode(value["content"], validate=True)
    except binascii.Error as error:
        raise errors.bad_request(f"{path}: content is not base64") from error
    if path == "README.md" and (found := cards.errors_in(content.decode(errors="replace"))):
        raise errors.bad_request("Invalid metadata in README.md: " + "; ".join(found))
    site.store.blobs.keep([content])
    return regular_entry(content)


def _lfs_file(site: Site, repo: Repository, value: dict[str, Any]) -> FileEntry:
    sha256 = value["oid"]
    size = site.store.blobs.size(sha256)
    # A copy inside a repository names no size.
    if size is None or not repo.has_lfs(sha256) or value.get("size", size) != size:
        raise errors.bad_request(f"LFS pointer to an object that was not uploaded: {sha256}")
    return lfs_entry(sha256, size)


# --- discussions and pull requests


@router.on("POST", REPO + "/discussions")
def discuss(site: Site, request: Request) -> Reply:
    """Open a discussion or an empty pull request."""
    repo = site.repo(request)
    author = access.writer(request.caller).name
    asked = request.json()
    open_one = repo.open_empty_pull_request if asked.get("pullRequest") else repo.discuss
    opened = open_one(asked["title"], asked.get("description") or "", author)
    return json_reply({"num": opened.num, "pullRequest": opened.is_pull_request})


@router.on("GET", REPO + "/discussions")
def discussions(site: Site, request: Request) -> Reply:
    """List discussions and pull requests, all on one page."""
    repo = site.repo(request)
    found = [_discussion(repo, item) for item in repo.discussions()]
    if int(request.query.get("p", ["0"])[0]) > 0:
        found = []
    return json_reply({"discussions": found, "count": len(found), "start": 0})


@router.on("GET", REPO + "/discussions/{num}")
def discussion(site: Site, request: Request) -> Reply:
    """Describe one discussion or pull request."""
    repo = site.repo(request)
    found = [item for item in repo.discussions() if str(item.num) == request.args["num"]]
    if not found:
        raise errors.HubError(404, f"Discussion {request.args['num']} not found")
    answer = {**_discussion(repo, found[0]), "events": [], "diff": ""}
    if found[0].is_pull_request:
        answer |= {"changes": {"base": "refs/heads/main"}, "filesWithConflicts": []}
    return json_reply(answer)


def _discussion(repo: Repository, item: Discussion) -> dict[str, Any]:
    return {
        "num": item.num,
        "title": item.title,
        "author": {"name": item.author},
        "createdAt": item.created_at,
        "status": item.status,
        "isPullRequest": item.is_pull_request,
        "repo": {"name": repo.repo_id, "type": repo.repo_type},
    }
