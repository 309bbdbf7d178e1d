"""A network asked about pictures, and left as it was found."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from rnp_hub.compute import Compute
from rnp_hub.errors import ModelError
from rnp_hub.network import (
    Classifier,
    ImageSet,
    Normalise,
    augment,
    batch_statistics,
    batches,
    check_finite,
    evaluation_mode,
    logits_of,
    on_cpu,
    to_unit_range,
)
from rnp_hub.preprocess import Preprocess

LOGITS = torch.tensor([[1.0, 2.0], [4.0, 3.0]])
OTHER = torch.zeros(2, 5, 7)
Pair = namedtuple("Pair", "logits features")


class Wrapped(OrderedDict[str, Tensor]):
    """Mapping and attributes at once, like the outputs of transformers."""

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


# --- logits ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "key"),
    [
        (LOGITS, None),
        (LOGITS, "anything"),
        ((OTHER, LOGITS), None),
        ([OTHER, LOGITS], None),
        ((LOGITS, OTHER), 0),
        ({"logits": LOGITS, "features": OTHER}, None),
        ({"features": OTHER, "scores": LOGITS}, "scores"),
        ({"values": LOGITS, "items": OTHER}, "values"),
        (SimpleNamespace(logits=LOGITS), None),
        (SimpleNamespace(scores=LOGITS, logits=OTHER), "scores"),
        (Pair(LOGITS, OTHER), None),
        (Pair(OTHER, LOGITS), "features"),
        (Pair(OTHER, LOGITS), 1),
        (Wrapped(loss=OTHER, logits=LOGITS), None),
        (Wrapped(loss=OTHER, scores=LOGITS), "scores"),
    ],
)
def test_logits_are_found(output: Any, key: str | int | None) -> None:
    assert logits_of(output, key) is LOGITS


@pytest.mark.parametrize(
    ("output", "key", "shape"),
    [
        (OTHER, None, "(2, 5, 7)"),
        ((LOGITS, OTHER), None, "(2, 5, 7)"),
        ((LOGITS,), 3, "NoneType"),
        ((), None, "NoneType"),
        ({"scores": LOGITS}, None, "NoneType"),
        (SimpleNamespace(scores=LOGITS), "score", "NoneType"),
        ((LOGITS,), "logits", "NoneType"),
        (None, None, "NoneType"),
        (("a", "b"), None, "str"),
    ],
)
def test_an_output_without_logits(output: Any, key: str | int | None, shape: str) -> None:
    with pytest.raises(ModelError) as caught:
        logits_of(output, key)

    assert f"but {shape}; name the element that is with `output=`" in str(caught.value)


def test_a_classifier_transforms_and_asks() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False)).eval()
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]))
    pictures = torch.tensor([[255, 0, 51], [0, 255, 51]], dtype=torch.uint8).view(2, 3, 1, 1)

    classifier = Classifier(module, to_unit_range)

    torch.testing.assert_close(classifier.logits(pictures), torch.tensor([[1.0, 0.2], [0.0, 1.2]]))
    assert classifier.predict(pictures).tolist() == [0, 1]
    assert classifier.predict(pictures[:0]).tolist() == []


def test_unit_range_and_normalisation() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    half = Preprocess((3, 1, 1), mean=(0.0, 0.2, 0.5), std=(1.0, 0.5, 0.25))

    assert to_unit_range(pixels).flatten().tolist() == pytest.approx([0.0, 0.2, 1.0])
    assert to_unit_range(pixels.double()).dtype == torch.float64
    assert Normalise(half)(pixels).flatten().tolist() == pytest.approx([0.0, 0.0, 2.0])


def test_a_copy_shares_nothing() -> None:
    classifier = Classifier(nn.Linear(2, 2))

    other = classifier.copy()
    with torch.no_grad():
        other.module.get_parameter("weight").zero_()

    assert classifier.module.get_parameter("weight").count_nonzero() == 4


def test_logits_that_are_not_finite_are_refused() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    with torch.no_grad():
        module.get_parameter("1.weight").fill_(float("inf"))

    with pytest.raises(ModelError, match="logits that are not finite"):
        Classifier(module).predict(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))
    assert module.training


def convolutions(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for width, following in [(3, 16), (16, 32), (32, 32)]:
        layers += [nn.Conv2d(width, following, 3, padding=1), nn.BatchNorm2d(following), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def undecided(module: nn.Module, inputs: Tensor) -> nn.Module:
    """The same with its statistics taken from `inputs`: each label is as likely as another."""
    whole = nn.Sequential(module, nn.BatchNorm1d(10))
    for part in whole.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.momentum = None
    with torch.no_grad():
        whole.train()(inputs)
    return whole.eval()


@pytest.mark.parametrize("seed", range(3))
def test_labels_under_bfloat16_are_those_of_float32(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (400, 3, 16, 16), generator=generator, dtype=torch.uint8)
    module = undecided(convolutions(seed), to_unit_range(pictures))
    exact = Classifier(module, compute=Compute(batch_size=150))
    quick = Classifier(module, compute=Compute(bfloat16=True, batch_size=150))

    hasty = quick.logits(pictures).argmax(1)

    expected = exact.predict(pictures)
    assert len(expected.unique()) == 10
    assert (hasty != expected).any(), "the case is hard enough to tell"
    assert torch.equal(quick.predict(pictures), expected)
    assert quick.logits(pictures).dtype == torch.float32


@pytest.mark.parametrize(("edge", "first"), [(8, 256), (32, 256), (96, 256), (224, 47), (2000, 1)])
def test_of_large_pictures_fewer_go_through_at_once(edge: int, first: int) -> None:
    images = torch.zeros(1).expand(300, 1, edge, edge)
    parts = Compute().parts(images)
    assert (len(parts[0]), sum(map(len, parts))) == (first, 300)


def test_a_device_is_called_by_its_name() -> None:
    assert Compute().describe().startswith("cpu (")
    assert Compute("mps").describe() == "mps"


def test_bfloat16_without_pictures() -> None:
    quick = Classifier(convolutions(0), compute=Compute(bfloat16=True))

    assert quick.predict(torch.zeros((0, 3, 8, 8), dtype=torch.uint8)).tolist() == []


def test_bfloat16_with_a_single_logit() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3, 1))

    quick = Classifier(module, compute=Compute(bfloat16=True))

    assert quick.predict(torch.zeros((2, 3, 1, 1), dtype=torch.uint8)).tolist() == [0, 0]


# --- modes ----------------------------------------------------------------------------------


def mixed() -> nn.Sequential:
    """Modules in different modes, with every kind of momentum."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.Dropout(0.5),
        nn.BatchNorm2d(4, momentum=None),
        BatchNormAct2d(4),
        nn.BatchNorm2d(4, track_running_stats=False),
    )
    module.train()
    module[1].eval()
    return module


