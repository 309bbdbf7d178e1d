"""Removing silenced filters for good: a smaller network that computes the same logits.

`rnp_hub.removal` says in which ways the filters of one layer can go. What none of them can do
exactly stays as a zero and is counted. Nothing is believed: the two networks are compared in
float64 before the smaller one is given out.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rnp_hub.edits import Edits
from rnp_hub.errors import ModelError, ProofError
from rnp_hub.graph import Graph
from rnp_hub.hooks import silence, silenced_weights
from rnp_hub.network import evaluation_mode, logits_of, on_cpu
from rnp_hub.pace import quick_plans
from rnp_hub.removal import WAYS, LayerCount, Plan, cut, merged, plans, producer
from rnp_hub.sites import Site, layer_site, silent_output, sites_of

__all__ = [
    "EXAMPLES",
    "MAX_REL_DIFF",
    "WAYS",
    "LayerCount",
    "Optimize",
    "Slimmed",
    "relative_difference",
    "remove_filters",
    "slim",
]

MAX_REL_DIFF = 1e-9
"""Largest |Δ logit| / |logit| in float64 at which two networks count as the same."""

Optimize = Literal["size", "latency"]

EXAMPLES = 8
"""Pictures the proof looks at, at most, besides noise."""

PROOF_PIXELS = EXAMPLES * 64 * 64
"""Of larger pictures fewer are looked at: a network that is another differs on every one."""


@dataclass(frozen=True)
class Slimmed:
    """The smaller network.

    Attributes:
        module: the network, a copy.
        edits: what was done to which layer: enough to build it again.
        layers: what was asked and cut, by name. Rows of a convolution are counted at the BatchNorm
            that alone reads it, where channels of that were asked for too.
        max_rel_diff: measured in float64, relative to the largest logit.
        refused: layers whose cut did not pass the proof and was given up.
    """

    module: nn.Module
    edits: Edits
    layers: Mapping[str, LayerCount]
    max_rel_diff: float
    refused: tuple[str, ...]


def remove_filters(
    module: nn.Module,
    filters: Mapping[str, Sequence[int]],
    example: Tensor,
    *,
    output: str | int | None = None,
    graph: Graph | None = None,
) -> Slimmed:
    """Silence filters of any layer, and remove them: the logits are those of the silenced network.

    Args:
        module: the network, any device; left as it was.
        filters: by name of a gate site, or of any convolution, linear layer or BatchNorm: which
            filters emit nothing but their bias from now on.
        example, output, graph: see `slim`.

    Raises:
        ModelError, ProofError: as for `slim`.
    """
    network = _Network.of(module, example, graph)
    asked = _asked(network, filters)
    silence(network.dense, asked)
    return _removed(network, asked, _Proof(network.dense, network.example, output))


def slim(
    module: nn.Module,
    silenced: Mapping[str, Sequence[int]] | Mapping[Site, Sequence[int]],
    example: Tensor,
    *,
    output: str | int | None = None,
    ways: Collection[str] = WAYS,
    optimize: Optimize = "size",
    graph: Graph | None = None,
) -> Slimmed:
    """Remove the silenced filters of a network whose weights are 0 there.

    Args:
        module: the silenced network, any device; left as it was.
        silenced: by gate site, indices of filters. A name is that of a site, else of any
            convolution, linear layer or BatchNorm, whose rows are meant.
        example: (n, C, H, W), what the module takes, n ≥ 2; the proof uses it besides noise.
        output: which element of the module's output is the logits; see `Classifier`.
        ways: those of `WAYS` that may be taken; what needs another stays as zeros.
        optimize: `size` removes every filter that can be removed exactly; `latency` only where it
            makes the network faster, see `rnp_hub.pace`.
        graph: of a network of this architecture, where one was traced already.

    Raises:
        ModelError: a name is no layer whose filters could go, an index is none of its filters, or
            its weights are not 0.
        ProofError: the network does not give the same logits twice.
    """
    network = _Network.of(module, example, graph)
    asked = _asked(network, silenced)
    for site, gone in asked.items():
        _check_silent(network.dense, site, gone)
    proof = _Proof(network.dense, network.example, output)
    return _removed(network, asked, proof, ways, optimize)


@dataclass(frozen=True)
class _Network:
    """A network to be cut.

    Attributes:
        dense: a copy in float64.
        example: what it takes, float64.
        graph: `None` where it cannot be traced.
        sites: its gate sites.
        dtype: that the smaller network shall have.
    """

    dense: nn.Module
    example: Tensor
    graph: Graph | None
    sites: tuple[Site, ...]
    dtype: torch.dtype

    @staticmethod
    def of(module: nn.Module, example: Tensor, graph: Graph | None) -> _Network:
        dense = on_cpu(module).double()
        example = example[:EXAMPLES].detach().cpu().double().contiguous()
        graph = graph.around(dense) if graph else _traced(dense, example)
        dtype = next(module.parameters()).dtype
        return _Network(dense, example, graph, sites_of(dense, graph), dtype)


def _traced(dense: nn.Module, example: Tensor) -> Graph | None:
    try:
        return Graph(dense, example[:2])
    except ModelError:
        return None


def _removed(
    network: _Network,
    asked: Mapping[Site, tuple[int, ...]],
    proof: _Proof,
    ways: Collection[str] = WAYS,
    optimize: Optimize = "size",
) -> Slimmed:
    dense, behind = network.dense, _norms_behind(network, asked)
    planned = plans if optimize == "size" else quick_plans
    choice = {
        site: [each for each in planned(dense, network.graph, site, gone) if each.ways <= set(ways)]
        for site, gone in _at_norms(dense, asked, behind).items()
    }
    taken, smaller, difference = _exact(dense, choice, proof)
    return Slimmed(
        module=smaller.to(network.dtype),
        edits=merged(dense, taken.values()),
        layers=_counts(asked, behind, taken),
        max_rel_diff=difference,
        refused=tuple(site.name for site in choice if choice[site] and site not in taken),
    )


# --- what was asked ---------------------------------------------------------------------------


def _asked(
    network: _Network,
    asked: Mapping[str, Sequence[int]] | Mapping[Site, Sequence[int]],
) -> dict[Site, tuple[int, ...]]:
    """By site, ascending indices; names without any are left out."""
    known = {site.name: site for site in network.sites}
    found = {}
    for key, gone in asked.items():
        name = key.name if isinstance(key, Site) else key
        site = key if isinstance(key, Site) else known.get(name)
        site = site or layer_site(network.dense, name)
        if wrong := [index for index in gone if not 0 <= index < site.filters]:
            raise ModelError(f"`{name}` has {site.filters} filters, and {wrong[0]} is none of them")
        if gone:
            found[site] = tuple(sorted(set(gone)))
    return found


def _check_silent(dense: nn.Module, site: Site, gone: tuple[int, ...]) -> None:
    weights = silenced_weights(dense, site)
    for index in gone:
        if weights[index].any():
            raise ModelError(
                f"filter {index} of `{site.name}` is not silent: its weights are not 0; call "
                "rnp_hub.remove_filters, which silences first"
            )


def _norms_behind(network: _Network, asked: Collection[Site]) -> dict[Site, Site]:
    """By convolution whose rows are asked for, the BatchNorm that alone reads it."""
    convs = {site.name: site for site in asked if site.kind == "output"}
    pairs = ((producer(network.graph, norm), norm) for norm in network.sites)
    return {convs[conv]: norm for conv, norm in pairs if conv in convs}


def _at_norms(
    dense: nn.Module, asked: Mapping[Site, tuple[int, ...]], behind: Mapping[Site, Site]
) -> dict[Site, tuple[int, ...]]:
    """Rows of a convolution as channels of the BatchNorm behind it, and silenced there.

    A row of 0 gives the BatchNorm a constant, and so it emits one.
    """
    wanted = {site: gone for site, gone in asked.items() if site not in behind}
    for conv, norm in behind.items():
        _silence_norm(dense.get_submodule(norm.name), dense.get_submodule(conv.name), asked[conv])
        wanted[norm] = tuple(sorted({*wanted.get(norm, ()), *asked[conv]}))
    return wanted


@torch.no_grad()
def _silence_norm(norm: Any, conv: nn.Module, rows: Sequence[int]) -> None:
    index = list(rows)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    emitted = norm.bias + (silent_output(conv) - norm.running_mean) * scale
    norm.bias[index] = emitted[index]
    norm.weight[index] = 0


def _counts(
    asked: Mapping[Site, tuple[int, ...]],
    behind: Mapping[Site, Site],
    taken: Mapping[Site, Plan],
) -> dict[str, LayerCount]:
    """By the name that was asked for; of a convolution and its norm, by the norm's."""
    shown = {norm: conv.name for conv, norm in behind.items() if norm not in asked}
    kept = {
        site: LayerCount(len(gone), kept=len(gone))
        for site, gone in asked.items()
        if behind.get(site) not in asked and behind.get(site) not in taken
    }
    counts: dict[str, LayerCount] = {}
    for site, count in {**kept, **{site: plan.count for site, plan in taken.items()}}.items():
        name = shown.get(site, site.name)
        counts[name] = counts[name] + count if name in counts else count
    return counts


