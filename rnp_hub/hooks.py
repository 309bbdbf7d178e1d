"""Gates: masking filters for the time of a `with` block, and for good.

A gate at value m ≥ 0 turns what a filter emits, x, into c + m·(x − c), where c is what it
emits when it is silent. At a BatchNorm c is the bias β: the gate multiplies the weight γ, as the
reference does (Li et al. 2023, Alg. 1). Elsewhere see `rnp_hub.sites`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnp_hub.errors import ModelError
from rnp_hub.sites import Site, silent_output


@contextlib.contextmanager
def gates(module: nn.Module, masks: Mapping[Site, Tensor]) -> Iterator[dict[str, int]]:
    """Mask filters while the block runs; nothing is left behind, whatever happens in it.

    Args:
        module: the network; its weights are only read.
        masks: by site, (filters,) each, values ≥ 0; gradients flow into them.

    Yields:
        How often each gate fired so far, by name of the site.

    Raises:
        ModelError: a site is none of this network, or a mask's length is not the number of its
            filters.
    """
    fired = {site.name: 0 for site in masks}
    with contextlib.ExitStack() as stack:
        for site, mask in masks.items():
            layer = gated_layer(module, site)
            if mask.shape != (site.filters,):
                raise ModelError(
                    f"`{site.name}` has {site.filters} filters but the mask has shape "
                    f"{tuple(mask.shape)}; masks must come from the same architecture"
                )
            stack.enter_context(_hook(layer, site, mask, fired))
        yield fired


def gated_layer(module: nn.Module, site: Site) -> nn.Module:
    """The layer of a site.

    Raises:
        ModelError: there is no module of that name, or it is none that can be gated there.
    """
    try:
        layer = module.get_submodule(site.name)
    except AttributeError as error:
        raise ModelError(f"the network has no module `{site.name}` to gate") from error
    if site.kind == "norm":
        fits = isinstance(layer, _BatchNorm) and layer.affine
        width = layer.num_features if isinstance(layer, _BatchNorm) else 0
    else:
        fits = isinstance(layer, nn.Conv2d | nn.Linear)
        weight = layer.weight if fits else torch.empty(0, 0)
        assert isinstance(weight, Tensor)
        width = weight.shape[0 if site.kind == "output" else 1]
    if not fits:
        raise ModelError(f"`{site.name}` is a {type(layer).__name__} and cannot be gated")
    if width != site.filters and (site.kind != "input" or width % site.filters):
        raise ModelError(
            f"`{site.name}` has {width} channels where {site.filters} filters were to be gated; "
            "the site must come from the same architecture"
        )
    return layer


def _hook(
    layer: nn.Module, site: Site, mask: Tensor, fired: dict[str, int]
) -> torch.utils.hooks.RemovableHandle:
    def gate(x: Tensor) -> Tensor:
        fired[site.name] += 1
        shape = [1] * x.dim()
        shape[-1 if isinstance(layer, nn.Linear) else 1] = -1
        weight = mask.to(x.dtype)
        if site.kind == "input":
            return x * weight.repeat_interleave(_columns(layer) // site.filters).view(shape)
        silent = silent_output(layer).to(x.dtype).view(shape)
        return torch.lerp(silent, x, weight.view(shape))

    if site.kind == "input":
        return layer.register_forward_pre_hook(_on_input(gate))
    activation = getattr(layer, "act", None)
    if site.kind == "norm" and isinstance(activation, nn.Module):
        # timm's BatchNormAct2d applies its activation inside forward: an output hook is too late.
        return activation.register_forward_pre_hook(_on_input(gate))
    return layer.register_forward_hook(_on_output(gate))


def _on_input(gate: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Any], Any]:
    return lambda _module, inputs: (gate(inputs[0]), *inputs[1:])


def _on_output(gate: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda _module, _inputs, output: gate(output)


def silence(module: nn.Module, silenced: Mapping[Site, Sequence[int]]) -> None:
    """Silence filters of `module` for good, in place: the drop-in form of a mask of 0.

    γ = 0 at a BatchNorm, a row of zeros at a layer's output (its bias stays), columns of zeros at a
    layer's input.

    Raises:
        ModelError: as for `gated_layer`.
    """
    for site, filters in silenced.items():
        weights = silenced_weights(module, site)
        with torch.no_grad():
            weights[list(filters)] = 0


def scale(module: nn.Module, masks: Mapping[Site, Tensor]) -> None:
    """Mask filters of `module` for good, in place: the drop-in form of any mask.

    Args:
        module: the network.
        masks: by site, (filters,) each, values ≥ 0.

    Raises:
        ModelError: as for `gated_layer`.
    """
    for site, mask in masks.items():
        weights = silenced_weights(module, site)
        with torch.no_grad():
            weights.mul_(mask.to(weights).view(-1, *[1] * (weights.dim() - 1)))


def silence_on_trial(module: nn.Module, site: Site, index: int) -> Callable[[], None]:
    """Silence one filter of `module` in place; what is returned puts it back.

    Raises:
        ModelError: as for `gated_layer`.
    """
    weights = silenced_weights(module, site)
    before = weights[index].clone()
    silence(module, {site: (index,)})

    def put_back() -> None:
        with torch.no_grad():
            weights[index] = before

    return put_back


def silenced_weights(module: nn.Module, site: Site) -> Tensor:
    """(filters, …): a view of the weights that are 0 for a silenced filter.

    Raises:
        ModelError: as for `gated_layer`.
    """
    weight = gated_layer(module, site).weight
    assert isinstance(weight, Tensor)
    weight = weight.detach()
    if site.kind != "input":
        return weight
    grouped: Tensor = weight.unflatten(1, (site.filters, -1)).transpose(0, 1)
    return grouped


def _columns(layer: nn.Module) -> int:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.shape[1]
