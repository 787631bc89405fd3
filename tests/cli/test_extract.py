"""`wsi2d extract`: the same as the library's call, whichever way the settings come; bad slides named, others done."""

import csv
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from wsi2d.config import ExtractConfig, PatchConfig, TissueConfig
from wsi2d.features.extract import extract
from wsi2d.slides.discovery import find_slides

PATCH = {"patch_px": 64, "mpp": 0.6, "overlap_px": 16, "min_tissue": 0.7}
OPTIONS = "--patch-px 64 --mpp 0.6 --overlap-px 16 --min-tissue 0.7"
TISSUE = {"close_um": 16.0, "min_piece_um2": 500.0}


def content(path: Path) -> dict[str, Any]:
    """All that a feature file holds."""
    with h5py.File(path) as file:
        arrays = {name: file[name][()].tobytes() for name in ("features", "coords", "index")}
        return {**arrays, **{k: v.decode() if isinstance(v, bytes) else str(v) for k, v in file.attrs.items()}}


def times(folder: Path) -> dict[str, int]:
    """When each feature file was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.h5")}


def test_three_ways_are_the_same(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", "a", "b")
    config = ExtractConfig(patch=PatchConfig(**PATCH), tissue=TissueConfig(**TISSUE), batch_size=7, workers=1)
    extract(find_slides([slides]), tmp_path / "python", config)

    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"patch": PATCH, "tissue": TISSUE, "batch_size": 7}))
    result = cli("extract", slides, "--out", tmp_path / "yaml", "--config", tmp_path / "all.yaml")
    assert result.code == 0, result.err

    (tmp_path / "tissue.yaml").write_text(yaml.safe_dump({"tissue": TISSUE, "patch": {"mpp": 9.0, "patch_px": 128}}))
    result = cli(f"extract {OPTIONS} --workers 1", slides, "--out", tmp_path / "options", "--config",
                 tmp_path / "tissue.yaml")  # fmt: skip
    assert result.code == 0, result.err

    for name in ("a.h5", "b.h5"):
        expected = content(tmp_path / "python" / name)
        assert content(tmp_path / "yaml" / name) == expected
        assert content(tmp_path / "options" / name) == expected, "an option goes before the file"
        assert expected["patch_px"] == "64"
        assert float(expected["mpp"]) == 0.6


def test_each_option_arrives(cli: Any, write_slides: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is given reaches the library's call, and what is not given is its default."""
    import wsi2d.features.extract as module

    calls: list[tuple[Any, dict[str, Any]]] = []

    def recorded(slides: Any, out: Path, config: ExtractConfig, **options: Any) -> module.ExtractReport:
        calls.append((config, options))
        return module.ExtractReport(())

    monkeypatch.setattr(module, "extract", recorded)
    slides = write_slides(tmp_path, "a")
    (tmp_path / "cohort.csv").write_text("slide_id,mpp\na.tiff,0.3\nb,\n")
    base = ["extract", slides, "--out", tmp_path / "out"]
    assert cli(*base).code == 0
    config, options = calls.pop()
    assert config == ExtractConfig()
    assert (options["slide_mpp"], options["cohort_mpp"], options["overwrite"]) == (None, None, False)
    assert (options["shard"], options["cluster"]) == (None, None)
    given = "--batch 5 --workers 3 --device cpu --encoder histology-stats --slide-mpp 0.4 --overwrite"
    given += " --shard 2/3 --cluster local:2"
    assert cli(*base, *given.split(), "--cohort", tmp_path / "cohort.csv").code == 0
    config, options = calls.pop()
    assert config == ExtractConfig(batch_size=5, workers=3, device="cpu")
    assert (options["slide_mpp"], options["cohort_mpp"], options["overwrite"]) == (0.4, {"a": 0.3}, True)
    assert (str(options["shard"]), options["cluster"]) == ("2/3", "local:2")
    assert cli(*base, "--batch-size", 9).code == 0
    assert calls.pop()[0] == ExtractConfig(batch_size=9)


