"""Removing silenced filters for good: a smaller network that computes the same logits.

A silenced filter is a constant c, and the way to remove it depends on who reads it:

- *delete*: every reader sees exactly 0 (β ≤ 0 before a ReLU): its row and their columns go.
- *fold*: the readers mix it without padding; c times its columns goes into their bias.
- *carry*: a padded convolution cannot take the constant into its bias, since there is none at the
  border; one silenced channel stays and carries the constants of all, scaled by their columns.
- *scatter*: whatever else reads it (a residual sum, say): the row goes, and `ChannelScatter` puts
  the other channels back in their places with the constants between them.

What none of these can do exactly stays as a zero and is counted. Nothing is believed: the two
networks are compared in float64 before the smaller one is given out.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnp_hub.errors import ModelError, ProofError
from rnp_hub.graph import Consumer, Graph
from rnp_hub.hooks import gated_norm
from rnp_hub.network import evaluation_mode, logits_of, on_cpu, put

MAX_REL_DIFF = 1e-9
"""Largest |Δ logit| / |logit| in float64 at which two networks count as the same."""


class ChannelScatter(nn.Module):
    """Channels put back at full width, constants between them.

    Args:
        width: channels of the output.
        index: (kept,), where each channel of the input stands in the output.
        fill: (width,), the constant of every channel that is not in `index`.
    """

    def __init__(self, width: int, index: Sequence[int], fill: Tensor | None = None) -> None:
        super().__init__()
        self.width = width
        source = torch.full((width,), len(index), dtype=torch.int64)
        source[list(index)] = torch.arange(len(index))
        # Constants are appended as further channels; the gather picks each output's source.
        absent = [place for place in range(width) if place not in set(index)]
        source[absent] = len(index) + torch.arange(len(absent))
        constants = torch.zeros(len(absent)) if fill is None else fill[absent].clone()
        self.register_buffer("source", source, persistent=False)
        self.register_buffer("constants", constants)

    source: Tensor
    constants: Tensor

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        constants = self.constants.to(x.dtype).view(shape)
        constants = constants.expand(x.shape[0], -1, *x.shape[2:])
        return torch.cat((x, constants), 1).index_select(1, self.source)


class ScatteredNorm(nn.Module):
    """A normalisation over fewer channels, and its output at full width again."""

    def __init__(self, norm: nn.Module, scatter: ChannelScatter) -> None:
        super().__init__()
        self.norm = norm
        self.scatter = scatter

    def forward(self, x: Tensor) -> Tensor:
        scattered: Tensor = self.scatter(self.norm(x))
        return scattered


@dataclass(frozen=True)
class LayerEdit:
    """What becomes of one layer.

    Attributes:
        outputs: output channels that stay, ascending; `None` for all.
        inputs: input columns that stay, ascending; `None` for all.
        bias: the layer gets a bias it did not have.
        standing: (normalisations) channels that stand in the output, those of `outputs` and
            constants between them, ascending; `None` where nothing is scattered.
    """

    outputs: tuple[int, ...] | None = None
    inputs: tuple[int, ...] | None = None
    bias: bool = False
    standing: tuple[int, ...] | None = None


Edits = Mapping[str, LayerEdit]
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
) -> Slimmed:
    """Remove the silenced filters of a network whose γ are 0 there.

    Args:
        module: the silenced network, any device; left as it was.
        silenced: by site name, channel indices.
        example: (n, C, H, W), what the module takes, n ≥ 2; the proof uses it besides noise.
        output: which element of the module's output is the logits; see `Classifier`.

    Raises:
        ProofError: the smaller network does not compute the same, and no single layer is to blame.
    """
    dtype = next(module.parameters()).dtype
    dense = on_cpu(module).double()
    example = example[:EXAMPLES].detach().cpu().double().contiguous()
    plans = _plans(dense, silenced, example)

    def difference_of(some: Mapping[str, _Plan]) -> float:
        return relative_difference(dense, _cut(dense, some), example, output)

    refused: tuple[str, ...] = ()
    if not (difference := difference_of(plans)) <= MAX_REL_DIFF:
        alone = {site: difference_of({site: plan}) for site, plan in plans.items()}
        refused = tuple(site for site, found in alone.items() if not found <= MAX_REL_DIFF)
        plans = {site: plan for site, plan in plans.items() if site not in refused}
        difference = difference_of(plans)
    if not difference <= MAX_REL_DIFF:
        raise ProofError(
            f"the slim network's logits differ by {difference:.1e} from the silenced one's and no "
            f"single layer of {', '.join(plans)} is to blame; this is a defect, please report it"
        )
    layers = {site: LayerCount(len(gone), kept=len(gone)) for site, gone in silenced.items()}
    layers.update({site: plan.count for site, plan in plans.items()})
    smaller = _cut(dense, plans).to(dtype)
    return Slimmed(smaller, _edits(dense, plans), layers, difference, refused)


EXAMPLES = 8
"""Pictures the proof looks at, besides as many of noise."""


def relative_difference(
    one: nn.Module, other: nn.Module, example: Tensor, output: str | int | None = None
) -> float:
    """max |Δ logit| / max |logit| on the example and on noise, there and at another size.

    Where the first network refuses the other size, that size is left out.
    """
    noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
    larger = nn.functional.interpolate(noise, scale_factor=1.5, mode="nearest")
    worst = 0.0
    with torch.no_grad(), evaluation_mode(one), evaluation_mode(other):
        for inputs in (example, noise, larger):
            try:
                expected = logits_of(one(inputs), output)
            except (RuntimeError, AssertionError, ModelError):
                if inputs is larger:
                    continue
                raise
            found = logits_of(other(inputs), output)
            largest = float(expected.abs().max()) or 1.0
            difference = float((found - expected).abs().max()) / largest
            worst = max(worst, difference if difference == difference else float("inf"))
    return worst


def _plans(
    dense: nn.Module, silenced: Mapping[str, Sequence[int]], example: Tensor
) -> dict[str, _Plan]:
    try:
        graph = Graph(dense, example[:2])
    except ModelError:
        return {}  # every filter is kept, and counted as kept
    plans = (_plan(dense, graph, site, tuple(indices)) for site, indices in silenced.items())
    return {plan.site: plan for plan in plans if plan is not None}


# --- one site ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """How the filters of one site are removed.

    Attributes:
        site: name of the normalisation.
        producer: the convolution before it.
        consumers: the layers behind it, where all of them are known.
        kept: channels that stay in the weights, ascending.
        standing: where the rest is scattered, the channels that stand in the output.
        carrier: the silenced channel that stays for the others.
        folded: channels whose constant goes into the consumers' bias.
        carried: channels whose constant the carrier takes.
        count: for the report.
    """

    site: str
    producer: str
    consumers: tuple[Consumer, ...]
    kept: tuple[int, ...]
    count: LayerCount
    standing: tuple[int, ...] | None = None
    carrier: int | None = None
    folded: tuple[int, ...] = ()
    carried: tuple[int, ...] = ()


def _plan(dense: nn.Module, graph: Graph, site: str, silenced: tuple[int, ...]) -> _Plan | None:
    norm = gated_norm(dense, site)
    path = graph.path(site, norm.bias)
    # A layer cannot be empty: where all of it is silent, one filter stays as a zero.
    gone = silenced if len(silenced) < norm.num_features else silenced[1:]
    if path.producer is None or not gone:
        return None
    everything = tuple(range(norm.num_features))
    plan = _Plan(
        site=site,
        producer=path.producer,
        consumers=path.consumers or (),
        kept=_without(everything, gone),
        count=LayerCount(len(silenced), kept=len(silenced) - len(gone)),
    )
    if path.consumers is None:
        return replace(plan, standing=everything, count=replace(plan.count, scatter=len(gone)))
    loud = tuple(
        index for index in gone if any(reader.constants[index] != 0 for reader in path.consumers)
    )
    plan = replace(plan, count=replace(plan.count, delete=len(gone) - len(loud)))
    if not loud:
        return plan
    if not any(reader.padded for reader in path.consumers):
        return replace(plan, folded=loud, count=replace(plan.count, fold=len(loud)))
    return _with_carrier(plan, loud)


def _with_carrier(plan: _Plan, loud: tuple[int, ...]) -> _Plan:
    """Let the loudest channel carry the others; scatter where one reader hears none of it."""
    loudness = torch.stack([reader.constants.abs() for reader in plan.consumers]).amin(0)
    carrier = max(loud, key=lambda index: float(loudness[index]))
    if loudness[carrier] == 0:
        standing = tuple(sorted((*plan.kept, *loud)))
        return replace(plan, standing=standing, count=replace(plan.count, scatter=len(loud)))
    return replace(
        plan,
        carrier=carrier,
        carried=_without(loud, (carrier,)),
        kept=tuple(sorted((*plan.kept, carrier))),
        count=replace(plan.count, carry=len(loud) - 1, carriers=1),
    )


def _without(indices: Sequence[int], gone: Sequence[int]) -> tuple[int, ...]:
    missing = set(gone)
    return tuple(index for index in indices if index not in missing)


# --- cutting ----------------------------------------------------------------------------------


def _cut(dense: nn.Module, plans: Mapping[str, _Plan]) -> nn.Module:
    """A smaller copy: constants moved into the consumers' weights first, then everything cut."""
    smaller = copy.deepcopy(dense)
    with torch.no_grad():
        for plan in plans.values():
            for reader in plan.consumers:
                layer = smaller.get_submodule(reader.module)
                _fold(layer, reader, plan.folded)
                if plan.carrier is not None:
                    _carry(layer, reader, plan.carried, plan.carrier)
    apply_edits(smaller, _edits(dense, plans))
    return smaller


