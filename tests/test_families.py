"""Every family of timm: three filters in each of up to eight sites, silenced and cut."""

from __future__ import annotations

import gc

import pytest
import timm
import torch
from torch import nn

from rnp_hub.sites import gate_sites
from rnp_hub.slim import WAYS
from tests.networks import randomised
from tests.three_ways import some_filters, three_ways

FAMILIES = """
beit_base_patch16_224 halonet_h1 test_byobnet cait_xxs24_224 coat_tiny convit_tiny
convmixer_768_32 test_convnext cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s
cspnext_tiny davit_base deit_tiny_patch16_224 densenet121 dla34 dpn48b edgenext_xx_small
efficientformer_l1 efficientformerv2_s0 test_efficientnet efficientvim_m1 efficientvit_b0
efficientvit_m0 vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_s12 focalnet_tiny_srf
gcvit_xxtiny ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny
hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2 inception_v3 inception_v4
lcnetv2_small levit_384_s8 lowformer_b0 test_mambaout test_coatnet caformer_s18 gmlp_ti16_224
lcnet_035 mobilenetv5_base mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_siglip nasnetalarge
nest_tiny nextvit_small test_nfnet pit_xs_224 pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny
regnetx_004_tv repghostnet_050 repvit_m1 res2net50_26w_4s resnest14d test_resnet resnetv2_18
rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s1
swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window16_256 swinv2_cr_tiny_224
tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny test_vit
vit_tiny_r_s16_p8_224 test_vit_relpos samvit_base_patch16_224 vitamin_small_224 volo_d1_224
ese_vovnet19b_slim_dw legacy_xception xception41p xcit_nano_12_p8_224
"""
"""The smallest network of each module of timm 1.0.31."""


def input_size(module: nn.Module) -> int:
    """128 pixels where the network takes them, else what it was made for."""
    usual = int(module.default_cfg["input_size"][-1])
    try:
        with torch.no_grad():
            module(torch.zeros(1, 3, 128, 128))
    except Exception:  # networks refuse a size in many ways
        return usual
    return min(usual, 128)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES.split())
def test_every_family_is_exact(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    module = randomised(timm.create_model(name, num_classes=10))
    size = input_size(module)
    example = torch.randn(3, 3, size, size, dtype=torch.float64)
    sites = gate_sites(module.double(), example)
    found = three_ways(module, example, some_filters(sites))
    kinds = {kind: sum(s.kind == kind for s in sites) for kind in ("norm", "output", "input")}
    ways = {way: sum(getattr(c, way) for c in found.slim.layers.values()) for way in WAYS}
    with capsys.disabled():
        row = f"{name} at {size}: sites {kinds}, silenced {found.silenced}, removed {found.removed}"
        print(f"\n{row} {ways}, gate {found.gated:.0e}, slim {found.slim_difference:.0e}", end=" ")
    gc.collect()
    assert found.effect > 1e-9, "nothing was silenced, so nothing was compared"
    assert found.gated <= 1e-9
    assert found.slim_difference <= 1e-9
    assert found.slim.refused == ()
    assert found.removed == found.silenced
