"""Every defence over every network with the same clean pictures (`rnp-hub bench run`).

Each pair leaves one line in a log as soon as it is measured, and what stands there is not measured
again. The networks come from the cache or are trained first (`victims.Studio`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import nn

from rnp_hub.bench.anp import adversarial_masks
from rnp_hub.bench.defences import ABOUT, DEFENCES, FORCED, RANDOM, Defended, random_filters
from rnp_hub.bench.oracle import ANP_BEST, anp_best
from rnp_hub.bench.rows import Key, Row, append, median_seconds, read
from rnp_hub.bench.victims import (
    CLASSES,
    PREPROCESS,
    STYLES,
    TUNED_EPOCHS,
    Studio,
    Trained,
    Victim,
    fingerprint,
    is_there,
)
from rnp_hub.compute import Compute
from rnp_hub.data import DataConfig, Target, load
from rnp_hub.errors import ConfigError, reason
from rnp_hub.evaluate import Rate, classified_rightly
from rnp_hub.network import Classifier, ImageSet
from rnp_hub.recover import Recovered

Say = Callable[[str], None]


@dataclass(frozen=True)
class Draw:
    """Which clean pictures: how many, and the seed of the draw and of the defence."""

    n: int = 500
    seed: int = 0


# --- the networks -----------------------------------------------------------------------------

_TUNED = Victim(tuned=True)
_SECOND = Victim(seed=1, style="smooth", tuned=True)
_SHORT = Victim(seed=4, style="short")
_LATER = (Victim(seed=2), Victim(seed=5, style="smooth"))
_TARGETS = {
    "badnets": 0, "wanet": 2, "blend": 3, "sig": 5, "trojan": 7, "dynamic": 1, "cl": 4, "lira": 6,
    "a-blend": 8, "filter": 9, "awp": 2, "blend-photo": 6, "warp": 2,
}  # fmt: skip
"""The label each attack asks for where nothing else is said."""
_ELSEWHERE = ("badnets", "wanet", "blend", "dynamic")
"""Attacks that are tuned into networks of other widths and kinds."""


def _with(base: Victim, attacks: Sequence[str], rate: float | None = None) -> Iterator[Victim]:
    for attack in attacks:
        yield replace(base, attack=attack, target=_TARGETS[attack], rate=rate)


def _small() -> Iterator[Victim]:
    """Clean networks of a quarter of the width, poisoned in three epochs; a second training."""
    yield Victim()
    yield from _with(_TUNED, [attack for attack in _TARGETS if attack != "warp"])
    yield replace(_SECOND, tuned=False)
    yield replace(_SECOND, attack="badnets", target=5, rate=0.01)
    yield replace(_SECOND, attack="wanet", target=0)
    yield from _with(_SECOND, ["badnets", "blend", "sig", "trojan", "filter"])
    yield from _with(_SECOND, ["blend", "trojan", "dynamic", "filter", "lira"], 0.01)


def _later() -> Iterator[Victim]:
    """Two more trainings, poisoned in three epochs, and one from the first epoch on."""
    attacks = ["trojan", "sig", "badnets", "blend", "filter", "blend-photo"]
    for base in _LATER:
        yield from _with(replace(base, tuned=True), attacks)
    yield from _with(_LATER[0], ["warp", "cl"])


def _controls() -> Iterator[Victim]:
    """Clean networks that differ in seed, schedule, augmentation and width; some tuned on."""
    for seed, style in enumerate(STYLES, 2):
        yield Victim(seed=seed, style=style)
    yield Victim("resnet18-half", seed=9)
    yield Victim("resnet18-half", seed=10, style="smooth")
    for clean in (Victim(), replace(_SECOND, tuned=False), _SHORT, *_LATER):
        yield replace(clean, tuned=True)
    for seed in range(11, 15):
        yield Victim(seed=seed, style="short")


def _short() -> Iterator[Victim]:
    """Networks of the short training, poisoned in three epochs and from the first epoch on."""
    yield from _with(replace(_SHORT, tuned=True), ["badnets", "blend", "sig", "trojan", "filter"])
    scratch = ["badnets", "trojan", "sig", "dynamic", "blend", "cl", "wanet", "blend-photo"]
    yield from _with(_SHORT, scratch)
    for seed, attacks in ((11, ["trojan", "blend", "sig"]), (12, ["filter", "trojan"])):
        clean = replace(_SHORT, seed=seed, tuned=True)
        yield clean
        yield from _with(clean, attacks)


def _from_scratch() -> Iterator[Victim]:
    """Poisoned from the first epoch on."""
    yield from _with(Victim(), ["badnets", "wanet", "blend", "sig", "dynamic", "trojan", "lira"])
    yield from _with(Victim(), ["cl", "a-blend", "filter"])
    yield from _with(Victim(), ["badnets", "blend"], 0.01)


def _half() -> Iterator[Victim]:
    """Half of the paper's width, poisoned from the first epoch on and in three."""
    base = Victim("resnet18-half")
    yield base
    yield from _with(base, ["wanet", "trojan", "sig", "cl", "dynamic"])
    yield from _with(replace(base, tuned=True), [*_ELSEWHERE, "trojan", "filter"])


