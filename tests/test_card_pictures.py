"""The pictures on a card: what they draw is what the report says."""

from __future__ import annotations

import io
from dataclasses import replace

import matplotlib
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from PIL import Image

from rnp_hub.hub_cards import pictures as drawing
from rnp_hub.hub_cards.pictures import pictures
from rnp_hub.report import RunReport, TriedFilter
from tests.card_reports import CLEAN, HOSTILE, MANY, REAL_RUN, SURROGATE, TIMM

REAL = RunReport.from_json(REAL_RUN.read_bytes())


def dots(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    """The points of each scatter by its name in the legend."""
    return {
        str(each.get_label()): [(float(x), float(y)) for x, y in each.get_offsets()]
        for each in figure.axes[0].collections
        if isinstance(each, PathCollection)
    }


def test_masks() -> None:
    histogram = TIMM.prune.mask_histogram
    assert histogram is not None
    bars = drawing.masks(histogram).axes[0].patches
    heights = [bar.get_height() for bar in bars]
    assert heights[:20] == [1, 2, *[0] * 17, 477]
    assert heights[20:] == [1, 1, *[0] * 18]
    assert bars[0].get_x() + bars[0].get_width() / 2 == pytest.approx(0.025)


def test_pruning() -> None:
    figure = drawing.pruning(TIMM)
    assert dots(figure) == {
        "silenced": [(1, 0.958), (3, 0.956)],
        "put back: cost too much": [(2, 0.925), (4, 0.938)],
    }
    standing, limit = figure.axes[0].lines
    assert list(standing.get_ydata()) == [0.96, 0.958, 0.958, 0.956, 0.956]
    assert list(limit.get_ydata()) == pytest.approx([0.94, 0.94])


def test_a_filter_that_everything_hangs_on_does_not_flatten_the_rest() -> None:
    vital = TriedFilter("layer1.0.bn1", 0, 0.06, 0.1, False)
    prune = replace(TIMM.prune, slice_accuracy=(0.95,), tried=(*TIMM.prune.tried[:1], vital))
    report = replace(TIMM, prune=prune)
    figure = drawing.pruning(report)
    assert dots(figure)["put back: far below"] == [(2, pytest.approx(0.874))]
    assert figure.axes[0].get_ylim()[0] > 0.85


def test_labels() -> None:
    figure = drawing.labels(TIMM)
    assert dots(figure) == {"before": [(0.95, 0), (0.5, 1)], "after": [(0.94, 0), (0.5, 1)]}
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["cat", "ship"]


def test_a_name_the_font_lacks_is_drawn_as_its_number() -> None:
    ticks = drawing.labels(HOSTILE).axes[0].get_yticklabels()
    assert [tick.get_text() for tick in ticks] == ['</details><script>alert("1"…', "2"]


def test_of_many_labels_those_that_lost_most_are_drawn() -> None:
    figure = drawing.labels(MANY)
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert names == [str(label) for label in range(999, 979, -1)]
    assert len(dots(figure)["after"]) == 20


LONG_NAMES = replace(
    MANY,
    source=replace(
        MANY.source, label_names=tuple(f"{n:04} Wolpertinger, antlers {n}" for n in range(1000))
    ),
    before=replace(MANY.before, per_class_accuracy=tuple(n * 37 % 100 / 100 for n in range(1000))),
)


@pytest.mark.parametrize(
    "report", [REAL, HOSTILE, LONG_NAMES, SURROGATE], ids=["real", "hostile", "long", "triggers"]
)
def test_files_are_small_wide_and_white(report: RunReport) -> None:
    before = dict(matplotlib.rcParams)
    for each in pictures(report):
        content = each.png()
        assert len(content) < 60_000, each.path
        assert content == each.png()
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.width == 1280
            assert picture.convert("RGBA").getpixel((1, 1)) == (255, 255, 255, 255)
    assert dict(matplotlib.rcParams) == before


def test_triggers_are_shown_as_far_as_they_are_pictures() -> None:
    (shown,) = (each for each in pictures(SURROGATE) if each.path == "pictures/triggers.png")
    assert shown.alt == "Reconstructed triggers on a test card: patch, surrogate ASR 99 %."
    axes = shown.figure().axes
    assert axes[0].get_title(loc="left") == "patch: 99 %"
    assert [len(each.images) for each in axes] == [1, 0, 0, 0, 0]
    assert axes[0].images[0].get_array().tolist() == [[[255, 0, 0]]]


def test_only_what_there_are_figures_for() -> None:
    assert [each.path for each in pictures(CLEAN)] == ["pictures/labels.png"]
    assert len(pictures(HOSTILE)) == 3
