"""A folder that `sanitize` made, onto the Hub: one commit or one pull request, read back and run.

A README that a person wrote is never overwritten. It is a person's unless the manifest of the same
revision names it with the very hash it has (see `repository`): one that rnp-hub pushed and somebody
edited since is theirs. Where one stands in the way, `force` makes the push a pull request, which
they may merge.

Files that an earlier push left and this folder no longer has are deleted in the same commit. Files
of other people stay, but for one kind: weights that a loader could take instead of the sanitized
ones (a `pytorch_model.bin` beside our safetensors). Those are refused, or deleted in the pull
request that `force` opens.

The commit names its parent, so the branch's head is the old commit or the whole new one. Each push
has an id, made from its parent and its content, that stands in the commit's description: after a
lost answer it tells whether the commit was made all the same, and no push is made twice.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError

import rnp_hub
from rnp_hub.errors import ProofError, PushError, RnpHubError, reason
from rnp_hub.progress import Progress, quiet
from rnp_hub.published import Agreement, Reference, compare, first_wrong
from rnp_hub.remote import Patience, Remote, quiet_client, status_of
from rnp_hub.report import FILE, RunReport
from rnp_hub.repository import (
    MANIFEST,
    README,
    Manifest,
    Print,
    Repository,
    is_loadable,
    survey,
)

ALWAYS = (README, "model.safetensors", "slim/model.safetensors", "onnx/model.onnx")
"""Files that every folder holds; what is in their way can be found before they are made."""

RACES = 3
"""How often a push starts anew because others commit at the same time."""

TRAILER = "Rnp-Hub-Push: "
"""Before the push's id in the description of its commit."""

LOOKED_AT = 30
"""Open pull requests that are looked at for one that an earlier try has opened."""

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


@dataclass(frozen=True)
class Folder:
    """A folder whose weights are those its report speaks of.

    Attributes:
        path: where it lies.
        report: what was measured.
        files: of each file to push, the manifest left out.
    """

    path: Path
    report: RunReport
    files: Mapping[str, Print]

    @property
    def manifest(self) -> bytes:
        return Manifest(dict(self.files)).to_json()

    def prints(self) -> dict[str, Print]:
        """Of every file to push, the manifest included."""
        return {**self.files, MANIFEST: Print.of(self.manifest)}

    def content(self, path: str) -> bytes | Path:
        return self.manifest if path == MANIFEST else self.path / path

    @staticmethod
    def read(path: Path) -> Folder:
        """Read and check a folder.

        Raises:
            RnpHubError: it is none that `sanitize` made.
            PushError: it was changed since.
        """
        report = RunReport.read(path)
        try:
            files = {
                file.relative_to(path).as_posix(): Print.of(_plain(file)) for file in _visible(path)
            }
        except OSError as error:
            raise PushError(f"{path} cannot be read ({reason(error)})") from error
        stated = stated_hashes(report)
        for name, sha256 in stated.items():
            if name not in files or files[name].sha256 != sha256:
                changed = "was changed" if name in files else "is missing"
                raise PushError(
                    f"{path / name} {changed} since it was proved; run `rnp-hub sanitize` again"
                )
        for name in files:
            if is_loadable(name) and name not in stated:
                raise PushError(
                    f"{path / name} holds weights that {FILE} does not speak of; move it elsewhere"
                )
        return Folder(path, report, files)


def stated_hashes(report: RunReport) -> dict[str, str]:
    """SHA-256 of each weight file that a report speaks of, by path."""
    export = report.export
    variants = {
        f"onnx/model{'' if name == 'fp32' else f'_{name}'}.onnx": record.sha256
        for name, record in export.onnx.items()
    }
    return {
        "model.safetensors": export.safetensors.sha256,
        "slim/model.safetensors": export.slim.sha256,
        **variants,
    }


