"""The clean slice and the evaluation set: balanced, apart from each other, and cheap to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rnp_hub.data import Data, DataConfig, load, load_all
from rnp_hub.errors import ConfigError, DataError
from tests.hub.client import Hub
from tests.hub.fixture import running_hub
from tests.picture_files import SIDE, picture, rows_of, target, write_folder, write_parquet
from tests.shared_files import shared

NAMES = ("cat", "dog", "horse", "ship")


def read(path: Path, n: int, *, names: Sequence[str] | None = NAMES, **more: Any) -> Data:
    return load(DataConfig(str(path), n, **more), target(4, names))


def counts(labels: torch.Tensor, classes: int = 4) -> list[int]:
    return torch.bincount(labels, minlength=classes).tolist()


def refusal(path: Path, n: int, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, n, **more)
    return str(caught.value)


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 rows for training and 120 for testing, four classes in turn."""
    root = tmp_path_factory.mktemp("animals")
    write_parquet(root / "data/train.parquet", [0, 1, 2, 3] * 100, names=NAMES)
    write_parquet(root / "data/test.parquet", [0, 1, 2, 3] * 30, names=NAMES, first_row=1000)
    return root


# --- the slice ------------------------------------------------------------------------------


def test_slice_and_evaluation(animals: Path) -> None:
    data = read(animals, 40)

    assert (data.id, data.sha, data.flip) == (str(animals), None, None)
    assert (data.clean.split, data.clean.corrupt) == ("train", 0)
    assert (data.evaluation.split, data.evaluation.corrupt) == ("test", 0)
    assert data.clean.pictures.images.shape == (40, 3, SIDE, SIDE)
    assert data.clean.pictures.images.dtype == torch.uint8
    assert data.clean.pictures.labels.dtype == torch.int64
    assert counts(data.clean.pictures.labels) == [10, 10, 10, 10]
    assert counts(data.evaluation.pictures.labels) == [30, 30, 30, 30]
    assert sorted(rows_of(data.evaluation.pictures)) == list(range(1000, 1120))
    assert len(set(rows_of(data.clean.pictures))) == 40


def test_each_picture_keeps_its_label(animals: Path) -> None:
    data = read(animals, 40)

    for part in (data.clean, data.evaluation):
        assert torch.equal(part.pictures.images[:, 2, 3, 5].long(), part.pictures.labels)


def test_labels_are_put_in_the_order_of_the_model(animals: Path) -> None:
    data = load(DataConfig(str(animals), 40), target(4, ("ship", "dog", "cat", "horse")))

    stored = data.clean.pictures.images[:, 2, 0, 0].long()
    assert torch.equal(data.clean.pictures.labels, torch.tensor([2, 1, 3, 0])[stored])


def test_the_odd_ones_are_spread(animals: Path) -> None:
    assert sorted(counts(read(animals, 42).clean.pictures.labels)) == [10, 10, 11, 11]
    assert sorted(counts(read(animals, 3).clean.pictures.labels)) == [0, 1, 1, 1]


def test_a_rare_class_gives_what_it_has(tmp_path: Path) -> None:
    labels = [0] * 200 + [1] * 150 + [2] * 40 + [3] * 3
    write_parquet(tmp_path / "a.parquet", labels, names=NAMES, group=50)

    data = read(tmp_path / "a.parquet", 200)

    drawn = counts(data.clean.pictures.labels)
    assert drawn[2:] == [40, 3]
    assert sorted(drawn[:2]) == [78, 79]


def test_a_class_that_has_no_picture(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [0, 1, 3] * 100, names=NAMES)

    assert counts(read(tmp_path / "a.parquet", 30).clean.pictures.labels) == [10, 10, 0, 10]


def test_a_seed_means_the_same_twice(animals: Path) -> None:
    first, again, other = (read(animals, 40, seed=seed, eval_n=50) for seed in (3, 3, 4))

    assert torch.equal(first.clean.pictures.images, again.clean.pictures.images)
    assert torch.equal(first.evaluation.pictures.images, again.evaluation.pictures.images)
    assert set(rows_of(first.clean.pictures)) != set(rows_of(other.clean.pictures))
    assert set(rows_of(first.evaluation.pictures)) != set(rows_of(other.evaluation.pictures))


def test_within_a_row_group_rows_are_drawn_at_random(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 1, 2, 3] * 100, names=NAMES, group=400)

    rows = np.array([rows_of(read(path, 40, seed=seed).clean.pictures) for seed in range(5)])

    assert 120 < rows.mean() < 280, "from the whole group, not from its head"
    assert len(np.unique(rows)) > 120


