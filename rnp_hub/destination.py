"""A model repository on the Hub as it stands: what lies there, and what of it rnp-hub pushed.

Each push leaves `rnp_manifest.json` in its commit: every file it pushed, with its hashes. A file is
*ours* as long as the revision holds a manifest that names it and the file still has the hash that
stands there. Everything else belongs to a person: what was never pushed by rnp-hub, and what was
edited or replaced since.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from huggingface_hub.errors import (
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from rnp_hub import publisher
from rnp_hub.errors import PushError
from rnp_hub.remote import LOG_IN, Remote

MANIFEST = "rnp_manifest.json"
README = "README.md"

LOADABLE = frozenset(
    {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".safetensors", ".h5"}
    | {".msgpack", ".onnx", ".tflite", ".gguf"}
)
"""Endings of files that one loader or another takes for a model's weights."""

LOADER_FILES = frozenset({"adapter_config.json"})
"""Names that make a loader take other weights: transformers lays adapters over ours."""


@dataclass(frozen=True)
class Print:
    """What a file's content is known by: LFS keeps the one hash, git the other.

    Attributes:
        sha256: of the content.
        git_oid: name of the blob in git, SHA-1.
        size: in bytes.
    """

    sha256: str
    git_oid: str
    size: int

    @staticmethod
    def of(content: bytes | Path) -> Print:
        """The prints of some bytes or of a file, which is read once, piece by piece."""
        if isinstance(content, bytes):
            size, pieces = len(content), iter([content])
        else:
            size, pieces = content.stat().st_size, _pieces(content)
        plain, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        for piece in pieces:
            plain.update(piece)
            git.update(piece)
        return Print(plain.hexdigest(), git.hexdigest(), size)


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            yield piece


@with_config(ConfigDict(extra="ignore", strict=True))
@dataclass(frozen=True)
class Manifest:
    """The files of one push."""

    files: dict[str, Print]
    schema: Literal["rnp-hub/manifest/1"] = "rnp-hub/manifest/1"

    def to_json(self) -> bytes:
        """The same bytes for the same files, so that pushing them twice changes nothing."""
        files = {path: vars(self.files[path]) for path in sorted(self.files)}
        return (json.dumps({"schema": self.schema, "files": files}, indent=1) + "\n").encode()

    @staticmethod
    def from_json(text: bytes) -> Manifest:
        """Read a manifest; one that is none names no file, so that nothing counts as ours."""
        try:
            return TypeAdapter(Manifest).validate_json(text)
        except ValidationError:
            return Manifest({})


@dataclass(frozen=True)
class Stored:
    """A file of the repository: its name in git, and its SHA-256 where it lies in LFS."""

    git_oid: str | None
    sha256: str | None

    def holds(self, content: Print) -> bool:
        if self.sha256 is not None:
            return self.sha256 == content.sha256
        return self.git_oid == content.git_oid


@dataclass(frozen=True)
class Destination:
    """A repository at one commit.

    Attributes:
        repo_id: `org/name`.
        revision: the branch.
        exists: `False` for one that a push would create.
        private: whether only its owners see it; `None` for one that does not exist.
        head: the branch's commit.
        files: by path.
        manifest: what rnp-hub pushed there last.
    """

    repo_id: str
    revision: str
    exists: bool = False
    private: bool | None = None
    head: str | None = None
    files: Mapping[str, Stored] = field(default_factory=dict)
    manifest: Manifest = field(default_factory=lambda: Manifest({}))

    def is_ours(self, path: str) -> bool:
        """Whether rnp-hub pushed this file and nobody changed it since."""
        if path == MANIFEST:
            return bool(self.manifest.files)
        known = self.manifest.files.get(path)
        return known is not None and self.holds(path, known)

    def holds(self, path: str, content: Print) -> bool:
        stored = self.files.get(path)
        return stored is not None and stored.holds(content)

    def of_a_person(self) -> list[str]:
        """Files that are not ours; what git itself needs is nobody's."""
        return [path for path in self.files if not self.is_ours(path) and path != ".gitattributes"]


def is_loadable(path: str) -> bool:
    """Whether a loader may take this file for weights."""
    name = PurePosixPath(path).name
    return (
        PurePosixPath(name).suffix.lower() in LOADABLE
        or name.endswith(".index.json")
        or name in LOADER_FILES
    )


def check_id(repo_id: str) -> None:
    """Refuse what can be no model repository, before anything is asked; the rest the client knows.

    Raises:
        PushError: the name has no owner, or is that of another kind of repository.
    """
    owner, _, name = repo_id.partition("/")
    if owner in ("datasets", "spaces") and "/" in name:
        raise PushError(f"{repo_id} is one of the Hub's {owner}; give a model repository, you/name")
    if not (owner and name) or "/" in name:
        raise PushError(f"{repo_id!r} is no repository id with an owner; give it as you/name")


