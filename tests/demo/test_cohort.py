"""The demo's cohort: the class is the arrangement and nothing else, and survival follows it."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from wsi2d.config import ClassificationTask, SurvivalTask
from wsi2d.data.cohort import load_cohort
from wsi2d.data.splits import make_splits
from wsi2d.demo import cohort as module
from wsi2d.demo.cohort import ARRANGEMENTS, HAZARD_RATIO, draw_layout, make_demo_cohort
from wsi2d.demo.painting import CELL_PX, MPP, Layout
from wsi2d.errors import ConfigError
from wsi2d.slides.reader import open_slide

SEEDS = range(40)
FEW = range(12)  # for slides of the demo's own size


def table_of(slides: int, seed: int) -> pd.DataFrame:
    """A cohort table as a demo of that seed has it, without painting its slides."""
    return module._cohort_table(slides, np.random.default_rng([seed, 0]))


def layout_of(arrangement: str, seed: int) -> Layout:
    """A slide's layout."""
    return draw_layout(arrangement, np.random.default_rng(seed))


# --- the table


@pytest.mark.parametrize("slides", [14, 17, 60, 61])
@pytest.mark.parametrize("seed", [0, 3])
def test_table(slides: int, seed: int) -> None:
    table = table_of(slides, seed)
    assert list(table.columns) == ["slide_id", "case_id", "arrangement", "months", "status"]
    assert len(table) == slides
    assert table["slide_id"].is_unique
    cases = table.drop_duplicates("case_id")
    assert len(cases) < slides, "some patients have two slides"
    assert table["case_id"].value_counts().max() == 2
    for column in ("arrangement", "months", "status"):
        assert (table.groupby("case_id")[column].nunique() == 1).all(), f"{column} is the patient's"
    counts = cases["arrangement"].value_counts()
    assert set(counts.index) == set(ARRANGEMENTS)
    assert abs(counts[ARRANGEMENTS[0]] - counts[ARRANGEMENTS[1]]) <= 1
    assert set(table["status"]) == {"dead", "alive"}
    assert (table["months"] > 0).all()


@pytest.mark.parametrize("slides", [14, 20, 30, 60])
def test_every_seed_can_be_split(tmp_path: Path, slides: int) -> None:
    """Five folds of the class and of survival: the demo must not fail because of the dice."""
    for seed in SEEDS:
        table_of(slides, seed).to_csv(tmp_path / "c.csv", index=False)
        for task in (
            ClassificationTask(label="arrangement", classes=ARRANGEMENTS),
            SurvivalTask(time="months", event="status=dead"),
        ):
            assert len(make_splits(load_cohort(tmp_path / "c.csv", task), folds=5, seed=seed)) == 5


def test_survival_follows_the_arrangement() -> None:
    """Deaths per month at risk differ by the hazard ratio that is promised, and enough are censored to matter."""
    cases = pd.concat([table_of(60, seed).drop_duplicates("case_id") for seed in range(200)])
    dead = cases["status"] == "dead"
    rate = {
        a: dead[of].sum() / cases["months"][of].sum()
        for a in ARRANGEMENTS
        if (of := cases["arrangement"] == a) is not None
    }
    assert rate["nest"] / rate["scattered"] == pytest.approx(HAZARD_RATIO, rel=0.07)
    assert 0.1 < 1 - dead.mean() < 0.5


def c_index_by_hand(table: pd.DataFrame) -> float:
    """Concordant pairs among those that can be compared; a tie in risk counts half."""
    cases = table.drop_duplicates("case_id").to_dict("records")
    right = comparable = 0.0
    for a, b in combinations(cases, 2):
        first, second = sorted((a, b), key=lambda case: case["months"])
        if first["status"] != "dead" or (first["months"] == second["months"] and second["status"] == "dead"):
            continue
        comparable += 1
        risk = [case["arrangement"] == "nest" for case in (first, second)]
        right += 0.5 if risk[0] == risk[1] else float(risk[0])
    return right / comparable


