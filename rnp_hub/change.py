"""One commit, or one pull request, made exactly once, whatever becomes of the Hub's answers.

An answer may be lost while the commit stands. So each change has an id, made from its parent and
its content, that stands in its description: after a failure the history is searched for it before
the change is sent again. A commit names its parent besides, and is refused if that is no longer the
head. A pull request has no such guard: one that the Hub opens only after it was looked for, minutes
after its request failed, would be opened twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError

from rnp_hub.errors import PushError
from rnp_hub.remote import Remote, passes, status_of

TRAILER = "Rnp-Hub-Push: "
"""Before the id, as the last line of the description."""

LOOKED_AT = 30
"""Open pull requests of the same title that are searched for an earlier try's."""

STALE_PARENT = 412


@dataclass(frozen=True)
class Change:
    """What is to become of a branch.

    Attributes:
        repo_id, revision: the branch.
        parent: its head, as far as is known.
        upload: content of each file that is new or changed: bytes, or a file on this machine.
        sha256: of each of them.
        delete: files that go.
        pull_request: a pull request on the branch instead of a commit.
        title, description: of the commit.
    """

    repo_id: str
    revision: str
    parent: str | None
    upload: Mapping[str, bytes | Path]
    sha256: Mapping[str, str]
    delete: tuple[str, ...]
    pull_request: bool
    title: str
    description: str

    @property
    def id(self) -> str:
        """The same for the same change of the same commit, and for no other."""
        where = [self.revision, self.parent, self.pull_request]
        content = json.dumps([*where, sorted(self.sha256.items()), self.delete])
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    @property
    def trailer(self) -> str:
        return f"{TRAILER}{self.id}"


@dataclass(frozen=True)
class Made:
    """A change that stands on the Hub: its commit, the branch or `refs/pr/N`, and its page."""

    commit: str
    revision: str
    url: str


class OvertakenError(Exception):
    """The branch's head is no longer the parent; nothing was changed."""


def make(remote: Remote, change: Change) -> Made:
    """Send a change until it stands.

    Raises:
        OvertakenError: somebody else committed in between.
        PushError: the Hub refuses, or cannot be reached; the message says where its head stands.
    """
    if change.pull_request and (earlier := _find(remote, change)):
        return earlier
    try:
        return remote.ask(
            lambda: _send(remote, change),
            found=lambda: _find_again(remote, change),
            leave=lambda error: status_of(error) == STALE_PARENT,
        )
    except PushError as error:
        final = error.__cause__ is not None and not passes(error.__cause__)
        raise PushError(f"{error}; {_whereabouts(remote, change, final=final)}") from error
    except HfHubHTTPError as error:
        raise OvertakenError from error


def _send(remote: Remote, change: Change) -> Made:
    added = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in change.upload.items()
    ]
    info = remote.api.create_commit(
        change.repo_id,
        [*added, *map(CommitOperationDelete, change.delete)],
        commit_message=change.title,
        commit_description=f"{change.description}\n\n{change.trailer}",
        revision=change.revision,
        parent_commit=change.parent,
        create_pr=change.pull_request,
    )
    return Made(info.oid, info.pr_revision or change.revision, info.pr_url or info.commit_url)


def _find_again(remote: Remote, change: Change) -> Made | None:
    """What a failed try has made all the same.

    Where that cannot be asked, a commit may be sent again: had the first arrived, its parent would
    be refused, and it would be found then. A pull request may not.
    """
    if change.pull_request:
        return _find(remote, change)
    with contextlib.suppress(PushError):
        return _find(_impatient(remote), change)
    return None


def _impatient(remote: Remote) -> Remote:
    return replace(remote, patience=replace(remote.patience, tries=1))


def _find(remote: Remote, change: Change) -> Made | None:
    page = f"{remote.api.endpoint}/{change.repo_id}"
    if not change.pull_request:
        commit = _find_commit(remote, change, change.revision)
        return Made(commit, change.revision, f"{page}/commit/{commit}") if commit else None
    opened = remote.ask(
        lambda: list(
            remote.api.get_repo_discussions(
                change.repo_id, discussion_type="pull_request", discussion_status="open"
            )
        )
    )
    for each in [each for each in opened if each.title == change.title][:LOOKED_AT]:
        revision = f"refs/pr/{each.num}"
        if commit := _find_commit(remote, change, revision):
            return Made(commit, revision, f"{page}/discussions/{each.num}")
    return None


def _find_commit(remote: Remote, change: Change, revision: str) -> str | None:
    history = remote.ask(lambda: remote.api.list_repo_commits(change.repo_id, revision=revision))
    for commit in history:
        if commit.commit_id == change.parent:
            break
        if change.trailer in commit.message:
            return commit.commit_id
    return None


def _whereabouts(remote: Remote, change: Change, *, final: bool) -> str:
    """What became of the head, as far as it can be asked; what got no final answer may yet come."""
    repo_id = change.repo_id
    if change.pull_request:
        return f"no pull request was seen on {repo_id}"
    try:
        info = _impatient(remote).ask(
            lambda: remote.api.model_info(repo_id, revision=change.revision)
        )
    except PushError:
        return f"{repo_id} cannot be asked whether it holds the old commit or the new one"
    head = (info.sha or "no commit")[:7]
    if info.sha == change.parent:
        return f"{repo_id} {'stands' if final else 'was last seen'} as it was, at {head}"
    return f"{repo_id} stands at {head}, which this push did not make"
