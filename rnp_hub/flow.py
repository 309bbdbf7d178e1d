"""Where the channels of a layer go: each number of a tensor is tagged with the filter it is of.

The operations between two layers are run on the tags themselves, so that a flatten, a concatenation
or a shuffle of channels needs no rule of its own. Two questions are asked:

- `readers`: what becomes of filters that are *constant*, and which layers read them? Every number
  tagged f has the same value whenever filter f is silent, and depends on nothing else.
- `reaches`: do the rows of a layer stay apart in *groups* (attention heads, the hidden units of a
  gated product) until they enter another layer? A number tagged g depends on g's rows and no
  other's; other layers may have a part in it too.
"""

from __future__ import annotations

import heapq
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from rnp_hub.graph import CONVOLUTIONS, MIXERS, Graph, arguments, aten, is_norm, is_padded, shape

POINTWISE = {
    aten.relu.default,
    aten.relu6.default,
    aten.silu.default,
    aten.gelu.default,
    aten.hardtanh.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.leaky_relu.default,
    aten.elu.default,
    aten.selu.default,
    aten.mish.default,
    aten.softplus.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.exp.default,
    aten.erf.default,
    aten.neg.default,
    aten.pow.Tensor_Scalar,
    aten.square.default,
    aten.sqrt.default,
    aten.rsqrt.default,
    aten.abs.default,
}
"""Operations that see one number at a time: a constant channel stays constant."""

SAME = {
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.contiguous.default,
    aten.dropout.default,
    aten._to_copy.default,
}
"""Operations that hand on what they got (dropout in evaluation mode)."""

APART = {
    aten.slice.Tensor,
    aten.select.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.unbind.int,
}
"""Moves that take an output apart: a query from its key, a value from its gate."""

MOVES = {
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.flatten.using_ints,
    aten.unflatten.int,
    *APART,
    aten.expand.default,
    aten.expand_as.default,
    aten.roll.default,
    aten.flip.default,
    aten.cat.default,
    aten.stack.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
}
"""Operations that move numbers and change none."""

BINARY = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.addcmul.default}

ATTENTION = aten.scaled_dot_product_attention.default
PRODUCTS = {aten.matmul.default, aten.bmm.default, ATTENTION}

AVERAGING = {aten.adaptive_avg_pool2d.default, aten.mean.dim, aten.max_pool2d.default}
"""Operations that keep a constant channel as it is (padding of a maximum is -∞)."""

STATISTICS = {
    aten.layer_norm.default,
    aten.rms_norm.default,
    aten.group_norm.default,
    aten.native_group_norm.default,
    aten.linalg_vector_norm.default,
    aten.mean.dim,
    aten.sum.dim_IntList,
    aten.var.correction,
}
"""Operations that take sums over channels or pixels; a silent filter still has its part in them."""

ALONE = {*POINTWISE, *SAME, *MOVES, *BINARY, *STATISTICS} - APART

PADDING = {aten.constant_pad_nd.default, aten.pad.default}

NOBODY, BORDER = -1, -2
"""Tags: a number of another layer; a zero that padding put there."""


@dataclass(frozen=True)
class Flow:
    """A tensor of tags.

    Attributes:
        tags: in the shape of the tensor, which filter each number is of, or NOBODY, or BORDER.
        values: the same shape, float64: what it is while its filter is silent; `None` if unknown.
    """

    tags: Tensor
    values: Tensor | None = None


@dataclass(frozen=True)
class Reader:
    """A layer that mixes channels, and what it reads.

    Attributes:
        layer: name of the convolution or linear layer.
        tags: (columns,), the filter each column of its weight is for, or NOBODY.
        constants: (columns,) float64, what each column reads while its filter is silent.
        padded: whether zeros are mixed in at the border, where no constant stands.
    """

    layer: str
    tags: Tensor
    constants: Tensor
    padded: bool

    def columns(self, filters: Iterable[int]) -> list[int]:
        """The columns of some filters, filter by filter."""
        return [i for f in filters for i in (self.tags == f).nonzero().flatten().tolist()]


@dataclass(frozen=True)
class Readers:
    """Everything a layer's filters reach.

    Attributes:
        known: the layers whose columns for these filters may go.
        mixers: operations that mix channels but whose weights cannot be cut by column.
        others: operations of any other kind: statistics, sums, products, the network's output.
    """

    known: tuple[Reader, ...]
    mixers: tuple[Node, ...]
    others: tuple[Node, ...]


