"""Masks of kernels: a number for each filter of a convolution and channel that it reads.

Of a 1 × 1 convolution a kernel is one weight. A mask is multiplied into the kernel's weights, so
that the network keeps its architecture; where a layer standardises these first, that is what it
standardises.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from rnp_hub.errors import ModelError


def kernel_masks(module: nn.Module) -> dict[str, Tensor]:
    """Ones for each convolution, by its name: (filters, channels read), on its device.

    There are none for a convolution whose weight is made of other parameters (weight norm), or is
    that of another layer too.
    """
    layers = [part for part in module.modules() if "weight" in part._parameters]
    owners = Counter(id(layer.weight) for layer in layers)
    return {
        name: torch.ones(layer.weight.shape[:2], device=layer.weight.device)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d)
        and "weight" in layer._parameters
        and owners[id(layer.weight)] == 1
    }


@contextlib.contextmanager
def masked_kernels(module: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Mask kernels while the block runs; nothing is left behind, whatever happens in it.

    Args:
        module: the network; its weights are only read.
        masks: as `kernel_masks` gives them, values ≥ 0; gradients flow into them.

    Raises:
        ModelError: a mask's shape is not that of the kernels.
    """
    with contextlib.ExitStack() as stack:
        for name, mask in masks.items():
            # As torch.func.functional_call does it; the order of the parameters stays.
            parameters = module.get_submodule(name)._parameters
            weight = parameters["weight"]
            assert weight is not None
            masked = weight * _shaped(mask, weight, name)
            stack.callback(parameters.__setitem__, "weight", weight)
            parameters["weight"] = masked  # type: ignore[assignment]
        yield


@torch.no_grad()
def scale_kernels(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Mask kernels of `module` for good, in place.

    Raises:
        ModelError: as for `masked_kernels`.
    """
    for name, mask in masks.items():
        weight = module.get_parameter(f"{name}.weight")
        weight.mul_(_shaped(mask, weight, name))


def _shaped(mask: Tensor, weight: Tensor, name: str) -> Tensor:
    if mask.shape != weight.shape[:2]:
        raise ModelError(
            f"`{name}` has kernels of shape {tuple(weight.shape[:2])} but their mask has shape "
            f"{tuple(mask.shape)}; masks must come from the same architecture"
        )
    return mask.to(weight).view(*mask.shape, *[1] * (weight.dim() - 2))
