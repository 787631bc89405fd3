"""``wsi2d evaluate``: a run's numbers, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi2d.cli.train import (
    DropEmptyOption,
    FlattenOption,
    FlipOption,
    RotateOption,
    ShuffleOption,
    chosen_arrangements,
)

if TYPE_CHECKING:
    from wsi2d.features.imports.claims import Claims

# Also those of `wsi2d predict`.
EncoderOption = Annotated[
    str | None, typer.Option(help="Encoder of features whose files do not say it, or that is only known by name.")
]
MppOption = Annotated[float | None, typer.Option(help="Resolution of patches, µm/px, where features do not say it.")]
PatchOption = Annotated[int | None, typer.Option(help="Side of a patch, px, where features do not say it.")]


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder, or a table of predictions.")],
    bootstrap: Annotated[
        int | None, typer.Option(help="Resamples of patients. (default: the run's, else 1000)")
    ] = None,
    at: Annotated[float | None, typer.Option(help="Survival: time point. (default: the median event time)")] = None,
    cut: Annotated[
        float | None, typer.Option(help="Survival: risk that parts high from low. (default: training side's median)")
    ] = None,
    cohort: Annotated[
        Path | None, typer.Option(help="Another cohort's CSV: the mean over the run's models is evaluated on it.")
    ] = None,
    features: Annotated[Path | None, typer.Option(help="Folder of that cohort's features.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="CSV of its predictions. (default: RUN/external/<cohort's name>.csv)")
    ] = None,
    slide_column: Annotated[str, typer.Option(help="That cohort's column of slide ids.")] = "slide_id",
    case_column: Annotated[str, typer.Option(help="That cohort's column of patients.")] = "case_id",
    label: Annotated[str | None, typer.Option(help="That cohort's label column. (default: the run's)")] = None,
    time: Annotated[str | None, typer.Option(help="That cohort's time column. (default: the run's)")] = None,
    event: Annotated[str | None, typer.Option(help="That cohort's COLUMN=VALUE. (default: the run's)")] = None,
    encoder: EncoderOption = None,
    mpp: MppOption = None,
    patch_px: PatchOption = None,
    device: Annotated[str, typer.Option(help="For its predictions: auto, cpu, cuda or cuda:N.")] = "auto",
    unit: Annotated[
        str | None, typer.Option(help="Classification: count each slide, or each case (patient). (default: the run's)")
    ] = None,
    ordered: Annotated[bool, typer.Option("--ordered", help="Classes are grades: quadratic kappa as well.")] = False,
    flip: FlipOption = False,
    rotate: RotateOption = False,
    shuffle_positions: ShuffleOption = False,
    drop_empty: DropEmptyOption = False,
    flatten: FlattenOption = False,
    json: Annotated[bool, typer.Option("--json", help="Print metrics.json instead of the table.")] = False,
) -> None:
    """Metrics of the out-of-fold predictions: each fold, mean ± sd, pooled, intervals; also written to metrics.json.

    With --cohort and --features the run's models are evaluated on slides of another cohort, which they have not seen.
    With --shuffle-positions, --flatten, --flip, --rotate or --drop-empty each fold's models predict its test side anew,
    its patches elsewhere, and what that changes is printed with intervals; RUN/ablations/ gets the predictions.
    For survival, patients of high and low risk as well: risk_groups.csv and risk_groups.png. Of a table that stands
    alone nothing is written.
    """
    import typer as t

    from wsi2d.cli import console
    from wsi2d.config import EvaluationConfig, validate
    from wsi2d.errors import ConfigError
    from wsi2d.evaluation.evaluate import evaluate as run_evaluation
    from wsi2d.evaluation.evaluate import is_table
    from wsi2d.explain.survival_picture import PICTURE_FILE, survival_picture
    from wsi2d.features.imports.claims import NO_CLAIMS, Claims
    from wsi2d.training.ablation import ablate
    from wsi2d.training.run import open_run

    claims = Claims(encoder, mpp, patch_px)
    columns = {"slide_column": slide_column, "case_column": case_column, "label": label, "time": time, "event": event}
    if cohort is not None and features is not None:
        run = _predicted(run, cohort, features, out, claims, device=device, **columns)
    elif cohort is not None or features is not None:
        raise ConfigError("evaluate: another cohort needs both --cohort and --features")
    elif claims != NO_CLAIMS:
        raise ConfigError("evaluate: --encoder, --mpp and --patch-px speak of another --cohort and its --features")
    alone = is_table(run)
    chosen = chosen_arrangements(
        flip=flip, rotate=rotate, shuffle_positions=shuffle_positions, drop_empty=drop_empty, flatten=flatten
    )
    if chosen and alone:
        raise ConfigError(f"evaluate: {run} is a table; patches elsewhere need the folder of a run, and its own cohort")
    opened = None if alone else open_run(run)
    values = {} if opened is None else opened.config.evaluation.model_dump()
    given = {"bootstrap": bootstrap, "at": at, "cut": cut, "unit": unit, "ordered": ordered or None}
    values |= {name: value for name, value in given.items() if value is not None}
    settings = validate(EvaluationConfig, values, source="evaluate")
    if chosen:
        found = ablate(run, chosen, settings, device=device)
        t.echo(found.to_json(), nl=False) if json else console.print_comparison(found)
        return
    evaluation = run_evaluation(run, settings, seed=0 if opened is None else opened.config.seed)
    if evaluation.survival is not None and not alone:
        survival_picture(evaluation.survival.risk_groups, run / PICTURE_FILE, evaluation.notes)
    if json:
        t.echo(evaluation.to_json(), nl=False)
    else:
        console.print_evaluation(evaluation)


def _predicted(run: Path, cohort: Path, features: Path, out: Path | None, claims: Claims, **options: Any) -> Path:
    """Predict another cohort; the table of its predictions."""
    from wsi2d.cli import console
    from wsi2d.errors import ConfigError
    from wsi2d.evaluation.evaluate import is_table
    from wsi2d.training.external import predict_cohort
    from wsi2d.training.run import open_run

    if is_table(run):
        raise ConfigError(f"evaluate: {run} is a table; another cohort needs the folder of a run")
    out = out or run / "external" / f"{cohort.name.partition('.')[0]}.csv"
    count = predict_cohort(run, cohort, features, out, claims=claims, **options)
    what = "patients" if open_run(run).config.data.bag == "case" else "slides"
    console.err.print(f"{count} {what} of another cohort predicted → {out}", markup=False, soft_wrap=True)
    return out
