"""``wsi2d benchmark``: several models on the same folds, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from wsi2d.training.benchmark import BenchmarkProgress


def benchmark(
    config: Annotated[Path, typer.Argument(help="A run's YAML file: cohort, splits, features, task and budget.")],
    models: Annotated[str, typer.Option(help="Names with commas between; the others are compared with the first.")],
    seeds: Annotated[str, typer.Option(help="Of the trainings, with commas between.")] = "0",
    out: Annotated[Path | None, typer.Option(help="Folder. (default: the configuration's out)")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="key=value, as training.epochs=10.")] = None,
    controls: Annotated[
        bool, typer.Option(help="Also each 2D model without its scan, and on the grid flattened to one row.")
    ] = True,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Train although patients are on two sides; every result says so.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Train several models on the same folds with the same budget, and compare them.

    Run again, it goes on where it stopped; further models and seeds join what is there.
    """
    import typer as t
    from rich.markup import escape

    from wsi2d.cli import console
    from wsi2d.config_files import load_run_config
    from wsi2d.explain.benchmark_picture import PICTURE_FILE, benchmark_picture
    from wsi2d.training.benchmark import TABLE_FILES
    from wsi2d.training.benchmark import benchmark as run

    overrides = [*(override or []), *(["data.allow_leakage=true"] if allow_leakage else [])]
    overrides += [f"out={out}"] if out else []
    settings = load_run_config(config, overrides)
    names = [name.strip() for name in models.split(",") if name.strip()]
    given = whole_numbers(seeds, "--seeds", "seed")
    with console.progress_bars("epochs") as bars:
        table = run(settings, names, seeds=given, controls=controls, progress=bars_for_benchmark(bars))
    benchmark_picture(table, settings.out / PICTURE_FILE)
    if json:
        t.echo(table.to_json(), nl=False)
        return
    console.print_benchmark(table)
    files = ", ".join((*TABLE_FILES, PICTURE_FILE))
    console.out.print(f"→ {escape(str(settings.out))} ({files})", soft_wrap=True)


def whole_numbers(text: str, option: str, what: str) -> list[int]:
    """Whole numbers with commas between, as an option takes them; ``what`` says what each is.

    Raises:
        ConfigError: one is no whole number from 0 on.
    """
    from wsi2d.errors import ConfigError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    wrong = next((part for part in parts if not (part.isdecimal() and part.isascii() and int(part) < 2**32)), None)
    if wrong is not None:
        raise ConfigError(f"{option}: '{wrong}' is no {what}; give whole numbers from 0 on, with commas between")
    return [int(part) for part in parts]


def bars_for_benchmark(bars: Progress) -> BenchmarkProgress:
    """A bar over the trainings, and those of the training at hand."""
    from rich.markup import escape

    from wsi2d.cli import console
    from wsi2d.cli.train import bars_for_training
    from wsi2d.training.benchmark import BenchmarkProgress
    from wsi2d.training.crossval import TrainProgress

    class Bars(BenchmarkProgress):
        def __init__(self) -> None:
            self.all = bars.add_task("trainings", total=None, rate="")

        def run_started(self, name: str, seed: int, number: int, runs: int) -> TrainProgress:
            bars.update(self.all, total=runs, completed=number - 1, rate=f"{name}, seed {seed}")
            for task in [t.id for t in bars.tasks if t.id != self.all]:
                bars.remove_task(task)
            console.err.print(escape(f"{number} of {runs}: {name}, seed {seed}"), soft_wrap=True)
            return bars_for_training(bars)

    return Bars()
