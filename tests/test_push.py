"""`rnp-hub push`: what arrives, what is refused, and what a person wrote stays."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from rnp_hub.destination import Manifest, Print, is_loadable, may_write
from rnp_hub.hub_cards import render
from rnp_hub.report import RunReport
from tests.hub.client import Hub
from tests.models import SANITIZE, Run, command_line
from tests.pushing import MANIFEST, hashes, is_refused, named, on_hub
from tests.worker import Worker

WRITES = ("POST /api/repos", "POST /commit", "PUT ")
CARD = "# Mine\n\nWritten by hand.\n"


@pytest.fixture
def repo(request: pytest.FixtureRequest) -> str:
    return named(request)


# --- what arrives


def test_push_makes_a_private_repository_and_one_commit(
    hub: Hub, rnp: Worker, shipped: Path, repo: str
) -> None:
    done = rnp("push", shipped, repo, "--json")

    assert (done.code, done.stderr) == (0, f"Note: made {repo} (private)\n")
    pushed, [commit, initial] = done.json, hub.history(repo)
    assert on_hub(hub, repo) == hashes(shipped)
    assert pushed["files"] == {**hashes(shipped), MANIFEST: pushed["files"][MANIFEST]}
    assert (pushed["commit"], pushed["parent"]) == (commit["oid"], initial["oid"])
    assert (pushed["created"], pushed["private"], pushed["pull_request"]) == (True, True, False)
    assert pushed["url"] == f"{hub.endpoint}/{repo}/commit/{commit['oid']}"
    assert commit["title"] == "Sanitize plain with rnp-hub 0.1.0"
    assert "filters" not in commit["title"]
    assert "silenced" in commit["message"]
    assert hub.fetch(f"api/models/{repo}").status == 404, "a stranger does not see it"
    assert [*pushed["agreement"]] == ["drop-in", "slim", "onnx"]
    limits = {"drop-in": 1e-5, "slim": 1e-4, "onnx": 1e-4}
    for part, agreement in pushed["agreement"].items():
        assert agreement["max_rel_diff"] <= limits[part]
        assert agreement["top1_agreement"] == 1.0


def test_the_card_is_pushed_under_the_repositorys_name(
    hub: Hub, rnp: Worker, plain_run: Run, repo: str
) -> None:
    assert "ORG/NAME" in (plain_run.folder / "README.md").read_text()
    assert rnp("push", plain_run.folder, repo).code == 0

    card = hub.read(repo, "README.md").decode()
    assert card == render(RunReport.read(plain_run.folder), repo)
    assert f'rnp_hub.load("{repo}")' in card
    assert "ORG/NAME" not in card
    others = {path for path, each in hashes(plain_run.folder).items() if path != "README.md"}
    assert all(on_hub(hub, repo)[path] == hashes(plain_run.folder)[path] for path in others)


def test_manifest_names_every_file_with_both_hashes(
    hub: Hub, rnp: Worker, shipped: Path, repo: str
) -> None:
    assert rnp("push", shipped, repo).code == 0

    manifest = json.loads(hub.read(repo, MANIFEST))
    assert manifest["schema"] == "rnp-hub/manifest/1"
    files = hub.files(repo)
    assert {path: each["sha256"] for path, each in manifest["files"].items()} == hashes(shipped)
    for path, each in manifest["files"].items():
        assert each["size"] == files[path].size
        assert files[path].lfs or each["git_oid"] == files[path].git_oid


def test_prints_are_those_of_sha256sum_and_git() -> None:
    assert Print.of(b"hello\n") == Print(
        "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        "ce013625030ba8dba906f756967f9e9ca394464a",
        6,
    )


@pytest.mark.parametrize("text", [b"", b"[]", b'{"schema": "other", "files": {}}', b'{"files": 3}'])
def test_a_manifest_that_is_none_names_no_file(text: bytes) -> None:
    assert Manifest.from_json(text).files == {}


def test_pushing_twice_changes_nothing(hub: Hub, rnp: Worker, shipped: Path, repo: str) -> None:
    first, again = rnp("push", shipped, repo, "--json"), rnp("push", shipped, repo, "--json")

    assert again.code == 0
    assert f"{repo} holds these very files already" in again.stderr
    assert again.json["commit"] == first.json["commit"] == hub.head(repo)
    assert again.json["uploaded"] == []
    assert len(hub.history(repo)) == 2


def test_public_is_for_new_repositories_only(
    hub: Hub, rnp: Worker, shipped: Path, repo: str
) -> None:
    assert rnp("push", shipped, repo, "--public").code == 0
    assert hub.fetch(f"api/models/{repo}").status == 200

    hub.create_repo(f"{repo}-old", private=True)
    done = rnp("push", shipped, f"{repo}-old", "--public")
    assert done.code == 0
    assert f"{repo}-old stays private" in done.stderr
    assert hub.fetch(f"api/models/{repo}-old").status == 404


def test_files_of_an_earlier_push_go_and_a_persons_stay(
    hub: Hub, rnp: Worker, shipped: Path, repo: str
) -> None:
    for name in ("old.png", "edited.txt"):
        (shipped / name).write_bytes(b"an earlier version wrote this\n")
    assert rnp("push", shipped, repo).code == 0
    hub.add_files(repo, {"notes.txt": "a person's", "edited.txt": "a person edited this"})
    for name in ("old.png", "edited.txt"):
        (shipped / name).unlink()
    (shipped / "README.md").write_text("---\nlicense: mit\n---\n# A newer card\n")

    done = rnp("push", shipped, repo, "--json")

    assert done.code == 0, done.stderr
    assert done.json["deleted"] == ["old.png"]
    assert set(done.json["uploaded"]) == {"README.md", MANIFEST}
    theirs = {path: each for path, each in on_hub(hub, repo).items() if path not in hashes(shipped)}
    assert [*theirs] == ["edited.txt", "notes.txt"]
    assert hub.read(repo, "README.md") == (shipped / "README.md").read_bytes()


def test_push_to_a_branch_with_a_message(hub: Hub, rnp: Worker, shipped: Path, repo: str) -> None:
    main = hub.create_repo(repo)
    is_refused(
        rnp("push", shipped, repo, "--revision", "dev"),
        f"{repo} has no branch 'dev'; make it with `hf repos branch create {repo} dev`",
    )
    hub.call(_branch, token=hub.token, repo_id=repo, branch="dev")

    done = rnp("push", shipped, repo, "--revision", "dev", "--message", "First try")

    assert done.code == 0, done.stderr
    assert hub.head(repo) == main
    assert on_hub(hub, repo, "dev") == hashes(shipped)
    assert hub.history(repo, "dev")[0]["title"] == "First try"


def _branch(repo_id: str, branch: str) -> None:
    from huggingface_hub import HfApi

    HfApi().create_branch(repo_id, branch=branch)


# --- what a person wrote


@pytest.mark.parametrize("edited", [False, True], ids=["written", "edited"])
def test_a_persons_readme_is_only_replaced_by_a_pull_request(
    hub: Hub, rnp: Worker, shipped: Path, repo: str, edited: bool
) -> None:
    hub.create_repo(repo)
    if edited:  # our own card, with a line of theirs
        assert rnp("push", shipped, repo).code == 0
        theirs = (shipped / "README.md").read_text() + CARD
        (shipped / "README.md").write_text("# A newer card\n")
    else:
        theirs = CARD
    head = hub.add_files(repo, {"README.md": theirs})

    is_refused(
        rnp("push", shipped, repo),
        f"the README.md of {repo} was written or edited by a person; --force proposes another in "
        "a pull request$",
    )
    assert hub.head(repo) == head

    done = rnp("push", shipped, repo, "--force", "--json")
    assert done.code == 0, done.stderr
    assert "a pull request is opened instead" in done.stderr
    pushed = done.json
    assert (pushed["revision"], pushed["parent"]) == ("refs/pr/1", head)
    assert pushed["url"] == f"{hub.endpoint}/{repo}/discussions/1"
    assert hub.head(repo) == head, "main stays what it was"
    assert hub.head(repo, "refs/pr/1") == pushed["commit"]
    assert on_hub(hub, repo, "refs/pr/1") == hashes(shipped)

    again = rnp("push", shipped, repo, "--force", "--json")
    assert again.json["commit"] == pushed["commit"], "the same proposal is not made twice"


def test_weights_that_a_loader_could_take_are_refused(
    hub: Hub, rnp: Worker, shipped: Path, repo: str
) -> None:
    hub.create_repo(repo)
    head = hub.add_files(
        repo,
        {"pytorch_model.bin": b"\0pickle", "onnx/model_int8.onnx": b"\0", "train/opt.pt": b"\0"},
    )

    is_refused(
        rnp("push", shipped, repo),
        f"{repo} holds onnx/model_int8.onnx, pytorch_model.bin, weights that a person put there "
        "and that would be lost, or loaded instead of the sanitized ones; push to a repository of",
    )
    assert hub.head(repo) == head
    done = rnp("push", shipped, repo, "--force", "--json")
    assert done.code == 0, done.stderr
    assert done.json["deleted"] == ["onnx/model_int8.onnx", "pytorch_model.bin"]
    assert [*on_hub(hub, repo, "refs/pr/1")] == sorted([*hashes(shipped), "train/opt.pt"])
    assert hub.head(repo) == head


def test_a_persons_weights_of_the_same_name_are_not_replaced(
    hub: Hub, rnp: Worker, shipped: Path, repo: str
) -> None:
    """As they stand where somebody pushes back to the repository that the model came from."""
    hub.create_repo(repo)
    head = hub.add_files(repo, {"model.safetensors": b"\0theirs", "config.json": b"{}"})

    is_refused(rnp("push", shipped, repo), f"{repo} holds model.safetensors, weights that a person")
    assert hub.head(repo) == head
    done = rnp("push", shipped, repo, "--force", "--json")
    assert done.code == 0, done.stderr
    assert done.json["deleted"] == []
    assert on_hub(hub, repo, "refs/pr/1") == hashes(shipped)
    assert hub.read(repo, "model.safetensors") == b"\0theirs"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("pytorch_model.bin", True),
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("tf_model.h5", True),
        ("weights/MODEL.PTH", True),
        ("adapter_config.json", True),
        ("config.json", False),
        ("rnp_report.json", False),
        ("README.md", False),
        ("confusion.png", False),
    ],
)
def test_what_a_loader_may_take_for_weights(path: str, expected: bool) -> None:
    assert is_loadable(path) is expected


def test_create_pr_needs_a_repository_and_no_rights_on_it(
    hub: Hub, rnp: Worker, shipped: Path, request: pytest.FixtureRequest
) -> None:
    repo = named(request).replace("me/", "org/")
    is_refused(rnp("push", shipped, repo, "--create-pr"), f"there is no {repo} that you may see")
    head = hub.create_repo(repo)
    is_refused(
        rnp("push", shipped, repo),
        f"me may not write to {repo}: 'org' is neither their name nor an organisation of theirs",
    )

    done = rnp("push", shipped, repo, "--create-pr", "--json")

    assert done.code == 0, done.stderr
    assert hub.head(repo) == head
    assert on_hub(hub, repo, "refs/pr/1") == hashes(shipped)


# --- dry run


def test_dry_run_lists_files_and_sizes_and_writes_nothing(
    hub: Hub, rnp: Worker, shipped: Path, repo: str
) -> None:
    with hub.recording() as exchanges:
        done = rnp("push", shipped, repo, "--dry-run")
        plan = rnp("push", shipped, repo, "--dry-run", "--json").json

    assert done.code == 0
    size = (shipped / "model.safetensors").stat().st_size
    assert f"model.safetensors{size:>16,}  new or changed".split() == next(
        line.split() for line in done.stdout.splitlines() if line.startswith("model.safetensors")
    )
    assert done.stdout.endswith(f" bytes to {repo} (new, private); nothing was written.\n")
    assert plan["upload"]["model.safetensors"] == size
    assert (plan["create"], plan["private"], plan["pull_request"]) == (True, True, False)
    assert {exchange["method"] for exchange in exchanges} == {"GET"}
    assert hub.fetch(f"api/models/{repo}", headers=_as_me(hub)).status == 404


def _as_me(hub: Hub) -> dict[str, str]:
    return {"Authorization": f"Bearer {hub.token}"}


# --- what is refused before anything is sent


def _spoil(folder: Path) -> str:
    file = folder / "slim/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return r"slim/model\.safetensors was changed since it was proved; run `rnp-hub sanitize` again$"


def _remove(folder: Path) -> str:
    (folder / "onnx/model.onnx").unlink()
    return r"onnx/model\.onnx is missing since it was proved"


def _add_pickle(folder: Path) -> str:
    (folder / "pytorch_model.bin").write_bytes(b"\0")
    return r"pytorch_model\.bin holds weights that rnp_report\.json does not speak of"


def _link(folder: Path) -> str:
    (folder / "secret.txt").symlink_to("/etc/hostname")
    return r"secret\.txt is a link, which sanitize never writes"


def _forget_report(folder: Path) -> str:
    (folder / "rnp_report.json").unlink()
    return r"holds no rnp_report\.json; it was not made by `rnp-hub sanitize`$"


def _edit_config(folder: Path) -> str:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["model_args"]["act_layer"] = "gelu"
    file.write_text(json.dumps(config))
    return r"out was changed since it was proved: its slim gives logits .* away"


@pytest.mark.parametrize(
    "change", [_spoil, _remove, _add_pickle, _link, _forget_report, _edit_config]
)
def test_a_folder_that_was_changed_is_refused(
    hub: Hub, rnp: Worker, shipped: Path, repo: str, change: Any
) -> None:
    sentence = change(shipped)
    with hub.recording() as exchanges:
        is_refused(rnp("push", shipped, repo), sentence)
    assert {exchange["method"] for exchange in exchanges} <= {"GET"}


def test_hidden_files_stay_at_home(hub: Hub, rnp: Worker, shipped: Path, repo: str) -> None:
    expected = hashes(shipped)
    (shipped / ".git").mkdir()
    (shipped / ".git/config").write_text("secret")
    (shipped / ".DS_Store").write_text("noise")
    assert rnp("push", shipped, repo).code == 0
    assert on_hub(hub, repo) == expected


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("just-a-name", "'just-a-name' is no repository id with an owner; give it as you/name$"),
        ("me/a/b", "'me/a/b' is no repository id with an owner"),
        (
            "me/a--b",
            r"this is no repository id \(Cannot have -- or \.\. .*\); give it as you/name$",
        ),
        ("datasets/me/x", "datasets/me/x is one of the Hub's datasets; give a model repository"),
        ("nobody/x", r"'nobody' is neither their name nor an organisation of theirs \(me\)"),
    ],
)
def test_names_that_cannot_be_pushed_to(
    rnp: Worker, shipped: Path, name: str, sentence: str
) -> None:
    is_refused(rnp("push", shipped, name), sentence)


def test_tokens_that_cannot_push(hub: Hub, rnp: Worker, shipped: Path, repo: str) -> None:
    reader = hub.add_user("reader", "read")
    remedy = "log in with `hf auth login`, or set HF_TOKEN to a token with the write role$"
    for token, name, sentence in [
        (reader, "reader/x", f"the token of reader may only read; {remedy}"),
        ("hf_unknown", repo, rf"the Hub does not accept the token \(401\); {remedy}"),
        ("", repo, f"there is no Hub token; {remedy}"),
    ]:
        is_refused(rnp("push", shipped, name, settings={"HF_TOKEN": token}), sentence)


def scoped(*permissions: str) -> dict[str, Any]:
    return {"scoped": [{"entity": {"type": "user"}, "permissions": permissions}]}


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ({"role": "write"}, True),
        ({"role": "read"}, False),
        ({}, True),
        ({"role": "fineGrained"}, True),
        ({"role": "fineGrained", "fineGrained": {"global": ["discussion.write"]}}, True),
        (
            {"role": "fineGrained", "fineGrained": {"scoped": [{"permissions": ["repo.write"]}]}},
            True,
        ),
        (
            {"role": "fineGrained", "fineGrained": {"scoped": [{"permissions": ["repo.read"]}]}},
            False,
        ),
    ],
)
def test_what_a_token_says_of_itself(token: dict[str, Any], expected: bool) -> None:
    assert may_write(token) is expected


def test_members_push_to_their_organisation(hub: Hub, rnp: Worker, shipped: Path) -> None:
    token = hub.add_user("member", orgs=["acme"])
    assert rnp("push", shipped, "acme/model", settings={"HF_TOKEN": token}).code == 0
    assert on_hub(hub, "acme/model") == hashes(shipped)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        pytest.param(
            {"HF_HUB_OFFLINE": "1"},
            "HF_HUB_OFFLINE is set; unset it to push$",
            marks=pytest.mark.slow,
        ),
        (
            {"HF_HUB_DISABLE_XET": "0"},
            "this Hub has no Xet storage, .*; set HF_HUB_DISABLE_XET=1 and push again; .* stands",
        ),
    ],
    ids=["offline", "xet"],
)
def test_settings_that_the_client_reads_when_it_is_imported(
    hub: Hub, shipped: Path, repo: str, settings: dict[str, str], sentence: str
) -> None:
    environment = hub.env(hub.token, **settings)
    done = command_line("push", shipped, repo, cwd=shipped.parent, settings=environment)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("Error: ")] == [
        done.stderr.splitlines()[-1]
    ]
    assert re.search(sentence, done.stderr), done.stderr


# --- published equals proved


def test_what_is_published_but_not_what_was_proved_is_said(
    hub: Hub, rnp: Worker, shipped: Path, repo: str
) -> None:
    slow = {"action": "delay", "seconds": 3, "path": f"/{repo}/tree/"}
    with hub.faults(slow) as fired:
        pushing = rnp.start("push", shipped, repo)
        _until(lambda: fired() == [1])
        head = hub.head(repo)
        hub.spoil(hashes(shipped)["slim/model.safetensors"])
        done = pushing.wait()
    hub.spoil(hashes(shipped)["slim/model.safetensors"])  # other tests push the same content

    is_refused(
        done,
        rf"commit {head} of {repo} is not what was proved \(its slim/model.safetensors is another"
        rf"\) and must not be used; take it back with `git revert {head}` in a clone$",
    )


def test_ctrl_c_says_what_stands_and_how_to_go_on(
    hub: Hub, rnp: Worker, shipped: Path, repo: str
) -> None:
    head = hub.create_repo(repo)
    with hub.faults({"action": "delay", "seconds": 2, "path": f"/{repo}/preupload/"}) as fired:
        pushing = rnp.start("push", shipped, repo)
        _until(lambda: fired() == [1])
        pushing.interrupt()
        done = pushing.wait()

    assert (done.code, done.stdout) == (130, "")
    assert done.stderr == (
        f"Stopped; {shipped} is whole, and {repo} holds the old commit or the whole new one. "
        f"`rnp-hub push {shipped} {repo}` looks which, and goes on.\n"
    )
    assert hub.head(repo) == head


def _until(happened: Any) -> None:
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


# --- sanitize --push-to


def test_sanitize_finds_out_early_that_it_cannot_push(
    hub: Hub, rnp: Worker, plain_run: Run, tmp_path: Path, repo: str
) -> None:
    hub.create_repo(repo)
    hub.add_files(repo, {"README.md": CARD})
    words = ("sanitize", plain_run.folder, *SANITIZE, "--out", tmp_path / "out", "--push-to", repo)
    with hub.recording() as exchanges:
        is_refused(rnp(*words), "was written or edited by a person")
        is_refused(rnp(*words, "--create-pr", settings={"HF_TOKEN": "hf_bad"}), r"\(401\)")
    assert not (tmp_path / "out").exists()
    assert {exchange["method"] for exchange in exchanges} == {"GET"}

    planned = rnp(*words, "--dry-run", "--create-pr", "--json").json
    assert planned["push_to"] == f"{repo} (public), a pull request on main at {hub.head(repo)[:7]}"


def test_sanitize_keeps_its_folder_where_the_push_fails(
    hub: Hub, rnp: Worker, plain_model: Path, tmp_path: Path, repo: str
) -> None:
    out = tmp_path / "out"
    with hub.faults({"action": "status", "status": 403, "path": "/commit/"}):
        done = rnp("sanitize", plain_model, *SANITIZE, "--out", out, "--push-to", repo)

    again = f"rnp-hub push {out} {repo}"
    is_refused(
        done,
        rf"the token may not do this \(403\); make one with the write role .*; {repo} stands as it "
        rf"was, at \w+\. {out} is whole; go on with `{again}`$",
    )
    assert [*on_hub(hub, repo)] == []
    done = rnp(*again.split()[1:])
    assert done.code == 0, done.stderr
    assert on_hub(hub, repo) == hashes(out)


def test_push_options_without_push_are_refused(rnp: Worker) -> None:
    done = rnp("sanitize", "demo", "--public")
    is_refused(done, "--public and --create-pr speak of a push; give --push-to you/name$")


@pytest.mark.slow
def test_sanitize_pushes_what_it_proved(
    hub: Hub, rnp: Worker, plain_model: Path, tmp_path: Path, repo: str
) -> None:
    out = tmp_path / "out"
    done = rnp("sanitize", plain_model, *SANITIZE, "--out", out, "--push-to", repo, "--json")

    assert done.code == 0, done.stderr
    report = json.loads((out / "rnp_report.json").read_text())
    pushed = done.json["pushed"]
    assert {key: value for key, value in done.json.items() if key != "pushed"} == report
    assert pushed["commit"] == hub.head(repo)
    assert pushed["inputs"] == 200, "the pictures of the evaluation set"
    assert on_hub(hub, repo) == hashes(out)