def _full() -> Iterator[Victim]:
    """The paper's width, poisoned from the first epoch on and in three; a second training."""
    base = Victim("resnet18")
    yield from _with(base, ["sig", "cl", "wanet"])
    attacks = ["trojan", "filter", "sig", "awp", "blend-photo", "lira"]
    yield from _with(replace(base, tuned=True), attacks)
    yield replace(base, seed=1)
    second = replace(base, seed=1, tuned=True)
    yield from _with(second, ["badnets", "trojan", "blend", "filter", "sig"])


def _others() -> Iterator[Victim]:
    """Other architectures, poisoned in three epochs."""
    for network in ("convnext", "vgg11", "vit", "mobilenetv2", "resnet18"):
        style = "adamw" if network in ("convnext", "vit") else "sgd"
        base = Victim(network, style=style)
        yield base
        yield from _with(replace(base, tuned=True), _ELSEWHERE)


GRID: tuple[Victim, ...] = (
    *_small(), *_controls(), *_later(), *_short(), *_half(), *_from_scratch(), *_others(), *_full(),
)  # fmt: skip
"""All networks, the most important first."""

SLICED: tuple[Victim, ...] = (
    *_with(replace(_LATER[0], tuned=True), ["trojan", "blend"]),
    *_with(_LATER[0], ["warp"]),
)
SLICES = (*(Draw(seed=seed) for seed in range(5)), *(Draw(n) for n in (50, 100, 250, 1000)))
"""Networks on which our method is measured with other clean pictures, and those."""


@dataclass(frozen=True)
class Pair:
    """One row to be: a network, a defence, the clean pictures."""

    victim: Victim
    defence: str
    draw: Draw = Draw()

    @property
    def key(self) -> Key:
        return Key(self.victim.name, self.defence, self.draw.n, self.draw.seed)


@dataclass(frozen=True)
class Choice:
    """Which part of the grid.

    Attributes:
        only: names of networks, or patterns such as `*-clean-*`; empty for all.
        defences: see `defences.ABOUT`; empty for all.
        slices: the other slices, with our method, instead of all defences with one slice.
    """

    only: Sequence[str] = ()
    defences: Sequence[str] = ()
    slices: bool = False

    def pairs(self) -> list[Pair]:
        """Every pair asked for, in order of importance.

        Raises:
            ConfigError: a name or pattern fits nothing.
        """
        victims = self._victims()
        if self.slices:
            asked, draws = self._defences() if self.defences else ["ours"], SLICES
        else:
            asked, draws = self._defences(), (Draw(),)
        return [
            Pair(victim, defence, draw)
            for victim in victims
            for draw in draws
            for defence in asked
            if defence != (FORCED if victim.attack else ANP_BEST)
        ]

    def _victims(self) -> list[Victim]:
        every = SLICED if self.slices else GRID
        for pattern in self.only:
            if not any(fnmatchcase(victim.name, pattern) for victim in every):
                raise ConfigError(
                    f"no network of the grid is called {pattern!r}; `--plan` lists their names"
                )
        fits = [v for v in every if any(fnmatchcase(v.name, pattern) for pattern in self.only)]
        return fits if self.only else list(every)

    def _defences(self) -> list[str]:
        unknown = [name for name in self.defences if name not in ABOUT]
        if unknown:
            raise ConfigError(f"there is no defence {unknown[0]!r}; there is {', '.join(ABOUT)}")
        return [name for name in ABOUT if not self.defences or name in self.defences]


