"""The ladder of exporters, smaller files, and preprocessing in the graph."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import rnp_hub
from rnp_hub.data import DataConfig, Target, load
from rnp_hub.errors import ConfigError, ProofError
from rnp_hub.network import Normalise
from rnp_hub.onnx_export import LADDER, logits, write_onnx
from rnp_hub.onnx_io import Runner, predict
from rnp_hub.onnx_preprocess import PreprocessGraph
from rnp_hub.onnx_variants import VariantConfig, write_variant
from rnp_hub.preprocess import Preprocess
from rnp_hub.pull import PulledModel, pull

TARGET = Target(4, Preprocess((3, 16, 16)))
PROBE = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


# --- the ladder -------------------------------------------------------------------------------


class Pooled(nn.Module):
    """Takes pictures of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu().mean((2, 3))


class Flat(Pooled):
    """Takes pictures of one size."""

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.linspace(-1, 1, 256).view(1, 1, 256)
        return (self.layer(x).view(-1, 4, 256) * weights).sum(2)


class Attends(Pooled):
    """Takes pictures of any size, and multiplies them by one another."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.layer(x).flatten(2)
        return (tokens @ tokens.transpose(1, 2)).mean(2) / tokens.shape[2]


class Pads(Pooled):
    """Takes pictures of any size, and makes them even."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)))


class FusedInFiveDimensions(Flat):
    """Attention over windows, in the fused form that ONNX has for four dimensions only."""

    def __init__(self) -> None:
        super().__init__()
        self.fused_attn = True

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.layer(x).view(-1, 1, 4, 2, 128).transpose(2, 3)
        if self.fused_attn:
            mixed = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        else:
            mixed = (tokens @ tokens.transpose(-2, -1) / 128**0.5).softmax(-1) @ tokens
        return mixed.square().mean((1, 2, 4))[:, :1].expand(-1, 4) * self.layer.bias


class LooksAtValues(Flat):
    """Python that decides by values, always alike: a trace can follow it, a graph cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.square().sum() >= 0 else x.mean((2, 3))


@pytest.mark.parametrize(
    ("network", "exporter", "size"),
    [
        (Pooled, "dynamo", ["height", "width"]),
        (Flat, "dynamo", [16, 16]),
        (Attends, "dynamo", [16, 16]),
        (Pads, "dynamo", [16, 16]),
        (FusedInFiveDimensions, "dynamo, fused attention off", [16, 16]),
        (LooksAtValues, "torchscript", [16, 16]),
    ],
)
def test_the_first_exporter_that_passes(
    network: type[nn.Module], exporter: str, size: list[int | str], tmp_path: Path
) -> None:
    module = network().eval()
    file = tmp_path / "model.onnx"
    record = write_onnx(file, module, TARGET, PROBE)
    assert record.exporter == exporter
    runner = Runner(file)
    assert runner.input_shape == ["batch", 3, *size]
    for batch in (1, 5):
        found, expected = runner.logits(PROBE[:batch].numpy()), logits(module, PROBE[:batch])
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert getattr(module, "fused_attn", True) is True, "what was switched off is on again"
    assert {entry.key for entry in onnx.load(file).metadata_props} == {"rnp_hub"}
    assert not told_of_the_machine(file)


def told_of_the_machine(file: Path) -> list[bytes]:
    """What stands in an ONNX file of the paths and the Python that exported it."""
    places = (Path(torch.__file__).parents[1], Path(rnp_hub.__file__).parents[1], Path.cwd())
    words = (
        b".py",
        b"site-packages",
        b"rnp_hub.",
        b"pkg.torch",
        *(str(p).encode() for p in places),
    )
    content = file.read_bytes()
    return [word for word in words if word in content]


def test_the_same_network_is_the_same_file(tmp_path: Path) -> None:
    module, files = Pooled().eval(), [tmp_path / "one.onnx", tmp_path / "two.onnx"]
    for file in files:
        write_onnx(file, module, TARGET, PROBE, notes={"source": "a commit"})
    assert files[0].read_bytes() == files[1].read_bytes()
    notes = {entry.key: entry.value for entry in onnx.load(files[0]).metadata_props}
    assert notes["source"] == "a commit", "what the model says of itself stays"


def test_the_ladder_goes_down() -> None:
    names = list(dict.fromkeys(rung.name for rung in LADDER))
    assert names == ["dynamo", "dynamo, fused attention off", "torchscript"]


# --- preprocessing in the graph -----------------------------------------------------------------


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Smooth, as photographs are."""
    grain = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(grain).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(32, 32), (90, 120), (131, 77), (40, 53), (333, 50)])