def test_what_knowing_the_arrangement_is_worth() -> None:
    values = [module._arrangement_c_index(table_of(60, seed)) for seed in SEEDS]
    assert np.mean(values) == pytest.approx(0.71, abs=0.02)
    for seed in (0, 1, 2):
        table = table_of(60, seed)
        assert module._arrangement_c_index(table) == pytest.approx(c_index_by_hand(table), abs=0.01)


# --- what a slide shows


def test_both_classes_draw_the_same_slide_but_for_the_arrangement() -> None:
    """Outline and number of the rarer kind are drawn before, and without, the class."""
    for seed in FEW:
        nest, scattered = (layout_of(a, seed) for a in ("nest", "scattered"))
        np.testing.assert_array_equal(nest.tissue, scattered.tissue)
        assert nest.positive.sum() == scattered.positive.sum()
        assert nest.positive.shape == scattered.positive.shape
        assert (nest.positive != scattered.positive).any()


def cells_inside(layout: Layout) -> np.ndarray:
    """Bool ``[rows, cols]``, cells wholly on tissue, one after the other."""
    found = np.zeros(layout.positive.shape, bool)
    for row, col in np.ndindex(*found.shape):
        block = layout.tissue[row * CELL_PX : (row + 1) * CELL_PX, col * CELL_PX : (col + 1) * CELL_PX]
        found[row, col] = block.shape == (CELL_PX, CELL_PX) and block.all()
    return found


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_rarer_kind_only_in_cells_wholly_inside_the_tissue(arrangement: str) -> None:
    shares = []
    for seed in FEW:
        layout = layout_of(arrangement, seed)
        inside = cells_inside(layout)
        assert not (layout.positive & ~inside).any()
        shares.append(layout.positive.sum() / inside.sum())
        assert inside.sum() > 60
    assert 0.14 < min(shares) < 0.18
    assert 0.22 < max(shares) < 0.26
    assert np.mean(shares) == pytest.approx(0.2, abs=0.02)


def pieces(mask: np.ndarray) -> int:
    """Connected parts (over corners, too)."""
    return int(ndimage.label(mask, np.ones((3, 3)))[1])


def test_a_nest_is_compact_and_the_other_is_not() -> None:
    neighbours = {}
    for arrangement in ARRANGEMENTS:
        found = []
        for seed in FEW:
            positive = layout_of(arrangement, seed).positive
            pairs = (positive[1:] & positive[:-1]).sum() + (positive[:, 1:] & positive[:, :-1]).sum()
            found.append(pairs / positive.sum())
        neighbours[arrangement] = found
    assert min(neighbours["nest"]) > max(neighbours["scattered"]) + 0.2


def test_nests_are_at_random_places(small_slides: None) -> None:
    centres = []
    for seed in SEEDS:
        layout = layout_of("nest", seed)
        centres.append((np.argwhere(layout.positive).mean(0) + 0.5) * CELL_PX / layout.tissue.shape)
    spread = np.std(centres, 0)
    assert (spread > 0.08).all()
    assert np.abs(np.mean(centres, 0) - 0.5).max() < 0.1


def test_some_slides_have_two_pieces_of_tissue(small_slides: None) -> None:
    counts = [pieces(layout_of("nest", seed).tissue[::4, ::4]) for seed in range(100)]
    assert set(counts) == {1, 2}
    assert 15 <= counts.count(2) <= 45


def test_outlines_are_irregular_and_leave_a_border() -> None:
    shapes, areas = set(), set()
    for seed in FEW:
        tissue = layout_of("nest", seed).tissue
        shapes.add(tissue.shape)
        areas.add(int(tissue.sum()))
        assert not any(edge.any() for edge in (tissue[0], tissue[-1], tissue[:, 0], tissue[:, -1]))
        assert 0.2 < tissue.mean() < 0.8
        assert tissue.shape[0] % 4 == tissue.shape[1] % 4 == 0, "levels are exactly 2 and 4 times coarser"
        filled = ndimage.binary_fill_holes(tissue[::8, ::8])
        assert filled.mean() - tissue[::8, ::8].mean() < 0.01
    assert len(shapes) == len(areas) == len(FEW)
    assert any(h % CELL_PX for h, _ in shapes), "slides do not end on the grid"


