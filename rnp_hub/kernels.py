"""Masks of kernels: a number for each filter of a convolution and channel that it reads.

A mask is multiplied into the kernel's weights, so that the network keeps its architecture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


def kernel_masks(module: nn.Module) -> dict[str, Tensor]:
    """Ones for each convolution, by its name: (filters, channels read), on its device.

    A convolution whose weight is computed from others (weight norm) has none.
    """
    return {
        name: torch.ones(layer.weight.shape[:2], device=layer.weight.device)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d) and "weight" in layer._parameters
    }


@contextlib.contextmanager
def masked_kernels(module: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Mask kernels while the block runs; nothing is left behind, whatever happens in it.

    Args:
        module: the network; its weights are only read.
        masks: as `kernel_masks` gives them, values ≥ 0; gradients flow into them.
    """
    with contextlib.ExitStack() as stack:
        for name, mask in masks.items():
            # As torch.func.functional_call does it; the order of the parameters stays.
            parameters = module.get_submodule(name)._parameters
            weight = parameters["weight"]
            assert weight is not None
            stack.callback(parameters.__setitem__, "weight", weight)
            parameters["weight"] = weight * _shaped(mask, weight)  # type: ignore[assignment]
        yield


@torch.no_grad()
def scale_kernels(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Mask kernels of `module` for good, in place."""
    for name, mask in masks.items():
        weight = module.get_parameter(f"{name}.weight")
        weight.mul_(_shaped(mask, weight))


def _shaped(mask: Tensor, weight: Tensor) -> Tensor:
    return mask.to(weight).view(*mask.shape, *[1] * (weight.dim() - 2))
