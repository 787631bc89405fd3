"""Feature files whoever wrote them, read where they lie."""

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest

from wsi2d.errors import FeatureStoreError
from wsi2d.features import anyones, store
from wsi2d.features.anyones import read_features, read_header
from wsi2d.features.imports.claims import Claims
from wsi2d.features.imports.importing import import_features
from wsi2d.features.imports.isolated import shared_reader

LAYOUTS = ("trident", "clam", *(pytest.param(name, marks=pytest.mark.slow) for name in ("stamp", "atlaspatch")))


@pytest.fixture(autouse=True)
def kept_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports read with the process that reads in place: one takes its time to start."""
    monkeypatch.setattr("wsi2d.features.imports.importing.PeerReader", lambda workers: nullcontext(shared_reader()))


@pytest.fixture(autouse=True)
def nothing_told_yet() -> Iterator[None]:
    """Each folder is told of once in a process."""
    anyones._told.clear()
    yield
    anyones._told.clear()


def claims_for(layout: str) -> Claims:
    """Which encoder's features, of a file that holds those of several."""
    return Claims("uni_v2") if layout == "atlaspatch" else Claims()


def test_ours_are_read_as_they_are(small_study: Any) -> None:
    path = small_study.features / f"{small_study.slide_ids[0]}.h5"
    here, there = read_features(path), store.read_features(path)
    assert np.array_equal(here.features, there.features)
    assert here.provenance == there.provenance
    assert read_header(path) == store.read_header(path)
    assert read_features(str(path)).provenance == there.provenance


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_in_place_as_imported(layout: str, peers: ModuleType, small_study: Any, tmp_path: Path) -> None:
    folder = peers.rewrite_all(small_study.features, layout, tmp_path / "theirs")
    claims = claims_for(layout)
    import_features(tmp_path / "theirs", tmp_path / "f", claims=claims)
    for slide_id in small_study.slide_ids[:3]:
        path = folder / f"{slide_id}.h5"
        here, imported = read_features(path, claims), store.read_features(tmp_path / "f" / path.name)
        assert np.array_equal(here.features, imported.features)
        assert np.array_equal(here.grid.coords, imported.grid.coords)
        assert np.array_equal(here.grid.index, imported.grid.index)
        assert here.provenance == imported.provenance
        header = read_header(path, claims)
        assert header == store.read_header(tmp_path / "f" / path.name)
        assert (header.patches, header.provenance) == (len(here.grid), here.provenance)


def test_the_users_word_on_what_a_file_of_ours_does_not_say(
    peers: ModuleType, small_study: Any, tmp_path: Path
) -> None:
    peers.rewrite_all(small_study.features, "clam", tmp_path / "theirs")
    import_features(tmp_path / "theirs", tmp_path / "f")
    path = tmp_path / "f" / f"{small_study.slide_ids[0]}.h5"
    header = read_header(path, Claims("uni", 0.25))
    assert (header.provenance.encoder, header.geometry.mpp) == ("uni", 0.25)
    assert read_header(path).provenance.encoder is None
    with pytest.raises(FeatureStoreError, match="says patch_px 256, not 224"):
        read_header(path, Claims(patch_px=224))
    with pytest.raises(FeatureStoreError, match="says encoder random, not uni"):
        read_header(small_study.features / path.name, Claims("uni"))


def test_a_folder_is_told_of_once(
    peers: ModuleType, small_study: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = peers.rewrite_all(small_study.features, "clam", tmp_path)
    with caplog.at_level(logging.INFO, "wsi2d.features.anyones"):
        for path in sorted(folder.glob("*.h5")):
            read_header(path)
    assert caplog.messages == [
        f"features {folder}: files of CLAM, read where they lie: encoder unknown, unknown resolution, patches of 256 px"
    ]


def old_layout_of_ours(path: Path, to: Path) -> None:
    """A file of ours rewritten in HDF5's older layout, texts of fixed length as before."""
    with h5py.File(path) as new, h5py.File(to, "w") as old:
        for name in new:
            new.copy(name, old)
        for name, value in new.attrs.items():
            old.attrs[name] = value


def test_ours_in_the_older_layout(small_study: Any, tmp_path: Path) -> None:
    path = small_study.features / f"{small_study.slide_ids[0]}.h5"
    old_layout_of_ours(path, tmp_path / path.name)
    assert np.array_equal(read_features(tmp_path / path.name).features, read_features(path).features)


@pytest.mark.parametrize("read", [read_header, read_features])
def test_what_is_nobodys(read: Any, peers: ModuleType, tmp_path: Path) -> None:
    path = peers.write_arrays(tmp_path / "a.h5", {"tiles": np.ones((3, 3))}, {})
    with pytest.raises(FeatureStoreError, match=r"a\.h5: schema is None, not 'wsi2d/1'; .* `wsi2d extract`"):
        read(path)
    with h5py.File(path, "a") as file:
        file.attrs["schema"] = np.bytes_(b"wsi2d/2")
        file["features"], file["coords"] = np.ones((9, 3)), np.ones((9, 2))
    with pytest.raises(FeatureStoreError, match="schema is 'wsi2d/2', not 'wsi2d/1'"):
        read(path)
    with pytest.raises(FeatureStoreError, match="no such feature file"):
        read(tmp_path / "none.h5")
    path.write_bytes(b"torn")
    with pytest.raises(FeatureStoreError, match="not a readable HDF5 file"):
        read(path)
