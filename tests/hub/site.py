"""The state that all routes share, and the table from method and path to route."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import unquote

from tests.hub import access, errors
from tests.hub.access import Accounts
from tests.hub.faults import Faults
from tests.hub.identity import Publishers
from tests.hub.journal import Journal
from tests.hub.messages import Reply, Request
from tests.hub.storage import Repository, RepoType, Store


@dataclass(frozen=True)
class Tuning:
    """Sizes that tests make small to see what happens at their edges."""

    page_size: int = 1000  # entries per page of a listing
    multipart_bytes: int | None = None  # LFS objects above this size go up in parts of it


@dataclass(frozen=True)
class Upload:
    """An LFS object that a client was told to send, known by the secret in its address."""

    repo: Repository
    sha256: str
    size: int
    parts: dict[int, str] = field(default_factory=dict)  # part number: sha256


@dataclass
class Site:
    """One running Hub."""

    root: Path
    store: Store = field(init=False)
    accounts: Accounts = field(default_factory=Accounts)
    publishers: Publishers = field(default_factory=Publishers)
    faults: Faults = field(default_factory=Faults)
    journal: Journal = field(default_factory=Journal)
    uploads: dict[str, Upload] = field(default_factory=dict)
    tuning: Tuning = field(default_factory=Tuning)
    endpoint: str = ""

    def __post_init__(self) -> None:
        self.store = Store(self.root)

    def repo(self, request: Request) -> Repository:
        """Return the repository that the address names, if the caller may know of it."""
        args = request.args
        repo_type = cast(RepoType, args.get("kind", "models").removesuffix("s"))
        repo = self.store.find(repo_type, f"{args['ns']}/{args['name']}")
        access.check_visible(request.caller, repo)
        return repo

    def owned_repo(self, request: Request) -> Repository:
        """Return the repository that the address names, if the caller may change it."""
        repo = self.repo(request)
        access.owner(request.caller, repo.repo_id)
        return repo

    def url(self, path: str) -> str:
        """Return the full address of a path on this Hub."""
        return f"{self.endpoint}/{path}"


Route = Callable[[Site, Request], Reply]


class Router:
    """Routes by method and path; `{x}` stands for one segment, `{x...}` for the rest."""

    def __init__(self) -> None:
        self.routes: list[tuple[str, re.Pattern[str], Route]] = []

    def on(self, method: str, *templates: str) -> Callable[[Route], Route]:
        """Register the decorated function for a method and each of these paths."""

        def register(route: Route) -> Route:
            self.routes += [(method, _compile(template), route) for template in templates]
            return route

        return register

    def include(self, other: Router) -> None:
        """Take over the routes of another router."""
        self.routes += other.routes

    def find(self, request: Request) -> Route:
        """Return the route of a request, and put what stands for `{x}` into its args."""
        for method, pattern, route in self.routes:
            match = pattern.fullmatch(request.raw_path)
            if match and method == request.method:
                request.args = {key: unquote(value) for key, value in match.groupdict().items()}
                return route
        raise errors.HubError(404, f"No route for {request.method} {request.raw_path}")


def _compile(template: str) -> re.Pattern[str]:
    kinds = "(?P<kind>models|datasets|spaces)"
    pattern = re.escape(template).replace(r"\{", "{").replace(r"\}", "}").replace(r"\.\.\.", "...")
    pattern = re.sub(r"\{(\w+)\.\.\.\}", r"(?P<\1>.+)", pattern)
    pattern = pattern.replace("{kind}", kinds)
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern))
