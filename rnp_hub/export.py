"""Model folders: weights and configs, read back from disk and compared before they count."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rnp_hub import transformers_io
from rnp_hub.architecture import OWN_KEY, Architecture
from rnp_hub.errors import ProofError
from rnp_hub.network import logits_of
from rnp_hub.pull import PulledModel, pull
from rnp_hub.report import FileRecord
from rnp_hub.weights import WEIGHTS, sha256

MAX_FILE_REL_DIFF = 1e-5
"""Largest |Δ logit| / |logit| between two networks in torch whose tensors are equal."""


@dataclass(frozen=True)
class Written:
    """A model folder that was written and read back."""

    path: Path
    record: FileRecord


SLIM_TYPE = "rnp_hub_slim"
"""The `model_type` of a slim folder: one that transformers refuses instead of guessing."""

THEIR_FILES = frozenset(
    {"custom_load", "file", "hf_hub_filename", "hf_hub_id", "label_offset", "source"}
    | {"state_dict", "url"}
)
"""What a `pretrained_cfg` says of the files it came with: where they are, and how they differ."""


def write_model(
    folder: Path, model: PulledModel, module: nn.Module, architecture: Architecture, probe: Tensor
) -> Written:
    """Write a model folder in the layout of its library and compare what is read from it.

    A network of transformers is written by `save_pretrained` with the image processor it came
    with, and also read back through transformers alone; a slim one is for `rnp_hub.load`.

    Args:
        folder: made if it is not there.
        model: where labels, preprocessing and the original config come from.
        module: the network, float32, on the CPU.
        architecture: what `module` is built from.
        probe: (n, C, H, W), normalised pictures to compare logits on.

    Raises:
        ProofError: the network read back is another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_transformers = architecture.library == "transformers" and not architecture.edits
    if by_transformers:
        transformers_io.save(module, folder)
    else:
        _write_json(folder / "config.json", config_of(model, architecture))
        _write_tensors(folder / WEIGHTS, module)
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes files that only their owner may read
    if (processor := _processor(model)) is not None:
        _write_json(folder / transformers_io.PROCESSOR, processor)
    difference = _read_back(pull(str(folder)).module, module, probe)
    if by_transformers:
        plain = transformers_io.load_plainly(folder)
        difference = max(difference, _read_back(plain, module, probe))
    return Written(folder, FileRecord(sha256(folder / WEIGHTS), difference))


def _read_back(read: nn.Module, module: nn.Module, probe: Tensor) -> float:
    """max |Δ logit| / max |logit| between a file and the network in memory, small as it must be.

    The tensors must be the same to the bit; the logits only to the rounding of float32, since
    the memory a tensor happens to lie in decides how its convolution is summed.
    """
    difference = max_rel_diff(_logits(module, probe), _logits(read, probe))
    if not _same_tensors(module, read) or not difference <= MAX_FILE_REL_DIFF:
        raise ProofError(
            f"{WEIGHTS} read back gives another network (logits differ by {difference:.1e}) than "
            f"the one in memory; nothing was written"
        )
    return difference


def _write_tensors(file: Path, module: nn.Module) -> None:
    """Every tensor with memory of its own: the format knows no tensors that share it."""
    from safetensors.torch import save_file

    weights = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
    }
    save_file(weights, file, metadata={"format": "pt"})


def config_of(model: PulledModel, architecture: Architecture) -> dict[str, Any]:
    """`config.json` for timm, transformers and `rnp_hub.load`.

    `num_classes` must not stand inside `model_args`, where transformers passes it twice, and a
    root `model_type` of an architecture would make transformers load random weights. A slim
    folder has a `model_type` that transformers does not know, so that it says so.
    """
    own = architecture.own_config()
    if architecture.library == "transformers":
        own["preprocess"] = model.target.preprocess.stated()
        return {"model_type": SLIM_TYPE, OWN_KEY: own}
    config = transformers_io.without_code(model.located.config)
    config.pop("model_type", None)
    config |= {
        "architecture": architecture.name,
        "num_classes": architecture.classes,
        "model_args": dict(architecture.args),
    }
    names = model.target.label_names
    if names is not None:
        config |= {
            "label_names": list(names),
            "id2label": {str(label): name for label, name in enumerate(names)},
            "label2id": {name: label for label, name in enumerate(names)},
        }
    # timm reads a config without this object as one of the old kind, and then knows no model_args.
    stated = {**model.target.preprocess.stated(), **(config.get("pretrained_cfg") or {})}
    config["pretrained_cfg"] = {key: stated[key] for key in stated if key not in THEIR_FILES}
    config.pop(OWN_KEY, None)
    if architecture.edits:
        config["model_type"] = SLIM_TYPE
    return config | ({OWN_KEY: own} if own else {})


def _processor(model: PulledModel) -> Mapping[str, Any] | None:
    """`preprocessor_config.json`: the model's own, or for timm in the words of transformers.js.

    transformers itself reads a timm model's `pretrained_cfg`. There are no words for `border`.
    """
    if model.architecture.library == "transformers":
        processor = model.located.processor
        return None if processor is None else transformers_io.without_code(processor)
    preprocess = model.target.preprocess
    if preprocess.crop_mode == "border":
        return None
    _, height, width = preprocess.input_size
    tall, wide = (math.floor(edge / preprocess.crop_pct) for edge in (height, width))
    squashed = preprocess.crop_mode == "squash"
    return {
        "image_processor_type": "TimmWrapperImageProcessor",
        "do_resize": True,
        "size": {"height": tall, "width": wide} if squashed else {"shortest_edge": min(tall, wide)},
        "resample": int(preprocess.resampling),
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


# --- comparing --------------------------------------------------------------------------------


@torch.no_grad()
def _logits(module: nn.Module, inputs: Tensor) -> Tensor:
    module.eval()
    return torch.cat([logits_of(module(part)) for part in inputs.split(128)])


def max_rel_diff(expected: Tensor, found: Tensor) -> float:
    """max |Δ logit| / max |logit|."""
    largest = float(expected.abs().max()) or 1.0
    return float((found - expected).abs().max()) / largest


def _same_tensors(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[name], theirs[name]) for name in mine
    )


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def slim_architecture(model: PulledModel, edits: Mapping[str, Any]) -> Architecture:
    """The architecture of the pulled model with the slim network's edits."""
    return replace(model.architecture, edits=dict(edits))
