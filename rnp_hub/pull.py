"""From a folder or a Hub repository to a network that is ready to be asked.

No code of the repository is run: tensors are read, configurations are read, nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rnp_hub import transformers_io, weights
from rnp_hub.architecture import OWN_KEY, Architecture
from rnp_hub.data import Target
from rnp_hub.errors import ModelError, reason
from rnp_hub.network import check_finite, logits_of
from rnp_hub.preprocess import Preprocess
from rnp_hub.repository import (
    CARD,
    CONFIG,
    Repository,
    address_of,
    card_metadata,
    folder_of,
    open_folder,
    open_on_hub,
)
from rnp_hub.weights import WeightFiles

DEMO = "demo"


@dataclass(frozen=True)
class Located:
    """A model that was found, its weights not yet read.

    Attributes:
        spec: as it was asked for.
        repository: its files.
        config: its `config.json`.
        licence: as its card or its config say; `None` where neither does.
        weights: its weight files.
        processor: its `preprocessor_config.json`; `None` where there is none.
    """

    spec: str
    repository: Repository
    config: Mapping[str, Any]
    licence: str | None
    weights: WeightFiles
    processor: Mapping[str, Any] | None = None

    @property
    def repo_id(self) -> str | None:
        """On the Hub; `None` for a folder."""
        return self.repository.repo_id

    @property
    def name(self) -> str:
        """On the Hub `org/name`, with the folder within; else as it was asked for."""
        return self.repository.shown if self.repo_id else self.spec

    @property
    def sha(self) -> str | None:
        """Commit on the Hub; `None` for a folder."""
        return self.repository.sha

    @property
    def weight_bytes(self) -> int:
        """Size of the weights."""
        return sum(self.repository.files[name] or 0 for name in self.weights.shards)


@dataclass(frozen=True)
class PulledModel:
    """A network with its weights, and everything its repository says about it.

    Attributes:
        module: in evaluation mode, float32.
        architecture: how to build it again.
        target: its labels and preprocessing.
        located: where it came from.
        notes: what a person should know about how it was read.
        weights_sha256: see `weights.Weights`.
    """

    module: nn.Module
    architecture: Architecture
    target: Target
    located: Located
    notes: tuple[str, ...] = field(default=())
    weights_sha256: str | None = None


def pull(spec: str, revision: str | None = None) -> PulledModel:
    """Read a model.

    Args:
        spec: `demo`, a folder (also `local-dir:PATH`), a Hub id `org/name` (also
            `hf-hub:org/name`, and `org/name/FOLDER` within a repository) with an optional
            `@revision`, or the address of a model in a browser.
        revision: branch, tag or commit on the Hub, instead of `@revision`.

    Raises:
        ModelError: there is no such model, or it cannot be read, built or filled.
    """
    located = locate(spec, revision)
    architecture = Architecture.from_config(located.config)
    target = target_of(located.config, architecture, located.processor)
    found = weights.read(located.weights, located.repository.path)
    notes = [*_notes_on(located.config), *found.notes]
    altered = architecture.altered_as(found.tensors)
    if altered is not None:
        architecture, note = altered
        notes.append(note)
    module = architecture.fill(found.tensors, located.spec)
    check_finite(module)
    _check_answer(module, target, slim=bool(architecture.edits))
    return PulledModel(module, architecture, target, located, tuple(notes), found.sha256)


def _check_answer(module: nn.Module, target: Target, *, slim: bool) -> None:
    """Show the network one grey picture: it must take that size and give that many logits.

    Raises:
        ModelError: it does not, so its preprocessing, or what slimming cut, is not its own.
    """
    size = target.preprocess.input_size
    try:
        with torch.no_grad():
            logits = logits_of(module(torch.zeros(1, *size)))
    except Exception as error:  # whatever the code of the network raises
        raise ModelError(
            f"the network cannot take pictures of {' × '.join(map(str, size))}, which its "
            f"configuration asks for ({reason(error)}); correct the size there"
            f"{', or get its slim edits again' if slim else ''}"
        ) from error
    if logits.shape[1] != target.classes:
        raise ModelError(
            f"the network gives {logits.shape[1]} logits but its configuration says "
            f"{target.classes} classes; correct it"
        )


def _notes_on(config: Mapping[str, Any]) -> list[str]:
    if "auto_map" not in config:
        return []
    return [
        "config.json asks for code of its own (auto_map), which was not run; the network is that "
        "of the library by the same name"
    ]


def name_of(spec: str) -> str:
    """The last part of a model's name: of its folder, or of its Hub id without revision."""
    if spec != DEMO and (path := folder_of(spec)) is not None and path.exists():
        return path.resolve().name
    address = address_of(spec)
    named = spec if address is None else f"{address.repo_id}/{address.folder}".rstrip("/")
    return named.rpartition("/")[2]


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
    """Find a model and read its configuration, no weights.

    Raises:
        ModelError: it is not there, or its `config.json` is missing or no JSON.
    """
    repository = find(spec, revision)
    shown = re.sub(r"^hf[-_]hub:", "", spec) if repository.repo_id else spec
    return replace(_located(repository), spec=shown)


