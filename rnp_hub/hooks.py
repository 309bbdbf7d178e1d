"""Gates: where a filter can be masked, and masking it for the time of a `with` block.

A gate at value m ∈ [0, 1] turns the output x of a normalisation into β + m·(x − β): what the
reference does by multiplying the BatchNorm weight γ and leaving its bias β (Li et al. 2023,
Alg. 1). A filter silenced for good, γ = 0, emits the constant β.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnp_hub.errors import ModelError, NoGateSitesError


@dataclass(frozen=True)
class Site:
    """A layer whose filters can be masked.

    Attributes:
        name: of the module, as in `named_modules()`.
        filters: how many channels it gates.
    """

    name: str
    filters: int


def gate_sites(module: nn.Module) -> tuple[Site, ...]:
    """Every BatchNorm with learned weight and bias, in the order of `named_modules()`.

    Raises:
        NoGateSitesError: there is none.
    """
    sites = tuple(
        Site(name, part.num_features)
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.affine
    )
    if not sites:
        raise NoGateSitesError(
            f"{type(module).__name__} has no filter to mask: it holds no BatchNorm layer with a "
            "learned weight and bias"
        )
    return sites


@contextlib.contextmanager
def gates(module: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[dict[str, int]]:
    """Mask filters while the block runs; nothing is left behind, whatever happens in it.

    Args:
        module: the network; its weights are only read.
        masks: by site name, (filters,) each, values in [0, 1]; gradients flow into them.

    Yields:
        How often each gate fired so far, by site name.

    Raises:
        ModelError: a mask's name is no BatchNorm of this network, or its length is not the
            number of its filters.
    """
    fired = dict.fromkeys(masks, 0)
    with contextlib.ExitStack() as stack:
        for name, mask in masks.items():
            stack.enter_context(_hook(_fitting_norm(module, name, mask), name, mask, fired))
        yield fired


def gated_norm(module: nn.Module, name: str) -> _BatchNorm:
    """The BatchNorm of a site.

    Raises:
        ModelError: there is no module of that name, or it is none that can be gated.
    """
    try:
        norm = module.get_submodule(name)
    except AttributeError as error:
        raise ModelError(f"the network has no module `{name}` to gate") from error
    if not isinstance(norm, _BatchNorm) or not norm.affine:
        raise ModelError(f"`{name}` is a {type(norm).__name__} and cannot be gated")
    return norm


def _fitting_norm(module: nn.Module, name: str, mask: Tensor) -> _BatchNorm:
    norm = gated_norm(module, name)
    if mask.shape != (norm.num_features,):
        raise ModelError(
            f"`{name}` has {norm.num_features} channels but the mask has shape "
            f"{tuple(mask.shape)}; masks must come from the same architecture"
        )
    return norm


def _hook(
    norm: _BatchNorm, name: str, mask: Tensor, fired: dict[str, int]
) -> torch.utils.hooks.RemovableHandle:
    def gate(normalised: Tensor) -> Tensor:
        fired[name] += 1
        shape = (1, -1) + (1,) * (normalised.dim() - 2)
        bias = norm.bias.to(normalised.dtype).view(shape)
        return torch.lerp(bias, normalised, mask.to(normalised.dtype).view(shape))

    activation = getattr(norm, "act", None)
    if isinstance(activation, nn.Module):
        # timm's BatchNormAct2d applies its activation inside forward: an output hook is too late.
        return activation.register_forward_pre_hook(_on_input(gate))
    return norm.register_forward_hook(_on_output(gate))


def _on_input(gate: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Any], Any]:
    return lambda _module, inputs: (gate(inputs[0]), *inputs[1:])


def _on_output(gate: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda _module, _inputs, output: gate(output)


def silence(module: nn.Module, silenced: Mapping[str, Sequence[int]]) -> None:
    """Set γ = 0 for the given filters of `module`, in place: the drop-in form of a mask of 0.

    Raises:
        ModelError: as for `gated_norm`.
    """
    for name, filters in silenced.items():
        with torch.no_grad():
            gated_norm(module, name).weight[list(filters)] = 0
