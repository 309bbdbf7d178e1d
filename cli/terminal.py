"""What a person sees: progress bars and notes on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from rnp_hub.progress import Progress
from rnp_hub.text import one_line

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from rnp_hub.bench.grid import Step
    from rnp_hub.bench.rows import Row
    from rnp_hub.gate import GatePlan, GateReport
    from rnp_hub.onnx_io import Prediction
    from rnp_hub.plan import Plan
    from rnp_hub.push import Pushed, PushPlan
    from rnp_hub.report import (
        OnnxRecord,
        PruneRecord,
        RateRecord,
        RunReport,
        ScanReport,
        ScoresRecord,
        SourceRecord,
        VerdictRecord,
    )
    from rnp_hub.trust.signing import Signed, Verified


def say(sentence: str) -> None:
    """A note that is no result."""
    print(f"Note: {one_line(sentence)}", file=sys.stderr)


def note(line: str) -> None:
    """What is known so far of something long."""
    print(line, file=sys.stderr)


@contextlib.contextmanager
def progress_bars() -> Iterator[Progress]:
    """One bar a stage with the figures that move; nothing where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        yield _advance(bars)


def _advance(bars: Bars) -> Progress:
    tasks: dict[str, TaskID] = {}

    def advance(stage: str, done: float, figures: Mapping[str, float]) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=1.0, figures="")
        shown = "  ".join(f"{name} {_figure(value)}" for name, value in figures.items())
        bars.update(tasks[stage], completed=min(max(done, 0.0), 1.0), figures=shown)

    return advance


