"""The commands. Each parses, calls the library once and prints; nothing heavy is imported here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rnp_hub.cli import gate
from rnp_hub.cli.bench import bench
from rnp_hub.cli.errors import OneSentenceGroup
from rnp_hub.cli.options import (
    NO,
    CreatePr,
    DataOption,
    DataSubset,
    Device,
    EvalN,
    Flip,
    Force,
    ImageColumn,
    Json,
    LabelColumn,
    Model,
    N,
    Optimize,
    Overwrite,
    PoisonedOption,
    Precision,
    PrecisionOption,
    Public,
    Recipe,
    Revision,
    Seed,
    Strict,
    TargetOption,
    Trigger,
    make_job,
    make_push_job,
)

if TYPE_CHECKING:
    from rnp_hub.report import VerdictRecord

app = typer.Typer(
    cls=OneSentenceGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


app.add_typer(bench, name="bench")


def _version(asked: bool) -> None:
    if asked:
        from rnp_hub import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find and cut the filters that carry a backdoor in an image classifier.

    Exit codes: 0 done, 1 the answer is no, 2 the tool failed.
    """


@app.command()
def sanitize(
    model: Model,
    data: DataOption = "digits",
    n: N = 500,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; ./NAME-rnp if not given.")
    ] = None,
    recipe: Annotated[Recipe, typer.Option(help="Settings of the method.")] = Recipe.default,
    max_ca_drop: Annotated[
        float, typer.Option(help="Clean accuracy on the slice that may be lost, in [0, 1].")
    ] = 0.02,
    threshold: Annotated[
        float | None, typer.Option(help="Silence every mask up to this instead, in [0, 1].")
    ] = None,
    soften: Annotated[
        bool, typer.Option(help="Give filters that stay, and kernels, masks besides.")
    ] = True,
    fine_tune: Annotated[
        int,
        typer.Option(help="Epochs of fine-tuning on the slice after pruning; 0 for none.", min=0),
    ] = 0,
    bn_stats: Annotated[
        bool, typer.Option(help="Re-estimate BatchNorm statistics on the slice after pruning.")
    ] = False,
    optimize: Annotated[
        Optimize,
        typer.Option(help="size: remove every silenced filter; latency: where that is faster."),
    ] = Optimize.size,
    latency: Annotated[
        bool, typer.Option(help="Measure how fast the networks are, before and after.")
    ] = True,
    poisoned: PoisonedOption = None,
    trigger: Trigger = None,
    target: TargetOption = None,
    eval_n: EvalN = 10_000,
    seed: Seed = 0,
    revision: Revision = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    data_config: DataSubset = None,
    device: Device = "auto",
    precision: PrecisionOption = Precision.auto,
    flip: Flip = None,
    overwrite: Overwrite = False,
    force: Annotated[
        bool,
        typer.Option(
            help="--overwrite, and prune where no backdoor was found too; with --push-to, where a "
            "person's README is in the way, open a pull request."
        ),
    ] = False,
    strict: Strict = False,
    push_to: Annotated[
        str | None,
        typer.Option(help="Repository to push the folder to, you/name; made if there is none."),
    ] = None,
    public: Public = False,
    create_pr: CreatePr = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be pulled and how long it may take.")
    ] = False,
    json: Json = False,
) -> None:
    """Pull a model, cut the filters that carry a backdoor, prove it, and write a folder to ship.

    Example: rnp-hub sanitize org/model --data cifar10 --n 500 --push-to me/model-rnp
    """
    from rnp_hub.cli import terminal
    from rnp_hub.pipeline import SanitizeJob, sanitize_model
    from rnp_hub.plan import plan

    asked = SanitizeJob(
        job=make_job(
            model, revision, data, n, eval_n, seed, image_column, label_column, data_config,
            poisoned, trigger, target, device, precision,
        ),
        out=out,
        recipe=recipe.value,
        max_ca_drop=max_ca_drop,
        threshold=threshold,
        overwrite=overwrite or force,
        force=force,
        soften=soften,
        fine_tune=fine_tune,
        bn_stats=bn_stats,
        flip=flip,
        push=make_push_job(push_to, public=public, create_pr=create_pr, force=force),
        optimize=optimize.value,
        latency=latency,
    )  # fmt: skip
    if dry_run:
        terminal.print_plan(plan(asked), as_json=json)
        return
    with terminal.progress_bars() as progress:
        report, pushed = sanitize_model(asked, progress, terminal.say)
    terminal.print_report(report, str(asked.folder), pushed, as_json=json)
    if strict and _is_unsettled(report.verdict):
        raise typer.Exit(NO)