@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess((3, 32, 32)),
        Preprocess((3, 32, 32), interpolation="bilinear", crop_pct=1.0, centre="floor"),
        Preprocess((3, 24, 40), interpolation="bilinear", crop_pct=0.9, crop_mode="squash"),
        Preprocess((3, 24, 40), crop_pct=0.9),
        Preprocess((1, 32, 32), (0.5,), (0.25,), "bilinear"),
    ],
    ids=str,
)
def test_the_graph_preprocesses_as_pillow_does(
    preprocess: Preprocess, size: tuple[int, int]
) -> None:
    given = picture(*size, seed=sum(size))
    pixels = preprocess.geometry(given)[None]
    raw = torch.tensor(preprocess.pixels(given)[None])
    found = PreprocessGraph(preprocess)(raw).numpy()
    expected = preprocess.normalise(pixels)
    assert found.shape == expected.shape
    scale = 255 * np.array(preprocess.std).reshape(1, -1, 1, 1)
    levels = np.abs(found - expected) * scale
    assert levels.max() < 1.01, "more than one grey level"
    assert levels.mean() < 0.2


@pytest.mark.parametrize(
    ("preprocess", "reason"),
    [
        (Preprocess(interpolation="lanczos"), "cannot resize by 'lanczos'"),
        (Preprocess(crop_pct=1.1), "cannot pad pictures"),
        (Preprocess(crop_mode="border"), "cannot pad pictures"),
    ],
)
def test_preprocessing_that_onnx_lacks(preprocess: Preprocess, reason: str, tmp_path: Path) -> None:
    pictures = torch.zeros((4, 3, 224, 224), dtype=torch.uint8)
    config = VariantConfig(preprocessing=True)
    with pytest.raises(ConfigError, match=reason):
        write_variant(tmp_path / "f", Pooled(), Target(4, preprocess), pictures, config)
    assert not list(tmp_path.iterdir())


# --- smaller files ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(plain_model: Path) -> PulledModel:
    return pull(str(plain_model))


@pytest.fixture(scope="module")
def slices(model: PulledModel) -> tuple[Tensor, Tensor]:
    """Digits: to calibrate on, and to compare on."""
    data = load(DataConfig(n=100, eval_n=300), model.target)
    return data.clean.pictures.images, data.evaluation.pictures.images


@pytest.mark.parametrize(
    ("precision", "preprocessing", "share"),
    [("fp32", True, 1.0), ("fp16", False, 0.5), ("int8", True, 0.25)],
)
def test_variants(
    precision: str,
    preprocessing: bool,
    share: float,
    model: PulledModel,
    slices: tuple[Tensor, Tensor],
    tmp_path: Path,
) -> None:
    config = VariantConfig(precision, preprocessing, min_agreement=0.95)  # type: ignore[arg-type]
    calibration, pictures = slices
    file = tmp_path / config.file
    record = write_variant(
        file, model.module, model.target, pictures, config, calibration=calibration
    )
    weights = sum(each.numel() for each in model.module.parameters()) * 4
    graph = 110_000  # nodes and names, which a network this small has more of than weights
    assert file.stat().st_size < share * weights + graph
    inputs = Normalise(model.target.preprocess)(pictures)
    expected = logits(model.module, inputs).argmax(1)
    given = pictures.permute(0, 2, 3, 1).numpy() if preprocessing else inputs.numpy()
    assert (Runner(file).logits(given).argmax(1) == expected).mean() >= 0.95
    assert 0.95 <= record.top1_agreement <= 1
    onnx.checker.check_model(onnx.load(file), full_check=True)
    assert not told_of_the_machine(file)


def test_names_of_the_files() -> None:
    configs = [VariantConfig(), VariantConfig("int8"), VariantConfig("fp16", preprocessing=True)]
    assert [each.file for each in configs] == [
        "model.onnx",
        "model_int8.onnx",
        "model_fp16_preprocessing.onnx",
    ]
    assert [each.name for each in configs] == ["fp32", "int8", "fp16_preprocessing"]


def test_predict_with_preprocessing_in_the_graph(
    model: PulledModel, slices: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    files = [tmp_path / f"{place}.png" for place in range(8)]
    for place, file in enumerate(files):
        pixels = slices[1][place].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).resize((40 + place, 50)).save(file)
    both = []
    for config in (VariantConfig(), VariantConfig(preprocessing=True)):
        onnx_file = tmp_path / config.file
        write_variant(onnx_file, model.module, model.target, slices[1][:50], config)
        both.append(predict(onnx_file, files))
    assert [each.label for each in both[0]] == [each.label for each in both[1]]
    for one, two in zip(*both, strict=True):
        assert math.isclose(one.score, two.score, abs_tol=0.02)


def test_eight_bits_that_are_too_few(
    model: PulledModel, slices: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    calibration, pictures = slices
    noise = torch.zeros_like(calibration[:8])  # no picture of the data comes near these ranges
    config = VariantConfig("int8", min_agreement=0.999)
    with pytest.raises(ProofError, match="8 bits are too few for this network") as refusal:
        write_variant(
            tmp_path / "f", model.module, model.target, pictures, config, calibration=noise
        )
    assert str(refusal.value).endswith("use --fp16")
    with pytest.raises(ConfigError, match="--int8 takes its ranges from clean pictures"):
        write_variant(tmp_path / "f", model.module, model.target, pictures, config)
    with pytest.raises(ConfigError, match=r"--min-agreement 1\.5"):
        VariantConfig(min_agreement=1.5)
    assert not list(tmp_path.iterdir())