# --- on disk


class Stop(Exception):
    """What interrupts."""


def stop_after(slides: int) -> Callable[[], None]:
    """Interrupts when that many slides are painted."""
    left = iter(range(slides - 1))

    def told() -> None:
        if next(left, None) is None:
            raise Stop

    return told


def contents(folder: Path) -> dict[str, bytes]:
    """The slides of a demo."""
    return {path.name: path.read_bytes() for path in sorted((folder / "slides").iterdir())}


def test_same_seed_same_bytes(small_slides: None, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        with pytest.raises(Stop):
            make_demo_cohort(tmp_path / name, slides=14, seed=seed, on_slide=stop_after(3))
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert list(a) == [f"{slide_id}.tiff" for slide_id in table_of(14, 3)["slide_id"][:3]]
    assert a == b
    assert not set(a.values()) & set(c.values())
    assert len(set(a.values())) == 3

    # It goes on where it stopped: what is there is kept, what is missing is painted, and comes out the same.
    first, second, third = (tmp_path / "a" / "slides" / name for name in a)
    second.unlink()
    before = first.stat().st_mtime_ns, third.stat().st_mtime_ns
    with pytest.raises(Stop):
        make_demo_cohort(tmp_path / "a", slides=14, seed=3, on_slide=stop_after(1))
    assert contents(tmp_path / "a") == a
    assert (first.stat().st_mtime_ns, third.stat().st_mtime_ns) == before

    for slides, seed in ((15, 3), (14, 4)):
        with pytest.raises(ConfigError, match="holds the demo of 14 slides, seed 3; give another --out"):
            make_demo_cohort(tmp_path / "a", slides=slides, seed=seed)


def test_whole_cohort(small_slides: None, tmp_path: Path) -> None:
    told: list[None] = []
    made = make_demo_cohort(str(tmp_path), slides=14, seed=3, on_slide=lambda: told.append(None))
    assert len(told) == 14
    table = pd.read_csv(made.table)
    pd.testing.assert_frame_equal(table, table_of(14, 3))
    assert list(contents(tmp_path)) == sorted(f"{slide_id}.tiff" for slide_id in table["slide_id"])
    assert made.arrangement_c_index == module._arrangement_c_index(table)


def test_slides_are_pyramids_that_openslide_opens(small_slides: None, tmp_path: Path) -> None:
    import openslide

    made = make_demo_cohort(tmp_path, slides=14, seed=1)
    sizes = []
    for path in sorted(made.slides.iterdir()):
        assert openslide.OpenSlide.detect_format(path) == "generic-tiff"
        with openslide.OpenSlide(path) as slide:
            assert slide.level_count == 3
            assert slide.level_downsamples == (1.0, 2.0, 4.0), "exactly, or patches of two resolutions would differ"
        with open_slide(path) as reader:
            assert reader.slide.mpp_source == "tiff"
            sizes.append(reader.slide.mpp)
            assert 7 <= reader.slide.width * reader.slide.mpp / (CELL_PX * MPP) < 9
    fine = [m for m in sizes if m == pytest.approx(0.25, rel=1e-6)]
    assert len(fine) + len([m for m in sizes if m == pytest.approx(0.5, rel=1e-6)]) == 14
    assert 1 <= len(fine) <= 8, "some at 40×"


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the demo needs at least 14, got 13"):
        make_demo_cohort(tmp_path / "a", slides=13)
    with pytest.raises(ConfigError, match="seed: must be at least 0, got -1"):
        make_demo_cohort(tmp_path / "a", seed=-1)
    assert not (tmp_path / "a").exists()
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty; give another --out"):
        make_demo_cohort(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.docx"]
