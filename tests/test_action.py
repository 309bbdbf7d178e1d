"""The action, run as GitHub's runner would, against the Hub on loopback.

The scans are of small networks for the handwritten digits, and look for patches alone; those of
networks that somebody else trained are below, whole, and slow.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rnp_hub.demo import TARGET, trigger_file
from tests.action import runner
from tests.action.warm import warm_program
from tests.gate_reports import HOSTILE
from tests.hub.client import Hub
from tests.models import DEMO, ROOT
from tests.patches import PATCHES_ONLY
from tests.pushing import on_hub
from tests.shared_files import shared
from tests.test_gate import payload_model

FEW = {"data": "digits", "n": "100", "cache": "false"}
WORKFLOWS = sorted((ROOT / "docs" / "workflows").glob("*.yml"))


class Action:
    """The action with a Hub and `rnp-hub` on the PATH; each run has a place of its own."""

    def __init__(self, hub: Hub, bin: Path, place: Path) -> None:
        self.hub, self.bin, self.place = hub, bin, place
        self.runs, self.patience = 0, 240.0

    def __call__(
        self, inputs: Mapping[str, str], files: Mapping[str, str] | None = None, **more: str
    ) -> runner.Finished:
        self.runs += 1
        self.work = self.place / f"run{self.runs}"
        for name, text in (files or {}).items():
            (self.work / "workspace").mkdir(parents=True, exist_ok=True)
            (self.work / "workspace" / name).write_text(text)
        environment = self.hub.env(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
        environment["PATH"] = f"{self.bin}:{environment['PATH']}"
        return runner.run(
            ROOT, inputs, work=self.work, environment=environment | more, timeout=self.patience
        )


@pytest.fixture(scope="module")
def bin(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with warm_program(hub.env(), tmp_path_factory.mktemp("warm")) as folder:
        yield folder


@pytest.fixture
def action(hub: Hub, bin: Path, tmp_path: Path) -> Action:
    return Action(hub, bin, tmp_path)


def upload(hub: Hub, repo_id: str, folder: Path, *, private: bool = False) -> str:
    hub.create_repo(repo_id, private=private)
    names = ("config.json", "model.safetensors", "pytorch_model.bin")
    return hub.add_files(repo_id, {n: folder / n for n in names if (folder / n).is_file()})


# --- the five that must be told apart -------------------------------------------------------------

POLICY = {"p.toml": "max_asr = 0.1\n"}


@dataclass(frozen=True)
class Ran:
    """An action that ended, and where it ran."""

    done: runner.Finished
    work: Path
    exchanges: Sequence[dict[str, Any]] = ()

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(Path(self.done.outputs["report"]).read_text())
        return found

    def rule(self, id: str) -> dict[str, Any]:
        return next(each for each in self.report["rules"] if each["id"] == id)

    @property
    def results(self) -> list[dict[str, Any]]:
        """Of the SARIF file that the outputs name."""
        log = json.loads((self.work / "workspace" / self.done.outputs["sarif"]).read_text())
        found: list[dict[str, Any]] = log["runs"][0]["results"]
        return found


@pytest.fixture(scope="module")
def once(hub: Hub, bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ran]:
    def run(inputs: Mapping[str, str], **more: str) -> Ran:
        action = Action(hub, bin, tmp_path_factory.mktemp("once"))
        asked = FEW | {"policy": "p.toml"} | dict(inputs)
        return Ran(action(asked, POLICY, **{PATCHES_ONLY: "1"}, **more), action.work)

    return run


@pytest.fixture(scope="module")
def clean(hub: Hub, once: Callable[..., Ran], careful_model: Path) -> Ran:
    """A private one, for which it has a stored token."""
    sha = upload(hub, "me/clean-digits", careful_model, private=True)
    return once(
        {"model": "me/clean-digits", "revision": sha, "cache": "true", "hf-token": hub.token}
    )


@pytest.fixture(scope="module")
def backdoored(hub: Hub, once: Callable[..., Ran]) -> Ran:
    upload(hub, "org/backdoored-digits", DEMO)
    trigger = {"trigger": str(trigger_file()), "target": str(TARGET)}
    return once(
        {"model": "org/backdoored-digits"} | trigger,
        GITHUB_REPOSITORY="me/repo",
        GITHUB_WORKFLOW_REF="me/repo/.github/workflows/gate.yml@refs/heads/main",
    )


WORKFLOW = {"repository": "me/repo", "workflow_ref": "me/repo/.github/workflows/publish.yml"}


@pytest.fixture(scope="module")
def sanitized(hub: Hub, once: Callable[..., Ran]) -> Ran:
    """Without a stored token: the repository trusts the workflow as a publisher."""
    upload(hub, "org/to-sanitize", DEMO)
    hub.create_repo("me/sanitized-digits")
    hub.trust("me/sanitized-digits", **WORKFLOW)
    inputs = {"model": "org/to-sanitize", "sanitize": "true", "push-to": "me/sanitized-digits"}
    with hub.recording() as exchanges:
        ran = once(inputs, **hub.job(**WORKFLOW, environment="release"))
    return replace(ran, exchanges=exchanges)


def test_a_clean_model_passes(hub: Hub, clean: Ran) -> None:
    done, sha = clean.done, hub.head("me/clean-digits")
    assert done.code == 0, done.output
    assert done.outputs["verdict"] == "pass"
    assert clean.results == []
    assert done.commands == []
    assert done.summary.startswith(f"## ✅ `me/clean-digits@{sha}` passes the gate\n")
    assert clean.report["source"]["sha"] == sha
    subjects = Path(done.outputs["subjects"]).read_text()
    assert subjects.count("\n") == len(clean.report["files"]) >= 3
    assert json.loads(Path(done.outputs["predicate"]).read_text())["verdict"] == "pass"
    assert done.outputs["predicate-type"].endswith("/gate/v1")
    assert (done.outputs["sanitized"], done.outputs["sanitized-revision"]) == ("", "")


def test_the_cache_is_keyed_by_the_commits(clean: Ran) -> None:
    (resolve,) = (step for step in clean.done.steps if step.id == "resolve")
    assert (resolve.code, resolve.output) == (0, "")
    said = (clean.work / "files" / "3-GITHUB_OUTPUT").read_text()
    assert re.fullmatch(r"key=[0-9a-f]{64}\n", said)


def test_the_scan_calls_it_clean(clean: Ran) -> None:
    assert clean.report["verdict"]["backdoored"] is False
    assert clean.rule("RNP001")["status"] == "pass"


def test_a_backdoored_model_does_not(hub: Hub, backdoored: Ran) -> None:
    done, sha = backdoored.done, hub.head("org/backdoored-digits")
    assert done.code == 1, done.output
    assert done.outputs["verdict"] == "violated"
    found = {each["ruleId"]: each for each in backdoored.results}
    assert "100.0 % by trigger" in found["RNP004"]["message"]["text"]
    (place,) = found["RNP004"]["locations"]
    address = place["physicalLocation"]["artifactLocation"]["uri"]
    assert address == ".github/workflows/gate.yml"
    assert {each.name for each in done.commands} == {"error"}
    assert len(done.commands) == len(found)
    assert done.summary.startswith(f"## ❌ `org/backdoored-digits@{sha}` does not pass")


def test_the_scan_names_its_label_and_the_summary_its_surrogate(backdoored: Ran) -> None:
    (result,) = (each for each in backdoored.results if each["ruleId"] == "RNP001")
    assert f"ne for label {TARGET} (" in result["message"]["text"]
    assert re.search(rf"surrogate ASR, label {TARGET}\D", backdoored.done.summary)


def test_sanitized_it_passes_and_is_pushed(hub: Hub, sanitized: Ran) -> None:
    done = sanitized.done
    assert done.code == 0, done.output
    assert done.outputs["verdict"] == "pass"
    revision = done.outputs["sanitized-revision"]
    assert revision == hub.head("me/sanitized-digits")
    there = on_hub(hub, "me/sanitized-digits")
    assert {"gate.intoto.json", "bom.cdx.json", "model.safetensors", "README.md"} <= there.keys()
    statement = json.loads(hub.read("me/sanitized-digits", "gate.intoto.json"))
    stated = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
    assert stated == {name: sha for name, sha in there.items() if name != "gate.intoto.json"}
    assert f"Pushed to `me/sanitized-digits` at `{revision}`." in done.summary
    assert "| | before | after | n |" in done.summary


SECRETS = r"ghs_[0-9a-f]{32}|hf_jwt_[0-9a-f]{32}|eyJ[\w-]+\.[\w-]+\.[\w-]+"
"""The request token of the runner, the Hub's token, and the identity token between them."""


