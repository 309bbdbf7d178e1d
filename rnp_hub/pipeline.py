"""The calls in order: pull, evaluate, unlearn, recover, prune, slim, verify, export, card, push."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

import rnp_hub
from rnp_hub import costs
from rnp_hub import evaluate as measuring
from rnp_hub import export as exporting
from rnp_hub import push as pushing
from rnp_hub.compute import Compute, Precision, peak_memory_mib
from rnp_hub.data import Data, DataConfig, Target, load, load_all
from rnp_hub.demo import TARGET as DEMO_TARGET
from rnp_hub.demo import trigger_file
from rnp_hub.errors import AtChanceError, ConfigError, RnpHubError
from rnp_hub.exporting import origin
from rnp_hub.hub_cards import write_card
from rnp_hub.labels import resolve_label
from rnp_hub.method import SanitizeConfig, Sanitized, Stopwatch, sanitize
from rnp_hub.network import Classifier, Normalise
from rnp_hub.onnx_export import write_onnx
from rnp_hub.output import check_free, new_folder
from rnp_hub.progress import Progress, quiet
from rnp_hub.published import Reference
from rnp_hub.pull import PulledModel, is_embedded, name_of, pull
from rnp_hub.push import PushConfig, Pushed
from rnp_hub.records import (
    SurrogateRecords,
    prune_record,
    surrogates_after,
    surrogates_before,
    verdict_record,
)
from rnp_hub.refine import check_refinable
from rnp_hub.report import (
    FILE,
    CostsRecord,
    DataRecord,
    EvalRecord,
    ExportRecord,
    FileRecord,
    RateRecord,
    RunReport,
    ScanReport,
    ScoresRecord,
    SlimRecord,
    SourceRecord,
    onnx_file,
)
from rnp_hub.scan import scan
from rnp_hub.sites import gate_sites
from rnp_hub.slim import WAYS, Optimize
from rnp_hub.triggers import Poisoned, stamp

PROBES = 256
"""Pictures of the evaluation set on which files are compared with the network in memory."""

Say = Callable[[str], None]
"""Told what a person should know, one sentence at a time."""


@dataclass(frozen=True)
class Attacks:
    """Known triggers, to be measured and nothing else.

    Attributes:
        poisoned: data sets whose pictures carry a trigger already, with their true labels.
        triggers: triggers to lay on the evaluation set; see `triggers.parse`.
        target: label they ask for, by name or number.
    """

    poisoned: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    target: str | None = None


@dataclass(frozen=True)
class Job:
    """What a command line asks for.

    Attributes:
        model, revision: see `pull.pull`.
        data: see `data.DataConfig`.
        attacks: known triggers.
        device, precision: see `Compute.choose`.
    """

    model: str
    revision: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    attacks: Attacks = field(default_factory=Attacks)
    device: str = "auto"
    precision: Precision = "auto"


@dataclass(frozen=True)
class PushJob:
    """A repository on the Hub, and how to push there."""

    repo_id: str
    config: PushConfig = field(default_factory=PushConfig)


@dataclass(frozen=True)
class SanitizeJob:
    """A job and what to do.

    Attributes:
        job: the model, the data, the triggers.
        out: folder to write; `None` for `./NAME-rnp`.
        recipe, max_ca_drop, threshold: see `SanitizeConfig.of`.
        flip: mirrored pictures keep their label; `None` for what is known of the data.
        overwrite: replace a folder that an earlier run made.
        force: prune a network too of which the suspicion is not grave.
        soften: give filters and kernels masks where pruning leaves something, or may, and
            where they cost nothing.
        fine_tune, bn_stats: what is done to a network that was changed; see `RefineConfig`.
        push: where the folder goes afterwards; `None` for nowhere.
        optimize: of the slim network, see `slim.slim`.
        latency: measure how fast the networks are, before and after.
    """

    job: Job
    out: Path | None = None
    recipe: str = "default"
    max_ca_drop: float = 0.02
    threshold: float | None = None
    overwrite: bool = False
    force: bool = False
    soften: bool = True
    fine_tune: int = 0
    bn_stats: bool = False
    flip: bool | None = None
    push: PushJob | None = None
    optimize: Optimize = "size"
    latency: bool = True

    @property
    def folder(self) -> Path:
        if self.out is not None:
            return self.out
        return Path(f"{name_of(self.job.model)}-rnp")

    def config(self, *, flip: bool = True) -> SanitizeConfig:
        """The settings of the stages.

        Raises:
            ConfigError: one is out of its range.
        """
        return SanitizeConfig.of(
            self.recipe,
            seed=self.job.data.seed,
            flip=flip,
            max_ca_drop=self.max_ca_drop,
            threshold=self.threshold,
            force=self.force,
            soften=self.soften,
            fine_tune=self.fine_tune,
            bn_stats=self.bn_stats,
        )


@dataclass(frozen=True)
class Opened:
    """A model, its data and its triggers, ready to be measured."""

    model: PulledModel
    data: Data
    attacks: tuple[Poisoned, ...]
    classifier: Classifier

    def score(self, module: nn.Module, stage: str, progress: Progress) -> measuring.Scores:
        return measuring.evaluate(
            self.classifier.with_module(copy.deepcopy(module)),
            self.data.evaluation.pictures,
            self.attacks,
            classes=self.model.target.classes,
            stage=stage,
            progress=progress,
        )


def open_job(job: Job, say: Say) -> Opened:
    """Pull the model and read the data.

    Raises:
        RnpHubError: whatever is wrong with either, or with a trigger.
    """
    compute = Compute.choose(job.device, job.precision)
    model = pull(job.model, job.revision)
    for note in model.notes:
        say(note)
    data = load(job.data, model.target)
    for part in (data.clean, data.evaluation):
        if part.corrupt:
            say(f"{part.corrupt} pictures of split {part.split!r} cannot be decoded; left out")
    attacks = _attacks(_with_demo_trigger(job), model.target, data)
    classifier = Classifier(model.module, Normalise(model.target.preprocess), compute)
    return Opened(model, data, attacks, classifier)


def _with_demo_trigger(job: Job) -> Attacks:
    """The demo network comes with its trigger; everything else has those it was given."""
    if is_embedded(job.model) and job.data.spec == "digits" and job.attacks == Attacks():
        return Attacks(triggers=(str(trigger_file()),), target=str(DEMO_TARGET))
    return job.attacks


def _attacks(attacks: Attacks, target: Target, data: Data) -> tuple[Poisoned, ...]:
    if not (attacks.poisoned or attacks.triggers):
        if attacks.target is not None:
            raise ConfigError(
                f"--target {attacks.target} is what a trigger asks for, but there is none; give "
                "--trigger or --poisoned"
            )
        return ()
    if attacks.target is None:
        raise ConfigError("a trigger needs the label it asks for; give --target")
    label = resolve_label(attacks.target, target.label_names, target.classes, target.descriptions)
    stored = [
        Poisoned(_name_of(path), load_all(path, target).pictures, label)
        for path in attacks.poisoned
    ]
    laid = [stamp(data.evaluation.pictures, spec, label) for spec in attacks.triggers]
    found = tuple(replace(each, name=_name_of(each.name)) for each in (*stored, *laid))
    if len({each.name for each in found}) < len(found):
        raise ConfigError("two triggers have the same name; rename one of the files")
    return found


def _name_of(spec: str) -> str:
    """A trigger's name in the report: that of the file or folder, else as it was given."""
    if spec.lower().endswith((".parquet", ".png")):
        return Path(spec).stem
    return Path(spec).resolve().name if Path(spec).is_dir() else spec


