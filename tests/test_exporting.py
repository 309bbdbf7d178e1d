"""`rnp-hub export`: another file in a folder, its report and its card; or anywhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest

from rnp_hub.hub_cards import render
from rnp_hub.onnx_io import Runner
from rnp_hub.report import RunReport
from tests.models import Run, invoke, listing


@pytest.fixture
def folder(plain_run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain_run.folder, tmp_path / "out"))


def test_a_further_file_stands_in_the_report_and_on_the_card(folder: Path) -> None:
    before = RunReport.read(folder)
    done = invoke("export", folder, "--int8", "--min-agreement", "0.9", "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    file = folder / "onnx/model_int8.onnx"
    assert said["file"] == str(file)
    report = RunReport.read(folder)
    assert list(report.export.onnx) == ["fp32", "int8"]
    assert report.export.onnx["int8"].sha256 == said["sha256"]
    assert report.export.bytes["onnx/model_int8.onnx"] == file.stat().st_size
    assert (folder / "README.md").read_text() == render(report)
    assert report.digest() == before.digest(), "what was measured is as it was"
    carried = {each.key: each.value for each in onnx.load(file).metadata_props}
    assert carried["rnp_hub.report_sha256"] == report.digest()
    named = Path(str(report.source.path)).name
    assert carried["rnp_hub.source"] == f"{named}@sha256:{report.source.weights_sha256}"
    again = invoke("export", folder, "--int8")
    assert (again.exit_code, again.stdout) == (2, "")
    assert "model_int8.onnx exists" in again.stderr


def test_a_card_that_a_person_edited_is_left_alone(folder: Path) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nSee our blog.\n")
    edited = card.read_bytes()
    assert invoke("export", folder, "--fp16", "--min-agreement", "0.9").exit_code == 0
    assert card.read_bytes() == edited
    assert "fp16" in RunReport.read(folder).export.onnx


def test_a_file_elsewhere_touches_no_report(folder: Path, tmp_path: Path) -> None:
    before = listing(folder)
    out = tmp_path / "phone.onnx"
    done = invoke("export", folder, "--with-preprocessing", "--out", out)
    assert done.exit_code == 0, done.stderr
    assert listing(folder) == before
    assert Runner(out).takes_raw
    assert Runner(out).input_shape == ["batch", "height", "width", 3]


def test_a_model_without_a_report(plain_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(plain_model, tmp_path / "model"))
    assert invoke("export", model).exit_code == 0
    assert [each.name for each in (model / "onnx").iterdir()] == ["model.onnx"]
    refused = invoke("export", model, "--int8")
    assert refused.exit_code == 2
    assert refused.stderr == ("Error: --int8 takes its ranges from clean pictures; give --data\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--fp16", "--int8"], "--fp16 and --int8 are two different files; give one of them"),
        ([], "holds its onnx/model.onnx already; give another --out, or one of --fp16,"),
        (["--fp16", "--min-agreement", "2"], "--min-agreement 2.0 must lie in [0, 1]"),
    ],
)
def test_words_that_cannot_be_followed(words: list[str], sentence: str, folder: Path) -> None:
    before = listing(folder)
    done = invoke("export", folder, *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert listing(folder) == before
