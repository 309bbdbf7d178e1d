"""The heads of a network, which give its logits, and the features that they read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from rnp_hub.network import Classifier


@torch.no_grad()
def heads(classifier: Classifier, images: Tensor) -> list[nn.Module]:
    """Linear layers and convolutions that give each picture one number a class.

    One for most networks; more where several answer together; none where logits are made in
    another way.

    Args:
        classifier: in evaluation mode.
        images: (n, C, H, W), as stored, n ≥ 2.
    """
    shapes: dict[nn.Module, list[tuple[int, ...]]] = {}

    def note(layer: nn.Module, _inputs: object, output: Tensor) -> None:
        shapes.setdefault(layer, []).append(tuple(output.flatten(1).shape))

    with contextlib.ExitStack() as stack:
        for part in classifier.module.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                stack.enter_context(part.register_forward_hook(note))
        logits = classifier.logits(images)
    return [part for part, found in shapes.items() if found == [tuple(logits.shape)]]


@contextlib.contextmanager
def features(heads: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What heads read while the block runs: (n, …), one tensor each time that one is asked.

    Gradients flow.
    """
    read: list[Tensor] = []

    def note(_head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read.append(inputs[0].float())

    with contextlib.ExitStack() as stack:
        for head in heads:
            stack.enter_context(head.register_forward_pre_hook(note))
        yield read
