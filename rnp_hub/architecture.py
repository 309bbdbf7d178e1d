"""What a network is built from: a timm architecture, a stem timm cannot express, slimming edits.

Everything stands in a `config.json` and is rebuilt from it without a pickle or foreign code.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rnp_hub.edits import LayerEdit, apply_edits, edits_from_json, edits_to_json
from rnp_hub.errors import ModelError, reason
from rnp_hub.network import put

OWN_KEY = "rnp_hub"
"""Where in a `config.json` stands what timm does not know."""

REFUSED_ARGS = {
    "cache_dir",
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "scriptable",
}
"""Arguments of timm.create_model that would make it read or fetch files."""


@dataclass(frozen=True)
class Architecture:
    """A recipe for a module with random weights.

    Attributes:
        name: of the timm architecture.
        classes: number of logits.
        args: further arguments of `timm.create_model`, `num_classes` not among them.
        stem: `cifar` for a 3 × 3 first convolution of stride 1 and no max-pooling, else `None`.
        edits: what slimming cut, by layer.
    """

    name: str
    classes: int
    args: Mapping[str, Any] = field(default_factory=dict)
    stem: str | None = None
    edits: Mapping[str, LayerEdit] = field(default_factory=dict)

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Architecture:
        """Read a `config.json`, timm's new or legacy form or our own.

        Raises:
            ModelError: it names no timm architecture, or holds what must not be in it.
        """
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
        classes = config.get("num_classes") or args.get("num_classes")
        classes = classes or pretrained.get("num_classes") or 1000
        if not isinstance(classes, int) or classes < 1:
            raise ModelError(f"config.json's num_classes {classes!r} must be a positive number")
        args.pop("num_classes", None)
        own = config.get(OWN_KEY) or {}
        stem = own.get("stem")
        if stem not in (None, "cifar"):
            raise ModelError(f"config.json asks for a stem {stem!r}; only 'cifar' is known")
        return Architecture(name, classes, args, stem, edits_from_json(own.get("slim")))

    def own_config(self) -> dict[str, Any]:
        """What goes under `OWN_KEY` of a `config.json`."""
        own: dict[str, Any] = {}
        if self.stem:
            own["stem"] = self.stem
        if self.edits:
            own["slim"] = edits_to_json(self.edits)
        return own

    def build(self) -> nn.Module:
        """The module, random weights, in evaluation mode.

        Raises:
            ModelError: timm refuses the arguments, or the edits do not fit.
        """
        import timm

        try:
            module: nn.Module = timm.create_model(
                self.name, pretrained=False, num_classes=self.classes, **self.args
            )
        except Exception as error:  # the arguments go to whatever code builds the architecture
            raise ModelError(
                f"timm cannot build {self.name!r} with {dict(self.args)} ({reason(error)}); "
                "correct model_args in config.json"
            ) from error
        if self.stem == "cifar":
            _give_cifar_stem(module)
        apply_edits(module, self.edits)
        return module.eval()


def _unknown(name: object, config: Mapping[str, Any]) -> str:
    import timm

    if not isinstance(name, str):
        kind = config.get("model_type")
        hint = f"; it is a {kind} of transformers" if kind else ""
        return f"config.json names no timm architecture{hint}; give a timm image classifier"
    near = difflib.get_close_matches(name, timm.list_models(), n=2)
    hint = f"; the nearest is {' or '.join(near)}" if near else ""
    return f"config.json names the architecture {name!r}, which timm does not know{hint}"


# --- the CIFAR stem ---------------------------------------------------------------------------


def stem_of(weights: Mapping[str, Tensor], module: nn.Module) -> str | None:
    """`cifar` if the file's first convolution is 3 × 3 where the architecture's is larger.

    Networks for 32 × 32 pictures on the Hub have it, while their config claims the plain
    architecture. The missing max-pooling leaves no trace in the weights, so it goes with it.
    """
    found = _first_convolution(module)
    if found is None:
        return None
    name, convolution = found
    stored = weights.get(f"{name}.weight")
    if stored is None or stored.dim() != 4 or max(convolution.kernel_size) <= 3:
        return None
    fits = stored.shape[:2] == convolution.weight.shape[:2] and stored.shape[2:] == (3, 3)
    return "cifar" if fits else None


def _first_convolution(module: nn.Module) -> tuple[str, nn.Conv2d] | None:
    named = module.named_modules()
    return next(((name, part) for name, part in named if isinstance(part, nn.Conv2d)), None)


def _give_cifar_stem(module: nn.Module) -> None:
    found = _first_convolution(module)
    if found is None:
        raise ModelError("the network has no convolution to give a CIFAR stem")
    name, old = found
    put(
        module,
        name,
        nn.Conv2d(old.in_channels, old.out_channels, 3, 1, 1, bias=old.bias is not None),
    )
    pool = next((n for n, part in module.named_modules() if isinstance(part, nn.MaxPool2d)), None)
    if pool is not None:
        put(module, pool, nn.Identity())


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
