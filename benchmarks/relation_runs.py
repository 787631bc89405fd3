"""Training and testing of models on relations, the file of results, and its tables; see ``relations.py``."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from grid_models import CONTENDERS, make, pack, trained_weights
from relation_cells import Mosaic, Side
from relation_counting import PAIRS, best_by_count
from relations import RELATIONS, Cells, Ints, Marks, Relation, Samples, Shape, draw
from torch import Tensor
from torch.nn import functional

from wsi2d.files import whole_file
from wsi2d.kernels.native.simd import INSTRUCTIONS
from wsi2d.models.aggregator import Aggregator

STEPS = {"order": 150, "enclosure": 500, "path": 500}  # where they differ from the default
RESULTS = Path(__file__).parent / "results" / "relations.json"
CELLS = ("marks", "mosaic")
PACKAGES = ("torch", "numpy", "numba")
MODELS = (
    "order-free", "convolution-deep", "raster-causal", "raster", "serpentine", "both-ways", "one-row",
    "raster-4", "cross", "mamba2d-1", "mamba2d-shared", "mamba2d-mil", "wavefront",
)  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How every model is trained and tested.

    Attributes:
        steps: of the optimiser; each takes grids that no model has seen, the same for every model.
        batch: grids a step.
        sides: rows and columns are drawn from here for each step (see :func:`drawn_shape`).
        widening: training begins with the two least distances, and has all of them after this share of the steps.
        lr: the highest rate of AdamW; it rises over the first twentieth and falls to 0 over the last three tenths.
        budget: weights of every model on marks; on mosaics, whose cells are 108 numbers, half as many more.
        state: states a channel.
        tested: grids at each distance; the same for every model and seed.
    """

    steps: int = 300
    batch: int = 16
    sides: tuple[int, int] = (9, 13)
    widening: float = 0.4
    lr: float = 1e-2
    budget: int = 8000
    state: int = 4
    tested: int = 128


@cache
def cells_of(name: str, side: Side) -> Cells:
    """What cells look like in training or in tests."""
    return Marks() if name == "marks" else Mosaic(side)


def make_model(name: str, cells: str, seed: int, settings: Settings) -> Aggregator:
    """A contender with starting weights of a seed; for mosaics fitted to the cells' mean and deviation."""
    in_dim = cells_of(cells, "train").dim
    budget = settings.budget if cells == "marks" else settings.budget * 3 // 2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make(name, in_dim=in_dim, classes=2, budget=budget, state=settings.state, dropout=0.0)
    bank = cells_of(cells, "train")
    if isinstance(bank, Mosaic) and model.standardise is not None:
        embeddings = torch.from_numpy(bank.embeddings)
        model.standardise.fit(embeddings.mean(0), embeddings.std(0))
    return model


def drawn_shape(relation: Relation, distance: int, sides: tuple[int, int], generator: np.random.Generator) -> Shape:
    """Rows and columns at random; where a distance needs more, so many more at random than it needs.

    With one width for all, cells of a sequence that are further apart would tell a diagonal from an anti-diagonal.
    """
    drawn = generator.integers(sides[0], sides[1] + 1, 2)
    height, width = (
        max(int(a), b + int(a) - sides[0]) for a, b in zip(drawn, relation.smallest(distance), strict=True)
    )
    return height, width


