"""Finding a data set: layouts, columns, and what is wrong said in a sentence."""

from __future__ import annotations

import io
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from datasets import Image as ImageFeature
from PIL import Image

from rnp_hub import sources
from rnp_hub.errors import DataError
from rnp_hub.sources import KNOWN, ParquetFile, Source, known_as, open_source
from tests.picture_files import encoded, picture, write_folder, write_parquet

NAMES = ("cat", "dog", "horse")


def everything(source: Source, split: str) -> list[tuple[Any, int]]:
    """(red × 256 + green, label) of each row, sorted."""
    found = []
    for block in source.splits[split].blocks(np.random.default_rng(0)):
        labels = block.labels()
        for image, label in zip(block.pictures(range(len(labels))), labels, strict=True):
            assert image is not None
            red, green, _ = image.convert("RGB").getpixel((0, 0))  # type: ignore[misc]
            found.append((red * 256 + green, label))
    return sorted(found)


def refusal(spec: Path | str, **columns: str) -> str:
    with pytest.raises(DataError) as caught:
        open_source(str(spec), **columns)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- layouts --------------------------------------------------------------------------------


def test_digits() -> None:
    source = open_source("digits")

    assert (source.id, source.sha, source.flip) == ("digits", None, False)
    assert source.label_names == tuple("0123456789")
    [train] = source.splits["train"].blocks(np.random.default_rng(0))
    [test] = source.splits["test"].blocks(np.random.default_rng(0))
    assert (len(train.labels()), len(test.labels())) == (1198, 599)
    assert set(Counter(test.labels().tolist())) == set(range(10))
    [first] = train.pictures([0])
    assert first is not None
    assert (first.size, first.mode) == ((8, 8), "L")
    assert first.getextrema()[1] == 255  # type: ignore[comparison-overlap]


def test_a_folder_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    data = tmp_path / "animals/data"
    write_parquet(data / "train-00000-of-00002.parquet", [0, 1, 2], names=NAMES, group=2)
    write_parquet(data / "train-00001-of-00002.parquet", [2, 1], names=NAMES, first_row=300)
    write_parquet(data / "test-00000-of-00001.parquet", [1], names=NAMES, first_row=700)

    source = open_source(str(tmp_path / "animals"))

    assert source.id == str(tmp_path / "animals")
    assert source.sha is None
    assert source.flip is None  # nobody knows whether a mirrored animal is the same
    assert source.label_names == NAMES
    assert list(source.splits) == ["train", "test"]
    assert everything(source, "train") == [(0, 0), (1, 1), (2, 2), (300, 2), (301, 1)]
    assert everything(source, "test") == [(700, 1)]


def test_a_single_parquet_is_one_split(tmp_path: Path) -> None:
    source = open_source(str(write_parquet(tmp_path / "a.parquet", [1, 0], names=NAMES)))

    assert list(source.splits) == ["train"]
    assert everything(source, "train") == [(0, 1), (1, 0)]


def test_a_file_written_by_the_datasets_library(tmp_path: Path) -> None:
    features = Features({"img": ImageFeature(), "label": ClassLabel(names=list(NAMES))})
    rows = {"img": [picture(5), picture(6)], "label": [2, 0]}
    both = DatasetDict({"train": Dataset.from_dict(rows, features=features)})
    both["train"].to_parquet(tmp_path / "data/train.parquet")

    source = open_source(str(tmp_path))

    assert source.label_names == NAMES
    assert everything(source, "train") == [(5, 2), (6, 0)]


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    write_folder(tmp_path, {"dog": 2, "cat": 1})

    source = open_source(str(tmp_path))

    assert source.label_names == ("cat", "dog")
    assert list(source.splits) == ["train"]
    assert everything(source, "train") == [(0, 1), (1, 1), (2, 0)]


def test_folders_of_pictures_below_train_and_test(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"dog": 2, "cat": 1})
    write_folder(tmp_path / "test", {"cat": 1, "dog": 1}, first_row=500)

    source = open_source(str(tmp_path))

    assert sorted(source.splits) == ["test", "train"]
    assert everything(source, "train") == [(0, 1), (1, 1), (2, 0)]
    assert everything(source, "test") == [(500, 0), (501, 1)]


