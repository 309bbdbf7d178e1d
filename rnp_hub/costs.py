"""What two networks take: parameters, multiply-accumulates, bytes and milliseconds.

Latencies are medians of both networks in turn, so that a busy machine slows both.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from rnp_hub.network import evaluation_mode
from rnp_hub.onnx_export import write_like
from rnp_hub.onnx_io import Runner
from rnp_hub.report import CostRecord, CostsRecord
from rnp_hub.weights import WEIGHTS

THREADS = 2
BATCHES = (1, 32)

RUNS = 3
"""Of each network at least, after one that warms up; more, up to `MOST`, within `SECONDS`."""
MOST = 30
SECONDS = 1.0

Pair = tuple[nn.Module, nn.Module]


def parameters(module: nn.Module) -> int:
    """How many numbers there are to train."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def macs(module: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of convolutions and matrix products for one picture."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        module(example[:1])
    return int(counter.get_total_flops()) // 2


def measure(
    modules: Pair, folders: tuple[Path, Path], onnx: Path, exporter: str, probe: Tensor
) -> CostsRecord:
    """Costs before and after.

    Args:
        modules: the network and the smaller one, float32, on the CPU.
        folders: where the weights of each are.
        onnx: the file of the smaller network; one of the other is made for this and thrown away.
        exporter: that made it.
        probe: (n, C, H, W), n ≥ 2, normalised pictures.
    """
    with tempfile.TemporaryDirectory() as temporary:
        plain = Path(temporary) / "model.onnx"
        write_like(onnx, exporter, plain, modules[0], probe)
        files = plain, onnx
        latency = _latency(modules, files, probe)
        before, after = (
            CostRecord(
                parameters=parameters(modules[place]),
                macs=macs(modules[place], probe),
                bytes={
                    "safetensors": (folders[place] / WEIGHTS).stat().st_size,
                    "onnx": files[place].stat().st_size,
                },
                latency_ms={
                    runtime: {str(batch): pair[place] for batch, pair in pairs.items()}
                    for runtime, pairs in latency.items()
                },
            )
            for place in (0, 1)
        )
    return CostsRecord(before, after, THREADS)


def _latency(
    modules: Pair, files: tuple[Path, Path], probe: Tensor
) -> dict[str, dict[int, tuple[float, float]]]:
    """By runtime and batch, the milliseconds that both networks take."""
    runners = Runner(files[0], THREADS), Runner(files[1], THREADS)
    found: dict[str, dict[int, tuple[float, float]]] = {"onnxruntime": {}, "torch": {}}
    for batch in BATCHES:
        inputs = probe[torch.arange(batch) % len(probe)]
        sessions = [partial(runner.logits, inputs.numpy()) for runner in runners]
        found["onnxruntime"][batch] = alternately(*sessions)
        with torch.no_grad(), _threads(THREADS), _evaluating(modules):
            found["torch"][batch] = alternately(*(partial(each, inputs) for each in modules))
    return found


def alternately(one: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """Median milliseconds of two pieces of work, done in turn after each has warmed up."""
    one(), other()
    spent: tuple[list[float], list[float]] = [], []
    while len(spent[0]) < RUNS or (sum(map(sum, spent)) < SECONDS and len(spent[0]) < MOST):
        for work, times in zip((one, other), spent, strict=True):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    first, second = (round(1000 * statistics.median(times), 3) for times in spent)
    return first, second


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(count, os.cpu_count() or count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _evaluating(modules: Pair) -> Iterator[None]:
    with evaluation_mode(modules[0]), evaluation_mode(modules[1]):
        yield
