"""Folders of timm networks in transformers, and the other way round."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from rnp_hub.export import write_model
from rnp_hub.pull import pull
from tests.models import CONFIG, write_folder

NAMES = tuple("abcdefghij")
STATES = {
    "input_size": [3, 48, 48],
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "interpolation": "bicubic",
    "crop_pct": 0.9,
}


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("test_resnet", num_classes=10).eval()


def config(**more: Any) -> dict[str, Any]:
    stated = {**STATES, **more.pop("pretrained_cfg", {})}
    return CONFIG | {
        "architecture": "test_resnet",
        "model_args": {"num_classes": 10, "in_chans": 3, "global_pool": "avg"},  # timm writes so
        "label_names": list(NAMES),
        "pretrained_cfg": stated,
        **more,
    }


def ask(module: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        found = module(pixels)
    logits: Tensor = found if isinstance(found, Tensor) else found.logits
    return logits


def rewritten(folder: Path, out: Path) -> Path:
    model = pull(str(folder))
    probe = torch.randn(4, *model.target.preprocess.input_size)
    return write_model(out, model, model.module, model.architecture, probe).path


@pytest.mark.parametrize(
    "stated",
    [{}, {"crop_mode": "squash"}, {"crop_mode": "border"}],
    ids=["center", "squash", "border"],
)
def test_a_timm_folder_in_transformers(stated: Mapping[str, Any], tmp_path: Path) -> None:
    """Same logits, same pixels, same labels: the image processor too is told what timm is told."""
    source = write_folder(tmp_path / "source", network(), config(pretrained_cfg=stated))
    written = rewritten(source, tmp_path / "out")

    theirs = AutoModelForImageClassification.from_pretrained(written).eval()
    assert type(theirs).__name__ == "TimmWrapperForImageClassification"
    assert tuple(theirs.config.id2label.values()) == NAMES
    photograph = Image.fromarray(load_sample_image("flower.jpg"))
    pixels = AutoImageProcessor.from_pretrained(written)(photograph)["pixel_values"]
    stored = written / "preprocessor_config.json"
    assert stored.exists() == (stated.get("crop_mode") != "border")
    if stored.exists():  # what is read first where the folder lies on the Hub
        by_file = AutoImageProcessor.from_pretrained(written, image_processor_filename=stored.name)
        assert torch.equal(by_file(photograph)["pixel_values"], pixels)
    preprocess = pull(str(written)).target.preprocess
    ours = preprocess.normalise(preprocess.geometry(photograph)[None])
    np.testing.assert_allclose(pixels.numpy(), ours, atol=1e-6)
    expected = ask(network(), pixels)
    for found in (theirs, pull(str(written)).module):
        assert torch.allclose(ask(found, pixels), expected, atol=1e-6)
    by_timm = timm.create_model(f"local-dir:{written}", pretrained=True).eval()
    assert torch.allclose(ask(by_timm, pixels), expected, atol=1e-6)


def test_what_the_original_said_of_its_own_files_goes(tmp_path: Path) -> None:
    """Other files, cut labels and code of the repository it came from are not those of ours."""
    of_their_files = {
        "hf_hub_filename": "model.safetensors", "custom_load": "hf", "label_offset": 1, "url": "http://x/y",
    }  # fmt: skip
    stated = {**of_their_files, "classifier": "fc"}
    foreign = config(pretrained_cfg=stated, auto_map={"AutoConfig": "evil/repo--code.C"})
    written = rewritten(write_folder(tmp_path / "source", network(), foreign), tmp_path / "out")

    stored = json.loads((written / "config.json").read_text())
    assert "auto_map" not in stored
    assert not of_their_files.keys() & stored["pretrained_cfg"].keys()
    assert stored["pretrained_cfg"]["std"] == STATES["std"]
    pixels = torch.randn(2, 3, 48, 48)
    by_timm = timm.create_model(f"local-dir:{written}", pretrained=True).eval()
    assert torch.equal(ask(by_timm, pixels), ask(network(), pixels))


def test_what_transformers_saved_of_timm(tmp_path: Path) -> None:
    """`model_type: timm_wrapper` and `model_args: null` are timm's network all the same."""
    source = write_folder(tmp_path / "source", network(), config(model_args=None))
    wrapped = AutoModelForImageClassification.from_pretrained(source).eval()
    wrapped.save_pretrained(tmp_path / "wrapped")
    stored = json.loads((tmp_path / "wrapped" / "config.json").read_text())
    assert (stored["model_type"], stored["model_args"]) == ("timm_wrapper", None)

    model = pull(str(tmp_path / "wrapped"))

    assert (model.architecture.library, model.architecture.name) == ("timm", "test_resnet")
    assert model.target.label_names == NAMES
    pixels = torch.randn(2, 3, 48, 48)
    assert torch.equal(ask(model.module, pixels), ask(network(), pixels))
    written = rewritten(tmp_path / "wrapped", tmp_path / "out")
    again = timm.create_model(f"local-dir:{written}", pretrained=True).eval()
    assert torch.equal(ask(again, pixels), ask(network(), pixels))


def test_the_legacy_form(tmp_path: Path) -> None:
    """Everything in one object, as timm once wrote it."""
    flat = {"architecture": "test_resnet", "num_classes": 10, **STATES, "label_names": list(NAMES)}
    source = write_folder(tmp_path / "source", network(), flat)
    model = pull(str(source))
    by_timm = timm.create_model(f"local-dir:{source}", pretrained=True).eval()
    pixels = torch.randn(2, 3, 48, 48)
    assert torch.equal(ask(model.module, pixels), ask(by_timm, pixels))
    assert model.target.label_names == NAMES
    assert model.target.preprocess.std == (0.2, 0.3, 0.4)


def test_an_altered_network_is_refused_by_transformers(cifar_model: Path, tmp_path: Path) -> None:
    """Nobody but `rnp_hub.load` knows the CIFAR stem; the others must not load half of it."""
    written = rewritten(cifar_model, tmp_path / "out")
    with pytest.raises(RuntimeError):
        AutoModelForImageClassification.from_pretrained(written)


def test_a_slim_folder_is_refused_by_transformers(plain_run: Any) -> None:
    for auto in (AutoConfig, AutoModelForImageClassification, AutoImageProcessor):
        with pytest.raises(ValueError, match=r"`?rnp_hub_slim`?|Unrecognized image processor"):
            auto.from_pretrained(plain_run.folder / "slim")
