"""What holds of folds whatever the cohort: random ones with many slides a patient, rare classes and few sites."""

from collections import Counter

import numpy as np
import pytest

from wsi2d.config import ClassificationTask, SurvivalTask
from wsi2d.data.cohort import Cohort, CohortSlide
from wsi2d.data.splits import SIDES, Fold, make_splits, resolve_fold, sites_of
from wsi2d.errors import SplitError

Patient = tuple[int, str, float, bool, int]  # slides, class, months, event, site


def cohort_of(patients: list[Patient], *, survival: bool) -> Cohort:
    slides = []
    for k, (count, label, months, event, site) in enumerate(patients):
        case = f"TCGA-{site:02d}-{k:04d}"
        truth = (None, months, event) if survival else (label, None, None)
        slides += [CohortSlide(f"{case}-01Z-00-DX{n}", case, *truth) for n in range(count)]
    if survival:
        return Cohort(tuple(slides), SurvivalTask(time="months", event="died=1"))
    return Cohort(tuple(slides), ClassificationTask(label="kind"), tuple(sorted({str(s.label) for s in slides})))


def too_few(patients: list[Patient], folds: int, *, survival: bool, by_site: bool, sites_to_spare: int = 0) -> bool:
    """Whether a kind of patient, or the sites, are too few, counted from the list that was drawn.

    Of each kind each fold tests one and, beside it, trains and validates on others; likewise of its sites.
    """
    of_kind: dict[object, list[int]] = {}
    for _, label, _, event, site in patients:
        of_kind.setdefault(event if survival else label, []).append(site)
    if any(len(sites) < max(folds + 1, 4) for sites in of_kind.values()):
        return True
    if not by_site:
        return False
    few_of_a_kind = any(len(set(sites)) < (4 if folds == 2 else folds) + sites_to_spare for sites in of_kind.values())
    return few_of_a_kind or len({site for sites in of_kind.values() for site in sites}) < folds + 2


def check(patients: list[Patient], folds: int, seed: int, *, survival: bool, by_site: bool) -> bool:
    """Whether the cohort was split; what must hold of the folds, or of the reason not to."""
    cohort = cohort_of(patients, survival=survival)
    sites = sites_of(cohort) if by_site else None
    counted = {"survival": survival, "by_site": by_site}
    made: tuple[Fold, ...] = ()
    refusal = ""
    try:
        made = make_splits(cohort, folds=folds, seed=seed, sites=sites)
    except SplitError as error:
        refusal = str(error)
    if refusal:
        assert refusal.startswith("folds: ")
        assert "\n" not in refusal
        # Which sites can stand together is not counted here: where no cut was found, there must be few to choose from.
        assert too_few(patients, folds, **counted, sites_to_spare=2 if "no cut into" in refusal else 0), refusal
        return False
    assert not too_few(patients, folds, **counted)
    cases = cohort.cases()
    kinds = {case: slides[0].event if survival else slides[0].label for case, slides in cases.items()}
    assert Counter(case for fold in made for case in fold.test) == Counter(dict.fromkeys(cases, 1))
    for fold in made:
        assert Counter(fold.train + fold.val + fold.test) == Counter(dict.fromkeys(cases, 1))
        assert {kinds[case] for case in fold.test} == {kinds[case] for case in fold.train} == set(kinds.values())
        resolved = resolve_fold(fold, cohort)
        assert resolved.leaked_cases == ()
        assert sum(len(getattr(resolved, side)) for side in SIDES) == len(cohort.slides)
        if sites is not None:
            of_side = [{sites[case] for case in fold.side(side)} for side in SIDES]
            assert sum(map(len, of_side)) == len(set().union(*of_side))
            assert {kinds[case] for case in fold.val} == set(kinds.values())
    assert made == make_splits(cohort, folds=folds, seed=seed, sites=sites)
    return True


@pytest.mark.parametrize("by_site", [False, True], ids=["patients", "sites"])
@pytest.mark.parametrize("survival", [False, True], ids=["classes", "survival"])
def test_folds_of_cohorts_with_rare_classes_and_many_slides_a_patient(survival: bool, by_site: bool) -> None:
    numbers = np.random.default_rng([int(survival), int(by_site)])
    accepted = 0
    for seed in range(25):
        count = int(numbers.integers(50, 91))
        patients: list[Patient] = [
            (int(slides), str(label), float(months), bool(event), int(site))
            for slides, label, months, event, site in zip(
                numbers.integers(1, 6, count),
                numbers.choice(list("abc"), count, p=[0.55, 0.3, 0.15]),
                numbers.uniform(0, 120, count),
                numbers.random(count) < 0.4,
                numbers.integers(0, 12, count),
                strict=True,
            )
        ]
        accepted += check(patients, 2 + seed % 3, seed, survival=survival, by_site=by_site)
    assert accepted >= 22


def test_folds_of_any_cohort() -> None:
    hypothesis = pytest.importorskip("hypothesis")
    some = hypothesis.strategies
    patient = some.tuples(
        some.integers(1, 5),
        some.sampled_from("aaaaaabbbc"),
        some.floats(0, 120, allow_nan=False),
        some.booleans(),
        some.integers(0, 11),
    )

    @hypothesis.settings(max_examples=60, deadline=None)
    @hypothesis.given(
        patients=some.integers(50, 90).flatmap(lambda count: some.lists(patient, min_size=count, max_size=count)),
        folds=some.integers(2, 4),
        seed=some.integers(0, 2**31),
        survival=some.booleans(),
        by_site=some.booleans(),
    )
    def holds(patients: list[Patient], folds: int, seed: int, survival: bool, by_site: bool) -> None:
        hypothesis.event("split" if check(patients, folds, seed, survival=survival, by_site=by_site) else "refused")

    holds()
