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


def between(page: str, start: str, end: str, text: str) -> str | None:
    """The page with the text between its marks and the rest as it was; `None` where they lack."""
    head, begun, rest = page.partition(start)
    _, ended, tail = rest.partition(end)
    return f"{head}{start}{text}{end}{tail}" if begun and ended else None


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
        section = f"\n{text}\n"
        page = between(before, start, end, section) or f"{before}\n{start}{section}{end}"
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{file} cannot be written ({reason(error)}); give a file") from error
