"""Slides made to be measured on, and the benchmark of extraction on a small one."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import openslide
import pytest
from PIL import Image

FOLDER = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the tests run without the benchmarks")


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``make_slide.py``."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "make_slide", raising=False)
    import make_slide  # type: ignore[import-not-found]

    return make_slide


def test_openslide_opens_it_with_its_levels(builder: ModuleType, tmp_path: Path) -> None:
    path = builder.make_slide(tmp_path / "a.tiff", side=2560, mpp=0.25)
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert slide.dimensions == (2560, 2560)
        assert slide.level_downsamples == pytest.approx((1, 2, 4, 8, 16, 32), rel=0.02)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        assert slide.properties["openslide.level[0].tile-width"] == "256"
        fine = np.asarray(slide.read_region((1024, 1024), 0, (512, 512)).convert("RGB").reduce(8)).astype(float)
        coarse = np.asarray(slide.read_region((1024, 1024), 3, (64, 64)).convert("RGB")).astype(float)
        apart = np.abs(fine - coarse).mean()
        assert apart < 0.3 * np.abs(fine - np.roll(coarse, 20, 1)).mean(), "its levels show the same"
        corner = np.asarray(slide.read_region((0, 0), 0, (200, 200)).convert("RGB"))
    assert np.abs(corner.astype(int) - builder.GLASS).max() < 3
    assert coarse.std() > 20


def test_its_pixels_are_those_it_was_given(builder: ModuleType, tmp_path: Path) -> None:
    """Turned or mirrored, each cell as it was."""
    rgb = np.zeros((512, 512, 3), np.uint8)
    rgb[:] = (180, 40, 120)
    rgb[:100, :50] = (60, 30, 110)
    Image.fromarray(rgb).save(tmp_path / "pixels.png")
    path = builder.make_slide(tmp_path / "a.tiff", side=1024, pixels=tmp_path / "pixels.png", glass=0.0)
    turned = [np.rot90(rgb, k)[:, ::flip].astype(int) for k in range(4) for flip in (1, -1)]
    with openslide.OpenSlide(path) as slide:
        for x, y in ((0, 0), (512, 0), (0, 512), (512, 512)):
            cell = np.asarray(slide.read_region((x, y), 0, (512, 512)).convert("RGB")).astype(int)
            assert min(np.abs(cell - one).mean() for one in turned) < 2


def test_one_seed_one_slide(builder: ModuleType, tmp_path: Path) -> None:
    one, same, other = (builder.make_slide(tmp_path / f"{i}.tiff", side=1500, seed=s) for i, s in enumerate((0, 0, 1)))
    assert one.read_bytes() == same.read_bytes() != other.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--side", "100"], "--side must be at least 512"),
        (["--glass", "1"], "--glass from 0 to below 1"),
        (["--pixels", "none.svs"], "none.svs does not exist"),
        (["--pixels", "small.png"], "at least 512×512 are needed"),
    ],
)
def test_what_cannot_be_made_is_told(tmp_path: Path, arguments: list[str], said: str) -> None:
    Image.fromarray(np.zeros((60, 60, 3), np.uint8)).save(tmp_path / "small.png")
    command = [sys.executable, FOLDER / "make_slide.py", "a.tiff", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "a.tiff").exists()


@pytest.mark.slow
def test_the_benchmark_measures_and_prints(builder: ModuleType, tmp_path: Path) -> None:
    slide = builder.make_slide(tmp_path / "a.tiff", side=4096)
    sizes = ["--rounds", "2", "--patches", "40", "--sides", "1024", "2048"]
    command = [sys.executable, FOLDER / "extraction.py", slide, *sizes, "--json", tmp_path / "r.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    for name in ("ours / bare, 1", "ours / bare, 2", "ours, 2 / 1"):
        assert found["rates"][name]["lower"] > 0
        assert f"| {name} |" in done.stdout
    assert [row["side_px"] for row in found["memory"]] == [1024, 2048]
    assert all(0 < row["above_torch_mb"] < 1500 for row in found["memory"])
