"""Writing all at once: beside its place first, moved there when it is whole."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rnp_hub.errors import OutputError, reason
from rnp_hub.report import FILE

PREFIX = ".rnp-hub-"
"""Of everything temporary."""


def check_free(folder: Path, *, force: bool) -> None:
    """Refuse early what could only fail after minutes of work.

    Raises:
        OutputError: the folder exists and may not be replaced, or cannot be made.
    """
    with _writing(folder):
        if folder.exists() and not _may_replace(folder, force=force):
            ours = "--overwrite replaces it" if _is_ours(folder) else "rnp-hub did not make it"
            raise OutputError(f"{folder} exists ({ours}); give another --out")
        with _beside(folder):
            pass


@contextlib.contextmanager
def new_folder(folder: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` if the block ends well.

    If it does not (an error, Ctrl-C), nothing is left of it and `folder` is as it was.

    Raises:
        OutputError: as for `check_free`.
    """
    check_free(folder, force=force)
    place = folder.resolve()  # `.` and `..` cannot be renamed, what they stand for can
    with _writing(folder), _beside(place) as temporary:
        yield temporary
        temporary.chmod(0o755)
        _move_into_place(temporary, place)


@contextlib.contextmanager
def new_file(file: Path, *, force: bool) -> Iterator[Path]:
    """A temporary file that takes the place of `file` if the block ends well, else nothing does.

    Raises:
        OutputError: the file exists and may not be replaced, or cannot be written.
    """
    if file.exists() and not (force and file.is_file()):
        hint = ", or --force to replace it" if file.is_file() else ""
        raise OutputError(f"{file} exists; give another --out{hint}")
    with _writing(file), _beside(file) as temporary:
        yield temporary / file.name
        file.parent.mkdir(parents=True, exist_ok=True)
        (temporary / file.name).replace(file)


@contextlib.contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{place} cannot be written ({error.strerror or reason(error)}); give another --out"
        ) from error


@contextlib.contextmanager
def _beside(place: Path) -> Iterator[Path]:
    """A folder on the same disk that is gone afterwards; missing parents are not made yet."""
    temporary = Path(tempfile.mkdtemp(dir=_existing_parent(place), prefix=PREFIX))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_into_place(temporary: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        temporary.rename(folder)
        return
    # The old folder steps aside and goes only when the new one stands in its place.
    with _beside(folder) as parking:
        aside = parking / "old"
        try:
            folder.rename(aside)
            temporary.rename(folder)
        except BaseException:  # Ctrl-C between the two must not cost the old folder either
            if aside.exists() and not folder.exists():
                aside.rename(folder)
            raise


def _may_replace(folder: Path, *, force: bool) -> bool:
    return folder.is_dir() and (not any(folder.iterdir()) or (force and _is_ours(folder)))


def _is_ours(folder: Path) -> bool:
    return (folder / FILE).is_file()


def _existing_parent(folder: Path) -> Path:
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    return parent
