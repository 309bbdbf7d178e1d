"""Fine-tuning and new BatchNorm statistics after pruning: silenced filters stay silenced."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

from rnp_hub.compute import seeded
from rnp_hub.errors import ConfigError
from rnp_hub.evaluate import accuracy
from rnp_hub.hooks import silence, silenced_weights
from rnp_hub.method import SanitizeConfig, Sanitized, sanitize
from rnp_hub.network import Classifier, augment, batches
from rnp_hub.records import prune_record
from rnp_hub.refine import RefineConfig, refine
from rnp_hub.report import RunReport
from rnp_hub.sites import Site, gate_sites
from tests.models import invoke
from tests.networks import Planted, SmallResNet, randomised, stripes, to_unit, trained

CLEAN = stripes(96)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return trained(SmallResNet(), stripes(240), epochs=8)


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: each.clone() for name, each in module.state_dict().items()}


def test_statistics_are_the_mean_over_batches_and_nothing_else_moves(network: nn.Module) -> None:
    before = weights(network)
    config = RefineConfig(bn_stats=True, passes=2, batch_size=40, seed=3)
    refined = refine(Classifier(network, to_unit), {}, CLEAN, config).classifier.module
    stem, generator, means, variances = network.get_submodule("stem"), seeded(3), [], []
    for _ in range(2):
        for index in batches(len(CLEAN), 32, generator):  # three batches of a size
            seen = stem(to_unit(augment(CLEAN.images[index], generator))).detach()
            means.append(seen.mean((0, 2, 3)))
            variances.append(seen.var((0, 2, 3)))
    norm = cast("nn.BatchNorm2d", refined.get_submodule("norm"))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert torch.allclose(norm.running_mean, torch.stack(means).mean(0), atol=1e-5)
    assert torch.allclose(norm.running_var, torch.stack(variances).mean(0), rtol=1e-4)
    moved = {name for name, each in refined.state_dict().items() if not each.equal(before[name])}
    assert {name.rpartition(".")[2] for name in moved} == {
        "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip
    assert norm.momentum == 0.1
    assert not refined.training
    assert all(each.equal(before[name]) for name, each in network.state_dict().items())


def test_fine_tuning_leaves_silenced_filters_silent() -> None:
    """At a norm, at a layer's rows and at a layer's columns."""
    module = randomised(
        nn.Sequential(SmallResNet(classes=6), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 4))
    )
    sites = dict.fromkeys([*gate_sites(module), Site("1", 6, "output"), Site("3", 3, "input")])
    silenced = {site: (0, site.filters - 1) for site in sites}
    assert {site.kind for site in silenced} == {"norm", "output", "input"}
    silence(module, silenced)
    before = weights(module)
    classifier = Classifier(module, to_unit)
    refined = refine(classifier, silenced, CLEAN, RefineConfig(fine_tune=3)).classifier.module
    for site, filters in silenced.items():
        assert not silenced_weights(refined, site)[list(filters)].any(), site
    after = refined.state_dict()
    assert all(not after[name].equal(each) for name, each in before.items() if "weight" in name)


def test_fine_tuning_makes_up_for_what_pruning_took(network: nn.Module) -> None:
    """Half of the first filters are gone, and nothing is as the later layers know it."""
    (site, *_) = gate_sites(network)
    silenced = {site: range(0, site.filters, 2)}
    damaged = Classifier(network, to_unit).copy()
    silence(damaged.module, silenced)
    assert accuracy(damaged, CLEAN) < 0.7
    damaged.module.requires_grad_(False)
    shares = list[float]()
    config = RefineConfig(fine_tune=5, flip=False)
    result = refine(damaged, silenced, CLEAN, config, lambda _, done, __: shares.append(done))
    assert result.accuracy == accuracy(result.classifier, CLEAN) > 0.9
    assert not any(each.requires_grad for each in result.classifier.module.parameters())
    assert shares == [pytest.approx((update + 1) / 10) for update in range(10)]


class WithAnotherHead(SmallResNet):
    """Has a norm that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.BatchNorm2d(3, momentum=None)


