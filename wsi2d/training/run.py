"""The run folder: what a cross-validation is made from and where its parts lie."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wsi2d import __version__
from wsi2d.compute import available_cores, resolve_device
from wsi2d.config import BagUnit, RunConfig
from wsi2d.config_files import load_run_config, save_run_config
from wsi2d.data.bags import BagStore
from wsi2d.data.cohort import Cohort, CohortSlide, load_cohort
from wsi2d.data.cohort_bags import bags_of
from wsi2d.data.splits import Fold, SlideFold, read_splits, resolve_fold, splits_in_column, write_splits
from wsi2d.errors import CohortError, RunError
from wsi2d.evaluation.evaluate import LEAK, METRICS_FILE, NOTES_FILE
from wsi2d.files import make_folder, remove, remove_partials, write_text
from wsi2d.models.aggregator import Aggregator
from wsi2d.models.registry import model_config
from wsi2d.training.checkpoint import ModelCard, load_card, load_model
from wsi2d.training.fold import MODEL_FILE
from wsi2d.training.losses.registry import loss_config
from wsi2d.training.origin import claims_of, note_on_origin

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
COHORT_FILE = "cohort.csv"
ENVIRONMENT_FILE = "environment.json"
SPLITS_FOLDER = "splits"
# What a run that was killed while its folder was made can have left there; the configuration comes last.
_WRITTEN_FIRST = {SPLITS_FOLDER, COHORT_FILE, ENVIRONMENT_FILE, NOTES_FILE, CONFIG_FILE}

# What may differ when a run goes on: none of it changes what is computed (threads may change the last digits). Data may
# have moved: not where they are but what they hold is compared.
_FREE_KEYS: dict[str, Any] = {
    "out": True,
    "preset": True,
    "published": True,
    "evaluation": True,
    "data": {"cohort", "features", "splits", "slides", "cache_gb"},
    "training": {"device", "workers", "threads"},
}


@dataclass(frozen=True)
class Study:
    """A run's data, loaded and checked.

    Attributes:
        cohort: all slides.
        folds: slides of each fold by side.
        store: their features.
        unit: what a bag is, a slide or a patient.
    """

    cohort: Cohort
    folds: tuple[SlideFold, ...]
    store: BagStore
    unit: BagUnit = "slide"

    def used(self) -> tuple[CohortSlide, ...]:
        """The slides that the folds use, in the cohort's order."""
        used = {s.slide_id for fold in self.folds for side in (fold.train, fold.val, fold.test) for s in side}
        return self.cohort.subset(used)


@dataclass(frozen=True)
class Run:
    """A run folder that exists.

    Attributes:
        folder: where it is.
        config: its resolved configuration.
        folds: indices of the folds that have a model.
    """

    folder: Path
    config: RunConfig
    folds: tuple[int, ...]

    def model(self, fold: int, device: torch.device) -> tuple[Aggregator, ModelCard]:
        """A fold's model in evaluation mode, and its card.

        Raises:
            RunError: it is missing or damaged, or another run's or fold's: a model that may have been trained on what
                this one is asked about.
        """
        path = fold_folder(self.folder, fold) / MODEL_FILE
        model, card = load_model(path, device)
        theirs, ours = (model_config(section).model_dump() for section in (card.model, self.config.model))
        other = "name" if theirs["name"] != ours["name"] else _first_difference(theirs, ours)
        if other is not None:
            what = f"{other} {theirs[other]}, not {ours[other]}" if other in theirs else other
            raise RunError(f"{path}: is another run's model ({what}); put its own back, or train again")
        if card.fold != fold:
            raise RunError(f"{path}: is the model of fold {card.fold}; put its own back, or train again")
        return model, card


def open_run(folder: Path | str) -> Run:
    """Open a run folder.

    Raises:
        RunError: the folder is no run, or no fold of it is trained.
    """
    folder = Path(folder)
    path = folder / CONFIG_FILE
    if not path.exists():
        raise RunError(f"run {folder}: no {CONFIG_FILE}; give the folder that `wsi2d train` wrote")
    trained = sorted(int(p.parent.name.removeprefix("fold-")) for p in folder.glob(f"fold-*/{MODEL_FILE}"))
    if not trained:
        raise RunError(f"run {folder}: no fold is trained yet; run `wsi2d train` to the end")
    return Run(folder, load_run_config(path), tuple(trained))


