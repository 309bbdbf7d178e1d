"""Trusted publishers: GitHub's identity tokens, and the Hub's tokens in exchange for them.

The two stand in different houses; here they share a server, so GitHub's side lies under /_github/.
"""

from __future__ import annotations

import secrets

from tests.hub import errors
from tests.hub.access import Account
from tests.hub.identity import invalid_grant
from tests.hub.messages import Reply, Request, json_reply
from tests.hub.site import Router, Site

router = Router()
LIFETIME = 3600  # seconds
GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
IDENTITY = "urn:ietf:params:oauth:token-type:id_token"


@router.on("GET", "/_github/idtoken")
def identify(site: Site, request: Request) -> Reply:
    """Tell a job who it is; only those with `id-token: write` have a token to ask with."""
    claims = site.publishers.jobs.get(request.headers.get("Authorization", "")[len("Bearer ") :])
    if claims is None:
        raise errors.HubError(401, "The request token is not known")
    (audience,) = request.query["audience"]
    issuer = "https://token.actions.githubusercontent.com"
    value = site.publishers.signed({**claims, "iss": issuer, "aud": audience})
    return json_reply({"count": len(value), "value": value})


@router.on("POST", "/oauth/token")
def exchange(site: Site, request: Request) -> Reply:
    """Give a token for one repository to a job that the repository trusts (RFC 8693)."""
    asked = request.json()
    if (asked.get("grant_type"), asked.get("subject_token_type")) != (GRANT, IDENTITY):
        raise errors.HubError(400, "unsupported_grant_type")
    claims, repo_id = site.publishers.claims_of(asked["subject_token"]), asked["resource"]
    if claims["aud"] != site.endpoint:
        raise invalid_grant("the id token is for somebody else")
    if not any(each.items() <= claims.items() for each in site.publishers.trusted.get(repo_id, ())):
        raise invalid_grant(f"{repo_id} has no such publisher")
    token = f"hf_jwt_{secrets.token_hex(16)}"
    site.accounts.add(token, Account(f"publisher of {repo_id}", only=repo_id))
    return json_reply(
        {"access_token": token, "token_type": "bearer", "expires_in": LIFETIME, "scope": ""}
    )


@router.on("POST", "/_control/jobs")
def add_job(site: Site, request: Request) -> Reply:
    """Make a job known, by the token that its runner asks with."""
    asked = request.json()
    site.publishers.jobs[asked["token"]] = asked["claims"]
    return json_reply({})


@router.on("POST", "/_control/publishers")
def trust(site: Site, request: Request) -> Reply:
    """Have a repository trust the jobs that claim all this."""
    asked = request.json()
    site.publishers.trusted.setdefault(asked["repo_id"], []).append(asked["claims"])
    return json_reply({})