def find(spec: str, revision: str | None = None) -> Repository:
    """The files of a model, whatever they are; on the Hub, of the commit that is meant.

    Raises:
        ModelError: there is no such folder or repository.
    """
    if is_embedded(spec):
        with resources.as_file(resources.files("rnp_hub.demo")) as folder:
            return open_folder(folder)
    path = folder_of(spec)
    if path is not None:
        return open_folder(path)
    address = address_of(spec)
    if address is None:
        raise ModelError(
            f"there is no model folder at {spec}, and it is no Hub id (org/name); give one of them"
        )
    return open_on_hub(address if revision is None else replace(address, revision=revision))


def _located(repository: Repository) -> Located:
    shown = repository.shown
    config = repository.json(CONFIG)
    if config is None:
        raise ModelError(_no_config(repository))
    for key in OBJECTS:
        if not isinstance(config.get(key), dict | None):
            raise ModelError(
                f"{shown}/{CONFIG} holds no object under {key!r}; correct or remove it"
            )
    processor = None
    if not config.get("pretrained_cfg"):
        processor = repository.json(transformers_io.PROCESSOR)
    try:
        files = weights.choose(repository.files, repository.path, shown, repository.below)
    except ModelError as error:
        if not repository.offline:
            raise
        raise ModelError(
            f"HF_HUB_OFFLINE is set and the cache holds no weights of {shown}; run once without it"
        ) from error
    weights.check_size(sum(repository.files[name] or 0 for name in files.shards), shown)
    _refuse_elsewhere(config, files, shown)
    return Located(shown, repository, config, _licence(config, _card(repository)), files, processor)


def _refuse_elsewhere(config: Mapping[str, Any], files: WeightFiles, shown: str) -> None:
    """timm would take another file for the weights than the one that is looked at here."""
    stated = (config.get("pretrained_cfg") or config).get("hf_hub_filename")
    if stated is not None and stated != files.name:
        raise ModelError(
            f"{CONFIG} of {shown} sends timm to {stated!r} for the weights (hf_hub_filename), past "
            f"{files.name}; what others load would not be what was looked at, ask its author why"
        )


def _no_config(repository: Repository) -> str:
    if "model_index.json" in repository.files:
        return (
            f"{repository.shown} is a pipeline of diffusers, which makes pictures; give an image "
            "classifier"
        )
    return (
        f"{repository.shown} holds no {CONFIG}; it must be a model in the layout of timm or "
        "transformers"
    )


OBJECTS = ("pretrained_cfg", "model_args", "label_descriptions", "id2label", OWN_KEY)
"""Keys of a `config.json` that hold an object, or null, or are not there."""


def _card(repository: Repository) -> Mapping[str, Any]:
    """The metadata of its card; nothing where there is none, or none that can be read."""
    return {} if repository.text(CARD) is None else card_metadata(repository.path(CARD))


def _licence(config: Mapping[str, Any], card: Mapping[str, Any]) -> str | None:
    """As the card says, else the config: an id, several with commas between, or a name."""
    found = card.get("license")
    if found == "other" and card.get("license_name"):
        found = card["license_name"]
    stated = found or (config.get("pretrained_cfg") or {}).get("license")
    several = stated if isinstance(stated, list) else [stated]
    return ", ".join(each for each in several if isinstance(each, str)) or None


def target_of(
    config: Mapping[str, Any],
    architecture: Architecture,
    processor: Mapping[str, Any] | None = None,
) -> Target:
    """Labels and preprocessing as the config states them.

    Args:
        config: the `config.json`.
        architecture: what it describes.
        processor: the `preprocessor_config.json`, which a model of transformers needs.

    Raises:
        ModelError: they contradict the architecture or cannot be read.
    """
    pretrained: Mapping[str, Any] = config.get("pretrained_cfg") or config
    stated: Mapping[str, Any] = config
    if architecture.library == "transformers":
        stated = architecture.args
    names = _label_names(stated, pretrained)
    if names is not None and len(names) != architecture.classes:
        raise ModelError(
            f"config.json names {len(names)} labels but the network has {architecture.classes} "
            "outputs; correct label_names or num_classes"
        )
    described = config.get("label_descriptions") or pretrained.get("label_descriptions") or {}
    found = described.items() if isinstance(described, Mapping) else ()
    descriptions = {name: str(text) for name, text in found}
    preprocess = _preprocess(config, architecture, processor)
    return Target(architecture.classes, preprocess, names, descriptions)


def _preprocess(
    config: Mapping[str, Any], architecture: Architecture, processor: Mapping[str, Any] | None
) -> Preprocess:
    if architecture.library == "timm":
        return Preprocess.from_pretrained_cfg(config.get("pretrained_cfg") or config)
    own = (config.get(OWN_KEY) or {}).get("preprocess")
    if isinstance(own, Mapping):
        return Preprocess.from_pretrained_cfg(own)
    if processor is None:
        raise ModelError(
            f"the model has no {transformers_io.PROCESSOR}, which says how pictures enter it; ask "
            "its author for the one it was trained with"
        )
    return transformers_io.preprocess_of(architecture.args, processor)


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
