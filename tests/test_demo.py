"""The main job, end to end, on the embedded default."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

import rnp_hub
from rnp_hub.demo import TARGET, trigger_file
from rnp_hub.slim import relative_difference
from tests.models import invoke


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


def test_the_verdict_and_what_it_rests_on(demo: Path) -> None:
    report = json.loads((demo / "rnp_report.json").read_text())
    verdict, evidence = report["verdict"], report["verdict"]["evidence"]
    assert (verdict["backdoored"], verdict["label"], verdict["residual"]) == (True, TARGET, False)
    # 0.5 convicts; clean twins of the demo come to less than 0.2.
    assert verdict["score"] > 0.7
    assert verdict["score"] == pytest.approx(evidence["gap"] * evidence["drop"], abs=1e-3)
    assert evidence["kind"] == "patch"
    assert evidence["filters_that_kill"] <= 12
    margins = evidence["margins"]["patch"]
    assert max(margins, key=margins.__getitem__) == str(TARGET)
    for trigger in evidence["triggers"]:
        kind, content = trigger["picture"].split(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            assert picture.size == (32, 32)
    before, after = report["before"]["surrogate_asr"], report["after"]["surrogate_asr"]
    assert set(before) == {str(digit) for digit in range(10)}
    assert set(after) == {str(TARGET)}
    assert before[str(TARGET)]["patch"]["value"] > 0.9
    assert {"patch", "patch anew"} <= set(after[str(TARGET)])
    assert after[str(TARGET)]["patch"]["value"] <= 0.1


def test_the_card_shows_the_triggers(demo: Path) -> None:
    card = (demo / "README.md").read_text()
    assert "> **Verdict: backdoored**, towards the label 0 (score " in card
    assert "Nothing of it was found after pruning." in card
    assert card.count("| Surrogate ASR") <= 10
    assert "pictures/triggers.png" in card
    with Image.open(demo / "pictures" / "triggers.png") as picture:
        assert picture.width == 1280


def test_plain_timm_loads_the_drop_in(demo: Path) -> None:
    module = timm.create_model(f"local-dir:{demo}", pretrained=True).eval()
    slim = rnp_hub.load(str(demo / "slim"))
    assert relative_difference(module, slim, torch.randn(4, 3, 32, 32)) <= 1e-5


@pytest.mark.usefixtures("patches_only")
def test_a_known_trigger_chooses_nothing(tmp_path: Path) -> None:
    """Whichever trigger is measured, the same filters are silenced; with patches alone."""

    def report(name: str, *trigger: str) -> dict[str, Any]:
        few = ("--n", "100", "--eval-n", "200", "--no-latency")
        words = ("sanitize", "demo", "--data", "digits", *few, "--out", tmp_path / name)
        done = invoke(*words, *trigger)
        assert done.exit_code == 0, done.stderr
        found: dict[str, Any] = json.loads((tmp_path / name / "rnp_report.json").read_text())
        return found

    seen, blind = report("seen"), report("blind", "--trigger", "sig", "--target", "7")
    assert seen["before"]["attack_success_rate"]["trigger"]["value"] > 0.95
    assert blind["before"]["attack_success_rate"]["sig"]["value"] < 0.5
    assert blind["prune"] == seen["prune"]
    assert seen["prune"]["silenced"] > 0
    assert blind["verdict"] == seen["verdict"]
    assert blind["after"]["clean_accuracy"] == seen["after"]["clean_accuracy"]


def test_the_embedded_files_are_small() -> None:
    folder = trigger_file().parent
    assert sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) <= 2 * 2**20
