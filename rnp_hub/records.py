"""What the stages found, as it stands in the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

import torch
from PIL import Image
from torch import Tensor

from rnp_hub.heal import Healed
from rnp_hub.method import Sanitized
from rnp_hub.report import (
    MaskHistogram,
    PruneRecord,
    SurrogateRecord,
    TriedFilter,
    VerdictRecord,
)
from rnp_hub.scan import Scanned
from rnp_hub.surrogate import Surrogate
from rnp_hub.unlearn import Unlearned

MASK_BINS = 20
"""Of the histogram of masks."""

UNITS = {
    "patch": "share of the picture",
    "additive": "grey levels",
    "wave": "grey levels",
    "ripple": "grey levels",
    "warp": "pixels",
    "colour": "grey levels",
    "blend": "grey levels",
}
"""In what the norm of a surrogate is given, by its kind."""

SurrogateRecords = dict[str, dict[str, SurrogateRecord]]


# --- surrogates -------------------------------------------------------------------------------


def surrogate_records(surrogates: Iterable[Surrogate]) -> SurrogateRecords:
    """By label and kind."""
    found: SurrogateRecords = {}
    for each in surrogates:
        rate = each.asr
        found.setdefault(str(each.label), {})[each.kind] = SurrogateRecord(
            rate.value, rate.n, rate.low, rate.high, round(each.norm, 4)
        )
    return found


def surrogates_before(scanned: Scanned | None) -> SurrogateRecords:
    """All that a scan reconstructed."""
    if scanned is None:
        return {}
    return surrogate_records(
        each for by_label in scanned.surrogates.values() for each in by_label.values()
    )


def surrogates_after(result: Sanitized) -> SurrogateRecords:
    """Of a healed network those of the suspected label; of one that is unchanged, all."""
    if result.healed is not None:
        return surrogate_records(result.healed.left)
    return surrogates_before(result.scanned) if not result.pruned.count else {}


# --- the verdict ------------------------------------------------------------------------------


def verdict_record(
    unlearned: Unlearned, scanned: Scanned | None = None, healed: Healed | None = None
) -> VerdictRecord:
    """The verdict and what it rests on; a recipe without a scan comes to none."""
    leaning: dict[str, object] = {
        "suspect": unlearned.suspect,
        "unlearning_histogram": unlearned.histogram,
        "unlearning_accuracy": [round(value, 4) for value in unlearned.accuracies],
    }
    if scanned is None:
        return VerdictRecord(None, None, None, None, leaning)
    verdict = scanned.verdict
    evidence = {
        **leaning,
        "gap": round(verdict.gap, 4),
        "drop": round(verdict.drop, 4),
        "lean": round(verdict.lean, 4),
        "kind": scanned.suspected.kind if scanned.suspected else None,
        "clean_margin": round(scanned.unit, 4),
        "margins": _margins(scanned),
        "filters_that_kill": len(scanned.trail.best) if scanned.trail else 0,
        "triggers": _triggers(scanned),
        "doubt": verdict.doubt,
    }
    residual = None if healed is None else healed.residual
    return VerdictRecord(
        verdict.backdoored, verdict.label, round(verdict.score, 4), residual, evidence
    )


def _margins(scanned: Scanned) -> dict[str, dict[str, float]]:
    """By kind and label, in units of the clean margin, at the size at which labels are compared."""
    return {
        kind: {str(label): round(each.margin / scanned.unit, 3) for label, each in found.items()}
        for kind, found in scanned.surrogates.items()
    }


def _triggers(scanned: Scanned) -> list[dict[str, object]]:
    """The suspected label's surrogates, each laid on a test card."""
    if scanned.suspected is None:
        return []
    shape = tuple(scanned.halves.fit.images.shape[1:])
    return [
        {
            "kind": each.kind,
            "label": each.label,
            "norm": round(each.norm, 4),
            "unit": UNITS[each.kind],
            "asr": each.asr.value,
            "picture": _as_uri(each.trigger.stamp(card_of(shape))[0]),
        }
        for each in scanned.suspected.surrogates
    ]


def card_of(shape: tuple[int, ...]) -> Tensor:
    """uint8 (1, C, H, W): a smooth gradient under a grid, on which warps show too."""
    channels, height, width = shape
    down, across = torch.linspace(64, 192, height), torch.linspace(64, 192, width)
    rows, columns = torch.meshgrid(down, across, indexing="ij")
    planes = (rows, columns, (rows + columns) / 2)
    card = torch.stack([planes[channel % 3] for channel in range(channels)])
    spacing = max(height // 8, 2)
    card[:, ::spacing] = 224
    card[:, :, ::spacing] = 224
    return card.round().to(torch.uint8)[None]


def _as_uri(image: Tensor) -> str:
    """A PNG within the report."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    stored = io.BytesIO()
    picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    picture.save(stored, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stored.getvalue()).decode()


# --- pruning ----------------------------------------------------------------------------------


def prune_record(result: Sanitized) -> PruneRecord:
    """What was silenced, and what was tried."""
    pruned, masks = result.pruned, result.healed and result.healed.masks
    return PruneRecord(
        rule=pruned.rule,
        threshold=pruned.threshold,
        silenced=pruned.count,
        softened=masks.moved_filters - pruned.count if masks else 0,
        softened_kernels=masks.moved_kernels if masks else 0,
        fine_tuned=result.refined.config.fine_tune if result.refined else 0,
        bn_stats=bool(result.refined and result.refined.config.bn_stats),
        refined_accuracy=round(result.refined.accuracy, 6) if result.refined else None,
        filters=pruned.filters,
        per_layer=pruned.silenced,
        slice_accuracy=tuple(round(value, 6) for value in pruned.accuracies),
        mask_histogram=_mask_histogram(result),
        tried=_tried(result),
    )


def _mask_histogram(result: Sanitized) -> MaskHistogram | None:
    if result.recovered is None:
        return None
    silenced, left = [0] * MASK_BINS, [0] * MASK_BINS
    for each in result.recovered.order():
        out = each.index in result.pruned.silenced.get(each.site, ())
        (silenced if out else left)[min(int(each.value * MASK_BINS), MASK_BINS - 1)] += 1
    return MaskHistogram(tuple(silenced), tuple(left))


def _tried(result: Sanitized) -> tuple[TriedFilter, ...]:
    """In the order of trying, each with the accuracy while it was out."""
    if result.recovered is None or result.pruned.rule == "threshold":
        return ()
    masks = result.recovered.masks
    return tuple(
        TriedFilter(
            site,
            index,
            round(float(masks[site][index]), 6) if site in masks else 1.0,
            round(accuracy, 6),
            index in result.pruned.silenced.get(site, ()),
        )
        for (site, index), accuracy in _looks(result)
    )


def _looks(result: Sanitized) -> Iterable[tuple[tuple[str, int], float]]:
    if result.healed is not None:
        return [(step.filter, step.accuracy) for step in result.healed.steps]
    assert result.recovered is not None
    order = [(each.site, each.index) for each in result.recovered.order()]
    # Pruning by accuracy looks once before the first filter and once after each, in mask order.
    return list(zip(order, result.pruned.accuracies[1:], strict=False))