def training_batches(task: str, cells: str, seed: int, settings: Settings) -> Iterator[Samples]:
    """A batch a step, of one shape and of several distances, near ones first."""
    relation, bank = RELATIONS[task], cells_of(cells, "train")
    generator = np.random.default_rng([seed, list(RELATIONS).index(task), CELLS.index(cells)])
    lowest, highest = relation.trained
    for step in range(settings.steps):
        reach = min(highest, lowest + 1 + int((highest - lowest) * step / (settings.widening * settings.steps)))
        distance: Ints = generator.integers(lowest, reach + 1, settings.batch // len(relation.labels))
        shape = drawn_shape(relation, int(distance.max()), settings.sides, generator)
        yield draw(task, settings.batch, distance, shape, generator, cells=bank)


def rate(step: int, steps: int) -> float:
    """Share of the highest rate at a step."""
    return min((step + 1) / max(1, steps // 20), 1.0, (steps - step) / max(1, 3 * steps // 10))


def train(model: Aggregator, batches: Iterable[Samples], settings: Settings) -> list[float]:
    """Train a model; returns the mean loss of each tenth of the steps."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=1e-2)
    losses: list[float] = []
    model.train()
    for step, batch in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * rate(step, settings.steps)
        loss = functional.cross_entropy(model(pack(torch.from_numpy(batch.x))).logits, torch.from_numpy(batch.label))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return [round(float(part.mean()), 4) for part in np.array_split(np.array(losses), min(10, len(losses)))]


@torch.inference_mode()
def correct(model: Aggregator, task: str, cells: str, distance: int, settings: Settings) -> int:
    """How many of the test grids at a distance a model answers rightly."""
    relation, bank = RELATIONS[task], cells_of(cells, "test")
    generator = np.random.default_rng([2**20, list(RELATIONS).index(task), CELLS.index(cells), distance])
    model.eval()
    right, at_once = 0, 32
    for _ in range(settings.tested // at_once):
        shape = drawn_shape(relation, distance, settings.sides, generator)
        batch = draw(task, at_once, distance, shape, generator, cells=bank)
        said: Tensor = model(pack(torch.from_numpy(batch.x))).logits.argmax(1)
        right += int((said == torch.from_numpy(batch.label)).sum())
    return right


def measure(task: str, cells: str, name: str, seed: int, settings: Settings) -> Row:
    """Train one model on one task, and test it at each distance."""
    cells_of(cells, "test")
    model = make_model(name, cells, seed, settings)
    start = time.process_time()
    losses = train(model, training_batches(task, cells, seed, settings), settings)
    trained_s = time.process_time() - start
    answers = {str(d): correct(model, task, cells, d, settings) for d in RELATIONS[task].tested}
    return {
        "task": task, "cells": cells, "model": name, "seed": seed, "weights": trained_weights(model),
        "cpu_s": round(trained_s, 1), "test_cpu_s": round(time.process_time() - start - trained_s, 1),
        "loss": losses, "correct": answers, **asdict(settings), "machine": machine(),
    }  # fmt: skip


def machine() -> str:
    """On what it is measured, and with what."""
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    threads = f"{torch.get_num_threads()} thread"
    return f"{platform.machine()}, {INSTRUCTIONS}, {threads}, Python {platform.python_version()}, {versions}"


# --- the file


def key_of(row: Row) -> tuple[str, str, str, int]:
    """What a row is the result of."""
    return row["task"], row["cells"], row["model"], row["seed"]


def read_rows(path: Path) -> list[Row]:
    """What was measured so far; nothing where there is no file. Where a row does not say on what, the file's head does.

    Raises:
        SystemExit: the file is no file of results.
    """
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text("utf-8"))
        rows: list[Row] = found["runs"]
        for row in rows:
            key_of(row)
            row.setdefault("machine", machine_of_head(found))
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path}: no results of this benchmark ({error}); give another --json") from error
    return rows


def machine_of_head(found: dict[str, Any]) -> str:
    """What the head of a file says of the rows that do not say it themselves."""
    said = [str(found["machine"])] if "machine" in found else []
    said += [f"Python {found['python']}"] if "python" in found else []
    return ", ".join([*said, *(f"{package} {found[package]}" for package in PACKAGES if package in found)]) or "unknown"


def write_rows(path: Path, rows: list[Row]) -> None:
    """The file anew, complete or not at all."""
    lines = ",\n".join("  " + json.dumps(row) for row in sorted(rows, key=lambda row: [str(k) for k in key_of(row)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_text(f'{{\n "runs": [\n{lines}\n ]\n}}\n', "utf-8")


def refuse_other_settings(
    path: Path, rows: list[Row], tasks: Iterable[str], settings: Callable[[str], Settings]
) -> None:
    """Rows of one task were trained alike, or they are not compared.

    Raises:
        SystemExit: some were not.
    """
    for row in rows:
        if row["task"] not in tasks:
            continue
        wanted = json.loads(json.dumps(asdict(settings(row["task"]))))
        for name, value in wanted.items():
            if row.get(name) != value:
                raise SystemExit(
                    f"{path}: '{row['task']}' was trained with {name} {row.get(name)}, now {value}; give another --json"
                )


# --- tables


def accuracies(rows: Iterable[Row], distances: Iterable[int]) -> list[float]:
    """For each row (a seed), its mean accuracy over some distances."""
    return [float(np.mean([row["correct"][str(d)] / row["tested"] for d in distances])) for row in rows]


def spread(values: list[float]) -> str:
    """Mean, and the lowest and the highest seed."""
    return f"{np.mean(values):.2f} [{min(values):.2f}, {max(values):.2f}]" if values else "–"


def table(rows: list[Row], task: str, cells: str) -> list[str]:
    """Lines of a Markdown table: a row a model, its accuracy at each distance, and with the range of seeds at the
    farthest distance of training and beyond."""
    relation = RELATIONS[task]
    chosen = [row for row in rows if (row["task"], row["cells"]) == (task, cells)]
    farthest = relation.trained[1]
    beyond = [d for d in relation.tested if d > farthest]
    heads = [*(str(d) for d in relation.tested), f"{farthest}, seeds", f"beyond {farthest}, seeds", "loss", "CPU s"]
    lines = [f"| {' | '.join([f'`{task}`, {cells}', *heads])} |", "|---" + "|---:" * len(heads) + "|"]
    for name in CONTENDERS:
        mine = [row for row in chosen if row["model"] == name]
        if not mine:
            continue
        means = [f"{np.mean(accuracies(mine, [d])):.2f}" for d in relation.tested]
        loss = np.mean([row["loss"] for row in mine], 0)
        values = [spread(accuracies(mine, part)) for part in ([farthest], beyond)]
        values += [f"{loss[len(loss) // 2]:.2f} → {loss[-1]:.2f}", f"{np.mean([row['cpu_s'] for row in mine]):.0f}"]
        lines.append(f"| {' | '.join([f'`{name}`', *means, *values])} |")
    return lines


def one_line(row: Row) -> str:
    """What a training came to."""
    answers = " ".join(f"{distance}: {right / row['tested']:.2f}" for distance, right in row["correct"].items())
    where = f"{row['task']}, {row['cells']}, {row['model']}, seed {row['seed']}"
    return f"{where}: {answers}; loss {row['loss'][-1]:.3f}, {row['cpu_s']:.0f} s"


def count_line(task: str, sides: tuple[int, int]) -> str:
    """What a perfect count of the cells between two marks would come to."""
    generator, (lowest, highest) = np.random.default_rng(0), RELATIONS[task].trained
    shapes = {
        d: [drawn_shape(RELATIONS[task], d, sides, generator) for _ in range(400)] for d in range(lowest, highest + 1)
    }
    told = np.mean([best_by_count(task, {d: drawn}, generator) for d, drawn in shapes.items()])
    return (
        f"A perfect count of the cells between the marks in raster order would give "
        f"{best_by_count(task, shapes, generator):.2f}, and {told:.2f} if it were told the distance."
    )


def print_tables(rows: list[Row]) -> None:
    """A table a task and look of cells, and what all of it took."""
    for task in RELATIONS:
        for cells in CELLS:
            if any((row["task"], row["cells"]) == (task, cells) for row in rows):
                settings = next(row for row in rows if (row["task"], row["cells"]) == (task, cells))
                grids = settings["steps"] * settings["batch"]
                seeds = len({row["seed"] for row in rows if (row["task"], row["cells"]) == (task, cells)})
                print(f"\n{RELATIONS[task].about}; {settings['steps']} steps, {grids:,} grids, {seeds} seeds\n")
                print("\n".join(table(rows, task, cells)))
                if task in PAIRS and cells == CELLS[0]:
                    print(count_line(task, settings["sides"]))
    taken = sum(row["cpu_s"] + row["test_cpu_s"] for row in rows)
    print(f"\n{len(rows)} trainings, {taken:,.0f} s of one core", flush=True)
    for where, count in Counter(row["machine"] for row in rows).most_common():
        print(f"{count} on {where}", flush=True)


# --- the command


def names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """A type for argparse: some of the known names, between commas."""

    def parse(text: str) -> list[str]:
        found = text.split(",")
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"'{name}' is unknown; there are {', '.join(known)}")
        return found

    return parse


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    import relations

    defaults = Settings()
    other = ", ".join(f"{steps} for {task}" for task, steps in STEPS.items())
    parser = argparse.ArgumentParser(
        description=relations.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=names(RELATIONS), default=list(RELATIONS))
    parser.add_argument("--cells", type=names(CELLS), default=list(CELLS))
    parser.add_argument("--models", type=names(CONTENDERS), default=list(MODELS))
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help=f"of every training; {defaults.steps} by default, but {other}")
    parser.add_argument("--tested", type=int, default=defaults.tested, help="grids at each distance, in 32s")
    parser.add_argument("--json", type=Path, default=RESULTS, help="the file of results, which a run goes on with")
    parser.add_argument("--figure", type=Path, metavar="FOLDER", help="draw a picture a task into this folder")
    parser.add_argument("--no-training", action="store_true", help="tables and pictures of what is there")
    parser.add_argument("--limit-s", type=float, default=math.inf, help="begin no training after so many seconds")
    options = parser.parse_args(arguments)
    if options.tested < 32 or options.tested % 32:
        parser.error(f"--tested must be a multiple of 32, got {options.tested}")
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps must be at least 1, got {options.steps}")
    return options


def run(options: argparse.Namespace) -> list[Row]:
    """Train and test what is not in the file yet, and keep each result as it comes."""
    rows, path = read_rows(options.json), options.json

    def settings(task: str) -> Settings:
        return Settings(steps=options.steps or STEPS.get(task, Settings.steps), tested=options.tested)

    if not options.no_training:
        refuse_other_settings(path, rows, options.tasks, settings)
        start, done = time.monotonic(), {key_of(row) for row in rows}
        for task, cells, seed, name in (
            (task, cells, seed, name)
            for task in options.tasks for cells in options.cells for seed in options.seeds for name in options.models
        ):  # fmt: skip
            if (task, cells, name, seed) in done:
                continue
            if time.monotonic() - start > options.limit_s:
                print(f"stopped after {options.limit_s:g} s; the same command goes on", flush=True)
                break
            rows.append(measure(task, cells, name, seed, settings(task)))
            write_rows(path, rows)
            print(one_line(rows[-1]), flush=True)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Train, print, draw."""
    options = parse(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    rows = run(options)
    print_tables(rows)
    if options.figure:
        from relation_figures import draw_figures

        for path in draw_figures(rows, options.figure):
            print(path)
