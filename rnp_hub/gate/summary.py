"""The gate's report as Markdown, for the summary of a workflow's run.

Names come from whoever made the model; they are shown as they are and cannot become markup.
"""

from __future__ import annotations

from collections.abc import Iterator

from rnp_hub.gate.result import GateReport, RuleRecord, label_of
from rnp_hub.hub_cards.markdown import code, fenced, plain
from rnp_hub.report import RateRecord, ScoresRecord, SurrogateRecord
from rnp_hub.text import one_line

SIGNS = {"pass": "✅", "fail": "❌", "skip": "➖"}
BAR = 30
"""Characters of a bar that is full."""

MAX_ROWS = 60
"""Rules and files in the table; a summary may be 1 MiB large."""

MAX_BARS = 12


def summary(report: GateReport) -> str:
    """A heading with the answer, the rules, before and after, and a picture in letters."""
    answer = "passes" if report.passed else "does not pass"
    sign = SIGNS["pass" if report.passed else "fail"]
    parts = [
        f"## {sign} {code(report.model)} {answer} the gate",
        *_outcome(report),
        "\n".join(_rules(report)),
        *_measures(report),
        *_picture(report),
        f"rnp-hub {plain(report.environment['rnp_hub'])}, {_seconds(report)}",
    ]
    return "\n\n".join(parts) + "\n"


def _outcome(report: GateReport) -> Iterator[str]:
    if report.sanitized is not None:
        made = report.sanitized
        softened = f", {made.softened} softened" if made.softened else ""
        softened += f", {made.softened_kernels} kernels too" if made.softened_kernels else ""
        done = f"{made.silenced} of {made.filters} filters were cut{softened}"
        yield f"Sanitized: {done}; it lies in {code(made.folder)}."
    if report.pushed is not None:
        yield f"Pushed to {code(report.pushed.repo_id)} at {code(report.pushed.commit)}."


def _rules(report: GateReport) -> Iterator[str]:
    yield "| | rule | limit | measured | where |"
    yield "|---|---|---|---|---|"
    rows = sorted(report.rules, key=lambda each: each.status != "fail")
    for each in rows[:MAX_ROWS]:
        yield _row(each)
    if len(rows) > MAX_ROWS:
        yield f"| | and {len(rows) - MAX_ROWS} more | | | |"


def _row(record: RuleRecord) -> str:
    rule = f"[{record.id}]({record.rule.page}) {plain(record.rule.name)}"
    cells = (record.limit, record.measured, record.where)
    return f"| {SIGNS[record.status]} | {rule} | {' | '.join(map(plain, cells))} |"


def _measures(report: GateReport) -> Iterator[str]:
    """A table before and after; of a scan, of what was measured."""
    if report.before is None:
        return
    after = report.sanitized.after if report.sanitized else None
    head = "| | measured | n |" if after is None else "| | before | after | n |"
    lines = [head, "|---|" + "---|" * (head.count("|") - 2)]
    for name, old, new in _pairs(report, report.before, after):
        cells = [_rate(old), *([] if after is None else [_rate(new)])]
        n = f"{old.n:,}" if old else f"{new.n:,}" if new else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {n} |")
    yield "\n".join(lines)


Rate = RateRecord | SurrogateRecord | None


def _pairs(
    report: GateReport, before: ScoresRecord, after: ScoresRecord | None
) -> Iterator[tuple[str, Rate, Rate]]:
    yield "clean accuracy", before.clean_accuracy, after.clean_accuracy if after else None
    for name, rate in before.attack_success_rate.items():
        later = after.attack_success_rate.get(name) if after else None
        yield f"attack success rate, {code(name)}", rate, later
    for label, kind, old, new in _surrogates(before, after):
        shown = plain(label_of(report.source, label))
        yield f"surrogate ASR, label {shown}, {plain(kind)}", old, new


def _surrogates(
    before: ScoresRecord, after: ScoresRecord | None
) -> Iterator[tuple[str, str, SurrogateRecord | None, SurrogateRecord | None]]:
    later = after.surrogate_asr if after else {}
    for label in dict.fromkeys((*before.surrogate_asr, *later)):
        old, new = before.surrogate_asr.get(label, {}), later.get(label, {})
        for kind in dict.fromkeys((*old, *new)):
            yield label, kind, old.get(kind), new.get(kind)


def _rate(rate: Rate) -> str:
    if rate is None:
        return "–"
    return f"{100 * rate.value:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def _picture(report: GateReport) -> Iterator[str]:
    """Rates as bars, in letters: before filled, after below it where there is one."""
    if report.before is None:
        return
    after = report.sanitized.after if report.sanitized else None
    lines = [
        line
        for name, old, new in _bars(report, report.before, after)[:MAX_BARS]
        for line in _bar(name, old, new)
    ]
    yield fenced("\n".join(lines))


def _bars(
    report: GateReport, before: ScoresRecord, after: ScoresRecord | None
) -> list[tuple[str, Rate, Rate]]:
    later = after.clean_accuracy if after else None
    bars: list[tuple[str, Rate, Rate]] = [("clean accuracy", before.clean_accuracy, later)]
    for name, rate in before.attack_success_rate.items():
        bars.append((f"ASR {name}", rate, after.attack_success_rate.get(name) if after else None))
    for label, kind, old, new in _surrogates(before, after):
        bars.append((f"surrogate {label_of(report.source, label)} {kind}", old, new))
    return bars


def _bar(name: str, old: Rate, new: Rate) -> Iterator[str]:
    shown = one_line(name)[:28]
    for title, rate, letter in ((shown, old, "█"), ("  after", new, "▒")):
        if rate is not None:
            filled = round(BAR * min(max(rate.value, 0.0), 1.0))
            drawn = letter * filled + "·" * (BAR - filled)
            yield f"{title:<28} {drawn} {100 * rate.value:5.1f} %"


def _seconds(report: GateReport) -> str:
    stages = [(k, v) for k, v in report.timing_s.items() if not k.startswith("of these")]
    return ", ".join(f"{plain(stage)} {seconds:.1f} s" for stage, seconds in stages)