def test_files_that_are_no_pictures_do_not_matter(tmp_path: Path) -> None:
    write_folder(tmp_path, {"dog": 2, "cat": 2})
    (tmp_path / "README.md").write_text("# Animals\n")
    (tmp_path / "dog/.DS_Store").write_bytes(b"\0")
    (tmp_path / "dog/Thumbs.db").write_bytes(b"\0")
    (tmp_path / "dog/notes.txt").write_text("good dogs")

    source = open_source(str(tmp_path))

    assert source.label_names == ("cat", "dog")
    assert len(everything(source, "train")) == 4


def test_every_kind_of_picture_is_opened(tmp_path: Path) -> None:
    kinds = {"RGBA": "PNG", "P": "PNG", "L": "PNG", "1": "PNG", "RGB": "JPEG", "CMYK": "JPEG"}
    cells = [
        {"bytes": encoded(Image.new(mode, (5, 4)), kind), "path": None}
        for mode, kind in kinds.items()
    ]
    cells += [{"bytes": encoded(Image.new("RGB", (5, 4)), "WEBP"), "path": None}]
    schema = Features({"image": ImageFeature(), "label": Value("int64")}).arrow_schema
    table = pa.table({"image": cells, "label": [0] * 7}, schema=schema)
    pq.write_table(table, tmp_path / "a.parquet")

    [block] = (
        open_source(str(tmp_path / "a.parquet")).splits["train"].blocks(np.random.default_rng(0))
    )
    modes = [image.mode for image in block.pictures(range(7)) if image is not None]

    assert modes == [*kinds, "RGB"]


# --- columns --------------------------------------------------------------------------------


def table_of(path: Path, features: dict[str, Any], **columns: list[Any]) -> str:
    """A parquet file of one row with these feature types."""
    schema = Features(features).arrow_schema
    pq.write_table(pa.table(columns, schema=schema), path / "a.parquet")
    return str(path / "a.parquet")


CELL = {"bytes": encoded(picture(9)), "path": None}


def test_columns_are_found_by_their_type(tmp_path: Path) -> None:
    path = table_of(
        tmp_path,
        {
            "label": Value("string"),
            "photograph": ImageFeature(),
            "species": ClassLabel(names=list(NAMES)),
        },
        label=["seen in May"],
        photograph=[CELL],
        species=[2],
    )

    source = open_source(path)

    assert source.label_names == NAMES
    assert everything(source, "train") == [(9, 2)]


def test_of_several_labels_the_usual_name_is_taken_unless_told(tmp_path: Path) -> None:
    path = table_of(
        tmp_path,
        {
            "coarse_label": ClassLabel(names=["animal"]),
            "img": ImageFeature(),
            "fine_label": ClassLabel(names=list(NAMES)),
        },
        coarse_label=[0],
        img=[CELL],
        fine_label=[1],
    )

    assert open_source(path).label_names == NAMES
    assert open_source(path, label_column="coarse_label").label_names == ("animal",)


def test_pictures_as_bare_bytes_without_types(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"image": [CELL["bytes"]], "label": ["dog"]}), tmp_path / "bytes.parquet"
    )
    pq.write_table(pa.table({"photo": [CELL], "label": [1]}), tmp_path / "structs.parquet")

    assert everything(open_source(str(tmp_path / "bytes.parquet")), "train") == [(9, "dog")]
    assert everything(open_source(str(tmp_path / "structs.parquet")), "train") == [(9, 1)]


def test_missing_labels_become_minus_one(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"image": [CELL] * 2, "label": pa.array([None, 3])}), tmp_path / "a.parquet"
    )

    assert everything(open_source(str(tmp_path / "a.parquet")), "train") == [(9, -1), (9, 3)]


def test_data_without_labels(tmp_path: Path) -> None:
    path = table_of(tmp_path, {"image": ImageFeature()}, image=[CELL])

    assert refusal(path) == (
        f"{path} has no labels among its columns image; name the column with --label-column"
    )


