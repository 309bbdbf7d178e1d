"""An in-toto statement: these very files came through the gate.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from rnp_hub.errors import RnpHubError

TYPE: Literal["https://in-toto.io/Statement/v1"] = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Literal["https://github.com/rnp-hub/rnp-hub/gate/v1"] = (
    "https://github.com/rnp-hub/rnp-hub/gate/v1"
)
FILE = "gate.intoto.json"
"""What the statement is called in the folder that it speaks of."""

MAX_BYTES = 16 * 2**20
"""What actions/attest takes at most."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_strict = with_config(ConfigDict(extra="forbid", strict=True))


@_strict
@dataclass(frozen=True)
class Subject:
    """A file, by its path in the folder."""

    name: str
    digest: dict[Literal["sha256"], Sha256]


@_strict
@dataclass(frozen=True)
class Statement:
    """What the gate says of a folder's files.

    Attributes:
        subject: every file, in the order of their paths.
        predicate: the verdict, the rules, the digest of the gate's report, the tool, the model and
            the data.
    """

    kind: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subject: tuple[Subject, ...]
    predicateType: Literal["https://github.com/rnp-hub/rnp-hub/gate/v1"]  # noqa: N815
    predicate: dict[str, Any]

    @staticmethod
    def of(files: Mapping[str, str], predicate: Mapping[str, Any]) -> Statement:
        """A statement on files, SHA-256 by path."""
        subject = tuple(Subject(name, {"sha256": files[name]}) for name in sorted(files))
        return Statement(TYPE, subject, PREDICATE_TYPE, dict(predicate))

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 by path."""
        return {each.name: each.digest["sha256"] for each in self.subject}

    @property
    def passed(self) -> bool:
        return self.predicate.get("verdict") == "pass"

    def to_json(self) -> str:
        """As it stands in a file."""
        return _dump(_ADAPTER.dump_python(self, mode="json", by_alias=True))

    @staticmethod
    def read(file: Path) -> Statement:
        """The statement in a file.

        Raises:
            RnpHubError: there is none, or it is no statement of the gate.
        """
        if not file.is_file():
            raise RnpHubError(f"there is no {file.name} in {file.parent}; {HOW}")
        if file.stat().st_size > MAX_BYTES:
            raise RnpHubError(f"{file} is too large to be a statement; {HOW}")
        try:
            return _ADAPTER.validate_json(file.read_bytes())
        except ValidationError as error:
            raise RnpHubError(f"{file} is no statement of the gate; {HOW}") from error

    def split(self, folder: Path) -> None:
        """Write the two files that `actions/attest` makes such a statement of: `predicate.json`,
        and `subjects.sha256` in the form of `sha256sum`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "predicate.json").write_text(_dump(self.predicate), encoding="utf-8")
        lines = "".join(f"{sha256}  {name}\n" for name, sha256 in self.files.items())
        (folder / "subjects.sha256").write_text(lines, encoding="utf-8")


HOW = "`rnp-hub gate DIR --data … --attest DIR/gate.intoto.json` writes it"
_ADAPTER = TypeAdapter(Statement)


def _dump(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
