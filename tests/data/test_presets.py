"""The presets load the published tables and splits as they come. Features are random: the numbers mean nothing."""

from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from wsi2d.config import ClassificationTask, RunConfig
from wsi2d.config_files import load_run_config
from wsi2d.data.cohort import Cohort, load_cohort
from wsi2d.data.cohort_bags import bags_of
from wsi2d.data.splits import SlideFold, make_splits, resolve_fold, write_splits
from wsi2d.training.crossval import train
from wsi2d.training.run import cohort_of, splits_of

TABLES = {
    "bracs": ("classification/BRACS.csv", None),
    "dhmc": ("classification/DHMC.csv", None),
    "panda": ("classification/PANDA.csv", "made"),
    "tcga-brca": ("classification/TCGA-BRCA-label.csv", "classification/TCGA-BRCA-split.csv"),
    "tcga-nsclc": ("classification/TCGA-NSCLC-label.csv.zip", "classification/TCGA-NSCLC-split.csv"),
}
SURVIVAL = ("kirc", "kirp", "luad", "stad", "ucec")
TABLES |= {n: (f"survival/{n.upper()}.csv", f"survival/TCGA_{n.upper()}_survival_kfold") for n in SURVIVAL}
SLIDES = {"bracs": 547, "dhmc": 563, "panda": 10616, "tcga-brca": 1033, "tcga-nsclc": 958}
SLIDES |= {"kirc": 498, "kirp": 261, "luad": 455, "stad": 363, "ucec": 539}
LEAKY = {"tcga-brca", "tcga-nsclc", "ucec"}


def configured(preset: str, tcga: Path, folder: Path, **data: Any) -> RunConfig:
    """A run of a preset on its table, with whatever a user must say."""
    table, splits = TABLES[preset]
    if splits == "made":
        cohort = load_cohort(
            tcga / table, ClassificationTask(label="isup_grade"), slide_column="image_id", case_column="image_id"
        )
        write_splits(make_splits(cohort), folder / "splits")
        data["splits"] = str(folder / "splits")
    elif splits is not None:
        data["splits"] = str(tcga / splits)
    run = {"out": "run", "preset": preset, "data": {"cohort": str(tcga / table), "features": "features", **data}}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    return load_run_config(folder / "run.yaml")


def loaded(config: RunConfig) -> tuple[Cohort, list[SlideFold]]:
    cohort = cohort_of(config)
    return cohort, [resolve_fold(f, cohort, unknown=config.data.unknown_ids) for f in splits_of(config)]


@pytest.mark.parametrize("preset", TABLES)
def test_a_preset_loads_its_table_and_splits(preset: str, tcga: Path, tmp_path: Path) -> None:
    config = configured(preset, tcga, tmp_path)
    cohort, folds = loaded(config)
    assert len(cohort.slides) == SLIDES[preset]
    assert len(folds) == (5 if preset in ("panda", *SURVIVAL) else 1)
    assert any(fold.leaked_cases for fold in folds) == (preset in LEAKY)
    if isinstance(config.task, ClassificationTask):
        assert config.training.schedule == "cosine"
        assert all(Counter(s.label for s in fold.test).keys() == set(cohort.classes) for fold in folds)
    else:
        assert config.training.loss_divisor == 32
        assert all(fold.inner_val and any(s.event for s in fold.test) for fold in folds)


def test_ucec_has_several_slides_of_a_patient(tcga: Path, tmp_path: Path) -> None:
    cohort, _ = loaded(configured("ucec", tcga, tmp_path))
    assert len(cohort.cases()) == 480


PATIENTS_WITH_SEVERAL = {"tcga-brca": 57, "tcga-nsclc": 30, "ucec": 39, "luad": 0}


