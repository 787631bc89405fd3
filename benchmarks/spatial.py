"""Models that read a grid in different ways, on pictures that ship inside well-known packages: accuracies, intervals.

    python benchmarks/spatial.py [--data digits,faces,nests,margins] [--models a,b,c] [--seeds 0,1,2] [--folds 5]
                                 [--rates 0.02] [--out benchmarks/results] [--minutes 30] [--print]

Data: scikit-learn's `load_digits`, scikit-image's `lfw_subset`, and two sets of mosaics of scikit-image's
immunohistochemistry picture in which only the arrangement differs (`spatial_data.py`). Every model of `grid_models.py`
is brought to the same number of weights and trained alike (`grid_training.py`), from the same seeds, on the same folds,
without augmentation. All take one rate; with `--rates 0.01,0.02,0.04` each takes the best of these on one fold that is
not reported (another fold of the digits and faces; other mosaics, of level strips instead of upright ones).

Every fit is written to OUT/spatial-DATA.json when it is done, and none is done twice: run the same command again and it
goes on. `--minutes` starts no fit beyond so much processor time; `--print` only prints what is there. One thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from grid_models import CONTENDERS, make, trained_weights
from grid_training import Recipe, predict, train
from numpy.typing import NDArray
from spatial_data import DATA, STRIPS, GridData
from spatial_report import complete_seeds, markdown, score
from torch.nn import functional

from wsi2d.files import write_text
from wsi2d.kernels.native.simd import INSTRUCTIONS

REFERENCE = "mamba2d-mil"
BUDGET = 10_000
SHARED = {"blocks": 1, "state": 8}
RATE = 0.02
RECIPES = {
    "digits": Recipe(epochs=20),
    "faces": Recipe(epochs=15, batch=8),
    "nests": Recipe(epochs=10, batch=8),
    "margins": Recipe(epochs=15, batch=16),
}
TUNING_SEED = 100
PACKAGES = ("torch", "numba", "scikit-learn", "scikit-image")

Fit = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A data set, how models are trained on it, and the file of its fits.

    Attributes:
        data: what is reported.
        tuning: what rates are chosen on: the same, or other mosaics.
        recipe: of training.
        folds: how many.
        rates: from which each model's is chosen; of one alone nothing is chosen.
        path: of the file.
    """

    data: GridData
    tuning: GridData
    recipe: Recipe
    folds: int
    rates: tuple[float, ...]
    path: Path

    def sides(self, seed: int, fold: int) -> tuple[GridData, torch.Tensor, torch.Tensor]:
        """Whose grids a fit takes, and which of them it trains and tests on."""
        data = self.tuning if seed == TUNING_SEED else self.data
        train_side, test_side = list(data.folds(self.folds, seed))[fold]
        return data, train_side, test_side

    @property
    def settings(self) -> dict[str, Any]:
        """What all fits of a file have in common."""
        size = {"data": self.data.name, "budget": BUDGET, **SHARED}
        return {**size, **self.recipe.as_dict(), "folds": self.folds, "rates": list(self.rates)}


def fit_once(task: Task, name: str, *, seed: int, fold: int, lr: float) -> Fit:
    """Train one model on one fold, and what it says of the test side: a digit a grid."""
    start = time.process_time()
    data, train_side, test_side = task.sides(seed, fold)
    torch.manual_seed(1000 * seed + fold)
    model = make(name, in_dim=data.grids.shape[-1], classes=data.classes, budget=BUDGET, **SHARED)
    train(model, data.grids[train_side], data.labels[train_side], task.recipe, lr=lr, seed=1000 * seed + fold)
    logits = predict(model, data.grids[test_side])
    found = {
        "model": name, "seed": seed, "fold": fold, "lr": lr, "weights": trained_weights(model),
        "cpu_s": round(time.process_time() - start, 2),
        "loss": round(functional.cross_entropy(logits, data.labels[test_side]).item(), 5),
        "predicted": "".join(str(c) for c in logits.argmax(1).tolist()),
    }  # fmt: skip
    return {**found, "accuracy": round(float(right(task, found).mean()), 5), "machine": machine()}


def right(task: Task, fit: Fit) -> NDArray[np.bool_]:
    """Which of its test side a fit has right."""
    data, _, test_side = task.sides(fit["seed"], fit["fold"])
    told = np.array([int(c) for c in fit["predicted"]])
    hits: NDArray[np.bool_] = told == data.labels[test_side].numpy()
    return hits


# --- the file of fits ----------------------------------------------------------------------------------------------


def read_fits(task: Task) -> list[Fit]:
    """Fits that are done, those that do not say on what with what the file's head says of it; ends with one line where
    they were made with other settings."""
    if not task.path.exists():
        return []
    found = json.loads(task.path.read_text("utf-8"))
    if found["settings"] != task.settings:
        raise SystemExit(f"{task.path}: was made with other settings, {found['settings']}; give another --out")
    fits: list[Fit] = found["fits"]
    for fit in fits:
        fit.setdefault("machine", str(found.get("machine", "unknown")))
    return fits


def write_fits(task: Task, fits: list[Fit]) -> None:
    """One fit a line."""
    head = {"settings": task.settings}
    lines = ",\n".join(json.dumps(fit) for fit in fits)
    write_text(task.path, f'{json.dumps(head)[:-1]}, "fits": [\n{lines}\n]}}\n')


