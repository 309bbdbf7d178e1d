"""The head of a network, its last linear layer, and the features that it reads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn


def last_linear(module: nn.Module) -> nn.Linear | None:
    """The layer whose outputs are the logits; `None` where there is no linear layer."""
    found = [part for part in module.modules() if isinstance(part, nn.Linear)]
    return found[-1] if found else None


@contextlib.contextmanager
def features(head: nn.Linear | None) -> Iterator[list[Tensor]]:
    """What the head reads while the block runs, (n, …, features), one tensor each time it is asked.

    Nothing where there is no head. Gradients flow.
    """
    read: list[Tensor] = []
    if head is None:
        yield read
        return
    with head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].float())):
        yield read
