"""A folder that `sanitize` made, checked against its report before it leaves the house."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rnp_hub.destination import MANIFEST, README, Manifest, Print, is_loadable
from rnp_hub.errors import PushError, reason
from rnp_hub.hub_cards import render
from rnp_hub.report import FILE, RunReport, onnx_file


@dataclass(frozen=True)
class Shipment:
    """A folder whose weights are those its report speaks of.

    Attributes:
        path: where it lies.
        report: what was measured.
        files: every file to push, the manifest included.
        texts: contents that are written on the Hub only: the manifest, and the card where it is
            pushed under the repository's name.
    """

    path: Path
    report: RunReport
    files: Mapping[str, Print]
    texts: Mapping[str, bytes]

    def content(self, path: str) -> bytes | Path:
        return self.texts.get(path, self.path / path)

    @staticmethod
    def read(folder: Path, repo_id: str) -> Shipment:
        """Read and check a folder that is to go to a repository.

        Raises:
            RnpHubError: it is none that `sanitize` made.
            PushError: it was changed since, or holds what must not be pushed.
        """
        report = RunReport.read(folder)
        try:
            files = {
                file.relative_to(folder).as_posix(): Print.of(file) for file in _visible(folder)
            }
        except OSError as error:
            raise PushError(f"{folder} cannot be read ({reason(error)})") from error
        _check_weights(folder, files, stated_hashes(report))
        texts = _named_card(folder, report, repo_id)
        files |= {path: Print.of(content) for path, content in texts.items()}
        texts[MANIFEST] = Manifest(files).to_json()
        files[MANIFEST] = Print.of(texts[MANIFEST])
        return Shipment(folder, report, files, texts)


def _named_card(folder: Path, report: RunReport, repo_id: str) -> dict[str, bytes]:
    """The card with the repository's name in its snippets, unless somebody edited it."""
    card = folder / README
    if card.is_file() and card.read_bytes() == render(report).encode():
        return {README: render(report, repo_id).encode()}
    return {}


def stated_hashes(report: RunReport) -> dict[str, str]:
    """SHA-256 of each weight file that a report speaks of, by path."""
    export = report.export
    variants = {f"onnx/{onnx_file(name)}": each.sha256 for name, each in export.onnx.items()}
    return {
        "model.safetensors": export.safetensors.sha256,
        "slim/model.safetensors": export.slim.sha256,
        **variants,
    }


def _check_weights(folder: Path, files: Mapping[str, Print], stated: Mapping[str, str]) -> None:
    for name, sha256 in stated.items():
        if name not in files or files[name].sha256 != sha256:
            changed = "was changed" if name in files else "is missing"
            raise PushError(
                f"{folder / name} {changed} since it was proved; run `rnp-hub sanitize` again"
            )
    for name in files:
        if is_loadable(name) and name not in stated:
            raise PushError(
                f"{folder / name} holds weights that {FILE} does not speak of; move it elsewhere"
            )


def _visible(folder: Path) -> Iterator[Path]:
    """Its files, but for hidden ones and the manifest of a repository it was downloaded from."""
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts) or inside.as_posix() == MANIFEST:
            continue
        if file.is_symlink():
            raise PushError(
                f"{file} is a link, which sanitize never writes; put the file in its place"
            )
        if file.is_file():
            yield file
