"""How the silenced filters of one layer can leave a network, and cutting them out.

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

from rnp_hub.edits import SIZES, LayerEdit, apply_edits
from rnp_hub.flow import Reader, group_of_columns, readers, sources
from rnp_hub.graph import MIXERS, Graph, arguments
from rnp_hub.hooks import gated_layer
from rnp_hub.sites import Site, silent_output

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

    def __add__(self, other: LayerCount) -> LayerCount:
        """Of two sites of the same name: the heads that a layer reads, and its own rows."""
        return LayerCount(*map(sum, zip(vars(self).values(), vars(other).values(), strict=True)))


# --- plans ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
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


def plans(
    dense: nn.Module, graph: Graph | None, site: Site, silenced: tuple[int, ...]
) -> list[Plan]:
    """Ways to remove the filters of a site, the best first."""
    if len(silenced) < site.filters:
        return _Removal(dense, graph, site, silenced, LayerCount(len(silenced))).plans()
    # A layer that somebody reads cannot be empty: where all of it is silent, one filter stays.
    count = LayerCount(len(silenced), kept=1)
    some = _Removal(dense, graph, site, silenced[1:], count).plans() if len(silenced) > 1 else []
    if graph is None or (some and some[0].columns and site.kind != "input"):
        return some
    return [_hollow(graph, site), *some]


def producer(graph: Graph | None, norm: Site) -> str | None:
    """The convolution that feeds this normalisation and nothing else."""
    call = graph.call(norm.name) if graph and norm.kind == "norm" else None
    if graph is None or call is None:
        return None
    before: Node = arguments(call)[0]
    name = graph.layer(before) if before.target in MIXERS else None
    fits = name is not None and graph.output(name) is before and len(before.users) == 1
    return name if fits else None


def _hollow(graph: Graph, site: Site) -> Plan:
    """Leave nothing of a site but its constants, and nothing of the layers that only it needs."""
    once = graph.call(site.name) is not None
    names = (site.name, *(graph.dead_without(site.name) if once else ()))
    edits = {name: LayerEdit(hollow=True) for name in names}
    return Plan(LayerCount(site.filters, scatter=site.filters), edits)


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

    def plans(self) -> list[Plan]:
        """The ways to remove them, the best first."""
        return self.of_input() if self.site.kind == "input" else self.of_output()

    # --- channels of a normalisation or a layer -----------------------------------------------

    def of_output(self) -> list[Plan]:
        everything = tuple(range(self.site.filters))
        scattered = Plan(
            replace(self.count, scatter=len(self.gone)), self._rows(self.kept, everything)
        )
        fallbacks = [scattered, *self._norm_alone(everything)]
        start = self.graph.output(self.site.name) if self.graph else None
        if self.graph is None or start is None:
            return fallbacks
        constants = silent_output(gated_layer(self.dense, self.site))
        found = readers(self.graph, start, constants)
        if found.mixers or found.others:
            return fallbacks
        return [self._read(found.known), *fallbacks]

    def _norm_alone(self, everything: tuple[int, ...]) -> list[Plan]:
        """Cut the norm and not what feeds it: some networks look at their layers' attributes."""
        if producer(self.graph, self.site) is None:
            return []
        norm = LayerEdit(outputs=self.kept, standing=everything, gather=True)
        return [Plan(replace(self.count, scatter=len(self.gone)), {self.site.name: norm})]

    def _rows(
        self, kept: tuple[int, ...], standing: tuple[int, ...] | None = None
    ) -> dict[str, LayerEdit]:
        """Edits of the layers that hold the filters: a norm and what stands before it alone."""
        if self.site.kind == "output":
            return {self.site.name: LayerEdit(outputs=kept, standing=standing)}
        conv = producer(self.graph, self.site)
        norm = LayerEdit(outputs=kept, standing=standing, gather=conv is None)
        edits = {self.site.name: norm}
        return {conv: LayerEdit(outputs=kept), **edits} if conv else edits

    def _read(self, found: Sequence[Reader]) -> Plan:
        """Delete what no reader hears; fold or carry the rest."""
        loud = tuple(
            index
            for index in self.gone
            if any((reader.constants[reader.columns([index])] != 0).any() for reader in found)
        )
        quiet = len(self.gone) - len(loud)
        if not any(reader.padded for reader in found) or not loud:
            return Plan(
                replace(self.count, delete=quiet, fold=len(loud)),
                self._rows(self.kept),
                {reader.layer: reader.columns(self.gone) for reader in found},
                {reader.layer: _constants(reader, loud) for reader in found} if loud else {},
            )
        return self._carried(found, loud, replace(self.count, delete=quiet))

    def _carried(self, found: Sequence[Reader], loud: tuple[int, ...], count: LayerCount) -> Plan:
        """Let the loudest channel carry the others; scatter where one reader hears none of it."""

        def loudness(index: int) -> float:
            return min(float(r.constants[r.columns([index])].abs().min()) for r in found)

        carrier = max(loud, key=loudness)
        if loudness(carrier) == 0:
            quiet = _without(self.gone, loud)
            standing = tuple(sorted((*self.kept, *loud)))
            return Plan(
                replace(count, scatter=len(loud)),
                self._rows(self.kept, standing),
                {reader.layer: reader.columns(quiet) for reader in found},
            )
        kept = tuple(sorted((*self.kept, carrier)))
        carried = _without(loud, (carrier,))
        return Plan(
            replace(count, carry=len(carried), carriers=1),
            self._rows(kept),
            {reader.layer: reader.columns(_without(self.gone, (carrier,))) for reader in found},
            carries={reader.layer: _ratios(reader, carried, carrier) for reader in found},
        )

    # --- groups of columns --------------------------------------------------------------------

    def of_input(self) -> list[Plan]:
        width = _inputs(self.dense, self.site.name)
        columns = _places(group_of_columns(width, self.site.filters), self.gone)
        stay = _without(range(width), columns)
        here = {self.site.name: LayerEdit(inputs=stay, gather=True)}
        scattered = replace(self.count, scatter=len(self.gone))
        made_of = self.graph and sources(self.graph, self.site.name, self.site.filters)
        if not made_of:
            return [Plan(scattered, here)]
        rows = {
            name: _without(range(len(groups)), _places(groups, self.gone))
            for name, groups in made_of.items()
        }
        everything = {name: tuple(range(len(groups))) for name, groups in made_of.items()}
        cut = {name: LayerEdit(outputs=kept) for name, kept in rows.items()}
        filled = {name: replace(edit, standing=everything[name]) for name, edit in cut.items()}
        deleted = Plan(
            replace(self.count, delete=len(self.gone)),
            {**cut, **self._sizes(tuple(made_of), width)},
            {self.site.name: columns},
        )
        return [deleted, Plan(scattered, {**filled, **here}), Plan(scattered, here)]

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


