"""What the Hub says no with: a status, a sentence, and the code that the clients tell apart.

The clients choose their exception by the ``X-Error-Code`` header, not by the status.
"""

from __future__ import annotations

from collections.abc import Mapping


class HubError(Exception):
    """An answer other than success, raised anywhere below the HTTP layer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})


class ConnectionCutError(Exception):
    """The connection is to be closed without an answer, as a fault rule asked."""


def bad_request(message: str) -> HubError:
    """Return a 400: the client sent something the Hub does not understand."""
    return HubError(400, message)


def bad_credentials() -> HubError:
    """Return the 401 for a token that the Hub does not know."""
    return HubError(401, "Invalid credentials in Authorization header")


def login_needed() -> HubError:
    """Return the 401 for a call without any token that needs one."""
    return HubError(401, "Invalid username or password.")


def forbidden(message: str) -> HubError:
    """Return a 403: the token is known and may not do this."""
    return HubError(403, message)


def repo_not_found(repo_id: str) -> HubError:
    """Return the 404 for a repository that is missing, or that the caller may not see."""
    return HubError(404, f"Repository not found: {repo_id}", code="RepoNotFound")


def gated_repo(repo_id: str, user: str | None) -> HubError:
    """Return the refusal of a gated repository: 401 when anonymous, 403 when not on the list."""
    if user is None:
        message = (
            f"Access to {repo_id} is restricted. You must have access to it and be "
            "authenticated to access it. Please log in."
        )
        return HubError(401, message, code="GatedRepo")
    message = f"Access to {repo_id} is restricted and {user} is not in the authorized list."
    return HubError(403, message, code="GatedRepo")


def revision_not_found(revision: str) -> HubError:
    """Return the 404 for a branch, tag, pull request or commit that does not exist."""
    return HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def entry_not_found(path: str, commit: str) -> HubError:
    """Return the 404 for a file that commit `commit` (40 hex digits) does not hold.

    The commit travels with it: clients cache the absence of a file per commit.
    """
    message = f"Entry not found: {path}. A file with this name doesn't exist."
    return HubError(404, message, code="EntryNotFound", headers={"X-Repo-Commit": commit})


def stale_parent() -> HubError:
    """Return the 412 for a commit whose parent is no longer the head."""
    return HubError(412, "A commit has happened since. Please refresh and try again.")
