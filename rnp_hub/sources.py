"""Where pictures come from: the embedded digits, a Hub data set, parquet files, image folders.

A source has splits, a split has blocks, a block is what can be read on its own (a row group of a
parquet file, say). Labels of a block are read without its pictures, and only the pictures that
are asked for are decoded.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rnp_hub import publisher
from rnp_hub.errors import DataError, reason, transport_errors

Labels = NDArray[Any]
"""(rows,) integers, or strings where the data set names the label in each row."""


class Block(Protocol):
    """Rows that are read together."""

    @property
    def key(self) -> str: ...

    def labels(self) -> Labels: ...

    def pictures(self, rows: Sequence[int]) -> Iterator[Image.Image | None]:
        """The pictures of `rows`, in their order; `None` for one that cannot be decoded."""
        ...


@dataclass(frozen=True)
class Split:
    """A named part of a data set. `blocks` yields them in an order drawn from the generator."""

    name: str
    blocks: Callable[[np.random.Generator], Iterator[Block]]


@dataclass(frozen=True)
class Source:
    """A data set that was found but not yet read.

    Attributes:
        id: what it is called in reports: a Hub id or a path.
        sha: commit of the Hub data set; `None` for local files.
        splits: by name, in the data set's own order.
        label_names: names in the order of its integer labels; `None` where it has none.
        flip: whether a mirrored picture still has its label (a digit does not); `None` where
            nobody knows.
    """

    id: str
    sha: str | None
    splits: Mapping[str, Split]
    label_names: tuple[str, ...] | None
    flip: bool | None = None


@dataclass(frozen=True)
class Known:
    """A data set that has a short name."""

    id: str
    config: str | None = None
    revision: str | None = None
    label_column: str | None = None
    flip: bool | None = True


KNOWN: Mapping[str, Known] = {
    "cifar10": Known("uoft-cs/cifar10"),
    "cifar100": Known("uoft-cs/cifar100", label_column="fine_label"),
    "imagenet-1k": Known("ILSVRC/imagenet-1k"),
    "imagenette": Known("frgfm/imagenette", "320px", "refs/convert/parquet"),
    "tiny-imagenet": Known("zh-plus/tiny-imagenet"),
    "gtsrb": Known("tanganke/gtsrb", flip=False),
    "svhn": Known("ufldl-stanford/svhn", "cropped_digits", flip=False),
    "mnist": Known("ylecun/mnist", flip=False),
    "fashion-mnist": Known("zalando-datasets/fashion_mnist"),
    "food101": Known("ethz/food101"),
}
"""Short names for `--data`; a new line here is all it takes."""


def known_as(name: str) -> Known:
    """What is known of a data set by its short name or its id; of another only the id."""
    by_id = {each.id: each for each in KNOWN.values()}
    return KNOWN.get(name) or by_id.get(name) or Known(name, flip=None)


IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label", "labels")
FILES_AT_ONCE = 8
"""Files whose row groups are shuffled among each other; more are opened only when needed."""


def open_source(
    spec: str,
    *,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Source:
    """Find the data set that `--data` names, reading no picture.

    Args:
        spec: `digits`, a name of `KNOWN`, a local folder or parquet file, or a Hub data set id,
            the last with an optional `@revision`.
        config: which of several data sets in one repository; its short name may know.
        image_column, label_column: override what the feature types say.

    Raises:
        DataError: it does not exist, cannot be reached, or has no pictures or labels.
    """
    if spec == "digits":
        return _digits()
    path = Path(spec).expanduser()
    columns = (image_column, label_column)
    if path.exists():
        return _local(path, columns)
    if spec.startswith((".", "/", "~")) or spec.endswith(".parquet"):
        raise DataError(f"there is no data at {spec}; give a folder, a parquet file or a Hub id")
    name, _, revision = spec.partition("@")
    known = known_as(name)
    if name not in KNOWN and "/" not in name:
        raise DataError(
            f"--data {spec!r} is neither a path, nor a Hub id (owner/name), nor one of "
            f"digits, {', '.join(KNOWN)}"
        )
    known = replace(known, config=config or known.config)
    return _hub(known, revision or known.revision, (image_column, label_column))


# --- the embedded default -------------------------------------------------------------------


@dataclass(frozen=True)
class ArrayBlock:
    """Pictures that are already in memory: uint8 (rows, H, W)."""

    key: str
    values: NDArray[np.uint8]
    classes: Labels

    def labels(self) -> Labels:
        return self.classes

    def pictures(self, rows: Sequence[int]) -> Iterator[Image.Image]:
        for row in rows:
            yield Image.fromarray(self.values[row])


def _digits() -> Source:
    """scikit-learn's 1,797 handwritten digits of 8 × 8 pixels, a third kept for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(pixels)), test_size=1 / 3, random_state=0, stratify=digits.target
    )
    splits = {
        name: Split(name, _in_memory(ArrayBlock(name, pixels[rows], digits.target[rows])))
        for name, rows in (("train", train), ("test", test))
    }
    return Source("digits", None, splits, tuple(str(digit) for digit in range(10)), flip=False)


