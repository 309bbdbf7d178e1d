"""Configurations that ask a loader for code, or for another file than the one beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from rnp_hub.static.finding import MAX_HEADER, Finding
from rnp_hub.text import one_line

ASKS_FOR_CODE = {"auto_map", "custom_pipelines", "custom_code", "trust_remote_code"}
"""Keys under which transformers, diffusers and timm are told to run code of the repository."""

KERNELS = {"_attn_implementation", "attn_implementation", "_attn_implementation_internal"}
"""Keys under which an attention may be a kernel, fetched from another repository and run."""

ELSEWHERE = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}
"""Keys in timm's `model_args` that make it read other files than those that were looked at."""

LAMBDA = re.compile(rb'"class_name":\s*"Lambda"')
MAX_DEPTH = 64


def check_json(stream: IO[bytes], name: str, size: int) -> list[Finding]:
    """Look through a JSON file for keys that run code or lead elsewhere."""
    if size > MAX_HEADER:
        return [Finding("RNP011", name, f"has {size:,} bytes, more than a configuration needs")]
    stream.seek(0)
    doubles: list[str] = []
    try:
        content = json.loads(stream.read(), object_pairs_hook=lambda p: _noting_doubles(p, doubles))
    except (ValueError, RecursionError):
        return [Finding("RNP011", name, "is no JSON")]
    told = sorted(set(_asked(content, ())))
    return [
        *(Finding("RNP013", name, sentence) for sentence in told),
        *(Finding("RNP011", name, f"says `{_shown(key)}` twice") for key in sorted(set(doubles))),
    ]


def _noting_doubles(pairs: list[tuple[str, Any]], doubles: list[str]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        doubles += [key for key in found if keys.count(key) > 1]
    return found


def _asked(content: Any, path: tuple[str, ...]) -> Iterator[str]:
    """What each key asks for, however deep it lies."""
    if len(path) > MAX_DEPTH:
        yield f"is nested deeper than {MAX_DEPTH} levels"
    elif isinstance(content, list):
        for value in content:
            yield from _asked(value, (*path, "[]"))
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _asked_by(key, value, path)
            yield from _asked(value, (*path, key))


def _asked_by(key: str, value: Any, path: tuple[str, ...]) -> Iterator[str]:
    where = _shown(".".join([*path, key]))
    if key in ASKS_FOR_CODE and value not in (None, False, {}, []):
        yield f"asks for code of its own under `{where}`"
    if key in KERNELS and isinstance(value, str) and "/" in value:
        yield f"asks for code from `{_shown(value)}` under `{where}`"
    if path and path[-1] == "model_args" and key in ELSEWHERE and value is not None:
        yield f"sends timm to other files under `{where}`"
    if key == "hf_hub_filename" and value not in (None, "model.safetensors"):
        yield f"sends timm to `{_shown(str(value))}` for the weights under `{where}`"
    if key == "class_name" and value == "Lambda":
        yield f"holds a Keras layer that is code under `{where}`"


def _shown(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= 60 else f"{line[:59]}…"


def check_hdf5(stream: IO[bytes], name: str) -> list[Finding]:
    """Search an HDF5 file for Keras's layer that is code: without a reader of that format, its
    configuration is looked for as text."""
    stream.seek(0)
    tail = b""
    while part := stream.read(2**20):
        if LAMBDA.search(tail + part):
            return [Finding("RNP013", name, "holds a Keras layer that is code (Lambda)")]
        tail = part[-64:]
    return []
