"""Where a model lies: a folder, or one commit of a repository on the Hub.

A revision is resolved to a commit once, and every file is read from that commit.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from rnp_hub import publisher
from rnp_hub.errors import ModelError, reason, transport_errors

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

CONFIG = "config.json"
CARD = "README.md"
PUBLIC_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
MAX_TEXT_BYTES = 64 * 2**20
"""A configuration that is larger is none."""

MAX_METADATA = 2**18
"""Letters of a card's metadata; cards of thousands of results have as many."""

_ID = r"[\w.-]+/[\w.-]+"
COMMIT = re.compile(r"[0-9a-f]{40}")
"""What a commit is called."""


@dataclass(frozen=True)
class Address:
    """What a name on the Hub says.

    Attributes:
        repo_id: `org/name`.
        folder: within the repository; empty for its root.
        revision: branch, tag, `refs/pr/N` or commit; `None` for `main`.
    """

    repo_id: str
    folder: str = ""
    revision: str | None = None


@dataclass(frozen=True)
class Repository:
    """The files of a model.

    Attributes:
        shown: how messages name it.
        repo_id, sha: on the Hub; `None` for a folder.
        folder: within the repository; `None` for its root.
        files: sizes in bytes of the files directly within, by name; `None` where the Hub (or a
            mirror of it) does not state them.
        root: the folder they lie in; `None` where they must be fetched.
        offline: only what was fetched before can be read.
        below: sizes of the files in folders below by path, where the Hub lists them.
    """

    shown: str
    repo_id: str | None
    sha: str | None
    folder: str | None
    files: Mapping[str, int | None]
    root: Path | None
    offline: bool = False
    below: Mapping[str, int | None] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """The path of one of the files, also of those below, fetched if it must be.

        Raises:
            ModelError: it cannot be fetched, or is not as large as the Hub says.
        """
        path = self.root / name if self.root is not None else self._fetched(name)
        size, stated = path.stat().st_size, self.files.get(name, self.below.get(name))
        if stated not in (None, size):
            raise ModelError(
                f"{name} of {self.shown} has {size} bytes where the Hub says {stated}; "
                f"the copy is damaged, delete {path} and try again"
            )
        return path

    def text(self, name: str) -> bytes | None:
        """The content of a small file; `None` where it is not there.

        Raises:
            ModelError: as for `path`, or it is too large to be text.
        """
        if name not in self.files:
            return None
        size = self.files[name] or 0
        if size > MAX_TEXT_BYTES:
            raise ModelError(
                f"{name} of {self.shown} is {size / 2**20:.0f} MiB large, which is no configuration"
            )
        return self.path(name).read_bytes()

    def json(self, name: str) -> Mapping[str, Any] | None:
        """The object in a JSON file; `None` where the file is not there.

        Raises:
            ModelError: as for `text`, or it holds no object.
        """
        raw = self.text(name)
        if raw is None:
            return None
        shown = f"{self.shown}/{name}"
        try:
            content = json.loads(raw)
            # Half a surrogate pair could be read, but never written again.
            json.dumps(content, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise ModelError(
                f"{shown} is no JSON ({error}); get it again from its author"
            ) from error
        if not isinstance(content, dict):
            raise ModelError(
                f"{shown} holds a {type(content).__name__} where an object is wanted; get it "
                "again from its author"
            )
        return content

    def _fetched(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import GatedRepoError

        assert self.repo_id is not None
        try:
            return Path(
                hf_hub_download(self.repo_id, name, revision=self.sha, subfolder=self.folder)
            )
        except GatedRepoError as error:
            raise ModelError(_gated(self.repo_id)) from error
        except transport_errors(RuntimeError) as error:
            raise ModelError(
                f"{name} of {self.repo_id} cannot be downloaded ({reason(error)}); try again"
            ) from error


def card_metadata(card: Path) -> Mapping[str, Any]:
    """The metadata of a card; nothing where there is none, none that can be read, or far too much.

    YAML takes seconds for each megabyte.
    """
    from huggingface_hub import metadata_load
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    try:
        text = card.read_text(encoding="utf-8")
        block = REGEX_YAML_BLOCK.search(text)
        if block is None or len(block[0]) > MAX_METADATA:
            return {}
        found = metadata_load(card)
    except Exception:  # YAML of anybody's: each mistake in it is an error of its own
        return {}
    return found if isinstance(found, dict) else {}


# --- names ------------------------------------------------------------------------------------


def address_of(spec: str) -> Address | None:
    """Read `org/name[/FOLDER][@REVISION]`, with or without `hf-hub:`, or an address of a browser.

    Returns:
        `None` where it is neither.

    Raises:
        ModelError: it is an address, but of another host or of no model.
    """
    if re.match(r"https?://", spec):
        return _from_browser(spec)
    name = re.sub(r"^hf[-_]hub:", "", spec)
    found = re.fullmatch(rf"({_ID})((?:/[\w.-]+)*)(?:@([\w./%-]+))?", name)
    if found is None or _leads_away(unquote(name).replace("@", "/")):
        return None
    return Address(found[1], found[2].lstrip("/"), found[3])


def _leads_away(path: str) -> bool:
    return not {".", ".."}.isdisjoint(path.split("/"))


def _from_browser(url: str) -> Address:
    from huggingface_hub import constants

    parts = urlsplit(url)
    hub = urlsplit(constants.ENDPOINT)
    if parts.netloc not in (hub.netloc, *PUBLIC_HOSTS):
        raise ModelError(
            f"{url} is no address on the Hub ({hub.netloc}); give org/name, or set HF_ENDPOINT to "
            "the Hub it is on"
        )
    path = parts.path.removeprefix(hub.path if parts.netloc == hub.netloc else "").strip("/")
    found = re.fullmatch(rf"({_ID})(?:/(tree|blob|resolve|raw)/(.+))?", path)
    away = _leads_away(unquote(path))
    if found is None or away or found[1].split("/")[0] in ("datasets", "spaces"):
        raise ModelError(
            f"{url} is no address of a model; it must read {constants.ENDPOINT}/org/name, with "
            "/tree/REVISION where you wish"
        )
    repo_id, view, rest = found.groups()
    if not rest:
        return Address(repo_id)
    # `refs/pr/1` is one revision, whether its slashes are escaped or not.
    revision, _, inside = re.sub(r"^refs/(pr|heads|tags)/", r"refs%2F\1%2F", rest).partition("/")
    inside = unquote(inside)
    folder = inside if view == "tree" else inside.rpartition("/")[0]
    return Address(repo_id, folder, unquote(revision))


def folder_of(spec: str) -> Path | None:
    """The folder that a spec names, if it names one: `local-dir:PATH`, or a path that exists."""
    local = spec.startswith("local-dir:")
    path = Path(spec.removeprefix("local-dir:")).expanduser()
    on_hub = re.match(r"hf[-_]hub:", spec)
    return path if local or (path.exists() and not on_hub) else None


# --- opening ----------------------------------------------------------------------------------


def open_folder(path: Path) -> Repository:
    """A folder on this machine.

    Raises:
        ModelError: there is none.
    """
    if not path.is_dir():
        raise ModelError(f"there is no model folder at {path}; give a folder or a Hub id")
    return Repository(str(path), None, None, None, _sizes(path), path)


def _sizes(folder: Path) -> dict[str, int]:
    return {each.name: each.stat().st_size for each in folder.iterdir() if each.is_file()}


def open_on_hub(address: Address) -> Repository:
    """A commit on the Hub: its list of files, none of them fetched.

    With `HF_HUB_OFFLINE` it is the commit that the cache holds.

    Raises:
        ModelError: there is none that can be read, said with what to do about it.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled

    repo_id = address.repo_id
    revision = unquote(address.revision) if address.revision else None
    try:
        info = _described(repo_id, revision)
    except OfflineModeIsEnabled:
        return _in_cache(address, revision or "main")
    if not COMMIT.fullmatch(info.sha or "") or info.siblings is None:
        raise ModelError(_unreachable(repo_id, ValueError("it answers, but not as a Hub does")))
    assert info.sha is not None
    remember(repo_id, revision or "main", info.sha)
    prefix = f"{address.folder}/" if address.folder else ""
    sizes = {
        file.rfilename.removeprefix(prefix): file.size
        for file in info.siblings
        if file.rfilename.startswith(prefix)
    }
    return Repository(
        shown=f"{repo_id}/{address.folder}".rstrip("/"),
        repo_id=repo_id,
        sha=info.sha,
        folder=address.folder or None,
        files={name: size for name, size in sizes.items() if "/" not in name},
        root=None,
        below={name: size for name, size in sizes.items() if "/" in name},
    )


def _described(repo_id: str, revision: str | None) -> ModelInfo:
    """What the Hub says of a repository, or why it says nothing."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return HfApi().model_info(repo_id, revision=revision, files_metadata=True)
    except OfflineModeIsEnabled:
        raise
    except RevisionNotFoundError as error:
        raise ModelError(f"{repo_id} has no revision {revision!r}; look it up there") from error
    except GatedRepoError as error:
        raise ModelError(_gated(repo_id)) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the Hub has no model {repo_id!r} that you may read; check the name, or log in with "
            "`hf auth login`"
        ) from error
    except HFValidationError as error:
        raise ModelError(f"{repo_id} is no Hub id ({reason(error)}); give another") from error
    except transport_errors(RuntimeError, ValueError) as error:
        raise ModelError(_unreachable(repo_id, error)) from error


def _unreachable(repo_id: str, error: BaseException) -> str:
    from huggingface_hub import constants

    if (refused := publisher.refusal(error)) is not None:
        return refused
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return (
            f"the Hub does not know your token ({reason(error)}); log in again with "
            "`hf auth login`, or correct HF_TOKEN"
        )
    if status == 403:
        return (
            f"your token may not read {repo_id} ({reason(error)}); take one with the right to "
            "read it, from the settings of your account"
        )
    why = reason(error) if status is None else f"status {status}"
    return (
        f"{repo_id} cannot be reached ({why}) at {constants.ENDPOINT}; check the "
        "network and HF_ENDPOINT, or give a folder"
    )


def _gated(repo_id: str) -> str:
    from huggingface_hub import constants, get_token

    page = f"{constants.ENDPOINT}/{repo_id}"
    if get_token() is None:
        return f"{repo_id} is gated; ask for access at {page} and log in with `hf auth login`"
    return f"{repo_id} is gated and your token has no access to it; ask for access at {page}"


# --- the cache --------------------------------------------------------------------------------


def remember(repo_id: str, revision: str, sha: str) -> None:
    """Write into the Hub's cache which commit a revision stands for, where its clients look.

    Files are fetched by commit here, which leaves no such trace, and then `HF_HUB_OFFLINE=1`
    would not find them again. A cache that cannot be written is no reason to fail.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if COMMIT.fullmatch(revision) or _leads_away(revision):
        return
    name = repo_folder_name(repo_id=repo_id, repo_type="model")
    file = Path(constants.HF_HUB_CACHE) / name / "refs" / revision
    written = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(sha)
        written.replace(file)
    except OSError:
        return


def _in_cache(address: Address, revision: str) -> Repository:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repo_id = address.repo_id
    try:
        config = hf_hub_download(
            repo_id,
            CONFIG,
            revision=revision,
            subfolder=address.folder or None,
            local_files_only=True,
        )
    except HFValidationError as error:
        raise ModelError(f"{repo_id} is no Hub id ({reason(error)}); give another") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"HF_HUB_OFFLINE is set and the cache ({constants.HF_HUB_CACHE}) holds no {repo_id} at "
            f"{revision}; run once without it, or give a folder"
        ) from error
    root = Path(config).parent
    snapshot = root.parents[len(Path(address.folder).parts) - 1] if address.folder else root
    shown = f"{repo_id}/{address.folder}".rstrip("/")
    return Repository(
        shown, repo_id, snapshot.name, address.folder or None, _sizes(root), root, offline=True
    )
