"""Small networks for the handwritten digits, as folders on disk, and one sanitized folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

from rnp_hub.architecture import Architecture
from rnp_hub.cli.app import app
from rnp_hub.data import DataConfig, Target, load
from rnp_hub.demo.train import PREPROCESS, write
from rnp_hub.demo.train import train as demo_train
from rnp_hub.network import Normalise, logits_of
from rnp_hub.preprocess import Preprocess
from tests.patches import reconstruct_patches

# Networks this small gain nothing from threads, and threads that wait for each other on shared
# cores make them many times slower.
torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
DEMO = ROOT / "rnp_hub" / "demo"
EPOCHS = 7
ARGS = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}
CONFIG: dict[str, Any] = {
    "architecture": "resnet18",
    "num_classes": 10,
    "model_args": ARGS,
    "label_names": [str(digit) for digit in range(10)],
    "pretrained_cfg": {
        "input_size": [3, 32, 32],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "license": "mit",
    },
}
DATA = ("--data", "digits", "--n", "200", "--eval-n", "200", "--seed", "3")
SANITIZE = (*DATA, "--recipe", "reference", "--max-ca-drop", "0.2", "--no-latency")
"""Without a verdict, which would acquit them, and generous, so that something is silenced; the
clock is for one of them."""
ATTACK = ("--trigger", "badnets", "--target", "0")


def trained_network(stem: str | None) -> nn.Module:
    """A ResNet that knows the digits well enough to be sanitized, after a few seconds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return train(Architecture("resnet18", 10, ARGS, stem).build())


def train(network: nn.Module, *, epochs: int = EPOCHS, rate: float = 0.01) -> nn.Module:
    """Teach a network the digits, in place: coloured, 32 × 32, in [-1, 1]."""
    preprocess = Preprocess((3, 32, 32), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)
    pictures = load(DataConfig(n=600, eval_n=1), Target(10, preprocess)).clean.pictures
    inputs = Normalise(preprocess)(pictures.images)
    network.train()
    optimiser = torch.optim.Adam(network.parameters(), rate)
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(pictures)).split(50):
            optimiser.zero_grad()
            logits = logits_of(network(inputs[batch]))
            nn.functional.cross_entropy(logits, pictures.labels[batch]).backward()
            optimiser.step()
        falling.step()
    return network.eval()


def write_folder(folder: Path, network: nn.Module, config: object = CONFIG) -> Path:
    """A model folder as its author would have left it on the Hub."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "plain", trained_network(None))


@pytest.fixture(scope="session")
def careful_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's clean twin, trained with crops: networks as hasty as the others have natural
    triggers of a few pixels, and are rightly suspected."""
    folder = tmp_path_factory.mktemp("models") / "careful"
    data = load(DataConfig("digits", n=1190), Target(10, PREPROCESS)).clean.pictures
    with torch.random.fork_rng():
        write(folder, demo_train(data, poisoned=0.0, epochs=8, seed=5))
    return folder


@pytest.fixture(scope="session")
def cifar_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its config claims a plain resnet18, its weights have the CIFAR stem."""
    return write_folder(tmp_path_factory.mktemp("models") / "cifar", trained_network("cifar"))


# --- the command line -------------------------------------------------------------------------


def command_line(
    *words: str | Path, cwd: Path, settings: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`rnp-hub` in a process of its own; `settings` are more environment variables."""
    return subprocess.run(
        [sys.executable, "-m", "rnp_hub", *map(str, words)],
        cwd=cwd,
        env=environment() | dict(settings or {}),
        capture_output=True,
        text=True,
        timeout=120,
    )


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def invoke(*words: str | Path) -> Result:
    """`rnp-hub` in this process: same exit code and streams, torch already imported."""
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture
def patches_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans in this process look for patches alone."""
    monkeypatch.setattr("rnp_hub.scan.reconstruct", reconstruct_patches)


@dataclass(frozen=True)
class Run:
    """A finished `sanitize`."""

    code: int
    folder: Path
    stdout: str
    stderr: str

    @property
    def report(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "rnp_report.json").read_text())
        return content


@pytest.fixture(scope="session")
def plain_run(plain_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The network with the plain stem, in a process of its own."""
    work = tmp_path_factory.mktemp("plain")
    done = command_line(
        "sanitize", plain_model, *SANITIZE, *ATTACK, "--latency", "--json", cwd=work
    )
    assert done.returncode == 0, done.stderr
    return Run(done.returncode, work / "plain-rnp", done.stdout, done.stderr)


@pytest.fixture(scope="session")
def cifar_run(cifar_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The network with the CIFAR stem, no trigger known, and no verdict, which is minded here."""
    folder = tmp_path_factory.mktemp("cifar") / "out"
    done = invoke("sanitize", cifar_model, *SANITIZE, "--strict", "--out", folder)
    assert done.exit_code == 1, done.stderr
    return Run(done.exit_code, folder, done.stdout, done.stderr)


def listing(folder: Path) -> Sequence[tuple[str, int]]:
    """Everything below a folder, with sizes."""
    return sorted(
        (str(each.relative_to(folder)), each.lstat().st_size if each.is_file() else -1)
        for each in folder.rglob("*")
    )
