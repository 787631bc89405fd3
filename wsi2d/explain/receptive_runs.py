"""The effective receptive fields of trained runs, on slides that their models have not seen."""

from __future__ import annotations

import csv
import io
import json
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from wsi2d.compute import resolve_device
from wsi2d.data.arrangements import TURNS
from wsi2d.data.bags import FeatureSpec, GridBag
from wsi2d.errors import ConfigError, FeatureStoreError, RunError
from wsi2d.evaluation.evaluate import PREDICTIONS_FILE
from wsi2d.explain.receptive_field import PROBES, OffsetSums, ReceptiveField, add_gradients
from wsi2d.explain.receptive_summary import FieldSummary, summarise
from wsi2d.files import write_text
from wsi2d.models.aggregator import Aggregator
from wsi2d.training.checkpoint import ModelCard
from wsi2d.training.fold import initial_model
from wsi2d.training.run import Run, Study, load_study, open_run

SCHEMA = "wsi2d-receptive-field/1"


@dataclass(frozen=True)
class FieldOptions:
    """How fields are measured.

    Attributes:
        slides: how many of a run's slides are looked at, at most; None for all. They are drawn from the seed and their
            ids, so that runs on the same cohort are asked about the same.
        centres, probes, seed: as of :func:`wsi2d.explain.receptive_field.receptive_field`.

    Raises:
        ConfigError: a number below 1.
    """

    slides: int | None = 64
    centres: int = 1
    probes: int = PROBES
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("slides", "centres", "probes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"receptive field: {name} must be at least 1, got {value}")


@dataclass(frozen=True)
class RunField:
    """The receptive field of a run.

    Attributes:
        name: what it is called in pictures and tables: the run folder's name.
        run: the run folder.
        trained: false for the weights with which its training began.
        model: the aggregator's name.
        folds: whose models were asked, each about its own test side.
        field: the field.
        pitch_um: from one patch to the next, µm; None where the features do not say it, or patches were not shown where
            they lie.
        options: how it was measured.
    """

    name: str
    run: Path
    trained: bool
    model: str
    folds: tuple[int, ...]
    field: ReceptiveField
    pitch_um: float | None
    options: FieldOptions

    @property
    def title(self) -> str:
        """The name, and where it is not trained, that."""
        return self.name if self.trained else f"{self.name}, untrained"

    @property
    def summary(self) -> FieldSummary:
        """The field in numbers."""
        return summarise(self.field)

    def to_dict(self) -> dict[str, Any]:
        """All but the offsets, as plain values; what is not defined is None."""
        known = {key: getattr(self, key) for key in ("name", "trained", "model", "pitch_um")}
        known |= {"run": str(self.run), "folds": list(self.folds), **asdict(self.options)}
        numbers = {key: _defined(value) for key, value in asdict(self.summary).items()}
        found = {"slides": self.field.bags, "all_centres": self.field.centres, "single_point": self.field.single_point}
        return {**known, **found, **numbers}


def run_receptive_field(
    run: Path | str,
    *,
    trained: bool = True,
    options: FieldOptions | None = None,
    folds: Sequence[int] | None = None,
    features: Path | str | None = None,
    device: str = "auto",
    on_slide: Callable[[], None] | None = None,
) -> RunField:
    """The effective receptive field of a run's models, each fold's on the slides of its test side.

    Args:
        run: the run folder.
        trained: false for the weights with which training began, drawn anew from the run's seed.
        options: how many slides, and how each is looked at.
        folds: whose models; all if not given.
        features: folder of the feature files; the run's if not given.
        device: auto, cpu, cuda or cuda:N.
        on_slide: called after each slide.

    Raises:
        RunError, FeatureStoreError, CohortError, SplitError: the run or its data are not there or do not fit.
        ModelError: the gradient is zero everywhere, or not finite.
    """
    options = options or FieldOptions()
    opened = finished_run(run)
    study = _study_of(opened, features)
    asked = _asked_folds(opened, folds)
    where = resolve_device(device)
    chosen = _chosen_slides(study, asked, options)
    if not any(chosen.values()):
        raise RunError(f"run {run}: no slide of a test side has features with tissue; give --features FOLDER")
    sums = OffsetSums()
    for fold in asked:
        if not chosen[fold]:
            continue
        model, card = _model(opened, fold, where, trained=trained)
        _refuse_others(study.store.spec, card, opened)
        bags = _bags(study, chosen[fold], on_slide)
        add_gradients(
            sums, model, bags, centres=options.centres, probes=options.probes, seed=options.seed, batch_size=1,
            device=where,
        )  # fmt: skip
    fixed = [name for name in opened.config.data.arrangement if name not in TURNS]
    pitch = None if fixed else _pitch_um(card.features)
    name = Path(run).resolve().name
    used = tuple(fold for fold in asked if chosen[fold])
    return RunField(
        name, Path(run), trained, str(card.model["name"]), used, sums.mean(), pitch, options
    )  # fmt: skip


def finished_run(run: Path | str) -> Run:
    """Open a run that was trained to its end.

    Raises:
        RunError: it is no run, or unfinished.
    """
    opened = open_run(run)
    if not (opened.folder / PREDICTIONS_FILE).exists():
        raise RunError(f"run {run}: is unfinished; run `wsi2d train` to the end first")
    return opened


def fields_json(fields: Sequence[RunField]) -> str:
    """What ``wsi2d receptive-field --json`` prints: the numbers of each field."""
    whole = {"schema": SCHEMA, "fields": [field.to_dict() for field in fields]}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def write_numbers(fields: Sequence[RunField], beside: Path) -> tuple[Path, Path]:
    """Write the numbers as JSON and every offset as CSV beside a picture, and return both paths.

    Raises:
        StorageError: they cannot be written.
    """
    paths = beside.with_name(f"{beside.stem}-numbers.json"), beside.with_name(f"{beside.stem}-offsets.csv")
    write_text(paths[0], fields_json(fields))
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("name", "trained", "down", "across", "gradient", "share", "centres"))
    for field in fields:
        f = field.field
        for (down, across), gradient, share, count in zip(f.offsets, f.gradient, f.share, f.counts, strict=True):
            rows.writerow((field.name, int(field.trained), down, across, f"{gradient:.6g}", f"{share:.6g}", count))
    write_text(paths[1], table.getvalue())
    return paths


