"""The README of a sanitized model: every figure on it stands in the report."""

from __future__ import annotations

import shlex
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from rnp_hub.report import RateRecord, RunReport

TEMPLATE = "card.md.jinja"


def render(report: RunReport) -> str:
    """The card as Markdown with its metadata block."""
    template = (resources.files(__name__.rpartition(".")[0]) / TEMPLATE).read_text("utf-8")
    card = ModelCard.from_template(_metadata(report), template_str=template, **_words(report))
    return str(card)


def _metadata(report: RunReport) -> ModelCardData:
    source, name = report.source, _name(report)
    based_on: dict[str, Any] = (
        {"base_model": source.repo_id, "base_model_relation": "finetune"} if source.repo_id else {}
    )
    return ModelCardData(
        license=source.licence,
        library_name=None if source.stem else "timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "rnp-hub", "backdoor-removal"],
        datasets=[report.data.id] if report.data.sha else None,
        metrics=["accuracy"],
        model_name=f"{name}-rnp",
        eval_results=_results(report),
        **based_on,
    )


def _results(report: RunReport) -> list[EvalResult]:
    """`model-index`: what the sanitized network was measured to do, and the ASR it had before."""

    def result(kind: str, name: str, value: float) -> EvalResult:
        return EvalResult(
            task_type="image-classification",
            dataset_type=report.data.id if report.data.sha else "local",
            dataset_name=report.eval.id,
            dataset_split=report.eval.split,
            dataset_revision=report.data.sha,
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 6),
        )

    results = [
        result("accuracy", "clean accuracy (after)", report.after.clean_accuracy.value),
        result("accuracy", "clean accuracy (before)", report.before.clean_accuracy.value),
    ]
    for when, scores in (("after", report.after), ("before", report.before)):
        results += [
            result("attack_success_rate", f"ASR of {trigger} ({when})", rate.value)
            for trigger, rate in scores.attack_success_rate.items()
        ]
    return results


def _words(report: RunReport) -> dict[str, Any]:
    """What the template speaks of."""
    return {
        "report": report,
        "name": _name(report),
        "rows": _rows(report),
        "command": _command(report),
        "classes": len(report.after.per_class_accuracy),
        "labels": [_cell(name) for name in report.source.label_names or ()],
    }


def _name(report: RunReport) -> str:
    source = report.source
    if source.repo_id:
        return source.repo_id.rpartition("/")[2]
    return Path(source.path or "model").resolve().name


def _rows(report: RunReport) -> list[tuple[str, str, str, int]]:
    """The before/after table: measure, before, after, n."""
    before, after = report.before, report.after
    rows = [("Clean accuracy", before.clean_accuracy, after.clean_accuracy)]
    rows += [
        (
            f"Attack success rate, trigger `{_cell(trigger)}`",
            rate,
            after.attack_success_rate[trigger],
        )
        for trigger, rate in before.attack_success_rate.items()
    ]
    return [(measure, _percent(old), _percent(new), new.n) for measure, old, new in rows]


def _cell(text: str) -> str:
    """Text that does not end the cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _percent(rate: RateRecord) -> str:
    return f"{rate.value:.2%} ({rate.low:.2%} – {rate.high:.2%})".replace("%", " %")


def _command(report: RunReport) -> str:
    """The command that makes this folder again."""
    source, data, config = report.source, report.data, report.config
    model = f"{source.repo_id}@{source.sha}" if source.repo_id else source.path
    spec = str(config.get("data", data.id))
    where = f"{spec.partition('@')[0]}@{data.sha}" if data.sha else spec
    flip = config.get("flip")
    options = [
        ("data", where),
        ("n", config["n"]),
        ("eval-n", config.get("eval_n")),
        ("seed", data.seed),
        ("image-column", config.get("image_column")),
        ("label-column", config.get("label_column")),
        ("recipe", config["recipe"]),
        ("max-ca-drop", config["max_ca_drop"]),
        ("threshold", config.get("threshold")),
        ("precision", config.get("precision")),
        *(("poisoned", path) for path in config.get("poisoned", ())),
        *(("trigger", trigger) for trigger in config.get("triggers", ())),
        ("target", config.get("target")),
    ]
    words = ["rnp-hub", "sanitize", str(model)]
    for name, value in options:
        if value is not None:
            words += [f"--{name}", str(value)]
    if flip is not None:
        words.append("--flip" if flip else "--no-flip")
    return shlex.join(words)


def write_card(folder: Path, report: RunReport, repo_id: str | None = None) -> None:
    (folder / "README.md").write_text(render(report), encoding="utf-8")
