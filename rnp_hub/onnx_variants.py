"""Smaller ONNX files from a float32 one: half precision, and whole numbers of 8 bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from rnp_hub.data import Target
from rnp_hub.errors import ConfigError, ProofError
from rnp_hub.network import Normalise
from rnp_hub.onnx_export import compared, logits, silence, write_onnx
from rnp_hub.onnx_io import INPUT
from rnp_hub.onnx_preprocess import check_expressible, prepend
from rnp_hub.preprocess import Preprocess
from rnp_hub.report import OnnxRecord, onnx_file

Precision = Literal["fp32", "fp16", "int8"]

CALIBRATION_BATCH = 32


@dataclass(frozen=True)
class VariantConfig:
    """Which file.

    Attributes:
        precision: of the weights and the arithmetic.
        preprocessing: resize, crop and normalisation stand in the graph.
        min_agreement: share of pictures of which it must name the label that torch names; a
            plain float32 file must do so of all of them.

    Raises:
        ConfigError: `min_agreement` is no share.
    """

    precision: Precision = "fp32"
    preprocessing: bool = False
    min_agreement: float = 0.99

    def __post_init__(self) -> None:
        if not 0 <= self.min_agreement <= 1:
            raise ConfigError(f"--min-agreement {self.min_agreement} must lie in [0, 1]")

    @staticmethod
    def of(*, fp16: bool, int8: bool, preprocessing: bool, min_agreement: float) -> VariantConfig:
        """From the words of a command line.

        Raises:
            ConfigError: they contradict each other.
        """
        if fp16 and int8:
            raise ConfigError("--fp16 and --int8 are two different files; give one of them")
        precision: Precision = "fp16" if fp16 else "int8" if int8 else "fp32"
        return VariantConfig(precision, preprocessing, min_agreement)

    @property
    def name(self) -> str:
        """Its key in the report, and the end of its file's name."""
        words = [self.precision, *(["preprocessing"] if self.preprocessing else [])]
        return "_".join(words).removeprefix("fp32_")

    @property
    def file(self) -> str:
        """Named as transformers.js looks for it."""
        return onnx_file(self.name)


def write_variant(
    file: Path,
    module: nn.Module,
    target: Target,
    pictures: Tensor,
    config: VariantConfig,
    *,
    calibration: Tensor | None = None,
    notes: Mapping[str, str] | None = None,
) -> OnnxRecord:
    """Export a network and turn the file into what is asked for, compared with torch at the end.

    Args:
        file: where to; nothing is left of it after an error.
        module: the network, float32, on the CPU.
        target: its labels and preprocessing.
        pictures: uint8 (n, C, H, W), n ≥ 4, at the network's own size; what is compared on.
        config: see `VariantConfig`.
        calibration: uint8 (n, C, H, W), the clean slice; 8 bits need it.
        notes: further metadata of the file.

    Raises:
        ConfigError: 8 bits without pictures to calibrate on, or preprocessing that ONNX lacks.
        ProofError: the file does not do what the network does.
    """
    normalise = Normalise(target.preprocess)
    if config.preprocessing:
        check_expressible(target.preprocess)
    if config.precision == "int8" and calibration is None:
        raise ConfigError("--int8 takes its ranges from clean pictures; give --data")
    probe = normalise(pictures)
    record = write_onnx(file, module, target, probe, notes=notes)
    if config.name == "fp32":
        return record
    inputs, expected = [probe.numpy()], [logits(module, probe)]
    limits = (record.exporter, math.inf, config.min_agreement)
    try:
        if config.precision == "fp16":
            to_half(file)
        elif calibration is not None and config.precision == "int8":
            check = partial(compared, file, inputs, expected, *limits)
            to_int8(file, normalise(calibration).numpy(), check)
        if config.preprocessing:
            prepend(file, target.preprocess)
            raw, entered = _raw(pictures, target.preprocess)
            inputs, expected = [raw], [logits(module, normalise(entered))]
        return compared(file, inputs, expected, *limits)
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _raw(pictures: Tensor, preprocess: Preprocess) -> tuple[NDArray[np.uint8], Tensor]:
    """The pictures as a camera would give them, larger and of another shape, and what of them
    enters the network: uint8 (n, H, W, C) and (n, C, h, w)."""
    height, width = int(HIGHER * pictures.shape[2]), int(WIDER * pictures.shape[3])
    images = [
        Image.fromarray(each.squeeze(2) if each.shape[2] == 1 else each).resize((width, height))
        for each in pictures.permute(0, 2, 3, 1).numpy()
    ]
    raw = np.stack([np.atleast_3d(np.asarray(image)) for image in images])
    return raw, torch.from_numpy(np.stack([preprocess.geometry(image) for image in images]))


HIGHER, WIDER = 1.7, 1.3
"""How much higher and wider than the network's own size those pictures are."""


def to_half(file: Path) -> None:
    """Weights and arithmetic in float16, input and output in float32, in place."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with silence():
        model = OnnxModel(convert_float_to_float16(onnx.load(file), keep_io_types=True))
        model.topological_sort()  # the casts at both ends stand last otherwise
        onnx.save(model.model, file)


def to_int8(file: Path, calibration: NDArray[np.float32], check: Callable[[], OnnxRecord]) -> None:
    """Static quantisation, QDQ, weights per channel, ranges from clean pictures, in place.

    Ranges are taken from the extremes first; where that agrees on too few pictures, from the
    histograms (entropy, then percentiles), which takes longer.

    Args:
        file: of float32.
        calibration: (n, C, H, W), normalised clean pictures.
        check: raises `ProofError` where the file agrees on too few pictures.

    Raises:
        ProofError: it does so whichever way the ranges were taken.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    whole = file.read_bytes()
    for method in METHODS:
        with silence():
            quantize_static(
                onnx.load_from_string(whole),
                file,
                _Batches(calibration),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[method],
            )
        try:
            check()
        except ProofError as error:
            refused = error
        else:
            return
    raise ProofError(f"8 bits are too few for this network: {refused}; use --fp16") from refused


METHODS = ("MinMax", "Entropy", "Percentile")


class _Batches:
    """What onnxruntime's calibration reads: batches by input name, then `None`."""

    def __init__(self, pictures: NDArray[np.float32]) -> None:
        starts = range(0, len(pictures), CALIBRATION_BATCH)
        self._batches = iter([pictures[start : start + CALIBRATION_BATCH] for start in starts])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}