def _visible(folder: Path) -> Iterator[Path]:
    """Its files, but for hidden ones and the manifest of a repository it was downloaded from."""
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if not hidden and inside.as_posix() != MANIFEST and (file.is_symlink() or file.is_file()):
            yield file


def _plain(file: Path) -> Path:
    if file.is_symlink():
        raise PushError(f"{file} is a link, which sanitize never writes; put the file in its place")
    return file


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
    files = Folder.read(folder).prints()
    return plan_push(files, _look(repo_id, config, say), config)


def _look(repo_id: str, config: PushConfig, say: Say) -> Repository:
    remote = Remote(patience=config.patience, say=say)
    with quiet_client():
        return survey(remote, repo_id, config.revision, propose=config.create_pr)


def plan_push(files: Mapping[str, Print], there: Repository, config: PushConfig) -> PushPlan:
    """What would be uploaded, deleted and left alone.

    Raises:
        PushError: what a person wrote stands in the way, and `config` asks for no pull request.
    """
    upload = {path: each.size for path, each in files.items() if not there.holds(path, each)}
    folders = {PurePosixPath(path).parent for path in files}
    weights = [
        path
        for path in there.of_a_person()
        if is_loadable(path) and path not in files and PurePosixPath(path).parent in folders
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
        delete=tuple(sorted({*stale, *weights})),
        replace=tuple(path for path in there.of_a_person() if path in upload),
    )


