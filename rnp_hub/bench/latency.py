"""How fast a network is before slimming, after it, and after slimming for speed.

`rnp-hub bench latency`: onnxruntime, one thread, milliseconds of CPU time, the least of several
runs of the three in turn, so that other work on the machine matters little.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnp_hub.bench.processes import Limits, Row, rows, tell
from rnp_hub.bench.slimming import network, some_of
from rnp_hub.bench.tables import line, plain, table

MODELS = (
    "resnet18",
    "resnet50",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "vit_tiny_patch16_224",
)
SHARES = (0.02, 0.10, 0.25)
BATCHES = (1, 8)
RUNS = 10


@dataclass(frozen=True)
class LatencyRow:
    """One network, a share of the filters of every site silenced.

    Attributes:
        model: name of the timm architecture.
        share: of the filters of every site.
        silenced: filters.
        removed: of these, by slimming for size and for speed.
        milliseconds: by batch: as it was, slimmed for size, slimmed for speed.
        error: the reason for whatever is missing.
    """

    model: str
    share: float | None = None
    silenced: int | None = None
    removed: tuple[int, int] | None = None
    milliseconds: Mapping[str, tuple[float, float, float]] | None = None
    error: str | None = None


def measure_all(
    models: Sequence[str],
    log: Path,
    limits: Limits | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[LatencyRow]:
    """Measure each network and share in a process of its own; those in the log are not run again.

    Args: see `slimming.measure_all`.
    """
    return rows(
        "rnp_hub.bench.latency",
        [(model, str(share)) for model in models for share in SHARES],
        log,
        limits or Limits(),
        lambda row: LatencyRow(**row),
        lambda row: say(line_of(row)),
    )


# --- one network, in a process of its own -----------------------------------------------------


def work(model: str, share: float) -> None:
    """Measure one network and tell."""
    tell({"model": model, "share": share, "error": None}, _figures(model, share))


def _figures(model: str, share: float) -> Iterator[Row]:
    import torch

    from rnp_hub.graph import Graph
    from rnp_hub.hooks import silence
    from rnp_hub.sites import sites_of
    from rnp_hub.slim import slim

    module, _ = network(model, 0)
    example = torch.randn(4, *module.default_cfg["input_size"])
    graph = Graph(module, example[:2])
    silenced = {site: some_of(site.filters, 0, share) for site in sites_of(module, graph)}
    silence(module, silenced)
    small = slim(module, silenced, example, graph=graph)
    quick = slim(module, silenced, example, graph=graph, optimize="latency")
    removed = [sum(count.removed for count in each.layers.values()) for each in (small, quick)]
    with tempfile.TemporaryDirectory() as folder:
        modules = (module, small.module, quick.module)
        runners = list(_runners(Path(folder), modules, example))
        times = {str(n): _in_turn(runners, example[torch.arange(n) % 4].numpy()) for n in BATCHES}
    yield {
        "silenced": sum(map(len, silenced.values())),
        "removed": removed,
        "milliseconds": times,
    }


def _runners(folder: Path, modules: Sequence[Any], example: Any) -> Iterator[Any]:
    from rnp_hub.data import Target
    from rnp_hub.onnx_export import write_onnx
    from rnp_hub.onnx_io import Runner
    from rnp_hub.preprocess import Preprocess

    target = Target(10, Preprocess(tuple(example.shape[1:])))
    for place, module in enumerate(modules):
        file = folder / f"{place}.onnx"
        write_onnx(file, module, target, example)
        yield Runner(file, threads=1)


def _in_turn(runners: Sequence[Any], inputs: Any) -> list[float]:
    best = [float("inf")] * len(runners)
    for _ in range(RUNS):
        for place, runner in enumerate(runners):
            start = time.process_time()
            runner.logits(inputs)
            best[place] = min(best[place], 1000 * (time.process_time() - start))
    return [round(each, 2) for each in best]


# --- the table --------------------------------------------------------------------------------

HEADS = (
    "network", "silenced of every site", "silenced", "removed for size, speed",
    *(f"batch {batch}: as it was, size, speed (CPU ms)" for batch in BATCHES), "trouble",
)  # fmt: skip


def document(rows: Sequence[LatencyRow]) -> str:
    """All rows as a table of Markdown."""
    return table(HEADS, map(line_of, rows))


def line_of(row: LatencyRow) -> str:
    """One row of the table."""
    times = row.milliseconds or {}
    return line([
        row.model, "" if row.share is None else f"{row.share:.0%}", plain(row.silenced),
        ", ".join(map(plain, row.removed or ())),
        *(", ".join(map(str, times.get(str(batch), ()))) for batch in BATCHES), row.error or "",
    ])  # fmt: skip


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    work(sys.argv[1], float(sys.argv[2]))
