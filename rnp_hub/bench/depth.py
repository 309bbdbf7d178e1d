"""What slimming takes as networks grow deeper (`rnp-hub bench depth`).

Tracing, planning, cutting and proving, a quarter of the filters of every site, at the size the
network was made for. CPU seconds are those of all threads, and the same on a busy machine.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnp_hub.bench.processes import Limits, rows, tell
from rnp_hub.bench.slimming import network, some_of
from rnp_hub.bench.tables import line, plain, table

MODELS = ("resnet18", "resnet34", "resnet50", "resnet101")


@dataclass(frozen=True)
class DepthRow:
    """What one network took.

    Attributes:
        model: name of the timm architecture.
        layers: convolutions, linear layers and BatchNorms.
        silenced: filters.
        seconds: by the clock.
        cpu_seconds: of all threads: tracing, then planning, cutting and proving.
        peak_mib: of the whole process, torch and timm included.
        threads: torch's.
        max_rel_diff: of the logits, slim against silenced, float64.
        error: the reason for whatever is missing.
    """

    model: str
    layers: int | None = None
    silenced: int | None = None
    seconds: float | None = None
    cpu_seconds: tuple[float, float] | None = None
    peak_mib: float | None = None
    threads: int | None = None
    max_rel_diff: float | None = None
    error: str | None = None


def measure_all(
    models: Sequence[str],
    log: Path,
    limits: Limits | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[DepthRow]:
    """Measure each network in a process of its own; those that stand in the log are not run again.

    Args: see `slimming.measure_all`.
    """
    return rows(
        "rnp_hub.bench.depth",
        [(model,) for model in models],
        log,
        limits or Limits(),
        lambda row: DepthRow(**row),
        lambda row: say(line_of(row)),
    )


# --- one network, in a process of its own -----------------------------------------------------


def work(model: str) -> None:
    """Slim one network and tell what that took."""
    tell({"model": model, "error": None}, _figures(model))


def _figures(model: str) -> Iterator[Mapping[str, Any]]:
    import torch

    from rnp_hub.graph import Graph
    from rnp_hub.hooks import silence
    from rnp_hub.sites import sites_of
    from rnp_hub.slim import EXAMPLES, slim

    module, _ = network(model, 0)
    example = torch.randn(EXAMPLES, *module.default_cfg["input_size"])
    clock, start = time.perf_counter(), time.process_time()
    graph = Graph(module, example[:2])
    sites = sites_of(module, graph)
    traced = time.process_time()
    silenced = {site: some_of(site.filters, 0) for site in sites}
    silence(module, silenced)
    result = slim(module, silenced, example, graph=graph)
    yield {
        "layers": sum(1 for _ in graph.layers()),
        "silenced": sum(map(len, silenced.values())),
        "seconds": round(time.perf_counter() - clock, 1),
        "cpu_seconds": (round(traced - start, 1), round(time.process_time() - traced, 1)),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "threads": torch.get_num_threads(),
        "max_rel_diff": result.max_rel_diff,
    }


# --- the table --------------------------------------------------------------------------------

HEADS = (
    "network", "layers", "silenced", "s", "CPU s: trace, rest", "CPU s per layer", "MiB", "threads",
    "slim differs", "trouble",
)  # fmt: skip


def document(rows: Sequence[DepthRow]) -> str:
    """All rows as a table of Markdown."""
    return table(HEADS, map(line_of, rows))


def line_of(row: DepthRow) -> str:
    """One row of the table."""
    times, layers = row.cpu_seconds or (), row.layers
    return line([
        row.model, plain(layers), plain(row.silenced), plain(row.seconds),
        ", ".join(map(str, times)), f"{sum(times) / layers:.3f}" if times and layers else "",
        plain(row.peak_mib), plain(row.threads),
        "" if row.max_rel_diff is None else f"{row.max_rel_diff:.0e}", row.error or "",
    ])  # fmt: skip


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    work(sys.argv[1])
