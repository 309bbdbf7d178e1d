"""Removing silenced filters for good: a smaller network that computes the same logits.

A silenced filter is a constant c, and the way to remove it depends on who reads it:

- *delete*: every reader sees exactly 0 (β ≤ 0 before a ReLU): its row and their columns go.
- *fold*: the readers mix it without padding; c times its columns goes into their bias.
- *carry*: a padded convolution cannot take the constant into its bias, since there is none at the
  border; one silenced channel stays and carries the constants of all, scaled by their columns.
- *scatter*: whatever else reads it (a residual sum, say): the row goes, and `ChannelScatter` puts
  the other channels back in their places with the constants between them. A layer that is silent as
  a whole leaves only its constants, and takes along what only it needed.

Attention heads and the units of a gated product read 0: their columns go, and with them the rows
that make them, with the number of heads set (*delete*) or with zeros in their place (*scatter*).

What none of these can do exactly stays as a zero and is counted. Nothing is believed: the two
networks are compared in float64 before the smaller one is given out.
"""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from rnp_hub.edits import SIZES, Edits, LayerEdit, apply_edits
from rnp_hub.errors import ModelError, ProofError
from rnp_hub.flow import Reader, group_of_columns, readers, sources
from rnp_hub.graph import MIXERS, Graph, arguments
from rnp_hub.hooks import gated_layer
from rnp_hub.network import evaluation_mode, logits_of, on_cpu
from rnp_hub.sites import Site, silent_output, sites_of

MAX_REL_DIFF = 1e-9
"""Largest |Δ logit| / |logit| in float64 at which two networks count as the same."""

EXAMPLES = 8
"""Pictures the proof looks at, besides as many of noise."""

WAYS = ("delete", "fold", "carry", "scatter")


@dataclass(frozen=True)
class LayerCount:
    """What was asked of one site and what came of it, in filters."""

    silenced: int
    delete: int = 0
    fold: int = 0
    carry: int = 0
    scatter: int = 0
    carriers: int = 0
    kept: int = 0

    @property
    def removed(self) -> int:
        return self.delete + self.fold + self.carry + self.scatter


@dataclass(frozen=True)
class Slimmed:
    """The smaller network.

    Attributes:
        module: the network, a copy.
        edits: what was done to which layer: enough to build it again.
        layers: by site name, how its filters were removed.
        max_rel_diff: largest |Δ logit| / largest |logit| against the silenced network, float64.
        refused: sites whose removal failed the proof and that were left as they were.
    """

    module: nn.Module
    edits: Edits
    layers: Mapping[str, LayerCount]
    max_rel_diff: float
    refused: tuple[str, ...] = ()


def slim(
    module: nn.Module,
    silenced: Mapping[str, Sequence[int]],
    example: Tensor,
    *,
    output: str | int | None = None,
    ways: Collection[str] = WAYS,
) -> Slimmed:
    """Remove the silenced filters of a network whose weights are 0 there.

    Args:
        module: the silenced network, any device; left as it was.
        silenced: by site name, indices of filters.
        example: (n, C, H, W), what the module takes, n ≥ 2; the proof uses it besides noise.
        output: which element of the module's output is the logits; see `Classifier`.
        ways: those of `WAYS` that may be taken; what needs another stays as zeros.

    Raises:
        ModelError: a name is no site of this network.
        ProofError: the smaller network does not compute the same, and no single layer is to blame.
    """
    dtype = next(module.parameters()).dtype
    dense = on_cpu(module).double()
    example = example[:EXAMPLES].detach().cpu().double().contiguous()
    asked = {name: tuple(gone) for name, gone in silenced.items() if gone}
    choice = {
        site: [plan for plan in plans if plan.ways <= set(ways)]
        for site, plans in _ways(dense, asked, example).items()
    }
    plans, smaller, difference = _exact(dense, choice, _Proof(dense, example, output))
    layers = {site: LayerCount(len(gone), kept=len(gone)) for site, gone in silenced.items()}
    layers.update({site: plan.count for site, plan in plans.items()})
    return Slimmed(
        module=smaller.to(dtype),
        edits=_edits(dense, plans.values()),
        layers=layers,
        max_rel_diff=difference,
        refused=tuple(site for site in choice if choice[site] and site not in plans),
    )


