"""What a stranger's configuration may cost: its numbers, and the network that is built from them.

A `config.json` of a hundred bytes can ask for a network of a terabyte. Its weights cannot lie: they
are as large as their file is. So a network may take a few times what its weights hold, which leaves
room for tables and buffers, and is given up at the first tensor beyond that, before it is made.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from rnp_hub.errors import ModelError

MAX_WEIGHT_BYTES = 32 * 2**30
"""Of all weight files of a model; the largest image classifiers have a third of it."""

MAX_CLASSES = 2**18
"""Logits; ImageNet-21k has 21,843 labels."""

MAX_NUMBER = 2**16
"""The largest number among the arguments of an architecture: widths, depths, sizes."""

MAX_WORDS = 2**20
"""The same in a configuration of transformers, which may speak of a vocabulary."""

MAX_ENTRIES = 4096
"""Values among the arguments of an architecture."""

SHARE, ROOM = 8, 2**24
"""Values that building may make: `SHARE` for each one that is stored, and `ROOM` more. Of 96
networks, one of each kind in timm, the most spendthrift made 4.0 for each, and no other above 2.3;
the smaller network of slimming is cut out of the full one."""

CALLS, ROOM_FOR_CALLS = 32, 2**11
"""Operations that building may take: `CALLS` for each tensor that is stored, and so many more. Of
the same networks, none took more than 8.2 for each."""


def check_arguments(arguments: object, where: str, largest: int = MAX_NUMBER) -> None:
    """Refuse arguments of an architecture that no network has.

    Args:
        arguments: anything that JSON can hold.
        where: they stand, for the message.
        largest: number that is let through.

    Raises:
        ModelError: a number is larger, or there are more than `MAX_ENTRIES` values.
    """
    pending, seen = [arguments], 0
    while pending:
        value = pending.pop()
        seen += 1
        if seen + len(pending) > MAX_ENTRIES:
            raise ModelError(f"{where} holds more than {MAX_ENTRIES:,} values; correct it")
        if isinstance(value, Mapping):
            pending += value.values()
        elif isinstance(value, list | tuple):
            pending += value
        elif isinstance(value, int | float) and not abs(value) <= largest:
            raise ModelError(
                f"{where} holds the number {_shown(value)}, which no network needs (at most "
                f"{largest:,}); correct it"
            )


def _shown(value: float) -> str:
    """A whole number may have thousands of digits."""
    return f"{value}" if not abs(value) > 10**12 else "of many digits"


class TooLargeError(Exception):
    """A network takes more than its weights could fill."""


@dataclass
class Allowance:
    """What is left to build a network with.

    Attributes:
        values: numbers in tensors.
        calls: operations.
    """

    values: int
    calls: int

    @staticmethod
    def of(weights: Mapping[str, Tensor], lacking: int = 0) -> Allowance:
        """For a network with these weights, built with `lacking` values that are dropped again."""
        values = SHARE * sum(map(_stored, weights.values())) + ROOM + lacking
        return Allowance(values, CALLS * len(weights) + ROOM_FOR_CALLS)

    @staticmethod
    def of_bytes(size: int) -> Allowance:
        """For a network whose weight files are `size` bytes large, and not yet read."""
        return Allowance(SHARE * size + ROOM, CALLS * size // 256 + ROOM_FOR_CALLS)

    def spend(self, values: int) -> None:
        """Take one operation that makes so many values.

        Raises:
            TooLargeError: nothing is left.
        """
        self.values -= values
        self.calls -= 1
        if self.values < 0 or self.calls < 0:
            raise TooLargeError("it is many times larger than the weights it is to be filled with")


def _stored(tensor: Tensor) -> int:
    """Values that a tensor really holds: one number can be stretched to any shape."""
    return min(tensor.numel(), tensor.untyped_storage().nbytes() // tensor.element_size())


def within(allowance: Allowance | None) -> contextlib.AbstractContextManager[object]:
    """A block in which each tensor is paid for before it is made.

    Torch is asked on its meta device, which holds shapes alone, how large a result will be; what
    only changes or shows a tensor makes no values.

    Args:
        allowance: what is left; `None` for no limit.

    Raises:
        TooLargeError: within the block, where the allowance ends.
    """
    return contextlib.nullcontext() if allowance is None else _Paying(allowance)


class _Paying(TorchDispatchMode):
    def __init__(self, allowance: Allowance) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allowance = allowance

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        makes = not any(result.alias_info for result in func._schema.returns)
        self.allowance.spend(_values(func, args, given) if makes else 0)
        return func(*args, **given)


def _values(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    """How many numbers the tensors will hold that an operation makes."""
    args, kwargs = tree_map_only(Tensor, _shape_of, (args, kwargs))
    if any(argument.name == "device" for argument in func._schema.arguments):
        kwargs = {**kwargs, "device": torch.device("meta"), "pin_memory": None}
        kwargs = {k: v for k, v in kwargs.items() if v is not None}
    try:
        made = func(*args, **kwargs)
    except (RuntimeError, NotImplementedError):
        return 0  # a number taken out of a tensor; what torch really refuses, it refuses again
    return sum(math.prod(each.shape) for each in tree_leaves(made) if isinstance(each, Tensor))


def _shape_of(tensor: Tensor) -> Tensor:
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=torch.device("meta")
    )
