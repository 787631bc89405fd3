"""Folds: by patient, stratified, each patient tested once; files in the field's layout; leaks named."""

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from wsi2d.config import ClassificationTask, SurvivalTask
from wsi2d.data.cohort import Cohort, CohortSlide, load_cohort
from wsi2d.data.splits import (
    SIDES,
    Fold,
    SlideFold,
    make_holdout,
    make_splits,
    read_splits,
    resolve_fold,
    sites_of,
    splits_in_column,
    write_splits,
)
from wsi2d.errors import SplitError, StorageError

GRADE = ClassificationTask(label="grade")
DEATH = SurvivalTask(time="months", event="died=1")


def grades(counts: dict[str, int], *, seed: int = 0) -> Cohort:
    """Patients of each class in mixed order, every third with two slides."""
    labels = np.random.default_rng(seed).permutation([c for c, n in counts.items() for _ in range(n)])
    slides = [
        CohortSlide(f"s{i:03d}-{part}", f"c{i:03d}", str(label))
        for i, label in enumerate(labels)
        for part in range(1 + (i % 3 == 0))
    ]
    return Cohort(tuple(slides), GRADE, tuple(sorted(counts)))


def deaths(patients: int, *, share: float = 0.4, seed: int = 0) -> Cohort:
    """Patients with times and events, every third with two slides."""
    generator = np.random.default_rng(seed)
    slides = []
    for i in range(patients):
        time, event = float(generator.integers(1, 100)), bool(generator.random() < share)
        slides += [CohortSlide(f"s{i:03d}-{part}", f"c{i:03d}", None, time, event) for part in range(1 + (i % 3 == 0))]
    return Cohort(tuple(slides), DEATH)


def one_slide_each(*cases: tuple[str, str]) -> Cohort:
    """(patient, class) pairs as slides ``<patient>-<n>``, n counting a patient's slides."""
    seen: Counter[str] = Counter()
    slides = []
    for case, label in cases:
        slides.append(CohortSlide(f"{case}-{seen[case]}", case, label))
        seen[case] += 1
    return Cohort(tuple(slides), GRADE, tuple(sorted({label for _, label in cases})))


def ids(slides: Sequence[CohortSlide]) -> list[str]:
    return [s.slide_id for s in slides]


def patients(slides: Sequence[CohortSlide]) -> set[str]:
    return {s.case_id for s in slides}


# --- making folds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folds", [2, 3, 5, 10])
@pytest.mark.parametrize("cohort", [grades({"a": 40, "b": 23, "c": 11}), deaths(83)], ids=["classes", "survival"])
def test_every_patient_is_tested_once_and_stands_on_one_side(cohort: Cohort, folds: int) -> None:
    made = make_splits(cohort, folds=folds)
    everyone = set(cohort.cases())
    assert [f.index for f in made] == list(range(folds))
    assert Counter(case for f in made for case in f.test) == Counter(everyone)
    for fold in made:
        sides = [fold.side(name) for name in SIDES]
        assert set().union(*sides) == everyone
        assert sum(map(len, sides)) == len(everyone)
        assert all(sides)


@pytest.mark.parametrize("seed", range(3))
def test_classes_are_spread_evenly(seed: int) -> None:
    cohort = grades({"a": 40, "b": 23, "c": 11}, seed=seed)
    label = {case: slides[0].label for case, slides in cohort.cases().items()}
    made = make_splits(cohort, folds=5, seed=seed, val_share=0.25)
    for name in ("a", "b", "c"):
        tested = [sum(label[case] == name for case in f.test) for f in made]
        assert max(tested) - min(tested) <= 1
        for fold in made:
            rest = [case for case in (*fold.train, *fold.val) if label[case] == name]
            assert abs(sum(label[case] == name for case in fold.val) - 0.25 * len(rest)) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_events_and_times_are_spread_evenly(seed: int) -> None:
    cohort = deaths(120, seed=seed)
    first = {case: slides[0] for case, slides in cohort.cases().items()}
    middle = np.median([s.time for s in first.values()])
    kind = {case: (s.event, s.time > middle) for case, s in first.items()}
    made = make_splits(cohort, folds=5, seed=seed)
    for stratum in set(kind.values()):
        tested = [sum(kind[case] == stratum for case in f.test) for f in made]
        assert max(tested) - min(tested) <= 1


