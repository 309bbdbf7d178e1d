"""The wheel holds everything that is imported, and nothing under a foreign name."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.models import ROOT

DATA_FILES = {
    "rnp_hub/py.typed",
    "rnp_hub/demo/config.json",
    "rnp_hub/demo/model.safetensors",
    "rnp_hub/demo/trigger.png",
    "rnp_hub/hub_cards/card.md.jinja",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the tree stays as it is."""
    tree = tmp_path_factory.mktemp("tree")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("rnp_hub", "cli", "hub_cards"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    (file,) = (tree / "dist").iterdir()
    return file


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert names >= DATA_FILES
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rnp_hub"}
    sources = {
        str(file.relative_to(ROOT))
        for folder in ("rnp_hub", "rnp_hub/cli", "rnp_hub/hub_cards")
        for file in (ROOT / folder).rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == sources


def test_every_module_imports_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = """
import importlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(root))
for file in sorted(root.glob("rnp_hub/**/*.py")):
    if file.name == "__main__.py":
        continue
    name = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    assert pathlib.Path(importlib.import_module(name).__file__) == file, name
    print(name)
"""
    words = [sys.executable, "-P", "-c", program, str(tmp_path)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"rnp_hub.cli.app", "rnp_hub.hub_cards.card", "rnp_hub.slim"} <= set(done.stdout.split())