def test_files_sorted_by_class_still_give_a_balanced_slice(tmp_path: Path) -> None:
    labels = [0] * 500 + [1] * 500 + [2] * 500 + [3] * 500
    write_parquet(tmp_path / "train.parquet", labels, names=NAMES, group=50)
    write_parquet(tmp_path / "test.parquet", labels[::10], names=NAMES, group=10, first_row=5000)

    data = read(tmp_path, 40, eval_n=100)

    assert counts(data.clean.pictures.labels) == [10, 10, 10, 10]
    assert len(data.evaluation.pictures) == 100
    assert min(counts(data.evaluation.pictures.labels)) > 0


def test_only_the_row_groups_that_are_needed_give_pictures(tmp_path: Path) -> None:
    labels = [0] * 500 + [1] * 500 + [2] * 500 + [3] * 500
    write_parquet(tmp_path / "a.parquet", labels, names=NAMES, group=50)

    groups = {row // 50 for row in rows_of(read(tmp_path / "a.parquet", 80).clean.pictures)}

    assert len(groups) == 4, "of forty, one a class: 20 pictures of its 50"


def test_few_row_groups_for_many_classes(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(200), 10)).tolist()
    path = write_parquet(tmp_path / "a.parquet", labels, group=50)

    data = load(DataConfig(str(path), 100), target(200))

    # Were 100 classes drawn beforehand, rare ones would be looked for all over the file.
    assert max(counts(data.clean.pictures.labels, 200)) == 1
    assert len({row // 50 for row in rows_of(data.clean.pictures)}) <= 4


# --- apart from each other ------------------------------------------------------------------


def test_one_split_is_divided(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 1, 2, 3] * 50, names=NAMES, group=30)

    data = read(path, 60)

    clean, held_out = rows_of(data.clean.pictures), rows_of(data.evaluation.pictures)
    assert sorted(clean + held_out) == list(range(200))
    assert data.clean.split == data.evaluation.split == "train"


def test_twins_in_another_split_are_left_out(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1, 2, 3] * 5, names=NAMES)
    write_parquet(tmp_path / "test.parquet", [0, 1, 2, 3] * 10, names=NAMES)

    data = read(tmp_path, 20)

    assert sorted(rows_of(data.clean.pictures)) == list(range(20))
    assert sorted(rows_of(data.evaluation.pictures)) == list(range(20, 40))


def test_a_slice_of_everything_leaves_nothing_to_evaluate_on(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 1, 2, 3] * 5, names=NAMES)

    assert refusal(path, 20) == (
        f"{path} has no picture left to evaluate on; lower --n 20 so that some rows of its only "
        "split remain"
    )


@pytest.mark.parametrize(
    ("splits", "clean", "evaluation"),
    [
        (("train", "test", "validation"), "train", "test"),
        (("train", "validation"), "train", "validation"),
        (("validation", "test"), "validation", "test"),
        (("test",), "test", "test"),
        (("train",), "train", "train"),
    ],
)
def test_which_splits_are_read(
    tmp_path: Path, splits: tuple[str, ...], clean: str, evaluation: str
) -> None:
    for place, split in enumerate(splits):
        path = tmp_path / f"data/{split}-00000-of-00001.parquet"
        write_parquet(path, [0, 1, 2, 3] * 10, names=NAMES, first_row=1000 * place)

    data = read(tmp_path, 20)

    assert (data.clean.split, data.evaluation.split) == (clean, evaluation)


# --- labels ---------------------------------------------------------------------------------


def test_rows_without_a_label_are_left_out(tmp_path: Path) -> None:
    labels = [-1, 0, 1, -1, 2, 3] * 10
    write_parquet(tmp_path / "train.parquet", labels, names=NAMES)
    write_parquet(tmp_path / "test.parquet", labels, names=NAMES, first_row=500)

    data = read(tmp_path, 20)

    assert counts(data.clean.pictures.labels) == [5, 5, 5, 5]
    assert counts(data.evaluation.pictures.labels) == [10, 10, 10, 10]
    assert not {row % 6 for row in rows_of(data.clean.pictures)} & {0, 3}


def test_a_test_split_whose_labels_are_secret_is_passed_over(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1, 2, 3] * 10, names=NAMES)
    write_parquet(tmp_path / "test.parquet", [-1] * 40, names=NAMES, first_row=500)
    assert read(tmp_path, 20).evaluation.split == "train"

    write_parquet(tmp_path / "validation.parquet", [0, 1, 2, 3] * 5, names=NAMES, first_row=900)

    data = read(tmp_path, 20)
    assert (data.clean.split, data.evaluation.split) == ("train", "validation")


