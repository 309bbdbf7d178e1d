"""What a run would pull and how long it may take, without running it (`--dry-run`)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from rnp_hub.architecture import Architecture
from rnp_hub.compute import Compute
from rnp_hub.data import DataConfig
from rnp_hub.limits import Allowance
from rnp_hub.method import SanitizeConfig
from rnp_hub.network import Classifier, Normalise
from rnp_hub.output import check_free
from rnp_hub.pipeline import SanitizeJob
from rnp_hub.pull import locate, target_of
from rnp_hub.push import check
from rnp_hub.sources import open_source

PRUNE_LOOKS = 40
"""How often pruning looks at the slice, in the runs it was counted on: 10 to 60 times."""


@dataclass(frozen=True)
class Plan:
    """What would be pulled, and how long it may take.

    Attributes:
        model, architecture: what was found.
        model_sha, data_sha: commits on the Hub.
        weights_mib: size of the weights.
        data: the data set and its splits.
        out: the folder that would be written.
        push_to: where it would be pushed to; `None` for nowhere.
        seconds: estimate, from one training step and one evaluation batch measured here with
            random weights; reading the data from the network is not in it.
    """

    model: str
    architecture: str
    model_sha: str | None
    weights_mib: float
    data: str
    data_sha: str | None
    out: str
    seconds: int
    push_to: str | None = None


def plan(asked: SanitizeJob) -> Plan:
    """Look at the model's config and the data set's files, and time one step.

    Raises:
        RnpHubError: the model or the data are not there, or a setting is out of its range.
    """
    job = asked.job
    check_free(asked.folder, force=asked.overwrite)
    config = asked.config()
    job.data.check()
    located = locate(job.model, job.revision)
    architecture = Architecture.from_config(located.config)
    source = open_source(
        job.data.spec,
        config=job.data.config,
        image_column=job.data.image_column,
        label_column=job.data.label_column,
    )
    target = target_of(located.config, architecture, located.processor)
    classifier = Classifier(
        architecture.build(Allowance.of_bytes(located.weight_bytes)),
        Normalise(target.preprocess),
        Compute.choose(job.device, job.precision),
    )
    return Plan(
        model=located.spec,
        architecture=architecture.name,
        model_sha=located.sha,
        weights_mib=round(located.weight_bytes / 2**20, 1),
        data=f"{source.id} ({', '.join(source.splits)})",
        data_sha=source.sha,
        out=str(asked.folder),
        seconds=_seconds(classifier, target.preprocess.input_size, job.data, config),
        push_to=check(asked.push.repo_id, asked.push.config).target() if asked.push else None,
    )


def _seconds(
    classifier: Classifier, shape: tuple[int, int, int], data: DataConfig, config: SanitizeConfig
) -> int:
    n = data.n
    batch = min(config.recover.batch_size, n)
    images = torch.zeros((batch, *shape), dtype=torch.uint8)
    classifier = classifier.copy()
    forward, step = _timed(classifier, images, train=False), _timed(classifier, images, train=True)
    per_epoch = -(-n // batch)
    descent = config.unlearn.updates * (step + per_epoch * forward)
    learning = config.recover.epochs * per_epoch * step
    looking = PRUNE_LOOKS * per_epoch * forward
    measuring = 2 * data.eval_n / batch * forward
    return round(descent + learning + looking + measuring)


def _timed(classifier: Classifier, images: torch.Tensor, *, train: bool) -> float:
    """Seconds of one batch, the second time."""
    for _ in range(2):
        start = time.perf_counter()
        if train:
            classifier.module.train()
            logits = classifier.logits(images)
            F.cross_entropy(
                logits, torch.zeros(len(images), dtype=torch.int64, device=logits.device)
            ).backward()
        else:
            classifier.predict(images)
    return time.perf_counter() - start
