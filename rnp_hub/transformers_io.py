"""Everything that speaks to transformers: its classifiers and its image processors.

transformers is an extra and takes seconds to import, so it is imported inside the functions, and
code that comes with a repository is never run.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rnp_hub.errors import ModelError, reason
from rnp_hub.limits import MAX_CLASSES, MAX_WORDS, Allowance, check_arguments, within
from rnp_hub.preprocess import INTERPOLATIONS, Preprocess

PROCESSOR = "preprocessor_config.json"
CODE_KEYS = {"auto_map", "custom_pipelines", "_attn_implementation", "attn_implementation"}
"""Where a configuration may name code to fetch: an attention may be a kernel on the Hub."""

PROOF_SIZES = ((5, 4), (4, 7), (6, 6))
"""Quarters of the input size, (width, height), of the pictures that two geometries are held on."""

MAX_PROCESSOR_DIFF = 1e-3
"""Largest |Δ| of a normalised pixel; one step of 255 is more than ten times as much."""


def config_class(config: Mapping[str, Any]) -> type[Any]:
    """The configuration class of a `config.json`.

    Raises:
        ModelError: transformers is not installed, or does not know the `model_type`.
    """
    kind = config.get("model_type")
    known = _transformers().CONFIG_MAPPING
    if kind in known:
        found: type[Any] = known[kind]
        return found
    if "auto_map" in config:
        raise ModelError(
            f"config.json asks for code of its own (auto_map) for its model_type {kind!r}, and "
            "code from a repository is never run; give a model of a type that transformers has"
        )
    raise ModelError(
        f"config.json has the model_type {kind!r}, which transformers {_version()} does not know; "
        "update it, or give an image classifier of timm or transformers"
    )


def classifier_class(config: Mapping[str, Any]) -> type[Any]:
    """The class of the network: the one under `architectures`, where it classifies pictures.

    Raises:
        ModelError: as for `config_class`, or the network is no image classifier.
    """
    stated = [str(name) for name in config.get("architectures") or ()]
    kind = config.get("model_type")
    if stated and not any("ForImageClassification" in name for name in stated):
        raise ModelError(
            f"config.json says {stated[0]} ({kind}), which is no image classifier; give a model "
            "whose architecture is …ForImageClassification, or one of timm"
        )
    found = _transformers().MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(config_class(config), None)
    classes: tuple[type[Any], ...] = found if isinstance(found, tuple) else (found,)
    for one in classes:
        if one is not None and (not stated or one.__name__ in stated):
            return one
    what = stated[0] if stated else f"the model_type {kind!r}"
    raise ModelError(f"transformers {_version()} has no image classifier for {what}; update it")


def labels_of(config: Mapping[str, Any]) -> int:
    """Number of logits.

    Raises:
        ModelError: as for `classifier_class`, or there are none.
    """
    count = int(_configured(config).num_labels)
    if count < 1:
        raise ModelError("config.json says 0 labels; the network gives features, not classes")
    return count


def build(config: Mapping[str, Any], allowance: Allowance | None = None) -> nn.Module:
    """The network, random weights, float32.

    Raises:
        ModelError: the configuration cannot be followed, or it takes more than it may.
    """
    cls = classifier_class(config)
    try:
        with _quiet(), within(allowance):
            module: nn.Module = cls(_configured(config)).float()
    except Exception as error:  # whatever the code of the network raises
        raise ModelError(_cannot_build(config, error)) from error
    return module


def fill(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    shown: str,
    allowance: Allowance | None = None,
) -> nn.Module:
    """The network with weights as they stand in a file.

    transformers gives some tensors other names in memory than in files, so it is asked to load
    them itself, and everything it would pass over with a warning is refused.

    Raises:
        ModelError: a tensor is missing, left over or of another shape, and the first is named; or
            the network takes more than it may.
    """
    cls = classifier_class(config)
    try:
        with _quiet(), within(allowance):
            module, said = cls.from_pretrained(
                None,
                config=_configured(config),
                state_dict=dict(tensors),
                output_loading_info=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # they are told then, not raised in a table
            )
    except Exception as error:  # whatever the code of the network raises
        raise ModelError(_cannot_build(config, error)) from error
    problems = [
        *(f"`{name}` is missing" for name in sorted(said["missing_keys"])),
        *(f"`{name}` is left over" for name in sorted(said["unexpected_keys"])),
        *(
            f"`{name}` is {list(stored)} where {list(wanted)} is wanted"
            for name, stored, wanted in sorted(said["mismatched_keys"], key=lambda each: each[0])
        ),
        *(reason(ValueError(message)) for message in said["error_msgs"]),
    ]
    if problems:
        raise ModelError(
            f"the weights in {shown} do not fit {cls.__name__}: {problems[0]}"
            f"{f', and {len(problems) - 1} more' if len(problems) > 1 else ''}; correct config.json"
        )
    loaded: nn.Module = module.float().eval()
    return loaded


def save(module: nn.Module, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` as `save_pretrained` does, in one file."""
    with _quiet():
        module.save_pretrained(folder, max_shard_size="1000GB")  # type: ignore[operator]


