"""``wsi2d predict``: new slides by the ensemble of folds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    features: Annotated[Path, typer.Argument(help="A feature file, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="CSV of the predictions.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Predict slides that the run has not seen: the mean over the models of its folds."""
    from rich.markup import escape

    from wsi2d.cli import console
    from wsi2d.training.predict import predict as run_prediction

    console.check_out(out)
    table = run_prediction(run, features, out, device=device)
    console.out.print(f"{len(table)} slides predicted → {escape(str(out))}", soft_wrap=True)
