"""The run folder's table of slides: which the folds use, what is known of them, how many patches each has."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from wsi2d.errors import RunError
from wsi2d.features.store import read_header
from wsi2d.training.run import COHORT_FILE, load_study, prepare_run_folder, resolve_sections


@pytest.fixture
def study(tiny: ModuleType, tmp_path: Path) -> Path:
    """The YAML file of a study of this test's own."""
    return Path(tiny.write_study(tmp_path / "study"))


def prepared(tiny: ModuleType, path: Path, **changes: Any) -> list[dict[str, str]]:
    """Make a study's run folder, and read the table of its slides."""
    config = resolve_sections(tiny.changed(path, **changes))
    prepare_run_folder(config, load_study(config))
    return list(tiny.read_table(config.out / COHORT_FILE))


def known(tiny: ModuleType, path: Path) -> dict[str, dict[str, str]]:
    """What the study's own table says, by slide."""
    return {row["slide_id"]: row for row in tiny.read_table(path.with_name("cohort.csv"))}


def patches(path: Path, slide_id: str) -> str:
    """How many patches a slide's feature file says it has."""
    return str(read_header(path.parent / "features" / f"{slide_id}.h5").patches)


# --- cohort.csv


def test_table_of_a_classification(tiny: ModuleType, study: Path) -> None:
    rows = prepared(tiny, study)
    truth = known(tiny, study)
    assert [row["slide_id"] for row in rows] == list(truth), "each slide once, in the table's order"
    for row in rows:
        assert list(row) == ["slide_id", "case_id", "label", "patches"]
        assert (row["case_id"], row["label"]) == (truth[row["slide_id"]]["case_id"], truth[row["slide_id"]]["label"])
        assert row["patches"] == patches(study, row["slide_id"])
        assert 8 <= int(row["patches"]) < 25


def test_table_of_a_survival_study(tiny: ModuleType, tmp_path: Path) -> None:
    path = Path(tiny.write_study(tmp_path / "study", "survival"))
    rows = prepared(tiny, path)
    truth = known(tiny, path)
    assert [row["slide_id"] for row in rows] == list(truth)
    for row in rows:
        assert list(row) == ["slide_id", "case_id", "time", "event", "patches"]
        assert float(row["time"]) == float(truth[row["slide_id"]]["months"])
        assert row["event"] == str(truth[row["slide_id"]]["status"] == "dead")
        assert row["patches"] == patches(path, row["slide_id"])
    assert {row["event"] for row in rows} == {"True", "False"}


def test_slides_without_features_have_no_count_and_those_without_tissue_none(tiny: ModuleType, study: Path) -> None:
    tiny.write_features(study.parent / "features", "s05x", np.zeros((0, tiny.DIM), np.float32))
    (study.parent / "features" / "s06x.h5").unlink()
    rows = {row["slide_id"]: row["patches"] for row in prepared(tiny, study, data={"missing_features": "skip"})}
    assert len(rows) == 14
    assert (rows["s05x"], rows["s06x"]) == ("0", "")
    assert all(int(count) > 0 for slide_id, count in rows.items() if slide_id not in {"s05x", "s06x"})


def test_slides_that_no_fold_uses_are_not_in_it(tiny: ModuleType, study: Path) -> None:
    """They may come and go: the run does not depend on them."""
    with study.with_name("cohort.csv").open("a", encoding="utf-8") as table:
        table.write("unused,p99,a,9,dead\n")
    rows = prepared(tiny, study)
    assert len(rows) == 14
    assert "unused" not in {row["slide_id"] for row in rows}
    text = study.with_name("cohort.csv").read_text("utf-8")
    study.with_name("cohort.csv").write_text(text.replace("unused,p99,a,", "other,p98,b,"), "utf-8")
    assert prepared(tiny, study) == rows


def test_names_and_labels_that_csv_must_quote(tiny: ModuleType, study: Path) -> None:
    rows = tiny.read_table(study.with_name("cohort.csv"))
    labels = {"a": 'grade "1", low', "b": "grade 2"}
    for row in rows:
        row["label"] = labels[row["label"]]
    tiny.write_table(study.with_name("cohort.csv"), list(rows[0]), [list(row.values()) for row in rows])
    assert {row["label"] for row in prepared(tiny, study)} == set(labels.values())
    assert prepared(tiny, study), "and it goes on"


def test_slide_ids_with_a_suffix_are_told_without(tiny: ModuleType, study: Path) -> None:
    """As the feature files bear them."""
    text = study.with_name("cohort.csv").read_text("utf-8")
    study.with_name("cohort.csv").write_text(text.replace("s03x,", "s03x.svs,"), "utf-8")
    assert "s03x" in {row["slide_id"] for row in prepared(tiny, study)}


def test_it_is_written_once_and_compared_later(tiny: ModuleType, study: Path) -> None:
    prepared(tiny, study)
    table = study.with_name("run") / COHORT_FILE
    before = table.stat().st_mtime_ns
    prepared(tiny, study)
    assert table.stat().st_mtime_ns == before
    tiny.write_features(study.parent / "features", "s03x", np.zeros((3, tiny.DIM), np.float32))
    with pytest.raises(RunError, match=r"the first of 2 lines of its cohort\.csv that differ: 's03x,p03,b,\d+'\)"):
        prepared(tiny, study)
    assert table.stat().st_mtime_ns == before


def test_columns_in_another_order_and_rows_in_another_are_the_same_study(tiny: ModuleType, study: Path) -> None:
    rows = prepared(tiny, study)
    table = tiny.read_table(study.with_name("cohort.csv"))
    turned = [dict(reversed(row.items())) for row in reversed(table)]
    tiny.write_table(study.with_name("cohort.csv"), list(turned[0]), [list(row.values()) for row in turned])
    assert prepared(tiny, study) == rows


def test_a_run_of_before_there_was_such_a_table_goes_on(tiny: ModuleType, study: Path) -> None:
    prepared(tiny, study)
    (study.with_name("run") / COHORT_FILE).unlink()
    config = resolve_sections(tiny.changed(study))
    prepare_run_folder(config, load_study(config))