def _in_memory(block: Block) -> Callable[[np.random.Generator], Iterator[Block]]:
    return lambda _: iter((block,))


# --- files --------------------------------------------------------------------------------


Columns = tuple[str | None, str | None]
"""The image and the label column, where they were named."""


def _local(path: Path, columns: Columns) -> Source:
    if path.is_file() and path.suffix != ".parquet":
        raise DataError(f"{path} is no parquet file; give a folder, a parquet file or a Hub id")
    arguments = {"data_files": str(path)} if path.is_file() else {}
    files = _data_files("parquet" if path.is_file() else str(path), str(path), **arguments)
    return _source_of(str(path), None, files, columns, flip=None)


def _hub(known: Known, revision: str | None, columns: Columns) -> Source:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        sha = HfApi().dataset_info(known.id, revision=revision).sha
    except RepositoryNotFoundError as error:
        raise DataError(
            f"the Hub has no data set {known.id!r} that you may read; check the name, or log in "
            "with `hf auth login`"
        ) from error
    except HFValidationError as error:
        raise DataError(f"{known.id!r} is neither a path nor a Hub id (owner/name)") from error
    except transport_errors() as error:
        raise DataError(
            publisher.refusal(error)
            or f"the data set {known.id!r} cannot be reached ({reason(error)}); check the revision "
            "and the network, or give --data a local folder"
        ) from error
    arguments = {"name": known.config} if known.config and not known.revision else {}
    if known.revision and known.config:
        arguments = {"data_dir": known.config}
    files = _data_files(known.id, known.id, revision=sha, **arguments)
    named = (columns[0], columns[1] or known.label_column)
    return _source_of(known.id, sha, files, named, flip=known.flip)


def _data_files(builder: str, shown: str, **arguments: Any) -> dict[str, list[str]]:
    """The files of each split, as the `datasets` library finds them."""
    import datasets

    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset_builder(builder, **arguments).config.data_files
    except transport_errors(ValueError, RuntimeError) as error:
        if choices := _configs(builder, arguments):
            asked = arguments.get("name")
            raise DataError(
                f"{shown} holds several data sets{f', but no {asked!r}' if asked else ''}; name "
                f"one with --data-config: {', '.join(choices)}"
            ) from error
        raise DataError(
            f"no pictures were found in {shown} ({reason(error)}); it needs parquet files in the "
            "Hub's layout, or pictures in one folder a label"
        ) from error
    return {str(split): [str(file) for file in files] for split, files in dict(found).items()}


def _configs(builder: str, arguments: Mapping[str, Any]) -> list[str]:
    """The data sets of one repository, if there are several and the one asked for is not there."""
    import datasets

    try:
        found = datasets.get_dataset_config_names(builder, revision=arguments.get("revision"))
    except transport_errors(ValueError, RuntimeError):
        return []
    return found if len(found) > 1 and arguments.get("name") not in found else []