def test_it_is_pushed_as_a_trusted_publisher(hub: Hub, sanitized: Ran) -> None:
    asked = [each for each in sanitized.exchanges if each["path"].startswith("/_github/idtoken")]
    assert [(each["status"], hub.endpoint in each["path"]) for each in asked] == [(200, True)]
    given = [each for each in sanitized.exchanges if each["path"] == "/oauth/token"]
    assert [(each["method"], each["status"]) for each in given] == [("POST", 200)]
    users = {each["user"] for each in sanitized.exchanges if "/commit/" in each["path"]}
    assert users == {"publisher of me/sanitized-digits"}


def test_none_of_the_three_tokens_is_printed_or_kept(hub: Hub, sanitized: Ran) -> None:
    done = sanitized.done
    shown = [done.output, done.summary, *done.outputs.values()]
    kept = [file.read_text(errors="ignore") for file in sanitized.work.rglob("*") if file.is_file()]
    assert len(kept) > 20
    assert not [found for text in shown + kept for found in re.findall(SECRETS, text)]
    told = json.loads(hub.read("me/sanitized-digits", "rnp_report.json"))
    assert "token" not in json.dumps(told)


@pytest.mark.parametrize(
    ("trusted", "permitted", "sentence"),
    [
        (
            {"repository": "me/another"},
            True,
            r"no token for me/distrusts-\w+ \(it answers 400\)",
        ),
        ({}, False, r"there is no Hub token; log in with"),
    ],
)
def test_who_is_no_publisher_does_not_wait_for_a_scan_to_hear_so(
    trusted: dict[str, str], permitted: bool, sentence: str, hub: Hub, action: Action
) -> None:
    upload(hub, f"org/waits-{permitted}", DEMO)
    hub.create_repo(f"me/distrusts-{permitted}")
    hub.trust(f"me/distrusts-{permitted}", **trusted)
    inputs = {"model": f"org/waits-{permitted}", "sanitize": "true"}
    job = hub.job(**WORKFLOW) if permitted else {}
    with hub.recording() as exchanges:
        done = action(FEW | inputs | {"push-to": f"me/distrusts-{permitted}"}, **job)
    assert (done.code, done.outputs["verdict"]) == (2, "error"), done.output
    assert re.search(sentence, done.output), done.output
    assert "Traceback" not in done.output
    assert not [each for each in exchanges if "org/waits" in each["path"]]


