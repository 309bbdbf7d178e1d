"""What a clean slice of a data set costs to fetch, beside what the usual call fetches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.hub.client import Exchange
from tests.hub.fixture import running_hub
from tests.models import ROOT
from tests.shared_files import shared

TRAIN, TEST = (f"plain_text/{split}-00000-of-00001.parquet" for split in ("train", "test"))


def slice_of_500() -> list[int]:
    from rnp_hub.data import DataConfig, Target, load
    from rnp_hub.preprocess import Preprocess

    names = "airplane automobile bird cat deer dog frog horse ship truck"
    target = Target(10, Preprocess((3, 32, 32)), tuple(names.split()))
    labels: Any = load(DataConfig("cifar10", 500, 300), target).clean.pictures.labels
    counts: list[int] = labels.bincount().tolist()
    return counts


def first_500() -> int:
    from datasets import load_dataset

    return len(load_dataset("uoft-cs/cifar10", split="train[:500]"))


def fetched(exchanges: list[Exchange], file: str) -> int:
    return sum(each["bytes_out"] for each in exchanges if file in each["path"])


def test_a_slice_fetches_little_more_than_its_pictures(tmp_path: Path) -> None:
    folder = shared("datasets/uoft-cs/cifar10")
    size = (folder / TRAIN).stat().st_size
    with running_hub(tmp_path) as hub:
        hub.create_repo("uoft-cs/cifar10", repo_type="dataset")
        files = {name: folder / name for name in (TRAIN, TEST)}
        hub.add_files("uoft-cs/cifar10", {**files}, repo_type="dataset")
        with hub.recording() as ours:
            counts = hub.call(slice_of_500, settings={"PYTHONPATH": str(ROOT)})
        with hub.recording() as theirs:
            assert hub.call(first_500) == 500

    assert counts == [50] * 10
    # 500 of 50,000 pictures are 0.47 MB; the smallest piece that can be read is 1,000 of them.
    assert size / 100 < fetched(ours, TRAIN) < 1.2e6
    assert fetched(theirs, TRAIN) >= size
    assert fetched(theirs, TEST) >= (folder / TEST).stat().st_size
