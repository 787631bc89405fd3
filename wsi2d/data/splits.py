"""Folds: made by patient and stratified, written and read in the field's layout, resolved to slides."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit

from wsi2d.config import SurvivalTask, nearest
from wsi2d.data.cohort import BARCODE, Cohort, CohortSlide, not_csv, plain_slide_id, read_table
from wsi2d.data.site_cuts import Sides, cut_by_site, sites_needed, sites_of_kinds
from wsi2d.errors import SplitError
from wsi2d.files import make_folder, remove_partials, write_text

logger = logging.getLogger(__name__)

SIDES = ("train", "val", "test")
_SIDE_NAMES = {**{side: side for side in SIDES}, "training": "train", "valid": "val", "validation": "val"}
_SEEDS = 2**32  # how many scikit-learn takes


@dataclass(frozen=True)
class Fold:
    """One fold as it stands in a splits file: ids of cases or of slides on each side."""

    index: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def side(self, name: str) -> tuple[str, ...]:
        """Ids of ``train``, ``val`` or ``test``."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]


@dataclass(frozen=True)
class SlideFold:
    """One fold ready to train on.

    Attributes:
        index: which fold.
        train, val, test: slides; ``val`` chooses the epoch, ``test`` is scored once.
        inner_val: true where ``val`` was cut from the file's train, since the file has two sides only.
        leaked_cases: patients on two sides, sorted.
    """

    index: int
    train: tuple[CohortSlide, ...]
    val: tuple[CohortSlide, ...]
    test: tuple[CohortSlide, ...]
    inner_val: bool
    leaked_cases: tuple[str, ...]


def make_splits(
    cohort: Cohort,
    *,
    folds: int = 5,
    seed: int = 0,
    val_share: float = 0.2,
    repeats: int = 1,
    sites: Mapping[str, str] | None = None,
) -> tuple[Fold, ...]:
    """Cross-validation folds of case ids: every patient is tested once and stands on one side of each fold.

    Stratified by label (a patient's most frequent one), or by event and, where there are enough patients of each kind,
    by whether the time is above the median.

    Args:
        cohort: who is to be split.
        folds: number of folds, at least 2.
        seed: the same seed gives the same folds.
        val_share: share of the patients outside the test side that choose the epoch.
        repeats: how many cross-validations, each with another seed; every patient is tested once in each.
        sites: the site of each patient, as of :func:`sites_of`. Each site then stands on one side of a fold, every side
            has every kind, and the kinds are balanced as well as that allows (F. M. Howard et al., Nature
            Communications 2021, on why).

    Raises:
        SplitError: too few patients of a class or too few sites for that many folds, or impossible arguments.
    """
    if folds < 2:
        raise SplitError(f"folds: must be at least 2, got {folds}")
    if repeats < 1:
        raise SplitError(f"folds: repeats must be at least 1, got {repeats}")
    if not 0 <= seed < _SEEDS - folds * repeats:
        raise SplitError(f"folds: the seed must be at least 0 and below 2^32 − folds · repeats, got {seed}")
    if not 0 < val_share < 1:
        raise SplitError(f"folds: val_share must lie between 0 and 1, got {val_share}")
    cases = list(cohort.cases())
    groups = None if sites is None else [sites[case] for case in cases]
    strata = _kinds_for(cohort, cases, groups, folds, val_share)
    result: list[Fold] = []
    for repeat in range(repeats):
        first = seed + repeat * folds
        if groups is None:
            cut = _cut(cases, strata, folds, val_share, first)
        else:
            cut = cut_by_site(strata, groups, folds, val_share, first)
        for three in cut:
            result.append(Fold(len(result), *(tuple(cases[i] for i in sorted(side)) for side in three)))
    return tuple(result)


def make_holdout(
    cohort: Cohort, share: float, *, seed: int = 0, val_share: float = 0.2, sites: Mapping[str, str] | None = None
) -> tuple[Fold, ...]:
    """One fold whose test side holds a share of the patients, made as :func:`make_splits` makes its folds.

    Args:
        share: of the patients, above 0 and at most 0.5; rounded to a half, a third, a quarter, …

    Raises:
        SplitError: likewise.
    """
    if not 0 < share <= 0.5:
        raise SplitError(f"folds: the held-out share must lie above 0 and be at most 0.5, got {share}")
    return make_splits(cohort, folds=round(1 / share), seed=seed, val_share=val_share, sites=sites)[:1]


