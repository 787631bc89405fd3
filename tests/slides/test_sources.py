"""Plain images beside slides, and files that are neither."""

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi2d.errors import SlideError
from wsi2d.slides.reader import open_slide
from wsi2d.slides.sources import OpenSlideSource, PlainImageSource

PICTURE = np.random.default_rng(1).integers(0, 256, (61, 83, 3), np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif"])
def test_plain_images_are_slides_of_one_level(tmp_path: Path, name: str) -> None:
    Image.fromarray(PICTURE).save(tmp_path / name)
    with open_slide(tmp_path / name, mpp=0.5) as reader:
        slide = reader.slide
        assert (slide.width, slide.height, slide.level_downsamples) == (83, 61, (1.0,))
        assert np.array_equal(reader.read_patch(5, 7, size_level0=40, patch_px=40), PICTURE[7:47, 5:45])


def test_a_jpeg_is_a_slide_of_one_level(tmp_path: Path) -> None:
    smooth = np.zeros((64, 96, 3), np.uint8)
    smooth[..., 0], smooth[..., 2] = np.arange(96) * 2, 200
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=98)
    with open_slide(tmp_path / "a.jpg", mpp=0.5) as reader:
        patch = reader.read_patch(8, 0, size_level0=64, patch_px=64)
    assert np.abs(patch.astype(int) - smooth[:, 8:72]).max() <= 6


@pytest.mark.parametrize(
    ("x", "y"), [(-10, -20), (60, 40), (-10, 40), (60, -20), (-200, 0), (83, 61), (500, 500), (-3, -3)]
)
def test_outside_a_plain_image_is_white(tmp_path: Path, x: int, y: int) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    source = PlainImageSource(tmp_path / "a.png")
    canvas = np.full((1200, 1200, 3), 255, np.uint8)
    canvas[600:661, 600:683] = PICTURE
    picture = np.asarray(source.read(x, y, 0, 100, 90))
    assert np.array_equal(picture, canvas[600 + y : 690 + y, 600 + x : 700 + x])


def test_transparent_is_white_and_half_transparent_half(tmp_path: Path) -> None:
    rgba = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8)])
    rgba[:20, :, 3], rgba[20:40, :, 3] = 0, 128
    Image.fromarray(rgba).save(tmp_path / "a.png")
    picture = np.asarray(PlainImageSource(tmp_path / "a.png").read(0, 0, 0, 83, 61)).astype(float)
    alpha = rgba[..., 3:] / 255
    assert np.abs(picture - (PICTURE * alpha + 255 * (1 - alpha))).max() <= 1
    assert (picture[:20] == 255).all()
    assert np.array_equal(picture[40:], PICTURE[40:])


def test_an_opaque_alpha_channel_changes_nothing(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8)])).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(PlainImageSource(tmp_path / "a.png").read(0, 0, 0, 83, 61)), PICTURE)


def test_transparency_of_palettes_and_of_grey(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1, 1]], np.uint8))
    palette.putpalette([200, 10, 10, 10, 200, 10])
    palette.save(tmp_path / "p.png", transparency=0)
    assert np.asarray(PlainImageSource(tmp_path / "p.png").read(0, 0, 0, 3, 1)).tolist() == [
        [[255, 255, 255], [10, 200, 10], [10, 200, 10]]
    ]
    Image.fromarray(np.array([[[7, 0], [7, 255]]], np.uint8), "LA").save(tmp_path / "la.png")
    assert np.asarray(PlainImageSource(tmp_path / "la.png").read(0, 0, 0, 2, 1)).tolist() == [[[255] * 3, [7] * 3]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(PICTURE).convert(mode)
    image.save(tmp_path / "a.tif")
    picture = PlainImageSource(tmp_path / "a.tif").read(0, 0, 0, 83, 61)
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_more_than_eight_bits_of_grey_are_refused(tmp_path: Path, dtype: type) -> None:
    tifffile.imwrite(tmp_path / "deep.tif", PICTURE[..., 0].astype(dtype) * 100)
    with pytest.raises(SlideError, match=r"slide 'deep': .*8 bits a channel are needed"):
        open_slide(tmp_path / "deep.tif", mpp=0.5)


@pytest.mark.parametrize(
    ("unit", "per_unit", "mpp"),
    [("INCH", 50_800, 0.5), ("CENTIMETER", 20_000, 0.5), ("INCH", 72, None), ("NONE", 20_000, None)],
)
def test_resolution_tags_of_a_plain_tiff(tmp_path: Path, unit: str, per_unit: float, mpp: float | None) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", PICTURE, photometric="rgb", resolution=(per_unit, per_unit), resolutionunit=unit
    )
    if mpp is None:
        with pytest.raises(SlideError, match="no pixel size"):
            open_slide(tmp_path / "a.tif")
    else:
        with open_slide(tmp_path / "a.tif") as reader:
            assert (reader.slide.mpp, reader.slide.mpp_source) == (pytest.approx(mpp), "tiff")


