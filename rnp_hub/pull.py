"""From a folder or a Hub repository to a network that is ready to be asked.

Only `config.json` and `model.safetensors` are read: no pickle, no code from the repository.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn

from rnp_hub.architecture import OWN_KEY, Architecture, load_weights, stem_of
from rnp_hub.data import Target
from rnp_hub.errors import ModelError, reason, transport_errors
from rnp_hub.network import check_finite
from rnp_hub.preprocess import Preprocess

DEMO = "demo"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Located:
    """A model that was found, its weights not yet read.

    Attributes:
        spec: as it was asked for.
        repo_id: on the Hub; `None` for a folder.
        sha: commit on the Hub; `None` for a folder.
        config: its `config.json`.
        licence: as its card or its config say; `None` where neither does.
        weights: the file; `None` while it still lies on the Hub only.
        weight_bytes: its size.
        folder: within the repository; `None` for its root.
    """

    spec: str
    repo_id: str | None
    sha: str | None
    config: Mapping[str, Any]
    licence: str | None
    weights: Path | None
    weight_bytes: int
    folder: str | None = None


@dataclass(frozen=True)
class PulledModel:
    """A network with its weights, and everything its repository says about it.

    Attributes:
        module: in evaluation mode, float32.
        architecture: how to build it again.
        target: its labels and preprocessing.
        located: where it came from.
        notes: what a person should know about how it was read.
    """

    module: nn.Module
    architecture: Architecture
    target: Target
    located: Located
    notes: tuple[str, ...] = field(default=())


def pull(spec: str, revision: str | None = None) -> PulledModel:
    """Read a model.

    Args:
        spec: `demo`, a folder (also `local-dir:PATH`), or a Hub id `org/name` (also
            `hf-hub:org/name`, and `org/name/FOLDER` within a repository), with an optional
            `@revision`.
        revision: branch, tag or commit on the Hub, instead of `@revision`.

    Raises:
        ModelError: there is no such model, or it cannot be read, built or filled.
    """
    located = locate(spec, revision)
    architecture = Architecture.from_config(located.config)
    target = target_of(located.config, architecture)
    weights = _read_weights(_weights_file(located))
    module = architecture.build()
    notes: tuple[str, ...] = ()
    if architecture.stem is None and stem_of(weights, module) == "cifar":
        architecture = replace(architecture, stem="cifar")
        module = architecture.build()
        notes = (
            f"the weights have the CIFAR stem (3 × 3 first convolution, no max-pooling) although "
            f"config.json claims a plain {architecture.name}; it was applied",
        )
    load_weights(module, weights, located.spec)
    module = module.float()
    check_finite(module)
    return PulledModel(module, architecture, target, located, notes)


def name_of(spec: str) -> str:
    """The last part of a model's name: of its folder, or of its Hub id without revision."""
    if spec != DEMO and (path := Path(spec.removeprefix("local-dir:")).expanduser()).exists():
        return path.resolve().name
    return re.sub(r"^hf[-_]hub:", "", spec).partition("@")[0].rpartition("/")[2]


def load(spec: str, revision: str | None = None) -> nn.Module:
    """A network in one line, from a folder or the Hub: sanitized, slim or as someone else left it.

    It is what lies in that very folder: `load("out")` the drop-in, `load("out/slim")` the smaller
    network; on the Hub likewise, `load("org/name/slim")` the smaller network of a repository.

    Raises:
        ModelError: as for `pull`.
    """
    return pull(spec, revision).module


def is_embedded(spec: str) -> bool:
    """Whether this is the demo network of the package, and no folder of that name."""
    return spec == DEMO and not Path(DEMO).exists()


def locate(spec: str, revision: str | None = None) -> Located:
    """Find a model and read its `config.json`, no weights.

    Raises:
        ModelError: it is not there, or its `config.json` is missing or no JSON.
    """
    if is_embedded(spec):
        with resources.as_file(resources.files("rnp_hub.demo")) as folder:
            return replace(_in_folder(folder), spec=DEMO)
    name = re.sub(r"^(local-dir:|hf-hub:|hf_hub:)", "", spec)
    path = Path(name).expanduser()
    if spec.startswith("local-dir:") or (path.exists() and not spec.startswith("hf")):
        return replace(_in_folder(path), spec=str(path))
    hub_id = re.fullmatch(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)(?:@([\w./-]+))?", name)
    if hub_id is None or name.startswith("."):
        raise ModelError(
            f"there is no model folder at {name}, and it is no Hub id (org/name); give one of them"
        )
    return replace(_on_hub(hub_id[1], revision or hub_id[3], hub_id[2].lstrip("/")), spec=name)


def _in_folder(path: Path) -> Located:
    if not path.is_dir():
        raise ModelError(f"there is no model folder at {path}; give a folder or a Hub id")
    config_file, weights = path / "config.json", path / WEIGHTS
    if not config_file.is_file():
        raise ModelError(f"{path} holds no config.json; it must be a model in timm's layout")
    if not weights.is_file():
        raise ModelError(f"{path} holds no {WEIGHTS}; save the weights as safetensors")
    config = _read_config(config_file.read_bytes(), str(config_file))
    card = path / "README.md"
    licence = _licence(config, card.read_text(errors="replace") if card.is_file() else "")
    size = weights.stat().st_size
    return Located(str(path), None, None, config, licence, weights, size)


