"""Slimming over many networks (`rnp-hub bench slim`): is what is removed gone, and is it exact?

For each network, with random weights and random statistics, a share of the filters of every site is
silenced and removed. The smaller network is compared with the silenced one in float64, written to
disk and built again from its config, exported to ONNX and compared in onnxruntime. Each network
runs in a process of its own, with limits, and leaves one line, so that a run can be resumed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rnp_hub.errors import ConfigError, reason

SHARE = 0.25
"""Of the filters of each site that are silenced."""

USUAL_SIZE = 128
"""Pixels, where the network takes them; else what it was made for."""


@dataclass(frozen=True)
class SlimRow:
    """What came of one network; `error` says why a figure is missing.

    Attributes:
        model: name of the timm architecture.
        sites: places where filters can be masked.
        silenced, removed, carriers, kept: filters.
        by: how they were removed.
        parameters: of the silenced network, of the slim one, and of one that only scatters.
        max_rel_diff: of the logits, slim against silenced, float64.
        rebuilt: tensors and logits are the same to the bit after a round over the disk.
        onnx_max_rel_diff: of the logits, onnxruntime against torch, float32.
        exporter: see `onnx_export.LADDER`.
        seconds: of planning, cutting and proving.
        peak_mib: of the process's memory.
        error: the reason for whatever is missing.
    """

    model: str
    sites: int | None = None
    silenced: int | None = None
    removed: int | None = None
    carriers: int | None = None
    kept: int | None = None
    by: Mapping[str, int] | None = None
    parameters: tuple[int, int, int] | None = None
    max_rel_diff: float | None = None
    rebuilt: bool | None = None
    onnx_max_rel_diff: float | None = None
    exporter: str | None = None
    seconds: float | None = None
    peak_mib: float | None = None
    error: str | None = None


# --- one network ------------------------------------------------------------------------------


def measure(model: str, seed: int) -> SlimRow:
    """Silence, remove, compare, rebuild and export one network of timm.

    A failure on the way leaves its reason in `error` and the figures that were known before it.
    """
    found: dict[str, Any] = {"model": model}
    try:
        for figures in _figures(model, seed):
            found |= figures
    except Exception as error:  # a network may fail in any way; the table says which
        found["error"] = f"{type(error).__name__}: {reason(error)}"
    found["peak_mib"] = _peak_mib()
    return SlimRow(**found)


def _figures(model: str, seed: int) -> Iterator[dict[str, Any]]:
    import torch

    from rnp_hub.hooks import silence
    from rnp_hub.sites import gate_sites
    from rnp_hub.slim import WAYS, slim

    torch.manual_seed(seed)
    module, example = _network(model, seed)
    sites = gate_sites(module, example)
    yield {"sites": len(sites)}
    silenced = {site.name: _some(site.filters, seed) for site in sites}
    silence(module, {site: silenced[site.name] for site in sites})
    start = time.perf_counter()
    result = slim(module, silenced, example)
    counts = result.layers.values()
    scattered = slim(module, silenced, example, ways=("scatter",)).module
    yield {
        "seconds": round(time.perf_counter() - start, 1),
        "silenced": sum(each.silenced for each in counts),
        "removed": sum(each.removed for each in counts),
        "carriers": sum(each.carriers for each in counts),
        "kept": sum(each.kept for each in counts),
        "by": {way: sum(getattr(each, way) for each in counts) for way in WAYS},
        "parameters": tuple(map(_parameters, (module, result.module, scattered))),
        "max_rel_diff": result.max_rel_diff,
    }
    with tempfile.TemporaryDirectory() as folder:
        yield {"rebuilt": _rebuilt(Path(folder), model, result, example)}
        yield _onnx(Path(folder) / "model.onnx", result.module, example)


def _network(model: str, seed: int) -> tuple[Any, Any]:
    """A network with random weights and statistics, and pictures of a size that it takes."""
    import timm
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    module = timm.create_model(model, num_classes=10).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.5, generator=draw)
            elif not parameter.any():  # scales that start at 0 would hide what lies behind them
                parameter.normal_(0, 0.1, generator=draw)
        for norm in module.modules():
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                assert norm.running_var is not None
                norm.running_mean.normal_(0, 0.3, generator=draw)
                norm.running_var.uniform_(0.5, 2, generator=draw)
    return module, torch.randn(2, 3, *_size(module), generator=draw)


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


def _some(filters: int, seed: int) -> tuple[int, ...]:
    """A share of them at random, at least one, never all where there are several."""
    import numpy as np

    count = max(1, round(SHARE * filters))
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


# --- many networks ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """Of one network's process: seconds, and MiB of memory that it really uses."""

    seconds: float = 300.0
    mib: float = 8192.0


