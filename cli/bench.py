"""`rnp-hub bench`: the evidence, made again by anyone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

bench = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Make the evidence again, on this machine."
)


@bench.callback()
def root() -> None:
    """Make the evidence again, on this machine."""


@bench.command()
def slim(
    models: Annotated[
        Path, typer.Option(help="File with one network a line: family, tab, name in timm.")
    ],
    log: Annotated[
        Path, typer.Option(help="Where each network leaves a line; those in it are not run again.")
    ] = Path("bench-out/slim.jsonl"),
    seed: Annotated[int, typer.Option(help="Of weights, statistics and silenced filters.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds for one network.")] = 300.0,
    memory: Annotated[float, typer.Option(help="MiB for one network.")] = 8192.0,
    json: Annotated[bool, typer.Option("--json", help="Print one list of objects.")] = False,
) -> None:
    """Silence a quarter of the filters of every site of many networks, remove them, compare.

    Example: rnp-hub bench slim --models families.txt
    """
    from rnp_hub.bench.slimming import Limits, measure_all, names_in
    from rnp_hub.cli import terminal

    rows = measure_all(names_in(models), log, seed, Limits(timeout, memory), terminal.note)
    terminal.print_slim_rows(rows, as_json=json)
