"""Who may see, download and change what on the loopback Hub."""

from __future__ import annotations

from typing import Any

from tests.hub.client import Hub, attempt

NO_ACCESS = ["HfHubHTTPError", 403]
NO_TOKEN = ["HfHubHTTPError", 401]
NOT_FOUND = ["RepositoryNotFoundError", 404]
OWNER = {
    "role": "write",
    "see private": True,
    "see gated": "auto",
    "read private": "secret",
    "read gated": "secret",
    "create": "me/new",
    "write": True,
    "delete": None,
}
STRANGER = {
    "role": "write",
    "see private": NOT_FOUND,
    "see gated": "auto",
    "read private": NOT_FOUND,
    "read gated": ["GatedRepoError", 403],
    "create": NO_ACCESS,
    "write": NOT_FOUND,
    "delete": NOT_FOUND,
}
ANONYMOUS = {
    **STRANGER,
    "role": ["ValueError", None],
    "read gated": ["GatedRepoError", 401],
    "create": NO_TOKEN,
    "delete": NO_TOKEN,
}
OUTCOMES = {
    "reader": {
        **OWNER,
        "role": "read",
        "create": NO_ACCESS,
        "write": NO_ACCESS,
        "delete": NO_ACCESS,
    },
    "stranger": STRANGER,
    "guest": {**STRANGER, "read gated": "secret"},
    "unknown": dict.fromkeys(OWNER, NO_TOKEN),
    "anonymous": ANONYMOUS,
    "owner": OWNER,
}


def try_with_each_token(tokens: dict[str, Any]) -> dict[str, Any]:
    from pathlib import Path
    from tempfile import mkdtemp

    from huggingface_hub import HfApi, hf_hub_download

    def upload(token: str, repo_id: str) -> str:
        made = HfApi(token=token).upload_file(
            path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo_id
        )
        return made.oid

    def try_with(token: Any) -> dict[str, Any]:
        api = HfApi(token=token)

        def fetch(repo_id: str) -> Any:
            path = hf_hub_download(repo_id, "secret.txt", token=token, cache_dir=mkdtemp())
            return Path(path).read_text()

        return {
            "role": attempt(lambda: api.whoami()["auth"]["accessToken"]["role"]),
            "see private": attempt(lambda: api.model_info("me/private").private),
            "see gated": attempt(lambda: api.model_info("me/gated").gated),
            "read private": attempt(lambda: fetch("me/private")),
            "read gated": attempt(lambda: fetch("me/gated")),
            "create": attempt(lambda: api.create_repo("me/new").repo_id),
            "write": attempt(lambda: bool(upload(token, "me/private"))),
            "delete": attempt(lambda: api.delete_repo("me/new")),
        }

    return {name: try_with(token) for name, token in tokens.items()}


def test_tokens_open_what_they_should_and_nothing_else(hub: Hub) -> None:
    for repo_id in ("me/private", "me/gated"):
        hub.create_repo(repo_id, private="private" in repo_id, gated="gated" in repo_id and "auto")
        hub.add_files(repo_id, {"secret.txt": "secret"})
    tokens = {
        "reader": hub.add_user("me", "read"),
        "stranger": hub.add_user("stranger"),
        "guest": hub.add_user("guest"),
        "unknown": "hf_unknown",
        "anonymous": False,
        "owner": hub.token,
    }
    hub.grant("me/gated", "guest")

    seen = hub.call(try_with_each_token, uses=[attempt], tokens=tokens)

    assert seen == OUTCOMES
