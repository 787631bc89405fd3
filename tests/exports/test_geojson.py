"""``geojson``: polygons where the patches are, in the words that QuPath reads, with the attention of a run's folds."""

import json
import os
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest

import wsi2d
from wsi2d.errors import RunError
from wsi2d.exports.target import ExportOptions

WEIGHTS = np.array([0.05, 0.1, 0.15, 0.2, 0.5])
CELLS = [(0, 0), (0, 2), (1, 1), (2, 0), (2, 3)]


def exported(path: Path, out: Path, **options: Any) -> dict[str, Any]:
    """What the file's export holds."""
    (outcome,) = wsi2d.export(path, out, "geojson", ExportOptions(**options)).slides
    assert outcome.outcome == "done", outcome
    content: dict[str, Any] = json.loads(outcome.path.read_text("utf-8"), parse_constant=pytest.fail)
    assert content["type"] == "FeatureCollection"
    return content


def write_attention(path: Path, weights: Sequence[float] | np.ndarray, coords: np.ndarray) -> Path:
    """An attention file as a run keeps it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["attention"] = np.asarray(weights, np.float32)
        file["coords"] = coords
    return path


@pytest.fixture
def path(handmade: ModuleType, tmp_path: Path) -> Path:
    """A feature file of five patches of 102.56 level-0 px."""
    return Path(
        handmade.write_features(tmp_path / "a.h5", CELLS, patch_px=64, slide_mpp=0.312, stride_level0=64 * 0.5 / 0.312)
    )


@pytest.fixture
def coords(path: Path) -> np.ndarray:
    """Its patches' corners."""
    return wsi2d.read_features(path).grid.coords


def test_polygons_are_the_patches(path: Path, coords: np.ndarray, tmp_path: Path) -> None:
    """Closed rings in level-0 px; the corner is the patch's, the sides are as long as the patch is."""
    features = exported(path, tmp_path / "out")["features"]
    side = 64 * 0.5 / 0.312
    assert len(features) == len(CELLS)
    for feature, (x, y) in zip(features, coords, strict=True):
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1] == [x, y]
        expected = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
        np.testing.assert_allclose(ring, expected, rtol=0, atol=0.006)


def test_whole_places_are_whole_numbers(handmade: ModuleType, tmp_path: Path) -> None:
    path = handmade.write_features(tmp_path / "a.h5", [(1, 2)])
    exported(path, tmp_path / "out")
    assert "[[[128,64],[192,64],[192,128],[128,128],[128,64]]]" in (tmp_path / "out" / "a.geojson").read_text()


def test_words_that_qupath_reads(path: Path, tmp_path: Path) -> None:
    """Its reader takes an id that is a UUID, the object's type, a class with name and colour, and numbers by name."""
    for objects in (None, "tile", "annotation"):
        features = exported(path, tmp_path / str(objects), objects=objects)["features"]
        for feature, (row, col) in zip(features, CELLS, strict=True):
            assert uuid.UUID(feature["id"])
            properties = feature["properties"]
            assert properties["objectType"] == (objects or "tile")
            assert isinstance(properties["classification"]["name"], str)
            assert len(properties["classification"]["color"]) == 3
            assert properties["measurements"] == {"Row": row, "Column": col}
    assert len({feature["id"] for feature in features}) == len(CELLS)


def test_ids_stay_and_are_of_one_slide(handmade: ModuleType, path: Path, coords: np.ndarray, tmp_path: Path) -> None:
    """Imported again, with attention, they are the same objects; those of another slide are others."""
    first = [f["id"] for f in exported(path, tmp_path / "1")["features"]]
    attention = write_attention(tmp_path / "attention.h5", WEIGHTS, coords)
    assert [f["id"] for f in exported(path, tmp_path / "2", attention=attention)["features"]] == first
    other = handmade.write_features(tmp_path / "b.h5", CELLS)
    assert not {f["id"] for f in exported(other, tmp_path / "3")["features"]} & set(first)


