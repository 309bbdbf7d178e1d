"""Reports of the gate, made by hand: every figure in them is known."""

from __future__ import annotations

from dataclasses import replace

from rnp_hub.evaluate import Rate
from rnp_hub.gate import GateReport, Policy, RuleRecord
from rnp_hub.gate.judge import Case, Measured, judge
from rnp_hub.gate.result import PushedRecord, SanitizedRecord
from rnp_hub.report import (
    DataRecord,
    EvalRecord,
    RateRecord,
    ScoresRecord,
    SourceRecord,
    SurrogateRecord,
    VerdictRecord,
)
from rnp_hub.static import Finding

LABELS = ("ship", "cat", "dog", "owl")
SHA = "0123456789abcdef0123456789abcdef01234567"
CLEAN = VerdictRecord(False, None, 0.4, None, {})
BACKDOORED = VerdictRecord(True, 1, 7.5, None, {})
HEALED = replace(BACKDOORED, residual=False)
UNDECIDED = VerdictRecord(None, 1, 0.3, None, {"doubt": "it lies between"})


def rate(hits: int, n: int) -> RateRecord:
    found = Rate.of(hits, n)
    return RateRecord(found.value, found.n, found.low, found.high)


def surrogate(hits: int, n: int, norm: float = 9.0) -> SurrogateRecord:
    found = Rate.of(hits, n)
    return SurrogateRecord(found.value, found.n, found.low, found.high, norm)


def scores(right: int = 900, fooled: int | None = None, rebuilt: int | None = None) -> ScoresRecord:
    """Of 1,000 pictures; a known trigger and a surrogate for the cat had their way so often."""
    return ScoresRecord(
        rate(right, 1000),
        (0.9,) * 4,
        {} if fooled is None else {"badnets": rate(fooled, 750)},
        {} if rebuilt is None else {"1": {"patch": surrogate(rebuilt, 375)}},
    )


SOURCE = SourceRecord("org/model", None, SHA, "resnet18", "mit", label_names=LABELS)
DATA = DataRecord("pets", "f" * 40, "train", 500, 0)
EVAL = EvalRecord("pets", "test", 1000)


def measured(
    verdict: VerdictRecord = CLEAN,
    before: ScoresRecord | None = None,
    after: ScoresRecord | None = None,
    source: SourceRecord = SOURCE,
) -> Measured:
    before = before or scores()
    return Measured(source, DATA, EVAL, before, after or before, verdict, after is not None)


def case(found: Measured | None = None, **more: object) -> Case:
    plain = Case(f"org/model@{SHA}", True, (), (), measured=found or measured())
    return replace(plain, **more)  # type: ignore[arg-type]


def records(policy: str, of: Case, id: str) -> list[RuleRecord]:
    """What the rule of that id says under a policy in TOML."""
    return [each for each in judge(Policy.from_toml(policy.encode()), of) if each.id == id]


def report_of(of: Case, policy: str = "", **more: object) -> GateReport:
    asked = Policy.from_toml(policy.encode())
    rules, found = judge(asked, of), of.measured
    sanitized = None
    if found is not None and found.sanitized:
        sanitized = SanitizedRecord("out/model-rnp", 784, 29, found.now)
    plain = GateReport(
        passed=all(each.status != "fail" for each in rules),
        model=of.shown,
        policy=asked.stated(),
        rules=rules,
        files={"config.json": "a" * 64, "model.safetensors": "b" * 64},
        source=found.source if found else None,
        data=found.data if found else None,
        eval=found.eval if found else None,
        before=found.before if found else None,
        verdict=found.verdict if found else None,
        sanitized=sanitized,
        pushed=None,
        timing_s={"files": 0.5, "scan": 20.25, "of these: unlearn": 8.0},
        environment={"rnp_hub": "0.1.0"},
        reference="models/rnp-hub.toml",
    )
    return replace(plain, **more)  # type: ignore[arg-type]


PUSHED = PushedRecord("me/model-rnp", "main", SHA, "https://hub/me/model-rnp")

HOSTILE = (
    "</summary>|`x`\n::set-output name=a::b\n##[error]x\r::error::y\n$(touch canary) "
    "`touch canary` ; touch canary && <script>alert(1)</script> [l](http://evil) "
    "![i](http://evil) \u202e\x1b[31m"
)
"""What a model, a revision, a label or a file could be called."""


def hostile_report() -> GateReport:
    """Every text in it that could come from elsewhere is hostile."""
    scored = replace(
        scores(850, 700, 370),
        attack_success_rate={HOSTILE: rate(700, 750)},
        surrogate_asr={"1": {HOSTILE: surrogate(370, 375)}, HOSTILE: {"patch": surrogate(1, 9)}},
    )
    source = replace(SOURCE, repo_id=HOSTILE, licence=HOSTILE, label_names=(HOSTILE,) * 4)
    found = replace(
        measured(BACKDOORED, scored, source=source),
        data=replace(DATA, id=HOSTILE, split=HOSTILE),
        eval=replace(EVAL, id=HOSTILE, split=HOSTILE),
    )
    of = case(
        found,
        shown=HOSTILE,
        findings=(Finding("RNP011", HOSTILE, f"is {HOSTILE}"),),
        pickles=(HOSTILE,),
        report=HOSTILE,
    )
    policy = (
        "require_report = true\nmax_surrogate_asr = 0.1\nmax_asr = 0.1\nallowed_licences = []\n"
    )
    return report_of(of, policy, reference=HOSTILE)
