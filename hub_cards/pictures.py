"""The pictures on a card, drawn from the report alone.

A card is some 800 points wide and the pictures 1280, for screens with small pixels; their ground
is white and opaque, so that they read on a dark page too. matplotlib's figures are used as objects:
no pyplot, no state that a caller could notice.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from rnp_hub.hub_cards.tables import SHOWN, ClassRow, classes, points
from rnp_hub.report import MaskHistogram, RunReport
from rnp_hub.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

FOLDER = "pictures"
WIDTH, DPI = 8.0, 160
INK, MUTED, LINES = "#1f2328", "#59636e", "#d8dee4"
BEFORE, AFTER, OUT = "#8c959f", "#0072b2", "#d55e00"
"""The last two keep apart for every kind of colour vision (Okabe and Ito 2008)."""
LONGEST = 28
"""Letters of a label's name in a picture."""
MOST_TRIGGERS, LARGEST, PNG = 5, 1024, "data:image/png;base64,"
"""Triggers that are shown, their largest side in pixels, and how they begin."""


@dataclass(frozen=True)
class Picture:
    """A picture below the card.

    Attributes:
        path: relative to the card.
        alt: what it shows, for those who cannot see it.
        figure: draws it.
    """

    path: str
    alt: str
    figure: Callable[[], Figure]

    def png(self) -> bytes:
        """The file's content, the same for the same report and matplotlib."""
        file = io.BytesIO()
        self.figure().savefig(file, format="png", dpi=DPI, metadata={"Software": None})
        return _fewer_colours(file)


def pictures(report: RunReport) -> tuple[Picture, ...]:
    """Those there are figures for, in the order they stand on the card."""
    found = []
    histogram, tried = report.prune.mask_histogram, report.prune.tried
    if histogram:
        alt = (
            f"Histogram of {report.prune.filters:,} learned masks between 0 and 1; "
            f"{report.prune.silenced:,} filters with low masks were silenced."
        )
        found.append(Picture(f"{FOLDER}/masks.png", alt, lambda: masks(histogram)))
    if tried:
        start, end = report.prune.slice_accuracy[0], _standing(report)[-1]
        alt = (
            f"Clean accuracy on the slice while {len(tried):,} filters were tried, "
            f"{_order(report)} first: from {100 * start:.1f} % to {100 * end:.1f} %; "
            f"{report.prune.silenced:,} of them stayed silenced."
        )
        found.append(Picture(f"{FOLDER}/pruning.png", alt, lambda: pruning(report)))
    shown = _triggers(report)
    if shown:
        alt = "Reconstructed triggers on a test card: " + ", ".join(
            f"{each.kind}, surrogate ASR {_percent(each.asr, None)}" for each in shown
        )
        found.append(Picture(f"{FOLDER}/triggers.png", f"{alt}.", lambda: triggers(shown)))
    rows = classes(report)
    if rows:
        which = f"the {SHOWN} labels that lost most" if len(rows) > SHOWN else "each label"
        worst, best = rows[0], rows[:SHOWN][-1]
        alt = (
            f"Clean accuracy of {which} before and after, from {points(worst.change)} points "
            f"({_short(worst.name)}) to {points(best.change)} ({_short(best.name)})."
        )
        found.append(Picture(f"{FOLDER}/labels.png", alt, lambda: labels(report)))
    return tuple(found)


