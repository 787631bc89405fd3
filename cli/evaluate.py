"""``wsi2d evaluate``: a run's numbers, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    bootstrap: Annotated[
        int | None, typer.Option(help="Resamples of patients. (default: the run's, else 1000)")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print metrics.json instead of the table.")] = False,
) -> None:
    """Metrics of the out-of-fold predictions: each fold, mean ± sd, pooled, intervals; also written to metrics.json."""
    import typer as t

    from wsi2d.cli import console
    from wsi2d.config import EvaluationConfig, validate
    from wsi2d.evaluation.evaluate import evaluate as run_evaluation
    from wsi2d.training.run import open_run

    opened = open_run(run)
    values = opened.config.evaluation.model_dump()
    settings = validate(
        EvaluationConfig, values | ({} if bootstrap is None else {"bootstrap": bootstrap}), source="evaluate"
    )
    evaluation = run_evaluation(run, settings, seed=opened.config.seed)
    if json:
        t.echo(evaluation.to_json(), nl=False)
    else:
        console.print_evaluation(evaluation)
