"""Licences as the Hub's metadata wants them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files

from rnp_hub.text import one_line

IDS = frozenset(files(__name__.rpartition(".")[0]).joinpath("licences.txt").read_text().split())
"""What the Hub takes under `license`; anything else is `other`, with a name."""

LONGEST = 80
"""Letters of a licence's own name; some paste the whole text."""


@dataclass(frozen=True)
class Licence:
    """What the source is licensed under.

    Attributes:
        ids: those of the Hub; empty where nothing is known.
        name: the source's own word for a licence that the Hub has no id for.
    """

    ids: tuple[str, ...] = ()
    name: str | None = None

    @staticmethod
    def of(stated: str | None) -> Licence:
        """Read what a card or a config says: an id, several with commas between, or free text."""
        said = one_line(stated or "")
        ids = tuple(part.strip().lower() for part in said.split(",") if part.strip())
        if all(each in IDS for each in ids):
            return Licence(ids)
        return Licence(("other",), said if len(said) <= LONGEST else said[: LONGEST - 1] + "…")

    @property
    def slug(self) -> str | None:
        """The name in the alphabet of the Hub's ids; `None` where an id says it all."""
        if self.name is None:
            return None
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-.") or "unnamed"
