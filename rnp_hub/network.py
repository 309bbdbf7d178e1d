"""A network together with what is needed to ask it about pictures."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rnp_hub.compute import Compute
from rnp_hub.errors import ModelError
from rnp_hub.preprocess import Preprocess

Transform = Callable[[Tensor], Tensor]

CLOSE_CALL = 0.05
"""Two best logits nearer than this share of the largest |logit| are asked again in float32."""


@dataclass(frozen=True)
class ImageSet:
    """Pictures and their labels.

    Attributes:
        images: (n, C, H, W), as stored: uint8, or whatever the transform takes.
        labels: (n,), int64, in the order of the model's logits.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> ImageSet:
        return ImageSet(self.images[index], self.labels[index])


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 in [0, 255] to float32 in [0, 1]; other types as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


class Normalise:
    """uint8 (n, C, H, W) to float32 as the network was trained, on whatever device they lie."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.mean = torch.tensor(preprocess.mean).view(1, -1, 1, 1)
        self.std = torch.tensor(preprocess.std).view(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        return (images.float() / 255 - self.mean.to(images.device)) / self.std.to(images.device)


@dataclass(frozen=True)
class Classifier:
    """A network, the way pictures enter it and the way logits leave it.

    Attributes:
        module: any `nn.Module`.
        transform: a batch of stored pictures (n, C, H, W) to what the module takes.
        compute: device and precision.
        output: which element of the module's output is the logits. `None` takes a tensor as it
            is, `.logits` or `["logits"]` where there is one, and the last element of a tuple.
    """

    module: nn.Module
    transform: Transform = to_unit_range
    compute: Compute = field(default_factory=Compute)
    output: str | int | None = None

    def copy(self) -> Classifier:
        """The same with a module of its own."""
        return self.with_module(copy.deepcopy(self.module))

    def with_module(self, module: nn.Module) -> Classifier:
        """The same around another module, placed on the device."""
        return replace(self, module=self.compute.place(module))

    def logits(self, images: Tensor) -> Tensor:
        """Logits (n, classes), float32 or wider, with gradients where they are enabled.

        Raises:
            ModelError: the output holds no two-dimensional tensor of logits.
        """
        inputs = self.transform(images.to(self.compute.device))
        if self.compute.bfloat16 and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with self.compute.autocast():
            output = self.module(inputs)
        logits = logits_of(output, self.output)
        return logits if logits.dtype == torch.float64 else logits.float()

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Predicted labels (n,), int64, on the CPU, in evaluation mode.

        Under bfloat16 the close calls are asked again in float32, so that the labels are those
        of float32 at a fraction of its time.

        Raises:
            ModelError: a logit is not finite.
        """
        with evaluation_mode(self.module):
            parts = [self._predict_batch(part) for part in self.compute.parts(images)]
        return torch.cat(parts).cpu() if parts else torch.empty(0, dtype=torch.int64)

    def _predict_batch(self, images: Tensor) -> Tensor:
        logits = self.logits(images)
        if not logits.isfinite().all():
            raise ModelError(
                "the network answers with logits that are not finite; its weights or its "
                "normalisation are broken, so nothing it says can be measured"
            )
        if self.compute.bfloat16 and len(logits) and logits.shape[1] > 1:
            self._ask_again(images, logits)
        return logits.argmax(1)

    def _ask_again(self, images: Tensor, logits: Tensor) -> None:
        """Put the logits of float32 where those of bfloat16 may name another label.

        The closest calls are asked first. How far they were off says how near is too near: two
        logits that are each off by `error` cannot change places over more than twice that.
        """
        exact = replace(self, compute=replace(self.compute, bfloat16=False))
        best = logits.topk(2, dim=1).values
        gap = best[:, 0] - best[:, 1]
        close = gap <= torch.maximum(CLOSE_CALL * logits.abs().amax(1), gap.min())
        answers = exact.logits(images[close.cpu()])
        error = (answers - logits[close]).abs().amax()
        logits[close] = answers
        too_near = ~close & (gap <= 2 * error)
        if too_near.any():
            logits[too_near] = exact.logits(images[too_near.cpu()])


def logits_of(output: Any, key: str | int | None = None) -> Tensor:
    """The logits (n, classes) within whatever a network returned; see `Classifier.output`."""
    found = _element(output, key)
    if not isinstance(found, Tensor) or found.dim() != 2:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(
            f"the network's output is no (n, classes) tensor of logits but {shape}; name the "
            "element that is with `output=`"
        )
    return found


def _element(output: Any, key: str | int | None) -> Any:
    if isinstance(output, Tensor):
        return output
    if key is None:
        key = "logits" if isinstance(output, Mapping) or hasattr(output, "logits") else -1
    if isinstance(key, str) and not isinstance(output, Mapping):
        return getattr(output, key, None)
    try:
        return output[key]
    except (KeyError, IndexError, TypeError):
        return None


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each submodule's own mode again afterwards."""
    with _modes_kept(module):
        module.eval()
        yield


@contextlib.contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Normalise by the batch as in training, but leave running statistics and dropout alone.

    A network that is being unlearned is ahead of its running averages, which would show an
    accuracy of the past.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    tracked = [norm.track_running_stats for norm in norms]
    with _modes_kept(module):
        module.eval()
        for norm in norms:
            norm.train()
            # Not by a momentum of 0: that counts batches, and 0 × infinity is NaN for good.
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm, tracks in zip(norms, tracked, strict=True):
                norm.track_running_stats = tracks


@contextlib.contextmanager
def _modes_kept(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """One epoch: indices (about size,) of a random permutation of `count`, the rest included.

    A rest of one joins the batch before it: BatchNorm cannot normalise one picture by itself.
    """
    parts = list(torch.randperm(count, generator=generator).split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    yield from parts


def augment(
    images: Tensor, generator: torch.Generator, *, crop: bool = True, flip: bool = True
) -> Tensor:
    """Random crop after padding by an eighth of the size, and random horizontal flip.

    The augmentation of Li et al. 2023 (padding 4 at 32 pixels), for a whole batch (n, C, H, W) at
    once; the padding is black in stored pictures.
    """
    count, _, height, width = images.shape
    if crop:
        pad = max(height, width) // 8
        padded = nn.functional.pad(images, (pad, pad, pad, pad))
        top, left = torch.randint(0, 2 * pad + 1, (2, count), generator=generator)
        rows = (top[:, None] + torch.arange(height))[:, None, :, None]
        columns = (left[:, None] + torch.arange(width))[:, None, None, :]
        channels = torch.arange(images.shape[1])[None, :, None, None]
        images = padded[torch.arange(count)[:, None, None, None], channels, rows, columns]
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images


def put(module: nn.Module, name: str, part: nn.Module) -> None:
    """Put `part` in the place of the submodule of that name."""
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, part)


def on_cpu(module: nn.Module) -> nn.Module:
    """A copy on the CPU, in evaluation mode and torch's usual memory layout."""
    # nn.Module.to with a memory format is missing from torch's own overloads.
    twin = copy.deepcopy(module).cpu().to(memory_format=torch.contiguous_format)
    return twin.eval()


def check_finite(module: nn.Module) -> None:
    """Refuse a network that holds NaN or infinity, naming the tensor.

    Raises:
        ModelError: a parameter or buffer is not finite.
    """
    named: Sequence[tuple[str, Tensor]] = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in named:
        if tensor.is_floating_point() and not tensor.isfinite().all():
            broken = int((~tensor.isfinite()).sum())
            raise ModelError(
                f"{broken} of the {tensor.numel()} values of `{name}` are NaN or infinite; "
                "the weights are damaged, get them again from their author"
            )