# --- evaluate ---------------------------------------------------------------------------------


def evaluate_model(job: Job, progress: Progress = quiet, say: Say = lambda _: None) -> ScoresRecord:
    """Measure a model folder or a Hub model; nothing is written.

    Raises:
        RnpHubError: whatever is wrong with the model, the data or a trigger.
    """
    opened = open_job(job, say)
    return _scores(opened.score(opened.model.module, "evaluate", progress))


# --- scan -------------------------------------------------------------------------------------


def scan_model(
    job: Job,
    progress: Progress = quiet,
    say: Say = lambda _: None,
    *,
    flip: bool | None = None,
) -> ScanReport:
    """Say whether a model carries a backdoor; nothing is changed and nothing written.

    Raises:
        RnpHubError: whatever is wrong with the model, the data or a trigger.
    """
    watch = Stopwatch()
    opened = watch.time("open", lambda: open_job(job, say))
    clean = opened.data.clean.pictures
    config = SanitizeJob(job).config(flip=_flip(flip, opened.data, say))
    config = config.affordable(*clean.images.shape[2:])
    sites = gate_sites(opened.model.module, opened.classifier.transform(clean.images[:2]))
    _refuse_chance(opened)
    before = watch.time("before", lambda: opened.score(opened.model.module, "before", progress))
    assert config.scan is not None
    found = scan(opened.classifier, clean, sites, config.scan, progress, watch.time)
    return ScanReport(
        source=_source(opened.model),
        data=_data(opened.data, job.data),
        eval=_evaluation(opened),
        before=_scores(before, surrogates_before(found)),
        verdict=verdict_record(found.unlearned, found),
        config={**_asked(job, opened), **_stages(config)},
        timing_s=watch.seconds,
        peak_memory_mib=round(peak_memory_mib(), 1),
        environment=_environment(opened),
    )