def _source_of(
    shown: str, sha: str | None, files: dict[str, list[str]], columns: Columns, *, flip: bool | None
) -> Source:
    kinds = {PurePosixPath(file).suffix.lower() for paths in files.values() for file in paths}
    if kinds == {".parquet"}:
        return _parquet_source(shown, sha, files, columns, flip=flip)
    if kinds and kinds <= set(Image.registered_extensions()):
        return _folder_source(shown, sha, files, flip=flip)
    raise DataError(
        f"{shown} holds {', '.join(sorted(kinds)) or 'no'} files; only parquet files and image "
        "folders are read (many Hub data sets have parquet under @refs/convert/parquet)"
    )


def _decode(raw: bytes | None) -> Image.Image | None:
    if raw is None:
        return None
    try:
        picture = Image.open(io.BytesIO(raw))
        picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return picture


# --- parquet ------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParquetFile:
    """One parquet file, here or on the Hub, of which single row groups are read."""

    path: str

    @cached_property
    def reader(self) -> Any:
        import pyarrow.parquet as pq

        # Without threads: one of arrow's that still holds a file which Python serves aborts the
        # process when the interpreter ends (apache/arrow 45214).
        with self._readable():
            source = _remote(self.path) if "://" in self.path else self.path
            return pq.ParquetFile(source, pre_buffer=False)

    def column(self, group: int, column: str) -> Any:
        """One column of one row group; of a remote file nothing else is fetched."""
        with self._readable():
            return self.reader.read_row_group(group, [column], use_threads=False)[column]

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        from pyarrow.lib import ArrowException

        try:
            yield
        except transport_errors(ArrowException) as error:
            raise DataError(f"{self.path} cannot be read as parquet ({reason(error)})") from error


def _remote(path: str) -> Any:
    from fsspec.core import url_to_fs

    system, inside = url_to_fs(path)
    # pyarrow asks for whole column chunks, so that reading ahead fetches what nobody needs.
    return system.open(inside, "rb", cache_type="none")


@dataclass(frozen=True)
class RowGroup:
    """One row group; its labels are read without its pictures."""

    file: ParquetFile
    number: int
    image: str
    label: str

    @property
    def key(self) -> str:
        return f"{self.file.path}#{self.number}"

    def labels(self) -> Labels:
        import pyarrow as pa

        column = self.file.column(self.number, self.label)
        if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
            numbers: Labels = column.cast(pa.int64()).fill_null(-1).to_numpy()
            return numbers
        return np.array(column.to_pylist(), dtype=object)

    def pictures(self, rows: Sequence[int]) -> Iterator[Image.Image | None]:
        for cell in self.file.column(self.number, self.image).take(list(rows)).to_pylist():
            yield _decode(cell["bytes"] if isinstance(cell, dict) else cell)


@dataclass(frozen=True)
class ParquetBlocks:
    """The row groups of a split, in an order drawn at random."""

    files: tuple[ParquetFile, ...]
    image: str
    label: str

    def __call__(self, random: np.random.Generator) -> Iterator[Block]:
        order = random.permutation(len(self.files))
        for start in range(0, len(order), FILES_AT_ONCE):
            groups = [
                RowGroup(self.files[place], number, self.image, self.label)
                for place in order[start : start + FILES_AT_ONCE]
                for number in range(self.files[place].reader.metadata.num_row_groups)
            ]
            for place in random.permutation(len(groups)):
                yield groups[place]


def _parquet_source(
    shown: str, sha: str | None, files: dict[str, list[str]], columns: Columns, *, flip: bool | None
) -> Source:
    opened = {split: tuple(ParquetFile(path) for path in paths) for split, paths in files.items()}
    features = _features(next(iter(opened.values()))[0])
    image, label = _columns(features, columns, shown)
    splits = {
        split: Split(split, ParquetBlocks(paths, image, label)) for split, paths in opened.items()
    }
    names = getattr(features[label], "names", None)
    return Source(shown, sha, splits, tuple(names) if names else None, flip)


