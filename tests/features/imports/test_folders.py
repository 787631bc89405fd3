"""Where a tool's features are found: in its root folder, the features' own, or one file."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from wsi2d.errors import FeatureStoreError
from wsi2d.features.imports.folders import PeerFolder, find_peer_files
from wsi2d.features.imports.isolated import PeerReader

XY = np.argwhere(np.ones((4, 4))) * 256
Find = Callable[..., PeerFolder]


@pytest.fixture
def find(reader: PeerReader) -> Find:
    """Finds with a reader that runs."""
    return lambda source, **how: find_peer_files(source, reader, **how)


@pytest.fixture
def values(peers: ModuleType) -> np.ndarray:
    """Features for the sixteen patches."""
    return peers.features(16)


def test_each_tool_from_its_root_to_its_files(
    find: Find, peers: ModuleType, values: np.ndarray, tmp_path: Path
) -> None:
    for slide in ("b", "a"):
        peers.write_trident(tmp_path / "trident", XY, values, slide=slide)
        peers.write_arrays(
            tmp_path / f"trident/20x_256px_0px_overlap/patches/{slide}_patches.h5", {"coords": XY}, {"coords": {}}
        )
        peers.write_clam(tmp_path / "clam", XY, values, slide=slide)
        peers.write_stamp(tmp_path / "stamp", XY, values, slide=slide)
        peers.write_atlaspatch(tmp_path / "atlas", XY, {"uni_v2": values}, slide=slide)
    (tmp_path / "clam" / "pt_files").mkdir()
    (tmp_path / "clam" / "pt_files" / "a.pt").write_bytes(b"pickled")
    roots = {"trident": "TRIDENT", "clam": "CLAM", "stamp": "STAMP", "atlas": "AtlasPatch"}
    for name, tool in roots.items():
        found = find(tmp_path / name)
        assert (found.tool, list(found.files)) == (tool, ["a", "b"])
        folder = found.files["a"].parent
        assert found.patches is None
        assert find(folder).files == found.files
        assert find(found.files["b"]).files == {"b": found.files["b"]}


def test_features_of_several_encoders(find: Find, peers: ModuleType, values: np.ndarray, tmp_path: Path) -> None:
    for encoder in ("uni_v2", "conch"):
        folder = f"20x_256px_0px_overlap/features_{encoder}"
        peers.write_trident(tmp_path, XY, values, encoder=None, folder=folder)
    peers.write_arrays(
        tmp_path / "20x_256px_0px_overlap/slide_features_titan/s1.h5",
        {"features": np.ones(768), "coords": XY}, {"coords": {"patch_size_level0": 256}},
    )  # fmt: skip
    with pytest.raises(FeatureStoreError, match=r"holds 2 folders of features.*features_conch.*features_uni_v2.*--enc"):
        find(tmp_path)
    assert find(tmp_path, encoder="conch").files["s1"].parent.name == "features_conch"
    with pytest.raises(FeatureStoreError, match="holds 2 folders of features"):
        find(tmp_path, encoder="virchow")


def test_features_at_several_resolutions(find: Find, peers: ModuleType, values: np.ndarray, tmp_path: Path) -> None:
    for folder in ("20x_256px_0px_overlap/features_uni_v2", "10x_256px_0px_overlap/features_uni_v2"):
        peers.write_trident(tmp_path, XY, values, folder=folder)
    with pytest.raises(FeatureStoreError, match="holds 2 folders of features"):
        find(tmp_path, encoder="uni_v2")


def test_slides_in_folders_of_their_own(find: Find, peers: ModuleType, values: np.ndarray, tmp_path: Path) -> None:
    """As STAMP mirrors the slides' folders; two slides of one name are an error."""
    for place, slide in (("uni/north", "a"), ("uni/south", "b"), ("conch/north", "a")):
        peers.write_stamp(tmp_path, XY, values, slide=slide, folder=place, extractor=place.partition("/")[0])
    assert list(find(tmp_path / "uni").files) == ["a", "b"]
    assert list(find(tmp_path, encoder="uni").files) == ["a", "b"]
    with pytest.raises(FeatureStoreError, match="holds 3 folders of features"):
        find(tmp_path)
    peers.write_stamp(tmp_path, XY, values, slide="a", folder="uni/south", extractor="uni")
    with pytest.raises(FeatureStoreError, match="bears the same slide's name"):
        find(tmp_path / "uni")


