"""The commands as a person or a pipeline calls them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import rnp_hub
from rnp_hub.cli.terminal import print_report
from tests.card_reports import SURROGATE
from tests.models import (
    ATTACK,
    CONFIG,
    DATA,
    DEMO,
    ROOT,
    SANITIZE,
    Run,
    command_line,
    environment,
    invoke,
    listing,
    trained_network,
    write_folder,
)

COMMANDS = ("sanitize", "scan", "evaluate", "export", "push", "predict", "gate", "sign", "verify")
HEAVY = ("torch", "timm", "datasets", "onnx", "onnxruntime", "numpy", "rich", "PIL")
"""pydantic is not among them: typer itself reads parameters with it."""


@pytest.mark.parametrize("words", [(), *((command,) for command in COMMANDS)])
def test_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    program = f"""
import sys
sys.argv = ["rnp-hub", *{words!r}, "--help"]
from rnp_hub.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
print("loaded:", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: rnp-hub")
    assert done.stdout.endswith("loaded: []\n")


@pytest.mark.usefixtures("patches_only")
def test_scan_acquits_a_clean_network(careful_model: Path, tmp_path: Path) -> None:
    done = invoke("scan", careful_model, "--data", "digits", "--n", "100", "--eval-n", "100")
    assert done.exit_code == 0, done.stdout
    assert "no backdoor found" in done.stdout.lower()
    assert listing(tmp_path) == []


@pytest.mark.usefixtures("patches_only")
def test_scan_convicts_the_demo() -> None:
    done = invoke("scan", "demo", "--data", "digits", "--n", "100", "--eval-n", "100", "--json")
    assert done.exit_code == 1
    verdict = json.loads(done.stdout)["verdict"]
    assert (verdict["backdoored"], verdict["label"]) == (True, 0)


def test_every_command_is_listed_and_has_an_example() -> None:
    front = invoke("--help").stdout
    for command in COMMANDS:
        assert f"\n  {command} " in front
        assert f"Example: rnp-hub {command} " in invoke(command, "--help").stdout


def test_version() -> None:
    assert invoke("--version").stdout == f"{rnp_hub.__version__}\n"


def test_json_is_the_report_and_nothing_else(plain_run: Run) -> None:
    assert json.loads(plain_run.stdout) == plain_run.report
    assert plain_run.stdout == (plain_run.folder / "rnp_report.json").read_text()


@pytest.mark.parametrize(
    ("filters", "kernels", "said"),
    [
        (0, 0, None),
        (1234, 0, "1,234 other filters multiplied by masks (--no-soften for none)."),
        (0, 9, "0 other filters and 9 kernels multiplied by masks (--no-soften for none)."),
    ],
)
def test_the_summary_counts_masks(
    filters: int, kernels: int, said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    prune = replace(SURROGATE.prune, softened=filters, softened_kernels=kernels)
    print_report(replace(SURROGATE, prune=prune), "out", as_json=False)
    told = [line for line in capsys.readouterr().out.splitlines() if "masks" in line]
    assert told == ([said] if said else [])


def test_no_progress_bars_where_stderr_is_no_terminal(plain_run: Run) -> None:
    assert plain_run.stderr == ""


def test_progress_bars_where_stderr_is_a_terminal(plain_run: Run) -> None:
    master, slave = os.openpty()
    words = ("evaluate", str(plain_run.folder), *DATA)
    process = subprocess.Popen(
        [sys.executable, "-m", "rnp_hub", *words],
        env=environment() | {"TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    try:
        while part := os.read(master, 4096):
            shown += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(master)
    stdout, _ = process.communicate()
    assert process.returncode == 0
    assert b"evaluate" in shown
    assert b"evaluate" not in stdout
    assert b"clean accuracy" in stdout


def test_table_says_what_changed_and_where_it_lies(cifar_run: Run) -> None:
    report, shown = cifar_run.report, cifar_run.stdout
    after = report["after"]["clean_accuracy"]
    assert f"{100 * after['value']:.2f} % ({100 * after['low']:.1f} to" in shown
    assert f"{report['prune']['silenced']} of {report['prune']['filters']} filters" in shown
    assert f"Written to {cifar_run.folder}/" in shown
    assert f"Next:  rnp-hub predict {cifar_run.folder}/onnx/model.onnx PICTURE…" in shown


def test_undecided_is_no_to_who_is_strict(plain_run: Run, cifar_run: Run) -> None:
    """The folder is written all the same. The first run was not told `--strict`."""
    for run in (plain_run, cifar_run):
        assert run.report["verdict"]["backdoored"] is None
        assert (run.folder / "README.md").is_file()
    assert (plain_run.code, cifar_run.code) == (0, 1)


@pytest.mark.slow
def test_an_undecided_scan_is_no_to_who_is_strict(tmp_path: Path) -> None:
    """The demo, blind for three labels: a network that is often wrong is not convicted."""
    folder = Path(shutil.copytree(DEMO, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    weights["fc.bias"][7:] -= 100
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    words = ("scan", folder, "--data", "digits", "--n", "60", "--eval-n", "50", "--json")
    for strict, code in (((), 0), (("--strict",), 1)):
        done = invoke(*words, *strict)
        assert json.loads(done.stdout)["verdict"]["backdoored"] is None
        assert done.exit_code == code


def test_a_stem_the_config_does_not_name_is_said_aloud(cifar_run: Run) -> None:
    assert cifar_run.stderr.startswith("Note: the weights have the CIFAR stem")
    assert len(cifar_run.stderr.splitlines()) == 1


def test_evaluate_measures_what_the_report_says(plain_run: Run, plain_model: Path) -> None:
    report = plain_run.report
    for model, when in ((plain_model, "before"), (plain_run.folder, "after")):
        done = invoke("evaluate", model, *DATA, *ATTACK, "--json")
        assert json.loads(done.stdout) == report[when]


def test_the_slim_network_answers_as_the_drop_in(plain_run: Run) -> None:
    done = invoke("evaluate", plain_run.folder / "slim", *DATA, *ATTACK, "--json")
    assert json.loads(done.stdout) == plain_run.report["after"]


def test_predict_prints_a_line_a_picture(plain_run: Run, tmp_path: Path) -> None:
    files = [tmp_path / "light.png", tmp_path / "dark grey.png"]
    for file, grey in zip(files, (255, 20), strict=True):
        Image.new("L", (8, 8), grey).save(file)
    onnx = plain_run.folder / "onnx" / "model.onnx"
    found = json.loads(invoke("predict", onnx, *files, "--json").stdout)
    assert [each["file"] for each in found] == [str(file) for file in files]
    shown = invoke("predict", onnx, *files).stdout.splitlines()
    assert shown[0].split() == ["picture", "label", "score"]
    for line, each in zip(shown[1:], found, strict=True):
        assert line.split()[-2:] == [each["label"], f"{each['score']:.4f}"]


def test_export_of_the_slim_folder(plain_run: Run, tmp_path: Path) -> None:
    file = tmp_path / "new" / "slim.onnx"
    done = invoke("export", plain_run.folder / "slim", "--out", file, "--json")
    record = json.loads(done.stdout)
    assert record["file"] == str(file)
    assert record["top1_agreement"] == 1
    assert listing(tmp_path) == [("new", -1), ("new/slim.onnx", file.stat().st_size)]
    again = invoke("export", plain_run.folder / "slim", "--out", file)
    assert (again.exit_code, again.stderr) == (
        2,
        f"Error: {file} exists; give another --out, or --force to replace it\n",
    )


def test_dry_run_writes_nothing(plain_model: Path, tmp_path: Path) -> None:
    words = ("sanitize", plain_model, *DATA, "--optimize", "latency", "--dry-run", "--json")
    done = command_line(*words, cwd=tmp_path)
    plan = json.loads(done.stdout)
    assert plan["architecture"] == "resnet18"
    assert plan["data"] == "digits (train, test)"
    assert plan["out"] == "plain-rnp"
    assert plan["seconds"] >= 0
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        ("demo", "demo-rnp"),
        ("org/name", "name-rnp"),
        ("org/name@feature/x", "name-rnp"),
        ("hf-hub:org/name@main", "name-rnp"),
        ("here/model@2", "model@2-rnp"),
        ("local-dir:here/model@2", "model@2-rnp"),
        ("here/model@2/..", "here-rnp"),
    ],
)
def test_default_out(
    model: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rnp_hub.pipeline import Job, SanitizeJob

    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "model@2").mkdir(parents=True)
    assert SanitizeJob(Job(model)).folder == Path(folder)


def test_the_same_command_gives_the_same_report(
    plain_run: Run, plain_model: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    assert invoke("sanitize", plain_model, *SANITIZE, *ATTACK, "--out", again).exit_code == 0
    second = json.loads((again / "rnp_report.json").read_text())
    assert _without_clocks(second) == _without_clocks(plain_run.report)


def _without_clocks(report: dict[str, Any]) -> dict[str, Any]:
    for key in ("timing_s", "peak_memory_mib", "memory_mib"):
        assert report.pop(key)
    assert report["export"]["onnx"]["fp32"].pop("latency_ms") > 0
    del report["costs"]
    return report


def test_modules_come_from_this_tree() -> None:
    assert Path(rnp_hub.__file__).is_relative_to(ROOT)


def test_what_a_repository_says_gives_a_terminal_no_orders(tmp_path: Path) -> None:
    """Its labels stand in the message; colours, titles and new lines of theirs do not."""
    labels = [f"\x1b[31m{n}\x1b]0;title\x07\n\x9b2J\u202e" for n in range(10)]
    model = write_folder(tmp_path / "m", trained_network(None), CONFIG | {"label_names": labels})
    done = invoke("evaluate", model, *DATA)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "it has [31m0 ]0;title 2J , [31m1 " in done.stderr
    assert done.stderr.rstrip("\n").isprintable()