def masks(histogram: MaskHistogram) -> Figure:
    """How many filters ended with which mask, and which of them were silenced."""
    bins = len(histogram.left)
    everything = [out + left for out, left in zip(histogram.silenced, histogram.left, strict=True)]
    centres, width = [(bin_ + 0.5) / bins for bin_ in range(bins)], 0.86 / bins
    figure, axes = canvas(2.7, "Learned mask of every filter")
    axes.bar(centres, everything, width, color=BEFORE, label="left as they were")
    axes.bar(centres, histogram.silenced, width, color=OUT, label="silenced, of these")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 4 * max(*everything, 1))
    axes.set_yticks([10**power for power in range(6) if 10**power <= 4 * max(everything)])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_minor_locator(_no_ticks())
    axes.set_xlim(0, 1)
    axes.set_xlabel("mask: 0 the clean task does better without, 1 it needs", color=MUTED)
    axes.set_ylabel("filters", color=MUTED)
    for centre, count, out in zip(centres, everything, histogram.silenced, strict=True):
        if count:
            axes.annotate(
                f"{out:,} of {count:,}" if 0 < out < count else f"{count:,}",
                (centre, count), (0, 2), textcoords="offset points",
                ha="center", fontsize=7.5, color=OUT if out else MUTED,
            )  # fmt: skip
    legend(axes)
    return figure


def pruning(report: RunReport) -> Figure:
    """Clean accuracy on the slice as one filter after the other was tried."""
    figure, axes = canvas(2.7, f"Clean accuracy on the slice of {report.data.n:,}")
    standing, drop = _standing(report), float(report.config.get("max_ca_drop", 0))
    limit = standing[0] - drop
    axes.step(range(len(standing)), standing, where="post", color=AFTER, linewidth=1.8)
    axes.axhline(limit, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"limit: {100 * drop:.3g} points below the start", (0, limit), (4, -3),
        textcoords="offset points", ha="left", va="top", fontsize=8, color=MUTED,
    )  # fmt: skip
    # One filter that everything hangs on must not flatten the rest of the picture.
    floor = 3 * min(*standing, limit) - 2 * max(standing)
    tried = list(enumerate(report.prune.tried, 1))
    put_back = [(at, each.accuracy) for at, each in tried if not each.silenced]
    _marks(
        axes, [(at, each.accuracy) for at, each in tried if each.silenced], AFTER, "o", "silenced"
    )
    _marks(
        axes, [each for each in put_back if each[1] >= floor], OUT, "x", "put back: cost too much"
    )
    _marks(
        axes, [(at, floor) for at, low in put_back if low < floor], OUT, "v", "put back: far below"
    )
    axes.set_xlim(0, len(tried) + 0.5)
    axes.margins(y=0.18)
    axes.xaxis.set_major_locator(_whole_ticks())
    axes.yaxis.set_major_formatter(_percent)
    axes.set_xlabel(f"filters tried, {_order(report)} first", color=MUTED)
    axes.set_ylabel("accuracy", color=MUTED)
    legend(axes)
    return figure


def _order(report: RunReport) -> str:
    return "the most telling" if report.prune.rule == "surrogates" else "the lowest mask"


@dataclass(frozen=True)
class _Shown:
    """A reconstructed trigger on a test card; `asr` in [0, 1]."""

    kind: str
    asr: float
    picture: Image.Image


def _triggers(report: RunReport) -> tuple[_Shown, ...]:
    """Those in the verdict's evidence, as far as they are small PNGs."""
    found = report.verdict.evidence.get("triggers", [])
    if not isinstance(found, list):
        return ()
    shown = (_read(each) for each in found[:MOST_TRIGGERS] if isinstance(each, dict))
    return tuple(each for each in shown if each)


def _read(entry: Mapping[str, object]) -> _Shown | None:
    kind, asr, uri = entry.get("kind"), entry.get("asr"), str(entry.get("picture", ""))
    if not isinstance(asr, int | float) or not uri.startswith(PNG):
        return None
    try:
        with Image.open(
            io.BytesIO(base64.b64decode(uri.removeprefix(PNG))), formats=["PNG"]
        ) as png:
            small = max(png.size) <= LARGEST
            return _Shown(_short(str(kind)), float(asr), png.convert("RGB")) if small else None
    except (OSError, ValueError):
        return None


