"""Slimming over many networks (`rnp-hub bench slim`): is what is removed gone, and is it exact?

For each network, with random weights and random statistics, a share of the filters of every site is
silenced and removed. The smaller network is compared with the silenced one in float64, written to
disk and built again from its config, exported to ONNX and compared in onnxruntime.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rnp_hub.bench.processes import Limits, Row, rows, tell
from rnp_hub.bench.tables import line, plain, small, table
from rnp_hub.errors import ConfigError, RnpHubError, reason

SHARE = 0.25
"""Of the filters of each site that are silenced."""

MAX_REL_DIFF = 1e-9
"""At which a network counts as the same here, whatever slimming itself says."""

USUAL_SIZE = 128
"""Pixels, where the network takes them; else what it was made for."""


@dataclass(frozen=True)
class SlimRow:
    """What came of one network; `error` says why a figure is missing.

    Attributes:
        model: name of the timm architecture.
        size: pixels, height and width.
        sites: places where filters can be masked.
        silenced, removed, carriers, kept: filters.
        by: how they were removed.
        parameters: of the silenced network, of the slim one, and of one that only scatters.
        effect: what silencing changed: of the logits, silenced against untouched.
        max_rel_diff: of the logits, slim against silenced, float64.
        rebuilt: tensors and logits are the same to the bit after a round over the disk.
        onnx_max_rel_diff: of the logits, onnxruntime against torch, float32.
        exporter: see `onnx_export.LADDER`.
        seconds, cpu_seconds: of tracing, planning, cutting and proving.
        peak_mib: of the process's memory, by then.
        torch_export, torch_fx: why these cannot trace it; `None` where they can.
        error: the reason for whatever is missing.
    """

    model: str
    size: tuple[int, int] | None = None
    sites: int | None = None
    silenced: int | None = None
    removed: int | None = None
    carriers: int | None = None
    kept: int | None = None
    by: Mapping[str, int] | None = None
    parameters: tuple[int, int, int] | None = None
    effect: float | None = None
    max_rel_diff: float | None = None
    rebuilt: bool | None = None
    onnx_max_rel_diff: float | None = None
    exporter: str | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_mib: float | None = None
    torch_export: str | None = None
    torch_fx: str | None = None
    error: str | None = None

    @staticmethod
    def of(row: Mapping[str, Any]) -> SlimRow:
        """From what a process said; keys of other versions are left out."""
        known = {field.name for field in fields(SlimRow)}
        return SlimRow(**{key: value for key, value in row.items() if key in known})


def measure_all(
    models: Sequence[str],
    log: Path,
    seed: int = 0,
    limits: Limits | None = None,
    say: Callable[[str], None] = lambda _: None,
    *,
    onnx: bool = True,
) -> list[SlimRow]:
    """Measure each network in a process of its own; those that stand in the log are not run again.

    Args:
        models: names of timm architectures.
        log: one JSON line a network.
        seed: of weights, statistics and silenced filters.
        limits: a network beyond them is listed as such.
        say: told each row as it comes.
        onnx: export each, which takes longer than all the rest.
    """
    return rows(
        "rnp_hub.bench.slimming",
        [(model, str(seed), *(() if onnx else ("no-onnx",))) for model in models],
        log,
        limits or Limits(),
        SlimRow.of,
        lambda row: say(line_of(row)),
    )


def names_in(file: Path) -> list[str]:
    """The second column of a table of tabs; lines that begin with # are left out.

    Raises:
        ConfigError: there is no such file, or a line has one column only.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({reason(error)}); give --models FILE") from error
    columns = [each.split("\t") for each in lines if each.strip() and not each.startswith("#")]
    for row in columns:
        if len(row) < 2:
            raise ConfigError(
                f"{file} has the line {row[0]!r} without a second column; each must read "
                "family, a tab, and the name of a timm model"
            )
    return [row[1].strip() for row in columns]


# --- one network, in a process of its own -----------------------------------------------------


def work(model: str, seed: int, *, onnx: bool) -> None:
    """Silence, remove, compare, rebuild and export one network of timm, telling as it goes.

    A failure on the way leaves its reason in `error` and the figures that were known before it.
    """
    tell({"model": model, "error": None}, _figures(model, seed, onnx=onnx), (RnpHubError,))