def test_events_alone_stratify_where_they_are_few() -> None:
    slides = [CohortSlide(f"s{i}", f"c{i}", None, float(i), i < 6) for i in range(60)]  # every event is early
    made = make_splits(Cohort(tuple(slides), DEATH), folds=5)
    assert sorted(sum(int(case[1:]) < 6 for case in f.test) for f in made) == [1, 1, 1, 1, 2]


def test_a_patient_counts_as_its_most_frequent_class() -> None:
    cases = [(f"m{i}", label) for i in range(6) for label in "abb"] + [(f"n{i}", "a") for i in range(6)]
    made = make_splits(one_slide_each(*cases), folds=3)
    assert [sum(case[0] == "m" for case in f.test) for f in made] == [2, 2, 2]


def test_the_same_seed_gives_the_same_folds() -> None:
    cohort = grades({"a": 30, "b": 30})
    np.random.seed(1)  # noqa: NPY002 - the global state is what must not matter
    first = make_splits(cohort, folds=4, seed=7)
    np.random.seed(2)  # noqa: NPY002
    assert make_splits(cohort, folds=4, seed=7) == first
    others = [make_splits(cohort, folds=4, seed=seed) for seed in range(3)]
    assert all([f.test for f in a] != [f.test for f in b] for a, b in combinations([first, *others], 2))


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_share_of_validation(share: float) -> None:
    for fold in make_splits(grades({"a": 50, "b": 50}), folds=5, val_share=share):
        assert len(fold.val) == pytest.approx(share * (len(fold.train) + len(fold.val)), abs=1)


def test_too_few_patients_of_a_class() -> None:
    cohort = grades({"a": 30, "rare": 5})
    with pytest.raises(SplitError, match=r"5 need at least 6 patients of each kind, 'rare' has 5; use fewer folds"):
        make_splits(cohort, folds=5)
    assert len(make_splits(cohort, folds=4)) == 4


def test_too_few_events() -> None:
    slides = [CohortSlide(f"s{i}", f"c{i}", None, float(i), i < 3) for i in range(30)]
    with pytest.raises(SplitError, match=r"5 need at least 6 patients of each kind, 'event' has 3"):
        make_splits(Cohort(tuple(slides), DEATH), folds=5)


def test_slides_do_not_stand_in_for_patients() -> None:
    cohort = one_slide_each(*[(f"c{i}", "a") for i in range(10)], *[("one", "b")] * 10)
    with pytest.raises(SplitError, match="'b' has 1"):
        make_splits(cohort, folds=2)


@pytest.mark.parametrize("folds", [1, 0, -3])
def test_one_fold_is_none(folds: int) -> None:
    with pytest.raises(SplitError, match=f"folds: must be at least 2, got {folds}"):
        make_splits(grades({"a": 10, "b": 10}), folds=folds)


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5, -0.2, 0.01])
def test_impossible_share_of_validation(share: float) -> None:
    with pytest.raises(
        SplitError, match=r"^folds: val_share .*(must lie between 0 and 1|use another val share)"
    ) as caught:
        make_splits(grades({"a": 12, "b": 12}), folds=3, val_share=share)
    assert "\n" not in str(caught.value)


def test_negative_seed() -> None:
    with pytest.raises(SplitError, match="seed"):
        make_splits(grades({"a": 12, "b": 12}), folds=3, seed=-1)


# --- files ---------------------------------------------------------------------------------------------------------


def test_written_folds_read_back(tmp_path: Path) -> None:
    made = make_splits(grades({"a": 20, "b": 13}), folds=11)
    write_splits(made, tmp_path / "new" / "splits")
    assert read_splits(tmp_path / "new" / "splits") == made  # fold 10 after fold 9


