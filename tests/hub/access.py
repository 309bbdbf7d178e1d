"""Who a token stands for, and what that account may see, download and change."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from typing import Any, Literal

from tests.hub import errors
from tests.hub.storage import Repository


@dataclass(frozen=True)
class Account:
    """A user behind a token, and what the token is good for.

    A trusted publisher is no user: its token is for one repository (`only`) and that alone.
    """

    name: str
    role: Literal["read", "write"] = "write"
    orgs: tuple[str, ...] = ()
    only: str | None = None

    def owns(self, repo_id: str) -> bool:
        """Say whether the repository is the user's own or of an organisation of theirs."""
        if self.only is not None:
            return repo_id == self.only
        return repo_id.partition("/")[0] in (self.name, *self.orgs)

    def whoami(self) -> dict[str, Any]:
        """Return what the Hub tells users about themselves."""
        return {
            "type": "user",
            "id": self.name,
            "name": self.name,
            "fullname": self.name.title(),
            "isPro": False,
            "orgs": [{"type": "org", "id": org, "name": org} for org in self.orgs],
            "auth": {
                "type": "access_token",
                "accessToken": {"displayName": "tests", "role": self.role},
            },
        }


class Accounts:
    """The tokens that the Hub knows."""

    def __init__(self) -> None:
        self._by_token: dict[str, Account] = {}

    def add(self, token: str, account: Account) -> None:
        """Make a token known."""
        self._by_token[token] = account

    def caller(self, headers: Message) -> Account | None:
        """Return who calls, None when anonymous; an unknown token is refused with a 401."""
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        if not scheme:
            return None
        account = self._by_token.get(token)
        if account is None:
            raise errors.bad_credentials()
        return account


def writer(caller: Account | None) -> Account:
    """Return the caller when their token may change anything at all."""
    if caller is None:
        raise errors.login_needed()
    if caller.role != "write":
        raise errors.forbidden(
            "This token has the read role; a token with the write role is needed"
        )
    return caller


def owner(caller: Account | None, repo_id: str) -> Account:
    """Return the caller when they may change this repository."""
    account = writer(caller)
    if not account.owns(repo_id):
        namespace = repo_id.partition("/")[0]
        raise errors.forbidden(
            f"You don't have the rights to change repositories under the namespace {namespace!r}"
        )
    return account


def check_visible(caller: Account | None, repo: Repository) -> None:
    """Raise the 404 of a missing repository when the caller may not know that this one exists."""
    if repo.settings.private and not (caller and caller.owns(repo.repo_id)):
        raise errors.repo_not_found(repo.repo_id)


def check_downloadable(caller: Account | None, repo: Repository) -> None:
    """Raise the refusal of a gated repository when the caller was not let in."""
    settings = repo.settings
    if not settings.gated or (caller and caller.owns(repo.repo_id)):
        return
    if caller is None or caller.name not in settings.granted:
        raise errors.gated_repo(repo.repo_id, caller.name if caller else None)