def test_labels_that_stand_in_the_rows_as_words(tmp_path: Path) -> None:
    from datasets import Value

    words = ["Horse", "cat", "dog", "ship"] * 10
    path = write_parquet(tmp_path / "a.parquet", words, label=Value("string"))

    data = read(path, 20)

    place = torch.tensor([2, 0, 1, 3])
    expected = place[torch.tensor(rows_of(data.clean.pictures)) % 4]
    assert torch.equal(data.clean.pictures.labels, expected)


def test_a_word_that_the_model_does_not_know(tmp_path: Path) -> None:
    from datasets import Value

    path = write_parquet(tmp_path / "a.parquet", ["cat", "hors"] * 10, label=Value("string"))

    assert "the label 'hors' is none of the model's labels" in refusal(path, 10)
    assert "the model has no label names" in refusal(path, 10, names=None)


def test_numbers_beyond_the_model(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 4] * 10)

    assert refusal(path, 10) == (
        f"{path} has a label 4 but the model has 4 outputs (0 to 3); "
        "take the data the model was trained for"
    )


def test_counts_that_differ(animals: Path) -> None:
    with pytest.raises(DataError, match="the data set has 4 classes but the model has 10 outputs"):
        load(DataConfig(str(animals), 40), target(10))


def test_names_that_differ(animals: Path) -> None:
    message = refusal(animals, 40, names=("cat", "dog", "house", "ship"))

    assert "label 'horse' is none of the model's labels (its nearest is 'house')" in message


# --- how many -------------------------------------------------------------------------------


def test_n_larger_than_the_data(animals: Path) -> None:
    assert refusal(animals, 401) == (
        f"{animals} has 400 labelled pictures in its split 'train', fewer than the 401 asked for; "
        "lower --n"
    )


def test_eval_n_is_a_limit(animals: Path) -> None:
    data = read(animals, 40, eval_n=50)

    assert len(data.evaluation.pictures) == 50
    assert len(set(rows_of(data.evaluation.pictures))) == 50


@pytest.mark.parametrize(("n", "eval_n"), [(1, 10), (-5, 10), (10, 0)])
def test_too_few_to_be_meant(animals: Path, n: int, eval_n: int) -> None:
    with pytest.raises(ConfigError, match="too few"):
        read(animals, n, eval_n=eval_n)


def test_a_file_without_rows(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [], names=NAMES)

    assert "has 0 labelled pictures" in refusal(path, 10)


def test_load_all(animals: Path) -> None:
    part = load_all(str(animals), target(4, NAMES))

    assert (part.split, sorted(rows_of(part.pictures))) == ("test", list(range(1000, 1120)))


# --- pictures -------------------------------------------------------------------------------


def test_a_corrupt_picture_is_skipped_and_counted(tmp_path: Path) -> None:
    labels = [0, 1, 2, 3] * 50
    write_parquet(tmp_path / "train.parquet", labels, names=NAMES, broken=[7, 100])
    write_parquet(tmp_path / "test.parquet", labels, names=NAMES, first_row=1000, broken=[11])

    data = read(tmp_path, 200)

    assert (data.clean.corrupt, len(data.clean.pictures)) == (2, 198)
    assert (data.evaluation.corrupt, len(data.evaluation.pictures)) == (1, 199)
    assert not {7, 100} & set(rows_of(data.clean.pictures))
    assert torch.equal(data.clean.pictures.images[:, 2, 0, 0].long(), data.clean.pictures.labels)


def test_more_than_one_in_a_hundred_is_too_many(tmp_path: Path) -> None:
    labels = [0, 1, 2, 3] * 50
    write_parquet(tmp_path / "train.parquet", labels, names=NAMES, broken=[7, 100, 150])
    write_parquet(tmp_path / "test.parquet", labels, names=NAMES, first_row=1000)

    assert refusal(tmp_path, 200) == (
        f"3 of 200 pictures of {tmp_path} (split 'train') cannot be decoded, more than 1%; "
        "the files are damaged, get them again"
    )


