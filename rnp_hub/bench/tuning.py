"""Defences that tune the network on the clean slice: fine-tuning, fine-pruning, NAD.

Their published settings are for 2,500 pictures. On 500 a batch is a fifth as large, so that an
epoch has as many updates as published; everything else is kept.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnp_hub.errors import ModelError
from rnp_hub.head import features
from rnp_hub.network import Classifier, ImageSet, evaluation_mode, on_cpu
from rnp_hub.tune import Tuning, tune


def fine_tuned(classifier: Classifier, clean: ImageSet, seed: int) -> nn.Module:
    """Fine-tuning: 100 epochs, SGD from 0.01 along a cosine, crop and flip."""
    tuned = classifier.copy()
    tune(tuned, clean, Tuning(), seed)
    return on_cpu(tuned.module)


# --- fine-pruning -----------------------------------------------------------------------------

MAX_DROP = 0.1
"""Share of the accuracy on the slice that fine-pruning may lose before it is tuned."""
STEP = 0.01
"""Share of the features that go at once."""


def fine_pruned(classifier: Classifier, clean: ImageSet, seed: int) -> tuple[nn.Module, int]:
    """Fine-pruning (Liu et al. 2018): the least active features go, then the rest is tuned.

    Features are what the last linear layer reads: the pooled channels of the last convolution.
    A silenced feature stays silent while the network is tuned.

    Returns:
        The network and the number of features silenced.
    """
    pruned = classifier.copy()
    head = last_linear(pruned.module)
    alive = _needed(head, _features(pruned, head, clean.images), clean.labels)
    with _muted(head, alive):
        tune(pruned, clean, Tuning(), seed)
    with torch.no_grad():
        head.weight *= alive
    return on_cpu(pruned.module), int((~alive).sum())


def last_linear(module: nn.Module) -> nn.Linear:
    """The layer whose outputs are the logits.

    Raises:
        ModelError: there is no linear layer.
    """
    found = [part for part in module.modules() if isinstance(part, nn.Linear)]
    if not found:
        raise ModelError(
            f"{type(module).__name__} has no linear layer whose inputs could be pruned; "
            "leave out the defence `fp`"
        )
    return found[-1]


@torch.no_grad()
def _features(classifier: Classifier, head: nn.Linear, images: Tensor) -> Tensor:
    """(n, features), float32: what the head reads."""
    with features([head]) as read, evaluation_mode(classifier.module):
        for part in classifier.compute.parts(images):
            classifier.logits(part)
    return torch.cat(read)


@torch.no_grad()
def _needed(head: nn.Linear, features: Tensor, labels: Tensor) -> Tensor:
    """(features,), bool: those that stay."""
    order = features.mean(0).argsort()
    labels = labels.to(features.device)

    def accuracy(alive: Tensor) -> float:
        return float((head(features * alive).argmax(1) == labels).float().mean())

    alive = torch.ones(len(order), dtype=torch.bool, device=order.device)
    start, stride = accuracy(alive), math.ceil(STEP * len(order))
    for first in range(0, len(order) - stride, stride):
        trial = alive.clone()
        trial[order[first : first + stride]] = False
        if accuracy(trial) < (1 - MAX_DROP) * start:
            break
        alive = trial
    return alive


@contextlib.contextmanager
def _muted(head: nn.Linear, alive: Tensor) -> Iterator[None]:
    """The head reads 0 for features that are not alive."""
    with head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * alive,)):
        yield


# --- neural attention distillation ------------------------------------------------------------

BETAS = (500.0, 1000.0, 1000.0)
"""Weights of the low, middle and high layer's attention."""


def distilled(classifier: Classifier, clean: ImageSet, seed: int) -> nn.Module:
    """NAD (Li et al. 2021): the network learns the attention of a tuned copy of itself.

    Ten epochs for the teacher and twenty for the student, as in the paper, at BackdoorBench's
    SGD 0.01. Attention is compared behind the last block of each of the last three resolutions.
    """
    teacher, student = classifier.copy(), classifier.copy()
    tune(teacher, clean, Tuning(10, constant), seed)
    layers = attention_layers(student, clean.images[:2])
    with _outputs(teacher.module, layers) as wanted, _outputs(student.module, layers) as shown:

        def penalty(images: Tensor) -> Tensor:
            with torch.no_grad():
                teacher.logits(images)
            apart = [
                beta * F.mse_loss(attention(shown[name]), attention(wanted[name]))
                for beta, name in zip(BETAS[-len(layers) :], layers, strict=True)
            ]
            return torch.stack(apart).sum()

        tune(student, clean, Tuning(20, constant), seed, penalty)
    return on_cpu(student.module)


def constant(_epoch: int) -> float:
    """The rate at which NAD tunes in every epoch."""
    return 0.01


def attention(features: Tensor) -> Tensor:
    """(n, positions): where a layer looks, at length 1 for each picture.

    The sum of squares over channels, which come second in maps (n, C, H, W) and last in tokens
    (n, T, C).
    """
    channels = 1 if features.dim() == 4 else 2
    squares = features.float().square().sum(channels).flatten(1)
    return squares / (squares.square().sum(1, keepdim=True).sqrt() + 1e-6)


@torch.no_grad()
def attention_layers(classifier: Classifier, images: Tensor) -> tuple[str, ...]:
    """The last block called at each of the last three resolutions, by name.

    Blocks are modules with at most one dot in their names: `layer4`, `blocks.6`, `features.27`.

    Raises:
        ModelError: no layer answers with a map or tokens.
    """
    called: dict[tuple[int, ...], str] = {}

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.dim() in (3, 4):
                place = tuple(output.shape[2:]) if output.dim() == 4 else (output.shape[1],)
                if math.prod(place) > 1:
                    called.pop(place, None)
                    called[place] = name

        return hook

    with contextlib.ExitStack() as stack, evaluation_mode(classifier.module):
        for name, part in classifier.module.named_modules():
            if name and name.count(".") <= 1:
                stack.enter_context(part.register_forward_hook(note(name)))
        classifier.logits(images)
    if not called:
        raise ModelError("no block answers with a map whose attention could be distilled")
    return tuple(called.values())[-len(BETAS) :]


@contextlib.contextmanager
def _outputs(module: nn.Module, layers: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """What the layers answered last, by name."""
    held: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            held[name] = output

        return hook

    with contextlib.ExitStack() as stack:
        for name in layers:
            stack.enter_context(module.get_submodule(name).register_forward_hook(keep(name)))
        yield held
