"""The rules for README.md that the Hub enforces, as far as they are known.

PyYAML is the one import here that is not in the standard library; huggingface_hub needs it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
LICENSES = frozenset(Path(__file__).with_name("licenses.txt").read_text().split())
TEXT_OR_LIST = ("base_model", "datasets", "language", "license", "metrics", "tags")
ONE_TEXT = ("library_name", "license_name", "new_version", "pipeline_tag")
RELATIONS = ("adapter", "finetune", "merge", "quantized")


def metadata(readme: str) -> dict[str, Any]:
    """Return the YAML at the top of a README, {} when there is none that can be read."""
    match = FRONT_MATTER.match(readme)
    try:
        data = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def warnings_about(readme: str) -> list[str]:
    """Return what the Hub would remark on without refusing the card."""
    return [] if metadata(readme) else ["empty or missing yaml metadata in repo card"]


def errors_in(readme: str) -> list[str]:
    """Return why the Hub would refuse the card; [] when it would take it."""
    match = FRONT_MATTER.match(readme)
    if not match:
        return []
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"Invalid YAML: {' '.join(str(error).split())}"]
    if data is None:
        return []
    if not isinstance(data, dict):
        return ["YAML metadata must be a mapping"]
    return [*_plain_key_errors(data), *_license_errors(data), *_model_index_errors(data)]


def _plain_key_errors(data: dict[str, Any]) -> Iterator[str]:
    for key in TEXT_OR_LIST:
        yield from _text_or_list_errors(key, data.get(key))
    for key in ONE_TEXT:
        if not isinstance(data.get(key, ""), str):
            yield f'"{key}" must be a string'
    if data.get("base_model_relation", RELATIONS[0]) not in RELATIONS:
        yield f'"base_model_relation" must be one of {", ".join(RELATIONS)}'


def _text_or_list_errors(key: str, value: object) -> Iterator[str]:
    if value is None or isinstance(value, str):
        return
    if not isinstance(value, list):
        yield f'"{key}" must be a string or a list of strings'
        return
    for index, item in enumerate(value):
        if not isinstance(item, str):
            yield f'"{key}[{index}]" must be a string'


def _license_errors(data: dict[str, Any]) -> Iterator[str]:
    value = data.get("license")
    for name in value if isinstance(value, list) else [value]:
        if isinstance(name, str) and name not in LICENSES:
            yield f'"license" must be one of the licence ids of the Hub, not "{name}"'


def _model_index_errors(data: dict[str, Any]) -> Iterator[str]:
    if "model-index" not in data:
        return
    for where, model in _items("model-index", data["model-index"]):
        yield from _missing(where, model, "name", str)
        yield from _missing(where, model, "results", list)
        for place, result in _items(f"{where}.results", _get(model, "results")):
            yield from _result_errors(place, result)
    if not isinstance(data["model-index"], list):
        yield '"model-index" must be a list'


def _result_errors(where: str, result: object) -> Iterator[str]:
    yield from _missing(f"{where}.task", _get(result, "task"), "type", str)
    for key in ("type", "name"):
        yield from _missing(f"{where}.dataset", _get(result, "dataset"), key, str)
    yield from _missing(where, result, "metrics", list)
    for place, metric in _items(f"{where}.metrics", _get(result, "metrics")):
        yield from _missing(place, metric, "type", str)
        yield from _missing(place, metric, "value", object)


def _items(where: str, value: object) -> Iterator[tuple[str, object]]:
    for index, item in enumerate(value if isinstance(value, list) else []):
        yield f"{where}[{index}]", item


def _get(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, dict) else None


def _missing(where: str, value: object, key: str, kind: type) -> Iterator[str]:
    found = _get(value, key)
    if found is None:
        yield f'"{where}.{key}" is required'
    elif not isinstance(found, kind):
        yield f'"{where}.{key}" must be a {kind.__name__}'