def _in_the_way(there: Repository, paths: list[str]) -> str:
    if paths == [README]:
        return (
            f"the {README} of {there.repo_id} was written or edited by a person; --force proposes "
            "another in a pull request"
        )
    return (
        f"{there.repo_id} holds {', '.join(paths)}, which a loader could take instead of the "
        "sanitized weights; delete it there, or --force to propose that in a pull request"
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
            repository is as it was.
        ProofError: what was published is not what was proved.
    """
    remote = remote or Remote(patience=config.patience, say=say)
    with quiet_client(), _said_when_stopped(folder, repo_id, config):
        progress("check", 0.0, {})
        local = Folder.read(folder)
        there = survey(remote, repo_id, config.revision, propose=config.create_pr)
        plan = plan_push(local.prints(), there, config)
        reference = reference or Reference.of_folder(folder)
        _check_local(folder, reference)
        progress("check", 1.0, {})
        progress("upload", 0.0, {"files": len(plan.upload)})
        made = _publish(remote, local, there, plan, config, say)
        progress("upload", 1.0, {"files": len(made.plan.upload)})
        progress("verify", 0.0, {})
        agreement = _verify(remote, local, made, reference)
        progress("verify", 1.0, {})
    return Pushed(
        repo_id=repo_id,
        revision=made.revision,
        commit=made.commit,
        parent=made.plan.parent,
        url=made.url,
        pull_request=made.revision.startswith("refs/pr/"),
        created=plan.create,
        private=made.plan.private,
        files={path: each.sha256 for path, each in local.prints().items()},
        uploaded=tuple(made.plan.upload),
        deleted=made.plan.delete,
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


@dataclass(frozen=True)
class _Made:
    """A commit that stands on the Hub."""

    plan: PushPlan
    commit: str
    revision: str
    url: str


def _publish(
    remote: Remote,
    local: Folder,
    there: Repository,
    plan: PushPlan,
    config: PushConfig,
    say: Say,
) -> _Made:
    """Make the repository and the commit; where others commit meanwhile, on top of theirs."""
    if plan.create:
        there = _create(remote, plan, config)
        plan = plan_push(local.prints(), there, config)
        say(f"made {plan.repo_id} ({'private' if plan.private else 'public'})")
    for note in _notes(plan, config, there):
        say(note)
    for _ in range(RACES):
        try:
            return _commit(remote, local, plan, config)
        except _OvertakenError:
            newer = survey(remote, plan.repo_id, config.revision, propose=plan.pull_request)
            _check_untouched(local, there, newer)
            say("another commit got in first; it touches none of these files, so it is built upon")
            there, plan = newer, plan_push(local.prints(), newer, config)
    raise PushError(
        f"others commit to {plan.repo_id} faster than it can be pushed to; nothing was pushed, "
        "push again later"
    )


def _notes(plan: PushPlan, config: PushConfig, there: Repository) -> Iterator[str]:
    if plan.changes_nothing:
        yield f"{plan.repo_id} holds these very files already; they are pulled back and compared"
    if plan.replace and not plan.pull_request:
        yield f"replaces {', '.join(plan.replace)}, which rnp-hub did not push"
    if plan.pull_request and not config.create_pr:
        yield "what a person wrote stands in the way, so a pull request is opened instead"
    if config.public and there.private:
        yield f"{plan.repo_id} stays private; an existing repository's visibility is left alone"


def _create(remote: Remote, plan: PushPlan, config: PushConfig) -> Repository:
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


def _check_untouched(local: Folder, before: Repository, now: Repository) -> None:
    """What others changed meanwhile must be none of the files that this push speaks of."""
    ours = {*local.prints(), *before.manifest.files}
    touched = sorted(path for path in ours if before.files.get(path) != now.files.get(path))
    if touched:
        raise PushError(
            f"another commit ({(now.head or '')[:7]}) changed {', '.join(touched)} of "
            f"{now.repo_id} meanwhile; nothing was pushed: look at it, and push again if these "
            "files shall replace it"
        )


class _OvertakenError(Exception):
    """The branch's head is no longer the parent."""


def _commit(remote: Remote, local: Folder, plan: PushPlan, config: PushConfig) -> _Made:
    identity = _identity(local, plan)
    if plan.changes_nothing and plan.parent is not None:
        url = f"{remote.api.endpoint}/{plan.repo_id}/commit/{plan.parent}"
        return _Made(plan, plan.parent, plan.revision, url)
    if plan.pull_request and (earlier := _find(remote, plan, config, local, identity)):
        return earlier

    def send() -> _Made:
        operations = [CommitOperationAdd(path, _sendable(local, path)) for path in plan.upload]
        info = remote.api.create_commit(
            plan.repo_id,
            [*operations, *map(CommitOperationDelete, plan.delete)],
            commit_message=_title(local, config),
            commit_description=_description(local, plan, identity),
            revision=plan.revision,
            parent_commit=plan.parent,
            create_pr=plan.pull_request,
        )
        return _Made(
            plan, info.oid, info.pr_revision or plan.revision, info.pr_url or info.commit_url
        )

    def found() -> _Made | None:
        return _find_again(remote, plan, config, local, identity)

    try:
        return remote.ask(send, found=found, leave=lambda error: status_of(error) == 412)
    except PushError as error:
        raise PushError(f"{error}; {_whereabouts(remote, plan)}") from error
    except HfHubHTTPError as error:
        raise _OvertakenError from error


def _find_again(
    remote: Remote, plan: PushPlan, config: PushConfig, local: Folder, identity: str
) -> _Made | None:
    """What a failed try has made all the same.

    A commit may be sent again even where this cannot be asked: had the first arrived, its parent
    would be refused, and it would be found then. A pull request could be opened twice.
    """
    if plan.pull_request:
        return _find(remote, plan, config, local, identity)
    impatient = replace(remote, patience=replace(remote.patience, tries=1))
    with contextlib.suppress(PushError):
        return _find(impatient, plan, config, local, identity)
    return None


def _sendable(local: Folder, path: str) -> bytes | str:
    content = local.content(path)
    return content if isinstance(content, bytes) else str(content)


def _whereabouts(remote: Remote, plan: PushPlan) -> str:
    """What became of the head, as far as it can be asked."""
    if plan.pull_request:
        return f"no pull request was seen on {plan.repo_id}"
    try:
        head = remote.api.model_info(plan.repo_id, revision=plan.revision).sha
    except Exception:  # whatever it is, the first failure is what has been told
        return f"{plan.repo_id} cannot be asked whether it holds the old commit or the new one"
    if head == plan.parent:
        return f"{plan.repo_id} stands as it was, at {(head or 'no commit')[:7]}"
    return f"{plan.repo_id} stands at {(head or 'no commit')[:7]}, which this push did not make"


def _identity(local: Folder, plan: PushPlan) -> str:
    """The same for the same change of the same commit, and for nothing else."""
    files = {path: each.sha256 for path, each in local.prints().items()}
    content = [plan.parent, plan.pull_request, sorted(files.items()), plan.delete]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _find(
    remote: Remote, plan: PushPlan, config: PushConfig, local: Folder, identity: str
) -> _Made | None:
    """The commit or the pull request of this very push, where an earlier try has made it."""
    if not plan.pull_request:
        commit = _find_commit(remote, plan, plan.revision, identity)
        url = f"{remote.api.endpoint}/{plan.repo_id}/commit/{commit}"
        return _Made(plan, commit, plan.revision, url) if commit else None
    opened = remote.ask(
        lambda: list(
            remote.api.get_repo_discussions(
                plan.repo_id, discussion_type="pull_request", discussion_status="open"
            )
        )
    )
    title = _title(local, config)
    for each in [each for each in opened if each.title == title][:LOOKED_AT]:
        revision = f"refs/pr/{each.num}"
        if commit := _find_commit(remote, plan, revision, identity):
            url = f"{remote.api.endpoint}/{plan.repo_id}/discussions/{each.num}"
            return _Made(plan, commit, revision, url)
    return None


def _find_commit(remote: Remote, plan: PushPlan, revision: str, identity: str) -> str | None:
    history = remote.ask(lambda: remote.api.list_repo_commits(plan.repo_id, revision=revision))
    for commit in history:
        if commit.commit_id == plan.parent:
            break
        if f"{TRAILER}{identity}" in commit.message:
            return commit.commit_id
    return None


def _title(local: Folder, config: PushConfig) -> str:
    source = local.report.source
    name = source.repo_id or Path(source.path or "model").name
    return config.message or f"Sanitize {name} with rnp-hub {rnp_hub.__version__}"


def _description(local: Folder, plan: PushPlan, identity: str) -> str:
    report = local.report
    source, prune, slim = report.source, report.prune, report.slim
    before, after = report.before.clean_accuracy, report.after.clean_accuracy
    lines = [
        f"Source: {source.repo_id or 'a local folder'}" + (f"@{source.sha}" if source.sha else ""),
        f"Filters: {prune.silenced} of {prune.filters} silenced, {slim.removed} removed",
        f"Clean accuracy: {before.value:.2%} before, {after.value:.2%} after (n = {after.n})",
        *([f"Deleted: {', '.join(plan.delete)}"] if plan.delete else []),
        "",
        f"{TRAILER}{identity}",
    ]
    return "\n".join(lines)


# --- afterwards -------------------------------------------------------------------------------


def _verify(
    remote: Remote, local: Folder, made: _Made, reference: Reference
) -> dict[str, Agreement]:
    """Pull the commit back into an empty cache; hash its files and run its networks."""
    repo_id, commit, files = made.plan.repo_id, made.commit, local.prints()
    with tempfile.TemporaryDirectory(prefix=".rnp-hub-") as empty:
        try:
            back = remote.ask(
                lambda: remote.api.snapshot_download(
                    repo_id,
                    revision=commit,
                    cache_dir=empty,
                    allow_patterns=[glob.escape(path) for path in files],
                )
            )
        except PushError as error:
            raise PushError(
                f"commit {commit} of {repo_id} was made, but cannot be pulled back and compared "
                f"({error})"
            ) from error
        agreement, wrong = _differences(Path(back), files, reference)
    if wrong is not None:
        raise ProofError(
            f"commit {commit} of {repo_id} is not what was proved ({wrong}) and must not be used; "
            f"take it back with `git revert {commit}` in a clone"
        )
    return agreement


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
