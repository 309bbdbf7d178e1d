"""What a network is built from: an architecture of timm or transformers, and what was altered.

Everything stands in a `config.json` and is rebuilt from it without a pickle or foreign code.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rnp_hub import cifar, transformers_io
from rnp_hub.edits import LayerEdit, apply_edits, edits_from_json, edits_to_json
from rnp_hub.errors import ModelError, reason
from rnp_hub.limits import MAX_CLASSES, Allowance, check_arguments, within

OWN_KEY = "rnp_hub"
"""Where in a `config.json` stands what neither timm nor transformers knows."""

REFUSED_ARGS = {
    "cache_dir",
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "scriptable",
}
"""Arguments of timm.create_model that would make it read or fetch files."""

Library = Literal["timm", "transformers"]


@dataclass(frozen=True)
class Architecture:
    """A recipe for a module with random weights.

    Attributes:
        name: of the timm architecture, or of the class in transformers.
        classes: number of logits.
        args: of timm: further arguments of `create_model`, `num_classes` not among them; of
            transformers: the whole `config.json`.
        stem: `cifar` for an altered network, see `rnp_hub.cifar`; else `None`.
        edits: what slimming cut, by layer.
        library: whose architecture it is.
    """

    name: str
    classes: int
    args: Mapping[str, Any] = field(default_factory=dict)
    stem: str | None = None
    edits: Mapping[str, LayerEdit] = field(default_factory=dict)
    library: Library = "timm"

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Architecture:
        """Read a `config.json`: timm's new or legacy form, that of transformers, or our own.

        Raises:
            ModelError: it names no architecture of either, or holds what must not be in it.
        """
        own = config.get(OWN_KEY) or {}
        edits = edits_from_json(own.get("slim"))
        theirs = own.get("transformers")
        if theirs is not None and not isinstance(theirs, dict):
            raise ModelError(
                f"config.json holds no object under {OWN_KEY}.transformers; correct it"
            )
        if theirs is None and not _is_timm(config):
            theirs = {key: value for key, value in config.items() if key != OWN_KEY}
        if theirs is not None:
            return _of_transformers(theirs, edits)
        return _of_timm(config, own.get("stem"), edits)

    def own_config(self) -> dict[str, Any]:
        """What goes under `OWN_KEY` of a `config.json`."""
        own: dict[str, Any] = {}
        if self.stem:
            own["stem"] = self.stem
        if self.edits:
            own["slim"] = edits_to_json(self.edits)
        if self.edits and self.library == "transformers":
            own["transformers"] = dict(self.args)
        return own

    def build(self, allowance: Allowance | None = None) -> nn.Module:
        """The module, random weights, in evaluation mode.

        Args:
            allowance: what it may take; `None` where the recipe is no stranger's.

        Raises:
            ModelError: the library refuses the arguments, the edits do not fit, or the module
                takes more than it may.
        """
        if self.library == "transformers":
            module = transformers_io.build(self.args, allowance)
        else:
            module = _create(self.name, self.classes, self.args, allowance)
        if self.stem == cifar.NAME:
            cifar.apply(module, self.classes)
        apply_edits(module, self.edits)
        return module.eval()

    def fill(self, weights: Mapping[str, Tensor], shown: str) -> nn.Module:
        """The module with these weights, every tensor or none, in evaluation mode, float32.

        Args:
            weights: by name, as they stand in a file.
            shown: the file or repository, for messages.

        Raises:
            ModelError: as for `build`, or a tensor is missing, left over or of another shape.
        """
        lacking = cifar.lacking(self.name) if self.stem == cifar.NAME else 0
        allowance = Allowance.of(weights, lacking)
        if self.library == "transformers" and not self.edits:
            return transformers_io.fill(self.args, weights, shown, allowance)
        module = self.build(allowance).float()
        load_weights(module, weights, shown)
        return module

    def altered_as(self, weights: Mapping[str, Tensor]) -> tuple[Architecture, str] | None:
        """This architecture altered as the weights are, and what to say about it.

        Returns:
            `None` where the weights show no alteration that is known, or it is applied already.
        """
        if self.library != "timm" or self.stem or self.edits:
            return None
        if not cifar.possible(self.name, weights):
            return None  # and no network needs to be built to know
        arguments = cifar.arguments(self.name, weights)
        arguments = {**self.args, **arguments}
        allowance = Allowance.of(weights, cifar.lacking(self.name))
        plain = _create(self.name, self.classes, arguments, allowance)
        if not cifar.recognised(plain, weights):
            return None
        note = (
            f"the weights have the CIFAR stem ({cifar.describe(plain)}) although config.json "
            f"claims a plain {self.name}; it was applied"
        )
        return replace(self, stem=cifar.NAME, args=arguments), note


# --- from a config ----------------------------------------------------------------------------


def _is_timm(config: Mapping[str, Any]) -> bool:
    """Whether it is timm's, by the keys that transformers looks at too."""
    wrapped = config.get("model_type") == "timm_wrapper"
    return wrapped or any(config.get(key) for key in ("architecture", "pretrained_cfg"))


