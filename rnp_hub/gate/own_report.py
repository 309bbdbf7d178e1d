"""The report that a repository brings along, held against its files and a new measurement.

Two measurements of one network on two draws of pictures differ, each by its own chance: figures
agree where their 95 % intervals meet. (A second figure would fall outside the first one's interval
one time in six though both are right; intervals of right figures fail to meet one time in two
hundred.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rnp_hub.errors import RnpHubError
from rnp_hub.evaluate import Rate
from rnp_hub.gate.judge import Measured, percent
from rnp_hub.report import FILE, RateRecord, RunReport
from rnp_hub.repository import CARD, card_metadata
from rnp_hub.shipment import stated_hashes
from rnp_hub.static.finding import MAX_HEADER
from rnp_hub.text import one_line

ROUNDING = 1e-5
"""Of figures that were written and read again."""


def read(files: Mapping[str, Path]) -> RunReport | str:
    """The report among a model's files, or what is wrong with it."""
    if FILE not in files:
        return "there is none"
    if files[FILE].stat().st_size > MAX_HEADER:
        return "it is too large to be a report"
    try:
        return RunReport.from_json(files[FILE].read_bytes())
    except RnpHubError as error:
        return one_line(str(error))[:200]


def contradiction(
    report: RunReport, files: Mapping[str, Path], hashes: Mapping[str, str], measured: Measured
) -> str:
    """The first thing in which a report is wrong; empty where there is none.

    Args:
        report: the repository's own.
        files, hashes: the repository's files, and their SHA-256.
        measured: what was found here, on pictures drawn with another seed.
    """
    told = (*_weights(report, hashes), *_intervals(report), *_card(report, files))
    return next(iter((*told, *_figures(report, measured))), "")


def _weights(report: RunReport, hashes: Mapping[str, str]) -> Iterator[str]:
    for name, sha256 in stated_hashes(report).items():
        if hashes.get(name) != sha256:
            yield f"it speaks of another {name}" if name in hashes else f"{name} is missing"


def _rates(report: RunReport) -> Iterator[tuple[str, RateRecord]]:
    yield "clean accuracy", report.after.clean_accuracy
    for name, rate in report.after.attack_success_rate.items():
        yield f"the ASR of {one_line(name)}", rate


def _intervals(report: RunReport) -> Iterator[str]:
    """An interval that is wider than its figure and n make it would agree with anything."""
    for name, rate in _rates(report):
        if not (0 <= rate.value <= 1 and 1 <= rate.n <= 10**9):
            yield f"its {name} is no share of pictures"
            continue
        due = Rate.of(round(rate.value * rate.n), rate.n)
        pairs = ((rate.value, due.value), (rate.low, due.low), (rate.high, due.high))
        if not all(abs(stated - right) <= ROUNDING for stated, right in pairs):
            yield f"the interval of its {name} is not that of its figure"


def _card(report: RunReport, files: Mapping[str, Path]) -> Iterator[str]:
    """Figures of the `model-index` on the card that rnp-hub wrote."""
    due = report.after.clean_accuracy.value
    for metric in _metrics(files):
        if metric.get("type") == "accuracy" and "(before)" not in str(metric.get("name")):
            value = metric.get("value")
            same = isinstance(value, int | float) and abs(value - due) <= ROUNDING
            if not same:
                shown = one_line(str(value))[:20]
                yield f"the card says clean accuracy {shown} where the report has {due:.6f}"


def _metrics(files: Mapping[str, Path]) -> Iterator[Mapping[str, Any]]:
    if CARD not in files or files[CARD].stat().st_size > MAX_HEADER:
        return
    try:
        index = card_metadata(files[CARD]).get("model-index") or []
        for result in (each for model in index for each in model.get("results", ())):
            yield from (metric for metric in result["metrics"] if isinstance(metric, dict))
    except Exception:  # YAML of anybody's; what is no model-index states no figure
        return


def _figures(report: RunReport, measured: Measured) -> Iterator[str]:
    if report.eval.id != measured.eval.id or report.eval.split != measured.eval.split:
        ours, theirs = (
            f"{one_line(e.id)} {one_line(e.split)}" for e in (measured.eval, report.eval)
        )
        yield f"it was measured on {theirs}, and {ours} was given here; give the same --data"
        return
    now = measured.before.attack_success_rate
    again = {f"the ASR of {one_line(name)}": rate for name, rate in now.items()}
    again["clean accuracy"] = measured.before.clean_accuracy
    for name, stated in _rates(report):
        found = again.get(name)
        if found and (found.high < stated.low or stated.high < found.low):
            yield (
                f"it says {name} is {percent(stated.value)} ({percent(stated.low)} to "
                f"{percent(stated.high)}), and {percent(found.value)} ({percent(found.low)} to "
                f"{percent(found.high)}) was measured"
            )
