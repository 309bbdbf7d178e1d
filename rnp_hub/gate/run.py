"""One run of the gate: look at the files, scan (or sanitize), judge, publish, tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import rnp_hub
from rnp_hub import push as pushing
from rnp_hub.errors import AtChanceError, ConfigError
from rnp_hub.gate import own_report
from rnp_hub.gate.files import ModelFiles
from rnp_hub.gate.judge import NOT_MEASURED, Case, Measured, judge
from rnp_hub.gate.outputs import Outputs
from rnp_hub.gate.policy import FILE as POLICY_FILE
from rnp_hub.gate.policy import Policy
from rnp_hub.gate.result import GateReport, PushedRecord, SanitizedRecord
from rnp_hub.hub_cards import write_card
from rnp_hub.method import Stopwatch
from rnp_hub.pipeline import Job, PushJob, SanitizeJob, sanitize_model, scan_model
from rnp_hub.progress import Progress, quiet
from rnp_hub.pull import find
from rnp_hub.report import RunReport, ScanReport
from rnp_hub.repository import CARD
from rnp_hub.sources import open_source
from rnp_hub.static import Inspection, inspect
from rnp_hub.static.finding import OPENING
from rnp_hub.trust.signing import SIGNATURE
from rnp_hub.trust.statement import FILE as STATEMENT
from rnp_hub.weights import sha256

Say = Callable[[str], None]

WRITTEN_HERE = "not measured again: it was written by this run"
"""Said of the report in a folder that was just sanitized."""

OWN_FILES = (STATEMENT, SIGNATURE)
"""Files that speak of the others, and so not of themselves."""


@dataclass(frozen=True)
class GateJob:
    """What is asked of the gate.

    Attributes:
        sanitize: the model, the data, and how to sanitize where `heal` asks for it.
        heal: sanitize the model and judge the result.
        policy: its file; `None` for the default policy.
        outputs: files to write.
        reference: the file of this repository that names the model; `None` for the policy's.
        push: where the judged folder goes if it passes; `None` for nowhere.
    """

    sanitize: SanitizeJob
    heal: bool = False
    policy: Path | None = None
    outputs: Outputs = field(default_factory=Outputs)
    reference: str | None = None
    push: PushJob | None = None

    @property
    def job(self) -> Job:
        return self.sanitize.job


@dataclass(frozen=True)
class GatePlan:
    """What a gate would look at.

    Attributes:
        model, data: as they were asked for.
        model_sha, data_sha: commits on the Hub; `None` for what lies on this machine.
        policy: what it asks.
    """

    model: str
    model_sha: str | None
    data: str
    data_sha: str | None
    policy: dict[str, object]


def plan(asked: GateJob) -> GatePlan:
    """Read the policy and find the model and the data, fetching neither.

    Raises:
        RnpHubError: as for `gate`.
    """
    policy, data = Policy.read(asked.policy), asked.job.data
    found = find(asked.job.model, asked.job.revision)
    source = open_source(
        data.spec,
        config=data.config,
        image_column=data.image_column,
        label_column=data.label_column,
    )
    return GatePlan(asked.job.model, found.sha, data.spec, source.sha, policy.stated())


@dataclass(frozen=True)
class _Found:
    """What was found out.

    Attributes:
        judged: the files that would leave: the model's, or those of the sanitized folder.
        seen: what they are like.
        run: what was measured; `None` where nothing was.
        report: what is wrong with the model's own report; `None` where it was not held against.
        at_chance: the model was measured to know nothing.
    """

    judged: ModelFiles
    seen: Inspection
    run: ScanReport | RunReport | None = None
    report: str | None = None
    at_chance: str | None = None


def gate(asked: GateJob, progress: Progress = quiet, say: Say = lambda _: None) -> GateReport:
    """Hold a model against a policy.

    No file is opened as what it says it is before its bytes were looked at, and where those that
    the network is made of are not what they should be, it is not built: the rules about it stay
    unmeasured.

    Returns:
        The report; every file that was asked for is written, whatever the verdict.

    Raises:
        RnpHubError: the tool could not do what was asked: there is no such model, the data do not
            fit, the policy cannot be read, the push was refused.
    """
    policy = Policy.read(asked.policy)
    asked.outputs.check()
    _check_push(asked, say)
    watch = Stopwatch()
    files = watch.time("files", lambda: ModelFiles.get(asked.job.model, asked.job.revision))
    seen = watch.time("look", lambda: _look(files))
    found = _Found(files, seen)
    if not _unsafe(files, seen):
        found = _measure(asked, policy, found, watch, progress, say)
    report = _report(asked, policy, files, found, watch)
    report = _seal_and_push(asked, report, found.judged, progress, say)
    asked.outputs.write(report)
    return report


# --- looking --------------------------------------------------------------------------------------


def _look(files: ModelFiles) -> Inspection:
    seen = inspect(files.files)
    return replace(seen, findings=(*files.links, *seen.findings))


def _unsafe(files: ModelFiles, seen: Inspection) -> bool:
    """Whether a file that the network would be made of is not what it should be.

    Pickles are read only where there is no safetensors file beside them.
    """
    tops = [name for name in files.files if "/" not in name]
    pickles = () if any(each.endswith(".safetensors") for each in tops) else (".bin", ".pth")
    endings = (".json", ".safetensors", *pickles)
    opened = {CARD, *(each for each in tops if each.endswith(endings))}
    names = (each.file.partition(":")[0] for each in seen.findings if each.rule in OPENING)
    return not opened.isdisjoint(names)


# --- measuring ------------------------------------------------------------------------------------


def _measure(
    asked: GateJob, policy: Policy, found: _Found, watch: Stopwatch, progress: Progress, say: Say
) -> _Found:
    files = found.judged
    asked = _at_commit(asked, files.sha)
    try:
        if asked.heal:
            return _healed(asked, watch, progress, say)
        if policy.require_report:
            return _scanned_with_report(asked, found, watch, progress, say)
        run = _scan(asked, watch, progress, say)
    except AtChanceError as error:
        return replace(found, at_chance=str(error).partition(";")[0])
    return replace(found, run=run)


def _at_commit(asked: GateJob, sha: str | None) -> GateJob:
    """What is measured is the commit whose files were looked at."""
    job = replace(asked.job, revision=sha or asked.job.revision)
    return replace(asked, sanitize=replace(asked.sanitize, job=job))


def _scan(asked: GateJob, watch: Stopwatch, progress: Progress, say: Say) -> ScanReport:
    flip = asked.sanitize.flip
    return watch.time("scan", lambda: scan_model(asked.job, progress, say, flip=flip))


def _scanned_with_report(
    asked: GateJob, found: _Found, watch: Stopwatch, progress: Progress, say: Say
) -> _Found:
    """Measure on pictures that the model's own report was not measured on."""
    files = found.judged
    own = own_report.read(files.files)
    if isinstance(own, RunReport) and own.data.seed == asked.job.data.seed:
        data = replace(asked.job.data, seed=own.data.seed + 1)
        asked = replace(asked, sanitize=replace(asked.sanitize, job=replace(asked.job, data=data)))
        say(f"the model's report was measured with seed {own.data.seed}; {data.seed} is taken here")
    run = _scan(asked, watch, progress, say)
    if isinstance(own, RunReport):
        own = own_report.contradiction(own, files.files, files.hashes(), _of(run))
    return replace(found, run=run, report=own)


