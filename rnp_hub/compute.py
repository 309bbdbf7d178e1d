"""Where and in which precision the arithmetic is done.

One `Compute` is chosen at the start of a run and handed to every stage, so that a run is the same
from its first number to its last.
"""

from __future__ import annotations

import contextlib
import platform
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from rnp_hub.errors import ConfigError, reason

Precision = Literal["auto", "float32", "bfloat16"]

PIXELS = 256 * 96 * 96
"""Pixels per forward pass where no gradient is taken, at most."""


@dataclass(frozen=True)
class Compute:
    """A device and a precision.

    Attributes:
        device: a torch device such as `cpu` or `cuda`.
        bfloat16: convolutions and matrix products run under bfloat16 autocast. Weights, sums,
            losses and close calls between two classes stay in float32 (`Classifier.predict`).
        batch_size: pictures per forward pass where no gradient is taken, of small ones.
    """

    device: str = "cpu"
    bfloat16: bool = False
    batch_size: int = 256

    @staticmethod
    def choose(device: str = "auto", precision: Precision = "auto") -> Compute:
        """Pick the device, and bfloat16 where the hardware multiplies it natively.

        The choice is read off the hardware, never timed, so that a seed means the same twice.

        Raises:
            ConfigError: the device is unknown to torch or not there.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(
                f"device {device!r} cannot be used here ({reason(error)}); use --device cpu"
            ) from error
        if precision == "auto":
            return Compute(device, _multiplies_bfloat16(device))
        return Compute(device, precision == "bfloat16")

    @property
    def precision(self) -> str:
        return "bfloat16" if self.bfloat16 else "float32"

    def autocast(self) -> torch.autocast:
        """Context in which the forward pass is taken."""
        return torch.autocast(
            torch.device(self.device).type, dtype=torch.bfloat16, enabled=self.bfloat16
        )

    def place(self, module: nn.Module) -> nn.Module:
        """Move `module` to the device, in the memory layout its convolutions are fastest in."""
        layout = torch.channels_last if self.bfloat16 else torch.contiguous_format
        # nn.Module.to with a memory format is missing from torch's own overloads.
        return module.to(self.device, memory_format=layout)  # type: ignore[call-overload, no-any-return]

    def parts(self, images: Tensor) -> tuple[Tensor, ...]:
        """Pictures (n, C, H, W) in as many as go through at once without a gradient.

        Fewer of large ones: what a network keeps in between grows with them, and 50 pictures of
        224 × 224 keep a processor as busy as 250 do.
        """
        pixels = images.shape[-2:].numel()
        count = max(1, min(self.batch_size, PIXELS // max(pixels, 1)))
        return tuple(torch.split(images, count))

    def describe(self) -> str:
        """`cpu (Intel Xeon, 2 threads)`, the name of the GPU, or else that of the device."""
        kind = torch.device(self.device).type
        if kind == "cuda":
            return torch.cuda.get_device_name(self.device)
        if kind != "cpu":
            return self.device
        name = torch.cpu.get_capabilities().get("cpu_name", platform.machine())
        return f"cpu ({name}, {torch.get_num_threads()} threads)"


def _multiplies_bfloat16(device: str) -> bool:
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("amx_bf16") or abilities.get("avx512_bf16"))


def seeded(seed: int) -> torch.Generator:
    """A generator of its own for one stage: stages do not shift each other's random numbers."""
    return torch.Generator().manual_seed(seed)


@contextlib.contextmanager
def seeded_globally(seed: int) -> Iterator[None]:
    """Seed torch's global generator (dropout reads it) and put its state back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


_before_mark = 0.0
"""Largest resident memory before the mark was set last, in MiB."""


def mark_memory() -> None:
    """From here on `peak_since_mark_mib` counts, where the system lets it (Linux)."""
    global _before_mark
    _before_mark = peak_memory_mib()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_since_mark_mib() -> float:
    """Largest resident memory of this process since the mark, or so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if platform.system() == "Darwin" else 2**10)


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    return max(_before_mark, peak_since_mark_mib())
