"""The page of evidence, made from the rows of the grid (`rnp-hub bench report`).

What stands between two marker lines of the page is written anew; the rest of it is left alone. The
pictures lie in a folder beside it, of its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rnp_hub.bench import tallies
from rnp_hub.bench.defences import ABOUT
from rnp_hub.bench.oracle import ANP_BEST
from rnp_hub.bench.rows import WORKS, Row, median_seconds, read
from rnp_hub.bench.tables import between, line, table
from rnp_hub.bench.tallies import OURS
from rnp_hub.errors import ConfigError
from rnp_hub.evaluate import Rate
from rnp_hub.hub_cards.markdown import plain
from rnp_hub.hub_cards.pictures import AFTER, BEFORE, LINES, MUTED, Picture, canvas, legend
from rnp_hub.output import new_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")

BEGIN = "<!-- rnp-hub bench report: begin -->"
END = "<!-- rnp-hub bench report: end -->"


def report(log: Path, out: Path) -> list[Path]:
    """Write the page and its pictures; give back the files written.

    Args:
        log: the rows, see `rows.read`.
        out: a page that holds the two markers, or none yet.

    Raises:
        ConfigError: the log holds no row, or the page has no place for what is written.
        OutputError: a file cannot be written.
    """
    rows = read(log)
    if not rows:
        raise ConfigError(f"{log} holds no row; `rnp-hub bench run --log {log}` makes some")
    folder = out.with_suffix("")
    drawn = pictures(rows, folder.name)
    text = _into(out, page(rows, drawn))
    files = {out: text.encode()} | {out.parent / each.path: each.png() for each in drawn}
    for file, content in files.items():
        with new_file(file, force=True) as place:
            place.write_bytes(content)
    return list(files)


def _into(out: Path, made: str) -> str:
    """The page with what was made between its markers."""
    if not out.is_file():
        return f"# What was measured\n\n{BEGIN}\n{made}{END}\n"
    written = between(out.read_text(encoding="utf-8"), BEGIN, END, f"\n{made}")
    if written is None:
        raise ConfigError(f"{out} lacks the lines {BEGIN} and {END}; put them where it shall stand")
    return written


def page(rows: Sequence[Row], drawn: Sequence[Picture] = ()) -> str:
    """Everything between the markers, in Markdown."""
    sections = (
        _targets, _defences, _networks, _clean, _surrogates, _verdicts, _slices, _seconds,
        _troubles, _earlier,
    )  # fmt: skip
    parts = [part for section in sections if (part := "\n".join(section(rows)))]
    shown = [f"![{plain(each.alt)}]({each.path})" for each in drawn]
    return "\n" + "\n\n".join([*parts, *shown]) + "\n\n"


# --- what was asked ---------------------------------------------------------------------------


def _targets(rows: Sequence[Row]) -> Iterator[str]:
    found = tallies.goals(rows)
    if not found:
        return
    yield "## Targets\n"
    yield (
        "Settings are the same in every row. Each defence gets the same 500 clean training "
        "pictures (class-balanced, seed 0) and nothing else; CA is counted on the whole test "
        "split, ASR on triggered test pictures of other labels than the target, over networks "
        f"whose ASR before is at least {WORKS}.\n"
    )
    yield from _table(
        ("", "asked", "measured", ""),
        [(t.what, t.asked, t.measured, "met" if t.met else "**missed**") for t in found],
    )


def _defences(rows: Sequence[Row]) -> Iterator[str]:
    found = tallies.summaries(rows)
    if not found:
        return
    yield "## Defences\n"
    yield (
        "Cost is max(0, CA drop) + ASR after, 0 at best. *Ours there* is the cost of `ours` on "
        "the same networks; *ours is better on* counts attacks by the mean over their networks. "
        f"`{ANP_BEST}` is told the true trigger to choose its threshold and stands for the best "
        "that ANP could do.\n"
    )
    yield from _table(
        (
            "defence", "what it is", "networks", "mean ASR", "worst ASR", "mean CA drop",
            "mean cost", "ours there", "ours is better on", "failed", "s",
        ),
        [
            (
                f"`{each.defence}`", ABOUT[each.defence].source, each.networks, _three(each.asr),
                _three(each.worst), f"{each.drop:+.4f}", f"**{each.cost:.3f}**",
                _three(each.ours), _better(each), each.failed or "", _whole(each.seconds),
            )
            for each in found
        ],
    )  # fmt: skip


def _better(each: tallies.Summary) -> str:
    if each.defence == OURS or not each.attacks:
        return ""
    return f"{each.better} of {each.attacks} attacks"


# --- every network ----------------------------------------------------------------------------


def _networks(rows: Sequence[Row]) -> Iterator[str]:
    backdoored = _by_network(row for row in tallies.standard(rows) if row.asr)
    if not backdoored:
        return
    some = _any(_any(backdoored))
    assert some.ca is not None
    assert some.asr is not None
    yield "## Every backdoored network\n"
    yield (
        f"CA / ASR, on {some.ca[0].n:,} and {some.asr[0].n:,} pictures. *Twin* is the rate at "
        "which a clean network of the same seed gives the target label to the same triggered "
        "pictures: below that nothing can be asked. In brackets behind `ours`: the 95 % Wilson "
        f"interval of its ASR. Networks in italics have an ASR before below {WORKS} and count in "
        "no summary.\n"
    )
    names = _columns(backdoored)
    yield from _table(
        ("network", "before", "twin", *(f"`{name}`" for name in names)),
        [
            (_network_name(found), _before(found), _twin(found), *_cells(found, names))
            for found in backdoored.values()
        ],
    )


def _by_network(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """By name of the network and of the defence."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.name, {})[row.defence] = row
    return found


