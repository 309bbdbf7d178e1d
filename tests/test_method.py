"""The Python call on networks nobody registered, and the page that shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rnp_hub
from rnp_hub.compute import Compute
from rnp_hub.errors import DataError, ModelError, NoGateSitesError
from rnp_hub.slim import relative_difference
from tests.networks import SmallResNet, stripes, trained

ROOT = Path(__file__).parents[1]


def test_the_page_on_bringing_a_network_runs_and_helps() -> None:
    page = (ROOT / "docs" / "bring_your_own.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    told: dict[str, object] = {}
    exec(compile(code, "docs/bring_your_own.md", "exec"), told)
    before, after, slim = told["before"], told["after"], told["slim"]
    assert before[0] > 0.93
    assert before[1] > 0.95
    # How far depends on the rounding of the training; the page says so.
    assert after[1] < before[1] - 0.1
    assert before[0] - after[0] < 0.05
    assert slim == after
    assert told["removed"] > 0


class Tupled(SmallResNet):
    """Answers with a dictionary, as transformers do."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": x.mean((2, 3)), "answer": super().forward(x)}


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_sanitize_leaves_the_callers_network_alone(precision: str) -> None:
    clean = stripes(120)
    module = trained(SmallResNet(), clean)
    module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    result = rnp_hub.sanitize(
        module, clean.images, clean.labels, compute=Compute.choose(precision=precision)
    )
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert not result.module.training
    assert relative_difference(result.module, result.slim.module, torch.rand(4, 3, 16, 16)) < 1e-5
    assert {"unlearn", "surrogates", "follow", "slim"} <= set(result.timing_s)
    assert set(result.timing_s) == set(result.memory_mib)


def test_a_named_output_is_taken() -> None:
    clean = stripes(120)
    module = Tupled()
    module.load_state_dict(trained(SmallResNet(), clean).state_dict())
    config = rnp_hub.SanitizeConfig.of("reference")
    named = rnp_hub.sanitize(module, clean.images, clean.labels, config, output="answer")
    plain = SmallResNet()
    plain.load_state_dict(module.state_dict())
    expected = rnp_hub.sanitize(plain, clean.images, clean.labels, config)
    assert named.pruned.silenced == expected.pruned.silenced
    assert named.slim.max_rel_diff <= 1e-9
    with pytest.raises(ModelError, match=r"no \(n, classes\) tensor"):
        rnp_hub.sanitize(module, clean.images, clean.labels)


def test_the_seed_decides_everything() -> None:
    clean = stripes(120)
    module = trained(SmallResNet(), clean)
    results = [
        rnp_hub.sanitize(
            module,
            clean.images,
            clean.labels,
            rnp_hub.SanitizeConfig.of("reference", seed=seed),
            optimize=optimize,
        )
        for seed, optimize in ((0, "size"), (0, "latency"), (1, "size"))
    ]
    masks = [torch.cat(list(result.recovered.masks.values())) for result in results]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert results[0].pruned.silenced == results[1].pruned.silenced
    small, quick = (
        sum(count.removed for count in result.slim.layers.values()) for result in results[:2]
    )
    assert small > quick, "so few filters of layers of 8 make nothing faster"
    assert results[1].slim.max_rel_diff <= 1e-9


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (torch.zeros(4, 3, 16), torch.zeros(4), "do not fit"),
        (torch.zeros(4, 3, 16, 16), torch.zeros(3), "do not fit"),
        (torch.zeros(4, 3, 16, 16), torch.full((4,), 4), "labels run from 4 to 4 but .* 4 outputs"),
        (torch.zeros(4, 3, 16, 16), torch.full((4,), -1), "labels run from -1"),
    ],
)
def test_data_that_do_not_fit_are_refused(images: Tensor, labels: Tensor, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        rnp_hub.sanitize(SmallResNet(), images, labels)


def test_a_network_without_filters_to_mask_is_refused() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(NoGateSitesError, match="no BatchNorm layer"):
        rnp_hub.sanitize(module, torch.zeros(4, 3, 16, 16), torch.zeros(4))


def test_broken_weights_are_named() -> None:
    module = SmallResNet()
    with torch.no_grad():
        module.first.conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"`first.conv1.weight` are NaN"):
        rnp_hub.sanitize(module, torch.zeros(4, 3, 16, 16), torch.zeros(4))