def test_files_are_in_the_fields_layout(tmp_path: Path) -> None:
    write_splits([Fold(3, ("007", "b", "c"), ("d",), ("e", "f"))], tmp_path)
    assert (tmp_path / "splits_3.csv").read_text() == ",train,val,test\n0,007,d,e\n1,b,,f\n2,c,,\n"


def test_published_folds_write_and_read_back(tmp_path: Path) -> None:
    folds = (Fold(0, ("a", "b"), ("c",), ()), Fold(1, ("c",), ("a", "b"), ()))
    write_splits(folds, tmp_path)
    assert read_splits(tmp_path) == folds


@pytest.mark.parametrize(
    "text",
    [
        ",train,val,test\n0,a,c,e\n1,b,,\n",
        "train,val,test\na,c,e\nb,,\n",
        "train,val,test\n0,a,c,e\n1,b,,\n",  # a header without the index column's name
        ",train,val,test\n0,a,c,e\n1,b\n",
        ",train,val,test\r\n0, a,c ,e\r\n1,b,,\r\n",
        ",test,val,train\n0,e,c,a\n1,,,b\n",
        "\ufeff,train,val,test\n0.0,a,c,e\n1.0,b,,\n",
    ],
    ids=["field", "no-index", "nameless-index", "short-row", "spaces", "order", "mark"],
)
def test_layouts_that_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "splits_0.csv").write_text(text, "utf-8")
    assert read_splits(tmp_path) == (Fold(0, ("a", "b"), ("c",), ("e",)),)


def test_missing_test_column_is_an_empty_side(tmp_path: Path) -> None:
    (tmp_path / "splits_0.csv").write_text(",train,val\n0,a,c\n1,b,\n")
    assert read_splits(tmp_path) == (Fold(0, ("a", "b"), ("c",), ()),)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("splits_0_bool.csv", "splits_0_descriptor.csv", "splits_.csv", "splits_x.csv", "notes.txt"):
        (tmp_path / name).write_text("nothing,of,this\n")
    (tmp_path / "splits_2.csv").write_text(",train,val,test\n0,a,b,c\n")
    assert [f.index for f in read_splits(tmp_path)] == [2]


def test_no_split_files(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(SplitError, match=r"no files splits_0\.csv, splits_1\.csv, …; make them with"):
            read_splits(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",train,valid,test\n0,a,b,c\n", "no column 'val'; a splits file has train, val and test"),
        ("a,b\n", "no column 'train'"),
        ("", r"not a readable CSV table \(.*\); save it as CSV .* make the splits anew with `wsi2d splits make`"),
    ],
)
def test_unreadable_split_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "splits_0.csv").write_text(text)
    with pytest.raises(SplitError, match=message) as caught:
        read_splits(tmp_path)
    assert str(caught.value).startswith(f"splits {tmp_path / 'splits_0.csv'}: ")
    assert "\n" not in str(caught.value)


def test_a_folder_of_splits_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("in the way")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "splits"):
        with pytest.raises(StorageError) as caught:
            write_splits([Fold(0, ("a",), ("b",), ("c",))], folder)
        assert str(caught.value).startswith(f"{folder}: the folder cannot be made (")
        assert str(caught.value).endswith("give another --out")


def test_folds_of_two_kinds_do_not_mix_in_a_folder(tmp_path: Path) -> None:
    cohort = grades({"a": 20, "b": 20})
    write_splits(make_splits(cohort, folds=5), tmp_path)
    write_splits(make_splits(cohort, folds=5, seed=1), tmp_path)
    with pytest.raises(SplitError, match=r"splits_3\.csv"):
        write_splits(make_splits(cohort, folds=3), tmp_path)
    assert read_splits(tmp_path) == make_splits(cohort, folds=5, seed=1)


# --- resolving ids to slides ---------------------------------------------------------------------------------------


