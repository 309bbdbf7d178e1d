"""A folder that `sanitize` made, onto the Hub: one commit or one pull request, read back and run.

A README that a person wrote is never overwritten. It is a person's unless the manifest of the same
revision names it with the very hash it has (see `destination`): one that rnp-hub pushed and that
was edited since is theirs. Where one stands in the way, `force` makes the push a pull request,
which they may merge.

Files that an earlier push left and this folder no longer has are deleted in the same commit. Files
of other people stay, but for one kind: weights that ours would replace (their `model.safetensors`)
or that a loader could take instead (a `pytorch_model.bin` beside it). Those are refused, or
replaced and deleted in a pull request where `force` or `create_pr` asks for one.

The commit is atomic: the branch's head is the old commit or the whole new one (see `change`).
"""

from __future__ import annotations

import contextlib
import glob
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import rnp_hub
from rnp_hub.change import Change, Made, OvertakenError, make
from rnp_hub.destination import MANIFEST, README, Destination, Print, is_loadable, survey
from rnp_hub.errors import ProofError, PushError, RnpHubError
from rnp_hub.progress import Progress, quiet
from rnp_hub.published import Agreement, Reference, compare, first_wrong
from rnp_hub.remote import Patience, Remote, quiet_client
from rnp_hub.report import RunReport
from rnp_hub.shipment import Shipment

ALWAYS = (README, "model.safetensors", "slim/model.safetensors", "onnx/model.onnx")
"""Files that every folder holds; what is in their way can be found before they are made."""

PULL_REQUEST = "refs/pr/"

