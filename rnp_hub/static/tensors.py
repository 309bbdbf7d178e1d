"""The header of a safetensors file, read without a tensor being made.

The format: eight bytes of length, a JSON object of that length, then the tensors without a gap, in
any order (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import IO, Any

from rnp_hub.static.finding import MAX_HEADER, Finding, Rule
from rnp_hub.text import one_line

RULE: Rule = "RNP012"
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8,
    "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Bits of one value, by the name of its type."""

MAX_DIMENSIONS = 32


class WrongError(Exception):
    """What is wrong with a header, as the end of a sentence."""


def check_safetensors(stream: IO[bytes], name: str, size: int) -> list[Finding]:
    """Read the header of a file of `size` bytes and hold it against the file.

    Returns:
        The first thing that is wrong; a reader that does not look could read past the end, read
        one tensor for another, or be made to allocate what is not there.
    """
    try:
        header, start = _header(stream, size)
        _check_tensors(header, size - start)
    except WrongError as wrong:
        return [Finding(RULE, name, str(wrong))]
    return []


def _header(stream: IO[bytes], size: int) -> tuple[Mapping[str, Any], int]:
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    if size < 10 or length > size - 8:
        raise WrongError(
            f"says its header is {length:,} bytes long, but only {max(size - 8, 0):,} are"
        )
    if length > MAX_HEADER:
        raise WrongError(f"has a header of {length:,} bytes, more than {MAX_HEADER:,}")
    raw = stream.read(length)
    if raw[:1] != b"{":
        raise WrongError("has a header that is no JSON object")
    try:
        header = json.loads(raw, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise WrongError("has a header that is no JSON") from error
    return header, 8 + length


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise WrongError(f"has the key `{_shown(key)}` twice in its header")
        found[key] = value
    return found


def _check_tensors(header: Mapping[str, Any], held: int) -> None:
    """Each tensor's place, then that together they fill the `held` bytes without a gap."""
    metadata = header.get("__metadata__", {})
    texts = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not texts:
        raise WrongError("has a `__metadata__` that is not made of texts")
    end = 0
    for start, stop, tensor in sorted(_places(header)):
        if start < end:
            raise WrongError(f"puts `{_shown(tensor)}` over the bytes of another tensor")
        if start > end:
            raise WrongError(f"leaves {start - end:,} bytes before `{_shown(tensor)}` to no tensor")
        end = stop
    if end > held:
        raise WrongError(f"places tensors in {end:,} bytes, but holds {held:,}")
    if end < held:
        raise WrongError(f"holds {held - end:,} bytes after its last tensor")


def _places(header: Mapping[str, Any]) -> Iterator[tuple[int, int, str]]:
    for tensor, record in header.items():
        if tensor != "__metadata__":
            start, stop = _place(tensor, record)
            yield start, stop, tensor


def _place(tensor: str, record: Any) -> tuple[int, int]:
    shown = _shown(tensor)
    if not isinstance(record, dict) or record.keys() != {"dtype", "shape", "data_offsets"}:
        raise WrongError(f"does not describe `{shown}` by dtype, shape and data_offsets")
    dtype, shape, offsets = record["dtype"], record["shape"], record["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise WrongError(f"gives `{shown}` a type that there is not")
    if not _whole(shape) or len(shape) > MAX_DIMENSIONS or not _whole(offsets) or len(offsets) != 2:
        raise WrongError(f"gives `{shown}` a shape or a place that is not made of whole numbers")
    start, stop = offsets
    bits = math.prod(shape) * BITS[dtype]
    if start > stop or bits != 8 * (stop - start):
        raise WrongError(
            f"gives `{shown}` {max(stop - start, 0):,} bytes where its shape and type need "
            f"{bits // 8:,}"
        )
    return start, stop


def _whole(values: Any) -> bool:
    """Whether it is a list of whole numbers of at most 64 bits."""
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
        for value in values
    )


def _shown(name: str) -> str:
    """A tensor's name in a message: one line, cut where it is long."""
    line = one_line(name)
    return line if len(line) <= 60 else f"{line[:59]}…"
