"""timm and datasets against the loopback Hub."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.hub.client import REPO_ROOT, Hub

SHARED = Path(os.environ.get("RNP_HUB_SHARED", REPO_ROOT.parent / "shared"))
CIFAR = SHARED / "datasets/uoft-cs/cifar10/plain_text"


def push_model(repo_id: str) -> dict[str, Any]:
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10).eval()
    timm.models.push_to_hf_hub(model, repo_id, safe_serialization=True)
    with torch.no_grad():
        return {"logits": model(torch.ones(1, 3, 64, 64)).tolist()}


def pull_model(repo_id: str, sha: str) -> dict[str, Any]:
    import timm
    import torch

    model = timm.create_model(f"hf-hub:{repo_id}@{sha}", pretrained=True).eval()
    with torch.no_grad():
        return {"logits": model(torch.ones(1, 3, 64, 64)).tolist()}


def test_timm_pushes_and_pulls_by_sha(hub: Hub) -> None:
    pushed = hub.call(push_model, token=hub.token, repo_id="me/timm")
    sha = hub.head("me/timm")
    hub.add_files("me/timm", {"model.safetensors": b"\0 a later commit broke it"})

    pulled = hub.call(pull_model, repo_id="me/timm", sha=sha)

    assert list(hub.files("me/timm", sha)) == [
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert pulled == pushed
    assert len(set(pulled["logits"][0])) == 10


def make_table(path: str, rows: int, groups: int) -> list[int]:
    import os
    from pathlib import Path

    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
    import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]

    table = pa.table({"blob": [os.urandom(4000) for _ in range(rows)], "row": list(range(rows))})
    pq.write_table(table, path, row_group_size=rows // groups)
    return [Path(path).stat().st_size]


def stream(repo_id: str, split: str, column: str) -> list[int]:
    from datasets import load_dataset  # type: ignore[import-untyped, unused-ignore]

    # To the end: a stream that is left half-way now and then crashes the process as it exits.
    rows = load_dataset(repo_id, split=split, streaming=True).select_columns([column])
    return [row[column] for row in rows]


def parquet_reads(exchanges: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the downloads of parquet content."""
    return [
        exchange
        for exchange in exchanges
        if exchange["method"] == "GET" and exchange["path"].endswith(".parquet")
    ]


def test_datasets_streams_ranges(hub: Hub, tmp_path: Path) -> None:
    table = tmp_path / "train.parquet"
    [size] = hub.call(make_table, path=table, rows=400, groups=4)
    hub.create_repo("org/table", repo_type="dataset")
    hub.add_files("org/table", {"data/train.parquet": table}, repo_type="dataset")

    with hub.recording() as exchanges:
        rows = hub.call(stream, repo_id="org/table", split="train", column="row")

    assert rows == list(range(400))
    reads = parquet_reads(exchanges)
    assert {read["status"] for read in reads} == {206}
    ranges = [[int(end) for end in re.findall(r"\d+", read["range"])] for read in reads]
    assert [last - first + 1 for first, last in ranges] == [read["bytes_out"] for read in reads]
    assert ranges[0] == [size - 65_536, size - 1], "the footer first"
    assert ranges[-1][0] == 4, "then the first row group, after the magic bytes"


@pytest.mark.skipif(not CIFAR.is_dir(), reason="the CIFAR-10 parquet files are not on this machine")
def test_datasets_streams_cifar10(hub: Hub) -> None:
    names = ["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"]
    hub.create_repo("uoft-cs/cifar10", repo_type="dataset")
    files: dict[str, bytes | str | Path] = {f"plain_text/{name}": CIFAR / name for name in names}
    hub.add_files("uoft-cs/cifar10", files, repo_type="dataset")

    with hub.recording() as exchanges:
        labels = hub.call(stream, repo_id="uoft-cs/cifar10", split="test", column="label")

    assert Counter(labels) == dict.fromkeys(range(10), 1000)
    reads = parquet_reads(exchanges)
    assert {read["status"] for read in reads} == {206}
    of_train = [read["bytes_out"] for read in reads if "train" in read["path"]]
    assert sum(of_train) < 200_000, "of the other split the footer at most, to learn the columns"
    assert sum(read["bytes_out"] for read in reads) > (CIFAR / names[1]).stat().st_size
