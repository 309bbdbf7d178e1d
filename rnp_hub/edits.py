"""What slimming does to each layer, as plain data, and doing it.

The same edits make the slim network from the real weights and, later, its empty shape to load the
file into: names of layers and indices of channels, no pickle and no traced code.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnp_hub.errors import ModelError
from rnp_hub.network import put
from rnp_hub.sites import silent_output

SCHEMA = "rnp-hub/slim/2"
READABLE = ("rnp-hub/slim/1", SCHEMA)
"""Version 1 knows no `gather`, `sizes` and `hollow`; what it does know means the same."""

SIZES = (
    "num_heads",
    "num_attention_heads",
    "attn_dim",
    "attention_dim",
    "all_head_size",
    "embed_dim",
    "inner_dim",
)
"""Numbers an attention module keeps of its own, which must follow when heads go."""


@with_config(ConfigDict(extra="forbid", strict=True))
@dataclass(frozen=True)
class LayerEdit:
    """What becomes of one layer.

    Attributes:
        outputs: output channels that stay, ascending; `None` for all.
        inputs: input columns that stay, ascending; `None` for all.
        bias: the layer gets a bias it did not have.
        standing: channels that stand in the output, those of `outputs` and constants between
            them, ascending; `None` where nothing is scattered.
        gather: the layer still gets all channels and picks its own: a BatchNorm those of
            `outputs`, any other layer those of `inputs`.
        sizes: (attention modules) numbers to set, such as `num_heads`.
        hollow: nothing of the layer stays but the constants it emits.
    """

    outputs: tuple[int, ...] | None = None
    inputs: tuple[int, ...] | None = None
    bias: bool = False
    standing: tuple[int, ...] | None = None
    gather: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)
    hollow: bool = False


Edits = Mapping[str, LayerEdit]


class ChannelScatter(nn.Module):
    """Channels put back at full width, constants between them.

    Args:
        width: channels of the output.
        index: (kept,), where each channel of the input stands in the output.
        fill: (width,), the constant of every channel that is not in `index`.
        dim: where the channels stand.
    """

    def __init__(
        self, width: int, index: Sequence[int], fill: Tensor | None = None, dim: int = 1
    ) -> None:
        super().__init__()
        self.width = width
        self.dim = dim
        source = torch.full((width,), len(index), dtype=torch.int64)
        source[list(index)] = torch.arange(len(index))
        # Constants are appended as further channels; the gather picks each output's source.
        absent = sorted(set(range(width)) - set(index))
        source[absent] = len(index) + torch.arange(len(absent))
        constants = torch.zeros(len(absent)) if fill is None else fill[absent].clone()
        self.register_buffer("source", source, persistent=False)
        self.register_buffer("constants", constants)

    source: Tensor
    constants: Tensor

    def forward(self, x: Tensor) -> Tensor:
        shape, size = [1] * x.dim(), list(x.shape)
        shape[self.dim] = size[self.dim] = len(self.constants)
        constants = self.constants.to(x.dtype).view(shape).expand(size)
        return torch.cat((x, constants), self.dim).index_select(self.dim, self.source)


class ChannelGather(nn.Module):
    """Some channels of many.

    Args:
        index: (kept,), which.
        dim: where the channels stand.
    """

    def __init__(self, index: Sequence[int], dim: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("index", torch.tensor(index, dtype=torch.int64), persistent=False)

    index: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(self.dim, self.index)


class RaggedConv(nn.Module):
    """A grouped convolution whose groups have lost unequally many filters.

    One convolution for all groups of the same size.

    Args:
        parts: the convolutions, each behind a gather of its inputs.
        order: (outputs,), where each output channel stands among those of all parts.
    """

    def __init__(self, parts: Sequence[nn.Module], order: Sequence[int]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.order = ChannelGather(order)

    def forward(self, x: Tensor) -> Tensor:
        together: Tensor = self.order(torch.cat([part(x) for part in self.parts], 1))
        return together


class Hollow(nn.Module):
    """What is left of a layer that is silent as a whole: its constants, in the shape it would give.

    Args:
        layer: a convolution, a linear layer or a BatchNorm.
        constants: (filters,).
    """

    def __init__(self, layer: nn.Module, constants: Tensor) -> None:
        super().__init__()
        self.register_buffer("constants", constants.detach().clone())
        self.dim = -1 if isinstance(layer, nn.Linear) else 1
        # A convolution of one channel by 0, which costs nothing, tells how many pixels there are.
        self.pixels = _blank(layer) if isinstance(layer, nn.Conv2d) else None

    constants: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.pixels is not None:
            x = self.pixels(x[:, :1])
        shape, size = [1] * x.dim(), list(x.shape)
        shape[self.dim] = size[self.dim] = len(self.constants)
        return self.constants.to(x.dtype).view(shape).expand(size)


def _blank(layer: nn.Conv2d) -> nn.Conv2d:
    blank = copy.deepcopy(layer)
    blank.in_channels = blank.out_channels = blank.groups = 1
    for name, parameter in list(blank.named_parameters(recurse=False)):
        delattr(blank, name)
        zero = parameter.detach()[:1, :1].mul(0) if parameter.dim() > 1 else None
        blank.register_buffer(name, zero, persistent=False)
    return blank


def apply_edits(module: nn.Module, edits: Edits) -> None:
    """Cut the layers of `module` in place: weights, biases, running statistics and sizes.

    Raises:
        ModelError: a layer does not exist, is of another kind, or an index is out of its range.
    """
    layers = dict(module.named_modules(remove_duplicate=False))
    for name, edit in edits.items():
        if name not in layers:
            raise ModelError(f"the slim edits name a layer `{name}` that does not exist")
        _check(name, layers[name], edit)
        with torch.no_grad():
            smaller = _smaller(layers[name], edit)
        # A layer may stand in several places under several names.
        for place in [each for each, layer in layers.items() if layer is layers[name]]:
            if smaller is not layers[name]:
                put(module, place, smaller)


def _smaller(layer: nn.Module, edit: LayerEdit) -> nn.Module:
    for size, value in edit.sizes.items():
        setattr(layer, size, value)
    if edit.hollow:
        return Hollow(layer, silent(layer))
    if isinstance(layer, _BatchNorm):
        return _smaller_norm(layer, edit)
    return _smaller_mixer(layer, edit) if isinstance(layer, nn.Conv2d | nn.Linear) else layer


def _check(name: str, layer: Any, edit: LayerEdit) -> None:
    if edit.sizes:
        _check_sizes(name, layer, edit)
        return
    if not isinstance(layer, _BatchNorm | nn.Conv2d | nn.Linear):
        raise ModelError(f"the slim edits cut `{name}`, but a {type(layer).__name__} cannot be cut")
    if edit.hollow and edit != LayerEdit(hollow=True):
        raise ModelError(f"the slim edits of `{name}` hollow it out and cut it at the same time")
    if isinstance(layer, _BatchNorm):
        if edit.bias or edit.inputs is not None:
            raise ModelError(f"the slim edits treat `{name}`, which is a BatchNorm, as a layer")
        width = layer.num_features
        sizes = [(edit.outputs, width), (edit.standing, width)]
    else:
        inputs = layer.weight.shape[1] * getattr(layer, "groups", 1)
        sizes = [(edit.outputs, len(layer.weight)), (edit.standing, len(layer.weight))]
        sizes.append((edit.inputs, inputs))
    for indices, size in sizes:
        if indices is None:
            continue
        rising = all(low < high for low, high in itertools.pairwise(indices))
        if not indices or not rising or indices[0] < 0 or indices[-1] >= size:
            raise ModelError(
                f"the slim edits of `{name}` keep channels that are not among its {size}"
            )
    if edit.standing and not set(edit.outputs or (-1,)) <= set(edit.standing):
        raise ModelError(f"the slim edits of `{name}` drop channels that they also keep")
    picked = edit.outputs if isinstance(layer, _BatchNorm) else edit.inputs
    if edit.gather and picked is None:
        raise ModelError(f"the slim edits of `{name}` gather channels but do not say which")
    if edit.inputs is not None and getattr(layer, "groups", 1) != 1:
        raise ModelError(f"the slim edits cut columns of `{name}`, which is a grouped convolution")


def _check_sizes(name: str, layer: Any, edit: LayerEdit) -> None:
    for size, value in edit.sizes.items():
        old = getattr(layer, size, None) if size in SIZES else None
        if type(old) is not int or not 1 <= value <= old:
            raise ModelError(f"the slim edits set `{name}.{size}` to {value}, which it cannot be")
    if edit != LayerEdit(sizes=edit.sizes):
        raise ModelError(f"the slim edits of `{name}` set sizes and cut at the same time")


# --- convolutions and linear layers -----------------------------------------------------------


def _smaller_mixer(layer: Any, edit: LayerEdit) -> nn.Module:
    if edit.bias and layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros(len(layer.weight)).to(layer.weight))
    fill, dim = silent(layer), 1 if isinstance(layer, nn.Conv2d) else -1
    smaller: nn.Module = layer
    if edit.outputs is not None and getattr(layer, "groups", 1) > 1:
        smaller = _smaller_groups(layer, edit.outputs)
    elif edit.outputs is not None:
        _cut_rows(layer, edit.outputs)
    if edit.inputs is not None:
        layer.weight = nn.Parameter(layer.weight[:, list(edit.inputs)].clone())
        setattr(layer, _SIZE_NAMES[dim][1], len(edit.inputs))
    before = ChannelGather(edit.inputs, dim) if edit.gather and edit.inputs else None
    after = None
    if edit.standing is not None and edit.outputs is not None:
        after = _scatter(edit.outputs, edit.standing, fill, dim)
    return _chained(before, ("layer", smaller), after)


_SIZE_NAMES = {1: ("out_channels", "in_channels"), -1: ("out_features", "in_features")}


def _cut_rows(layer: Any, rows: Sequence[int]) -> None:
    """All parameters of a row: weight, bias, and a gain where there is one."""
    width, index = len(layer.weight), list(rows)
    for name, parameter in layer.named_parameters(recurse=False):
        if len(parameter) == width:
            setattr(layer, name, nn.Parameter(parameter[index].clone()))
    setattr(layer, _SIZE_NAMES[1 if isinstance(layer, nn.Conv2d) else -1][0], len(index))


def _smaller_groups(conv: Any, outputs: Sequence[int]) -> nn.Module:
    """A grouped convolution with some of its filters; groups that lose all of them vanish."""
    height, width = len(conv.weight) // conv.groups, conv.weight.shape[1]
    rows = {
        group: [row for row in outputs if row // height == group] for group in range(conv.groups)
    }
    counts = sorted({len(kept) for kept in rows.values() if kept})
    parts, placed = [], list[int]()
    for count in counts:
        groups = [group for group, kept in rows.items() if len(kept) == count]
        chosen = [row for group in groups for row in rows[group]]
        placed += chosen
        part = _convolution_like(conv, chosen, len(groups))
        columns = [group * width + offset for group in groups for offset in range(width)]
        gather = ChannelGather(columns) if len(groups) < conv.groups else None
        parts.append(_chained(gather, ("layer", part), None))
    if len(parts) == 1:
        return parts[0]
    return RaggedConv(parts, [placed.index(row) for row in outputs])


def _convolution_like(conv: Any, rows: Sequence[int], groups: int) -> nn.Module:
    part = copy.deepcopy(conv)
    _cut_rows(part, rows)
    part.groups, part.in_channels = groups, groups * conv.weight.shape[1]
    return part  # type: ignore[no-any-return]


# --- normalisations ---------------------------------------------------------------------------


def _smaller_norm(norm: _BatchNorm, edit: LayerEdit) -> nn.Module:
    if edit.outputs is None:
        return norm
    kept = list(edit.outputs)
    fill = silent(norm)
    for name in ("weight", "bias"):
        setattr(norm, name, nn.Parameter(getattr(norm, name)[kept].clone()))
    for name in ("running_mean", "running_var"):
        if getattr(norm, name) is not None:
            setattr(norm, name, getattr(norm, name)[kept].clone())
    norm.num_features = len(kept)
    before = ChannelGather(kept) if edit.gather else None
    after = None if edit.standing is None else _scatter(kept, edit.standing, fill, 1)
    return _chained(before, ("norm", norm), after)


def silent(layer: nn.Module) -> Tensor:
    """(filters,), what leaves a layer whose filters are silent.

    Its bias, or 0; for a BatchNorm with an activation of its own, behind that.
    """
    if isinstance(layer, _BatchNorm) and not layer.affine:
        return torch.zeros(layer.num_features)
    emitted = silent_output(layer)
    activation = getattr(layer, "act", None)
    if isinstance(layer, _BatchNorm) and isinstance(activation, nn.Module):
        # A copy, since activations work in place.
        emitted = activation(emitted.clone()[None, :, None, None]).flatten()
    return emitted


# --- wrapping ---------------------------------------------------------------------------------


def _scatter(
    kept: Sequence[int], standing: Sequence[int], fill: Tensor, dim: int
) -> ChannelScatter:
    places = {channel: place for place, channel in enumerate(standing)}
    index = [places[channel] for channel in kept]
    return ChannelScatter(len(standing), index, fill[list(standing)], dim)


def _chained(
    gather: nn.Module | None, layer: tuple[str, nn.Module], scatter: nn.Module | None
) -> nn.Module:
    """One after the other, under names that stay the same in every file."""
    if gather is None and scatter is None:
        return layer[1]
    parts = [("gather", gather), layer, ("scatter", scatter)]
    return nn.Sequential(OrderedDict([(name, part) for name, part in parts if part is not None]))


# --- as JSON ----------------------------------------------------------------------------------


def edits_to_json(edits: Edits) -> dict[str, Any]:
    """Edits as they stand in a `config.json`."""
    import timm

    layers = {
        name: {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(edit).items()
            if value not in (None, False, {})
        }
        for name, edit in edits.items()
    }
    return {"schema": SCHEMA, "timm": timm.__version__, "layers": layers}


def edits_from_json(slim: Any) -> dict[str, LayerEdit]:
    """Edits as `edits_to_json` wrote them; `None` is none.

    Raises:
        ModelError: an unknown schema, or edits that cannot be read.
    """
    if slim is None:
        return {}
    schema = slim.get("schema") if isinstance(slim, Mapping) else slim
    if schema not in READABLE:
        raise ModelError(
            f"the slim model is written in schema {schema!r} but this version reads "
            f"{' and '.join(map(repr, READABLE))}; update rnp-hub"
        )
    try:
        return _adapter().validate_json(json.dumps(slim.get("layers")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("layers", *first["loc"])))
        raise ModelError(
            f"the slim model's edits cannot be read ({where}: {first['msg']}); get its "
            "config.json again"
        ) from error


def _adapter() -> TypeAdapter[dict[str, LayerEdit]]:
    return TypeAdapter(dict[str, LayerEdit])