def readers(graph: Graph, start: Node, constants: Tensor) -> Readers:
    """Follow filters from `start` on, were they constant.

    Args:
        graph: the network.
        start: the layer's output.
        constants: (filters,), what its filters emit while silent.
    """
    values = _along(constants.detach().double().cpu(), shape(start), channel_dim(start))
    first = Flow(channels(start, len(constants)), values)
    known: list[Reader] = []
    mixers: list[Node] = []
    others: list[Node] = []
    for node, source in _ends(graph, start, first, _Constants(graph)):
        if source is None or node.target not in MIXERS:
            others.append(node)
        elif reader := _reader(graph, node, source):
            known.append(reader)
        else:
            mixers.append(node)
    return Readers(tuple(known), tuple(mixers), tuple(others))


def reaches(graph: Graph, start: Node, tags: Tensor) -> dict[str, Tensor] | None:
    """Follow groups of rows from `start` on, whatever their values.

    Args:
        graph: the network.
        start: any operation.
        tags: in the shape of its result, the group of each number.

    Returns:
        By layer, (columns,): the group each of its columns reads, or NOBODY; `None` if groups mix
        before they reach a layer, or leave by another way.
    """
    found: dict[str, Tensor] = {}
    for node, source in _ends(graph, start, Flow(tags), _Groups()):
        layer = graph.layer(node)
        if source is None or layer is None or not graph.is_plain(layer) or layer in found:
            return None
        columns = _columns(source.tags, node)
        if columns is None:
            return None
        found[layer] = columns
    return found


def is_enclosed(graph: Graph, start: Node) -> bool:
    """Whether an output meets nothing but itself, weights and statistics until layers read it.

    Then it is no part of a residual stream, of an attention or of a gate on something else.
    """
    seen = {start}
    waiting = [(graph.place(user), user) for user in start.users]
    heapq.heapify(waiting)
    while waiting:
        _, node = heapq.heappop(waiting)
        if node in seen or (node.target in MIXERS and node.args[0] in seen):
            continue
        foreign = [each for each in node.all_input_nodes if each not in seen]
        if node.target not in ALONE or not all(map(graph.is_fixed, foreign)):
            return False
        seen.add(node)
        for user in node.users:
            heapq.heappush(waiting, (graph.place(user), user))
    return True


# --- walking ----------------------------------------------------------------------------------


def _ends(
    graph: Graph, start: Node, flow: Flow, rules: _Rules
) -> Iterator[tuple[Node, Flow | None]]:
    """Every operation at which the walk ends, with the flow that enters it first, and alone."""
    flows: dict[Node, Any] = {start: flow}
    waiting = [(graph.place(user), user) for user in start.users]
    seen = set(start.users)
    heapq.heapify(waiting)
    while waiting:
        _, node = heapq.heappop(waiting)
        result = rules.step(node, flows) if node.op == "call_function" else None
        if result is None:
            yield node, _only(node, flows)
            continue
        flows[node] = result
        for user in node.users:
            if user not in seen:
                seen.add(user)
                heapq.heappush(waiting, (graph.place(user), user))


def _only(node: Node, flows: Mapping[Node, Any]) -> Flow | None:
    """The flow that enters an operation as its first input, if no other enters it."""
    first = next(iter(arguments(node)), None)
    flow = flows.get(first) if isinstance(first, Node) else None
    alone = sum(source in flows for source in node.all_input_nodes) == 1
    return flow if isinstance(flow, Flow) and alone else None


class _Rules:
    """What becomes of tags in an operation; `None` where the walk ends."""

    def step(self, node: Node, flows: Mapping[Node, Any]) -> Any:
        target = node.target
        if target is operator.getitem:
            parts, place = flows[arguments(node)[0]], arguments(node)[1]
            return parts[place] if isinstance(parts, list) else None
        if target in MOVES:
            return _moved(node, flows)
        if target in BINARY:
            return self.binary(node, flows)
        if target in PRODUCTS:
            return self.product(node, flows)
        flow = _only(node, flows)
        if flow is None or target in SAME:
            return flow
        return self.pointwise(node, flow) if target in POINTWISE else self.other(node, flow)

    def pointwise(self, node: Node, flow: Flow) -> Flow | None:
        raise NotImplementedError

    def binary(self, node: Node, flows: Mapping[Node, Any]) -> Flow | None:
        raise NotImplementedError

    def product(self, node: Node, flows: Mapping[Node, Any]) -> Flow | None:
        raise NotImplementedError

    def other(self, node: Node, flow: Flow) -> Flow | None:
        raise NotImplementedError


