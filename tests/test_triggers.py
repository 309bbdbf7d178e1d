"""Known triggers, pixel by pixel."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rnp_hub.errors import TriggerError
from rnp_hub.network import ImageSet
from rnp_hub.triggers import NAMES, Poisoned, parse, stamp


def grey(value: int, height: int = 6, width: int = 6, count: int = 1, channels: int = 3) -> Tensor:
    return torch.full((count, channels, height, width), value, dtype=torch.uint8)


def refusal(spec: str, images: Tensor | None = None) -> str:
    with pytest.raises(TriggerError) as caught:
        parse(spec)(grey(0) if images is None else images)
    return str(caught.value)


# --- badnets --------------------------------------------------------------------------------


def test_badnets_is_a_checkerboard_at_the_lower_right() -> None:
    before = grey(9, count=2)

    laid = parse("badnets")(before)

    expected = [
        [9, 9, 9, 9, 9, 9],
        [9, 9, 9, 9, 9, 9],
        [9, 9, 9, 9, 9, 9],
        [9, 9, 9, 0, 255, 0],
        [9, 9, 9, 255, 0, 255],
        [9, 9, 9, 0, 255, 0],
    ]
    assert laid.dtype == torch.uint8
    assert laid.tolist() == [[expected] * 3] * 2
    assert before.tolist() == grey(9, count=2).tolist(), "the clean pictures stay as they were"


@pytest.mark.parametrize(
    ("spec", "row", "column", "size"),
    [
        ("badnets:size=2", 3, 5, 2),
        ("badnets:size=2,row=0,column=0", 0, 0, 2),
        ("badnets:size=2,row=1,column=4", 1, 4, 2),
        ("badnets:row=-2,column=-3,size=2", 2, 3, 2),
        ("badnets:size=1,row=4", 4, 6, 1),
        ("badnets:size=5,column=0", 0, 0, 5),
    ],
)
def test_badnets_stands_where_it_was_put(spec: str, row: int, column: int, size: int) -> None:
    laid = parse(spec)(grey(9, height=5, width=7))[0, 0]

    changed = (laid != 9).nonzero()
    assert changed.amin(0).tolist() == [row, column]
    assert changed.amax(0).tolist() == [row + size - 1, column + size - 1]
    assert len(changed) == size * size


@pytest.mark.parametrize(
    "parameters",
    ["size=7", "size=0", "size=-2", "row=4", "column=5", "row=-5", "column=-9"],
)
def test_badnets_that_does_not_fit(parameters: str) -> None:
    message = refusal(f"badnets:{parameters}")

    assert message.startswith("a badnets patch of")
    assert message.endswith("does not fit pictures of 6 × 6")


# --- blend ----------------------------------------------------------------------------------


def test_blend_mixes_one_fixed_picture_in() -> None:
    white, black = grey(255, count=2), grey(0, count=2)

    pattern = parse("blend:alpha=1")(black).double()
    on_white, on_black = parse("blend:alpha=0.25")(white), parse("blend:alpha=0.25")(black)

    assert pattern.unique().numel() > 50
    assert torch.equal(pattern[0], pattern[1])
    assert on_black.tolist() == (pattern / 4).round().tolist()
    assert on_white.tolist() == (0.75 * 255 + pattern / 4).round().tolist()


def test_blend_shows_a_fifth_unless_told() -> None:
    pattern = parse("blend:alpha=1")(grey(0)).double()

    assert parse("blend")(grey(100)).tolist() == (80 + pattern / 5).round().tolist()


def test_the_picture_of_blend_hangs_on_its_seed_alone() -> None:
    first, again, other = (
        parse(spec)(grey(0))
        for spec in ("blend:alpha=1,seed=1", "blend:seed=1,alpha=1", "blend:alpha=1")
    )
    torch.manual_seed(99)

    assert torch.equal(first, again)
    assert torch.equal(first, parse("blend:alpha=1,seed=1")(grey(77)))
    assert not torch.equal(first, other)


@pytest.mark.parametrize("alpha", ["0", "-0.1", "1.01"])
def test_alpha_beyond_its_range(alpha: str) -> None:
    assert refusal(f"blend:alpha={alpha}").endswith("must lie in (0, 1]")


# --- sig ------------------------------------------------------------------------------------


def test_sig_is_a_sine_along_the_width() -> None:
    laid = parse("sig:delta=40,frequency=1")(grey(100, height=2, width=8))

    root = 40 / math.sqrt(2)
    wave = [0, root, 40, root, 0, -root, -40, -root]
    assert laid[0].tolist() == [[[round(100 + value) for value in wave]] * 2] * 3


def test_sig_has_forty_levels_and_six_waves_unless_told() -> None:
    row = parse("sig")(grey(128, height=1, width=96))[0, 0, 0]

    assert (int(row.max()), int(row.min())) == (168, 88)
    assert (row == 168).sum() == 6
    assert torch.equal(row[:16].repeat(6), row)


def test_values_are_rounded_and_clipped_not_wrapped() -> None:
    wave = parse("sig:delta=40,frequency=1")

    assert wave(grey(250, 1, 4))[0, 0, 0].tolist() == [250, 255, 250, 210]
    assert wave(grey(10, 1, 4))[0, 0, 0].tolist() == [10, 50, 10, 0]
    assert parse("sig:delta=0.6,frequency=1")(grey(7, 1, 4))[0, 0, 0].tolist() == [7, 8, 7, 6]
    assert parse("sig:delta=0.4,frequency=1")(grey(7, 1, 4))[0, 0, 0].tolist() == [7, 7, 7, 7]


# --- a PNG ----------------------------------------------------------------------------------


def save(path: Path, pixels: list[list[list[int]]]) -> str:
    Image.fromarray(np.array(pixels, np.uint8)).save(path)
    return str(path)


CLEAR, RED, HALF = [0, 0, 0, 0], [255, 0, 0, 255], [0, 200, 100, 51]


def test_a_png_shows_as_much_as_its_alpha_says(tmp_path: Path) -> None:
    path = save(tmp_path / "trigger.PNG", [[CLEAR, RED], [HALF, CLEAR]])

    laid = parse(path)(grey(100, 2, 2, count=2))

    # Alpha 51 is a fifth: 80 + 0, 80 + 40, 80 + 20.
    expected = [[[100, 255], [80, 100]], [[100, 0], [120, 100]], [[100, 0], [100, 100]]]
    assert laid.dtype == torch.uint8
    assert laid.tolist() == [expected, expected]


def test_a_png_on_grey_pictures(tmp_path: Path) -> None:
    path = save(tmp_path / "trigger.png", [[CLEAR, RED]])

    laid = parse(path)(grey(100, 1, 2, channels=1))

    assert laid.tolist() == [[[[100, 76]]]]  # red's luma, as grey pictures themselves are made


def test_a_png_is_fitted_to_the_pictures(tmp_path: Path) -> None:
    path = save(tmp_path / "trigger.png", [[CLEAR, RED]])

    laid = parse(path)(grey(100, 8, 16))

    assert laid[0, :, :, 0].tolist() == [[100] * 8] * 3
    assert laid[0, :, :, 15].tolist() == [[255] * 8, [0] * 8, [0] * 8]


def test_pngs_that_are_no_triggers(tmp_path: Path) -> None:
    opaque = save(tmp_path / "opaque.png", [[[1, 2, 3]]])
    clear = save(tmp_path / "clear.png", [[CLEAR]])
    text = tmp_path / "text.png"
    text.write_text("no picture")
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(save(tmp_path / "whole.png", [[CLEAR, RED]])).read_bytes()[:45])

    assert refusal(opaque).startswith(f"{opaque} hides every picture: its alpha channel")
    assert refusal(clear).startswith(f"{clear} shows nothing")
    assert refusal(str(text)).startswith(f"{text} is no readable PNG (")
    assert refusal(str(cut)).startswith(f"{cut} is no readable PNG (")
    assert refusal(str(tmp_path / "no.png")) == f"there is no trigger picture at {tmp_path}/no.png"


# --- how a trigger is named -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("badnet", "there is no trigger 'badnet'; the nearest is badnets, or give a PNG"),
        ("Blend:alpha=1", "there is no trigger 'Blend'; the nearest is blend, or give a PNG"),
        (
            "zzz",
            "there is no trigger 'zzz'; the nearest is badnets or blend or sig, or give a PNG",
        ),
        ("sig:alpha=1", "trigger 'sig' has no parameter 'alpha'; it has delta, frequency"),
        ("sig:delta", "sig:delta= is no number"),
        ("sig:delta=big", "sig:delta=big is no number"),
        ("sig:delta=nan", "sig:delta=nan must be a number between ±1,000,000"),
        ("sig:delta=inf", "sig:delta=inf must be a number between ±1,000,000"),
        ("blend:seed=1e30", "blend:seed=1e30 must be a whole number between ±1,000,000"),
        ("badnets:size=2.5", "badnets:size=2.5 must be a whole number between ±1,000,000"),
        ("badnets:size=nan", "badnets:size=nan must be a whole number between ±1,000,000"),
    ],
)
def test_what_is_wrong_with_a_name(spec: str, message: str) -> None:
    assert refusal(spec) == message


@pytest.mark.parametrize("name", [*NAMES])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_trigger_changes_every_picture(name: str, channels: int) -> None:
    images = torch.randint(0, 256, (4, channels, 8, 8), dtype=torch.uint8)
    before = images.clone()

    laid = parse(name)(images)

    assert laid.shape == images.shape
    assert laid.dtype == torch.uint8
    assert (laid != images).flatten(1).any(1).all()
    assert torch.equal(images, before)


# --- poisoned pictures ----------------------------------------------------------------------


def test_pictures_of_the_target_are_left_out() -> None:
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).repeat(1, 3, 4, 4)
    pictures = ImageSet(images, torch.tensor([0, 1, 1, 2]))

    poisoned = stamp(pictures, "badnets:size=1", 1)

    assert (poisoned.name, poisoned.target) == ("badnets:size=1", 1)
    assert poisoned.pictures.labels.tolist() == [0, 2]
    assert poisoned.pictures.images[:, 0, 0, 0].tolist() == [0, 3]
    assert len(pictures) == 4


def test_pictures_of_the_target_alone_prove_nothing() -> None:
    pictures = ImageSet(grey(0, count=2), torch.tensor([1, 1]))

    with pytest.raises(TriggerError, match="'mine' has a label other than its target 1"):
        Poisoned("mine", pictures, 1)
