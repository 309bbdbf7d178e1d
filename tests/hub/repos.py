"""Routes about whole repositories: who am I, create, delete, describe, list, references."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.hub import access, cards, errors
from tests.hub.blobs import FileEntry
from tests.hub.messages import Reply, Request, json_reply
from tests.hub.site import Router, Site
from tests.hub.storage import MAIN, Commit, Repository, RepoType, Settings

router = Router()
REPO = "/api/{kind}/{ns}/{name}"


@router.on("GET", "/api/whoami-v2")
def whoami(_site: Site, request: Request) -> Reply:
    """Tell the caller who their token says they are."""
    if request.caller is None:
        raise errors.login_needed()
    if request.caller.only is not None:
        raise errors.forbidden("This token stands for no user")
    return json_reply(request.caller.whoami())


@router.on("POST", "/api/validate-yaml")
def validate_yaml(_site: Site, request: Request) -> Reply:
    """Check a README before it is uploaded."""
    content = str(request.json().get("content", ""))
    found = cards.errors_in(content)
    answer = {
        "errors": [{"message": message} for message in found],
        "warnings": [{"message": message} for message in cards.warnings_about(content)],
    }
    return json_reply(answer, 400 if found else 200)


# --- create, delete, settings


@router.on("POST", "/api/repos/create")
def create_repo(site: Site, request: Request) -> Reply:
    """Create a repository; 409 with the same answer when it exists."""
    asked = request.json()
    account = access.writer(request.caller)
    repo_type, repo_id = _named_repo(asked, account.name)
    access.owner(account, repo_id)
    settings = Settings(private=asked.get("visibility") == "private")
    prefix = "" if repo_type == "model" else f"{repo_type}s/"
    answer = {"url": site.url(prefix + repo_id), "name": repo_id, "id": repo_id}
    try:
        site.store.create(repo_type, repo_id, settings, account.name)
    except FileExistsError:
        return json_reply({**answer, "error": f"You already created this {repo_type} repo"}, 409)
    return json_reply(answer)


@router.on("DELETE", "/api/repos/delete")
def delete_repo(site: Site, request: Request) -> Reply:
    """Delete a repository."""
    account = access.writer(request.caller)
    repo = site.store.find(*_named_repo(request.json(), account.name))
    access.check_visible(account, repo)
    access.owner(account, repo.repo_id)
    site.store.delete(repo)
    return json_reply("OK")


@router.on("PUT", REPO + "/settings")
def change_settings(site: Site, request: Request) -> Reply:
    """Change visibility and gate."""
    asked = request.json()
    changes: dict[str, Any] = {}
    if "visibility" in asked:
        changes["private"] = asked["visibility"] == "private"
    if "gated" in asked:
        changes["gated"] = asked["gated"]
    site.owned_repo(request).change_settings(lambda settings: replace(settings, **changes))
    return json_reply(changes)


@router.on("GET", REPO + "/auth-check", REPO + "/auth-check/{write}")
def auth_check(site: Site, request: Request) -> Reply:
    """Say whether the caller may read the files of a repository, or change them."""
    repo = site.repo(request)
    access.check_downloadable(request.caller, repo)
    if "write" in request.args:
        access.owner(request.caller, repo.repo_id)
    return json_reply({})


def _named_repo(asked: dict[str, Any], user: str) -> tuple[RepoType, str]:
    repo_type = asked.get("type") or "model"
    if repo_type not in ("model", "dataset", "space"):
        raise errors.bad_request(f"Invalid repo type: {repo_type}")
    return cast(RepoType, repo_type), f"{asked.get('organization') or user}/{asked.get('name')}"


# --- describe


@router.on("GET", REPO, REPO + "/revision/{rev}")
def repo_info(site: Site, request: Request) -> Reply:
    """Describe a repository at a revision; with `expand`, only the properties asked for."""
    repo = site.repo(request)
    commit = repo.commit_at(request.args.get("rev", "main"))
    info = _describe(site, repo, commit, with_blobs=request.flag("blobs"))
    if request.flag("securityStatus"):
        info["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": []}
    wanted = request.query.get("expand")
    if wanted:
        info = {key: value for key, value in info.items() if key in ("id", *wanted)}
    return json_reply(info)


def _describe(site: Site, repo: Repository, commit: Commit, *, with_blobs: bool) -> dict[str, Any]:
    settings = repo.settings
    readme = commit.files.get("README.md")
    text = site.store.blobs.read(readme.sha256).decode(errors="replace") if readme else ""
    card = cards.metadata(text)
    known: dict[str, Any] = {
        key: card[key] for key in ("library_name", "pipeline_tag") if key in card
    }
    return {
        "_id": hashlib.sha1(repo.repo_id.encode()).hexdigest()[:24],
        "id": repo.repo_id,
        "modelId": repo.repo_id,
        "author": repo.namespace,
        "sha": commit.oid,
        "private": settings.private,
        "gated": settings.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "createdAt": settings.created_at,
        "lastModified": commit.date,
        "tags": _tags(card),
        "cardData": card,
        "usedStorage": sum(entry.size for entry in commit.files.values()),
        "siblings": [
            _sibling(path, commit.files[path], with_blobs) for path in sorted(commit.files)
        ],
        **known,
    }


def _tags(card: dict[str, Any]) -> list[str]:
    tags = [tag for key in ("library_name", "pipeline_tag", "tags") for tag in _listed(card, key)]
    for key in ("datasets", "license", "base_model"):
        tags += [f"{key.removesuffix('s')}:{value}" for value in _listed(card, key)]
    return list(dict.fromkeys(tags))


def _listed(card: dict[str, Any], key: str) -> list[str]:
    value = card.get(key) or []
    return value if isinstance(value, list) else [value]


def _sibling(path: str, entry: FileEntry, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": path}
    sibling = {"rfilename": path, "size": entry.size, "blobId": entry.git_oid}
    return {**sibling, "lfs": _lfs(entry, "sha256")} if entry.lfs else sibling


def _lfs(entry: FileEntry, hash_key: str) -> dict[str, Any]:
    # The same hash is called `sha256` in repository infos and `oid` in trees.
    return {hash_key: entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}


# --- list


@router.on("GET", REPO + "/tree/{rev}", REPO + "/tree/{rev}/{path...}")
def tree(site: Site, request: Request) -> Reply:
    """List a folder, page by page."""
    commit = site.repo(request).commit_at(request.args["rev"])
    folder = request.args.get("path", "").strip("/")
    entries = list(_tree_entries(commit, folder, recursive=request.flag("recursive")))
    if folder and not entries:
        raise errors.entry_not_found(folder, commit.oid)
    return _page(site, request, entries)


@router.on("GET", REPO + "/commits/{rev}")
def commits(site: Site, request: Request) -> Reply:
    """List a revision's history, newest first, page by page."""
    history = site.repo(request).history(request.args["rev"])
    return _page(
        site,
        request,
        [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.message,
                "date": commit.date,
                "authors": [{"user": commit.author}],
            }
            for commit in history
        ],
    )


