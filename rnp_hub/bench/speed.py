"""How long RNP takes on a CIFAR ResNet-18, against the reference's schedule (`make bench`).

Two comparisons, both measured in this run on this machine. (a) End to end: one epoch of a plain
loop and one test pass are timed and *extrapolated* to the published schedule (13 unlearning and 20
recovery epochs, each followed by a test on 10,000 clean and 9,000 triggered pictures, the first-
party log of the reference). (b) Per training step and per evaluated picture, on the same batches,
against plain float32. Random weights and noise do for timing: nothing here depends on the values.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnp_hub.architecture import Architecture
from rnp_hub.compute import Compute
from rnp_hub.method import SanitizeConfig, sanitize
from rnp_hub.network import Classifier, ImageSet, Normalise
from rnp_hub.preprocess import Preprocess

SLICE, BATCH = 500, 128
EPOCHS = 33
TESTED = 10_000 + 9_000
PREPROCESS = Preprocess((3, 32, 32), interpolation="bilinear", crop_pct=1.0)
REPEATS = 5
PRUNE_LOOKS = 60
"""Looks at the slice that pruning is charged with at least: the most in real runs; noise ends it
early."""


def network() -> nn.Module:
    """The paper's network: ResNet-18 at full width with the CIFAR stem, 10 classes."""
    torch.manual_seed(0)
    return Architecture("resnet18", 10, stem="cifar").build()


def noise(count: int) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % 10)


def median_seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median of several runs after one that warms up."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def training_step(classifier: Classifier, part: ImageSet) -> Callable[[], None]:
    """One update of all parameters by SGD, as in unlearning."""
    optimiser = torch.optim.SGD(classifier.module.parameters(), 0.0, 0.9)
    classifier.module.train()

    def step() -> None:
        optimiser.zero_grad()
        logits = classifier.logits(part.images)
        F.cross_entropy(logits, part.labels.to(logits.device)).backward()
        optimiser.step()

    return step


@torch.no_grad()
def plain_pass(module: nn.Module, inputs: Tensor) -> Tensor:
    """What a plain loop does: float32, contiguous, 128 pictures at a time."""
    module.eval()
    return torch.cat([module(part).argmax(1) for part in inputs.split(BATCH)])


def main() -> None:
    data, normalise, ours = noise(1024), Normalise(PREPROCESS), Compute.choose()
    part = data[slice(0, BATCH)]
    plain = Classifier(network(), normalise, Compute())
    fast = Classifier(network(), normalise, ours).copy()
    inputs = normalise(data.images)
    steps = [median_seconds(training_step(each, part)) for each in (plain, fast)]
    looks = [
        median_seconds(lambda: plain_pass(plain.module, inputs), 3) / len(data),
        median_seconds(lambda: fast.predict(data.images), 3) / len(data),
    ]
    same = float((plain_pass(plain.module, inputs) == fast.predict(data.images)).float().mean())
    epoch = -(-SLICE // BATCH) * steps[0]
    reference = EPOCHS * (epoch + TESTED * looks[0])
    stages, total = our_run(normalise, ours, looks[1])
    print(
        json.dumps(
            {
                "device": ours.describe(),
                "precision": ours.precision,
                "threads": torch.get_num_threads(),
                "plain_float32": {"step_s": steps[0], "image_ms": 1000 * looks[0]},
                "ours": {"step_s": steps[1], "image_ms": 1000 * looks[1]},
                "step_speedup": steps[0] / steps[1],
                "image_speedup": looks[0] / looks[1],
                "same_labels": same,
                "reference_schedule_s_extrapolated": reference,
                "our_stages_s": stages,
                "our_total_s": total,
                "end_to_end_speedup": reference / total,
            },
            indent=1,
        )
    )


def our_run(
    normalise: Normalise, compute: Compute, image_seconds: float
) -> tuple[dict[str, float], float]:
    """Seconds per stage of a whole run on a network that has learned its slice.

    The evaluations before and after are `TESTED` pictures each, and pruning is `PRUNE_LOOKS` looks,
    at the measured time per picture.
    """
    clean = noise(SLICE)
    # A mark each class can be told by, so that there is an accuracy to unlearn.
    for label in range(10):
        clean.images[clean.labels == label, label % 3, 3 * label : 3 * label + 3] = 255
    module = network().train()
    learner = Classifier(module, normalise, compute).copy()
    optimiser = torch.optim.SGD(learner.module.parameters(), 0.05, 0.9)
    learner.module.train()
    for _ in range(4):
        for index in torch.randperm(SLICE).split(BATCH):
            optimiser.zero_grad()
            logits = learner.logits(clean.images[index])
            F.cross_entropy(logits, clean.labels[index].to(logits.device)).backward()
            optimiser.step()
    result = sanitize(
        learner.module,
        clean.images,
        clean.labels,
        SanitizeConfig.of(flip=False),
        transform=normalise,
        compute=compute,
    )
    stages = {
        **result.timing_s,
        "prune": max(result.timing_s["prune"], PRUNE_LOOKS * SLICE * image_seconds),
        "evaluate": 2 * TESTED * image_seconds,
    }
    return stages, sum(stages.values())


if __name__ == "__main__":
    main()
