"""Known triggers, laid on pictures to measure an attack success rate.

Nothing in this file is used to choose anything: a known trigger is only ever measured, at the end.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rnp_hub.errors import TriggerError
from rnp_hub.network import ImageSet

Stamp = Callable[[Tensor], Tensor]
"""uint8 pictures (n, C, H, W) to uint8 pictures that carry the trigger."""


@dataclass(frozen=True)
class Poisoned:
    """Pictures that carry a trigger, with their *true* labels.

    Attributes:
        name: of the trigger, as it stands in the report.
        pictures: those of the target label are left out, since they prove nothing.
        target: the label the trigger asks for.
    """

    name: str
    pictures: ImageSet
    target: int

    def __post_init__(self) -> None:
        others = self.pictures.labels != self.target
        if not others.any():
            raise TriggerError(
                f"no picture of trigger {self.name!r} has a label other than its target "
                f"{self.target}; an attack success rate needs pictures of other labels"
            )
        object.__setattr__(self, "pictures", self.pictures[others])


def stamp(pictures: ImageSet, spec: str, target: int) -> Poisoned:
    """Lay a trigger on every picture.

    Args:
        pictures: uint8, at the model's input size.
        spec: `NAME`, `NAME:key=value,…` or the path of a PNG whose alpha channel says how much
            of it shows; see `NAMES` for the names and `parse` for the parameters.
        target: the label the trigger asks for.

    Raises:
        TriggerError: an unknown name or parameter, a value out of range, an unreadable PNG.
    """
    laid = parse(spec)(pictures.images)
    return Poisoned(spec, ImageSet(laid, pictures.labels), target)


def parse(spec: str) -> Stamp:
    """The trigger a `--trigger` names.

    `badnets:size=3,row=-1,column=-1` (Gu et al. 2017): a checkerboard of `size` pixels, `row` and
    `column` counted from the top left, or from the bottom right where negative.
    `blend:alpha=0.2,seed=0` (Chen et al. 2017): one fixed picture of uniform noise, blended in.
    `sig:delta=40,frequency=6` (Barni et al. 2019): a horizontal sine of `delta` grey levels.
    """
    if spec.lower().endswith(".png"):
        return _png(Path(spec))
    name, _, rest = spec.partition(":")
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=2, cutoff=0.4) or list(NAMES)
        raise TriggerError(
            f"there is no trigger {name!r}; the nearest is {' or '.join(near)}, or give a PNG"
        )
    make, defaults = NAMES[name]
    return make(defaults | _parameters(name, rest, defaults))


Parameters = Mapping[str, float]
LARGEST = 1_000_000
"""No parameter is larger: what is, is a slip of the keyboard."""


def _parameters(name: str, text: str, defaults: Parameters) -> dict[str, float]:
    found: dict[str, float] = {}
    for item in filter(None, text.split(",")):
        key, _, value = item.partition("=")
        if key not in defaults:
            raise TriggerError(
                f"trigger {name!r} has no parameter {key!r}; it has {', '.join(defaults)}"
            )
        found[key] = _number(f"{name}:{key}", value, whole=isinstance(defaults[key], int))
    return found


def _number(parameter: str, text: str, *, whole: bool) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise TriggerError(f"{parameter}={text} is no number") from error
    if not abs(value) < LARGEST or (whole and not value.is_integer()):
        kind = "whole number" if whole else "number"
        raise TriggerError(f"{parameter}={text} must be a {kind} between ±{LARGEST:,}")
    return value


def _badnets(parameters: Parameters) -> Stamp:
    size, row, column = (int(parameters[key]) for key in ("size", "row", "column"))

    def lay(images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        top = row if row >= 0 else height + row + 1 - size
        left = column if column >= 0 else width + column + 1 - size
        if size < 1 or min(top, left) < 0 or top + size > height or left + size > width:
            raise TriggerError(
                f"a badnets patch of {size} pixels at row {row}, column {column} does not fit "
                f"pictures of {height} × {width}"
            )
        checks = torch.arange(size)[:, None] + torch.arange(size)
        laid = images.clone()
        laid[:, :, top : top + size, left : left + size] = torch.where(checks % 2 == 0, 0, 255).to(
            torch.uint8
        )
        return laid

    return lay


def _blend(parameters: Parameters) -> Stamp:
    alpha, seed = parameters["alpha"], int(parameters["seed"])
    if not 0 < alpha <= 1:
        raise TriggerError(f"blend:alpha={alpha} must lie in (0, 1]")

    def lay(images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        pattern = torch.randint(0, 256, images.shape[1:], generator=generator).float()
        return _to_pixels((1 - alpha) * images.float() + alpha * pattern)

    return lay


def _sig(parameters: Parameters) -> Stamp:
    delta, frequency = parameters["delta"], parameters["frequency"]

    def lay(images: Tensor) -> Tensor:
        width = images.shape[3]
        wave = delta * torch.sin(2 * math.pi * frequency * torch.arange(width) / width)
        return _to_pixels(images.float() + wave)

    return lay


def _png(path: Path) -> Stamp:
    overlay = _overlay(path)

    def lay(images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        fitted = overlay.resize((width, height), Image.Resampling.BILINEAR)
        if images.shape[1] == 1:
            fitted = fitted.convert("LA")
        pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float()
        colour, alpha = pixels[:-1], pixels[-1:] / 255
        return _to_pixels((1 - alpha) * images.float() + alpha * colour)

    return lay


def _overlay(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            overlay = picture.convert("RGBA")
    except FileNotFoundError as error:
        raise TriggerError(f"there is no trigger picture at {path}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise TriggerError(f"{path} is no readable PNG ({error})") from error
    least, most = overlay.getchannel("A").getextrema()
    if least == 255 or most == 0:
        what = "hides every picture" if least else "shows nothing"
        raise TriggerError(f"{path} {what}: its alpha channel must say how much of it shows where")
    return overlay


def _to_pixels(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


NAMES: Mapping[str, tuple[Callable[[Parameters], Stamp], dict[str, float]]] = {
    "badnets": (_badnets, {"size": 3, "row": -1, "column": -1}),
    "blend": (_blend, {"alpha": 0.2, "seed": 0}),
    "sig": (_sig, {"delta": 40.0, "frequency": 6.0}),
}
"""Triggers by name, with the parameters they take and the defaults (an `int` must stay whole)."""
