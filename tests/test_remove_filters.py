"""Any list of filters of any layer: silenced and removed, the rest left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rnp_hub
from rnp_hub.edits import apply_edits
from rnp_hub.errors import ModelError, ProofError
from rnp_hub.graph import Graph
from rnp_hub.hooks import silence
from rnp_hub.sites import Site, sites_of
from rnp_hub.slim import Slimmed, relative_difference, slim
from tests.networks import SmallResNet, randomised

EXAMPLE = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()


def masked(module: nn.Module, filters: Mapping[str, Sequence[int]]) -> nn.Module:
    """The network as its author would mask it: rows of 0, biases as they are."""
    twin = randomised(type(module)()).double()
    twin.load_state_dict(module.state_dict())
    with torch.no_grad():
        for name, indices in filters.items():
            twin.get_submodule(name).weight[list(indices)] = 0
    return twin


def removed(module: nn.Module, filters: Mapping[str, Sequence[int]]) -> Slimmed:
    """Removed, held against the masked network, and built again from its edits."""
    module = randomised(module).double()
    silent = masked(module, filters)
    assert relative_difference(module, silent, EXAMPLE) > 1e-4, "nothing was masked"
    result = rnp_hub.remove_filters(module, filters, EXAMPLE)
    assert relative_difference(silent, result.module, EXAMPLE) <= 1e-9
    again = type(module)().double().eval()
    apply_edits(again, result.edits)
    again.load_state_dict(result.module.state_dict())
    assert relative_difference(result.module, again, EXAMPLE) == 0
    return result


def test_rows_before_a_norm_are_channels_of_the_norm() -> None:
    result = removed(SmallResNet(), {"first.conv1": [1, 4]})
    count = result.layers["first.conv1"]
    assert (count.silenced, count.kept, count.removed + count.carriers) == (2, 0, 2)
    width = 8 - count.removed
    assert result.module.first.bn1.num_features == width
    assert result.module.first.conv2.in_channels == width


def test_rows_and_channels_of_the_same_filters() -> None:
    result = removed(SmallResNet(), {"first.conv1": [1, 4], "first.bn1": [4, 5]})
    assert list(result.layers) == ["first.bn1"]
    assert result.layers["first.bn1"].silenced == 3


def test_a_whole_layer_asked_for_in_two_parts() -> None:
    result = removed(SmallResNet(), {"first.conv2": range(5), "first.bn2": range(4, 8)})
    assert result.layers["first.bn2"].scatter == 8
    assert not list(result.module.first.parameters())


class Stream(nn.Module):
    """Tokens with a shortcut under a LayerNorm, and one layer that stands in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.LayerNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24, bias=False), nn.Linear(8, 8)
        self.twice = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.twice(F.gelu(self.twice(x)))
        return self.head(x.mean(1))


@pytest.mark.parametrize("layer", ["embed", "qkv", "twice", "head"])
def test_layers_that_are_no_gate_sites(layer: str) -> None:
    result = removed(Stream(), {layer: [0, 2]})
    assert (result.layers[layer].scatter, result.layers[layer].kept) == (2, 0)
    assert len(result.module.get_submodule(layer).layer.weight) in (2, 6, 22)