# --- the proof --------------------------------------------------------------------------------


class _Proof:
    """What the silenced network answers, to compare others with."""

    def __init__(self, dense: nn.Module, example: Tensor, output: str | int | None) -> None:
        self.output = output
        noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
        larger = nn.functional.interpolate(noise, scale_factor=1.5, mode="nearest")
        self.answers: list[tuple[Tensor, Tensor]] = []
        for inputs in (example, noise.to(example), larger.to(example)):
            try:
                self.answers.append((inputs, self._logits(dense, inputs)))
            # Many networks take pictures of one size only, and stumble over others anyhow.
            except Exception:
                if inputs.shape == example.shape:
                    raise

    def _logits(self, module: nn.Module, inputs: Tensor) -> Tensor:
        with torch.no_grad(), evaluation_mode(module):
            return logits_of(module(inputs), self.output)

    def difference(self, other: nn.Module) -> float:
        """Largest |Δ logit| / largest |logit|; infinity where it is not finite."""
        worst = 0.0
        for inputs, expected in self.answers:
            found = self._logits(other, inputs)
            largest = float(expected.abs().max()) or 1.0
            difference = float((found - expected).abs().max()) / largest
            worst = max(worst, difference if difference == difference else float("inf"))
        return worst


def relative_difference(
    one: nn.Module, other: nn.Module, example: Tensor, output: str | int | None = None
) -> float:
    """max |Δ logit| / max |logit| on the example and on noise, there and at another size.

    Where the first network refuses the other size, that size is left out.
    """
    return _Proof(one, example, output).difference(other)


def _exact(
    dense: nn.Module, ways: Mapping[str, Sequence[_Plan]], proof: _Proof
) -> tuple[dict[str, _Plan], nn.Module, float]:
    """Of each site's plans the first that passes the proof, alone and with all others.

    Returns:
        The plans, the network they make, and its difference.

    Raises:
        ProofError: nothing is cut and still the proof fails.
    """
    waiting = {site: list(plans) for site, plans in ways.items() if plans}

    def attempt(some: Sequence[str]) -> tuple[nn.Module, float]:
        try:
            smaller = _cut(dense, [waiting[site][0] for site in some])
            return smaller, proof.difference(smaller)
        # A network may run any code on the shapes it meets; what raises is not the same network.
        except Exception:
            return dense, float("inf")

    def culprits(some: Sequence[str]) -> list[str]:
        if attempt(some)[1] <= MAX_REL_DIFF:
            return []
        if len(some) == 1:
            return list(some)
        half = len(some) // 2
        return [*culprits(some[:half]), *culprits(some[half:])]

    while True:
        smaller, difference = attempt(list(waiting))
        if difference <= MAX_REL_DIFF:
            return {site: plans[0] for site, plans in waiting.items()}, smaller, difference
        if not waiting:
            raise ProofError(
                "the network does not give the same logits twice, so that nothing can be removed "
                "with proof; make its evaluation mode deterministic"
            )
        halves = list(waiting)[::2], list(waiting)[1::2]
        # Where each half holds alone, they do not hold together: all take their next plan.
        for site in [name for half in halves if half for name in culprits(half)] or list(waiting):
            waiting[site].pop(0)
            if not waiting[site]:
                del waiting[site]