@app.command()
def scan(
    model: Model,
    data: DataOption = "digits",
    n: N = 500,
    poisoned: PoisonedOption = None,
    trigger: Trigger = None,
    target: TargetOption = None,
    eval_n: EvalN = 10_000,
    seed: Seed = 0,
    revision: Revision = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    data_config: DataSubset = None,
    device: Device = "auto",
    precision: PrecisionOption = Precision.auto,
    flip: Flip = None,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Say whether a model carries a backdoor, and for which label; nothing is written.

    Exit code 1 where it does; with --strict also where the scan comes to no verdict.

    Example: rnp-hub scan org/model --data cifar10
    """
    from rnp_hub.cli import terminal
    from rnp_hub.pipeline import scan_model

    job = make_job(
        model, revision, data, n, eval_n, seed, image_column, label_column, data_config,
        poisoned, trigger, target, device, precision,
    )  # fmt: skip
    with terminal.progress_bars() as progress:
        report = scan_model(job, progress, terminal.say, flip=flip)
    terminal.print_scan(report, as_json=json)
    if report.verdict.backdoored or (strict and _is_unsettled(report.verdict)):
        raise typer.Exit(NO)


def _is_unsettled(verdict: VerdictRecord) -> bool:
    """Something of a backdoor is left, or there is no verdict."""
    return bool(verdict.residual) or verdict.backdoored is None


@app.command()
def evaluate(
    model: Model,
    data: DataOption = "digits",
    n: Annotated[int, typer.Option(help="Pictures of the clean slice, which are left out.")] = 500,
    poisoned: PoisonedOption = None,
    trigger: Trigger = None,
    target: TargetOption = None,
    eval_n: EvalN = 10_000,
    seed: Seed = 0,
    revision: Revision = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    data_config: DataSubset = None,
    device: Device = "auto",
    precision: PrecisionOption = Precision.auto,
    json: Json = False,
) -> None:
    """Measure clean accuracy, and the attack success rate of known triggers.

    With the same --data, --n and --seed the pictures are those that sanitize measures on.

    Example: rnp-hub evaluate ./out --data cifar10 --trigger badnets --target 0
    """
    from rnp_hub.cli import terminal
    from rnp_hub.pipeline import evaluate_model

    job = make_job(
        model, revision, data, n, eval_n, seed, image_column, label_column, data_config,
        poisoned, trigger, target, device, precision,
    )  # fmt: skip
    with terminal.progress_bars() as progress:
        scores = evaluate_model(job, progress, terminal.say)
    terminal.print_scores(scores, as_json=json)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A folder that sanitize made, or any model.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; one in MODEL/onnx/ if not given.")
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="In half precision.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="In 8 bits, their ranges from clean pictures.")
    ] = False,
    with_preprocessing: Annotated[
        bool,
        typer.Option(
            "--with-preprocessing",
            help="Resize, crop and normalise in the graph: uint8 (n, height, width, 3) in.",
        ),
    ] = False,
    min_agreement: Annotated[
        float,
        typer.Option(help="Share of pictures that must keep their label, in [0, 1]."),
    ] = 0.99,
    data: Annotated[
        str | None,
        typer.Option(help="Pictures to compare on; those of the folder's report if not given."),
    ] = None,
    n: Annotated[int, typer.Option(help="Clean pictures to calibrate on.")] = 500,
    seed: Seed = 0,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    data_config: DataSubset = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Export a model to one ONNX file and compare it with torch in onnxruntime.

    Example: rnp-hub export ./out --int8 --with-preprocessing
    """
    from rnp_hub.cli import terminal
    from rnp_hub.data import DataConfig
    from rnp_hub.exporting import PICTURES, ExportJob, export_model
    from rnp_hub.onnx_variants import VariantConfig

    variant = VariantConfig.of(
        fp16=fp16, int8=int8, preprocessing=with_preprocessing, min_agreement=min_agreement
    )
    pictures = None
    if data is not None:
        pictures = DataConfig(data, n, PICTURES, seed, image_column, label_column, data_config)
    file, record = export_model(ExportJob(model, out, variant, pictures, force))
    terminal.print_export(file, record, as_json=json)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A folder that sanitize made.")],
    repo: Annotated[str, typer.Argument(help="Repository, you/name; made if there is none.")],
    public: Public = False,
    create_pr: CreatePr = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Where a person's README or weights are in the way, open a pull request.",
        ),
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; main if not given.")] = None,
    message: Annotated[
        str | None, typer.Option(help="Title of the commit; what was done if not given.")
    ] = None,
    tries: Annotated[int, typer.Option(min=1, help="Of one request that fails for a moment.")] = 5,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that the Hub may be silent.")
    ] = 120.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be pushed, and where; write nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Push a folder to the Hub in one commit, pull it back, and prove it equal to what was proved.

    The token is that of HF_TOKEN or of `hf auth login`.

    Example: rnp-hub push ./out me/model-rnp
    """
    from rnp_hub import push as pushing
    from rnp_hub.cli import terminal
    from rnp_hub.remote import Patience

    config = pushing.PushConfig(
        public, create_pr, force, revision, message, Patience(tries=tries, timeout=timeout)
    )
    if dry_run:
        plan = pushing.dry_run(folder, repo, config, say=terminal.say)
        terminal.print_push_plan(plan, as_json=json)
        return
    with terminal.progress_bars() as progress:
        pushed = pushing.push(folder, repo, config, progress=progress, say=terminal.say)
    terminal.print_pushed(pushed, as_json=json)


@app.command()
def predict(
    onnx: Annotated[Path, typer.Argument(help="An ONNX file that rnp-hub exported.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures.")],
    json: Json = False,
) -> None:
    """Print the label and score of pictures, with onnxruntime, numpy and Pillow alone.

    Example: rnp-hub predict out/onnx/model.onnx photo.png
    """
    from rnp_hub.cli import terminal
    from rnp_hub.onnx_io import predict as classify

    terminal.print_predictions(classify(onnx, images), as_json=json)


gate.register(app)


def main() -> None:
    """Entry point of `rnp-hub`."""
    # Threads that spin while they wait for each other make a busy machine ten times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    app(prog_name="rnp-hub")