class _Constants(_Rules):
    """Numbers that are constant while their filter is silent stay so."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def pointwise(self, node: Node, flow: Flow) -> Flow | None:
        if any(isinstance(arg, Node) for arg in arguments(node)[1:]) or flow.values is None:
            return None
        values = _sparsely(lambda x: _run(node, x, *arguments(node)[1:]), flow.values)
        return Flow(flow.tags, values)

    def binary(self, node: Node, flows: Mapping[Node, Any]) -> Flow | None:
        """With a number, a learned scalar, or another tensor of the very same tags."""
        operands = [flows.get(arg, self._scalar(arg)) for arg in arguments(node)]
        tagged = [operand for operand in operands if isinstance(operand, Flow)]
        if None in operands or any(flow.tags.shape != shape(node) for flow in tagged):
            return None
        if any(not torch.equal(flow.tags, tagged[0].tags) for flow in tagged[1:]):
            return None
        values = [each.values if isinstance(each, Flow) else each for each in operands]
        return Flow(tagged[0].tags, _run(node, *values))

    def product(self, node: Node, flows: Mapping[Node, Any]) -> Flow | None:  # noqa: ARG002
        return None

    def _scalar(self, arg: Any) -> float | None:
        if isinstance(arg, int | float):
            return float(arg)
        weight = self.graph.weight(arg) if isinstance(arg, Node) else None
        return float(weight) if weight is not None and weight.numel() == 1 else None

    def other(self, node: Node, flow: Flow) -> Flow | None:
        if flow.values is None:
            return None
        if node.target in PADDING:
            return _bordered(node, flow.tags, flow.values)
        averaging = node.target in AVERAGING or _is_unpadded_average(node)
        return _averaged(node, flow.tags, flow.values) if averaging else None


class _Groups(_Rules):
    """Numbers that depend on one group of rows depend on no other group's."""

    def pointwise(self, node: Node, flow: Flow) -> Flow | None:  # noqa: ARG002
        return flow

    def binary(self, node: Node, flows: Mapping[Node, Any]) -> Flow | None:
        return _together([flows[arg].tags for arg in arguments(node) if arg in flows], shape(node))

    def product(self, node: Node, flows: Mapping[Node, Any]) -> Flow | None:
        """Of matrices: sums run over the last two dimensions, whatever stands before is apart."""
        entering = [flows[arg].tags for arg in arguments(node) if arg in flows]
        if not all(_is_uniform(tags, (-1, -2)) for tags in entering):
            return None
        return _together([tags[..., :1, :1] for tags in entering], shape(node))

    def other(self, node: Node, flow: Flow) -> Flow | None:
        summed = _summed_dims(node, flow.tags.dim())
        if summed is None or not _is_uniform(flow.tags, summed):
            return None
        dims = range(flow.tags.dim())
        tags = flow.tags[tuple(slice(0, 1) if dim in summed else slice(None) for dim in dims)]
        if tags.dim() != len(shape(node)):
            tags = tags.squeeze(summed)
        return Flow(tags.expand(shape(node)))


def _summed_dims(node: Node, count: int) -> tuple[int, ...] | None:
    """The dimensions of its first input along which an operation takes sums."""
    dims: tuple[int, ...]
    target, args = node.target, arguments(node)
    if target in (aten.softmax.int, aten._softmax.default):
        dims = (args[1],)
    elif target in (aten.layer_norm.default, aten.rms_norm.default):
        dims = tuple(range(-len(args[1]), 0))
    elif target in (aten.mean.dim, aten.sum.dim_IntList):
        dims = tuple(args[1])
    elif target is aten.linalg_vector_norm.default and len(args) > 2:
        dims = tuple(args[2])
    else:
        return None
    return tuple(dim % count for dim in dims)


