"""Tables of Markdown, and the sections of a document that commands write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rnp_hub.errors import OutputError, reason


def table(heads: Sequence[str], lines: Iterable[str]) -> str:
    """A table of lines that `line` made."""
    return "\n".join([line(heads), line(["---"] * len(heads)), *lines]) + "\n"


def line(cells: Sequence[object]) -> str:
    """One row."""
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def plain(value: float | None) -> str:
    """A number as it is, nothing for none."""
    return "" if value is None else f"{value:,}"


def small(value: float | None) -> str:
    """A number of which the power of ten matters."""
    return "" if value is None else f"{value:.0e}"


def put_section(file: Path, name: str, text: str) -> None:
    """Write what a command found between its marks in a document; the rest stays as it is.

    Args:
        file: made if it is not there; marks that it lacks are put at its end.
        name: of the section.
        text: Markdown.

    Raises:
        OutputError: the document cannot be read or written.
    """
    start, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    try:
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        if start not in before or end not in before:
            before += f"\n{start}{end}"
        head, _, rest = before.partition(start)
        tail = rest.partition(end)[2]
        file.write_text(f"{head}{start}\n{text}\n{end}{tail}", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{file} cannot be written ({reason(error)}); give a file") from error
