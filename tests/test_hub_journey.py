"""From a repository to a repository: pulled, sanitized, pushed, and loaded again by others.

Every kind of `tests.kinds` goes the whole way through a real HTTP Hub with unmodified clients; what
each came to is docs/repositories.md, which the slow run of this file writes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub.client import Hub
from tests.hub.fixture import running_hub
from tests.kinds import KINDS
from tests.models import DATA, ROOT
from tests.shared_files import shared

QUICK = ("timm-safetensors", "resnet")
"""One of each library; the other kinds take minutes together."""

RULE = ("--recipe", "reference", "--max-ca-drop", "0.2")
"""The recipe that prunes until accuracy stops it, so that there is something to remove."""

PAGE = ROOT / "docs/repositories.md"
WEIGHTS = "model.safetensors"


def top_1(repo_id: str, revision: str, loaders: list[str], data: str) -> dict[str, list[int]]:
    """What each way to load a repository says of 200 pictures; runs in a process of its own."""
    import numpy as np
    import onnxruntime
    import torch
    from huggingface_hub import hf_hub_download

    import rnp_hub
    from rnp_hub.data import DataConfig, load
    from rnp_hub.network import Normalise, logits_of
    from rnp_hub.pull import pull

    target = pull(repo_id, revision).target
    config = DataConfig(data, n=200, eval_n=200, seed=3)
    inputs = Normalise(target.preprocess)(load(config, target).evaluation.pictures.images)

    def onnx() -> np.ndarray:
        file = hf_hub_download(repo_id, "onnx/model.onnx", revision=revision)
        return onnxruntime.InferenceSession(file).run(None, {"pixel_values": inputs.numpy()})[0]

    def timm() -> torch.nn.Module:
        from timm import create_model

        return create_model(f"hf-hub:{repo_id}@{revision}", pretrained=True)

    def transformers() -> torch.nn.Module:
        from transformers import AutoModelForImageClassification

        return AutoModelForImageClassification.from_pretrained(repo_id, revision=revision)

    ways = {
        "rnp_hub": lambda: rnp_hub.load(repo_id, revision),
        "rnp_hub (slim)": lambda: rnp_hub.load(f"{repo_id}/slim", revision),
        "timm": timm,
        "transformers": transformers,
    }
    found = {"onnxruntime": onnx().argmax(1).tolist()}
    for name in loaders:
        with torch.no_grad():
            found[name] = logits_of(ways[name]().eval()(inputs)).argmax(1).tolist()
    return found


def sanitize_and_push(hub: Hub, work: Path, model: str, *words: str) -> dict[str, Any]:
    """The command of the README in a process of its own; the report that was pushed."""
    target = published(model)
    done = subprocess.run(
        [sys.executable, "-m", "rnp_hub", "sanitize", model, *words, "--push-to", target],
        cwd=work,
        env=hub.env(hub.token, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr
    pushed: dict[str, Any] = json.loads(hub.read(target, "rnp_report.json"))
    return pushed


def published(model: str) -> str:
    return f"me/{model.partition('/')[2]}-rnp"


def agree(hub: Hub, repo_id: str, loaders: list[str], data: str = "digits") -> list[str]:
    """Load it in every way, each cache empty; the ways, if all name the same 200 labels."""
    found = hub.call(
        top_1,
        token=hub.token,
        settings={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        repo_id=repo_id,
        revision=hub.head(repo_id),
        loaders=loaders,
        data=data,
    )
    expected = found["onnxruntime"]
    assert len(expected) == 200
    assert len(set(expected)) > 5, "a network that says the same of everything agrees with all"
    assert {name: labels == expected for name, labels in found.items()} == dict.fromkeys(
        found, True
    )
    return sorted(found)


@pytest.fixture(scope="module")
def rows() -> Iterator[dict[str, str]]:
    """Collects the table; the page is written where every kind was run."""
    found: dict[str, str] = {}
    yield found
    if found.keys() == KINDS.keys():
        PAGE.write_text(PREFACE + "".join(found[name] for name in KINDS), encoding="utf-8")


PREFACE = """# Kinds of repositories

