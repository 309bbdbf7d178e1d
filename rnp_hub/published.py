"""Published equals proved: the files of a folder, run, against the network in memory.

The folder is a local one before it is pushed, and afterwards the one that came back from the Hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rnp_hub.export import MAX_FILE_REL_DIFF, max_rel_diff
from rnp_hub.network import logits_of
from rnp_hub.onnx_export import MAX_REL_DIFF as MAX_ONNX_REL_DIFF
from rnp_hub.onnx_io import Runner
from rnp_hub.pull import pull

NOISE = 64
"""Inputs to compare on where no pictures are at hand."""

ONNX = "onnx/model.onnx"
LIMITS: Mapping[str, float] = {
    "drop-in": MAX_FILE_REL_DIFF,
    "slim": MAX_ONNX_REL_DIFF,  # another network in float32, as the ONNX file is
    "onnx": MAX_ONNX_REL_DIFF,
}
"""Largest |Δ logit| / |logit| of each part of a folder."""


@dataclass(frozen=True)
class Reference:
    """What a network answers.

    Attributes:
        inputs: (n, C, H, W), normalised.
        logits: (n, classes).
    """

    inputs: Tensor
    logits: Tensor

    @staticmethod
    @torch.no_grad()
    def of(module: nn.Module, inputs: Tensor) -> Reference:
        """Ask a network, float32, on the CPU."""
        module.eval()
        parts = [logits_of(module(part)) for part in inputs.split(64)]
        return Reference(inputs, torch.cat(parts))

    @staticmethod
    def of_folder(folder: Path) -> Reference:
        """Ask the drop-in network of a folder about noise.

        Raises:
            ModelError: it cannot be read.
        """
        model = pull(str(folder))
        shape = model.target.preprocess.input_size
        noise = torch.randn(NOISE, *shape, generator=torch.Generator().manual_seed(0))
        return Reference.of(model.module, noise)


@dataclass(frozen=True)
class Agreement:
    """How near one part of a folder comes to the network in memory.

    Attributes:
        max_rel_diff: max |Δ logit| / max |logit|.
        top1_agreement: share of the inputs with the same likeliest label, in [0, 1].
    """

    max_rel_diff: float
    top1_agreement: float


def compare(folder: Path, reference: Reference) -> dict[str, Agreement]:
    """Run the drop-in, the slim network and the ONNX file of a folder.

    Raises:
        ModelError: one of them cannot be read.
    """
    inputs = reference.inputs
    onnx = Runner(folder / ONNX)
    found = {
        "drop-in": Reference.of(pull(str(folder)).module, inputs).logits,
        "slim": Reference.of(pull(str(folder / "slim")).module, inputs).logits,
        "onnx": torch.cat([torch.from_numpy(onnx.logits(x.numpy())) for x in inputs.split(64)]),
    }
    return {part: _agreement(reference.logits, logits) for part, logits in found.items()}


def _agreement(expected: Tensor, found: Tensor) -> Agreement:
    if expected.shape != found.shape:
        return Agreement(float("inf"), 0.0)
    same = (expected.argmax(1) == found.argmax(1)).float().mean()
    return Agreement(max_rel_diff(expected, found), float(same))


def first_wrong(found: Mapping[str, Agreement]) -> str | None:
    """The first part that is further from the network than its limit, in words."""
    for part, agreement in found.items():
        if not agreement.max_rel_diff <= LIMITS[part]:  # so that NaN is wrong too
            return (
                f"its {part} gives logits {agreement.max_rel_diff:.1e} away "
                f"(limit {LIMITS[part]:.0e})"
            )
    return None
