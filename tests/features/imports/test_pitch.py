"""The pitch of a grid from what is stated and from coordinates."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi2d.errors import FeatureStoreError
from wsi2d.features.imports.pitch import Pitch, infer_pitch


def patches(pitch: float, share: float = 0.8, *, shape: tuple[int, int] = (40, 50), seed: int = 0) -> np.ndarray:
    """Whole (x, y) of a share of a grid's cells."""
    cells = np.argwhere(np.random.default_rng(seed).random(shape) < share)
    return np.rint(cells * pitch)


def contours(pitch: int, count: int = 25, *, seed: int = 0) -> np.ndarray:
    """Contours that each have a grid of their own."""
    rng = np.random.default_rng(seed)
    pieces = [patches(pitch, shape=(9, 12), seed=k) + rng.integers(0, 60_000, 2) for k in range(count)]
    return np.concatenate(pieces)


@pytest.mark.parametrize("share", [0.9, 0.3, 0.05])
@pytest.mark.parametrize("pitch", [256, 224, 128, 213.333, 1024.08, 37.7])
def test_statistics_alone(pitch: float, share: float) -> None:
    found = infer_pitch(patches(pitch, share, shape=(60, 70)))
    assert found.source == "statistics"
    assert found.value == pytest.approx(pitch, abs=1.5 / 70), "no drift beyond rounding over the slide"


@given(st.integers(16, 700), st.integers(0, 2**31), st.sampled_from([None, 0.5, 1.0, 2.0]))
@settings(max_examples=25, deadline=None)
def test_statistics_of_contours(pitch: int, seed: int, side: float | None) -> None:
    """Whatever the contours' places and the side of a patch, of which the pitch may be a part or a multiple."""
    patch = None if side is None else side * pitch
    assert infer_pitch(contours(pitch, seed=seed), patch=patch) == Pitch(pitch, "statistics")


@pytest.mark.parametrize("source", ["attribute", "arithmetic"])
def test_a_stated_pitch_is_kept(source: str) -> None:
    assert infer_pitch(patches(256), stated=256.0, source=source) == Pitch(256.0, source)


def test_a_stated_pitch_is_corrected_where_coordinates_drift() -> None:
    """TRIDENT rounds down what it states: 256 px at 15× of 40× are 682.67, of which patches are 683 apart."""
    found = infer_pitch(patches(683), stated=682.0, source="arithmetic")
    assert found == Pitch(683.0, "arithmetic")
    assert infer_pitch(patches(213.333), stated=213.0).value == pytest.approx(213.333, abs=0.01)


@pytest.mark.parametrize("mpp", [0.499, 0.2525, 0.25, 0.9])
def test_tiles_of_whole_pixels_in_micrometres(mpp: float) -> None:
    """STAMP's tiles are as far apart as a whole number of pixels, and it states 256 µm."""
    pitch = np.ceil(256 / mpp) * mpp
    coords = (patches(1.0, shape=(150, 120)) * pitch).astype(np.float32).astype(float)
    assert infer_pitch(coords, stated=256.0).value == pytest.approx(pitch, abs=0.01)


@pytest.mark.parametrize("actual", [512, 128, 300])
def test_a_stated_pitch_that_coordinates_contradict(actual: int) -> None:
    """AtlasPatch states no gaps between patches: a step of 512 px with patches of 256 px has an overlap of 0."""
    assert infer_pitch(patches(actual), stated=256.0) == Pitch(actual, "statistics")
    few = patches(actual, shape=(2, 3), share=2.0)
    assert infer_pitch(few, stated=256.0) == Pitch(256.0, "attribute"), "too few to tell"


def test_a_stated_pitch_stays_where_coordinates_are_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 100_000, (20_000, 2)).astype(float)
    assert infer_pitch(noise, stated=256.0) == Pitch(256.0, "attribute")


def test_too_few_patches_are_as_far_apart_as_they_are_large() -> None:
    one = np.array([[300.0, 40.0]])
    assert infer_pitch(one, patch=256.0) == Pitch(256.0, "assumed")
    apart = np.array([[300.0, 40.0], [9000.0, 777.0], [np.nan, 40.0]])
    assert infer_pitch(apart, patch=256.0) == Pitch(256.0, "assumed")
    for coords in (one, apart, np.zeros((0, 2)), np.zeros((9, 2))):
        with pytest.raises(FeatureStoreError, match=r"pitch of its grid cannot be told from .* --patches"):
            infer_pitch(coords)


def test_few_neighbours_of_a_finer_grid() -> None:
    """Five patches that overlap by half: the side of a patch is not the pitch."""
    coords = np.array([[0, 0], [128, 0], [256, 0], [0, 128], [128, 128]], float) + 40
    assert infer_pitch(coords, patch=256.0) == Pitch(128.0, "statistics")


def test_patches_on_no_grid() -> None:
    noise = np.random.default_rng(0).random((5000, 2)) * 4000
    with pytest.raises(FeatureStoreError, match="lie on no grid"):
        infer_pitch(noise)


@pytest.mark.slow
def test_large_slides_take_seconds() -> None:
    coords = patches(213.333, 0.99, shape=(450, 450))
    start = time.perf_counter()
    assert infer_pitch(coords).value == pytest.approx(213.333, abs=0.01)
    assert time.perf_counter() - start < 10


def test_sparse_tissue_on_one_grid_does_not_overrule_a_stated_pitch() -> None:
    """No two patches are neighbours, as on a chessboard; where a tool may leave gaps, that is one."""
    chessboard = np.array([(x, y) for y in range(12) for x in range(12) if (x + y) % 2 == 0], float) * 256
    stated = {"stated": 256.0, "source": "arithmetic", "patch": 256.0}
    assert infer_pitch(chessboard, one_grid=True, **stated) == Pitch(256.0, "arithmetic")
    assert infer_pitch(chessboard, **stated) == Pitch(512.0, "statistics")


@pytest.mark.parametrize("actual", [128, 300])
def test_one_grid_may_be_contradicted(actual: int) -> None:
    assert infer_pitch(patches(actual), stated=256.0, one_grid=True) == Pitch(actual, "statistics")
