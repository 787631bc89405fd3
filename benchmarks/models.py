"""What each aggregator costs on this machine's CPU: seconds and peak memory against the patches of a slide.

    python benchmarks/models.py [--models a,b,c] [--cells 1000,3000,10000,30000,100000] [--json FILE]
                                [--rounds 3] [--turns 1] [--threads 2] [--clock wall|cpu] [--share 0.5]
                                [--in-dim 1024] [--limit-s 120] [--memory-gb 12]

A slide has so many patches, which occupy a share of the cells of a square grid, at random. For each aggregator with its
default options and each number of patches, in a process of its own: the time of a forward pass without gradients, and
of forward and backward, each the fastest of some; the most memory that each takes above the model and the bag. Beside
them the ratio to TransMIL's, measured in the same run. With `--turns` all models have their turn several times at each
number of patches, and the fastest of all turns counts, so that a slow minute of the machine is not one model's. What
would take longer than the limit, by how the model grew so far, or more memory, is left out, and that is said; a process
that asks for more memory than the limit ends. FILE is written after each part, and a run with the same options on the
same machine goes on from there. `growth.py` makes a table of it. On a machine that others use as well, `--clock cpu
--threads 1` counts the processor's time for this process alone. Linux alone (memory is read from /proc); models of
torchmil need torchmil.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import peak_megabytes

from wsi2d.data.bags import BagBatch, GridBag, collate
from wsi2d.kernels.native.simd import INSTRUCTIONS
from wsi2d.models.catalogue import list_models
from wsi2d.models.registry import MODELS, build_model

YARDSTICK = "torchmil:transmil"
PARTS = ("forward", "forward_backward")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
COLUMNS = [f"{part}_{unit}" for unit in ("s", "mb") for part in PARTS]
PACKAGES = ("torch", "numba", "torchmil")

Row = dict[str, Any]


def make_bag(patches: int, share: float, in_dim: int) -> BagBatch:
    """A slide whose patches occupy about so large a share of a square grid."""
    generator = np.random.default_rng(0)
    side = max(1, round((patches / share) ** 0.5))
    side += side * side < patches
    cells = generator.permutation(side * side)[:patches]
    index = torch.from_numpy(np.stack(np.divmod(cells, side), 1))
    features = torch.from_numpy(generator.standard_normal((patches, in_dim), np.float32))
    return collate([GridBag("slide", features, index, (side, side))])


def measure(name: str, patches: int, *, rounds: int, share: float, in_dim: int, clock: str) -> Row:
    """Seconds and megabytes of one aggregator on one slide, in this process."""
    torch.manual_seed(0)
    model = build_model({"name": name}, in_dim=in_dim, out_dim=2)
    batch = make_bag(patches, share, in_dim)

    def forward(given: BagBatch) -> None:
        with torch.inference_mode():
            model.eval()(given)

    def both(given: BagBatch) -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        model(given).trained_logits.square().sum().backward()

    row: Row = {"model": name, "patches": patches, "cells": int(batch.shapes.prod())}
    few = make_bag(9, 0.5, in_dim)
    for part, call in zip(PARTS, (forward, both), strict=True):
        call(few)  # compiles, and loads what is loaded late
        row[f"{part}_mb"] = round(peak_megabytes(lambda call=call: call(batch)), 1)
        row[f"{part}_s"] = float(f"{fastest_seconds(lambda call=call: call(batch), rounds, CLOCKS[clock]):.4g}")
    return row


def fastest_seconds(call: Callable[[], None], rounds: int, clock: Callable[[], float]) -> float:
    """The fastest of some calls: what a neighbour on the machine slows down least."""
    taken = []
    for _ in range(rounds):
        start = clock()
        call()
        taken.append(clock() - start)
    return min(taken)


def in_a_process(name: str, patches: int, options: argparse.Namespace) -> Row | None:
    """:func:`measure` in a process of its own; None where it asks for more memory than it may have.

    It is a copy of this one, which has imported all and computed nothing.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=lambda: theirs.send(measure_within(name, patches, options)))
    process.start()
    theirs.close()
    try:
        found: Row | None = ours.recv()
    except EOFError:
        found = None
    process.join()
    if process.exitcode:
        raise SystemExit(f"{name}, {patches} patches: ended with {process.exitcode}")
    return found