def sites_of(cohort: Cohort) -> dict[str, str]:
    """The tissue source site of each patient, from TCGA's barcodes (``TCGA-<site>-<patient>``).

    Raises:
        SplitError: a patient whose ids bear none.
    """
    found = {}
    for case, slides in cohort.cases().items():
        barcode = BARCODE.match(case) or BARCODE.match(slides[0].slide_id)
        if barcode is None:
            raise SplitError(f"folds: patient '{case}' bears no TCGA barcode that tells the site; leave sites out")
        found[case] = barcode[1]
    return found


def _kinds_for(
    cohort: Cohort, cases: Sequence[str], groups: Sequence[str] | None, folds: int, val_share: float
) -> list[str]:
    """The kind of each patient; SplitError where there are too few of one, or of sites, to cut them."""
    at_least = max(folds + 1, 4)  # of each kind: one a fold, and two outside each test side, for train and val
    val_size = int(len(cases) * (1 - 1 / folds) * val_share)
    strata = _strata(cohort, cases, at_least=at_least, at_most=val_size)
    if groups is not None and min(sites_of_kinds(strata, groups).values()) < sites_needed(folds):
        strata = _strata(cohort, cases, at_most=0)
    rarest, count = min(Counter(strata).items(), key=lambda item: item[1])
    if count < at_least:
        raise SplitError(
            f"folds: {folds} need at least {at_least} patients of each kind, '{rarest}' has {count}; "
            "use fewer folds or merge classes"
        )
    if groups is None:
        return strata
    if len(set(groups)) < folds + 2:
        raise SplitError(
            f"folds: {folds} need patients of at least {folds + 2} sites, for train and val beside each test side; "
            f"there are {len(set(groups))}; use fewer folds"
        )
    rarest, count = min(sites_of_kinds(strata, groups).items(), key=lambda item: item[1])
    if count < sites_needed(folds):
        raise SplitError(
            f"folds: {folds} need patients of each kind from at least {sites_needed(folds)} sites where sites are kept "
            f"together, '{rarest}' has {count}; use fewer folds or merge classes"
        )
    return strata


def _cut(cases: Sequence[str], strata: Sequence[str], folds: int, val_share: float, first: int) -> list[Sides]:
    """Train, val and test of each fold, as positions."""
    found: list[Sides] = []
    outer = StratifiedKFold(folds, shuffle=True, random_state=first).split(cases, strata)
    for k, (rest, test) in enumerate(outer):
        kinds = [strata[i] for i in rest]
        try:
            train, val = _stratified_cut(rest, kinds, val_share, first + k)
        except ValueError as error:
            raise SplitError(
                f"folds: val_share {val_share:g} of {_counted(kinds)} leaves train or val too few to have every kind; "
                "use another val share or fewer folds"
            ) from error
        found.append((train, val, [int(i) for i in test]))
    return found


def write_splits(folds: Sequence[Fold], folder: Path | str) -> None:
    """Write ``splits_<k>.csv`` files: an index column and ragged columns ``train``, ``val``, ``test``.

    Raises:
        SplitError: the folder holds other folds, which would be read together with these.
        StorageError: it cannot be written.
    """
    folder = Path(folder)
    make_folder(folder, "give another --out")
    others = sorted(set(_split_files(folder)) - {fold.index for fold in folds})
    if others:
        raise SplitError(
            f"splits {folder}: holds splits_{others[0]}.csv, which is none of these folds; delete it, or give another "
            "folder"
        )
    remove_partials(folder)
    for fold in folds:
        rows = zip_longest(fold.train, fold.val, fold.test, fillvalue="")
        write_text(folder / f"splits_{fold.index}.csv", pd.DataFrame(rows, columns=list(SIDES)).to_csv())


def read_splits(folder: Path | str) -> tuple[Fold, ...]:
    """Read every ``splits_<k>.csv`` of a folder, in the order of k, or one file of that kind.

    Raises:
        SplitError: no such files, or one without its columns.
    """
    folder = Path(folder)
    if folder.is_file():
        number = re.fullmatch(r"splits_(\d+)", folder.stem)
        return (read_fold(folder, int(number[1]) if number else 0),)
    files = _split_files(folder)
    if not files:
        raise SplitError(f"splits {folder}: no files splits_0.csv, splits_1.csv, …; make them with `wsi2d splits make`")
    return tuple(read_fold(files[k], k) for k in sorted(files))


