"""Routes under /_control/ for the tests themselves: seed repositories, break things, look inside.

They ask for no token: the server listens on loopback and lives as long as a test run.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tests.hub import errors
from tests.hub.access import Account
from tests.hub.blobs import (
    GITATTRIBUTES,
    Blobs,
    FileEntry,
    belongs_in_lfs,
    lfs_entry,
    read_chunks,
    regular_entry,
)
from tests.hub.faults import Rule
from tests.hub.messages import Reply, Request, json_reply
from tests.hub.site import Router, Site, Tuning
from tests.hub.storage import Draft, Repository, Settings, Step

router = Router()


@router.on("GET", "/_control/log")
def log(site: Site, request: Request) -> Reply:
    """Return the exchanges from number `since` on, when none is under way any more."""
    since = int(request.query.get("since", ["0"])[0])
    exchanges = site.journal.since(since)
    return json_reply({"exchanges": exchanges, "next": site.journal.next_number})


@router.on("GET", "/_control/faults")
def list_faults(site: Site, _request: Request) -> Reply:
    """Return the fault rules with how often each has struck."""
    return json_reply(site.faults.to_json())


@router.on("POST", "/_control/faults")
def set_faults(site: Site, request: Request) -> Reply:
    """Replace the fault rules by those in `rules`."""
    try:
        rules = [Rule.from_json(raw) for raw in request.json()["rules"]]
    except ValueError as error:
        raise errors.bad_request(str(error)) from error
    site.faults.replace(rules)
    return json_reply(site.faults.to_json())


@router.on("POST", "/_control/tuning")
def set_tuning(site: Site, request: Request) -> Reply:
    """Set page size and part size; what is not named takes its default."""
    site.tuning = Tuning(**request.json())
    return json_reply(asdict(site.tuning))


@router.on("POST", "/_control/reset")
def reset(site: Site, request: Request) -> Reply:
    """Forget faults, tuning and the log; with `repos`, all repositories too."""
    site.faults.replace([])
    site.tuning = Tuning()
    site.journal.clear()
    if request.json().get("repos"):
        site.store.clear()
    return json_reply({})


@router.on("POST", "/_control/tokens")
def add_token(site: Site, request: Request) -> Reply:
    """Make a token known, with its user's name, role and organisations."""
    asked = request.json()
    account = Account(asked["name"], asked["role"], tuple(asked.get("orgs", ())))
    site.accounts.add(asked["token"], account)
    return json_reply({})


# --- repositories, with no questions asked


@router.on("POST", "/_control/repos")
def create_repo(site: Site, request: Request) -> Reply:
    """Create a repository."""
    asked = request.json()
    settings = Settings(asked["private"], asked["gated"], tuple(asked["granted"]))
    repo = site.store.create(asked["repo_type"], asked["repo_id"], settings, "hub")
    return json_reply({"head": repo.commit_oid("main")})


@router.on("POST", "/_control/grant")
def grant(site: Site, request: Request) -> Reply:
    """Let a user into a gated repository."""
    asked = request.json()
    repo = site.store.find(asked["repo_type"], asked["repo_id"])
    repo.change_settings(
        lambda settings: replace(settings, granted=(*settings.granted, asked["user"]))
    )
    return json_reply({})


@router.on("POST", "/_control/commit")
def commit(site: Site, request: Request) -> Reply:
    """Commit files, given by content or by their place on this machine, and deletions."""
    asked = request.json()
    repo = site.store.find(asked["repo_type"], asked["repo_id"])
    draft = Draft(list(_steps(site.store.blobs, repo, asked)), asked["message"])
    made = repo.commit(repo.reference(asked["revision"]), draft)
    return json_reply({"oid": made.oid})


@router.on("POST", "/_control/snapshot")
def snapshot(site: Site, request: Request) -> Reply:
    """Describe a revision: its commit and all its files."""
    asked = request.json()
    repo = site.store.find(asked["repo_type"], asked["repo_id"])
    return json_reply(asdict(repo.commit_at(asked["revision"])))


@router.on("POST", "/_control/history")
def history(site: Site, request: Request) -> Reply:
    """List the commits of a revision, newest first, without their files."""
    asked = request.json()
    repo = site.store.find(asked["repo_type"], asked["repo_id"])
    commits = [asdict(commit) for commit in repo.history(asked["revision"])]
    return json_reply([{**commit, "files": sorted(commit["files"])} for commit in commits])


@router.on("GET", "/_control/blobs/{sha256}")
def blob(site: Site, request: Request) -> Reply:
    """Send a content by its hash."""
    return Reply(body=site.store.blobs.read(request.args["sha256"]))


def _steps(blobs: Blobs, repo: Repository, asked: dict[str, Any]) -> Iterator[Step]:
    for path in asked["deleted"]:
        yield Step("delete_folder" if path.endswith("/") else "delete_file", path)
    for path, source in asked["files"].items():
        entry = _stored(blobs, path, source)
        if entry.lfs:
            repo.receive_lfs(entry.sha256)
        yield Step("add", path, entry)


def _stored(blobs: Blobs, path: str, source: dict[str, str]) -> FileEntry:
    if "file" in source:
        sha256, size = blobs.keep(read_chunks(Path(source["file"])))
    else:
        sha256, size = blobs.keep([base64.b64decode(source["content"])])
    sample = next(read_chunks(blobs.path(sha256)), b"")[:512]
    if belongs_in_lfs(path, size, sample, GITATTRIBUTES):
        return lfs_entry(sha256, size)
    return regular_entry(blobs.read(sha256))