def test_clams_patches_apart_from_its_features(
    find: Find, peers: ModuleType, values: np.ndarray, tmp_path: Path
) -> None:
    peers.write_clam(tmp_path / "features_dir", XY, values, patches=False)
    assert find(tmp_path).patches is None
    peers.write_clam(tmp_path / "cut", XY, values)
    (tmp_path / "cut" / "h5_files" / "s1.h5").unlink()
    assert find(tmp_path).patches == tmp_path / "cut" / "patches"
    assert find(tmp_path / "features_dir", patches=tmp_path / "cut" / "patches").patches == tmp_path / "cut" / "patches"
    peers.write_clam(tmp_path / "cut again", XY, values)
    (tmp_path / "cut again" / "h5_files" / "s1.h5").unlink()
    with pytest.raises(FeatureStoreError, match="holds 2 folders 'patches'; say with --patches"):
        find(tmp_path)


def test_atlaspatch_encoder_is_chosen_at_once(
    find: Find, peers: ModuleType, values: np.ndarray, tmp_path: Path
) -> None:
    peers.write_atlaspatch(tmp_path, XY, {}, slide="a")
    peers.write_atlaspatch(tmp_path, XY, {"uni_v2": values, "conch": values}, slide="b")
    with pytest.raises(FeatureStoreError, match=r"features of 2 encoders \(conch, uni_v2\); choose with --encoder"):
        find(tmp_path)
    found = find(tmp_path, encoder="conch")
    assert (found.encoder, list(found.files)) == ("conch", ["a", "b"])


def test_damaged_files_do_not_hide_the_others(
    find: Find, peers: ModuleType, values: np.ndarray, tmp_path: Path
) -> None:
    peers.write_trident(tmp_path, XY, values, slide="z")
    folder = tmp_path / peers.FOLDERS["trident"]
    (folder / "a.h5").write_bytes(b"torn")
    (folder / ".hidden.h5").write_bytes(b"torn")
    assert list(find(tmp_path).files) == ["a", "z"]
    (folder / "z.h5").unlink()
    with pytest.raises(FeatureStoreError, match=r"a\.h5: .*; copy it again"):
        find(tmp_path)


def test_where_there_is_nothing(find: Find, peers: ModuleType, small_study: object, tmp_path: Path) -> None:
    with pytest.raises(FeatureStoreError, match="does not exist; give a folder"):
        find(tmp_path / "nowhere")
    with pytest.raises(FeatureStoreError, match=r"no \.h5 files; give a folder"):
        find(tmp_path)
    (tmp_path / "a.pt").write_bytes(b"pickled")
    with pytest.raises(FeatureStoreError, match=r"holds \.pt files, which have no coordinates"):
        find(tmp_path)
    peers.write_arrays(tmp_path / "patches" / "a.h5", {"coords": XY}, {})
    with pytest.raises(FeatureStoreError, match=r"no patch features .* in 1 \.h5 files; give"):
        find(tmp_path)
    with pytest.raises(FeatureStoreError, match="holds no patch features of TRIDENT"):
        find(tmp_path / "patches" / "a.h5")
    with pytest.raises(FeatureStoreError, match="is no folder; give the one"):
        find(tmp_path, patches=tmp_path / "patches" / "a.h5")


def test_our_own_files_need_no_import(find: Find, small_study: object, tmp_path: Path) -> None:
    folder = small_study.features  # type: ignore[attr-defined]
    with pytest.raises(FeatureStoreError, match="holds feature files of wsi2d"):
        find(folder)
    with pytest.raises(FeatureStoreError, match="is a wsi2d feature file; there is nothing to import"):
        find(next(folder.glob("*.h5")))


def test_coordinates_are_not_all_opened(
    peers: ModuleType, values: np.ndarray, reader: PeerReader, tmp_path: Path
) -> None:
    """A root folder has a file of coordinates for each slide, and none says whose features lie beside it."""
    opened = []

    class Counts:
        def recognise(self, path: Path) -> object:
            opened.append(path)
            return reader.recognise(path)

    peers.write_clam(tmp_path, XY, values, slide="s000")
    for number in range(60):
        peers.write_arrays(tmp_path / "patches" / f"s{number:03}.h5", {"coords": XY}, {})
        peers.write_arrays(tmp_path / "apart" / f"s{number:03}.h5", {"coords": XY}, {})
    assert find_peer_files(tmp_path, Counts()).tool == "CLAM"  # type: ignore[arg-type]
    assert len(opened) < 45


def test_features_behind_many_files_that_have_none(
    find: Find, peers: ModuleType, values: np.ndarray, tmp_path: Path
) -> None:
    """As of AtlasPatch, which adds embeddings to its files of coordinates, some slides before others."""
    for number in range(45):
        peers.write_atlaspatch(tmp_path, XY, {"uni_v2": values} if number == 40 else {}, slide=f"s{number:03}")
    assert find(tmp_path).tool == "AtlasPatch"