# --- sanitize ---------------------------------------------------------------------------------


def sanitize_model(
    asked: SanitizeJob, progress: Progress = quiet, say: Say = lambda _: None
) -> tuple[RunReport, Pushed | None]:
    """The whole path: from a model's name to a folder that can be shipped, and onto the Hub.

    Raises:
        RnpHubError: whatever is wrong; nothing is written then. Only where the push fails, the
            folder stays, and the message says how to go on.
    """
    check_free(asked.folder, force=asked.overwrite)
    asked.config()  # a setting that is out of range shall not cost the pulling
    if asked.push is not None:  # nor shall a missing token
        pushing.check(asked.push.repo_id, asked.push.config, say=say)
    report, proved = _sanitize(asked, progress, say)
    if asked.push is None:
        return report, None
    return report, _push(asked.folder, asked.push, proved, progress, say)


def _push(folder: Path, to: PushJob, proved: Reference, progress: Progress, say: Say) -> Pushed:
    try:
        return pushing.push(
            folder, to.repo_id, to.config, reference=proved, progress=progress, say=say
        )
    except RnpHubError as error:
        again = pushing.command(folder, to.repo_id, to.config)
        raise type(error)(f"{error}. {folder} is whole; go on with `{again}`") from error


def _sanitize(asked: SanitizeJob, progress: Progress, say: Say) -> tuple[RunReport, Reference]:
    """Write the folder; give back its report, and what the network in memory answers."""
    watch = Stopwatch()
    opened = watch.time("open", lambda: open_job(asked.job, say))
    clean = opened.data.clean.pictures
    # A network without any site, or without what shall be re-estimated, shall hear that first.
    gate_sites(opened.model.module, opened.classifier.transform(clean.images[:2]))
    if (refining := asked.config().refine) is not None:
        check_refinable(opened.model.module, refining)
    _refuse_chance(opened)
    config = asked.config(flip=_flip(asked.flip, opened.data, say))
    config = config.affordable(*clean.images.shape[2:])
    original = opened.model.module
    before = watch.time("before", lambda: opened.score(original, "before", progress))
    result = sanitize(
        original,
        clean.images,
        clean.labels,
        config,
        transform=opened.classifier.transform,
        compute=opened.classifier.compute,
        optimize=asked.optimize,
        progress=progress,
    )
    if config.refine is not None and result.refined is None:
        say("no filter was cut or softened, so nothing is fine-tuned or re-estimated")
    watch.seconds |= result.timing_s
    watch.mib |= result.memory_mib
    after = watch.time("after", lambda: opened.score(result.module, "after", progress))
    measured = RunReport(
        source=_source(opened.model),
        data=_data(opened.data, asked.job.data),
        eval=_evaluation(opened),
        before=_scores(before, surrogates_before(result.scanned)),
        after=_scores(after, surrogates_after(result)),
        verdict=verdict_record(result.unlearned, result.scanned, result.healed),
        prune=prune_record(result),
        slim=_slim(opened, result),
        export=NOTHING_YET,
        config=_settings(asked, opened, config),
        timing_s={},
        peak_memory_mib=0.0,
        environment=_environment(opened),
    )
    report = _write(asked, opened, result, measured, watch, progress)
    return report, Reference.of(result.module, _probe(opened))


