"""A request as the routes see it, and the reply they give; no sockets in here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from io import BufferedIOBase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub import errors
from tests.hub.access import Account
from tests.hub.faults import Rule

CHUNK = 64 * 1024


class Body:
    """A request body that is still on the wire: sized or chunked, read once."""

    def __init__(self, stream: BufferedIOBase, headers: Message) -> None:
        self._stream = stream
        self._chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"
        self._left = int(headers.get("Content-Length", 0))
        self._finished = False
        self.received = 0
        self.cut_after: int | None = None

    def chunks(self) -> Iterator[bytes]:
        """Yield what has not been read yet; ConnectionCutError where a fault rule cuts it."""
        if self._finished:
            return
        for piece in self._chunked_pieces() if self._chunked else self._sized_pieces():
            self.received += len(piece)
            if self.cut_after is not None and self.received >= self.cut_after:
                raise errors.ConnectionCutError
            yield piece
        self._finished = True

    def read(self) -> bytes:
        """Return the whole body; for small ones."""
        return b"".join(self.chunks())

    def drain(self) -> None:
        """Read the rest and forget it, so that the connection can serve the next request."""
        for _ in self.chunks():
            pass

    def _sized_pieces(self) -> Iterator[bytes]:
        while self._left:
            piece = self._stream.read(min(CHUNK, self._left))
            if not piece:
                raise errors.ConnectionCutError
            self._left -= len(piece)
            yield piece

    def _chunked_pieces(self) -> Iterator[bytes]:
        while size := int(self._stream.readline().split(b";")[0] or b"0", 16):
            yield self._stream.read(size)
            self._stream.readline()
        while self._stream.readline().strip():
            pass  # trailers


@dataclass
class Request:
    """One call: where to, by whom, with what, and which fault rules are to strike it."""

    method: str
    target: str
    headers: Message
    body: Body
    caller: Account | None = None
    args: Mapping[str, str] = field(default_factory=dict)
    faults: list[Rule] = field(default_factory=list)

    @property
    def raw_path(self) -> str:
        """The path with its %-escapes: `refs%2Fpr%2F1` is one segment."""
        return urlsplit(self.target).path

    @property
    def readable_target(self) -> str:
        """Path and query without %-escapes, as fault rules and the log name it."""
        return unquote(self.target)

    @property
    def query(self) -> dict[str, list[str]]:
        """The values of each query parameter."""
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    def flag(self, name: str) -> bool:
        """Say whether a query parameter is switched on."""
        return self.query.get(name, ["false"])[0].lower() in ("true", "1")

    def json(self) -> dict[str, Any]:
        """Return the body as a JSON object, or raise a 400."""
        try:
            value = json.loads(self.body.read() or b"{}")
        except ValueError as error:
            raise errors.bad_request(f"Body is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise errors.bad_request("Body is not a JSON object")
        return value

    def fault(self, action: str) -> Rule | None:
        """Return the rule with this action that is to strike this request, if any."""
        return next((rule for rule in self.faults if rule.action == action), None)


@dataclass(frozen=True)
class FileSlice:
    """Bytes `start` to `start + length` of a file, sent without reading it whole."""

    path: Path
    start: int
    length: int

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes."""
        left = self.length
        with self.path.open("rb") as file:
            file.seek(self.start)
            while left and (piece := file.read(min(CHUNK, left))):
                left -= len(piece)
                yield piece


@dataclass
class Reply:
    """A status, headers and a body."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | FileSlice = b""

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return self.body.length if isinstance(self.body, FileSlice) else len(self.body)

    def chunks(self) -> Iterator[bytes]:
        """Yield the body."""
        if isinstance(self.body, FileSlice):
            yield from self.body.chunks()
        else:
            yield self.body


def json_reply(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """Return `value` as a JSON answer."""
    all_headers = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    return Reply(status, all_headers, json.dumps(value, default=str).encode())


def error_reply(error: errors.HubError) -> Reply:
    """Return an error the way the clients read it: in headers for HEAD, in JSON for the rest."""
    headers = {"X-Error-Message": error.message, **error.headers}
    if error.code:
        headers["X-Error-Code"] = error.code
    return json_reply({"error": error.message}, error.status, headers)
