"""``wsi2d splits``: folds of a cohort."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from wsi2d.config import ClassificationTask, SurvivalTask
    from wsi2d.data.audit import Audit

app = typer.Typer(help="Folds of a cohort, by patient.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Folds of a cohort, by patient."""


@app.command()
def make(
    cohort: Annotated[Path, typer.Argument(help="Cohort CSV.")],
    out: Annotated[Path, typer.Option(help="Folder of the splits_<k>.csv files.")],
    folds: Annotated[int | None, typer.Option(help="Number of folds. (default: 5)")] = None,
    label: Annotated[str | None, typer.Option(help="Label column, for classification.")] = None,
    time: Annotated[str | None, typer.Option(help="Time column, for survival.")] = None,
    event: Annotated[str | None, typer.Option(help="COLUMN=VALUE that means the event happened, for survival.")] = None,
    val_share: Annotated[float, typer.Option(help="Share of the patients outside test that choose the epoch.")] = 0.2,
    seed: Annotated[int, typer.Option(help="The same seed gives the same folds.")] = 0,
    repeats: Annotated[
        int | None, typer.Option(help="How many cross-validations, each with another seed. (default: 1)")
    ] = None,
    holdout: Annotated[
        float | None, typer.Option(help="Instead of a cross-validation one fold that tests this share.")
    ] = None,
    site_preserving: Annotated[
        bool, typer.Option("--site-preserving", help="Each tissue source site (of TCGA's barcodes) on one side.")
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(help="A published data set's, instead of --label or --time: labels, columns, patients."),
    ] = None,
    slide_column: Annotated[
        str | None, typer.Option(help="Column of slide ids. (default: the preset's, else slide_id)")
    ] = None,
    case_column: Annotated[
        str | None,
        typer.Option(
            help="Column of patients; the slide column where there are none. (default: likewise, else case_id)"
        ),
    ] = None,
    case_pattern: Annotated[
        str | None, typer.Option(help="Regular expression that finds a patient in a slide's id, where none is named.")
    ] = None,
) -> None:
    """Make stratified folds with train, val and test sides; a patient is on one side, and tested once."""
    from rich.markup import escape

    from wsi2d.cli import console
    from wsi2d.data.cohort import load_cohort
    from wsi2d.data.splits import make_holdout, make_splits, sites_of, write_splits
    from wsi2d.errors import ConfigError

    if holdout is not None and (folds is not None or repeats is not None):
        raise ConfigError("splits: --holdout makes one fold; leave out --folds and --repeats, or --holdout")
    task, columns = _task_and_columns({"label": label, "time": time, "event": event}, preset)
    given = {"slide_column": slide_column, "case_column": case_column, "case_pattern": case_pattern}
    columns |= {name: _regular(value, name) for name, value in given.items() if value is not None}
    console.check_out(out, folder=True)
    table = load_cohort(cohort, task, **columns)
    sites = sites_of(table) if site_preserving else None
    if holdout is not None:
        made = make_holdout(table, holdout, seed=seed, val_share=val_share, sites=sites)
    else:
        count = {"folds": 5 if folds is None else folds, "repeats": 1 if repeats is None else repeats}
        made = make_splits(table, **count, seed=seed, val_share=val_share, sites=sites)
    write_splits(made, out)
    console.out.print(escape(table.describe()), soft_wrap=True)
    sizes = ", ".join(f"{len(f.train)}/{len(f.val)}/{len(f.test)}" for f in made)
    console.out.print(f"{len(made)} folds (patients in train/val/test: {sizes}) → {escape(str(out))}", soft_wrap=True)


def _task_and_columns(
    outcome: dict[str, str | None], preset: str | None
) -> tuple[ClassificationTask | SurvivalTask, dict[str, Any]]:
    """What is stratified by, and what a preset says of the table's columns and patients."""
    from wsi2d.config import ClassificationTask, SurvivalTask, validate
    from wsi2d.config_files import load_preset
    from wsi2d.errors import ConfigError

    given = {name: value for name, value in outcome.items() if value is not None}
    if preset is not None:
        values = load_preset(preset, None)
        section = values.get("task")
        if given or not isinstance(section, dict) or not {"label", "time"} & section.keys():
            why = f"and --{next(iter(given))} both say" if given else "does not say"
            raise ConfigError(
                f"splits: --preset {preset} {why} what is stratified by; give one of --preset and --label"
            )
        data = values.get("data") or {}
        columns = {k: data[k] for k in ("slide_column", "case_column", "case_pattern") if data.get(k) is not None}
        if "label" in section:
            return validate(ClassificationTask, section, source=f"preset {preset}"), columns
        return validate(SurvivalTask, section, source=f"preset {preset}"), columns
    if ("label" in given) == ("time" in given or "event" in given):
        raise ConfigError("splits: give either --label COLUMN, or --time COLUMN and --event COLUMN=VALUE")
    if "label" in given:
        return validate(ClassificationTask, given, source="splits"), {}
    if len(given) < 2:
        raise ConfigError("splits: survival needs both --time COLUMN and --event COLUMN=VALUE")
    return validate(SurvivalTask, given, source="splits"), {}


