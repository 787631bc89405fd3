"""`wsi2d tissue`: draws what `wsi2d extract` cuts with the same options; and `--set` of both."""

import os
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image

OPTIONS = "--patch-px 64 --mpp 0.6 --overlap-px 16 --min-tissue 0.7"
BLUE_PEN, GLASS = (60, 80, 190), (244, 244, 244)


def patches(out: str) -> dict[str, int]:
    """Patches of each slide, as the lines on stdout say."""
    found = (re.match(r"(\S+): .* (\d+) patches of ", line) for line in out.splitlines())
    return {match[1]: int(match[2]) for match in found if match}


def extracted(folder: Path) -> dict[str, int]:
    """Patches of each slide, as its feature file holds them."""
    counts = {}
    for path in folder.glob("*.h5"):
        with h5py.File(path) as file:
            counts[path.stem] = len(file["coords"])
    return counts


@pytest.fixture
def penned(write_slide: Any, tmp_path: Path) -> Path:
    """A slide of 2 µm/px with tissue on its left and a blue pen's stroke on glass on its right."""
    generator = np.random.default_rng(0)
    rgb = np.full((400, 640, 3), GLASS, np.uint8)
    rgb[60:340, 40:300] = np.array([225, 150, 190]) + generator.integers(-14, 15, (280, 260, 3))
    rgb[40:360, 480:520] = BLUE_PEN
    return Path(write_slide(tmp_path / "penned.tiff", rgb, mpp=2.0, levels=1, compression="deflate"))


# --- where the pictures go