def test_case_ids_become_all_slides_of_the_case() -> None:
    cohort = one_slide_each(("p", "a"), ("q", "b"), ("p", "a"), ("r", "a"), ("t", "b"))
    fold = resolve_fold(Fold(4, ("p",), ("q",), ("t", "r")), cohort)
    assert (ids(fold.train), ids(fold.val), ids(fold.test)) == (["p-0", "p-1"], ["q-0"], ["r-0", "t-0"])
    assert (fold.index, fold.inner_val, fold.leaked_cases) == (4, False, ())


@pytest.mark.parametrize("suffix", ["", ".svs", ".tif"])
def test_slide_ids_become_these_slides(suffix: str) -> None:
    cohort = one_slide_each(("p", "a"), ("p", "a"), ("q", "b"), ("r", "a"))
    names = [[f"{name}{suffix}" for name in side] for side in (["p-1"], ["q-0"], ["r-0"])]
    fold = resolve_fold(Fold(0, *map(tuple, names)), cohort)
    assert (ids(fold.train), ids(fold.val), ids(fold.test)) == (["p-1"], ["q-0"], ["r-0"])


def test_an_id_named_twice_counts_once() -> None:
    cohort = one_slide_each(("p", "a"), ("q", "b"), ("r", "a"))
    fold = resolve_fold(Fold(0, ("p", "p", "p-0"), ("q",), ("r",)), cohort)
    assert ids(fold.train) == ["p-0"]


def test_unknown_ids() -> None:
    cohort = one_slide_each(("p", "a"), ("q", "b"), ("r", "a"))
    with pytest.raises(SplitError) as caught:
        resolve_fold(Fold(2, ("p",), ("x9", "q", "y"), ("r",)), cohort)
    assert str(caught.value) == (
        "fold 2: 2 ids of its val side are not in the cohort (the first is 'x9'); "
        "splits must name the cohort's case_id or slide_id, or set data.unknown_ids: skip"
    )


@pytest.mark.parametrize(
    ("fold", "side"),
    [
        (Fold(1, (), ("q",), ("r",)), "train"),
        (Fold(1, ("p",), (), ("r",)), "val"),
        (Fold(1, (), ("q",), ()), "train"),
        (Fold(1, ("p", "r", "t", "u"), (), ()), "test"),
        (Fold(1, (), (), ()), "train"),
    ],
)
def test_empty_sides(fold: Fold, side: str) -> None:
    cohort = one_slide_each(("p", "a"), ("q", "b"), ("r", "a"), ("t", "b"), ("u", "b"))
    with pytest.raises(SplitError, match=f"fold 1: its {side} side is empty; every fold needs train, val and test"):
        resolve_fold(fold, cohort)


def test_a_test_side_of_strangers_is_refused_and_val_does_not_stand_for_it() -> None:
    cohort = one_slide_each(*((f"c{i}", "ab"[i % 2]) for i in range(12)))
    fold = Fold(4, tuple(f"c{i}" for i in range(8)), ("c8", "c9"), ("x", "y"))
    with pytest.raises(SplitError, match="fold 4: its test side is empty; every fold needs train, val and test"):
        resolve_fold(fold, cohort, unknown="skip")


def test_train_too_small_to_cut() -> None:
    cohort = one_slide_each(("p", "a"), ("q", "b"))
    with pytest.raises(SplitError) as caught:
        resolve_fold(Fold(3, ("p",), ("q",), ()), cohort)
    assert str(caught.value) == (
        "fold 3: its train cannot be cut for validation, training.inner_val 0.2 of 1 patients (a 1) leaves a part too "
        "small to have every kind; give another training.inner_val, or splits with more patients in train or with a "
        "test side"
    )


def test_seeds_that_scikit_learn_does_not_take() -> None:
    with pytest.raises(SplitError, match="the seed must be at least 0 and below"):
        make_splits(grades({"a": 12, "b": 12}), folds=3, seed=2**32)
    cohort = one_slide_each(*((f"c{i}", "ab"[i % 2]) for i in range(20)))
    published = Fold(1, tuple(f"c{i}" for i in range(16)), tuple(f"c{i}" for i in range(16, 20)), ())
    assert resolve_fold(published, cohort, seed=2**40).inner_val