def test_attention_of_the_fold_that_had_the_slide(path: Path, coords: np.ndarray, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_attention(run / "fold-0" / "attention" / "b.h5", WEIGHTS, coords)
    write_attention(run / "fold-1" / "attention" / "a.h5", WEIGHTS, coords)
    content = exported(path, tmp_path / "out", attention=run)
    assert content["wsi2d"]["attention"] == "fold-1"
    measured = [f["properties"]["measurements"] for f in content["features"]]
    np.testing.assert_allclose([m["Attention"] for m in measured], WEIGHTS, rtol=1e-5)
    np.testing.assert_allclose([m["Attention relative"] for m in measured], 5 * WEIGHTS, rtol=1e-5)
    assert [m["Attention percentile"] for m in measured] == [20, 40, 60, 80, 100]
    classes = [f["properties"]["classification"]["name"] for f in content["features"]]
    assert classes == ["Attention below 1x"] * 3 + ["Attention 1x to 2x", "Attention above 2x"]
    colours = [tuple(f["properties"]["color"]) for f in content["features"]]
    assert len(set(colours)) == 5
    from matplotlib import colormaps

    np.testing.assert_array_equal(colours[-1], colormaps["viridis"](1.0, bytes=True)[:3])


def test_attention_of_several_folds_is_their_mean(path: Path, coords: np.ndarray, tmp_path: Path) -> None:
    """Of a repeated cross-validation, in order of the folds' numbers."""
    for fold, weights in ((2, WEIGHTS), (10, np.full(5, 0.2))):
        write_attention(tmp_path / "run" / f"fold-{fold}" / "attention" / "a.h5", weights, coords)
    content = exported(path, tmp_path / "out", attention=tmp_path / "run")
    assert content["wsi2d"]["attention"] == "fold-2, fold-10"
    found = [f["properties"]["measurements"]["Attention"] for f in content["features"]]
    np.testing.assert_allclose(found, (WEIGHTS + 0.2) / 2, rtol=1e-5)


def test_attention_of_a_folder_or_a_file(path: Path, coords: np.ndarray, tmp_path: Path) -> None:
    file = write_attention(tmp_path / "scores" / "a.h5", WEIGHTS, coords)
    by_folder = exported(path, tmp_path / "1", attention=file.parent)
    assert exported(path, tmp_path / "2", attention=file) == by_folder
    assert by_folder["wsi2d"]["attention"] == "a.h5"


def test_attention_that_does_not_fit(handmade: ModuleType, path: Path, coords: np.ndarray, tmp_path: Path) -> None:
    """Each is one line that names the file, and no polygon is written."""
    scores = tmp_path / "scores"
    file = write_attention(scores / "a.h5", WEIGHTS[:4], coords[:4])
    bad = {"is of other patches than the features": [], "no readable attention": [], "must be finite": []}
    bad["is of other patches than the features"] += [file.read_bytes()]
    for weights, places, words in (
        (WEIGHTS, coords[::-1], "is of other patches"),
        (WEIGHTS[:, None], coords, "is of other patches"),
        ([0.1, np.nan, 0, 0, 0.9], coords, "must be finite"),
        ([0.1, -0.1, 0, 0, 1], coords, "must be finite and not negative"),
    ):
        write_attention(file, weights, places)
        (failure,) = wsi2d.export(path, tmp_path / "out", "geojson", ExportOptions(attention=scores)).failures
        assert failure.error.startswith(f"{file}: ")
        assert words in failure.error
    for content in (b"", b"junk", file.read_bytes()[:-500]):
        file.write_bytes(content)
        (failure,) = wsi2d.export(path, tmp_path / "out", "geojson", ExportOptions(attention=scores)).failures
        assert failure.error.startswith(f"{file}: no readable attention; ")
    with h5py.File(file, "w") as empty:
        empty["attention"] = WEIGHTS
    (failure,) = wsi2d.export(path, tmp_path / "out", "geojson", ExportOptions(attention=scores)).failures
    assert "no readable attention" in failure.error
    other = handmade.write_features(tmp_path / "b.h5", CELLS)
    (failure,) = wsi2d.export(other, tmp_path / "out", "geojson", ExportOptions(attention=scores)).failures
    assert failure.error.startswith(f"slide 'b': no attention in {scores}, which has that of test slides; leave it out")
    assert list((tmp_path / "out").iterdir()) == []


def test_attention_that_is_not_there(path: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for place in (tmp_path / "run", tmp_path / "gone"):
        with pytest.raises(RunError, match=re.escape(f"attention {place}: there is none of any slide")):
            wsi2d.export(path, tmp_path / "out", "geojson", ExportOptions(attention=place))
    assert not (tmp_path / "out").exists()


def test_newer_attention_is_exported_anew(path: Path, coords: np.ndarray, tmp_path: Path) -> None:
    """And with other options; each time what is there is replaced."""
    out, options = tmp_path / "out", ExportOptions(attention=tmp_path / "attention.h5")
    exported(path, out)
    file = write_attention(tmp_path / "attention.h5", WEIGHTS, coords)
    exported(path, out, attention=file)
    assert wsi2d.export(path, out, "geojson", options).count("skipped") == 1
    later = (out / "a.geojson").stat().st_mtime_ns + 10**9
    write_attention(file, WEIGHTS[::-1], coords)
    os.utime(file, ns=(later, later))
    found = exported(path, out, attention=file)["features"]
    assert found[0]["properties"]["measurements"]["Attention"] == 0.5
    exported(path, out, attention=file, objects="annotation")


def test_what_others_drew_is_kept(path: Path, tmp_path: Path) -> None:
    """A pathologist's annotations under the slide's name."""
    (tmp_path / "out").mkdir()
    drawn = tmp_path / "out" / "a.geojson"
    for content in ('{"type":"FeatureCollection","features":[]}', "[]", "", "\x00"):
        drawn.write_text(content)
        (failure,) = wsi2d.export(path, drawn.parent, "geojson").failures
        assert failure.error == f"slide 'a': {drawn} is there and no export of ours; move it away, or --overwrite"
        assert drawn.read_text() == content
    assert wsi2d.export(path, drawn.parent, "geojson", overwrite=True).count("done") == 1
    assert len(json.loads(drawn.read_text())["features"]) == 5


def test_a_slide_without_tissue(handmade: ModuleType, tmp_path: Path) -> None:
    path = handmade.write_features(tmp_path / "a.h5", ())
    assert exported(path, tmp_path / "1")["features"] == []
    attention = write_attention(tmp_path / "attention.h5", [], np.zeros((0, 2), np.int32))
    assert exported(path, tmp_path / "2", attention=attention)["features"] == []


def test_it_is_written_line_by_line(handmade: ModuleType, tmp_path: Path) -> None:
    """A line a patch, so that neither side needs all of it at once; and memory stays where it is."""
    import tracemalloc

    peaks = []
    for side in (20, 70):
        path = handmade.write_features(tmp_path / f"{side}.h5", np.argwhere(np.ones((side, side))), shape=(side, side))
        tracemalloc.start()
        wsi2d.export(path, tmp_path / "out", "geojson")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        out = tmp_path / "out" / f"{side}.geojson"
        lines = out.read_text().splitlines()
        assert len(lines) == side**2 + 2
        assert json.loads(lines[1].rstrip(","))["properties"]["measurements"] == {"Row": 0, "Column": 0}
    assert peaks[1] < peaks[0] + out.stat().st_size / 2


def test_attention_of_a_patients_slides_is_in_multiples_of_an_even_share(
    path: Path, coords: np.ndarray, tmp_path: Path
) -> None:
    """Its sum is this slide's part; an even share is one over the patches of all of the patient's slides."""
    file = write_attention(tmp_path / "attention.h5", WEIGHTS / 2, coords)
    with h5py.File(file, "a") as attention:
        attention.attrs["bag_patches"] = 20
    features = exported(path, tmp_path / "out", attention=file)["features"]
    measured = [f["properties"]["measurements"] for f in features]
    assert [m["Attention"] for m in measured] == pytest.approx(WEIGHTS / 2, rel=1e-4)
    assert [m["Attention relative"] for m in measured] == pytest.approx(WEIGHTS / 2 * 20, rel=1e-4)
    for wrong, words in ((4, "says that its bag has 4 patches, and has more"), ("many", "no readable attention")):
        with h5py.File(file, "a") as attention:
            attention.attrs["bag_patches"] = wrong
        (failure,) = wsi2d.export(path, tmp_path / "x", "geojson", ExportOptions(attention=file)).failures
        assert words in failure.error


@pytest.mark.slow
def test_of_a_trained_run(tiny: ModuleType, tmp_path: Path) -> None:
    """As `wsi2d train` keeps it: every test slide's attention goes with its features."""
    config = tiny.write_study(tmp_path)
    wsi2d.train(config)
    options = ExportOptions(attention=tmp_path / "run")
    report = wsi2d.export(tmp_path / "features", tmp_path / "out", "geojson", options)
    tested = {p.stem for p in (tmp_path / "run").glob("fold-*/attention/*.h5")}
    assert len(tested) > 3
    assert {s.path.stem for s in report.slides if s.outcome == "done"} == tested
    for slide_id in tested:
        features = json.loads((tmp_path / "out" / f"{slide_id}.geojson").read_text())["features"]
        assert sum(f["properties"]["measurements"]["Attention"] for f in features) == pytest.approx(1, abs=1e-4)
