"""``wsi2d train``: a configuration to a finished run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from wsi2d.training.crossval import TrainProgress


def train(
    config: Annotated[Path, typer.Argument(help="A run's YAML file.")],
    override: Annotated[list[str] | None, typer.Option("--set", help="key=value, as training.epochs=10.")] = None,
) -> None:
    """Cross-validate: train every fold, choose its epoch on val, score its test side once.

    Run again, it goes on where it stopped.
    """
    from rich.markup import escape

    from wsi2d.cli import console
    from wsi2d.config_files import load_run_config
    from wsi2d.training.crossval import train as run

    settings = load_run_config(config, override or [])
    with console.progress_bars("epochs") as bars:
        evaluation = run(settings, progress=bars_for_training(bars))
    console.print_evaluation(evaluation)
    console.out.print(f"→ {escape(str(settings.out))}", soft_wrap=True)


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
