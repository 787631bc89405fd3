"""``wsi2d evaluate``: a run's numbers, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
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
    from wsi2d.config import Arrangement
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
    slide_column: Annotated[
        str | None, typer.Option(help="That cohort's column of slide ids. (default: slide_id)")
    ] = None,
    case_column: Annotated[
        str | None, typer.Option(help="That cohort's column of patients. (default: case_id)")
    ] = None,
    label: Annotated[str | None, typer.Option(help="That cohort's label column. (default: the run's)")] = None,
    time: Annotated[str | None, typer.Option(help="That cohort's time column. (default: the run's)")] = None,
    event: Annotated[str | None, typer.Option(help="That cohort's COLUMN=VALUE. (default: the run's)")] = None,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Although patients of it were in the run's own; the results say so.")
    ] = False,
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
    from wsi2d.features.imports.claims import Claims

    said = {"slide_column": slide_column, "case_column": case_column, "label": label, "time": time, "event": event}
    options: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    options |= {"allow_leakage": True} if allow_leakage else {}
    other = _Other(cohort, features, out, Claims(encoder, mpp, patch_px), options)
    chosen = chosen_arrangements(
        flip=flip, rotate=rotate, shuffle_positions=shuffle_positions, drop_empty=drop_empty, flatten=flatten
    )
    given = {"bootstrap": bootstrap, "at": at, "cut": cut, "unit": unit, "ordered": ordered or None}
    _evaluate(run, other, chosen, given, device=device, json=json)


@dataclass(frozen=True)
class _Other:
    """What is said of another cohort."""

    cohort: Path | None
    features: Path | None
    out: Path | None
    claims: Claims
    options: dict[str, Any]

    def check(self) -> bool:
        """Whether there is one; ConfigError for what does not go together."""
        from wsi2d.errors import ConfigError
        from wsi2d.features.imports.claims import NO_CLAIMS

        if self.cohort is not None and self.features is not None:
            return True
        if self.cohort is not None or self.features is not None:
            raise ConfigError("evaluate: another cohort needs both --cohort and --features")
        if self.claims != NO_CLAIMS:
            raise ConfigError("evaluate: --encoder, --mpp and --patch-px speak of another --cohort and its --features")
        unread = [f"--{name.replace('_', '-')}" for name in self.options] + ["--out"] * (self.out is not None)
        if unread:
            raise ConfigError(f"evaluate: {unread[0]} speaks of another cohort; give its --cohort and --features too")
        return False


def _evaluate(
    run: Path, other: _Other, chosen: list[Arrangement], given: dict[str, Any], *, device: str, json: bool
) -> None:
    """Evaluate a run, a table, another cohort, or the run's own with patches elsewhere, and print it."""
    import typer as t

    from wsi2d.cli import console
    from wsi2d.config import EvaluationConfig, validate
    from wsi2d.errors import ConfigError
    from wsi2d.evaluation.evaluate import evaluate as run_evaluation
    from wsi2d.evaluation.evaluate import is_table
    from wsi2d.explain.survival_picture import PICTURE_FILE, survival_picture
    from wsi2d.training.ablation import ablate
    from wsi2d.training.run import open_run

    elsewhere, alone = other.check(), is_table(run)
    if elsewhere and alone:
        raise ConfigError(f"evaluate: {run} is a table; another cohort needs the folder of a run")
    if chosen and (alone or elsewhere):
        what = f"{run} is a table" if alone else "another cohort is evaluated as it is"
        raise ConfigError(f"evaluate: {what}; patches elsewhere need the folder of a run, and its own cohort")
    opened = None if alone else open_run(run)
    values = {} if opened is None else opened.config.evaluation.model_dump()
    values |= {name: value for name, value in given.items() if value is not None}
    settings = validate(EvaluationConfig, values, source="evaluate")
    if chosen:
        found = ablate(run, chosen, settings, device=device)
        t.echo(found.to_json(), nl=False) if json else console.print_comparison(found)
        return
    place = _predicted(run, other, device=device) if elsewhere else run
    evaluation = run_evaluation(place, settings, seed=0 if opened is None else opened.config.seed)
    if evaluation.survival is not None and not is_table(place):
        survival_picture(evaluation.survival.risk_groups, run / PICTURE_FILE, evaluation.notes)
    if json:
        t.echo(evaluation.to_json(), nl=False)
    else:
        console.print_evaluation(evaluation)


def _predicted(run: Path, other: _Other, *, device: str) -> Path:
    """Predict another cohort; the table of its predictions."""
    from wsi2d.cli import console
    from wsi2d.training.external import predict_cohort
    from wsi2d.training.run import open_run

    assert other.cohort is not None
    assert other.features is not None
    out = other.out or run / "external" / f"{other.cohort.name.partition('.')[0]}.csv"
    count = predict_cohort(run, other.cohort, other.features, out, claims=other.claims, device=device, **other.options)
    what = "patients" if open_run(run).config.data.bag == "case" else "slides"
    console.err.print(f"{count} {what} of another cohort predicted → {out}", markup=False, soft_wrap=True)
    return out