def load_plainly(folder: Path) -> nn.Module:
    """What `AutoModelForImageClassification` makes of a folder, in evaluation mode.

    Raises:
        ModelError: it makes nothing of it.
    """
    auto = _transformers().AutoModelForImageClassification
    try:
        with _quiet():
            module: nn.Module = auto.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32
            )
    except Exception as error:  # whatever the code of the network raises
        raise ModelError(f"transformers cannot load {folder} ({reason(error)})") from error
    return module.eval()


def without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that names no code of a repository."""
    return {key: value for key, value in config.items() if key not in CODE_KEYS}


def _configured(config: Mapping[str, Any]) -> Any:
    cls = config_class(config)
    _check_numbers(config)
    if config.get("quantization_config"):
        raise ModelError(
            "config.json has a quantization_config, and quantised weights cannot be pruned here; "
            "give the model they were made from"
        )
    try:
        with _quiet():
            made = cls.from_dict(without_code(config))
    except Exception as error:  # each configuration checks its fields in its own way
        raise ModelError(_cannot_build(config, error)) from error
    made.architectures = [classifier_class(config).__name__]
    return made


def _check_numbers(config: Mapping[str, Any]) -> None:
    """Before a configuration of so many labels is made, which alone could fill the memory."""
    labels = ("id2label", "label2id")
    rest = {key: value for key, value in config.items() if key not in labels}
    check_arguments(rest, "config.json", MAX_WORDS)
    stated = [config.get("num_labels"), *(len(config.get(key) or ()) for key in labels)]
    if any(isinstance(count, int) and count > MAX_CLASSES for count in stated):
        raise ModelError(
            f"config.json asks for more than {MAX_CLASSES:,} labels; correct their number there"
        )


def _cannot_build(config: Mapping[str, Any], error: BaseException) -> str:
    return (
        f"transformers {_version()} cannot build the {config.get('model_type')} of config.json "
        f"({reason(error)}); correct it"
    )


# --- image processors -------------------------------------------------------------------------


def preprocess_of(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Preprocess:
    """What an image processor does, in our terms: held against the processor itself.

    It is the processor that computes with Pillow. The one that computes with torchvision, which
    transformers takes where it can, resizes to another rounding (a step of 255, a few where a
    picture grows), and pads a picture that is smaller than its crop one pixel elsewhere.

    Args:
        config: the model's `config.json`.
        processor: its `preprocessor_config.json`.

    Raises:
        ModelError: transformers cannot read it, or it does what cannot be said here.
    """
    channels = config.get("num_channels", 3)
    if channels != 3:
        raise ModelError(
            f"config.json says num_channels {channels!r}; of transformers only networks for "
            "colour (3) are read"
        )
    theirs = _processor(config, processor)
    try:
        ours = _expressed(theirs)
        apart = _difference(ours, theirs)
    except ModelError:
        raise
    except Exception as error:  # each processor has fields and code of its own
        raise ModelError(_inexpressible(theirs, reason(error))) from error
    if not apart <= MAX_PROCESSOR_DIFF:
        raise ModelError(_inexpressible(theirs, f"pixels come out {apart:.2g} apart"))
    return ours


def _processor(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Any:
    """The image processor, computing with Pillow where it can."""
    auto = _transformers().AutoImageProcessor
    name = processor.get("image_processor_type") or processor.get("feature_extractor_type")
    if "auto_map" in processor and not hasattr(_transformers(), str(name)):
        raise ModelError(
            f"{PROCESSOR} asks for code of its own (auto_map), and code from a repository is never "
            "run; give a model with an image processor that transformers has"
        )
    with tempfile.TemporaryDirectory() as folder, _quiet():
        (Path(folder) / PROCESSOR).write_text(json.dumps(without_code(processor)))
        (Path(folder) / "config.json").write_text(json.dumps(without_code(config)))
        try:
            return auto.from_pretrained(folder, backend="pil", trust_remote_code=False)
        except Exception as error:  # each processor checks its fields in its own way
            raise ModelError(
                f"transformers {_version()} cannot read {PROCESSOR} ({reason(error)}); correct it"
            ) from error


def _inexpressible(processor: Any, why: str) -> str:
    name = type(processor).__name__.removesuffix("Pil")
    return (
        f"{PROCESSOR} asks for a {name} that cannot be followed exactly ({why}); give a model "
        "whose pictures are resized, cropped to one size and normalised"
    )


def _expressed(processor: Any) -> Preprocess:
    if not processor.do_resize:
        raise ValueError("it does not resize")
    height, width, crop_pct, mode = _sizes(processor)
    mean, std = _normalisation(processor)
    return Preprocess(
        input_size=(3, height, width),
        mean=mean,
        std=std,
        interpolation=_interpolation(processor.resample),
        crop_pct=crop_pct,
        crop_mode=mode,
        centre="floor",
    )


def _interpolation(resample: Any) -> str:
    number = int(getattr(resample, "value", resample))
    return next(name for name, known in INTERPOLATIONS.items() if known == number)


def _sizes(processor: Any) -> tuple[int, int, float, str]:
    """(height, width, share that the crop keeps, crop mode)."""
    size = dict(processor.size)
    short = size.get("shortest_edge")
    crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", None) else None
    own_share = getattr(processor, "crop_pct", None)
    if short and own_share is not None and crop is None:
        # ConvNeXT: a crop for small pictures, none from 384 pixels on.
        if short >= 384:
            return short, short, 1.0, "squash"
        return short, short, _share(short, int(short / own_share)), "center"
    if size.get("longest_edge") or (crop is None and short):
        raise ValueError("pictures keep a shape of their own")
    if crop is None:
        return size["height"], size["width"], 1.0, "squash"
    height, width = crop["height"], crop["width"]
    if short:
        if height != width:
            raise ValueError(f"its crop of {height} × {width} is no square")
        return height, width, _share(height, short), "center"
    share = _share(height, size["height"])
    if math.floor(width / share) != size["width"]:
        raise ValueError("its crop has another shape than the resized picture")
    return height, width, share, "squash"


def _share(kept: int, whole: int) -> float:
    """`crop_pct` such that `floor(kept / crop_pct)` is `whole`, which rounding may prevent."""
    share = kept / whole
    return share if math.floor(kept / share) == whole else math.nextafter(share, 0.0)


def _normalisation(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels in [0, 1] that do all it does with numbers.

    It takes x in [0, 255] to ((x · scale − offset) − mean) / std, EfficientNet once more over std.
    """
    scale = float(processor.rescale_factor) if processor.do_rescale else 1.0
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    stated_mean, stated_std = (_three(processor.image_mean), _three(processor.image_std))
    mean, std = _three(0.0), _three(1.0)
    if processor.do_normalize:
        mean, std = stated_mean, stated_std
    if getattr(processor, "include_top", False):
        std = tuple(one * other for one, other in zip(std, stated_std, strict=True))
    whole = 255 * scale
    return (
        tuple((value + offset) / whole for value in mean),
        tuple(value / whole for value in std),
    )


