"""The other benches: what they ask, how they count, and the documents they write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from rnp_hub.bench import depth, latency
from rnp_hub.bench import requests as asking
from rnp_hub.bench.requests import Rates, RequestRow
from rnp_hub.bench.tables import put_section
from rnp_hub.errors import OutputError
from tests.models import invoke

# --- documents ------------------------------------------------------------------------------------


def test_a_section_is_written_between_its_marks(tmp_path: Path) -> None:
    file = tmp_path / "slimming.md"
    file.write_text("# Slimming\n\n<!-- one: begin -->\nold\n<!-- one: end -->\n\nWords.\n")
    put_section(file, "one", "| a |\n| b |\n")
    put_section(file, "two", "new\n")
    expected = (
        "# Slimming\n\n<!-- one: begin -->\n\n| a |\n| b |\n\n<!-- one: end -->\n\nWords.\n\n"
        "<!-- two: begin -->\n\nnew\n\n<!-- two: end -->\n"
    )
    assert file.read_text() == expected
    put_section(file, "two", "new\n")
    assert file.read_text() == expected


def test_a_document_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written .*; give a file$"):
        put_section(tmp_path, "one", "text")


# --- requests -------------------------------------------------------------------------------------


def test_requests_are_spread_over_the_network_without_its_classifier() -> None:
    module = timm.create_model("test_resnet", num_classes=10)
    asked = dict(asking.requests(module))
    assert len(asked) == 7
    assert next(iter(asked)) == "conv1.0"
    assert "fc" not in asked
    width = len(module.get_submodule("conv1.0").weight)
    assert asked["conv1.0"] == (0, width // 3, 2 * width // 3)


def test_masked_filters_emit_nothing() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with torch.no_grad():
        out = asking.masked(module, {"0": [1], "1": [2]}).eval()(torch.randn(1, 3, 2, 2))
    assert not out[0, 2].any()
    assert out[0, [0, 1, 3]].any()


def test_how_answers_are_counted() -> None:
    exact, coupled, wrong = (1e-15, 1e-15), (0.1, 1e-12), (0.1, 1e-3)
    rates = Rates()
    for answer in (exact, coupled, wrong):
        rates = rates.with_answer(*answer)
    assert rates == Rates(runs=3, layer=1, removed=2, silent=1)


def test_our_planner_removes_what_is_asked(tmp_path: Path) -> None:
    models, log, document = tmp_path / "models.txt", tmp_path / "log", tmp_path / "doc.md"
    models.write_text("resnet\ttest_resnet\n")
    words = ["bench", "requests", "--models", models, "--log", log, "--markdown", document]
    done = invoke(*words, "--json")
    assert done.exit_code == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["requests"], row["error"], row["ours_error"]) == (7, None, None)
    assert row["ours"] == {"runs": 7, "layer": 7, "removed": 7, "silent": 0}
    assert row["worst"] <= 1e-9
    assert "| ours | 7 | 7 (100%) | 7 (100%) | 7 (100%) | 0 (0%) |" in document.read_text()
    again = invoke(*words)
    assert again.stderr == "", "what stands in the log is not run again"


def test_side_by_side() -> None:
    rows = [
        RequestRow("one", 7, Rates(7, 7, 7, 0), Rates(5, 2, 4, 1), worst=1e-15),
        RequestRow("two", error="more than 8192 MiB"),
    ]
    text = asking.document(rows)
    assert "| ours | 7 | 7 (100%) | 7 (100%) | 7 (100%) | 0 (0%) |" in text
    assert "| Torch-Pruning | 7 | 5 (71%) | 2 (29%) | 4 (57%) | 1 (14%) |" in text
    assert "| two | 0 |" in text
    assert "more than 8192 MiB" in text
    alone = [RequestRow("one", 7, Rates(7, 7, 7, 0))]
    assert "Torch-Pruning is not installed" in asking.document(alone)


# --- depth and latency ----------------------------------------------------------------------------


def test_what_slimming_takes(capsys: pytest.CaptureFixture[str]) -> None:
    depth.work("test_resnet")
    row = depth.DepthRow(**json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert row.error is None
    assert row.max_rel_diff is not None
    assert row.max_rel_diff <= 1e-9
    assert row.layers is not None
    assert row.layers > 30
    assert row.silenced == 260
    assert depth.line_of(row).startswith(f"| test_resnet | {row.layers} | 260 |")


@pytest.mark.parametrize("work", [depth.work, lambda name: latency.work(name, 0.1)])
def test_a_network_that_timm_does_not_know(
    work: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    work("no_such_network")
    row = json.loads(capsys.readouterr().out)
    assert (
        row["error"] == f"ConfigError: timm {timm.__version__} knows no network 'no_such_network'"
    )


def test_a_row_of_milliseconds() -> None:
    times = {"1": (2.0, 3.0, 1.5), "8": (16.0, 24.0, 12.0)}
    row = latency.LatencyRow("net", 0.25, 1000, (900, 700), times)
    expected = "| net | 25% | 1,000 | 900, 700 | 2.0, 3.0, 1.5 | 16.0, 24.0, 12.0 |  |"
    assert latency.line_of(row) == expected