def _healed(asked: GateJob, watch: Stopwatch, progress: Progress, say: Say) -> _Found:
    run, _ = watch.time("sanitize", lambda: sanitize_model(asked.sanitize, progress, say))
    folder = asked.sanitize.folder
    if asked.push is not None:  # so that what is signed here is what lies there
        write_card(folder, run, asked.push.repo_id)
    files = ModelFiles.of_folder(folder, str(folder))
    return _Found(files, _look(files), run)


def _of(run: ScanReport | RunReport) -> Measured:
    sanitized = isinstance(run, RunReport)
    now = run.after if isinstance(run, RunReport) else run.before
    return Measured(run.source, run.data, run.eval, run.before, now, run.verdict, sanitized)


# --- telling --------------------------------------------------------------------------------------


def _report(
    asked: GateJob, policy: Policy, files: ModelFiles, found: _Found, watch: Stopwatch
) -> GateReport:
    run = found.run
    case = Case(
        shown=files.shown,
        pinned=files.pinned,
        findings=found.seen.findings,
        pickles=found.seen.pickles,
        report=found.report,
        measured=None if run is None else _of(run),
        unmeasured=WRITTEN_HERE if found.run else NOT_MEASURED,
        at_chance=found.at_chance,
    )
    rules = judge(policy, case)
    hashes = watch.time("hash", found.judged.hashes)
    return GateReport(
        passed=all(each.status != "fail" for each in rules),
        model=files.shown,
        policy=policy.stated(),
        rules=rules,
        files=_without_own(hashes),
        source=run.source if run else None,
        data=run.data if run else None,
        eval=run.eval if run else None,
        before=run.before if run else None,
        verdict=run.verdict if run else None,
        sanitized=_sanitized(asked, run),
        pushed=None,
        timing_s=watch.seconds
        | {f"of these: {k}": v for k, v in (run.timing_s if run else {}).items()},
        environment=dict(run.environment) if run else {"rnp_hub": rnp_hub.__version__},
        reference=asked.reference or str(asked.policy or POLICY_FILE),
    )


