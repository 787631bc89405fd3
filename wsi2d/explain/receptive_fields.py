"""Receptive fields of several runs: measured, drawn, and their numbers written beside the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from wsi2d.explain.receptive_picture import check_drawing, receptive_picture
from wsi2d.explain.receptive_runs import FieldOptions, RunField, finished_run, run_receptive_field, write_numbers


def receptive_fields(
    runs: Sequence[Path | str],
    out: Path | str,
    *,
    untrained: bool = False,
    options: FieldOptions | None = None,
    folds: Sequence[int] | None = None,
    features: Path | str | None = None,
    columns: int = 2,
    reach: int | None = None,
    device: str = "auto",
    on_slide: Callable[[str], None] | None = None,
) -> tuple[RunField, ...]:
    """Draw the effective receptive fields of trained runs, each on the slides that its models have not seen.

    Args:
        runs: run folders.
        out: PNG, PDF or SVG to write; beside ``field.png`` come ``field-numbers.json`` and ``field-offsets.csv``.
        untrained: beside each also with the weights with which its training began.
        options: how many slides, and how each is looked at.
        folds: whose models; all if not given.
        features: folder of feature files; each run's own if not given.
        columns: panels beside each other.
        reach: cells shown to each side of the centre; by default as many as 99 % of every run's gradient need.
        device: auto, cpu, cuda or cuda:N.
        on_slide: called after each slide with the name of the panel it is for.

    Raises:
        ConfigError: no runs, a suffix that cannot be drawn, or a number that makes no sense.
        StorageError: a file cannot be written.
        RunError, FeatureStoreError, CohortError, SplitError, ModelError: as of
            :func:`wsi2d.explain.receptive_runs.run_receptive_field`.
    """
    out = Path(out)
    check_drawing(out, len(runs), columns=columns, reach=reach)
    for run in runs:  # what is no run is told before the first is measured
        finished_run(run)
    names = distinct_names([Path(run) for run in runs])
    found: list[RunField] = []
    for run, name in zip(runs, names, strict=True):
        for trained in (False, True) if untrained else (True,):
            told = None if on_slide is None else _telling(on_slide, name if trained else f"{name}, untrained")
            field = run_receptive_field(
                run, trained=trained, options=options, folds=folds, features=features, device=device, on_slide=told
            )
            found.append(replace(field, name=name))
    receptive_picture(found, out, columns=columns, reach=reach)
    write_numbers(found, out)
    return tuple(found)


def distinct_names(runs: Sequence[Path]) -> list[str]:
    """What run folders are called: the last parts of their paths, as many as tell them apart."""
    parts = [run.resolve().parts for run in runs]
    depth = 1
    while len({p[-depth:] for p in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]


def _telling(on_slide: Callable[[str], None], name: str) -> Callable[[], None]:
    return lambda: on_slide(name)
