"""Each tool's files, as they write them and as they do not: the same cells come back, or one line says why not."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from wsi2d.errors import FeatureStoreError
from wsi2d.features.imports.claims import Claims
from wsi2d.features.imports.isolated import PeerReader
from wsi2d.features.store import FeatureBag

LAYOUTS = ("trident", "clam", "stamp", "atlaspatch")
SQUARE = np.argwhere(np.ones((6, 5), bool))

cells_of_a_slide = some.arrays(bool, st.tuples(st.integers(3, 12), st.integers(3, 12)), fill=st.nothing()).filter(
    lambda tissue: bool((tissue[:, 1:] & tissue[:, :-1]).any())  # two neighbours: CLAM's files do not state the pitch
)


def write(
    peers: ModuleType, layout: str, root: Path, cells: np.ndarray, values: np.ndarray, pitch: int = 256, **how: Any
) -> Path:
    """A file of a layout with patches in cells of a pitch, side by side."""
    xy = np.asarray(cells)[:, ::-1] * pitch
    if layout == "trident":
        return peers.write_trident(root, xy, values, patch_px=pitch, patch_level0=pitch, **how)
    if layout == "clam":
        return peers.write_clam(root, xy, values, patch_px=pitch, **how)
    if layout == "stamp":
        return peers.write_stamp(root, xy, values, tile_um=float(pitch), tile_px=pitch // 2, **how)
    return peers.write_atlaspatch(root, xy, {"uni_v2": values}, patch_px=pitch, patch_level0=pitch, **how)


def edited(path: Path, change: Callable[[h5py.File], object]) -> Path:
    """A file after a change."""
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replaced(name: str, values: Any, **how: Any) -> Callable[[h5py.File], None]:
    """A change: another array under a name, with the attributes it had."""

    def change(file: h5py.File) -> None:
        attributes = dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, data=values, **how)
        file[name].attrs.update(attributes)

    return change


def refuses(reader: PeerReader, path: Path, *words: str, claims: Claims | None = None) -> None:
    """Reading ends in one line that names the file and holds those words."""
    for read in (reader.inspect, reader.read):
        with pytest.raises(FeatureStoreError) as error:
            read(path, claims=claims or Claims())
        message = str(error.value)
        assert str(path) in message
        assert [word for word in words if word not in message] == [], message
        assert "; " in message, "with a remedy"


def rows(bag: FeatureBag) -> np.ndarray:
    """Which row of the file each embedding was."""
    return bag.features[:, 0].astype(int)


def counts(bag: FeatureBag) -> dict[str, int]:
    """What became of the patches, where it is not 0."""
    assert bag.provenance.imported is not None
    return {name: count for name, count in bag.provenance.imported.counts.items() if count}


# --- what comes back


@pytest.mark.parametrize("layout", LAYOUTS)
@given(tissue=cells_of_a_slide, pitch=st.integers(16, 600), seed=st.integers(0, 2**31))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_set_of_cells_comes_back(
    layout: str, tissue: np.ndarray, pitch: int, seed: int, peers: ModuleType, reader: PeerReader, tmp_path: Path
) -> None:
    """With its features in the right cells, whatever the order of rows."""
    cells = np.random.default_rng(seed).permutation(np.argwhere(tissue))
    values = peers.features(len(cells))
    bag = reader.read(write(peers, layout, tmp_path, cells, values, pitch))
    order = rows(bag)
    assert len(order) == len(cells)
    assert np.array_equal(bag.features, values[order].astype(bag.features.dtype))
    assert np.array_equal(bag.grid.index - bag.grid.index.min(0), cells[order] - cells.min(0))
    assert np.array_equal(bag.grid.coords, cells[order][:, ::-1] * pitch)
    assert bag.grid.stride_level0 == pitch
    corners = bag.grid.index[:, ::-1] * pitch + np.array(bag.grid.origin)
    assert np.array_equal(corners, bag.grid.coords)
    assert counts(bag).keys() <= {"patches", "cells", "holes"}


@pytest.mark.parametrize("layout", ["clam", "atlaspatch"])
@given(starts=st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 9000)), min_size=1, max_size=6))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_contours_with_grids_of_their_own(
    layout: str, starts: list[tuple[int, int]], peers: ModuleType, reader: PeerReader, tmp_path: Path
) -> None:
    xy = np.concatenate([SQUARE * 256 + start for start in starts])
    values = peers.features(len(xy))
    arguments = (tmp_path, xy, values) if layout == "clam" else (tmp_path, xy, {"uni_v2": values})
    bag = reader.read(getattr(peers, f"write_{layout}")(*arguments))
    found = {**dict.fromkeys(("duplicates", "dropped", "collisions", "moved"), 0), **counts(bag)}
    assert found["patches"] == len(xy) == found["cells"] + found["duplicates"] + found["dropped"]
    assert found["collisions"] == found["moved"] + found["dropped"]
    assert len(np.unique(bag.grid.index, axis=0)) == len(bag.grid) == found["cells"]
    assert np.array_equal(bag.grid.coords, xy[rows(bag)])
    corners = bag.grid.index[:, ::-1] * 256 + np.array(bag.grid.origin)
    assert np.abs(corners - bag.grid.coords).max() <= 256


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_file_says(layout: str, peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    path = write(peers, layout, tmp_path, SQUARE, peers.features(30))
    header = reader.inspect(path)
    made, grid = header.provenance, header.geometry
    expected = {  # encoder, version, mpp, patch_px, pitch_from, slide_mpp
        "trident": ("uni_v2", None, 0.5, 256, "arithmetic", 0.5),
        "clam": (None, None, None, 256, "statistics", None),
        "stamp": ("mahmood-uni", "2.4.0", 2.0, 128, "attribute", 1.0),
        "atlaspatch": ("uni_v2", None, 0.5, 256, "arithmetic", 0.5),
    }
    assert made.imported is not None
    assert (
        made.encoder, made.imported.version, grid.mpp, grid.patch_px, made.imported.pitch_from, made.slide_mpp
    ) == expected[layout]  # fmt: skip
    assert (made.slide_id, made.encoder_hash, header.dim, header.patches) == ("s1", None, 5, 30)
    size = (1280, 1536) if layout == "stamp" else (50_000, 50_000)
    assert (made.level0_width, made.level0_height) == size
    assert made.imported.level0_size == ("patches" if layout == "stamp" else "stated")
    assert reader.read(path).provenance == made


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_the_user_says(layout: str, peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    """Fills what a file does not say, and must not contradict it."""
    path = write(peers, layout, tmp_path, SQUARE, peers.features(30))
    says = reader.inspect(path)
    mpp = says.geometry.mpp or 0.25
    header = reader.inspect(
        path, claims=Claims(says.provenance.encoder or "uni", mpp, 128 if layout == "stamp" else 256)
    )
    assert header.provenance.encoder == (says.provenance.encoder or "uni")
    assert header.geometry.mpp == mpp
    if layout == "clam":
        assert (header.provenance.slide_mpp, header.provenance.mpp_source) == (0.25, "user")
    else:
        refuses(reader, path, "encoder", "'other'" if layout == "atlaspatch" else "other", claims=Claims("other"))
        refuses(reader, path, f"mpp {mpp}, not 0.1", claims=Claims(mpp=0.1))
    refuses(reader, path, "patch_px", "not 77", claims=Claims(patch_px=77))


def test_a_magnification_is_a_nominal_resolution(peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    path = write(peers, "trident", tmp_path, SQUARE, peers.features(30))
    header = reader.inspect(path, claims=Claims(mpp=0.46))
    assert (header.geometry.mpp, header.provenance.slide_mpp) == (0.46, 0.46)
    assert header.provenance.mpp_source == "user"
    refuses(reader, path, "mpp 0.5, not 0.25", claims=Claims(mpp=0.25))


# --- features of every type, rows of every kind


@pytest.mark.parametrize(
    ("stored", "kept"),
    [("float16", "float16"), ("float32", "float32"), ("float64", "float32"), (">f4", "float32"), ("uint8", "float32")],
)
@pytest.mark.parametrize(
    "how", [{}, {"compression": "gzip", "chunks": (7, 5)}, {"fletcher32": True, "chunks": (30, 1)}]
)
def test_features_of_any_type(
    stored: str, kept: str, how: dict[str, Any], peers: ModuleType, reader: PeerReader, tmp_path: Path
) -> None:
    values = np.arange(150).reshape(30, 5).astype(stored)
    path = edited(write(peers, "trident", tmp_path, SQUARE, peers.features(30)), replaced("features", values, **how))
    bag = reader.read(path)
    assert bag.features.dtype == kept
    assert np.array_equal(bag.features, values.astype(kept))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_that_have_no_place(layout: str, peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    """NaN, duplicates, negative and fractional coordinates: left out and counted, or placed."""
    path = write(peers, layout, tmp_path, SQUARE, peers.features(30))
    xy = (SQUARE[:, ::-1] * 256).astype(np.float64)
    xy[3] = np.nan
    xy[5] = xy[4]
    xy[7, 0] = -4000
    xy[8] += 0.25
    if layout == "atlaspatch":
        xy = np.concatenate([xy, np.full((30, 3), 256.0)], 1)
    if layout == "clam":
        edited(tmp_path / "patches" / path.name, replaced("coords", xy))
    bag = reader.read(edited(path, replaced("coords", xy)))
    assert set(range(30)) - set(rows(bag)) == {3, 5, 7}
    assert counts(bag) == {
        "patches": 30, "cells": 27, "unplaced": 1, "duplicates": 1, "outside": 1, **holes_in(bag)
    }  # fmt: skip
    kept = rows(bag)
    assert np.array_equal(bag.grid.index - bag.grid.index.min(0), SQUARE[kept] - SQUARE[kept].min(0))


def holes_in(bag: FeatureBag) -> dict[str, int]:
    """The three patches that are left out lie at the rim or within, as the grid has it."""
    holes = counts(bag).get("holes", 0)
    assert holes <= 3
    return {"holes": holes} if holes else {}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shapes", [((0, 5), (0, 2)), ((0,), (0,)), ((0, 5), (0,))])
def test_empty_slides(
    layout: str, shapes: tuple[tuple[int, ...], ...], peers: ModuleType, reader: PeerReader, tmp_path: Path
) -> None:
    values, xy = (np.zeros(shape, np.float32) for shape in shapes)
    path = write(peers, layout, tmp_path, SQUARE, peers.features(30))
    features = {"stamp": "feats", "atlaspatch": "features/uni_v2"}.get(layout, "features")
    edited(path, replaced(features, values))
    coords = np.zeros((0, 5)) if layout == "atlaspatch" and len(shapes[1]) > 1 else xy
    edited(path, replaced("coords", coords))
    if layout == "clam":
        edited(tmp_path / "patches" / path.name, replaced("coords", xy))
    bag = reader.read(path)
    assert bag.features.shape == (0, 5 if len(shapes[0]) > 1 else 0)
    assert counts(bag) == {}
    assert reader.inspect(path).patches == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_numbers_that_are_none(layout: str, peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    values = peers.features(30)
    values[4, 2] = np.nan
    path = write(peers, layout, tmp_path, SQUARE, values)
    with pytest.raises(FeatureStoreError, match="the features of 1 of its 30 patches hold NaN or infinity; "):
        reader.read(path)


def test_numbers_too_large_for_what_is_kept(peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    path = write(peers, "trident", tmp_path, SQUARE, peers.features(30))
    edited(path, replaced("features", np.full((30, 5), 1e300)))
    with pytest.raises(FeatureStoreError, match="30 of its 30 patches hold NaN or infinity"):
        reader.read(path)


CONTRADICTIONS: dict[str, tuple[Callable[[str], Callable[[h5py.File], object]], tuple[str, ...]]] = {
    "fewer features": (lambda features: replaced(features, np.zeros((9, 5), "f4")), ("has 9 rows, and coords 30",)),
    "features 3-D": (lambda features: replaced(features, np.zeros((30, 5, 1), "f4")), ("is [30, 5, 1]",)),
    "features 1-D": (lambda features: replaced(features, np.zeros(30, "f4")), ("is [30]",)),
    "features of words": (lambda features: replaced(features, np.array([[b"x"] * 5] * 30)), ("no array of numbers",)),
    "coords of one column": (lambda _: replaced("coords", np.zeros((30, 1))), ("coords is [30, 1]",)),
    "coords of words": (lambda _: replaced("coords", np.array([[b"x"] * 2] * 30)), ("no array of numbers",)),
    "no coords": (lambda _: lambda file: file.pop("coords"), ("no feature file of",)),
    "far away": (lambda _: replaced("coords", np.array([[0, 0]] * 29 + [[2**40, 0]])), ()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_files_that_contradict_themselves(
    layout: str, what: str, peers: ModuleType, reader: PeerReader, tmp_path: Path
) -> None:
    change, words = CONTRADICTIONS[what]
    how = {"patches": False} if layout == "clam" else {}
    path = write(peers, layout, tmp_path, SQUARE, peers.features(30), **how)
    edited(path, change({"stamp": "feats", "atlaspatch": "features/uni_v2"}.get(layout, "features")))
    if what == "far away" and layout in ("trident", "atlaspatch"):
        assert counts(reader.read(path))["outside"] == 1, "of a slide whose size is known"
        return
    refuses(reader, path, *words)


def test_more_than_there_is(peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    """A shape of terabytes is not believed."""
    path = write(peers, "trident", tmp_path, SQUARE, peers.features(30))

    def grow(file: h5py.File) -> None:
        del file["features"]
        file.create_dataset("features", (10**12, 5), "f4", chunks=(1024, 5))
        coords = file["coords"]
        attributes = dict(coords.attrs)
        del file["coords"]
        file.create_dataset("coords", (10**12, 2), "i8", chunks=(1024, 2)).attrs.update(attributes)

    refuses(reader, edited(path, grow), "says it holds [1000000000000, 2]")


# --- TRIDENT


@pytest.mark.parametrize(("attribute", "folder", "encoder"), [
    ("uni_v2", "features_conch", "uni_v2"), (None, "features_conch_v15", "conch_v15"), (None, "features_", None),
    (None, "elsewhere", None), ("None", "features", None),
])  # fmt: skip
def test_trident_encoder(
    attribute: str | None, folder: str, encoder: str | None, peers: ModuleType, reader: PeerReader, tmp_path: Path
) -> None:
    path = write(peers, "trident", tmp_path, SQUARE, peers.features(30), encoder=attribute, folder=folder)
    assert reader.inspect(path).provenance.encoder == encoder


@pytest.mark.parametrize(
    ("patch_px", "overlap", "mags", "pitch", "overlap_px"),
    [
        (256, 0, (40, 20), 512, 0),
        (256, 64, (40, 20), 384, 64),
        (512, 256, (20, 20), 256, 256),
        (224, 0, (20.1, 20), 225.12, 0),
        (256, 0, (40, 15), 683, 0),
    ],
)
def test_trident_pitch(
    patch_px: int, overlap: int, mags: tuple[float, float], pitch: float, overlap_px: int,
    peers: ModuleType, reader: PeerReader, tmp_path: Path,
) -> None:  # fmt: skip
    """The patch less the overlap, both at level 0; 256 px at 15× of 40× are stated as 682, and lie 683 apart."""
    patch = np.floor(patch_px * mags[0] / mags[1]) if mags[0] == 40 else patch_px * mags[0] / mags[1]
    xy = np.rint(np.argwhere(np.ones((30, 40))) * pitch).astype(int)
    path = peers.write_trident(
        tmp_path, xy, peers.features(1200), patch_px=patch_px, patch_level0=patch, overlap=overlap, mags=mags
    )
    bag = reader.read(path)
    assert bag.grid.stride_level0 == pytest.approx(pitch, abs=0.01)
    assert bag.grid.overlap_px == overlap_px
    assert bag.grid.mpp == pytest.approx(10 / mags[1])
    assert counts(bag).keys() <= {"patches", "cells", "holes"}
    assert bag.provenance.imported is not None
    assert bag.provenance.imported.pitch_from == "arithmetic"


@pytest.mark.parametrize("name", ["patch_size", "patch_size_level0", "target_magnification", "overlap", "level0_width"])
@pytest.mark.parametrize("value", [np.nan, -5.0, np.inf, np.zeros(3), "many"])
def test_trident_attributes_that_cannot_be(
    name: str, value: Any, peers: ModuleType, reader: PeerReader, tmp_path: Path
) -> None:
    path = write(peers, "trident", tmp_path, SQUARE, peers.features(30))
    refuses(reader, edited(path, lambda file: file["coords"].attrs.update({name: value})), f"its attribute {name} is")


def test_trident_attributes_beside_the_features(peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    """Without attributes of its own a file has those of ``patches/<slide>_patches.h5``."""
    path = write(peers, "trident", tmp_path, SQUARE, peers.features(30))
    with h5py.File(path) as file:
        coords, attributes = file["coords"][()], dict(file["coords"].attrs)
    peers.write_arrays(path.parents[1] / "patches" / "s1_patches.h5", {"coords": coords}, {"coords": attributes})
    edited(path, lambda file: [file["coords"].attrs.pop(name) for name in list(attributes)])
    header = reader.inspect(path)
    assert header.provenance.imported is not None
    assert (header.provenance.imported.tool, header.geometry.mpp) == ("TRIDENT", 0.5)


def test_damage_beside_the_features_matters_where_it_is_needed(
    peers: ModuleType, reader: PeerReader, tmp_path: Path
) -> None:
    trident, clam = (
        write(peers, layout, tmp_path / layout, SQUARE, peers.features(30)) for layout in ("trident", "clam")
    )
    (trident.parents[1] / "patches").mkdir()
    (trident.parents[1] / "patches" / "s1_patches.h5").write_bytes(b"torn")
    assert reader.inspect(trident).patches == 30
    (tmp_path / "clam" / "patches" / "s1.h5").write_bytes(b"torn")
    refuses(reader, clam, str(tmp_path / "clam" / "patches" / "s1.h5"))


def test_trident_with_clams_patches(peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    xy = SQUARE[:, ::-1] * 1024 + (300, 70)
    attributes = {"patch_size": 256, "patch_level": 1, "downsample": np.array([4.0, 4.0])}
    path = peers.write_arrays(tmp_path / "features_x" / "s1.h5", {"features": peers.features(30), "coords": xy},
                              {"coords": attributes})  # fmt: skip
    header = reader.inspect(path)
    assert header.provenance.imported is not None
    assert header.provenance.imported.tool == "CLAM"
    assert (header.geometry.patch_px, header.geometry.stride_level0) == (256, 1024)


# --- CLAM


def test_clam_without_its_patches(peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    header = reader.inspect(write(peers, "clam", tmp_path, SQUARE, peers.features(30), patches=False))
    assert (header.geometry.patch_px, header.geometry.stride_level0, header.geometry.overlap_px) == (None, 256, None)
    lonely = write(peers, "clam", tmp_path / "one", SQUARE[:1], peers.features(1), patches=False)
    refuses(reader, lonely, "pitch of its grid cannot be told from 1 patches", "--patches")
    with_patches = write(peers, "clam", tmp_path / "two", SQUARE[:1], peers.features(1))
    header = reader.inspect(with_patches)
    assert header.provenance.imported is not None
    assert (header.provenance.imported.pitch_from, header.geometry.stride_level0) == ("assumed", 256)


@pytest.mark.parametrize("step", [128, 256, 512])
def test_clam_step(step: int, peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    """The step is not stored: patches that overlap, lie side by side, or leave gaps."""
    header = reader.inspect(peers.write_clam(tmp_path, SQUARE * step + 77, peers.features(30)))
    assert header.geometry.stride_level0 == step
    assert header.geometry.overlap_px == 256 - step


def test_clam_level(peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    """Patches of a level whose downsample is no whole number lie whole pixels apart."""
    xy = SQUARE * 4 * 256 + (17, 5)
    how = {"downsample": (4.000303, 4.000222), "size": (19_801, 30_002)}
    header = reader.inspect(peers.write_clam(tmp_path, xy, peers.features(30), **how))
    grid, made = header.geometry, header.provenance
    assert (grid.patch_px, grid.stride_level0, grid.overlap_px) == (256, 1024, 0)
    assert grid.patch_level0 == pytest.approx(1024.08, abs=0.01)
    assert (made.level0_width, made.level0_height) == (19_801, 30_002)


def test_clam_patches_of_another_run(peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    path = write(peers, "clam", tmp_path, SQUARE, peers.features(30))
    other = tmp_path / "patches" / "s1.h5"
    edited(other, replaced("coords", SQUARE * 512))
    refuses(reader, path, "its coordinates are not those of", str(other), "--patches")
    edited(other, lambda file: file.pop("coords"))
    refuses(reader, path, "holds no coordinates")


def test_clam_patches_elsewhere(peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    path = write(peers, "clam", tmp_path / "features", SQUARE, peers.features(30), patches=False)
    write(peers, "clam", tmp_path / "cut", SQUARE, peers.features(30))
    assert reader.inspect(path, tmp_path / "cut" / "patches").geometry.patch_px == 256
    assert reader.inspect(path, tmp_path / "nowhere").geometry.patch_px is None


# --- STAMP


def test_stamp_in_version_1(peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    """Coordinates that count a tile of 256 µm as 224."""
    for attributes in ({}, {"tile_size": 224.0}):
        nothing = dict.fromkeys(("unit", "stamp_version", "extractor", "tile_px"))
        path = peers.write_stamp(tmp_path, SQUARE * 224, peers.features(30), **nothing, tile_um=None, **attributes)
        bag = reader.read(edited(path, lambda file: file.attrs.pop("tile_size_px", None)))
        assert (bag.grid.stride_level0, bag.grid.patch_px, bag.grid.mpp) == (256, 224, pytest.approx(256 / 224))
        assert np.array_equal(bag.grid.coords, SQUARE[rows(bag)] * 256)
        assert bag.provenance.encoder is None


def test_stamp_in_version_2_0(peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    path = peers.write_stamp(tmp_path, SQUARE * 300, peers.features(30), tile_um=None, tile_size=300.0)
    assert reader.inspect(path).geometry.stride_level0 == 300


def test_stamp_units(peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    path = peers.write_stamp(tmp_path, SQUARE * 256, peers.features(30))
    refuses(reader, edited(path, lambda file: file.attrs.update(unit="px")), "its coordinates are in 'px'")
    unknown = edited(path, lambda file: [file.attrs.pop(name) for name in ("unit", "tile_size_um")])
    refuses(reader, unknown, "does not say the unit of its coordinates", "pitch is 256")


def test_features_of_whole_slides_are_not_taken_for_patches(
    reader: PeerReader, peers: ModuleType, tmp_path: Path
) -> None:
    one = peers.write_arrays(tmp_path / "s1.h5", {"feats": np.ones((1, 768), "f4")}, {"": {"feat_type": "slide"}})
    two = peers.write_arrays(
        tmp_path / "s2.h5", {"features": np.ones(768, "f4"), "coords": SQUARE}, {"coords": {"patch_size_level0": 256}}
    )
    assert [reader.recognise(path) for path in (one, two)] == [None, None]


# --- AtlasPatch


def test_atlaspatch_encoders(peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    values = {"uni_v2": peers.features(30, 8), "conch_v1": peers.features(30, 4), "__tmp_virchow": peers.features(2)}
    path = peers.write_atlaspatch(tmp_path, SQUARE * 256, values)
    found = reader.recognise(path)
    assert found is not None
    assert (found.tool, found.encoders) == ("AtlasPatch", ("conch_v1", "uni_v2"))
    refuses(reader, path, "features of 2 encoders (conch_v1, uni_v2)", "--encoder")
    refuses(reader, path, "no features of encoder 'uni'", "conch_v1, uni_v2", claims=Claims("uni"))
    for name, dim in (("uni_v2", 8), ("conch_v1", 4)):
        bag = reader.read(path, claims=Claims(name))
        assert (bag.provenance.encoder, bag.features.shape) == (name, (30, dim))


def test_atlaspatch_without_features(peers: ModuleType, reader: PeerReader, tmp_path: Path) -> None:
    path = peers.write_atlaspatch(tmp_path, SQUARE * 256, {})
    assert reader.recognise(path) is None
    refuses(reader, path, "holds coordinates but no features")


# --- nobody's


@pytest.mark.parametrize("content", [b"", b"no HDF5", b"\x89HDF\r\n\x1a\n" + bytes(90)])
def test_no_hdf5(content: bytes, reader: PeerReader, tmp_path: Path) -> None:
    (tmp_path / "s1.h5").write_bytes(content)
    refuses(reader, tmp_path / "s1.h5")
    with pytest.raises(FeatureStoreError, match=r"s1\.h5: .*; copy it again"):
        reader.recognise(tmp_path / "s1.h5")


def test_no_file(reader: PeerReader, tmp_path: Path) -> None:
    refuses(reader, tmp_path / "s1.h5", "is no file")
    refuses(reader, tmp_path, "is no file")


def test_files_of_ours_and_of_nobody(reader: PeerReader, small_study: Any, peers: ModuleType, tmp_path: Path) -> None:
    ours = small_study.features / f"{small_study.slide_ids[0]}.h5"
    found = reader.recognise(ours)
    assert found is not None
    assert found.tool == "wsi2d"
    refuses(reader, ours, "is a wsi2d feature file")
    strange = peers.write_arrays(tmp_path / "s1.h5", {"tiles": np.ones((4, 4))}, {})
    assert reader.recognise(strange) is None
    refuses(reader, strange, "no feature file of TRIDENT, CLAM, STAMP or AtlasPatch")


@pytest.mark.parametrize("tool", ["trident", "stamp"])
def test_no_patch_of_sparse_tissue_is_dropped(tool: str, reader: PeerReader, peers: ModuleType, tmp_path: Path) -> None:
    """Every second cell of one grid, by rows in turn."""
    xy = np.array([(x, y) for y in range(12) for x in range(12) if (x + y) % 2 == 0]) * 256
    path = getattr(peers, f"write_{tool}")(tmp_path, xy, peers.features(72))
    header = reader.inspect(path)
    assert header.provenance.imported is not None
    counts = header.provenance.imported.counts
    assert (header.geometry.stride_level0, header.patches, counts["dropped"], counts["moved"]) == (256, 72, 0, 0)
