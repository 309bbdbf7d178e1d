"""The README of a sanitized model: every figure on it stands in the report."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from rnp_hub.hub_cards import tables
from rnp_hub.hub_cards.command import command
from rnp_hub.hub_cards.licences import Licence
from rnp_hub.hub_cards.markdown import code, fenced, plain
from rnp_hub.hub_cards.metadata import licence_link, metadata, name_of, original_name, source_link
from rnp_hub.hub_cards.pictures import FOLDER, pictures
from rnp_hub.report import RunReport

TEMPLATE = "card.md.jinja"
PLACEHOLDER = "ORG/NAME"
"""Stands for the repository on a card that does not know where it will be pushed to."""


def render(report: RunReport, repo_id: str | None = None) -> str:
    """The card as Markdown with its metadata block; the same report gives the same bytes.

    Args:
        report: of the run; `RunReport.read(folder)` has that of a folder made earlier.
        repo_id: where the card is pushed to, so that its snippets can be pasted as they are.
    """
    template = (resources.files(__name__.rpartition(".")[0]) / TEMPLATE).read_text("utf-8")
    card = ModelCard.from_template(
        metadata(report, repo_id), template_str=template, **_words(report, repo_id)
    )
    return str(card)


def write_card(folder: Path, report: RunReport, repo_id: str | None = None) -> None:
    """Write `README.md` and the pictures it shows; see `render`."""
    (folder / FOLDER).mkdir(exist_ok=True)
    for each in pictures(report):
        (folder / each.path).write_bytes(each.png())
    (folder / "README.md").write_text(render(report, repo_id), encoding="utf-8")


def _words(report: RunReport, repo_id: str | None) -> dict[str, Any]:
    """What the template speaks of."""
    source, rows = report.source, tables.classes(report)
    return {
        "report": report,
        "name": name_of(report, repo_id),
        "original": source.repo_id or original_name(report),
        "original_link": source_link(source),
        "licence": Licence.of(source.licence),
        "licence_link": licence_link(source),
        "repo": repo_id or PLACEHOLDER,
        "pushed": repo_id is not None,
        "rows": tables.measures(report),
        "costs": tables.costs(report),
        "classes": rows,
        "shown": rows[: tables.SHOWN],
        "rest": rows[tables.SHOWN :],
        "pictures": pictures(report),
        "layers": list(tables.per_layer(report)),
        "command": fenced(command(report)),
        "tables": tables,
        "code": code,
        "plain": plain,
    }
