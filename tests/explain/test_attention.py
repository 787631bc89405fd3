"""Which model speaks about a slide, where its features come from, and that attention lies where it should."""

import hashlib
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi2d.data.bags import read_spec
from wsi2d.errors import FeatureStoreError, RunError, SlideError, Wsi2dError
from wsi2d.explain import attention as attention_module
from wsi2d.explain.attention import SlideAttention, slide_attention
from wsi2d.features.store import read_features
from wsi2d.slides.discovery import find_slides


def hottest(attention: SlideAttention) -> tuple[float, float]:
    """Centre (x, y) of the cell with the most attention, level-0 px."""
    grid = attention.on_grid()
    row, col = np.unravel_index(np.nanargmax(grid), grid.shape)
    half = attention.grid.patch_level0 / 2
    return col * attention.grid.stride_level0 + half, row * attention.grid.stride_level0 + half


def assert_there(attention: SlideAttention, centre: tuple[float, float]) -> None:
    """The hottest cell is at a place, to within a patch (and in the array, one that covers part of it)."""
    found = hottest(attention)
    assert abs(found[0] - centre[0]) <= attention.grid.patch_level0
    assert abs(found[1] - centre[1]) <= attention.grid.patch_level0


PLACES = {"upper right": (400.0, 40.0), "lower right": (411.0, 215.0), "middle": (231.0, 139.0), "left": (110.0, 90.0)}


@pytest.mark.parametrize("overlap_px", [0, 24])
@pytest.mark.parametrize("place", PLACES)
def test_hottest_cell_is_where_the_brown_is(
    brown_slide: Any, handmade_run: Any, tmp_path: Path, place: str, overlap_px: int
) -> None:
    slide = brown_slide(tmp_path / "slides" / "A.tiff", PLACES[place])
    run = handmade_run(tmp_path, {"A": 0}, overlap_px=overlap_px)
    attention = slide_attention(run, "A")
    assert_there(attention, slide.centre)
    assert attention.relative().mean() == pytest.approx(1, rel=1e-5)
    assert attention.relative().max() > 2


@pytest.mark.parametrize("mpp", [0.25, 0.37])
def test_other_magnifications(brown_slide: Any, handmade_run: Any, tmp_path: Path, mpp: float) -> None:
    """Patches of 0.5 µm/px: their side in level-0 px is 128, and 86.49 with strides that are not whole."""
    scale = 0.5 / mpp
    size = (round(448 * scale), round(320 * scale))
    slide = brown_slide(
        tmp_path / "slides" / "A.tiff", (310 * scale, 110 * scale), size=size, mpp=mpp, side=round(64 * scale)
    )
    attention = slide_attention(handmade_run(tmp_path, {"A": 0}), "A")
    assert attention.grid.patch_level0 == pytest.approx(64 * scale, rel=1e-3)
    assert attention.slide_mpp == pytest.approx(mpp, rel=1e-3)
    assert_there(attention, slide.centre)


def test_cells_without_a_patch_are_nan(brown_slide: Any, handmade_run: Any, tmp_path: Path) -> None:
    slide = brown_slide(tmp_path / "slides" / "A.tiff", (231, 139))
    attention = slide_attention(handmade_run(tmp_path, {"A": 0}), "A")
    grid = attention.on_grid()
    assert grid.shape == (5, 7)
    assert int(np.isfinite(grid).sum()) == len(attention.grid) == len(attention.prediction.attention)
    assert np.isnan(grid[:, 0]).all(), "the left edge is glass"
    assert np.isnan(grid[-1]).all(), "so is the lower"
    assert slide.glass > 64
    for (row, col), value in zip(attention.grid.index, attention.relative(), strict=True):
        assert grid[row, col] == value


@pytest.fixture
def two_minds(brown_slide: Any, handmade_run: Any, tmp_path: Path) -> Path:
    """A run of two slides whose fold 0 looks for brown (B was in its test side) and whose fold 1 avoids it (A)."""
    for name in "AB":
        brown_slide(tmp_path / "slides" / f"{name}.tiff", (231, 139))
    return handmade_run(tmp_path, {"A": 1, "B": 0}, strengths=(6.0, -6.0))