# --- plans ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """One way to remove the filters of one site.

    Attributes:
        count: for the report.
        edits: what becomes of the layers that hold the filters.
        columns: by reading layer, the columns that go.
        folds: by reading layer, columns and the constants that go into its bias.
        carries: by reading layer, pairs of columns: what goes, and the carrier that takes it.
    """

    count: LayerCount
    edits: Mapping[str, LayerEdit]
    columns: Mapping[str, Sequence[int]] = field(default_factory=dict)
    folds: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    carries: Mapping[str, Sequence[tuple[int, int, float]]] = field(default_factory=dict)

    @property
    def ways(self) -> set[str]:
        """Those of `WAYS` that it takes."""
        return {way for way in WAYS if getattr(self.count, way)}


def _ways(
    dense: nn.Module, silenced: Mapping[str, tuple[int, ...]], example: Tensor
) -> dict[str, list[_Plan]]:
    """By site, ways to remove its filters, the best first."""
    try:
        graph = Graph(dense, example[:2])
    except ModelError:
        graph = None
    sites = {site.name: site for site in sites_of(dense, graph)}
    if unknown := set(silenced) - set(sites):
        raise ModelError(f"`{sorted(unknown)[0]}` is no site whose filters could be removed")
    return {name: _plans(dense, graph, sites[name], gone) for name, gone in silenced.items()}


def _plans(
    dense: nn.Module, graph: Graph | None, site: Site, silenced: tuple[int, ...]
) -> list[_Plan]:
    """Ways to remove the filters of a site, the best first."""
    if len(silenced) < site.filters:
        return _Removal(dense, graph, site, silenced, LayerCount(len(silenced))).plans()
    # A layer that somebody reads cannot be empty: where all of it is silent, one filter stays.
    count = LayerCount(len(silenced), kept=1)
    some = _Removal(dense, graph, site, silenced[1:], count).plans() if len(silenced) > 1 else []
    hollow = _hollow(graph, site) if graph else None
    if hollow is None or (some and some[0].columns and site.kind != "input"):
        return some
    return [hollow, *some]


def _hollow(graph: Graph, site: Site) -> _Plan | None:
    """Leave nothing of a site but its constants, and nothing of the layers that only it needs."""
    if graph.call(site.name) is None:
        return None
    names = (site.name, *graph.dead_without(site.name))
    edits = {name: LayerEdit(hollow=True) for name in names}
    return _Plan(LayerCount(site.filters, scatter=site.filters), edits)


@dataclass(frozen=True)
class _Removal:
    """The filters of one site that are to go."""

    dense: nn.Module
    graph: Graph | None
    site: Site
    gone: tuple[int, ...]
    count: LayerCount

    @property
    def kept(self) -> tuple[int, ...]:
        return _without(range(self.site.filters), self.gone)

    def plans(self) -> list[_Plan]:
        """The ways to remove them, the best first."""
        return self.of_input() if self.site.kind == "input" else self.of_output()

    # --- channels of a normalisation or a layer -----------------------------------------------

    def of_output(self) -> list[_Plan]:
        everything = tuple(range(self.site.filters))
        scattered = _Plan(
            replace(self.count, scatter=len(self.gone)), self._rows(self.kept, everything)
        )
        # Some networks look at their layers' attributes: then the norm is all that is touched.
        alone = LayerEdit(outputs=self.kept, standing=everything, gather=True)
        last = [replace(scattered, edits={self.site.name: alone})] if self._producer() else []
        start = self.graph.output(self.site.name) if self.graph else None
        if self.graph is None or start is None:
            return [scattered, *last]
        constants = silent_output(gated_layer(self.dense, self.site))
        found = readers(self.graph, start, constants)
        if found.mixers or found.others:
            return [scattered, *last]
        return [self._read(found.known), scattered, *last]

    def _rows(
        self, kept: tuple[int, ...], standing: tuple[int, ...] | None = None
    ) -> dict[str, LayerEdit]:
        """Edits of the layers that hold the filters: a norm and what stands before it alone."""
        if self.site.kind == "output":
            return {self.site.name: LayerEdit(outputs=kept, standing=standing)}
        producer = self._producer()
        norm = LayerEdit(outputs=kept, standing=standing, gather=producer is None)
        edits = {self.site.name: norm}
        return {producer: LayerEdit(outputs=kept), **edits} if producer else edits

    def _producer(self) -> str | None:
        """The convolution that feeds this normalisation and nothing else."""
        if self.site.kind != "norm":
            return None
        call = self.graph.call(self.site.name) if self.graph else None
        if self.graph is None or call is None:
            return None
        before: Node = arguments(call)[0]
        if before.target not in MIXERS:
            return None
        name = self.graph.layer(before)
        fits = name is not None and self.graph.output(name) is before and len(before.users) == 1
        return name if fits else None

    def _read(self, found: Sequence[Reader]) -> _Plan:
        """Delete what no reader hears; fold or carry the rest."""
        loud = tuple(
            index
            for index in self.gone
            if any((reader.constants[reader.columns([index])] != 0).any() for reader in found)
        )
        quiet = len(self.gone) - len(loud)
        if not any(reader.padded for reader in found) or not loud:
            return _Plan(
                replace(self.count, delete=quiet, fold=len(loud)),
                self._rows(self.kept),
                {reader.layer: reader.columns(self.gone) for reader in found},
                {reader.layer: _constants(reader, loud) for reader in found} if loud else {},
            )
        return self._carried(found, loud, replace(self.count, delete=quiet))

    def _carried(self, found: Sequence[Reader], loud: tuple[int, ...], count: LayerCount) -> _Plan:
        """Let the loudest channel carry the others; scatter where one reader hears none of it."""

        def loudness(index: int) -> float:
            return min(float(r.constants[r.columns([index])].abs().min()) for r in found)

        carrier = max(loud, key=loudness)
        if loudness(carrier) == 0:
            quiet = _without(self.gone, loud)
            standing = tuple(sorted((*self.kept, *loud)))
            return _Plan(
                replace(count, scatter=len(loud)),
                self._rows(self.kept, standing),
                {reader.layer: reader.columns(quiet) for reader in found},
            )
        kept = tuple(sorted((*self.kept, carrier)))
        carried = _without(loud, (carrier,))
        return _Plan(
            replace(count, carry=len(carried), carriers=1),
            self._rows(kept),
            {reader.layer: reader.columns(_without(self.gone, (carrier,))) for reader in found},
            carries={reader.layer: _ratios(reader, carried, carrier) for reader in found},
        )

    # --- groups of columns --------------------------------------------------------------------

    def of_input(self) -> list[_Plan]:
        width = _inputs(self.dense, self.site.name)
        columns = _places(group_of_columns(width, self.site.filters), self.gone)
        stay = _without(range(width), columns)
        here = {self.site.name: LayerEdit(inputs=stay, gather=True)}
        scattered = replace(self.count, scatter=len(self.gone))
        made_of = self.graph and sources(self.graph, self.site.name, self.site.filters)
        if not made_of:
            return [_Plan(scattered, here)]
        rows = {
            name: _without(range(len(groups)), _places(groups, self.gone))
            for name, groups in made_of.items()
        }
        everything = {name: tuple(range(len(groups))) for name, groups in made_of.items()}
        cut = {name: LayerEdit(outputs=kept) for name, kept in rows.items()}
        filled = {name: replace(edit, standing=everything[name]) for name, edit in cut.items()}
        deleted = _Plan(
            replace(self.count, delete=len(self.gone)),
            {**cut, **self._sizes(tuple(made_of), width)},
            {self.site.name: columns},
        )
        return [deleted, _Plan(scattered, {**filled, **here}), _Plan(scattered, here)]

    def _sizes(self, made_of: Sequence[str], width: int) -> dict[str, LayerEdit]:
        """The numbers of heads, and of their channels, that attention modules keep of their own."""
        heads = self.site.filters
        if width == heads:
            return {}
        smaller = {heads: len(self.kept), width: width // heads * len(self.kept)}
        top = _common_parent((self.site.name, *made_of))
        edits = {}
        for name, part in self.dense.get_submodule(top).named_modules(prefix=top):
            sizes = {
                size: smaller[old]
                for size in SIZES
                if type(old := getattr(part, size, None)) is int and old in smaller
            }
            if sizes:
                edits[name] = LayerEdit(sizes=sizes)
        return edits


def _common_parent(names: Sequence[str]) -> str:
    """The innermost module that holds all of these."""
    paths = [name.split(".")[:-1] for name in names]
    same = itertools.takewhile(lambda step: len(set(step)) == 1, zip(*paths, strict=False))
    return ".".join(step[0] for step in same)


def _places(groups: Tensor, chosen: Sequence[int]) -> list[int]:
    return torch.isin(groups, torch.tensor(chosen)).nonzero().flatten().tolist()


def _constants(reader: Reader, loud: Sequence[int]) -> dict[int, float]:
    return {column: float(reader.constants[column]) for column in reader.columns(loud)}


def _ratios(reader: Reader, carried: Sequence[int], carrier: int) -> list[tuple[int, int, float]]:
    """Column, the carrier's column that takes it, and by which factor."""
    own = reader.columns([carrier])
    return [
        (column, taker, float(reader.constants[column] / reader.constants[taker]))
        for index in carried
        for column, taker in zip(reader.columns([index]), own, strict=True)
    ]


