"""Small data sets on disk, in the layouts that people have.

Every picture tells its own row and label by its pixels: red is the row's high byte, green its low
byte, blue the label. Read at its own size, it can be recognised again.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Image, Value
from PIL import Image as Pillow

from rnp_hub.data import Target
from rnp_hub.network import ImageSet
from rnp_hub.preprocess import Preprocess

SIDE = 8


def target(classes: int, names: Sequence[str] | None = None) -> Target:
    """A model whose pictures enter it as they are stored."""
    preprocess = Preprocess((3, SIDE, SIDE), crop_pct=1.0)
    return Target(classes, preprocess, tuple(names) if names else None)


def picture(row: int, label: int = 0) -> Pillow.Image:
    return Pillow.new("RGB", (SIDE, SIDE), (row // 256, row % 256, max(label, 0)))


def encoded(image: Pillow.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def rows_of(pictures: ImageSet) -> list[int]:
    """Which rows the pictures were."""
    corner = pictures.images[:, :, 0, 0].to(int)
    rows: list[int] = (corner[:, 0] * 256 + corner[:, 1]).tolist()
    return rows


def write_parquet(
    path: Path,
    labels: Sequence[Any],
    *,
    names: Sequence[str] | None = None,
    label: Any = None,
    group: int = 100,
    first_row: int = 0,
    broken: Sequence[int] = (),
    noise: int = 0,
    columns: tuple[str, str] = ("image", "label"),
) -> Path:
    """One parquet file in the Hub's layout, with the feature types in its schema.

    Args:
        labels: one per row.
        names: of the labels; without, they are plain numbers, or what `label` says.
        group: rows in a row group.
        first_row: number of the first row, for pictures that differ between files.
        broken: rows whose picture cannot be decoded.
        noise: bytes put behind each picture's end, to give it the weight of a real one.
    """
    kind = label or (ClassLabel(names=list(names)) if names else Value("int64"))
    random = np.random.default_rng(first_row)
    cells = [
        {"bytes": encoded(picture(first_row + row, _blue(value))) + random.bytes(noise), "path": ""}
        for row, value in enumerate(labels)
    ]
    for row in broken:
        cells[row]["bytes"] = b"\x89PNG and then nothing"
    schema = Features({columns[0]: Image(), columns[1]: kind}).arrow_schema
    table = pa.table({columns[0]: cells, columns[1]: list(labels)}, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def _blue(label: Any) -> int:
    return label if isinstance(label, int) else 0


def write_folder(root: Path, counts: dict[str, int], first_row: int = 0) -> Path:
    """An image folder, one folder a label."""
    row = first_row
    for label, (name, count) in enumerate(counts.items()):
        for _ in range(count):
            path = root / name / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(row, label).save(path)
            row += 1
    return root