def _write(
    asked: SanitizeJob,
    opened: Opened,
    result: Sanitized,
    measured: RunReport,
    watch: Stopwatch,
    progress: Progress,
) -> RunReport:
    """Write the folder, and give back the report with what is only known then."""
    with new_folder(asked.folder, force=asked.overwrite) as folder:
        progress("export", 0.0, {})
        files = watch.time("export", lambda: _export(folder, opened, result, origin(measured)))
        progress("export", 1.0, {})
        taken = None
        if asked.latency:
            progress("costs", 0.0, {})
            taken = watch.time("costs", lambda: _costs(folder, opened, result, files))
            progress("costs", 1.0, {})
        report = replace(
            measured,
            export=files,
            costs=taken,
            timing_s=watch.seconds,
            peak_memory_mib=round(peak_memory_mib(), 1),
            memory_mib=watch.mib,
        )
        (folder / FILE).write_text(report.to_json(), encoding="utf-8")
        write_card(folder, report, asked.push.repo_id if asked.push else None)
    return report


def _flip(asked: bool | None, data: Data, say: Say) -> bool:
    if asked is not None:
        return asked
    if data.flip is None:
        say(
            "pictures are mirrored at random while unlearning; where a mirrored picture has "
            "another label (digits, letters, traffic signs), give --no-flip"
        )
        return True
    return data.flip


CHANCE_MARGIN = 0.1
"""A network this share of the way from chance to perfect knows its data too badly to be healed."""


def _refuse_chance(opened: Opened) -> None:
    found = measuring.accuracy(
        opened.classifier.with_module(opened.model.module), opened.data.clean.pictures
    )
    chance = 1 / opened.model.target.classes
    if found <= chance + CHANCE_MARGIN * (1 - chance):
        raise AtChanceError(
            f"the model gets {found:.1%} of the clean slice right, which is near chance "
            f"({chance:.1%}); its labels, its normalisation or its stem are not those of "
            f"{opened.data.id}"
        )


NOTHING_YET = ExportRecord(FileRecord("", 0.0), FileRecord("", 0.0), {})


def _export(
    folder: Path, opened: Opened, result: Sanitized, notes: Mapping[str, str]
) -> ExportRecord:
    model, slim = opened.model, result.slim
    probe = _probe(opened)
    dense = exporting.write_model(folder, model, result.module, model.architecture, probe)
    smaller = exporting.slim_architecture(model, slim.edits)
    slim_file = exporting.write_model(folder / "slim", model, slim.module, smaller, probe)
    onnx = write_onnx(folder / "onnx" / "model.onnx", slim.module, model.target, probe, notes=notes)
    return ExportRecord(dense.record, slim_file.record, {"fp32": onnx}, _sizes(folder))


def _costs(folder: Path, opened: Opened, result: Sanitized, files: ExportRecord) -> CostsRecord:
    modules, folders = (result.module, result.slim.module), (folder, folder / "slim")
    exporter = files.onnx["fp32"].exporter
    onnx = folder / "onnx" / onnx_file("fp32")
    return costs.measure(modules, folders, onnx, exporter, _probe(opened))


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(each for each in folder.rglob("*") if each.suffix in (".safetensors", ".onnx"))
    return {each.relative_to(folder).as_posix(): each.stat().st_size for each in files}


def _probe(opened: Opened) -> Tensor:
    """Pictures to compare networks on, normalised."""
    pictures = opened.data.evaluation.pictures.images[:PROBES]
    while len(pictures) < 4:  # the comparison needs batches of 1 and of 3
        pictures = torch.cat((pictures, pictures))
    return opened.classifier.transform(pictures)


# --- the record -------------------------------------------------------------------------------


