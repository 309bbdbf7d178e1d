"""The gate as a command: exit codes, what is looked at, and what is written."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec

from rnp_hub.evaluate import Rate
from rnp_hub.gate import own_report
from rnp_hub.report import RateRecord, RunReport
from tests.gate_reports import measured
from tests.hub.client import Hub
from tests.models import CONFIG, DEMO, Run, command_line, invoke, listing
from tests.patches import PATCHES_ONLY
from tests.pushing import hashes
from tests.test_static import Payload
from tests.test_trust import write_keys
from tests.worker import Worker

FEW = ("--data", "digits", "--n", "100", "--eval-n", "200")
UNDECIDED = "allow_undecided = true\n"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """One that asks for no verdict, so that tests of other rules do not hang on it."""
    file = tmp_path / "rnp-hub.toml"
    file.write_text(UNDECIDED)
    return file


def payload_model(folder: Path, canary: Path) -> Path:
    """A model of a pickle that leaves a canary when it is opened."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    torch.save({"fc.weight": torch.zeros(1), "x": Payload(canary)}, folder / "pytorch_model.bin")
    return folder


def rules_of(stdout: str) -> dict[str, str]:
    """Status by rule; `fail` where any record of it failed."""
    found: dict[str, str] = {}
    for each in json.loads(stdout)["rules"]:
        if found.get(each["id"]) != "fail":
            found[each["id"]] = each["status"]
    return found


# --- exit codes -----------------------------------------------------------------------------------