# --- published splits: two sides -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cohort", [grades({"a": 40, "b": 23}), deaths(63)], ids=["classes", "survival"])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.4])
def test_val_is_held_out_where_there_is_no_test(cohort: Cohort, share: float) -> None:
    cases = list(cohort.cases())
    published = Fold(0, tuple(cases[:50]), tuple(cases[50:]), ())
    fold = resolve_fold(published, cohort, inner_val=share)
    assert fold.inner_val
    assert patients(fold.test) == set(published.val)
    assert patients(fold.train) | patients(fold.val) == set(published.train)
    assert not patients(fold.train) & patients(fold.val)
    assert len(patients(fold.val)) == pytest.approx(share * 50, abs=1)
    assert Counter(ids(fold.train) + ids(fold.val)) == Counter(
        s.slide_id for s in cohort.slides if s.case_id in published.train
    )
    assert fold.leaked_cases == ()


def test_inner_cut_is_stratified() -> None:
    cohort = grades({"a": 40, "b": 20})
    cases = list(cohort.cases())
    label = {case: slides[0].label for case, slides in cohort.cases().items()}
    fold = resolve_fold(Fold(0, tuple(cases[:50]), tuple(cases[50:]), ()), cohort, inner_val=0.2)
    for name in "ab":
        share = sum(label[c] == name for c in cases[:50]) / 5
        assert abs(sum(label[c] == name for c in patients(fold.val)) - share) <= 1


def test_inner_cut_depends_on_the_seed_alone() -> None:
    cohort = grades({"a": 40, "b": 20})
    cases = list(cohort.cases())
    published = Fold(0, tuple(cases[:50]), tuple(cases[50:]), ())
    first = resolve_fold(published, cohort, seed=3)
    assert resolve_fold(published, cohort, seed=3) == first
    assert resolve_fold(published, cohort, seed=4).val != first.val
    shuffled = Fold(0, published.train[::-1], published.val[::-1], ())
    assert resolve_fold(shuffled, cohort, seed=3) == first


@pytest.mark.parametrize("rare", [1, 2, 3])
def test_inner_cut_with_rare_classes(rare: int) -> None:
    cases = [(f"a{i}", "a") for i in range(20)] + [(f"b{i}", f"rare-{i}") for i in range(rare)] + [("x", "a")]
    cohort = one_slide_each(*cases)
    train = tuple(case for case, _ in cases[:-1])
    fold = resolve_fold(Fold(0, train, ("x",), ()), cohort)
    assert patients(fold.train) | patients(fold.val) == set(train)
    assert not patients(fold.train) & patients(fold.val)


# --- leaks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), list(combinations(SIDES, 2)))
def test_patients_on_two_sides_are_named(a: str, b: str) -> None:
    cohort = one_slide_each(*[(case, "a") for case in ("q", "q", "p", "p", "t", "u", "v")])
    sides: dict[str, tuple[str, ...]] = {"train": ("t-0",), "val": ("u-0",), "test": ("v-0",)}
    sides[a] += ("q-0", "p-0")
    sides[b] += ("q-1", "p-1")
    fold = resolve_fold(Fold(0, **sides), cohort)
    assert fold.leaked_cases == ("p", "q")


def test_slides_on_two_sides_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    cohort = one_slide_each(("p", "a"), ("q", "b"), ("r", "a"), ("t", "a"))
    with caplog.at_level(logging.WARNING):
        fold = resolve_fold(Fold(3, ("p", "t"), ("q",), ("r", "t")), cohort)
    assert fold.leaked_cases == ("t",)
    assert [r.getMessage() for r in caplog.records] == ["fold 3: 1 slides are in both train and test"]


def test_no_leak_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    cohort = one_slide_each(("p", "a"), ("q", "b"), ("r", "a"))
    assert resolve_fold(Fold(0, ("p",), ("q",), ("r",)), cohort).leaked_cases == ()
    assert not caplog.records


