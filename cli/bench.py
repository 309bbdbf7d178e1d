"""`rnp-hub bench`: the evidence, made again by anyone."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

LOG = Path("docs/evidence/grid.jsonl")


class Grid(StrEnum):
    """See `rnp_hub.bench.grid.Choice`."""

    main = "main"
    slices = "slices"


bench = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Make the evidence again, on this machine."
)


@bench.callback()
def root() -> None:
    """Make the evidence again, on this machine."""


Log = Annotated[
    Path, typer.Option(help="Where each run leaves a line; those in it are not run again.")
]
Timeout = Annotated[float, typer.Option(help="Seconds for one network.")]
Memory = Annotated[float, typer.Option(help="MiB for one network.")]
Markdown = Annotated[
    Path | None, typer.Option(help="Document to write the table into, between its marks.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one list of objects.")]


@bench.command()
def slim(
    models: Annotated[
        Path, typer.Option(help="File with one network a line: family, tab, name in timm.")
    ],
    log: Log = Path("bench-out/slim.jsonl"),
    seed: Annotated[int, typer.Option(help="Of weights, statistics and silenced filters.")] = 0,
    timeout: Timeout = 300.0,
    memory: Memory = 8192.0,
    onnx: Annotated[
        bool, typer.Option(help="Export each, which takes longer than all the rest.")
    ] = True,
    markdown: Markdown = None,
    json: Json = False,
) -> None:
    """Silence a quarter of the filters of every site of many networks, remove them, compare.

    One process a network; OMP_NUM_THREADS says with how many threads.

    Example: rnp-hub bench slim --models families.txt
    """
    from rnp_hub.bench.processes import Limits
    from rnp_hub.bench.slimming import document, measure_all, names_in
    from rnp_hub.cli import terminal

    limits = Limits(timeout, memory)
    rows = measure_all(names_in(models), log, seed, limits, terminal.note, onnx=onnx)
    section = f"bench slim {models.stem}"
    terminal.print_evidence(rows, document(rows), section, markdown, as_json=json)


@bench.command()
def requests(
    models: Annotated[
        Path | None, typer.Option(help="As for slim; the 32 networks of docs/slimming.md if none.")
    ] = None,
    log: Log = Path("bench-out/requests.jsonl"),
    seed: Annotated[int, typer.Option(help="Of weights and statistics.")] = 0,
    timeout: Timeout = 900.0,
    memory: Memory = 8192.0,
    markdown: Markdown = None,
    json: Json = False,
) -> None:
    """Remove three filters of each of seven layers, and let Torch-Pruning do so where installed.

    Example: rnp-hub bench requests
    """
    from rnp_hub.bench.processes import Limits
    from rnp_hub.bench.requests import MODELS, document, measure_all
    from rnp_hub.bench.slimming import names_in
    from rnp_hub.cli import terminal

    names = MODELS if models is None else names_in(models)
    rows = measure_all(names, log, seed, Limits(timeout, memory), terminal.note)
    terminal.print_evidence(rows, document(rows), "bench requests", markdown, as_json=json)


@bench.command()
def depth(
    log: Log = Path("bench-out/depth.jsonl"),
    timeout: Timeout = 300.0,
    memory: Memory = 8192.0,
    markdown: Markdown = None,
    json: Json = False,
) -> None:
    """Measure what slimming takes in resnet18, 34, 50 and 101 at 224 pixels.

    Example: rnp-hub bench depth
    """
    from rnp_hub.bench.depth import MODELS, document, measure_all
    from rnp_hub.bench.processes import Limits
    from rnp_hub.cli import terminal

    rows = measure_all(MODELS, log, Limits(timeout, memory), terminal.note)
    terminal.print_evidence(rows, document(rows), "bench depth", markdown, as_json=json)


@bench.command()
def latency(
    log: Log = Path("bench-out/latency.jsonl"),
    timeout: Timeout = 900.0,
    memory: Memory = 8192.0,
    markdown: Markdown = None,
    json: Json = False,
) -> None:
    """Measure how fast networks are as they were, slimmed for size, and slimmed for speed.

    Example: rnp-hub bench latency
    """
    from rnp_hub.bench.latency import MODELS, document, measure_all
    from rnp_hub.bench.processes import Limits
    from rnp_hub.cli import terminal

    rows = measure_all(MODELS, log, Limits(timeout, memory), terminal.note)
    terminal.print_evidence(rows, document(rows), "bench latency", markdown, as_json=json)


@bench.command()
def run(
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what would be done and how long it takes.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Network by name or pattern (*-wanet-*); may be repeated."),
    ] = None,
    defence: Annotated[
        list[str] | None, typer.Option(help="ours, ft, anp, …; may be repeated.")
    ] = None,
    grid: Annotated[
        Grid, typer.Option(help="main: all defences; slices: ours with other clean pictures.")
    ] = Grid.main,
    cache: Annotated[Path, typer.Option(help="Where the networks are kept.")] = Path(
        "bench-out/networks"
    ),
    data: Annotated[str, typer.Option(help="32 × 32 pictures of ten classes.")] = "cifar10",
    log: Annotated[
        Path,
        typer.Option(
            help="Where each pair leaves a line; those in it are not run again on the same weights."
        ),
    ] = LOG,
    json: Annotated[bool, typer.Option("--json", help="Print one list of objects.")] = False,
) -> None:
    """Train networks with and without backdoors, and run every defence over them.

    Example: rnp-hub bench run --plan
    """
    from rnp_hub.bench.grid import Choice, open_studio
    from rnp_hub.bench.grid import plan as planned
    from rnp_hub.bench.grid import run as measured
    from rnp_hub.cli import terminal

    pairs = Choice(only or (), defence or (), slices=grid == Grid.slices).pairs()
    if plan:
        terminal.print_bench_plan(planned(pairs, log, cache), as_json=json)
    else:
        rows = measured(pairs, open_studio(cache, data), log, terminal.note)
        terminal.print_bench_rows(rows, as_json=json)


@bench.command()
def report(
    log: Annotated[Path, typer.Option(help="What `bench run` measured.")] = LOG,
    out: Annotated[
        Path, typer.Option(help="The page; what stands between its two marker lines is replaced.")
    ] = Path("docs/evidence.md"),
) -> None:
    """Make the tables and pictures of the page of evidence from what was measured.

    Example: rnp-hub bench report
    """
    from rnp_hub.bench.evidence import report as written
    from rnp_hub.cli import terminal

    terminal.print_files(written(log, out))
