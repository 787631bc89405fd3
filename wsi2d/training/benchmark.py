"""Several models trained on the same folds with the same budget, each with several seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from wsi2d.config import RunConfig
from wsi2d.errors import ConfigError
from wsi2d.evaluation.benchmark import Benchmark, Contestant, Cost, score_benchmark
from wsi2d.evaluation.evaluate import PREDICTIONS_FILE
from wsi2d.evaluation.predictions import read_predictions
from wsi2d.evaluation.training_side import training_outcomes
from wsi2d.files import make_folder, write_text
from wsi2d.models.registry import build_model, model_config
from wsi2d.training.checkpoint import load_card
from wsi2d.training.crossval import TrainProgress, train
from wsi2d.training.fold import HISTORY_FILE, MODEL_FILE
from wsi2d.training.run import fold_folder

TABLE_FILES = ("benchmark.json", "benchmark.csv", "benchmark.md")


@dataclass(frozen=True)
class Entry:
    """A model to be trained: its name in the table, the section ``model`` of its configuration, and of which other
    entry it is a control, if it is one."""

    name: str
    section: Mapping[str, Any]
    control_of: str | None = None


class BenchmarkProgress:
    """Told what happens; the base class says nothing."""

    def run_started(self, name: str, seed: int, number: int, runs: int) -> TrainProgress:
        """The ``number``-th of ``runs`` trainings begins; returns whom it tells."""
        return TrainProgress()


def benchmark(
    config: RunConfig,
    models: Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    controls: bool = True,
    progress: BenchmarkProgress | None = None,
) -> Benchmark:
    """Train every model with every seed, each in a run folder of its own, and compare them.

    Args:
        config: cohort, splits, features, task and budget. Its model's options hold for the model of that name, the
            others take their defaults. ``out`` gets a folder a model with a run folder a seed, and ``benchmark.json``,
            ``.csv`` and ``.md``. What is finished is not trained again.
        models: names; the others are compared with the first.
        seeds: of the trainings.
        controls: also train, of every model that can, what is left of it without its scan and on the grid flattened
            to one row.
        progress: told what happens.

    Raises:
        ConfigError: no model, an unknown one, or one named twice.
        ModelError: a package that one of them needs is not installed; told before the first is trained.
        Wsi2dError: as :func:`wsi2d.training.crossval.train`.
    """
    progress = progress or BenchmarkProgress()
    entries = benchmark_entries(config, models, controls=controls)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds {', '.join(map(str, seeds)) or '(none)'}: give one or more, each once")
    make_folder(config.out, "give another out")
    contestants: list[Contestant] = []
    notes: list[str] = []
    number = 0
    for entry in entries:
        runs = []
        for seed in seeds:
            out = config.out / entry.name / f"seed-{seed}"
            number += 1
            run = config.model_copy(update={"out": out, "seed": seed, "model": dict(entry.section)})
            told = progress.run_started(entry.name, seed, number, len(entries) * len(seeds))
            notes += train(run, progress=told).notes
            runs.append(out)
        tables = [read_predictions(run / PREDICTIONS_FILE) for run in runs]
        training = training_outcomes(runs[0]) if config.task.kind == "survival" else {}
        contestants.append(Contestant(entry.name, tables, _cost(entry, runs), training, entry.control_of))
    table = score_benchmark(
        contestants, config.evaluation, seeds=seeds, seed=config.seed, published=config.published,
        notes=tuple(dict.fromkeys(notes)),
    )  # fmt: skip
    for name, text in zip(TABLE_FILES, (table.to_json(), table.to_csv(), table.to_markdown()), strict=True):
        write_text(config.out / name, text)
    return table


def benchmark_entries(config: RunConfig, models: Sequence[str], *, controls: bool = True) -> list[Entry]:
    """The models of a benchmark with their controls, options spelled out (see :func:`benchmark`).

    Raises:
        ConfigError: no model, an unknown one, or one named twice.
        ModelError: a package that one of them needs is not installed.
    """
    if not models:
        raise ConfigError("models: none; name one or more, as mamba2d-mil,abmil")
    entries: list[Entry] = []
    for name in models:
        section = config.model if config.model["name"] == name else {"name": name}
        full = model_config(section, source=f"models: {name}").model_dump()
        entries.append(Entry(name.replace(":", "-"), full))
        if controls:
            own = entries[-1].name
            entries += [Entry(f"{own}-{suffix}", {**full, **change}, own) for suffix, change in _controls(full).items()]
    names = [entry.name for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"models: '{twice}' is there twice; name each once")
    for entry in entries:
        with torch.device("meta"):  # takes no memory; what cannot be built is told before anything is trained
            build_model(entry.section, in_dim=1, out_dim=2)
    return entries


def _controls(full: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What is changed in each control of a model: without its scan, where that leaves something that mixes patches, and
    without the second dimension. Only models that scan a grid have any."""
    scan = next((change for change in ({"scan": False}, {"scans": 0}) if change.keys() <= full.keys()), None)
    if scan is None or "layout" not in full:
        return {}
    mixes_without = full.get("conv") != "none" and full.get("local") is not False
    found: dict[str, dict[str, Any]] = {"no-scan": scan} if mixes_without else {}
    found["one-row"] = {"layout": "row"}
    return {suffix: change for suffix, change in found.items() if any(full[key] != change[key] for key in change)}


def _cost(entry: Entry, runs: Sequence[Path]) -> Cost:
    """What a model's runs say that they took."""
    folds = [folder for run in runs for folder in sorted(run.glob("fold-*")) if (folder / HISTORY_FILE).exists()]
    history = pd.concat([pd.read_csv(folder / HISTORY_FILE) for folder in folds])
    card = load_card(fold_folder(runs[0], int(folds[0].name.removeprefix("fold-"))) / MODEL_FILE)
    model = build_model(entry.section, in_dim=card.in_dim, out_dim=card.out_dim)
    peak = float(history["peak_gb"].max()) if "peak_gb" in history else math.nan
    return Cost(sum(p.numel() for p in model.parameters()), float(history["seconds"].median()), peak)