def test_dots_per_inch_of_a_screen_are_no_pixel_size(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        Image.fromarray(PICTURE).save(tmp_path / name, dpi=(72, 72))
        with pytest.raises(SlideError, match="no pixel size"):
            open_slide(tmp_path / name)


def test_outside_a_slide_is_white(tmp_path: Path, write_slide: Callable[..., Path]) -> None:
    path = write_slide(tmp_path / "a.tiff", np.full((256, 384, 3), (150, 60, 90), np.uint8), compression="deflate")
    source = OpenSlideSource(path)
    picture = np.asarray(source.read(-16, -32, 0, 500, 400))
    assert (picture[32:288, 16:400] == (150, 60, 90)).all()
    outside = np.ones(picture.shape[:2], bool)
    outside[32:288, 16:400] = False
    assert (picture[outside] == 255).all()
    assert source.level_downsamples == (1.0, 2.0, 4.0)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.98])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_a_truncated_image_is_refused_at_opening(tmp_path: Path, kind: str, share: float) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(buffer.getvalue()[: int(share * len(buffer.getvalue()))])
    with pytest.raises(SlideError, match="slide 'cut': neither a slide that OpenSlide knows nor an image") as error:
        open_slide(path, mpp=0.5)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"II*\x00"])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "note.svs").write_bytes(content)
    with pytest.raises(SlideError, match="slide 'note': neither a slide that OpenSlide knows nor an image"):
        open_slide(tmp_path / "note.svs", mpp=0.5)


def test_a_picture_too_large_for_memory_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(SlideError, match="convert it to a tiled, pyramidal TIFF"):
        open_slide(tmp_path / "a.png", mpp=0.5)


def test_bad_real_files(shared_dir: Path) -> None:
    for name in ("broken.svs", "unopenable.tiff"):
        with pytest.raises(SlideError, match=r"re-copy or re-export it$"):
            open_slide(shared_dir / "slides" / name, mpp=0.5)
    with open_slide(shared_dir / "slides" / "unreadable.svs") as reader:
        with pytest.raises(SlideError, match=r"slide 'unreadable': cannot be read at \(0, 0\) of level 0") as error:
            reader.read_patch(0, 0, size_level0=16, patch_px=16)
        assert "\n" not in str(error.value)


def test_a_cut_tiff_is_one_error_without_remarks(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Pillow warns of metadata that it cannot read before it gives up; the user gets the error alone."""
    whole = io.BytesIO()
    Image.fromarray(PICTURE).save(whole, "tiff")
    remarks = 0
    for length in range(8, len(whole.getvalue()), 16):
        cut = tmp_path / "cut.tif"
        cut.write_bytes(whole.getvalue()[:length])
        with pytest.raises(SlideError, match="slide 'cut'"), open_slide(cut, mpp=0.5):
            pass
        remarks += pillow_remarks(cut)
    assert remarks, "Pillow had nothing to say: these cuts test nothing"
    assert not recwarn.list


def pillow_remarks(path: Path) -> int:
    """How many warnings Pillow itself gives."""
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        with contextlib.suppress(Exception), Image.open(path) as image:
            image.load()
    return len(given)