def _study_of(run: Run, features: Path | str | None) -> Study:
    """The run's data, its features where they are said to be."""
    if features is None:
        return load_study(run.config)
    data = run.config.data.model_copy(update={"features": Path(features)})
    return load_study(run.config.model_copy(update={"data": data}))


def _asked_folds(run: Run, folds: Sequence[int] | None) -> tuple[int, ...]:
    if folds is None:
        return run.folds
    unknown = sorted(set(folds) - set(run.folds))
    if unknown:
        there = ", ".join(map(str, run.folds))
        raise RunError(f"run {run.folder}: fold {unknown[0]} is not trained; there are {there}")
    return tuple(dict.fromkeys(folds))


def _chosen_slides(study: Study, folds: Sequence[int], options: FieldOptions) -> dict[int, list[str]]:
    """Slides of each fold's test side, no more of all folds than are asked for."""
    sides = {fold.index: [s.slide_id for s in fold.test if s.slide_id in study.store] for fold in study.folds}
    every = [(fold, slide_id) for fold in folds for slide_id in sides.get(fold, [])]
    drawn = sorted(every, key=lambda pair: (zlib.crc32(f"{options.seed} {pair[1]}".encode()), pair))
    kept = set(drawn[: options.slides])
    return {fold: [slide_id for slide_id in sides.get(fold, []) if (fold, slide_id) in kept] for fold in folds}


def _model(run: Run, fold: int, device: torch.device, *, trained: bool) -> tuple[Aggregator, ModelCard]:
    """A fold's model; untrained it has the weights of its first step, and features standardised as in training."""
    with torch.random.fork_rng(devices=[]):
        model, card = run.model(fold, device)
        if trained:
            return model, card
        first = initial_model(run.config, fold, in_dim=card.in_dim, out_dim=card.out_dim)
    if first.standardise is not None and model.standardise is not None:
        first.standardise.load_state_dict(model.standardise.state_dict())
    return first.to(device).eval(), card


def _bags(study: Study, slide_ids: Sequence[str], on_slide: Callable[[], None] | None) -> Iterator[GridBag]:
    for slide_id in slide_ids:
        yield study.store.load(slide_id)
        if on_slide is not None:
            on_slide()


def _refuse_others(found: FeatureSpec, card: ModelCard, run: Run) -> None:
    difference = card.features.difference(found)
    if difference is not None:
        raise FeatureStoreError(f"run {run.folder}: its features have {difference} as it was trained on; extract alike")


def _pitch_um(features: FeatureSpec) -> float | None:
    if features.mpp is None or features.patch_px is None or features.overlap_px is None:
        return None
    return (features.patch_px - features.overlap_px) * features.mpp


def _defined(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