def _fold(layer: Any, reader: Consumer, folded: Sequence[int]) -> None:
    if not folded:
        return
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros(len(layer.weight)).to(layer.weight))
    for index in folded:
        columns = layer.weight[:, _columns((index,), reader.span)]
        layer.bias += reader.constants[index] * columns.flatten(1).sum(1)


def _carry(layer: Any, reader: Consumer, carried: Sequence[int], carrier: int) -> None:
    own = _columns((carrier,), reader.span)
    for index in carried:
        ratio = reader.constants[index] / reader.constants[carrier]
        layer.weight[:, own] += ratio * layer.weight[:, _columns((index,), reader.span)]


def _columns(channels: Sequence[int], span: int) -> list[int]:
    return [channel * span + offset for channel in channels for offset in range(span)]


def _edits(dense: nn.Module, plans: Mapping[str, _Plan]) -> dict[str, LayerEdit]:
    edits: dict[str, LayerEdit] = {}

    def edit(layer: str, **changes: Any) -> None:
        edits[layer] = replace(edits.get(layer, LayerEdit()), **changes)

    for plan in plans.values():
        edit(plan.producer, outputs=plan.kept)
        edit(plan.site, outputs=plan.kept, standing=plan.standing)
        standing = plan.standing or plan.kept
        for reader in plan.consumers:
            edit(reader.module, inputs=tuple(_columns(standing, reader.span)))
            if plan.folded and dense.get_submodule(reader.module).bias is None:
                edit(reader.module, bias=True)
    return edits


