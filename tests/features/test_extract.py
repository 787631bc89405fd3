"""Extraction from end to end: good slides done, bad ones named, finished ones left alone."""

import csv
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from wsi2d.config import ExtractConfig
from wsi2d.errors import ClusterError, ConfigError, ModelError, StorageError
from wsi2d.features import extract as extract_module
from wsi2d.features import settings as settings_module
from wsi2d.features.encoders import get_encoder
from wsi2d.features.extract import extract
from wsi2d.features.histology_stats import HistologyStats
from wsi2d.features.outcomes import ExtractProgress, ExtractReport, SlideOutcome
from wsi2d.features.store import feature_path, read_features
from wsi2d.files import partial_path
from wsi2d.slides.discovery import SlideFile, find_slides
from wsi2d.slides.reader import open_slide

NO_PIXEL_SIZE = "no pixel size (mpp) in the header; give --slide-mpp, or --cohort with an mpp column"


def settings(**changes: Any) -> ExtractConfig:
    values: dict[str, Any] = {"batch_size": 13, "patch": {"patch_px": 64}, "device": "cpu"}
    return ExtractConfig.model_validate({**values, **changes})


def run(slides: Path | Sequence[Path], out: Path, config: ExtractConfig | None = None, **options: Any) -> ExtractReport:
    paths = [slides] if isinstance(slides, Path) else slides
    return extract(find_slides(paths), out, config or settings(), **options)


def outcomes(report: ExtractReport) -> dict[str, str]:
    return {s.slide_id: s.outcome for s in report.slides}


def failures(out: Path) -> list[dict[str, str]]:
    with (out / "failures.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def good(
    tmp_path_factory: pytest.TempPathFactory,
    write_slide: Callable[..., Path],
    paint_tissue: Callable[..., Any],
    ellipse: type,
) -> Path:
    """Three slides of the same tissue: at 20×, at 40×, and a plain image without a pixel size; read only."""
    folder = tmp_path_factory.mktemp("good")
    at_40x = paint_tissue(1024, 768, [ellipse(500, 390, 430, 340)], seed=3).rgb
    at_20x = np.asarray(Image.fromarray(at_40x).reduce(2))
    write_slide(folder / "at20x.tiff", at_20x, mpp=0.5, compression="deflate")
    write_slide(folder / "at40x.svs", at_40x, mpp=None, aperio="AppMag = 40|MPP = 0.25")
    Image.fromarray(at_20x).save(folder / "plain.png")
    return folder


COHORT_MPP = {"plain": 0.5}


