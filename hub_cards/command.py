"""The command line that makes the folder of a report again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from rnp_hub.report import RunReport


def command(report: RunReport) -> str:
    """In the words of a shell, model and data at the commits that were used."""
    words = ["rnp-hub", "sanitize", _model(report)]
    for name, value in _options(report):
        if value is not None:
            words += [f"--{name}", str(value)]
    if "surrogate" in report.config and "soften" not in report.config:
        words.append("--no-soften")
    if report.config.get("forced"):
        words.append("--force")
    refined = report.config.get("refine", {})
    if refined.get("fine_tune"):
        words += ["--fine-tune", str(refined["fine_tune"])]
    if refined.get("bn_stats"):
        words.append("--bn-stats")
    flip = report.config.get("flip")
    if flip is not None:
        words.append("--flip" if flip else "--no-flip")
    return shlex.join(words)


def _options(report: RunReport) -> Iterator[tuple[str, object]]:
    data, config = report.data, report.config
    spec = str(config.get("data", data.id))
    yield "data", f"{spec.partition('@')[0]}@{data.sha}" if data.sha else spec
    yield "data-config", config.get("data_config")
    yield "n", config["n"]
    yield "eval-n", config.get("eval_n")
    yield "seed", data.seed
    for name in ("image_column", "label_column", "recipe", "max_ca_drop", "threshold"):
        yield name.replace("_", "-"), config.get(name)
    for name in ("optimize", "precision", "device"):
        yield name, config.get(name)
    for path in config.get("poisoned", ()):
        yield "poisoned", path
    for trigger in config.get("triggers", ()):
        yield "trigger", trigger
    yield "target", config.get("target")


def _model(report: RunReport) -> str:
    """At its commit, with the folder within its repository, which stands in no `source`."""
    source = report.source
    if not source.repo_id:
        return str(source.path)
    asked = str(report.config.get("model", "")).removeprefix("hf-hub:").partition("@")[0]
    within = asked.startswith(f"{source.repo_id}/")
    return f"{asked if within else source.repo_id}@{source.sha}"
