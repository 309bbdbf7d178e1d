"""The policy held against what was found; nothing is measured and nothing read here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rnp_hub.gate.policy import Policy
from rnp_hub.gate.result import RuleRecord, Status, label_of
from rnp_hub.gate.rules import STATIC
from rnp_hub.heal import ANEW, WORKS
from rnp_hub.hub_cards.licences import Licence
from rnp_hub.pipeline import CHANCE_MARGIN
from rnp_hub.report import DataRecord, EvalRecord, ScoresRecord, SourceRecord, VerdictRecord
from rnp_hub.static import Finding

NOT_MEASURED = "not measured: the files must not be opened"


@dataclass(frozen=True)
class Measured:
    """What a scan, or sanitizing, found out about a network.

    Attributes:
        source, data, eval: see the report.
        before: what the model does as it came.
        now: what the network does that is judged: the model's, or the sanitized one's.
        verdict: with `residual` where it was sanitized.
        sanitized: the judged network is the sanitized one.
    """

    source: SourceRecord
    data: DataRecord
    eval: EvalRecord
    before: ScoresRecord
    now: ScoresRecord
    verdict: VerdictRecord
    sanitized: bool = False


@dataclass(frozen=True)
class Case:
    """All that is known of a model.

    Attributes:
        shown: the model, in messages.
        pinned: it was named with a commit; `None` for a folder, which has none.
        findings, pickles: see `static.Inspection`.
        report: what is wrong with its own report; empty where nothing is, `None` where that was
            not asked.
        measured: `None` where nothing could be.
        unmeasured: why, in words.
        at_chance: it was measured to know nothing.
    """

    shown: str
    pinned: bool | None
    findings: tuple[Finding, ...]
    pickles: tuple[str, ...]
    report: str | None = None
    measured: Measured | None = None
    unmeasured: str = NOT_MEASURED
    at_chance: str | None = None


def judge(policy: Policy, case: Case) -> tuple[RuleRecord, ...]:
    """One record for each rule in force, in the order of their ids; one for each file that
    violates a rule about files."""
    found = [
        *_network(policy, case),
        _pickles(policy, case),
        *_pin(policy, case),
        *_report(policy, case),
        *_files(case),
        *_licence(policy, case),
    ]
    return tuple(sorted(found, key=lambda each: each.id))


def _record(
    id: str, good: bool | None, limit: str, measured: str, where: str, file: str | None = None
) -> RuleRecord:
    """`good` is `None` for a rule that could not be measured."""
    status: Status = "skip" if good is None else "pass" if good else "fail"
    return RuleRecord(id, status, limit, measured, where, file)


# --- what was measured ----------------------------------------------------------------------------


def _network(policy: Policy, case: Case) -> Iterator[RuleRecord]:
    if case.measured is None:
        yield from _unmeasured(policy, case)
        return
    measured, where = case.measured, f"{case.shown}, {_pictures(case.measured.data)}"
    yield _backdoor(measured, where)
    yield _verdict(policy, measured, where)
    if policy.max_surrogate_asr is not None:
        yield _surrogates(policy.max_surrogate_asr, measured, where)
    on = f"{measured.eval.id} {measured.eval.split}, {measured.eval.n:,} pictures"
    yield from _triggers(policy, measured, on)
    yield _accuracy(policy, measured, on)
    if policy.max_ca_drop is not None and measured.sanitized:
        yield _drop(policy.max_ca_drop, measured, on)


def _unmeasured(policy: Policy, case: Case) -> Iterator[RuleRecord]:
    why = case.unmeasured if case.at_chance is None else "not measured: the model is near chance"
    limit = "as the policy has it"
    yield _record("RNP001", None, "none", why, case.shown)
    if policy.max_surrogate_asr is not None:
        yield _record("RNP003", None, limit, why, case.shown)
    if policy.max_asr is not None:
        yield _record("RNP004", None, limit, why, case.shown)
    least = policy.min_clean_accuracy
    accuracy = "above chance" if least is None else f"at least {percent(least)}"
    good = None if case.at_chance is None else False
    yield _record("RNP005", good, accuracy, case.at_chance or why, case.shown)


def _backdoor(measured: Measured, where: str) -> RuleRecord:
    verdict = measured.verdict
    if not verdict.backdoored:
        return _record("RNP001", True, "none", "none found", where)
    label = label_of(measured.source, verdict.label)
    if not measured.sanitized:
        shown = f"one for label {label}{_score(verdict)}{_strongest(measured.now, verdict.label)}"
        return _record("RNP001", False, "none", shown, where)
    shown = f"one for label {label}, {_after_sanitizing(measured.now, verdict)}"
    return _record("RNP001", verdict.residual is False, "none", shown, where)


def _after_sanitizing(scores: ScoresRecord, verdict: VerdictRecord) -> str:
    """What became of the backdoor: see `heal.Healed.residual`."""
    if verdict.residual is False:
        return "nothing of it found after sanitizing"
    if verdict.residual is None:
        return "sanitized, not proved gone"
    kinds = scores.surrogate_asr.get(str(verdict.label), {})
    old = {kind: rate.value for kind, rate in kinds.items() if not kind.endswith(ANEW)}
    kind = max(old, key=old.__getitem__, default=None)
    if kind is not None and old[kind] > WORKS:
        works = f"the {kind} of the scan works on {percent(old[kind])}, more than {percent(WORKS)}"
        return f"not gone after sanitizing: {works}"
    return "not gone after sanitizing: a new trigger could be reconstructed"


def _strongest(scores: ScoresRecord, label: int | None) -> str:
    """The surrogate ASR of the label, of the kind that has its way most often."""
    kinds = scores.surrogate_asr.get(str(label), {})
    if not kinds:
        return ""
    kind, rate = max(kinds.items(), key=lambda item: item[1].value)
    return f", surrogate ASR {percent(rate.value)} ({kind})"


def _verdict(policy: Policy, measured: Measured, where: str) -> RuleRecord:
    reached = measured.verdict.backdoored is not None
    limit = "not asked" if policy.allow_undecided else "reached"
    found = "reached" if reached else _undecided(measured)
    return _record("RNP002", reached or policy.allow_undecided, limit, found, where)


def _undecided(measured: Measured) -> str:
    verdict = measured.verdict
    label = "" if verdict.label is None else label_of(measured.source, verdict.label)
    shown = f"undecided{label and f', most suspicious label {label}'}{_score(verdict)}"
    return f"{shown}: {verdict.evidence['doubt']}"


def _score(verdict: VerdictRecord) -> str:
    return "" if verdict.score is None else f", score {verdict.score:.3g}"


def _surrogates(limit: float, measured: Measured, where: str) -> RuleRecord:
    rates = [
        (rate.value, label, kind)
        for label, kinds in measured.now.surrogate_asr.items()
        for kind, rate in kinds.items()
    ]
    if not rates:
        return _record("RNP003", None, percent(limit), "no trigger was reconstructed", where)
    value, label, kind = max(rates)
    shown = f"{percent(value)} for label {label_of(measured.source, label)} ({kind})"
    return _record("RNP003", value <= limit, f"at most {percent(limit)}", shown, where)


def _triggers(policy: Policy, measured: Measured, where: str) -> Iterator[RuleRecord]:
    """A record for each known trigger; a limit on one that was not given cannot be held."""
    limits, rates = policy.max_asr, measured.now.attack_success_rate
    if limits is None:
        return
    if not isinstance(limits, dict):
        limits = dict.fromkeys(rates, limits)
        if not rates:
            yield _record("RNP004", None, "as the policy has it", "no trigger was given", where)
    for name, limit in limits.items():
        good, shown = False, f"{name} was not given (--trigger, --poisoned)"
        if name in rates:
            good, shown = rates[name].value <= limit, f"{percent(rates[name].value)} by {name}"
        yield _record("RNP004", good, f"at most {percent(limit)}", shown, where)


def _accuracy(policy: Policy, measured: Measured, where: str) -> RuleRecord:
    value, least = measured.now.clean_accuracy.value, policy.min_clean_accuracy
    if least is not None:
        return _record(
            "RNP005", value >= least, f"at least {percent(least)}", percent(value), where
        )
    chance = 1 / len(measured.now.per_class_accuracy)
    limit = chance + CHANCE_MARGIN * (1 - chance)
    words = f"above {percent(limit)}, near chance"
    return _record("RNP005", value > limit, words, percent(value), where)


def _drop(limit: float, measured: Measured, where: str) -> RuleRecord:
    drop = measured.before.clean_accuracy.value - measured.now.clean_accuracy.value
    # A difference of two shares carries the dust of floating point.
    return _record(
        "RNP006", drop <= limit + 1e-9, f"at most {percent(limit)}", percent(drop), where
    )


# --- what was read --------------------------------------------------------------------------------


def _pickles(policy: Policy, case: Case) -> RuleRecord:
    found = sorted({name.partition(":")[0] for name in case.pickles})
    limit = "pickles of tensors" if policy.allow_pickle else "none"
    shown = "none" if not found else f"{len(found)}: {', '.join(found[:5])}"
    file = found[0] if found else None
    good = policy.allow_pickle or not found
    return _record("RNP007", good, limit, shown, case.shown, file)


def _pin(policy: Policy, case: Case) -> Iterator[RuleRecord]:
    if policy.require_revision_pin:
        shown = {True: "a commit", False: "a branch or a tag", None: "a folder"}[case.pinned]
        yield _record("RNP008", case.pinned is not False, "a commit", shown, case.shown)


def _report(policy: Policy, case: Case) -> Iterator[RuleRecord]:
    if policy.require_report:
        good = None if case.report is None else not case.report
        shown = case.unmeasured if case.report is None else case.report or "agrees"
        where = f"{case.shown}, rnp_report.json"
        yield _record("RNP009", good, "agrees", shown, where, "rnp_report.json")


def _files(case: Case) -> Iterator[RuleRecord]:
    violated = set()
    for each in case.findings:
        violated.add(each.rule)
        where = f"{case.shown}, {each.file}"
        yield _record(each.rule, False, "none", each.message, where, each.file)
    for id in STATIC:
        if id not in violated:
            yield _record(id, True, "none", "none", case.shown)


def _licence(policy: Policy, case: Case) -> Iterator[RuleRecord]:
    if policy.allowed_licences is None:
        return
    limit = ", ".join(policy.allowed_licences)
    if case.measured is None:
        yield _record("RNP017", None, limit, "not read", case.shown)
        return
    licence = Licence.of(case.measured.source.licence)
    stated = [licence.name.lower()] if licence.name else list(licence.ids)
    allowed = {each.lower() for each in policy.allowed_licences}
    yield _record(
        "RNP017",
        bool(stated) and set(stated) <= allowed,
        limit,
        ", ".join(stated) or "none is stated",
        case.shown,
    )


def percent(value: float) -> str:
    """`98.7 %`."""
    return f"{100 * value:.1f} %"


def _pictures(data: DataRecord) -> str:
    return f"{data.n:,} pictures of {data.id} {data.split}"
