"""The network as a graph of operations: who feeds whom, through which layers.

Traced with torch.export, because it sees through functional calls (`F.relu`, `x + y`), keeps an
operation such as attention in one piece and names the module each operation ran in, so that nothing
here needs to know a network's class.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from rnp_hub.errors import ModelError, reason
from rnp_hub.network import evaluation_mode

aten = torch.ops.aten

CONVOLUTIONS = {aten.conv2d.default, aten.conv2d.padding}
MIXERS = {*CONVOLUTIONS, aten.linear.default}
"""Operations that mix channels through a weight."""


class Graph:
    """The traced network.

    Attributes:
        nodes: the operations, in the order they run.
        weights: parameters and buffers by the node that reads them.
    """

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        """Trace `module` in evaluation mode on a batch of at least two pictures.

        Raises:
            ModelError: torch.export cannot trace it.
        """
        with warnings.catch_warnings(), evaluation_mode(module):
            warnings.simplefilter("ignore")
            try:
                exported = torch.export.export(module, (example,), strict=False)
                program = exported.run_decompositions({})
            except Exception as error:  # torch.export raises whatever the network's code raises
                raise ModelError(f"the network cannot be traced ({reason(error)})") from error
        self.nodes: Sequence[Node] = tuple(program.graph.nodes)
        self._place = {node: place for place, node in enumerate(self.nodes)}
        signature = program.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._weights: Mapping[Node, str] = {
            node: names[node.name] for node in self.nodes if node.name in names
        }
        self._around(module)
        inputs = set(signature.user_inputs)
        self._moving: set[Node] = set()
        for node in self.nodes:
            if node.name in inputs or not self._moving.isdisjoint(node.all_input_nodes):
                self._moving.add(node)
        self._calls: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            if (layer := self._layer_of(node)) is not None:
                self._calls[layer].append(node)

    def around(self, module: nn.Module) -> Graph:
        """The same graph of another network of the same architecture."""
        twin = copy.copy(self)
        twin._around(module)
        return twin

    def _around(self, module: nn.Module) -> None:
        self._module = module
        # A module that stands in several places has one name, and is called once for each place.
        self._names = {part: name for name, part in module.named_modules()}

    def layers(self) -> Iterator[str]:
        """Names of the convolutions, linear layers and BatchNorms that run exactly once."""
        return (name for name, calls in self._calls.items() if len(calls) == 1)

    def call(self, layer: str) -> Node | None:
        """The operation that runs a layer; `None` if the layer runs never, or more than once."""
        calls = self._calls.get(layer, [])
        return calls[0] if len(calls) == 1 else None

    def output(self, layer: str) -> Node | None:
        """What the layer emits (a BatchNorm with an activation inside: before that)."""
        call = self.call(layer)
        if call is None:
            return None
        if call.target in MIXERS:
            inside = any(owner(user) == owner(call) for user in call.users)
            return None if inside else call
        outputs = [user for user in call.users if user.args[1:] == (0,)]
        return outputs[0] if len(outputs) == len(call.users) == 1 else None

    def layer(self, node: Node) -> str | None:
        """The layer that runs in this operation and nowhere else."""
        name = self._layer_of(node)
        return name if name is not None and self.call(name) is node else None

    def is_plain(self, layer: str) -> bool:
        """Whether a layer mixes all its inputs by its weight as it is, not standardised first."""
        call = self.call(layer)
        if call is None or call.target not in MIXERS or _groups(call) != 1:
            return False
        weight = call.args[1]
        return (
            isinstance(weight, Node)
            and self._weights.get(weight) == f"{layer}.weight"
            and len(weight.users) == 1
        )

    def is_fixed(self, node: Node) -> bool:
        """Whether a node computes the same for every picture: from weights alone."""
        return node not in self._moving

    def dead_without(self, layer: str) -> tuple[str, ...]:
        """The layers whose output nobody needs once `layer` emits constants."""
        live, waiting = set[Node](), list(self.nodes[-1:])
        while waiting:
            node = waiting.pop()
            if node not in live:
                live.add(node)
                waiting.extend(() if node is self.call(layer) else node.all_input_nodes)
        return tuple(name for name in self.layers() if self.call(name) not in live)

    def place(self, node: Node) -> int:
        """Where a node stands in the order of running."""
        return self._place[node]

    def weight(self, node: Node) -> Tensor | None:
        """The parameter or buffer a node reads."""
        name = self._weights.get(node)
        if name is None:
            return None
        parent, _, child = name.rpartition(".")
        found = getattr(self._module.get_submodule(parent), child)
        return found.detach() if isinstance(found, Tensor) else None

    def _layer_of(self, node: Node) -> str | None:
        if node.target not in MIXERS and not is_norm(node):
            return None
        name = owner(node)
        try:
            layer = self._module.get_submodule(name)
        except AttributeError:
            return None
        kind: type | tuple[type, ...] = _BatchNorm if is_norm(node) else (nn.Conv2d, nn.Linear)
        return self._names[layer] if isinstance(layer, kind) else None


def owner(node: Node) -> str:
    """Name of the module in whose `forward` an operation ran."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]).partition("@")[0] if stack else ""


def is_norm(node: Node) -> bool:
    """Whether an operation is a BatchNorm in evaluation mode."""
    return node.target is aten._native_batch_norm_legit_no_training.default


def is_padded(node: Node) -> bool:
    """Whether a mixing operation takes zeros in at the border."""
    padding = node.args[4] if node.target in CONVOLUTIONS and len(node.args) > 4 else 0
    return padding not in (0, [0], [0, 0], "valid")


def _groups(node: Node) -> object:
    if node.target is aten.linear.default:
        return 1
    return node.args[6] if len(node.args) > 6 else 1


def arguments(node: Node) -> tuple[Any, ...]:
    """Of an operation, by position."""
    return node.args


def shape(node: Node) -> tuple[int, ...]:
    """Of the tensor an operation computes."""
    return tuple(int(size) for size in node.meta["val"].shape)
