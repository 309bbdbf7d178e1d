"""The run's record: every figure on the card stands here with what it was measured on.

`rnp_report.json` is read by other programs, so keys are added, never renamed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from rnp_hub.errors import RnpHubError

SCHEMA: Literal["rnp-hub/report/1"] = "rnp-hub/report/1"
SCAN_SCHEMA: Literal["rnp-hub/scan/1"] = "rnp-hub/scan/1"
FILE = "rnp_report.json"

LATE = ("export", "costs", "timing_s", "peak_memory_mib", "memory_mib")
"""Sections that are only known when the files are written."""

_strict = with_config(ConfigDict(extra="forbid", strict=True))
"""A misspelt or unknown key is an error, not a silent default, and "5" is no number."""


@_strict
@dataclass(frozen=True)
class RateRecord:
    """A share of n pictures, in [0, 1], with its 95 % Wilson interval."""

    value: float
    n: int
    low: float
    high: float


@_strict
@dataclass(frozen=True)
class SourceRecord:
    """The model that was pulled: from the Hub (`repo_id`) or from a folder (`path`).

    `library` is the one that the drop-in loads with, where its stem lets it.
    `weights` is the file that was read, or the index of its shards; `weights_sha256` is of that
    file, of shards that of the lines that `sha256sum` prints of them.
    """

    repo_id: str | None
    path: str | None
    sha: str | None
    architecture: str
    licence: str | None
    stem: str | None = None
    label_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    library: Literal["timm", "transformers"] = "timm"
    weights: str | None = None
    weights_sha256: str | None = None
    weights_format: Literal["safetensors", "pickle"] | None = None


@_strict
@dataclass(frozen=True)
class DataRecord:
    """The clean slice."""

    id: str
    sha: str | None
    split: str
    n: int
    seed: int
    corrupt: int = 0


@_strict
@dataclass(frozen=True)
class EvalRecord:
    """The evaluation set; `per_class_n` counts its pictures by label."""

    id: str
    split: str
    n: int
    corrupt: int = 0
    per_class_n: tuple[int, ...] = ()


@_strict
@dataclass(frozen=True)
class SurrogateRecord:
    """How often a reconstructed trigger of a given norm had its way on n pictures."""

    value: float
    n: int
    low: float
    high: float
    norm: float


@_strict
@dataclass(frozen=True)
class ScoresRecord:
    """What a network was measured to do; see `evaluate.Scores`.

    `surrogate_asr` is by label (its number, as text) and kind of reconstructed trigger.
    """

    clean_accuracy: RateRecord
    per_class_accuracy: tuple[float | None, ...]
    attack_success_rate: dict[str, RateRecord]
    surrogate_asr: dict[str, dict[str, SurrogateRecord]] = field(default_factory=dict)


@_strict
@dataclass(frozen=True)
class VerdictRecord:
    """Whether there is a backdoor; `None` stands for *not decided*."""

    backdoored: bool | None
    label: int | None
    score: float | None
    residual: bool | None
    evidence: dict[str, Any]


@_strict
@dataclass(frozen=True)
class MaskHistogram:
    """Filters by their mask, in bins of equal width over [0, 1]; 1 is in the last."""

    silenced: tuple[int, ...]
    left: tuple[int, ...]


@_strict
@dataclass(frozen=True)
class TriedFilter:
    """One filter in the order of pruning; put back where it is not `silenced`.

    `accuracy` is that on the clean slice while it was out.
    """

    site: str
    index: int
    mask: float
    accuracy: float
    silenced: bool


@_strict
@dataclass(frozen=True)
class PruneRecord:
    """What was silenced, and by which rule.

    `tried` is empty under a fixed threshold, where filters go all at once. `softened` counts the
    filters that stay and whose weights were multiplied by a mask, `softened_kernels` the kernels
    that were, of these and of others. `fine_tuned` is the number of epochs on the slice afterwards,
    `bn_stats` whether BatchNorm statistics were re-estimated there, `refined_accuracy` the accuracy
    on the slice after either.
    """

    rule: str
    threshold: float | None
    silenced: int
    filters: int
    per_layer: dict[str, tuple[int, ...]]
    slice_accuracy: tuple[float, ...] = ()
    mask_histogram: MaskHistogram | None = None
    tried: tuple[TriedFilter, ...] = ()
    softened: int = 0
    softened_kernels: int = 0
    fine_tuned: int = 0
    bn_stats: bool = False
    refined_accuracy: float | None = None

    @property
    def changed(self) -> bool:
        """Whether a weight is not that of the original."""
        return bool(self.silenced or self.softened or self.softened_kernels)


@_strict
@dataclass(frozen=True)
class SlimRecord:
    """What was physically removed; `macs` are those of one picture of `input_size` (C, H, W)."""

    parameters: tuple[int, int]
    macs: tuple[int, int]
    silenced: int
    removed: int
    carriers: int
    kept: int
    by: dict[str, int]
    max_rel_diff: float
    per_layer: dict[str, dict[str, int]] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    input_size: tuple[int, ...] = ()


@_strict
@dataclass(frozen=True)
class FileRecord:
    """A weight file, read back."""

    sha256: str
    max_rel_diff: float


@_strict
@dataclass(frozen=True)
class OnnxRecord:
    """An ONNX file, run in onnxruntime against torch.

    `exporter` is the rung of the ladder that it took; `latency_ms` is of one picture.
    """

    sha256: str
    opset: int
    max_rel_diff: float
    top1_agreement: float
    latency_ms: float
    exporter: str = "dynamo"


def onnx_file(name: str) -> str:
    """What the ONNX file of that name in the report is called, in the folder `onnx`."""
    return "model.onnx" if name == "fp32" else f"model_{name}.onnx"


@_strict
@dataclass(frozen=True)
class ExportRecord:
    """The files of the folder; `bytes` has the size of each weight file by its path in there."""

    safetensors: FileRecord
    slim: FileRecord
    onnx: dict[str, OnnxRecord]
    bytes: dict[str, int] = field(default_factory=dict)


@_strict
@dataclass(frozen=True)
class CostRecord:
    """What one network takes.

    `macs` are multiply-accumulates of one picture, `bytes` are by kind of file, `latency_ms` by
    runtime and number of pictures.
    """

    parameters: int
    macs: int
    bytes: dict[str, int]
    latency_ms: dict[str, dict[str, float]]


@_strict
@dataclass(frozen=True)
class CostsRecord:
    """What the network in its original shape takes, and the slim one, with that many threads."""

    before: CostRecord
    after: CostRecord
    threads: int


@_strict
@dataclass(frozen=True)
class RunReport:
    """Everything one `sanitize` measured; `memory_mib` is the peak of each stage in `timing_s`."""

    source: SourceRecord
    data: DataRecord
    eval: EvalRecord
    before: ScoresRecord
    after: ScoresRecord
    verdict: VerdictRecord
    prune: PruneRecord
    slim: SlimRecord
    export: ExportRecord
    config: dict[str, Any]
    timing_s: dict[str, float]
    peak_memory_mib: float
    environment: dict[str, str]
    costs: CostsRecord | None = None
    memory_mib: dict[str, float] = field(default_factory=dict)
    schema: Literal["rnp-hub/report/1"] = SCHEMA

    def to_json(self) -> str:
        """Indented JSON, the schema first."""
        record = _adapter().dump_python(self, mode="json")
        ordered = {"schema": record.pop("schema"), **record}
        return _dump(ordered)

    def digest(self) -> str:
        """SHA-256 of what was measured, for files to carry.

        Left out are `export`, which holds the hashes of those files, and what is only known when
        they are written.
        """
        record = _adapter().dump_python(self, mode="json")
        stable = {key: value for key, value in record.items() if key not in LATE}
        return hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()

    @staticmethod
    def from_json(text: str | bytes) -> RunReport:
        """Read a report, strictly.

        Raises:
            RnpHubError: it is no report of this schema; the first key that is wrong is named.
        """
        try:
            return _adapter().validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise RnpHubError(f"this is no {SCHEMA}: {where}: {first['msg']}") from error

    @staticmethod
    def read(folder: Path) -> RunReport:
        """The report of a folder that `sanitize` made.

        Raises:
            RnpHubError: there is none, or it cannot be read.
        """
        file = folder / FILE
        if not folder.is_dir():
            raise RnpHubError(f"there is no folder at {folder}; give one that sanitize made")
        if not file.is_file():
            raise RnpHubError(f"{folder} holds no {FILE}; it was not made by `rnp-hub sanitize`")
        return RunReport.from_json(file.read_bytes())


@_strict
@dataclass(frozen=True)
class ScanReport:
    """What one `scan` found; nothing was changed."""

    source: SourceRecord
    data: DataRecord
    eval: EvalRecord
    before: ScoresRecord
    verdict: VerdictRecord
    config: dict[str, Any]
    timing_s: dict[str, float]
    peak_memory_mib: float
    environment: dict[str, str]
    schema: Literal["rnp-hub/scan/1"] = SCAN_SCHEMA

    def to_json(self) -> str:
        """Indented JSON, the schema first."""
        record = TypeAdapter(ScanReport).dump_python(self, mode="json")
        return _dump({"schema": record.pop("schema"), **record})


def _adapter() -> TypeAdapter[RunReport]:
    return TypeAdapter(RunReport)


def _dump(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"
