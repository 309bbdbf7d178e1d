"""A slim network from disk, where nobody has seen the original: an ordinary module."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rnp_hub
from rnp_hub.export import slim_architecture, write_model
from rnp_hub.hooks import silence
from rnp_hub.onnx_export import write_onnx
from rnp_hub.onnx_io import Runner
from rnp_hub.pull import pull
from rnp_hub.sites import gate_sites
from rnp_hub.slim import slim
from tests.models import environment, write_folder
from tests.networks import randomised

NETWORKS = {
    # Depthwise, squeeze and excitation, residual sums: scattered, folded and carried.
    "test_efficientnet": {},
    # Heads and hidden neurons, whose numbers stand in attributes of the module too.
    "test_vit": {"img_size": 32},
}
PROBE = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Written:
    """The slim network as it was in memory, and the folder it went to."""

    module: nn.Module
    folder: Path
    onnx: Path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    return {name: write(name, tmp_path_factory.mktemp(name)) for name in NETWORKS}


@pytest.fixture(params=NETWORKS)
def written(request: pytest.FixtureRequest, both: dict[str, Written]) -> Written:
    return both[request.param]


def write(name: str, work: Path) -> Written:
    """A third of every site silenced, slimmed, written; the original is gone."""
    config = {
        "architecture": name,
        "num_classes": 4,
        "model_args": NETWORKS[name],
        "pretrained_cfg": {"input_size": [3, 32, 32]},
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = randomised(timm.create_model(name, num_classes=4, **NETWORKS[name]))
    model = pull(str(write_folder(work / "original", network, config)))
    sites = gate_sites(model.module, PROBE)
    silenced = {site: tuple(range(0, site.filters, 3)) for site in sites}
    silence(model.module, silenced)
    small = slim(model.module, silenced, PROBE)
    assert sum(count.kept for count in small.layers.values()) == 0
    smaller = slim_architecture(model, small.edits)
    write_model(work / "slim", model, small.module, smaller, PROBE)
    write_onnx(work / "model.onnx", small.module, model.target, PROBE)
    shutil.rmtree(work / "original")
    return Written(small.module, work / "slim", work / "model.onnx")


def logits(module: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = module.eval()(PROBE)
    return found


def test_the_same_logits_in_a_process_that_never_saw_the_original(
    both: dict[str, Written], tmp_path: Path
) -> None:
    program = """
import sys, torch, rnp_hub
torch.set_num_threads(1)
probe = torch.load(sys.argv[1])
with torch.no_grad():
    torch.save([rnp_hub.load(folder)(probe) for folder in sys.argv[3:]], sys.argv[2])
"""
    torch.save(PROBE, tmp_path / "in.pt")
    words = [tmp_path / "in.pt", tmp_path / "out.pt", *(each.folder for each in both.values())]
    done = [sys.executable, "-c", program, *map(str, words)]
    subprocess.run(done, env=environment(), check=True)
    for found, each in zip(torch.load(tmp_path / "out.pt"), both.values(), strict=True):
        assert torch.equal(found, logits(each.module))


def test_onnxruntime_says_the_same(written: Written) -> None:
    expected = logits(rnp_hub.load(str(written.folder))).numpy()
    found = Runner(written.onnx).logits(PROBE.numpy())
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_it_is_trained_by_a_plain_loop(written: Written) -> None:
    module = rnp_hub.load(str(written.folder)).train()
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 4
    optimiser = torch.optim.Adam(module.parameters(), 0.003)
    losses = []
    for _ in range(8):
        for part in torch.arange(16).split(8):
            loss = F.cross_entropy(module(images[part]), labels[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert [name for name, each in module.named_parameters() if each.grad is None] == []
    twin = rnp_hub.load(str(written.folder))
    twin.load_state_dict(module.state_dict())
    assert torch.equal(logits(twin), logits(module))


def test_it_goes_where_it_is_sent(written: Written) -> None:
    module = rnp_hub.load(str(written.folder))
    wide = copy.deepcopy(module).to(torch.float64)
    with torch.no_grad():
        found = wide(PROBE.double())
    assert found.dtype == torch.float64
    assert (found - logits(module)).abs().max() <= 1e-4 * found.abs().max()
    elsewhere = module.to("meta")
    assert {each.device.type for each in elsewhere.parameters()} == {"meta"}
    assert {each.device.type for each in elsewhere.buffers()} <= {"meta"}
    assert elsewhere(PROBE.to("meta")).shape == (6, 4)


def test_it_is_captured_in_one_graph(written: Written) -> None:
    module = rnp_hub.load(str(written.folder))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        found = compiled(PROBE)
    assert (found - logits(module)).abs().max() <= 1e-5 * found.abs().max()


@pytest.mark.slow
def test_it_is_compiled(written: Written) -> None:
    module = rnp_hub.load(str(written.folder))
    with torch.no_grad():
        found = torch.compile(module)(PROBE)
    assert (found - logits(module)).abs().max() <= 1e-4 * found.abs().max()


def test_no_pickle_and_no_code_is_in_the_folder(written: Written) -> None:
    assert sorted(each.name for each in written.folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    slim_config = json.loads((written.folder / "config.json").read_text())["rnp_hub"]["slim"]
    assert set(slim_config) == {"schema", "timm", "layers"}
