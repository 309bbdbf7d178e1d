"""Lists of filters, removed by us and by Torch-Pruning (`rnp-hub bench requests`).

A request names three filters of one convolution or linear layer, evenly spaced, in layers that are
evenly spaced over the network, its classifier left out. Masking them means that they emit 0. Each
answer is held against the masked network in float64, on pictures that no planner has seen.

Torch-Pruning takes more with it than the layer it was asked for: all that is coupled to it. So its
answer is also held against the network in which everything that it removed is masked.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rnp_hub.bench.processes import Limits, rows, tell
from rnp_hub.bench.slimming import MAX_REL_DIFF, network
from rnp_hub.bench.tables import line, plain, small, table
from rnp_hub.errors import reason

MODELS = (
    "resnet18", "resnet50", "seresnet50", "resnext50_32x4d", "regnety_002", "vgg11_bn",
    "inception_v3", "densenet121", "mobilenetv2_100", "mobilenetv3_small_100",
    "mobilenetv4_conv_small", "efficientnet_b0", "tf_efficientnetv2_b0", "ghostnet_100",
    "rexnet_100", "repvgg_a0", "mobileone_s0", "hrnet_w18_small", "dla34", "res2net50_26w_4s",
    "cspdarknet53", "resnetv2_50", "eca_nfnet_l0", "convnext_atto", "edgenext_xx_small",
    "poolformer_s12", "fastvit_t8", "levit_128s", "vit_tiny_patch16_224",
    "deit3_small_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224",
)  # fmt: skip
"""Of timm; those that Torch-Pruning was first measured on."""

LAYERS = 7
FILTERS = 3


@dataclass(frozen=True)
class Rates:
    """Of the requests to one network, how many.

    Attributes:
        runs: raised nothing, and the filters are gone.
        layer: equal masking the layer, and nothing else.
        removed: equal masking everything that was removed.
        silent: raised nothing and equal neither.
    """

    runs: int = 0
    layer: int = 0
    removed: int = 0
    silent: int = 0

    def with_answer(self, layer: float, removed: float) -> Rates:
        """One more that ran, so far from the network with the layer, or all removed, masked."""
        same_layer, same_removed = layer <= MAX_REL_DIFF, min(layer, removed) <= MAX_REL_DIFF
        return Rates(
            self.runs + 1,
            self.layer + same_layer,
            self.removed + same_removed,
            self.silent + (not same_removed),
        )


@dataclass(frozen=True)
class RequestRow:
    """What came of the requests to one network.

    Attributes:
        model: name of the timm architecture.
        requests: how many.
        ours, theirs: see `Rates`; `theirs` is `None` where Torch-Pruning is not installed.
        worst: of ours, the largest relative difference to the masked network.
        ours_error, theirs_error: the first reason why one did not run.
        cpu_seconds: of ours.
        error: the reason for whatever is missing.
    """

    model: str
    requests: int = 0
    ours: Rates | None = None
    theirs: Rates | None = None
    worst: float | None = None
    ours_error: str | None = None
    theirs_error: str | None = None
    cpu_seconds: float | None = None
    error: str | None = None

    @staticmethod
    def of(row: Mapping[str, Any]) -> RequestRow:
        """From what a process said."""
        rates = {key: Rates(**row[key]) for key in ("ours", "theirs") if row.get(key)}
        return RequestRow(**{**row, **rates})


def measure_all(
    models: Sequence[str],
    log: Path,
    seed: int = 0,
    limits: Limits | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[RequestRow]:
    """Measure each network in a process of its own; those that stand in the log are not run again.

    Args: see `slimming.measure_all`.
    """
    return rows(
        "rnp_hub.bench.requests",
        [
            (model, str(seed), *(["torch_pruning"] if has_torch_pruning() else []))
            for model in models
        ],
        log,
        limits or Limits(),
        RequestRow.of,
        lambda row: say(line_of(row)),
    )


def has_torch_pruning() -> bool:
    """Whether there is somebody to compare with."""
    return importlib.util.find_spec("torch_pruning") is not None


# --- one network, in a process of its own -----------------------------------------------------


def work(model: str, seed: int, *, compare: bool) -> None:
    """Put all requests to one network, telling as it goes."""
    known = RequestRow(model)
    tell(asdict(known), map(asdict, _answers(known, seed, compare=compare)))


def _answers(row: RequestRow, seed: int, *, compare: bool) -> Iterator[RequestRow]:
    import torch

    from rnp_hub.graph import Graph

    torch.manual_seed(seed)
    module, example = network(row.model, seed)
    module, example = module.double(), example.double()
    graph = Graph(module, example)
    row = replace(row, ours=Rates(), theirs=Rates() if compare else None, worst=0.0)
    start = time.process_time()
    for name, filters in requests(module):
        row = replace(row, requests=row.requests + 1)
        row = _ours(row, module, graph, example, name, filters)
        row = replace(row, cpu_seconds=round(time.process_time() - start, 1))
        yield row
    for name, filters in requests(module) if compare else ():
        row = _theirs(row, module, example, name, filters)
        yield row


def requests(module: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names of layers and indices of their filters."""
    from torch import nn

    named = [
        (name, len(part.weight))
        for name, part in module.named_modules()
        if isinstance(part, nn.Conv2d | nn.Linear)
    ]
    named = [each for each in named if module.get_submodule(each[0]) not in _classifiers(module)]
    places = dict.fromkeys(round(i * (len(named) - 1) / (LAYERS - 1)) for i in range(LAYERS))
    for name, width in (named[place] for place in places):
        yield name, tuple(sorted({i * width // FILTERS for i in range(FILTERS)}))


def _classifiers(module: Any) -> tuple[Any, ...]:
    found = module.get_classifier()
    return tuple(found) if isinstance(found, list | tuple) else (found,)


def masked(module: Any, rows: Mapping[str, Sequence[int]]) -> Any:
    """A copy in which rows of layers and channels of norms emit 0."""
    import torch

    twin = copy.deepcopy(module)
    with torch.no_grad():
        for name, filters in rows.items():
            layer = twin.get_submodule(name)
            for parameter in layer.parameters(recurse=False):
                if parameter.dim() and len(parameter) == len(layer.weight):
                    parameter[list(filters)] = 0
    return twin


def _ours(
    row: RequestRow, module: Any, graph: Any, example: Any, name: str, filters: tuple[int, ...]
) -> RequestRow:
    from rnp_hub.sites import layer_site
    from rnp_hub.slim import slim

    silent = masked(module, {name: filters})
    assert row.ours is not None
    try:
        result = slim(silent, {layer_site(silent, name): filters}, example, graph=graph)
        count = result.layers[name]
        if count.removed + count.carriers < len(filters):
            return replace(row, ours_error=row.ours_error or f"{name}: {count.kept} kept")
        off = _difference(silent, result.module, example)
    except Exception as error:  # the table says which
        return replace(row, ours_error=row.ours_error or f"{name}: {reason(error)}")
    return replace(row, ours=row.ours.with_answer(off, off), worst=max(row.worst or 0.0, off))


def _difference(one: Any, other: Any, example: Any) -> float:
    """On noise drawn here; infinity where it is not finite, or of another shape."""
    import torch

    from rnp_hub.network import logits_of

    noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(17)).to(example)
    with torch.no_grad():
        expected, found = (logits_of(each.eval()(noise)) for each in (one, other))
    if expected.shape != found.shape or not found.isfinite().all():
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max())


def _theirs(
    row: RequestRow, module: Any, example: Any, name: str, filters: tuple[int, ...]
) -> RequestRow:
    assert row.theirs is not None
    try:
        pruned, removed = _torch_pruning(copy.deepcopy(module), example, name, filters)
        silent = [masked(module, each) for each in _layer_masks(module, removed, name, filters)]
        layer = min(_difference(each, pruned, example) for each in silent)
        everything = _difference(masked(module, removed), pruned, example)
    except Exception as error:  # the table says which
        return replace(row, theirs_error=row.theirs_error or f"{name}: {reason(error)}")
    return replace(row, theirs=row.theirs.with_answer(layer, everything))


def _torch_pruning(
    module: Any, example: Any, name: str, filters: tuple[int, ...]
) -> tuple[Any, dict[str, list[int]]]:
    """The network that it makes, and by layer the rows and channels that it removes."""
    import torch
    import torch_pruning
    from torch import nn

    names = {part: each for each, part in module.named_modules()}
    graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=example)
    layer = module.get_submodule(name)
    prune = graph.get_pruner_of_module(layer).prune_out_channels
    group = graph.get_pruning_group(layer, prune, idxs=list(filters))
    removed: dict[str, list[int]] = {}
    for dependency, indices in group:
        part = dependency.target.module
        made = graph.is_out_channel_pruning_fn(dependency.handler)
        if made and isinstance(part, nn.Module) and getattr(part, "weight", None) is not None:
            removed.setdefault(names[part], []).extend(indices)
    group.prune()
    with torch.no_grad():
        module(example)
    return module, removed