def _run(node: Node, *args: Any) -> Any:
    operation: Any = node.target
    return operation(*args, **node.kwargs)


def _moved(node: Node, flows: Mapping[Node, Any]) -> Any:
    """An operation that moves numbers, on tags and on values; other tensors are NOBODY's."""
    with_values = all(flow.values is not None for flow in flows.values() if isinstance(flow, Flow))

    def of(arg: Any, kind: str) -> Any:
        if isinstance(arg, list | tuple):
            return [of(each, kind) for each in arg]
        if not isinstance(arg, Node):
            return arg
        if arg in flows:
            return getattr(flows[arg], kind)
        if kind == "tags":
            return torch.tensor(NOBODY, dtype=torch.int32).expand(shape(arg))
        return torch.tensor(0.0, dtype=torch.float64).expand(shape(arg))

    tags = _run_move(node, [of(arg, "tags") for arg in arguments(node)])
    values = (
        _run_move(node, [of(arg, "values") for arg in arguments(node)]) if with_values else None
    )
    if isinstance(tags, Tensor):
        return Flow(tags, values)
    return [Flow(*pair) for pair in zip(tags, values or [None] * len(tags), strict=True)]


def _run_move(node: Node, args: Sequence[Any]) -> Any:
    # A view of tags that stand side by side nowhere in memory is a copy.
    views = (aten.view.default, aten._unsafe_view.default)
    operation: Any = aten.reshape.default if node.target in views else node.target
    return operation(*args)


def _averaged(node: Node, tags: Tensor, values: Tensor) -> Flow | None:
    """Means and maxima over pixels: each channel one constant, before as after."""
    before, after = shape(arguments(node)[0]), shape(node)
    mean = node.target is aten.mean.dim
    if mean:
        dims = tuple(dim % len(before) for dim in arguments(node)[1])
    elif len(before) == len(after) == 4 and before[:2] == after[:2]:
        dims = (2, 3)
    else:
        return None
    if not _is_uniform(tags, dims) or not _is_uniform(values, dims):
        return None
    first = tuple(slice(0, 1) if dim in dims else slice(None) for dim in range(len(before)))
    if mean:
        return Flow(tags[first].reshape(after), values[first].reshape(after))
    return Flow(tags[first].expand(after), values[first].expand(after))


def _is_unpadded_average(node: Node) -> bool:
    padding = arguments(node)[3] if len(arguments(node)) > 3 else 0
    return node.target is aten.avg_pool2d.default and padding in (0, [0], [0, 0])


def _bordered(node: Node, tags: Tensor, values: Tensor) -> Flow | None:
    """Zeros around."""
    pads, *rest = arguments(node)[1:]
    if any(each not in ("constant", None, 0) for each in rest):
        return None
    if not any(pads):
        return Flow(tags, values)
    pad = torch.nn.functional.pad
    return Flow(pad(tags, pads, value=BORDER), pad(values, pads))


def _together(tags: Sequence[Tensor], size: tuple[int, ...]) -> Flow | None:
    """What depends on all of them, where they agree."""
    merged, *others = [each.expand(size) for each in tags]
    for other in others:
        if ((merged != other) & (merged != NOBODY) & (other != NOBODY)).any():
            return None
        merged = torch.where(merged == NOBODY, other, merged)
    return Flow(merged)


# --- tensors that say the same thing many times -----------------------------------------------


def channels(node: Node, count: int) -> Tensor:
    """Tags of a layer's own output: each channel its own filter."""
    return _along(torch.arange(count, dtype=torch.int32), shape(node), channel_dim(node))


def channel_dim(node: Node) -> int:
    """Where the channels of a layer's output stand: last behind a linear layer, else second."""
    return len(shape(node)) - 1 if node.target is aten.linear.default else 1


def _along(values: Tensor, size: Sequence[int], dim: int) -> Tensor:
    """`values` (n,) along one dimension of a tensor of `size`, repeated along the others."""
    view = [1] * len(size)
    view[dim] = len(values)
    return values.view(view).expand(tuple(size))


def _sparsely(operation: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """A pointwise operation, on each repeated number once."""
    once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())
    return operation(tensor[once]).expand(tensor.shape)


