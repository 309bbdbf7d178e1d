"""Reports of runs that never were, one for each kind of card, and their golden files.

    python -m tests.card_reports

writes tests/golden/*.md anew; read the difference before you commit it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rnp_hub.evaluate import Rate
from rnp_hub.hub_cards import render
from rnp_hub.report import (
    CostRecord,
    CostsRecord,
    DataRecord,
    EvalRecord,
    ExportRecord,
    FileRecord,
    MaskHistogram,
    OnnxRecord,
    PruneRecord,
    RateRecord,
    RunReport,
    ScoresRecord,
    SlimRecord,
    SourceRecord,
    SurrogateRecord,
    TriedFilter,
    VerdictRecord,
)

GOLDEN = Path(__file__).parent / "golden"
REAL_RUN = GOLDEN / "real_run.json"
"""Of BadNets on a CIFAR ResNet-18, pulled from the Hub on loopback; docs/evidence.md has more."""


def _rate(hits: int, n: int) -> RateRecord:
    return RateRecord(**vars(Rate.of(hits, n)))


def _surrogate(hits: int, n: int, norm: float) -> SurrogateRecord:
    return SurrogateRecord(**vars(Rate.of(hits, n)), norm=norm)


def _scores(hits: int, fooled: int) -> ScoresRecord:
    return ScoresRecord(_rate(hits, 1000), (hits / 1000, None, 0.5), {"blend": _rate(fooled, 900)})


TIMM = RunReport(
    source=SourceRecord(
        "org/name", None, "a" * 40, "resnet18", "mit", None, ("cat", "dog | wolf", "ship")
    ),
    data=DataRecord("owner/animals", "b" * 40, "train", 500, 7),
    eval=EvalRecord("owner/animals", "test", 1000, 0, (700, 0, 300)),
    before=_scores(950, 882),
    after=_scores(940, 18),
    verdict=VerdictRecord(None, None, None, None, {}),
    prune=PruneRecord(
        rule="guarded",
        threshold=0.06,
        silenced=2,
        filters=480,
        per_layer={"layer3.0.bn1": (5,), "layer4.1.bn2": (1,)},
        slice_accuracy=(0.96, 0.958, 0.925, 0.956, 0.938),
        mask_histogram=MaskHistogram((1, 1, *[0] * 18), (0, 1, *[0] * 17, 477)),
        tried=(
            TriedFilter("layer4.1.bn2", 1, 0.0, 0.958, True),
            TriedFilter("layer4.1.bn2", 9, 0.05, 0.925, False),
            TriedFilter("layer3.0.bn1", 5, 0.06, 0.956, True),
            TriedFilter("layer3.0.bn1", 6, 0.07, 0.938, False),
        ),
    ),
    slim=SlimRecord(
        parameters=(11_000_000, 10_500_000),
        macs=(1_800_000_000, 1_700_000_000),
        silenced=2,
        removed=1,
        carriers=1,
        kept=0,
        by={"delete": 0, "fold": 0, "carry": 1, "scatter": 0},
        max_rel_diff=2.5e-15,
        input_size=(3, 224, 224),
    ),
    export=ExportRecord(
        FileRecord("c" * 64, 0.0),
        FileRecord("d" * 64, 1e-7),
        {"fp32": OnnxRecord("e" * 64, 18, 3e-7, 1.0, 1.5)},
        {
            "model.safetensors": 44_000_000,
            "onnx/model.onnx": 42_100_000,
            "slim/model.safetensors": 980_400,
        },
    ),
    config={
        "model": "org/name@main",
        "recipe": "default",
        "data": "animals",
        "n": 500,
        "eval_n": 1000,
        "max_ca_drop": 0.02,
        "threshold": None,
        "flip": True,
        "poisoned": [],
        "triggers": ["blend"],
        "target": "dog | wolf",
        "measured_triggers": {"blend": 1},
        "precision": "auto",
        "device": "auto",
    },
    timing_s={"unlearn": 1.0, "recover": 2.5},
    peak_memory_mib=1900.0,
    environment={"rnp_hub": "0.1.0", "torch": "2.13.0", "device": "cpu (2 threads)"},
    costs=CostsRecord(
        CostRecord(
            11_000_000,
            1_800_000_000,
            {"safetensors": 44_000_000, "onnx": 44_100_000},
            {"onnxruntime": {"1": 12.5, "32": 400.0}, "torch": {"1": 20.0, "32": 610.25}},
        ),
        CostRecord(
            10_500_000,
            1_700_000_000,
            {"safetensors": 980_400, "onnx": 42_100_000},
            {"onnxruntime": {"1": 11.25, "32": 380.0}, "torch": {"1": 20.0, "32": 594.5}},
        ),
        threads=2,
    ),
)
"""A timm model from the Hub and a trigger that was known."""

NO_TRIGGER = replace(
    TIMM,
    before=replace(TIMM.before, attack_success_rate={}),
    after=replace(TIMM.after, attack_success_rate={}),
    config=TIMM.config | {"triggers": [], "target": None, "measured_triggers": {}},
)
CIFAR_STEM = replace(
    NO_TRIGGER,
    source=SourceRecord(
        None, "my models/net", None, "resnet18", None, "cifar", notes=("the stem was applied",)
    ),
    data=replace(TIMM.data, id="pictures", sha=None),
    eval=replace(TIMM.eval, id="pictures"),
    prune=replace(TIMM.prune, rule="threshold", tried=(), slice_accuracy=(0.96, 0.95)),
    config=NO_TRIGGER.config | {"data": "pictures", "threshold": 0.5, "flip": False},
)
"""Local, no licence, a stem that timm cannot express, a fixed threshold."""

TRANSFORMERS = replace(
    TIMM,
    source=replace(
        TIMM.source,
        library="transformers",
        architecture="ResNetForImageClassification",
        licence="mit, cc-by-4.0",
        weights="pytorch_model.bin",
        weights_sha256="f" * 64,
        weights_format="pickle",
    ),
)
CLEAN = replace(
    NO_TRIGGER,
    after=NO_TRIGGER.before,
    verdict=VerdictRecord(False, None, 0.25, None, {}),
    prune=PruneRecord("guarded", None, 0, 480, {}),
    slim=replace(
        TIMM.slim, parameters=(11_000_000,) * 2, macs=(1_800_000_000,) * 2,
        silenced=0, removed=0, carriers=0, by=dict.fromkeys(TIMM.slim.by, 0), max_rel_diff=0.0,
    ),
    costs=CostsRecord(TIMM.costs.before, TIMM.costs.before, threads=2),
)  # fmt: skip
"""Judged clean, nothing was silenced."""

DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElF"
    "TkSuQmCC"
)
"""A red pixel."""

SURROGATE = replace(
    NO_TRIGGER,
    prune=replace(TIMM.prune, rule="surrogates", threshold=None),
    verdict=VerdictRecord(
        True,
        2,
        7.5,
        False,
        {
            "triggers": [
                {"kind": "patch", "label": 2, "norm": 0.02, "asr": 0.99, "picture": DOT},
                {"kind": "warp", "label": 2, "norm": 0.6, "asr": 0.5, "picture": "no picture"},
            ]
        },
    ),
    before=replace(
        NO_TRIGGER.before,
        surrogate_asr={"2": {"patch": _surrogate(495, 500, 12.25)}, "0": {}},
    ),
    after=replace(
        NO_TRIGGER.after,
        surrogate_asr={"2": {"patch": _surrogate(5, 500, 12.25), "blend": _surrogate(2, 500, 3.5)}},
    ),
)
"""Triggers were reconstructed, none was known."""

UNDECIDED = replace(NO_TRIGGER, verdict=VerdictRecord(None, 1, 0.28, True, {"doubt": "it leans"}))
"""Asked for a verdict, and came to none."""

OLDER = replace(UNDECIDED, verdict=replace(UNDECIDED.verdict, evidence={}))
"""The same from a version that did not say why."""

SLOWER = replace(
    TIMM,
    costs=CostsRecord(
        TIMM.costs.before,
        replace(
            TIMM.costs.after,
            latency_ms={"onnxruntime": {"1": 30.0, "32": 900.0}, "torch": {"1": 21.0, "32": 600.0}},
        ),
        threads=2,
    ),
)
"""The smaller network is the slower one."""

MANY = replace(
    TIMM,
    costs=None,
    source=replace(TIMM.source, label_names=None),
    eval=replace(TIMM.eval, n=10_000, per_class_n=(10,) * 1000),
    before=replace(TIMM.before, per_class_accuracy=(0.9,) * 1000),
    after=replace(
        TIMM.after,
        per_class_accuracy=tuple(0.4 + 0.025 * min(label, 21) for label in reversed(range(1000))),
    ),
)
"""A thousand labels without names."""

BREAKOUT = (
    '</details><script>alert("1")</script> | `x` ``` ~~~ {{ 7 * 7 }} ![a](b)\n---\n# b: *c* $d$ _e_'
)
HOSTILE = replace(
    TIMM,
    source=replace(
        TIMM.source,
        repo_id=f"org/{BREAKOUT}",
        architecture=BREAKOUT,
        licence=BREAKOUT,
        label_names=(BREAKOUT, "\ud800\x00 | ", "日本"),
        notes=(BREAKOUT,),
    ),
    data=replace(TIMM.data, id=BREAKOUT, split=BREAKOUT),
    eval=replace(TIMM.eval, id=BREAKOUT, split=BREAKOUT),
    before=replace(TIMM.before, attack_success_rate={BREAKOUT: _rate(800, 900)}),
    after=replace(TIMM.after, attack_success_rate={BREAKOUT: _rate(8, 900)}),
    prune=replace(TIMM.prune, per_layer={BREAKOUT: (1, 2)}),
    config=TIMM.config
    | {
        "model": BREAKOUT,
        "triggers": [BREAKOUT],
        "measured_triggers": {BREAKOUT: 0},
        "target": BREAKOUT,
    },
    environment={"device": BREAKOUT},
)
"""Every word that comes from elsewhere tries to be more than a word."""

REPORTS: Mapping[str, RunReport] = {
    "timm": TIMM,
    "no_trigger": NO_TRIGGER,
    "cifar_stem": CIFAR_STEM,
    "transformers": TRANSFORMERS,
    "clean": CLEAN,
    "surrogate": SURROGATE,
    "undecided": UNDECIDED,
    "slower": SLOWER,
    "many_labels": MANY,
    "hostile": HOSTILE,
}


def golden_cards() -> dict[str, str]:
    """The card of every report, by the name of its golden file."""
    cards = {name: render(report) for name, report in REPORTS.items()}
    cards["pushed"] = render(TIMM, "me/name-clean")
    cards["real_run"] = render(RunReport.from_json(REAL_RUN.read_bytes()))
    return cards


if __name__ == "__main__":
    for name, card in golden_cards().items():
        (GOLDEN / f"{name}.md").write_text(card, encoding="utf-8")