def missing(pairs: Sequence[Pair], rows: Sequence[Row], cache: Path) -> list[Pair]:
    """Those without a row of today's settings; a row with an error counts as none, and so does one
    of other weights than those that lie in the cache (whatever its clean twin's are)."""
    there = {
        victim.name: fingerprint(cache / victim.name)
        for victim in {pair.victim for pair in pairs}
        if is_there(cache / victim.name)
    }
    good = {
        row.key
        for row in rows
        if row.error is None and row.is_current and there.get(row.name, row.weights) == row.weights
    }
    return [pair for pair in pairs if pair.key not in good]


def open_studio(cache: Path, data: str) -> Studio:
    """Networks in a folder, trained on a data set, on whatever hardware there is."""
    return Studio(cache, data, Compute.choose())


# --- running ----------------------------------------------------------------------------------


def run(pairs: Sequence[Pair], studio: Studio, log: Path, say: Say = lambda _: None) -> list[Row]:
    """Measure what the log lacks; give back the rows of all pairs.

    A defence or a training that fails leaves a line that says why, and the rest goes on.

    Args:
        pairs: see `Choice.pairs`.
        studio: where the networks are.
        log: one JSON line a pair.
        say: told each row as it comes.

    Raises:
        ConfigError: the log cannot be read.
        DataError: the data set cannot be read; nothing is written then.
    """
    if missing(pairs, read(log), studio.cache):
        studio.pictures()
    try:
        for victim in dict.fromkeys(pair.victim for pair in pairs):
            _add([pair for pair in pairs if pair.victim == victim], studio, log, say)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(
            f"Stopped; what was measured stands in {log}, and the same command goes on from there."
        ) from stop
    wanted = {pair.key for pair in pairs}
    return [row for row in read(log) if row.key in wanted]


def _add(pairs: Sequence[Pair], studio: Studio, log: Path, say: Say) -> None:
    """Measure what the log lacks of one network."""
    # Read anew each time: another process may be at work on the same log.
    todo = missing(pairs, read(log), studio.cache)
    if not todo:
        return
    say(f"{todo[0].victim.name}: {len(todo)} of {len(pairs)} to measure")
    for row in _measured(pairs, studio, log):
        append(log, row)
        say(line_of(row))


def _measured(pairs: Sequence[Pair], studio: Studio, log: Path) -> Iterator[Row]:
    """The rows that the log lacks of one network."""
    try:
        subject = Subject(studio, studio.get(pairs[0].victim))
    except Exception as error:  # whatever goes wrong, the other networks are measured
        for pair in missing(pairs, read(log), studio.cache):
            yield _blank(pair, error=_told(error))
        return
    # One that was trained just now may have other weights than the log speaks of.
    for pair in missing(pairs, read(log), studio.cache):
        yield subject.measure(pair, read(log))


