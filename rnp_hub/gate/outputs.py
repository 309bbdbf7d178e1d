"""The files that a gate writes, each where it was asked to."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from rnp_hub.errors import OutputError, reason
from rnp_hub.gate.annotations import as_commands
from rnp_hub.gate.junit import junit
from rnp_hub.gate.result import GateReport
from rnp_hub.gate.sarif import sarif
from rnp_hub.gate.summary import summary
from rnp_hub.trust.bom import Material, bill
from rnp_hub.trust.statement import Statement


@dataclass(frozen=True)
class Outputs:
    """Files to write; `None` is not written.

    Attributes:
        sarif: for code scanning, SARIF 2.1.0.
        summary: for people, Markdown.
        junit: for test reports, XML.
        annotations: for a workflow's log, commands of GitHub Actions.
        attest: an in-toto statement on the judged files.
        bom: a bill of materials, CycloneDX 1.6.
        report: the whole report, JSON.
    """

    sarif: Path | None = None
    summary: Path | None = None
    junit: Path | None = None
    annotations: Path | None = None
    attest: Path | None = None
    bom: Path | None = None
    report: Path | None = None

    def check(self) -> None:
        """Find out before minutes of work whether a file could not be written.

        Raises:
            OutputError: its place is a folder, or lies in none.
        """
        asked = [file for each in fields(self) if (file := getattr(self, each.name)) is not None]
        for file in asked:
            if file.is_dir():
                raise OutputError(f"{file} is a folder; give a file to write to")
        if len(set(asked)) < len(asked):
            raise OutputError("two outputs of the gate have the same place; give each its own")

    def write(self, report: GateReport) -> None:
        """Write everything that speaks of the whole run.

        Raises:
            OutputError: a file cannot be written.
        """
        for file, render in (
            (self.sarif, sarif),
            (self.summary, summary),
            (self.junit, junit),
            (self.annotations, as_commands),
            (self.report, GateReport.to_json),
        ):
            if file is not None:
                _write(file, render(report))

    def write_bom(self, report: GateReport) -> None:
        """Write the bill of materials."""
        assert self.bom is not None
        material = Material(
            name=report.model,
            files=report.files,
            version=report.environment["rnp_hub"],
            source=report.source,
            data=report.data,
            eval=report.eval,
            scores=report.now,
        )
        _write(self.bom, bill(material))

    def write_statement(self, report: GateReport) -> None:
        """Write the statement."""
        assert self.attest is not None
        _write(self.attest, Statement.of(report.files, predicate(report)).to_json())


def predicate(report: GateReport) -> dict[str, object]:
    """What a statement says of the files."""
    source, data = report.source, report.data
    return {
        "verdict": "pass" if report.passed else "fail",
        "rules": [
            {"id": each.id, "status": each.status, "limit": each.limit, "measured": each.measured}
            for each in report.rules
        ],
        "policy": report.policy,
        "report": {"sha256": report.digest()},
        "tool": {"name": "rnp-hub", "version": report.environment["rnp_hub"]},
        "source": {
            "name": report.model,
            "repo_id": source.repo_id if source else None,
            "sha": source.sha if source else None,
            "weights_sha256": source.weights_sha256 if source else None,
        },
        "data": None
        if data is None
        else {"id": data.id, "sha": data.sha, "split": data.split, "n": data.n, "seed": data.seed},
    }


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise OutputError(
            f"{file} cannot be written ({error.strerror or reason(error)}); give another place"
        ) from error
