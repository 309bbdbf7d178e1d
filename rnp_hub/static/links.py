"""What lies in a folder: its files, and what is no file of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from rnp_hub.static.finding import Finding, Rule

RULE: Rule = "RNP016"
UNSEEN = {".git"}
"""Folders at the top that belong to a tool and no loader looks into."""


def files_of(folder: Path) -> tuple[dict[str, Path], list[Finding]]:
    """The files below a folder by their path in it, and the links that lead out of it.

    A link that stays within is followed; in the Hub's cache all of a model's files are links into
    the folder of that model.
    """
    files: dict[str, Path] = {}
    found: list[Finding] = []
    home = folder.resolve()
    if home.parent.name == "snapshots":
        home = home.parent.parent
    for path in sorted(_below(folder)):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and not _stays(path, home):
            found.append(Finding(RULE, name, "is a link that leads out of the folder"))
        elif path.is_file():
            files[name] = path
        elif not path.is_dir() or path.is_symlink():
            kind = "a link to a folder" if path.is_symlink() else "a device, a pipe or a socket"
            found.append(Finding(RULE, name, f"is {kind}, no file"))
    return files, found


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        here = Path(place)
        if here == folder:
            folders[:] = [each for each in folders if each not in UNSEEN]
        yield from (here / name for name in (*names, *folders))


def _stays(link: Path, home: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(home)
    except (OSError, RuntimeError):  # to nowhere, or in a circle
        return False
