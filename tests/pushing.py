"""What the tests of `push` share: a folder to push, a worker to push it, and a look at the Hub."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.client import Hub
from tests.models import Run
from tests.worker import Finished, Worker, running_worker

MANIFEST = "rnp_manifest.json"


@pytest.fixture(scope="session")
def rnp(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """`rnp-hub` with the write token of `me` on the loopback Hub."""
    with running_worker(hub.env(hub.token), tmp_path_factory.mktemp("worker")) as worker:
        yield worker


@pytest.fixture
def shipped(plain_run: Run, tmp_path: Path) -> Path:
    """A copy of a sanitized folder; its card has a line by hand, so that it is pushed as it is."""
    folder = Path(shutil.copytree(plain_run.folder, tmp_path / "out"))
    with (folder / "README.md").open("a") as card:
        card.write("\nBy hand.\n")
    return folder


def named(request: pytest.FixtureRequest) -> str:
    """A repository name of the test's own."""
    return "me/" + re.sub("[^a-z0-9]+", "-", request.node.name.lower()).strip("-")


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def on_hub(hub: Hub, repo_id: str, revision: str = "main") -> dict[str, str]:
    """SHA-256 of each file that a push left at a revision, the manifest left out."""
    files = hub.files(repo_id, revision).items()
    return {path: file.sha256 for path, file in files if path not in (MANIFEST, ".gitattributes")}


def is_refused(done: Finished, sentence: str) -> bool:
    """Exit code 2, nothing on stdout, and one line on stderr that ends with an error like this."""
    *notes, last = done.stderr.splitlines()
    told = all(note.startswith("Note: ") for note in notes) and last.startswith("Error: ")
    found = (done.code, done.stdout, told, bool(re.search(sentence, last)))
    assert found == (2, "", True, True), f"{found}\n{done.stdout}\n{done.stderr}"
    return True