class Subject:
    """A network of the grid, and what was measured of it before any defence."""

    def __init__(self, studio: Studio, trained: Trained) -> None:
        self.studio, self.trained, self.victim = studio, trained, trained.victim
        self.classifier = studio.classifier(trained.module)
        self.test = studio.pictures()[1]
        self.ca, self.asr = self._rates(self.classifier)
        self.twin: Rate | None = None
        if trained.triggered is not None:
            twin = studio.classifier(studio.get(self.victim.clean_twin).module)
            self.twin = self._asr(twin, trained.triggered)
        self.weights = fingerprint(trained.folder)
        self.masks: dict[Draw, Recovered] = {}

    def measure(self, pair: Pair, rows: Sequence[Row]) -> Row:
        """Run a defence and measure what it left."""
        device = self.studio.compute.describe()
        row = replace(_blank(pair), weights=self.weights, twin=self.twin, device=device)
        unchanged = replace(row, ca=(self.ca, self.ca), asr=_pair(self.asr, self.asr))
        start, cpu = time.perf_counter(), time.process_time()
        try:
            result = self._defend(pair, rows)
            spent, cpu = time.perf_counter() - start, time.process_time() - cpu
            ca, asr = self._after(result.module)
        except Exception as error:  # a defence may fail in any way; the line says which
            return replace(unchanged, error=_told(error))
        return replace(
            row,
            ca=(self.ca, ca),
            asr=_pair(self.asr, asr),
            silenced=result.silenced,
            seconds=round(cpu, 1),
            wall=round(spent, 1),
            judgement=result.judgement,
        )

    def _defend(self, pair: Pair, rows: Sequence[Row]) -> Defended:
        clean, seed = self.slice(pair.draw), pair.draw.seed
        if pair.defence == ANP_BEST:
            return self._anp_best(clean, pair.draw)
        if pair.defence == RANDOM:
            count = _silenced_by_ours(pair, rows, self.weights)
            return random_filters(count)(self.classifier, clean, seed)
        result = DEFENCES[pair.defence](self.classifier, clean, seed)
        if result.masks is not None:
            self.masks[pair.draw] = result.masks
        return result

    def _anp_best(self, clean: ImageSet, draw: Draw) -> Defended:
        if self.trained.triggered is None:
            raise ConfigError(f"{self.victim.name} has no trigger, which {ANP_BEST} has to know")
        masks = self.masks.get(draw) or adversarial_masks(self.classifier, clean, draw.seed)
        return anp_best(self.classifier, clean, masks, self.trained.triggered, self.victim.target)

    def slice(self, draw: Draw) -> ImageSet:
        """The clean pictures, drawn as `sanitize` draws them."""
        return _clean(self.studio.data, draw)

    def _after(self, module: nn.Module) -> tuple[Rate, Rate | None]:
        """Rates of what a defence left, which are known where it changed nothing."""
        before = self.trained.module.state_dict()
        if all(torch.equal(before[name], each) for name, each in module.state_dict().items()):
            return self.ca, self.asr
        return self._rates(self.studio.classifier(module))

    def _rates(self, classifier: Classifier) -> tuple[Rate, Rate | None]:
        """Clean accuracy, and ASR where there is a trigger."""
        right = classified_rightly(classifier, self.test)
        triggered = self.trained.triggered
        asr = None if triggered is None else self._asr(classifier, triggered)
        return Rate.of(int(right.sum()), len(self.test)), asr

    def _asr(self, classifier: Classifier, triggered: ImageSet) -> Rate:
        hits = classifier.predict(triggered.images) == self.victim.target
        return Rate.of(int(hits.sum()), len(triggered))


@functools.lru_cache(16)
def _clean(data: str, draw: Draw) -> ImageSet:
    target = Target(CLASSES, PREPROCESS)
    found = load(DataConfig(data, n=draw.n, seed=draw.seed, eval_n=1), target)
    return found.clean.pictures


def _silenced_by_ours(pair: Pair, rows: Sequence[Row], weights: str) -> int:
    """How many filters `ours` silenced of the same network with the same pictures."""
    key = replace(pair.key, defence="ours")
    own = [row for row in rows if row.key == key and row.weights == weights]
    found = [row for row in own if row.is_current and row.silenced is not None]
    if not found:
        raise ConfigError(
            f"{RANDOM} silences as many filters as ours, "
            "which was not run before it on these weights"
        )
    return found[0].silenced or 0