def _features(file: ParquetFile) -> Mapping[str, Any]:
    from datasets import Features

    try:
        features: Mapping[str, Any] = Features.from_arrow_schema(file.reader.schema_arrow)
    except (NotImplementedError, ValueError) as error:
        raise DataError(
            f"{file.path} has columns that are not read ({reason(error)}); write it again with "
            "the datasets library"
        ) from error
    return features


def _columns(features: Mapping[str, Any], named: Columns, shown: str) -> tuple[str, str]:
    """The image and the label column: those named, else by feature type, else by usual name."""
    for column in filter(None, named):
        if column not in features:
            raise DataError(f"{shown} has no column {column!r}; it has {', '.join(features)}")
    image = named[0] or _pick(features, _is_image, IMAGE_COLUMNS)
    label = named[1] or _pick(features, _is_label, LABEL_COLUMNS)
    if image is None:
        raise DataError(
            f"{shown} has no column of pictures among {', '.join(features)}; "
            "name it with --image-column"
        )
    if label is None:
        raise DataError(
            f"{shown} has no labels among its columns {', '.join(features)}; "
            "name the column with --label-column"
        )
    if not _is_image(features[image]):
        raise DataError(f"the column {image!r} of {shown} holds no pictures; see --image-column")
    if not (_is_label(features[label]) or _is_plain_label(features[label])):
        raise DataError(
            f"the column {label!r} of {shown} holds neither names nor numbers of labels; "
            "see --label-column"
        )
    return image, label


def _pick(
    features: Mapping[str, Any], fits: Callable[[Any], bool], usual: Sequence[str]
) -> str | None:
    typed = [name for name, feature in features.items() if fits(feature)]
    for name in usual:
        if name in typed or (not typed and name in features):
            return name
    return typed[0] if typed else None


def _is_image(feature: Any) -> bool:
    """Encoded pictures: the Hub's own type, or the bytes that lie beneath it."""
    if isinstance(feature, Mapping):
        return "bytes" in feature
    return type(feature).__name__ == "Image" or _dtype(feature) in ("binary", "large_binary")


def _is_label(feature: Any) -> bool:
    return type(feature).__name__ == "ClassLabel"


def _is_plain_label(feature: Any) -> bool:
    return _dtype(feature).startswith(("int", "uint", "bool", "string", "large_string"))


def _dtype(feature: Any) -> str:
    return feature.dtype if type(feature).__name__ == "Value" else ""


# --- image folders --------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderBlock:
    """Picture files whose label is the name of the folder they lie in."""

    key: str
    files: tuple[str, ...]
    label_names: tuple[str, ...]
    places: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        places = {name: place for place, name in enumerate(self.label_names)}
        object.__setattr__(self, "places", places)

    def labels(self) -> Labels:
        return np.array([self.places[_folder(file)] for file in self.files], dtype=np.int64)

    def pictures(self, rows: Sequence[int]) -> Iterator[Image.Image | None]:
        import fsspec

        for row in rows:
            with fsspec.open(self.files[row], "rb") as file:
                yield _decode(file.read())


def _folder(file: str) -> str:
    return PurePosixPath(file).parent.name


def _folder_source(
    shown: str, sha: str | None, files: dict[str, list[str]], *, flip: bool | None
) -> Source:
    names = tuple(sorted({_folder(file) for paths in files.values() for file in paths}))
    if len(names) < 2:
        raise DataError(
            f"{shown} has no labels: its pictures do not lie in one folder a label "
            "(train/cat/1.png, train/dog/2.png, …)"
        )
    splits = {
        split: Split(split, _in_memory(FolderBlock(split, tuple(paths), names)))
        for split, paths in files.items()
    }
    return Source(shown, sha, splits, names, flip)
