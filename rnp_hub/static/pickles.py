"""Pickles: what they would import if they were opened, listed by picklescan, nothing run.

Lists of what is dangerous are got round time and again, so what is let through is a list too: a
pickle that imports more than tensors need is not let through, whoever knows what it would do.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import pickletools
from collections.abc import Collection, Iterator
from typing import IO, TYPE_CHECKING

from rnp_hub.errors import reason
from rnp_hub.static.finding import MAX_OPCODES, Finding
from rnp_hub.text import one_line

if TYPE_CHECKING:
    from picklescan.scanner import Global

SHOWN = 3
"""Imports that a message names."""


class TooLongError(Exception):
    """A pickle has more opcodes than a scanner could list."""


def check_pickle(stream: IO[bytes], name: str, suffix: str) -> list[Finding]:
    """Look through a pickle, or a zip that torch wrote, without unpickling.

    Args:
        stream: at any place; it can be rewound.
        name: for the finding.
        suffix: of the name, which says how its loader would read it.
    """
    from picklescan.scanner import SafetyLevel, scan_bytes

    try:
        _count_opcodes(stream)
        stream.seek(0)
        with _silent():
            found = scan_bytes(stream, name, suffix)
    except TooLongError:
        return [Finding("RNP010", name, f"is a pickle of more than {MAX_OPCODES:,} opcodes")]
    except Exception as error:  # what breaks the scanner may still be run by an unpickler
        return [Finding("RNP010", name, f"cannot be scanned for pickles ({_told(error)})")]
    dangerous = [each for each in found.globals if each.safety is SafetyLevel.Dangerous]
    unknown = [
        each
        for each in found.globals
        if each.safety is SafetyLevel.Suspicious and not _rebuilds(each.module, each.name)
    ]
    return [
        *_imports(dangerous, name, "is a pickle that would run {}, which is dangerous"),
        *_imports(unknown, name, "is a pickle that imports {}, which no tensor needs"),
        *([Finding("RNP010", name, "is a pickle that breaks off")] if found.scan_err else []),
    ]


def _rebuilds(module: str, name: str) -> bool:
    """Whether it is what torch puts tensors together with; picklescan does not know all of it."""
    return module == "torch._utils" and name.startswith("_rebuild_") and "." not in name


def _imports(found: Collection[Global], name: str, sentence: str) -> Iterator[Finding]:
    names = sorted(f"`{one_line(f'{each.module}.{each.name}')[:80]}`" for each in found)
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield Finding("RNP010", name, sentence.format(", ".join(names[:SHOWN]) + more))


def _count_opcodes(stream: IO[bytes]) -> None:
    """picklescan keeps every opcode in a list, of which a pickle may have one a byte."""
    stream.seek(0)
    if next(itertools.islice(_opcodes(stream), MAX_OPCODES, None), None) is not None:
        raise TooLongError


def _opcodes(stream: IO[bytes]) -> Iterator[object]:
    """Those of all pickles in a file, up to where one breaks off, which the scanner tells."""
    with contextlib.suppress(Exception):  # pickletools raises whatever the bytes made it trip over
        while stream.read(1):
            stream.seek(-1, io.SEEK_CUR)
            yield from pickletools.genops(stream)


def _told(error: Exception) -> str:
    return one_line(reason(error))[:80]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What the scanner finds is said here, once."""
    logger = logging.getLogger("picklescan")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
