"""`rnp-hub bench run`: one line a pair, resumed where it stopped, whatever fails on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rnp_hub.architecture import Architecture
from rnp_hub.bench import victims
from rnp_hub.bench.defences import ABOUT
from rnp_hub.bench.grid import (
    EPOCH,
    GRID,
    MEASURING,
    SLICES,
    Choice,
    Draw,
    Pair,
    Subject,
    missing,
    plan,
    run,
)
from rnp_hub.bench.rows import Row, append, read
from rnp_hub.bench.victims import Studio, Victim
from rnp_hub.compute import Compute
from rnp_hub.data import DataConfig, Target, load
from rnp_hub.errors import ConfigError
from rnp_hub.triggers import stamp
from tests.models import ROOT, invoke

CLEAN = Victim("tiny")
POISONED = replace(CLEAN, attack="badnets", target=2, tuned=True)
DRAW = Draw(n=60)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """Two networks with random weights in a cache, and the digits as their pictures."""
    with pytest.MonkeyPatch.context() as patch:
        tiny = Architecture("resnet18", 10, {"channels": [2, 2, 4, 4]}, "cifar")
        patch.setitem(victims.NETWORKS, "tiny", tiny)  # type: ignore[arg-type]
        cache = tmp_path_factory.mktemp("networks")
        found = load(DataConfig("digits", n=500, eval_n=200), Target(10, victims.PREPROCESS))
        parts = {"train": found.clean.pictures, "test": found.evaluation.pictures}
        stored = {f"{k}.{f}": getattr(p, f) for k, p in parts.items() for f in ("images", "labels")}
        save_file(stored, cache / "pictures.safetensors")
        for victim in (CLEAN, POISONED):
            torch.manual_seed(0)
            module, test = tiny.build(), parts["test"]
            poisoned = stamp(test, "badnets", victim.target).pictures if victim.attack else None
            victims.write(cache / victim.name, victim, module, poisoned, {"seconds": 1.0})
        yield Studio(cache, "digits", Compute())


def pairs(*defences: str, victim: Victim = POISONED) -> list[Pair]:
    return [Pair(victim, name, DRAW) for name in defences]


def test_each_pair_leaves_a_line_and_is_not_measured_again(studio: Studio, tmp_path: Path) -> None:
    log, said = tmp_path / "grid.jsonl", list[str]()
    asked = [*pairs("none", "random"), *pairs("none", victim=CLEAN)]
    rows = run(asked, studio, log, said.append)
    assert [(row.name, row.defence) for row in rows] == [
        (POISONED.name, "none"), (POISONED.name, "random"), (CLEAN.name, "none"),
    ]  # fmt: skip
    none, random, clean = rows
    assert none.ca is not None
    assert none.ca[0] == none.ca[1]
    assert none.ca[0].n == 200
    assert none.asr is not None
    assert none.twin is not None
    # The twin has the same random weights here.
    assert none.asr[0] == none.asr[1] == none.twin
    assert (none.victim["attack"], none.n, none.seed) == ("badnets", 60, 0)
    assert len(none.weights) == 12
    assert none.device == Compute().describe()
    assert clean.asr is clean.twin is None
    # It follows `ours`, which was not run: the row says so and shows the network as it was.
    assert "ours" in str(random.error)
    assert random.ca == none.ca
    before = log.read_text()
    assert len(before.splitlines()) == 3
    assert [line for line in said if "to measure" in line] == [
        f"{POISONED.name}: 2 of 2 to measure", f"{CLEAN.name}: 1 of 1 to measure",
    ]  # fmt: skip
    append(log, replace(none, defence="ours", version=ABOUT["ours"].version, silenced=4))
    again = run(asked, studio, log, said.append)
    assert [row.silenced for row in again if row.defence == "random"] == [4]
    assert log.read_text().startswith(before)
    assert len(log.read_text().splitlines()) == 5, "one for `ours`, one for what had failed"
    assert "random" in said[-1]
    assert "4 silenced" in said[-1]


def test_a_network_that_cannot_be_had_does_not_stop_the_rest(
    studio: Studio, tmp_path: Path
) -> None:
    log = tmp_path / "grid.jsonl"
    rows = run([Pair(replace(CLEAN, network="none"), "none"), *pairs("none")], studio, log)
    assert [row.error for row in rows] == ["KeyError: 'none'", None]
    assert rows[0].ca is None


def test_a_data_set_that_cannot_be_had_is_no_matter_of_a_row(tmp_path: Path) -> None:
    log, nowhere = tmp_path / "grid.jsonl", str(tmp_path / "no-such-folder")
    words = ["bench", "run", "--log", log, "--cache", tmp_path / "cache", "--data", nowhere]
    done = invoke(*words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no-such-folder" in done.stderr
    assert not log.exists()


def test_stopping_says_what_is_kept(studio: Studio, tmp_path: Path) -> None:
    log = tmp_path / "grid.jsonl"

    def stop(line: str) -> None:
        if "to measure" not in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"what was measured stands in .*grid\.jsonl"):
        run(pairs("none", "random"), studio, log, stop)
    assert [row.defence for row in read(log)] == ["none"]


def test_settings_that_changed_are_measured_again(tmp_path: Path) -> None:
    row = Row(POISONED.name, {}, "", "ft", ABOUT["ft"].version, 60, 0)
    assert missing(pairs("ft"), [row], tmp_path) == []
    for changed in ({"version": 0}, {"error": "it failed"}, {"seed": 1}):
        assert missing(pairs("ft"), [replace(row, **changed)], tmp_path) == pairs("ft"), changed


def test_a_network_trained_anew_is_measured_again(studio: Studio, tmp_path: Path) -> None:
    """And random filters are not as many as another network lost."""
    log = tmp_path / "grid.jsonl"
    (row,) = run(pairs("none"), studio, log)
    other = replace(row, weights="0" * 12)
    assert missing(pairs("none"), [row], studio.cache) == []
    assert missing(pairs("none"), [other], studio.cache) == pairs("none")
    assert missing(pairs("none"), [other], tmp_path) == [], "it would have to be trained first"
    append(log, other)
    (again,) = run(pairs("none"), studio, log)
    assert (again.weights, again.ca) == (row.weights, row.ca)
    append(log, replace(other, defence="ours", version=ABOUT["ours"].version, silenced=4))
    (random,) = run(pairs("random"), studio, log)
    assert "ours, which was not run before it on these weights" in str(random.error)


def test_rows_of_a_network_that_is_gone_end_when_it_is_trained(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the sake of one that is missing, and then all are measured in one go."""
    log, empty = tmp_path / "grid.jsonl", replace(studio, cache=tmp_path / "cache")
    shutil.copytree(studio.cache, empty.cache, ignore=lambda *_: [POISONED.name])

    def train(_: Studio, victim: Victim, folder: Path) -> None:
        shutil.copytree(studio.cache / victim.name, folder)

    monkeypatch.setattr(Studio, "_train", train)
    (row,) = run(pairs("none"), studio, log)
    ours = replace(row, defence="ours", version=ABOUT["ours"].version, silenced=4)
    for old in (row, ours):
        append(log, replace(old, weights="0" * 12))
    assert missing(pairs("none", "random"), read(log), empty.cache) == pairs("random")
    found = run(pairs("none", "random"), empty, log)
    assert {each.weights for each in found} == {row.weights}
    assert "on these weights" in str(found[1].error)


