"""``wsi2d splits``: folds of a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Folds of a cohort, by patient.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Folds of a cohort, by patient."""


@app.command()
def make(
    cohort: Annotated[Path, typer.Argument(help="Cohort CSV.")],
    out: Annotated[Path, typer.Option(help="Folder of the splits_<k>.csv files.")],
    folds: Annotated[int, typer.Option(help="Number of folds.")] = 5,
    label: Annotated[str | None, typer.Option(help="Label column, for classification.")] = None,
    time: Annotated[str | None, typer.Option(help="Time column, for survival.")] = None,
    event: Annotated[str | None, typer.Option(help="COLUMN=VALUE that means the event happened, for survival.")] = None,
    val_share: Annotated[float, typer.Option(help="Share of the patients outside test that choose the epoch.")] = 0.2,
    seed: Annotated[int, typer.Option(help="The same seed gives the same folds.")] = 0,
    slide_column: Annotated[str, typer.Option(help="Column of slide ids.")] = "slide_id",
    case_column: Annotated[
        str, typer.Option(help="Column of patients; the slide column where there are none.")
    ] = "case_id",
) -> None:
    """Make stratified folds with train, val and test sides; a patient is on one side, and tested once."""
    from rich.markup import escape

    from wsi2d.cli import console
    from wsi2d.config import ClassificationTask, SurvivalTask, validate
    from wsi2d.data.cohort import load_cohort
    from wsi2d.data.splits import make_splits, write_splits
    from wsi2d.errors import ConfigError

    if (label is None) == (time is None and event is None):
        raise ConfigError("splits: give either --label COLUMN, or --time COLUMN and --event COLUMN=VALUE")
    if label is None and (time is None or event is None):
        raise ConfigError("splits: survival needs both --time COLUMN and --event COLUMN=VALUE")
    console.check_out(out, folder=True)
    task: ClassificationTask | SurvivalTask
    if label is not None:
        task = validate(ClassificationTask, {"label": label}, source="splits")
    else:
        task = validate(SurvivalTask, {"time": time, "event": event}, source="splits")
    table = load_cohort(cohort, task, slide_column=slide_column, case_column=case_column)
    made = make_splits(table, folds=folds, seed=seed, val_share=val_share)
    write_splits(made, out)
    console.out.print(escape(table.describe()), soft_wrap=True)
    sizes = ", ".join(f"{len(f.train)}/{len(f.val)}/{len(f.test)}" for f in made)
    console.out.print(f"{len(made)} folds (patients in train/val/test: {sizes}) → {escape(str(out))}", soft_wrap=True)