def survey(remote: Remote, repo_id: str, revision: str | None, *, propose: bool) -> Destination:
    """See what lies in a repository, and whether the token may write there.

    Args:
        remote: the Hub.
        repo_id: `org/name`.
        revision: a branch; `None` for `main`.
        propose: only a pull request is wanted, which is open to all who see the repository.

    Raises:
        PushError: the name, the branch or the token is no good, or the Hub cannot be reached.
    """
    check_id(repo_id)
    found = _look(remote, repo_id, revision)
    if not found.exists and propose:
        raise PushError(
            f"there is no {repo_id} that you may see, so nothing to open a pull request on; push "
            "without --create-pr"
        )
    check_rights(remote, repo_id, propose=propose)
    if not found.exists and revision not in (None, "main"):
        raise PushError(
            f"there is no {repo_id} yet, and a new repository has no branch {revision!r}; push "
            "without --revision first"
        )
    return found


def _look(remote: Remote, repo_id: str, revision: str | None) -> Destination:
    branch = revision or "main"
    try:
        info = remote.ask(
            lambda: remote.api.model_info(repo_id, revision=revision, files_metadata=True),
            leave=lambda error: isinstance(error, RepositoryNotFoundError | RevisionNotFoundError),
        )
    except RevisionNotFoundError as error:
        raise PushError(
            f"{repo_id} has no branch {branch!r}; make it with `hf repos branch create {repo_id} "
            f"{branch}`"
        ) from error
    except RepositoryNotFoundError:  # or one that this token may not see
        return Destination(repo_id, branch)
    files = {file.rfilename: _stored(file) for file in info.siblings or ()}
    manifest = Manifest({})
    if MANIFEST in files and info.sha is not None:
        manifest = Manifest.from_json(read(remote, repo_id, MANIFEST, info.sha))
    return Destination(repo_id, branch, True, bool(info.private), info.sha, files, manifest)


def _stored(file: RepoSibling) -> Stored:
    return Stored(file.blob_id, file.lfs.sha256 if file.lfs else None)


def read(remote: Remote, repo_id: str, path: str, sha: str) -> bytes:
    """One small file of a commit, past every cache."""
    with tempfile.TemporaryDirectory(prefix=".rnp-hub-") as empty:
        return Path(
            remote.ask(
                lambda: remote.api.hf_hub_download(repo_id, path, revision=sha, cache_dir=empty)
            )
        ).read_bytes()


def check_rights(remote: Remote, repo_id: str, *, propose: bool) -> None:
    """Ask whose token it is, and whether it may write there; what stays open the commit will tell.

    Raises:
        PushError: there is no token, the Hub does not know it, or it may not write there.
    """
    if (asked := publisher.resource()) is not None:  # such a token stands for no user
        _check_resource(asked, repo_id)
        return
    who = remote.ask(remote.api.whoami)
    token = who.get("auth", {}).get("accessToken", {})
    if not may_write(token):
        raise PushError(f"the token of {who['name']} may only read; {LOG_IN}")
    owner = repo_id.partition("/")[0]
    owners = [who["name"], *(org["name"] for org in who.get("orgs", ()))]
    if not propose and owner not in owners:
        raise PushError(
            f"{who['name']} may not write to {repo_id}: {owner!r} is neither their name nor an "
            f"organisation of theirs ({', '.join(owners)}); check the name, or give --create-pr to "
            "propose the change"
        )


def _check_resource(asked: str, repo_id: str) -> None:
    """A trusted publisher's token is for one repository, whose owners settled the rest."""
    if asked.lower() != repo_id.lower():
        raise PushError(
            f"HF_OIDC_RESOURCE asks for a token that may write to {asked} alone, not to {repo_id}; "
            f"set it to {repo_id}"
        )


def may_write(token: Mapping[str, Any]) -> bool:
    """Whether a token, as `whoami` describes it, may write anywhere at all.

    Most say it by their role. Fine-grained ones list what they may do; whether that covers a
    repository the commit will tell.
    """
    details = token.get("fineGrained")
    if token.get("role") != "fineGrained" or not isinstance(details, Mapping):
        return token.get("role") != "read"
    scoped = [scope.get("permissions", ()) for scope in details.get("scoped", ())]
    return any(
        "write" in permission
        for permissions in (details.get("global", ()), *scoped)
        for permission in permissions
    )
