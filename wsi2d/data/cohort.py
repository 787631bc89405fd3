"""The cohort table: which slide belongs to which patient, and what is known of it."""

from __future__ import annotations

import logging
import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from wsi2d.config import ClassificationTask, SurvivalTask, nearest
from wsi2d.errors import CohortError
from wsi2d.slides.discovery import SLIDE_SUFFIXES

logger = logging.getLogger(__name__)

BARCODE = re.compile(r"TCGA-([A-Z0-9]{2})-[A-Z0-9]{4}")  # of TCGA: the patient; its first part is the site
_IN_A_RUN = "data.cohort in a run's YAML"
_CASE_COLUMN = "case_id"


@dataclass(frozen=True)
class CohortSlide:
    """One slide: its patient, and a class name or a time (in the table's unit) with whether the event happened."""

    slide_id: str
    case_id: str
    label: str | None = None
    time: float | None = None
    event: bool | None = None


@dataclass(frozen=True)
class Cohort:
    """All slides of a study, in the table's order.

    Attributes:
        slides: one entry a slide; ids are unique.
        task: what is to be predicted.
        classes: names of the classes in the order of the logits; empty for survival.
    """

    slides: tuple[CohortSlide, ...]
    task: ClassificationTask | SurvivalTask
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.slides:
            raise CohortError("cohort: has no slides; give at least one")
        repeated = [i for i, n in Counter(s.slide_id for s in self.slides).items() if n > 1]
        if repeated:
            raise CohortError(f"cohort: slide '{repeated[0]}' occurs more than once; keep one row a slide")

    def cases(self) -> dict[str, tuple[CohortSlide, ...]]:
        """Slides by patient, patients in the table's order."""
        grouped: dict[str, list[CohortSlide]] = {}
        for slide in self.slides:
            grouped.setdefault(slide.case_id, []).append(slide)
        return {case: tuple(slides) for case, slides in grouped.items()}

    def subset(self, slide_ids: Iterable[str]) -> tuple[CohortSlide, ...]:
        """Those slides, in the table's order."""
        wanted = set(slide_ids)
        return tuple(s for s in self.slides if s.slide_id in wanted)

    def describe(self) -> str:
        """One line: how many slides and patients, and how many of each class or events (with the declared value)."""
        cases = self.cases()
        size = f"{len(self.slides)} slides of {len(cases)} patients"
        if isinstance(self.task, SurvivalTask):
            events = sum(bool(slides[0].event) for slides in cases.values())
            return f"{size}; {self.task.event} (event): {events} patients, censored: {len(cases) - events}"
        counts = Counter(s.label for s in self.slides)
        return f"{size}; {self.task.label}: " + ", ".join(f"{c} {counts[c]}" for c in self.classes)


def load_cohort(
    path: Path | str,
    task: ClassificationTask | SurvivalTask,
    *,
    slide_column: str = "slide_id",
    case_column: str = "case_id",
    case_pattern: str | None = None,
    some_classes: bool = False,
) -> Cohort:
    """Read a cohort table (CSV, or a zip that holds one; one row a slide).

    Args:
        path: the CSV file.
        task: which columns hold the label, or time and event and the value that means the event happened.
        slide_column, case_column: columns of slide and patient ids. Name the slide column twice where each slide is
            a patient of its own; slides whose ids are TCGA's barcodes are those of the patient in the barcode even so.
        case_pattern: regular expression that finds the patient in a slide's id, where the table does not name one, or
            has no column ``case_id`` at all.
        some_classes: whether slides of some of the task's classes are enough.

    Raises:
        CohortError: columns are missing, a slide occurs twice, a label is missing or unknown, no slide is of a declared
            class, a time is negative, no row has the event's value, or a patient's slides disagree on survival.
    """
    path = Path(path)
    table = read_table(path)
    if isinstance(task, ClassificationTask) and task.labels is not None:
        table = _with_labels(table, path, task)
    slide_ids, case_ids = _ids(table, path, slide_column, case_column, case_pattern)
    if isinstance(task, SurvivalTask):
        times, events = _survival_columns(table, path, task)
        slides = [
            CohortSlide(*row) for row in zip(slide_ids, case_ids, [None] * len(times), times, events, strict=True)
        ]
        cohort = _in_file(path, slides, task, ())
        _one_outcome_a_patient(cohort, path)
        return cohort
    column = _column(table, path, task.label)
    if task.labels is not None:
        column = column.map(task.labels)
    labels = list(column)
    classes = task.classes or tuple(sorted(set(labels), key=_natural))
    unknown = column[~column.isin(classes)]
    if len(unknown):
        raise CohortError(
            f"cohort {path}: line {unknown.index[0] + 2} has {task.label} '{unknown.iloc[0]}', which is not among "
            f"classes {', '.join(classes)}; mend it, add it to task.classes, or leave such slides out"
        )
    unseen = [c for c in classes if c not in set(labels)]
    if unseen and not some_classes:
        raise CohortError(f"cohort {path}: no slide has {task.label} '{unseen[0]}'; take it out of task.classes")
    if len(classes) < 2:
        raise CohortError(f"cohort {path}: {task.label} is '{classes[0]}' everywhere; two classes are needed")
    slides = [CohortSlide(*row) for row in zip(slide_ids, case_ids, labels, strict=True)]
    return _in_file(path, slides, task, classes)


