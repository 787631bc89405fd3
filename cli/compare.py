"""``wsi2d compare``: two runs on the same patients and folds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run folder, or a table of predictions.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another on the same slides and folds.")],
    bootstrap: Annotated[int, typer.Option(help="Resamples of patients.")] = 1000,
    at: Annotated[float | None, typer.Option(help="Survival: time point. (default: the median event time)")] = None,
    unit: Annotated[str, typer.Option(help="Classification: count each slide, or each case (patient).")] = "slide",
    ordered: Annotated[bool, typer.Option("--ordered", help="Classes are grades: quadratic kappa as well.")] = False,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the tables.")] = False,
) -> None:
    """Is RUN_B better than RUN_A? Differences (B − A) with intervals, and paired tests by patient and by fold."""
    import typer as t

    from wsi2d.cli import console
    from wsi2d.config import EvaluationConfig, validate
    from wsi2d.evaluation.compare import compare as compare_runs

    values = {"bootstrap": bootstrap, "ordered": ordered, "at": at, "unit": unit}
    found = compare_runs(first, second, validate(EvaluationConfig, values, source="compare"), seed=seed)
    if json:
        t.echo(found.to_json(), nl=False)
    else:
        console.print_comparison(found)