def machine() -> str:
    """On what it was measured."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return f"{platform.machine()}, {INSTRUCTIONS}, one thread, Python {platform.python_version()}, {versions}"


# --- the run -------------------------------------------------------------------------------------------------------


def wanted(task: Task, fits: list[Fit], models: list[str], seeds: list[int]) -> Iterator[Fit]:
    """What is still to be fitted: first what rates are chosen on, then seed by seed and fold by fold each of the
    models, so that a run that ends early has treated all alike. Looks at ``fits``, which the caller extends, each time.
    """
    for name in models if len(task.rates) > 1 else ():
        for lr in task.rates:
            if not any((f["model"], f["seed"], f["lr"]) == (name, TUNING_SEED, lr) for f in fits):
                yield {"name": name, "seed": TUNING_SEED, "fold": 0, "lr": lr}
    for seed in seeds:
        for fold in range(task.folds):
            for name in models:
                if not any((f["model"], f["seed"], f["fold"]) == (name, seed, fold) for f in fits):
                    yield {"name": name, "seed": seed, "fold": fold, "lr": chosen_rate(task, fits, name)}


def chosen_rate(task: Task, fits: list[Fit], name: str) -> float:
    """The rate with the highest accuracy on the fold that is not reported; of equals that with the lowest loss."""
    if len(task.rates) == 1:
        return task.rates[0]
    tried = [f for f in fits if f["model"] == name and f["seed"] == TUNING_SEED]
    return float(max(tried, key=lambda f: (f["accuracy"], -f["loss"]))["lr"])


def run(task: Task, models: list[str], seeds: list[int], *, seconds: float) -> None:
    """Do what is not done yet; no fit is begun once this process has used so much processor time."""
    fits = read_fits(task)
    for job in wanted(task, fits, models, seeds):
        if time.process_time() > seconds:
            print(f"{task.data.name}: stopped after {seconds / 60:g} minutes; run it again to go on", file=sys.stderr)
            return
        fits.append(fit_once(task, **job))
        write_fits(task, fits)
        words = " ".join(f"{key} {fits[-1][key]}" for key in ("model", "seed", "fold", "lr", "accuracy", "cpu_s"))
        print(f"{task.data.name}: {words}", file=sys.stderr, flush=True)


def report(task: Task, models: list[str], seeds: list[int]) -> str:
    """The table of a data set, of the seeds that all models have finished."""
    fits = read_fits(task)
    found = {
        name: {(f["seed"], f["fold"]): right(task, f) for f in fits if f["model"] == name and f["seed"] != TUNING_SEED}
        for name in models
    }
    whole = complete_seeds(found, seeds, task.folds)
    title = f"### {task.data.name}\n\n{task.data.about}; {len(task.data.labels):,} grids, {task.folds} folds"
    if not whole:
        return f"{title}: no seed is finished yet"
    tested = {(s, k): task.sides(s, k)[2].numpy() for s in whole for k in range(task.folds)}
    data, reference = task.data, REFERENCE if REFERENCE in models else models[0]
    rows = score(found, tested, reference=reference, cases=data.cases.tolist(), strata=data.strata.tolist())
    details = {}
    for name in models:
        mine = [f for f in fits if f["model"] == name and f["seed"] in whole]
        seconds = float(np.mean([f["cpu_s"] for f in mine]))
        details[name] = CONTENDERS[name].about, mine[0]["weights"], mine[0]["lr"], seconds
    spent = sum(f["cpu_s"] for f in fits if f["model"] in models)
    return (
        f"{title}, seeds {', '.join(map(str, whole))}; {task.recipe.epochs} epochs in steps of {task.recipe.batch}; "
        f"{spent / 60:.0f} minutes of CPU in all\n\n{markdown(rows, details, reference)}\n\n{machines(fits)}"
    )


def machines(fits: list[Fit]) -> str:
    """A line for each machine with its versions, and how many fits were made there."""
    counts = Counter(fit["machine"] for fit in fits)
    return "\n".join(f"{count} fits on {where}" for where, count in counts.most_common())


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(DATA), help="names between commas")
    parser.add_argument("--models", default=",".join(CONTENDERS), help="names between commas")
    parser.add_argument("--seeds", default="0,1,2", help="numbers between commas")
    parser.add_argument("--folds", type=int, default=5, help="two or more; mosaics have five")
    parser.add_argument("--epochs", type=int, help="instead of each data set's own")
    parser.add_argument("--rates", default=str(RATE), help="between commas; each model takes the best of several")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of processor time")
    parser.add_argument("--print", action="store_true", dest="only_print", help="fit nothing")
    return parser.parse_args(arguments)


def named(text: str, known: dict[str, Any], what: str) -> list[str]:
    """Names between commas, each of them known."""
    names = text.split(",")
    for name in names:
        if name not in known:
            raise SystemExit(f"{what} '{name}' is unknown; there are {', '.join(known)}")
    return names


def main(arguments: list[str] | None = None) -> None:
    """Fit what is missing, and print."""
    options = parse(arguments)
    models, seeds = named(options.models, CONTENDERS, "model"), [int(s) for s in options.seeds.split(",")]
    if TUNING_SEED in seeds:
        raise SystemExit(f"--seeds: {TUNING_SEED} is what rates are chosen on; leave it out")
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in named(options.data, DATA, "data set"):
        recipe = RECIPES[name]
        if options.epochs:
            recipe = replace(recipe, epochs=options.epochs)
        data, tuning = (DATA[name](tuning=tuning) for tuning in (False, True))
        if options.folds < 2 or (data.strips is not None and options.folds != STRIPS):
            raise SystemExit(f"--folds: {options.folds} is not what {name} can be cut into; mosaics take {STRIPS}")
        rates = tuple(float(rate) for rate in options.rates.split(","))
        task = Task(data, tuning, recipe, options.folds, rates, options.out / f"spatial-{name}.json")
        if not options.only_print:
            run(task, models, seeds, seconds=60 * options.minutes)
        print(f"{report(task, models, seeds)}\n", flush=True)


if __name__ == "__main__":
    main()
