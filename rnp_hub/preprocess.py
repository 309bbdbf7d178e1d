"""From a decoded picture to what the network takes, as its own `pretrained_cfg` says.

In two halves, because triggers are laid on pictures, not on normalised tensors: *geometry* (resize
and crop, to uint8) is done once while reading; *normalisation* is done batch by batch. Only Pillow
and numpy are used here, so that an exported network runs without torch; the geometry is timm's or
that of transformers, step by step, and tests hold them against each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rnp_hub.errors import ModelError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_MODES = ("center", "squash", "border")
CENTRES = ("even", "floor")
MIN_CROP_PCT, MAX_CROP_PCT = 0.1, 2.0
MAX_SIDE = 4096
"""Pixels of an edge; a picture is resized to that over `crop_pct`, whoever asks for it."""
INTERPOLATIONS: Mapping[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "random": Image.Resampling.BILINEAR,
}


@dataclass(frozen=True)
class Preprocess:
    """What stands in a timm `pretrained_cfg` about the pictures a network was trained on.

    Attributes:
        input_size: (channels, height, width) in pixels.
        mean, std: per channel, of pixels in [0, 1].
        interpolation: one of `INTERPOLATIONS`.
        crop_pct: share of the resized picture that the centre crop keeps; above 1 (timm's volo
            models) the picture is smaller than the crop and padded.
        crop_mode: `center` (shorter edge fitted), `squash` (both edges fitted), both padded with
            black, or `border` (longer edge fitted, padded with the mean colour).
        centre: where a crop lies that leaves an odd number of pixels over: at the `even` one of
            the two places, as timm does, or at the lower, `floor`, as transformers does.

    Raises:
        ModelError: a value is out of its range or does not fit the others.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    centre: str = "even"

    def __post_init__(self) -> None:
        channels = self.input_size[0]
        sized = min(self.input_size) >= 1 and max(self.input_size) <= MAX_SIDE
        if channels not in (1, 3) or not sized:
            raise ModelError(
                f"the model takes pictures of {self.input_size}; only grey (1) and colour "
                f"(3) of 1 to {MAX_SIDE} pixels are read"
            )
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if {len(self.mean), len(self.std)} != {channels} or not finite or min(self.std) <= 0:
            raise ModelError(
                f"the model's mean {self.mean} and std {self.std} do not fit {channels} channel(s)"
            )
        if self.interpolation not in [*INTERPOLATIONS] or self.crop_mode not in CROP_MODES:
            raise ModelError(
                f"the model's interpolation {self.interpolation!r} or crop_mode "
                f"{self.crop_mode!r} is unknown; they may be {', '.join(INTERPOLATIONS)} and "
                f"{', '.join(CROP_MODES)}"
            )
        if self.centre not in CENTRES:
            raise ModelError(
                f"the model's centre {self.centre!r} is unknown; it may be {' or '.join(CENTRES)}"
            )
        if not MIN_CROP_PCT <= self.crop_pct <= MAX_CROP_PCT:
            raise ModelError(
                f"the model's crop_pct {self.crop_pct} must lie in [{MIN_CROP_PCT}, {MAX_CROP_PCT}]"
            )

    @staticmethod
    def from_pretrained_cfg(config: Mapping[str, Any]) -> Preprocess:
        """Read a `pretrained_cfg`; what it leaves out takes timm's defaults.

        Raises:
            ModelError: a value cannot be what it is said to be.
        """
        given = {key: config[key] for key in asdict(Preprocess()) if config.get(key) is not None}
        try:
            for key, convert in (("input_size", int), ("mean", float), ("std", float)):
                if key in given:
                    given[key] = tuple(convert(value) for value in given[key])
            if len(given.get("input_size", (3, 1, 1))) != 3:
                raise ValueError(f"input_size {given['input_size']} is not (channels, h, w)")
            if "crop_pct" in given:
                given["crop_pct"] = float(given["crop_pct"])
        except (TypeError, ValueError, OverflowError) as error:
            raise ModelError(
                f"the model's pretrained_cfg cannot be read ({error}); correct input_size, mean, "
                "std or crop_pct in its config.json"
            ) from error
        return Preprocess(**given)

    def stated(self) -> dict[str, Any]:
        """As it stands in a `pretrained_cfg`, for `from_pretrained_cfg`: what timm knows, and
        `centre` only where it is not timm's."""
        known = asdict(self)
        return {key: value for key, value in known.items() if (key, value) != ("centre", "even")}

    def pixels(self, picture: Image.Image) -> NDArray[np.uint8]:
        """One picture as it is, in the network's colours: uint8 (H, W, C)."""
        return np.atleast_3d(np.asarray(_in_colours(picture, self.input_size[0]), dtype=np.uint8))

    def geometry(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Resize and crop one picture: uint8 (C, H, W)."""
        picture = _in_colours(picture, self.input_size[0])
        picture = self._crop(picture.resize(self._resized(picture), self.resampling))
        pixels = np.asarray(picture, dtype=np.uint8)
        assert pixels.shape[:2] == self.input_size[1:]
        return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)

    @property
    def resampling(self) -> Image.Resampling:
        return INTERPOLATIONS[self.interpolation]

    def _resized(self, picture: Image.Image) -> tuple[int, int]:
        """(width, height) before the crop."""
        height, width = (math.floor(edge / self.crop_pct) for edge in self.input_size[1:])
        if self.crop_mode == "squash":
            return width, height
        ratios = (picture.width / width, picture.height / height)
        if self.crop_mode == "border":
            ratio = max(ratios)
        elif height == width:
            # The longer edge is cut off, not rounded, where the shorter is fitted exactly.
            short = min(picture.size)
            long = int(width * max(picture.size) / short)
            return (width, long) if picture.width == short else (long, width)
        else:
            ratio = min(ratios)
        # A very long picture would lose its short edge altogether.
        return max(round(picture.width / ratio), 1), max(round(picture.height / ratio), 1)

    def _crop(self, picture: Image.Image) -> Image.Image:
        """Pad each edge that is too short, then cut each that is too long."""
        _, height, width = self.input_size
        across, down = max(picture.width, width), max(picture.height, height)
        if (across, down) != picture.size:
            canvas = Image.new(picture.mode, (across, down), self._padding(picture.mode))
            place = self._before(across - picture.width), self._before(down - picture.height)
            canvas.paste(picture, place)
            picture = canvas
        left, top = self._offset(across - width), self._offset(down - height)
        return picture.crop((left, top, left + width, top + height))

    def _offset(self, surplus: int) -> int:
        """Pixels cut off before the crop."""
        return round(surplus / 2) if self.centre == "even" else surplus // 2

    def _before(self, missing: int) -> int:
        """Pixels of padding before the picture."""
        return missing // 2 if self.centre == "even" else -(-missing // 2)

    def _padding(self, mode: str) -> int | tuple[int, ...]:
        colour = tuple(round(255 * value) for value in self.mean)
        if self.crop_mode != "border":
            colour = (0,) * len(colour)
        return colour if mode == "RGB" else colour[0]

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (n, C, H, W) to float32, zero mean and unit variance by `mean` and `std`."""
        shape = (1, -1, 1, 1)
        mean, std = (np.array(value, np.float32).reshape(shape) for value in (self.mean, self.std))
        normalised: NDArray[np.float32] = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return normalised


def _in_colours(picture: Image.Image, channels: int) -> Image.Image:
    """Grey (1) or colour (3), whatever is transparent left out."""
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow warns of the direct way
    return picture.convert("L" if channels == 1 else "RGB")
