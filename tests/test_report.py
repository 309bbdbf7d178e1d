"""The report other programs read: every key, strictly, and back again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rnp_hub.errors import RnpHubError
from rnp_hub.report import RunReport
from tests.models import Run

KEYS = {
    "source": {"repo_id", "path", "sha", "architecture", "licence"},
    "data": {"id", "sha", "split", "n", "seed"},
    "eval": {"id", "split", "n"},
    "before": {"clean_accuracy", "per_class_accuracy", "attack_success_rate", "surrogate_asr"},
    "after": {"clean_accuracy", "per_class_accuracy", "attack_success_rate", "surrogate_asr"},
    "verdict": {"backdoored", "label", "score", "residual", "evidence"},
    "prune": {"rule", "threshold", "silenced", "filters", "per_layer"},
    "slim": {
        "parameters", "macs", "silenced", "removed", "carriers", "kept", "by", "max_rel_diff",
    },
    "export": {"safetensors", "onnx"},
    "environment": {"rnp_hub", "torch", "timm", "python", "device"},
}  # fmt: skip
ONNX = {"sha256", "opset", "max_rel_diff", "top1_agreement", "latency_ms", "exporter"}


def test_every_key_of_the_design_is_there(plain_run: Run) -> None:
    report = plain_run.report
    assert next(iter(report)) == "schema"
    assert report["schema"] == "rnp-hub/report/1"
    for section, keys in KEYS.items():
        assert keys <= set(report[section]), section
    assert set(report["slim"]["by"]) == {"delete", "fold", "carry", "scatter"}
    assert set(report["export"]["onnx"]["fp32"]) == ONNX
    assert set(report["export"]["safetensors"]) == {"sha256", "max_rel_diff"}
    assert set(report["timing_s"]) >= {"unlearn", "recover", "prune", "slim", "export"}
    assert report["memory_mib"].keys() == report["timing_s"].keys()
    assert 100 < max(report["memory_mib"].values()) <= report["peak_memory_mib"]


def test_what_was_measured(plain_run: Run, plain_model: Path) -> None:
    report = plain_run.report
    assert report["source"]["path"] == str(plain_model)
    assert report["source"]["repo_id"] is report["source"]["sha"] is None
    assert report["data"] | {"id": "digits", "n": 200, "seed": 3} == report["data"]
    assert report["eval"]["split"] == "test"
    for when in ("before", "after"):
        accuracy = report[when]["clean_accuracy"]
        assert accuracy["n"] == report["eval"]["n"] <= 200
        assert accuracy["low"] < accuracy["value"] < accuracy["high"] or accuracy["value"] == 1
        assert len(report[when]["per_class_accuracy"]) == 10
        rate = report[when]["attack_success_rate"]["badnets"]
        assert 0 < rate["n"] < accuracy["n"]  # pictures of the target are left out
    slim = report["slim"]
    assert slim["silenced"] == report["prune"]["silenced"]
    assert slim["removed"] == sum(slim["by"].values())
    assert slim["silenced"] == slim["removed"] + slim["carriers"] + slim["kept"]
    assert slim["max_rel_diff"] <= 1e-9
    assert slim["parameters"][1] < slim["parameters"][0]


def test_what_the_networks_take(plain_run: Run) -> None:
    report, folder = plain_run.report, plain_run.folder
    costs, slim = report["costs"], report["slim"]
    assert costs["threads"] == 2
    for place, (when, weights) in enumerate((("before", "."), ("after", "slim"))):
        assert set(costs[when]) == {"parameters", "macs", "bytes", "latency_ms"}
        assert costs[when]["parameters"] == slim["parameters"][place]
        assert costs[when]["macs"] == slim["macs"][place] > 0
        size = (folder / weights / "model.safetensors").stat().st_size
        assert costs[when]["bytes"]["safetensors"] == size
        assert costs[when]["bytes"]["onnx"] > 1000
        for runtime in ("onnxruntime", "torch"):
            one, many = (costs[when]["latency_ms"][runtime][batch] for batch in ("1", "32"))
            assert 0 < one < many
    assert costs["after"]["bytes"]["onnx"] == (folder / "onnx" / "model.onnx").stat().st_size
    assert report["config"]["optimize"] == "size"


def test_how_it_was_pruned(plain_run: Run) -> None:
    report = plain_run.report
    prune, histogram = report["prune"], report["prune"]["mask_histogram"]
    assert len(histogram["silenced"]) == len(histogram["left"]) == 20
    assert sum(histogram["silenced"]) == prune["silenced"] > 0
    assert sum(histogram["silenced"]) + sum(histogram["left"]) == prune["filters"]

    tried = prune["tried"]
    assert [each["accuracy"] for each in tried] == prune["slice_accuracy"][1:]
    masks = [each["mask"] for each in tried]
    assert masks == sorted(masks)
    silenced = {(each["site"], each["index"]) for each in tried if each["silenced"]}
    layers = prune["per_layer"].items()
    assert silenced == {(site, index) for site, indices in layers for index in indices}
    assert prune["threshold"] == pytest.approx(
        max(m["mask"] for m in tried if m["silenced"]), abs=1e-6
    )


def test_what_the_figures_were_measured_on(plain_run: Run) -> None:
    report, folder = plain_run.report, plain_run.folder
    assert len(report["eval"]["per_class_n"]) == 10
    assert sum(report["eval"]["per_class_n"]) == report["eval"]["n"]
    assert report["slim"]["input_size"] == [3, 32, 32]
    assert report["export"]["bytes"] == {
        name: (folder / name).stat().st_size
        for name in ("model.safetensors", "onnx/model.onnx", "slim/model.safetensors")
    }


def test_there_and_back(plain_run: Run) -> None:
    text = (plain_run.folder / "rnp_report.json").read_text()
    report = RunReport.from_json(text)
    assert report.to_json() == text
    assert RunReport.from_json(report.to_json()) == report
    assert RunReport.read(plain_run.folder) == report


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda r: r.update(colour="red"), "colour: Unexpected"),
        (lambda r: r["source"].update(colour="red"), "source.colour: Unexpected"),
        (
            lambda r: r["before"]["clean_accuracy"].update(colour=1),
            "before.clean_accuracy.colour: Unexpected",
        ),
        (lambda r: r["data"].pop("seed"), "data.seed: "),
        (lambda r: r["data"].update(n="many"), "data.n: Input should be a valid integer"),
        (lambda r: r["data"].update(n="200"), "data.n: Input should be a valid integer"),
        (lambda r: r["slim"].update(macs=[1]), "slim.macs.1: Field required"),
        (lambda r: r["export"]["onnx"]["fp32"].update(opset=None), "export.onnx.fp32.opset: "),
        (lambda r: r.update(schema="rnp-hub/report/2"), "schema: Input should be"),
    ],
)
def test_a_wrong_key_is_named(
    change: Callable[[dict[str, Any]], Any], where: str, plain_run: Run
) -> None:
    record = plain_run.report
    change(record)
    with pytest.raises(RnpHubError) as caught:
        RunReport.from_json(json.dumps(record))
    assert str(caught.value).startswith(f"this is no rnp-hub/report/1: {where}")


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_what_is_no_report_at_all(text: str) -> None:
    with pytest.raises(RnpHubError, match="this is no rnp-hub/report/1: the file: "):
        RunReport.from_json(text)


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(RnpHubError, match=r"holds no rnp_report\.json; it was not made by"):
        RunReport.read(tmp_path)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(RnpHubError, match=r"^there is no folder at .*nowhere; give one that"):
        RunReport.read(tmp_path / "nowhere")
