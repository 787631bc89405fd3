"""Bags: cropped to the tissue, put together, loaded once while they fit, never of two kinds."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from wsi2d.data import bags as bags_module
from wsi2d.data.bags import BagStore, FeatureSpec, GridBag, collate, load_bag, read_spec
from wsi2d.errors import FeatureStoreError

WriteFeatures = Callable[..., Path]
CELLS = [(3, 9), (3, 11), (4, 7), (8, 10)]


def make_bag(slide_id: str, index: list[tuple[int, int]], shape: tuple[int, int], dim: int = 2) -> GridBag:
    features = torch.arange(len(index) * dim).reshape(-1, dim) + 0.5
    return GridBag(slide_id, features, torch.tensor(index).reshape(-1, 2), shape)


# --- one bag -------------------------------------------------------------------------------------------------------


def test_bag_is_cropped_to_the_tissues_bounding_box(write_features: WriteFeatures) -> None:
    features = np.arange(12, dtype=np.float32).reshape(4, 3)
    bag = load_bag(write_features("a", CELLS, features))
    assert bag.slide_id == "a"
    assert bag.shape == (6, 5)
    assert bag.index.tolist() == [[0, 2], [0, 4], [1, 0], [5, 3]]
    assert bag.index.dtype == torch.int64
    assert torch.equal(bag.features, torch.from_numpy(features))
    assert len(bag) == 4


@pytest.mark.parametrize(
    ("index", "shape"),
    [
        ([(0, 0)], (1, 1)),
        ([(49, 59)], (1, 1)),
        ([(7, 1), (7, 8)], (1, 8)),
        ([(1, 7), (8, 7)], (8, 1)),
        ([(0, 59), (49, 0)], (50, 60)),
    ],
)
def test_sizes_of_the_box(write_features: WriteFeatures, index: list[tuple[int, int]], shape: tuple[int, int]) -> None:
    assert load_bag(write_features("a", index)).shape == shape


def test_patches_keep_the_files_order(write_features: WriteFeatures) -> None:
    features = np.arange(12, dtype=np.float32).reshape(4, 3)
    bag = load_bag(write_features("a", CELLS[::-1], features))
    assert bag.index.tolist() == [[5, 3], [1, 0], [0, 4], [0, 2]]
    assert torch.equal(bag.features, torch.from_numpy(features))


def test_half_precision_features_become_float32(write_features: WriteFeatures) -> None:
    features = np.linspace(-1, 1, 12).reshape(4, 3).astype(np.float16)
    bag = load_bag(write_features("a", CELLS, features))
    assert bag.features.dtype == torch.float32
    assert torch.equal(bag.features, torch.from_numpy(features).float())


def test_slide_without_tissue(write_features: WriteFeatures) -> None:
    bag = load_bag(write_features("a", []))
    assert (len(bag), bag.shape, bag.features.shape) == (0, (0, 0), (0, 3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_no_numbers_are_refused(write_features: WriteFeatures, value: float) -> None:
    features = np.zeros((4, 3), np.float32)
    features[2, 1] = value
    path = write_features("a", CELLS, features)
    with pytest.raises(FeatureStoreError) as caught:
        load_bag(path)
    assert str(caught.value) == f"{path}: slide 'a': features hold NaN or infinity; delete it and extract again"


def test_float16_beyond_its_range_is_refused(write_features: WriteFeatures) -> None:
    features = np.full((4, 3), 1e5).astype(np.float32)
    with np.errstate(over="ignore"):
        path = write_features("a", CELLS, features.astype(np.float16))
    with pytest.raises(FeatureStoreError, match="NaN or infinity"):
        load_bag(path)


@pytest.mark.parametrize(
    ("features", "index"),
    [
        (torch.zeros(3, 2), torch.zeros(2, 2, dtype=torch.long)),
        (torch.zeros(3), torch.zeros(3, 2, dtype=torch.long)),
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)),
        (torch.zeros(3, 2), torch.zeros(3, 3, dtype=torch.long)),
    ],
)
def test_bag_checks_its_shapes(features: torch.Tensor, index: torch.Tensor) -> None:
    with pytest.raises(FeatureStoreError, match="do not match"):
        GridBag("a", features, index, (1, 1))


@pytest.mark.parametrize("index", [[[0, 3]], [[2, 0]], [[-1, 0]], [[0, -1]]])
def test_bag_checks_its_places(index: list[list[int]]) -> None:
    with pytest.raises(FeatureStoreError, match="slide 'a': a patch lies outside its grid of 2×3"):
        GridBag("a", torch.zeros(1, 4), torch.tensor(index), (2, 3))


def test_two_patches_in_one_cell_are_refused() -> None:
    index = torch.tensor([[0, 1], [1, 2], [1, 0], [1, 2]])
    with pytest.raises(FeatureStoreError, match=r"^slide 'a': two patches lie in one cell, row 1, column 2$"):
        GridBag("a", torch.zeros(4, 4), index, (2, 3))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.attrs.update(complete=False), "incomplete; extract the slide again"),
        (lambda file: file.attrs.update(schema=np.bytes_(b"other/1")), "schema is 'other/1', not 'wsi2d/1'"),
        (lambda file: file.__delitem__("features"), "features"),
    ],
    ids=["incomplete", "schema", "no-features"],
)
def test_damaged_files(write_features: WriteFeatures, damage: Callable[[h5py.File], None], message: str) -> None:
    path = write_features("a", CELLS)
    with h5py.File(path, "a") as file:
        damage(file)
    for read in (load_bag, read_spec, lambda path: BagStore(path.parent, ["a"])):
        with pytest.raises(FeatureStoreError, match=message):
            read(path)


def test_no_hdf5(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("not HDF5")
    with pytest.raises(FeatureStoreError, match="not a readable HDF5 file; delete it and extract again"):
        BagStore(tmp_path, ["a"])


# --- batches -------------------------------------------------------------------------------------------------------


def test_collate() -> None:
    first, second = make_bag("a", [(0, 0), (1, 2), (1, 0)], (2, 3)), make_bag("b", [(4, 0)], (5, 1))
    batch = collate([first, second])
    assert len(batch) == 2
    assert torch.equal(batch.features, torch.cat([first.features, second.features]))
    assert batch.bag.tolist() == [0, 0, 0, 1]
    assert batch.index.tolist() == [[0, 0], [1, 2], [1, 0], [4, 0]]
    assert batch.shapes.tolist() == [[2, 3], [5, 1]]
    assert {batch.bag.dtype, batch.index.dtype, batch.shapes.dtype} == {torch.int64}


def test_collate_keeps_the_order_of_bags() -> None:
    first, second = make_bag("a", [(0, 0), (0, 1)], (1, 2)), make_bag("b", [(0, 0)], (1, 1))
    batch = collate([second, first])
    assert batch.bag.tolist() == [0, 1, 1]
    assert batch.shapes.tolist() == [[1, 1], [1, 2]]


def test_batch_moves_as_a_whole() -> None:
    slides = [make_bag(name, [(0, 0)], (1, 1)) for name in "ab"]
    for batch in (collate(slides), collate(slides, [2])):
        moved = batch.to(torch.device("meta"))
        assert {t.device.type for t in (moved.features, moved.bag, moved.index, moved.shapes)} == {"meta"}
        assert moved.joined == batch.joined


def test_slides_that_have_one_answer_keep_grids_of_their_own() -> None:
    slides = [make_bag("a", [(0, 0), (1, 2)], (2, 3)), make_bag("b", [(0, 3)], (1, 4)), make_bag("c", [(4, 0)], (5, 1))]
    plain, joined = collate(slides), collate(slides, [1, 2])
    assert (plain.joined, joined.joined) == (None, (1, 2))
    assert len(joined) == 3
    for name in ("features", "bag", "index", "shapes"):
        assert torch.equal(getattr(joined, name), getattr(plain, name)), name
    assert collate(slides, [1, 1, 1]).joined is None, "each has its own answer"


# --- what features are ---------------------------------------------------------------------------------------------


def test_spec(write_features: WriteFeatures) -> None:
    path = write_features("a", CELLS, encoder="uni", encoder_hash="h", patch_px=224, mpp=0.5, stride_level0=448.0)
    spec, count = read_spec(path)
    assert spec == FeatureSpec("uni", "h", 0.5, 224, 28, 3)
    assert count == 4


@pytest.mark.parametrize("overlap", [0, 1, 64, 255])
@pytest.mark.parametrize("scale", [1.0, 2.0, 1.9736])
def test_overlap_is_recovered_from_pitch_and_side(write_features: WriteFeatures, overlap: int, scale: float) -> None:
    path = write_features("a", CELLS, patch_level0=256 * scale, stride_level0=(256 - overlap) * scale)
    assert read_spec(path)[0].overlap_px == overlap


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder", "uni", "encoder uni, not histology-stats"),
        ("encoder_hash", "xyz", "encoder_hash xyz, not abc"),
        ("mpp", 0.25, "mpp 0.25, not 0.5"),
        ("patch_px", 224, "patch_px 224, not 256"),
        ("stride_level0", 256.0, "overlap_px 128, not 0"),
    ],
)
def test_mixed_features_are_refused_by_what_differs(
    write_features: WriteFeatures, name: str, value: object, message: str
) -> None:
    write_features("a", CELLS)
    folder = write_features("b", CELLS, **{name: value}).parent
    with pytest.raises(FeatureStoreError) as caught:
        BagStore(folder, ["a", "b"])
    assert str(caught.value) == f"features {folder}: 'b' has {message} as 'a'; extract all slides alike"


def test_mixed_widths_are_refused(write_features: WriteFeatures) -> None:
    write_features("a", CELLS)
    folder = write_features("b", CELLS, np.zeros((4, 5), np.float32)).parent
    with pytest.raises(FeatureStoreError, match="'b' has dim 5, not 3 as 'a'"):
        BagStore(folder, ["a", "b"])


def test_slides_may_differ_in_what_does_not_matter(write_features: WriteFeatures) -> None:
    write_features("a", CELLS, slide_mpp=0.25)
    folder = write_features("b", CELLS[:2], np.zeros((2, 3), np.float16), slide_mpp=0.5, mpp_source="user").parent
    assert BagStore(folder, ["a", "b"]).spec == FeatureSpec("histology-stats", "abc", 0.5, 256, 0, 3)


def test_difference_of_equals_is_none() -> None:
    spec = FeatureSpec("e", "h", 0.5, 256, 0, 8)
    assert spec.difference(dataclasses.replace(spec)) is None


# --- the store -----------------------------------------------------------------------------------------------------


def test_missing_features_are_an_error(write_features: WriteFeatures) -> None:
    folder = write_features("a", CELLS).parent
    with pytest.raises(FeatureStoreError) as caught:
        BagStore(folder, ["a", "x", "y"])
    assert str(caught.value) == (
        f"features {folder}: 2 of 3 slides have none (the first is 'x'); extract them, "
        "or set data.missing_features: skip"
    )


def test_missing_features_are_skipped_and_named(
    write_features: WriteFeatures, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_features("a", CELLS).parent
    with caplog.at_level(logging.WARNING):
        store = BagStore(folder, ["a", "x", "y"], missing="skip")
    assert store.missing == ("x", "y")
    assert ["a" in store, "x" in store] == [True, False]
    assert [r.getMessage() for r in caplog.records] == ["2 slides have no features and are left out: x, y"]


@pytest.mark.parametrize("missing", ["skip", "error"])
def test_no_slide_has_features(tmp_path: Path, missing: str) -> None:
    for folder, ids in ((tmp_path, ["x"]), (tmp_path / "moved", ["x", "y"]), (tmp_path, [])):
        with pytest.raises(FeatureStoreError, match=r"no slide of the cohort .* feature file here; .*data\.features"):
            BagStore(folder, ids, missing=missing)


def test_slides_without_tissue_are_left_out(write_features: WriteFeatures, caplog: pytest.LogCaptureFixture) -> None:
    write_features("a", CELLS)
    folder = write_features("blank", []).parent
    with caplog.at_level(logging.WARNING):
        store = BagStore(folder, ["a", "blank"])
    assert store.empty == ("blank",)
    assert ["a" in store, "blank" in store] == [True, False]
    assert "1 slides have no tissue and are left out: blank" in caplog.text
    with pytest.raises(FeatureStoreError, match="slide 'blank': has no tissue"):
        store.load("blank")


def test_counts_of_patches(write_features: WriteFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every slide that has a file, in the order asked for, be it empty; no features are read for them."""
    write_features("a", CELLS)
    write_features("blank", [])
    folder = write_features("b", CELLS[:1]).parent
    write_features("of another study", CELLS)
    monkeypatch.setattr(bags_module, "load_bag", None)
    store = BagStore(folder, ["b", "x", "blank", "a"], missing="skip")
    assert list(store.counts.items()) == [("b", 1), ("blank", 0), ("a", 4)]
    assert all(type(count) is int for count in store.counts.values())