def _figure(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


# --- results --------------------------------------------------------------------------------


def print_report(
    report: RunReport, folder: str, pushed: Pushed | None = None, *, as_json: bool
) -> None:
    """The table before and after, where the output lies, and what to do next."""
    if as_json and pushed is not None:
        _print_json({**json.loads(report.to_json()), "pushed": asdict(pushed)})
        return
    if as_json:
        print(report.to_json(), end="")
        return
    rows = [
        (measure, _percent(before), _percent(after), str(after.n))
        for measure, before, after in _measures(report.before, report.after)
    ]
    for measure, pair in (
        ("parameters", report.slim.parameters),
        ("multiply-accumulates", report.slim.macs),
    ):
        rows.append((measure, f"{pair[0]:,}", f"{pair[1]:,}", ""))
    rows += _latencies(report)
    if report.verdict.score is not None:
        print(f"{_verdict(report.verdict, report.source)}\n")
    _print_table(("", "before", "after", "n"), rows)
    prune, slim = report.prune, report.slim
    print(
        f"\n{prune.silenced} of {prune.filters} filters silenced, {slim.removed} removed, "
        f"{slim.carriers} left as carriers, {slim.kept} as zeros.\n"
        f"{_softened(prune)}"
        f"Slim equals masked within {slim.max_rel_diff:.0e}, ONNX equals torch within "
        f"{report.export.onnx['fp32'].max_rel_diff:.0e}.\n"
        f"{sum(report.timing_s.values()):.0f} s, {report.peak_memory_mib:,.0f} MiB at most. "
        f"Written to {folder}/\n"
    )
    if pushed is not None:
        print_pushed(pushed, as_json=False)
        return
    print(f"Next:  rnp-hub predict {shlex.quote(f'{folder}/onnx/model.onnx')} PICTURE…")


def _softened(prune: PruneRecord) -> str:
    if not (prune.softened or prune.softened_kernels):
        return ""
    kernels = f" and {prune.softened_kernels:,} kernels" if prune.softened_kernels else ""
    return (
        f"{prune.softened:,} other filters{kernels} multiplied by masks (--no-soften for none).\n"
    )


def print_scan(report: ScanReport, *, as_json: bool) -> None:
    """The verdict and what it rests on."""
    if as_json:
        print(report.to_json(), end="")
        return
    print(_verdict(report.verdict, report.source))
    margins = report.verdict.evidence["margins"]
    rows = [
        (kind, name, f"{own:+.2f}", f"{max(others):+.2f}" if others else "")
        for kind, by_label in margins.items()
        for label, own in [max(by_label.items(), key=lambda item: item[1])]
        for name in [_label(report.source, int(label))]
        for others in [[value for other, value in by_label.items() if other != label]]
    ]
    print()
    _print_table(("surrogate", "best for label", "its margin", "next label's"), rows)
    before, seconds = report.before.clean_accuracy, sum(report.timing_s.values())
    print(
        "\nMargins are in units of the clean pictures' own, those of a wave at three quarters. "
        f"Clean accuracy {_percent(before)}, n {before.n}. {seconds:.0f} s, "
        f"{report.peak_memory_mib:,.0f} MiB at most."
    )


def _verdict(verdict: VerdictRecord, source: SourceRecord) -> str:
    """One sentence."""
    score = "" if verdict.score is None else f" (score {verdict.score:.2f})"
    label = "" if verdict.label is None else f" for label {_label(source, verdict.label)}"
    left = {
        True: " A surrogate trigger still works after pruning.",
        False: " No surrogate trigger that stands out works any more.",
        None: "",
    }[verdict.residual]
    if verdict.backdoored is None:
        doubt = verdict.evidence["doubt"]
        return f"Undecided{label and ', most suspicious' + label}{score}: {doubt}.{left}"
    return (
        f"Backdoored{label}{score}.{left}" if verdict.backdoored else f"No backdoor found{score}."
    )


def _label(source: SourceRecord, label: int) -> str:
    """Its number, and its name where it has another."""
    name = source.label_names[label] if source.label_names else str(label)
    return str(label) if name == str(label) else f"{label} ({one_line(name)})"


def print_gate(report: GateReport, *, as_json: bool) -> None:
    """A line for each rule, those that are violated last, and the answer."""
    if as_json:
        print(report.to_json(), end="")
        return
    for each in sorted(report.rules, key=lambda each: each.status == "fail"):
        told = f"limit: {each.limit}; measured: {each.measured}; where: {each.where}"
        print(f"{each.status.upper()}  {each.id} {each.rule.name:<25}  {one_line(told)}")
    seconds = sum(s for stage, s in report.timing_s.items() if not stage.startswith("of these"))
    answer = "passes" if report.passed else "does not pass"
    print(f"\n{one_line(report.model)} {answer} the gate; {seconds:.0f} s.")
    if report.sanitized is not None:
        print(f"Sanitized, it lies in {one_line(report.sanitized.folder)}/")
    if report.pushed is not None:
        print(f"Pushed to {report.pushed.url}")


def print_signed(signed: Signed, *, as_json: bool) -> None:
    """What `sign` wrote."""
    if as_json:
        _print_json(asdict(signed))
        return
    print(f"{signed.files} files of {signed.folder} signed, in {signed.signature}")


def print_verified(found: Verified, *, as_json: bool) -> None:
    """Whether a folder is what passed the gate, in one line."""
    if as_json:
        _print_json(asdict(found))
        return
    answer = "genuine" if found.genuine else "NOT genuine"
    print(f"{answer}: {one_line(f'{found.folder}: {found.told}')}")


def _latencies(report: RunReport) -> list[tuple[str, str, str, str]]:
    """Milliseconds in onnxruntime, where they were measured."""
    if report.costs is None:
        return []
    before, after = (
        each.latency_ms["onnxruntime"] for each in (report.costs.before, report.costs.after)
    )
    return [
        (f"ms in onnxruntime, batch {n}", f"{before[n]:,.2f}", f"{after[n]:,.2f}", "")
        for n in before
    ]


def print_scores(scores: ScoresRecord, *, as_json: bool) -> None:
    """What `evaluate` measured."""
    if as_json:
        _print_json(asdict(scores))
        return
    rows = [(name, _percent(rate), str(rate.n)) for name, rate, _ in _measures(scores, scores)]
    _print_table(("", "measured", "n"), rows)


def print_export(file: Path, record: OnnxRecord, *, as_json: bool) -> None:
    """What `export` wrote."""
    if as_json:
        _print_json({"file": str(file), **asdict(record)})
        return
    print(
        f"{file}: opset {record.opset} by {record.exporter}, equals torch within "
        f"{record.max_rel_diff:.0e}, names the same label on {record.top1_agreement:.2%} of the "
        f"pictures, {record.latency_ms:.2f} ms a picture, sha256 {record.sha256}"
    )


def print_evidence(
    rows: Sequence[DataclassInstance],
    document: str,
    name: str,
    markdown: Path | None,
    *,
    as_json: bool,
) -> None:
    """What a `bench` measured: Markdown, into a section of a document too where one is given."""
    from rnp_hub.bench.tables import put_section

    if markdown is not None:
        put_section(markdown, name, document)
    if as_json:
        _print_json([asdict(row) for row in rows])
    else:
        print(document, end="")


def print_bench_plan(steps: Sequence[Step], *, as_json: bool) -> None:
    """What `bench run` would do; seconds are of one core."""
    if as_json:
        _print_json([asdict(step) for step in steps])
        return
    rows = [
        (step.name, str(step.rows), f"{step.train:,.0f}", f"{step.defend:,.0f}") for step in steps
    ]
    _print_table(("network", "rows missing", "s training", "s defending"), rows)
    hours = sum(step.train + step.defend for step in steps) / 3600
    print(f"\n{sum(step.rows for step in steps):,} rows, about {hours:.1f} hours of one core.")


def print_bench_rows(rows: Sequence[Row], *, as_json: bool) -> None:
    """What `bench run` measured."""
    from rnp_hub.bench.grid import line_of

    if as_json:
        _print_json([asdict(row) for row in rows])
        return
    for row in rows:
        print(line_of(row))


def print_files(files: Sequence[Path]) -> None:
    """What was written."""
    for file in files:
        print(file)


def print_pushed(pushed: Pushed, *, as_json: bool) -> None:
    """What `push` made, and how near what came back is to what was proved."""
    if as_json:
        _print_json(asdict(pushed))
        return
    kind = "private" if pushed.private else "public"
    print(
        f"Pushed to {pushed.repo_id} ({kind}), {pushed.revision} at {pushed.commit}: "
        f"{len(pushed.uploaded)} of {len(pushed.files)} files new or changed, "
        f"{len(pushed.deleted)} deleted.\n"
        f"Pulled back by that commit, all {len(pushed.files)} files are the same to the bit; on "
        f"{pushed.inputs} inputs:\n"
    )
    rows = [
        (part, f"{each.max_rel_diff:.0e}", f"{100 * each.top1_agreement:.2f} %")
        for part, each in pushed.agreement.items()
    ]
    _print_table(("published", "max |Δ| / max |logit|", "same top-1"), rows)
    print(f"\n{pushed.url}")


def print_push_plan(plan: PushPlan, *, as_json: bool) -> None:
    """What `push --dry-run` found."""
    if as_json:
        _print_json({**asdict(plan), "target": plan.target()})
        return
    rows = [(path, f"{size:,}", _kind(plan, path)) for path, size in plan.upload.items()]
    rows += [(path, "", "lies there already") for path in plan.unchanged]
    rows += [(path, "", "deleted") for path in plan.delete]
    _print_table(("file", "bytes", ""), rows)
    print(f"\n{sum(plan.upload.values()):,} bytes to {plan.target()}; nothing was written.")


def _kind(plan: PushPlan, path: str) -> str:
    return "replaces a person's" if path in plan.replace else "new or changed"


def print_predictions(found: Sequence[Prediction], *, as_json: bool) -> None:
    """What `predict` says of each picture."""
    if as_json:
        _print_json([asdict(each) for each in found])
        return
    rows = [(each.file, each.label, f"{each.score:.4f}") for each in found]
    _print_table(("picture", "label", "score"), rows)


def print_plan(plan: Plan | GatePlan, *, as_json: bool) -> None:
    """What `--dry-run` found."""
    if as_json:
        _print_json(asdict(plan))
        return
    for key, value in asdict(plan).items():
        if value is not None or key != "push_to":
            print(f"{key.replace('_', ' '):>18}  {one_line(str(value))}")


def _measures(
    before: ScoresRecord, after: ScoresRecord
) -> Iterator[tuple[str, RateRecord, RateRecord]]:
    yield "clean accuracy", before.clean_accuracy, after.clean_accuracy
    for trigger, rate in before.attack_success_rate.items():
        yield f"attack success rate ({trigger})", rate, after.attack_success_rate[trigger]


def _percent(rate: RateRecord) -> str:
    return f"{100 * rate.value:.2f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=1, ensure_ascii=False))


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(one_line, row))
    # Wide enough for any row where stdout is a file or a pipe.
    width = None if sys.stdout.isatty() else 200
    Console(width=width, highlight=False, markup=False).print(table)