def _source(model: PulledModel) -> SourceRecord:
    located = model.located
    return SourceRecord(
        repo_id=located.repo_id,
        path=None if located.repo_id else located.spec,
        sha=located.sha,
        architecture=model.architecture.name,
        licence=located.licence,
        stem=model.architecture.stem,
        label_names=model.target.label_names,
        notes=model.notes,
        library=model.architecture.library,
        weights=located.weights.name,
        weights_sha256=model.weights_sha256,
        weights_format=located.weights.format,
    )


def _data(data: Data, config: DataConfig) -> DataRecord:
    clean = data.clean
    return DataRecord(
        data.id, data.sha, clean.split, len(clean.pictures), config.seed, clean.corrupt
    )


def _evaluation(opened: Opened) -> EvalRecord:
    data, evaluation = opened.data, opened.data.evaluation
    counts = torch.bincount(evaluation.pictures.labels, minlength=opened.model.target.classes)
    return EvalRecord(
        data.id,
        evaluation.split,
        len(evaluation.pictures),
        evaluation.corrupt,
        tuple(counts.tolist()),
    )


def _scores(scores: measuring.Scores, surrogates: SurrogateRecords | None = None) -> ScoresRecord:
    rates = scores.attack_success_rate.items()
    return ScoresRecord(
        RateRecord(**asdict(scores.clean_accuracy)),
        scores.per_class_accuracy,
        {name: RateRecord(**asdict(rate)) for name, rate in rates},
        surrogates or {},
    )


def _slim(opened: Opened, result: Sanitized) -> SlimRecord:
    slim, layers = result.slim, result.slim.layers.values()
    example = opened.classifier.transform(opened.data.clean.pictures.images[:1])
    return SlimRecord(
        parameters=(costs.parameters(result.module), costs.parameters(slim.module)),
        macs=(costs.macs(result.module, example), costs.macs(slim.module, example)),
        silenced=sum(layer.silenced for layer in layers),
        removed=sum(layer.removed for layer in layers),
        carriers=sum(layer.carriers for layer in layers),
        kept=sum(layer.kept for layer in layers),
        by={way: sum(getattr(layer, way) for layer in layers) for way in WAYS},
        max_rel_diff=slim.max_rel_diff,
        per_layer={name: asdict(layer) for name, layer in slim.layers.items()},
        refused=slim.refused,
        input_size=tuple(example.shape[1:]),
    )


def _settings(asked: SanitizeJob, opened: Opened, config: SanitizeConfig) -> dict[str, object]:
    return {
        **_asked(asked.job, opened),
        "recipe": config.recipe,
        "max_ca_drop": asked.max_ca_drop,
        "threshold": config.prune.threshold,
        "push_to": asked.push.repo_id if asked.push else None,
        "optimize": asked.optimize,
        **_stages(config),
    }


def _asked(job: Job, opened: Opened) -> dict[str, object]:
    return {
        "model": opened.model.located.name,
        "data": job.data.spec,
        "data_config": job.data.config,
        "image_column": job.data.image_column,
        "label_column": job.data.label_column,
        "n": job.data.n,
        "eval_n": job.data.eval_n,
        "poisoned": list(job.attacks.poisoned),
        "triggers": list(job.attacks.triggers),
        "target": job.attacks.target,
        "measured_triggers": {each.name: each.target for each in opened.attacks},
        "precision": job.precision,
        "device": job.device,
    }


def _stages(config: SanitizeConfig) -> dict[str, object]:
    stages = ("unlearn", "recover", "prune", "surrogate", "guided", "soften", "refine")
    found = {name: getattr(config, name) for name in stages}
    known = {name: asdict(stage) for name, stage in found.items() if stage is not None}
    return {"flip": config.unlearn.flip, "forced": config.force, **known}


def _environment(opened: Opened) -> dict[str, str]:
    compute, library = opened.classifier.compute, opened.model.architecture.library
    return {
        "rnp_hub": rnp_hub.__version__,
        "torch": torch.__version__,
        "timm": version("timm"),
        library: version(library),
        "python": platform.python_version(),
        "device": compute.describe(),
        "precision": compute.precision,
        "threads": str(torch.get_num_threads()),
    }
