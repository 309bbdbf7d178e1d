"""`rnp-hub predict` where onnxruntime, numpy, Pillow and the command line are all there is."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rnp_hub
from rnp_hub.preprocess import Preprocess
from tests.models import CONFIG, ROOT, Run

DISTRIBUTIONS = (
    "onnxruntime", "numpy", "pillow",
    "typer", "annotated-doc", "shellingham",
    "rich", "markdown-it-py", "mdurl", "pygments",
    "pydantic", "pydantic-core", "annotated-types", "typing-extensions", "typing-inspection",
)  # fmt: skip
PROGRAM = """
import sys
sys.path.insert(0, sys.argv.pop(1))
try:
    import torch
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("torch can be imported")
from rnp_hub.cli import main
main()
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to the few packages, in place of site-packages."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "rnp_hub").symlink_to(ROOT / "rnp_hub")
    for name in DISTRIBUTIONS:
        found = distribution(name)
        tops = {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", ".")}
        for top in tops - {"__pycache__"}:
            (folder / top).symlink_to(Path(str(found.locate_file(top))))
    return folder


def run_bare(bare: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", "-I", "-c", PROGRAM, bare, *words]
    return subprocess.run(list(map(str, command)), cwd=bare, capture_output=True, text=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("pictures")
    files = [folder / f"{place}.png" for place in range(6)]
    for file, pixels in zip(files, load_digits().images, strict=False):
        Image.fromarray((pixels * 15).astype(np.uint8)).save(file)
    return files


def test_predict_equals_torch(bare: Path, plain_run: Run, pictures: list[Path]) -> None:
    onnx = plain_run.folder / "onnx" / "model.onnx"
    done = run_bare(bare, "predict", onnx, *pictures, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    preprocess = Preprocess.from_pretrained_cfg(CONFIG["pretrained_cfg"])
    pixels = np.stack([preprocess.geometry(Image.open(file)) for file in pictures])
    network = rnp_hub.load(str(plain_run.folder / "slim"))
    with torch.no_grad():
        scores = network(torch.from_numpy(preprocess.normalise(pixels))).softmax(1)
    assert [each["index"] for each in found] == scores.argmax(1).tolist()
    assert [each["label"] for each in found] == [str(label) for label in scores.argmax(1).tolist()]
    assert [each["score"] for each in found] == pytest.approx(scores.amax(1).tolist(), abs=1e-5)
    assert len({each["label"] for each in found}) > 1


def test_predict_prints_a_table(bare: Path, plain_run: Run, pictures: list[Path]) -> None:
    done = run_bare(bare, "predict", plain_run.folder / "onnx" / "model.onnx", *pictures)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 + len(pictures)


def test_what_needs_torch_fails_there(bare: Path, plain_run: Run) -> None:
    done = run_bare(bare, "evaluate", plain_run.folder)
    assert done.returncode != 0
    assert "torch" in done.stderr