@router.on("POST", REPO + "/paths-info/{rev}")
def paths_info(site: Site, request: Request) -> Reply:
    """Describe some paths; those that do not exist are left out."""
    commit = site.repo(request).commit_at(request.args["rev"])
    form = parse_qs(request.body.read().decode())
    wanted = {path.strip("/") for path in form.get("paths", [])}
    entries = _tree_entries(commit, "", recursive=True)
    return json_reply([entry for entry in entries if entry["path"] in wanted])


def _tree_entries(commit: Commit, folder: str, *, recursive: bool) -> Iterable[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    folders: set[str] = set()
    for path in sorted(commit.files):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        depths = range(1, len(parts)) if recursive else range(1, min(len(parts), 2))
        for parent in (prefix + "/".join(parts[:depth]) for depth in depths):
            if parent not in folders:
                folders.add(parent)
                yield _folder_entry(commit, parent)
        if recursive or len(parts) == 1:
            yield _file_entry(path, commit.files[path])


def _folder_entry(commit: Commit, folder: str) -> dict[str, Any]:
    inside = [
        entry.git_oid for path, entry in commit.files.items() if path.startswith(f"{folder}/")
    ]
    # Not git's tree hash, but it changes exactly when the content does, as that one would.
    oid = hashlib.sha1("\n".join([folder, *inside]).encode()).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": folder}


def _file_entry(path: str, entry: FileEntry) -> dict[str, Any]:
    plain = {"type": "file", "oid": entry.git_oid, "size": entry.size, "path": path}
    return {**plain, "lfs": _lfs(entry, "oid")} if entry.lfs else plain


def _page(site: Site, request: Request, entries: list[dict[str, Any]]) -> Reply:
    start = int(request.query.get("cursor", ["0"])[0])
    end = start + site.tuning.page_size
    headers = {}
    if end < len(entries):
        query = {**request.query, "cursor": [str(end)]}
        path = urlsplit(request.target).path.lstrip("/")
        following = f"{site.url(path)}?{urlencode(query, doseq=True)}"
        headers["Link"] = f'<{following}>; rel="next"'
    return json_reply(entries[start:end], headers=headers)


# --- references


@router.on("GET", REPO + "/refs")
def refs(site: Site, request: Request) -> Reply:
    """List branches and tags, and pull requests when asked."""
    standing = site.repo(request).refs()
    answer = {
        "branches": _refs_below("refs/heads/", standing),
        "tags": _refs_below("refs/tags/", standing),
        "converts": [],
    }
    if request.flag("include_prs"):
        answer["pullRequests"] = _refs_below("refs/pr/", standing)
    return json_reply(answer)


def _refs_below(prefix: str, standing: dict[str, str]) -> list[dict[str, str]]:
    return [
        {"name": name.removeprefix(prefix), "ref": name, "targetCommit": oid}
        for name, oid in standing.items()
        if name.startswith(prefix)
    ]


@router.on("POST", REPO + "/branch/{branch}")
def create_branch(site: Site, request: Request) -> Reply:
    """Create a branch at a revision."""
    repo = site.owned_repo(request)
    oid = repo.commit_oid(request.json().get("startingPoint", MAIN))
    repo.add_reference(f"refs/heads/{request.args['branch']}", oid)
    return json_reply({})


@router.on("DELETE", REPO + "/branch/{branch}")
def delete_branch(site: Site, request: Request) -> Reply:
    """Delete a branch."""
    site.owned_repo(request).remove_reference(f"refs/heads/{request.args['branch']}")
    return json_reply({})


@router.on("POST", REPO + "/tag/{rev}")
def create_tag(site: Site, request: Request) -> Reply:
    """Create a tag at a revision."""
    repo = site.owned_repo(request)
    oid = repo.commit_oid(request.args["rev"])
    repo.add_reference(f"refs/tags/{request.json()['tag']}", oid)
    return json_reply({})


@router.on("DELETE", REPO + "/tag/{tag}")
def delete_tag(site: Site, request: Request) -> Reply:
    """Delete a tag."""
    site.owned_repo(request).remove_reference(f"refs/tags/{request.args['tag']}")
    return json_reply({})