def splits_in_column(path: Path | str, column: str, slide_column: str) -> tuple[Fold, ...]:
    """The one fold that a column of a cohort table holds: train, val or test, or nothing for a slide that is left out.

    Raises:
        CohortError, SplitError: no such table or column, or another value in it.
    """
    path = Path(path)
    table = read_table(path)
    columns = [str(c) for c in table.columns]
    for name in (slide_column, column):
        if name not in columns:
            raise SplitError(f"splits {path}: no column '{name}'; {nearest(name, columns)}")
    sides: dict[str, list[str]] = {name: [] for name in SIDES}
    for slide_id, value in zip(table[slide_column], table[column], strict=True):
        side = _SIDE_NAMES.get(value.lower())
        if side is not None:
            sides[side].append(plain_slide_id(slide_id))
        elif value:
            raise SplitError(
                f"splits {path}: column '{column}' holds '{value}' for slide '{slide_id}'; it must be train, val or "
                "test"
            )
    return (Fold(0, *(tuple(sides[name]) for name in SIDES)),)


def resolve_fold(
    fold: Fold, cohort: Cohort, *, inner_val: float = 0.2, seed: int = 0, unknown: str = "error"
) -> SlideFold:
    """Turn a fold's ids into slides.

    Where the file names no test ids, its ``val`` is the held-out side (the field's published splits are of this
    kind), and the side that chooses the epoch is cut from ``train``, by patient and stratified, among patients that the
    held-out side does not have. Patients on two sides are named in the result and slides on two sides warned of; what
    to do about them is the caller's to say.

    Args:
        fold: as read.
        cohort: the slides; a side's id may be a case's or a slide's.
        inner_val: share of train's patients for that cut.
        seed: of that cut.
        unknown: ``skip`` to leave ids out that the cohort does not have, with a warning.

    Raises:
        SplitError: unknown ids, or an empty side.
    """
    by_id = _slides_by_id(cohort)
    sides = {name: _lookup(fold, name, by_id, cohort, skip=unknown == "skip") for name in SIDES}
    inner = not fold.test
    if inner:
        sides["test"] = sides["val"]
    for name in ("train", "test") if inner else SIDES:
        if not sides[name]:
            raise SplitError(f"fold {fold.index}: its {name} side is empty; every fold needs train, val and test")
    if inner:
        held_out = {s.case_id for s in sides["test"]}
        eligible = [s for s in sides["train"] if s.case_id not in held_out]
        if not eligible:
            raise SplitError(f"fold {fold.index}: every patient of its train side is held out too; mend the splits")
        chosen = _inner_val_cases(fold, eligible, cohort, inner_val, seed)
        sides["val"] = tuple(s for s in sides["train"] if s.case_id in chosen)
        sides["train"] = tuple(s for s in sides["train"] if s.case_id not in chosen)
    for a, b in combinations(SIDES, 2):
        shared = {s.slide_id for s in sides[a]} & {s.slide_id for s in sides[b]}
        if shared:
            logger.warning("fold %d: %d slides are in both %s and %s", fold.index, len(shared), a, b)
    return SlideFold(fold.index, **sides, inner_val=inner, leaked_cases=_leaked(sides))


def _strata(cohort: Cohort, cases: Sequence[str], *, at_least: int = 0, at_most: int = 4) -> list[str]:
    """The kind of each patient. Survival's fine kinds are taken only where each has ``at_least`` patients and there
    are ``at_most`` so many kinds, so that every one fits on every side."""
    grouped = cohort.cases()
    if not isinstance(cohort.task, SurvivalTask):
        labels = [Counter(s.label for s in grouped[case]) for case in cases]
        return [str(counts.most_common(1)[0][0]) for counts in labels]
    first = [grouped[case][0] for case in cases]
    median = float(np.median([s.time for s in first if s.time is not None]))
    outcome = ["event" if s.event else "censored" for s in first]
    half = ["late" if s.time is not None and s.time > median else "early" for s in first]
    fine = [f"{o}, {h}" for o, h in zip(outcome, half, strict=True)]
    counts = Counter(fine)
    return fine if min(counts.values()) >= at_least and len(counts) <= at_most else outcome