def triggers(shown: Sequence[_Shown]) -> Figure:
    """The triggers that were reconstructed for the suspected label, side by side."""
    from matplotlib.figure import Figure

    figure = Figure((WIDTH, 2.3), facecolor="white", layout="constrained")
    for axes, each in zip(figure.subplots(1, MOST_TRIGGERS), shown, strict=False):
        axes.imshow(each.picture, interpolation="nearest")
        title = f"{each.kind}: {100 * each.asr:.3g} %"
        axes.set_title(title, loc="left", fontsize=9, color=INK)
    for axes in figure.axes:
        axes.set_axis_off()
    title = "Triggers reconstructed from clean pictures, on a test card, and their surrogate ASR"
    figure.suptitle(title, x=0, ha="left", fontsize=11, fontweight="bold", color=INK)
    return figure


def _marks(
    axes: Axes, points: Sequence[tuple[int, float]], colour: str, marker: str, name: str
) -> None:
    if points:
        places, values = zip(*points, strict=True)
        size = 14 if marker == "o" else 30
        axes.scatter(places, values, size, colour, marker=marker, label=name, zorder=3)


def labels(report: RunReport) -> Figure:
    """Clean accuracy by label; of many labels, those that lost most."""
    everything = classes(report)
    rows = everything[:SHOWN]
    title = "Clean accuracy by label" + ", worst changes" * (len(everything) > SHOWN)
    figure, axes = canvas(1.05 + 0.24 * len(rows), title)
    places = range(len(rows))
    for place, row in enumerate(rows):
        colour = OUT if row.change < 0 else AFTER
        axes.plot((row.before, row.after), (place, place), color=colour, linewidth=1.6, alpha=0.5)
        axes.annotate(
            points(row.change), (1, place), (6, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", fontsize=8.5, color=colour,
        )  # fmt: skip
    axes.scatter([row.before for row in rows], places, 26, BEFORE, label="before", zorder=3)
    axes.scatter([row.after for row in rows], places, 26, AFTER, label="after", zorder=3)
    axes.set_yticks(places, [_drawable(row) for row in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.04)
    axes.xaxis.set_major_formatter(_percent)
    axes.grid(axis="x", color=LINES, linewidth=0.8)
    axes.grid(visible=False, axis="y")
    legend(axes)
    return figure


def _standing(report: RunReport) -> list[float]:
    """Accuracy of what was silenced so far, at the start and after each try."""
    standing = [report.prune.slice_accuracy[0]]
    for each in report.prune.tried:
        standing.append(each.accuracy if each.silenced else standing[-1])
    return standing


def canvas(height: float, title: str) -> tuple[Figure, Axes]:
    """A figure of the card's width, `height` inches high, with a title and faint lines."""
    from matplotlib.figure import Figure

    figure = Figure((WIDTH, height), facecolor="white", layout="constrained")
    axes = figure.add_subplot(facecolor="white")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINES)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=LINES, linewidth=0.8)
    return figure, axes


def legend(axes: Axes) -> None:
    """Above the axes, at the right end of the title's line, where no figure is hidden by it."""
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=9,
        labelcolor=INK, borderaxespad=0.2, handletextpad=0.4, columnspacing=1.2,
    )  # fmt: skip


def _whole_ticks() -> Locator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def _no_ticks() -> Locator:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _percent(value: float, _: object) -> str:
    return f"{100 * value:.4g} %"


def _short(name: str) -> str:
    shown = one_line(name)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def _drawable(row: ClassRow) -> str:
    """A label's name, or its number where the font lacks a letter; the table has the name."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font, name = get_font(findfont(FontProperties())), _short(row.name)
    return name if all(font.get_char_index(ord(letter)) for letter in name) else f"{row.label}"


def _fewer_colours(file: io.BytesIO) -> bytes:
    """A palette of 128 does for lines and letters, at a fraction of the bytes."""
    from PIL import Image

    small = io.BytesIO()
    with Image.open(file) as picture:
        palette = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        palette.save(small, "png", optimize=True)
    return small.getvalue()
