"""`rnp-hub bench report`: the numbers of the page, by hand on a small log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rnp_hub.bench import tallies
from rnp_hub.bench.defences import ABOUT, Judgement
from rnp_hub.bench.evidence import BEGIN, END, page
from rnp_hub.bench.rows import Row, append
from rnp_hub.evaluate import Rate
from tests.models import invoke


def rate(value: float, n: int = 1000) -> Rate:
    return Rate.of(round(value * n), n)


def row(
    name: str,
    defence: str,
    ca: tuple[float, float],
    asr: tuple[float, float] | None = None,
    **others: object,
) -> Row:
    attack = None if asr is None else name.partition("-")[0]
    fields = {"network": "resnet18-quarter", "attack": attack, "target": 3}
    rates = None if asr is None else (rate(asr[0]), rate(asr[1]))
    made = Row(
        name, fields, "0" * 12, defence, ABOUT[defence].version, 500, 0,
        ca=(rate(ca[0]), rate(ca[1])), asr=rates, twin=rate(0.05) if asr else None, seconds=10.0,
    )  # fmt: skip
    return Row(**{**vars(made), **others})


def said(
    verdict: bool | None, score: float, label: int = 3, before: float = 1.0, after: float = 0.0
) -> Judgement:
    surrogate = {"patch": (before, after), "warp": (before / 2, after / 2)}
    return Judgement(verdict, score, label, residual=False, surrogate=surrogate)


ROWS = [
    # Two networks with one attack, one with another, one whose backdoor does not work.
    row("badnets-a", "ours", (0.8, 0.79), (1.0, 0.0), judgement=said(True, 0.9, after=0.1)),
    row("badnets-b", "ours", (0.8, 0.81), (1.0, 0.02), judgement=said(True, 0.7, after=0.2)),
    row("blend-a", "ours", (0.9, 0.88), (0.9, 0.1), judgement=said(None, 0.4, label=1, after=0.3)),
    row("sig-a", "ours", (0.9, 0.9), (0.5, 0.5), judgement=said(False, 0.1, before=0.4, after=0.4)),
    row("clean-a", "ours", (0.9, 0.9), judgement=said(False, 0.2), silenced=0),
    row("clean-b", "ours", (0.9, 0.9), judgement=said(True, 0.6), silenced=7),
    row("badnets-a", "ft", (0.8, 0.8), (1.0, 0.5)),
    row("badnets-b", "ft", (0.8, 0.8), (1.0, 1.0), error="ModelError: it broke"),
    row("blend-a", "ft", (0.9, 0.9), (0.9, 0.1)),
    row("badnets-a", "anp", (0.8, 0.8), (1.0, 0.005)),
]  # fmt: skip


def test_a_summary_of_each_defence() -> None:
    ours, ft, anp = tallies.summaries(ROWS)
    assert (ours.defence, ours.networks, ours.failed) == ("ours", 3, 0)
    assert ours.asr == pytest.approx((0 + 0.02 + 0.1) / 3)
    assert ours.above == pytest.approx((0 + 0 + 0.05) / 3), "the twins have 0.05"
    assert (ours.worst, ours.worst_on) == (0.1, "blend-a")
    assert ours.drop == pytest.approx((0.01 - 0.01 + 0.02) / 3)
    # A gain of clean accuracy is no gain of the cost.
    assert ours.cost == pytest.approx((0.01 + 0.02 + 0.12) / 3)
    assert (ft.defence, ft.networks, ft.failed, ft.worst) == ("ft", 3, 1, 1.0)
    assert ft.cost == pytest.approx((0.5 + 1.0 + 0.1) / 3)
    assert ft.ours == pytest.approx(ours.cost)
    # BadNets: 0.015 against 0.75; Blend: 0.12 against 0.1.
    assert (ft.better, ft.attacks) == (1, 2)
    # ANP ran on one network only, and is compared there.
    assert (anp.networks, anp.attacks, anp.better) == (1, 1, 0)
    assert anp.ours == pytest.approx(0.01)


def test_other_slices_do_not_count_in_the_summaries() -> None:
    other = row("badnets-a", "ours", (0.8, 0.1), (1.0, 1.0), n=50)
    assert tallies.summaries([*ROWS, other]) == tallies.summaries(ROWS)


def test_what_a_gpu_took_is_no_time_of_a_core() -> None:
    """Older rows do not say what they were measured on; they are all of processors."""
    rows = [
        row("badnets-a", "ft", (0.8, 0.8), (1.0, 0.5)),
        row("blend-a", "ft", (0.8, 0.8), (1.0, 0.5), seconds=20.0, device="cpu (EPYC, 1 threads)"),
        row("sig-a", "ft", (0.8, 0.8), (1.0, 0.5), seconds=300.0, device="NVIDIA H200"),
        row("anp-a", "anp", (0.8, 0.8), (1.0, 0.5), seconds=300.0, device="NVIDIA H200"),
    ]
    ft, anp = tallies.summaries(rows)
    assert (ft.networks, ft.seconds) == (3, 15.0)
    assert (anp.networks, anp.seconds) == (1, None)


def test_the_verdicts() -> None:
    found = tallies.verdicts(ROWS)
    assert found is not None
    assert found.detected == Rate.of(2, 3)
    assert found.alarms == Rate.of(1, 2)
    assert (found.undecided, found.labels) == (1, Rate.of(2, 2))
    assert found.wrong == ("clean-b",)
    # 0.9 and 0.7 are above both clean scores, 0.4 above one of 0.2 and 0.6: 5 of 6 pairs.
    assert found.auc == pytest.approx(5 / 6)
    assert tallies.verdicts(ROWS, "ft") is None


def test_ties_count_half_in_the_area_under_the_curve() -> None:
    assert tallies.auc([1.0, 0.5], [0.5, 0.0]) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert tallies.auc([], [1.0]) is None


def test_a_threshold_that_never_saw_the_attack() -> None:
    badnets, blend = tallies.leave_one_out(ROWS)
    # From Blend's 0.4 and the clean 0.2 and 0.6: best half-way between 0.2 and 0.4.
    assert (badnets.attack, badnets.threshold) == ("badnets", pytest.approx(0.3))
    assert badnets.detected == Rate.of(2, 2)
    assert badnets.alarms == Rate.of(1, 2)
    # From BadNets' 0.9 and 0.7: between 0.6 and 0.7, which misses Blend.
    assert (blend.attack, blend.threshold) == ("blend", pytest.approx(0.65))
    assert blend.detected == Rate.of(0, 1)


def test_surrogates_against_the_truth() -> None:
    found = tallies.points(ROWS)
    assert [(p.surrogate, p.true) for p in found if not p.after] == [
        (1.0, 1.0), (1.0, 1.0), (1.0, 0.9), (0.4, 0.5),
    ]  # fmt: skip
    assert [(p.surrogate, p.true) for p in found if p.after] == [
        (0.1, 0.0), (0.2, 0.02), (0.3, 0.1), (0.4, 0.5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pairs", "rank"),
    [
        ([(0.1, 10), (0.2, 20), (0.9, 21)], 1.0),
        ([(0.1, 3), (0.2, 2), (0.3, 1)], -1.0),
        # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / √(4.5 · 5).
        ([(1, 1), (2, 2), (2, 3), (3, 4)], 4.5 / (4.5 * 5) ** 0.5),
        ([(1, 1), (1, 2)], None),
    ],
)
def test_rank_correlation(pairs: list[tuple[float, float]], rank: float | None) -> None:
    assert tallies.spearman(pairs) == (None if rank is None else pytest.approx(rank))


def test_the_spread_over_slices() -> None:
    more = [row("blend-a", "ours", (0.9, 0.8), (0.9, 0.2), seed=1)]
    more += [row("blend-a", "ours", (0.9, 0.7), (0.9, 0.6), n=50)]
    few, many = tallies.spreads([*ROWS, *more])
    assert (few.name, few.n, few.seeds, few.ca, few.asr) == ("blend-a", 50, (0,), (0.7,), (0.6,))
    assert (many.n, many.seeds, many.ca, many.asr) == (500, (0, 1), (0.88, 0.8), (0.1, 0.2))


def test_what_was_asked_and_whether_it_is_met() -> None:
    found = {goal.what: goal for goal in tallies.goals(ROWS)}
    mean = "0.040 over 3 networks; 0.017 above their clean twins"
    assert found["mean ASR after"].measured == mean
    assert found["worst ASR after"].measured == "0.100, blend-a; its clean twin 0.050"
    assert {what: goal.met for what, goal in found.items()} == {
        "mean ASR after": False,
        "worst ASR after": True,
        "mean CA drop": True,
        "mean of max(0, CA drop) + ASR, of all that do not peek, on the same networks": False,
        "attacks on which it is better than ANP": False,
        "verdict, ROC-AUC": False,
        "clean networks called backdoored": False,
        "label right among the detected": True,
        "clean networks left as they are": False,
    }


def test_forced_pruning_counts_on_clean_networks() -> None:
    forced = [row(f"clean-{name}", "forced", (0.9, ca)) for name, ca in (("a", 0.9), ("b", 0.88))]
    (goal,) = [goal for goal in tallies.goals([*ROWS, *forced]) if "--force" in goal.what]
    assert goal.measured == "+0.0100, at most +0.0200, over 2 networks"
    assert not goal.met, "one network loses two points"
    failed = row("clean-c", "forced", (0.9, 0.9), error="ModelError: it broke")
    assert goal in tallies.goals([*ROWS, *forced, failed])


def test_the_page() -> None:
    text = page(ROWS)
    assert "| `ft` | fine-tuning | 3 | 0.533 | 1.000 | +0.0000 | **0.533** | 0.050 |" in text
    line = "| badnets-a | 0.800 / 1.000 | 0.050 | 0.790 / 0.000 (0.000 – 0.004) | 0.800 / 0.500 |"
    assert line in text
    assert "| badnets-b | 0.800 / 1.000 | 0.050 | 0.810 / 0.020 (0.013 – 0.031) | failed |" in text
    assert "| *sig-a* | 0.900 / 0.500 |" in text
    assert "| clean-b | 0.900 | 0.900 | 7 |" in text
    assert "| badnets-b | `ft` | ModelError: it broke |" in text


def test_rows_of_an_earlier_version_are_shown_and_count_in_nothing() -> None:
    old = row("sig-z", "ours", (0.8, 0.8), (1.0, 0.9), version=1, judgement=said(False, 0.1))
    assert tallies.summaries([*ROWS, old]) == tallies.summaries(ROWS)
    assert tallies.goals([*ROWS, old]) == tallies.goals(ROWS)
    slices = [replace(old, seed=seed) for seed in (1, 2)]
    assert tallies.spreads([*ROWS, old, *slices]) == tallies.spreads(ROWS)
    failed = replace(old, error="ModelError: it broke")
    assert "sig-z" not in page([*ROWS, failed])
    assert "| sig-z | `ours` | 1 | 500 | 0 | 0.800 / 1.000 | 0.800 / 0.900 | 0.100 |" in page(
        [*ROWS, old]
    )
    assert "Earlier versions" not in page(ROWS)


def test_the_page_keeps_what_a_person_wrote(tmp_path: Path) -> None:
    log, out = tmp_path / "grid.jsonl", tmp_path / "evidence.md"
    for each in ROWS:
        append(log, each)
    out.write_text(f"# Mine\n\n{BEGIN}\nwas here\n{END}\n\n## Also mine\n")
    done = invoke("bench", "report", "--log", log, "--out", out)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.split() == [str(out), str(tmp_path / "evidence" / "surrogate.png")]
    text = out.read_text()
    assert text.startswith(f"# Mine\n\n{BEGIN}\n")
    assert text.endswith(f"{END}\n\n## Also mine\n")
    assert "was here" not in text
    assert "](evidence/surrogate.png)" in text
    assert (tmp_path / "evidence" / "surrogate.png").read_bytes().startswith(b"\x89PNG")
    invoke("bench", "report", "--log", log, "--out", out)
    assert out.read_text() == text


def test_a_page_without_a_place_and_a_log_without_rows(tmp_path: Path) -> None:
    log, out = tmp_path / "grid.jsonl", tmp_path / "evidence.md"
    done = invoke("bench", "report", "--log", log, "--out", out)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "holds no row" in done.stderr
    append(log, ROWS[0])
    out.write_text("# Mine\n")
    done = invoke("bench", "report", "--log", log, "--out", out)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "lacks the lines" in done.stderr
    assert out.read_text() == "# Mine\n"
