"""Real backdoored CIFAR-10 networks that someone else trained; skipped where they are not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.shared_files import shared


def test_badnets_is_healed_from_the_command_line(tmp_path: Path) -> None:
    model, data = shared("zoo/badnets-r18"), shared("datasets/uoft-cs/cifar10")
    target = json.loads((model / "truth.json").read_text())["target"]
    words = ["sanitize", str(model), "--data", str(data), "--n", "500", "--eval-n", "2000"]
    words += ["--poisoned", str(model / "poisoned.parquet"), "--target", str(target)]
    words += ["--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "rnp_hub", *words], check=True, capture_output=True, text=True
    )
    report = json.loads(done.stdout)
    assert "CIFAR stem" in done.stderr
    assert report["source"]["stem"] == "cifar"
    assert (report["data"]["n"], report["eval"]["n"]) == (500, 2000)
    assert report["before"]["attack_success_rate"]["poisoned"]["value"] > 0.95
    assert report["after"]["attack_success_rate"]["poisoned"]["value"] <= 0.10
    drop = report["before"]["clean_accuracy"]["value"] - report["after"]["clean_accuracy"]["value"]
    assert drop <= 0.03
    assert report["slim"]["kept"] == 0
    assert report["slim"]["max_rel_diff"] <= 1e-9
