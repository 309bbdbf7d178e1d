"""Models on the Hub: every way to name them, one commit for all files, each refusal a sentence."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from rnp_hub.errors import ModelError
from rnp_hub.pull import Located, name_of
from rnp_hub.repository import Address, Repository, address_of
from rnp_hub.weights import WeightFiles
from tests.hub.client import Content, Hub
from tests.models import CONFIG, ROOT, write_folder
from tests.transformers_models import FAMILIES

TINY = CONFIG | {"architecture": "test_resnet", "model_args": None}
SETTINGS = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model("test_resnet", num_classes=10).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three model folders, of networks that answer differently."""
    root = tmp_path_factory.mktemp("folders")
    return [write_folder(root / str(seed), network(seed), TINY) for seed in range(3)]


def contents(folder: Path, below: str = "") -> dict[str, Content]:
    return {below + each.name: each for each in folder.iterdir()}


def fingerprint(module: nn.Module) -> float:
    """The sum of all weights, by whatever names."""
    return sum(float(each.detach().double().sum()) for each in module.parameters())


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "address"),
    [
        ("org/model", ("org/model", "", None)),
        ("hf-hub:org/model@v1.0", ("org/model", "", "v1.0")),
        ("hf_hub:org/model", ("org/model", "", None)),
        ("org/model/slim@refs/pr/1", ("org/model", "slim", "refs/pr/1")),
        ("org/model@refs%2Fpr%2F1", ("org/model", "", "refs%2Fpr%2F1")),
        ("https://huggingface.co/org/model", ("org/model", "", None)),
        ("https://hf.co/org/model/", ("org/model", "", None)),
        ("https://huggingface.co/org/model?library=timm#usage", ("org/model", "", None)),
        ("https://huggingface.co/org/model/tree/main", ("org/model", "", "main")),
        ("https://huggingface.co/org/model/tree/v1/a/b", ("org/model", "a/b", "v1")),
        ("https://huggingface.co/org/model/tree/refs%2Fpr%2F1", ("org/model", "", "refs/pr/1")),
        (
            "https://huggingface.co/org/model/tree/refs/pr/1/slim",
            ("org/model", "slim", "refs/pr/1"),
        ),
        ("https://huggingface.co/org/model/tree/my%2Fbranch/x", ("org/model", "x", "my/branch")),
        ("https://huggingface.co/org/model/blob/main/config.json", ("org/model", "", "main")),
        (
            "https://huggingface.co/org/model/resolve/main/slim/model.safetensors?download=true",
            ("org/model", "slim", "main"),
        ),
        ("https://huggingface.co/org/model/discussions/1", None),
        ("https://huggingface.co/datasets/org/data", None),
        ("https://huggingface.co/org", None),
        ("https://example.org/org/model", None),
        ("org", None),
        ("../up/model", None),
        ("org/model/../../x", None),
        ("org/model@../../x", None),
        ("org/model@%2E%2E%2Fx", None),
        ("org/model@..%2Fx", None),
        ("https://huggingface.co/org/model/tree/main/../../x", None),
        ("https://huggingface.co/org/model/tree/..%2F..%2Fx", None),
    ],
)
def test_names(spec: str, address: tuple[str, str, str | None] | None) -> None:
    if address is None and "://" in spec:
        with pytest.raises(ModelError, match=r"is no address o"):
            address_of(spec)
    else:
        assert address_of(spec) == (None if address is None else Address(*address))


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("org/model@v1", "model"),
        ("org/model/slim", "slim"),
        ("https://huggingface.co/org/model/tree/main", "model"),
        ("https://huggingface.co/org/model/tree/refs%2Fpr%2F1/slim", "slim"),
        ("demo", "demo"),
    ],
)
def test_the_name_of_a_folder_to_write(spec: str, name: str) -> None:
    assert name_of(spec) == name


def test_an_address_is_named_by_its_repository_and_folder() -> None:
    """So that the command on a card finds the folder again."""
    place = Repository("org/model/slim", "org/model", "0" * 40, "slim", {}, None)
    weights = WeightFiles("model.safetensors", "safetensors", ())
    page = "https://huggingface.co/org/model/tree/main/slim"
    assert Located(page, place, {}, None, weights).name == "org/model/slim"
    assert Located("here", replace(place, repo_id=None), {}, None, weights).name == "here"


