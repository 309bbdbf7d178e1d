"""Files equal networks: read back, run in onnxruntime, and refused where they differ."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn

import rnp_hub
from rnp_hub.errors import ModelError, ProofError
from rnp_hub.export import write_model
from rnp_hub.onnx_export import write_onnx
from rnp_hub.onnx_io import Runner
from rnp_hub.pull import pull
from rnp_hub.slim import relative_difference
from tests.models import Run

PROBE = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_onnx_is_one_file_with_named_ends(plain_run: Run) -> None:
    folder = plain_run.folder / "onnx"
    assert [each.name for each in folder.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, given.name) == ("pixel_values", "logits")
    assert isinstance(taken.shape[0], str)  # a name, not a number: any batch
    assert taken.shape[1:] == [3, "height", "width"]
    assert given.shape[1:] == [10]
    onnx.checker.check_model(onnx.load(folder / "model.onnx"), full_check=True)


@pytest.mark.parametrize("run", ["plain_run", "cifar_run"])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_onnx_equals_torch(run: str, batch: int, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(run).folder
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")
    (found,) = session.run(["logits"], {"pixel_values": PROBE[:batch].numpy()})
    with torch.no_grad():
        expected = rnp_hub.load(str(folder / "slim"))(PROBE[:batch]).numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_threads_of_a_session_rest_after_a_run(plain_run: Run) -> None:
    """Else they take the cores from the network that is timed next."""
    options = Runner(plain_run.folder / "onnx" / "model.onnx").session.get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_onnx_metadata(plain_run: Run) -> None:
    session = onnxruntime.InferenceSession(plain_run.folder / "onnx" / "model.onnx")
    stored = json.loads(session.get_modelmeta().custom_metadata_map["rnp_hub"])
    assert stored["labels"] == list("0123456789")
    assert stored["preprocess"] == {
        "input_size": [3, 32, 32],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }


def test_hashes_in_the_report_are_those_of_the_files(plain_run: Run) -> None:
    record = plain_run.report["export"]
    for found, name in (
        (record["safetensors"], "model.safetensors"),
        (record["slim"], "slim/model.safetensors"),
        (record["onnx"]["fp32"], "onnx/model.onnx"),
    ):
        content = (plain_run.folder / name).read_bytes()
        assert found["sha256"] == hashlib.sha256(content).hexdigest()


def test_silenced_filters_have_no_weight_in_the_drop_in(plain_run: Run) -> None:
    silenced = plain_run.report["prune"]["per_layer"]
    assert sum(map(len, silenced.values())) == plain_run.report["prune"]["silenced"] > 0
    with safe_open(plain_run.folder / "model.safetensors", "pt") as weights:
        assert weights.metadata() == {"format": "pt"}
        for site, channels in silenced.items():
            assert not weights.get_tensor(f"{site}.weight")[list(channels)].any()


def test_preprocessor_config(plain_run: Run) -> None:
    stored = json.loads((plain_run.folder / "preprocessor_config.json").read_text())
    assert stored["size"] == {"shortest_edge": 32}
    assert stored["crop_size"] == {"height": 32, "width": 32}
    assert stored["resample"] == 2  # bilinear in Pillow
    assert stored["image_mean"] == stored["image_std"] == [0.5, 0.5, 0.5]


def test_another_network_in_the_file_is_noticed(plain_model: Path, tmp_path: Path) -> None:
    model = pull(str(plain_model))
    network = pull(str(plain_model)).module
    network.bn1.running_var[0] = float("inf")
    with pytest.raises(ModelError, match="NaN or infinite"):
        write_model(tmp_path / "a", model, network, model.architecture, PROBE)
    # A buffer that is no part of the file: only the logits can tell.
    network = pull(str(plain_model)).module
    network.bn1.eps = 10.0
    with pytest.raises(ProofError, match="read back gives another network"):
        write_model(tmp_path / "b", model, network, model.architecture, PROBE)


class OnlyEven(nn.Module):
    """What no graph can hold: Python that looks at the values."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        if pictures.sum() > 0:
            return pictures.mean((2, 3))
        return pictures.amax((2, 3))


def test_plain_timm_loads_what_a_flat_config_became(plain_model: Path, tmp_path: Path) -> None:
    """A config of the old kind, everything at its root, makes a folder of the new kind."""
    model = tmp_path / "flat"
    shutil.copytree(plain_model, model)
    config = json.loads((model / "config.json").read_text())
    config |= config.pop("pretrained_cfg")
    (model / "config.json").write_text(json.dumps(config))
    pulled = pull(str(model))
    probe = torch.randn(4, *pulled.target.preprocess.input_size)
    written = write_model(tmp_path / "out", pulled, pulled.module, pulled.architecture, probe)
    module = timm.create_model(f"local-dir:{written.path}", pretrained=True).eval()
    assert relative_difference(pulled.module, module, probe) <= 1e-5


def test_a_network_that_cannot_be_exported(plain_model: Path, tmp_path: Path) -> None:
    target = pull(str(plain_model)).target
    with pytest.raises(
        ProofError, match=r"onnxruntime disagrees with torch on model\.onnx: .*; nothing was kept"
    ):
        write_onnx(tmp_path / "model.onnx", OnlyEven(), target, PROBE)


def test_foreign_onnx_is_refused(tmp_path: Path) -> None:
    info = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    ends = [info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "f")
    with pytest.raises(ModelError, match="goes from x to y, not from pixel_values to logits"):
        Runner(tmp_path / "f")
