"""An audit of splits: who is on two sides, what is missing, and how alike the sides are.

It reads tables as they come: a cohort without labels or patients, ids with and without a slide's suffix, splits as a
folder, as one file, or as a column of the cohort.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from wsi2d.config import ClassificationTask, nearest
from wsi2d.data.cohort import BARCODE, Cohort, barcode_case, plain_slide_id, read_table, same_value
from wsi2d.data.splits import SIDES, Fold, read_splits, splits_in_column
from wsi2d.errors import CohortError, SplitError

SLIDE_COLUMNS = ("slide_id", "slide", "image_id", "File Name", "filename", "file_name")
CASE_COLUMNS = ("case_id", "patient_id", "patient", "case", "submitter_id")
_HAPPENED = "event happened"
DRIFT = 0.01  # a difference between train and test that chance gives more rarely is named


@dataclass(frozen=True)
class Outcomes:
    """Which columns tell the outcome; none of them need be given.

    Attributes:
        label: of a class.
        time, event: of survival; the event as ``COLUMN=VALUE``.
    """

    label: str | None = None
    time: str | None = None
    event: str | None = None


@dataclass(frozen=True)
class SideReport:
    """What is on a side: slides, patients (None where they are unknown), slides of each class, patients with an event,
    the median time of follow-up."""

    slides: int
    patients: int | None
    classes: dict[str, int] = field(default_factory=dict)
    events: int | None = None
    median_time: float | None = None


@dataclass(frozen=True)
class FoldReport:
    """What is wrong or worth knowing of one fold.

    Attributes:
        fold: its number.
        sides: those that are not empty.
        shared_cases: patients on two sides, sorted.
        shared_between: how many of them for each pair of sides, as ``train-test``.
        shared_slides: slides on two sides, sorted.
        missing: slides of the cohort that no side names.
        unknown: ids of the splits that the cohort does not have.
        shared_sites: tissue source sites (of TCGA's barcodes) on two sides.
        drift: what differs between train and the held-out side by more than chance, one line each.
    """

    fold: int
    sides: dict[str, SideReport]
    shared_cases: list[str]
    shared_between: dict[str, int]
    shared_slides: list[str]
    missing: list[str]
    unknown: list[str]
    shared_sites: list[str]
    drift: list[str]


@dataclass(frozen=True)
class Audit:
    """The report on all folds, and the splits with their patients put right.

    Attributes:
        slides, patients: of the cohort; patients are None where neither a column nor barcodes name that of every slide.
        folds: one report each.
        held_out_twice: patients (slides, where patients are unknown) whom more than one fold holds out, sorted; as
            repeated splits do, but folds of one cross-validation should not.
        repaired: every patient on one side, the one that is scored last; unknown ids left out.
    """

    slides: int
    patients: int | None
    folds: tuple[FoldReport, ...]
    held_out_twice: tuple[str, ...]
    repaired: tuple[Fold, ...]

    @property
    def leaks(self) -> bool:
        """Whether a patient, or a slide where patients are unknown, is on two sides."""
        return any(f.shared_cases or f.shared_slides for f in self.folds)

    def emptied(self) -> list[str]:
        """A line for each side that had somebody and has nobody left in the repaired splits."""
        pairs = [(report, fold) for report, fold in zip(self.folds, self.repaired, strict=True)]
        return [
            f"fold {fold.index}: its {side} side is empty once patients are on one side each; make new splits"
            for report, fold in pairs
            for side in report.sides
            if not fold.side(side)
        ]

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        folds = [asdict(f) for f in self.folds]
        about = {"slides": self.slides, "patients": self.patients, "leaks": self.leaks}
        return {**about, "held_out_twice": list(self.held_out_twice), "folds": folds}

    def warnings(self) -> list[str]:
        """What is worth knowing besides patients on two sides, over all folds: a line for each kind."""
        lines = []
        counts = {
            "tissue source sites are on two sides": [len(f.shared_sites) for f in self.folds],
            "slides are on no side": [len(f.missing) for f in self.folds],
        }
        for what, by_fold in counts.items():
            some = [n for n in by_fold if n]
            if some:
                count = f"{min(some)} to {max(some)}" if min(some) < max(some) else f"{some[0]}"
                lines.append(f"{count} {what}, in {len(some)} of {len(by_fold)} folds")
        drift: dict[str, list[tuple[int, str]]] = {}
        for fold in self.folds:
            for line in fold.drift:
                drift.setdefault(line.partition(" (")[0], []).append((fold.fold, line))
        for (first, line), *others in drift.values():
            more = f"; likewise in {', '.join(f'fold {k}' for k, _ in others)}" if others else ""
            lines.append(f"fold {first}: {line}{more}")
        if self.held_out_twice:
            who = "slides" if self.patients is None else "patients"
            lines.append(f"{len(self.held_out_twice)} {who} are held out by more than one fold")
        return lines


def audit(
    cohort: Path,
    splits: str,
    *,
    outcomes: Outcomes = Outcomes(),
    slide_column: str | None = None,
    case_column: str | None = None,
) -> Audit:
    """Look at splits of a cohort.

    Args:
        cohort: a CSV table, or a zip that holds one; one row a slide.
        splits: a folder of ``splits_<k>.csv``, one such file, or a column of the cohort that holds train, val and test.
        outcomes: columns whose balance between sides is looked at.
        slide_column, case_column: of ids; None for the first of :data:`SLIDE_COLUMNS`, :data:`CASE_COLUMNS` there is.

    Raises:
        CohortError: the table cannot be read or lacks a column.
        SplitError: the splits cannot be read.
    """
    table = _TableOfFile(cohort, outcomes, slide_column, case_column)
    return _audited(table, _folds(table, splits))


def audit_cohort(cohort: Cohort, folds: Sequence[Fold], *, patients_known: bool | Collection[str] = True) -> Audit:
    """Look at splits of a cohort that is loaded already, with its outcome.

    Args:
        cohort: who is split.
        folds: as they stand in the splits.
        patients_known: its patients are more than slides of their own; or the slides of which that holds.
    """
    if isinstance(cohort.task, ClassificationTask):
        label = cohort.task.label
        rows: dict[str, dict[Any, Any]] = {s.slide_id: {label: s.label} for s in cohort.slides}
        outcomes = Outcomes(label=label)
    else:
        time = cohort.task.time
        rows = {s.slide_id: {time: s.time, _HAPPENED: str(int(bool(s.event)))} for s in cohort.slides}
        outcomes = Outcomes(time=time, event=f"{_HAPPENED}=1")
    told = (set(rows) if patients_known else set()) if isinstance(patients_known, bool) else set(patients_known)
    return _audited(_Table(rows, {s.slide_id: s.case_id for s in cohort.slides}, told, outcomes), folds)


def _audited(table: _Table, folds: Sequence[Fold]) -> Audit:
    reports, repaired = zip(*(_report(fold, table) for fold in folds), strict=True)
    patients = len(set(table.case_of.values())) if table.all_told else None
    held_out = Counter(case for fold in folds for case in _held_out_cases(fold, table))
    twice = tuple(sorted(case for case, count in held_out.items() if count > 1))
    return Audit(len(table.rows), patients, reports, twice, repaired)


# --- the cohort ----------------------------------------------------------------------------------------------------


class _Table:
    """A cohort with as much as it tells: what is known of each slide, and its patient."""

    def __init__(
        self, rows: dict[str, dict[Any, Any]], case_of: dict[str, str], told: set[str], outcomes: Outcomes
    ) -> None:
        self.rows, self.case_of, self.told, self.outcomes = rows, case_of, told, outcomes
        self.all_told = len(told) == len(rows)  # of every slide it is known whose it is
        self.slides_of: dict[str, list[str]] = {}
        for slide_id, case_id in case_of.items():
            self.slides_of.setdefault(case_id, []).append(slide_id)

    def slides(self, name: str) -> list[str] | None:
        """Slides that an id of the splits means: one, or all of a patient; None where there is no such id."""
        plain = plain_slide_id(name)
        return [plain] if plain in self.rows else self.slides_of.get(name)

    def case(self, slide_id: str) -> str:
        """The patient of a slide; of one that the table does not have, what a TCGA barcode says of it."""
        return self.case_of.get(slide_id) or barcode_case(slide_id)

    def told_cases(self, names: Iterable[str]) -> set[str]:
        """Patients of slides or unknown ids, as far as they are told."""
        told = (i for i in names if i in self.told or (i not in self.rows and (self.all_told or BARCODE.match(i))))
        return {self.case(i) for i in told}


class _TableOfFile(_Table):
    """The same as it stands in a file, whose columns are found by their names."""

    def __init__(self, path: Path, outcomes: Outcomes, slide_column: str | None, case_column: str | None) -> None:
        frame = read_table(path)
        columns = [str(c) for c in frame.columns]
        slide = slide_column or next((c for c in SLIDE_COLUMNS if c in columns), None)
        case = case_column or next((c for c in CASE_COLUMNS if c in columns), None)
        if slide is None:
            raise CohortError(
                f"cohort {path}: no column of slides; there are {', '.join(columns[:8])}; name it with --slide-column"
            )
        wanted = [outcomes.label, outcomes.time, outcomes.event and outcomes.event.partition("=")[0]]
        for name in (slide, case, *wanted):
            if name is not None and name not in columns:
                raise CohortError(f"cohort {path}: no column '{name}'; {nearest(name, columns)}")
        if outcomes.event is not None:
            _refuse_no_event(frame, path, outcomes.event)
        self.path, self.columns, self.slide_column = path, columns, slide
        ids = [plain_slide_id(value) for value in frame[slide]]
        twice = [name for name, count in Counter(ids).items() if count > 1]
        if twice:
            raise CohortError(f"cohort {path}: slide '{twice[0]}' occurs more than once; keep one row a slide")
        named = [""] * len(ids) if case in (None, slide) else list(frame[case])
        case_of = {i: c or barcode_case(i) for i, c in zip(ids, named, strict=True)}
        told = {i for i, c in zip(ids, named, strict=True) if c or BARCODE.match(i)}
        super().__init__(dict(zip(ids, frame.to_dict("records"), strict=True)), case_of, told, outcomes)


def _refuse_no_event(frame: pd.DataFrame, path: Path, event: str) -> None:
    column, _, value = event.partition("=")
    values = sorted(set(frame[column]))
    if not any(same_value(v, value) for v in values):
        raise CohortError(f"cohort {path}: no row has {event}; {column} holds {', '.join(values[:5])}")


# --- the splits ----------------------------------------------------------------------------------------------------


def _folds(table: _TableOfFile, splits: str) -> tuple[Fold, ...]:
    path = Path(splits)
    empty = path.is_dir() and not any(path.glob("splits_*.csv"))
    if path.exists() and not (empty and splits in table.columns):
        return read_splits(path)
    if splits not in table.columns:
        raise SplitError(
            f"splits {splits}: neither a folder or file nor a column of {table.path}; {nearest(splits, table.columns)}"
        )
    return splits_in_column(table.path, splits, table.slide_column)


# --- a fold --------------------------------------------------------------------------------------------------------


def _report(fold: Fold, table: _Table) -> tuple[FoldReport, Fold]:
    slides: dict[str, list[str]] = {}
    unknown: list[str] = []
    cases: dict[str, set[str]] = {}
    for side in SIDES:
        found: dict[str, None] = {}
        strangers = []
        for name in fold.side(side):
            ids = table.slides(name)
            strangers += [name] if ids is None else []
            found.update(dict.fromkeys(ids or ()))
        slides[side] = list(found)
        cases[side] = table.told_cases([*found, *map(plain_slide_id, strangers)])
        unknown += strangers
    pairs = list(combinations([side for side in SIDES if fold.side(side)], 2))
    shared = {f"{a}-{b}": cases[a] & cases[b] for a, b in pairs}
    on_two = sorted(set[str]().union(*(set(slides[a]) & set(slides[b]) for a, b in pairs)))
    named = {i for ids in slides.values() for i in ids}
    held_out = "test" if fold.test else "val"
    sides = [side for side in SIDES if fold.side(side)]
    report = FoldReport(
        fold=fold.index,
        sides={side: _side(slides[side], table) for side in sides},
        shared_cases=sorted(set[str]().union(*shared.values())),
        shared_between={pair: len(found) for pair, found in shared.items() if found},
        shared_slides=on_two,
        missing=[i for i in table.rows if i not in named],
        unknown=sorted(set(unknown)),
        shared_sites=_shared_sites(slides, pairs),
        drift=_drift(slides["train"], slides[held_out], held_out, table),
    )
    return report, _repaired(fold, table)


def _held_out_cases(fold: Fold, table: _Table) -> set[str]:
    return {table.case(i) for name in fold.test or fold.val for i in table.slides(name) or [plain_slide_id(name)]}


def _side(slides: Sequence[str], table: _Table) -> SideReport:
    outcomes = table.outcomes
    rows = [table.rows[i] for i in slides]
    first = _one_a_case(slides, table)
    classes = Counter(str(row[outcomes.label]) for row in rows) if outcomes.label else Counter[str]()
    times = pd.to_numeric(pd.Series([row[outcomes.time] for row in first]), errors="coerce") if outcomes.time else None
    return SideReport(
        slides=len(slides),
        patients=len({table.case(i) for i in slides}) if table.all_told else None,
        classes=dict(sorted(classes.items())),
        events=sum(_events(first, outcomes.event)) if outcomes.event else None,
        median_time=None if times is None or times.isna().all() else float(times.median()),
    )


def _one_a_case(slides: Iterable[str], table: _Table) -> list[dict[Any, Any]]:
    seen: dict[str, dict[Any, Any]] = {}
    for i in slides:
        seen.setdefault(table.case(i), table.rows[i])
    return list(seen.values())


def _events(rows: Sequence[Mapping[Any, Any]], event: str) -> list[bool]:
    column, _, value = event.partition("=")
    return [same_value(str(row[column]), value) for row in rows]


def _shared_sites(slides: Mapping[str, Sequence[str]], pairs: Sequence[tuple[str, str]]) -> list[str]:
    sites = {side: {found[1] for i in ids if (found := BARCODE.match(i))} for side, ids in slides.items()}
    return sorted(set[str]().union(*(sites[a] & sites[b] for a, b in pairs)))


def _drift(train: Sequence[str], held_out: Sequence[str], name: str, table: _Table) -> list[str]:
    """Differences of label (chi-squared test) and of follow-up (log-rank test) between two sides."""
    outcomes, found = table.outcomes, []
    if not train or not held_out:
        return []
    if outcomes.label:
        from scipy.stats import chi2_contingency

        counts = [Counter(str(table.rows[i][outcomes.label]) for i in side) for side in (train, held_out)]
        classes = sorted(set(counts[0]) | set(counts[1]))
        if len(classes) > 1:
            p = float(chi2_contingency([[count[c] for c in classes] for count in counts]).pvalue)
            if p < DRIFT:
                found.append(f"{outcomes.label} differs between train and {name} (chi-squared test, p = {p:.1g})")
    if outcomes.time and outcomes.event:
        from lifelines.statistics import logrank_test

        sides = []
        for side in (train, held_out):
            rows = _one_a_case(side, table)
            times = pd.to_numeric(pd.Series([row[outcomes.time] for row in rows]), errors="coerce")
            known = times.notna()
            sides.append((times[known], pd.Series(_events(rows, outcomes.event))[known]))
        (times_a, events_a), (times_b, events_b) = sides
        p = float(logrank_test(times_a, times_b, events_a, events_b).p_value)
        if p < DRIFT:
            found.append(f"{outcomes.time} differs between train and {name} (log-rank test, p = {p:.1g})")
    return found


def _repaired(fold: Fold, table: _Table) -> Fold:
    """Every patient (slide, where patients are unknown) on the side that is scored last, and no unknown ids."""
    taken: set[str] = set()
    sides: dict[str, tuple[str, ...]] = {}
    for side in reversed(SIDES):
        kept = []
        for name in dict.fromkeys(fold.side(side)):
            ids = table.slides(name)
            if ids is not None and not {table.case(i) for i in ids} & taken:
                kept.append(name)
        sides[side] = tuple(kept)
        taken |= {table.case(i) for name in kept for i in table.slides(name) or ()}
    return Fold(fold.index, *(sides[side] for side in SIDES))
