"""What a gate found: one strict record, from which every output is made."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, with_config

from rnp_hub.gate.rules import BY_ID, Rule
from rnp_hub.report import DataRecord, EvalRecord, ScoresRecord, SourceRecord, VerdictRecord

SCHEMA: Literal["rnp-hub/gate/1"] = "rnp-hub/gate/1"
LATE = ("timing_s", "pushed", "files")
"""What is only known at the end; the files stand in a statement by themselves."""

Status = Literal["pass", "fail", "skip"]

_strict = with_config(ConfigDict(extra="forbid", strict=True))


@_strict
@dataclass(frozen=True)
class RuleRecord:
    """How one rule came out.

    Attributes:
        id: see `rules`.
        status: `skip` where it could not be measured.
        limit: what the policy asks, in words.
        measured: what was found, in words.
        where: the model, the file or the data that it was found in.
        file: path in the repository, where it is about one file.
    """

    id: str
    status: Status
    limit: str
    measured: str
    where: str
    file: str | None = None

    @property
    def rule(self) -> Rule:
        return BY_ID[self.id]


@_strict
@dataclass(frozen=True)
class SanitizedRecord:
    """What was made of the model.

    Attributes:
        folder: where it lies.
        filters, silenced: of the network, and how many of them were cut.
        after: what the result was measured to do.
        softened, softened_kernels: how many of the others were given masks, and how many kernels.
    """

    folder: str
    filters: int
    silenced: int
    after: ScoresRecord
    softened: int = 0
    softened_kernels: int = 0


@_strict
@dataclass(frozen=True)
class PushedRecord:
    """Where what passed was pushed to; see `push.Pushed`."""

    repo_id: str
    revision: str
    commit: str
    url: str


@_strict
@dataclass(frozen=True)
class GateReport:
    """One run of the gate.

    Attributes:
        passed: no rule failed.
        model: as it was asked for.
        policy: what was asked of it.
        rules: each rule in force, once or once for each file that violates it.
        files: SHA-256 of every file that was judged: the model's, or those of its sanitized
            folder.
        source, data, eval, before, verdict: as in a scan; `None` where nothing was measured.
        sanitized: what was made of it; `None` where nothing was.
        pushed: where it went; `None` where it stayed.
        timing_s: seconds by stage.
        environment: as in a scan, or the version alone.
        reference: the file that names the model, for tools that want a place.
    """

    passed: bool
    model: str
    policy: dict[str, Any]
    rules: tuple[RuleRecord, ...]
    files: dict[str, str]
    source: SourceRecord | None
    data: DataRecord | None
    eval: EvalRecord | None
    before: ScoresRecord | None
    verdict: VerdictRecord | None
    sanitized: SanitizedRecord | None
    pushed: PushedRecord | None
    timing_s: dict[str, float]
    environment: dict[str, str]
    reference: str
    schema: Literal["rnp-hub/gate/1"] = SCHEMA

    @property
    def violations(self) -> tuple[RuleRecord, ...]:
        return tuple(each for each in self.rules if each.status == "fail")

    @property
    def now(self) -> ScoresRecord | None:
        """What the network does that was judged."""
        return self.sanitized.after if self.sanitized else self.before

    def to_json(self) -> str:
        """Indented JSON, the schema first."""
        record = TypeAdapter(GateReport).dump_python(self, mode="json")
        record = {"schema": record.pop("schema"), **record}
        return json.dumps(record, indent=1, ensure_ascii=False) + "\n"

    def digest(self) -> str:
        """SHA-256 of what was found, without how long it took and where it was pushed."""
        record = TypeAdapter(GateReport).dump_python(self, mode="json")
        stable = {key: value for key, value in record.items() if key not in LATE}
        return hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()


def label_of(source: SourceRecord | None, label: int | str | None) -> str:
    """A label as `3 (cat)`, or its number where it has no name."""
    names, number = (source.label_names if source else None) or (), str(label)
    known = number.isdecimal() and int(number) < len(names)
    return f"{number} ({names[int(number)]})" if known else number