def _of_transformers(config: dict[str, Any], edits: Mapping[str, LayerEdit]) -> Architecture:
    if "model_type" not in config:
        raise ModelError(
            "config.json names no architecture of timm and no model_type of transformers; give an "
            "image classifier of one of the two"
        )
    name = transformers_io.classifier_class(config).__name__
    classes = transformers_io.labels_of(config)
    _check_classes(classes)
    return Architecture(name, classes, config, None, edits, "transformers")


def _of_timm(
    config: Mapping[str, Any], stem: object, edits: Mapping[str, LayerEdit]
) -> Architecture:
    import timm

    pretrained: Mapping[str, Any] = config.get("pretrained_cfg") or config
    name = config.get("architecture") or pretrained.get("architecture")
    if not isinstance(name, str) or not timm.is_model(name):
        raise ModelError(_unknown(name, config))
    args = dict(config.get("model_args") or {})
    if forbidden := REFUSED_ARGS & set(args):
        raise ModelError(
            f"config.json asks for {', '.join(sorted(forbidden))} in model_args, which would "
            "make timm read other files; remove it"
        )
    stated = (config.get("num_classes"), args.pop("num_classes", None))
    classes = _first((*stated, pretrained.get("num_classes"), 1000))
    if classes == 0:
        raise ModelError(
            f"config.json's num_classes is 0: this {name} gives features, not classes; give an "
            "image classifier"
        )
    if not isinstance(classes, int) or classes < 1:
        raise ModelError(f"config.json's num_classes {classes!r} must be a positive number")
    _check_classes(classes)
    check_arguments(args, "model_args of config.json")
    if stem not in (None, cifar.NAME):
        raise ModelError(f"config.json asks for a stem {stem!r}; only {cifar.NAME!r} is known")
    return Architecture(name, classes, args, str(stem) if stem else None, edits)


def _check_classes(classes: int) -> None:
    if classes > MAX_CLASSES:
        raise ModelError(
            f"config.json asks for more than {MAX_CLASSES:,} classes; correct their number there"
        )


def _first(values: tuple[Any, ...]) -> Any:
    return next(value for value in values if value is not None)


def _create(
    name: str, classes: int, args: Mapping[str, Any], allowance: Allowance | None
) -> nn.Module:
    import timm

    try:
        with within(allowance):
            module: nn.Module = timm.create_model(
                name, pretrained=False, num_classes=classes, **args
            )
    except Exception as error:  # the arguments go to whatever code builds the architecture
        raise ModelError(
            f"timm cannot build {name!r} with {dict(args)} ({reason(error)}); "
            "correct model_args in config.json"
        ) from error
    return module


def _unknown(name: object, config: Mapping[str, Any]) -> str:
    import timm

    if not isinstance(name, str):
        kind = config.get("model_type")
        hint = f"; it is a {kind} of transformers" if kind else ""
        return f"config.json names no timm architecture{hint}; give a timm image classifier"
    near = difflib.get_close_matches(name, timm.list_models(), n=2)
    hint = f"; the nearest is {' or '.join(near)}" if near else ""
    return f"config.json names the architecture {name!r}, which timm does not know{hint}"


# --- weights ----------------------------------------------------------------------------------


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], shown: str) -> None:
    """Fill `module` from a file, every tensor or none.

    Raises:
        ModelError: a tensor is missing, left over or of another shape; the first is named.
    """
    own = module.state_dict()
    problems = [
        *(f"`{name}` is missing" for name in own if name not in weights),
        *(f"`{name}` is left over" for name in weights if name not in own),
        *(
            f"`{name}` is {list(weights[name].shape)} where {list(tensor.shape)} is wanted"
            for name, tensor in own.items()
            if name in weights and weights[name].shape != tensor.shape
        ),
    ]
    if problems:
        raise ModelError(
            f"the weights in {shown} do not fit the architecture: {problems[0]}"
            f"{f', and {len(problems) - 1} more' if len(problems) > 1 else ''}; correct "
            "architecture, num_classes or model_args in config.json"
        )
    with torch.no_grad():
        module.load_state_dict(dict(weights))
