"""Gate sites: found in the graph, and the same in three ways: hooked, in the weights, cut."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import SwiGLU
from torch import Tensor, nn

import rnp_hub
from rnp_hub.compute import Compute
from rnp_hub.edits import apply_edits, edits_from_json, edits_to_json
from rnp_hub.errors import NoGateSitesError
from rnp_hub.sites import Site, gate_sites
from rnp_hub.slim import relative_difference
from tests.networks import SmallResNet, randomised, stripes, trained
from tests.three_ways import some_filters, three_ways

TIMM: dict[str, tuple[str, dict[str, Any], int, dict[str, int]]] = {
    "attention heads and neurons": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2},
        32,
        {"input": 2, "output": 2},
    ),
    "windows, relative positions": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (1, 1), "num_heads": (3, 3)},
        32,
        {"input": 2, "output": 2},
    ),
    "gated MLP in two layers": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "mlp_layer": SwiGLU},
        32,
        {"input": 4},
    ),
    "gated MLP in one layer": (
        "vit_giant_patch14_dinov2",
        {"img_size": 28, "embed_dim": 24, "depth": 2, "num_heads": 3},
        28,
        {"input": 4},
    ),
    "pointwise neurons": (
        "convnext_atto",
        {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 12)},
        32,
        {"output": 8},
    ),
    "standardised weights": (
        "test_nfnet",
        {},
        48,
        {"output": 21},
    ),
    "GroupNorm": (
        "resnet50_gn",
        {"layers": (1, 1, 1, 1), "channels": (32, 32, 32, 32)},
        32,
        {"output": 17},
    ),
    "depthwise, squeeze and excitation": (
        "test_efficientnet",
        {},
        48,
        {"norm": 13, "output": 2},
    ),
    "grouped convolutions": (
        "resnext50_32x4d",
        {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "cardinality": 4, "base_width": 32},
        32,
        {"norm": 17},
    ),
    "concatenation before the norm": (
        "densenet121",
        {"growth_rate": 6, "block_config": (2, 2)},
        48,
        {"norm": 11},
    ),
}


@pytest.mark.parametrize("what", TIMM)
def test_gate_weights_and_cut_agree(what: str) -> None:
    name, args, size, kinds = TIMM[what]
    agree(lambda: timm.create_model(name, num_classes=5, **args), size, kinds)


def transformer(kind: str, **config: Any) -> nn.Module:
    """A classifier of transformers, which answers with an object that holds the logits."""
    import transformers

    settings = getattr(transformers, f"{kind}Config")(num_labels=5, **config)
    module: nn.Module = getattr(transformers, f"{kind}ForImageClassification")(settings)
    return module


SMALL = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2}
TRANSFORMERS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "ViT": (
        {**SMALL, "num_attention_heads": 3, "intermediate_size": 40},
        {"input": 2, "output": 2},
    ),
    "Swin": (
        {
            "image_size": 32,
            "embed_dim": 12,
            "depths": [1, 1],
            "num_heads": [3, 3],
            "window_size": 4,
        },
        {"input": 2, "output": 2},
    ),
    "ConvNext": ({"hidden_sizes": [8, 8, 8, 12], "depths": [1, 1, 1, 1]}, {"output": 8}),
    "ConvNextV2": ({"hidden_sizes": [8, 8, 8, 12], "depths": [1, 1, 1, 1]}, {"output": 8}),
}


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_gate_weights_and_cut_agree_in_transformers(kind: str) -> None:
    config, kinds = TRANSFORMERS[kind]
    agree(lambda: transformer(kind, **config), 32, kinds)


def agree(build: Callable[[], nn.Module], size: int, kinds: dict[str, int]) -> None:
    """Gate, weights and cut agree, and the cut network is built again from its edits."""
    torch.manual_seed(0)
    module = randomised(build()).double()
    example = torch.randn(3, 3, size, size, dtype=torch.float64)
    sites = gate_sites(module, example)
    assert Counter(site.kind for site in sites) == kinds
    found = three_ways(module, example, some_filters(sites))
    assert found.effect > 1e-6
    assert found.gated <= 1e-9
    assert found.slim_difference <= 1e-9
    assert found.slim.refused == ()
    assert found.removed == found.silenced > 0
    again = build().double().eval()
    apply_edits(again, edits_from_json(json.loads(json.dumps(edits_to_json(found.slim.edits)))))
    again.load_state_dict(found.slim.module.state_dict())
    assert relative_difference(found.slim.module, again, example) == 0


def test_a_vision_transformer_is_sanitized_from_end_to_end() -> None:
    """Also under bfloat16, where gates meet activations of another precision."""
    clean = stripes(96)
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    torch.manual_seed(0)
    module = trained(timm.create_model("vit_tiny_patch16_224", num_classes=4, **args), clean)
    for precision in ("float32", "bfloat16"):
        compute = Compute.choose(device="cpu", precision=precision)
        config = rnp_hub.SanitizeConfig.of("reference")
        result = rnp_hub.sanitize(module, clean.images, clean.labels, config, compute=compute)
        assert {site.kind for site in result.recovered.sites} == {"input", "output"}
        masks = torch.cat(list(result.recovered.masks.values()))
        assert 0 <= float(masks.min()) < float(masks.max()) <= 1
        assert result.pruned.count > 0
        counts = result.slim.layers.values()
        assert sum(count.removed for count in counts) == result.pruned.count
        assert result.slim.max_rel_diff <= 1e-9


def test_a_network_without_filters_to_mask_is_told_what_was_looked_for() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(NoGateSitesError, match=r"no BatchNorm .* no attention heads$"):
        gate_sites(module, torch.zeros(2, 3, 16, 16))


def test_without_an_example_only_batch_norms_are_found() -> None:
    class Mixed(SmallResNet):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Sequential(nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 4))

    norms = gate_sites(Mixed())
    assert [site.kind for site in norms] == ["norm"] * 6
    found = gate_sites(Mixed(), torch.zeros(2, 3, 16, 16))
    assert found == (*norms, Site("head.0", 12, "output"))


def test_a_residual_stream_under_a_layer_norm_is_no_site() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 4, 4)
            self.norm = nn.LayerNorm(8)
            self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).flatten(2).transpose(1, 2)
            x = x + self.down(self.up(self.norm(x)).relu())
            return self.head(x.mean(1))

    assert gate_sites(Stream(), torch.zeros(2, 3, 16, 16)) == (Site("up", 12, "output"),)
