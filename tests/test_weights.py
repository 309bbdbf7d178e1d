"""Weight files: the best is chosen, nothing in a pickle is run, what is odd is said."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from rnp_hub import weights
from rnp_hub.errors import ModelError
from rnp_hub.pull import pull
from tests.models import CONFIG, invoke, write_folder

NETWORK = CONFIG | {"architecture": "test_resnet", "model_args": None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder whose weights a test writes."""
    made = write_folder(tmp_path / "model", network(0), NETWORK)
    (made / "model.safetensors").unlink()
    return made


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model("test_resnet", num_classes=10).eval()


def tensors(seed: int) -> dict[str, torch.Tensor]:
    return dict(network(seed).state_dict())


def pulled_seed(folder: Path) -> int:
    """Which of the networks was read."""
    found = pull(str(folder)).module.state_dict()
    known = {seed: tensors(seed)["fc.weight"] for seed in range(6)}
    return next(seed for seed, each in known.items() if torch.equal(found["fc.weight"], each))


def test_the_best_file_is_taken(folder: Path) -> None:
    """The order of timm: safetensors first, then the pickles."""
    for seed, name in enumerate(("model.pth", "pytorch_model.pth", "pytorch_model.bin")):
        torch.save(tensors(seed), folder / name)
        assert pulled_seed(folder) == seed
    (folder / "pytorch_model.bin").write_bytes(b"never opened when safetensors is there")
    save_file(tensors(3), folder / "model.safetensors")
    assert pulled_seed(folder) == 3
    assert pull(str(folder)).notes == ()


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda found: found, None),
        (lambda found: OrderedDict(found), None),
        (lambda found: {"state_dict": found, "epoch": 3}, "lie under 'state_dict' in"),
        (lambda found: {"model": found, "best": 0.9}, "lie under 'model' in"),
        (lambda found: {"net": found, "acc": torch.tensor(0.9)}, "lie under 'net' in"),
        (lambda found: {f"module.{name}": w for name, w in found.items()}, "begin with 'module.'"),
        (
            lambda found: {f"module._orig_mod.{name}": w for name, w in found.items()},
            "begin with 'module._orig_mod.'",
        ),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_are_unwrapped(
    wrap: Callable[[Any], Any], note: str | None, zipped: bool, folder: Path
) -> None:
    file = folder / "pytorch_model.bin"
    torch.save(wrap(tensors(1)), file, _use_new_zipfile_serialization=zipped)
    model = pull(str(folder))
    assert torch.equal(model.module.state_dict()["fc.weight"], tensors(1)["fc.weight"])
    first, *others = model.notes
    assert first == (
        "pytorch_model.bin is a pickle, read with torch's weights-only unpickler since there is "
        "no safetensors file; ask its author for one"
    )
    assert [each for each in others if note is None or note not in each] == []
    assert bool(others) == bool(note)
    assert model.located.weights.format == "pickle"
    assert model.weights_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


class Canary:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (self.command,))


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_pickle_is_run(zipped: bool, folder: Path) -> None:
    canary = folder.parent / "canary"
    payload = {**tensors(0), "extra": Canary(f"touch {canary}")}
    file = folder / "pytorch_model.bin"
    torch.save(payload, file, _use_new_zipfile_serialization=zipped)
    done = invoke("evaluate", folder)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        f"Error: pytorch_model.bin is a pickle that would run `{os.system.__module__}.system` when "
        "it is opened, which picklescan knows as dangerous; nothing was run, do not open it "
        "elsewhere either\n"
    )
    assert not canary.exists()
    torch.load(file, weights_only=False)
    assert canary.exists()  # the payload was a real one


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda: argparse.Namespace(lr=0.1), "wants `argparse.Namespace`, which is code"),
        (lambda: nn.Linear(2, 2), "wants `torch.nn.modules.linear.Linear`, which is code"),
        (lambda: [torch.zeros(1)], "holds a list where a state dict of tensors is wanted"),
        (dict, "holds a dict where a state dict of tensors is wanted"),
        (lambda: {"fc.weight": 3.0}, "holds a float under 'fc.weight' where a tensor is wanted"),
        (lambda: {"state_dict": {"a": "b"}}, "holds a str under 'a' where a tensor is wanted"),
    ],
)
def test_pickles_that_hold_something_else(
    content: Callable[[], Any], sentence: str, folder: Path
) -> None:
    torch.save(content(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        pull(str(folder))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-500], lambda _: b"", lambda _: b"no pickle", lambda raw: raw[:40]]
)
def test_damaged_pickles(damage: Callable[[bytes], bytes], folder: Path) -> None:
    file = folder / "pytorch_model.bin"
    torch.save(tensors(0), file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ModelError, match="is no readable pickle of tensors"):
        pull(str(folder))


