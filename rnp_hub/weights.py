"""Weight files: which of a repository's files they are, and how they are read without running code.

safetensors where there is one. A pickle only where there is none, only with torch's unpickler that
knows tensors and nothing else, and after picklescan had a look at it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from rnp_hub.errors import ModelError, reason
from rnp_hub.limits import MAX_WEIGHT_BYTES

WEIGHTS = "model.safetensors"
"""The one file that is written."""

ORDER = (
    WEIGHTS,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.pth",
    "model.pth",
)
"""Where weights are looked for, the best first: that of timm, with the shards of transformers."""

FOREIGN = {
    ".onnx": "ONNX",
    ".gguf": "GGUF",
    ".ggml": "GGML",
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".tflite": "TFLite",
    ".mlpackage": "Core ML",
    ".ot": "Rust",
}
"""Endings of weights that are made for another library."""

OTHER_NAMES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt"}
"""Endings of weights that might be read, were their names known."""

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net")
"""Where in a training checkpoint the tensors lie, in the order in which timm looks."""

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""

Fetch = Callable[[str], Path]
"""Gives the path of a file of the repository."""


@dataclass(frozen=True)
class WeightFiles:
    """The weights of a repository, not yet read.

    Attributes:
        name: the file, or the index of the shards.
        format: `safetensors` or `pickle`.
        shards: every file that holds tensors, in order of their names.
    """

    name: str
    format: Literal["safetensors", "pickle"]
    shards: tuple[str, ...]


@dataclass(frozen=True)
class Weights:
    """Tensors that were read.

    Attributes:
        tensors: by name.
        sha256: of the file; of shards that of the lines `sha256sum` prints of them.
        notes: what a person should know about how they were read.
    """

    tensors: Mapping[str, Tensor]
    sha256: str
    notes: tuple[str, ...] = ()


def choose(
    files: Collection[str], fetch: Fetch, shown: str, below: Collection[str] = ()
) -> WeightFiles:
    """Find the weights among the files of a folder; an index is read, no tensor.

    Args:
        files: names within the folder.
        fetch: gives the path of one.
        shown: the folder or repository, for messages.
        below: paths of files in folders below, for messages.

    Raises:
        ModelError: there are none that could be read, or an index names files that are not there.
    """
    name = next((name for name in ORDER if name in files), None)
    if name is None:
        raise ModelError(_none([*sorted(files), *sorted(below)], shown))
    kind: Literal["safetensors", "pickle"] = "safetensors" if "safetensors" in name else "pickle"
    if not name.endswith(".index.json"):
        return WeightFiles(name, kind, (name,))
    return WeightFiles(name, kind, _shards(fetch(name), files, f"{name} of {shown}"))


def _none(files: Sequence[str], shown: str) -> str:
    unknown = next((file for file in files if Path(file).suffix.lower() in OTHER_NAMES), None)
    if unknown is not None:
        return (
            f"{shown} holds no {WEIGHTS}, only {unknown}, which is under no name that timm or "
            "transformers would look for; save the weights as safetensors, or ask its author to"
        )
    for file in files:
        library = FOREIGN.get(Path(file).suffix.lower())
        if library:
            return (
                f"{shown} holds no {WEIGHTS}, only weights for {library} ({file}), which cannot be "
                "pruned here; give the PyTorch model they were made from"
            )
    return f"{shown} holds no {WEIGHTS}; save the weights as safetensors, or ask its author to"


def _shards(index: Path, files: Collection[str], shown: str) -> tuple[str, ...]:
    try:
        named = {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{shown} is no index of weight files ({reason(error)}); get it again"
        ) from error
    # Only files that lie beside it: an index must not lead out of the folder.
    if missing := sorted(named - set(files)):
        raise ModelError(
            f"{shown} names {missing[0]}, which is not there; the model is incomplete, get it again"
        )
    return tuple(sorted(named))


def read(files: WeightFiles, fetch: Fetch) -> Weights:
    """Read every tensor into memory, running nothing.

    Raises:
        ModelError: a file is damaged, wants more than tensors, or two hold the same tensor.
    """
    paths = {name: fetch(name) for name in files.shards}
    check_size(sum(path.stat().st_size for path in paths.values()), files.name)
    tensors: dict[str, Tensor] = {}
    notes: list[str] = []
    for path in paths.values():
        if files.format == "safetensors":
            found: Mapping[str, Tensor] = _read_safetensors(path)
        else:
            found, said = read_pickle(path)
            notes += said
        if twice := sorted(tensors.keys() & found.keys()):
            raise ModelError(f"two files hold `{twice[0]}`, {path.name} is one; get them again")
        tensors |= found
    return Weights(tensors, _sha256(paths), tuple(notes))


def check_size(size: int, shown: str) -> None:
    """Refuse weights of so many bytes that nothing which classifies pictures needs.

    Raises:
        ModelError: they are larger than `MAX_WEIGHT_BYTES`.
    """
    if size > MAX_WEIGHT_BYTES:
        raise ModelError(
            f"the weights in {shown} are {size / 2**30:.0f} GiB large, and at most "
            f"{MAX_WEIGHT_BYTES / 2**30:.0f} GiB are read; give an image classifier"
        )


def _sha256(paths: Mapping[str, Path]) -> str:
    digests = {name: sha256(path) for name, path in paths.items()}
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def sha256(file: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} is no readable safetensors file ({reason(error)}); it may be cut short, get "
            "it again"
        ) from error


# --- pickles ----------------------------------------------------------------------------------


def read_pickle(file: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a pickle, and what to say about it.

    Raises:
        ModelError: it wants to import something that no tensor needs, holds something else, or
            is damaged.
    """
    import torch

    _check_unpacked(file)
    scanned = _scan(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
        raise ModelError(_refusal(file, error)) from error
    tensors, unwrapped = _unwrapped(content, file.name)
    note = (
        f"{file.name} is a pickle, read with torch's weights-only unpickler since there is no "
        "safetensors file; ask its author for one"
    )
    return tensors, (note, *scanned, *unwrapped)


def _check_unpacked(file: Path) -> None:
    """torch stores what it saves as it is; what was pressed may unpack to any size."""
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # an older pickle, or a damaged one, which torch finds out
    if unpacked > 2 * file.stat().st_size:
        raise ModelError(
            f"{file.name} would unpack to {unpacked:,} bytes, many times its size, which torch "
            "never writes; get it again or ask its author for safetensors"
        )


def _scan(file: Path) -> tuple[str, ...]:
    """A second look by picklescan, which lists what a pickle would import, running nothing.

    Raises:
        ModelError: it knows one of them as dangerous.
    """
    from picklescan.scanner import SafetyLevel, scan_file_path

    logger = logging.getLogger("picklescan")
    before, logger.disabled = logger.disabled, True  # what it finds is said here, once
    try:
        found = scan_file_path(str(file))
    except Exception as error:  # a file that breaks the scanner is still only read as weights
        return (f"picklescan could not read {file.name} ({reason(error)})",)
    finally:
        logger.disabled = before
    named: dict[SafetyLevel, list[str]] = {level: [] for level in SafetyLevel}
    for each in found.globals:
        named[each.safety].append(f"{each.module}.{each.name}")
    if dangerous := sorted(named[SafetyLevel.Dangerous]):
        raise ModelError(
            f"{file.name} is a pickle that would run `{dangerous[0]}` when it is opened, which "
            "picklescan knows as dangerous; nothing was run, do not open it elsewhere either"
        )
    suspicious = sorted(named[SafetyLevel.Suspicious])
    notes = [f"picklescan finds unusual imports in {file.name}: {', '.join(suspicious)}"]
    failed = [f"picklescan could not read all of {file.name}"]
    return (*(notes if suspicious else ()), *(failed if found.scan_err else ()))


def _refusal(file: Path, error: Exception) -> str:
    wanted = re.search(r"GLOBAL ([\w.]+)|unsupported class ([\w.]+)", str(error))
    if wanted is None:
        return (
            f"{file.name} is no readable pickle of tensors ({reason(error)}); it may be damaged, "
            "get it again or ask its author for safetensors"
        )
    return (
        f"{file.name} is a pickle that wants `{wanted[1] or wanted[2]}`, which is code and no "
        "tensor; nothing of it was run, ask its author for safetensors"
    )


def _unwrapped(content: Any, shown: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict within a checkpoint, with plain names."""
    notes = []
    wrapper = _wrapper(content)
    if wrapper is not None:
        content = content[wrapper]
        notes.append(f"the weights lie under {wrapper!r} in {shown}")
    if not isinstance(content, Mapping) or not content:
        raise ModelError(
            f"{shown} holds a {type(content).__name__} where a state dict of tensors is wanted; "
            "ask its author for safetensors"
        )
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{shown} holds a {type(value).__name__} under {name!r} where a tensor is wanted; "
                "ask its author for safetensors"
            )
    tensors, prefixes = _without_prefixes({str(name): value for name, value in content.items()})
    if prefixes:
        notes.append(f"the names in {shown} begin with {prefixes!r}, which was left out")
    return tensors, tuple(notes)


def _wrapper(content: Any) -> str | None:
    if not isinstance(content, Mapping):
        return None
    return next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)


def _without_prefixes(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    removed = ""
    while prefix := _common(tensors, PREFIXES):
        removed += prefix
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors, removed


def _common(names: Collection[str], prefixes: Sequence[str]) -> str | None:
    return next((each for each in prefixes if all(n.startswith(each) for n in names)), None)