class Alias(SmallResNet):
    """One layer that has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first.conv2 = self.first.conv1

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head(self.second(self.first.conv2(self.first.conv1(x))).mean((2, 3)))


@pytest.mark.parametrize("name", ["first.conv1", "first.conv2"])
def test_a_layer_of_two_names(name: str) -> None:
    result = removed(Alias(), {name: [1, 2, 5]})
    assert result.layers[name].scatter == 3
    assert result.module.first.conv1 is result.module.first.conv2


def test_heads_of_a_layer_and_its_own_rows() -> None:
    module = randomised(Stream()).double()
    asked = {Site("proj", 2, "input"): (1,), Site("proj", 8, "output"): (0, 3)}
    with torch.no_grad():
        module.proj.weight[:, 4:] = 0
        module.proj.weight[[0, 3]] = 0
    result = slim(module, asked, EXAMPLE)
    assert relative_difference(module, result.module, EXAMPLE) <= 1e-9
    assert (result.layers["proj"].silenced, result.layers["proj"].removed) == (3, 3)
    assert result.module.proj.layer.weight.shape == (6, 4)


def test_requests_that_meet_in_one_layer_stay_exact() -> None:
    """Units of a gated product and rows that make them; what cannot go stays, and is counted."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Conv2d(3, 12, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            value, gate = self.up(x).chunk(2, 1)
            return self.down(value * F.gelu(gate)).mean((2, 3))

    module = randomised(Gated()).double()
    rows = (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11)
    with torch.no_grad():
        module.down.weight[:, [2, 4, 5]] = 0
        module.up.weight[list(rows)] = 0
    result = slim(module, {"down": (2, 4, 5), Site("up", 12, "output"): rows}, EXAMPLE)
    assert relative_difference(module, result.module, EXAMPLE) <= 1e-9
    for count in result.layers.values():
        assert count.silenced == count.removed + count.carriers + count.kept


class ReadsWeights(SmallResNet):
    """Its stem is called as a function, so that nothing can stand in its place."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(F.conv2d(x, self.stem.weight, None, 1, 1)))
        return self.head(self.second(self.first(x)).mean((2, 3)))


def test_a_layer_that_cannot_be_cut_is_kept_and_named() -> None:
    result = removed(ReadsWeights(), {"stem": [1], "first.conv1": [2], "second.bn2": [0, 3]})
    assert result.refused == ("stem",)
    assert (result.layers["stem"].kept, result.layers["stem"].removed) == (1, 0)
    assert result.layers["first.conv1"].kept == result.layers["second.bn2"].kept == 0


def test_a_network_that_never_answers_alike() -> None:
    class Moody(SmallResNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.rand(1, dtype=x.dtype)

    with pytest.raises(ProofError, match="does not give the same logits twice"):
        rnp_hub.remove_filters(randomised(Moody()), {"stem": [0]}, EXAMPLE.float())


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"layer9": [0]}, "`layer9` is not there; give a Conv2d"),
        ({"first": [0]}, "`first` is a Block; give a Conv2d"),
        ({"first.conv1": [8]}, "`first.conv1` has 8 filters, and 8 is none of them"),
        ({"first.bn1": [-1]}, "`first.bn1` has 8 filters, and -1 is none of them"),
    ],
)
def test_what_is_no_filter(asked: dict[str, list[int]], sentence: str) -> None:
    with pytest.raises(ModelError) as caught:
        rnp_hub.remove_filters(randomised(SmallResNet()), asked, EXAMPLE.float())
    assert sentence in str(caught.value)


def test_a_filter_that_is_not_silent() -> None:
    with pytest.raises(ModelError, match=r"filter 2 of `first.bn1` is not silent: .* are not 0"):
        slim(randomised(SmallResNet()), {"first.bn1": [2]}, EXAMPLE.float())


# --- latency --------------------------------------------------------------------------------------


def test_for_speed_only_what_makes_it_faster_goes() -> None:
    torch.manual_seed(0)
    module = randomised(timm.create_model("mobilenetv3_small_050", num_classes=4)).double()
    example = torch.randn(2, 3, 32, 32).double()
    graph = Graph(module, example)
    asked = {site: tuple(range(0, site.filters, 3)) for site in sites_of(module, graph)}
    silence(module, asked)
    small = slim(module, asked, example, graph=graph)
    quick = slim(module, asked, example, graph=graph, optimize="latency")
    assert relative_difference(module, quick.module, example) <= 1e-9
    assert sum(count.kept for count in small.layers.values()) == 0
    assert sum(count.removed for count in quick.layers.values()) > 0
    assert sum(count.kept for count in quick.layers.values()) > 0
    assert not [edit for edit in quick.edits.values() if edit.standing or edit.gather]
    dense = dict(module.named_modules())
    for name, layer in quick.module.named_modules():
        if isinstance(layer, nn.Conv2d) and dense[name].out_channels % 4 == 0:
            assert layer.out_channels % 4 == 0, name
