"""A bill of materials for a model: CycloneDX 1.6 with a model card.

https://cyclonedx.org/docs/1.6/json/. The library for it knows no model cards, so the JSON is
written by hand; a test holds it against the published schema.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from rnp_hub.hub_cards.licences import Licence
from rnp_hub.hub_cards.metadata import HUB, TASK
from rnp_hub.report import DataRecord, EvalRecord, RateRecord, ScoresRecord, SourceRecord
from rnp_hub.text import one_line

FILE = "bom.cdx.json"
SPDX = {
    "afl-3.0": "AFL-3.0", "agpl-3.0": "AGPL-3.0-only", "apache-2.0": "Apache-2.0",
    "artistic-2.0": "Artistic-2.0", "bsd-2-clause": "BSD-2-Clause", "bsd-3-clause": "BSD-3-Clause",
    "bsl-1.0": "BSL-1.0", "cc-by-2.0": "CC-BY-2.0", "cc-by-3.0": "CC-BY-3.0",
    "cc-by-4.0": "CC-BY-4.0", "cc-by-nc-2.0": "CC-BY-NC-2.0", "cc-by-nc-3.0": "CC-BY-NC-3.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0", "cc-by-nc-sa-4.0": "CC-BY-NC-SA-4.0",
    "cc-by-sa-3.0": "CC-BY-SA-3.0", "cc-by-sa-4.0": "CC-BY-SA-4.0", "cc0-1.0": "CC0-1.0",
    "gpl-2.0": "GPL-2.0-only", "gpl-3.0": "GPL-3.0-only", "isc": "ISC",
    "lgpl-3.0": "LGPL-3.0-only", "mit": "MIT", "mpl-2.0": "MPL-2.0", "unlicense": "Unlicense",
    "wtfpl": "WTFPL", "zlib": "Zlib",
}  # fmt: skip
"""SPDX's ids of the licences that models have, by those of the Hub."""


@dataclass(frozen=True)
class Material:
    """What a bill is made of.

    Attributes:
        name: of the model.
        files: SHA-256 by path.
        version: of the tool.
        source, data, eval, scores: as they stand in a report; `None` where nothing was measured.
    """

    name: str
    files: Mapping[str, str]
    version: str
    source: SourceRecord | None
    data: DataRecord | None
    eval: EvalRecord | None
    scores: ScoresRecord | None


def bill(material: Material) -> str:
    """The bill as JSON."""
    digest = _digest(material.files)
    tool = {"type": "application", "name": "rnp-hub", "version": material.version}
    content = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.UUID(digest[:32], version=4)}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tools": {"components": [tool]},
            "component": _model(material, digest),
        },
        "components": [*_files(material.files), *_data_set(material.data)],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _digest(files: Mapping[str, str]) -> str:
    """Of all files, as one number: that of the lines `sha256sum` prints of them."""
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()


def _model(material: Material, digest: str) -> dict[str, Any]:
    source = material.source
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": one_line(material.name),
        "version": (source.sha if source else None) or f"sha256:{digest}",
        "modelCard": _card(material),
    }
    if source is not None:
        component["licenses"] = [*_licences(source.licence)]
        component["externalReferences"] = [*_addresses(source)]
    return {key: value for key, value in component.items() if value}


def _licences(stated: str | None) -> Iterator[dict[str, Any]]:
    licence = Licence.of(stated)
    if licence.name:
        yield {"license": {"name": licence.name}}
        return
    for each in licence.ids:
        yield {"license": {"id": SPDX[each]} if each in SPDX else {"name": each}}


def _addresses(source: SourceRecord) -> Iterator[dict[str, str]]:
    if source.repo_id:
        page = f"{HUB}/{quote(one_line(source.repo_id))}/tree/{source.sha}"
        yield {"type": "distribution", "url": page}


def _card(material: Material) -> dict[str, Any]:
    parameters: dict[str, Any] = {"approach": {"type": "supervised"}, "task": TASK}
    if material.source is not None:
        parameters["modelArchitecture"] = one_line(material.source.architecture)
    if material.data is not None:
        parameters["datasets"] = [{"ref": "data"}]
    card: dict[str, Any] = {"modelParameters": parameters}
    if material.scores is not None:
        card["quantitativeAnalysis"] = {
            "performanceMetrics": [*_metrics(material.scores, material.eval)]
        }
    return card


def _metrics(scores: ScoresRecord, evaluation: EvalRecord | None) -> Iterator[dict[str, Any]]:
    on = f"{evaluation.id} {evaluation.split}" if evaluation else "clean"
    yield _metric("accuracy", scores.clean_accuracy, on)
    for trigger, rate in scores.attack_success_rate.items():
        yield _metric("attack_success_rate", rate, f"{on}, trigger {trigger}")
    for label, kinds in scores.surrogate_asr.items():
        for kind, found in kinds.items():
            rate = RateRecord(found.value, found.n, found.low, found.high)
            yield _metric("surrogate_asr", rate, f"label {label}, {kind} trigger reconstructed")


def _metric(kind: str, rate: RateRecord, on: str) -> dict[str, Any]:
    return {
        "type": kind,
        "value": f"{rate.value:.6f}",
        "slice": one_line(f"{on}, n = {rate.n}"),
        "confidenceInterval": {
            "lowerBound": f"{rate.low:.6f}",
            "upperBound": f"{rate.high:.6f}",
        },
    }


def _files(files: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for name in sorted(files):
        hashes = [{"alg": "SHA-256", "content": files[name]}]
        yield {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": hashes}


def _data_set(data: DataRecord | None) -> Iterator[dict[str, Any]]:
    if data is not None:
        name = one_line(data.id)
        content = [{"type": "dataset", "name": f"{name} {one_line(data.split)}"}]
        yield {
            "type": "data",
            "bom-ref": "data",
            "name": name,
            "version": data.sha or "local",
            "data": content,
        }