def test_data_without_pictures(tmp_path: Path) -> None:
    path = table_of(tmp_path, {"label": ClassLabel(names=["a"])}, label=[0])

    assert refusal(path) == (
        f"{path} has no column of pictures among label; name it with --image-column"
    )


@pytest.mark.parametrize("named", ["image_column", "label_column"])
def test_a_column_that_is_not_there(tmp_path: Path, named: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0], names=NAMES)

    assert refusal(path, **{named: "imgs"}) == f"{path} has no column 'imgs'; it has image, label"


def test_columns_of_the_wrong_type(tmp_path: Path) -> None:
    path = table_of(
        tmp_path,
        {"image": ImageFeature(), "label": Value("int64"), "tags": Sequence(Value("int64"))},
        image=[CELL],
        label=[0],
        tags=[[0, 1]],
    )

    assert "'label'" in refusal(path, image_column="label")
    assert "holds no pictures" in refusal(path, image_column="label")
    assert "holds neither names nor numbers" in refusal(path, label_column="tags")
    assert "holds neither names nor numbers" in refusal(path, label_column="image")


# --- what cannot be read --------------------------------------------------------------------


def test_a_truncated_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 1] * 50, names=NAMES)
    path.write_bytes(path.read_bytes()[:-100])

    assert refusal(path).startswith(f"{path} cannot be read as parquet (")


def test_a_parquet_with_a_damaged_page(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 1] * 500, names=NAMES, group=1000)
    raw = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(0).column(0)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    raw[start : start + 200] = b"\xff" * 200
    path.write_bytes(raw)

    [block] = open_source(str(path)).splits["train"].blocks(np.random.default_rng(0))

    assert len(block.labels()) == 1000
    with pytest.raises(DataError, match="cannot be read as parquet"):
        list(block.pictures([0]))


def test_an_empty_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith(f"no pictures were found in {tmp_path} (")


def test_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("image,label\n")

    assert refusal(path) == f"{path} is no parquet file; give a folder, a parquet file or a Hub id"


def test_a_folder_of_texts(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("image,label\n")

    assert refusal(tmp_path).startswith(f"{tmp_path} holds .csv files; only parquet files")


def test_pictures_that_all_lie_in_one_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, {"all": 3})

    assert refusal(tmp_path).startswith(f"{tmp_path} has no labels: its pictures do not lie in")


@pytest.mark.parametrize("spec", ["./nowhere", "../no/where", "/no/such/path", "no/such.parquet"])
def test_no_such_path(spec: str) -> None:
    expected = f"there is no data at {spec}; give a folder, a parquet file or a Hub id"
    assert refusal(spec) == expected


def test_an_unknown_short_name() -> None:
    message = refusal("cifer10")

    assert message.startswith("--data 'cifer10' is neither a path, nor a Hub id (owner/name), nor")
    assert all(name in message for name in ["digits", *KNOWN])


def test_what_cannot_be_a_hub_id() -> None:
    assert refusal("a/b/c") == "'a/b/c' is neither a path nor a Hub id (owner/name)"


def test_a_known_data_set_is_known_by_its_id_too() -> None:
    """Whoever writes the whole id shall not have digits mirrored or a config missed."""
    by_id = {each.id: each for each in KNOWN.values()}
    assert len(by_id) == len(KNOWN)
    assert [name for name, each in KNOWN.items() if not each.flip] == ["gtsrb", "svhn", "mnist"]
    assert known_as("ylecun/mnist") == known_as("mnist") == KNOWN["mnist"]
    assert known_as("someone/else").flip is None


def test_a_remote_file_is_read_by_no_other_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that still holds the file when the interpreter ends would abort the process."""
    threads = set()

    class Remote(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            threads.add(threading.get_ident())
            return super().read(size)

    stored = write_parquet(tmp_path / "t.parquet", [0, 1] * 300, noise=2_000).read_bytes()
    monkeypatch.setattr(sources, "_remote", lambda _: Remote(stored))
    file = ParquetFile("hf://datasets/org/data/t.parquet")

    rows = [len(file.column(group, name)) for group in range(6) for name in ("image", "label")]

    assert rows == [100] * 12
    assert threads == {threading.get_ident()}
