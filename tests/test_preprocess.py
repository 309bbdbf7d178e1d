"""The geometry of timm byte by byte, and the normalisation of torch in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from rnp_hub.errors import ModelError
from rnp_hub.network import Normalise
from rnp_hub.preprocess import Preprocess

SIZES = [(1, 1), (8, 8), (32, 32), (33, 32), (100, 75), (75, 100), (64, 37), (37, 211), (224, 225)]
"""(width, height): equal, one pixel off, wide, high, smaller and larger than the crop."""


def picture_of(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Noise: no two neighbouring pixels are alike, so that a shift by one shows."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(width * 1000 + height)
    pixels = noise.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels if channels > 1 else pixels[:, :, 0])


def as_timm_does(preprocess: Preprocess, picture: Image.Image) -> np.ndarray[Any, Any]:
    transform = create_transform(
        preprocess.input_size,
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
        crop_pct=preprocess.crop_pct,
        crop_mode=preprocess.crop_mode,
        normalize=False,
    )
    pixels: np.ndarray[Any, Any] = transform(picture).numpy()
    return pixels


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_pct", [0.5, 0.875, 0.9, 0.95, 1.0, 1.15])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (41, 23), (33, 35)])
def test_geometry_is_that_of_timm(
    size: tuple[int, int], mode: str, crop_pct: float, interpolation: str
) -> None:
    preprocess = Preprocess(
        (3, *size), interpolation=interpolation, crop_pct=crop_pct, crop_mode=mode
    )

    for width, height in SIZES:
        if mode == "border" and min(width, height) * max(size) < max(width, height):
            continue  # timm refuses a picture whose short edge vanishes
        picture = picture_of(width, height)
        ours, theirs = preprocess.geometry(picture), as_timm_does(preprocess, picture)
        assert ours.dtype == np.uint8
        assert ours.shape == (3, *size)
        assert np.array_equal(ours, theirs), f"{width} × {height}"


@pytest.mark.parametrize("interpolation", ["nearest", "lanczos", "box", "hamming"])
def test_rarer_interpolations_are_those_of_timm(interpolation: str) -> None:
    preprocess = Preprocess((3, 32, 32), interpolation=interpolation, crop_pct=0.9)
    picture = picture_of(75, 100)

    assert np.array_equal(preprocess.geometry(picture), as_timm_does(preprocess, picture))


def test_at_imagenet_size() -> None:
    for mode in ("center", "squash", "border"):
        preprocess = Preprocess(crop_mode=mode, crop_pct=0.95)
        for size in [(500, 375), (333, 500), (224, 224), (2, 3)]:
            picture = picture_of(*size)
            assert np.array_equal(preprocess.geometry(picture), as_timm_does(preprocess, picture))


@pytest.mark.parametrize("mode", ["center", "border"])
def test_grey_networks(mode: str) -> None:
    preprocess = Preprocess((1, 28, 28), mean=(0.5,), std=(0.5,), crop_pct=1.0, crop_mode=mode)
    picture = picture_of(40, 30, "L")

    pixels = preprocess.geometry(picture)

    assert pixels.shape == (1, 28, 28)
    assert np.array_equal(pixels, as_timm_does(preprocess, picture))


def test_border_is_filled_with_the_mean_colour() -> None:
    preprocess = Preprocess((3, 8, 8), mean=(0.2, 0.4, 1.0), crop_pct=1.0, crop_mode="border")

    pixels = preprocess.geometry(Image.new("RGB", (8, 7), (9, 9, 9)))

    # Seven rows of picture; timm puts the odd row of padding below.
    assert pixels[:, 6].tolist() == [[9] * 8] * 3
    assert pixels[:, 7].tolist() == [[51] * 8, [102] * 8, [255] * 8]


def test_a_crop_beyond_the_picture_is_black() -> None:
    preprocess = Preprocess((3, 10, 10), crop_pct=1.25)

    pixels = preprocess.geometry(Image.new("RGB", (8, 8), (200, 100, 50)))

    assert pixels[0, 1:9, 1:9].tolist() == [[200] * 8] * 8
    assert pixels[:, 0].tolist() == [[0] * 10] * 3
    assert pixels[:, :, 9].tolist() == [[0] * 10] * 3


def test_a_very_long_picture_keeps_one_pixel() -> None:
    preprocess = Preprocess((3, 8, 8), mean=(0.0, 0.0, 0.0), crop_pct=1.0, crop_mode="border")

    pixels = preprocess.geometry(Image.new("RGB", (1000, 1), (7, 7, 7)))

    assert pixels.sum(axis=(0, 2)).tolist() == [0, 0, 0, 7 * 8 * 3, 0, 0, 0, 0]


def with_palette(transparency: bytes | int | None) -> Image.Image:
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    if transparency is not None:
        picture.info["transparency"] = transparency
    return picture


@pytest.mark.parametrize(
    ("picture", "colour"),
    [
        (Image.new("L", (4, 4), 77), [77, 77, 77]),
        (Image.new("1", (4, 4), 1), [255, 255, 255]),
        (Image.new("LA", (4, 4), (77, 3)), [77, 77, 77]),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 0)), [10, 20, 30]),
        (Image.new("CMYK", (4, 4), (0, 255, 0, 0)), [255, 0, 255]),
        (with_palette(None), [10, 20, 30]),
        (with_palette(b"\xff\x00"), [10, 20, 30]),
        (with_palette(1), [10, 20, 30]),
    ],
    ids=["grey", "bits", "grey+alpha", "alpha", "print", "palette", "palette+alpha", "key"],
)
def test_every_kind_of_picture_becomes_colour(picture: Image.Image, colour: list[int]) -> None:
    pixels = Preprocess((3, 4, 4), crop_pct=1.0).geometry(picture)

    assert pixels[:, 2, 2].tolist() == colour
    assert (pixels == pixels[:, :1, :1]).all()


def test_colour_becomes_grey_by_its_luma() -> None:
    grey = Preprocess((1, 4, 4), mean=(0.5,), std=(0.5,), crop_pct=1.0)

    pixels = grey.geometry(Image.new("RGB", (4, 4), (255, 0, 0)))

    assert pixels.tolist() == [[[76] * 4] * 4]  # 0.299 × 255


def test_normalise_in_closed_form() -> None:
    preprocess = Preprocess((3, 1, 1), mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    pixels = np.array([[[[255]], [[255]], [[0]]]], np.uint8)

    assert preprocess.normalise(pixels).tolist() == [[[[1.0]], [[1.0]], [[-4.0]]]]


def test_normalise_is_that_of_torch() -> None:
    preprocess = Preprocess((3, 32, 32))
    every = np.arange(256, dtype=np.uint8).repeat(3 * 8).reshape(2, 3, 32, 32)

    ours = preprocess.normalise(every)
    theirs = Normalise(preprocess)(torch.from_numpy(every))

    assert ours.dtype == np.float32
    assert np.array_equal(ours, theirs.numpy())


def test_normalise_is_that_of_timm() -> None:
    preprocess = Preprocess((3, 32, 32), crop_pct=1.0)
    picture = picture_of(32, 32)
    transform = create_transform((3, 32, 32), crop_pct=1.0, interpolation="bicubic")

    ours = preprocess.normalise(preprocess.geometry(picture)[None])[0]

    assert np.array_equal(ours, transform(picture).numpy())


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [1, 2, 3], "crop_pct": 0.9},
        {"interpolation": "bilinear", "crop_mode": "squash", "crop_pct": None, "mean": None},
        {"input_size": (3, 448, 448), "crop_pct": 1.15, "url": "", "num_classes": 1000},
    ],
)
def test_pretrained_cfg_is_read_as_timm_reads_it(config: dict[str, Any]) -> None:
    ours = Preprocess.from_pretrained_cfg(config)

    theirs = resolve_data_config(pretrained_cfg=config or {"url": ""})
    assert {key: _plain(getattr(ours, key)) for key in theirs} == {
        key: _plain(value) for key, value in theirs.items()
    }


def _plain(value: Any) -> Any:
    return [float(item) for item in value] if isinstance(value, tuple | list) else value


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"input_size": [4, 32, 32]}, "only grey"),
        ({"input_size": [3, 0, 32]}, "1 to 4096 pixels"),
        ({"input_size": [3, 4097, 32]}, "1 to 4096 pixels"),
        ({"input_size": [3, math.inf, 32]}, "cannot be read"),
        ({"input_size": [32, 32]}, "not (channels, h, w)"),
        ({"input_size": 32}, "cannot be read"),
        ({"mean": [0.5]}, "do not fit 3 channel"),
        ({"std": [0.5, 0.5, 0.0]}, "do not fit"),
        ({"mean": ["a", "b", "c"]}, "cannot be read"),
        ({"mean": [math.nan, 0.5, 0.5]}, "do not fit"),
        ({"std": [math.nan, 0.5, 0.5]}, "do not fit"),
        ({"interpolation": "cubist"}, "'cubist'"),
        ({"interpolation": ["bicubic"]}, "unknown"),
        ({"crop_mode": "fill"}, "'fill'"),
        ({"crop_pct": -1}, "-1"),
        ({"crop_pct": 1e-9}, "must lie in [0.1, 2.0]"),
        ({"crop_pct": math.inf}, "inf"),
        ({"crop_pct": "most"}, "cannot be read"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError) as caught:
        Preprocess.from_pretrained_cfg(config)

    assert words in str(caught.value)
