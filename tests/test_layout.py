"""Data flows one way, and the README knows every command."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from rnp_hub.cli.app import app

ROOT = Path(__file__).parents[1]
ORDER = [
    "errors",
    "text",
    "publisher",
    "static",
    "progress",
    "preprocess",
    "limits",
    "weights",
    "repository",
    "labels",
    "sources",
    "compute",
    "network",
    "data",
    "triggers",
    "evaluate",
    "graph",
    "flow",
    "sites",
    "hooks",
    "kernels",
    "head",
    "unlearn",
    "recover",
    "prune",
    "trigger_kinds",
    "surrogate",
    "guided",
    "verdict",
    "soften",
    "scan",
    "heal",
    "tune",
    "refine",
    "edits",
    "removal",
    "pace",
    "slim",
    "method",
    "transformers_io",
    "cifar",
    "architecture",
    "pull",
    "onnx_io",
    "report",
    "records",
    "export",
    "onnx_export",
    "costs",
    "onnx_preprocess",
    "onnx_variants",
    "output",
    "demo",
    "hub_cards",
    "exporting",
    "published",
    "remote",
    "destination",
    "shipment",
    "change",
    "push",
    "pipeline",
    "plan",
    "trust",
    "gate",
    "bench",
    "cli",
]
"""A module imports only from those before it."""


def place(module: str) -> int:
    return ORDER.index(module.removeprefix("rnp_hub.").partition(".")[0])


def files() -> list[Path]:
    folders = ["rnp_hub", "cli", "hub_cards"]
    found = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    inside = [file.relative_to(ROOT) for file in found]
    # The package's own face and the links to the folders beside it.
    skipped = ("rnp_hub/__init__.py", "rnp_hub/__main__.py", "rnp_hub/cli", "rnp_hub/hub_cards")
    return [file for file in inside if not str(file).startswith(skipped)]


@pytest.mark.parametrize("file", files(), ids=str)
def test_a_module_imports_only_from_those_before_it(file: Path) -> None:
    parts = file.with_suffix("").parts
    own = parts[1] if parts[0] == "rnp_hub" else parts[0]
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("rnp_hub"):
            continue
        names = [node.module] if node.module != "rnp_hub" else [alias.name for alias in node.names]
        for name in names:
            if name != "__version__":
                assert place(str(name)) <= ORDER.index(own), f"{file}:{node.lineno} {name}"


def test_every_command_has_help_and_stands_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    names = [command.callback.__name__ for command in app.registered_commands]
    assert names == [
        "sanitize",
        "scan",
        "evaluate",
        "export",
        "push",
        "predict",
        "gate",
        "sign",
        "verify",
    ]
    for command in app.registered_commands:
        assert (command.callback.__doc__ or "").strip()
        assert f"rnp-hub {command.callback.__name__} " in readme
