"""One contract for every site: a hooked gate at 0, edited dense weights, the slim network."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rnp_hub.graph import Graph
from rnp_hub.hooks import gates, silence
from rnp_hub.network import logits_of
from rnp_hub.sites import Site
from rnp_hub.slim import Slimmed, relative_difference, slim


@dataclass(frozen=True)
class ThreeWays:
    """What the three forms of one request differ by, relative to the largest logit, float64."""

    sites: tuple[Site, ...]
    gated: float
    effect: float
    slim: Slimmed
    slim_difference: float

    @property
    def silenced(self) -> int:
        return sum(count.silenced for count in self.slim.layers.values())

    @property
    def removed(self) -> int:
        return sum(count.removed + count.carriers for count in self.slim.layers.values())


def three_ways(
    module: nn.Module,
    example: Tensor,
    chosen: Mapping[Site, Sequence[int]],
    graph: Graph | None = None,
) -> ThreeWays:
    """Silence the chosen filters in each of the three ways; the network ends up silenced."""
    module, example = module.double().eval(), example.double()
    masks = {}
    for site, indices in chosen.items():
        masks[site] = torch.ones(site.filters, dtype=torch.float64)
        masks[site][list(indices)] = 0
    with torch.no_grad():
        untouched = logits_of(module(example))
        with gates(module, masks) as fired:
            gated = logits_of(module(example))
        assert all(fired.values()), f"not fired: {[name for name in fired if not fired[name]]}"
        silence(module, chosen)
        dense = logits_of(module(example))
    largest = float(dense.abs().max())
    result = slim(module, chosen, example, graph=graph)
    return ThreeWays(
        sites=tuple(chosen),
        gated=float((gated - dense).abs().max()) / largest,
        effect=float((untouched - dense).abs().max()) / largest,
        slim=result,
        slim_difference=relative_difference(module, result.module, example),
    )


def some_filters(
    found: Sequence[Site], *, sites: int = 8, filters: int = 3, seed: int = 0
) -> dict[Site, tuple[int, ...]]:
    """A few random filters, never all, in a few random sites of those that were found."""
    draw = random.Random(seed)
    chosen = draw.sample(found, min(sites, len(found)))
    return {
        site: tuple(
            sorted(draw.sample(range(site.filters), max(1, min(filters, site.filters - 1))))
        )
        for site in sorted(chosen, key=found.index)
    }
