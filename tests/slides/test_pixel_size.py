"""Where a slide's pixel size comes from, and what is refused."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wsi2d.errors import SlideError
from wsi2d.slides.pixel_size import HeaderPixelSize, mean_mpp, mpp_from_tiff_tags, not_square, resolve_mpp
from wsi2d.slides.reader import open_slide

GLASS = np.full((256, 256, 3), 244, np.uint8)
ALL = HeaderPixelSize(mpp=0.5, tiff_mpp=0.51)


@pytest.mark.parametrize(
    ("user", "cohort", "header", "expected"),
    [
        (0.48, 0.49, ALL, (0.48, "user")),
        (None, 0.49, ALL, (0.49, "cohort")),
        (None, None, ALL, (0.5, "header")),
        (None, None, HeaderPixelSize(tiff_mpp=0.51), (0.51, "tiff")),
        (0.48, None, HeaderPixelSize(), (0.48, "user")),
        (None, 0.49, HeaderPixelSize(), (0.49, "cohort")),
        (None, None, HeaderPixelSize(mpp=0.5, tiff_mpp=352.8), (0.5, "header")),
    ],
)
def test_user_before_cohort_before_header_before_tags(
    user: float | None, cohort: float | None, header: HeaderPixelSize, expected: tuple[float, str]
) -> None:
    assert resolve_mpp("A1", user=user, cohort=cohort, header=header) == expected


@pytest.mark.parametrize("header", [HeaderPixelSize(), HeaderPixelSize(tiff_mpp=352.8)])
def test_no_pixel_size_names_the_remedy(header: HeaderPixelSize) -> None:
    with pytest.raises(SlideError) as error:
        resolve_mpp("A1", user=None, cohort=None, header=header)
    assert str(error.value) == (
        "slide 'A1': no pixel size (mpp) in the header; give --slide-mpp, or --cohort with an mpp column"
    )


def test_the_objective_is_a_hint_and_nothing_more() -> None:
    with pytest.raises(SlideError) as error:
        resolve_mpp("A1", user=None, cohort=None, header=HeaderPixelSize(objective_power=40.0))
    assert str(error.value) == (
        "slide 'A1': no pixel size (mpp) in the header (scanned at 40×, often 0.25 µm/px); "
        "give --slide-mpp, or --cohort with an mpp column"
    )


@pytest.mark.parametrize(("mpp", "sane"), [(0.049, False), (0.051, True), (9.9, True), (10.1, False), (84.7, False)])
def test_tags_count_only_where_a_microscope_could_have_made_them(mpp: float, sane: bool) -> None:
    header = HeaderPixelSize(tiff_mpp=mpp)
    if sane:
        assert resolve_mpp("A1", user=None, cohort=None, header=header) == (mpp, "tiff")
    else:
        with pytest.raises(SlideError, match="no pixel size"):
            resolve_mpp("A1", user=None, cohort=None, header=header)


@pytest.mark.parametrize("value", [0.0, -0.5, math.nan, math.inf])
@pytest.mark.parametrize(("who", "named"), [("user", "--slide-mpp"), ("cohort", "the cohort's mpp")])
def test_an_impossible_value_is_refused_and_not_passed_over(value: float, who: str, named: str) -> None:
    given = {"user": None, "cohort": None, who: value}
    with pytest.raises(SlideError, match=f"slide 'A1': {named} must be > 0 µm/px"):
        resolve_mpp("A1", **given, header=ALL)


@pytest.mark.parametrize(
    ("value", "header", "said"),
    [
        (0.551, HeaderPixelSize(mpp=0.5), "header"),
        (0.449, HeaderPixelSize(mpp=0.5), "header"),
        (0.549, HeaderPixelSize(mpp=0.5), None),
        (0.451, HeaderPixelSize(mpp=0.5), None),
        (0.25, HeaderPixelSize(tiff_mpp=0.5), "TIFF tags"),
        (0.25, HeaderPixelSize(tiff_mpp=352.8), None),
        (0.25, HeaderPixelSize(), None),
    ],
)
@pytest.mark.parametrize("who", ["user", "cohort"])
def test_more_than_ten_percent_off_the_file_is_warned_about(
    value: float, header: HeaderPixelSize, said: str | None, who: str, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"user": None, "cohort": None, who: value}
    with caplog.at_level(logging.WARNING, "wsi2d"):
        assert resolve_mpp("A1", **given, header=header)[0] == value
    if said is None:
        assert not caplog.records
    else:
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "slide 'A1'" in record.getMessage()
        assert f"the file's {said} says 0.5; {value:g} is used" in record.getMessage()


@pytest.mark.parametrize(
    ("x", "y", "unit", "expected"),
    [
        (50_800, 50_800, "inch", 0.5),
        (20_000, 20_000, "centimeter", 0.5),
        (72, 72, "inch", 352.7778),
        (20_000, 20_000, "none", None),
        (20_000, 20_000, "", None),
        (0, 20_000, "centimeter", None),
        (-1, -1, "centimeter", None),
        (math.nan, 20_000, "inch", None),
    ],
)
def test_tags_by_unit(x: float, y: float, unit: str, expected: float | None) -> None:
    sides = mpp_from_tiff_tags(x, y, unit)
    assert sides == (None if expected is None else pytest.approx((expected, expected), rel=1e-6))


def test_pixels_that_are_not_square_are_averaged_and_told(
    tmp_path: Path, write_slide: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    assert mean_mpp(0.5, 0.6) == pytest.approx(0.55)
    assert not_square(0.5, 0.505) is None
    assert not_square(0.0, 0.5) is None
    path = write_slide(tmp_path / "A1.tiff", GLASS, mpp=(0.5, 0.6), levels=1)
    with caplog.at_level(logging.WARNING, "wsi2d"), open_slide(path) as reader:
        assert reader.slide.mpp == pytest.approx(0.55)
    assert "slide 'A1': pixels are 0.5 × 0.6 µm, not square; their mean of 0.55 is used" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "wsi2d"), open_slide(path, mpp=0.55):
        assert not caplog.records


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.5), (0.5, -0.5), (math.nan, 0.5), (0.5, math.inf)])
def test_a_header_without_sense_is_no_header(x: float, y: float) -> None:
    assert mean_mpp(x, y) is None


@pytest.mark.parametrize(
    ("aperio", "tags", "expected"),
    [
        ("AppMag = 40|MPP = 0.2520", None, (0.252, "header")),
        ("AppMag = 40|MPP = 0.2520", 0.3, (0.252, "header")),
        ("AppMag = 40", 0.3, (0.3, "tiff")),
        ("AppMag = 40|MPP = 0", 0.3, (0.3, "tiff")),
        (None, 0.5, (0.5, "tiff")),
    ],
)
def test_what_real_files_say(
    tmp_path: Path, write_slide: Callable[..., Path], aperio: str | None, tags: float | None, expected: tuple
) -> None:
    path = write_slide(tmp_path / "A1.svs", GLASS, mpp=tags, aperio=aperio, levels=1)
    with open_slide(path) as reader:
        assert (pytest.approx(reader.slide.mpp, rel=1e-6), reader.slide.mpp_source) == expected
    with open_slide(path, cohort_mpp=0.29) as reader:
        assert (reader.slide.mpp, reader.slide.mpp_source) == (0.29, "cohort")
    with open_slide(path, mpp=0.28, cohort_mpp=0.29) as reader:
        assert (reader.slide.mpp, reader.slide.mpp_source) == (0.28, "user")


@pytest.mark.parametrize("tags", [None, 352.7778])
def test_a_generic_tiff_of_72_dpi_has_no_pixel_size(
    tmp_path: Path, write_slide: Callable[..., Path], tags: float | None
) -> None:
    path = write_slide(tmp_path / "A1.tiff", GLASS, mpp=tags, levels=1)
    with pytest.raises(SlideError) as error:
        open_slide(path)
    assert str(error.value) == (
        "slide 'A1': no pixel size (mpp) in the header; give --slide-mpp, or --cohort with an mpp column"
    )


def test_real_slides(shared_dir: Path) -> None:
    with open_slide(shared_dir / "slides" / "cmu-1-small-region.svs") as reader:
        assert (reader.slide.mpp, reader.slide.mpp_source) == (0.499, "header")
        assert (reader.slide.width, reader.slide.height) == (2220, 2967)
    for name in ("tcga-cr-7395-01a-01-ts1.svs", "boxes.tiff", "kidney-48-5.tif"):
        path = shared_dir / "slides" / name
        with pytest.raises(SlideError, match=f"slide '{path.stem}': no pixel size"):
            open_slide(path)
        with open_slide(path, mpp=0.5) as reader:
            assert reader.slide.mpp_source == "user"