def measure_within(name: str, patches: int, options: argparse.Namespace) -> Row | None:
    """:func:`measure`, or None: this process gets no more memory than the limit."""
    limit = int(options.memory_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    given = {"rounds": options.rounds, "share": options.share, "in_dim": options.in_dim, "clock": options.clock}
    try:
        return measure(name, patches, **given)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        return None


def expected(name: str, patches: int, rows: list[Row], key: str) -> float:
    """What a model will take, by how it grew between the last two numbers of patches; 0 where that is not known."""
    mine = [row for row in rows if row["model"] == name and row["patches"] < patches]
    if len(mine) < 2 or min(row[key] for row in mine[-2:]) <= 0:
        return 0.0
    a, b = mine[-2:]
    power = np.log(b[key] / a[key]) / np.log(b["patches"] / a["patches"])
    return float(b[key] * (patches / b["patches"]) ** max(power, 1))


def too_much(name: str, patches: int, rows: list[Row], options: argparse.Namespace) -> str | None:
    """Why a measurement is not begun: it would take too long, or too much memory."""
    seconds = expected(name, patches, rows, "forward_backward_s") * (options.rounds + 1)
    if seconds > options.limit_s:
        return f"it would take about {seconds:.0f} s"
    gigabytes = expected(name, patches, rows, "forward_backward_mb") / 1000
    if gigabytes > options.memory_gb:
        return f"it would need about {gigabytes:.0f} GB"
    return None


def faster(first: Row, second: Row) -> Row:
    """Two measurements of the same as one: the least of each time, the most of each memory."""
    parts = {key: (min if key.endswith("_s") else max)(first[key], second[key]) for key in COLUMNS}
    return {**first, **parts, "turns": first["turns"] + second["turns"]}


def print_rows(rows: list[Row], patches: int, weights: dict[str, int | None]) -> None:
    """The measurements at one number of patches, with their ratio to TransMIL's where that is among them."""
    here = [row for row in rows if row["patches"] == patches]
    if not here:
        return
    yardstick = next((row for row in here if row["model"] == YARDSTICK), None)
    print(f"\n{patches:,} patches on {here[0]['cells']:,} cells; in brackets the ratio to TransMIL's")
    print(f"{'':28}{'weights':>9}" + "".join(f"{name:>20}" for name in ("forward, s", "+ backward, s", "MB", "MB")))
    for row in here:
        line = f"{row['model']:28}{weights[row['model']] or 0:>9,}"
        for key in COLUMNS:
            share = f"({row[key] / yardstick[key]:.2f}×)" if yardstick else ""
            line += f"{f'{row[key]:,.3f}' if key.endswith('_s') else f'{row[key]:,.0f}':>11}{share:>9}"
        print(line, flush=True)


def chosen_models(text: str | None) -> list[str]:
    """Those named, or all that can be built here."""
    entries = {entry.name: entry for entry in list_models()}
    names = text.split(",") if text else [name for name, entry in entries.items() if not entry.problem]
    for name in names:
        if name not in entries:
            raise SystemExit(f"model '{name}' is unknown; there are {', '.join(MODELS)}")
        if entries[name].problem:
            raise SystemExit(entries[name].problem)
    return names


def versions() -> dict[str, str]:
    """Of what the figures depend on, where it is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What a measurement depends on: a file with other settings is not continued."""
    machine = f"{platform.machine()}, {INSTRUCTIONS}, {options.threads} threads"
    kept = ("in_dim", "share", "rounds", "clock", "memory_gb")
    return {"machine": machine, **versions(), **{key: getattr(options, key) for key in kept}}


def measured_before(path: Path | None, settings: dict[str, Any]) -> list[Row]:
    """What an earlier run has measured."""
    if path is None or not path.exists():
        return []
    earlier = json.loads(path.read_text("utf-8"))
    other = next((key for key, value in settings.items() if earlier.get(key) != value), None)
    if other is not None:
        raise SystemExit(f"{path}: was measured with {other} {earlier.get(other)}, not {settings[other]}; name another")
    rows: list[Row] = earlier["measured"]
    return rows


def write_result(result: dict[str, Any], path: Path | None) -> None:
    """Write what was measured so far, where a file is wanted."""
    if path is None:
        return
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(path)


def take_turn(name: str, patches: int, rows: list[Row], options: argparse.Namespace) -> str | None:
    """One model's turn at one number of patches, put among the rows; why not, where it is left out."""
    reason = too_much(name, patches, rows, options)
    if reason is not None:
        return reason
    found = in_a_process(name, patches, options)
    if found is None:
        return f"it needs more than {options.memory_gb:g} GB"
    row = {**found, "turns": 1}
    at = next((i for i, r in enumerate(rows) if (r["model"], r["patches"]) == (name, patches)), None)
    if at is None:
        rows.append(row)
    else:
        rows[at] = faster(rows[at], row)
    return None


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, and return what was measured."""
    names = chosen_models(options.models)
    weights = {entry.name: entry.parameters for entry in list_models(in_dim=options.in_dim)}
    settings = settings_of(options)
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    data = f"{options.in_dim} numbers a patch, float32; {options.clock} time"
    print(f"{settings['machine']}; {packages}; {data}", flush=True)  # or every process would print it again
    rows = measured_before(options.json, settings)
    result: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"), "python": platform.python_version(), **settings,
        "yardstick": YARDSTICK, "weights": {name: weights[name] for name in names}, "left_out": [], "measured": rows,
    }  # fmt: skip
    for patches in sorted(options.cells):
        left_out: set[str] = set()
        for turn in range(1, options.turns + 1):
            for name in [n for n in names if n not in left_out and turns_of(n, patches, rows) < turn]:
                reason = take_turn(name, patches, rows, options)
                if reason is not None:
                    left_out.add(name)
                    result["left_out"].append({"model": name, "patches": patches, "why": reason})
                    print(f"{name}: not measured at {patches:,} patches, {reason}", flush=True)
                write_result(result, options.json)
        rows.sort(key=lambda row: (row["patches"], names.index(row["model"]) if row["model"] in names else len(names)))
        print_rows(rows, patches, weights)
    write_result(result, options.json)
    return result


def turns_of(name: str, patches: int, rows: list[Row]) -> int:
    """How many turns a model has had at a number of patches."""
    return next((row["turns"] for row in rows if (row["model"], row["patches"]) == (name, patches)), 0)


def numbers(text: str) -> list[int]:
    """Whole numbers between commas."""
    return [int(part) for part in text.split(",")]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="names between commas; all that can be built here if not given")
    parser.add_argument("--cells", type=numbers, default=[1000, 3000, 10_000, 30_000, 100_000], help="occupied cells")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=1, help="how often each model has its turn at a size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="what time is measured by")
    parser.add_argument("--share", type=float, default=0.5, help="share of the grid's cells that have a patch")
    parser.add_argument("--in-dim", type=int, default=1024)
    parser.add_argument("--limit-s", type=float, default=120, help="for one turn of one model")
    parser.add_argument("--memory-gb", type=float, default=12, help="that a model's process may have")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, print, and write the file."""
    options = parse()
    torch.set_num_threads(options.threads)
    run(options)


if __name__ == "__main__":
    main()