def test_leaks_of_two_sided_splits_are_named_after_the_inner_cut() -> None:
    cohort = grades({"a": 40, "b": 20})
    cases = list(cohort.cases())
    for seed in range(5):
        fold = resolve_fold(Fold(0, tuple(cases[:50]), tuple(cases[45:]), ()), cohort, seed=seed)
        assert fold.leaked_cases == tuple(sorted(cases[45:50]))


# --- published splits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "leaked"),
    [
        ("KIRC", [0, 0, 0, 0, 0]),
        ("KIRP", [0, 0, 0, 0, 0]),
        ("LUAD", [0, 0, 0, 0, 0]),
        ("STAD", [0, 0, 0, 0, 0]),
        ("UCEC", [15, 18, 15, 10, 18]),
    ],
)
def test_published_survival_splits(tcga: Path, name: str, leaked: list[int]) -> None:
    task = SurvivalTask(time="survival_months", event="censorship=0")
    cohort = load_cohort(tcga / "survival" / f"{name}.csv", task)
    published = read_splits(tcga / "survival" / f"TCGA_{name}_survival_kfold")
    assert [len(set(f.train) & set(f.val)) for f in published] == leaked
    for fold, expected in zip(published, leaked, strict=True):
        check_published_fold(cohort, fold, resolve_fold(fold, cohort), expected)


def check_published_fold(cohort: Cohort, published: Fold, fold: SlideFold, leaked: int) -> None:
    """A two-sided fold resolved: val held out, train cut by patient, leaks those of the file."""
    assert published.test == ()
    assert fold.inner_val
    assert patients(fold.test) == set(published.val)
    assert patients(fold.train) | patients(fold.val) == set(published.train)
    assert not patients(fold.train) & patients(fold.val)
    assert fold.leaked_cases == tuple(sorted(set(published.train) & set(published.val)))
    assert len(fold.leaked_cases) == leaked
    assert any(s.event for s in fold.val)
    assert len(fold.test) == sum(len(cohort.cases()[case]) for case in set(published.val))


@pytest.mark.parametrize(("name", "leaked"), [("BRCA", 12), ("NSCLC", 7)])
def test_published_slide_splits(tcga: Path, tmp_path: Path, name: str, leaked: int) -> None:
    published = read_one_file(tcga / "classification" / f"TCGA-{name}-split.csv", tmp_path)
    # the label tables lack some of these slides and some patients: TCGA's barcode holds the patient
    everything = [slide for side in SIDES for slide in published.side(side)]
    slides = [CohortSlide(slide, slide[:12], "ab"[i % 2]) for i, slide in enumerate(everything)]
    fold = resolve_fold(published, Cohort(tuple(slides), GRADE, ("a", "b")))
    assert not fold.inner_val
    assert [ids(fold.train), ids(fold.val), ids(fold.test)] == [list(published.side(side)) for side in SIDES]
    assert len(patients(fold.train) & patients(fold.test)) == leaked
    people = {side: {slide[:12] for slide in published.side(side)} for side in SIDES}
    shared = set().union(*(people[a] & people[b] for a, b in combinations(SIDES, 2)))
    assert fold.leaked_cases == tuple(sorted(shared))


def test_published_split_names_slides_that_its_table_lacks(tcga: Path, tmp_path: Path) -> None:
    folder = tcga / "classification"
    published = read_one_file(folder / "TCGA-BRCA-split.csv", tmp_path)
    task = ClassificationTask(label="oncotree_code")
    cohort = load_cohort(folder / "TCGA-BRCA-label.csv", task, case_column="slide_id")
    with pytest.raises(SplitError, match="fold 0: 3 ids of its train side are not in the cohort"):
        resolve_fold(published, cohort)


def read_one_file(path: Path, folder: Path) -> Fold:
    """A published file under the name that files of folds bear."""
    (folder / "splits_0.csv").write_bytes(path.read_bytes())
    (fold,) = read_splits(folder)
    return fold


# --- splits as they come -------------------------------------------------------------------------------------------


