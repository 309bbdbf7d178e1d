"""The YAML on top of a card: what the Hub filters, links and charts by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCardData

from rnp_hub.hub_cards.licences import Licence
from rnp_hub.report import RunReport, SourceRecord
from rnp_hub.text import one_line

HUB = "https://huggingface.co"
TASK = "image-classification"


def metadata(report: RunReport, repo_id: str | None) -> ModelCardData:
    """The block's content.

    Args:
        report: of the run.
        repo_id: where the card is pushed to, if that is known.
    """
    source, licence = report.source, Licence.of(report.source.licence)
    library, also = _libraries(source)
    more: dict[str, Any] = {}
    if source.repo_id:
        more = {"base_model": one_line(source.repo_id), "base_model_relation": "finetune"}
    return ModelCardData(
        license=_one_or_all(licence.ids),
        license_name=licence.slug,
        license_link=licence_link(source) if "other" in licence.ids else None,
        library_name=library,
        pipeline_tag=TASK,
        tags=[TASK, *also, "rnp-hub", *(["backdoor-removal"] if report.prune.changed else [])],
        datasets=[one_line(report.data.id)] if report.data.sha else None,
        metrics=["accuracy"],
        model_name=name_of(report, repo_id),
        eval_results=list(_results(report)),
        **more,
    )


def name_of(report: RunReport, repo_id: str | None) -> str:
    """What the sanitized model is called: as its repository, else as its source and `-rnp`."""
    return one_line(repo_id.rpartition("/")[2] if repo_id else f"{original_name(report)}-rnp")


def original_name(report: RunReport) -> str:
    source = report.source
    name = PurePath(source.repo_id or source.path or "").name
    return name if name.strip(".") else "model"


def source_link(source: SourceRecord) -> str | None:
    """The commit on the Hub that was pulled."""
    return _address(source, f"tree/{source.sha}")


def licence_link(source: SourceRecord) -> str | None:
    """Where a licence without an id of its own may be read up."""
    return _address(source, f"blob/{source.sha}/README.md")


def _address(source: SourceRecord, page: str) -> str | None:
    return f"{HUB}/{quote(one_line(source.repo_id))}/{page}" if source.repo_id else None


def _libraries(source: SourceRecord) -> tuple[str, list[str]]:
    """What the drop-in loads with first, and the tags of all that can.

    The tag `timm` puts timm's own snippet on the page, and `transformers` theirs. A stem that timm
    cannot express loads in neither, and a card without any library leaves the Hub to guess one.
    """
    if source.stem:
        return "rnp-hub", []
    if source.library == "transformers":
        return "transformers", ["transformers"]
    return "timm", ["timm", "transformers"]


def _one_or_all(ids: tuple[str, ...]) -> Any:
    return ids[0] if len(ids) == 1 else list(ids) or None


def _results(report: RunReport) -> Iterator[EvalResult]:
    """`model-index`: what was measured on the sanitized network, and on the original.

    A rate of a reconstructed trigger is of another type than that of a known one.
    """
    for when, scores in (("after", report.after), ("before", report.before)):
        yield _result(report, "accuracy", f"clean accuracy ({when})", scores.clean_accuracy.value)
        for trigger, rate in scores.attack_success_rate.items():
            name = f"ASR of {trigger} ({when})"
            yield _result(report, "attack_success_rate", name, rate.value)
        for label, kinds in scores.surrogate_asr.items():
            for kind, found in kinds.items():
                name = f"surrogate ASR of label {label}, {kind} ({when})"
                yield _result(report, "surrogate_asr", name, found.value)


def _result(report: RunReport, kind: str, name: str, value: float) -> EvalResult:
    return EvalResult(
        task_type=TASK,
        dataset_type=one_line(report.data.id) if report.data.sha else "local",
        dataset_name=one_line(report.eval.id),
        dataset_split=one_line(report.eval.split),
        dataset_revision=report.data.sha,
        metric_type=kind,
        metric_name=one_line(name),
        metric_value=round(value, 6),
    )
