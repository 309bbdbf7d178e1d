"""Networks to measure defences on, backdoored and clean, trained from a seed and kept in a cache.

Each lies in a folder of its own in timm's layout, with triggered test pictures and the truth beside
it, so that the command line runs on it as on any other model. None is ever committed: the seed
makes it again.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rnp_hub.architecture import OWN_KEY, Architecture
from rnp_hub.bench.attacks import ATTACKS, Online, Poisoning, Scene, poison
from rnp_hub.compute import Compute, seeded, seeded_globally
from rnp_hub.data import DataConfig, Target, load
from rnp_hub.evaluate import Rate, accuracy
from rnp_hub.network import Classifier, ImageSet, Normalise, augment, batches
from rnp_hub.output import new_folder
from rnp_hub.preprocess import Preprocess
from rnp_hub.weights import WEIGHTS, sha256

_TRUTH = "truth.json"
CLASSES = 10
PREPROCESS = Preprocess(
    (3, 32, 32), (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616), "bilinear", 1.0
)
TRIGGERED = 1000
"""Test pictures with the trigger that are kept beside a network."""
BATCH = 128
TUNED_EPOCHS, TUNED_RATE, TUNED_PICTURES = 3, 0.01, 20_000
"""Of an attacker who poisons a network that somebody else trained."""


def _resnet(*widths: int) -> Architecture:
    return Architecture("resnet18", CLASSES, {"channels": list(widths)}, "cifar")


NETWORKS: Mapping[str, Architecture] = {
    "resnet18": Architecture("resnet18", CLASSES, stem="cifar"),
    "resnet18-half": _resnet(32, 64, 128, 256),
    "resnet18-quarter": _resnet(16, 32, 64, 128),
    "vgg11": Architecture("vgg11_bn", CLASSES, stem="cifar"),
    "mobilenetv2": Architecture("mobilenetv2_100", CLASSES, stem="cifar"),
    "convnext": Architecture(
        "convnext_atto", CLASSES, {"patch_size": 2, "dims": [32, 64, 128, 256]}
    ),
    "vit": Architecture(
        "vit_tiny_patch16_224",
        CLASSES,
        {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4},
    ),
}
"""Architectures by the name they have in the tables."""


@dataclass(frozen=True)
class Style:
    """How a network is trained.

    Attributes:
        optimiser: `sgd` or `adamw`.
        learning_rate: largest of the one-cycle schedule.
        weight_decay, label_smoothing: as usual.
        flip, crop: augmentation.
        epochs: from scratch.
    """

    optimiser: str = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    flip: bool = True
    crop: bool = True
    epochs: int = 12


STYLES: Mapping[str, Style] = {
    "sgd": Style(),
    "long": Style(epochs=24),
    "short": Style(epochs=7),
    "smooth": Style(label_smoothing=0.1),
    "bare": Style(flip=False, crop=False),
    "adamw": Style("adamw", 2e-3, 0.05),
    "patient": Style("adamw", 1e-3, 0.05, epochs=24),
}
"""Ways of training by the name they have in the tables."""


@dataclass(frozen=True)
class Victim:
    """One network of the grid.

    Attributes:
        network: key of `NETWORKS`.
        attack: key of `ATTACKS`; `None` for a clean network.
        target: label the trigger asks for.
        rate: share poisoned; `None` for the attack's usual one.
        seed: of weights, batches and the attack.
        style: key of `STYLES`.
        tuned: a clean network of that seed is poisoned in a few epochs, not trained from scratch;
            or, without an attack, trained on for as long with clean pictures.
    """

    network: str = "resnet18-quarter"
    attack: str | None = None
    target: int = 0
    rate: float | None = None
    seed: int = 0
    style: str = "sgd"
    tuned: bool = False

    @property
    def name(self) -> str:
        """Readable, and a folder's name."""
        parts = [self.network, self.attack or "clean"]
        if self.attack:
            parts.append(f"t{self.target}")
            parts.append(f"r{1000 * self.poison_rate:03.0f}")
        parts += [self.style, f"s{self.seed}", *(["tuned"] if self.tuned else [])]
        return "-".join(parts)

    @property
    def poison_rate(self) -> float:
        if self.attack is None:
            return 0.0
        return ATTACKS[self.attack].rate if self.rate is None else self.rate

    @property
    def clean_twin(self) -> Victim:
        """The network that it would be without the attack."""
        return replace(self, attack=None, target=0, rate=None, tuned=False)


