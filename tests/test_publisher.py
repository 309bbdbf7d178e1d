"""Jobs that ask for a trusted publisher's token and get none: one sentence, whatever was asked."""

from __future__ import annotations

import pytest

from tests.hub.client import Hub
from tests.models import Run
from tests.pushing import is_refused
from tests.worker import Worker

ON_GITHUB = {"GITHUB_ACTIONS": "true", "HF_OIDC_RESOURCE": "me/published"}
NO_IDENTITY = r"this job has no identity to show the Hub \(%s\); give it the permission"
PERMISSION = NO_IDENTITY % "Cannot request an OIDC id token from GitHub Actions"
COMMANDS = {
    "model": ("scan", "org/model"),
    "data": ("scan", "demo", "--data", "org/pictures"),
    "push": ("push", "{folder}", "me/published"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_job_without_the_permission(command: str, rnp: Worker, plain_run: Run) -> None:
    words = [word.format(folder=plain_run.folder) for word in COMMANDS[command]]
    assert is_refused(rnp(*words, settings=ON_GITHUB), PERMISSION)


def test_outside_of_github(rnp: Worker) -> None:
    done = rnp("scan", "org/model", settings={"HF_OIDC_RESOURCE": "me/published"})
    assert is_refused(done, NO_IDENTITY % "HF_OIDC_RESOURCE is set but no OIDC id token.*")


def test_a_runner_that_does_not_know_the_job(hub: Hub, rnp: Worker) -> None:
    job = hub.job() | {"ACTIONS_ID_TOKEN_REQUEST_TOKEN": "another"}
    done = rnp("scan", "org/model", settings=ON_GITHUB | job)
    assert is_refused(done, NO_IDENTITY % "its runner answers 401")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_job_that_nobody_trusts(command: str, hub: Hub, rnp: Worker, plain_run: Run) -> None:
    words = [word.format(folder=plain_run.folder) for word in COMMANDS[command]]
    done = rnp(*words, settings=ON_GITHUB | hub.job(repository="me/repo"))
    assert is_refused(
        done, r"no token for me/published \(it answers 400\); add its workflow to the"
    )


def test_an_identity_that_was_made_up(rnp: Worker) -> None:
    settings = {"HF_OIDC_RESOURCE": "me/published", "HF_OIDC_ID_TOKEN": "e30.e30.e30"}
    assert is_refused(rnp("scan", "org/model", settings=settings), r"it answers 400\)")


def test_a_hub_in_trouble_distrusts_nobody(hub: Hub, rnp: Worker) -> None:
    fault = {"action": "status", "status": 503, "path": "/oauth/token"}
    with hub.faults(fault):
        done = rnp("scan", "org/model", settings=ON_GITHUB | hub.job())
    assert is_refused(done, r"cannot be reached \(status 503\)")


def test_a_token_for_another_repository(hub: Hub, rnp: Worker, plain_run: Run) -> None:
    hub.create_repo("me/published")
    hub.trust("me/published", repository="me/repo")
    settings = ON_GITHUB | hub.job(repository="me/repo")
    done = rnp("push", plain_run.folder, "me/elsewhere", settings=settings)
    sentence = "asks for a token that may write to me/published alone, not to me/elsewhere; set it"
    assert is_refused(done, sentence)
