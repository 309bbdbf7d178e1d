"""The tests' hold on a running Hub: seed it, break it, look inside, and call the real clients."""

from __future__ import annotations

import base64
import inspect
import json
import os
import secrets
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, Literal

from tests.hub.storage import Gate, RepoType

REPO_ROOT = Path(__file__).parents[2]
FOREIGN_PREFIXES = ("HF_", "HUGGING", "TRANSFORMERS_", "DATASETS_", "TIMM_", "ACTIONS_ID_TOKEN")
FOREIGN_NAMES = ("DISABLE_TELEMETRY", "DO_NOT_TRACK", "GITHUB_ACTIONS", "XDG_CACHE_HOME")

CALL_TIMEOUT = 300  # seconds; a client that hangs is a failure, not a wait

Content = bytes | str | Path
Exchange = dict[str, Any]


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit, as the server keeps it."""

    size: int
    sha256: str
    git_oid: str
    lfs: bool


@dataclass(frozen=True)
class Answer:
    """What the server said, as it stood on the wire."""

    status: int
    headers: Message
    body: bytes


def attempt(action: Callable[[], Any]) -> Any:
    """Return what a client call gives, or the name of what it raises and the status behind it.

    For use inside functions that :meth:`Hub.call` runs: `hub.call(function, uses=[attempt])`.
    """
    try:
        return action()
    except Exception as error:
        # Uploads wrap the Hub's answer: the status is then the cause's.
        found = [getattr(link, "response", None) for link in (error, error.__cause__)]
        statuses = [response.status_code for response in found if response is not None]
        return [type(error).__name__, statuses[0] if statuses else None]


def clean_environment(source: Mapping[str, str]) -> dict[str, str]:
    """Return `source` without anything that would turn a client away from the Hub on loopback."""
    return {
        name: value
        for name, value in source.items()
        if not name.startswith(FOREIGN_PREFIXES)
        and name not in FOREIGN_NAMES
        and not name.lower().endswith("_proxy")
    }


class Hub:
    """A Hub that runs in another process.

    `endpoint` is its address, `token` the write token of user `me`. Helpers that seed and look
    inside go past all permissions; what the product does goes through the real clients, as in
    `subprocess.run([...], env=hub.env(token=hub.token))` or :meth:`call`.
    """

    def __init__(self, endpoint: str, work: Path) -> None:
        self.endpoint = endpoint
        self._work = work
        # Loopback only: a proxy named in the environment has no business here.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.token = self.add_user("me")

    # --- users

    def add_user(
        self, name: str, role: Literal["read", "write"] = "write", orgs: Sequence[str] = ()
    ) -> str:
        """Return a token for a user, who owns their own namespace and those of `orgs`."""
        token = f"hf_{name}_{role}"
        self._post("tokens", token=token, name=name, role=role, orgs=list(orgs))
        return token

    def job(self, **claims: str) -> dict[str, str]:
        """Return what GitHub's runner gives a job with `id-token: write` that can claim this."""
        token = f"ghs_{secrets.token_hex(16)}"
        self._post("jobs", token=token, claims=claims)
        address = f"{self.endpoint}/_github/idtoken?api-version=2.0"
        return {
            "ACTIONS_ID_TOKEN_REQUEST_URL": address,
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": token,
        }

    def trust(self, repo_id: str, **claims: str) -> None:
        """Have a repository trust jobs with these claims as publishers."""
        self._post("publishers", repo_id=repo_id, claims=claims)

    def env(self, token: str | None = None, **more: str) -> dict[str, str]:
        """Return an environment for a client process: this Hub, this token, an empty cache."""
        home = tempfile.mkdtemp(prefix="hf-home-", dir=self._work)
        settings = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": home,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        }
        if token is not None:
            settings["HF_TOKEN"] = token
        return {**clean_environment(os.environ), **settings, **more}

    def call(
        self,
        function: Callable[..., Any],
        *,
        token: str | None = None,
        uses: Iterable[Callable[..., Any]] = (),
        settings: Mapping[str, str] | None = None,
        **arguments: object,
    ) -> Any:
        """Run a function in a process of its own against this Hub and return its result.

        The function travels as source text, with the helpers in `uses`: it imports what it needs
        inside. Arguments and result travel as JSON, `settings` are more environment variables.
        A failure raises with the process's stderr.
        """
        parts = ["from __future__ import annotations", *map(inspect.getsource, [*uses, function])]
        parts.append(
            "import json, sys\n"
            f"result = {function.__name__}(**json.loads(sys.argv[1]))\n"
            "sys.__stdout__.write('\\n' + json.dumps(result))"
        )
        command = [sys.executable, "-c", "\n\n".join(parts), json.dumps(arguments, default=str)]
        done = subprocess.run(
            command,
            env=self.env(token, **(settings or {})),
            cwd=self._work,
            capture_output=True,
            text=True,
            timeout=CALL_TIMEOUT,
        )
        if done.returncode:
            raise AssertionError(f"{function.__name__} failed:\n{done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])

    # --- repositories

    def create_repo(
        self,
        repo_id: str,
        *,
        repo_type: RepoType = "model",
        private: bool = False,
        gated: Gate = False,
        granted: Sequence[str] = (),
    ) -> str:
        """Create a repository and return its first commit."""
        head: str = self._post(
            "repos",
            repo_id=repo_id,
            repo_type=repo_type,
            private=private,
            gated=gated,
            granted=list(granted),
        )["head"]
        return head

    def grant(self, repo_id: str, user: str, *, repo_type: RepoType = "model") -> None:
        """Let a user into a gated repository."""
        self._post("grant", repo_id=repo_id, repo_type=repo_type, user=user)

    def add_files(
        self,
        repo_id: str,
        files: Mapping[str, Content],
        *,
        deleted: Sequence[str] = (),
        repo_type: RepoType = "model",
        revision: str = "main",
        message: str = "Add files",
    ) -> str:
        """Commit files (bytes, text, or a path on this machine) and return the new commit.

        Entries of `deleted` that end in "/" are folders.
        """
        oid: str = self._post(
            "commit",
            repo_id=repo_id,
            repo_type=repo_type,
            revision=revision,
            message=message,
            files={path: _as_source(content) for path, content in files.items()},
            deleted=list(deleted),
        )["oid"]
        return oid

    def head(self, repo_id: str, revision: str = "main", *, repo_type: RepoType = "model") -> str:
        """Return the commit that a revision stands at."""
        oid: str = self._snapshot(repo_id, revision, repo_type)["oid"]
        return oid

    def files(
        self, repo_id: str, revision: str = "main", *, repo_type: RepoType = "model"
    ) -> dict[str, StoredFile]:
        """Return all files of a revision by path, .gitattributes included."""
        raw = self._snapshot(repo_id, revision, repo_type)["files"]
        return {path: StoredFile(**raw[path]) for path in sorted(raw)}

    def read(
        self, repo_id: str, path: str, revision: str = "main", *, repo_type: RepoType = "model"
    ) -> bytes:
        """Return one file's content."""
        file = self.files(repo_id, revision, repo_type=repo_type)[path]
        return self._request("GET", f"blobs/{file.sha256}")

    def history(
        self, repo_id: str, revision: str = "main", *, repo_type: RepoType = "model"
    ) -> list[dict[str, Any]]:
        """Return a revision's commits, newest first: oid, parent, title, author and more."""
        commits: list[dict[str, Any]] = self._post(
            "history", repo_id=repo_id, revision=revision, repo_type=repo_type
        )
        return commits

    def unfinished_uploads(self) -> list[str]:
        """Return the names of files that failed uploads left on the server's disk."""
        return [path.name for path in (self._work / "root/incoming").iterdir()]

    def spoil(self, sha256: str) -> None:
        """Have a stored content become another of the same size, as on a failing disk."""
        kept = self._work / "root/blobs" / sha256[:2] / sha256
        kept.write_bytes(bytes(255 - byte for byte in kept.read_bytes()))

    # --- what went over the wire

    def fetch(
        self,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
        body: bytes | Iterable[bytes] | None = None,
    ) -> Answer:
        """Ask for a path without any client library; whatever the status, it is an answer.

        A body in pieces goes out chunked.
        """
        url = f"{self.endpoint}/{path.removeprefix(self.endpoint + '/')}"
        request = urllib.request.Request(url, body, dict(headers or {}), method=method)
        try:
            with self._opener.open(request, timeout=60) as response:
                return Answer(response.status, response.headers, response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def log(self, since: int = 0) -> list[Exchange]:
        """Return the exchanges from number `since` on; see :class:`tests.hub.journal.Exchange`."""
        exchanges: list[Exchange] = self._get(f"log?since={since}")["exchanges"]
        return exchanges

    @contextmanager
    def recording(self) -> Iterator[list[Exchange]]:
        """Yield a list that holds, after the block, the exchanges that the block caused."""
        since = self._get("log?since=999999999")["next"]
        exchanges: list[Exchange] = []
        yield exchanges
        exchanges += self.log(since)

    # --- trouble

    @contextmanager
    def faults(self, *rules: Mapping[str, Any]) -> Iterator[Callable[[], list[int]]]:
        """Have fault rules in force inside the block; see :mod:`tests.hub.faults`.

        Yields a function that returns how often each rule has struck so far.
        """
        self._post("faults", rules=[dict(rule) for rule in rules])
        try:
            yield lambda: [rule["fired"] for rule in self._get("faults")]
        finally:
            self._post("faults", rules=[])

    @contextmanager
    def tuned(self, *, page_size: int = 1000, multipart_bytes: int | None = None) -> Iterator[None]:
        """Have other page and part sizes inside the block."""
        self._post("tuning", page_size=page_size, multipart_bytes=multipart_bytes)
        try:
            yield
        finally:
            self._post("tuning")

    def reset(self, *, repos: bool = False) -> None:
        """Forget faults, tuning and the log; with `repos`, all repositories too."""
        self._post("reset", repos=repos)

    # --- the control routes

    def _snapshot(self, repo_id: str, revision: str, repo_type: RepoType) -> Any:
        return self._post("snapshot", repo_id=repo_id, revision=revision, repo_type=repo_type)

    def _get(self, verb: str) -> Any:
        return json.loads(self._request("GET", verb))

    def _post(self, verb: str, **body: object) -> Any:
        return json.loads(self._request("POST", verb, json.dumps(body).encode()))

    def _request(self, method: str, verb: str, body: bytes | None = None) -> bytes:
        url = f"{self.endpoint}/_control/{verb}"
        request = urllib.request.Request(url, body, method=method)
        try:
            with self._opener.open(request, timeout=60) as response:
                content: bytes = response.read()
                return content
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(f"{method} {verb}: {error.read().decode()}") from error


def _as_source(content: Content) -> dict[str, str]:
    if isinstance(content, Path):
        return {"file": str(content.resolve())}
    raw = content.encode() if isinstance(content, str) else content
    return {"content": base64.b64encode(raw).decode()}
