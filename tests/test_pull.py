"""From a folder to a network: timm and rnp-hub read the same, slim edits are checked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import rnp_hub
from rnp_hub.errors import ModelError
from rnp_hub.pull import locate, pull
from tests.hub.client import Hub
from tests.models import CONFIG, Run, command_line, environment, write_folder

PROBE = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def logits(network: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(PROBE)
    return found


def relative_difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


def test_timm_loads_the_drop_in(plain_run: Run) -> None:
    theirs = timm.create_model(f"local-dir:{plain_run.folder}", pretrained=True).eval()
    ours = rnp_hub.load(str(plain_run.folder))
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert relative_difference(logits(theirs), logits(ours)) <= 1e-5
    assert theirs.pretrained_cfg["mean"] == CONFIG["pretrained_cfg"]["mean"]


def test_the_drop_in_differs_from_the_original(plain_run: Run, plain_model: Path) -> None:
    assert plain_run.report["prune"]["silenced"] > 0
    original = rnp_hub.load(str(plain_model))
    changed = rnp_hub.load(f"local-dir:{plain_run.folder}")
    assert relative_difference(logits(original), logits(changed)) > 1e-4


@pytest.mark.parametrize("run", ["plain_run", "cifar_run"])
def test_slim_in_a_fresh_process(run: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue(run).folder
    program = """
import sys, torch, rnp_hub
with torch.no_grad():
    torch.save(rnp_hub.load(sys.argv[1])(torch.load(sys.argv[2])), sys.argv[3])