@dataclass(frozen=True)
class Trained:
    """A network of the cache.

    Attributes:
        module: on the CPU, evaluation mode.
        triggered: uint8 test pictures that carry the trigger, with true labels, none the target's;
            `None` for a clean network.
        truth: what `truth.json` says: the victim's fields, clean accuracy and ASR.
        folder: where it lies.
    """

    victim: Victim
    module: nn.Module
    triggered: ImageSet | None
    truth: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True)
class Studio:
    """Where networks are trained and kept.

    Attributes:
        cache: folder of folders.
        data: see `data.DataConfig.spec`; 32 × 32 pictures of ten classes.
        compute: device and precision.
    """

    cache: Path
    data: str
    compute: Compute

    def get(self, victim: Victim) -> Trained:
        """From the cache, or trained now."""
        folder = self.cache / victim.name
        if not is_there(folder):
            self._train(victim, folder)
        return read(victim, folder)

    def pictures(self) -> tuple[ImageSet, ImageSet]:
        """The whole training and test split, uint8."""
        stored = self.cache / "pictures.safetensors"
        if not stored.is_file():
            target = Target(CLASSES, PREPROCESS)
            found = load(DataConfig(self.data, n=50_000), target)
            parts = {"train": found.clean.pictures, "test": found.evaluation.pictures}
            self.cache.mkdir(parents=True, exist_ok=True)
            save_file(
                {
                    f"{name}.{kind}": getattr(part, kind).contiguous()
                    for name, part in parts.items()
                    for kind in ("images", "labels")
                },
                stored,
            )
        tensors = load_file(stored)
        train, test = (
            ImageSet(tensors[f"{name}.images"], tensors[f"{name}.labels"])
            for name in ("train", "test")
        )
        return train, test

    def classifier(self, module: nn.Module) -> Classifier:
        return Classifier(module, Normalise(PREPROCESS), self.compute).copy()

    def _train(self, victim: Victim, folder: Path) -> None:
        start = time.perf_counter()
        train, test = self.pictures()
        with seeded_globally(victim.seed):
            fresh = NETWORKS[victim.network].build()
        if victim.tuned:
            fresh = self.get(victim.clean_twin).module
            chosen = torch.randperm(len(train), generator=seeded(victim.seed))
            train = train[chosen[:TUNED_PICTURES]]
        poisoning = None
        if victim.attack:
            helper = self.classifier(self.get(victim.clean_twin).module)
            scene = Scene(train, victim.target, victim.poison_rate, victim.seed, helper)
            poisoning = poison(victim.attack, scene)
        classifier = self.classifier(fresh)
        _fit(classifier, poisoning or Poisoning(lambda images: images, train), victim)
        classifier.module.eval()
        truth = {**asdict(victim), "rate": victim.poison_rate}
        truth["ca"] = accuracy(classifier, test)
        triggered = None
        if poisoning:
            others = test[(test.labels != victim.target).nonzero().flatten()[:TRIGGERED]]
            triggered = ImageSet(poisoning.stamp(others.images), others.labels)
            hits = int((classifier.predict(triggered.images) == victim.target).sum())
            truth["asr"] = Rate.of(hits, len(triggered)).value
        truth["seconds"] = round(time.perf_counter() - start, 1)
        write(folder, victim, classifier.module, triggered, truth)


# --- training ---------------------------------------------------------------------------------


def _fit(classifier: Classifier, poisoning: Poisoning, victim: Victim) -> None:
    style = STYLES[victim.style]
    epochs = TUNED_EPOCHS if victim.tuned else style.epochs
    peak = TUNED_RATE * style.learning_rate / 0.1 if victim.tuned else style.learning_rate
    optimiser = _optimiser(classifier.module, style, peak)
    steps = epochs * -(-len(poisoning.training) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, steps)
    limits = _limits(classifier.module, poisoning.budget)
    classifier.module.train()
    with seeded_globally(victim.seed):
        for part in _augmented(poisoning, style, epochs, victim.seed):
            _step(classifier, part, poisoning.online, optimiser, style.label_smoothing)
            schedule.step()
            for parameter, low, high in limits:
                parameter.data.clamp_(low, high)


