"""One line of JSON for each network and defence: what the grid leaves for the page of evidence."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rnp_hub.bench.defences import ABOUT, Judgement
from rnp_hub.errors import ConfigError, reason
from rnp_hub.evaluate import Rate

WORKS = 0.8
"""ASR from which a backdoor works."""


@dataclass(frozen=True)
class Key:
    """What makes a row one of its own."""

    name: str
    defence: str
    n: int
    seed: int


@dataclass(frozen=True)
class Row:
    """What came of one defence on one network.

    Attributes:
        name: of the network, see `Victim.name`.
        victim: its fields.
        weights: first twelve digits of the SHA-256 of its file.
        defence: see `defences.ABOUT`.
        version: of the defence's settings.
        n, seed: of the clean slice; the seed is the defence's too.
        ca: clean accuracy before and after, over all labels of the test split.
        asr: attack success rate before and after; `None` for a clean network.
        twin: rate at which the network's clean twin gives the target label to the same pictures.
        silenced: filters.
        seconds: of one core, all threads together; `wall` as a clock counts them.
        device: what it was measured on, see `Compute.describe`; older rows, all of processors, do
            not say.
        judgement: see `defences.Judgement`.
        error: why the defence failed, and the network is as it was; or why there is no network,
            and no figure.
    """

    name: str
    victim: Mapping[str, Any]
    weights: str
    defence: str
    version: int
    n: int
    seed: int
    ca: tuple[Rate, Rate] | None = None
    asr: tuple[Rate, Rate] | None = None
    twin: Rate | None = None
    silenced: int | None = None
    seconds: float | None = None
    wall: float | None = None
    device: str | None = None
    judgement: Judgement | None = None
    error: str | None = None

    @property
    def key(self) -> Key:
        return Key(self.name, self.defence, self.n, self.seed)

    @property
    def is_current(self) -> bool:
        """Whether the defence has today's settings."""
        return self.defence in ABOUT and self.version == ABOUT[self.defence].version

    @property
    def core_seconds(self) -> float | None:
        """`seconds` where no GPU did the work."""
        return self.seconds if self.device is None or self.device.startswith("cpu") else None

    @property
    def attack(self) -> str | None:
        """`None` for a clean network."""
        attack = self.victim.get("attack")
        return None if attack is None else str(attack)

    @property
    def works(self) -> bool:
        """Whether the network has a backdoor that works."""
        return self.asr is not None and self.asr[0].value >= WORKS

    @property
    def drop(self) -> float:
        """Clean accuracy lost."""
        return self.ca[0].value - self.ca[1].value if self.ca else 0.0

    @property
    def cost(self) -> float:
        """max(0, clean accuracy lost) + ASR after: what a defence shall make small."""
        return max(0.0, self.drop) + (self.asr[1].value if self.asr else 0.0)


def median_seconds(rows: Iterable[Row]) -> float | None:
    """Of one core, over the rows that say so; `None` where none does."""
    found = [row.core_seconds for row in rows if row.core_seconds is not None]
    return median(found) if found else None


def read(log: Path) -> list[Row]:
    """Every row of a log; of several with one key the last.

    Raises:
        ConfigError: a line is no row, or the file cannot be read.
    """
    if not log.is_file():
        return []
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{log} cannot be read ({reason(error)}); give another --log") from error
    rows = [_row(line, f"{log}:{place}") for place, line in enumerate(lines, 1) if line.strip()]
    return list({row.key: row for row in rows}.values())


def _row(line: str, where: str) -> Row:
    try:
        return _adapter().validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        part = ".".join(map(str, first["loc"])) or "the line"
        raise ConfigError(
            f"{where} is no row of the grid ({part}: {first['msg']}); delete the line"
        ) from error


def append(log: Path, row: Row) -> None:
    """Add a row at the end of a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(_adapter().dump_python(row, mode="json"))
    with log.open("a", encoding="utf-8") as lines:
        lines.write(line + "\n")


@functools.cache
def _adapter() -> TypeAdapter[Row]:
    return TypeAdapter(Row)
