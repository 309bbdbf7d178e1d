"""Which cuts make a network faster, where others make it smaller only.

Two things were measured (onnxruntime, float32, one core with AVX-512; docs/slimming.md has the
figures). Its convolutions take blocks of channels, and where their number is no multiple of 4 they
fall back to a way that takes 1.5 to 2.5 times as long. And numbers that are moved, by a scatter or
a gather, cost as much as about 100 multiply-accumulates each. torch is indifferent to the first.

So a convolution keeps a number of channels that it can take, with up to three silenced filters left
as zeros, and numbers are moved only where that saves enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnp_hub.edits import LayerEdit
from rnp_hub.graph import Graph
from rnp_hub.removal import Plan, plans
from rnp_hub.sites import Site

BLOCK = 4
"""Channels that onnxruntime's convolutions take at a time."""

MOVE = 128
"""Multiply-accumulates that one moved number must save."""


def quick_plans(
    dense: nn.Module, graph: Graph | None, site: Site, silenced: tuple[int, ...]
) -> list[Plan]:
    """Ways to remove filters of a site that make the network faster, the best first.

    As few as it takes stay as zeros; all, where there is no such way.
    """
    moving: list[Plan] = []
    for spare in range(min(BLOCK, len(silenced))):
        for plan in plans(dense, graph, site, silenced[: len(silenced) - spare]):
            if not _fits(dense, plan.edits):
                continue
            count = replace(plan.count, silenced=len(silenced), kept=plan.count.kept + spare)
            plan = replace(plan, count=count)
            moved = sum(_moved(dense, name, edit) for name, edit in plan.edits.items())
            if not moved:
                return [plan, *moving]
            if _saved(dense, plan.edits) >= MOVE * moved:
                moving.append(plan)
    return moving


def _fits(dense: nn.Module, edits: Mapping[str, LayerEdit]) -> bool:
    """Whether no convolution loses the blocks that it had."""
    layers = ((dense.get_submodule(name), edit.outputs) for name, edit in edits.items())
    return not any(
        isinstance(layer, nn.Conv2d) and outputs and len(outputs) % BLOCK
        for layer, outputs in layers
        if not getattr(layer, "out_channels", 1) % BLOCK
    )


def _moved(dense: nn.Module, name: str, edit: LayerEdit) -> int:
    """Numbers that are moved for each pixel or token."""
    layer = dense.get_submodule(name)
    moved = len(edit.standing or ())
    if edit.gather:
        picked = edit.outputs if isinstance(layer, _BatchNorm) else edit.inputs
        moved += len(picked or ())
    if isinstance(layer, nn.Conv2d) and layer.groups > 1 and edit.outputs is not None:
        moved += layer.in_channels
    return moved


def _saved(dense: nn.Module, edits: Mapping[str, LayerEdit]) -> int:
    """Multiply-accumulates that are saved for each pixel or token, in the rows that go."""
    saved = 0
    for name, edit in edits.items():
        layer = dense.get_submodule(name)
        if isinstance(layer, nn.Conv2d | nn.Linear) and edit.outputs is not None:
            saved += (len(layer.weight) - len(edit.outputs)) * layer.weight[0].numel()
    return saved