def near_brown(attention: SlideAttention) -> float:
    """Relative attention of the cell under the middle of the brown square."""
    return float(attention.on_grid()[139 // 64, 231 // 64])


def test_a_slide_of_the_cohort_is_shown_by_the_fold_that_did_not_see_it(two_minds: Path) -> None:
    a, b = slide_attention(two_minds, "A"), slide_attention(two_minds, "B")
    assert (a.folds, b.folds) == ((1,), (0,))
    assert (a.prediction.fold, b.prediction.fold) == (1, 0)
    assert near_brown(a) < 0.7
    assert near_brown(b) > 1.5
    assert (a.truth, a.classes) == ("rare", ("common", "rare"))


def test_folds_that_are_asked(two_minds: Path) -> None:
    assert near_brown(slide_attention(two_minds, "A", folds=[0])) > 1.5
    both = slide_attention(two_minds, "A", folds=(0, 1))
    single = [slide_attention(two_minds, "A", folds=[k]).prediction for k in (0, 1)]
    assert both.folds == (0, 1)
    np.testing.assert_allclose(both.prediction.attention, np.mean([p.attention for p in single], 0), rtol=1e-5)
    np.testing.assert_allclose(both.prediction.scores, np.mean([p.scores for p in single], 0), rtol=1e-6)
    with pytest.raises(RunError, match="fold 7 is not trained; there are 0, 1"):
        slide_attention(two_minds, "A", folds=[7])


def test_id_and_path_are_the_same_slide(two_minds: Path) -> None:
    by_id = slide_attention(two_minds, "A")
    by_path = slide_attention(str(two_minds), two_minds.parent / "slides" / "A.tiff")
    assert by_path.folds == (1,)
    assert np.array_equal(by_id.on_grid(), by_path.on_grid(), equal_nan=True)


def test_new_slide_is_shown_by_the_ensemble_and_extracted_on_the_way(
    brown_slide: Any, two_minds: Path, tmp_path: Path
) -> None:
    slide = brown_slide(tmp_path / "elsewhere" / "new.tiff", (330, 140))
    before = sorted(p.name for p in (tmp_path / "features").iterdir())
    attention = slide_attention(two_minds, slide.path)
    assert attention.folds == (0, 1)
    assert attention.prediction.fold is None
    assert attention.truth == ""
    assert sorted(p.name for p in (tmp_path / "features").iterdir()) == before, "the study's features are left alone"
    assert_there(slide_attention(two_minds, slide.path, folds=[0]), slide.centre)
    # The grid is the one that the study's settings give, tissue settings included.
    kept = read_features(tmp_path / "features" / "A.h5")
    assert (attention.grid.patch_px, attention.grid.mpp, attention.grid.shape) == (64, 0.5, kept.grid.shape)
    np.testing.assert_array_equal(attention.grid.index, kept.grid.index)


def test_settings_of_the_study_are_used_for_a_new_slide(brown_slide: Any, handmade_run: Any, tmp_path: Path) -> None:
    """Overlap and share of tissue, neither of them a default: the same slide under another name has the same cells."""
    brown_slide(tmp_path / "slides" / "A.tiff", (231, 139))
    run = handmade_run(tmp_path, {"A": 0}, overlap_px=24)
    copy = tmp_path / "elsewhere" / "copy.tiff"
    copy.parent.mkdir()
    copy.write_bytes((tmp_path / "slides" / "A.tiff").read_bytes())
    new, known = slide_attention(run, copy, folds=[0]), slide_attention(run, "A", folds=[0])
    np.testing.assert_array_equal(new.grid.index, known.grid.index)
    assert new.grid.stride_level0 == 40
    np.testing.assert_array_equal(new.prediction.attention, known.prediction.attention)


def test_features_from_another_folder(two_minds: Path, tmp_path: Path) -> None:
    (tmp_path / "features" / "A.h5").rename(tmp_path / "A.h5")
    (tmp_path / "given").mkdir()
    (tmp_path / "A.h5").rename(tmp_path / "given" / "A.h5")
    attention = slide_attention(two_minds, "A", features=tmp_path / "given")
    assert attention.folds == (1,)


def test_survival(brown_slide: Any, handmade_run: Any, tmp_path: Path) -> None:
    slide = brown_slide(tmp_path / "slides" / "A.tiff", (231, 139))
    attention = slide_attention(handmade_run(tmp_path, {"A": 0}, kind="survival"), "A")
    assert_there(attention, slide.centre)
    assert attention.classes == ()
    assert attention.truth == "7.5, event"
    assert attention.prediction.risk is not None


# --- what cannot be shown


def test_slides_that_cannot_be_found(two_minds: Path, tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="slide 'Z': is no file, and no slide of that name is in"):
        slide_attention(two_minds, "Z")
    with pytest.raises(SlideError, match="nowhere does not exist; give --slides FOLDER"):
        slide_attention(two_minds, "A", slides=tmp_path / "nowhere")
    assert slide_attention(two_minds, "A", slides=tmp_path / "slides").folds == (1,)


def test_a_slide_s_nearest_name(two_minds: Path, tmp_path: Path) -> None:
    with pytest.raises(SlideError, match=r"is in .*slides; there are A, B$"):
        slide_attention(two_minds, "Z")
    (tmp_path / "more").mkdir()
    for i in range(99):
        (tmp_path / "more" / f"TCGA-{i:04}.svs").touch()
    with pytest.raises(SlideError, match=r"is in .*more; did you mean 'TCGA-0042'\?$"):
        slide_attention(two_minds, "TCGA-0042.svs", slides=tmp_path / "more")
    with pytest.raises(SlideError, match=r"is in .*more; 99 others are, as 'TCGA-0000'; give another --slides$"):
        slide_attention(two_minds, "Z", slides=tmp_path / "more")


def test_run_that_does_not_say_where_its_slides_are(brown_slide: Any, handmade_run: Any, tmp_path: Path) -> None:
    brown_slide(tmp_path / "slides" / "A.tiff", (231, 139))
    run = handmade_run(tmp_path, {"A": 0}, slides=None)
    with pytest.raises(SlideError, match=r"the run has no data\.slides; give --slides FOLDER"):
        slide_attention(run, "A")
    assert slide_attention(run, "A", slides=tmp_path / "slides").slide.slide_id == "A"


def test_a_folder_of_several_slides_is_not_one_slide(two_minds: Path, tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="2 slides"):
        slide_attention(two_minds, tmp_path / "slides")


def test_a_file_that_bears_a_slide_s_name_by_chance(
    two_minds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slide's id goes before a folder of that name where the command is given."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "A").mkdir()
    (tmp_path / "A" / "notes.txt").write_text("mine")
    assert slide_attention(two_minds, "A").folds == (1,)


def test_features_made_otherwise(two_minds: Path, tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "features" / "A.h5", "a") as file:
        file.attrs["encoder_hash"] = np.bytes_(b"another")
    with pytest.raises(FeatureStoreError, match="encoder_hash another"):
        slide_attention(two_minds, "A")


def test_no_features_to_learn_the_settings_from(brown_slide: Any, two_minds: Path, tmp_path: Path) -> None:
    slide = brown_slide(tmp_path / "elsewhere" / "new.tiff", (330, 140))
    for path in (tmp_path / "features").iterdir():
        path.unlink()
    with pytest.raises(FeatureStoreError, match="no feature files to take the tissue settings from; give --features"):
        slide_attention(two_minds, slide.path)


@pytest.mark.parametrize(
    ("tissue", "words"),
    [
        ("{}", r"B\.h5: does not say how much .* \(min_tissue\); give --features FOLDER .* slide 'A'"),
        ('{"min_tissue": 7}', r"B\.h5: patch\.min_tissue: .*less than or equal to 1, got 7"),
        ('{"min_tissue": 0.4, "mpp": "fine"}', r"B\.h5: tissue\.mpp: .*valid number"),
    ],
)
def test_settings_that_cannot_be_used_for_a_new_slide(two_minds: Path, tmp_path: Path, tissue: str, words: str) -> None:
    import h5py

    (tmp_path / "features" / "A.h5").unlink()
    with h5py.File(tmp_path / "features" / "B.h5", "a") as file:
        file.attrs["tissue"] = np.bytes_(tissue.encode())
    with pytest.raises(Wsi2dError, match=words) as caught:
        slide_attention(two_minds, "A")
    assert "\n" not in str(caught.value)


def test_an_encoder_that_has_changed_since(two_minds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is extracted on the way then does not fit the models."""
    (tmp_path / "features" / "A.h5").unlink()
    monkeypatch.setattr(import_module("wsi2d.features.histology_stats").hashlib, "sha256", hashlib.sha512)
    words = r"slide 'A': extracted now, it has encoder_hash \w+, not \w+ as the run was .*; give --features FOLDER"
    with pytest.raises(FeatureStoreError, match=words):
        slide_attention(two_minds, "A")


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ("local:dinov2", "and encoder 'local:dinov2' does not come with wsi2d; extract it as the run's slides were"),
        (
            "phikon",
            "; extract it as the run's slides were, and give --features FOLDER (encoder 'phikon': its weights are",
        ),
    ],
)
def test_an_encoder_that_cannot_be_built_here(
    two_minds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str, words: str
) -> None:
    """The way out is features that were made elsewhere, not an option that this verb does not have."""
    pytest.importorskip("transformers", reason="without it, that is what is lacking")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "features"
    spec = replace(read_spec(folder / "B.h5")[0], encoder=encoder)
    (file,) = find_slides([tmp_path / "slides" / "A.tiff"])
    with pytest.raises(FeatureStoreError) as caught:
        attention_module._extract_alike(file, spec, folder, tmp_path / "scratch", None, "cpu")
    assert words in str(caught.value)


def test_a_table_that_says_no_fold_asks_all(two_minds: Path) -> None:
    path = two_minds / "predictions.csv"
    path.write_text(path.read_text("utf-8").replace("case of A,1,", "case of A,,"), "utf-8")
    assert slide_attention(two_minds, "A").folds == (0, 1)
    assert slide_attention(two_minds, "B").folds == (0,)


def test_blank_slide(write_slide: Any, two_minds: Path, tmp_path: Path) -> None:
    path = write_slide(tmp_path / "blank.tiff", np.full((500, 600, 3), 244, np.uint8))
    with pytest.raises(SlideError, match="slide 'blank': no tissue was found on it"):
        slide_attention(two_minds, path)


def test_bad_new_slide(two_minds: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.svs").write_bytes(b"no slide")
    with pytest.raises(SlideError, match="slide 'bad'") as caught:
        slide_attention(two_minds, tmp_path / "bad.svs")
    assert "\n" not in str(caught.value)


def test_new_slide_without_a_pixel_size(write_slide: Any, two_minds: Path, tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(120, 220, (300, 400, 3)).astype(np.uint8)
    rgb[..., 1] //= 2
    path = write_slide(tmp_path / "plain.tiff", rgb, mpp=None)
    with pytest.raises(SlideError, match=r"no pixel size .*--slide-mpp"):
        slide_attention(two_minds, path)
    attention = slide_attention(two_minds, path, slide_mpp=0.5)
    assert attention.slide_mpp == 0.5
    assert attention.grid.patch_level0 == 64


def test_unfinished_run(two_minds: Path) -> None:
    (two_minds / "predictions.csv").unlink()
    with pytest.raises(RunError, match=r"no predictions\.csv; train it to the end first"):
        slide_attention(two_minds, "A")
    with pytest.raises(RunError, match=r"no config\.yaml"):
        slide_attention(two_minds.parent, "A")


# --- slides of a patient that are one bag


@pytest.fixture
def joined_run(brown_slide: Any, handmade_run: Any, tmp_path: Path) -> Path:
    """A run whose one patient has slides A and B, both with brown, and a slide C that it does not know."""
    for name, side in (("A", 64), ("B", 32), ("C", 64)):
        brown_slide(tmp_path / "slides" / f"{name}.tiff", (231, 139), side=side)
    run = Path(handmade_run(tmp_path, {"A": 0, "B": 0, "C": 0}, strengths=(6.0, -6.0), bag="case"))
    lines = ["slide_id,case_id,fold,joined_slides,label,prob_common,prob_rare", "p,p,0,A;B,rare,0.25,0.75"]
    (run / "predictions.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return run


def test_attention_of_a_slide_is_its_part_of_the_patients(joined_run: Path) -> None:
    a, b = (slide_attention(joined_run, name) for name in "AB")
    assert a.folds == b.folds == (0,)
    assert a.truth == "rare"
    assert a.prediction.case_id == b.prediction.slide_id == "p"
    np.testing.assert_array_equal(a.prediction.attention, b.prediction.attention)
    assert float(a.prediction.attention.sum()) == pytest.approx(1, abs=1e-5)
    assert (len(a.relative()), len(b.relative())) == (len(a.grid), len(b.grid))
    whole = np.concatenate([a.relative(), b.relative()])
    assert whole.mean() == pytest.approx(1, rel=1e-5)
    assert a.relative().mean() > 1 > b.relative().mean(), "more brown is on A"
    assert np.isfinite(a.on_grid()).sum() == len(a.grid)


def test_a_new_slide_is_a_bag_by_itself(joined_run: Path) -> None:
    found = slide_attention(joined_run, "C")
    assert found.folds == (0, 1)
    assert found.prediction.joined_slides == ("C",)
    assert found.relative().mean() == pytest.approx(1, rel=1e-5)


def test_another_slide_of_the_patient_without_features_is_named(joined_run: Path) -> None:
    (joined_run.parent / "features" / "B.h5").unlink()
    with pytest.raises(FeatureStoreError, match=r"B\.h5"):
        slide_attention(joined_run, "A")
