"""Who a job of GitHub Actions is, in a token that nobody else can make up, and who trusts it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from tests.hub import errors

Claims = dict[str, Any]


@dataclass
class Publishers:
    """Jobs of GitHub Actions that may ask who they are, and those that repositories trust."""

    jobs: dict[str, Claims] = field(default_factory=dict)  # by the runner's request token
    trusted: dict[str, list[Claims]] = field(default_factory=dict)  # by repository
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def signed(self, claims: Claims) -> str:
        """Return a JSON Web Token with these claims."""
        parts = [_text(json.dumps(each).encode()) for each in ({"alg": "HS256"}, claims)]
        return ".".join([*parts, self._signature(parts)])

    def claims_of(self, token: str) -> Claims:
        """Return what a token claims, or raise a 400 where GitHub did not sign it."""
        *parts, signature = token.split(".")
        if len(parts) != 2 or not hmac.compare_digest(self._signature(parts), signature):
            raise invalid_grant("the id token is not GitHub's")
        claims: Claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=="))
        return claims

    def _signature(self, parts: list[str]) -> str:
        return _text(hmac.digest(self.key, ".".join(parts).encode(), hashlib.sha256))


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def invalid_grant(why: str) -> errors.HubError:
    """Return the 400 of an exchange that is refused."""
    return errors.HubError(400, f"invalid_grant: {why}")
