"""What an extraction would take is what it takes: patches and bytes exactly, time by a sample; nothing is written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi2d.config import ExtractConfig
from wsi2d.errors import ConfigError
from wsi2d.features.estimate import estimate
from wsi2d.features.extract import extract
from wsi2d.features.store import FeatureWriter, Provenance, file_bytes
from wsi2d.slides.discovery import find_slides
from wsi2d.slides.patching import PatchGrid, cell_coords

CONFIG = ExtractConfig.model_validate({"batch_size": 8, "patch": {"patch_px": 48}, "device": "cpu"})


@pytest.fixture(scope="module")
def slides(write_slide: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides with tissue, one of glass, one that is none."""
    folder = tmp_path_factory.mktemp("slides")
    for i, side in enumerate((200, 300, 400)):
        rgb = np.full((side, 400, 3), 244, np.uint8)
        rgb[10:-10, 10:-10] = np.random.default_rng(i).integers((190, 110, 150), (235, 170, 210), (side - 20, 380, 3))
        write_slide(folder / f"s{i}.tiff", rgb, levels=2)
    write_slide(folder / "glass.tiff", np.full((200, 200, 3), 244, np.uint8))
    (folder / "torn.svs").write_text("no slide")
    return folder


def test_it_is_what_an_extraction_gives(slides: Path, tmp_path: Path) -> None:
    found, out = find_slides([slides]), tmp_path / "f"
    before = estimate(found, out, CONFIG)
    assert not out.exists()
    report = extract(found, out, CONFIG)
    assert {s.slide_id: s.patches for s in before.slides} == {s.slide_id: s.patches for s in report.slides}
    sizes = {s.slide_id: s.bytes for s in before.slides if s.state in {"to do", "empty"}}
    assert sizes == {p.stem: p.stat().st_size for p in out.glob("*.h5")}
    assert before.bytes == sum(sizes.values())
    assert [s.error for s in before.failures] == [s.error for s in report.failures]
    assert {s.slide_id: s.state for s in before.slides} == {
        "glass": "empty", "s0": "to do", "s1": "to do", "s2": "to do", "torn": "failed",
    }  # fmt: skip


def test_the_time_follows_from_the_sample(slides: Path, tmp_path: Path) -> None:
    found = estimate(find_slides([slides]), tmp_path / "f", CONFIG)
    sample = found.sample
    assert sample is not None
    assert sample.slides == 3, "one owed by the slide of glass, one by the torn one"
    assert 0 < sample.patches <= found.patches
    assert 0 < sample.lowest <= sample.median <= sample.highest
    tissue_s = found.fastest_s - found.patches / sample.highest
    assert tissue_s > 0
    assert found.slowest_s == pytest.approx(tissue_s + found.patches / sample.lowest)
    assert found.fastest_s <= found.seconds * (1 + 1e-9)
    assert found.seconds <= found.slowest_s * (1 + 1e-9)
    assert found.seconds == pytest.approx(sum(s.seconds for s in found.slides))


def test_what_is_finished_takes_nothing(slides: Path, tmp_path: Path) -> None:
    good = find_slides([slides / f"s{i}.tiff" for i in range(3)])
    extract(good[:2], tmp_path, CONFIG)
    found = estimate(good, tmp_path, CONFIG)
    assert [s.state for s in found.slides] == ["finished", "finished", "to do"]
    assert found.patches == found.slides[2].patches > 0
    extract(good, tmp_path, CONFIG)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    found = estimate(good, tmp_path, CONFIG)
    assert (found.patches, found.bytes, found.seconds, found.sample) == (0, 0, 0, None)
    again = estimate(good, tmp_path, CONFIG, overwrite=True)
    assert {s.state for s in again.slides} == {"to do"}
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == files
    with pytest.raises(ConfigError, match=r"was made with patch\.mpp 0\.5, not 0\.7"):
        estimate(good, tmp_path, CONFIG.model_copy(update={"patch": CONFIG.patch.model_copy(update={"mpp": 0.7})}))


@pytest.mark.parametrize(
    ("count", "dim", "dtype"),
    [(0, 8, "float32"), (1, 108, "float32"), (5000, 1024, "float16"), (9000, 1, "float32"), (700, 2000, "float32")],
)
def test_bytes_are_those_of_the_file(tmp_path: Path, count: int, dim: int, dtype: str) -> None:
    index = np.argwhere(np.ones((100, 100), bool))[:count].astype(np.int32)
    grid = PatchGrid((100, 100), 256, 0.5, 256.0, 256.0, cell_coords(index, 256.0), index)
    provenance = Provenance("ä" * 40, "some", "0" * 16, 0.5, "header", 25_600, 25_600, '{"min_tissue": 0.25}')
    with FeatureWriter(tmp_path / "a.h5", grid, provenance, dim=dim, dtype=dtype) as writer:
        for start in range(0, count, 64):
            writer.append(np.ones((min(64, count - start), dim), dtype))
    assert file_bytes(grid, provenance, dim=dim, dtype=dtype) == (tmp_path / "a.h5").stat().st_size


def test_from_the_command_line(slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from wsi2d.cli.main import main

    def run(*more: object) -> tuple[int, str, str]:
        command = ["wsi2d", "extract", slides, "--out", tmp_path / "f", "--patch-px", 48, "--batch", 8, *more]
        monkeypatch.setattr("sys.argv", list(map(str, command)))
        with pytest.raises(SystemExit) as done:
            main()
        printed = capsys.readouterr()
        return int(done.value.code or 0), printed.out, printed.err

    code, out, err = run("--dry-run", "--cluster", "tcp://nobody:1")
    assert "nothing is asked of --cluster tcp://nobody:1" in err
    code, out, err = run("--dry-run")
    assert "--cluster" not in err
    assert code == 1
    assert "failed: slide 'torn'" in err
    assert "patches of 3 slides" in out
    assert "in all" in out
    code, out, err = run("--dry-run", "--json")
    told = json.loads(out)
    assert code == 1
    assert [s["slide_id"] for s in told["slides"]] == ["glass", "s0", "s1", "s2", "torn"]
    assert told["patches"] == sum(s["patches"] for s in told["slides"])
    assert told["sample"]["patches"] > 0
    assert not (tmp_path / "f").exists()
    code, out, err = run("--json")
    assert (code, out) == (2, "")
    assert "--json: belongs to --dry-run" in err