def fingerprints(specs: list[list[str | None]]) -> list[Any]:
    from rnp_hub.pull import pull

    found = []
    for spec, revision in specs:
        model = pull(str(spec), revision)
        total = sum(float(each.detach().double().sum()) for each in model.module.parameters())
        found.append([total, model.located.sha])
    return found


def visit(specs: list[list[str | None]], only_look_at: str) -> list[Any]:
    from rnp_hub.pull import locate

    return [fingerprints(specs), locate(only_look_at).sha]


@dataclass(frozen=True)
class Visit:
    """What a process made of the Hub, and the cache it left."""

    home: Path
    commits: list[str]
    wanted: list[list[Any]]
    found: list[list[Any]]
    fetched: list[str]


@pytest.fixture(scope="module")
def visited(hub: Hub, folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """`me/many`, whose first commit is also a branch and a pull request, and others."""
    work = tmp_path_factory.mktemp("visit")
    hub.create_repo("me/many")
    first = hub.add_files("me/many", contents(folders[0]))
    login = {"Authorization": f"Bearer {hub.token}"}
    api = "api/models/me/many"
    request = json.dumps({"title": "t", "description": "", "pullRequest": True}).encode()
    for path, body in ((f"{api}/branch/my%2Fbranch", b"{}"), (f"{api}/discussions", request)):
        assert hub.fetch(path, headers=login, method="POST", body=body).status == 200
    second = hub.add_files("me/many", {**contents(folders[1]), **contents(folders[2], "slim/")})
    vit = FAMILIES["vit"]
    hub.create_repo("me/vit")
    of_vit = hub.add_files("me/vit", contents(vit.write(work / "vit")))
    hub.create_repo("me/looked-at")
    looked_at = hub.add_files("me/looked-at", contents(folders[0]))

    totals = [fingerprint(network(seed)) for seed in range(3)]
    old, new, below = [totals[0], first], [totals[1], second], [totals[2], second]
    page = f"{hub.endpoint}/me/many"
    wanted: list[tuple[str, str | None, list[Any]]] = [
        ("me/many", None, new),
        ("hf-hub:me/many@main", None, new),
        ("me/many/slim", None, below),
        (f"me/many@{first}", None, old),
        ("me/many@refs/pr/1", None, old),
        ("me/many", "refs%2Fpr%2F1", old),
        ("me/many", "my/branch", old),
        (page, None, new),
        (f"{page}/tree/refs%2Fpr%2F1", None, old),
        (f"{page}/tree/my%2Fbranch", None, old),
        (f"{page}/tree/main/slim", None, below),
        (f"{page}/blob/{first}/model.safetensors", None, old),
        ("https://huggingface.co/me/many/tree/main", None, new),
        ("me/vit", None, [fingerprint(vit.network()), of_vit]),
    ]
    with hub.recording() as exchanges:
        found, sha = hub.call(
            visit,
            uses=[fingerprints],
            settings=SETTINGS | {"HF_HOME": str(work / "home")},
            specs=[[spec, revision] for spec, revision, _ in wanted],
            only_look_at="me/looked-at",
        )
    assert sha == looked_at
    fetched = [each["path"] for each in exchanges if "/resolve/" in each["path"]]
    commits = [first, second, of_vit, looked_at]
    return Visit(work / "home", commits, [each for *_, each in wanted], found, fetched)


def test_revisions_and_addresses(visited: Visit) -> None:
    assert [sha for _, sha in visited.found] == [sha for _, sha in visited.wanted]
    totals = [total for total, _ in visited.wanted]
    assert [total for total, _ in visited.found] == pytest.approx(totals)


def test_every_file_is_asked_for_by_commit(visited: Visit) -> None:
    assert {path.split("/")[4] for path in visited.fetched} == {*visited.commits}


def test_a_branch_that_moves_while_it_is_read(hub: Hub, folders: list[Path]) -> None:
    hub.create_repo("org/moving")
    before = hub.add_files("org/moving", contents(folders[0]))
    result: list[Any] = []
    with hub.faults({"action": "delay", "seconds": 1, "path": "config.json", "times": 1}):
        reader = threading.Thread(
            target=lambda: result.append(
                hub.call(fingerprints, settings=SETTINGS, specs=[["org/moving", None]])
            )
        )
        reader.start()
        while not any("/api/models/org/moving" in each["path"] for each in hub.log()):
            time.sleep(0.05)
        after = hub.add_files("org/moving", contents(folders[1]))
        assert not result
        reader.join()
    assert hub.head("org/moving") == after != before
    ((value, sha),) = result[0]
    assert sha == before
    assert value == pytest.approx(fingerprint(network(0)))


# --- refusals ---------------------------------------------------------------------------------


def outcomes(cases: list[list[str | None]]) -> list[Any]:
    import os

    from typer.testing import CliRunner

    from rnp_hub.cli.app import app

    found = []
    for spec, token in cases:
        os.environ.pop("HF_TOKEN", None)
        if token:
            os.environ["HF_TOKEN"] = token
        done = CliRunner().invoke(app, ["evaluate", str(spec)], catch_exceptions=False)
        found.append([done.exit_code, done.stdout, done.stderr])
    return found


def lightly(cases: list[list[str | None]]) -> list[Any]:
    """The outcomes, and which heavy libraries they took that are not for everyone."""
    import sys

    found = outcomes(cases)
    return [found, [name for name in ("transformers", "picklescan") if name in sys.modules]]


CONFIGURATIONS: dict[str, Any] = {
    "text": {"model_type": "bert", "architectures": ["BertForSequenceClassification"]},
    "detector": {"model_type": "detr", "architectures": ["DetrForObjectDetection"]},
    "features": TINY | {"num_classes": 0},
    "unknown": TINY | {"architecture": "resnet81"},
    "code": {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}},
    "plain": TINY,
}