def _regular(value: str, name: str) -> str:
    from wsi2d.errors import ConfigError

    try:
        re.compile(value if name == "case_pattern" else "")
    except re.error as error:
        raise ConfigError(f"splits: --case-pattern must be a regular expression ({error}), got {value}") from error
    return value


@app.command()
def audit(
    cohort: Annotated[Path, typer.Argument(help="Cohort: a CSV, or a zip that holds one.")],
    splits: Annotated[str, typer.Argument(help="Folder of splits_<k>.csv, one such file, or a column of the cohort.")],
    label: Annotated[str | None, typer.Option(help="Label column: classes are counted on each side.")] = None,
    time: Annotated[str | None, typer.Option(help="Time column.")] = None,
    event: Annotated[str | None, typer.Option(help="COLUMN=VALUE that means the event happened.")] = None,
    slide_column: Annotated[str | None, typer.Option(help="Column of slide ids, where its name is not known.")] = None,
    case_column: Annotated[str | None, typer.Option(help="Column of patients, where its name is not known.")] = None,
    fix: Annotated[Path | None, typer.Option(help="Folder for splits in which each patient is on one side.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Look for patients on two sides, slides that are missing, and sides that differ. Exit code 1 for shared patients.

    --fix leaves a shared patient on the side that is scored last: test, else val.
    """
    import json

    from wsi2d.cli import console
    from wsi2d.data.audit import Outcomes
    from wsi2d.data.audit import audit as look
    from wsi2d.data.splits import write_splits
    from wsi2d.errors import ConfigError

    if (time is None) != (event is None):
        raise ConfigError("splits: survival needs both --time COLUMN and --event COLUMN=VALUE")
    if event is not None and "=" not in event:
        raise ConfigError(f"splits: --event is '{event}', it should be COLUMN=VALUE")
    if fix is not None:
        console.check_out(fix, folder=True)
        source = Path(splits).parent if Path(splits).is_file() else Path(splits)
        if source.resolve() == fix.resolve():
            raise ConfigError(f"splits: --fix {fix} is where the splits lie that are mended; give another folder")
    found = look(
        cohort, splits, outcomes=Outcomes(label, time, event), slide_column=slide_column, case_column=case_column
    )
    if fix is not None:
        write_splits(found.repaired, fix)
        for fold in found.emptied():
            console.err.print(f"warning: {fold}", markup=False, soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    else:
        _print_audit(found)
        if fix is not None:
            console.out.print(f"repaired splits → {fix}", markup=False, soft_wrap=True)
    if found.leaks:
        raise typer.Exit(1)


_NAMED = 5  # ids of a list that are printed


def _print_audit(found: Audit) -> None:
    from wsi2d.cli import console

    def say(line: str) -> None:
        console.out.print(line, markup=False, highlight=False, soft_wrap=True)

    def some(names: Sequence[str]) -> str:
        more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return ", ".join(names[:_NAMED]) + more

    told = found.patients is not None or any(fold.shared_cases for fold in found.folds)
    who = "patient" if told else "slide"
    patients = "patients unknown" if found.patients is None else f"{found.patients} patients"
    say(f"{found.slides} slides, {patients}, {len(found.folds)} fold{'' if len(found.folds) == 1 else 's'}")
    for fold in found.folds:
        say(f"\nfold {fold.fold}")
        for name, side in fold.sides.items():
            parts = [f"{side.slides} slides"]
            parts += [] if side.patients is None else [f"{side.patients} patients"]
            parts += [", ".join(f"{c} {n}" for c, n in side.classes.items())] if side.classes else []
            parts += [] if side.events is None else [f"{side.events} events"]
            parts += [] if side.median_time is None else [f"median time {side.median_time:.4g}"]
            say(f"  {name:5} {'; '.join(parts)}")
        if fold.shared_cases:
            pairs = ", ".join(f"{n} in {pair.replace('-', ' and ')}" for pair, n in fold.shared_between.items())
            say(f"  SHARED PATIENTS: {len(fold.shared_cases)} ({pairs}): {some(fold.shared_cases)}")
        if fold.shared_slides and (found.patients is None or not fold.shared_cases):
            say(f"  SHARED SLIDES: {len(fold.shared_slides)}: {some(fold.shared_slides)}")
        if fold.unknown:
            say(f"  warning: {len(fold.unknown)} ids are not in the cohort: {some(fold.unknown)}")
        if fold.missing:
            say(f"  warning: {len(fold.missing)} slides are on no side: {some(fold.missing)}")
        if fold.shared_sites:
            say(f"  warning: {len(fold.shared_sites)} tissue source sites are on two sides: {some(fold.shared_sites)}")
        for line in fold.drift:
            say(f"  warning: {line}")
    if found.held_out_twice:
        twice = f"{len(found.held_out_twice)} {who}s are held out in more than one fold"
        say(f"\nwarning: {twice}: {some(found.held_out_twice)}")
    shared = [str(f.fold) for f in found.folds if f.shared_cases or f.shared_slides]
    say(
        f"\n{who}s on two sides in fold{'s' if len(shared) > 1 else ''} {', '.join(shared)}"
        if shared
        else f"\nno {who} on two sides"
    )
