"""The policy: what a model must be to pass, from `rnp-hub.toml`."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rnp_hub.errors import ConfigError, reason
from rnp_hub.text import one_line

FILE = "rnp-hub.toml"
MAX_BYTES = 2**16
"""A policy that is larger is none."""

Share = Annotated[float, Field(ge=0, le=1)]


class Policy(BaseModel):
    """What a model must be; `None` asks nothing. Shares are in [0, 1].

    Attributes:
        max_surrogate_asr: of any trigger that could be reconstructed for any label.
        max_asr: of each known trigger (`--trigger`, `--poisoned`); or by the trigger's name.
        min_clean_accuracy: on the evaluation set; `None` asks for a tenth of the way from chance
            to perfect.
        max_ca_drop: clean accuracy that sanitizing may have cost.
        allow_pickle: pickles of tensors may be among the files.
        allow_undecided: a scan that comes to no verdict may pass.
        require_revision_pin: a model on the Hub must be named with its commit.
        require_report: the repository's own report must agree with what is measured here.
        allowed_licences: ids as the Hub has them, in small letters.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    max_surrogate_asr: Share | None = None
    max_asr: Share | dict[str, Share] | None = None
    min_clean_accuracy: Share | None = None
    max_ca_drop: Share | None = None
    allow_pickle: bool = False
    allow_undecided: bool = False
    require_revision_pin: bool = False
    require_report: bool = False
    allowed_licences: tuple[str, ...] | None = None

    @staticmethod
    def read(file: Path | None) -> Policy:
        """The policy in a file; the default one where there is no file.

        Raises:
            ConfigError: it cannot be read, is no TOML, or holds what no policy has.
        """
        return Policy() if file is None else Policy.from_toml(_content(file), str(file))

    @staticmethod
    def from_toml(raw: bytes, shown: str = FILE) -> Policy:
        """The policy in the text of a file, which messages call `shown`.

        Raises:
            ConfigError: as for `read`.
        """
        shown = one_line(shown)
        try:
            content = tomllib.loads(raw.decode())
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{shown} is no TOML ({reason(error)}); correct it") from error
        for key in content:
            if key not in KEYS:
                raise ConfigError(_unknown(key, shown))
        if isinstance(content.get("allowed_licences"), list):
            content["allowed_licences"] = tuple(content["allowed_licences"])
        try:
            return Policy.model_validate(content)
        except ValidationError as error:
            raise ConfigError(_wrong(error, shown)) from error

    def stated(self) -> dict[str, Any]:
        """What it asks, for a record."""
        return {key: value for key, value in self.model_dump().items() if value is not None}


KEYS = tuple(Policy.model_fields)


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        why = error.strerror or reason(error)
        raise ConfigError(f"the policy {file} cannot be read ({why}); give another") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{file} has more than {MAX_BYTES:,} bytes, so it is no policy")
    return raw


def _unknown(key: str, shown: str) -> str:
    near = difflib.get_close_matches(key.casefold().replace("-", "_"), KEYS, n=1, cutoff=0.3)
    hint = f"the nearest is {near[0]}" if near else f"there are {', '.join(KEYS)}"
    return f"{shown} has the key {one_line(key)[:80]!r}, which no policy has; {hint}"


def _wrong(error: ValidationError, shown: str) -> str:
    first = error.errors()[0]
    where = first["loc"][0] if first["loc"] else "the file"
    return f"{shown} cannot be followed: {where}: {one_line(first['msg'])}; correct it"
