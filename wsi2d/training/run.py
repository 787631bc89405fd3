"""The run folder: what a cross-validation is made from and where its parts lie."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wsi2d import __version__
from wsi2d.compute import available_cores, resolve_device
from wsi2d.config import RunConfig
from wsi2d.config_files import load_run_config, save_run_config
from wsi2d.data.bags import BagStore
from wsi2d.data.cohort import Cohort, load_cohort
from wsi2d.data.splits import SlideFold, read_splits, resolve_fold, write_splits
from wsi2d.errors import RunError
from wsi2d.evaluation.evaluate import METRICS_FILE, NOTES_FILE
from wsi2d.files import make_folder, remove, remove_partials, write_text
from wsi2d.models.aggregator import Aggregator
from wsi2d.models.registry import model_config
from wsi2d.training.checkpoint import ModelCard, load_card, load_model
from wsi2d.training.fold import MODEL_FILE
from wsi2d.training.losses.registry import loss_config

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
        store: their bags.
    """

    cohort: Cohort
    folds: tuple[SlideFold, ...]
    store: BagStore


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
        """A fold's model in evaluation mode, and its card."""
        return load_model(fold_folder(self.folder, fold) / MODEL_FILE, device)


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


def load_study(config: RunConfig) -> Study:
    """Load and check a run's cohort, splits and features.

    Raises:
        CohortError, SplitError, FeatureStoreError: something is missing or does not fit together.
    """
    data = config.data
    cohort = load_cohort(data.cohort, config.task, slide_column=data.slide_column, case_column=data.case_column)
    inner = config.training.inner_val
    folds = tuple(resolve_fold(f, cohort, inner_val=inner, seed=config.seed) for f in read_splits(data.splits))
    used = {s.slide_id for fold in folds for side in (fold.train, fold.val, fold.test) for s in side}
    ids = [s.slide_id for s in cohort.slides if s.slide_id in used]
    store = BagStore(data.features, ids, missing=data.missing_features, cache_gb=data.cache_gb)
    return Study(cohort, folds, store)


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
        _refuse_other_data(config, study)
    elif _names_in(out) - _WRITTEN_FIRST:
        raise RunError(f"run {out}: is not empty and no run; give another out")
    make_folder(out, "give another out")
    remove_partials(out)
    if not begun:
        write_splits(read_splits(config.data.splits), out / SPLITS_FOLDER)
        write_text(out / COHORT_FILE, _cohort_table(study))
        write_text(out / ENVIRONMENT_FILE, json.dumps(_environment(config), indent=2) + "\n")
        write_text(out / NOTES_FILE, json.dumps(_notes(study), indent=2) + "\n")
    save_run_config(config, path)  # also where a run goes on: its data may have moved
    remove(out / METRICS_FILE)


def fold_folder(out: Path, index: int) -> Path:
    """Where a fold's files lie."""
    return out / f"fold-{index}"


def _names_in(folder: Path) -> set[str]:
    """Names of what a folder holds; a file that was being written goes under the name it was to bear."""
    files = folder.iterdir() if folder.is_dir() else ()
    return {p.name.removeprefix(".").removesuffix(".partial") for p in files}


def _full_path(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))


def _refuse_other_data(config: RunConfig, study: Study) -> None:
    """A run goes on with the splits, labels and features it began with: its finished folds are not trained again."""
    out, remedy = config.out, "give another out, or delete that folder"
    if read_splits(out / SPLITS_FOLDER) != read_splits(config.data.splits):
        raise RunError(f"run {out}: began with other splits than {config.data.splits} holds now; {remedy}")
    for path in sorted(out.glob(f"fold-*/{MODEL_FILE}")):
        difference = load_card(path).features.difference(study.store.spec)
        if difference:
            raise RunError(f"run {out}: began with other features, {config.data.features} has {difference}; {remedy}")
    began, now = (out / COHORT_FILE), _cohort_table(study)
    if began.exists():
        changed = sorted(set(now.splitlines()) ^ set(began.read_text("utf-8").splitlines()))
        if changed:
            raise RunError(
                f"run {out}: began with other slides, labels or features than there are now (the first of "
                f"{len(changed)} lines of its {COHORT_FILE} that differ: '{changed[0]}'); {remedy}"
            )


def _cohort_table(study: Study) -> str:
    """The slides that the folds use, what is known of them, and how many patches each has (none: no feature file)."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    truth = ("label",) if study.cohort.task.kind == "classification" else ("time", "event")
    rows.writerow(("slide_id", "case_id", *truth, "patches"))
    used = {s.slide_id for fold in study.folds for side in (fold.train, fold.val, fold.test) for s in side}
    for slide in study.cohort.slides:
        if slide.slide_id in used:
            known = [getattr(slide, name) for name in truth]
            rows.writerow((slide.slide_id, slide.case_id, *known, study.store.counts.get(slide.slide_id, "")))
    return table.getvalue()


def _notes(study: Study) -> list[str]:
    """What a reader of the run's numbers must know."""
    notes = [
        f"fold {fold.index}: {len(fold.leaked_cases)} patients leak between its sides"
        for fold in study.folds
        if fold.leaked_cases
    ]
    if any(fold.inner_val for fold in study.folds):
        notes.append("the splits have no test side: val is the held-out side, the epoch was chosen on a part of train")
    for slides, what in ((study.store.empty, "tissue"), (study.store.missing, "features")):
        if slides:
            notes.append(f"{len(slides)} slides without {what} are left out: {', '.join(slides)}")
    return notes


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
