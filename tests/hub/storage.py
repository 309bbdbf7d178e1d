"""What the Hub keeps: commits that never change, and references that move.

On disk, below one root (`blobs/` and `incoming/` belong to :mod:`tests.hub.blobs`)::

    repos/models/ns/name/
        settings.json           who may see it, who may download from it
        refs.json               {"refs/heads/main": commit, …}
        discussions.json        discussions and pull requests, in order
        commits/<oid>.json      one snapshot of all files each
        lfs/<sha256>            empty: this repository received that object

Every JSON file is replaced by a rename, and ``refs.json`` last of all: a head is either the old
commit or the complete new one, even when the process is killed in between.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tests.hub import errors
from tests.hub.blobs import GITATTRIBUTES, Blobs, FileEntry, regular_entry

MAIN = "refs/heads/main"
REPO_NAME = re.compile(r"(?!.*(\.\.|--))(?!.*\.git$)[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")

RepoType = Literal["model", "dataset", "space"]
Gate = Literal["auto", "manual", False]


@dataclass(frozen=True)
class Step:
    """One change of a commit, applied in the order in which the client sent them."""

    kind: Literal["add", "delete_file", "delete_folder"]
    path: str
    entry: FileEntry | None = None

    def apply(self, files: dict[str, FileEntry]) -> bool:
        """Change `files` in place; False when there was nothing to delete."""
        if self.entry is not None:
            files[self.path] = self.entry
            return True
        folder = self.path.rstrip("/") + "/"
        is_folder = self.kind == "delete_folder"
        gone = [
            path for path in files if (path.startswith(folder) if is_folder else path == self.path)
        ]
        for path in gone:
            del files[path]
        return bool(gone)


@dataclass(frozen=True)
class Draft:
    """A commit that has no parent yet."""

    steps: Sequence[Step]
    title: str
    message: str = ""
    author: str = "hub"


@dataclass(frozen=True)
class Commit:
    """An immutable snapshot of a repository."""

    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Settings:
    """Who may see a repository, and who may download from it."""

    private: bool = False
    gated: Gate = False
    granted: tuple[str, ...] = ()
    created_at: str = field(default_factory=lambda: now())


@dataclass(frozen=True)
class Discussion:
    """A discussion, or a pull request with the reference `refs/pr/<num>`."""

    num: int
    title: str
    description: str
    author: str
    created_at: str
    status: str
    is_pull_request: bool


def now() -> str:
    """Return the time in the one format that the clients parse."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def write_json(path: Path, value: object) -> None:
    """Replace a JSON file in one step: readers see the old or the new content, never a half."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    draft.write_text(json.dumps(value))
    draft.replace(path)


class Repository:
    """One repository on disk. Reading needs no lock; everything that writes takes it."""

    def __init__(self, folder: Path, repo_type: RepoType, repo_id: str, lock: threading.RLock):
        self.folder = folder
        self.repo_type = repo_type
        self.repo_id = repo_id
        self._lock = lock

    @property
    def namespace(self) -> str:
        """The user or organisation that owns it."""
        return self.repo_id.split("/")[0]

    @property
    def url_path(self) -> str:
        """The path of its page: `ns/name`, `datasets/ns/name` or `spaces/ns/name`."""
        return self.repo_id if self.repo_type == "model" else f"{self.repo_type}s/{self.repo_id}"

    @property
    def settings(self) -> Settings:
        """Who may see it and who may download from it."""
        raw = self._read("settings.json")
        return Settings(**{**raw, "granted": tuple(raw["granted"])})

    def change_settings(self, change: Callable[[Settings], Settings]) -> None:
        """Replace the settings by what `change` makes of them."""
        with self._lock:
            self._write("settings.json", asdict(change(self.settings)))

    # --- references

    def refs(self) -> dict[str, str]:
        """Return every reference and the commit it stands at."""
        refs: dict[str, str] = self._read("refs.json")
        return refs

    def reference(self, revision: str) -> str:
        """Return the full name of a branch or pull request, as in `refs/heads/main`."""
        refs = self.refs()
        for name in (f"refs/heads/{revision}", revision):
            if name in refs and not name.startswith("refs/tags/"):
                return name
        raise errors.revision_not_found(revision)

    def commit_oid(self, revision: str) -> str:
        """Return the commit that a branch, tag, full reference or (short) SHA stands for."""
        refs = self.refs()
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in refs:
                return refs[name]
        matches = self._commits_starting_with(revision)
        if len(matches) != 1:
            raise errors.revision_not_found(revision)
        return matches[0]

    def add_reference(self, name: str, oid: str) -> None:
        """Create a branch or tag; 409 when it exists."""
        with self._lock:
            refs = self.refs()
            if name in refs:
                raise errors.HubError(409, f"Reference {name} already exists")
            self._write("refs.json", {**refs, name: oid})

    def remove_reference(self, name: str) -> None:
        """Delete a branch or tag; `main` stays."""
        with self._lock:
            refs = self.refs()
            if name not in refs:
                raise errors.revision_not_found(name)
            if name == MAIN:
                raise errors.forbidden("The main branch cannot be deleted")
            self._write("refs.json", {key: oid for key, oid in refs.items() if key != name})

    # --- commits

    def commit_at(self, revision: str) -> Commit:
        """Return the snapshot that a revision stands for."""
        raw = self._read(f"commits/{self.commit_oid(revision)}.json")
        files = {path: FileEntry(**entry) for path, entry in raw.pop("files").items()}
        return Commit(files=files, **raw)

    def history(self, revision: str) -> list[Commit]:
        """Return a commit and its ancestors, newest first."""
        commits = [self.commit_at(revision)]
        while (parent := commits[-1].parent) is not None:
            commits.append(self.commit_at(parent))
        return commits

    def commit(self, reference: str, draft: Draft, expected_parent: str | None = None) -> Commit:
        """Put a commit on top of a branch or pull request, all of it or nothing.

        Raises:
            HubError: 412 when `expected_parent` (full or short) is not the head; 404 when the
                reference or a file to delete does not exist.
        """
        with self._lock:
            refs = self.refs()
            if reference not in refs:
                raise errors.revision_not_found(reference)
            if expected_parent and not refs[reference].startswith(expected_parent.lower()):
                raise errors.stale_parent()
            commit = self._write_commit(draft, parent=self.commit_at(refs[reference]))
            self._write("refs.json", {**refs, reference: commit.oid})
            return commit

    def start(self, settings: Settings, author: str) -> None:
        """Write the files of a new repository, its first commit included."""
        for name in ("commits", "lfs"):
            (self.folder / name).mkdir(parents=True)
        entry = regular_entry(GITATTRIBUTES.encode())
        draft = Draft([Step("add", ".gitattributes", entry)], "initial commit", author=author)
        commit = self._write_commit(draft, parent=None)
        self._write("settings.json", asdict(settings))
        self._write("discussions.json", [])
        self._write("refs.json", {MAIN: commit.oid})

    def _write_commit(self, draft: Draft, parent: Commit | None) -> Commit:
        files = dict(parent.files) if parent else {}
        base = parent.oid if parent else None
        for step in draft.steps:
            if not step.apply(files):
                raise errors.entry_not_found(step.path, base or "0" * 40)
        commit = Commit("", base, draft.title, draft.message, draft.author, now(), files)
        content = json.dumps(asdict(commit), sort_keys=True).encode()
        commit = replace(commit, oid=hashlib.sha1(content).hexdigest())
        self._write(f"commits/{commit.oid}.json", asdict(commit))
        return commit

    def _commits_starting_with(self, prefix: str) -> list[str]:
        if not re.fullmatch(r"[0-9a-f]{5,40}", prefix):
            return []
        return [path.stem for path in (self.folder / "commits").glob(f"{prefix}*.json")]

    # --- discussions and pull requests

    def discussions(self) -> list[Discussion]:
        """Return all discussions and pull requests, oldest first."""
        return [Discussion(**raw) for raw in self._read("discussions.json")]

    def discuss(self, title: str, description: str, author: str) -> Discussion:
        """Open a discussion without changes."""
        return self._discuss(title, description, author, "open", is_pull_request=False)

    def open_empty_pull_request(self, title: str, description: str, author: str) -> Discussion:
        """Open a draft pull request at the head of main, to be committed to afterwards."""
        with self._lock:
            head = self.refs()[MAIN]
            opened = self._discuss(title, description, author, "draft", is_pull_request=True)
            self.add_reference(f"refs/pr/{opened.num}", head)
            return opened

    def open_pull_request(self, base: str, draft: Draft) -> tuple[Discussion, Commit]:
        """Open a pull request that holds one commit on top of commit `base`."""
        with self._lock:
            commit = self._write_commit(draft, parent=self.commit_at(base))
            opened = self._discuss(
                draft.title, draft.message, draft.author, "open", is_pull_request=True
            )
            self.add_reference(f"refs/pr/{opened.num}", commit.oid)
            return opened, commit

    def _discuss(
        self, title: str, description: str, author: str, status: str, *, is_pull_request: bool
    ) -> Discussion:
        with self._lock:
            earlier = self.discussions()
            opened = Discussion(
                len(earlier) + 1, title, description, author, now(), status, is_pull_request
            )
            self._write("discussions.json", [asdict(item) for item in [*earlier, opened]])
            return opened

    # --- large files

    def receive_lfs(self, sha256: str) -> None:
        """Note that this repository holds an LFS object."""
        (self.folder / "lfs" / sha256).touch()

    def has_lfs(self, sha256: str) -> bool:
        """Say whether an LFS object was uploaded to this repository."""
        return (self.folder / "lfs" / sha256).exists()

    def _read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def _write(self, name: str, value: object) -> None:
        write_json(self.folder / name, value)


class Store:
    """All repositories below one folder, written to by one thread at a time."""

    def __init__(self, root: Path) -> None:
        self.blobs = Blobs(root)
        self._repos = root / "repos"
        self._scratch = root / "incoming"
        self._lock = threading.RLock()
        self.blobs.keep([GITATTRIBUTES.encode()])

    def create(
        self, repo_type: RepoType, repo_id: str, settings: Settings, author: str
    ) -> Repository:
        """Make a repository with its first commit; FileExistsError when it is there already."""
        if not is_repo_id(repo_id):
            raise errors.bad_request(f"Invalid repo name: {repo_id}")
        repo = self._repository(repo_type, repo_id)
        with self._lock:
            if repo.folder.exists():
                raise FileExistsError(repo_id)
            # Made elsewhere and moved: nobody sees a repository that is not complete.
            draft = Repository(self._scratch / uuid.uuid4().hex, repo_type, repo_id, self._lock)
            draft.start(settings, author)
            repo.folder.parent.mkdir(parents=True, exist_ok=True)
            draft.folder.rename(repo.folder)
        return repo

    def find(self, repo_type: RepoType, repo_id: str) -> Repository:
        """Return a repository, or raise the 404 of a missing one."""
        repo = self._repository(repo_type, repo_id)
        if not is_repo_id(repo_id) or not repo.folder.exists():
            raise errors.repo_not_found(repo_id)
        return repo

    def delete(self, repo: Repository) -> None:
        """Remove a repository with its history; its blobs may serve others and stay."""
        self._remove(repo.folder)

    def clear(self) -> None:
        """Remove all repositories."""
        if self._repos.exists():
            self._remove(self._repos)

    def _remove(self, folder: Path) -> None:
        grave = self._scratch / uuid.uuid4().hex
        with self._lock:
            folder.rename(grave)
        shutil.rmtree(grave)

    def _repository(self, repo_type: RepoType, repo_id: str) -> Repository:
        return Repository(self._repos / f"{repo_type}s" / repo_id, repo_type, repo_id, self._lock)


def is_repo_id(repo_id: str) -> bool:
    """Say whether `repo_id` is a namespace and a name that the Hub accepts."""
    parts = repo_id.split("/")
    return len(parts) == 2 and all(REPO_NAME.fullmatch(part) for part in parts)
