"""Violations as SARIF 2.1.0, for code scanning.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/sarif-v2.1.0-errata01-os-complete.html
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rnp_hub.gate.result import GateReport, RuleRecord
from rnp_hub.gate.rules import ALL, Rule
from rnp_hub.text import one_line

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
PAGE = "https://github.com/rnp-hub/rnp-hub"
ERROR = 4.0
"""Severity from which a violation is an error, and no warning."""

MAX_RESULTS = 5000
"""Results that GitHub keeps of a run."""


def sarif(report: GateReport) -> str:
    """A log with one run: every rule with its help, a result for each violation."""
    driver = {
        "name": "rnp-hub",
        "informationUri": PAGE,
        "version": report.environment["rnp_hub"],
        "semanticVersion": report.environment["rnp_hub"],
        "rules": [_rule(each) for each in ALL],
    }
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": f"rnp-hub/{quote(one_line(report.model), safe='')}/"},
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {"SRCROOT": {"description": {"text": "The repository's root."}}},
        "results": [_result(report, each) for each in report.violations[:MAX_RESULTS]],
        "properties": {"passed": report.passed, "reportSha256": report.digest()},
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=1, ensure_ascii=False) + "\n"


def level_of(rule: Rule) -> str:
    """`error` or `warning`."""
    return "error" if rule.severity >= ERROR else "warning"


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "name": "".join(word.capitalize() for word in rule.name.split("-")),
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": f"{rule.title} {rule.help}"},
        "help": {"text": rule.help, "markdown": f"{rule.help}\n\n[More]({rule.page})"},
        "helpUri": rule.page,
        "defaultConfiguration": {"level": level_of(rule)},
        "properties": {
            "tags": ["security", "machine-learning", "model"],
            "precision": "high",
            "security-severity": f"{rule.severity:.1f}",
        },
    }


def _result(report: GateReport, record: RuleRecord) -> dict[str, Any]:
    index = next(place for place, rule in enumerate(ALL) if rule.id == record.id)
    where = one_line(record.where)
    told = f"{one_line(record.measured)} (limit: {one_line(record.limit)}) in {where}"
    return {
        "ruleId": record.id,
        "ruleIndex": index,
        "level": level_of(record.rule),
        "message": {"text": told[0].upper() + told[1:]},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": place(report.reference), "uriBaseId": "SRCROOT"},
                    "region": {"startLine": 1},
                },
                "logicalLocations": [{"fullyQualifiedName": where, "kind": "resource"}],
            }
        ],
        "partialFingerprints": {"rnpHubViolation/v1": _fingerprint(report, record)},
    }


def place(reference: str) -> str:
    """The file of the repository that names the model, as an address relative to its root.

    A violation lies in weights, which no repository of code holds; this file asks for them.
    """
    path = Path(one_line(reference))
    if path.is_absolute():
        here = Path.cwd()
        path = path.relative_to(here) if path.is_relative_to(here) else Path(path.name)
    inside = [part for part in path.parts if part not in ("..", ".", "/")]
    return quote("/".join(inside) or "rnp-hub.toml")


def _fingerprint(report: GateReport, record: RuleRecord) -> str:
    """Of what is violated where, and not by how much, so that an alert stays the same one."""
    model = report.source.repo_id if report.source and report.source.repo_id else report.model
    what = "\n".join((record.id, model.partition("@")[0], record.file or ""))
    return hashlib.sha256(what.encode("utf-8", "replace")).hexdigest()