def apply_edits(module: nn.Module, edits: Edits) -> None:
    """Cut the layers of `module` in place: weights, biases, running statistics and sizes.

    The same function makes the slim network from the real weights and, later, its empty shape to
    load the file into.

    Raises:
        ModelError: a layer does not exist, is of another kind, or an index is out of its range.
    """
    for name, edit in edits.items():
        try:
            layer = module.get_submodule(name)
        except AttributeError as error:
            raise ModelError(f"the slim edits name a layer `{name}` that does not exist") from error
        _check_edit(name, layer, edit)
        with torch.no_grad():
            if isinstance(layer, _BatchNorm):
                put(module, name, _smaller_norm(layer, edit))
            else:
                _shrink_mixer(layer, edit)


def _check_edit(name: str, layer: Any, edit: LayerEdit) -> None:
    if not isinstance(layer, _BatchNorm | nn.Conv2d | nn.Linear):
        raise ModelError(f"the slim edits cut `{name}`, but a {type(layer).__name__} cannot be cut")
    if isinstance(layer, _BatchNorm):
        width = layer.num_features
        sizes = [(edit.outputs, width), (edit.standing, width)]
        if edit.standing and not set(edit.outputs or ()) <= set(edit.standing):
            raise ModelError(f"the slim edits of `{name}` drop channels that they also keep")
    else:
        sizes = [(edit.outputs, layer.weight.shape[0]), (edit.inputs, layer.weight.shape[1])]
    for indices, size in sizes:
        if indices is None:
            continue
        rising = all(low < high for low, high in itertools.pairwise(indices))
        if not indices or not rising or indices[0] < 0 or indices[-1] >= size:
            raise ModelError(
                f"the slim edits of `{name}` keep channels that are not among its {size}"
            )


def _shrink_mixer(layer: Any, edit: LayerEdit) -> None:
    weight = layer.weight
    if edit.outputs is not None:
        weight = weight[list(edit.outputs)]
    if edit.inputs is not None:
        weight = weight[:, list(edit.inputs)]
    if edit.bias and layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros(len(layer.weight)).to(weight))
    if layer.bias is not None and edit.outputs is not None:
        layer.bias = nn.Parameter(layer.bias[list(edit.outputs)].clone())
    layer.weight = nn.Parameter(weight.clone())
    sizes = ("out_channels", "in_channels") if isinstance(layer, nn.Conv2d) else _LINEAR_SIZES
    setattr(layer, sizes[0], weight.shape[0])
    setattr(layer, sizes[1], weight.shape[1])


_LINEAR_SIZES = ("out_features", "in_features")


def _smaller_norm(norm: _BatchNorm, edit: LayerEdit) -> nn.Module:
    if edit.outputs is None:
        return norm
    kept = list(edit.outputs)
    fill = _when_silent(norm)
    for name in ("weight", "bias"):
        setattr(norm, name, nn.Parameter(getattr(norm, name)[kept].clone()))
    for name in ("running_mean", "running_var"):
        if getattr(norm, name) is not None:
            setattr(norm, name, getattr(norm, name)[kept].clone())
    norm.num_features = len(kept)
    if edit.standing is None:
        return norm
    places = {channel: place for place, channel in enumerate(edit.standing)}
    index = [places[channel] for channel in kept]
    fill = fill[list(edit.standing)]
    return ScatteredNorm(norm, ChannelScatter(len(fill), index, fill))


def _when_silent(norm: _BatchNorm) -> Tensor:
    """(filters,), what a silenced filter emits: β, behind the activation where there is one."""
    activation = getattr(norm, "act", nn.Identity())
    # A copy, since activations work in place.
    emitted: Tensor = activation(norm.bias.detach().clone()[None, :, None, None])
    return emitted.flatten()