def load_cases(
    path: Path | str, *, slide_column: str = "slide_id", case_column: str = "case_id", case_pattern: str | None = None
) -> dict[str, str]:
    """The patient of each slide of a cohort table; arguments and errors as of :func:`load_cohort`.

    Raises:
        CohortError: likewise.
    """
    path = Path(path)
    slide_ids, case_ids = _ids(read_table(path), path, slide_column, case_column, case_pattern)
    repeated = [i for i, n in Counter(slide_ids).items() if n > 1]
    if repeated:
        raise CohortError(f"cohort {path}: slide '{repeated[0]}' occurs more than once; keep one row a slide")
    return dict(zip(slide_ids, case_ids, strict=True))


def load_cohort_mpp(path: Path | str) -> dict[str, float]:
    """Level-0 pixel sizes (µm/px) by slide id from a cohort's ``mpp`` column; rows without a value are left out.

    Raises:
        CohortError: no such column, or a value that is not a positive number.
    """
    path = Path(path)
    table = read_table(path)
    slide_ids = _column(table, path, "slide_id")
    if "mpp" not in table:
        raise CohortError(
            f"cohort {path}: no column 'mpp'; there are {', '.join(table.columns)}; add it (µm/px), or give --slide-mpp"
        )
    sizes = {}
    for slide_id, text in zip(slide_ids, table["mpp"], strict=True):
        if text == "":
            continue
        value = _float(text)
        if not (math.isfinite(value) and value > 0):
            raise CohortError(f"cohort {path}: slide '{slide_id}' has mpp '{text}'; it must be a number > 0 (µm/px)")
        sizes[plain_slide_id(slide_id)] = value
    return sizes


def plain_slide_id(name: str) -> str:
    """A slide's id as the feature files bear it: without a slide suffix, which some tables write and some do not."""
    suffix = Path(name).suffix.lower()
    return name[: -len(suffix)] if suffix in SLIDE_SUFFIXES else name


