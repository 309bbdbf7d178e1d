"""ONNX files: tensors that lie outside the file, and operators that are not those of the standard.

The file is parsed as what it is, a protobuf message; nothing in it is run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import IO, Any

from rnp_hub.static.finding import Finding, Rule
from rnp_hub.text import one_line

RULE: Rule = "RNP014"
MAX_BYTES = 2**31
"""A protobuf message cannot be larger."""

DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "com.microsoft"}
"""Operators of the standard, and those that onnxruntime itself has; others come from a library that
somebody must load."""

MAX_DEPTH = 32
"""Of graphs within graphs."""


def check_onnx(
    stream: IO[bytes], name: str, size: int, beside: Mapping[str, int | None]
) -> list[Finding]:
    """Look through a model.

    Args:
        stream: the file.
        name: its path in the repository.
        size: in bytes.
        beside: bytes of each file of the repository, by path.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if size > MAX_BYTES:
        return [Finding("RNP011", name, "is larger than an ONNX file can be")]
    stream.seek(0)
    try:
        model = onnx.ModelProto.FromString(stream.read())
    except (DecodeError, RecursionError):
        return [Finding("RNP011", name, "is no ONNX model")]
    if not model.ir_version or not model.HasField("graph"):
        return [Finding("RNP011", name, "is no ONNX model")]
    told = [*_operators(model), *_tensors(model, name, beside)]
    return [Finding(RULE, name, sentence) for sentence in dict.fromkeys(told)]


def _graphs(model: Any) -> Iterator[Any]:
    """Everything that holds nodes: the graph, the functions, the graphs within their nodes."""
    pending = [(model.graph, 0), *((function, 0) for function in model.functions)]
    while pending:
        graph, depth = pending.pop()
        yield graph
        if depth > MAX_DEPTH:
            continue
        for node in graph.node:
            for attribute in node.attribute:
                inner = [*attribute.graphs]
                if attribute.HasField("g"):
                    inner.append(attribute.g)
                pending += [(each, depth + 1) for each in inner]


def _operators(model: Any) -> Iterator[str]:
    """Operators of a domain that is neither known nor defined in the file."""
    defined = {(function.domain, function.name) for function in model.functions}
    for graph in _graphs(model):
        for node in graph.node:
            if node.domain not in DOMAINS and (node.domain, node.op_type) not in defined:
                operator = _shown(f"{node.domain}.{node.op_type}")
                yield f"needs the operator `{operator}`, which is code of somebody's library"


def _tensors(model: Any, name: str, beside: Mapping[str, int | None]) -> Iterator[str]:
    for tensor in _stored(model):
        if tensor.data_location == tensor.EXTERNAL:
            yield from _external(tensor, name, beside)
        elif wrong := _oversized(tensor):
            yield wrong


def _stored(model: Any) -> Iterator[Any]:
    for graph in _graphs(model):
        initializers = getattr(graph, "initializer", ())
        yield from initializers
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from attribute.tensors
                if attribute.HasField("t"):
                    yield attribute.t


def _external(tensor: Any, name: str, beside: Mapping[str, int | None]) -> Iterator[str]:
    """Data beside the file is what exporters write for large models; anywhere else is not."""
    record = {entry.key: entry.value for entry in tensor.external_data}
    location, shown = record.get("location", ""), _shown(record.get("location", ""))
    parts = PurePosixPath(location).parts
    if not parts or location.startswith(("/", "~")) or ".." in parts or _windows(location):
        yield f"keeps `{_shown(tensor.name)}` outside the folder, in `{shown}`"
        return
    path = (PurePosixPath(name).parent / location).as_posix()
    if path not in beside:
        yield f"keeps `{_shown(tensor.name)}` in `{shown}`, which is not there"
        return
    held, start, length = beside[path], record.get("offset", "0"), record.get("length", "0")
    if not (start.isdecimal() and length.isdecimal()):
        yield f"does not say where in `{shown}` `{_shown(tensor.name)}` lies"
    elif held is not None and int(start) + int(length) > held:
        yield f"keeps `{_shown(tensor.name)}` beyond the end of `{shown}`"


def _windows(location: str) -> bool:
    return "\\" in location or location[1:2] == ":"


def _oversized(tensor: Any) -> str | None:
    """A shape that the bytes could not fill, which a reader might allocate all the same."""
    values = math.prod(tensor.dims)
    negative = any(size < 0 for size in tensor.dims)
    if negative or (tensor.raw_data and values > 8 * len(tensor.raw_data)):
        return f"gives `{_shown(tensor.name)}` a shape that its bytes do not fill"
    return None


def _shown(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= 60 else f"{line[:59]}…"