def test_a_payload_is_not_let_through_and_not_run(tmp_path: Path) -> None:
    """In a process of its own: exit code 1, no canary, the rules about the network unmeasured."""
    canary = tmp_path / "canary"
    model = payload_model(tmp_path / "model", canary)
    done = command_line("gate", model, *FEW, "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    rules = rules_of(done.stdout)
    assert rules["RNP001"] == rules["RNP005"] == "skip"
    assert rules["RNP007"] == rules["RNP010"] == "fail"
    assert not canary.exists()
    assert pickle.dumps(Payload(canary))


def test_a_line_for_each_rule(tmp_path: Path) -> None:
    model = payload_model(tmp_path / "model", tmp_path / "canary")
    done = invoke("gate", model, *FEW)
    lines = done.stdout.splitlines()
    assert done.exit_code == 1
    assert lines[-1].startswith(f"{model} does not pass the gate; ")
    assert [line.split()[0] for line in lines[:-2]] == ["SKIP"] * 2 + ["PASS"] * 6 + ["FAIL"] * 2
    assert lines[-3] == (
        "FAIL  RNP010 no-code-in-pickles         limit: none; measured: is a pickle that would run "
        f"`posix.system`, which is dangerous; where: {model}, "
        "pytorch_model.bin:pytorch_model/data.pkl"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("gate", "./nowhere"), "there is no model folder at ./nowhere, and it is no Hub id"),
        (("gate", "demo", "--policy", "no.toml"), "the policy no.toml cannot be read"),
        (("gate", "demo", "--data", "./no"), "there is no data at ./no"),
        (("gate", "demo", "--push-to", "me/x"), "--push-to needs a folder to push"),
        (("gate", "demo", "--sarif", "a", "--junit", "a"), "have the same place"),
        (("gate", "demo", "--create-pr"), "speak of a push"),
    ],
)
def test_a_tool_that_failed(
    words: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke(*words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert listing(tmp_path) == []


# --- what is looked at ----------------------------------------------------------------------------


@pytest.mark.usefixtures("patches_only")
def test_a_stray_pickle_does_not_keep_the_network_from_being_measured(
    plain_model: Path, tmp_path: Path, policy: Path
) -> None:
    """It is no file that the network is made of, so it is never opened; it fails all the same."""
    canary = tmp_path / "canary"
    model = Path(shutil.copytree(plain_model, tmp_path / "model"))
    (model / "training_args.bin").write_bytes(pickle.dumps(Payload(canary)))
    done = invoke("gate", model, *FEW, "--policy", policy, "--json")
    rules = rules_of(done.stdout)
    assert done.exit_code == 1
    assert rules["RNP005"] == "pass"
    assert rules["RNP010"] == "fail"
    assert not canary.exists()


def test_weights_whose_header_lies_are_not_opened(
    plain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(plain_model, tmp_path / "model"))
    with (model / "model.safetensors").open("ab") as weights:
        weights.write(b"more")
    monkeypatch.setattr("rnp_hub.gate.run.scan_model", lambda *_, **__: pytest.fail("opened"))
    done = invoke("gate", model, *FEW, "--json")
    assert done.exit_code == 1
    assert rules_of(done.stdout)["RNP012"] == "fail"


def test_a_model_at_chance_is_a_violation_and_no_failure(plain_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = Path(shutil.copytree(plain_model, tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    weights["fc.weight"] = weights["fc.weight"].roll(1, 0)
    weights["fc.bias"] = weights["fc.bias"].roll(1, 0)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    done = invoke("gate", model, *FEW, "--json")
    rules = rules_of(done.stdout)
    assert (done.exit_code, rules["RNP001"], rules["RNP005"]) == (1, "skip", "fail")


def test_the_commit_that_was_looked_at_is_the_one_that_is_measured(
    hub: Hub, rnp: Worker, tmp_path: Path
) -> None:
    """A branch is resolved once; files below folders are looked at too, and not opened; a pin is
    told from a branch."""
    canary = tmp_path / "canary"
    hub.create_repo("org/gated")
    sha = hub.add_files(
        "org/gated",
        {
            **{name: DEMO / name for name in ("config.json", "model.safetensors")},
            "README.md": "---\nlicense: mit\n---\n",
            "old/model.pkl": pickle.dumps(Payload(canary)),
        },
    )
    policy = tmp_path / "p.toml"
    policy.write_text(f'{UNDECIDED}require_revision_pin = true\nallowed_licences = ["mit"]\n')
    words = ("gate", "org/gated", *FEW, "--policy", policy, "--json")
    done = rnp(*words, settings={PATCHES_ONLY: "1"})
    assert done.code == 1, done.stderr
    rules, record = rules_of(done.stdout), done.json
    assert {id for id, status in rules.items() if status == "fail"} == {
        "RNP001", "RNP007", "RNP008", "RNP010",
    }  # fmt: skip
    assert rules["RNP017"] == rules["RNP005"] == "pass"
    assert record["source"]["sha"] == sha
    assert record["model"] == f"org/gated@{sha}"
    assert {"old/model.pkl", "model.safetensors", "config.json"} <= record["files"].keys()
    found = [each["file"] for each in record["rules"] if each["id"] == "RNP010"]
    assert found == ["old/model.pkl"]
    assert not canary.exists()
    hub.add_files("org/gated", {"README.md": "later"})
    pinned = rnp("gate", f"org/gated@{sha}", *FEW, "--policy", policy, "--dry-run", "--json")
    assert pinned.json["model_sha"] == sha


# --- the report that a repository brings along ----------------------------------------------------


@pytest.mark.usefixtures("patches_only")
def test_require_report(plain_run: Run, tmp_path: Path) -> None:
    """A sanitized folder's own report holds, measured again with another seed; a false one not."""
    policy = tmp_path / "p.toml"
    policy.write_text(f"{UNDECIDED}require_report = true\n")
    done = invoke("gate", plain_run.folder, *FEW, "--seed", "3", "--policy", policy, "--json")
    assert "the model's report was measured with seed 3; 4 is taken here" in done.stderr
    assert rules_of(done.stdout)["RNP009"] == "pass", done.stdout
    assert json.loads(done.stdout)["data"]["seed"] == 4


@pytest.fixture(scope="module")
def told(plain_run: Run) -> RunReport:
    return RunReport.read(plain_run.folder)


def contradiction(report: RunReport, folder: Path, right: int = 190) -> str:
    """What is wrong, where 200 pictures were measured anew and so many were right."""
    files = {name: folder / name for name in hashes(folder)}
    found = measured()
    again = Rate.of(right, 200)
    now = replace(
        found.before,
        clean_accuracy=RateRecord(again.value, again.n, again.low, again.high),
        attack_success_rate={},
    )
    found = replace(found, eval=report.eval, before=now)
    return own_report.contradiction(report, files, hashes(folder), found)


def with_accuracy(report: RunReport, **changes: Any) -> RunReport:
    rate = replace(report.after.clean_accuracy, **changes)
    return replace(report, after=replace(report.after, clean_accuracy=rate))


def test_reports_that_contradict_themselves_or_their_files(
    told: RunReport, plain_run: Run, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(plain_run.folder, tmp_path / "m"))
    own = told.after.clean_accuracy
    right = round(own.value * 200)
    assert contradiction(told, folder, right) == ""
    assert "was measured" in contradiction(told, folder, right - 60)
    assert contradiction(with_accuracy(told, low=0.0), folder, right) == (
        "the interval of its clean accuracy is not that of its figure"
    )
    assert "is no share" in contradiction(with_accuracy(told, n=0), folder, right)
    better = Rate.of(own.n, own.n)
    claimed = with_accuracy(told, value=better.value, low=better.low, high=better.high)
    assert "the card says clean accuracy" in contradiction(claimed, folder, right)
    elsewhere = replace(told, eval=replace(told.eval, id="cifar10"))
    files = {name: folder / name for name in hashes(folder)}
    said = own_report.contradiction(elsewhere, files, hashes(folder), measured())
    assert (
        said == "it was measured on cifar10 test, and pets test was given here; give the same "
        "--data"
    )
    (folder / "onnx" / "model.onnx").write_bytes(b"")
    assert contradiction(told, folder, right) == "it speaks of another onnx/model.onnx"
    (folder / "onnx" / "model.onnx").unlink()
    assert contradiction(told, folder, right) == "onnx/model.onnx is missing"


def test_a_card_that_was_embellished(told: RunReport, plain_run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain_run.folder, tmp_path / "m"))
    card = folder / "README.md"
    stated = f"value: {round(told.after.clean_accuracy.value, 6)}"
    assert stated in card.read_text()
    card.write_text(card.read_text().replace(stated, "value: 0.999", 1))
    right = round(told.after.clean_accuracy.value * 200)
    assert contradiction(told, folder, right).startswith("the card says clean accuracy 0.999 where")


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "x"}', "[" * 10**5, "\x00"])
def test_what_is_no_report(text: str, tmp_path: Path) -> None:
    file = tmp_path / "rnp_report.json"
    file.write_text(text)
    assert isinstance(own_report.read({"rnp_report.json": file}), str)
    assert own_report.read({}) == "there is none"


# --- from the gate to a folder that is trusted ----------------------------------------------------


@pytest.mark.usefixtures("patches_only")
def test_a_sanitized_folder_passes_is_signed_and_verified(
    plain_run: Run, policy: Path, tmp_path: Path
) -> None:
    """The way the guide shows: gate with a statement, sign, verify."""
    folder = Path(shutil.copytree(plain_run.folder, tmp_path / "out"))
    key, public = write_keys(tmp_path / "keys", ec.generate_private_key(ec.SECP256R1()))
    seal = ("--attest", folder / "gate.intoto.json", "--bom", folder / "bom.cdx.json")
    done = invoke("gate", folder, *FEW, "--policy", policy, *seal)
    assert done.exit_code == 0, done.stdout
    statement = json.loads((folder / "gate.intoto.json").read_text())
    own = ("gate.intoto.json", "model.sig")
    assert {each["name"]: each["digest"]["sha256"] for each in statement["subject"]} == {
        name: sha256 for name, sha256 in hashes(folder).items() if name not in own
    }
    assert invoke("sign", folder, "--key", key).exit_code == 0
    assert invoke("verify", folder, "--key", public).exit_code == 0
