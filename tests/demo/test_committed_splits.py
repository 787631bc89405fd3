"""The folds in `splits/demo` are those of the demo of 60 slides, seed 0."""

from pathlib import Path

import numpy as np
import pytest

from wsi2d.config import ClassificationTask
from wsi2d.data.cohort import load_cohort
from wsi2d.data.splits import make_splits, read_splits
from wsi2d.demo import cohort as module

COMMITTED = Path(__file__).parents[2] / "splits" / "demo"


def test_they_are_what_the_demo_makes(tmp_path: Path) -> None:
    if not COMMITTED.is_dir():
        pytest.skip("splits/ is not here: these tests run away from a checkout")
    table = tmp_path / "cohort.csv"
    module._cohort_table(60, np.random.default_rng([0, 0])).to_csv(table, index=False)
    cohort = load_cohort(table, ClassificationTask(label="arrangement", classes=module.ARRANGEMENTS))
    assert make_splits(cohort, folds=5, seed=0) == read_splits(COMMITTED)
