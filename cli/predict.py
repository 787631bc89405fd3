"""``wsi2d predict``: new slides, or patients, by the ensemble of folds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsi2d.cli.evaluate import EncoderOption, MppOption, PatchOption


def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    features: Annotated[Path, typer.Argument(help="A feature file, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="CSV of the predictions.")],
    cohort: Annotated[
        Path | None, typer.Option(help="CSV that names each slide's patient; for runs that join a patient's slides.")
    ] = None,
    slide_column: Annotated[str, typer.Option(help="Its column of slide ids.")] = "slide_id",
    case_column: Annotated[str, typer.Option(help="Its column of patients.")] = "case_id",
    encoder: EncoderOption = None,
    mpp: MppOption = None,
    patch_px: PatchOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Predict slides that the run has not seen: the mean over the models of its folds."""
    from rich.markup import escape

    from wsi2d.cli import console
    from wsi2d.evaluation.predictions import JOINED_SLIDES
    from wsi2d.features.imports.claims import Claims
    from wsi2d.training.predict import predict as run_prediction

    console.check_out(out)
    columns = {"slide_column": slide_column, "case_column": case_column}
    claims = Claims(encoder, mpp, patch_px)
    table = run_prediction(run, features, out, cohort=cohort, **columns, device=device, claims=claims)
    what = "patients" if JOINED_SLIDES in table else "slides"
    console.out.print(f"{len(table)} {what} predicted → {escape(str(out))}", soft_wrap=True)