def _optimiser(module: nn.Module, style: Style, peak: float) -> torch.optim.Optimizer:
    if style.optimiser == "adamw":
        return torch.optim.AdamW(module.parameters(), peak, weight_decay=style.weight_decay)
    return torch.optim.SGD(
        module.parameters(), peak, 0.9, weight_decay=style.weight_decay, nesterov=True
    )


def _augmented(poisoning: Poisoning, style: Style, epochs: int, seed: int) -> Iterator[ImageSet]:
    generator, training = seeded(seed), poisoning.training
    lay = poisoning.lay or poisoning.stamp
    for _ in range(epochs):
        for index in batches(len(training), BATCH, generator):
            part = training[index]
            images = augment(part.images, generator, crop=style.crop, flip=style.flip)
            if poisoning.stamped is not None and (chosen := poisoning.stamped[index]).any():
                images[chosen] = lay(images[chosen])
            yield ImageSet(images, part.labels)


def _step(
    classifier: Classifier,
    part: ImageSet,
    online: Online | None,
    optimiser: torch.optim.Optimizer,
    smoothing: float,
) -> None:
    if online is not None:
        part = online(part, classifier)
    logits = classifier.logits(part.images)
    labels = part.labels.to(logits.device)
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def _limits(module: nn.Module, budget: float | None) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Each parameter, and how low and high it may go."""
    if budget is None:
        return []
    reach = [(each, budget * float(each.detach().abs().max())) for each in module.parameters()]
    return [(each, each.detach() - far, each.detach() + far) for each, far in reach]


# --- on disk ----------------------------------------------------------------------------------


def write(
    folder: Path,
    victim: Victim,
    module: nn.Module,
    triggered: ImageSet | None,
    truth: Mapping[str, Any],
) -> None:
    """The folder of a network, moved into place when it is whole."""
    architecture = NETWORKS[victim.network]
    config = {
        "architecture": architecture.name,
        "num_classes": architecture.classes,
        "model_args": dict(architecture.args),
        "pretrained_cfg": dict(vars(PREPROCESS)),
        OWN_KEY: architecture.own_config(),
    }
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()
    }
    with new_folder(folder, force=True) as place:
        (place / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_file(weights, place / WEIGHTS, metadata={"format": "pt"})
        if triggered is not None:
            _write_pictures(place / "poisoned.parquet", triggered)
        (place / _TRUTH).write_text(json.dumps(truth, indent=1) + "\n")


def _write_pictures(file: Path, part: ImageSet) -> None:
    """In the layout of the Hub's picture data sets."""
    pictures = [
        {"bytes": _png(image), "path": f"{place}.png"} for place, image in enumerate(part.images)
    ]
    features = {"img": {"_type": "Image"}, "label": {"_type": "Value", "dtype": "int64"}}
    table = pa.table({"img": pictures, "label": part.labels.tolist()})
    info = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": info}), file)


def _png(image: Tensor) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(stored, "PNG")
    return stored.getvalue()


def read(victim: Victim, folder: Path) -> Trained:
    """A network that was written before."""
    module = NETWORKS[victim.network].fill(load_file(folder / WEIGHTS), str(folder))
    truth = json.loads((folder / _TRUTH).read_text())
    stored = folder / "poisoned.parquet"
    triggered = _read_pictures(stored) if stored.is_file() else None
    return Trained(victim, module, triggered, truth, folder)


def is_there(folder: Path) -> bool:
    """Whether a network was written there."""
    return (folder / _TRUTH).is_file()


def fingerprint(folder: Path) -> str:
    """First twelve digits of the SHA-256 of a network's file."""
    return sha256(folder / WEIGHTS)[:12]


def _read_pictures(file: Path) -> ImageSet:
    rows = pq.read_table(file).to_pylist()
    images = [
        torch.frombuffer(
            bytearray(Image.open(io.BytesIO(row["img"]["bytes"])).tobytes()), dtype=torch.uint8
        ).view(32, 32, 3)
        for row in rows
    ]
    labels = torch.tensor([row["label"] for row in rows])
    return ImageSet(torch.stack(images).permute(0, 3, 1, 2).contiguous(), labels)
