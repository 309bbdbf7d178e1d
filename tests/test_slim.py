"""Slimming: exact, by whichever way, on real and on random networks."""

from __future__ import annotations

import copy
import random

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from rnp_hub.edits import ChannelScatter, LayerEdit, apply_edits, edits_from_json, edits_to_json
from rnp_hub.errors import ModelError
from rnp_hub.graph import Graph
from rnp_hub.hooks import silence
from rnp_hub.sites import Site, gate_sites, layer_site, sites_of
from rnp_hub.slim import MAX_REL_DIFF, Slimmed, relative_difference, slim
from tests.networks import SmallResNet, randomised
from tests.random_networks import RandomNetwork
from tests.three_ways import three_ways


def some_of_every_site(
    module: nn.Module, share: float, seed: int = 0
) -> dict[str, tuple[int, ...]]:
    draw = random.Random(seed)
    return {
        site.name: tuple(sorted(draw.sample(range(site.filters), int(share * site.filters))))
        for site in gate_sites(module)
    }


def silence_by_name(module: nn.Module, silenced: dict[str, tuple[int, ...]]) -> None:
    by_name = {site.name: site for site in gate_sites(module)}
    silence(module, {by_name[name]: gone for name, gone in silenced.items()})


def slimmed(module: nn.Module, silenced: dict[str, tuple[int, ...]], size: int = 16) -> Slimmed:
    """Cut in float64, and compared once more by the test itself."""
    silence_by_name(module.double(), silenced)
    generator = torch.Generator().manual_seed(1)
    example = torch.randn(4, 3, size, size, generator=generator, dtype=torch.float64)
    result = slim(module, silenced, example)
    assert relative_difference(module, result.module, example) <= 1e-9
    assert result.max_rel_diff <= MAX_REL_DIFF
    for site, count in result.layers.items():
        assert count.removed + count.carriers + count.kept == count.silenced == len(silenced[site])
    return result


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- each way -------------------------------------------------------------------------------------


class Chain(nn.Module):
    """conv-BN-activation, then a reader: padded, unpadded or linear."""

    def __init__(self, activation: nn.Module, padding: int = 1, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 1, 1)
        self.norm = nn.BatchNorm2d(6)
        self.activation = activation
        self.reader = nn.Conv2d(6, 4, kernel, 1, padding, bias=False)
        self.last = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.reader(self.activation(self.norm(self.conv(x))))).mean((2, 3))


def chain(activation: nn.Module, bias: list[float], **shape: int) -> nn.Module:
    module = randomised(Chain(activation, **shape))
    with torch.no_grad():
        module.norm.bias.copy_(torch.tensor(bias))
    return module


def test_a_filter_that_is_zero_behind_its_relu_is_deleted() -> None:
    module = chain(nn.ReLU(), [-1.0, -0.5, 0.0, 1.0, 1.0, 1.0])
    result = slimmed(module, {"norm": (0, 1, 2)})
    assert result.layers["norm"].delete == 3
    assert result.module.conv.weight.shape == (3, 3, 3, 3)
    assert result.module.reader.weight.shape == (4, 3, 3, 3)
    assert result.module.reader.bias is None


def test_a_constant_before_an_unpadded_reader_is_folded() -> None:
    module = chain(nn.SiLU(), [0.7, -0.5, 0.3, 1.0, 1.0, 1.0], padding=0)
    result = slimmed(module, {"norm": (0, 1, 2)})
    assert result.layers["norm"].fold == 3
    assert result.module.reader.weight.shape == (4, 3, 3, 3)
    assert result.module.reader.bias.shape == (4,)


def test_constants_before_a_padded_reader_are_carried_by_the_loudest() -> None:
    module = chain(nn.ReLU(), [0.7, -0.5, 0.3, 1.9, 1.0, 1.0])
    result = slimmed(module, {"norm": (0, 1, 2, 3)})
    count = result.layers["norm"]
    assert (count.delete, count.carry, count.carriers) == (1, 2, 1)
    assert result.edits["norm"].outputs == (3, 4, 5)
    assert result.module.reader.weight.shape == (4, 3, 3, 3)


def test_a_residual_stream_is_scattered() -> None:
    module = randomised(SmallResNet())
    result = slimmed(module, {"first.bn2": (0, 3, 5)})
    assert result.layers["first.bn2"].scatter == 3
    assert result.module.first.conv2.weight.shape == (5, 8, 3, 3)
    assert result.module.first.bn2.norm.num_features == 5


def test_a_layer_silenced_whole_keeps_one_zero_for_its_reader() -> None:
    result = slimmed(chain(nn.ReLU(), [-1.0] * 6), {"norm": tuple(range(6))})
    count = result.layers["norm"]
    assert (count.delete, count.kept) == (5, 1)


