"""What a look at a file's bytes can find, and how much is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rule = Literal["RNP010", "RNP011", "RNP012", "RNP013", "RNP014", "RNP015", "RNP016"]
"""RNP010 a pickle that imports code, RNP011 a file that is not what it claims, RNP012 a safetensors
header, RNP013 a configuration that asks for code, RNP014 ONNX that leads elsewhere, RNP015 an
archive, RNP016 a link."""

OPENING: frozenset[Rule] = frozenset({"RNP010", "RNP011", "RNP012", "RNP015", "RNP016"})
"""Findings after which no file of the model is opened as what it says it is."""

MAX_HEADER = 8 * 2**20
"""Bytes of a safetensors header or a JSON file that are parsed: 80,000 tensors need as many."""

MAX_MEMBER = 64 * 2**20
"""Bytes of a file within an archive that are read."""

MAX_UNPACKED = 2**30
"""Bytes that an archive may unpack to beyond what it stores."""

MAX_MEMBERS = 20_000
"""Files in an archive."""

MAX_OPCODES = 2_000_000
"""Of a pickle; those of the largest classifiers' weights have a tenth of it."""


@dataclass(frozen=True)
class Finding:
    """Something a gate lets nothing through with.

    Attributes:
        rule: see `Rule`.
        file: its path in the repository, with what is within an archive after a colon.
        message: what is wrong, as the end of a sentence that begins with the file.
    """

    rule: Rule
    file: str
    message: str