def _figures(model: str, seed: int, *, onnx: bool) -> Iterator[Row]:
    import torch

    from rnp_hub.hooks import silence
    from rnp_hub.network import logits_of
    from rnp_hub.sites import sites_of
    from rnp_hub.slim import WAYS, slim

    torch.manual_seed(seed)
    module, example = network(model, seed)
    yield {"size": tuple(example.shape[2:]), "torch_fx": _torch_fx(module)}
    start, started = time.perf_counter(), time.process_time()
    graph, why = _traced(module, example)
    sites = sites_of(module, graph)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - started
    yield {"torch_export": why, "sites": len(sites)}
    with torch.no_grad():
        untouched = logits_of(module(example))
    silenced = {site: some_of(site.filters, seed) for site in sites}
    silence(module, silenced)
    start, started = time.perf_counter(), time.process_time()
    result = slim(module, silenced, example, graph=graph)
    seconds += time.perf_counter() - start
    cpu_seconds += time.process_time() - started
    counts = result.layers.values()
    with torch.no_grad():
        answers = logits_of(module(example))
    yield {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "peak_mib": _peak_mib(),
        "effect": float((answers - untouched).abs().max() / untouched.abs().max()),
        "silenced": sum(each.silenced for each in counts),
        "removed": sum(each.removed for each in counts),
        "carriers": sum(each.carriers for each in counts),
        "kept": sum(each.kept for each in counts),
        "by": {way: sum(getattr(each, way) for each in counts) for way in WAYS},
        "max_rel_diff": result.max_rel_diff,
    }
    with tempfile.TemporaryDirectory() as folder:
        yield {"rebuilt": _rebuilt(Path(folder), model, result, example)}
        scattered = slim(module, silenced, example, graph=graph, ways=("scatter",)).module
        yield {"parameters": tuple(map(_parameters, (module, result.module, scattered)))}
        if onnx:
            yield _onnx(Path(folder) / "model.onnx", result.module, example)


def network(model: str, seed: int) -> tuple[Any, Any]:
    """A network with random weights and statistics, and pictures of a size that it takes.

    Raises:
        ConfigError: timm knows no such network.
    """
    import timm
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    if not timm.is_model(model):
        raise ConfigError(f"timm {timm.__version__} knows no network {model!r}")
    module = timm.create_model(model, num_classes=10).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            _randomise(name.rpartition(".")[2], parameter, draw)
        for norm in module.modules():
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                assert norm.running_var is not None
                norm.running_mean.normal_(0, 0.3, generator=draw)
                norm.running_var.uniform_(0.5, 2, generator=draw)
    return module, torch.randn(2, 3, *_size(module), generator=draw)


TINY = 0.01
"""Weights that start below it would hide whatever lies behind them."""


def _randomise(name: str, parameter: Any, draw: Any) -> None:
    if "bias" in name and parameter.dim() == 1:
        parameter.normal_(0, 0.5, generator=draw)
    elif parameter.dim() == 1:
        parameter.uniform_(0.5, 1.5, generator=draw)
    elif float(parameter.abs().max()) < TINY:
        parameter.normal_(0, parameter[0].numel() ** -0.5, generator=draw)


def _size(module: Any) -> tuple[int, int]:
    import torch

    height, width = module.default_cfg["input_size"][1:]
    small = min(height, USUAL_SIZE), min(width, USUAL_SIZE)
    try:
        with torch.no_grad():
            module(torch.zeros(1, 3, *small))
    except Exception:  # networks refuse a size in many ways
        return int(height), int(width)
    return small


def _torch_fx(module: Any) -> str | None:
    import torch

    try:
        torch.fx.symbolic_trace(module)
    except Exception as error:  # whatever the network's code raises on a proxy
        return f"{type(error).__name__}: {reason(error)}"
    return None


def _traced(module: Any, example: Any) -> tuple[Any, str | None]:
    from rnp_hub.errors import ModelError
    from rnp_hub.graph import Graph

    try:
        return Graph(module, example), None
    except ModelError as error:
        return None, str(error)


def some_of(filters: int, seed: int, share: float = SHARE) -> tuple[int, ...]:
    """A share of them at random, at least one, never all where there are several."""
    import numpy as np

    count = max(1, round(share * filters))
    return tuple(sorted(np.random.default_rng(seed).permutation(filters)[:count].tolist()))


def _parameters(module: Any) -> int:
    return sum(each.numel() for each in module.parameters())