def load_study(config: RunConfig, *, turned: bool = False) -> Study:
    """Load and check a run's cohort, splits and features; ``turned`` as of :class:`wsi2d.data.bags.BagStore`.

    Raises:
        CohortError, SplitError, FeatureStoreError: something is missing or does not fit together.
    """
    data = config.data
    cohort = cohort_of(config)
    inner = config.training.inner_val
    folds = tuple(
        resolve_fold(f, cohort, inner_val=inner, seed=config.seed, unknown=data.unknown_ids) for f in splits_of(config)
    )
    sides = [side for fold in folds for side in (fold.train, fold.val, fold.test)]
    try:
        for side in sides:
            bags_of(side, data.bag)
    except CohortError as error:
        raise CohortError(f"cohort {data.cohort}: {error}") from error
    used = {s.slide_id for side in sides for s in side}
    ids = [s.slide_id for s in cohort.slides if s.slide_id in used]
    store = BagStore(
        data.features, ids, missing=data.missing_features, cache_gb=data.cache_gb, claims=claims_of(data),
        arrangement=data.arrangement, seed=config.seed, turned=turned,
    )  # fmt: skip
    study = Study(cohort, folds, store, data.bag)
    for what, cases in _incomplete_cases(study).items():
        logger.warning("%d patients %s: %s", len(cases), what, ", ".join(cases[:5]))
    return study


def cohort_of(config: RunConfig) -> Cohort:
    """A run's cohort, as its configuration says where to find it and what its columns mean."""
    data = config.data
    return load_cohort(
        data.cohort,
        config.task,
        slide_column=data.slide_column,
        case_column=data.case_column,
        case_pattern=data.case_pattern,
    )


def splits_of(config: RunConfig) -> tuple[Fold, ...]:
    """The folds as they stand in a run's splits, or in a column of its cohort."""
    data = config.data
    if data.split_column is not None:
        return splits_in_column(data.cohort, data.split_column, data.slide_column)
    assert data.splits is not None, "DataConfig asks for one of them"
    return read_splits(data.splits)


def resolve_sections(config: RunConfig) -> RunConfig:
    """Model and loss with all their options spelled out, so that the run folder says what was run; full paths.

    Raises:
        ConfigError: unknown model, loss or option.
    """
    model = model_config(config.model).model_dump()
    loss = loss_config(config.training.loss, config.task.kind).model_dump()
    training = config.training.model_copy(update={"loss": loss})
    paths = {name: _full_path(value) for name, value in config.data if isinstance(value, Path)}
    data = config.data.model_copy(update=paths)
    return config.model_copy(update={"out": _full_path(config.out), "data": data, "model": model, "training": training})


def prepare_run_folder(config: RunConfig, study: Study) -> None:
    """Make the run folder, or check that the one that is there is this very run's.

    Raises:
        RunError: the folder holds something else.
        StorageError: it cannot be made or written.
    """
    out = config.out
    path = out / CONFIG_FILE
    begun = path.exists()
    if begun:
        key = _first_difference(_decisive(resolve_sections(load_run_config(path))), _decisive(config))
        if key:
            raise RunError(f"run {out}: holds a run with another {key}; give another out, or delete that folder")
        refuse_other_data(config, study, out, remedy="give another out, or delete that folder")
    elif _names_in(out) - _WRITTEN_FIRST:
        raise RunError(f"run {out}: is not empty and no run; give another out")
    make_folder(out, "give another out")
    remove_partials(out)
    if origin := note_on_origin(study.store.spec, config.data.features):
        logger.warning("%s", origin)
    if not begun:
        write_splits(splits_of(config), out / SPLITS_FOLDER)
        write_text(out / COHORT_FILE, _cohort_table(study))
        write_text(out / ENVIRONMENT_FILE, json.dumps(_environment(config), indent=2) + "\n")
        write_text(out / NOTES_FILE, json.dumps(_notes(study, config.data.features), indent=2) + "\n")
    save_run_config(config, path)  # also where a run goes on: its data may have moved
    remove(out / METRICS_FILE)


