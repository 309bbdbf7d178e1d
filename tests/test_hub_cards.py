"""The rules for README.md on the loopback Hub."""

from __future__ import annotations

from typing import Any

import pytest

from tests.hub import cards
from tests.hub.client import Hub

INVALID_CARDS = {
    "license: WTF-1\n": '"license" must be one of the licence ids of the Hub, not "WTF-1"',
    "tags: [a, null]\n": '"tags[1]" must be a string',
    "datasets: {a: b}\n": '"datasets" must be a string or a list of strings',
    "pipeline_tag: [a]\n": '"pipeline_tag" must be a string',
    "base_model_relation: cousin\n": (
        '"base_model_relation" must be one of adapter, finetune, merge, quantized'
    ),
    "model-index: {name: a}\n": '"model-index" must be a list',
    "model-index: [{name: a}]\n": '"model-index[0].results" is required',
    "model-index: [{name: a, results: [{task: {type: t}, metrics: []}]}]\n": (
        '"model-index[0].results[0].dataset.type" is required'
    ),
    "- a\n": "YAML metadata must be a mapping",
}
VALID_CARD = """---
license: apache-2.0
base_model: org/model
base_model_relation: finetune
model-index:
- name: a
  results:
  - task: {type: image-classification}
    dataset: {type: cifar10, name: CIFAR-10}
    metrics: [{type: accuracy, value: 0.0}]
---
"""


@pytest.mark.parametrize(("metadata", "message"), INVALID_CARDS.items())
def test_invalid_card_is_named(metadata: str, message: str) -> None:
    assert cards.errors_in(f"---\n{metadata}---\n# Title\n")[0] == message


def test_card_without_metadata_is_warned_about() -> None:
    assert cards.errors_in("# Title\n") == []
    assert cards.warnings_about("# Title\n") == ["empty or missing yaml metadata in repo card"]
    assert cards.errors_in(VALID_CARD) == []
    assert cards.warnings_about(VALID_CARD) == []


def upload_cards(repo_id: str, valid: str, invalid: str) -> dict[str, Any]:
    from huggingface_hub import HfApi, ModelCard
    from huggingface_hub.utils._http import get_session

    api = HfApi()

    def upload(text: str) -> bool:
        made = api.upload_file(
            path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=repo_id
        )
        return bool(made.oid)

    payload = b'{"key": "header", "value": {"summary": "past the check"}}\n' + (
        b'{"key": "file", "value": {"path": "README.md", "content": "LS0tCi0gYQotLS0K"}}\n'
    )
    url = f"{api.endpoint}/api/models/{repo_id}/commit/main"
    past_the_check = get_session().post(url, content=payload, headers=api._build_hf_headers())
    try:
        upload(invalid)
        refused = ""
    except ValueError as error:
        refused = str(error)
    valid_card = upload(valid)
    data = api.model_info(repo_id).card_data
    ModelCard(valid).validate()
    return {
        "refused": refused,
        "past_the_check": [past_the_check.status_code, past_the_check.json()["error"]],
        "valid": valid_card,
        "accuracy": data and data.eval_results and data.eval_results[0].metric_value,
    }


def test_client_learns_why_a_card_is_refused(hub: Hub) -> None:
    hub.create_repo("me/card")

    seen = hub.call(
        upload_cards,
        token=hub.token,
        repo_id="me/card",
        valid=VALID_CARD,
        invalid="---\ntags: [null]\n---\n",
    )

    assert seen["refused"] == 'Invalid metadata in README.md.\n- "tags[0]" must be a string'
    explained = "Invalid metadata in README.md: YAML metadata must be a mapping"
    assert seen["past_the_check"] == [400, explained]
    assert seen["valid"] is True
    assert seen["accuracy"] == 0.0
    assert hub.read("me/card", "README.md").decode() == VALID_CARD