def _rebuilt(folder: Path, model: str, result: Any, example: Any) -> bool:
    """Whether a slim folder gives the same network to the bit."""
    import torch
    from safetensors.torch import save_file

    from rnp_hub.architecture import OWN_KEY, Architecture
    from rnp_hub.network import logits_of
    from rnp_hub.pull import load
    from rnp_hub.weights import WEIGHTS

    config = {
        "architecture": model,
        "num_classes": 10,
        "pretrained_cfg": {"input_size": [3, *example.shape[2:]]},
        OWN_KEY: Architecture(model, 10, edits=result.edits).own_config(),
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: each.contiguous().clone() for name, each in result.module.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)
    again = load(str(folder))
    stored = again.state_dict()
    same = stored.keys() == tensors.keys() and all(
        torch.equal(stored[name], tensors[name]) for name in tensors
    )
    with torch.no_grad():
        logits = [logits_of(each.eval()(example)) for each in (result.module, again)]
    return same and torch.equal(*logits)


def _onnx(file: Path, module: Any, example: Any) -> dict[str, Any]:
    import torch

    from rnp_hub.data import Target
    from rnp_hub.onnx_export import write_onnx
    from rnp_hub.preprocess import Preprocess

    target = Target(10, Preprocess(tuple(example.shape[1:])))
    probe = torch.randn(8, *example.shape[1:], generator=torch.Generator().manual_seed(1))
    record = write_onnx(file, module, target, probe)
    return {"onnx_max_rel_diff": record.max_rel_diff, "exporter": record.exporter}


def _peak_mib() -> float:
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 0)


# --- the table --------------------------------------------------------------------------------

HEADS = (
    "network", "pixels", "sites", "silenced", "removed", "carriers", "zeros",
    "deleted / folded / carried / scattered", "million parameters: silenced, slim, scatter only",
    "silencing changes", "slim differs", "rebuilt", "ONNX differs", "exporter", "s", "CPU s",
    "MiB", "trouble",
)  # fmt: skip


def document(rows: Sequence[SlimRow]) -> str:
    """The totals, then all rows as a table of Markdown."""
    return "\n".join([*totals(rows), "", table(HEADS, map(line_of, rows))])


def line_of(row: SlimRow) -> str:
    """One row of the table."""
    by = " / ".join(str(count) for count in (row.by or {}).values())
    sizes = ", ".join(f"{count / 1e6:.2f}" for count in row.parameters or ())
    figures = (row.sites, row.silenced, row.removed, row.carriers, row.kept)
    return line([
        row.model, "×".join(map(str, row.size or ())), *map(plain, figures), by, sizes,
        small(row.effect), small(row.max_rel_diff),
        {True: "yes", False: "**no**", None: ""}[row.rebuilt], small(row.onnx_max_rel_diff),
        row.exporter or "", plain(row.seconds), plain(row.cpu_seconds), plain(row.peak_mib),
        row.error or row.torch_export or "",
    ])  # fmt: skip


def totals(rows: Sequence[SlimRow]) -> list[str]:
    """What the rows come to."""
    cut = [row for row in rows if row.max_rel_diff is not None]
    gone = sum((row.removed or 0) + (row.carriers or 0) for row in cut)
    silenced = sum(row.silenced or 0 for row in cut)
    exact = sum((row.max_rel_diff or 0) <= MAX_REL_DIFF for row in cut)
    sized = [row.parameters for row in cut if row.parameters]
    before, slim, scattered = (sum(each[place] for each in sized) / 1e6 for place in range(3))
    built = [row for row in rows if row.size is not None]
    return [
        f"- exact: {exact} of {len(rows)} networks, at most "
        f"{max((row.max_rel_diff or 0 for row in cut), default=0):.0e} apart where silencing "
        f"changes the logits by at least {min((row.effect or 0 for row in cut), default=0):.0e}",
        f"- rebuilt from disk to the bit: {sum(row.rebuilt is True for row in rows)} of "
        f"{len(rows)}; ONNX equals torch: {_exported(rows)}",
        f"- (removed + carriers) / silenced: {gone:,} / {silenced:,} = "
        f"{gone / max(silenced, 1):.4f}",
        f"- million parameters: {before:,.1f} silenced, {slim:,.1f} slim, {scattered:,.1f} if all "
        "were scattered",
        f"- torch.export traces {sum(row.torch_export is None for row in built)} of {len(built)}, "
        f"torch.fx {sum(row.torch_fx is None for row in built)}",
    ]


def _exported(rows: Sequence[SlimRow]) -> str:
    count = sum(row.onnx_max_rel_diff is not None for row in rows)
    return f"{count} of {len(rows)}" if count else "not tried"


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    work(sys.argv[1], int(sys.argv[2]), onnx="no-onnx" not in sys.argv[3:])