def test_one_file_is_one_fold(tmp_path: Path) -> None:
    (tmp_path / "published.csv").write_text(",train,val\n0,a,b\n1,c,\n")
    assert read_splits(tmp_path / "published.csv") == (Fold(0, ("a", "c"), ("b",), ()),)
    (tmp_path / "splits_3.csv").write_text(",train,val,test\n0,a,b,c\n")
    assert read_splits(tmp_path / "splits_3.csv") == (Fold(3, ("a",), ("b",), ("c",)),)


def test_a_column_of_the_cohort_is_one_fold(tmp_path: Path) -> None:
    table = tmp_path / "cohort.csv"
    table.write_text("File Name,Data Split\na.svs,Train\nb.svs,Val\nc.svs,\nd.svs,TEST\n")
    assert splits_in_column(table, "Data Split", "File Name") == (Fold(0, ("a",), ("b",), ("d",)),)
    with pytest.raises(SplitError, match=r"no column 'Data split'; did you mean 'Data Split'\?"):
        splits_in_column(table, "Data split", "File Name")


def test_unknown_ids_may_be_left_out(caplog: pytest.LogCaptureFixture) -> None:
    slides = tuple(CohortSlide(i, i, "x" if i in "ab" else "y") for i in "abcd")
    cohort = Cohort(slides, ClassificationTask(label="kind"), ("x", "y"))
    fold = resolve_fold(Fold(0, ("a", "other"), ("b",), ("c", "d")), cohort, unknown="skip")
    assert [s.slide_id for s in fold.train] == ["a"]
    assert "fold 0: 1 ids of its train side are not in the cohort" in caplog.text


# --- sites, repeats, one held-out side -----------------------------------------------------------------------------


def of_sites(patients: int = 120, sites: int = 15, *, seed: int = 0) -> Cohort:
    """Patients of sites of very different size, some with two slides, with TCGA's barcodes."""
    numbers = np.random.default_rng(seed)
    slides = []
    for k in range(patients):
        site = f"{int(numbers.integers(sites) * numbers.random()):02d}"
        label = "x" if numbers.random() < 0.3 else "y"
        for part in range(1 + k % 2):
            slides.append(CohortSlide(f"TCGA-{site}-{k:04d}-01Z-00-DX{part}", f"TCGA-{site}-{k:04d}", label))
    return Cohort(tuple(slides), ClassificationTask(label="kind"), ("x", "y"))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_site_stands_on_one_side_and_every_patient_is_tested_once(seed: int) -> None:
    cohort = of_sites(seed=seed)
    sites = sites_of(cohort)
    folds = make_splits(cohort, seed=seed, sites=sites)
    assert sorted(case for fold in folds for case in fold.test) == sorted(cohort.cases())
    for fold in folds:
        of_side = [{sites[case] for case in fold.side(side)} for side in SIDES]
        assert all(of_side)
        assert sum(map(len, of_side)) == len(set().union(*of_side)), "no site on two sides"
        assert len(fold.train) + len(fold.val) + len(fold.test) == len(cohort.cases())
    assert folds == make_splits(cohort, seed=seed, sites=sites)


def test_sites_leave_classes_as_balanced_as_they_can() -> None:
    cohort = of_sites(400, 40)
    kinds = {s.case_id: s.label for s in cohort.slides}
    share = sum(kind == "x" for kind in kinds.values()) / len(kinds)
    for fold in make_splits(cohort, sites=sites_of(cohort)):
        assert abs(sum(kinds[case] == "x" for case in fold.test) / len(fold.test) - share) < 0.12


def test_sites_come_from_barcodes_and_there_must_be_enough() -> None:
    cohort = of_sites(60, 4)
    assert set(sites_of(cohort).values()) <= {f"{k:02d}" for k in range(4)}
    with pytest.raises(SplitError, match=r"5 need patients of at least 7 sites.*there are [34]; use fewer folds"):
        make_splits(cohort, sites=sites_of(cohort))
    with pytest.raises(SplitError, match="patient 'p' bears no TCGA barcode"):
        sites_of(one_slide_each(("p", "a"), ("q", "b")))