def test_one_slide_to_a_file(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", "a")
    out = tmp_path / "deep" / "a.png"
    result = cli(f"tissue {OPTIONS}", slides / "a.tiff", "--out", out)
    assert (result.code, result.err) == (0, "")
    (line,) = result.out.splitlines()
    assert re.fullmatch(rf"a: 0\.0\d+ mm² of tissue \(.*\), \d+ patches of 64 px at 0\.6 µm/px .* → {out}", line)
    assert Image.open(out).format == "PNG"
    assert [p.name for p in out.parent.iterdir()] == ["a.png"]


def test_a_folder_with_one_slide_to_a_file(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", "a")
    assert cli(f"tissue {OPTIONS}", slides, "--out", tmp_path / "a.svg").code == 0
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()[:1000]


def test_one_slide_to_a_folder(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", "a")
    assert cli(f"tissue {OPTIONS}", slides / "a.tiff", "--out", tmp_path / "pictures").code == 0
    assert [p.name for p in (tmp_path / "pictures").iterdir()] == ["a.png"]


def test_a_bad_slide_is_named_and_the_others_are_drawn(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", "a", "z")
    (slides / "bad [red].svs").write_text("no slide")
    result = cli(f"tissue {OPTIONS}", slides, "--out", tmp_path / "pictures")
    assert result.code == 1
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["a.png", "z.png"]
    assert list(patches(result.out)) == ["a", "z"]
    (line,) = result.err.splitlines()
    assert line.startswith("failed: slide 'bad [red]': ")
    assert "re-copy or re-export it" in line


def test_a_bad_slide_alone_is_an_error(fails: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.svs").write_text("no slide")
    line = fails("tissue", tmp_path / "bad.svs", "--out", tmp_path / "deep" / "a.png")
    assert line.startswith("slide 'bad': neither a slide that OpenSlide knows nor an image")
    assert not (tmp_path / "deep").exists()


def test_several_slides_to_a_file(fails: Any, write_slides: Any, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", "a", "b")
    out = tmp_path / "deep" / "all.png"
    line = fails("tissue", slides, "--out", out)
    assert line == f"out {out}: 2 slides need a folder; give one without a suffix, or one slide"
    assert not out.parent.exists()


def test_places_that_cannot_be_written(fails: Any, write_slides: Any, tmp_path: Path) -> None:
    """Each is told before any slide is opened: this one is none."""
    (tmp_path / "a.svs").write_text("no slide")
    (tmp_path / "taken").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    for name, words in (
        ("taken", "is a file; give another --out"),
        ("taken/deeper", "is a file, not a folder; give another --out"),
        ("taken/a.png", "is a file, not a folder; give another --out"),
        ("folder.png", "is a folder; give another --out"),
        ("a.jpeg", "must end in .png, .pdf or .svg"),
        ("a.svs", "must end in .png, .pdf or .svg"),
    ):
        line = fails("tissue", tmp_path / "a.svs", "--out", tmp_path / name)
        assert line.startswith(f"out {tmp_path / name}: ")
        assert line.endswith(words)
    assert (tmp_path / "a.svs").read_text() == "no slide"


def test_out_must_be_given(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    result = cli("tissue", write_slides(tmp_path, "a"))
    assert result.code == 2
    assert "--out" in result.err


def test_a_slide_without_tissue_is_drawn(cli: Any, write_slide: Any, tmp_path: Path) -> None:
    path = write_slide(tmp_path / "blank.tiff", np.full((300, 400, 3), 244, np.uint8), levels=1)
    result = cli("tissue", path, "--out", tmp_path / "blank.png")
    assert (result.code, result.err) == (0, "")
    assert patches(result.out) == {"blank": 0}
    assert (tmp_path / "blank.png").exists()


@pytest.mark.parametrize("verb", ["tissue", "extract --patch-px 64"])
def test_a_name_that_is_no_text(cli: Any, write_slides: Any, tmp_path: Path, verb: str) -> None:
    """Latin-1 where UTF-8 is expected, as old archives hold it: the slide is named, the others done."""
    slides = write_slides(tmp_path / "slides", "a", "z")
    try:
        (slides / "z.tiff").rename(slides / os.fsdecode(b"gr\xfcn.tiff"))
        (slides / os.fsdecode(b"b\xe4d.svs")).write_text("no slide")
    except OSError:
        pytest.skip("this file system has no such names")
    result = cli(verb, slides, "--out", tmp_path / "out")
    assert result.code == 1, result
    lines = result.err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("failed: slide '") for line in lines)
    assert {p.stem for p in (tmp_path / "out").iterdir()} - {"failures"} == {"a"}


# --- the same as extraction


@pytest.mark.parametrize("how", ["options", "config", "set"])
def test_as_many_patches_as_are_extracted(cli: Any, write_slides: Any, tmp_path: Path, how: str) -> None:
    slides = write_slides(tmp_path / "slides", "a")
    values = {"patch_px": 64, "mpp": 0.6, "overlap_px": 16, "min_tissue": 0.7}
    tissue = {"close_um": 0.0, "mpp": 4.0}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"patch": values, "tissue": tissue}))
    (tmp_path / "tissue.yaml").write_text(yaml.safe_dump({"tissue": tissue, "patch": {"mpp": 9.0}}))
    sections = {"patch": values, "tissue": tissue}
    given: dict[str, list[object]] = {
        "options": [*OPTIONS.split(), "--config", tmp_path / "tissue.yaml"],
        "config": ["--config", tmp_path / "c.yaml"],
        "set": [x for s, keys in sections.items() for k, v in keys.items() for x in ("--set", f"{s}.{k}={v}")],
    }
    pictured = cli("tissue", slides, *given[how], "--out", tmp_path / "pictures")
    assert pictured.code == 0, pictured.err
    result = cli("extract --workers 1 --device cpu", slides, *given[how], "--out", tmp_path / "features")
    assert result.code == 0, result.err
    counts = extracted(tmp_path / "features")
    assert patches(pictured.out) == counts
    assert counts["a"] > 5
    with h5py.File(tmp_path / "features" / "a.h5") as file:
        assert (file.attrs["patch_px"], file.attrs["mpp"]) == (64, 0.6)


def test_slides_without_a_pixel_size(cli: Any, fails: Any, write_slides: Any, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", "a", mpp=None)
    line = fails(f"tissue {OPTIONS}", slides, "--out", tmp_path / "a.png")
    assert line.startswith("slide 'a': no pixel size (mpp) in the header; give --slide-mpp")
    for mpp in (0.5, 1.0):
        result = cli(f"tissue {OPTIONS} --slide-mpp {mpp}", slides, "--out", tmp_path / "a.png")
        assert result.code == 0
        # Painted are 270 × 280 px, and the mask's px are of 8 µm.
        area = float(result.out.removeprefix("a: ").split(" ")[0])
        sides = [n * mpp for n in (270, 280)]
        assert np.prod([n - 16 for n in sides]) < area * 1e6 < np.prod([n + 48 for n in sides])
    for value in ("0", "-1", "nan"):
        assert "--slide-mpp" in fails(f"tissue --slide-mpp={value}", slides, "--out", tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


def test_options_are_those_of_extraction() -> None:
    """Whatever chooses patches for one is an option of the other, of the same name and help."""
    import typer

    from wsi2d.cli.main import app

    commands = typer.main.get_command(app).commands
    tissue, extract = ({p.name: p for p in commands[name].params} for name in ("tissue", "extract"))
    assert set(tissue) == {
        "slides", "out", "config", "mpp", "patch_px", "overlap_px", "min_tissue", "slide_mpp", "override",
    }  # fmt: skip
    for name in set(tissue) - {"out"}:
        assert tissue[name].opts == extract[name].opts
        assert getattr(tissue[name], "help", "") == getattr(extract[name], "help", "")


# --- --set


def test_ink_that_is_to_be_kept(cli: Any, penned: Path, tmp_path: Path) -> None:
    """The tissue alone, and with the stroke: 260 × 280 px and 40 × 320 px of 2 µm."""
    areas = []
    for ink in ("drop", "keep"):
        result = cli("tissue --patch-px 64 --mpp 2", penned, "--out", tmp_path / "a.png", "--set", f"tissue.ink={ink}")
        assert result.code == 0, result.err
        areas.append(float(result.out.removeprefix("penned: ").split(" ")[0]))
    assert areas[0] == pytest.approx(260 * 280 * 4e-6, rel=0.12)
    assert areas[1] - areas[0] == pytest.approx(40 * 320 * 4e-6, rel=0.4)


def test_a_colour_of_glass_that_is_given(cli: Any, write_slide: Any, tmp_path: Path) -> None:
    """On yellow glass nothing is tissue, until the glass is said to be blue."""
    rgb = np.full((300, 400, 3), (236, 230, 210), np.uint8)
    path = write_slide(tmp_path / "blank.tiff", rgb, mpp=2.0, levels=1, compression="deflate")
    command = ["tissue", path, "--out", tmp_path / "a.png", "--patch-px", 64, "--mpp", 2]
    for glass, count in (("auto", 0), ("[236, 230, 210]", 0), ("200,210,240", 5 * 7)):
        result = cli(*command, "--set", f"tissue.glass={glass}")
        assert result.code == 0, result.err
        assert (patches(result.out)["blank"] > 20) == (count > 20), glass
        assert patches(result.out)["blank"] <= count


def test_settings_go_over_options_and_the_last_wins(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", "a")
    (tmp_path / "c.yaml").write_text("patch: {patch_px: 256}")
    result = cli(
        "tissue --patch-px 128 --set patch.patch_px=96 --set patch.patch_px=64 --config", tmp_path / "c.yaml",
        slides, "--out", tmp_path / "a.png",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "patches of 64 px" in result.out


@pytest.mark.parametrize("verb", ["tissue", "extract"])
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("tissue.ink=maybe", "tissue.ink: Input should be 'drop' or 'keep', got 'maybe'"),
        ("tissue.glass=white", "tissue.glass: must be auto, or red, green and blue from 1 to 255 as 236,230,210"),
        ("tissue.glass=236,230", "tissue.glass: must be auto"),
        ("tissue.glass=0,230,210", "tissue.glass: must be auto"),
        ("tissue.inc=keep", "tissue.inc: unknown key; did you mean 'ink'?"),
        ("tisue.ink=keep", "tisue: unknown key; did you mean 'tissue'?"),
        ("tissue.close_um=-1", "tissue.close_um: Input should be greater than or equal to 0, got -1"),
        ("tissue.grow_saturation=0", "tissue.grow_saturation: Input should be greater than 0, got 0"),
        ("patch.overlap_px=256", "overlap_px must be below patch_px (256)"),
        ("patch=64", "patch: Input should be a valid dictionary"),
        ("tissue.ink", "override 'tissue.ink': must be key=value"),
        ("=keep", "override '=keep': must be key=value"),
        ("tissue.mpp=[8", "override 'tissue.mpp=[8': the value is not valid YAML"),
        ("encoder.name=x", "encoder"),
    ],
)
def test_wrong_settings(fails: Any, write_slides: Any, tmp_path: Path, verb: str, setting: str, words: str) -> None:
    slides = write_slides(tmp_path / "slides", "a")
    assert words in fails(verb, slides, "--out", tmp_path / "pictures", "--set", setting)
    assert not (tmp_path / "pictures").exists()


def test_extract_with_settings(cli: Any, penned: Path, tmp_path: Path) -> None:
    """They choose the patches, are kept with the features, and another run with others is refused."""
    command = ["extract --patch-px 64 --mpp 2 --workers 1 --device cpu", penned]
    for ink in ("drop", "keep"):
        result = cli(
            *command, "--out", tmp_path / ink, "--set", f"tissue.ink={ink}", "--set", "tissue.glass=244,244,244"
        )
        assert result.code == 0, result.err
        with h5py.File(tmp_path / ink / "penned.h5") as file:
            kept = yaml.safe_load(file.attrs["tissue"])
            right = file["coords"][:, 0].max()
        assert (kept["ink"], kept["glass"]) == (ink, "244,244,244")
        assert (right > 400) == (ink == "keep"), "a patch on the stroke"
    result = cli(*command, "--out", tmp_path / "keep", "--set", "tissue.glass=244,244,244")
    assert result.code == 2
    assert "was made with tissue.ink keep, not drop" in result.err


def test_settings_of_other_parts_of_the_configuration(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", "a")
    command = ["extract", slides, *OPTIONS.split(), "--out", tmp_path / "f"]
    assert cli(*command, "--set", "batch_size=3", "--set", "workers=1", "--set", "device=cpu").code == 0
    result = cli(*command, "--set", "encoder=histologystats")
    assert result.code == 2
    assert "did you mean 'histology-stats'?" in result.err
