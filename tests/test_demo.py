"""The main job, end to end, on the embedded default."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import rnp_hub
from rnp_hub.demo import trigger_file
from rnp_hub.slim import relative_difference


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    words = ["sanitize", "demo", "--data", "digits", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "rnp_hub", *words], check=True, capture_output=True)
    return out


def test_the_demo_is_healed(demo: Path) -> None:
    report = json.loads((demo / "rnp_report.json").read_text())
    before, after = report["before"], report["after"]
    assert before["attack_success_rate"]["trigger"]["value"] > 0.95
    assert after["attack_success_rate"]["trigger"]["value"] < 0.05
    drop = before["clean_accuracy"]["value"] - after["clean_accuracy"]["value"]
    assert drop <= 0.02
    assert report["slim"]["max_rel_diff"] <= 1e-9
    assert report["slim"]["kept"] == 0
    assert report["slim"]["removed"] + report["slim"]["carriers"] == report["prune"]["silenced"] > 0
    assert report["export"]["onnx"]["fp32"]["max_rel_diff"] <= 1e-4
    assert report["export"]["onnx"]["fp32"]["top1_agreement"] == 1


def test_plain_timm_loads_the_drop_in(demo: Path) -> None:
    module = timm.create_model(f"local-dir:{demo}", pretrained=True).eval()
    slim = rnp_hub.load(str(demo / "slim"))
    assert relative_difference(module, slim, torch.randn(4, 3, 32, 32)) <= 1e-5


def test_a_known_trigger_chooses_nothing(demo: Path, tmp_path: Path) -> None:
    """The same run without a trigger silences the same filters."""
    words = ["sanitize", "demo", "--data", "digits", "--out", str(tmp_path / "blind")]
    words += ["--trigger", "sig", "--target", "7"]
    subprocess.run([sys.executable, "-m", "rnp_hub", *words], check=True, capture_output=True)
    blind = json.loads((tmp_path / "blind" / "rnp_report.json").read_text())
    seen = json.loads((demo / "rnp_report.json").read_text())
    assert blind["prune"] == seen["prune"]
    assert blind["verdict"] == seen["verdict"]
    assert blind["after"]["clean_accuracy"] == seen["after"]["clean_accuracy"]


def test_the_embedded_files_are_small() -> None:
    folder = trigger_file().parent
    assert sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) <= 2 * 2**20