def _is_uniform(tensor: Tensor, dims: Iterable[int]) -> bool:
    """Whether numbers are the same all along some dimensions."""
    for dim in dims:
        if tensor.stride(dim) == 0:
            continue
        if not bool((tensor == tensor.narrow(dim, 0, 1)).all()):
            return False
    return True


def _by_column(tensor: Tensor, node: Node) -> Tensor:
    """(everything else, columns) of what a mixing operation takes in."""
    dim = 1 if node.target in CONVOLUTIONS else tensor.dim() - 1
    once = tuple(
        slice(0, 1) if stride == 0 and place != dim else slice(None)
        for place, stride in enumerate(tensor.stride())
    )
    small = tensor[once].movedim(dim, -1)
    return small.reshape(-1, small.shape[-1])


def _columns(tags: Tensor, node: Node) -> Tensor | None:
    rows = _by_column(tags, node)
    return rows[0] if bool((rows == rows[0]).all()) else None


def _reader(graph: Graph, node: Node, flow: Flow) -> Reader | None:
    layer = graph.layer(node)
    if layer is None or not graph.is_plain(layer) or flow.values is None:
        return None
    if not bool((flow.tags == BORDER).any()):
        tags = _columns(flow.tags, node)
        values = _by_column(flow.values, node)
        if tags is None or not bool(((values == values[0]) | (tags == NOBODY)).all()):
            return None
        return Reader(layer, tags, values[0], is_padded(node))
    rows = _by_column(flow.tags, node)
    values = _by_column(flow.values.expand(flow.tags.shape).contiguous(), node)
    if rows.shape != values.shape:
        return None
    border = rows == BORDER
    tags = rows.amax(0)
    inner = torch.where(border, float("-inf"), values).amax(0)
    agrees = torch.where(border, values == 0, (rows == tags) & (values == inner))
    return Reader(layer, tags, inner, padded=True) if bool(agrees.all()) else None


# --- groups of rows ---------------------------------------------------------------------------


def group_of_columns(columns: int, groups: int) -> Tensor:
    """(columns,): the groups side by side, each as wide as the others."""
    return torch.arange(columns, dtype=torch.int32) // max(columns // groups, 1)


def sources(graph: Graph, layer: str, groups: int) -> dict[str, Tensor] | None:
    """The layers whose rows make the groups of columns that `layer` reads, and nothing else.

    Rows may lie in up to three blocks of all groups (query, key and value; value and gate).

    Returns:
        By layer, (rows,): the group of each; `None` if another layer has a part in what is read.
    """
    call = graph.call(layer)
    if call is None or not layers_behind(graph, call):
        return None
    columns = group_of_columns(_width(call), groups)
    found: dict[str, Tensor] = {}
    for name in layers_behind(graph, call):
        rows = _rows(graph, name, layer, columns) if name else None
        if name is None or rows is None:
            return None
        found[name] = rows
    return found


def _width(call: Node) -> int:
    return shape(arguments(call)[0])[1 if call.target in CONVOLUTIONS else -1]


def layers_behind(graph: Graph, call: Node) -> tuple[str | None, ...]:
    """The layers whose output enters a layer without another in between; `None` for a nameless one.

    Empty where a BatchNorm, an input of the network or a running value stands in between.
    """
    names: dict[str | None, None] = {}
    waiting, seen = [arguments(call)[0]], set[Node]()
    while waiting:
        node = waiting.pop()
        if node in seen or graph.is_fixed(node):
            continue
        seen.add(node)
        if node.target in MIXERS:
            names[graph.layer(node)] = None
        elif is_norm(node) or node.op == "placeholder":
            return ()
        else:
            waiting.extend(node.all_input_nodes)
    return tuple(names)


def _rows(graph: Graph, name: str, layer: str, columns: Tensor) -> Tensor | None:
    start = graph.output(name)
    if start is None:
        return None
    groups, count = int(columns.max()) + 1, shape(start)[channel_dim(start)]
    for blocks in (1, 2, 3):
        if count % (blocks * groups):
            continue
        rows = torch.arange(count, dtype=torch.int32) // (count // (blocks * groups)) % groups
        reached = reaches(graph, start, _along(rows, shape(start), channel_dim(start)))
        if reached is not None and set(reached) == {layer} and torch.equal(reached[layer], columns):
            return rows
    return None