def at_sites(layout: dict[str, str]) -> Cohort:
    """A patient for each letter, which is its class, of each site."""
    kinds = [(site, kind) for site, letters in layout.items() for kind in letters]
    slides = [CohortSlide(f"TCGA-{s}-{k:04d}-01", f"TCGA-{s}-{k:04d}", kind) for k, (s, kind) in enumerate(kinds)]
    return Cohort(tuple(slides), ClassificationTask(label="grade"), tuple(sorted({kind for _, kind in kinds})))


def test_few_sites_are_cut_though_val_is_to_be_a_small_share() -> None:
    """Two sites are left outside each test side: val cannot be one of ten parts."""
    cohort = at_sites({f"0{k}": "aaaabb" for k in range(4)})
    for fold in make_splits(cohort, folds=2, val_share=0.1, sites=sites_of(cohort)):
        assert [len(fold.side(side)) for side in SIDES] == [6, 6, 12]


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4, 0.7])
def test_val_of_whole_sites_is_the_part_that_comes_nearest_to_its_share(share: float) -> None:
    cohort = of_sites(400, 40)
    for fold in make_splits(cohort, sites=sites_of(cohort), val_share=share):
        assert len(fold.val) / (len(fold.train) + len(fold.val)) == pytest.approx(share, abs=0.07)


def test_every_side_of_whole_sites_has_every_class_or_the_class_is_named() -> None:
    layout = {f"0{k}": "aaaa" for k in range(6)} | {f"1{k}": "aab" for k in range(3)} | {"20": "aabbb"}
    cohort = at_sites(layout)
    label = {case: slides[0].label for case, slides in cohort.cases().items()}
    for seed in range(8):
        for fold in make_splits(cohort, folds=3, seed=seed, sites=sites_of(cohort)):
            assert all({label[case] for case in fold.side(side)} == {"a", "b"} for side in SIDES)
    layout["10"] = layout["11"] = "aaa"
    cohort = at_sites(layout | {"20": "aabbbbbb"})
    with pytest.raises(SplitError) as caught:
        make_splits(cohort, folds=3, sites=sites_of(cohort))
    assert str(caught.value) == (
        "folds: 3 need patients of each kind from at least 3 sites where sites are kept together, 'b' has 2; use fewer "
        "folds or merge classes"
    )


def test_repeats_are_cross_validations_of_their_own() -> None:
    cohort = grades({"a": 30, "b": 30})
    folds = make_splits(cohort, folds=3, seed=5, repeats=2)
    assert [fold.index for fold in folds] == list(range(6))
    assert folds[:3] == make_splits(cohort, folds=3, seed=5)
    for part in (folds[:3], folds[3:]):
        assert sorted(case for fold in part for case in fold.test) == sorted(cohort.cases())
    assert {fold.test for fold in folds[:3]} != {fold.test for fold in folds[3:]}
    with pytest.raises(SplitError, match="repeats must be at least 1, got 0"):
        make_splits(cohort, repeats=0)


def test_a_holdout_tests_its_share_once() -> None:
    cohort = grades({"a": 40, "b": 60})
    (fold,) = make_holdout(cohort, 0.25, seed=3)
    assert len(fold.test) == len(cohort.cases()) / 4
    assert fold == make_splits(cohort, folds=4, seed=3)[0]
    with pytest.raises(SplitError, match=r"share must lie above 0 and be at most 0\.5, got 0\.6"):
        make_holdout(cohort, 0.6)


def test_published_tables_split_by_site(tcga: Path) -> None:
    cohort = load_cohort(tcga / "survival/UCEC.csv", SurvivalTask(time="survival_months", event="censorship=0"))
    sites = sites_of(cohort)
    for fold in make_splits(cohort, folds=3, sites=sites):
        of_side = [{sites[case] for case in fold.side(side)} for side in SIDES]
        assert sum(map(len, of_side)) == len(set(sites.values()))
        events = {s.case_id for s in cohort.slides if s.event}
        assert all(events & set(fold.side(side)) for side in SIDES)
