"""`rnp-hub gate`, `sign` and `verify`: what leaves the house, and whether it is still that."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rnp_hub.cli.options import (
    NO,
    CreatePr,
    DataOption,
    DataSubset,
    Device,
    EvalN,
    Flip,
    ImageColumn,
    Json,
    LabelColumn,
    Model,
    N,
    PoisonedOption,
    Precision,
    PrecisionOption,
    Public,
    Recipe,
    Revision,
    Seed,
    TargetOption,
    Trigger,
    make_job,
    make_push_job,
)


def gate(
    model: Model,
    data: DataOption = "digits",
    policy: Annotated[
        Path | None, typer.Option(help="rnp-hub.toml; without it: no backdoor, no pickle.")
    ] = None,
    n: N = 500,
    sanitize: Annotated[
        bool, typer.Option("--sanitize", help="Sanitize the model and judge the result.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the sanitized model; ./NAME-rnp if not given.")
    ] = None,
    push_to: Annotated[
        str | None, typer.Option(help="Repository that what passed is pushed to, you/name.")
    ] = None,
    sarif: Annotated[Path | None, typer.Option(help="Write SARIF 2.1.0 there.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Write Markdown there.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write a JUnit report there.")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Write workflow commands of GitHub Actions there.")
    ] = None,
    attest: Annotated[
        Path | None, typer.Option(help="Write an in-toto statement there; see sign.")
    ] = None,
    bom: Annotated[
        Path | None, typer.Option(help="Write a bill of materials there, CycloneDX 1.6.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the JSON of --json there.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="File that names the model, for SARIF; the policy's if not.")
    ] = None,
    recipe: Annotated[Recipe, typer.Option(help="With --sanitize: see there.")] = Recipe.default,
    max_ca_drop: Annotated[float, typer.Option(help="With --sanitize: see there.")] = 0.02,
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
    force: Annotated[bool, typer.Option(help="Replace a folder that an earlier run made.")] = False,
    public: Public = False,
    create_pr: CreatePr = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say which commits would be looked at, and stop.")
    ] = False,
    json: Json = False,
) -> None:
    """Hold a model against a policy: exit code 0 it passes, 1 it does not, 2 the tool failed.

    Example: rnp-hub gate org/model --data cifar10 --policy rnp-hub.toml --sarif rnp-hub.sarif
    """
    from rnp_hub.cli import terminal
    from rnp_hub.gate import GateJob, Outputs, plan
    from rnp_hub.gate import gate as hold
    from rnp_hub.pipeline import SanitizeJob

    job = make_job(
        model, revision, data, n, eval_n, seed, image_column, label_column, data_config,
        poisoned, trigger, target, device, precision,
    )  # fmt: skip
    asked = GateJob(
        sanitize=SanitizeJob(job, out, recipe.value, max_ca_drop, overwrite=force, flip=flip),
        heal=sanitize,
        policy=policy,
        outputs=Outputs(sarif, summary, junit, annotations, attest, bom, report),
        reference=reference,
        push=make_push_job(push_to, public=public, create_pr=create_pr, force=False),
    )
    if dry_run:
        terminal.print_plan(plan(asked), as_json=json)
        return
    with terminal.progress_bars() as progress:
        found = hold(asked, progress, terminal.say)
    terminal.print_gate(found, as_json=json)
    if not found.passed:
        raise typer.Exit(NO)


def sign(
    folder: Annotated[Path, typer.Argument(help="A folder with gate.intoto.json in it.")],
    key: Annotated[Path, typer.Option(help="Private key on an elliptic curve, PEM.")],
    json: Json = False,
) -> None:
    """Sign a folder that passed the gate, so that others can tell it is still that.

    First: rnp-hub gate ./out --data cifar10 --attest ./out/gate.intoto.json

    Example: rnp-hub sign ./out --key key.pem
    """
    from rnp_hub.cli import terminal
    from rnp_hub.trust import signing

    terminal.print_signed(signing.sign(folder, key), as_json=json)


def verify(
    folder: Annotated[Path, typer.Argument(help="A folder that somebody signed.")],
    key: Annotated[Path, typer.Option(help="Their public key, PEM.")],
    json: Json = False,
) -> None:
    """Say in one line whether a folder is what passed the gate; exit code 1 where it is not.

    Example: rnp-hub verify ./out --key pub.pem
    """
    from rnp_hub.cli import terminal
    from rnp_hub.trust import signing

    found = signing.verify(folder, key)
    terminal.print_verified(found, as_json=json)
    if not found.genuine:
        raise typer.Exit(NO)


def register(app: typer.Typer) -> None:
    """Give an application these commands."""
    for command in (gate, sign, verify):
        app.command()(command)
