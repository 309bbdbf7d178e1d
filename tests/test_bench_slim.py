"""`rnp-hub bench slim`: a process for each network, limits, one line each, resumable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.models import invoke

KEYS = {
    "model", "silenced", "removed", "carriers", "kept", "max_rel_diff", "rebuilt",
    "onnx_max_rel_diff", "seconds", "error",
}  # fmt: skip


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    file = tmp_path / "networks.txt"
    file.write_text("# family, network\nvit\ttest_vit\t300000\nnone\tno_such_network\n")
    return file


def test_a_row_for_each_network_and_no_work_twice(networks: Path, tmp_path: Path) -> None:
    log = tmp_path / "slim.jsonl"
    words = ["bench", "slim", "--models", networks, "--log", log]
    done = invoke(*words, "--json")
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)
    good, bad = rows
    assert good.keys() >= KEYS
    assert (good["model"], good["error"], good["kept"], good["rebuilt"]) == (
        "test_vit", None, 0, True,
    )  # fmt: skip
    assert good["silenced"] == good["removed"] + good["carriers"] > 100
    assert good["max_rel_diff"] <= 1e-9
    assert good["onnx_max_rel_diff"] <= 1e-4
    dense, slim, scattered = good["parameters"]
    assert slim < scattered < dense
    assert bad["silenced"] is None
    assert "no_such_network" in bad["error"]
    again = invoke(*words)
    assert again.exit_code == 0
    assert again.stderr == "", "what stands in the log is not run again"
    assert "| test_vit |" in again.stdout
    assert "- exact: 1 of 2 networks, at most " in again.stdout
    assert "- rebuilt from disk to the bit: 1 of 2; ONNX equals torch: 1 of 2" in again.stdout
    assert len(log.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("option", "beyond"), [("--timeout", "more than 1 s"), ("--memory", "more than 1 MiB")]
)
def test_a_network_beyond_a_limit(option: str, beyond: str, networks: Path, tmp_path: Path) -> None:
    networks.write_text("resnet\tresnet18\n")
    log = tmp_path / "slim.jsonl"
    done = invoke("bench", "slim", "--models", networks, "--log", log, option, "1", "--json")
    (row,) = json.loads(done.stdout)
    assert (row["model"], row["error"], row["silenced"]) == ("resnet18", beyond, None)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [(None, "cannot be read (No such file"), ("resnet18\n", "has the line 'resnet18' without")],
)
def test_a_list_that_is_none(text: str | None, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "list"
    if text is not None:
        file.write_text(text)
    done = invoke("bench", "slim", "--models", file, "--log", tmp_path / "log")
    assert (done.exit_code, done.stdout) == (2, "")
    assert sentence in done.stderr.replace("[Errno 2] ", "")
    assert not (tmp_path / "log").exists()