def test_what_picklescan_finds_unusual_is_noted(tmp_path: Path) -> None:
    """torch can read a `torch.Size` as weights; picklescan has not heard of it."""
    file = tmp_path / "pytorch_model.bin"
    torch.save({"state_dict": {"a": torch.ones(2)}, "shape": torch.Size([2])}, file)
    found, notes = weights.read_pickle(file)
    assert found["a"].tolist() == [1, 1]
    assert notes[1] == "picklescan finds unusual imports in pytorch_model.bin: torch.Size"


def test_plain_pickle_without_torch(folder: Path) -> None:
    (folder / "model.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelError, match=r"model\.pth"):
        pull(str(folder))


# --- shards -----------------------------------------------------------------------------------


def test_shards_and_their_hash(folder: Path) -> None:
    found = tensors(2)
    names = list(found)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: found[name] for name in part}, folder / file)
    index = {name: file for file, part in halves.items() for name in part}
    write_index(folder, index)
    assert pulled_seed(folder) == 2
    lines = "".join(
        f"{hashlib.sha256((folder / file).read_bytes()).hexdigest()}  {file}\n" for file in halves
    )
    assert pull(str(folder)).weights_sha256 == hashlib.sha256(lines.encode()).hexdigest()
    save_file(found, folder / "model-2.safetensors")
    with pytest.raises(ModelError, match="two files hold `"):
        pull(str(folder))


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ({"a": "../outside.safetensors"}, "names ../outside.safetensors, which is not there"),
        ({"a": "/etc/passwd"}, "names /etc/passwd, which is not there"),
        (["a"], "is no index of weight files"),
    ],
)
def test_an_index_stays_in_its_folder(index: Any, sentence: str, folder: Path) -> None:
    save_file(tensors(0), folder.parent / "outside.safetensors")
    write_index(folder, index)
    with pytest.raises(ModelError) as caught:
        pull(str(folder))
    assert sentence in str(caught.value)


def write_index(folder: Path, index: Any) -> None:
    import json

    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.parametrize(
    ("file", "library"),
    [
        ("onnx_model.onnx", "ONNX"),
        ("model-q4.gguf", "GGUF"),
        ("tf_model.h5", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
    ],
)
def test_weights_for_another_library(file: str, library: str, folder: Path) -> None:
    (folder / file).write_bytes(b"x")
    with pytest.raises(ModelError, match=rf"only weights for {library} \({file}\), which cannot"):
        pull(str(folder))


def test_weights_under_another_name(folder: Path) -> None:
    save_file(tensors(0), folder / "final.safetensors")
    with pytest.raises(ModelError, match=r"only final\.safetensors, which is under no name that"):
        pull(str(folder))


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    from rnp_hub.export import _write_tensors

    tied = nn.Module()
    tied.first, tied.second = nn.Linear(3, 3), nn.Linear(3, 3)
    tied.second.weight = tied.first.weight
    _write_tensors(tmp_path / "model.safetensors", tied)
    files = weights.WeightFiles("model.safetensors", "safetensors", ("model.safetensors",))
    read = weights.read(files, lambda name: tmp_path / name).tensors
    assert read.keys() == tied.state_dict().keys()
    assert torch.equal(read["second.weight"], tied.first.weight)
