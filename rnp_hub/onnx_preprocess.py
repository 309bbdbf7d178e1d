"""Resize, crop and normalisation as an ONNX graph, so that production needs no Python.

Pillow resizes along one axis after the other and rounds to whole grey levels after each; so does
the graph, which is why the two differ in single grey levels only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rnp_hub.errors import ConfigError
from rnp_hub.onnx_export import silence, strip
from rnp_hub.onnx_io import INPUT, RAW_INPUT
from rnp_hub.preprocess import Preprocess

INTERPOLATIONS = ("bilinear", "bicubic")
"""Those that ONNX's Resize computes as Pillow does."""


def check_expressible(preprocess: Preprocess) -> None:
    """Refuse what has no ONNX operation.

    Raises:
        ConfigError: naming it.
    """
    if preprocess.interpolation not in INTERPOLATIONS:
        raise ConfigError(
            f"--with-preprocessing cannot resize by {preprocess.interpolation!r}; only "
            f"{' and '.join(INTERPOLATIONS)} have an ONNX operation that does what Pillow does"
        )
    if preprocess.crop_mode == "border" or preprocess.crop_pct > 1:
        raise ConfigError(
            "--with-preprocessing cannot pad pictures, which this model's crop_mode or crop_pct "
            "asks for; leave it out and use `rnp-hub predict`"
        )


class PreprocessGraph(nn.Module):
    """uint8 pictures (n, H, W, C) of any size to normalised float32 (n, C, h, w)."""

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess
        shape = (1, -1, 1, 1)
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(shape))
        self.register_buffer("std", torch.tensor(preprocess.std).view(shape))

    mean: Tensor
    std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).float()
        rows, columns = pixels.shape[2:]
        new_rows, new_columns = self._resized(rows, columns)
        for size in ((rows, new_columns), (new_rows, new_columns)):
            resized = nn.functional.interpolate(
                pixels, size=size, mode=self.preprocess.interpolation, antialias=True
            )
            pixels = (resized + 0.5).floor().clamp(0, 255)
        _, height, width = self.preprocess.input_size
        top, left = self._offset(new_rows - height), self._offset(new_columns - width)
        cropped = pixels[:, :, top : top + height, left : left + width]
        return (cropped / 255 - self.mean) / self.std

    def _resized(self, rows: Any, columns: Any) -> tuple[Any, Any]:
        """`Preprocess._resized` in whole numbers, which a traced size is computed in."""
        preprocess = self.preprocess
        height, width = (int(edge / preprocess.crop_pct) for edge in preprocess.input_size[1:])
        if preprocess.crop_mode == "squash":
            return height, width
        if height == width:
            short = torch.sym_min(rows, columns)
            return height * rows // short, width * columns // short
        return (
            torch.sym_max(height, _rounded(width * rows, columns)),
            torch.sym_max(width, _rounded(height * columns, rows)),
        )

    def _offset(self, surplus: Any) -> Any:
        """`Preprocess._offset` in whole numbers: half of it, an odd one to the even side."""
        if self.preprocess.centre == "even":
            return (surplus + surplus % 4 // 3) // 2
        return surplus // 2


def _rounded(numerator: Any, denominator: Any) -> Any:
    return (2 * numerator + denominator) // (2 * denominator)


def prepend(file: Path, preprocess: Preprocess) -> None:
    """Put the graph before the network in an ONNX file that takes `pixel_values`, in place.

    The file then takes `images`, uint8 (batch, height, width, channels).

    Raises:
        ConfigError: the preprocessing has no ONNX operation.
    """
    import onnx

    check_expressible(preprocess)
    network = onnx.load(file)
    opset = next(each.version for each in network.opset_import if each.domain in ("", "ai.onnx"))
    before = _exported(preprocess, opset)
    before.ir_version = network.ir_version
    joined = onnx.compose.merge_models(
        onnx.compose.add_prefix(before, "preprocess/", rename_inputs=False, rename_outputs=False),
        network,
        io_map=[(INPUT, INPUT)],
    )
    strip(joined)
    onnx.helper.set_model_props(
        joined, {entry.key: entry.value for entry in network.metadata_props}
    )
    onnx.checker.check_model(joined, full_check=True)
    onnx.save(joined, file)


def _exported(preprocess: Preprocess, opset: int) -> Any:
    example = torch.zeros((2, 45, 60, preprocess.input_size[0]), dtype=torch.uint8)
    with silence():
        program = torch.onnx.export(
            PreprocessGraph(preprocess).eval(),
            (example,),
            dynamo=True,
            input_names=[RAW_INPUT],
            output_names=[INPUT],
            dynamic_shapes=({0: "batch", 1: "height", 2: "width"},),
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    return program.model_proto
