"""The figures of a card, as rows of its tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rnp_hub.hub_cards.markdown import code, plain
from rnp_hub.report import RateRecord, RunReport, SurrogateRecord
from rnp_hub.text import one_line

SHOWN = 20
"""Labels that get a row of their own; of more, those that lost most."""

NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Row:
    """One measure before and after, on n pictures."""

    measure: str
    before: str
    after: str
    n: str


@dataclass(frozen=True)
class CostRow:
    """What the networks take, before and after."""

    measure: str
    before: str
    after: str
    change: str


@dataclass(frozen=True)
class ClassRow:
    """Clean accuracy of one label, in [0, 1], on n pictures; `n` is `None` in old reports."""

    label: int
    name: str
    before: float
    after: float
    n: int | None

    @property
    def change(self) -> float:
        return self.after - self.before


def label_name(report: RunReport, label: int | str) -> str:
    """A label's name, or its number where it has none."""
    names, number = report.source.label_names or (), str(label)
    if number.isdecimal() and int(number) < len(names):
        return one_line(names[int(number)]) or number
    return number


def measures(report: RunReport) -> list[Row]:
    """Clean accuracy, then the triggers that were known, then those that were reconstructed."""
    before, after = report.before, report.after
    rows = [_row("Clean accuracy (CA)", before.clean_accuracy, after.clean_accuracy)]
    for trigger in _keys(before.attack_success_rate, after.attack_success_rate):
        rates = (scores.attack_success_rate.get(trigger) for scores in (before, after))
        target = _target(report, trigger)
        rows.append(_row(f"Attack success rate (ASR), trigger {code(trigger)}{target}", *rates))
    for label in _suspects(report):
        old, new = (scores.surrogate_asr.get(label, {}) for scores in (before, after))
        name = plain(label_name(report, label))
        for kind in _keys(old, new):
            measure = f"Surrogate ASR, reconstructed trigger for {name} ({plain(kind)})"
            rows.append(_row(measure, old.get(kind), new.get(kind)))
    return rows


def _suspects(report: RunReport) -> list[str]:
    """The suspected label; without one, that of the surrogate that worked best."""
    before, after = report.before.surrogate_asr, report.after.surrogate_asr
    known = _keys(before, after)
    if report.verdict.label is not None:
        return [label for label in known if label == str(report.verdict.label)]
    best = {
        label: max((r.value for r in before.get(label, {}).values()), default=0.0)
        for label in known
    }
    return sorted(known, key=best.__getitem__, reverse=True)[:1]


def _keys(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    return list(dict.fromkeys([*before, *after]))


def _target(report: RunReport, trigger: str) -> str:
    targets = report.config.get("measured_triggers", {})
    return f", target {plain(label_name(report, targets[trigger]))}" if trigger in targets else ""


def _row(
    measure: str,
    before: RateRecord | SurrogateRecord | None,
    after: RateRecord | SurrogateRecord | None,
) -> Row:
    counts = dict.fromkeys(f"{rate.n:,}" for rate in (before, after) if rate)
    return Row(measure, interval(before), interval(after), " / ".join(counts))


def interval(rate: RateRecord | SurrogateRecord | None) -> str:
    """`95.00 % (93.50 to 96.20)`: a rate and its interval, which no line breaks, or a dash."""
    if rate is None:
        return "–"
    norm = f", norm {rate.norm:.3g}" if isinstance(rate, SurrogateRecord) else ""
    bounds = f"({100 * rate.low:.2f} to {100 * rate.high:.2f}{norm})"
    return f"{100 * rate.value:.2f} %".replace(" ", NO_BREAK) + f" {bounds.replace(' ', NO_BREAK)}"


def classes(report: RunReport) -> list[ClassRow]:
    """The labels that were measured; the one that lost most comes first."""
    counts = report.eval.per_class_n
    pairs = zip(report.before.per_class_accuracy, report.after.per_class_accuracy, strict=True)
    rows = [
        ClassRow(label, label_name(report, label), before, after, counts[label] if counts else None)
        for label, (before, after) in enumerate(pairs)
        if before is not None and after is not None
    ]
    return sorted(rows, key=lambda row: row.change)  # stable: ties stay in the labels' order


def size(report: RunReport, file: str) -> str:
    """The size of a file of the folder, in the units of a file manager."""
    count = report.export.bytes.get(file)
    if count is None:
        return "–"
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB"


def costs(report: RunReport) -> list[CostRow]:
    """Size and speed of both networks; none where they were not measured."""
    if report.costs is None:
        return []
    before, after = report.costs.before, report.costs.after
    rows: list[tuple[str, float, float, str]] = [
        ("Parameters", before.parameters, after.parameters, "{:,}"),
        ("Multiply-accumulates", before.macs, after.macs, "{:,}"),
    ]
    for kind in before.bytes:
        rows.append((f"Bytes, {kind}", before.bytes[kind], after.bytes[kind], "{:,}"))
    for runtime, batches in before.latency_ms.items():
        for batch, old in batches.items():
            new, pictures = after.latency_ms[runtime][batch], "picture" + "s" * (batch != "1")
            rows.append((f"Milliseconds, {runtime}, {batch} {pictures}", old, new, "{:,.2f}"))
    return [
        CostRow(name, shape.format(old), shape.format(new), percent(old, new))
        for name, old, new, shape in rows
    ]


def is_slower(report: RunReport) -> bool:
    """Whether the smaller network takes longer in onnxruntime, by more than noise."""
    if report.costs is None:
        return False
    before, after = (
        each.latency_ms["onnxruntime"] for each in (report.costs.before, report.costs.after)
    )
    return any(after[batch] > 1.1 * before[batch] for batch in before)


def percent(before: float, after: float) -> str:
    """`−12.3 %`: a change, with a minus as wide as the plus."""
    rounded = round(100 * (after / before - 1), 1) + 0.0 if before else 0.0
    return f"{rounded:+.1f} %".replace("-", "−").replace(" ", NO_BREAK)


def per_layer(report: RunReport) -> Iterator[tuple[str, int]]:
    """Silenced filters by layer, in the network's order."""
    for name, indices in report.prune.per_layer.items():
        yield code(name), len(indices)


def millions(count: int) -> str:
    """`2.81`, of 2,809,866."""
    return f"{count / 1e6:,.2f}"


def billions(count: int) -> str:
    """`0.152`, of 151,718,400."""
    return f"{count / 1e9:,.3f}"


def points(change: float) -> str:
    """`−1.5`: percentage points, with a minus as wide as the plus."""
    rounded = round(100 * change, 1) + 0.0  # which makes a zero of a minus zero
    return f"{rounded:+.1f}".replace("-", "−")
