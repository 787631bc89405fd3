"""``wsi2d train``: a configuration to a finished run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from wsi2d.config import Arrangement
    from wsi2d.training.crossval import TrainProgress

# Also those of `wsi2d evaluate`.
FlipOption = Annotated[bool, typer.Option("--flip", help="Left and right change sides.")]
RotateOption = Annotated[bool, typer.Option("--rotate", help="Slides are turned by a quarter.")]
ShuffleOption = Annotated[bool, typer.Option("--shuffle-positions", help="A slide's patches change places.")]
DropEmptyOption = Annotated[bool, typer.Option("--drop-empty", help="Rows and columns without tissue are left out.")]
FlattenOption = Annotated[bool, typer.Option("--flatten", help="The grid is one row, in raster order.")]


def train(
    config: Annotated[Path, typer.Argument(help="A run's YAML file.")],
    override: Annotated[list[str] | None, typer.Option("--set", help="key=value, as training.epochs=10.")] = None,
    flip: FlipOption = False,
    rotate: RotateOption = False,
    shuffle_positions: ShuffleOption = False,
    drop_empty: DropEmptyOption = False,
    flatten: FlattenOption = False,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Train although patients are on two sides; every result says so.")
    ] = False,
) -> None:
    """Cross-validate: train every fold, choose its epoch on val, score its test side once.

    Run again, it goes on where it stopped. With --shuffle-positions, --drop-empty or --flatten patches lie elsewhere on
    every side; with --flip and --rotate slides are mirrored and turned at random, on the training side alone.
    """
    from rich.markup import escape

    from wsi2d.cli import console
    from wsi2d.config_files import load_run_config
    from wsi2d.training.crossval import train as run

    chosen = chosen_arrangements(
        flip=flip, rotate=rotate, shuffle_positions=shuffle_positions, drop_empty=drop_empty, flatten=flatten
    )
    overrides = [*(override or []), *(["data.allow_leakage=true"] if allow_leakage else [])]
    overrides += [f"data.arrangement=[{', '.join(chosen)}]"] if chosen else []
    settings = load_run_config(config, overrides)
    with console.progress_bars("epochs") as bars:
        evaluation = run(settings, progress=bars_for_training(bars))
    console.print_evaluation(evaluation)
    console.out.print(f"→ {escape(str(settings.out))}", soft_wrap=True)


def chosen_arrangements(**options: bool) -> list[Arrangement]:
    """Which of the arrangements are asked for, by options of their names."""
    from wsi2d.data.arrangements import ARRANGEMENTS

    return [name for name in ARRANGEMENTS if options[name.replace("-", "_")]]


def bars_for_training(bars: Progress) -> TrainProgress:
    """A bar over the folds and, where folds train one after the other, one over the epochs."""
    from rich.markup import escape

    from wsi2d.cli import console
    from wsi2d.training.crossval import TrainProgress

    class Bars(TrainProgress):
        def run_started(self, cohort: str, folds: int, epochs: int) -> None:
            console.err.print(escape(cohort), soft_wrap=True)
            self.folds = bars.add_task("folds", total=folds, rate="")
            self.epochs = bars.add_task("", total=epochs, visible=False, rate="")

        def epoch_done(self, fold: int, row: dict[str, float]) -> None:
            losses = f"train {row['train_loss']:.3f}, val {row['val_loss']:.3f}"
            description = f"fold {fold}"
            bars.update(
                self.epochs, completed=row["epoch"], description=description, visible=True, rate=losses
            )  # fmt: skip

        def fold_done(self, fold: int) -> None:
            bars.advance(self.folds)
            bars.update(self.epochs, visible=False)

    return Bars()