@dataclass
class State:
    """All that must be the same again."""

    modes: list[bool]
    momenta: list[Any]
    tracks: list[Any]
    tensors: dict[str, Tensor]

    @staticmethod
    def of(module: nn.Module) -> State:
        parts = list(module.modules())
        return State(
            [part.training for part in parts],
            [getattr(part, "momentum", None) for part in parts],
            [getattr(part, "track_running_stats", None) for part in parts],
            {name: tensor.clone() for name, tensor in module.state_dict().items()},
        )

    def assert_same(self, other: State) -> None:
        assert self.modes == other.modes
        assert self.momenta == other.momenta
        assert self.tracks == other.tracks
        assert self.tensors.keys() == other.tensors.keys()
        for name, tensor in self.tensors.items():
            assert torch.equal(tensor, other.tensors[name]), name


PICTURES = torch.linspace(0, 1, 8 * 3 * 6 * 6).view(8, 3, 6, 6)


@pytest.mark.parametrize("context", [evaluation_mode, batch_statistics])
@pytest.mark.parametrize("fails", [False, True])
def test_a_network_is_left_as_it_was(context: Callable[[nn.Module], Any], fails: bool) -> None:
    module = mixed()
    before = State.of(module)

    def visit() -> None:
        with context(module):
            assert not module.training
            module(PICTURES)
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            visit()
    else:
        visit()

    before.assert_same(State.of(module))


def test_evaluation_mode_reaches_every_part() -> None:
    module = mixed()

    with evaluation_mode(module):
        assert not any(part.training for part in module.modules())


