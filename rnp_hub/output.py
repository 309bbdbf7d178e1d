"""Writing a folder all at once: beside its place first, moved there when it is whole."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rnp_hub.errors import OutputError
from rnp_hub.report import FILE


def check_free(folder: Path, *, force: bool) -> None:
    """Refuse early what could only fail after minutes of work.

    Raises:
        OutputError: the folder exists and may not be replaced, or cannot be made.
    """
    if folder.exists() and not _may_replace(folder, force=force):
        hint = "it is not a folder that rnp-hub made" if force else "--force replaces it"
        raise OutputError(f"{folder} exists ({hint}); give another --out")
    parent = _existing_parent(folder)
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=".rnp-hub-"):
            pass
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def new_folder(folder: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` if the block ends well.

    If it does not (an error, Ctrl-C), nothing is left of it and `folder` is as it was.

    Raises:
        OutputError: as for `check_free`.
    """
    check_free(folder, force=force)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".rnp-hub-"))
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror})") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        _move_into_place(temporary, folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_into_place(temporary: Path, folder: Path) -> None:
    if not folder.exists():
        temporary.rename(folder)
        return
    # The old folder steps aside and goes only when the new one stands in its place.
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".rnp-hub-")) / "old"
    folder.rename(aside)
    try:
        temporary.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)


def _may_replace(folder: Path, *, force: bool) -> bool:
    if not folder.is_dir():
        return False
    ours = (folder / FILE).is_file()
    return not any(folder.iterdir()) or (force and ours)


def _existing_parent(folder: Path) -> Path:
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    return parent