def _without_own(hashes: Mapping[str, str]) -> dict[str, str]:
    return {name: sha256 for name, sha256 in hashes.items() if name not in OWN_FILES}


def _sanitized(asked: GateJob, run: ScanReport | RunReport | None) -> SanitizedRecord | None:
    if not isinstance(run, RunReport):
        return None
    folder = str(asked.sanitize.folder)
    prune = run.prune
    softened = prune.softened, prune.softened_kernels
    return SanitizedRecord(folder, prune.filters, prune.silenced, run.after, *softened)


# --- publishing -----------------------------------------------------------------------------------


def _check_push(asked: GateJob, say: Say) -> None:
    """Before minutes of work: what can be known of a push that would be refused."""
    if asked.push is None:
        return
    if not asked.heal:
        folder = Path(asked.job.model)
        if not folder.is_dir():
            raise ConfigError(
                "--push-to needs a folder to push: give --sanitize, or the folder that it made"
            )
        RunReport.read(folder)
    pushing.check(asked.push.repo_id, asked.push.config, say=say)


def _seal_and_push(
    asked: GateJob, report: GateReport, files: ModelFiles, progress: Progress, say: Say
) -> GateReport:
    """Write what may lie in the folder itself, then push the folder, if it passed."""
    outputs = asked.outputs
    if outputs.bom is not None:
        outputs.write_bom(report)
        report = replace(report, files=report.files | _hash_within(outputs.bom, files))
    if outputs.attest is not None:
        outputs.write_statement(report)
    if asked.push is None or not report.passed:
        return report
    to, folder = asked.push, asked.sanitize.folder if asked.heal else Path(asked.job.model)
    pushed = pushing.push(folder, to.repo_id, to.config, progress=progress, say=say)
    record = PushedRecord(pushed.repo_id, pushed.revision, pushed.commit, pushed.url)
    return replace(report, pushed=record)


def _hash_within(file: Path, files: ModelFiles) -> dict[str, str]:
    """SHA-256 of a file that was written into the very folder that was judged."""
    if files.root is None or not file.resolve().is_relative_to(files.root.resolve()):
        return {}
    return {file.resolve().relative_to(files.root.resolve()).as_posix(): sha256(file)}
