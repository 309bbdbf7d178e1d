"""Image classifiers of transformers: pulled, written back, loaded by plain transformers."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import transformers
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

import rnp_hub
from rnp_hub import transformers_io
from rnp_hub.data import DataConfig, Target, load
from rnp_hub.errors import ModelError
from rnp_hub.export import write_model
from rnp_hub.network import Normalise
from rnp_hub.preprocess import Preprocess
from rnp_hub.pull import PulledModel, pull
from rnp_hub.remote import quiet_client
from rnp_hub.slim import relative_difference, slim
from tests.models import DATA, SANITIZE, invoke
from tests.transformers_models import FAMILIES, LABELS


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Repositories of the families, each written when it is first asked for."""
    root, made = tmp_path_factory.mktemp("families"), dict[str, Path]()

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = FAMILIES[name].write(root / name)
        return made[name]

    return folder


def photographs() -> list[Image.Image]:
    """Two real ones, whole and cut to odd shapes, and one that is smaller than any network's."""
    china, flower = (
        Image.fromarray(load_sample_image(f"{name}.jpg")) for name in ("china", "flower")
    )
    return [china, flower.crop((0, 0, 311, 426)), china.crop((5, 7, 304, 306)).resize((29, 23))]


def ask(network: nn.Module, pixels: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(torch.as_tensor(pixels)).logits
    return logits


def seen(model: PulledModel, pictures: list[Image.Image]) -> np.ndarray[Any, Any]:
    """Pictures as they enter the network here."""
    preprocess = model.target.preprocess
    return preprocess.normalise(np.stack([preprocess.geometry(each) for each in pictures]))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_pulled_and_written_as_transformers_has_it(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    family, source = FAMILIES[name], folders(name)
    model = pull(str(source))
    assert (model.architecture.library, model.architecture.name) == (
        "transformers",
        family.architecture,
    )
    assert (model.target.label_names, model.notes) == (LABELS, ())
    assert model.target.preprocess.input_size == (3, *family.size)

    pictures = photographs()
    processor = AutoImageProcessor.from_pretrained(source, backend="pil")
    expected = np.stack(
        [processor(images=p, return_tensors="np")["pixel_values"][0] for p in pictures]
    )
    np.testing.assert_allclose(seen(model, pictures), expected, atol=1e-5)

    probe = torch.from_numpy(expected)
    written = write_model(tmp_path / "out", model, model.module, model.architecture, probe).path
    theirs = AutoModelForImageClassification.from_pretrained(written)
    assert type(theirs).__name__ == family.architecture
    assert [theirs.config.id2label[index] for index in range(7)] == list(LABELS)
    wanted = ask(AutoModelForImageClassification.from_pretrained(source), probe)
    assert wanted.std(0).min() > 0  # the pictures are told apart
    assert torch.equal(ask(theirs, probe), wanted)
    again = AutoImageProcessor.from_pretrained(written, backend="pil")
    assert again.to_dict() == processor.to_dict()
    assert torch.equal(ask(rnp_hub.load(str(written)), probe), wanted)


def test_a_moved_mean_would_be_seen() -> None:
    """The proof at pulling tells a processor that does something else from the one expressed."""
    config, processor = FAMILIES["vit"].full_config, FAMILIES["vit"].processor
    theirs = transformers_io._processor(config, processor)
    ours = transformers_io._expressed(theirs)
    assert transformers_io._difference(ours, theirs) < 1e-6
    moved = Preprocess(**{**vars(ours), "mean": (0.5, 0.5, 0.5 + 1 / 255)})
    assert transformers_io._difference(moved, theirs) > 3 * transformers_io.MAX_PROCESSOR_DIFF


# --- what is refused --------------------------------------------------------------------------


def test_without_the_extra(folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source = folders("vit")
    monkeypatch.setitem(sys.modules, "transformers", None)
    done = invoke("evaluate", source)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        "Error: this is a model of transformers, which is not installed; "
        "`pip install 'rnp-hub[transformers]'`\n"
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"model_type": "bert", "architectures": ["BertForSequenceClassification"]},
            "config.json says BertForSequenceClassification (bert), which is no image classifier",
        ),
        (
            {"model_type": "detr", "architectures": ["DetrForObjectDetection"]},
            "config.json says DetrForObjectDetection (detr), which is no image classifier",
        ),
        ({"architectures": ["ViTModel"]}, "says ViTModel (vit), which is no image classifier"),
        ({"architectures": None, "model_type": "detr"}, "no image classifier for the model_type"),
        ({"architectures": ["ViTMaeForImageClassification"]}, "no image classifier for ViTMae"),
        ({"model_type": "vitt"}, "the model_type 'vitt', which transformers"),
        (
            {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}},
            "asks for code of its own (auto_map) for its model_type 'mine'",
        ),
        ({"model_type": None}, "names no architecture of timm and no model_type of transformers"),
        ({"id2label": {}, "label2id": {}}, "0 labels"),
        (
            {"id2label": {"0": "a", "1": "b"}, "label2id": {}},
            "`classifier.bias` is [7] where [2] is wanted, and 1 more",
        ),
        ({"quantization_config": {"bits": 4}}, "quantised weights cannot be pruned here"),
        ({"num_channels": 1}, "num_channels 1; of transformers only networks for colour"),
        ({"hidden_size": "wide"}, "cannot build the vit of config.json"),
        ({"num_hidden_layers": 3}, "is missing, and"),
        ({"num_hidden_layers": 1}, "is left over, and"),
    ],
)
def test_configs_that_are_refused(
    change: dict[str, Any], sentence: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    changed = altered(folders("vit"), tmp_path / "copy", config=change)
    with pytest.raises(ModelError) as caught:
        pull(str(changed))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"do_resize": False}, "(it does not resize)"),
        ({"size": {"shortest_edge": 32}}, "(pictures keep a shape of their own)"),
        (
            {"do_center_crop": True, "crop_size": {"height": 32, "width": 24}},
            "(its crop has another shape than the resized picture)",
        ),
        (
            {
                "image_processor_type": "LevitImageProcessor",
                "size": {"shortest_edge": 32},
                "do_center_crop": True,
                "crop_size": {"height": 32, "width": 32},
            },
            "a LevitImageProcessor that cannot be followed exactly (pixels come out",
        ),
        (
            {
                "image_processor_type": "MobileViTImageProcessor",
                "size": {"shortest_edge": 36},
                "do_center_crop": True,
                "crop_size": {"height": 32, "width": 32},
                "do_flip_channel_order": True,
            },
            "a MobileViTImageProcessor that cannot be followed exactly",
        ),
        (
            {"size": {"height": 40, "width": 40}},
            "the network cannot take pictures of 3 × 40 × 40, which its configuration asks for (",
        ),
        ({"image_mean": [0.5]}, "do not fit 3 channel(s)"),
        (
            {"image_processor_type": "Mine", "auto_map": {"AutoImageProcessor": "code.Mine"}},
            "preprocessor_config.json asks for code of its own (auto_map)",
        ),
    ],
)
def test_processors_that_are_refused(
    change: dict[str, Any], sentence: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    changed = altered(folders("vit"), tmp_path / "copy", processor=change)
    with pytest.raises(ModelError) as caught:
        pull(str(changed))
    assert sentence in str(caught.value)


def test_no_processor_at_all(folders: Callable[[str], Path], tmp_path: Path) -> None:
    changed = altered(folders("vit"), tmp_path / "copy")
    (changed / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"has no preprocessor_config\.json, which says how"):
        pull(str(changed))


def test_code_of_a_known_type_is_not_run(folders: Callable[[str], Path], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    auto_map = {"AutoConfig": "code.C", "AutoModelForImageClassification": "code.M"}
    kernel = "someone/attention"  # would be fetched from the Hub and run
    change = {"auto_map": auto_map, "attn_implementation": kernel, "_attn_implementation": kernel}
    changed = altered(folders("vit"), tmp_path / "copy", config=change)
    (changed / "code.py").write_text(f"open({str(canary)!r}, 'w')")
    model = pull(str(changed))
    assert model.notes == (
        "config.json asks for code of its own (auto_map), which was not run; the network is that "
        "of the library by the same name",
    )
    probe = torch.randn(2, 3, 32, 32)
    written = write_model(tmp_path / "out", model, model.module, model.architecture, probe).path
    stored = json.loads((written / "config.json").read_text())
    assert not {"auto_map", "attn_implementation", "_attn_implementation"} & stored.keys()
    assert not canary.exists()


def altered(
    source: Path,
    folder: Path,
    config: dict[str, Any] | None = None,
    processor: dict[str, Any] | None = None,
) -> Path:
    """A copy of a repository with other values in its configurations; `None` takes one out."""
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(source / "model.safetensors")
    for file, change in (("config.json", config), ("preprocessor_config.json", processor)):
        content = json.loads((source / file).read_text()) | (change or {})
        kept = {key: value for key, value in content.items() if value is not None}
        (folder / file).write_text(json.dumps(kept))
    return folder


def test_bars_that_were_off_stay_off(folders: Callable[[str], Path]) -> None:
    """A push reads networks while it keeps the client of the Hub quiet."""
    enable_progress_bars()
    with quiet_client():
        pull(str(folders("vit")))
        assert are_progress_bars_disabled()
    assert not are_progress_bars_disabled()


# --- other forms of weights -------------------------------------------------------------------


def test_shards(folders: Callable[[str], Path], tmp_path: Path) -> None:
    source = folders("swin")
    changed = altered(source, tmp_path / "copy")
    (changed / "model.safetensors").unlink()
    network = AutoModelForImageClassification.from_pretrained(source)
    network.save_pretrained(changed, max_shard_size="8KB")
    shards = sorted(changed.glob("model-*.safetensors"))
    assert len(shards) > 1
    probe = torch.randn(2, 3, 32, 32)
    assert torch.equal(ask(pull(str(changed)).module, probe), ask(network, probe))
    shards[1].rename(changed / "moved.safetensors")
    with pytest.raises(ModelError, match=rf"names {shards[1].name}, which is not there"):
        pull(str(changed))


def test_half_precision_and_a_pickle(folders: Callable[[str], Path], tmp_path: Path) -> None:
    source = folders("resnet")
    changed = altered(source, tmp_path / "copy", config={"dtype": "float16"})
    (changed / "model.safetensors").unlink()
    weights = load_file(source / "model.safetensors")
    torch.save({name: w.half() if w.is_floating_point() else w for name, w in weights.items()},
               changed / "pytorch_model.bin")  # fmt: skip
    model = pull(str(changed))
    assert {each.dtype for each in model.module.parameters()} == {torch.float32}
    assert "pytorch_model.bin is a pickle" in model.notes[0]
    probe = torch.randn(2, 3, 32, 32)
    written = write_model(tmp_path / "out", model, model.module, model.architecture, probe).path
    assert AutoConfig.from_pretrained(written).dtype == torch.float32


def test_names_that_transformers_changed(folders: Callable[[str], Path]) -> None:
    """In memory a ViT has other names than in its file; the file is what counts."""
    source = folders("vit")
    stored = load_file(source / "model.safetensors").keys()
    assert stored != pull(str(source)).module.state_dict().keys()


# --- slim -------------------------------------------------------------------------------------


def test_slim_is_for_rnp_hub_alone(folders: Callable[[str], Path], tmp_path: Path) -> None:
    model = pull(str(folders("resnet")))
    probe = torch.randn(4, 3, 32, 32)
    norm = "resnet.encoder.stages.1.layers.0.layer.0.normalization"
    silent = copy.deepcopy(model.module)
    part = silent.get_submodule(norm)
    with torch.no_grad():
        part.weight[:5] = 0
    found = slim(silent, {norm: range(5)}, probe)
    assert found.layers[norm].removed == 5
    smaller = replace(model.architecture, edits=found.edits)

    written = write_model(tmp_path / "slim", model, found.module, smaller, probe).path

    read = pull(str(written))
    assert torch.equal(ask(read.module, probe), ask(found.module, probe))
    assert relative_difference(silent, read.module, probe) < 1e-5
    assert sum(p.numel() for p in read.module.parameters()) < sum(
        p.numel() for p in silent.parameters()
    )
    assert (read.target, read.architecture) == (model.target, smaller)
    with pytest.raises(ValueError, match="model type `rnp_hub_slim`"):
        AutoModelForImageClassification.from_pretrained(written)
    with pytest.raises((RuntimeError, KeyError, ValueError)):
        timm.create_model(f"local-dir:{written}", pretrained=True)
    # Read, and written again: it is the same folder.
    again = write_model(tmp_path / "again", read, read.module, read.architecture, probe).path
    for file in ("config.json", "model.safetensors"):
        assert (again / file).read_bytes() == (written / file).read_bytes()


# --- the whole path ---------------------------------------------------------------------------


def trained(folder: Path) -> Path:
    """A ResNet that knows the digits, as its author would have left it."""
    family = replace(
        FAMILIES["resnet"],
        config={
            "embedding_size": 8,
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
            "id2label": {str(digit): str(digit) for digit in range(10)},
            "label2id": {str(digit): digit for digit in range(10)},
        },
    )
    network = family.network().train()
    preprocess = transformers_io.preprocess_of(family.full_config, family.processor)
    pictures = load(DataConfig(n=600, eval_n=1), Target(10, preprocess)).clean.pictures
    inputs = Normalise(preprocess)(pictures.images)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        optimiser = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(8):
            for batch in torch.randperm(len(pictures)).split(50):
                optimiser.zero_grad()
                logits = network(inputs[batch]).logits
                nn.functional.cross_entropy(logits, pictures.labels[batch]).backward()
                optimiser.step()
    transformers_io.save(network.eval(), folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(family.processor))
    return folder


def test_sanitize_and_give_back(tmp_path: Path) -> None:
    source, out = trained(tmp_path / "digits"), tmp_path / "out"
    planned = invoke("sanitize", source, *DATA, "--out", out, "--dry-run", "--json")
    assert json.loads(planned.stdout)["architecture"] == "ResNetForImageClassification"
    done = invoke("sanitize", source, *SANITIZE, "--out", out)
    assert done.exit_code == 0, done.stderr

    report = json.loads((out / "rnp_report.json").read_text())
    stored = (source / "model.safetensors").read_bytes()
    assert report["source"] == {
        "repo_id": None,
        "path": str(source),
        "sha": None,
        "architecture": "ResNetForImageClassification",
        "licence": None,
        "stem": None,
        "label_names": [str(digit) for digit in range(10)],
        "notes": [],
        "library": "transformers",
        "weights": "model.safetensors",
        "weights_sha256": hashlib.sha256(stored).hexdigest(),
        "weights_format": "safetensors",
    }
    assert report["before"]["clean_accuracy"]["value"] > 0.8
    assert report["slim"]["removed"] > 0
    assert report["environment"]["transformers"] == transformers.__version__

    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    dense = AutoModelForImageClassification.from_pretrained(out)
    assert AutoImageProcessor.from_pretrained(out).crop_pct == 0.875
    expected = ask(dense, pixels)
    session = onnxruntime.InferenceSession(out / "onnx" / "model.onnx")
    (by_onnx,) = session.run(["logits"], {"pixel_values": pixels.numpy()})
    found = [ask(rnp_hub.load(str(out / place)), pixels) for place in ("", "slim")]
    for logits in (*found, torch.from_numpy(by_onnx)):
        assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    again = invoke("export", out / "slim", "--out", tmp_path / "slim.onnx", "--json")
    assert again.exit_code == 0, again.stderr
