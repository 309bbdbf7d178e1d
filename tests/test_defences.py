"""The other defences of the grid: what they promise, and their formulas in closed form."""

from __future__ import annotations

import ast
import copy
import inspect
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnp_hub.bench import cleanse, ibau, tuning
from rnp_hub.bench.anp import AnpConfig, Shifted, adversarial_masks
from rnp_hub.bench.defences import DEFENCES, random_filters
from rnp_hub.bench.oracle import anp_best
from rnp_hub.hooks import gates
from rnp_hub.network import Classifier, ImageSet
from rnp_hub.sites import gate_sites
from tests.networks import stripes, to_unit, trained

BENCH = Path(__file__).parents[1] / "rnp_hub" / "bench"


class Tiny(nn.Module):
    """Two convolutions with a BatchNorm each, pooled, and a linear head."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, 2, 1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, 2, 1)
        self.bn2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.head(F.avg_pool2d(x, 2).flatten(1))


@pytest.fixture(scope="module")
def clean() -> ImageSet:
    return stripes(60)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    torch.manual_seed(0)
    module = trained(Tiny(), stripes(240), epochs=8)
    module.zero_grad()
    return Classifier(module, to_unit)


# --- what all of them promise -----------------------------------------------------------------


@pytest.mark.parametrize("name", DEFENCES)
def test_a_defence_gives_a_sound_network_and_leaves_its_own_alone(
    name: str, classifier: Classifier, clean: ImageSet
) -> None:
    before = copy.deepcopy(classifier.module.state_dict())
    images = clean.images.clone()
    result = DEFENCES[name](classifier, clean, 0)
    assert not result.module.training
    assert not any(
        each._forward_pre_hooks or each._forward_hooks for each in result.module.modules()
    )
    with torch.no_grad():
        logits = result.module(to_unit(clean.images))
    assert logits.isfinite().all()
    # A fixed threshold promises nothing about accuracy, nor does NAD's step of 0.1 here.
    right = float((logits.argmax(1) == clean.labels).float().mean())
    assert right > (0.2 if name in ("rnp-0.7", "nad") else 0.5)
    after = classifier.module.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.requires_grad for parameter in classifier.module.parameters())
    assert all(parameter.grad is None for parameter in classifier.module.parameters())
    assert torch.equal(images, clean.images)


@pytest.mark.parametrize("name", DEFENCES)
def test_a_defence_is_handed_nothing_but_a_network_the_slice_and_a_seed(name: str) -> None:
    parameters = inspect.signature(DEFENCES[name]).parameters.values()
    assert [each.annotation for each in parameters] == ["Classifier", "ImageSet", "int"]


@pytest.mark.parametrize("name", ["defences", "tuning", "anp", "ibau", "cleanse"])
def test_no_defence_can_reach_a_trigger(name: str) -> None:
    tree = ast.parse((BENCH / f"{name}.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    forbidden = {
        *(f"rnp_hub.bench.{each}" for each in ("attacks", "victims", "oracle", "grid")),
        "rnp_hub.triggers",
        "rnp_hub.data",
    }
    assert not imported & forbidden
    assert not any(
        isinstance(node, ast.Import) for node in ast.walk(tree) if "rnp" in ast.dump(node)
    )


# --- each by itself ---------------------------------------------------------------------------


def test_random_filters_are_as_many_as_asked(classifier: Classifier, clean: ImageSet) -> None:
    result = random_filters(5)(classifier, clean, 3)
    silent = sum(int((norm.weight == 0).sum()) for norm in (result.module.bn1, result.module.bn2))
    assert result.silenced == silent == 5


def test_fine_pruning_takes_the_least_active_features_first() -> None:
    head = nn.Linear(4, 2, bias=False)
    head.weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    # Two features tell the labels apart; the other two are less active and tell nothing.
    features = torch.tensor([[3.0, 1.0, 0.1, 0.0], [1.0, 3.0, 0.0, 0.1]])
    alive = tuning._needed(head, features, torch.tensor([0, 1]))
    assert alive.tolist() == [True, True, False, False]


def test_fine_pruned_features_stay_silent(classifier: Classifier, clean: ImageSet) -> None:
    module, count = tuning.fine_pruned(classifier, clean, 0)
    head = tuning.last_linear(module)
    assert int((head.weight == 0).all(0).sum()) == count > 0


def test_attention_is_the_normalised_sum_of_squares() -> None:
    maps = torch.tensor([[[[1.0, 2.0]], [[2.0, 0.0]]]])  # one picture, two channels, 1 × 2
    expected = torch.tensor([[5.0, 4.0]]) / math.sqrt(41)
    torch.testing.assert_close(tuning.attention(maps), expected)
    tokens = maps.flatten(2).transpose(1, 2)
    torch.testing.assert_close(tuning.attention(tokens), expected)


def test_attention_is_taken_where_the_resolution_changes(
    classifier: Classifier, clean: ImageSet
) -> None:
    assert tuning.attention_layers(classifier, clean.images[:2]) == ("bn1", "bn2")


def test_masks_without_a_shift_are_our_gates(classifier: Classifier, clean: ImageSet) -> None:
    module = copy.deepcopy(classifier.module).double()
    example = to_unit(clean.images).double()
    sites = gate_sites(module, example[:2])
    masked = Shifted(module, sites)
    generator = torch.Generator().manual_seed(0)
    for mask in masked.masks:
        mask.data = torch.rand(mask.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad(), gates(module, dict(zip(sites, masked.masks, strict=True))):
        gated = module(example)
    with torch.no_grad():
        torch.testing.assert_close(masked(example), gated, rtol=1e-12, atol=1e-12)


def test_anp_masks_lie_between_0_and_1_and_some_move(
    classifier: Classifier, clean: ImageSet
) -> None:
    found = adversarial_masks(classifier, clean, 0, AnpConfig(updates=60))
    values = torch.cat(list(found.masks.values()))
    assert values.shape == (14,)
    assert 0 <= float(values.min()) < float(values.max()) <= 1
    assert len(found.losses) == 60


def test_the_oracle_takes_the_threshold_that_costs_least(
    classifier: Classifier, clean: ImageSet
) -> None:
    masks = adversarial_masks(classifier, clean, 0, AnpConfig(updates=20))
    # Nothing can be gained where the "triggered" pictures never get the target's label ...
    never = clean[clean.labels != 1]
    result = anp_best(classifier, clean, masks, never, target=1)
    assert result.silenced is not None
    # ... so no filter is worth losing accuracy for.
    with torch.no_grad():
        right = result.module(to_unit(clean.images)).argmax(1) == clean.labels
    assert float(right.float().mean()) > 0.9


def test_neural_cleanse_flags_masks_far_below_the_median() -> None:
    # Median 10, deviations 0 0 1 1 9, their median 1: MAD 1.4826, and 9 is more than twice that.
    assert cleanse.outliers([10, 10, 9, 11, 1], 2.0) == (4,)
    assert cleanse.outliers([10, 10, 9, 11, 8], 2.0) == ()
    assert cleanse.outliers([10, 10, 9, 11, 19], 2.0) == ()


def test_the_cost_of_a_mask_follows_success() -> None:
    cost = cleanse._Cost(cleanse.CleanseConfig())
    told = []
    for share in [0.5] * 5 + [1.0] * 10 + [0.5] * 5:
        cost.look(share)
        told.append(cost.value)
    assert told[8] == 0
    assert told[9:14] == [1e-3] * 5
    assert told[14:19] == [2e-3] * 5
    assert told[19] == pytest.approx(2e-3 / 2**1.5)


def test_a_patch_covers_what_its_mask_says() -> None:
    mask, pattern = torch.tensor([[[1.0, 0.5]]]), torch.tensor([[[200.0, 100.0]]])
    laid = cleanse.Patch(mask, pattern).on(torch.zeros(1, 1, 1, 2))
    assert laid.tolist() == [[[[200.0, 50.0]]]]
    assert cleanse.Patch(mask, pattern).norm == 1.5


def test_unlearning_pictures_carry_the_patch_and_their_own_label(clean: ImageSet) -> None:
    patch = cleanse.Patch(torch.ones(1, 16, 16), torch.full((3, 16, 16), 7.0))
    made = cleanse._patched(clean, [patch], 0, cleanse.CleanseConfig())
    carriers = (made.images == 7).flatten(1).all(1)
    assert int(carriers.sum()) == 12
    assert len(made) == len(clean)
    assert made.labels.bincount().tolist() == clean.labels.bincount().tolist()


def test_the_implicit_gradient_is_the_truncated_series() -> None:
    """Against Jacobians written out: Σ (I − ηH)^k applied to the outer slope, K terms."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    part = ImageSet(torch.randint(0, 256, (6, 1, 2, 2)).double(), torch.tensor([0, 1] * 3))
    config = ibau.IbauConfig(batch_size=6, iterations=4, share=0.5)
    game = ibau.Game(Classifier(module, lambda images: images / 255), part, 0, config)
    added = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    weights = game.weights
    carriers = game.carriers(6)

    def outer(w: Tensor) -> Tensor:
        return game.loss(game.batches[0], carriers * w)

    def inner(w: Tensor) -> Tensor:
        return -game.loss(game.batches[0], w) + config.damping * w.square().sum()

    hessian = torch.autograd.functional.hessian(inner, added).view(4, 4)
    w = added.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(outer(w), [w])
    answer = torch.zeros(4, dtype=torch.float64)
    for _ in range(config.iterations):
        answer = answer - config.inner_step * hessian @ answer + wanted.flatten()
    (slope,) = torch.autograd.grad(inner(w), [w], create_graph=True)
    pulled = torch.autograd.grad((-config.inner_step * slope.flatten() * answer).sum(), weights)
    direct = torch.autograd.grad(outer(added), weights)
    found = game.hypergradient(added, game.batches[0], carriers)
    for one, two, three in zip(found, direct, pulled, strict=True):
        torch.testing.assert_close(one, two + three, rtol=1e-9, atol=1e-12)


class Attentive(nn.Module):
    """One layer of fused attention over the rows of a picture (16, 16), and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x.permute(0, 2, 1, 3).flatten(2))[:, None]
        seen = F.scaled_dot_product_attention(rows, rows, rows)
        return self.head(seen[:, 0].mean(1))


def test_networks_with_fused_attention_can_be_unlearned_adversarially(clean: ImageSet) -> None:
    torch.manual_seed(0)
    module = Attentive().eval()
    found = ibau.adversarially_unlearned(Classifier(module, to_unit), clean, 0)
    assert not torch.equal(found.head.weight, module.head.weight)  # type: ignore[union-attr,arg-type]
    assert found.head.weight.isfinite().all()  # type: ignore[union-attr,operator]
