"""GitHub's runner for a composite action: steps in order, files for what they say.

Steps that `uses:` another action are not run; that they are pinned is checked elsewhere.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.action.expressions import Contexts, holds, substituted
from tests.action.log import Command, commands

ALWAYS = "runner.os == 'Linux'"
FILES = ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_ENV", "GITHUB_PATH")


@dataclass
class Step:
    """A step that ran.

    Attributes:
        id: or its number.
        code: exit code.
        output: both streams, as the log shows them.
        script: the text that the shell was given.
    """

    id: str
    code: int
    output: str
    script: str


@dataclass
class Finished:
    """An action that ended.

    Attributes:
        code: of the step that failed, or 0.
        outputs: the action's own.
        steps: those that ran.
        summary: everything that was appended to the summary.
    """

    code: int
    outputs: dict[str, str]
    steps: list[Step] = field(default_factory=list)
    summary: str = ""

    @property
    def output(self) -> str:
        return "".join(step.output for step in self.steps)

    @property
    def commands(self) -> list[Command]:
        return commands(self.output)


def load(action: Path) -> dict[str, Any]:
    """The action's `action.yml`."""
    loaded: dict[str, Any] = yaml.safe_load((action / "action.yml").read_text())
    return loaded


def run(
    action: Path,
    inputs: Mapping[str, str],
    *,
    work: Path,
    environment: Mapping[str, str],
    timeout: float = 240,
) -> Finished:
    """Run an action.

    Args:
        action: the folder with its `action.yml`.
        inputs: as `with:` would give them.
        work: an empty folder; the workspace and the runner's files go below it.
        environment: of the job.
        timeout: seconds for one step.
    """
    described = load(action)
    unknown = inputs.keys() - described["inputs"].keys()
    missing = {
        name
        for name, each in described["inputs"].items()
        if each.get("required") and name not in inputs
    }
    assert not unknown | missing, f"inputs {unknown} are unknown, {missing} are missing"
    given = {name: str(each.get("default", "")) for name, each in described["inputs"].items()}
    contexts = {
        "inputs": given | dict(inputs),
        "steps": {},
        "runner": {"os": "Linux", "temp": str(work / "temp")},
        "github": {"action_path": str(action), "workspace": str(work / "workspace")},
    }
    job = _Job(action, work, dict(environment), contexts, timeout)
    finished = Finished(0, {})
    for number, step in enumerate(described["runs"]["steps"]):
        if finished.code or "uses" in step or not holds(step.get("if", ALWAYS), contexts):
            continue
        done, said = job.run(step, number)
        finished.steps.append(done)
        finished.summary += said
        finished.code = done.code
    finished.outputs = {
        name: substituted(each["value"], contexts) for name, each in described["outputs"].items()
    }
    return finished


class _Job:
    def __init__(
        self,
        action: Path,
        work: Path,
        environment: dict[str, str],
        contexts: dict[str, dict[str, str]],
        timeout: float,
    ) -> None:
        self.action, self.work, self.timeout = action, work, timeout
        self.environment, self.contexts = environment, contexts
        for name in ("temp", "workspace", "files"):
            (work / name).mkdir(parents=True, exist_ok=True)

    def run(self, step: Mapping[str, Any], number: int) -> tuple[Step, str]:
        assert step["shell"] == "bash"
        id = step.get("id", str(number))
        files = {name: self.work / "files" / f"{number}-{name}" for name in FILES}
        for file in files.values():
            file.touch()
        script = substituted(step["run"], self.contexts)
        text = self.work / "files" / f"{number}.sh"
        text.write_text(script)
        own = {name: substituted(str(v), self.contexts) for name, v in step.get("env", {}).items()}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(text)],
            cwd=self.work / "workspace",
            env={
                **self.environment,
                **own,
                **{name: str(file) for name, file in files.items()},
                "RUNNER_TEMP": str(self.work / "temp"),
                "RUNNER_OS": "Linux",
                "GITHUB_ACTIONS": "true",
                "GITHUB_ACTION_PATH": str(self.action),
                "GITHUB_WORKSPACE": str(self.work / "workspace"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=self.timeout,
        )
        for key, value in read_values(files["GITHUB_OUTPUT"].read_text()).items():
            self.contexts["steps"][f"{id}.outputs.{key}"] = value
        self.environment |= read_values(files["GITHUB_ENV"].read_text())
        for line in files["GITHUB_PATH"].read_text().splitlines():
            self.environment["PATH"] = f"{line}:{self.environment['PATH']}"
        summary = files["GITHUB_STEP_SUMMARY"].read_text()
        return Step(id, done.returncode, done.stdout, script), summary


def read_values(text: str) -> dict[str, str]:
    """`key=value` lines, and `key<<END` blocks, of GITHUB_OUTPUT and GITHUB_ENV.

    Raises:
        ValueError: a line is neither, which GitHub fails the step for.
    """
    found: dict[str, str] = {}
    lines = iter(text.splitlines())
    for line in lines:
        if "<<" in line and "=" not in line.partition("<<")[0]:
            key, _, end = line.partition("<<")
            value: list[str] = []
            for inner in lines:
                if inner == end:
                    break
                value.append(inner)
            else:
                raise ValueError(f"{key} has no end {end!r}")
            found[key] = "\n".join(value)
        elif "=" in line:
            key, _, value_text = line.partition("=")
            found[key] = value_text
        elif line:
            raise ValueError(f"invalid line {line!r}")
    return found


__all__ = ["Contexts", "Finished", "Step", "load", "read_values", "run"]