def _three(value: Any) -> tuple[float, ...]:
    return (float(value),) * 3 if isinstance(value, int | float) else tuple(map(float, value))


def _difference(ours: Preprocess, theirs: Any) -> float:
    """Largest |Δ| of normalised pixels over pictures of noise, where no shift stays hidden."""
    _, height, width = ours.input_size
    random = np.random.default_rng(0)
    apart = 0.0
    for across, down in PROOF_SIZES:
        shape = (height * down // 4 + 1, width * across // 4 + 2, 3)
        picture = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
        expected = np.asarray(theirs(images=picture, return_tensors="np")["pixel_values"])[0]
        found = ours.normalise(ours.geometry(picture)[None])[0]
        if expected.shape != found.shape:
            raise ValueError(f"pictures come out as {expected.shape}")
        apart = max(apart, float(np.abs(expected - found).max()))
    return apart


# --- transformers itself ----------------------------------------------------------------------


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ModelError(
            "this is a model of transformers, which is not installed; "
            "`pip install 'rnp-hub[transformers]'`"
        ) from error
    return transformers


def _version() -> str:
    return str(_transformers().__version__)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither its log nor its progress bars; what matters is returned or raised.

    Its switch for bars turns those of huggingface_hub too, which may have been off already.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars

    logging = _transformers().utils.logging
    hidden = are_progress_bars_disabled()
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        if hidden:
            disable_progress_bars()