def test_counts_are_those_of_the_bags(write_features: WriteFeatures) -> None:
    for slide_id, count in (("a", 1), ("b", 3), ("c", 200)):
        folder = write_features(slide_id, [(i // 60, i % 60) for i in range(count)]).parent
    store = BagStore(folder, "abc")
    assert store.counts == {slide_id: len(store.load(slide_id)) for slide_id in "abc"}


def test_a_file_that_goes_missing_later(write_features: WriteFeatures) -> None:
    path = write_features("a", CELLS)
    store = BagStore(path.parent, ["a"])
    path.unlink()
    with pytest.raises(FeatureStoreError, match="no such feature file"):
        store.load("a")


def test_cache_holds_what_fits(write_features: WriteFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"a": 100, "b": 200, "c": 30, "d": 80}
    for slide_id, count in sizes.items():
        folder = write_features(slide_id, [(i // 60, i % 60) for i in range(count)]).parent
    read: list[str] = []
    load = bags_module.load_bag

    def counted(path: Path, *claims: object) -> GridBag:
        read.append(path.stem)
        return load(path)

    monkeypatch.setattr(bags_module, "load_bag", counted)
    patch_bytes = 3 * 4 + 2 * 8
    store = BagStore(folder, sizes, cache_gb=190 * patch_bytes / 1e9)  # room for 190 patches
    assert not read
    for _ in range(3):
        for slide_id, count in sizes.items():
            assert len(store.load(slide_id)) == count
    assert read == ["a", "b", "c", "d", "b", "d", "b", "d"]  # a and c fit; then neither b nor d does


def test_no_cache(write_features: WriteFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_features("a", CELLS).parent
    store = BagStore(folder, ["a"], cache_gb=0)
    assert store.load("a") is not store.load("a")
    store = BagStore(folder, ["a"])
    assert store.load("a") is store.load("a")