def _layer_masks(
    module: Any, removed: Mapping[str, Sequence[int]], name: str, filters: tuple[int, ...]
) -> Iterator[dict[str, Sequence[int]]]:
    """Ways to read "masking the layer": its rows emit 0, or its norm does for them."""
    from torch.nn.modules.batchnorm import _BatchNorm

    yield {name: filters}
    for other, indices in removed.items():
        norm = isinstance(module.get_submodule(other), _BatchNorm)
        if norm and tuple(sorted(indices)) == filters:
            yield {other: filters}


# --- the table --------------------------------------------------------------------------------

WORDS = ("runs", "= layer masked", "= all removed masked", "wrong, no exception")
HEADS = (
    "network", "requests", *(f"ours: {word}" for word in WORDS), "ours differs",
    *(f"Torch-Pruning: {word}" for word in WORDS), "CPU s", "trouble",
)  # fmt: skip


def document(rows: Sequence[RequestRow]) -> str:
    """The rates of both side by side, then each network."""
    return "\n".join([*totals(rows), "", table(HEADS, map(line_of, rows))])


def line_of(row: RequestRow) -> str:
    """One row of the table."""
    troubles = [
        row.error,
        row.ours_error and f"ours: {row.ours_error}",
        row.theirs_error and f"theirs: {row.theirs_error}",
    ]
    return line([
        row.model, row.requests, *_cells(row.ours), small(row.worst), *_cells(row.theirs),
        plain(row.cpu_seconds), "; ".join(filter(None, troubles)),
    ])  # fmt: skip


def _cells(rates: Rates | None) -> tuple[object, ...]:
    return ("",) * 4 if rates is None else (rates.runs, rates.layer, rates.removed, rates.silent)


def totals(rows: Sequence[RequestRow]) -> list[str]:
    """The four rates of each."""
    asked = sum(row.requests for row in rows)
    lines = [table(("", "requests", *WORDS), list(_totals(rows, asked)))]
    if all(row.theirs is None for row in rows):
        lines.append("Torch-Pruning is not installed, so nothing was compared with it.\n")
    return lines


def _totals(rows: Sequence[RequestRow], asked: int) -> Iterator[str]:
    for title, of in (("ours", "ours"), ("Torch-Pruning", "theirs")):
        found = [rates for row in rows if (rates := getattr(row, of)) is not None]
        counts = [sum(each) for each in zip(*map(_cells, found), strict=True)]
        if found:
            yield line([title, asked, *(f"{n} ({n / max(asked, 1):.0%})" for n in counts)])


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    work(sys.argv[1], int(sys.argv[2]), compare="torch_pruning" in sys.argv[3:])
