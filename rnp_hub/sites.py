"""Where filters can be masked: gate sites, found in the traced graph and not by names of classes.

- `norm`: the output of a BatchNorm, before any activation. A silenced filter emits its bias β.
- `output`: the output of a convolution or linear layer without a BatchNorm that only passes through
  activations and other norms into further layers: hidden neurons. It emits its bias, or 0.
- `input`: the input of a layer in groups of columns: attention heads before their projection, the
  hidden units of a gated MLP. It emits 0.

The residual stream under a LayerNorm is no site.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from rnp_hub.errors import ModelError, NoGateSitesError
from rnp_hub.flow import (
    ATTENTION,
    MOVES,
    POINTWISE,
    SAME,
    Readers,
    group_of_columns,
    is_enclosed,
    layers_behind,
    reaches,
    readers,
)
from rnp_hub.graph import CONVOLUTIONS, MIXERS, Graph, arguments, aten, shape

Kind = Literal["norm", "output", "input"]


@dataclass(frozen=True)
class Site:
    """A layer whose filters can be masked.

    Attributes:
        name: of the module, as in `named_modules()`.
        filters: how many can be masked: channels, hidden units or attention heads.
        kind: where the gate sits, see above.
    """

    name: str
    filters: int
    kind: Kind = "norm"


def gate_sites(module: nn.Module, example: Tensor | None = None) -> tuple[Site, ...]:
    """Every site of a network, in the order of `named_modules()`.

    Args:
        module: the network, any device.
        example: (n, C, H, W), what the module takes, n ≥ 2, for tracing it; without one, and for
            a network that torch.export cannot trace, only BatchNorm sites are found.

    Raises:
        NoGateSitesError: there is none.
    """
    try:
        graph = None if example is None else Graph(module, example[:2])
        untraced = "" if graph else "; without an example input nothing else can be found"
    except ModelError as error:
        graph, untraced = None, f"; {error}, so nothing else can be found"
    sites = sites_of(module, graph)
    if not sites:
        raise NoGateSitesError(
            f"{type(module).__name__} has no filter to mask: it holds no BatchNorm layer with a "
            "learned weight and bias, no convolution or linear layer whose outputs only pass "
            "through activations into another, no gated MLP and no attention heads"
            f"{untraced}"
        )
    return sites


def sites_of(module: nn.Module, graph: Graph | None) -> tuple[Site, ...]:
    """The sites of a network that has been traced, or could not be (`None`)."""
    sites = {
        name: Site(name, part.num_features)
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.affine
    }
    if graph is not None:
        for site in (*_outputs(module, graph), *_heads(graph), *_products(graph)):
            sites.setdefault(site.name, site)
    order = {name: place for place, (name, _) in enumerate(module.named_modules())}
    return tuple(sorted(sites.values(), key=lambda site: order[site.name]))


def layer_site(module: nn.Module, name: str) -> Site:
    """The channels of any BatchNorm, or the rows of any convolution or linear layer, as a site.

    RNP gates those of `gate_sites` only; removed can be the filters of every layer.

    Raises:
        ModelError: there is no such layer.
    """
    layer = dict(module.named_modules(remove_duplicate=False)).get(name)
    if isinstance(layer, _BatchNorm) and layer.affine:
        return Site(name, layer.num_features)
    if isinstance(layer, nn.Conv2d | nn.Linear):
        return Site(name, len(layer.weight), "output")
    found = "is not there" if layer is None else f"is a {type(layer).__name__}"
    raise ModelError(
        f"`{name}` {found}; give a Conv2d, a Linear or a BatchNorm with a learned bias, by its "
        "name in named_modules()"
    )


# --- outputs of layers without a norm ---------------------------------------------------------


def silent_output(layer: nn.Module) -> Tensor:
    """(filters,), what the rows of a layer emit when they are 0: its bias."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    return bias.detach() if isinstance(bias, Tensor) else weight.detach().new_zeros(len(weight))


def _outputs(module: nn.Module, graph: Graph) -> Iterator[Site]:
    for name in graph.layers():
        layer = module.get_submodule(name)
        start = graph.output(name)
        if start is None or start.target not in MIXERS or _enters_norm(start):
            continue
        hidden = is_enclosed(graph, start) or _enters_group_norm(start)
        if hidden or _is_hidden(readers(graph, start, silent_output(layer))):
            yield Site(name, shape(start)[1 if isinstance(layer, nn.Conv2d) else -1], "output")


def _is_hidden(found: Readers) -> bool:
    return not found.others and bool(found.known or found.mixers)


def _enters_norm(start: Node) -> bool:
    """Whether a BatchNorm reads it: then the norm is the site."""
    return any("batch_norm" in str(user.target) for user in start.users)


def _enters_group_norm(start: Node) -> bool:
    """Whether only GroupNorms read a convolution, which may then go on into a residual stream."""
    norms = (aten.group_norm.default, aten.native_group_norm.default)
    return start.target in CONVOLUTIONS and all(user.target in norms for user in start.users)


# --- inputs of layers -------------------------------------------------------------------------


def _heads(graph: Graph) -> Iterator[Site]:
    """Layers that read the heads of an attention side by side."""
    for node in graph.nodes:
        size = shape(node) if _is_attention(node) else ()
        if len(size) != 4 or size[1] < 2:
            continue
        tags = torch.arange(size[1], dtype=torch.int32).view(1, -1, 1, 1).expand(size)
        for layer, columns in (reaches(graph, node, tags) or {}).items():
            if torch.equal(columns, group_of_columns(len(columns), size[1])):
                yield Site(layer, size[1], "input")


def _is_attention(node: Node) -> bool:
    if node.target is ATTENTION:
        return True
    products = (aten.matmul.default, aten.bmm.default)
    return node.target in products and any(_is_softmax(arg) for arg in node.args)


def _is_softmax(node: object) -> bool:
    while isinstance(node, Node):
        if node.target in (aten.softmax.int, aten._softmax.default):
            return True
        if node.target not in (aten.clone.default, aten.dropout.default, aten._to_copy.default):
            return False
        node = node.args[0]
    return False


def _products(graph: Graph) -> Iterator[Site]:
    """Layers that read a product of two outputs, unit by unit, with no BatchNorm in between."""
    for name in graph.layers():
        call = graph.call(name)
        if call is None or not graph.is_plain(name) or not _reads_product(call):
            continue
        if layers_behind(graph, call):
            yield Site(name, shape(arguments(call)[1])[1], "input")


def _reads_product(call: Node) -> bool:
    node = call.args[0]
    norms = (aten.layer_norm.default, aten.rms_norm.default)
    while isinstance(node, Node) and (
        node.target in SAME | POINTWISE | MOVES or node.target in norms
    ):
        node = node.args[0]
    if not isinstance(node, Node) or node.target is not aten.mul.Tensor:
        return False
    factors = [arg for arg in node.args if isinstance(arg, Node) and arg.op == "call_function"]
    return len(factors) == 2 and shape(factors[0]) == shape(factors[1])
