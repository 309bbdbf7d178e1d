"""The policy, read and held against what was found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rnp_hub.errors import ConfigError
from rnp_hub.gate import Policy
from rnp_hub.gate.judge import judge
from rnp_hub.gate.policy import KEYS
from rnp_hub.gate.rules import ALL, BY_ID
from rnp_hub.report import VerdictRecord
from rnp_hub.static import Finding
from tests.gate_reports import (
    BACKDOORED,
    HEALED,
    SOURCE,
    UNDECIDED,
    case,
    measured,
    records,
    scores,
    surrogate,
)
from tests.models import ROOT

# --- reading --------------------------------------------------------------------------------------


def test_without_a_file_it_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("")
    assert Policy.read(None) == Policy.read(tmp_path / "empty.toml") == Policy()
    assert not Policy().allow_pickle
    assert not Policy().allow_undecided


def test_every_key() -> None:
    text = """
max_surrogate_asr = 0.2
max_asr = 0.05
min_clean_accuracy = 0.9
max_ca_drop = 0.02
allow_pickle = true
allow_undecided = true
require_revision_pin = true
require_report = true
allowed_licences = ["mit", "apache-2.0"]
"""
    policy = Policy.from_toml(text.encode())
    assert list(policy.stated()) == list(KEYS)
    assert policy.allowed_licences == ("mit", "apache-2.0")
    by_trigger = Policy.from_toml(b"[max_asr]\nbadnets = 0.1\nblend = 0\n")
    assert by_trigger.max_asr == {"badnets": 0.1, "blend": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_surogate_asr = 1", "the key 'max_surogate_asr', which no policy has; the nearest is "
         "max_surrogate_asr"),
        ("max-ca-drop = 1", "the nearest is max_ca_drop"),
        ("zzz = 1", "there are max_surrogate_asr, max_asr"),
        ("max_asr = 2", "max_asr: Input should be less than or equal to 1"),
        ("max_asr = nan", "max_asr: "),
        ("max_asr = true", "max_asr: "),
        ('min_clean_accuracy = "0.9"', "min_clean_accuracy: Input should be a valid number"),
        ("allow_pickle = 1", "allow_pickle: Input should be a valid boolean"),
        ('allowed_licences = "mit"', "allowed_licences: "),
        ("max_asr = {a = 3}", "max_asr: "),
        ("=", "rnp-hub.toml is no TOML"),
        ("a = " + "[" * 10**4, "rnp-hub.toml is no TOML"),
        ("\udcff", "rnp-hub.toml is no TOML"),
        ("'\\u202e\\n::error::x' = 1", "which no policy has"),
    ],
)  # fmt: skip
def test_what_is_no_policy(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Policy.from_toml(text.encode(errors="surrogateescape"))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file"):
        Policy.read(tmp_path / "no.toml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory"):
        Policy.read(tmp_path)
    (tmp_path / "large.toml").write_text("# " + "x" * 2**16)
    with pytest.raises(ConfigError, match="more than 65,536 bytes"):
        Policy.read(tmp_path / "large.toml")


# --- judging --------------------------------------------------------------------------------------


def test_a_clean_model_passes_the_default_policy() -> None:
    rules = judge(Policy(), case())
    assert {each.status for each in rules} == {"pass"}
    assert [each.id for each in rules] == [
        "RNP001", "RNP002", "RNP005", "RNP007", *(f"RNP0{n}" for n in range(10, 17)),
    ]  # fmt: skip


def status(policy: str, of: object, id: str) -> str:
    (record,) = records(policy, of, id)  # type: ignore[arg-type]
    return record.status


def test_a_backdoor_is_named_with_its_label_and_its_surrogate() -> None:
    found = measured(BACKDOORED, scores(rebuilt=370))
    (record,) = records("", case(found), "RNP001")
    assert record.status == "fail"
    assert record.measured == "one for label 1 (cat), score 7.5, surrogate ASR 98.7 % (patch)"
    assert record.where.endswith(", 500 pictures of pets train")


@pytest.mark.parametrize(
    ("residual", "came_out", "words"),
    [
        (False, "pass", "one for label 1 (cat), nothing of it found after sanitizing"),
        (None, "fail", "one for label 1 (cat), sanitized, not proved gone"),
    ],
)
def test_what_is_left_after_sanitizing_decides(
    residual: bool | None, came_out: str, words: str
) -> None:
    verdict = replace(BACKDOORED, residual=residual)
    (record,) = records("", case(measured(verdict, after=scores(880))), "RNP001")
    assert (record.status, record.measured) == (came_out, words)


@pytest.mark.parametrize(
    ("old", "words"),
    [
        (38, "the patch of the scan works on 10.1 %, more than 10.0 %"),
        (37, "a new trigger could be reconstructed"),
    ],
)
def test_what_is_left_is_said_with_its_number(old: int, words: str) -> None:
    kinds = {
        "patch": surrogate(old, 375),
        "warp": surrogate(1, 375),
        "patch anew": surrogate(9, 10),
    }
    found = measured(replace(BACKDOORED, residual=True), after=scores(880))
    found = replace(found, now=replace(found.now, surrogate_asr={"1": kinds}))
    (record,) = records("", case(found), "RNP001")
    assert record.status == "fail"
    assert record.measured == f"one for label 1 (cat), not gone after sanitizing: {words}"


@pytest.mark.parametrize(("policy", "came_out"), [("", "fail"), ("allow_undecided = true", "pass")])
def test_who_is_undecided_does_not_pass_unless_the_policy_says_so(
    policy: str, came_out: str
) -> None:
    of = case(measured(UNDECIDED))
    assert status(policy, of, "RNP002") == came_out
    (record,) = records(policy, of, "RNP002")
    assert record.measured == "undecided, most suspicious label 1 (cat), score 0.3: it lies between"
    assert status(policy, of, "RNP001") == "pass"


@pytest.mark.parametrize(("rebuilt", "came_out"), [(75, "pass"), (76, "fail")])
def test_max_surrogate_asr(rebuilt: int, came_out: str) -> None:
    of = case(measured(before=scores(rebuilt=rebuilt)))
    (record,) = records("max_surrogate_asr = 0.2", of, "RNP003")
    assert record.status == came_out
    assert record.limit == "at most 20.0 %"
    assert record.measured.endswith(" % for label 1 (cat) (patch)")


def test_max_surrogate_asr_takes_the_strongest_of_all() -> None:
    several = replace(
        scores(),
        surrogate_asr={
            "0": {"patch": surrogate(1, 100), "warp": surrogate(30, 100)},
            "2": {"patch": surrogate(9, 100)},
        },
    )
    (record,) = records("max_surrogate_asr = 0.2", case(measured(before=several)), "RNP003")
    assert record.measured == "30.0 % for label 0 (ship) (warp)"


def test_max_asr() -> None:
    of = case(measured(before=scores(fooled=75)))
    assert status("max_asr = 0.1", of, "RNP004") == "pass"
    assert status("max_asr = 0.09", of, "RNP004") == "fail"
    assert status("max_asr = 0.1", case(), "RNP004") == "skip"
    named = records("[max_asr]\nbadnets = 0.05\nblend = 0.1\n", of, "RNP004")
    assert [(each.status, each.measured) for each in named] == [
        ("fail", "10.0 % by badnets"),
        ("fail", "blend was not given (--trigger, --poisoned)"),
    ]


def test_after_sanitizing_the_limits_are_held_against_the_result() -> None:
    found = measured(HEALED, scores(900, 700, 370), scores(880, 7, 3))
    text = "max_surrogate_asr = 0.1\nmax_asr = 0.1\nmax_ca_drop = 0.02\n"
    assert {each.status for each in judge(Policy.from_toml(text.encode()), case(found))} == {"pass"}
    assert status("max_ca_drop = 0.019", case(found), "RNP006") == "fail"
    assert records("max_ca_drop = 0.019", case(), "RNP006") == []


@pytest.mark.parametrize(
    ("policy", "right", "came_out"),
    [
        ("", 326, "pass"),  # a tenth of the way from 25 % to 100 % is 32.5 %
        ("", 325, "fail"),
        ("min_clean_accuracy = 0.9", 900, "pass"),
        ("min_clean_accuracy = 0.9", 899, "fail"),
    ],
)
def test_min_clean_accuracy(policy: str, right: int, came_out: str) -> None:
    assert status(policy, case(measured(before=scores(right))), "RNP005") == came_out


def test_near_chance_nothing_else_is_measured() -> None:
    of = replace(case(at_chance="the model gets 25.0% of the clean slice right"), measured=None)
    rules = {each.id: each.status for each in judge(Policy(), of)}
    assert (rules["RNP001"], rules["RNP005"]) == ("skip", "fail")


def test_files_that_must_not_be_opened_leave_the_network_unmeasured() -> None:
    finding = Finding("RNP010", "a.bin", "is a pickle that would run `posix.system`")
    of = replace(case(findings=(finding,), pickles=("a.bin:x/data.pkl",)), measured=None)
    rules = {each.id: each for each in judge(Policy(max_asr=0.1, allowed_licences=()), of)}
    for id in ("RNP001", "RNP004", "RNP005", "RNP017"):
        assert rules[id].status == "skip"
    assert (rules["RNP010"].status, rules["RNP010"].file) == ("fail", "a.bin")
    assert (rules["RNP007"].status, rules["RNP007"].measured) == ("fail", "1: a.bin")


def test_each_file_that_violates_a_rule_has_a_record() -> None:
    findings = tuple(Finding("RNP011", name, "is text") for name in ("a", "b"))
    rules = records("", case(findings=findings), "RNP011")
    assert [(each.status, each.file) for each in rules] == [("fail", "a"), ("fail", "b")]


@pytest.mark.parametrize(("policy", "came_out"), [("", "fail"), ("allow_pickle = true", "pass")])
def test_allow_pickle(policy: str, came_out: str) -> None:
    assert status(policy, case(pickles=("a.pt",)), "RNP007") == came_out


@pytest.mark.parametrize(("pinned", "came_out"), [(True, "pass"), (False, "fail"), (None, "pass")])
def test_require_revision_pin(pinned: bool | None, came_out: str) -> None:
    assert status("require_revision_pin = true", case(pinned=pinned), "RNP008") == came_out
    assert records("", case(pinned=pinned), "RNP008") == []


def test_require_report() -> None:
    policy = "require_report = true"
    assert status(policy, case(report=""), "RNP009") == "pass"
    assert status(policy, case(report="there is none"), "RNP009") == "fail"


@pytest.mark.parametrize(
    ("stated", "came_out"),
    [("mit", "pass"), ("MIT, apache-2.0", "pass"), ("mit, gpl-3.0", "fail"), (None, "fail"),
     ("My Own", "pass"), ("Another", "fail")],
)  # fmt: skip
def test_allowed_licences(stated: str | None, came_out: str) -> None:
    of = case(measured(source=replace(SOURCE, licence=stated)))
    policy = 'allowed_licences = ["MIT", "apache-2.0", "my own"]'
    assert status(policy, of, "RNP017") == came_out


def test_a_label_of_a_verdict_that_has_no_name() -> None:
    found = measured(VerdictRecord(True, 9, None, None, {}))
    (record,) = records("", case(found), "RNP001")
    assert record.measured == "one for label 9"


# --- the rules themselves -------------------------------------------------------------------------


def test_ids_are_stable() -> None:
    """Other tools remember them: a name may be corrected, an id never goes to another rule."""
    assert [(rule.id, rule.name) for rule in ALL] == [
        ("RNP001", "no-backdoor"),
        ("RNP002", "verdict-reached"),
        ("RNP003", "max-surrogate-asr"),
        ("RNP004", "max-asr"),
        ("RNP005", "min-clean-accuracy"),
        ("RNP006", "max-ca-drop"),
        ("RNP007", "allow-pickle"),
        ("RNP008", "require-revision-pin"),
        ("RNP009", "require-report"),
        ("RNP010", "no-code-in-pickles"),
        ("RNP011", "files-are-what-they-claim"),
        ("RNP012", "safetensors-headers"),
        ("RNP013", "no-code-in-configs"),
        ("RNP014", "onnx-stays-within"),
        ("RNP015", "archives"),
        ("RNP016", "no-links"),
        ("RNP017", "allowed-licences"),
    ]


def test_the_guide_explains_every_rule_and_every_key() -> None:
    guide = (ROOT / "docs" / "gate.md").read_text()
    for rule in BY_ID.values():
        assert f'<a id="{rule.id.lower()}"></a>' in guide
        assert f"`{rule.name}`" in guide
    for key in KEYS:
        assert f"`{key}`" in guide