# --- the proof --------------------------------------------------------------------------------


class _Proof:
    """What the silenced network answers, to compare others with."""

    def __init__(self, dense: nn.Module, example: Tensor, output: str | int | None) -> None:
        self.output = output
        area = example.shape[-1] * example.shape[-2]
        example = example[: max(2, min(EXAMPLES, PROOF_PIXELS // area))]
        noise = torch.randn(example[:2].shape, generator=torch.Generator().manual_seed(0))
        larger = nn.functional.interpolate(noise, scale_factor=1.5, mode="nearest")
        self.answers: list[tuple[Tensor, Tensor]] = []
        for inputs in (noise.to(example), example, larger.to(example)):
            try:
                self.answers.append((inputs, self._logits(dense, inputs)))
            # Many networks take pictures of one size only, and stumble over others anyhow.
            except Exception:
                if inputs.shape[2:] == example.shape[2:]:
                    raise

    def _logits(self, module: nn.Module, inputs: Tensor) -> Tensor:
        with torch.no_grad(), evaluation_mode(module):
            return logits_of(module(inputs), self.output)

    def parts(self) -> Iterator[_Proof]:
        """The same on one input after the other."""
        for each in self.answers:
            part = copy.copy(self)
            part.answers = [each]
            yield part

    def difference(self, other: nn.Module, enough: float = float("inf")) -> float:
        """Largest |Δ logit| / largest |logit|; infinity where it is not finite.

        Once it is more than `enough`, nothing more is looked at.
        """
        worst = 0.0
        for inputs, expected in self.answers:
            if worst <= enough:
                worst = max(worst, self._difference(other, inputs, expected))
        return worst

    def _difference(self, other: nn.Module, inputs: Tensor, expected: Tensor) -> float:
        found = self._logits(other, inputs)
        difference = float((found - expected).abs().max()) / (float(expected.abs().max()) or 1.0)
        return difference if difference == difference else float("inf")


def relative_difference(
    one: nn.Module, other: nn.Module, example: Tensor, output: str | int | None = None
) -> float:
    """max |Δ logit| / max |logit| on the example and on noise, there and at another size.

    Where the first network refuses the other size, that size is left out.
    """
    return _Proof(one, example, output).difference(other)


def _exact(
    dense: nn.Module, ways: Mapping[Site, Sequence[Plan]], proof: _Proof
) -> tuple[dict[Site, Plan], nn.Module, float]:
    """Of each site's plans the first that passes the proof together with all others.

    Returns:
        The plans, the network they make, and its difference.

    Raises:
        ProofError: nothing is cut and still the proof fails.
    """
    waiting = {site: list(plans) for site, plans in ways.items() if plans}

    def attempt(some: Iterable[Site], proof: _Proof) -> tuple[nn.Module, float]:
        try:
            smaller = cut(dense, [waiting[site][0] for site in some])
            return smaller, proof.difference(smaller, MAX_REL_DIFF)
        # A network may run any code on the shapes it meets; what raises is not the same network.
        except Exception:
            return dense, float("inf")

    def fails(some: Iterable[Site], proof: _Proof = proof) -> bool:
        return attempt(some, proof)[1] > MAX_REL_DIFF

    while True:
        smaller, difference = attempt(waiting, proof)
        if difference <= MAX_REL_DIFF:
            return {site: plans[0] for site, plans in waiting.items()}, smaller, difference
        if fails(()):
            raise ProofError(
                "the network does not give the same logits twice, so that nothing can be removed "
                "with proof; make its evaluation mode deterministic"
            )
        part = next((each for each in proof.parts() if fails(waiting, each)), proof)
        for site in _culprits(waiting, partial(fails, proof=part)):
            waiting[site].pop(0)
            if not waiting[site]:
                del waiting[site]


def _culprits(
    waiting: Mapping[Site, Sequence[Plan]], fails: Callable[[Sequence[Site]], bool]
) -> list[Site]:
    """A site whose plan fails behind others that pass, and those like it that fail alone."""
    sites = list(waiting)
    good, bad = 0, len(sites)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (good, middle) if fails(sites[:middle]) else (middle, bad)
    first = sites[good]
    alike = (site for site in sites if site != first and _kind(site) == _kind(first))
    ways = waiting[first][0].ways
    return [first, *(s for s in alike if waiting[s][0].ways == ways and fails([s]))]


def _kind(site: Site) -> tuple[str, str]:
    """The same for the same layer of another block."""
    return site.kind, re.sub(r"\d+", "", site.name)