def test_a_branch_that_ends_in_silence_disappears() -> None:
    module = randomised(SmallResNet())
    result = slimmed(module, {"first.bn2": tuple(range(8)), "first.bn1": (1, 2)})
    assert (result.layers["first.bn2"].scatter, result.layers["first.bn2"].kept) == (8, 0)
    assert parameters(result.module.first) == 0
    assert parameters(result.module) == parameters(module) - parameters(module.first)
    again = SmallResNet().double().eval()
    apply_edits(again, edits_from_json(edits_to_json(result.edits)))
    again.load_state_dict(result.module.state_dict())
    assert relative_difference(result.module, again, torch.randn(2, 3, 16, 16).double()) == 0


def test_a_head_that_is_the_last_takes_its_attention_along() -> None:
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 3}
    module = randomised(timm.create_model("vit_tiny_patch16_224", num_classes=4, **args)).double()
    example = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    sites = {site.name: site for site in gate_sites(module, example)}
    found = three_ways(module, example, {sites["blocks.1.attn.proj"]: (0, 1, 2)})
    assert found.slim_difference <= 1e-9
    assert found.removed == 3
    assert parameters(found.slim.module.blocks[1].attn) == 0


def test_what_cannot_be_traced_is_scattered() -> None:
    class Moody(SmallResNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if float(x.sum()) < 1e9 else x.flatten(1)

    module = randomised(Moody())
    silence_by_name(module, {"first.bn1": (1, 2)})
    result = slim(module, {"first.bn1": (1, 2)}, torch.randn(4, 3, 16, 16))
    assert (result.layers["first.bn1"].kept, result.layers["first.bn1"].scatter) == (0, 2)
    assert result.max_rel_diff <= MAX_REL_DIFF


def test_the_callers_network_is_left_as_it_was() -> None:
    module = randomised(SmallResNet())
    silenced = some_of_every_site(module, 0.25)
    silence_by_name(module, silenced)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    result = slim(module, silenced, torch.randn(4, 3, 16, 16))
    assert parameters(result.module) < parameters(module)
    assert next(result.module.parameters()).dtype == torch.float32
    # Constants moved into float32 weights are rounded there, and only there.
    assert relative_difference(module, result.module, torch.randn(4, 3, 16, 16)) <= 1e-5
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_a_slim_network_is_an_ordinary_module() -> None:
    module = randomised(SmallResNet())
    small = slimmed(module, some_of_every_site(module, 0.25)).module.float().train()
    optimiser = torch.optim.SGD(small.parameters(), 0.1)
    x, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(small(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    copy = slimmed(randomised(SmallResNet()), some_of_every_site(SmallResNet(), 0.25)).module
    copy.load_state_dict(small.state_dict())


# --- real networks --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["seresnet18", "mobilenetv2_100"])
def test_timm_networks_are_exact(name: str) -> None:
    if name not in timm.list_models():
        pytest.skip(f"this timm has no {name}")
    module = randomised(timm.create_model(name, num_classes=5, in_chans=3))
    before = parameters(module)
    result = slimmed(module, some_of_every_site(module, 0.25), size=80)
    assert result.refused == ()
    assert parameters(result.module) < before
    kept = sum(count.kept for count in result.layers.values())
    assert kept == 0


# --- random networks ------------------------------------------------------------------------------

MASKS = 6
"""Of each random network: tracing it takes longer than all of them."""


def random_masks_are_exact(seed: int) -> None:
    """Some masks of one random network: any filters of any layer, all of it at times."""
    torch.manual_seed(seed)
    module = randomised(RandomNetwork(seed), seed).double()
    example = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    graph = Graph(module, example)
    for mask in range(MASKS):
        shown = f"RandomNetwork({seed}), mask {mask}"
        try:
            a_mask_is_exact(module, example, graph, random.Random(f"{seed} {mask}"), shown)
        except Exception as error:
            raise AssertionError(f"{shown}: {error!r}") from error


def a_mask_is_exact(
    module: nn.Module, example: Tensor, graph: Graph, draw: random.Random, shown: str
) -> None:
    sites = sites_of(module, graph) if draw.random() < 0.5 else every_layer(module)
    sites = [site for site in sites if draw.random() < 0.6]
    chosen = {
        site: tuple(sorted(draw.sample(range(site.filters), draw.randint(0, site.filters))))
        for site in sites
    }
    found = three_ways(copy.deepcopy(module), example, chosen, graph)
    assert found.gated <= 1e-9, shown
    assert found.slim_difference <= 1e-9, shown
    assert found.slim.refused == (), shown
    # Where all of a layer is silent, one filter may stay as a zero.
    widths = {site.name: site.filters for site in sites}
    whole = sum(count.silenced >= widths[name] for name, count in found.slim.layers.items())
    assert found.removed >= found.silenced - whole, shown


def every_layer(module: nn.Module) -> list[Site]:
    """Rows of every convolution and linear layer, channels of every BatchNorm."""
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
    return [layer_site(module, n) for n, part in module.named_modules() if isinstance(part, kinds)]


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None, derandomize=True, print_blob=True)
def test_random_networks_are_exact(seed: int) -> None:
    random_masks_are_exact(seed)


@pytest.mark.slow
def test_thousands_of_random_networks_are_exact() -> None:
    for seed in range(1000):
        random_masks_are_exact(seed)


# --- pieces ---------------------------------------------------------------------------------------


def test_channel_scatter_fills_the_gaps() -> None:
    scatter = ChannelScatter(4, [1, 3], torch.tensor([10.0, 0, 30, 0]))
    x = torch.arange(8.0).view(1, 2, 2, 2)
    out = scatter(x)
    assert out[0, 1].tolist() == x[0, 0].tolist()
    assert out[0, 3].tolist() == x[0, 1].tolist()
    assert out[0, 0].unique().tolist() == [10]
    assert out[0, 2].unique().tolist() == [30]


@pytest.mark.parametrize(
    ("name", "edit", "sentence"),
    [
        ("first.bn1", LayerEdit(outputs=(0, 8)), "not among its 8"),
        ("first.bn1", LayerEdit(outputs=(2, 1)), "not among its 8"),
        ("first.bn1", LayerEdit(outputs=()), "not among its 8"),
        ("first.conv1", LayerEdit(inputs=(-1,)), "not among its 8"),
        (
            "first.bn1",
            LayerEdit(outputs=(0, 1), standing=(1, 2)),
            "drop channels that they also keep",
        ),
        ("first.bn1", LayerEdit(gather=True), "gather channels but do not say which"),
        ("head", LayerEdit(sizes={"in_features": 3}), "set `head.in_features` to 3"),
        ("heads", LayerEdit(sizes={"num_heads": 4}), "set `heads.num_heads` to 4"),
        ("heads", LayerEdit(sizes={"num_heads": 1}, bias=True), "set sizes and cut"),
        ("head", LayerEdit(hollow=True, bias=True), "hollow it out and cut it"),
        ("grouped", LayerEdit(inputs=(0, 1)), "which is a grouped convolution"),
        ("first.bn7", LayerEdit(outputs=(0,)), "does not exist"),
        ("first", LayerEdit(outputs=(0,)), "a Block cannot be cut"),
    ],
)
def test_edits_that_do_not_fit_are_refused(name: str, edit: LayerEdit, sentence: str) -> None:
    module = SmallResNet()
    module.heads = nn.MultiheadAttention(6, 3)
    module.grouped = nn.Conv2d(4, 4, 3, groups=2)
    with pytest.raises(ModelError, match=sentence):
        apply_edits(module, {name: edit})


def test_edits_of_the_first_version_are_still_read() -> None:
    """As version 0.1 wrote them, under the names that its files have."""
    stored = {
        "schema": "rnp-hub/slim/1",
        "timm": "1.0.31",
        "layers": {
            "first.conv2": {"outputs": [1, 2]},
            "first.bn2": {"outputs": [1, 2], "standing": [0, 1, 2, 3, 4, 5, 6, 7]},
        },
    }
    module = SmallResNet()
    apply_edits(module, edits_from_json(stored))
    names = {name for name in module.state_dict() if name.startswith("first.bn2")}
    own = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert names == {f"first.bn2.norm.{name}" for name in own} | {"first.bn2.scatter.constants"}
    assert module.state_dict()["first.bn2.scatter.constants"].shape == (6,)


def test_only_the_ways_that_are_asked_for() -> None:
    network = randomised(SmallResNet()).double()
    silenced = some_of_every_site(network, 0.4)
    silence_by_name(network, silenced)
    example = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    every, scattered, none = (
        slim(network, silenced, example, ways=ways)
        for ways in (("delete", "fold", "carry", "scatter"), ("scatter",), ())
    )
    sizes = [
        sum(each.numel() for each in found.module.parameters())
        for found in (every, scattered, none)
    ]
    assert sizes[0] < sizes[1] < sizes[2] == sum(each.numel() for each in network.parameters())
    for count in scattered.layers.values():
        assert (count.scatter, count.removed) == (count.silenced, count.silenced)
    assert all(count.kept == count.silenced for count in none.layers.values())
    assert none.refused == (), "nothing was tried, so nothing failed"
    assert scattered.max_rel_diff <= MAX_REL_DIFF