def cut(dense: nn.Module, plans: Collection[Plan]) -> nn.Module:
    """A smaller copy: constants moved into the readers' weights first, then everything cut."""
    smaller = copy.deepcopy(dense)
    with torch.no_grad():
        for plan in plans:
            for name, constants in plan.folds.items():
                _fold(smaller.get_submodule(name), constants)
            for name, pairs in plan.carries.items():
                _carry(smaller.get_submodule(name).weight, pairs)
    apply_edits(smaller, merged(dense, plans))
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


def merged(dense: nn.Module, plans: Collection[Plan]) -> dict[str, LayerEdit]:
    """The plans of all sites, layer by layer."""
    edits: dict[str, LayerEdit] = defaultdict(LayerEdit)
    gone: dict[str, set[int]] = defaultdict(set)
    for plan in plans:
        for name, edit in plan.edits.items():
            edits[name] = _both(edits[name], edit)
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


def _both(one: LayerEdit, other: LayerEdit) -> LayerEdit:
    """What two plans cut of the same layer: a row stays, or stands, where both let it."""
    outputs = _common(one.outputs, other.outputs)
    standing = _common(one.standing or one.outputs, other.standing or other.outputs)
    return LayerEdit(
        outputs=outputs,
        inputs=_common(one.inputs, other.inputs),
        bias=one.bias or other.bias,
        standing=None if standing == outputs else standing,
        gather=one.gather or other.gather,
        sizes={**one.sizes, **other.sizes},
        hollow=one.hollow or other.hollow,
    )


def _common(one: tuple[int, ...] | None, other: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if one is None or other is None:
        return other if one is None else one
    return tuple(sorted({*one} & {*other}))


def _inputs(dense: nn.Module, name: str) -> int:
    """How many columns a layer has."""
    weight = dense.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.shape[1]