def test_the_slice_is_drawn_as_the_product_draws_it(studio: Studio) -> None:
    subject = Subject(studio, studio.get(POISONED))
    found = subject.slice(DRAW)
    product = load(DataConfig("digits", n=60), Target(10, victims.PREPROCESS)).clean.pictures
    assert torch.equal(found.images, product.images)
    assert found.labels.bincount().tolist() == [6] * 10


def test_the_grid_is_as_large_as_was_asked() -> None:
    assert len({victim.name for victim in GRID}) == len(GRID)
    assert len({victim.attack for victim in GRID if victim.attack}) >= 8
    clean = [victim for victim in GRID if victim.attack is None]
    assert len(clean) >= 10
    assert len({victim.seed for victim in clean}) >= 5
    assert len({victim.style for victim in clean}) >= 5
    assert {victim.poison_rate for victim in GRID if victim.attack} >= {0.1, 0.01}
    assert len({victim.target for victim in GRID if victim.attack}) >= 8
    # The clean network comes before those that are made from it.
    for place, victim in enumerate(GRID):
        assert victim.attack is None or victim.clean_twin in GRID[:place], victim.name


def test_a_choice_of_the_grid() -> None:
    wanet = Choice(["*-wanet-*"], ["ft", "anp-best"]).pairs()
    assert {pair.victim.attack for pair in wanet} == {"wanet"}
    assert [pair.defence for pair in wanet[:2]] == ["ft", "anp-best"]
    clean = Choice(["*-clean-sgd-s0"]).pairs()
    asked = {pair.defence for pair in clean}
    assert "anp-best" not in asked, "there is no trigger to peek at"
    assert "forced" in asked
    assert "forced" not in {pair.defence for pair in Choice(["*-wanet-*"]).pairs()}
    slices = Choice(slices=True).pairs()
    assert {pair.defence for pair in slices} == {"ours"}
    assert Choice(defences=["forced"], slices=True).pairs() == [], "none of these is clean"
    assert len(slices) == 3 * len(SLICES)
    assert {pair.draw.n for pair in slices} == {50, 100, 250, 500, 1000}


