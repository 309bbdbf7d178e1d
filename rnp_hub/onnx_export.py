"""From a network to one ONNX file, run in onnxruntime against torch before it counts.

Not every exporter manages every network, so there is a ladder of them; the first whose file
computes the same is taken, and the record says which it was.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rnp_hub.data import Target
from rnp_hub.errors import ModelError, ProofError, reason
from rnp_hub.network import logits_of
from rnp_hub.onnx_io import INPUT, METADATA_KEY, OUTPUT, Runner
from rnp_hub.report import OnnxRecord
from rnp_hub.weights import sha256

MAX_REL_DIFF = 1e-4
"""Largest |Δ logit| / |logit| between onnxruntime and torch, both in float32."""

LATENCY_RUNS = 30


# --- the ladder -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rung:
    """One way to export.

    Attributes:
        name: in the record.
        dynamo: torch.export's graph, else TorchScript's trace.
        any_size: height and width are left open too.
        fused_attention: timm's attention as one operation, which not every exporter knows.
    """

    name: str
    dynamo: bool = True
    any_size: bool = False
    fused_attention: bool = True


LADDER = (
    _Rung("dynamo", any_size=True),
    _Rung("dynamo"),
    _Rung("dynamo, fused attention off", fused_attention=False),
    _Rung("torchscript", dynamo=False, fused_attention=False),
)


def write_onnx(
    file: Path,
    module: nn.Module,
    target: Target,
    probe: Tensor,
    *,
    output: str | int | None = None,
    notes: Mapping[str, str] | None = None,
) -> OnnxRecord:
    """Export to one ONNX file with a dynamic batch, and run it in onnxruntime against torch.

    Height and width are left open where the network is fully convolutional.

    Args:
        file: where to.
        module: the network, float32, on the CPU.
        target: labels and preprocessing, written into the file so that `predict` needs no other.
        probe: (n, C, H, W), n ≥ 4, normalised pictures to compare on.
        output: which element of the module's output is the logits.
        notes: further metadata of the file, such as the commit it came from.

    Raises:
        ProofError: no exporter gives a file that computes the same.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    wrapped = _OnlyLogits(module, output).eval()
    failures = dict[str, Exception]()
    any_size = _takes_other_sizes(wrapped, probe)
    for rung in (rung for rung in LADDER if any_size or not rung.any_size):
        try:
            _export(file, wrapped, probe, rung)
            _annotate(file, target, notes or {})
            return _compared(file, wrapped, probe, rung)
        except Exception as error:  # exporters raise whatever the network's code raises
            failures.setdefault(rung.name, error)
            file.unlink(missing_ok=True)
    if wrong := [each for each in failures.values() if isinstance(each, ProofError)]:
        raise ProofError(f"{wrong[0]}; nothing was kept") from wrong[0]
    first = next(iter(failures.values()))
    raise ProofError(
        f"torch cannot export this network to ONNX ({reason(_root(first))}); nothing was written"
    ) from first


def write_like(
    model: Path,
    exporter: str,
    file: Path,
    module: nn.Module,
    probe: Tensor,
    output: str | int | None = None,
) -> None:
    """Export another network the way a file was, to compare their speed; nothing is proved.

    Args:
        model: the file.
        exporter: as the record of the file names it.
        file: where to.
        module, probe, output: see `write_onnx`.
    """
    any_size = isinstance(Runner(model).input_shape[2], str)
    rung = next(each for each in LADDER if (each.name, each.any_size) == (exporter, any_size))
    _export(file, _OnlyLogits(module, output).eval(), probe, rung)


def _root(error: BaseException) -> BaseException:
    """What the network's code raised, beneath what the exporter says of itself."""
    return _root(error.__cause__) if error.__cause__ is not None else error


def _export(file: Path, wrapped: nn.Module, probe: Tensor, rung: _Rung) -> None:
    names = {0: "batch", **({2: "height", 3: "width"} if rung.any_size else {})}
    with silence(), _spelled_out(wrapped, rung):
        if rung.dynamo:
            program = torch.onnx.export(
                wrapped,
                (probe[:2],),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=(names,),
                verbose=False,
            )
            assert program is not None
            program.save(file, external_data=False)
        else:
            torch.onnx.export(
                wrapped,
                (probe[:2],),
                file,
                dynamo=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: names, OUTPUT: {0: "batch"}},
            )


@contextlib.contextmanager
def _spelled_out(module: nn.Module, rung: _Rung) -> Iterator[None]:
    """Have attention layers written as matrix products, which every exporter knows."""
    with contextlib.ExitStack() as stack:
        part: Any  # of a class that this module knows nothing of
        for part in () if rung.fused_attention else module.modules():
            if getattr(part, "fused_attn", False) is True:  # timm
                stack.callback(setattr, part, "fused_attn", True)
                part.fused_attn = False
            if callable(choose := getattr(part, "set_attn_implementation", None)):  # transformers
                stack.callback(choose, part.config._attn_implementation)
                choose("eager")
        yield


def _annotate(file: Path, target: Target, notes: Mapping[str, str]) -> None:
    import onnx

    model = onnx.load(file)
    strip(model)
    stored = {"labels": target.label_names, "preprocess": target.preprocess.stated()}
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(stored), **notes})
    onnx.save(model, file)


def strip(message: Any) -> None:
    """Take out what exporters note about the machine they ran on, in place.

    Nodes, values and graphs come with stack traces: paths of files, which are nobody's business and
    make the same network another file on every machine.

    Args:
        message: of ONNX's protobuf, a model or a part of one; what it says of itself goes too.
    """
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for part in [value] if hasattr(value, "ListFields") else value:
                strip(part)