def test_image_folders(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", dict.fromkeys(NAMES, 10))
    write_folder(tmp_path / "test", dict.fromkeys(NAMES, 3), first_row=100)

    data = load(DataConfig(str(tmp_path), 20), target(4, ("ship", "horse", "dog", "cat")))

    assert counts(data.clean.pictures.labels) == [5, 5, 5, 5]
    assert sorted(rows_of(data.evaluation.pictures)) == list(range(100, 112))
    assert torch.equal(3 - data.clean.pictures.images[:, 2, 0, 0], data.clean.pictures.labels)


def test_a_picture_file_that_is_cut_short(tmp_path: Path) -> None:
    write_folder(tmp_path, dict.fromkeys(NAMES, 50))
    whole = (tmp_path / "dog/60.png").read_bytes()
    (tmp_path / "dog/60.png").write_bytes(whole[: len(whole) // 2])

    part = load_all(str(tmp_path), target(4, NAMES))

    assert (part.corrupt, len(part.pictures)) == (1, 199)
    assert 60 not in rows_of(part.pictures)


def test_grey_and_transparent_pictures_in_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cat": 6, "dog": 6})
    picture(500).convert("L").save(tmp_path / "cat/grey.png")
    picture(501, 77).convert("RGBA").save(tmp_path / "cat/alpha.png")
    picture(502, 77).convert("P").save(tmp_path / "dog/palette.gif")

    part = load_all(str(tmp_path), target(2, ("cat", "dog")))

    assert counts(part.pictures.labels, 2) == [8, 7]
    assert 501 in rows_of(part.pictures)


def test_digits() -> None:
    data = load(DataConfig("digits", 200), target(10))

    assert (data.id, data.sha, data.flip) == ("digits", None, False)
    assert counts(data.clean.pictures.labels, 10) == [20] * 10
    assert len(data.evaluation.pictures) == 599
    images = data.clean.pictures.images
    assert torch.equal(images[:, 0], images[:, 2]), "grey, in three channels"
    assert int(images.max()) == 255


# --- over HTTP ------------------------------------------------------------------------------

CIFAR_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CIFAR = "plain_text/{}-00000-of-00001.parquet"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub of this module's own, since data sets that others hold too are made on it."""
    with running_hub(tmp_path_factory.mktemp("hub")) as running:
        yield running


def load_here(spec: str, n: int, eval_n: int, classes: int = 10) -> Any:
    from rnp_hub.data import DataConfig, Target, load
    from rnp_hub.preprocess import Preprocess

    data = load(
        DataConfig(spec, n, eval_n),
        Target(classes, Preprocess((3, 8, 8), crop_pct=1.0)),
    )
    labels = data.clean.pictures.labels
    return {
        "id": data.id,
        "sha": data.sha,
        "splits": [data.clean.split, data.evaluation.split],
        "counts": [int((labels == label).sum()) for label in range(classes)],
        "eval": len(data.evaluation.pictures),
        "first": data.clean.pictures.images[:, 0, 0, 0].unique().tolist(),
    }


def load_each(calls: list[list[Any]]) -> list[Any]:
    return [load_here(*call) for call in calls]


def message_of(spec: str) -> str:
    from rnp_hub.errors import DataError

    try:
        load_here(spec, 10, 10)
    except DataError as error:
        return str(error)
    return "no error"


def messages_of(specs: list[str]) -> list[str]:
    return [message_of(spec) for spec in specs]


def fetched(exchanges: list[dict[str, Any]]) -> int:
    return sum(exchange["bytes_out"] for exchange in exchanges)


def footer(path: Path) -> int:
    """Bytes that pyarrow fetches to learn what lies where: 64 KiB, then all of it if longer."""
    length = int.from_bytes(path.read_bytes()[-8:-4], "little")
    return 65_536 + (length if length > 65_536 - 8 else 0)


def cifar_like(folder: Path, shift: int = 0) -> dict[str, Path]:
    """Sorted by class, 60 row groups of 50 pictures of 2 kB, and a smaller test split."""
    labels = np.repeat(np.arange(10), 300).tolist()
    options: dict[str, Any] = {"names": CIFAR_NAMES, "columns": ("img", "label"), "noise": 2000}
    train, test = CIFAR.format("train"), CIFAR.format("test")
    return {
        train: write_parquet(folder / train, labels, group=50, first_row=shift, **options),
        test: write_parquet(
            folder / test, labels[::15], group=20, first_row=shift + 9000, **options
        ),
    }


def test_a_data_set_of_the_hub_by_its_short_name(hub: Hub, tmp_path: Path) -> None:
    hub.create_repo("uoft-cs/cifar10", repo_type="dataset")
    files = cifar_like(tmp_path / "old")
    old = hub.add_files("uoft-cs/cifar10", files, repo_type="dataset")
    new = hub.add_files(
        "uoft-cs/cifar10", cifar_like(tmp_path / "new", 256 * 100), repo_type="dataset"
    )
    calls = [["cifar10", 100, 40], [f"cifar10@{old}", 100, 1000]]

    with hub.recording() as exchanges:
        newest, pinned = hub.call(load_each, uses=[load_here], calls=calls)

    for found, sha in ((newest, new), (pinned, old)):
        assert (found["id"], found["sha"]) == ("uoft-cs/cifar10", sha)
        assert found["splits"] == ["train", "test"]
        assert found["counts"] == [10] * 10
    assert (newest["eval"], pinned["eval"]) == (40, 200)
    assert min(newest["first"]) >= 100
    assert max(pinned["first"]) < 100

    train, test = (files[CIFAR.format(name)] for name in ("train", "test"))
    group = train.stat().st_size / 60
    of_train = [each for each in exchanges if f"{new}/{CIFAR.format('train')}" in each["path"]]
    # The footer, the labels of the groups that were visited, the pictures of one group a class.
    assert fetched(of_train) < footer(train) + 60 * 100 + 10 * group
    assert sum(each["bytes_out"] > group / 2 for each in of_train) <= 12
    # All of the pinned evaluation split is needed, and comes once.
    of_test = [each for each in exchanges if f"{old}/{CIFAR.format('test')}" in each["path"]]
    assert fetched(of_test) < footer(test) + 1.01 * test.stat().st_size


def test_what_the_hub_does_not_give(hub: Hub, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train.parquet", [0] * 9, names=CIFAR_NAMES)
    hub.create_repo("org/secret", repo_type="dataset", private=True)
    hub.create_repo("org/gated", repo_type="dataset", gated="manual")
    hub.create_repo("org/empty", repo_type="dataset")
    hub.create_repo("org/few", repo_type="dataset")
    for name in ("org/secret", "org/gated", "org/few"):
        hub.add_files(name, {"data/train.parquet": path}, repo_type="dataset")
    specs = ["org/nothing", "org/secret", "org/gated", "org/empty", "org/few@v9", "org/few"]

    found = hub.call(messages_of, uses=[load_here, message_of], specs=specs)
    nothing, secret, gated, empty, revision, few = found

    unknown = (
        "the Hub has no data set 'org/{}' that you may read; check the name, or log in with "
        "`hf auth login`"
    )
    assert nothing == unknown.format("nothing")
    assert secret == unknown.format("secret")
    assert "org/gated" in gated
    assert "gated" in gated.replace("org/gated", "")
    assert empty.startswith("no pictures were found in org/empty (")
    assert revision.startswith("the data set 'org/few' cannot be reached (")
    assert "check the revision" in revision
    assert few.startswith("org/few has 9 labelled pictures in its split 'train'")
    assert not any("\n" in message for message in found)


def test_one_of_several_data_sets_in_a_repository(hub: Hub, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", [0, 1] * 20, names=CIFAR_NAMES)
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {name}/*\n"
        for name, split in (("large", "train"), ("small", "test"))
    )
    card = f"---\nconfigs:\n{configs}---\n"
    files = {"README.md": card, "large/t.parquet": path, "small/t.parquet": path}
    hub.create_repo("org/several", repo_type="dataset")
    hub.add_files("org/several", files, repo_type="dataset")

    found = hub.call(splits_of, repo_id="org/several", configs=[None, "huge", "small"])

    several = "org/several holds several data sets{}; name one with --data-config: large, small"
    assert found == [several.format(""), several.format(", but no 'huge'"), ["test"]]


def splits_of(repo_id: str, configs: list[str | None]) -> list[Any]:
    from rnp_hub.errors import DataError
    from rnp_hub.sources import open_source

    found: list[Any] = []
    for config in configs:
        try:
            found.append(list(open_source(repo_id, config=config).splits))
        except DataError as error:
            found.append(str(error))
    return found


def test_a_hub_that_does_not_answer(hub: Hub) -> None:
    settings = {"HF_ENDPOINT": "http://127.0.0.1:9"}

    message = hub.call(message_of, uses=[load_here], spec="org/any", settings=settings)

    assert message.startswith("the data set 'org/any' cannot be reached (")
    assert message.endswith("or give --data a local folder")


def test_cifar10_as_it_is_published() -> None:
    folder = shared("datasets/uoft-cs/cifar10")
    names = tuple(CIFAR_NAMES[::-1])

    data = load(DataConfig(str(folder), 500, 300), target(10, names))

    assert counts(data.clean.pictures.labels, 10) == [50] * 10
    assert len(data.evaluation.pictures) == 300
    assert (data.clean.split, data.evaluation.split) == ("train", "test")