WITHOUT_TOKEN = {
    "org/nowhere": "the Hub has no model 'org/nowhere' that you may read; check the name, or log "
    "in with `hf auth login`",
    "me/hidden": "the Hub has no model 'me/hidden' that you may read; check the name, or log in "
    "with `hf auth login`",
    "me/fenced": "me/fenced is gated; ask for access at {hub}/me/fenced and log in with "
    "`hf auth login`",
    "a--b/c": "a--b/c is no Hub id (",
    "org/plain@v9": "org/plain has no revision 'v9'; look it up there",
    "org/plain/slim": "org/plain/slim holds no config.json; it must be a model in the layout of",
    "org/forbidden": "your token may not read org/forbidden (",
    "org/empty": "org/empty holds no config.json; it must be a model in the layout of timm or "
    "transformers",
    "org/diffusers": "org/diffusers is a pipeline of diffusers, which makes pictures; give an "
    "image classifier",
    "org/text": "config.json says BertForSequenceClassification (bert), which is no image "
    "classifier; give a model whose architecture is …ForImageClassification, or one of timm",
    "org/detector": "config.json says DetrForObjectDetection (detr), which is no image classifier",
    "org/features": "config.json's num_classes is 0: this test_resnet gives features, not classes; "
    "give an image classifier",
    "org/unknown": "config.json names the architecture 'resnet81', which timm does not know; the "
    "nearest is ",
    "org/code": "config.json asks for code of its own (auto_map) for its model_type 'mine', and "
    "code from a repository is never run; give a model of a type that transformers has",
    "org/plain": "org/plain holds no model.safetensors, only weights for ONNX (onnx/model.onnx), "
    "which cannot be pruned here; give the PyTorch model they were made from",
    "https://example.org/org/plain": "https://example.org/org/plain is no address on the Hub (",
    "{hub}/datasets/org/plain": "{hub}/datasets/org/plain is no address of a model; it must read "
    "{hub}/org/name, with /tree/REVISION where you wish",
    "just-a-name": "there is no model folder at just-a-name, and it is no Hub id (org/name); give "
    "one of them",
}

WITH_TOKEN = {
    ("me/fenced", "stranger"): "me/fenced is gated and your token has no access to it; ask for "
    "access at {hub}/me/fenced",
    ("me/hidden", "stranger"): "the Hub has no model 'me/hidden' that you may read; check the name",
    ("org/empty", "nobody"): "the Hub does not know your token (",
}