def read_table(path: Path) -> pd.DataFrame:
    """A cohort's table as text, from a CSV file or a zip that holds one (which is read, never extracted).

    Its index tells the line of the file, less two.

    Raises:
        CohortError: it cannot be read, has no rows, or columns without or with the same name.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True, skip_blank_lines=False)
    except FileNotFoundError as error:
        raise CohortError(f"cohort {path}: no such file; give the path of a CSV table ({_IN_A_RUN})") from error
    except OSError as error:
        raise CohortError(
            f"cohort {path}: not a readable CSV table ({error.strerror}); give the path of one ({_IN_A_RUN})"
        ) from error
    except zipfile.BadZipFile as error:
        raise CohortError(f"cohort {path}: not a readable zip ({error}); download it again, or give the CSV") from error
    except ValueError as error:  # of pandas' parser, a zip of several files, or bytes that are no UTF-8
        raise CohortError(f"cohort {path}: {not_csv(error)}") from error
    if len(table.columns) == 1 and (found := re.search(r"[;\t|]", str(table.columns[0]))):
        name = {"\t": "tabs"}.get(found[0], f"'{found[0]}'")
        raise CohortError(f"cohort {path}: its columns are separated by {name}; save it as CSV with commas")
    if not isinstance(table.index, pd.RangeIndex):  # what pandas makes of it: the first column becomes an index
        raise CohortError(f"cohort {path}: its rows hold more fields than its header; name every column")
    table.columns = [str(c).strip() for c in table.columns]
    twice = [name for name, n in Counter(table.columns).items() if n > 1]
    if twice:
        raise CohortError(f"cohort {path}: two columns are named '{twice[0]}'; rename one")
    stripped: pd.DataFrame = table.apply(lambda column: column.str.strip())
    table = stripped[(stripped != "").any(axis=1)]  # the index still tells the line
    if table.empty:
        raise CohortError(f"cohort {path}: has no rows; below its header it must hold one row a slide")
    return table


def not_csv(error: ValueError) -> str:
    """What is wrong with a table that pandas does not read, and the remedy."""
    reason = " ".join(str(error).split())
    if isinstance(error, pd.errors.ParserError):
        return f"not a readable CSV table ({reason}); mend that line: a text that holds a comma stands in quotes"
    return f"not a readable CSV table ({reason}); save it as CSV in UTF-8, with a header"


def _with_labels(table: pd.DataFrame, path: Path, task: ClassificationTask) -> pd.DataFrame:
    """The rows whose label stands for a class."""
    assert task.labels is not None
    if task.label not in table:
        return table
    kept = table[table[task.label].isin(task.labels)]
    if kept.empty:
        raise CohortError(f"cohort {path}: no row's {task.label} is one of task.labels, {', '.join(task.labels)}")
    if len(kept) < len(table):
        logger.info(
            "%d slides with another %s than %s are left out", len(table) - len(kept), task.label, [*task.labels]
        )
    return kept


def _ids(
    table: pd.DataFrame, path: Path, slide_column: str, case_column: str, case_pattern: str | None
) -> tuple[list[str], list[str]]:
    """Slide and patient of each row."""
    slide_ids = [plain_slide_id(v) for v in _column(table, path, slide_column)]
    if case_column == slide_column:
        return slide_ids, _cases_in_ids(slide_ids, case_pattern)
    if case_pattern is not None and (case_column in table or case_column == _CASE_COLUMN):
        named = table[case_column] if case_column in table else [""] * len(slide_ids)
        table = table.assign(**{case_column: _found_cases(named, slide_ids, case_pattern)})
    return slide_ids, _case_ids(table, path, case_column, slide_column)


def _cases_in_ids(slide_ids: list[str], pattern: str | None) -> list[str]:
    """Patients as a pattern or a barcode tells them; the slide itself where neither does."""
    found = slide_ids if pattern is None else _found_cases([""] * len(slide_ids), slide_ids, pattern)
    cases = [case or slide_id for case, slide_id in zip(found, slide_ids, strict=True)]
    cases = [barcode_case(case) if case == slide_id else case for case, slide_id in zip(cases, slide_ids, strict=True)]
    if len(set(cases)) < len(slide_ids):
        logger.warning("%d slides are of %d patients, as their ids tell", len(slide_ids), len(set(cases)))
    return cases


def barcode_case(slide_id: str) -> str:
    """The patient in a TCGA barcode; the slide itself where it bears none."""
    barcode = BARCODE.match(slide_id)
    return barcode[0] if barcode else slide_id


def _found_cases(cases: Iterable[str], slide_ids: Iterable[str], pattern: str) -> list[str]:
    """Patients as the table names them, else as the pattern finds them; empty where neither does."""
    found = [re.search(pattern, slide_id) for slide_id in slide_ids]
    return [case or (match[0] if match else "") for case, match in zip(cases, found, strict=True)]


def _case_ids(table: pd.DataFrame, path: Path, name: str, slide_column: str) -> list[str]:
    if name not in table:
        hint = nearest(name, [str(c) for c in table.columns if c != slide_column])
        raise CohortError(
            f"cohort {path}: no column '{name}'; {hint}{'' if hint.endswith('?') else ';'} or, where each slide is a "
            f"patient of its own, give data.case_column: {slide_column} in a run's YAML, "
            f"--case-column {slide_column} to `wsi2d splits make`"
        )
    return list(_column(table, path, name))


def _column(table: pd.DataFrame, path: Path, name: str) -> pd.Series[str]:
    if name not in table:
        raise CohortError(f"cohort {path}: no column '{name}'; {nearest(name, [str(c) for c in table.columns])}")
    missing = table.index[table[name].isin(["", "nan", "NaN", "NA"])]
    if len(missing):
        raise CohortError(
            f"cohort {path}: {len(missing)} rows have no '{name}' (the first is line {missing[0] + 2}); "
            "fill them in or leave them out"
        )
    return table[name]


def _survival_columns(table: pd.DataFrame, path: Path, task: SurvivalTask) -> tuple[list[float], list[bool]]:
    times = []
    column = _column(table, path, task.time)
    for row, text in zip(column.index, column, strict=True):
        times.append(_float(text))
        if not (math.isfinite(times[-1]) and times[-1] >= 0):
            raise CohortError(f"cohort {path}: line {row + 2} has {task.time} '{text}'; it must be a number >= 0")
    column = _column(table, path, task.event_column)
    values = sorted(set(column))
    events = [same_value(v, task.event_value) for v in column]
    if not any(events):
        raise CohortError(f"cohort {path}: no row has {task.event}; {task.event_column} holds {', '.join(values[:5])}")
    if len({v for v, e in zip(column, events, strict=True) if not e}) > 1:
        raise CohortError(
            f"cohort {path}: {task.event_column} must hold two values, it holds {', '.join(values[:5])}; leave out the "
            "rows of which it is not known whether the event happened"
        )
    return times, events


def _one_outcome_a_patient(cohort: Cohort, path: Path) -> None:
    for case, slides in cohort.cases().items():
        if len({(s.time, s.event) for s in slides}) > 1:
            raise CohortError(
                f"cohort {path}: the slides of patient '{case}' have different times or events; give all its rows the "
                "same"
            )


def _in_file(
    path: Path, slides: list[CohortSlide], task: ClassificationTask | SurvivalTask, classes: tuple[str, ...]
) -> Cohort:
    try:
        return Cohort(tuple(slides), task, classes)
    except CohortError as error:
        raise CohortError(f"cohort {path}: {str(error).removeprefix('cohort: ')}") from error


def same_value(a: str, b: str) -> bool:
    """Whether two fields are equal, as text, or as numbers: tables write 1 as 1.0."""
    return a == b or (_float(a) == _float(b))


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _natural(text: str) -> tuple[float, str]:
    """Numbers by value, before words by alphabet: grades 2 and 10 in their order."""
    value = _float(text)
    return (math.inf if math.isnan(value) else value, text)
