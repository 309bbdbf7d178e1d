"""Bad input: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models import ARGS, CONFIG, DATA, command_line, invoke, listing

Words = Sequence[str | Path]


def refused(work: Path, *words: str | Path, code: int = 2) -> str:
    """The sentence with which a command refuses, having written nothing below `work`."""
    before = listing(work)
    done = invoke(*words)
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1
    assert listing(work) == before
    return sentence.removeprefix("Error: ")


@pytest.fixture
def model(plain_model: Path, tmp_path: Path) -> Path:
    """A copy of the network that a test may break."""
    return Path(shutil.copytree(plain_model, tmp_path / "model"))


def sanitize(model: Path, *more: str | Path) -> Words:
    return ("sanitize", model, *DATA, "--out", model.parent / "out", *more)


# --- models -----------------------------------------------------------------------------------


def test_a_refusal_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = command_line("sanitize", "./nowhere", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "Error: there is no model folder at ./nowhere, and it is no Hub id (org/name); "
        "give one of them\n"
    )
    assert listing(tmp_path) == []


def test_no_config(model: Path) -> None:
    (model / "config.json").unlink()
    assert "holds no config.json" in refused(model.parent, *sanitize(model))


def test_no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert "holds no model.safetensors" in refused(model.parent, *sanitize(model))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "config.json is no JSON"),
        ("[]", "holds a list where an object is wanted"),
        ("null", "holds a NoneType where an object is wanted"),
        ("\udcff", "config.json is no JSON"),
    ],
)
def test_config_that_is_no_object(model: Path, text: str, sentence: str) -> None:
    (model / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    assert sentence in refused(model.parent, *sanitize(model))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architecture": "resnet81"}, "'resnet81', which timm does not know; the nearest is res"),
        ({"architecture": None}, "names no timm architecture"),
        ({"architecture": None, "model_type": "vit"}, "it is a vit of transformers"),
        ({"model_args": {"checkpoint_path": "/x"}}, "asks for checkpoint_path in model_args"),
        ({"model_args": {"pretrained_cfg": {}}}, "asks for pretrained_cfg in model_args"),
        ({"model_args": ["channels"]}, "holds no object under 'model_args'"),
        ({"model_args": {"nonsense": 1}}, "timm cannot build 'resnet18'"),
        ({"model_args": {"layers": [1]}}, "timm cannot build 'resnet18'"),
        ({"model_args": ARGS | {"block": ""}}, "timm cannot build 'resnet18'"),
        ({"pretrained_cfg": "none"}, "holds no object under 'pretrained_cfg'"),
        ({"num_classes": "ten"}, "num_classes 'ten' must be a positive number"),
        ({"num_classes": -1}, "num_classes -1 must be a positive number"),
        ({"num_classes": 12}, "names 10 labels but the network has 12 outputs"),
        ({"num_classes": 12, "label_names": None}, "`fc.weight` is [10, 16] where [12, 16]"),
        ({"label_names": None, "id2label": {"a": "b"}}, "id2label has a key that is no number"),
        ({"model_args": {}}, "do not fit the architecture: "),
        ({"rnp_hub": {"stem": "stone"}}, "a stem 'stone'; only 'cifar' is known"),
        ({"rnp_hub": 1}, "holds no object under 'rnp_hub'"),
        ({"pretrained_cfg": {"std": [0, 0, 0]}}, "do not fit 3 channel(s)"),
    ],
)
def test_config_that_cannot_be_followed(model: Path, change: dict[str, Any], sentence: str) -> None:
    (model / "config.json").write_text(json.dumps(CONFIG | change))
    assert sentence in refused(model.parent, *sanitize(model))


def test_truncated_weights(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "may be cut short" in refused(model.parent, *sanitize(model))


def _rewrite(model: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    weights = {
        name: tensor.clone() for name, tensor in load_file(model / "model.safetensors").items()
    }
    change(weights)
    save_file(weights, model / "model.safetensors")


def test_weights_that_are_no_numbers(model: Path) -> None:
    _rewrite(model, lambda weights: weights["layer2.0.bn1.weight"].fill_(float("nan")))
    sentence = refused(model.parent, *sanitize(model))
    assert "8 of the 8 values of `layer2.0.bn1.weight` are NaN or infinite" in sentence


def test_weights_left_over(model: Path) -> None:
    _rewrite(model, lambda weights: weights.update(extra=torch.zeros(1)))
    assert "`extra` is left over" in refused(model.parent, *sanitize(model))


def test_a_model_at_chance(model: Path) -> None:
    def shuffle(weights: dict[str, Tensor]) -> None:
        weights["fc.weight"] = weights["fc.weight"].roll(1, 0)
        weights["fc.bias"] = weights["fc.bias"].roll(1, 0)

    _rewrite(model, shuffle)
    assert "which is near chance (10.0%)" in refused(model.parent, *sanitize(model))


# --- data -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--data", "./nowhere"), "there is no data at ./nowhere"),
        (("--data", "cifra10"), "'cifra10' is neither a path, nor a Hub id"),
        (("--n", "1300"), "has 1198 labelled pictures in its split 'train', fewer than the 1300"),
        (("--n", "0"), "--n 0 and --eval-n 200 are too few"),
        (("--eval-n", "0"), "--n 200 and --eval-n 0 are too few"),
        (("--seed", "-1"), "--seed -1 must be at least 0"),
    ],
)
def test_data_that_do_not_do(model: Path, words: tuple[str, ...], sentence: str) -> None:
    assert sentence in refused(model.parent, *sanitize(model, *words))


def test_data_without_labels(model: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (8, 8)).save(pictures / "1.png")
    assert "has no labels" in refused(tmp_path, *sanitize(model, "--data", pictures))


def test_parquet_without_labels(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "data.parquet"
    pq.write_table(pa.table({"image": [b""], "size": [1]}), file)
    sentence = refused(tmp_path, *sanitize(model, "--data", file))
    assert "has no labels among its columns image, size; name the column with" in sentence


def test_class_counts_that_differ(model: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "1.png")
    sentence = refused(tmp_path, *sanitize(model, "--data", tmp_path / "pictures"))
    assert "the data set has 2 classes but the model has 10 outputs" in sentence


# --- triggers and settings --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--trigger", "badnet", "--target", "0"), "the nearest is badnets"),
        (("--trigger", "badnets:sze=3", "--target", "0"), "has no parameter 'sze'; it has size"),
        (("--trigger", "badnets"), "needs the label it asks for; give --target"),
        (("--target", "3"), "--target 3 is what a trigger asks for, but there is none"),
        (("--trigger", "badnets", "--target", "12"), "label 12 does not exist"),
        (("--trigger", "badnets", "--target", "ship"), "label 'ship' is none of the model's"),
        (("--trigger", "./no.png", "--target", "0"), "there is no trigger picture at no.png"),
        (("--trigger", "sig", "--trigger", "sig", "--target", "0"), "have the same name"),
        (("--max-ca-drop", "7"), "max_ca_drop 7.0 must lie in [0, 1]"),
        (("--threshold", "-1"), "threshold -1.0 must lie in [0, 1]"),
        (("--device", "abacus"), "device 'abacus' cannot be used here"),
    ],
)
def test_settings_that_do_not_do(model: Path, words: tuple[str, ...], sentence: str) -> None:
    assert sentence in refused(model.parent, *sanitize(model, *words))


@pytest.mark.parametrize("words", [("--max-ca-drop", "7"), ("--n", "0"), ("--eval-n", "0")])
def test_dry_run_refuses_the_same_settings(model: Path, words: tuple[str, ...]) -> None:
    refused(model.parent, *sanitize(model, *words, "--dry-run"))


def test_an_unknown_recipe_is_a_usage_error(model: Path) -> None:
    done = invoke(*sanitize(model, "--recipe", "soup"))
    assert done.exit_code == 2
    assert "'soup'" in done.stderr
    assert "reference" in done.stderr
    assert not (model.parent / "out").exists()


# --- outputs ----------------------------------------------------------------------------------


def test_out_that_exists(model: Path) -> None:
    out = model.parent / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for force in ((), ("--overwrite",), ("--force",)):
        sentence = refused(model.parent, *sanitize(model, *force))
        assert sentence == f"{out} exists (rnp-hub did not make it); give another --out"
    (out / "rnp_report.json").write_text("{}")
    assert "exists (--overwrite replaces it)" in refused(model.parent, *sanitize(model))


@pytest.mark.parametrize("place", ["file/below", "file/below/deeper", "/proc/out", "/proc/a/out"])
def test_out_that_cannot_be_written(model: Path, place: str) -> None:
    (model.parent / "file").write_text("")
    out = model.parent / place
    assert f"{out} cannot be written" in refused(model.parent, *sanitize(model), "--out", out)
    refused(model.parent, "export", model, "--out", out / "model.onnx")


def test_export_needs_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sentence = refused(tmp_path, "export", "demo")
    assert sentence == "demo is no folder to write into; give --out FILE.onnx"


# --- predict ----------------------------------------------------------------------------------


def test_predict_refuses(tmp_path: Path, plain_run: Any) -> None:
    onnx, text = plain_run.folder / "onnx" / "model.onnx", tmp_path / "text.png"
    text.write_text("no picture")
    assert "there is no ONNX file at" in refused(tmp_path, "predict", tmp_path / "no.onnx", text)
    assert "is no readable ONNX file" in refused(tmp_path, "predict", text, text)
    assert "is no readable picture" in refused(tmp_path, "predict", onnx, text)
    missing = refused(tmp_path, "predict", onnx, tmp_path / "no.png")
    assert missing == f"there is no picture at {tmp_path / 'no.png'}"