"""
    torch.save(PROBE, tmp_path / "in.pt")
    words = [folder / "slim", tmp_path / "in.pt", tmp_path / "out.pt"]
    subprocess.run([sys.executable, "-c", program, *words], env=environment(), check=True)
    dense, slim = rnp_hub.load(str(folder)), rnp_hub.load(str(folder / "slim"))
    assert relative_difference(logits(dense), torch.load(tmp_path / "out.pt")) <= 1e-5
    removed = request.getfixturevalue(run).report["slim"]["removed"]
    fewer = sum(p.numel() for p in dense.parameters()) - sum(p.numel() for p in slim.parameters())
    # From the other nothing was cut, since it is undecided.
    assert (fewer > 0) == (removed > 0) == (run == "plain_run")


def test_the_cifar_stem_is_found_and_kept(cifar_model: Path, cifar_run: Run) -> None:
    found = pull(str(cifar_model))
    assert found.architecture.stem == "cifar"
    assert "CIFAR stem" in found.notes[0]
    assert isinstance(found.module.maxpool, torch.nn.Identity)
    again = pull(str(cifar_run.folder))
    assert again.architecture.stem == "cifar"
    assert again.notes == ()  # its config says so now
    assert cifar_run.report["source"]["stem"] == "cifar"


def test_a_plain_stem_is_left_alone(plain_model: Path) -> None:
    found = pull(str(plain_model))
    assert (found.architecture.stem, found.notes) == (None, ())
    assert isinstance(found.module.maxpool, torch.nn.MaxPool2d)


def test_licence_and_labels(plain_model: Path, tmp_path: Path) -> None:
    assert pull(str(plain_model)).target.label_names == tuple("0123456789")
    assert locate(str(plain_model)).licence == "mit"
    copy = Path(shutil.copytree(plain_model, tmp_path / "copy"))
    (copy / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n")
    assert locate(str(copy)).licence == "bsd-3-clause"


BOMB = """a: &a [mit, mit]
b: &b [*a, *a]
c: &c [*b, *b]
"""


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ("license: [mit, null, {a: b}]", "mit"),
        ("license: other\nlicense_name: my-terms", "my-terms"),
        ("license: other", "other"),
        ("license: bsd-3-clause\nmodel-index: 3\nself: 1", "bsd-3-clause"),
        ("license: [", "cc0-1.0"),
        ("\tlicense: mit", "cc0-1.0"),
        ("license: " + "[" * 3000, "cc0-1.0"),
        ("- license", "cc0-1.0"),
        ("license: !!python/object/apply:os.getcwd []", "cc0-1.0"),
        (f"{BOMB}license: *c", None),
    ],
)
def test_a_card_with_mistakes_is_no_failure(
    metadata: str, licence: str | None, plain_model: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(plain_model, tmp_path / "copy"))
    stated = CONFIG | {"pretrained_cfg": {**CONFIG["pretrained_cfg"], "license": "cc0-1.0"}}
    (copy / "config.json").write_text(json.dumps(stated))
    (copy / "README.md").write_text(f"---\n{metadata}\n---\n")
    assert locate(str(copy)).licence == licence


@pytest.mark.parametrize("text", ['{"label_names": ["\\ud800"]}', '{"a": ' + "[" * 100_000])
def test_a_config_that_cannot_be_written_again(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json is no JSON \(.*\); get it again"):
        locate(str(tmp_path))


def test_descriptions_of_labels_may_be_anything(plain_model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(plain_model, tmp_path / "copy"))
    for described, expected in ({"0": 5}, {"0": "5"}), ({}, {}):
        config = CONFIG | {"label_descriptions": described}
        (copy / "config.json").write_text(json.dumps(config))
        assert pull(str(copy)).target.descriptions == expected


def test_a_config_that_sends_timm_to_another_file(plain_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["hf_hub_filename"] = "other.bin"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"sends timm to 'other\.bin' .*past model\.safetensors"):
        pull(str(folder))


def test_model_args_may_be_null_and_model_type_goes(tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=10)
    config = CONFIG | {"architecture": "test_resnet", "model_args": None, "model_type": "resnet"}
    found = pull(str(write_folder(tmp_path / "model", network, config)))
    assert found.architecture.args == {}
    from rnp_hub.export import config_of

    written = config_of(found, found.architecture)
    assert "model_type" not in written
    assert "num_classes" not in written["model_args"]


# --- slim edits -------------------------------------------------------------------------------


def _first(config: dict[str, Any], part: str) -> Any:
    layers = config["rnp_hub"]["slim"]["layers"]
    return layers[next(name for name in layers if part in name)]


def _add_layer(config: dict[str, Any], name: str, edit: object) -> None:
    config["rnp_hub"]["slim"]["layers"][name] = edit


@pytest.mark.parametrize(
    ("tamper", "sentence"),
    [
        (lambda c: _first(c, "conv").update(outputs=[0, 99]), "keep channels that are not among"),
        (lambda c: _first(c, "conv").update(outputs=[-1, 0]), "keep channels that are not among"),
        (lambda c: _first(c, "conv").update(outputs=[1, 0]), "keep channels that are not among"),
        (lambda c: _first(c, "conv").update(outputs=[]), "keep channels that are not among"),
        (lambda c: _first(c, "conv").update(outputs=[0]), "where"),
        (lambda c: _first(c, "conv").update(outputs="no"), "edits cannot be read"),
        (
            lambda c: _first(c, "conv").update(outputs="01"),
            "outputs: Input should be a valid array",
        ),
        (
            lambda c: _first(c, "conv").update(outputs=[0, 1.5]),
            "outputs.1: Input should be a valid",
        ),
        (lambda c: _first(c, "conv").update(outputs=[True]), "outputs.0: Input should be a valid"),
        (lambda c: _first(c, "conv").update(outputs=[0, 10**30]), "channels that are not among"),
        (
            lambda c: _first(c, "conv").update(outputs=[*range(10**5)]),
            "channels that are not among",
        ),
        (lambda c: _first(c, "conv").update(inputs=[10**9]), "keep channels that are not among"),
        (lambda c: _first(c, "conv").update(standing=[10**9]), "keep channels that are not among"),
        (lambda c: _first(c, "conv").update(bias="false"), "bias: Input should be a valid boolean"),
        (lambda c: _first(c, "conv").update(bias=True), "bias` is missing"),
        (lambda c: _first(c, "conv").update(hook="x"), "hook: Unexpected keyword argument"),
        (lambda c: _first(c, "conv").update(sizes={"num_heads": 10**9}), "which it cannot be"),
        (lambda c: _first(c, "conv").update(hollow=True), "hollow it out and cut it"),
        (lambda c: _first(c, "bn").update(inputs=[0]), "which is a BatchNorm, as a layer"),
        (lambda c: _add_layer(c, "fc", {"standing": [0]}), "drop channels that they also keep"),
        (lambda c: _add_layer(c, "", {"outputs": [0]}), "a ResNet cannot be cut"),
        (lambda c: _add_layer(c, "fc.weight", {"outputs": [0]}), "`fc.weight` that does not exist"),
        (lambda c: _add_layer(c, "__class__", {"outputs": [0]}), "`__class__` that does not exist"),
        (lambda c: _add_layer(c, "layer9", {"outputs": [0]}), "`layer9` that does not exist"),
        (lambda c: _add_layer(c, "maxpool", {"outputs": [0]}), "a MaxPool2d cannot be cut"),
        (lambda c: _add_layer(c, "fc", [1]), "edits cannot be read"),
        (lambda c: c["rnp_hub"]["slim"].update(schema="x/9"), "schema 'x/9' but this version"),
        (lambda c: c["rnp_hub"]["slim"].pop("layers"), "edits cannot be read"),
        (lambda c: c["rnp_hub"].update(slim=[]), "schema [] but this version"),
        (lambda c: c["rnp_hub"].pop("slim"), "do not fit the architecture"),
    ],
)
def test_tampered_edits_are_refused(
    tamper: Callable[[dict[str, Any]], Any], sentence: str, plain_run: Run, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(plain_run.folder / "slim", tmp_path / "slim"))
    config = json.loads((folder / "config.json").read_text())
    tamper(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        rnp_hub.load(str(folder))
    assert sentence in str(caught.value)


def test_edits_and_weights_that_were_changed_together(plain_run: Run, tmp_path: Path) -> None:
    """Every shape is as the edits say, but no picture goes through."""
    folder = Path(shutil.copytree(plain_run.folder / "slim", tmp_path / "slim"))
    config = json.loads((folder / "config.json").read_text())
    _add_layer(config, "fc", {"inputs": [0, 1, 2]})
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    weights["fc.weight"] = weights["fc.weight"][:, :3].contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"cannot take pictures .* or get its slim edits again"):
        rnp_hub.load(str(folder))


def test_weights_that_are_not_those_of_the_edits(plain_run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain_run.folder / "slim", tmp_path / "slim"))
    weights = load_file(folder / "model.safetensors")
    weights["fc.weight"] = weights["fc.weight"][:, :3].contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"`fc.weight` is \[10, 3\] where \[10, 16\] is wanted"):
        rnp_hub.load(str(folder))


# --- the Hub ----------------------------------------------------------------------------------


def _load_from_hub(spec: str) -> dict[str, Any]:
    import torch

    import rnp_hub

    probe = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return {"logits": rnp_hub.load(spec)(probe).tolist()}


def test_a_repository_gives_both_networks(hub: Hub, plain_run: Run) -> None:
    files = {
        name: plain_run.folder / name
        for name in (
            "config.json",
            "model.safetensors",
            "slim/config.json",
            "slim/model.safetensors",
        )
    }
    hub.create_repo("me/sanitized")
    hub.add_files("me/sanitized", files)
    for spec, folder in (("me/sanitized@main", "."), ("me/sanitized/slim", "slim")):
        found = hub.call(_load_from_hub, token=hub.token, spec=spec)
        expected = logits(rnp_hub.load(str(plain_run.folder / folder)))
        assert relative_difference(expected, torch.tensor(found["logits"])) <= 1e-5


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [("org/name", "org/name cannot be reached ("), ("a--b/c", "a--b/c is no Hub id (")],
)
def test_a_hub_that_is_not_there(
    spec: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = command_line("evaluate", spec, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"Error: {sentence}")
    assert "Traceback" not in done.stderr


def test_networks_of_the_fixtures_know_their_digits(plain_run: Run, cifar_run: Run) -> None:
    for run in (plain_run, cifar_run):
        assert run.report["before"]["clean_accuracy"]["value"] > 0.8