class _OnlyLogits(nn.Module):
    """A network whose output is the logits and nothing else."""

    def __init__(self, module: nn.Module, output: str | int | None) -> None:
        super().__init__()
        self.module, self.output = module, output

    def forward(self, pixel_values: Tensor) -> Tensor:
        return logits_of(self.module(pixel_values), self.output)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Exporters print, warn and log, on stdout too, which belongs to the report."""
    logger = logging.getLogger()
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


# --- the proof --------------------------------------------------------------------------------


def _compared(file: Path, module: nn.Module, probe: Tensor, rung: _Rung) -> OnnxRecord:
    parts = [*_uneven(probe), *(_other_sizes(probe) if rung.any_size else ())]
    if not rung.dynamo:  # a trace keeps the branch that it saw, so let others be taken
        parts += [-probe[:4], 10 * probe[:4]]
    expected = [logits(module, part) for part in parts]
    if list(map(len, expected)) != list(map(len, parts)):
        raise ModelError("the network takes a larger picture for several")
    inputs = [part.numpy() for part in parts]
    return compared(file, inputs, expected, rung.name, MAX_REL_DIFF, min_agreement=1.0)


def compared(
    file: Path,
    inputs: Sequence[NDArray[Any]],
    expected: Sequence[NDArray[np.float32]],
    exporter: str,
    max_rel_diff: float,
    min_agreement: float,
) -> OnnxRecord:
    """Run a file on batches of inputs and hold its logits against those expected.

    Raises:
        ProofError: they differ by more than `max_rel_diff` of the largest, or name the same label
            on a smaller share of the pictures than `min_agreement`.
    """
    runner = Runner(file)
    found = [runner.logits(batch) for batch in inputs]
    difference = max(map(_difference, expected, found))
    agreement = _agreement(expected, found)
    if not difference <= max_rel_diff or agreement < min_agreement:
        limit = "" if max_rel_diff == math.inf else f" (limit {max_rel_diff:.0e})"
        raise ProofError(
            f"onnxruntime disagrees with torch on {file.name}: logits differ by {difference:.1e}"
            f"{limit}, the same label is named on {agreement:.2%} of {sum(map(len, inputs))} "
            f"pictures (limit {min_agreement:.2%})"
        )
    return OnnxRecord(
        sha256=sha256(file),
        opset=_opset(file),
        max_rel_diff=difference,
        top1_agreement=agreement,
        latency_ms=_latency_ms(runner, inputs[0][:1]),
        exporter=exporter,
    )


def _uneven(probe: Tensor) -> Iterator[Tensor]:
    """Batches of 1, of 3 and of the rest: the batch must really be dynamic."""
    yield probe[:1]
    yield probe[1:4]
    yield from probe[4:].split(128) if len(probe) > 4 else ()


OPEN_ENDED = ("bmm", "baddbmm", "constant_pad_nd")
"""Operations of networks that take any size by padding to whole windows or strides. With each the
formula of the size grows, at last by more than exporters come to an end with."""


class _Convolutions(TorchDispatchMode):
    """Notes whether there is more than convolutions: attention, or padding that is worked out."""

    alone = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        self.alone &= name not in OPEN_ENDED and "dot_product_attention" not in name
        return func(*args, **(kwargs or {}))


def _takes_other_sizes(module: nn.Module, probe: Tensor) -> bool:
    """Whether it is all convolutions and answers; asked first, since an export takes longer."""
    convolutions = _Convolutions()  # type: ignore[no-untyped-call]
    try:
        with convolutions:
            logits(module, probe[:2])
        return convolutions.alone and all(
            len(logits(module, part)) == len(part) for part in _other_sizes(probe)
        )
    except Exception:  # networks refuse a size in many ways
        return False


OTHER_SIZES = ((32, 0), (0, 64))
"""Rows and columns more than the network was made for, multiples of what networks halve away."""


def _other_sizes(probe: Tensor) -> Iterator[Tensor]:
    """The pictures made larger, higher and wider; a network that refuses them is an error."""
    for more_rows, more_columns in OTHER_SIZES:
        yield nn.functional.pad(probe[:2], (0, more_columns, 0, more_rows), mode="replicate")


@torch.no_grad()
def logits(module: nn.Module, inputs: Tensor) -> NDArray[np.float32]:
    """What the network in memory says: (n, classes)."""
    found: NDArray[np.float32] = logits_of(module(inputs)).numpy()
    return found


def _difference(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """max |Δ logit| / max |logit|."""
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1.0))


def _agreement(
    expected: Sequence[NDArray[np.float32]], found: Sequence[NDArray[np.float32]]
) -> float:
    """Share of pictures of which both name the same label."""
    same = np.concatenate(
        [one.argmax(1) == two.argmax(1) for one, two in zip(expected, found, strict=True)]
    )
    return float(same.mean())


def _latency_ms(runner: Runner, one: NDArray[Any]) -> float:
    """Median milliseconds for one picture, after a warm-up."""
    seconds = []
    for _ in range(LATENCY_RUNS):
        start = time.perf_counter()
        runner.logits(one)
        seconds.append(time.perf_counter() - start)
    return round(1000 * statistics.median(seconds[LATENCY_RUNS // 3 :]), 3)


def _opset(file: Path) -> int:
    import onnx

    stored = onnx.load(file, load_external_data=False).opset_import
    return int(next(each.version for each in stored if each.domain in ("", "ai.onnx")))
