"""Running an exported network: onnxruntime, numpy and Pillow, no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rnp_hub.errors import DataError, ModelError, reason
from rnp_hub.preprocess import Preprocess

INPUT, OUTPUT = "pixel_values", "logits"
RAW_INPUT = "images"
"""Of a file that resizes, crops and normalises by itself: uint8 (n, H, W, C), any height, width."""
METADATA_KEY = "rnp_hub"
"""Where in the file's metadata labels and preprocessing stand, as JSON."""


class Runner:
    """An ONNX classifier in onnxruntime.

    Args:
        file: of the network.
        threads: at most; `None` for what OMP_NUM_THREADS says, else as many as there are cores.

    Raises:
        ModelError: the file cannot be read, or does not go from `pixel_values` to `logits`.
    """

    def __init__(self, file: Path, threads: int | None = None) -> None:
        import onnxruntime

        if not file.is_file():
            raise ModelError(f"there is no ONNX file at {file}; `rnp-hub export` makes one")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or _threads_asked_for()
        # Threads that spin after a run take the cores from another session that runs next, as
        # where two networks are timed in turn.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions have no common type but this
            raise ModelError(f"{file} is no readable ONNX file ({reason(error)})") from error
        inputs = [each.name for each in self.session.get_inputs()]
        outputs = [each.name for each in self.session.get_outputs()]
        if inputs not in ([INPUT], [RAW_INPUT]) or outputs != [OUTPUT]:
            raise ModelError(
                f"{file} goes from {', '.join(inputs)} to {', '.join(outputs)}, not from {INPUT} "
                f"to {OUTPUT}; give a file that rnp-hub exported"
            )
        self.metadata = self._metadata()

    @property
    def takes_raw(self) -> bool:
        """Whether it resizes, crops and normalises by itself."""
        return bool(self.session.get_inputs()[0].name == RAW_INPUT)

    @property
    def input_shape(self) -> list[int | str]:
        """Numbers, and names where any number will do."""
        shape: list[int | str] = self.session.get_inputs()[0].shape
        return shape

    def _metadata(self) -> dict[str, Any]:
        stored = self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "{}")
        try:
            found = json.loads(stored)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def logits(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Pictures, as the file takes them, to logits (n, classes).

        They are normalised float32 (n, C, H, W), or uint8 (n, H, W, C) of any size where the file
        `takes_raw`.
        """
        name = RAW_INPUT if self.takes_raw else INPUT
        found: NDArray[np.float32] = self.session.run([OUTPUT], {name: inputs})[0]
        return found


def _threads_asked_for() -> int:
    """As torch does: a machine that others use too is told so by one variable. 0 is no limit."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() else 0


@dataclass(frozen=True)
class Prediction:
    """What the network says of one picture.

    Attributes:
        file: its path.
        label: name of the likeliest label, or its number where there are no names.
        index: its place among the logits.
        score: softmax, in [0, 1].
    """

    file: str
    label: str
    index: int
    score: float


def predict(file: Path, pictures: Sequence[Path]) -> list[Prediction]:
    """Classify pictures with an exported network.

    Raises:
        ModelError: the ONNX file is unreadable, or was not written by rnp-hub.
        DataError: a picture is missing or unreadable.
    """
    runner = Runner(file)
    labels, stored = runner.metadata.get("labels"), runner.metadata.get("preprocess")
    if not isinstance(stored, dict):
        raise ModelError(f"{file} does not say how pictures enter it; it was not made by rnp-hub")
    preprocess = Preprocess.from_pretrained_cfg(stored)
    opened = map(_open, pictures)
    if runner.takes_raw:  # of any size, so one after the other
        raw = (preprocess.pixels(picture)[None] for picture in opened)
        scores = _softmax(np.concatenate([runner.logits(each) for each in raw]))
    else:
        pixels = np.stack([preprocess.geometry(picture) for picture in opened])
        scores = _softmax(runner.logits(preprocess.normalise(pixels)))
    return [
        Prediction(
            file=str(picture),
            label=str(labels[best] if labels else best),
            index=int(best),
            score=float(row[best]),
        )
        for picture, row, best in zip(pictures, scores, scores.argmax(1), strict=True)
    ]


def _open(file: Path) -> Image.Image:
    try:
        picture = Image.open(file)
        picture.load()
    except FileNotFoundError as error:
        raise DataError(f"there is no picture at {file}") from error
    # Pillow's decoders raise all of these on damaged files.
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        ValueError,
        SyntaxError,
    ) as error:
        raise DataError(f"{file} is no readable picture ({reason(error)})") from error
    return picture


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    weights = np.exp(logits - logits.max(1, keepdims=True))
    shares: NDArray[np.float32] = weights / weights.sum(1, keepdims=True)
    return shares
