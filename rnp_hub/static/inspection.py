"""Every file of a repository looked at once, by what it is and by what its name says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rnp_hub.errors import ModelError, reason
from rnp_hub.static.archives import check_shut, check_tar, check_zip
from rnp_hub.static.configs import check_hdf5, check_json
from rnp_hub.static.finding import OPENING, Finding
from rnp_hub.static.kinds import (
    ARCHIVES,
    HEAD,
    PICKLE_NAMES,
    check_claim,
    kind_of,
    suffix_of,
)
from rnp_hub.static.onnx_files import check_onnx
from rnp_hub.static.pickles import check_pickle
from rnp_hub.static.tensors import check_safetensors

MAX_NESTING = 3
"""Archives within archives that are looked into."""


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        files: how many were looked at.
        findings: in the order of the files.
        pickles: files that are pickles or hold some.
    """

    files: int
    findings: tuple[Finding, ...]
    pickles: tuple[str, ...]

    @property
    def safe_to_open(self) -> bool:
        """Whether the network may be built from these files."""
        return not any(each.rule in OPENING for each in self.findings)


def inspect(files: Mapping[str, Path]) -> Inspection:
    """Look at files without running, unpickling or unpacking any of them.

    Args:
        files: by their path in the repository.

    Raises:
        ModelError: one cannot be read from the disk.
    """
    sizes = {name: path.stat().st_size for name, path in files.items()}
    looker = _Looker(sizes)
    for name, path in files.items():
        try:
            with path.open("rb") as stream:
                looker.look(stream, name, sizes[name])
        except OSError as error:
            raise ModelError(f"{name} cannot be read ({reason(error)})") from error
    return Inspection(len(files), tuple(looker.findings), tuple(dict.fromkeys(looker.pickles)))


class _Looker:
    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.findings: list[Finding] = []
        self.pickles: list[str] = []

    def look(self, stream: IO[bytes], name: str, size: int, depth: int = 0) -> list[Finding]:
        """What is wrong with one file, of a folder or of an archive in it."""
        stream.seek(0)
        kind, suffix = kind_of(stream.read(HEAD), size), suffix_of(name)
        checks = (*check_claim(kind, name), *self._within(stream, name, size, kind, suffix, depth))
        if depth == 0:
            self.findings += checks
        return list(checks)

    def _within(
        self, stream: IO[bytes], name: str, size: int, kind: str, suffix: str, depth: int
    ) -> list[Finding]:
        plain = kind in ("data", "text")
        if kind == "safetensors" or (suffix == ".safetensors" and plain):
            return check_safetensors(stream, name, size)
        if kind == "text" and suffix == ".json":
            return check_json(stream, name, size)
        if plain and suffix == ".onnx":
            return check_onnx(stream, name, size, self.sizes)
        if kind == "hdf5":
            return check_hdf5(stream, name)
        if kind in ("pickle", "npy") or (plain and suffix in PICKLE_NAMES):
            return self._pickle(stream, name, kind, suffix)
        if kind in ARCHIVES:
            return self._archive(stream, name, size, kind, depth)
        return []

    def _pickle(self, stream: IO[bytes], name: str, kind: str, suffix: str) -> list[Finding]:
        if kind != "pickle":  # an array may hold one; anything else has only the name of one
            return check_pickle(stream, name, ".npy" if kind == "npy" else ".pkl")
        self.pickles.append(name)
        return check_pickle(stream, name, suffix if suffix in PICKLE_NAMES else ".pkl")

    def _archive(
        self, stream: IO[bytes], name: str, size: int, kind: str, depth: int
    ) -> list[Finding]:
        if depth >= MAX_NESTING:
            return [Finding("RNP015", name, f"is the {depth + 1}th archive within another")]
        if kind not in ("zip", "tar"):
            return check_shut(name, kind)

        def inside(content: IO[bytes], path: str, held: int) -> list[Finding]:
            return self.look(content, path, held, depth + 1)

        if kind == "tar":
            return check_tar(stream, name, inside)
        return check_zip(stream, name, size, inside)
