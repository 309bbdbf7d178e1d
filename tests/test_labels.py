"""Labels of a data set and of a model meet by name, or not at all."""

from __future__ import annotations

import pytest

from rnp_hub.architecture import Architecture
from rnp_hub.errors import DataError
from rnp_hub.labels import align, resolve_label
from rnp_hub.pull import target_of
from tests.shared_files import shared

ANIMALS = ("cat", "dog", "horse")


@pytest.mark.parametrize(
    ("data", "model", "expected"),
    [
        (ANIMALS, ANIMALS, [0, 1, 2]),
        (("dog", "horse", "cat"), ANIMALS, [1, 2, 0]),
        (("Great_White-Shark", " HEN "), ("hen", "great white shark"), [1, 0]),
        # Synonyms on either side.
        (("tench", "goldfish"), ("goldfish, Carassius auratus", "tench, Tinca tinca"), [1, 0]),
        (("goldfish, Carassius auratus", "tench, Tinca tinca"), ("tench", "goldfish"), [1, 0]),
        # WordNet numbers on either side, alone or before the name.
        (("n01443537", "n01440764"), ("n01440764", "n01443537"), [1, 0]),
        (("n01443537_goldfish", "n01440764_tench"), ("n01440764", "n01443537"), [1, 0]),
        (("n01443537", "n01440764"), ("n01440764_tench", "n01443537_goldfish"), [1, 0]),
        (("n01443537_goldfish", "n01440764_tench"), ("tench, Tinca tinca", "goldfish"), [1, 0]),
        (("goldfish", "tench"), ("n01440764_tench", "n01443537_goldfish"), [1, 0]),
        # Two labels of one name are told apart by all of it, or by their number.
        (("crane, machine", "crane, bird"), ("crane, bird", "crane, machine"), [1, 0]),
        (("n03126707_crane", "n02012849_crane"), ("n02012849_crane", "n03126707_crane"), [1, 0]),
        # The literal name wins over another label's synonym.
        (("cardigan", "corgi"), ("Corgi, Cardigan", "cardigan, jacket"), [1, 0]),
        # Digits are names like any other.
        (("1", "0", "2"), ("0", "1", "2"), [1, 0, 2]),
    ],
)
def test_names_are_matched(
    data: tuple[str, ...], model: tuple[str, ...], expected: list[int]
) -> None:
    assert align(data, model, len(model)) == expected


def test_descriptions_are_names_too() -> None:
    descriptions = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius auratus"}

    assert align(("goldfish", "tench"), tuple(descriptions), 2, descriptions) == [1, 0]


def test_a_label_is_itself_before_it_is_a_description() -> None:
    descriptions = {"cardigan": "jacket", "corgi": "cardigan"}

    assert align(("cardigan", "corgi"), ("cardigan", "corgi"), 2, descriptions) == [0, 1]


@pytest.mark.parametrize(("data", "model"), [(None, ANIMALS), (ANIMALS, None), (None, None)])
def test_numbers_stay_where_one_has_no_names(
    data: tuple[str, ...] | None, model: tuple[str, ...] | None
) -> None:
    assert align(data, model, 3) is None


def test_counts_must_agree_even_without_names() -> None:
    for model in (None, ("cat", "dog")):
        with pytest.raises(DataError) as caught:
            align(ANIMALS, model, 2)
        assert str(caught.value) == (
            "the data set has 3 classes but the model has 2 outputs; "
            "take the data the model was trained for"
        )


def test_an_unresolvable_name_tells_the_nearest() -> None:
    with pytest.raises(DataError) as caught:
        align(("cat", "hose", "dog"), ("cat", "dog", "Horse"), 3)

    assert str(caught.value) == (
        "the data set's label 'hose' is none of the model's labels (its nearest is 'Horse'); "
        "take the data the model was trained for, or rename the label"
    )


def test_an_unresolvable_name_far_from_all() -> None:
    with pytest.raises(DataError, match=r"\(it has cat, dog, horse\)"):
        align(("cat", "dog", "xylophone"), ANIMALS, 3)


@pytest.mark.parametrize(
    ("data", "model"),
    [
        (("crane", "crane 2"), ("crane, bird", "crane, machine")),
        (("crane", "dog"), ("crane, bird", "crane, machine")),
    ],
)
def test_an_ambiguous_name_is_no_silent_guess(
    data: tuple[str, ...], model: tuple[str, ...]
) -> None:
    with pytest.raises(DataError, match="'crane' is none of the model's labels"):
        align(data, model, 2)


def test_two_labels_cannot_share_one() -> None:
    with pytest.raises(DataError, match="both look like the model's label 'cat, tom'"):
        align(("cat", "cat, tom", "dog"), ("cat, tom", "dog", "horse"), 3)


def test_the_labels_of_imagenet_as_they_are_published() -> None:
    import pyarrow.parquet as pq
    from datasets import Features
    from timm.data import ImageNetInfo

    path = shared("datasets/imagenet-sample/data/validation-00000-of-00001.parquet")
    names = Features.from_arrow_schema(pq.read_schema(path))["label"].names
    info = ImageNetInfo()
    numbers = info.label_names()
    descriptions = dict(zip(numbers, info.label_descriptions(), strict=True))

    assert align(names[::-1], numbers, 1000, descriptions) == list(range(999, -1, -1))
    assert sum(name.endswith("_crane") for name in names) == 2


@pytest.mark.parametrize(
    ("label", "expected"),
    [("horse", 2), ("HORSE", 2), ("2", 2), ("0", 0), ("dog", 1), ("canis-familiaris", 1)],
)
def test_a_label_is_given_by_name_or_number(label: str, expected: int) -> None:
    described = {"dog": "canis familiaris, hound"}

    assert resolve_label(label, ANIMALS, 3, described) == expected


def test_a_number_that_is_a_name_is_the_name() -> None:
    assert resolve_label("1", ("1", "2", "3"), 3) == 0
    assert resolve_label("0", ("1", "2", "3"), 3) == 0
    assert resolve_label("2", None, 3) == 2


@pytest.mark.parametrize(
    ("label", "names", "words"),
    [
        ("3", ANIMALS, "label 3 does not exist; the model has labels 0 to 2"),
        ("-1", None, "the model has no label names, so '-1' must be a number"),
        ("²", None, "must be a number"),
        (
            "hose",
            ANIMALS,
            "the label 'hose' is none of the model's labels (its nearest is 'horse')",
        ),
        (
            "crane",
            ("crane, bird", "dog", "crane, machine"),
            "are called 'crane'; give one of 0 and 2",
        ),
    ],
)
def test_a_label_that_is_not_there(label: str, names: tuple[str, ...] | None, words: str) -> None:
    with pytest.raises(DataError) as caught:
        resolve_label(label, names, 3)

    assert words in str(caught.value)


def test_placeholders_are_no_names() -> None:
    named = {"id2label": {"1": "dog", "0": "cat", "10": "horse"}}
    placeholders = {"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}
    architecture = Architecture("resnet18", 3)

    assert target_of(named, architecture).label_names == ANIMALS
    assert target_of(placeholders, architecture).label_names is None