def _columns(networks: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """The defences that were run on any, without the one that does nothing."""
    return [
        name
        for name in ABOUT
        if name != "none" and any(name in found for found in networks.values())
    ]


def _any(found: Mapping[str, T]) -> T:
    return next(iter(found.values()))


def _network_name(found: Mapping[str, Row]) -> str:
    name = plain(_any(found).name)
    return name if _any(found).works or _any(found).asr is None else f"*{name}*"


def _before(found: Mapping[str, Row]) -> str:
    return _both(_any(found), 0)


def _twin(found: Mapping[str, Row]) -> str:
    twin = _any(found).twin
    return _three(twin.value) if twin else ""


def _cells(found: Mapping[str, Row], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        row = found.get(name)
        if row is None:
            yield ""
        elif row.error:
            yield "failed"
        else:
            interval = f" ({_interval(row.asr[1])})" if row.asr and name == OURS else ""
            yield _both(row, 1) + interval


def _both(row: Row, place: int) -> str:
    assert row.ca
    ca = _three(row.ca[place].value)
    return f"{ca} / {_three(row.asr[place].value)}" if row.asr else ca


def _clean(rows: Sequence[Row]) -> Iterator[str]:
    networks = _by_network(row for row in tallies.standard(rows) if row.attack is None)
    if not networks:
        return
    yield "## Every clean network\n"
    yield "CA before and after; for `ours` also the filters it silenced.\n"
    names = _columns(networks)
    yield from _table(
        ("network", "before", *(f"`{name}`" for name in names), "silenced"),
        [
            (_network_name(found), _before(found), *_cells(found, names), _silenced(found))
            for found in networks.values()
        ],
    )


def _silenced(found: Mapping[str, Row]) -> str:
    ours = found.get(OURS)
    return "" if ours is None or ours.silenced is None else str(ours.silenced)


# --- surrogates, verdicts, slices -------------------------------------------------------------


def _surrogates(rows: Sequence[Row]) -> Iterator[str]:
    found = tallies.points(rows)
    if not found:
        return
    rank = tallies.spearman([(each.surrogate, each.true) for each in found])
    after = tallies.spearman([(each.surrogate, each.true) for each in found if each.after])
    yield "## Surrogate and true ASR\n"
    yield (
        f"Largest surrogate ASR of all kinds, from clean pictures alone, against the true ASR, "
        f"before and after `ours` ({len(found)} points). Rank correlation (Spearman): "
        f"{_three(rank)}; among the networks after it alone: {_three(after)}.\n"
    )
    yield from _table(
        ("network", "surrogate before", "true before", "surrogate after", "true after"),
        [_surrogate_row(row) for row in tallies.standard(rows) if _has_surrogates(row)],
    )


def _has_surrogates(row: Row) -> bool:
    return row.defence == OURS and bool(row.judgement and row.judgement.surrogate and row.asr)


def _surrogate_row(row: Row) -> tuple[str, ...]:
    assert row.judgement is not None
    assert row.asr is not None
    found = row.judgement.surrogate

    def kinds(place: int) -> str:
        return ", ".join(f"{plain(kind)} {pair[place]:.2f}" for kind, pair in found.items())

    before, after = (_three(rate.value) for rate in row.asr)
    return plain(row.name), kinds(0), before, kinds(1), after


def _verdicts(rows: Sequence[Row]) -> Iterator[str]:
    found = [(name, said) for name in ABOUT if (said := tallies.verdicts(rows, name))]
    if not found:
        return
    yield "## Verdicts\n"
    yield "Over clean networks and those whose backdoor works; in brackets 95 % Wilson intervals.\n"
    yield from _table(
        (
            "", "backdoored, detected", "clean, called backdoored", "undecided",
            "label right among the detected", "ROC-AUC", "wrong about",
        ),
        [
            (
                f"`{name}`", _rate(said.detected), _rate(said.alarms), said.undecided,
                _rate(said.labels), _three(said.auc), ", ".join(map(plain, said.wrong)),
            )
            for name, said in found
        ],
    )  # fmt: skip
    left_out = tallies.leave_one_out(rows)
    if left_out:
        yield "\nThe score's threshold set on the other attacks' networks and the clean ones:\n"
        yield from _table(
            ("attack left out", "threshold", "its networks detected", "clean ones above it"),
            [
                (each.attack, f"{each.threshold:.3g}", _rate(each.detected), _rate(each.alarms))
                for each in left_out
            ],
        )


def _slices(rows: Sequence[Row]) -> Iterator[str]:
    found = tallies.spreads(rows)
    if not found:
        return
    yield "## Other slices\n"
    yield "`ours` with other clean pictures: CA and ASR after, mean (least to most).\n"
    yield from _table(
        ("network", "n", "slices", "CA", "ASR"),
        [
            (plain(each.name), each.n, len(each.seeds), _range(each.ca), _range(each.asr))
            for each in found
        ],
    )


def _range(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    return (
        f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else _three(mean)
    )


# --- seconds and troubles ---------------------------------------------------------------------


def _seconds(rows: Sequence[Row]) -> Iterator[str]:
    timed = [
        row
        for row in tallies.standard(rows)
        if row.core_seconds is not None and row.defence not in ("none", ANP_BEST)
    ]
    kinds = list(dict.fromkeys(str(row.victim["network"]) for row in timed))
    if not kinds:
        return
    yield "## Seconds\n"
    yield "Of one core, all threads added up, 500 pictures; the median over networks of a kind.\n"
    yield "Rows that a GPU measured do not count here.\n"
    yield from _table(
        ("defence", *kinds),
        [
            (f"`{name}`", *(_whole(_median_of(timed, name, kind)) for kind in kinds))
            for name in ABOUT
            if name not in ("none", ANP_BEST)
        ],
    )


def _median_of(rows: Sequence[Row], defence: str, network: str) -> float | None:
    return median_seconds(
        row for row in rows if row.defence == defence and row.victim["network"] == network
    )


def _troubles(rows: Sequence[Row]) -> Iterator[str]:
    found = [row for row in rows if row.error and row.is_current]
    if not found:
        return
    yield "## What failed\n"
    yield "A defence that fails counts as a network left as it was.\n"
    yield from _table(
        ("network", "defence", "why"),
        [(plain(row.name), f"`{row.defence}`", plain(row.error or "")) for row in found],
    )


def _earlier(rows: Sequence[Row]) -> Iterator[str]:
    found = [row for row in rows if row.ca and not row.is_current and row.error is None]
    if not found:
        return
    yield "## Earlier versions\n"
    yield "Measured with settings that are not today's; counted in nothing above.\n"
    yield from _table(
        ("network", "defence", "version", "n", "seed", "CA / ASR before", "after", "score"),
        [
            (
                plain(row.name), f"`{row.defence}`", row.version, row.n, row.seed, _both(row, 0),
                _both(row, 1), _three(row.judgement.score if row.judgement else None),
            )
            for row in found
        ],
    )  # fmt: skip


# --- pictures ---------------------------------------------------------------------------------


def pictures(rows: Sequence[Row], folder: str) -> tuple[Picture, ...]:
    """The scatter of surrogate against true ASR, where there are points."""
    found = tallies.points(rows)
    if not found:
        return ()
    alt = f"Surrogate against true ASR of {len(found)} networks, before and after `ours`."
    return (Picture(f"{folder}/surrogate.png", alt, lambda: _scatter(found)),)


def _scatter(found: Sequence[tallies.Point]) -> Figure:
    figure, axes = canvas(4.5, "True ASR against surrogate ASR")
    axes.plot((0, 1), (0, 1), color=LINES, linewidth=1)
    for after, colour, name in ((False, BEFORE, "before"), (True, AFTER, "after")):
        some = [each for each in found if each.after == after]
        axes.scatter(
            [each.surrogate for each in some], [each.true for each in some], 26, colour,
            label=name, alpha=0.8, zorder=3,
        )  # fmt: skip
    axes.set_xlabel("largest surrogate ASR, from clean pictures alone", color=MUTED)
    axes.set_ylabel("true ASR", color=MUTED)
    legend(axes)
    return figure


# --- cells ------------------------------------------------------------------------------------


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield from table(heads, map(line, rows)).splitlines()


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _interval(rate: Rate) -> str:
    return f"{rate.low:.3f} – {rate.high:.3f}"


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return "–"
    return f"{round(rate.value * rate.n)} of {rate.n} ({rate.low:.2f} – {rate.high:.2f})"
