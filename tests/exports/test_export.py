"""Exports of any format: finished ones are skipped, bad ones named, the rest goes on; nothing half-written stays."""

import os
import re
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import wsi2d
from wsi2d.errors import ConfigError, FeatureStoreError, StorageError
from wsi2d.exports.target import TARGETS, ExportOptions

NAMES = ("a", "two words", "größe 日本", "-up", "$x %s {0} [red]", "a.b")
NEEDS_ZARR = pytest.mark.skipif(find_spec("zarr") is None, reason="the package zarr is not installed")
SUFFIXES = {"zarr": ".zarr", "pt": ".pt", "geojson": ".geojson", "trident": ".h5"}
FORMATS = [pytest.param(name, marks=NEEDS_ZARR if name == "zarr" else ()) for name in SUFFIXES]


@pytest.fixture
def features(handmade: ModuleType, tmp_path: Path) -> Path:
    """A folder of sound files of odd names, whose attributes name slides no file could be named after."""
    for name in NAMES:
        handmade.write_features(tmp_path / "f" / f"{name}.h5", slide_id="../../outside")
    return tmp_path / "f"


def written(out: Path) -> dict[str, int]:
    """When what is there was written."""
    return {path.name: path.stat().st_mtime_ns for path in out.iterdir()}


def all_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_every_target_is_tried_here() -> None:
    assert SUFFIXES.keys() == TARGETS.keys()


@pytest.mark.parametrize("to", FORMATS)
def test_any_name_and_nothing_outside(features: Path, tmp_path: Path, to: str) -> None:
    before = all_files(tmp_path)
    report = wsi2d.export(features, tmp_path / "deep" / "out", to)
    assert report.count("done") == len(NAMES), report.failures
    assert set(written(tmp_path / "deep" / "out")) == {f"{name}{SUFFIXES[to]}" for name in NAMES}
    new = {Path(name).parts[0] for name in all_files(tmp_path) - before}
    assert new == {"deep"}


@pytest.mark.parametrize("to", FORMATS)
def test_only_what_is_missing_or_older_is_written(
    features: Path, handmade: ModuleType, tmp_path: Path, to: str
) -> None:
    out = tmp_path / "out"
    assert wsi2d.export(features, out, to).count("done") == len(NAMES)
    before = written(out)
    again = wsi2d.export(features, out, to)
    assert (again.count("skipped"), again.count("done")) == (len(NAMES), 0)
    assert written(out) == before
    later = before[f"a{SUFFIXES[to]}"] + 10**9
    os.utime(features / "a.h5", ns=(later, later))
    handmade.write_features(features / "new.h5")
    third = wsi2d.export(features, out, to)
    assert {s.source.stem for s in third.slides if s.outcome == "done"} == {"a", "new"}
    assert wsi2d.export(features, out, to, overwrite=True).count("done") == len(NAMES) + 1


@pytest.mark.parametrize("to", FORMATS)
def test_bad_files_are_named_and_the_others_go_on(
    features: Path, handmade: ModuleType, tmp_path: Path, to: str
) -> None:
    """Junk, damage among the features, and what is no feature file; nothing of them is left."""
    (features / "junk.h5").write_bytes(b"junk")
    damaged = handmade.damage(handmade.write_features(features / "z damaged.h5"))
    told: list[str] = []
    report = wsi2d.export(features, tmp_path / "out", to, progress=lambda s: told.append(s.outcome))
    failed = {s.source.name: s.error for s in report.failures}
    reads_features = to != "geojson"
    assert set(failed) == {"junk.h5"} | ({damaged.name} if reads_features else set())
    for name, error in failed.items():
        assert error.startswith(f"{features / name}: ")
    done = {f"{name}{SUFFIXES[to]}" for name in NAMES} | (set() if reads_features else {f"z damaged{SUFFIXES[to]}"})
    assert set(written(tmp_path / "out")) == done
    assert sorted(told) == sorted(s.outcome for s in report.slides)


@pytest.mark.parametrize("to", FORMATS)
def test_a_stopped_export_leaves_nothing(
    features: Path, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before its name is given to it; then it goes on."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wsi2d.files._sync", stop)
    with pytest.raises(KeyboardInterrupt):
        wsi2d.export(features, tmp_path / "out", to)
    monkeypatch.undo()
    assert written(tmp_path / "out") == {}
    assert wsi2d.export(features, tmp_path / "out", to).count("done") == len(NAMES)


@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk_ends_it(features: Path, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wsi2d.files._sync", full)
    with pytest.raises(StorageError, match="cannot be written"):
        wsi2d.export(features, tmp_path / "out", to)
    assert written(tmp_path / "out") == {}


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_there_and_none_of_ours_is_kept(features: Path, tmp_path: Path, to: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    foreign = out / f"a{SUFFIXES[to]}"
    foreign.write_bytes(b"something else")
    (failure,) = wsi2d.export(features, out, to).failures
    assert failure.error == f"slide 'a': {foreign} is there and no export of ours; move it away, or --overwrite"
    assert foreign.read_bytes() == b"something else"
    assert wsi2d.export(features, out, to, overwrite=True).count("done") == len(NAMES)
    assert wsi2d.export(features, out, to).count("skipped") == len(NAMES)


@pytest.mark.parametrize("to", FORMATS)
def test_a_name_that_is_no_text(features: Path, tmp_path: Path, to: str) -> None:
    """Latin-1 where UTF-8 is expected, as old archives hold it."""
    try:
        (features / "a.h5").rename(features / os.fsdecode(b"gr\xfcn.h5"))
    except OSError:
        pytest.skip("this file system has no such names")
    report = wsi2d.export(features, tmp_path / "out", to)
    assert report.count("done") == len(NAMES) - 1
    (failure,) = report.failures
    assert failure.error.endswith("its name is no UTF-8; rename the file")


def test_a_folder_of_features_is_not_written_into(features: Path) -> None:
    """TRIDENT's files have the suffix of ours."""
    before = written(features)
    with pytest.raises(ConfigError, match=re.escape(f"out {features}: holds the features themselves")):
        wsi2d.export(features, features, "trident", overwrite=True)
    assert written(features) == before
    assert wsi2d.export(features, features, "pt").count("done") == len(NAMES)


def test_two_slides_of_one_name(features: Path, handmade: ModuleType, tmp_path: Path) -> None:
    other = handmade.write_features(tmp_path / "g" / "a.h5")
    with pytest.raises(ConfigError, match=rf"slide 'a': .*f.a\.h5 and {re.escape(str(other))} bear this name"):
        wsi2d.export([features, other], tmp_path / "out", "pt")
    assert not (tmp_path / "out").exists()


def test_unknown_formats_and_options(features: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="export to 'zar': unknown; did you mean 'zarr'"):
        wsi2d.export(features, tmp_path / "out", "zar")
    for to, options, word in (
        ("pt", ExportOptions(objects="tile"), "objects"),
        ("trident", ExportOptions(attention=tmp_path), "attention"),
        ("geojson", ExportOptions(coords=True), "coords"),
    ):
        with pytest.raises(ConfigError, match=f"export to {to}: does not take {word}; leave it out"):
            wsi2d.export(features, tmp_path / "out", to, options)
    with pytest.raises(FeatureStoreError, match="it does not exist"):
        wsi2d.export(tmp_path / "gone.h5", tmp_path / "out", "pt")
    assert not (tmp_path / "out").exists()