RACES = 3
"""How often a push starts anew because others commit at the same time."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class PushConfig:
    """How to push.

    Attributes:
        public: a new repository is seen by all; an existing one stays what it is.
        create_pr: open a pull request instead of committing.
        force: where a person's README or weights stand in the way, open a pull request.
        revision: branch to commit to, or to open the pull request on; `None` for `main`.
        message: title of the commit; `None` for one that says what was sanitized.
        patience: how long the Hub is waited for.
    """

    public: bool = False
    create_pr: bool = False
    force: bool = False
    revision: str | None = None
    message: str | None = None
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True)
class PushPlan:
    """What a push would do.

    Attributes:
        repo_id, revision: where to.
        parent: commit that it would follow; `None` where the repository is new.
        create: the repository is made first.
        private: whether it is, or will be, seen by its owners alone.
        pull_request: a pull request instead of a commit.
        upload: bytes of each file that is new or changed.
        unchanged: files that lie there already.
        delete: files that go: earlier pushes', and with `force` a person's weights.
        replace: files of a person among `upload`.
    """

    repo_id: str
    revision: str
    parent: str | None
    create: bool
    private: bool
    pull_request: bool
    upload: dict[str, int]
    unchanged: tuple[str, ...]
    delete: tuple[str, ...]
    replace: tuple[str, ...]

    @property
    def changes_nothing(self) -> bool:
        return not (self.upload or self.delete)

    def target(self) -> str:
        """Where it goes, in words."""
        kind = "private" if self.private else "public"
        if self.create:
            return f"{self.repo_id} (new, {kind})"
        how = "a pull request" if self.pull_request else "a commit"
        return f"{self.repo_id} ({kind}), {how} on {self.revision} at {(self.parent or '')[:7]}"


@dataclass(frozen=True)
class Pushed:
    """A push that was made, pulled back and compared.

    Attributes:
        repo_id: where it lies.
        revision: the branch, or `refs/pr/N`.
        commit, parent: SHAs on the Hub.
        url: of the commit or of the pull request.
        pull_request: whether it is one.
        created: whether the repository was made by this push.
        private: whether only its owners see it.
        files: SHA-256 of each file, of the folder and of the Hub alike.
        uploaded, deleted: paths that the commit changed.
        inputs: how many inputs the networks were compared on.
        agreement: of the `drop-in`, `slim` and `onnx` that came back, with the network in memory.
    """

    repo_id: str
    revision: str
    commit: str
    parent: str | None
    url: str
    pull_request: bool
    created: bool
    private: bool
    files: dict[str, str]
    uploaded: tuple[str, ...]
    deleted: tuple[str, ...]
    inputs: int
    agreement: dict[str, Agreement]


# --- before -----------------------------------------------------------------------------------


def check(repo_id: str, config: PushConfig, *, say: Say = lambda _: None) -> PushPlan:
    """Find out before minutes of work whether a push would be refused; nothing is written.

    Returns:
        The plan of a push whose files are not known yet.

    Raises:
        PushError: the name, the token, the branch, or what a person left there stands in the way.
    """
    there = _look(repo_id, config, say)
    return plan_push(dict.fromkeys(ALWAYS, Print("", "", 0)), there, config)


def dry_run(
    folder: Path, repo_id: str, config: PushConfig, *, say: Say = lambda _: None
) -> PushPlan:
    """What `push` would do; nothing is written, here or there.

    Raises:
        RnpHubError: as for `push`, up to its commit.
    """
    files = Shipment.read(folder, repo_id).files
    return plan_push(files, _look(repo_id, config, say), config)


def _look(repo_id: str, config: PushConfig, say: Say) -> Destination:
    remote = Remote(patience=config.patience, say=say)
    with quiet_client():
        return survey(remote, repo_id, config.revision, propose=config.create_pr)


def plan_push(files: Mapping[str, Print], there: Destination, config: PushConfig) -> PushPlan:
    """What would be uploaded, deleted and left alone.

    Raises:
        PushError: what a person wrote stands in the way, and `config` asks for no pull request.
    """
    upload = {path: each.size for path, each in files.items() if not there.holds(path, each)}
    folders = {PurePosixPath(path).parent for path in files}
    weights = [
        path
        for path in there.of_a_person()
        if is_loadable(path)
        and PurePosixPath(path).parent in folders
        and (path in upload or path not in files)
    ]
    readme = README in upload and README in there.files and not there.is_ours(README)
    pull_request = config.create_pr
    if readme or weights:
        if not (config.force or config.create_pr):
            raise PushError(_in_the_way(there, weights if not readme else [README]))
        pull_request = True
    stale = [
        path
        for path in there.files
        if path not in files and path != MANIFEST and there.is_ours(path)
    ]
    return PushPlan(
        repo_id=there.repo_id,
        revision=there.revision,
        parent=there.head,
        create=not there.exists,
        private=not config.public if there.private is None else there.private,
        pull_request=pull_request,
        upload=upload,
        unchanged=tuple(path for path in files if path not in upload),
        delete=tuple(sorted({*stale, *weights} - files.keys())),
        replace=tuple(path for path in there.of_a_person() if path in upload),
    )


def _in_the_way(there: Destination, paths: list[str]) -> str:
    if paths == [README]:
        return (
            f"the {README} of {there.repo_id} was written or edited by a person; --force proposes "
            "another in a pull request"
        )
    return (
        f"{there.repo_id} holds {', '.join(paths)}, weights that a person put there and that would "
        "be lost, or loaded instead of the sanitized ones; push to a repository of its own, or "
        "--force to propose it in a pull request"
    )


# --- the push ---------------------------------------------------------------------------------


def push(
    folder: Path,
    repo_id: str,
    config: PushConfig = PushConfig(),
    *,
    reference: Reference | None = None,
    remote: Remote | None = None,
    progress: Progress = quiet,
    say: Say = lambda _: None,
) -> Pushed:
    """Push a folder that `sanitize` made, pull it back by its commit and compare.

    Args:
        folder: with its report; its weights must have the hashes that stand there.
        repo_id: `org/name`; made, private, where there is none.
        config: see there.
        reference: what the network in memory answers; `None` asks the folder's drop-in.
        remote: the Hub; `None` for that of the environment.
        progress: told of the stages `check`, `upload` and `verify`.
        say: told what a person should know.

    Raises:
        PushError: it was refused, here or there, or the Hub could not be reached; the head of the
            repository is as it was, unless the message names the commit that was made.
        ProofError: what was published is not what was proved.
    """
    remote = remote or Remote(patience=config.patience, say=say)
    with quiet_client(), _said_when_stopped(folder, repo_id, config):
        progress("check", 0.0, {})
        local = Shipment.read(folder, repo_id)
        there = survey(remote, repo_id, config.revision, propose=config.create_pr)
        plan = plan_push(local.files, there, config)
        reference = reference or Reference.of_folder(folder)
        _check_local(folder, reference)
        progress("check", 1.0, {})
        progress("upload", 0.0, {"files": len(plan.upload)})
        final, made = _publish(remote, local, there, plan, config, say)
        progress("upload", 1.0, {"files": len(final.upload)})
        progress("verify", 0.0, {})
        agreement = _verify(remote, repo_id, local, made, reference)
        progress("verify", 1.0, {})
    return Pushed(
        repo_id=repo_id,
        revision=made.revision,
        commit=made.commit,
        parent=final.parent,
        url=made.url,
        pull_request=made.revision.startswith(PULL_REQUEST),
        created=plan.create,
        private=final.private,
        files={path: each.sha256 for path, each in local.files.items()},
        uploaded=tuple(final.upload),
        deleted=final.delete,
        inputs=len(reference.inputs),
        agreement=agreement,
    )


def command(folder: Path, repo_id: str, config: PushConfig) -> str:
    """The command that makes this push."""
    words = ["rnp-hub", "push", str(folder), repo_id]
    flags = {"--public": config.public, "--create-pr": config.create_pr, "--force": config.force}
    words += [flag for flag, given in flags.items() if given]
    for option, value in (("--revision", config.revision), ("--message", config.message)):
        words += [option, value] if value is not None else []
    return shlex.join(words)


@contextlib.contextmanager
def _said_when_stopped(folder: Path, repo_id: str, config: PushConfig) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(
            f"Stopped; {folder} is whole, and {repo_id} holds the old commit or the whole new one. "
            f"`{command(folder, repo_id, config)}` looks which, and goes on."
        ) from stop


def _check_local(folder: Path, reference: Reference) -> None:
    wrong = first_wrong(compare(folder, reference))
    if wrong is not None:
        raise PushError(
            f"{folder} was changed since it was proved: {wrong}; run `rnp-hub sanitize` again"
        )


def _publish(
    remote: Remote,
    local: Shipment,
    there: Destination,
    plan: PushPlan,
    config: PushConfig,
    say: Say,
) -> tuple[PushPlan, Made]:
    """Make the repository and the commit; where others commit meanwhile, on top of theirs."""
    if plan.create:
        there = _create(remote, plan, config)
        plan = plan_push(local.files, there, config)
        say(f"made {plan.repo_id} ({'private' if plan.private else 'public'})")
    for note in _notes(plan, config, there):
        say(note)
    for _ in range(RACES):
        if plan.changes_nothing and plan.parent is not None:
            page = f"{remote.api.endpoint}/{plan.repo_id}/commit/{plan.parent}"
            return plan, Made(plan.parent, plan.revision, page)
        try:
            return plan, make(remote, _change(local, plan, config))
        except OvertakenError:
            newer = survey(remote, plan.repo_id, config.revision, propose=plan.pull_request)
            plan = plan_push(local.files, newer, config)
            if not plan.changes_nothing:
                _check_untouched(local, there, newer)
                say("another commit got in first; it touches none of these files: built upon it")
            there = newer
    raise PushError(
        f"others commit to {plan.repo_id} faster than it can be pushed to; nothing was pushed, "
        "push again later"
    )


def _change(local: Shipment, plan: PushPlan, config: PushConfig) -> Change:
    return Change(
        repo_id=plan.repo_id,
        revision=plan.revision,
        parent=plan.parent,
        upload={path: local.content(path) for path in plan.upload},
        sha256={path: local.files[path].sha256 for path in plan.upload},
        delete=plan.delete,
        pull_request=plan.pull_request,
        title=config.message or _title(local.report),
        description=_description(local.report, plan.delete),
    )


def _title(report: RunReport) -> str:
    name = report.source.repo_id or Path(report.source.path or "model").name
    return f"Sanitize {name} with rnp-hub {rnp_hub.__version__}"


def _description(report: RunReport, deleted: tuple[str, ...]) -> str:
    source, prune, slim = report.source, report.prune, report.slim
    before, after = report.before.clean_accuracy, report.after.clean_accuracy
    lines = [
        f"Source: {source.repo_id or 'a local folder'}" + (f"@{source.sha}" if source.sha else ""),
        f"Filters: {prune.silenced} of {prune.filters} silenced, {slim.removed} removed"
        + (f", {prune.softened} softened" if prune.softened else "")
        + (f", {prune.softened_kernels} kernels softened" if prune.softened_kernels else "")
        + (f", {prune.fine_tuned} epochs of fine-tuning" if prune.fine_tuned else "")
        + (", BatchNorm statistics re-estimated" if prune.bn_stats else ""),
        f"Clean accuracy: {before.value:.2%} before, {after.value:.2%} after (n = {after.n})",
        *([f"Deleted: {', '.join(deleted)}"] if deleted else []),
    ]
    return "\n".join(lines)


def _notes(plan: PushPlan, config: PushConfig, there: Destination) -> Iterator[str]:
    if plan.changes_nothing:
        yield f"{plan.repo_id} holds these very files already; they are pulled back and compared"
    if plan.replace and not plan.pull_request:
        yield f"replaces {', '.join(plan.replace)}, which rnp-hub did not push"
    if plan.pull_request and not config.create_pr:
        yield "what a person wrote stands in the way, so a pull request is opened instead"
    if config.public and there.private:
        yield f"{plan.repo_id} stays private; an existing repository's visibility is left alone"


def _create(remote: Remote, plan: PushPlan, config: PushConfig) -> Destination:
    """Make the repository, which then is what was asked for, or nothing is pushed."""
    repo_id = plan.repo_id
    remote.ask(lambda: remote.api.create_repo(repo_id, private=plan.private, exist_ok=True))
    there = survey(remote, repo_id, config.revision, propose=False)
    if plan.private and not there.private:
        raise PushError(
            f"{repo_id} is public although a private repository was asked for; nothing was pushed: "
            "make it private in its settings, or give --public"
        )
    return there


def _check_untouched(local: Shipment, before: Destination, now: Destination) -> None:
    """What others changed meanwhile must be none of the files that this push speaks of."""
    ours = {*local.files, *before.manifest.files}
    touched = sorted(path for path in ours if before.files.get(path) != now.files.get(path))
    if touched:
        raise PushError(
            f"another commit ({(now.head or '')[:7]}) changed {', '.join(touched)} of "
            f"{now.repo_id} meanwhile; nothing was pushed: look at it, and push again if these "
            "files shall replace it"
        )


# --- afterwards -------------------------------------------------------------------------------


def _verify(
    remote: Remote, repo_id: str, local: Shipment, made: Made, reference: Reference
) -> dict[str, Agreement]:
    """Pull the commit back into an empty cache; hash its files and run its networks."""
    commit, files = made.commit, [glob.escape(path) for path in local.files]
    with tempfile.TemporaryDirectory(prefix=".rnp-hub-") as empty:
        try:
            back = remote.ask(
                lambda: remote.api.snapshot_download(
                    repo_id, revision=commit, cache_dir=empty, allow_patterns=files
                )
            )
            head = _head(remote, repo_id, made)
        except PushError as error:
            raise PushError(
                f"commit {commit} of {repo_id} was made, but cannot be pulled back and compared "
                f"({error})"
            ) from error
        agreement, wrong = _differences(Path(back), local.files, reference)
    if head != commit:
        wrong = f"{made.revision} stands at {head}"
    if wrong is not None:
        raise ProofError(
            f"commit {commit} of {repo_id} is not what was proved ({wrong}) and must not be used; "
            f"take it back with `git revert {commit}` in a clone"
        )
    return agreement


def _head(remote: Remote, repo_id: str, made: Made) -> str | None:
    """Where a pull request stands, which is nobody else's; a branch may have moved on."""
    if not made.revision.startswith(PULL_REQUEST):
        return made.commit
    return remote.ask(lambda: remote.api.model_info(repo_id, revision=made.revision)).sha


def _differences(
    back: Path, files: Mapping[str, Print], reference: Reference
) -> tuple[dict[str, Agreement], str | None]:
    """How near the networks come, and the first thing that is wrong."""
    for path, expected in files.items():
        file = back / path
        if not file.is_file() or Print.of(file) != expected:
            return {}, f"its {path} is another" if file.is_file() else f"it lacks {path}"
    try:
        agreement = compare(back, reference)
    except RnpHubError as error:
        return {}, f"it cannot be run: {error}"
    return agreement, first_wrong(agreement)
