"""The clean slice the method works on, and the evaluation set the numbers come from.

The two never share a picture: they come from different splits, or from different rows where there
is one split, and a picture of the evaluation set whose pixels stand in the slice is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnp_hub import labels as label_names
from rnp_hub.errors import ConfigError, DataError
from rnp_hub.network import ImageSet
from rnp_hub.preprocess import Preprocess
from rnp_hub.sources import Block, Labels, Source, Split, open_source

EVALUATION_SPLITS = ("test", "validation", "valid", "val", "dev", "eval")
MAX_CORRUPT = 0.01
"""Share of pictures that may be unreadable before the data set is refused."""


@dataclass(frozen=True)
class Target:
    """What a model says of its inputs and outputs: enough to read data for it.

    Attributes:
        classes: number of logits.
        label_names: in the order of the logits; `None` where the model names none.
        descriptions: longer names by label name (timm's `label_descriptions`).
        preprocess: geometry and normalisation.
    """

    classes: int
    preprocess: Preprocess
    label_names: tuple[str, ...] | None = None
    descriptions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """Pictures read from one split.

    Attributes:
        pictures: uint8 (n, C, H, W) at the model's input size, labels in the model's order.
        split: name of the split.
        corrupt: pictures that could not be decoded and were left out.
    """

    pictures: ImageSet
    split: str
    corrupt: int = 0


@dataclass(frozen=True)
class Data:
    """The clean slice and the evaluation set, with where they came from."""

    id: str
    sha: str | None
    clean: Part
    evaluation: Part
    flip: bool | None


@dataclass(frozen=True)
class DataConfig:
    """Which data, and how much of it.

    Attributes:
        spec: what `--data` says; see `sources.open_source`.
        n: pictures in the clean slice.
        eval_n: pictures in the evaluation set, at most.
        seed: of both draws.
        image_column, label_column: override what the feature types say.
        config: which of several data sets in one repository.
    """

    spec: str = "digits"
    n: int = 500
    eval_n: int = 10_000
    seed: int = 0
    image_column: str | None = None
    label_column: str | None = None
    config: str | None = None

    def check(self) -> None:
        """Refuse what no data set could satisfy.

        Raises:
            ConfigError: a number is too small.
        """
        if self.n < 2 or self.eval_n < 1:
            raise ConfigError(
                f"--n {self.n} and --eval-n {self.eval_n} are too few; at least 2 and 1 are needed"
            )
        if self.seed < 0:
            raise ConfigError(f"--seed {self.seed} must be at least 0")


def load(config: DataConfig, target: Target) -> Data:
    """Read the clean slice and the evaluation set, and nothing more than they need.

    The slice is drawn from the training split, balanced over the classes as far as the data
    allow; the evaluation set from the test or validation split in its own proportions.

    Raises:
        DataError: the data do not exist, hold no labels, do not fit the model, or are too few.
        ConfigError: `n` or `eval_n` is not positive.
    """
    config.check()
    reader = _open(config, target)
    source = reader.source
    training, testing = reader.choose_splits()
    random = np.random.default_rng(config.seed)
    chosen = reader.draw(training, config.n, random, balanced=True)
    clean = reader.read(training, chosen)
    taken = {pick.block.key: pick.rows for pick in chosen}
    held_out = reader.draw(testing, config.eval_n, random, balanced=False, taken=taken)
    evaluation = _without_twins(reader.read(testing, held_out), clean)
    if not len(evaluation.pictures):
        raise DataError(
            f"{source.id} has no picture left to evaluate on; lower --n {config.n} so that some "
            "rows of its only split remain"
        )
    return Data(source.id, source.sha, clean, evaluation, source.flip)


def load_all(spec: str, target: Target) -> Part:
    """Every labelled picture of a data set's evaluation split, or of its only one.

    Raises:
        DataError: as for `load`.
    """
    reader = _open(DataConfig(spec), target)
    _, split = reader.choose_splits()
    everything = np.iinfo(np.int64).max
    picks = reader.draw(split, everything, np.random.default_rng(0), balanced=False)
    return reader.read(split, picks)


def _open(config: DataConfig, target: Target) -> _Reader:
    source = open_source(
        config.spec,
        config=config.config,
        image_column=config.image_column,
        label_column=config.label_column,
    )
    mapping = label_names.align(
        source.label_names, target.label_names, target.classes, target.descriptions
    )
    return _Reader(source, mapping, target)


@dataclass(frozen=True)
class _Pick:
    """Rows chosen from one block, and their labels in the model's order."""

    block: Block
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class _Reader:
    """Draws rows and reads their pictures, for one source and one model."""

    source: Source
    mapping: list[int] | None
    target: Target

    def choose_splits(self) -> tuple[Split, Split]:
        """The split for the slice, and the one to evaluate on; the same where there is one."""
        splits = self.source.splits
        candidates = [splits[name] for name in EVALUATION_SPLITS if name in splits]
        testing = next(filter(self._has_labels, candidates), None)
        others = [split for split in splits.values() if split not in candidates]
        spare = [split for split in candidates if split is not testing]
        training = splits.get("train") or next(iter([*others, *spare, *candidates]), None)
        if training is None:
            raise DataError(f"{self.source.id} has no split")
        return training, testing or training

    def _has_labels(self, split: Split) -> bool:
        """Whether its first rows do: competitions keep the labels of whole splits secret."""
        first = next(split.blocks(np.random.default_rng(0)), None)
        return first is not None and bool(len(self._labelled(first).rows))

    def draw(
        self,
        split: Split,
        n: int,
        random: np.random.Generator,
        *,
        balanced: bool,
        taken: Mapping[str, NDArray[np.int64]] | None = None,
    ) -> list[_Pick]:
        """Choose `n` labelled rows, or all where there are fewer, reading labels only.

        Blocks are visited in random order and no further than needed: until every class has its
        share, or, where the draw is not balanced, until there are rows enough and every class
        was seen.
        """
        seen: list[_Pick] = []
        counts = np.zeros(self.target.classes, dtype=np.int64)
        for block in split.blocks(random):
            pick = self._labelled(block, (taken or {}).get(block.key))
            seen.append(pick)
            counts += np.bincount(pick.labels, minlength=len(counts))
            if _enough(counts, n, balanced=balanced):
                break
        if balanced and counts.sum() < n:
            raise DataError(
                f"{self.source.id} has {counts.sum()} labelled pictures in its split "
                f"{split.name!r}, fewer than the {n} asked for; lower --n"
            )
        return _choose(seen, counts, n, random, balanced=balanced)

    def _labelled(self, block: Block, taken: NDArray[np.int64] | None = None) -> _Pick:
        found = self._in_model_order(block.labels())
        free = found >= 0  # a label of -1 is the Hub's way to say that it is kept secret
        if taken is not None:
            free[taken] = False
        rows = np.flatnonzero(free)
        return _Pick(block, rows, found[rows])

    def _in_model_order(self, found: Labels) -> NDArray[np.int64]:
        if found.dtype.kind in "OU":
            return self._resolved(found)
        numbers = found.astype(np.int64)
        known = len(self.mapping) if self.mapping else self.target.classes
        if numbers.max(initial=-1) >= known:
            raise DataError(
                f"{self.source.id} has a label {numbers.max()} but the model has {known} outputs "
                f"(0 to {known - 1}); take the data the model was trained for"
            )
        if self.mapping is None:
            return numbers
        return np.where(numbers < 0, -1, np.array(self.mapping)[numbers])

    def _resolved(self, found: Labels) -> NDArray[np.int64]:
        """Labels that stand in the rows as names; a missing one becomes -1."""
        model = self.target
        places: dict[str | None, int] = {None: -1}
        for name in set(found) - {None}:
            places[name] = label_names.resolve_label(
                str(name), model.label_names, model.classes, model.descriptions
            )
        return np.array([places[name] for name in found], dtype=np.int64)

    def read(self, split: Split, picks: Sequence[_Pick]) -> Part:
        """Decode the chosen rows."""
        images: list[Tensor] = []
        labels: list[int] = []
        for image, label in self._decoded(picks):
            if image is not None:
                images.append(image)
                labels.append(label)
        asked = sum(len(pick.rows) for pick in picks)
        corrupt = asked - len(images)
        if corrupt > MAX_CORRUPT * asked:
            raise DataError(
                f"{corrupt} of {asked} pictures of {self.source.id} (split {split.name!r}) cannot "
                f"be decoded, more than {MAX_CORRUPT:.0%}; the files are damaged, get them again"
            )
        shape = self.target.preprocess.input_size
        stacked = torch.stack(images) if images else torch.empty((0, *shape), dtype=torch.uint8)
        return Part(ImageSet(stacked, torch.tensor(labels, dtype=torch.int64)), split.name, corrupt)

    def _decoded(self, picks: Sequence[_Pick]) -> Iterator[tuple[Tensor | None, int]]:
        geometry = self.target.preprocess.geometry
        for pick in picks:
            pictures = pick.block.pictures(pick.rows.tolist())
            for picture, label in zip(pictures, pick.labels.tolist(), strict=True):
                image = None if picture is None else torch.from_numpy(geometry(picture).copy())
                yield image, label


def _enough(counts: NDArray[np.int64], n: int, *, balanced: bool) -> bool:
    if not balanced:
        return bool(counts.sum() >= n and (counts > 0).all())
    share, more = divmod(n, len(counts))
    return bool((counts >= share).all() and (counts > share).sum() >= more)


def _choose(
    seen: Sequence[_Pick],
    counts: NDArray[np.int64],
    n: int,
    random: np.random.Generator,
    *,
    balanced: bool,
) -> list[_Pick]:
    """Narrow the rows seen to `n`, block by block in reading order.

    A balanced choice takes rows as early as it can: blocks that were only visited for a rare
    class give that class alone, and most give nothing and are never read.
    """
    labels = np.concatenate([pick.labels for pick in seen] or [np.empty(0, np.int64)])
    if balanced:
        order = np.concatenate(_shuffled_within(seen, random))
        kept = order[_even(labels[order], counts, n)]
    else:
        kept = random.permutation(len(labels))[:n]
    mask = np.zeros(len(labels), dtype=bool)
    mask[kept] = True
    edges = np.cumsum([len(pick.labels) for pick in seen])[:-1]
    return [
        _Pick(pick.block, pick.rows[part], pick.labels[part])
        for pick, part in zip(seen, np.split(mask, edges), strict=False)
        if part.any()
    ]


def _shuffled_within(seen: Sequence[_Pick], random: np.random.Generator) -> list[NDArray[np.int64]]:
    """The places of all rows: block after block, at random within each."""
    starts = np.cumsum([0, *(len(pick.labels) for pick in seen)])
    return [
        start + random.permutation(len(pick.labels))
        for start, pick in zip(starts.tolist(), seen, strict=False)
    ]


def _even(labels: NDArray[np.int64], counts: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The first rows of each class, as many of each as the counts allow, `n` in all."""
    quota = _quotas(counts, n)
    rank = _rank_within_class(labels)
    full = np.flatnonzero(rank < quota[labels])
    odd = np.flatnonzero(rank == quota[labels])  # one more of a class, whichever comes first
    return np.concatenate([full, odd[: n - len(full)]])


def _quotas(counts: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """How many of each class at least: as even as the counts allow, the odd rest left over."""
    quota = np.zeros_like(counts)
    while True:
        open_classes = np.flatnonzero(quota < counts)
        share = (n - quota.sum()) // max(len(open_classes), 1)
        if not share or not len(open_classes):
            return quota
        room = (counts - quota)[open_classes]
        quota[open_classes] += np.minimum(room, share)


def _rank_within_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each position how many earlier ones have the same label."""
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        rank[places] = np.arange(len(places))
    return rank


def _without_twins(evaluation: Part, clean: Part) -> Part:
    """Leave out pictures whose very pixels stand in the clean slice."""
    known = {_digest(image) for image in clean.pictures.images}
    own = torch.tensor([_digest(image) not in known for image in evaluation.pictures.images])
    if own.all():
        return evaluation
    return Part(evaluation.pictures[own], evaluation.split, evaluation.corrupt)


def _digest(image: Tensor) -> bytes:
    return hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()
