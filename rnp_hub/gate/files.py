"""Every file of a model, on this machine: those of a folder, or of one commit on the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rnp_hub.pull import find, is_embedded
from rnp_hub.repository import COMMIT, Repository, address_of
from rnp_hub.static import Finding, files_of
from rnp_hub.weights import check_size, sha256


@dataclass(frozen=True)
class ModelFiles:
    """What a model is made of.

    Attributes:
        shown: the model in messages, with its commit where it has one.
        sha: of the commit; `None` for a folder.
        pinned: the commit stood in its name; `None` for a folder.
        files: by their path.
        links: what in the folder is no file of it.
        root: the folder; `None` for a commit on the Hub.
    """

    shown: str
    sha: str | None
    pinned: bool | None
    files: dict[str, Path]
    links: tuple[Finding, ...]
    root: Path | None = None

    @staticmethod
    def get(spec: str, revision: str | None) -> ModelFiles:
        """Find a model and fetch all of its files.

        Raises:
            ModelError: there is none, or a file cannot be fetched.
        """
        repository = find(spec, revision)
        if repository.sha is None:
            return ModelFiles.of_folder(_root(repository), "demo" if is_embedded(spec) else spec)
        address = address_of(spec)
        named = revision or (address.revision if address else None) or ""
        pinned = COMMIT.fullmatch(named) is not None
        shown = f"{repository.shown}@{repository.sha}"
        return ModelFiles(shown, repository.sha, pinned, *_fetched(repository))

    @staticmethod
    def of_folder(folder: Path, shown: str) -> ModelFiles:
        """Those of a folder."""
        files, links = files_of(folder)
        return ModelFiles(shown, None, None, files, tuple(links), folder)

    def hashes(self) -> dict[str, str]:
        """SHA-256 by path, in their order."""
        return {name: sha256(self.files[name]) for name in sorted(self.files)}


def _root(repository: Repository) -> Path:
    assert repository.root is not None
    return repository.root


def _fetched(repository: Repository) -> tuple[dict[str, Path], tuple[Finding, ...]]:
    if repository.root is not None:  # what the cache holds, the Hub being out of reach
        files, links = files_of(repository.root)
        return files, tuple(links)
    listed = {**repository.files, **repository.below}
    check_size(sum(size or 0 for size in listed.values()), repository.shown)
    return {name: repository.path(name) for name in sorted(listed)}, ()