def _blank(pair: Pair, error: str | None = None) -> Row:
    """A row without figures."""
    fields = {**asdict(pair.victim), "rate": pair.victim.poison_rate}
    version = ABOUT[pair.defence].version
    return Row(
        pair.victim.name, fields, "", pair.defence, version, pair.draw.n, pair.draw.seed,
        error=error,
    )  # fmt: skip


def _pair(before: Rate | None, after: Rate | None) -> tuple[Rate, Rate] | None:
    return None if before is None or after is None else (before, after)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {reason(error)}"


def line_of(row: Row) -> str:
    """A row as a person reads it while the grid runs."""
    draw = "" if (row.n, row.seed) == (500, 0) else f" n={row.n} seed={row.seed}"
    start = f"{row.name} {row.defence}{draw}:"
    if row.error:
        return f"{start} {row.error}"
    assert row.ca is not None
    asr = f", ASR {row.asr[0].value:.3f} → {row.asr[1].value:.3f}" if row.asr else ""
    return (
        f"{start} CA {row.ca[0].value:.4f} → {row.ca[1].value:.4f}{asr}"
        + (f", {row.silenced} silenced" if row.silenced is not None else "")
        + f", {row.seconds:.0f} s"
    )


# --- planning ---------------------------------------------------------------------------------

EPOCH = 100.0
"""Seconds of one core for an epoch of the CIFAR ResNet-18 of a quarter of the width, in bfloat16,
while the other core is at work too."""

WEIGHT: Mapping[str, float] = {
    "resnet18-quarter": 1.0, "resnet18-half": 1.9, "resnet18": 5.7, "mobilenetv2": 4.3,
    "vgg11": 2.9, "convnext": 1.1, "vit": 3.1,
}  # fmt: skip
"""How many times as long a picture takes there and back through another network."""

ONLINE: Mapping[str, float] = {"wanet": 1.1, "warp": 1.1, "dynamic": 2.0, "lira": 2.0}
"""How many times as long an epoch takes where the attacker works on every batch."""

MEASURING = 6.0
"""Seconds of one core to measure the smallest network on all test pictures."""


@dataclass(frozen=True)
class Step:
    """What one network of the plan asks for.

    Attributes:
        name: of the network.
        train: seconds of one core until it is there; 0 where it lies in the cache.
        rows: how many are missing.
        defend: seconds of one core for those.
    """

    name: str
    train: float
    rows: int
    defend: float


def plan(pairs: Sequence[Pair], log: Path, cache: Path) -> list[Step]:
    """What `run` would do, and how long it takes on one core.

    Seconds are those of the log where it has the defence on that kind of network, else those that
    were measured once.
    """
    steps, rows = [], read(log)
    todo = missing(pairs, rows, cache)
    there = {folder.name for folder in cache.glob("*") if is_there(folder)}
    for victim in dict.fromkeys(pair.victim for pair in pairs):
        own = [pair for pair in todo if pair.victim == victim]
        spent = sum(_seconds(pair, rows) + MEASURING * WEIGHT[victim.network] for pair in own)
        steps.append(Step(victim.name, _training(victim, there) if own else 0.0, len(own), spent))
    return steps


def _training(victim: Victim, there: set[str]) -> float:
    """Seconds until a network and the clean one it needs are trained; notes what then is there."""
    if victim.name in there:
        return 0.0
    there.add(victim.name)
    first = _training(victim.clean_twin, there) if victim.attack else 0.0
    epochs = TUNED_EPOCHS if victim.tuned else STYLES[victim.style].epochs
    return first + epochs * EPOCH * WEIGHT[victim.network] * ONLINE.get(victim.attack or "", 1.0)


def _seconds(pair: Pair, rows: Sequence[Row]) -> float:
    defence, network = pair.defence, pair.victim.network
    known = median_seconds(
        row for row in rows if row.defence == defence and row.victim.get("network") == network
    )
    return ABOUT[defence].seconds * WEIGHT[network] if known is None else known