def names_in(file: Path) -> list[str]:
    """The second column of a table of tabs; lines that begin with # are left out.

    Raises:
        ConfigError: there is no such file, or a line has one column only.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({reason(error)}); give --models FILE") from error
    rows = [line.split("\t") for line in lines if line.strip() and not line.startswith("#")]
    for row in rows:
        if len(row) < 2:
            raise ConfigError(
                f"{file} has the line {row[0]!r} without a second column; each must read "
                "family, a tab, and the name of a timm model"
            )
    return [row[1].strip() for row in rows]


def measure_all(
    models: Sequence[str],
    log: Path,
    seed: int = 0,
    limits: Limits | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[SlimRow]:
    """Measure each network in a process of its own; those that stand in the log are not run again.

    Args:
        models: names of timm architectures.
        log: one JSON line a network, with the seed.
        seed: of weights, statistics and silenced filters.
        limits: a network beyond them is listed as such.
        say: told each row as it comes.
    """
    done = _read(log, seed)
    log.parent.mkdir(parents=True, exist_ok=True)
    for model in models:
        if model not in done:
            row = done[model] = _in_a_process(model, seed, limits or Limits())
            with log.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"seed": seed, **asdict(row)}) + "\n")
            say(line_of(row))
    return [done[model] for model in models]


def _read(log: Path, seed: int) -> dict[str, SlimRow]:
    if not log.is_file():
        return {}
    known = {field.name for field in fields(SlimRow)}
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return {
        row["model"]: SlimRow(**{key: value for key, value in row.items() if key in known})
        for row in rows
        if row["seed"] == seed
    }


def _in_a_process(model: str, seed: int, limits: Limits) -> SlimRow:
    command = [sys.executable, "-m", __name__, model, str(seed)]
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as trouble:
        process = subprocess.Popen(command, stdout=said, stderr=trouble, text=True)
        beyond = _watch(process, start, limits)
        said.seek(0)
        trouble.seek(0)
        lines = said.read().splitlines()
        if process.returncode == 0 and lines:
            return SlimRow(**json.loads(lines[-1]))
        last = (trouble.read().strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    return SlimRow(model, seconds=round(time.monotonic() - start, 1), error=beyond or last)


def _watch(process: subprocess.Popen[str], start: float, limits: Limits) -> str | None:
    """Wait for the process; end it where it goes beyond a limit, and say which."""
    while True:
        try:
            process.wait(0.25)
            return None
        except subprocess.TimeoutExpired:
            used = _used_mib(process.pid)
            if time.monotonic() - start > limits.seconds:
                beyond = f"more than {limits.seconds:.0f} s"
            elif used > limits.mib:
                beyond = f"more than {limits.mib:.0f} MiB"
            else:
                continue
            process.kill()
            process.wait()
            return beyond


def _used_mib(pid: int) -> float:
    """Memory that a process holds; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    held = [line.split()[1] for line in lines if line.startswith("VmRSS")]
    return int(held[0]) / 1024 if held else 0.0


# --- the table --------------------------------------------------------------------------------

HEADS = (
    "network", "sites", "silenced", "removed", "carriers", "zeros",
    "deleted / folded / carried / scattered", "parameters: silenced, slim, scatter only",
    "slim differs by", "rebuilt", "ONNX differs by", "exporter", "s", "trouble",
)  # fmt: skip


def table(rows: Sequence[SlimRow]) -> str:
    """All rows as a table of Markdown, the totals below it."""
    lines = [_line(HEADS), _line(["---"] * len(HEADS)), *map(line_of, rows)]
    return "\n".join([*lines, "", *totals(rows)]) + "\n"


def line_of(row: SlimRow) -> str:
    """One row of the table."""
    by = " / ".join(str(count) for count in (row.by or {}).values())
    sizes = ", ".join(f"{count:,}" for count in row.parameters or ())
    figures = (row.sites, row.silenced, row.removed, row.carriers, row.kept)
    return _line([
        row.model, *map(_plain, figures), by, sizes, _small(row.max_rel_diff),
        {True: "yes", False: "**no**", None: ""}[row.rebuilt], _small(row.onnx_max_rel_diff),
        row.exporter or "", _plain(row.seconds), (row.error or "").replace("|", "/"),
    ])  # fmt: skip


def totals(rows: Sequence[SlimRow]) -> list[str]:
    """What the rows come to."""
    cut = [row for row in rows if row.max_rel_diff is not None]
    gone = sum((row.removed or 0) + (row.carriers or 0) for row in cut)
    silenced = sum(row.silenced or 0 for row in cut)
    exact = sum((row.max_rel_diff or 0) <= 1e-9 for row in cut)
    exported = sum(row.onnx_max_rel_diff is not None for row in rows)
    rebuilt = sum(row.rebuilt is True for row in rows)
    before, slim, scattered = (
        sum((row.parameters or (0, 0, 0))[place] for row in cut) for place in range(3)
    )
    return [
        f"- exact: {exact} of {len(rows)} networks; rebuilt from disk to the bit: {rebuilt}; "
        f"ONNX equals torch: {exported}",
        f"- (removed + carriers) / silenced: {gone:,} / {silenced:,} = "
        f"{gone / max(silenced, 1):.4f}",
        f"- parameters: {before:,} silenced, {slim:,} slim, {scattered:,} if all were scattered",
    ]


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _plain(value: float | None) -> str:
    return "" if value is None else str(value)


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    print(json.dumps(asdict(measure(sys.argv[1], int(sys.argv[2])))))
