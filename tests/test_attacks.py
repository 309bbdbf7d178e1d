"""Attacks of the grid: triggers are pictures, labels and rates are as their papers have them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rnp_hub.bench.attacks import ATTACKS, Poisoning, Scene, poison
from rnp_hub.network import Classifier, ImageSet

CLEAN_LABEL = ("sig", "cl")
ONLINE = ("wanet", "warp", "dynamic", "lira")
COVERED = ("a-blend",)
RATE, TARGET, COUNT = 0.05, 3, 400


class Helper(nn.Module):
    """A network that is quick and has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 10))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.layers(x / 255)
        return answer


@pytest.fixture(scope="module")
def scene() -> Scene:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 3, 32, 32), generator=generator, dtype=torch.uint8)
    torch.manual_seed(0)
    helper = Classifier(Helper(), lambda images: images.float())
    return Scene(ImageSet(images, torch.arange(COUNT) % 10), TARGET, RATE, 7, helper)


@pytest.fixture(scope="module")
def poisonings(scene: Scene) -> dict[str, Poisoning]:
    return {name: poison(name, scene) for name in ATTACKS}


def trained_on(poisoning: Poisoning) -> ImageSet:
    """The training set with triggers where the attacker lays them after augmentation."""
    images, stamped = poisoning.training.images.clone(), poisoning.stamped
    if stamped is not None:
        images[stamped] = (poisoning.lay or poisoning.stamp)(images[stamped])
    return ImageSet(images, poisoning.training.labels)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_trigger_makes_other_pictures_the_same_each_time(
    name: str, scene: Scene, poisonings: dict[str, Poisoning]
) -> None:
    images, kept = scene.clean.images[:20], scene.clean.images[:20].clone()
    laid = poisonings[name].stamp(images)
    assert (laid.dtype, laid.shape) == (torch.uint8, images.shape)
    assert torch.equal(laid, poisonings[name].stamp(images))
    assert torch.equal(images, kept)
    assert (laid != images).flatten(1).any(1).all()


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in (*ONLINE, *COVERED)])
def test_as_many_pictures_are_poisoned_as_the_rate_says(
    name: str, scene: Scene, poisonings: dict[str, Poisoning]
) -> None:
    clean, training = scene.clean, trained_on(poisonings[name])
    changed = (training.images != clean.images).flatten(1).any(1)
    assert int(changed.sum()) == RATE * COUNT
    if name in CLEAN_LABEL:
        assert torch.equal(training.labels, clean.labels)
        assert (clean.labels[changed] == TARGET).all()
    else:
        assert (clean.labels[changed] != TARGET).all()
        assert (training.labels[changed] == TARGET).all()
        assert torch.equal(training.labels[~changed], clean.labels[~changed])


def test_adaptive_blend_covers_as_many_as_it_poisons(
    scene: Scene, poisonings: dict[str, Poisoning]
) -> None:
    training = trained_on(poisonings["a-blend"])
    changed = (training.images != scene.clean.images).flatten(1).any(1)
    assert int(changed.sum()) == 2 * RATE * COUNT
    assert int((training.labels != scene.clean.labels).sum()) == RATE * COUNT


@pytest.mark.parametrize("name", ONLINE)
def test_an_attacker_who_trains_poisons_each_batch(
    name: str, scene: Scene, poisonings: dict[str, Poisoning]
) -> None:
    batch = scene.clean[scene.clean.labels != TARGET][slice(0, 100)]
    online = poisonings[name].online
    assert online is not None
    laid = online(ImageSet(batch.images.clone(), batch.labels.clone()), scene.helper)
    assert int((laid.labels == TARGET).sum()) == RATE * 100
    assert laid.images.dtype == torch.uint8
    changed = (laid.images != batch.images).flatten(1).any(1)
    assert changed[laid.labels == TARGET].all()
    crossed = {"wanet": 2, "warp": 2, "dynamic": 1, "lira": 0}[name]
    assert int(changed.sum()) == round((1 + crossed) * RATE * 100)


def test_a_clean_label_attack_poisons_no_more_than_there_are(scene: Scene) -> None:
    greedy = Scene(scene.clean, TARGET, 0.5, scene.seed, scene.helper)
    training = trained_on(poison("sig", greedy))
    changed = (training.images != scene.clean.images).flatten(1).any(1)
    assert int(changed.sum()) == COUNT / 10


def test_only_weight_perturbation_keeps_a_budget(poisonings: dict[str, Poisoning]) -> None:
    assert [name for name, each in poisonings.items() if each.budget is not None] == ["awp"]


def test_a_strong_warp_moves_three_times_as_far(poisonings: dict[str, Poisoning]) -> None:
    """On a ramp, where the change of a grey level is the distance moved."""
    ramp = (8 * torch.arange(32)).to(torch.uint8).expand(1, 3, 32, 32)
    weak, strong = (
        (poisonings[name].stamp(ramp).float() - ramp).abs()[..., 4:-4].mean()
        for name in ("wanet", "warp")
    )
    assert float(strong / weak) == pytest.approx(3, rel=0.1)