Written by `make bench` (tests/test_hub_journey.py), not by hand. Each row is a small network that
was trained on handwritten digits, uploaded to a Hub on loopback, sanitized and pushed by one
command, and loaded again by another process with an empty cache. Every way to load it named the
same label for each of 200 pictures. What was silenced but not removed carries the constants of
others; none stayed as a zero.

| Kind | Pulled as | Filters silenced | Removed | Slim differs by | Pushed | Loaded again with |
|---|---|---|---|---|---|---|
"""


def row_of(title: str, report: dict[str, Any], loaded: list[str]) -> str:
    source, prune, slim = report["source"], report["prune"], report["slim"]
    cells = [
        title,
        f"{source['architecture']}, {source['weights']}",
        f"{prune['silenced']} of {prune['filters']}",
        slim["removed"],
        f"{slim['max_rel_diff']:.0e}",
        "one commit",
        ", ".join(loaded),
    ]
    return f"| {' | '.join(map(str, cells))} |\n"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in KINDS]
)
def test_every_kind_goes_there_and_back(
    hub: Hub, tmp_path: Path, rows: dict[str, str], name: str
) -> None:
    kind, model = KINDS[name], f"kinds/{name}"
    kind.write(tmp_path / "source")
    hub.create_repo(model)
    sha = hub.add_files(model, {path.name: path for path in (tmp_path / "source").iterdir()})

    report = sanitize_and_push(hub, tmp_path, model, *DATA, *RULE)

    assert (report["source"]["repo_id"], report["source"]["sha"]) == (model, sha)
    assert report["slim"]["kept"] == 0
    assert report["slim"]["removed"] > 0
    assert len(hub.history(published(model))) == 2, "one commit on top of the empty repository"
    ways = ["rnp_hub", "rnp_hub (slim)"]
    if kind.library:
        ways += ["transformers", *(["timm"] if kind.library == "timm" else [])]
    rows[name] = row_of(kind.title, report, agree(hub, published(model), ways))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_backdoored_network_of_cifar10(tmp_path: Path) -> None:
    """Someone else's network and the real pictures, under the names they have on the Hub."""
    zoo, pictures = shared("zoo/badnets-r18"), shared("datasets/uoft-cs/cifar10/plain_text")
    attack = ["--poisoned", str(zoo / "poisoned.parquet"), "--target"]
    attack += [str(json.loads((zoo / "truth.json").read_text())["target"])]
    with running_hub(tmp_path) as hub:
        hub.create_repo("org/model")
        hub.add_files("org/model", {name: zoo / name for name in ("config.json", WEIGHTS)})
        hub.create_repo("uoft-cs/cifar10", repo_type="dataset")
        files = {f"plain_text/{path.name}": path for path in pictures.glob("*.parquet")}
        data = hub.add_files("uoft-cs/cifar10", {**files}, repo_type="dataset")
        words = ["--data", "cifar10", "--n", "500", "--eval-n", "2000", *attack]
        words += ["--recipe", "reference"]  # the default recipe goes this way in test_action.py
        report = sanitize_and_push(hub, tmp_path, "org/model", *words)
        agree(hub, "me/model-rnp", ["rnp_hub", "rnp_hub (slim)"], "cifar10")

    before, after = report["before"], report["after"]
    assert (report["source"]["stem"], report["data"]["sha"]) == ("cifar", data)
    assert (report["data"]["n"], report["eval"]["n"]) == (500, 2000)
    assert before["attack_success_rate"]["poisoned"]["value"] > 0.95
    assert after["attack_success_rate"]["poisoned"]["value"] <= 0.10
    assert before["clean_accuracy"]["value"] - after["clean_accuracy"]["value"] <= 0.03
    assert (report["slim"]["kept"], report["slim"]["max_rel_diff"] <= 1e-9) == (0, True)


def test_the_page_speaks_of_every_kind() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    titles = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    assert titles[1:] == [kind.title for kind in KINDS.values()]