@pytest.mark.parametrize("preset", PATIENTS_WITH_SEVERAL)
def test_patients_of_a_preset_can_be_joined(preset: str, tcga: Path, tmp_path: Path) -> None:
    """No patient's slides differ in label or outcome; each side has as many bags as patients."""
    cohort, folds = loaded(configured(preset, tcga, tmp_path, bag="case"))
    several = [case for case, slides in cohort.cases().items() if len(slides) > 1]
    assert len(several) == PATIENTS_WITH_SEVERAL[preset]
    for fold in folds:
        for side in (fold.train, fold.val, fold.test):
            bags = bags_of(side, "case")
            assert len(bags) == len({slide.case_id for slide in side})
            assert sum(len(bag.slides) for bag in bags) == len(side)


@pytest.mark.slow
@pytest.mark.parametrize("preset", [preset for preset, several in PATIENTS_WITH_SEVERAL.items() if several])
def test_a_preset_trains_on_joined_slides(preset: str, tcga: Path, tmp_path: Path, tiny: ModuleType) -> None:
    """Some patients of each side and class have features: those with several slides first, one of them in part."""
    options = {"missing_features": "skip", "allow_leakage": preset in LEAKY, "bag": "case"}
    config = configured(preset, tcga, tmp_path, **options)
    _, folds = loaded(config)
    chosen: dict[str, tuple[str, ...]] = {}
    for fold in folds:
        for side in ("train", "val", "test"):
            seen: Counter[object] = Counter()
            for bag in sorted(bags_of(getattr(fold, side), "case"), key=lambda bag: -len(bag.slides)):
                kind = bag.event if bag.label is None else bag.label
                if seen[kind] < 3:
                    seen[kind] += 1
                    chosen[bag.case_id] = bag.slide_ids
    part = next(case for case, slides in chosen.items() if len(slides) > 1)
    numbers = np.random.default_rng(0)
    written = {name for case, slides in chosen.items() for name in (slides[1:] if case == part else slides)}
    for name in sorted(written):
        tiny.write_features(tmp_path / "features", name, numbers.normal(size=(6, 8)).astype(np.float32))
    training = config.training.model_copy(update={"epochs": 1, "device": "cpu"})
    evaluation = config.evaluation.model_copy(update={"bootstrap": 20})
    found = train(config.model_copy(update={"training": training, "evaluation": evaluation}))
    rows = tiny.read_table(tmp_path / "run/predictions.csv")
    assert found.unit == "case"
    assert len({(row["fold"], row["case_id"]) for row in rows}) == len(rows) >= found.cases
    assert {name for row in rows for name in row["joined_slides"].split(";")} <= written
    assert any(part in note for note in found.notes if "are joined without some of their slides" in note)
    if preset == "ucec":  # the splits of the others name slides, and leave patients one on the test side
        assert any(";" in row["joined_slides"] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("preset", TABLES)
def test_a_preset_trains_on_its_table(preset: str, tcga: Path, tmp_path: Path, tiny: ModuleType) -> None:
    """Some slides of each side and class have features, the others are skipped."""
    config = configured(preset, tcga, tmp_path, missing_features="skip", allow_leakage=preset in LEAKY)
    _, folds = loaded(config)
    chosen: set[str] = set()
    for fold in folds:
        for side, count in (("train", 6), ("val", 3), ("test", 3)):
            seen: Counter[object] = Counter()
            for slide in getattr(fold, side):
                kind = slide.event if slide.label is None else slide.label
                if seen[kind] < count:
                    seen[kind] += 1
                    chosen.add(slide.slide_id)
    numbers = np.random.default_rng(0)
    for name in sorted(chosen):
        tiny.write_features(tmp_path / "features", name, numbers.normal(size=(6, 8)).astype(np.float32))
    training = config.training.model_copy(update={"epochs": 1, "device": "cpu"})
    evaluation = config.evaluation.model_copy(update={"bootstrap": 20})
    train(config.model_copy(update={"training": training, "evaluation": evaluation}))
    rows = (tmp_path / "run/predictions.csv").read_text().splitlines()
    tested = {slide.slide_id for fold in folds for slide in fold.test}
    assert len(rows) > len(tested & chosen) > 0