def test_statistics_of_a_norm_that_no_picture_passes_are_kept() -> None:
    module = randomised(WithAnotherHead())
    refined = refine(Classifier(module, to_unit), {}, CLEAN, RefineConfig(bn_stats=True))
    assert refined.config.bn_stats
    before, after = module.state_dict(), refined.classifier.module.state_dict()
    assert after["unused.running_mean"].equal(before["unused.running_mean"])
    assert after["unused.running_var"].equal(before["unused.running_var"])
    assert not after["norm.running_mean"].equal(before["norm.running_mean"])


@pytest.fixture(scope="module")
def refined() -> Sanitized:
    config = SanitizeConfig.of(flip=False, fine_tune=2, bn_stats=True)
    return sanitize(Planted(), stripes(160).images, stripes(160).labels, config, transform=to_unit)


def test_a_refined_network_is_slimmed_as_exactly(refined: Sanitized) -> None:
    assert refined.scanned is not None
    assert refined.scanned.verdict.backdoored
    assert refined.pruned.silenced == {"norm": (4,)}
    assert refined.slim.max_rel_diff <= 1e-9
    assert not cast("nn.BatchNorm2d", refined.module.get_submodule("norm")).weight[4].any()
    record = prune_record(refined)
    assert (record.fine_tuned, record.bn_stats) == (2, True)
    assert refined.refined is not None
    assert record.refined_accuracy == round(refined.refined.accuracy, 6) > 0.9
    assert refined.timing_s["refine"] > 0


def test_what_is_left_is_measured_after_refining(refined: Sanitized) -> None:
    assert refined.healed is not None
    assert any(each.kind.endswith(" anew") for each in refined.healed.left)
    assert not refined.healed.residual
    plain = sanitize(
        Planted(), stripes(160).images, stripes(160).labels, SanitizeConfig.of(flip=False),
        transform=to_unit,
    )  # fmt: skip
    assert plain.healed is not None
    assert plain.refined is None
    assert [each.margin for each in refined.healed.left] != [
        each.margin for each in plain.healed.left
    ]


def test_what_is_acquitted_is_not_refined() -> None:
    network = Planted(strength=0.0)
    config = SanitizeConfig.of(flip=False, fine_tune=2, bn_stats=True)
    result = sanitize(network, CLEAN.images, CLEAN.labels, config, transform=to_unit)
    assert result.scanned is not None
    assert result.scanned.verdict.backdoored is False
    assert result.refined is None
    before = network.state_dict()
    assert all(each.equal(before[name]) for name, each in result.module.state_dict().items())


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="-1 epochs of fine-tuning are too few"):
        SanitizeConfig.of(fine_tune=-1)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(ConfigError, match="no BatchNorm whose statistics could be re-estimated"):
        sanitize(plain, CLEAN.images, CLEAN.labels, SanitizeConfig.of(bn_stats=True))
    done = invoke("sanitize", "demo", "--fine-tune", "-1")
    assert done.exit_code == 2


def test_on_the_command_line(tmp_path: Path) -> None:
    """The demo, pruned by a fixed threshold, for the scan takes long."""
    out = tmp_path / "out"
    words = ["--threshold", "0.05", "--fine-tune", "1", "--bn-stats", "--no-latency"]
    done = invoke("sanitize", "demo", "--data", "digits", "--out", out, *words)
    assert done.exit_code == 0, done.stderr
    report = RunReport.read(out)
    assert report.prune.silenced > 0
    assert (report.prune.fine_tuned, report.prune.bn_stats) == (1, True)
    assert report.config["refine"]["fine_tune"] == 1
    assert report.slim.max_rel_diff <= 1e-9
    card = (out / "README.md").read_text()
    assert "tuned for 1 epoch on the same clean pictures" in card
    assert "--fine-tune 1 --bn-stats" in card
