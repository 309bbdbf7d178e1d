"""Unlearn, recover, prune: against plain implementations and their own promises."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnp_hub.compute import Compute, seeded
from rnp_hub.errors import ConfigError, ModelError
from rnp_hub.evaluate import Rate, accuracy, evaluate
from rnp_hub.method import SanitizeConfig
from rnp_hub.network import Classifier, ImageSet, augment, batches
from rnp_hub.prune import PruneConfig, prune
from rnp_hub.recover import RecoverConfig, Recovered, recover
from rnp_hub.sites import Site
from rnp_hub.triggers import Poisoned
from rnp_hub.unlearn import UnlearnConfig, unlearn
from tests.networks import SmallResNet, stripes, trained


@pytest.fixture(scope="module")
def clean() -> ImageSet:
    return stripes(200)


@pytest.fixture(scope="module")
def classifier(clean: ImageSet) -> Classifier:
    found = Classifier(trained(SmallResNet(), clean))
    assert accuracy(found, clean) > 0.95
    return found


# --- unlearning -------------------------------------------------------------------------------


def test_controlled_unlearning_ends_just_below_the_stop(
    classifier: Classifier, clean: ImageSet
) -> None:
    before = copy.deepcopy(classifier.module.state_dict())
    result = unlearn(classifier, clean, UnlearnConfig(stop_accuracy=0.6, flip=False))
    assert 0.5 <= result.accuracies[-1] <= 0.6
    assert result.updates >= 8
    assert sum(result.histogram) == len(clean)
    after = classifier.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("rate", [1e-6, 1.0])
def test_controlled_unlearning_forgives_a_bad_first_guess(
    classifier: Classifier, clean: ImageSet, rate: float
) -> None:
    config = UnlearnConfig(stop_accuracy=0.6, learning_rate=rate, flip=False)
    result = unlearn(classifier, clean, config)
    assert 0.5 <= result.accuracies[-1] <= 0.6
    falls = [
        high - low for high, low in zip(result.accuracies, result.accuracies[1:], strict=False)
    ]
    assert max(falls) < 0.2
    assert result.taken_back > 0 or rate < 1


def test_the_published_schedule_looks_once_an_epoch(
    classifier: Classifier, clean: ImageSet
) -> None:
    published = SanitizeConfig.of("reference", flip=False).unlearn
    assert (published.stop_accuracy, published.weight_decay) == (0.2, 5e-4)
    assert (published.learning_rate, published.momentum, published.max_epochs) == (0.01, 0.9, 20)
    paper = SanitizeConfig.of("paper").unlearn
    assert (paper.stop_accuracy, paper.weight_decay) == (0.1, 5e-2)
    result = unlearn(classifier, clean, replace(published, stop_accuracy=0.5))
    assert all(value > 0.5 for value in result.accuracies[:-1])
    assert result.accuracies[-1] <= 0.5
    assert result.updates == 2 * (len(result.accuracies) - 1)  # 200 pictures are two batches


def test_published_unlearning_equals_a_plain_loop(classifier: Classifier, clean: ImageSet) -> None:
    """The reference's arithmetic: SGD ascent, momentum, weight decay, no clipping."""
    config = UnlearnConfig(
        stop_accuracy=0.0, controlled=False, learning_rate=0.01, max_epochs=2, clip_norm=None
    )
    double = Classifier(copy.deepcopy(classifier.module).double(), lambda x: x.double() / 255)
    result = unlearn(double, clean, config)
    plain, generator = copy.deepcopy(double.module).train(), seeded(config.seed)
    velocity: dict[str, Tensor] = {}
    for _ in range(2):
        for index in batches(len(clean), 128, generator):
            images = augment(clean.images[index], generator)
            loss = -F.cross_entropy(plain(images.double() / 255).float(), clean.labels[index])
            plain.zero_grad()
            loss.backward()
            with torch.no_grad():
                for name, parameter in plain.named_parameters():
                    gradient = parameter.grad + 5e-4 * parameter
                    velocity[name] = (
                        0.9 * velocity[name] + gradient if name in velocity else gradient
                    )
                    parameter -= 0.01 * velocity[name]
    found = dict(result.classifier.module.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.allclose(found[name], parameter, rtol=0, atol=1e-9), name


def test_the_order_of_the_slice_changes_nothing_but_the_draw(
    classifier: Classifier, clean: ImageSet
) -> None:
    """Batch statistics of label after label would show an accuracy that is not there."""
    by_label = clean[clean.labels.argsort(stable=True)]
    config = UnlearnConfig(stop_accuracy=0.6, flip=False, batch_size=50)
    mixed, ordered = (unlearn(classifier, each, config) for each in (clean, by_label))
    assert mixed.accuracies[0] > 0.95
    assert ordered.accuracies[0] > 0.95
    assert 0.5 <= ordered.accuracies[-1] <= 0.6


def test_a_network_that_knows_half_unlearns_too(classifier: Classifier, clean: ImageSet) -> None:
    odd = torch.arange(len(clean)) // 4 % 2 == 1
    half = ImageSet(clean.images, torch.where(odd, (clean.labels + 1) % 4, clean.labels))
    result = unlearn(classifier, half, UnlearnConfig(flip=False))
    start = result.accuracies[0]
    assert start == pytest.approx(0.5, abs=0.03)
    assert result.updates > 0
    assert 0.55 * start - 0.01 <= result.accuracies[-1] <= 0.6 * start


@pytest.mark.parametrize(
    ("count", "sizes"), [(129, [129]), (257, [128, 129]), (1, [1]), (130, [128, 2])]
)
def test_no_batch_is_one_picture(count: int, sizes: list[int]) -> None:
    """BatchNorm cannot normalise a single picture of 1 × 1 pixels."""
    parts = list(batches(count, 128, seeded(0)))
    assert [len(part) for part in parts] == sizes
    assert torch.cat(parts).sort().values.tolist() == list(range(count))


# --- recovering -------------------------------------------------------------------------------


class MaskedNorm(nn.Module):
    """The reference's layer, written out: BatchNorm in training mode with weight·mask and bias."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm
        self.mask = nn.Parameter(torch.ones_like(norm.weight))

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        weight = self.mask * norm.weight.detach()
        return F.batch_norm(x, None, None, weight, norm.bias.detach(), True, 0.0, norm.eps)


def with_masked_norms(module: nn.Module) -> nn.Module:
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, MaskedNorm(part))
    return module


def test_masks_equal_those_of_a_plain_reference(classifier: Classifier, clean: ImageSet) -> None:
    """Same batches, float64: |Δ mask| ≤ 1e-6 after all updates, and the same zeros."""
    unlearned = unlearn(classifier, clean, UnlearnConfig(flip=False)).classifier
    double = Classifier(unlearned.module.double(), lambda x: x.double() / 255)
    config = RecoverConfig(epochs=20)
    found = recover(double, clean, config)
    plain = with_masked_norms(copy.deepcopy(double.module).train().requires_grad_(False))
    masks = {
        name: part.mask.requires_grad_(True)
        for name, part in plain.named_modules()
        if isinstance(part, MaskedNorm)
    }
    optimiser = torch.optim.SGD(masks.values(), lr=0.2, momentum=0.9)
    generator = seeded(config.seed)
    for _ in range(config.epochs):
        for index in batches(len(clean), config.batch_size, generator):
            images = augment(clean.images[index], generator)
            loss = F.cross_entropy(plain(images.double() / 255), clean.labels[index])
            optimiser.zero_grad()
            (0.2 * loss).backward()
            optimiser.step()
            for mask in masks.values():
                mask.data.clamp_(0, 1)
    assert list(found.masks) == list(masks)
    for name, mask in masks.items():
        assert float((found.masks[name] - mask.detach()).abs().max()) <= 1e-6, name
    lowest = min(float(mask.detach().min()) for mask in masks.values())
    assert lowest < 0.5, "nothing was learned, so nothing was compared"


def test_masks_stay_in_range_and_are_deterministic(classifier: Classifier, clean: ImageSet) -> None:
    first, again = (recover(classifier, clean, RecoverConfig(epochs=3)) for _ in range(2))
    other = recover(classifier, clean, RecoverConfig(epochs=3, seed=1))
    values = torch.cat(list(first.masks.values()))
    assert float(values.min()) >= 0
    assert float(values.max()) <= 1
    assert all(torch.equal(first.masks[name], again.masks[name]) for name in first.masks)
    assert any(not torch.equal(first.masks[name], other.masks[name]) for name in first.masks)


def recovered(**masks: list[tuple[float, int]]) -> Recovered:
    return Recovered(
        {name: torch.tensor([value for value, _ in pairs]) for name, pairs in masks.items()},
        {name: torch.tensor([step for _, step in pairs]) for name, pairs in masks.items()},
        (),
        tuple(Site(name, len(pairs)) for name, pairs in masks.items()),
    )


def test_ties_at_zero_go_by_step_then_layer_then_index() -> None:
    found = recovered(a=[(0.0, 7), (1.0, 9), (0.0, 3)], b=[(0.0, 3), (0.5, 9), (0.0, 3)])
    order = [(each.site, each.index) for each in found.order()]
    assert order == [("a", 2), ("b", 0), ("b", 2), ("a", 0), ("b", 4 - 3), ("a", 1)]


def test_a_network_that_never_calls_its_norm_is_refused(clean: ImageSet) -> None:
    class Functional(SmallResNet):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x).mean((2, 3)).repeat(1, 2))

    with pytest.raises(ModelError, match="none of the 6 gates fired"):
        recover(Classifier(Functional()), clean, RecoverConfig(epochs=1))


# --- pruning ----------------------------------------------------------------------------------


class OneChannelAKind(nn.Module):
    """Channel j speaks for class j alone: silencing it loses exactly the pictures of kind j."""

    def __init__(self, kinds: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(kinds)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).mean((2, 3))


COUNTS = (150, 30, 4, 2, 14, 0)
"""Pictures of each kind: 75, 15, 2, 1, 7 and 0 % of 200."""


@pytest.fixture
def kinds() -> tuple[Classifier, ImageSet]:
    labels = torch.repeat_interleave(torch.arange(6), torch.tensor(COUNTS))
    images = F.one_hot(labels, 6).float()[:, :, None, None]
    return Classifier(OneChannelAKind(6).eval()), ImageSet(images, labels)


def in_order(*channels: int) -> Recovered:
    """Masks that put these channels first, in this order, from 0 in steps of 0.1; others at 1."""
    values = torch.ones(6)
    values[list(channels)] = torch.arange(len(channels)) / 10
    steps = torch.zeros(6, dtype=torch.int64)
    return Recovered({"norm": values}, {"norm": steps}, (), (Site("norm", 6),))


def test_pruning_stops_before_the_first_filter_that_costs_too_much(
    kinds: tuple[Classifier, ImageSet],
) -> None:
    classifier, clean = kinds
    result = prune(classifier, in_order(5, 3, 2, 4), clean, PruneConfig(max_ca_drop=0.02))
    assert result.silenced == {"norm": (3, 5)}
    assert result.accuracies == pytest.approx((1.0, 1.0, 0.99, 0.97))
    assert (result.rule, result.threshold, result.filters) == ("accuracy", pytest.approx(0.1), 6)
    assert accuracy(result.classifier, clean) == pytest.approx(0.99)
    assert classifier.module.norm.weight.tolist() == [1.0] * 6


def test_a_drop_of_exactly_the_limit_is_allowed(kinds: tuple[Classifier, ImageSet]) -> None:
    classifier, clean = kinds
    result = prune(classifier, in_order(5, 2, 3), clean, PruneConfig(max_ca_drop=0.02))
    assert result.silenced == {"norm": (2, 5)}


def test_the_guard_passes_over_a_filter_that_costs_much(
    kinds: tuple[Classifier, ImageSet],
) -> None:
    classifier, clean = kinds
    order = in_order(5, 1, 3, 4, 2)
    config = PruneConfig(max_ca_drop=0.03, guard=0.02, max_mask=0.35)
    result = prune(classifier, order, clean, config)
    assert result.silenced == {"norm": (3, 5)}
    assert result.rule == "guarded"
    assert result.accuracies == pytest.approx((1.0, 1.0, 0.85, 0.99, 0.92))
    assert result.classifier.module.norm.weight.tolist() == [1, 1, 1, 0, 1, 0]


def test_the_guard_still_stops_at_the_limit(kinds: tuple[Classifier, ImageSet]) -> None:
    classifier, clean = kinds
    config = PruneConfig(max_ca_drop=0.02, guard=0.02)
    result = prune(classifier, in_order(3, 2, 5), clean, config)
    assert result.silenced == {"norm": (3,)}
    assert result.accuracies == pytest.approx((1.0, 0.99, 0.97))


def test_pictures_that_become_wrong_count_though_as_many_become_right(
    kinds: tuple[Classifier, ImageSet],
) -> None:
    classifier, clean = kinds
    labels = clean.labels.clone()
    labels[labels.eq(4).nonzero()[:7]] = 0  # what the network says without the fifth channel
    swapped, order = ImageSet(clean.images, labels), in_order(4, 3)
    free = prune(classifier, order, swapped, PruneConfig(max_ca_drop=0.02))
    assert free.silenced == {"norm": (3, 4)}
    assert free.accuracies == pytest.approx((0.965, 0.965, 0.955))
    for most, silenced in ((9, (3, 4)), (8, (4,)), (6, (3,))):  # of 193 that were right
        config = PruneConfig(max_ca_drop=0.02, guard=0.02, max_wrong=most / 193)
        assert prune(classifier, order, swapped, config).silenced == {"norm": silenced}, most


def test_no_more_filters_are_tried_than_asked_for(kinds: tuple[Classifier, ImageSet]) -> None:
    classifier, clean = kinds
    result = prune(classifier, in_order(5, 3, 2, 4), clean, PruneConfig(0.5, tried=2))
    assert (result.silenced, len(result.accuracies)) == ({"norm": (3, 5)}, 3)


def test_a_fixed_threshold_looks_at_nothing_else(kinds: tuple[Classifier, ImageSet]) -> None:
    classifier, clean = kinds
    result = prune(classifier, in_order(1, 0, 5, 4), clean, PruneConfig(threshold=0.25))
    assert result.silenced == {"norm": (0, 1, 5)}
    assert (result.rule, result.filters) == ("threshold", 6)
    assert result.classifier.module.norm.weight.tolist() == [0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_settings_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="must lie in"):
        PruneConfig(max_ca_drop=value)
    with pytest.raises(ConfigError, match="must lie in"):
        SanitizeConfig.of(threshold=value)
    with pytest.raises(ConfigError, match="there is no recipe 'magic'"):
        SanitizeConfig.of("magic")


# --- evaluating -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
        (1, 500, 0.0004, 0.0112),
    ],
)
def test_wilson_interval(hits: int, n: int, low: float, high: float) -> None:
    """Expected values from Wilson's closed form, to four places."""
    rate = Rate.of(hits, n)
    assert (rate.value, rate.n) == (hits / n, n)
    assert (rate.low, rate.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_scores_count_what_they_say(clean: ImageSet) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.one_hot(torch.full((len(x),), 2), 4).float()

    some = clean[torch.arange(len(clean)) % 4 != 3]
    attack = Poisoned("patch", some, target=2)
    scores = evaluate(Classifier(Constant(), compute=Compute()), some, [attack], classes=4)
    assert scores.clean_accuracy.value == pytest.approx(1 / 3)
    assert scores.per_class_accuracy == (0.0, 0.0, 1.0, None)
    assert scores.attack_success_rate["patch"].value == 1.0
    assert scores.attack_success_rate["patch"].n == 100  # the 50 of the target label left out