def test_every_network_of_the_log_can_be_made_again() -> None:
    made = {victim.name for victim in GRID}
    kept = read(ROOT / "docs" / "evidence" / "grid.jsonl")
    assert {row.name for row in kept} - made == set()
    assert len(made) == len(GRID)


def test_a_plan_counts_what_is_missing(tmp_path: Path) -> None:
    log, cache = tmp_path / "log", tmp_path / "cache"
    step, *_ = plan(Choice(["resnet18-quarter-badnets-t0-r100-sgd-s0-tuned"]).pairs(), log, cache)
    # 3 epochs, after 12 of the clean network that it starts from.
    assert step.train == 15 * EPOCH
    clean = cache / "resnet18-quarter-clean-sgd-s0"
    clean.mkdir(parents=True)
    (clean / "truth.json").write_text("{}")
    victim = next(victim for victim in GRID if victim.name == step.name)
    fields = {"network": victim.network}
    append(log, Row(victim.name, fields, "", "ft", ABOUT["ft"].version, 500, 0, seconds=1000.0))
    again, other = plan([Pair(victim, "ft"), Pair(replace(victim, seed=1), "ft")], log, cache)
    assert (again.rows, again.train, again.defend) == (0, 0, 0)
    assert other.defend == 1000 + MEASURING, "as long as the log says it took before"


def test_the_plan_on_the_command_line(tmp_path: Path) -> None:
    words = ["bench", "run", "--plan", "--log", tmp_path / "log", "--cache", tmp_path / "cache"]
    done = invoke(*words)
    assert done.exit_code == 0, done.stderr
    assert "resnet18-quarter-badnets-t0-r100-sgd-s0-tuned" in done.stdout
    assert "hours of one core." in done.stdout
    steps = json.loads(invoke(*words, "--only", "*-blend-*", "--json").stdout)
    assert steps
    assert all("-blend-" in step["name"] for step in steps)
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--only", "no-such"], "no network of the grid is called 'no-such'; `--plan` lists"),
        (["--defence", "magic"], "there is no defence 'magic'; there is none, ours, forced"),
    ],
)
def test_names_that_fit_nothing(words: list[str], sentence: str, tmp_path: Path) -> None:
    done = invoke("bench", "run", *words, "--log", tmp_path / "log", "--cache", tmp_path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda line: line[:-20], "grid.jsonl:1 is no row of the grid (the line: "),
        (lambda line: line.replace('"n": 60', '"n": "x"'), "1 is no row of the grid (n: "),
    ],
)
def test_a_log_that_is_none(spoil: Callable[[str], str], sentence: str, tmp_path: Path) -> None:
    log = tmp_path / "grid.jsonl"
    row = Row(CLEAN.name, {}, "", "ft", 1, 60, 0)
    append(log, row)
    assert read(log) == [row]
    log.write_text(spoil(log.read_text()))
    with pytest.raises(ConfigError) as caught:
        read(log)
    assert sentence in str(caught.value)