def _without(indices: Sequence[int], gone: Sequence[int]) -> tuple[int, ...]:
    missing = set(gone)
    return tuple(index for index in indices if index not in missing)


# --- cutting ----------------------------------------------------------------------------------


def _cut(dense: nn.Module, plans: Collection[_Plan]) -> nn.Module:
    """A smaller copy: constants moved into the readers' weights first, then everything cut."""
    smaller = copy.deepcopy(dense)
    with torch.no_grad():
        for plan in plans:
            for name, constants in plan.folds.items():
                _fold(smaller.get_submodule(name), constants)
            for name, pairs in plan.carries.items():
                _carry(smaller.get_submodule(name).weight, pairs)
    apply_edits(smaller, _edits(dense, plans))
    return smaller


def _fold(layer: Any, constants: Mapping[int, float]) -> None:
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros(len(layer.weight)).to(layer.weight))
    columns = (
        layer.weight[:, list(constants)].flatten(1).view(len(layer.weight), len(constants), -1)
    )
    layer.bias += columns.sum(2) @ columns.new_tensor(list(constants.values()))


def _carry(weight: Any, pairs: Sequence[tuple[int, int, float]]) -> None:
    if not pairs:
        return
    columns, takers, factors = zip(*pairs, strict=True)
    shape = (1, -1) + (1,) * (weight.dim() - 2)
    scaled = weight[:, list(columns)] * weight.new_tensor(factors).view(shape)
    weight.index_add_(1, torch.tensor(takers), scaled)


def _edits(dense: nn.Module, plans: Collection[_Plan]) -> dict[str, LayerEdit]:
    """The plans of all sites, layer by layer."""
    edits: dict[str, LayerEdit] = defaultdict(LayerEdit)
    gone: dict[str, set[int]] = defaultdict(set)
    for plan in plans:
        for name, edit in plan.edits.items():
            changes = {key: value for key, value in vars(edit).items() if value}
            edits[name] = replace(edits[name], **changes)
        for name, columns in plan.columns.items():
            gone[name].update(columns)
        for name in plan.folds:
            bias = edits[name].bias or dense.get_submodule(name).bias is None
            edits[name] = replace(edits[name], bias=bias)
    for name, columns_gone in gone.items():
        stay = _without(range(_inputs(dense, name)), tuple(columns_gone))
        edits[name] = replace(edits[name], inputs=stay)
    # What is hollow needs no other cut, and what was cut for it finds nothing left.
    return {name: LayerEdit(hollow=True) if e.hollow else e for name, e in edits.items()}


def _inputs(dense: nn.Module, name: str) -> int:
    """How many columns a layer has."""
    weight = dense.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.shape[1]