@pytest.fixture(scope="module")
def good_features(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished features of the good slides; read only."""
    out = tmp_path_factory.mktemp("good_features")
    assert outcomes(run(good, out, cohort_mpp=COHORT_MPP)) == {"at20x": "done", "at40x": "done", "plain": "done"}
    return out


@pytest.fixture
def finished(good: Path, good_features: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A folder of slides and one of their finished features, for tests to change."""
    slides, out = tmp_path / "slides", tmp_path / "out"
    shutil.copytree(good, slides)
    shutil.copytree(good_features, out)
    return slides, out


def bad_slides(folder: Path, good: Path, write_slide: Callable[..., Path]) -> None:
    """One that is cut off, one that is text, one without a pixel size, one damaged where the patches are read."""
    whole = (good / "at20x.tiff").read_bytes()
    (folder / "cut.tiff").write_bytes(whole[: len(whole) // 3])
    (folder / "text.svs").write_text("no slide at all\n")
    shutil.copyfile(good / "plain.png", folder / "sizeless.png")
    write_slide(folder / "damaged.tiff", read_rgb(good / "at20x.tiff"), mpp=0.5, compression="deflate")
    damage_level_0(folder / "damaged.tiff")


def read_rgb(path: Path) -> np.ndarray:
    return tifffile.imread(path, key=0)


def damage_level_0(path: Path) -> None:
    """Overwrite the tile in the middle of level 0; the overview is read from the coarser levels, which stay whole."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        middle = len(page.dataoffsets) // 2
        offset, length = page.dataoffsets[middle], page.databytecounts[middle]
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * length)


def test_slides_become_feature_files(good: Path, tmp_path: Path) -> None:
    report = run(good, tmp_path / "out", cohort_mpp=COHORT_MPP)
    assert sorted(os.listdir(tmp_path / "out")) == ["at20x.h5", "at40x.h5", "plain.h5"]
    assert (report.count("done"), report.count("failed"), report.failures) == (3, 0, ())
    encoder = get_encoder("histology-stats")
    sizes = {"at20x": (512, 384, 0.5, "tiff"), "at40x": (1024, 768, 0.25, "header"), "plain": (512, 384, 0.5, "cohort")}
    for outcome in report.slides:
        bag = read_features(feature_path(tmp_path / "out", outcome.slide_id))
        made = bag.provenance
        assert (made.level0_width, made.level0_height, made.slide_mpp, made.mpp_source) == sizes[outcome.slide_id]
        assert (made.slide_id, made.encoder, made.encoder_hash) == (outcome.slide_id, encoder.name, encoder.fingerprint)
        assert outcome.patches == len(bag.grid) > 20
        assert (bag.grid.shape, bag.grid.patch_px, bag.grid.mpp) == ((6, 8), 64, 0.5)
        assert bag.grid.stride_level0 == bag.grid.patch_level0 == 64 * 0.5 / made.slide_mpp
        assert np.array_equal(bag.grid.coords, np.rint(bag.grid.index[:, ::-1] * bag.grid.stride_level0))
        assert (bag.features.dtype, bag.features.shape[1]) == (np.float32, encoder.dim)


def test_each_row_is_the_patch_at_its_place(finished: tuple[Path, Path]) -> None:
    slides, out = finished
    rgb = read_rgb(slides / "at20x.tiff")
    encoder = get_encoder("histology-stats")
    for name in ("at20x", "plain"):  # both hold these very pixels
        bag = read_features(out / f"{name}.h5")
        for (x, y), features in zip(bag.grid.coords, bag.features, strict=True):
            alone = encoder.encode(torch.from_numpy(rgb[y : y + 64, x : x + 64].copy()[None]))
            np.testing.assert_allclose(features, alone[0].numpy(), rtol=1e-4, atol=1e-5)


def test_20x_and_40x_give_the_same_patches(finished: tuple[Path, Path]) -> None:
    _, out = finished
    coarse, fine = read_features(out / "at20x.h5"), read_features(out / "at40x.h5")
    assert np.array_equal(coarse.grid.index, fine.grid.index)
    assert np.array_equal(2 * coarse.grid.coords, fine.grid.coords)
    names = get_encoder("histology-stats").names
    amounts = [i for i, name in enumerate(names) if name.endswith(".mean") and name.startswith(("stain", "od"))]
    a, b = coarse.features[:, amounts], fine.features[:, amounts]
    difference = np.abs(a - b).max(0)
    assert (difference < 0.1 * np.ptp(a, axis=0)).all()  # what JPEG does to colour


def test_the_tissue_settings_are_kept(finished: tuple[Path, Path]) -> None:
    tissue = json.loads(read_features(finished[1] / "at20x.h5").provenance.tissue)
    threshold = tissue.pop("threshold")
    assert 0.04 <= threshold <= 0.1
    assert tissue == {**settings().tissue.model_dump(), "min_tissue": 0.25}


def test_bad_slides_are_named_and_the_others_go_on(
    good: Path, tmp_path: Path, write_slide: Callable[..., Path]
) -> None:
    slides, out = tmp_path / "slides", tmp_path / "out"
    shutil.copytree(good, slides)
    bad_slides(slides, good, write_slide)
    report = run(slides, out, cohort_mpp=COHORT_MPP)
    expected = dict.fromkeys(("at20x", "at40x", "plain"), "done")
    expected |= dict.fromkeys(("cut", "damaged", "sizeless", "text"), "failed")
    assert outcomes(report) == expected
    assert [s.slide_id for s in report.slides] == sorted(expected)
    assert sorted(os.listdir(out)) == ["at20x.h5", "at40x.h5", "failures.csv", "plain.h5"]
    rows = failures(out)
    assert [row["slide_id"] for row in rows] == ["cut", "damaged", "sizeless", "text"]
    assert [row["path"] for row in rows] == [str(s.path) for s in report.failures]
    assert [row["error"] for row in rows] == [s.error for s in report.failures]
    errors = {row["slide_id"]: row["error"] for row in rows}
    assert list(rows[0]) == ["slide_id", "path", "error"]
    assert errors["sizeless"] == f"slide 'sizeless': {NO_PIXEL_SIZE}"
    assert errors["text"].startswith("slide 'text': neither a slide that OpenSlide knows nor an image")
    assert errors["damaged"].startswith("slide 'damaged': cannot be read at (")
    for slide_id, error in errors.items():
        assert error.startswith(f"slide '{slide_id}': ")
        assert "\n" not in error


def test_a_second_run_redoes_only_the_bad(finished: tuple[Path, Path], write_slide: Callable[..., Path]) -> None:
    slides, out = finished
    bad_slides(slides, slides, write_slide)
    run(slides, out, cohort_mpp=COHORT_MPP)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.h5")}
    shutil.copyfile(slides / "at20x.tiff", slides / "cut.tiff")  # mended meanwhile
    report = run(slides, out, cohort_mpp=COHORT_MPP)
    assert outcomes(report) == {
        "at20x": "skipped", "at40x": "skipped", "plain": "skipped", "cut": "done",
        "damaged": "failed", "sizeless": "failed", "text": "failed",
    }  # fmt: skip
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times
    assert [row["slide_id"] for row in failures(out)] == ["damaged", "sizeless", "text"]
    for name in ("damaged.tiff", "sizeless.png", "text.svs"):
        (slides / name).unlink()
    assert run(slides, out, cohort_mpp=COHORT_MPP).count("skipped") == 4
    assert not (out / "failures.csv").exists()


@pytest.mark.parametrize("how", ["incomplete", "truncated", "other schema", "empty", "no HDF5"])
def test_unfinished_files_are_redone(finished: tuple[Path, Path], how: str, caplog: pytest.LogCaptureFixture) -> None:
    slides, out = finished
    path = out / "at20x.h5"
    right = read_features(path)
    others = {name: (out / name).stat().st_mtime_ns for name in ("at40x.h5", "plain.h5")}
    if how in {"incomplete", "other schema"}:
        with h5py.File(path, "r+") as file:
            file.attrs.update({"complete": False} if how == "incomplete" else {"schema": "wsi2d/0"})
    else:
        path.write_bytes({"truncated": path.read_bytes()[:-500], "empty": b"", "no HDF5": b"text"}[how])
    with caplog.at_level(logging.WARNING, "wsi2d"):
        report = run(slides, out, cohort_mpp=COHORT_MPP)
    assert outcomes(report) == {"at20x": "done", "at40x": "skipped", "plain": "skipped"}
    assert str(path) in caplog.text
    assert read_features(path).features.tobytes() == right.features.tobytes()
    assert {name: (out / name).stat().st_mtime_ns for name in others} == others


def test_what_a_killed_run_left_is_cleared(finished: tuple[Path, Path]) -> None:
    slides, out = finished
    (out / "at40x.h5").unlink()
    for name in ("at20x", "at40x"):
        partial_path(feature_path(out, name)).write_bytes(b"half a file")
    assert outcomes(run(slides, out, cohort_mpp=COHORT_MPP))["at40x"] == "done"
    assert sorted(os.listdir(out)) == ["at20x.h5", "at40x.h5", "plain.h5"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch": {"patch_px": 80}}, "patch.patch_px 64, not 80"),
        ({"patch": {"patch_px": 64, "mpp": 0.6}}, "patch.mpp 0.5, not 0.6"),
        ({"patch": {"patch_px": 64, "overlap_px": 16}}, "patch.overlap_px 0, not 16"),
        ({"patch": {"patch_px": 64, "min_tissue": 0.5}}, "patch.min_tissue 0.25, not 0.5"),
        ({"tissue": {"min_saturation": 0.05}}, "tissue.min_saturation 0.04, not 0.05"),
        ({"tissue": {"mpp": 4.0}}, "tissue.mpp 8.0, not 4.0"),
    ],
)
def test_other_settings_stop_the_run_before_it_begins(
    finished: tuple[Path, Path], changes: dict[str, Any], words: str
) -> None:
    slides, out = finished
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "at40x.h5").unlink()
    del times["at40x.h5"]
    with pytest.raises(ConfigError) as error:
        run(slides, out, settings(**changes), cohort_mpp=COHORT_MPP)
    assert str(error.value) == f"{out / 'at20x.h5'}: was made with {words}; use another --out, or --overwrite"
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == times


def test_another_encoder_stops_the_run(finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    slides, out = finished
    encoder = get_encoder("histology-stats")
    encoder.fingerprint = "f" * 16
    monkeypatch.setattr(settings_module, "get_encoder", lambda name: encoder)
    with pytest.raises(ConfigError, match=r"was made with encoder .*, not f{16}; use another --out, or --overwrite"):
        run(slides, out, cohort_mpp=COHORT_MPP)


@pytest.mark.parametrize("given", [{"slide_mpp": 0.55}, {"cohort_mpp": {"plain": 0.5, "at20x": 0.55}}])
def test_another_pixel_size_stops_the_run(finished: tuple[Path, Path], given: dict[str, Any]) -> None:
    slides, out = finished
    with pytest.raises(ConfigError, match=r"at20x\.h5: was made with slide_mpp 0\.5.*, not 0\.55"):
        run(slides, out, **given)


@pytest.mark.parametrize("changes", [{"workers": 1}, {"workers": 4}, {"batch_size": 5}])
def test_what_only_changes_the_speed_does_not_redo(finished: tuple[Path, Path], changes: dict[str, int]) -> None:
    slides, out = finished
    assert run(slides, out, settings(**changes), cohort_mpp=COHORT_MPP).count("skipped") == 3


def test_overlap_is_told_from_the_files(finished: tuple[Path, Path], tmp_path: Path) -> None:
    slides, _ = finished
    config = settings(patch={"patch_px": 64, "overlap_px": 17})
    assert run(slides / "at20x.tiff", tmp_path / "more", config).count("done") == 1
    assert run(slides / "at20x.tiff", tmp_path / "more", config).count("skipped") == 1
    assert len(read_features(tmp_path / "more" / "at20x.h5").grid) > len(
        read_features(tmp_path / "out" / "at20x.h5").grid
    )


def test_overwrite_redoes_with_other_settings(finished: tuple[Path, Path]) -> None:
    slides, out = finished
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    config = settings(patch={"patch_px": 80})
    assert run(slides, out, config, cohort_mpp=COHORT_MPP, overwrite=True).count("done") == 3
    assert all((out / name).stat().st_mtime_ns > before for name, before in times.items())
    assert read_features(out / "plain.h5").grid.patch_px == 80


def test_a_slide_that_fails_now_keeps_its_file_of_the_same_settings(finished: tuple[Path, Path]) -> None:
    slides, out = finished
    before = (out / "at20x.h5").read_bytes()
    (slides / "at20x.tiff").write_bytes(b"not copied yet")
    report = run(slides, out, cohort_mpp=COHORT_MPP, overwrite=True)
    assert outcomes(report) == {"at20x": "failed", "at40x": "done", "plain": "done"}
    assert [row["slide_id"] for row in failures(out)] == ["at20x"]
    assert (out / "at20x.h5").read_bytes() == before
    assert run(slides, out, cohort_mpp=COHORT_MPP).count("skipped") == 3


@pytest.mark.parametrize(
    ("changes", "options"),
    [({"patch": {"patch_px": 80}}, {}), ({}, {"slide_mpp": 0.4}), ({}, {"cohort_mpp": {"at20x": 0.4}}), ({}, {})],
)
def test_a_slide_that_fails_now_loses_its_file_of_other_settings(
    finished: tuple[Path, Path], changes: dict[str, Any], options: dict[str, Any]
) -> None:
    """And a damaged one: here without a change."""
    slides, out = finished
    if not changes and not options:
        (out / "at20x.h5").write_bytes((out / "at20x.h5").read_bytes()[:-500])
    (slides / "at20x.tiff").write_bytes(b"not copied yet")
    report = run(slides / "at20x.tiff", out, settings(**changes), overwrite=True, **options)
    assert outcomes(report) == {"at20x": "failed"}
    assert sorted(os.listdir(out)) == ["at40x.h5", "failures.csv", "plain.h5"]


def test_a_pixel_size_given_once_and_no_more_is_told(
    finished: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    slides, out = finished
    warned = (
        "1 finished slides were made with a pixel size given then and not now (the first is 'plain'); they are kept"
    )
    with caplog.at_level(logging.WARNING, "wsi2d"):
        assert run(slides, out, cohort_mpp=COHORT_MPP).count("skipped") == 3
        assert not caplog.messages
        assert run(slides, out).count("skipped") == 3
    assert caplog.messages == [f"{warned}, --overwrite does them again"]


@pytest.mark.parametrize("workers", [1, 3])
def test_two_runs_give_the_same_bytes(finished: tuple[Path, Path], tmp_path: Path, workers: int) -> None:
    slides, out = finished
    run(slides, tmp_path / "again", settings(workers=workers), cohort_mpp=COHORT_MPP)
    for name in ("at20x", "at40x", "plain"):
        one, other = read_features(out / f"{name}.h5"), read_features(tmp_path / "again" / f"{name}.h5")
        assert one.features.tobytes() == other.features.tobytes()
        assert one.grid.coords.tobytes() == other.grid.coords.tobytes()


def test_the_batch_size_does_not_change_the_features(finished: tuple[Path, Path], tmp_path: Path) -> None:
    slides, out = finished
    run(slides / "at40x.svs", tmp_path / "again", settings(batch_size=7))
    one, other = read_features(out / "at40x.h5"), read_features(tmp_path / "again" / "at40x.h5")
    np.testing.assert_allclose(one.features, other.features, rtol=1e-4, atol=1e-5)


def test_a_slide_without_tissue_is_complete_and_empty(
    tmp_path: Path, write_slide: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_slide(tmp_path / "glass.tiff", np.full((384, 512, 3), 244, np.uint8))
    with caplog.at_level(logging.WARNING, "wsi2d"):
        report = run(path, tmp_path / "out")
    assert outcomes(report) == {"glass": "empty"}
    assert "slide 'glass': no tissue found" in caplog.text
    assert not (tmp_path / "out" / "failures.csv").exists()
    bag = read_features(tmp_path / "out" / "glass.h5")
    assert (bag.features.shape, len(bag.grid), bag.grid.shape) == ((0, 108), 0, (6, 8))
    assert outcomes(run(path, tmp_path / "out")) == {"glass": "skipped"}


def test_pixel_sizes_go_to_their_slides(good: Path, tmp_path: Path) -> None:
    run(good, tmp_path / "a", cohort_mpp={"plain": 0.5, "at40x": 0.26, "another": 9.0})
    made = {p.stem: read_features(p).provenance for p in (tmp_path / "a").glob("*.h5")}
    assert {k: (p.slide_mpp, p.mpp_source) for k, p in made.items()} == {
        "at20x": (pytest.approx(0.5), "tiff"), "at40x": (0.26, "cohort"), "plain": (0.5, "cohort"),
    }  # fmt: skip
    run(good, tmp_path / "b", cohort_mpp={"plain": 0.5}, slide_mpp=0.4)
    made = {p.stem: read_features(p).provenance for p in (tmp_path / "b").glob("*.h5")}
    assert {(p.slide_mpp, p.mpp_source) for p in made.values()} == {(0.4, "user")}
    assert len(made) == 3


def test_input_is_checked_before_the_work_begins(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        extract_module, "extract_exclusively", lambda *args, **kwargs: pytest.fail("a slide was opened")
    )
    with pytest.raises(ConfigError, match="encoder 'unicorn': unknown"):
        run(good, tmp_path / "out", settings(encoder="unicorn"))
    with pytest.raises(ConfigError, match="patch_px 32: encoder 'histology-stats' needs at least 48"):
        run(good, tmp_path / "out", settings(patch={"patch_px": 32}))
    with pytest.raises(ConfigError, match="device 'gpu'"):
        run(good, tmp_path / "out", settings(device="gpu"))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file: the folder cannot be made .*give another --out"):
        run(good, tmp_path / "file")
    assert not (tmp_path / "out").exists()


def test_progress_is_told(finished: tuple[Path, Path], tmp_path: Path, write_slide: Callable[..., Path]) -> None:
    slides, out = finished
    (slides / "text.svs").write_text("no slide")
    (out / "at40x.h5").unlink()
    heard: list[tuple[str, Any]] = []

    class Listener(ExtractProgress):
        def slide_started(self, slide_id: str, patches: int) -> None:
            heard.append((slide_id, patches))

        def patches_done(self, count: int) -> None:
            heard.append(("patches", count))

        def slide_finished(self, outcome: SlideOutcome) -> None:
            heard.append((outcome.slide_id, outcome.outcome))

    report = run(slides, out, cohort_mpp=COHORT_MPP, progress=Listener())
    patches = report.slides[1].patches
    assert heard[:3] == [("at20x", "skipped"), ("plain", "skipped"), ("at40x", patches)], "the finished ones first"
    batches = heard[3:-2]
    assert batches == [("patches", 13)] * (patches // 13) + [("patches", patches % 13)] * bool(patches % 13)
    assert len(batches) > 2
    assert heard[-2:] == [("at40x", "done"), ("text", "failed")]


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
def test_a_fault_of_ours_is_no_bad_slide(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]
) -> None:
    encoder = get_encoder("histology-stats")
    encode = encoder.encode
    calls = []

    def fail_at_the_second(patches: torch.Tensor) -> torch.Tensor:
        calls.append(len(patches))
        if len(calls) == 2:
            raise raised("out of memory")
        return encode(patches)

    monkeypatch.setattr(encoder, "encode", fail_at_the_second)
    monkeypatch.setattr(settings_module, "get_encoder", lambda name: encoder)
    with pytest.raises(raised, match="out of memory"):
        run(good, tmp_path / "out", cohort_mpp=COHORT_MPP)
    assert os.listdir(tmp_path / "out") == []
    monkeypatch.undo()
    assert run(good, tmp_path / "out", cohort_mpp=COHORT_MPP).count("done") == 3


def test_one_slide_named_twice_is_done_once(good: Path, tmp_path: Path) -> None:
    report = run([good / "at20x.tiff", good / "at20x.tiff"], tmp_path / "out")
    assert outcomes(report) == {"at20x": "done"}
    assert len(report.slides) == 1


def test_real_slides(shared_dir: Path, tmp_path: Path) -> None:
    slides, config = shared_dir / "slides", settings(patch={"patch_px": 512, "mpp": 1.0}, workers=2)
    report = run(slides, tmp_path, config, slide_mpp=0.5)
    found = outcomes(report)
    assert {k for k, v in found.items() if v == "failed"} == {"broken", "unopenable", "unreadable"}
    assert [row["slide_id"] for row in failures(tmp_path)] == ["broken", "unopenable", "unreadable"]
    assert found["kidney-48-5"] == "empty"  # a grain of dust on glass
    for name in ("cmu-1-small-region", "tcga-cr-7395-01a-01-ts1"):
        assert found[name] == "done"
        bag = read_features(tmp_path / f"{name}.h5")
        assert np.isfinite(bag.features).all()
        assert bag.provenance.mpp_source == "user"
    again = outcomes(run(slides, tmp_path, config, slide_mpp=0.5))
    assert {k: "failed" if v == "failed" else "skipped" for k, v in found.items()} == again
    with open_slide(slides / "cmu-1-small-region.svs", mpp=0.5) as reader:
        size = (reader.slide.width, reader.slide.height)
    made = read_features(tmp_path / "cmu-1-small-region.h5").provenance
    assert (made.level0_width, made.level0_height) == size


# --- runs that are stopped


class Stops(ExtractProgress):
    """Stops the run once a slide is finished."""

    def __init__(self, slide_id: str, error: BaseException) -> None:
        self.slide_id, self.error = slide_id, error

    def slide_finished(self, outcome: SlideOutcome) -> None:
        if outcome.slide_id == self.slide_id:
            raise self.error


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """Three files that are no slides."""
    for name in "abc":
        (tmp_path / f"{name}.svs").write_bytes(b"no slide" * 100)
    return tmp_path


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StorageError("full"), ClusterError("gone")], ids=repr)
def test_what_failed_before_a_run_was_stopped_is_listed(bad: Path, error: BaseException) -> None:
    out = bad / "out"
    with pytest.raises(type(error)):
        run(bad, out, progress=Stops("b", error))
    assert [failure["slide_id"] for failure in failures(out)] == ["a", "b"]
    assert os.listdir(out) == ["failures.csv"]


def test_a_run_that_was_stopped_keeps_what_it_did_not_come_to(bad: Path) -> None:
    out = bad / "out"
    run(bad, out)
    (bad / "a.svs").unlink()
    with pytest.raises(KeyboardInterrupt):
        run(bad, out, progress=Stops("b", KeyboardInterrupt()))
    assert [failure["slide_id"] for failure in failures(out)] == ["a", "b", "c"]


def test_a_disk_that_takes_no_list_either(bad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ended the run is told, not what happened after."""

    def full(*_: Any, **__: Any) -> None:
        raise StorageError("no room for the list")

    monkeypatch.setattr(extract_module, "list_failures", full)
    with pytest.raises(StorageError, match="the first"):
        run(bad, bad / "out", progress=Stops("b", StorageError("the first")))


def test_a_slide_of_which_the_encoder_gives_no_numbers(good: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """It fails alone, and its file of other settings goes."""

    class OneBad(HistologyStats):
        batches = 0

        def encode(self, patches: torch.Tensor) -> torch.Tensor:
            OneBad.batches += 1
            if OneBad.batches == 1:
                raise ModelError("encoder 'x': gives values that are no numbers")
            return super().encode(patches)

    monkeypatch.setattr(extract_module, "load_encoder", lambda config: OneBad())
    feature_path(tmp_path, "at20x").write_bytes(b"of other settings")
    report = run(good, tmp_path, cohort_mpp=COHORT_MPP, overwrite=True)
    assert outcomes(report) == {"at20x": "failed", "at40x": "done", "plain": "done"}
    assert [f["error"] for f in failures(tmp_path)] == ["slide 'at20x': encoder 'x': gives values that are no numbers"]
    assert sorted(os.listdir(tmp_path)) == ["at40x.h5", "failures.csv", "plain.h5"]


@pytest.mark.parametrize("size", [241, 248, 300])
def test_a_name_that_is_too_long_for_a_feature_file(good: Path, tmp_path: Path, size: int) -> None:
    """It fails alone, as any slide whose files cannot bear its id."""
    long, out = SlideFile("ü" * (size // 2) + "x" * (size % 2), good / "at20x.tiff"), tmp_path / "f"
    report = extract([long, *find_slides([good / "at20x.tiff"])], out, settings())
    assert [s.outcome for s in report.slides] == ["failed", "done"]
    (error,) = (f["error"] for f in failures(out))
    assert error.endswith(f": its name has {size} bytes, and its feature file can bear 240; rename the file")
    assert sorted(os.listdir(out)) == ["at20x.h5", "failures.csv"]


def test_the_longest_name(good: Path, tmp_path: Path) -> None:
    extract([SlideFile("ü" * 120, good / "at20x.tiff")], tmp_path / "f", settings())
    assert os.listdir(tmp_path / "f") == ["ü" * 120 + ".h5"]
