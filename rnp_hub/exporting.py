"""One more ONNX file from a model folder, and in its report and card where it has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from rnp_hub.data import DataConfig, load
from rnp_hub.errors import ConfigError
from rnp_hub.hub_cards import render, write_card
from rnp_hub.onnx_variants import VariantConfig, write_variant
from rnp_hub.output import new_file
from rnp_hub.pull import PulledModel, name_of, pull
from rnp_hub.report import FILE, OnnxRecord, RunReport
from rnp_hub.repository import CARD

PICTURES = 256
"""Pictures of the evaluation set that a file is compared on."""

NOISE = 16
"""As many of noise, where there is no data."""


@dataclass(frozen=True)
class ExportJob:
    """What a command line asks for.

    Attributes:
        model: see `pull.pull`.
        out: the file; `None` for one in the model's folder, which its report then speaks of.
        variant: which file.
        data: pictures to compare and to calibrate on; `None` for those of the folder's report,
            or for noise where it has none.
        force: replace a file that is there.
    """

    model: str
    out: Path | None = None
    variant: VariantConfig = field(default_factory=VariantConfig)
    data: DataConfig | None = None
    force: bool = False


def export_model(job: ExportJob) -> tuple[Path, OnnxRecord]:
    """Export a model to one ONNX file, run in onnxruntime against torch.

    A folder that `sanitize` made gives its smaller network; its report and its card then speak of
    the new file, the card unless somebody edited it.

    Raises:
        RnpHubError: the model or the data cannot be read, the file exists, or the two disagree.
    """
    folder = Path(job.model.removeprefix("local-dir:")).expanduser()
    if job.out is None and not folder.is_dir():
        raise ConfigError(f"{job.model} is no folder to write into; give --out FILE.onnx")
    report = RunReport.read(folder) if (folder / FILE).is_file() else None
    if job.out is None and report is not None and job.variant.name == "fp32":
        raise ConfigError(
            f"{folder} holds its onnx/model.onnx already; give another --out, or one of --fp16, "
            "--int8 and --with-preprocessing"
        )
    model = pull(str(folder / "slim")) if report is not None else pull(job.model)
    evaluation, calibration = _pictures(job, report, model)
    file = job.out or folder / "onnx" / job.variant.file
    with new_file(file, force=job.force) as temporary:
        record = write_variant(
            temporary,
            model.module,
            model.target,
            evaluation,
            job.variant,
            calibration=calibration,
            notes=origin(report) if report is not None else None,
        )
    if report is not None and job.out is None:
        _add(folder, report, job.variant, record)
    return file, record


def origin(report: RunReport) -> dict[str, str]:
    """What an ONNX file says of where it came from; of a folder its name and what is in it."""
    source = report.source
    where = f"{source.repo_id}@{source.sha}"
    if source.repo_id is None:
        where = "@sha256:".join(filter(None, (name_of(str(source.path)), source.weights_sha256)))
    return {"rnp_hub.source": where, "rnp_hub.report_sha256": report.digest()}


def _pictures(
    job: ExportJob, report: RunReport | None, model: PulledModel
) -> tuple[Tensor, Tensor | None]:
    """uint8 (n, C, H, W) to compare on, and to calibrate on."""
    config = job.data or (_data_of(report) if report is not None else None)
    if config is None:
        shape = (NOISE, *model.target.preprocess.input_size)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator), None
    data = load(config, model.target)
    return data.evaluation.pictures.images, data.clean.pictures.images


def _data_of(report: RunReport) -> DataConfig:
    """The slice that the network was sanitized on, and some of the evaluation set."""
    config: Mapping[str, str | None] = report.config
    spec = str(config["data"]).partition("@")[0]
    return DataConfig(
        f"{spec}@{report.data.sha}" if report.data.sha else str(config["data"]),
        n=report.data.n,
        eval_n=PICTURES,
        seed=report.data.seed,
        image_column=config.get("image_column"),
        label_column=config.get("label_column"),
        config=config.get("data_config"),
    )


def _add(folder: Path, report: RunReport, variant: VariantConfig, record: OnnxRecord) -> None:
    """Have the report speak of the file, and the card unless a person's hand is in it."""
    export = report.export
    path = f"onnx/{variant.file}"
    added = replace(
        report,
        export=replace(
            export,
            onnx={**export.onnx, variant.name: record},
            bytes={**export.bytes, path: (folder / path).stat().st_size},
        ),
    )
    repo_id = report.config.get("push_to")
    card = folder / CARD
    ours = card.is_file() and card.read_text("utf-8") == render(report, repo_id)
    with new_file(folder / FILE, force=True) as temporary:
        temporary.write_text(added.to_json(), encoding="utf-8")
    if ours:
        write_card(folder, added, repo_id)
