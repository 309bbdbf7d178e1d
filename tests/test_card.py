"""The card: what it says stands in the report, and nothing else does."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from rnp_hub.hub_cards import render
from rnp_hub.report import (
    DataRecord,
    EvalRecord,
    ExportRecord,
    FileRecord,
    OnnxRecord,
    PruneRecord,
    RateRecord,
    RunReport,
    ScoresRecord,
    SlimRecord,
    SourceRecord,
    VerdictRecord,
)
from tests.models import Run

GOLDEN = Path(__file__).parent / "golden"


def _scores(accuracy: float, attack: float) -> ScoresRecord:
    return ScoresRecord(
        RateRecord(accuracy, 1000, accuracy - 0.02, accuracy + 0.015),
        (accuracy, None, 0.5),
        {"blend:alpha=0.1": RateRecord(attack, 900, attack - 0.01, attack + 0.005)},
    )


WITH_TRIGGER = RunReport(
    source=SourceRecord(
        "org/name", None, "a" * 40, "resnet18", "mit", None, ("cat", "dog | wolf", "ship")
    ),
    data=DataRecord("owner/animals", "b" * 40, "train", 500, 7),
    eval=EvalRecord("owner/animals", "test", 1000),
    before=_scores(0.95, 0.98),
    after=_scores(0.94, 0.02),
    verdict=VerdictRecord(None, None, None, None, {}),
    prune=PruneRecord("accuracy", 0.125, 7, 480, {"layer4.1.bn2": (1, 2, 3, 4, 5, 6, 7)}),
    slim=SlimRecord(
        (11_000_000, 10_500_000),
        (555_000_000, 500_000_000),
        silenced=7,
        removed=5,
        carriers=1,
        kept=1,
        by={"delete": 1, "fold": 0, "carry": 2, "scatter": 2},
        max_rel_diff=2.5e-15,
    ),
    export=ExportRecord(
        FileRecord("c" * 64, 0.0),
        FileRecord("d" * 64, 1e-7),
        {"fp32": OnnxRecord("e" * 64, 18, 3e-7, 1.0, 1.5)},
    ),
    config={
        "recipe": "default",
        "n": 500,
        "eval_n": 1000,
        "max_ca_drop": 0.02,
        "threshold": None,
        "poisoned": [],
        "triggers": ["blend:alpha=0.1"],
        "target": "dog | wolf",
        "precision": "auto",
    },
    timing_s={"unlearn": 1.0},
    peak_memory_mib=900.0,
    environment={"rnp_hub": "0.1.0", "torch": "2.13.0"},
)
WITHOUT_TRIGGER = replace(
    WITH_TRIGGER,
    source=SourceRecord(None, "my models/net", None, "resnet18", None, "cifar"),
    data=replace(WITH_TRIGGER.data, id="pictures", sha=None),
    eval=replace(WITH_TRIGGER.eval, id="pictures"),
    before=replace(WITH_TRIGGER.before, attack_success_rate={}),
    after=replace(WITH_TRIGGER.after, attack_success_rate={}),
    config=WITH_TRIGGER.config | {"triggers": [], "target": None, "threshold": 0.5},
)


@pytest.mark.parametrize(
    ("report", "name"), [(WITH_TRIGGER, "card.md"), (WITHOUT_TRIGGER, "card_without_trigger.md")]
)
def test_golden(report: RunReport, name: str) -> None:
    assert render(report) == (GOLDEN / name).read_text(encoding="utf-8")


def test_metadata_of_a_hub_model() -> None:
    data = ModelCard(render(WITH_TRIGGER)).data
    assert (data.license, data.base_model, data.datasets) == ("mit", "org/name", ["owner/animals"])
    assert data.pipeline_tag == "image-classification"
    assert data.model_name == "name-rnp"
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    assert found == {
        "clean accuracy (after)": 0.94,
        "clean accuracy (before)": 0.95,
        "ASR of blend:alpha=0.1 (after)": 0.02,
        "ASR of blend:alpha=0.1 (before)": 0.98,
    }
    assert {result.dataset_revision for result in data.eval_results} == {"b" * 40}


def test_metadata_of_a_local_model() -> None:
    data = ModelCard(render(WITHOUT_TRIGGER)).data.to_dict()
    assert not {"license", "base_model", "datasets"} & set(data)


def test_command_makes_it_again() -> None:
    assert (
        f"rnp-hub sanitize org/name@{'a' * 40} --data owner/animals@{'b' * 40} --n 500 "
        "--eval-n 1000 --seed 7 --recipe default --max-ca-drop 0.02 --precision auto "
        "--trigger blend:alpha=0.1 --target 'dog | wolf'\n"
    ) in render(WITH_TRIGGER)
    assert "rnp-hub sanitize 'my models/net' --data pictures" in render(WITHOUT_TRIGGER)


def test_a_card_without_a_trigger_says_so() -> None:
    sentence = "**No attack success rate was measured**, because no trigger was known."
    assert sentence in render(WITHOUT_TRIGGER)
    assert sentence not in render(WITH_TRIGGER)
    assert "Attack success rate" not in render(WITHOUT_TRIGGER)


@pytest.mark.parametrize("run", ["plain_run", "cifar_run"])
def test_numbers_on_the_card_are_those_of_the_report(
    run: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(run).folder
    report, card = RunReport.read(folder), (folder / "README.md").read_text()
    assert card == render(report)
    rows = re.findall(r"^\| ([A-Z].*?) \| ([\d.]+) %.*? \| ([\d.]+) %.*? \| (\d+) \|$", card, re.M)
    old, new = report.before, report.after
    expected = [("Clean accuracy", old.clean_accuracy, new.clean_accuracy)]
    expected += [
        (f"Attack success rate, trigger `{name}`", rate, new.attack_success_rate[name])
        for name, rate in old.attack_success_rate.items()
    ]
    assert rows == [
        (name, f"{100 * before.value:.2f}", f"{100 * after.value:.2f}", str(after.n))
        for name, before, after in expected
    ]


def test_only_a_plain_stem_is_promised_to_timm(plain_run: Run, cifar_run: Run) -> None:
    plain, cifar = ((run.folder / "README.md").read_text() for run in (plain_run, cifar_run))
    assert 'timm.create_model("hf-hub:REPO", pretrained=True)' in plain
    assert 'timm.create_model("hf-hub:REPO"' not in cifar
    assert "`timm.create_model` cannot load this model; `rnp_hub.load`" in cifar
