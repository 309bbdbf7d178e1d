"""The output folder is there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import typer

from rnp_hub import onnx_export
from rnp_hub.cli.errors import OneSentenceGroup
from rnp_hub.errors import OutputError
from rnp_hub.output import new_file, new_folder
from tests.models import SANITIZE, Run, environment, invoke, listing


def test_files_of_the_folder(plain_run: Run) -> None:
    files = sorted(
        str(each.relative_to(plain_run.folder)) for each in plain_run.folder.rglob("*.*")
    )
    assert files == [
        "README.md",
        "config.json",
        "model.safetensors",
        "onnx/model.onnx",
        "pictures/labels.png",
        "pictures/masks.png",
        "pictures/pruning.png",
        "preprocessor_config.json",
        "rnp_report.json",
        "slim/config.json",
        "slim/model.safetensors",
        "slim/preprocessor_config.json",
    ]
    assert [each.name for each in plain_run.folder.parent.iterdir()] == ["plain-rnp"]
    modes = {each.stat().st_mode & 0o777 for each in plain_run.folder.rglob("*.*")}
    assert modes == {0o644}


def test_whole_folder_takes_its_place(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "b", force=False) as folder:
        (folder / "x").write_text("new")
        assert not (tmp_path / "a").exists()
    assert listing(tmp_path) == [("a", -1), ("a/b", -1), ("a/b/x", 3)]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_a_failure(tmp_path: Path, failure: type[BaseException]) -> None:
    def half_written(place: AbstractContextManager[Path], name: str) -> None:
        with place as temporary:
            (temporary / name).write_text("half")
            raise failure

    with pytest.raises(failure):
        half_written(new_folder(tmp_path / "a" / "b", force=False), "x")
    with pytest.raises(failure):
        half_written(new_file(tmp_path / "c" / "d", force=False), "")
    assert listing(tmp_path) == []


def _made_earlier(folder: Path) -> Path:
    folder.mkdir()
    (folder / "rnp_report.json").write_text("old")
    return folder


def test_force_replaces_what_was_made_earlier(tmp_path: Path) -> None:
    with new_folder(_made_earlier(tmp_path / "out"), force=True) as folder:
        (folder / "x").write_text("new")
    assert listing(tmp_path) == [("out", -1), ("out/x", 3)]


def test_an_empty_folder_may_be_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with new_folder(Path("../out"), force=False) as folder:
        (folder / "x").write_text("new")
    assert listing(tmp_path) == [("out", -1), ("out/x", 3)]


def test_ctrl_c_while_the_old_folder_stands_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = _made_earlier(tmp_path / "out")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        if self == old:
            raise KeyboardInterrupt
        return moved

    with (
        monkeypatch.context() as patch,
        pytest.raises(KeyboardInterrupt),
        new_folder(old, force=True),
    ):
        patch.setattr(Path, "rename", interrupted)
    assert listing(tmp_path) == [("out", -1), ("out/rnp_report.json", 3)]


def test_file_is_refused_or_replaced(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_text("old")
    with pytest.raises(OutputError, match="exists; give another --out, or --force"):
        new_file(file, force=False).__enter__()
    with pytest.raises(OutputError, match=r"exists; give another --out$"):
        new_file(tmp_path, force=True).__enter__()
    with new_file(file, force=True) as temporary:
        temporary.write_text("newer")
    assert listing(tmp_path) == [("model.onnx", 5)]


@pytest.mark.parametrize("force", [False, True])
def test_a_proof_that_fails_leaves_nothing(
    force: bool, plain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if force:
        _made_earlier(out)
    before = listing(tmp_path)
    monkeypatch.setattr(onnx_export, "MAX_REL_DIFF", -1.0)
    done = invoke("sanitize", plain_model, *SANITIZE, "--out", out, *["--overwrite"] * force)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: onnxruntime disagrees with torch on model.onnx")
    assert len(done.stderr.splitlines()) == 1
    assert listing(tmp_path) == before


def test_overwrite_replaces_an_earlier_run(
    plain_run: Run, plain_model: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(plain_run.folder, tmp_path / "out"))
    (out / "stale").write_text("")
    assert invoke("sanitize", plain_model, *SANITIZE, "--out", out, "--overwrite").exit_code == 0
    assert not (out / "stale").exists()
    assert "No attack success rate was measured" in (out / "README.md").read_text()
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_in_the_middle(plain_model: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "rnp_hub", "sanitize", str(plain_model), *SANITIZE]
    process = subprocess.Popen(
        [*words, "--out", str(tmp_path / "deep" / "out")],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob(".rnp-hub-*/config.json")):
        assert process.poll() is None, "it ended before anything was half-written"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert (stdout, stderr) == ("", "Stopped; nothing was written.\n")
    assert listing(tmp_path) == []


def test_ctrl_c_that_becomes_another_error(capsys: pytest.CaptureFixture[str]) -> None:
    """As where it cuts an import short: what C code makes of that is an ImportError."""
    app = typer.Typer(cls=OneSentenceGroup)

    @app.callback()
    def root() -> None: ...

    @app.command()
    def load() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        app(["load"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "Stopped; nothing was written.\n"
    assert signal.getsignal(signal.SIGINT) is before