def test_batch_statistics_normalise_by_the_batch() -> None:
    norm = nn.BatchNorm2d(3, affine=False, eps=1e-9).eval()
    module = nn.Sequential(norm, nn.Dropout(0.9)).eval()
    pictures = 5 + 3 * PICTURES.double()

    with batch_statistics(module):
        seen = module(pictures)

    mean = pictures.mean((0, 2, 3), keepdim=True)
    deviation = pictures.std((0, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(seen, (pictures - mean) / deviation)
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == [0.0, 0.0, 0.0]


def test_batch_statistics_survive_a_network_that_exploded() -> None:
    module = nn.Sequential(nn.BatchNorm2d(3)).eval()
    before = State.of(module)

    with batch_statistics(module):
        module(torch.full((2, 3, 4, 4), float("inf")))

    before.assert_same(State.of(module))


def test_predicting_leaves_the_mode_alone() -> None:
    module = convolutions(0).train()
    before = State.of(module)

    Classifier(module).predict(torch.zeros((3, 3, 8, 8), dtype=torch.uint8))

    before.assert_same(State.of(module))


# --- batches and augmentation ---------------------------------------------------------------


def test_an_epoch_visits_each_picture_once() -> None:
    parts = list(batches(10, 4, torch.Generator().manual_seed(0)))
    again = list(batches(10, 4, torch.Generator().manual_seed(0)))

    assert [len(part) for part in parts] == [4, 4, 2]
    assert sorted(torch.cat(parts).tolist()) == list(range(10))
    assert torch.cat(parts).tolist() != list(range(10))
    assert torch.equal(torch.cat(parts), torch.cat(again))


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """A picture moved over black, whatever leaves it lost."""
    pad = 4
    height, width = image.shape[1:]
    wide = torch.zeros((image.shape[0], height + 2 * pad, width + 2 * pad), dtype=image.dtype)
    wide[:, pad + down : pad + down + height, pad + right : pad + right + width] = image
    return wide[:, pad : pad + height, pad : pad + width]


def test_augmentation_only_shifts_and_mirrors() -> None:
    images = torch.randint(1, 256, (100, 3, 16, 24), dtype=torch.uint8)

    seen = augment(images, torch.Generator().manual_seed(1))

    steps = range(-3, 4)  # an eighth of 24
    moves = set()
    for before, after in zip(images, seen, strict=True):
        possible = {
            (down, right, flipped)
            for down in steps
            for right in steps
            for flipped in (False, True)
            if torch.equal(after, _mirrored(shifted(before, down, right), flipped))
        }
        assert len(possible) == 1
        moves |= possible
    assert {down for down, _, _ in moves} == {right for _, right, _ in moves} == set(steps)
    assert {flipped for _, _, flipped in moves} == {False, True}


def _mirrored(image: Tensor, flipped: bool) -> Tensor:
    return image.flip(2) if flipped else image


def test_augmentation_can_be_turned_off() -> None:
    images = torch.randint(1, 256, (50, 3, 16, 16), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)

    unflipped = augment(images, generator, flip=False)
    unmoved = augment(images, generator, crop=False)

    assert torch.equal(augment(images, generator, crop=False, flip=False), images)
    for before, after in zip(images, unmoved, strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(2))
    assert not torch.equal(unmoved, images)
    centre = slice(2, 14)
    assert not torch.equal(unflipped, images)
    for before, after in zip(images, unflipped, strict=True):
        moves = [shifted(before, down, right) for down in range(-2, 3) for right in range(-2, 3)]
        assert any(torch.equal(after[:, centre], move[:, centre]) for move in moves)


def test_augmentation_hangs_on_its_generator_alone() -> None:
    images = torch.rand(20, 1, 8, 8)

    first, again, other = (
        augment(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_pictures_are_taken_by_index() -> None:
    pictures = ImageSet(torch.arange(4).view(4, 1, 1, 1), torch.tensor([5, 6, 7, 8]))

    assert len(pictures) == 4
    assert pictures[1:3].labels.tolist() == [6, 7]
    assert pictures[torch.tensor([3, 0])].images.flatten().tolist() == [3, 0]


# --- weights --------------------------------------------------------------------------------


def test_on_cpu_is_a_copy() -> None:
    module = convolutions(0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    twin = on_cpu(module)

    assert module.training
    assert not twin.training
    assert twin.get_parameter("3.weight").is_contiguous()
    assert twin.get_parameter("3.weight").data_ptr() != module.get_parameter("3.weight").data_ptr()


@pytest.mark.parametrize(
    ("name", "value", "broken"),
    [
        ("0.weight", float("nan"), 2),
        ("1.running_var", float("inf"), 1),
        ("1.bias", -float("inf"), 3),
    ],
)
def test_broken_weights_are_named(name: str, value: float, broken: int) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    check_finite(module)
    tensor = module.state_dict()[name]
    tensor.view(-1)[:broken] = value

    with pytest.raises(ModelError) as caught:
        check_finite(module)

    assert str(caught.value) == (
        f"{broken} of the {tensor.numel()} values of `{name}` are NaN or infinite; "
        "the weights are damaged, get them again from their author"
    )
