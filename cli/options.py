"""The options that several commands share, and what they come to."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rnp_hub.pipeline import Job, PushJob


class Recipe(StrEnum):
    """See `rnp_hub.SanitizeConfig.of`."""

    default = "default"
    reference = "reference"
    paper = "paper"


class Optimize(StrEnum):
    """See `rnp_hub.slim.slim`."""

    size = "size"
    latency = "latency"


class Precision(StrEnum):
    """See `rnp_hub.compute.Compute.choose`."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


Model = Annotated[
    str, typer.Argument(help="demo, a model folder, or a Hub id org/name[@revision].")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the model.")]
DataOption = Annotated[
    str,
    typer.Option(
        help="digits, cifar10, imagenet-1k, …, a Hub data set id[@revision], a folder of parquet "
        "files or pictures, or one parquet file."
    ),
]
N = Annotated[int, typer.Option(help="Pictures in the clean slice.")]
EvalN = Annotated[int, typer.Option(help="Pictures in the evaluation set, at most.")]
Seed = Annotated[int, typer.Option(help="Of every draw and update.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column of the pictures.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the labels.")]
DataSubset = Annotated[
    str | None, typer.Option("--data-config", help="Which of several data sets in a repository.")
]
PoisonedOption = Annotated[
    list[str] | None,
    typer.Option(help="Pictures that carry a trigger, with true labels; may be repeated."),
]
Trigger = Annotated[
    list[str] | None,
    typer.Option(help="badnets, blend, sig (NAME:key=value,…) or a PNG; may be repeated."),
]
TargetOption = Annotated[str | None, typer.Option(help="Label the triggers ask for.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, … or auto.")]
PrecisionOption = Annotated[Precision, typer.Option(help="Arithmetic; auto asks the hardware.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout and nothing else.")]
Public = Annotated[
    bool, typer.Option("--public", help="A new repository is seen by all; private without it.")
]
CreatePr = Annotated[
    bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")
]
Flip = Annotated[
    bool | None,
    typer.Option(
        "--flip/--no-flip",
        help="A mirrored picture keeps its label; known for the named data sets.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run made.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit code 1 too where something is left, or undecided.")
]
NO = 1
"""Exit code where the answer is no."""
Force = Annotated[bool, typer.Option(help="Replace what an earlier run made.")]


def make_push_job(
    repo_id: str | None, *, public: bool, create_pr: bool, force: bool
) -> PushJob | None:
    from rnp_hub.errors import ConfigError
    from rnp_hub.pipeline import PushJob
    from rnp_hub.push import PushConfig

    if repo_id is not None:
        return PushJob(repo_id, PushConfig(public, create_pr, force))
    if public or create_pr:
        raise ConfigError("--public and --create-pr speak of a push; give --push-to you/name")
    return None


def make_job(
    model: str,
    revision: str | None,
    data: str,
    n: int,
    eval_n: int,
    seed: int,
    image_column: str | None,
    label_column: str | None,
    data_config: str | None,
    poisoned: list[str] | None,
    trigger: list[str] | None,
    target: str | None,
    device: str,
    precision: Precision,
) -> Job:
    from rnp_hub.data import DataConfig
    from rnp_hub.pipeline import Attacks, Job

    return Job(
        model=model,
        revision=revision,
        data=DataConfig(data, n, eval_n, seed, image_column, label_column, data_config),
        attacks=Attacks(tuple(poisoned or ()), tuple(trigger or ()), target),
        device=device,
        precision=precision.value,
    )
