"""What ``wsi2d splits audit`` finds in published tables and splits, as one table in Markdown.

Each argument is ``PRESET=COHORT`` or ``PRESET=COHORT,SPLITS``, with the files as they were published; the preset names
the columns. ``python benchmarks/published_splits.py kirc=KIRC.csv,TCGA_KIRC_survival_kfold bracs=BRACS.csv``
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from wsi2d.config_files import load_preset
from wsi2d.data.audit import Audit, Outcomes, audit

COLUMNS = (
    "data set", "slides", "patients", "folds", "patients on two sides, each fold", "held out twice",
    "ids not in the table", "source sites on two sides", "sides that differ",
)  # fmt: skip


def audited(preset: str, cohort: Path, splits: str | None) -> Audit:
    """The audit of published files, with the columns that their preset names."""
    values = load_preset(preset, None)
    data, task = values.get("data", {}), values["task"]
    place = splits if splits is not None else data["split_column"]
    columns = {name: data.get(name) for name in ("slide_column", "case_column")}
    if columns["case_column"] == (columns["slide_column"] or "slide_id"):  # patients are unknown
        columns["case_column"] = None
    outcomes = Outcomes(task.get("label"), task.get("time"), task.get("event"))
    return audit(cohort, place, outcomes=outcomes, **columns)


def row(preset: str, found: Audit) -> list[str]:
    """A data set's cells, in the order of ``COLUMNS``."""
    several = len(found.folds) > 1
    drift = [f"fold {fold.fold}: {line}" if several else line for fold in found.folds for line in fold.drift]
    return [
        preset,
        str(found.slides),
        "unknown" if found.patients is None else str(found.patients),
        str(len(found.folds)),
        "unknown" if found.patients is None else _shared(found) or "none",
        str(len(found.held_out_twice)),
        _range([len(fold.unknown) for fold in found.folds]),
        "unknown" if found.patients is None else _range([len(fold.shared_sites) for fold in found.folds]),
        "; ".join(drift) or "none",
    ]


def _shared(found: Audit) -> str:
    """How many patients each two sides share, in each fold."""
    pairs = dict.fromkeys(pair for fold in found.folds for pair in fold.shared_between)
    counts = {pair: ", ".join(str(fold.shared_between.get(pair, 0)) for fold in found.folds) for pair in pairs}
    return "; ".join(f"{numbers} in {pair.replace('-', ' and ')}" for pair, numbers in counts.items())


def _range(counts: Sequence[int]) -> str:
    return f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(counts[0])


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    if not arguments:
        raise SystemExit(__doc__)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for argument in arguments:
        preset, _, files = argument.partition("=")
        cohort, _, splits = files.partition(",")
        print(f"| {' | '.join(row(preset, audited(preset, Path(cohort), splits or None)))} |")


if __name__ == "__main__":
    main(sys.argv[1:])