def refuse_other_data(config: RunConfig, study: Study, folder: Path, *, remedy: str) -> None:
    """Refuse splits, labels or features other than those that a run began with.

    Its finished folds are not trained again, and its predictions stay as they are.

    Args:
        config: where the data are now.
        study: what they are now.
        folder: the run's, wherever it lies by now.
        remedy: what to do about it, the end of the error's line.

    Raises:
        RunError: something differs.
    """
    if read_splits(folder / SPLITS_FOLDER) != splits_of(config):
        place = config.data.splits or f"{config.data.cohort}, column {config.data.split_column},"
        raise RunError(f"run {folder}: began with other splits than {place} holds now; {remedy}")
    for path in sorted(folder.glob(f"fold-*/{MODEL_FILE}")):
        difference = load_card(path).features.difference(study.store.spec)
        if difference:
            now_has = f"{config.data.features} has {difference}"
            raise RunError(f"run {folder}: began with other features, {now_has}; {remedy}")
    began, now = (folder / COHORT_FILE), _cohort_table(study)
    if began.exists():
        changed = sorted(set(now.splitlines()) ^ set(began.read_text("utf-8").splitlines()))
        if changed:
            raise RunError(
                f"run {folder}: began with other slides, labels or features than there are now (the first of "
                f"{len(changed)} lines of its {COHORT_FILE} that differ: '{changed[0]}'); {remedy}"
            )


def fold_folder(out: Path, index: int) -> Path:
    """Where a fold's files lie."""
    return out / f"fold-{index}"


def _names_in(folder: Path) -> set[str]:
    """Names of what a folder holds; a file that was being written goes under the name it was to bear."""
    files = folder.iterdir() if folder.is_dir() else ()
    return {p.name.removeprefix(".").removesuffix(".partial") for p in files}


def _full_path(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))


def _cohort_table(study: Study) -> str:
    """The slides that the folds use, what is known of them, and how many patches each has (none: no feature file)."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    truth = ("label",) if study.cohort.task.kind == "classification" else ("time", "event")
    rows.writerow(("slide_id", "case_id", *truth, "patches"))
    for slide in study.used():
        known = [getattr(slide, name) for name in truth]
        rows.writerow((slide.slide_id, slide.case_id, *known, study.store.counts.get(slide.slide_id, "")))
    return table.getvalue()


def _notes(study: Study, features: Path) -> list[str]:
    """What a reader of the run's numbers must know."""
    notes = [f"fold {fold.index}: {len(fold.leaked_cases)} {LEAK}" for fold in study.folds if fold.leaked_cases]
    if any(fold.inner_val for fold in study.folds):
        notes.append("the splits have no test side: val is the held-out side, the epoch was chosen on a part of train")
    for slides, what in ((study.store.empty, "tissue"), (study.store.missing, "features")):
        if slides:
            notes.append(f"{len(slides)} slides without {what} are left out: {', '.join(slides)}")
    cases = _incomplete_cases(study).items()
    notes += [f"{len(names)} patients {what}: {', '.join(names)}" for what, names in cases]
    origin = note_on_origin(study.store.spec, features)
    return [*notes, *([] if origin is None else [origin])]


def _incomplete_cases(study: Study) -> dict[str, list[str]]:
    """Where a bag is a patient: those who are left out, and those of whom some slides are, by what is said of them."""
    if study.unit == "slide":
        return {}
    usable: dict[str, list[bool]] = {}
    for slide in study.used():
        usable.setdefault(slide.case_id, []).append(slide.slide_id in study.store)
    found = {
        "have no slide with features and tissue, and are left out": [c for c, u in usable.items() if not any(u)],
        "are joined without some of their slides": [c for c, u in usable.items() if any(u) and not all(u)],
    }
    return {what: cases for what, cases in found.items() if cases}


def _decisive(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=_FREE_KEYS)


def _first_difference(a: object, b: object, key: str = "") -> str | None:
    if isinstance(a, dict) and isinstance(b, dict):
        names: Sequence[str] = sorted({*a, *b})
        found = (_first_difference(a.get(name), b.get(name), f"{key}.{name}".lstrip(".")) for name in names)
        return next((name for name in found if name), None)
    return None if a == b else key


def _environment(config: RunConfig) -> dict[str, object]:
    return {
        "wsi2d": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": available_cores(),
        "device": str(resolve_device(config.training.device)),
    }