def _stratified_cut(
    members: Sequence[int] | NDArray[np.int64], strata: Sequence[str], share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Cut members in two, the second part holding ``share`` of them; ValueError where a part is too small for that."""
    cut = StratifiedShuffleSplit(1, test_size=share, random_state=seed % _SEEDS)
    first, second = next(cut.split(np.zeros(len(members)), strata))
    return [int(members[i]) for i in first], [int(members[i]) for i in second]


def _inner_val_cases(fold: Fold, eligible: Sequence[CohortSlide], cohort: Cohort, share: float, seed: int) -> set[str]:
    """Patients of train that choose the epoch."""
    part = Cohort(tuple(eligible), cohort.task, cohort.classes)
    cases = list(part.cases())
    kinds = strata = _strata(part, cases)
    rare = {stratum for stratum, n in Counter(strata).items() if n < 2}
    strata = ["rare" if s in rare else s for s in strata]
    if Counter(strata)["rare"] == 1:  # one patient cannot be stratified: it goes with the largest stratum
        strata = [Counter(strata).most_common(1)[0][0] if s == "rare" else s for s in strata]
    try:
        _, chosen = _stratified_cut(range(len(cases)), strata, share, seed + fold.index)
    except ValueError as error:
        raise SplitError(
            f"fold {fold.index}: its train cannot be cut for validation, training.inner_val {share:g} of "
            f"{_counted(kinds)} leaves a part too small to have every kind; give another training.inner_val, or "
            "splits with more patients in train or with a test side"
        ) from error
    return {cases[i] for i in chosen}


def _split_files(folder: Path) -> dict[int, Path]:
    return {int(m[1]): f for f in folder.glob("splits_*.csv") if (m := re.fullmatch(r"splits_(\d+)", f.stem))}


def read_fold(path: Path, index: int) -> Fold:
    """Read one file of splits as the fold of a number.

    Raises:
        SplitError: it cannot be read, or lacks a column.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except OSError as error:
        raise SplitError(
            f"splits {path}: not a readable CSV table ({error.strerror}); make the splits anew with `wsi2d splits make`"
        ) from error
    except ValueError as error:
        raise SplitError(
            f"splits {path}: {not_csv(error)}, or make the splits anew with `wsi2d splits make`"
        ) from error
    missing = [c for c in ("train", "val") if c not in table]
    if missing:
        raise SplitError(f"splits {path}: no column '{missing[0]}'; a splits file has train, val and test")
    sides = {name: tuple(v.strip() for v in table.get(name, []) if v.strip()) for name in SIDES}
    return Fold(index, **sides)


def _counted(kinds: Sequence[str]) -> str:
    """As ``5 patients (a 3, b 2)``."""
    counts = ", ".join(f"{kind} {n}" for kind, n in sorted(Counter(kinds).items()))
    return f"{len(kinds)} patients ({counts})"


def _slides_by_id(cohort: Cohort) -> dict[str, tuple[CohortSlide, ...]]:
    by_id: dict[str, tuple[CohortSlide, ...]] = {s.slide_id: (s,) for s in cohort.slides}
    by_id.update(cohort.cases())
    return by_id


def _lookup(
    fold: Fold, side: str, by_id: Mapping[str, tuple[CohortSlide, ...]], cohort: Cohort, *, skip: bool
) -> tuple[CohortSlide, ...]:
    found: set[str] = set()
    unknown = []
    for name in fold.side(side):
        slides = by_id.get(name) or by_id.get(plain_slide_id(name))
        if slides is None:
            unknown.append(name)
        else:
            found.update(s.slide_id for s in slides)
    if unknown and skip:
        logger.warning("fold %d: %d ids of its %s side are not in the cohort", fold.index, len(unknown), side)
    elif unknown:
        raise SplitError(
            f"fold {fold.index}: {len(unknown)} ids of its {side} side are not in the cohort (the first is "
            f"'{unknown[0]}'); splits must name the cohort's case_id or slide_id, or set data.unknown_ids: skip"
        )
    return cohort.subset(found)


def _leaked(sides: Mapping[str, Iterable[CohortSlide]]) -> tuple[str, ...]:
    cases = [{s.case_id for s in side} for side in sides.values()]
    return tuple(sorted(set().union(*(a & b for a, b in combinations(cases, 2)))))
