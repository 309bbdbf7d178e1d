"""The network as a graph of operations: who feeds whom, through which weights.

Traced with torch.export, because it sees through functional calls (`F.relu`, `x + y`) and names
the parameters each operation reads, so that nothing here needs to know a network's class.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from rnp_hub.errors import ModelError, reason

aten = torch.ops.aten

POINTWISE = {
    aten.relu.default,
    aten.silu.default,
    aten.gelu.default,
    aten.hardtanh.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.leaky_relu.default,
    aten.elu.default,
    aten.mish.default,
    aten.softplus.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.clamp.default,
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
}
"""Operations that see one number at a time: a constant channel stays constant."""

AVERAGING = {aten.adaptive_avg_pool2d.default, aten.mean.dim, aten.max_pool2d.default}
"""Operations that keep a constant channel as it is (padding of a maximum is -∞)."""


@dataclass(frozen=True)
class Consumer:
    """A layer that mixes channels, reached from a normalisation.

    Attributes:
        module: name of the convolution or linear layer.
        constants: (filters,) float64, what each channel would be here, were it silenced.
        span: columns of the weight per channel (more than 1 behind a flatten).
        padded: whether zeros are mixed in at the border, where no constant stands.
    """

    module: str
    constants: Tensor
    span: int
    padded: bool


@dataclass(frozen=True)
class Path:
    """What stands before and behind one normalisation.

    Attributes:
        producer: the convolution that feeds only this normalisation; `None` if there is no such.
        consumers: every layer its channels reach; `None` if they reach anything else.
    """

    producer: str | None
    consumers: tuple[Consumer, ...] | None


class Graph:
    """The traced network."""

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        """Trace `module` in evaluation mode on a batch of at least two pictures.

        Raises:
            ModelError: torch.export cannot trace it.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                exported = torch.export.export(module.eval(), (example,), strict=False)
                program = exported.run_decompositions({})
            except Exception as error:  # torch.export raises whatever the network's code raises
                raise ModelError(f"the network cannot be traced ({reason(error)})") from error
        self._nodes = program.graph.nodes
        signature = program.graph_signature
        self._tensor_names: Mapping[str, str] = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
        }
        self._weights = {
            node: name
            for node in self._nodes
            if node.op == "placeholder" and (name := self._tensor_names.get(node.name))
        }

    def path(self, norm: str, bias: Tensor) -> Path:
        """Follow the channels of one BatchNorm.

        Args:
            norm: name of the module.
            bias: (filters,), the constants β its silenced filters emit.
        """
        calls = [node for node in self._nodes if self._module_of(node) == norm]
        if len(calls) != 1 or not _is_norm(calls[0]):
            return Path(None, None)
        outputs = [user for user in calls[0].users if user.args[1:] == (0,)]
        if len(outputs) != 1 or len(calls[0].users) != 1:
            return Path(None, None)
        return Path(
            self._producer(calls[0]),
            self._consumers(outputs[0], bias.detach().double().cpu()),
        )

    def _module_of(self, node: Node) -> str | None:
        """The module whose weight an operation reads, if no other operation reads it too."""
        if node.op != "call_function" or len(node.args) < 2 or not isinstance(node.args[1], Node):
            return None
        name = self._weights.get(node.args[1], "")
        if not name.endswith(".weight") and name != "weight":
            return None
        if len(node.args[1].users) != 1:
            return None
        return name.removesuffix("weight").removesuffix(".")

    def _producer(self, norm: Node) -> str | None:
        before = norm.args[0]
        if not isinstance(before, Node) or not _is_dense_convolution(before):
            return None
        return self._module_of(before) if len(before.users) == 1 else None

    def _consumers(self, start: Node, constants: Tensor) -> tuple[Consumer, ...] | None:
        found: list[Consumer] = []
        for consumer in self._walk(start, Consumer("", constants, span=1, padded=False)):
            if consumer is None:
                return None
            found.append(consumer)
        return tuple(found)

    def _walk(self, node: Node, state: Consumer) -> Iterator[Consumer | None]:
        """Every mixing layer behind `node`; `None` for anything that is neither that nor a path."""
        for user in node.users:
            if _is_mixer(user) and user.args[0] is node:
                module = self._module_of(user)
                yield replace(state, module=module, padded=_is_padded(user)) if module else None
            elif (step := _through(user, node, state)) is not None:
                yield from self._walk(user, step)
            else:
                yield None


def _is_norm(node: Node) -> bool:
    return node.target is aten._native_batch_norm_legit_no_training.default


def _is_dense_convolution(node: Node) -> bool:
    groups = node.args[6] if len(node.args) > 6 else 1
    return bool(node.target is aten.conv2d.default and groups == 1)


def _is_mixer(node: Node) -> bool:
    return _is_dense_convolution(node) or node.target is aten.linear.default


def _is_padded(node: Node) -> bool:
    padding = node.args[4] if node.target is aten.conv2d.default and len(node.args) > 4 else 0
    return padding not in (0, [0], [0, 0], "valid")


def _through(node: Node, source: Node, state: Consumer) -> Consumer | None:
    """What becomes of the channels in an operation that keeps them apart; `None` if it does not."""
    if node.op != "call_function" or node.all_input_nodes != [source] or node.args[0] is not source:
        return None
    if node.target in POINTWISE:
        constants: Any = node.target(state.constants, *node.args[1:], **node.kwargs)
        return replace(state, constants=constants)
    before, after = _shape(source), _shape(node)
    if node.target in AVERAGING:
        return state if before[:2] == after[:2] and len(before) == 4 else None
    if node.target is aten.avg_pool2d.default:
        padding = node.args[3] if len(node.args) > 3 else 0
        return state if padding in (0, [0], [0, 0]) else None
    if node.target in (aten.view.default, aten.reshape.default):
        return _flattened(before, after, state)
    return None


def _flattened(before: tuple[int, ...], after: tuple[int, ...], state: Consumer) -> Consumer | None:
    """(B, C, H, W) to (B, C·H·W), or shapes that differ only by sizes of 1 behind the channels."""
    if len(before) < 2 or before[0] != after[0]:
        return None
    if len(after) == 2 and after[1] == math.prod(before[1:]):
        return replace(state, span=state.span * math.prod(before[2:]))
    if before[1] == after[1] and math.prod(before[2:]) == math.prod(after[2:]) == 1:
        return state
    return None


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(int(size) for size in node.meta["val"].shape)
