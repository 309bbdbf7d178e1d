"""Trusted publishers: a job of GitHub Actions proves which workflow it is and gets a token for it.

Where `HF_OIDC_RESOURCE` names a repository, huggingface_hub 1.19 or newer does all of it: it asks
the runner for an identity token (`ACTIONS_ID_TOKEN_REQUEST_URL`), exchanges it at the Hub's
`/oauth/token` for one that may write to that repository for an hour, and keeps that in memory. It
does so before the first request of any kind, so what is here tells a failure of the exchange from
one of the request that needed the token.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from rnp_hub.errors import causes, identity_errors, reason

REFUSED = frozenset({400, 401, 403, 404})
"""Answers that trying again does not change."""


def resource() -> str | None:
    """The repository that the job asks for a token for; `None` where it asks for none."""
    return os.environ.get("HF_OIDC_RESOURCE") or None


def refusal(error: BaseException) -> str | None:
    """One sentence where the error, or its cause, means that no token was given; else `None`."""
    asked = resource()
    if asked is None:
        return None
    for link in causes(error):
        if isinstance(link, identity_errors()):
            return _no_identity(reason(link).partition(". ")[0])
        status, path = _answered(link)
        if status in REFUSED and path == _runners_path():
            return _no_identity(f"its runner answers {status}")
        if status in REFUSED and path.endswith("/oauth/token"):
            return (
                f"the Hub gives this job no token for {asked} (it answers {status}); add its "
                "workflow to the trusted publishers in the settings of that repository, which must "
                "exist, or give a token"
            )
    return None


def _no_identity(why: str) -> str:
    return (
        f"HF_OIDC_RESOURCE is set, but this job has no identity to show the Hub ({why}); give it "
        "the permission `id-token: write`, or unset HF_OIDC_RESOURCE"
    )


def _answered(error: BaseException) -> tuple[int, str]:
    """Status of the answer behind an error, and the path that was asked for; 0 where none came."""
    response = getattr(error, "response", None)
    if response is None:
        return 0, ""
    return int(response.status_code), str(response.request.url.path)


def _runners_path() -> str:
    return urlsplit(os.environ.get("ACTIONS_ID_TOKEN_REQUEST_URL", "")).path
