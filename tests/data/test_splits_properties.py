"""What holds of folds whatever the cohort: random ones with many slides a patient, rare classes and few sites."""

from collections import Counter

import pytest

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as some

from wsi2d.config import ClassificationTask, SurvivalTask
from wsi2d.data.cohort import Cohort, CohortSlide
from wsi2d.data.splits import SIDES, make_splits, resolve_fold, sites_of
from wsi2d.errors import SplitError

PATIENT = some.tuples(
    some.integers(1, 5),  # slides
    some.sampled_from("aaaaaabbbc"),  # class: one common, one rare
    some.floats(0, 120, allow_nan=False),  # months
    some.booleans(),  # event
    some.integers(0, 11),  # site
)


def cohort_of(patients: list[tuple[int, str, float, bool, int]], *, survival: bool) -> Cohort:
    slides = []
    for k, (count, label, months, event, site) in enumerate(patients):
        case = f"TCGA-{site:02d}-{k:04d}"
        truth = (None, months, event) if survival else (label, None, None)
        slides += [CohortSlide(f"{case}-01Z-00-DX{n}", case, *truth) for n in range(count)]
    if survival:
        return Cohort(tuple(slides), SurvivalTask(time="months", event="died=1"))
    return Cohort(tuple(slides), ClassificationTask(label="kind"), tuple(sorted({str(s.label) for s in slides})))


@settings(max_examples=60, deadline=None)
@given(
    patients=some.lists(PATIENT, min_size=2, max_size=90),
    folds=some.integers(2, 6),
    seed=some.integers(0, 2**31),
    survival=some.booleans(),
    by_site=some.booleans(),
)
def test_folds_of_any_cohort(
    patients: list[tuple[int, str, float, bool, int]], folds: int, seed: int, survival: bool, by_site: bool
) -> None:
    cohort = cohort_of(patients, survival=survival)
    sites = sites_of(cohort) if by_site else None
    try:
        made = make_splits(cohort, folds=folds, seed=seed, sites=sites)
    except SplitError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert refusal.startswith("folds: ")
        assert "\n" not in refusal
        return
    cases = cohort.cases()
    assert Counter(case for fold in made for case in fold.test) == Counter(dict.fromkeys(cases, 1))
    for fold in made:
        assert Counter(fold.train + fold.val + fold.test) == Counter(dict.fromkeys(cases, 1))
        resolved = resolve_fold(fold, cohort)
        assert resolved.leaked_cases == ()
        assert sum(len(getattr(resolved, side)) for side in SIDES) == len(cohort.slides)
        if sites is not None:
            of_side = [{sites[case] for case in fold.side(side)} for side in SIDES]
            assert sum(map(len, of_side)) == len(set().union(*of_side))
    assert made == make_splits(cohort, folds=folds, seed=seed, sites=sites)