def test_slides_without_a_pixel_size(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", "a", mpp=None)
    result = cli(f"extract {OPTIONS}", slides, "--out", tmp_path / "f")
    assert result.code == 1
    assert "slide 'a': no pixel size (mpp) in the header; give --slide-mpp" in result.err
    assert cli(f"extract {OPTIONS} --slide-mpp 0.5", slides, "--out", tmp_path / "f").code == 0
    (tmp_path / "cohort.csv").write_text("slide_id,mpp\na,0.5\n")
    assert cli(f"extract {OPTIONS}", slides, "--out", tmp_path / "g", "--cohort", tmp_path / "cohort.csv").code == 0
    first, second = content(tmp_path / "f" / "a.h5"), content(tmp_path / "g" / "a.h5")
    assert (first.pop("mpp_source"), second.pop("mpp_source")) == ("user", "cohort")
    assert first == second


def test_bad_slides_are_named_and_only_they_are_done_again(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", "a", "b", "z")
    (slides / "broken.svs").write_bytes(b"no slide")
    (slides / "torn.png").write_bytes(b"\x89PNG\r\n")
    command = ["extract", slides, *OPTIONS.split(), "--out", tmp_path / "f"]
    result = cli(*command)
    assert result.code == 1
    assert "3 done" in result.out
    assert "2 failed" in result.out
    lines = [line for line in result.err.splitlines() if line.startswith("failed:")]
    assert len(lines) == 2
    assert lines[0].startswith("failed: slide 'broken': ")
    assert lines[1].startswith("failed: slide 'torn': ")
    with (tmp_path / "f" / "failures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["slide_id"] for row in rows] == ["broken", "torn"]
    assert [row["error"] for row in rows] == [line.removeprefix("failed: ") for line in lines]
    before = times(tmp_path / "f")
    assert sorted(before) == ["a.h5", "b.h5", "z.h5"]

    again = cli(*command)
    assert again.code == 1
    assert "0 done, 3 already finished, 2 failed" in again.out
    assert times(tmp_path / "f") == before

    (slides / "torn.png").unlink()
    write_slides(slides, "torn")
    (slides / "broken.svs").unlink()
    mended = cli(*command)
    assert mended.code == 0
    assert "1 done, 3 already finished" in mended.out
    assert not (tmp_path / "f" / "failures.csv").exists()
    assert {k: v for k, v in times(tmp_path / "f").items() if k != "torn.h5"} == before


def test_overwrite(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", "a")
    command = ["extract", slides, *OPTIONS.split(), "--out", tmp_path / "f"]
    assert cli(*command).code == 0
    before, first = times(tmp_path / "f"), content(tmp_path / "f" / "a.h5")
    assert "1 done" in cli(*command, "--overwrite").out
    assert times(tmp_path / "f") != before
    assert content(tmp_path / "f" / "a.h5") == first


def test_a_slide_without_tissue_is_no_failure(cli: Any, write_slide: Any, write_slides: Any, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", "a")
    write_slide(slides / "blank.tiff", np.full((600, 700, 3), 244, np.uint8))
    result = cli(f"extract {OPTIONS}", slides, "--out", tmp_path / "f")
    assert result.code == 0
    assert "1 done" in result.out
    assert "1 without tissue" in result.out
    assert result.err.startswith("warning: slide 'blank': no tissue found")


def test_mistakes(fails: Any, write_slides: Any, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", "a")
    out = ["--out", tmp_path / "f"]
    config = tmp_path / "c.yaml"
    assert "does not exist" in fails("extract", tmp_path / "nowhere", *out)
    assert "encoder 'histologystats': unknown; did you mean 'histology-stats'?" in fails(
        "extract", slides, *out, "--encoder", "histologystats"
    )
    assert "overlap_px must be below patch_px" in fails("extract", slides, *out, "--overlap-px", 256)
    assert "patch.mpp" in fails("extract", slides, *out, "--mpp", -1)
    assert "needs at least 48" in fails("extract", slides, *out, "--patch-px", 32)
    assert "device 'tpu'" in fails("extract", slides, *out, "--device", "tpu")
    assert "no such file" in fails("extract", slides, *out, "--cohort", tmp_path / "none.csv")
    config.write_text("patch: {patchpx: 64}")
    assert "patch.patchpx: unknown key; did you mean 'patch_px'?" in fails("extract", slides, *out, "--config", config)
    config.write_text("patch: 64")
    assert "patch" in fails("extract", slides, *out, "--config", config)
    config.write_text("")
    assert "must be a mapping" in fails("extract", slides, *out, "--config", config)
    write_slides(tmp_path / "more", "a")
    assert "two slides bear this name" in fails("extract", slides, tmp_path / "more", *out)
    assert not (tmp_path / "f").exists() or not list((tmp_path / "f").iterdir())


def test_other_settings_in_one_folder(cli: Any, fails: Any, write_slides: Any, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", "a")
    assert cli(f"extract {OPTIONS}", slides, "--out", tmp_path / "f").code == 0
    line = fails(f"extract {OPTIONS} --min-tissue 0.1", slides, "--out", tmp_path / "f")
    assert "min_tissue 0.7, not 0.1" in line
    assert "--overwrite" in line


@pytest.mark.slow
def test_real_slides_good_and_bad(cli: Any, shared_dir: Path, tmp_path: Path) -> None:
    """The good ones finish, the bad ones are listed with a line each, and a second run redoes only the bad."""
    command = ["extract", shared_dir / "slides", "--out", tmp_path / "f", "--slide-mpp", "0.5"]
    result = cli(*command)
    assert result.code == 1
    bad = {"broken", "unopenable", "unreadable"}
    failed = [line for line in result.err.splitlines() if line.startswith("failed:")]
    assert {line.split("'")[1] for line in failed} == bad
    assert len(failed) == 3
    before = times(tmp_path / "f")
    assert {"cmu-1-small-region.h5", "tcga-cr-7395-01a-01-ts1.h5", "kidney-48-5.h5"} <= before.keys()
    again = cli(*command)
    assert again.code == 1
    assert times(tmp_path / "f") == before
    assert f"0 done, {len(before)} already finished, 3 failed" in again.out