def _on_hub(repo_id: str, revision: str | None, folder: str) -> Located:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import (
        HFValidationError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        config_file = hf_hub_download(
            repo_id, "config.json", revision=info.sha, subfolder=folder or None
        )
    except RevisionNotFoundError as error:
        raise ModelError(f"{repo_id} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the Hub has no model {repo_id!r} that you may read; check the name, or log in with "
            "`hf auth login`"
        ) from error
    except RemoteEntryNotFoundError as error:
        raise ModelError(f"{repo_id} holds no config.json; it is no timm model") from error
    except HFValidationError as error:
        raise ModelError(f"{repo_id} is no Hub id ({reason(error)}); give another") from error
    except transport_errors(RuntimeError) as error:
        raise ModelError(
            f"{repo_id} cannot be reached ({reason(error)}); check the network, or give a folder"
        ) from error
    weights = f"{folder}/{WEIGHTS}".lstrip("/")
    if weights not in sizes:
        raise ModelError(f"{repo_id} holds no {weights}; ask its author to add safetensors")
    config = _read_config(Path(config_file).read_bytes(), f"{repo_id}/config.json")
    card = info.card_data.to_dict() if info.card_data else {}
    licence = _text(card.get("license")) or _licence(config, "")
    return Located(
        repo_id, repo_id, info.sha, config, licence, None, sizes[weights], folder or None
    )


def _weights_file(located: Located) -> Path:
    if located.weights is not None:
        return located.weights
    from huggingface_hub import hf_hub_download

    assert located.repo_id is not None
    try:
        return Path(
            hf_hub_download(
                located.repo_id, WEIGHTS, revision=located.sha, subfolder=located.folder
            )
        )
    except transport_errors(RuntimeError) as error:
        raise ModelError(
            f"{WEIGHTS} of {located.repo_id} cannot be downloaded ({reason(error)}); try again"
        ) from error


def _read_weights(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} is no readable safetensors file ({reason(error)}); it may be cut short, get "
            "it again"
        ) from error


def _read_config(raw: bytes, shown: str) -> Mapping[str, Any]:
    try:
        config = json.loads(raw)
    except ValueError as error:
        raise ModelError(f"{shown} is no JSON ({error}); get it again from its author") from error
    if not isinstance(config, dict):
        raise ModelError(
            f"{shown} holds a {type(config).__name__} where an object is wanted; it must be a "
            "config in timm's layout"
        )
    for key in OBJECTS:
        if not isinstance(config.get(key), dict | None):
            raise ModelError(f"{shown} holds no object under {key!r}; correct or remove it")
    return config


OBJECTS = ("pretrained_cfg", "model_args", "label_descriptions", "id2label", OWN_KEY)
"""Keys of a `config.json` that hold an object, or null, or are not there."""


def _text(licence: object) -> str | None:
    """A licence as one string: a card may hold a list of them."""
    if isinstance(licence, list):
        return ", ".join(str(each) for each in licence) or None
    return str(licence) if licence else None


def _licence(config: Mapping[str, Any], card: str) -> str | None:
    from huggingface_hub import ModelCard

    if card.startswith("---"):
        try:
            found = ModelCard(card).data.to_dict().get("license")
        except ValueError:
            found = None
        if found:
            return str(found)
    stated = (config.get("pretrained_cfg") or {}).get("license")
    return str(stated) if stated else None


def target_of(config: Mapping[str, Any], architecture: Architecture) -> Target:
    """Labels and preprocessing as the config states them.

    Raises:
        ModelError: they contradict the architecture or cannot be read.
    """
    pretrained: Mapping[str, Any] = config.get("pretrained_cfg") or config
    names = _label_names(config, pretrained)
    if names is not None and len(names) != architecture.classes:
        raise ModelError(
            f"config.json names {len(names)} labels but the network has {architecture.classes} "
            "outputs; correct label_names or num_classes"
        )
    described = config.get("label_descriptions") or pretrained.get("label_descriptions") or {}
    descriptions = described if isinstance(described, Mapping) else {}
    preprocess = Preprocess.from_pretrained_cfg(pretrained)
    return Target(architecture.classes, preprocess, names, dict(descriptions))


def _label_names(
    config: Mapping[str, Any], pretrained: Mapping[str, Any]
) -> tuple[str, ...] | None:
    names = config.get("label_names") or pretrained.get("label_names")
    numbered = config.get("id2label")
    if not names and isinstance(numbered, Mapping):
        try:
            names = [numbered[key] for key in sorted(numbered, key=int)]
        except ValueError as error:
            raise ModelError(
                f"config.json's id2label has a key that is no number ({error})"
            ) from error
    if not isinstance(names, list) or not names:
        return None
    # What transformers writes where nobody named the labels.
    if all(re.fullmatch(r"LABEL_\d+", str(name)) for name in names):
        return None
    return tuple(str(name) for name in names)