@pytest.fixture(scope="module")
def refusing(hub: Hub) -> Hub:
    """The Hub with a repository for each refusal."""
    for name, config in CONFIGURATIONS.items():
        hub.create_repo(f"org/{name}")
        weights = "onnx/model.onnx" if name == "plain" else "model.safetensors"
        hub.add_files(f"org/{name}", {"config.json": json.dumps(config), weights: b"x" * 100})
    hub.create_repo("org/empty")
    hub.create_repo("org/diffusers")
    hub.add_files("org/diffusers", {"model_index.json": "{}"})
    hub.create_repo("me/hidden", private=True)
    hub.create_repo("me/fenced", gated="manual")
    hub.add_files("me/fenced", {"config.json": json.dumps(TINY), "model.safetensors": b"x"})
    hub.add_user("stranger")
    return hub


def test_each_refusal_is_one_sentence(refusing: Hub) -> None:
    hub = refusing
    expected = [((spec, None), text) for spec, text in WITHOUT_TOKEN.items()]
    expected += [((spec, f"hf_{user}_write"), text) for (spec, user), text in WITH_TOKEN.items()]
    cases = [[spec.format(hub=hub.endpoint), token] for (spec, token), _ in expected]
    no_rights = {"action": "status", "status": 403, "path": "models/org/forbidden", "times": None}
    with hub.faults(no_rights):
        found = hub.call(outcomes, settings=SETTINGS, cases=cases)
    for ((spec, _), text), (code, stdout, stderr) in zip(expected, found, strict=True):
        assert (code, stdout) == (2, ""), spec
        assert stderr.startswith("Error: " + text.format(hub=hub.endpoint)), (spec, stderr)
        assert len(stderr.splitlines()) == 1, stderr


def test_an_endpoint_that_is_no_hub(refusing: Hub) -> None:
    settings = SETTINGS | {"HF_ENDPOINT": f"{refusing.endpoint}/wrong"}
    cases = [["org/plain", None]]
    ((code, stdout, stderr),), imported = refusing.call(
        lightly, uses=[outcomes], settings=settings, cases=cases
    )
    assert imported == []
    assert (code, stdout) == (2, "")
    assert stderr == (
        f"Error: org/plain cannot be reached (status 404) at {refusing.endpoint}/wrong; check the "
        "network and HF_ENDPOINT, or give a folder\n"
    )


# --- the cache --------------------------------------------------------------------------------


def test_offline(hub: Hub, visited: Visit, folders: list[Path]) -> None:
    first, second, *_ = visited.commits
    hub.add_files("me/many", contents(folders[2]))  # nobody offline can know
    read = ["me/many", f"me/many@{first}", "me/many/slim"]
    refused = ["org/other", "me/many@v1", "me/vit/slim", "me/looked-at"]
    with hub.recording() as exchanges:
        pulled, sentences = hub.call(
            offline,
            uses=[fingerprints, outcomes],
            settings=SETTINGS | {"HF_HOME": str(visited.home), "HF_HUB_OFFLINE": "1"},
            read=read,
            refused=refused,
        )
    assert exchanges == []
    assert [sha for _, sha in pulled] == [second, first, second]
    totals = [fingerprint(network(seed)) for seed in (1, 0, 2)]
    assert [total for total, _ in pulled] == pytest.approx(totals)
    holds = f"the cache ({visited.home / 'hub'}) holds no"
    wanted = [
        f"{holds} org/other at main; run once without it, or give a folder",
        f"{holds} me/many at v1; run once without it, or give a folder",
        f"{holds} me/vit at main; run once without it, or give a folder",
        "the cache holds no weights of me/looked-at; run once without it",
    ]
    for sentence, (code, stdout, stderr) in zip(wanted, sentences, strict=True):
        assert (code, stdout) == (2, "")
        assert stderr == f"Error: HF_HUB_OFFLINE is set and {sentence}\n"


def offline(read: list[str], refused: list[str]) -> list[Any]:
    return [fingerprints([[spec, None] for spec in read]), outcomes([[s, None] for s in refused])]


def test_a_file_of_another_size_than_the_hub_says(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    repository = Repository("org/x", "org/x", "0" * 40, None, {"model.safetensors": 9}, tmp_path)
    with pytest.raises(ModelError) as caught:
        repository.path("model.safetensors")
    assert str(caught.value) == (
        "model.safetensors of org/x has 5 bytes where the Hub says 9; the copy is damaged, delete "
        f"{tmp_path / 'model.safetensors'} and try again"
    )