def test_of_the_backdoor_nothing_is_left(sanitized: Ran) -> None:
    assert sanitized.report["verdict"]["residual"] is False
    assert sanitized.rule("RNP001")["measured"].endswith(", nothing of it found after sanitizing")


def test_a_payload_is_not_run(hub: Hub, action: Action, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    upload(hub, "org/payload", payload_model(tmp_path / "m", canary))
    done = action(FEW | {"model": "org/payload"})
    assert done.code == 1, done.output
    assert done.outputs["verdict"] == "violated"
    found = Ran(done, action.work).results
    assert {each["ruleId"] for each in found} == {"RNP007", "RNP010"}
    assert not canary.exists()


def test_a_model_that_is_not_there(action: Action) -> None:
    done = action(FEW | {"model": "org/nowhere"})
    assert done.code == 2, done.output
    assert done.outputs["verdict"] == "error"
    assert (done.outputs["sarif"], done.outputs["report"], done.summary) == ("", "", "")
    (command,) = done.commands
    assert (command.name, "exit code 2" in command.data) == ("error", True)
    assert "Error: the Hub has no model 'org/nowhere' that you may read" in done.output


# --- what fails a job -----------------------------------------------------------------------------


def test_fail_on(hub: Hub, action: Action, tmp_path: Path) -> None:
    upload(hub, "org/payload-2", payload_model(tmp_path / "m", tmp_path / "canary"))
    for model, fail_on, code, verdict in (
        ("org/payload-2", "error", 0, "violated"),
        ("org/payload-2", "soup", 2, "violated"),
        ("org/nowhere", "error", 2, "error"),
        ("org/nowhere", "never", 0, "error"),
    ):
        done = action(FEW | {"model": model, "fail-on": fail_on})
        assert (done.code, done.outputs["verdict"]) == (code, verdict), done.output


# --- injection ------------------------------------------------------------------------------------


def test_hostile_inputs_reach_neither_shell_nor_commands_nor_summary(
    action: Action, tmp_path: Path
) -> None:
    """Made of what shells, runners and Markdown obey: each input in one of four runs."""
    hostile = f"-x\n{HOSTILE}\n::add-mask::org\n"
    for names in (
        ("model", "revision"),
        ("policy", "sarif"),
        ("data", "push-to", "trigger"),
        ("n",),
    ):
        done = action(FEW | {"model": "org/nowhere"} | dict.fromkeys(names, hostile))
        assert done.code == 2, (names, done.output)
        assert done.outputs["verdict"] == "error"
        assert [each.name for each in done.commands] == ["error"], (names, done.output)
        assert done.commands[0].data.startswith("The gate could not be held")
        assert "evil" not in done.summary
        assert not [step for step in done.steps if "canary" in step.script]
    assert not [*tmp_path.rglob("canary")]


def test_a_hostile_folder_that_exists_is_shown_as_text(action: Action, tmp_path: Path) -> None:
    """A name that a file system takes, with everything but a slash in it."""
    name = HOSTILE.replace("/", "_")[:200]
    payload_model(tmp_path / "models" / name, tmp_path / "canary")
    done = action(FEW | {"model": str(tmp_path / "models" / name)})
    assert done.code == 1, done.output
    assert {each.name for each in done.commands} == {"error"}
    assert len(done.commands) == 2
    assert "<script" not in done.summary
    assert not any(line.lstrip().startswith("::") for line in done.summary.splitlines())
    assert not [*tmp_path.rglob("canary")]


def test_inputs_reach_the_scripts_through_variables_alone() -> None:
    described = runner.load(ROOT)
    for step in described["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
    for script in (ROOT / ".github" / "actions" / "rnp-hub").glob("*.sh"):
        assert "${{" not in script.read_text()
        assert "eval" not in script.read_text()


# --- the files ------------------------------------------------------------------------------------


def test_the_action_in_the_folder_of_actions_is_the_one_at_the_root() -> None:
    linked = ROOT / ".github" / "actions" / "rnp-hub" / "action.yml"
    assert linked.is_symlink()
    assert linked.resolve() == ROOT / "action.yml"


def used(file: Path) -> list[tuple[str, str]]:
    """What a workflow or an action uses, and the comment behind it."""
    return re.findall(r"uses: (\S+)(?: # (.*))?", file.read_text())


@pytest.mark.parametrize(
    "file",
    [ROOT / "action.yml", *WORKFLOWS, *(ROOT / ".github" / "workflows").glob("*.yml")],
    ids=lambda file: file.name,
)
def test_actions_of_others_are_pinned_by_commit(file: Path) -> None:
    for name, comment in used(file):
        if not name.startswith("rnp-hub/"):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", name), name
            assert re.fullmatch(r"v\d+\.\d+\.\d+", comment), (name, comment)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_ask_for_no_more_than_they_need(file: Path) -> None:
    workflow = yaml.safe_load(file.read_text())
    inputs = runner.load(ROOT)["inputs"]
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        granted = set(job["permissions"].items())
        assert granted <= {
            ("contents", "read"), ("security-events", "write"), ("id-token", "write"),
            ("attestations", "write"),
        }  # fmt: skip
        for step in job["steps"]:
            if step.get("uses", "").startswith("rnp-hub/"):
                assert step["with"].keys() <= inputs.keys()
            assert "${{" not in step.get("run", "")


def test_the_guide_names_every_input_and_output() -> None:
    guide, described = (ROOT / "docs" / "gate.md").read_text(), runner.load(ROOT)
    for name in (*described["inputs"], *described["outputs"]):
        assert f"`{name}`" in guide


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.github-actions", [ROOT / "action.yml"]),
        ("vendor.github-workflows", WORKFLOWS),
    ],
)
def test_schemas(schema: str, files: list[Path]) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "check_jsonschema"]
    done = subprocess.run(
        [*command, "--builtin-schema", schema, *map(str, files)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_it_installs_itself_where_it_is_not_there(hub: Hub, tmp_path: Path) -> None:
    """pip builds and installs the tree for real; what it depends on is found here already."""
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "python3").symlink_to(sys.executable)
    done = Action(hub, bin, tmp_path)(
        FEW | {"model": "org/nowhere"},
        PATH=f"{bin}:/usr/bin:/bin",
        PIP_NO_DEPS="1",
        PIP_NO_BUILD_ISOLATION="1",
        PYTHONPATH=":".join(path for path in sys.path if path.endswith("site-packages")),
    )
    assert done.outputs["verdict"] == "error", done.output
    assert "Error: the Hub has no model 'org/nowhere'" in done.output
    assert (tmp_path / "run1" / "temp" / "rnp-hub-venv" / "bin" / "rnp-hub").is_file()


# --- networks that somebody else trained ----------------------------------------------------------


@pytest.fixture
def patient(action: Action) -> Action:
    """Minutes of work, and other things to do for the machine."""
    action.patience = 1700
    return action


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "code", "rules"),
    [("clean-r18", 0, set()), ("badnets-r18", 1, {"RNP001"}), ("blend-r18", 1, {"RNP001"})],
)
def test_networks_of_the_zoo(
    name: str, code: int, rules: set[str], hub: Hub, patient: Action
) -> None:
    upload(hub, f"zoo/{name}", shared(f"zoo/{name}"))
    data = str(shared("datasets/uoft-cs/cifar10"))
    done = patient({"model": f"zoo/{name}", "data": data, "n": "500", "cache": "false"})
    assert done.code == code, done.output
    assert {each["ruleId"] for each in Ran(done, patient.work).results} == rules
    truth = json.loads((shared(f"zoo/{name}") / "truth.json").read_text())
    if code:
        assert re.search(rf"one for label {truth['target']}\D", done.summary)
        assert re.search(rf"surrogate ASR, label {truth['target']}\D", done.summary)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_network_of_the_zoo_is_sanitized_and_pushed(hub: Hub, patient: Action) -> None:
    upload(hub, "zoo/badnets-to-heal", shared("zoo/badnets-r18"))
    done = patient(
        {
            "model": "zoo/badnets-to-heal",
            "data": str(shared("datasets/uoft-cs/cifar10")),
            "cache": "false",
            "sanitize": "true",
            "push-to": "me/badnets-healed",
            "hf-token": hub.token,
        }
    )
    assert done.code == 0, done.output
    assert done.outputs["sanitized-revision"] == hub.head("me/badnets-healed")
