"""The border to slide files: OpenSlide for slides, Pillow for plain images, one reader for both."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from PIL import Image

from wsi2d.errors import SlideError
from wsi2d.slides.pixel_size import HeaderPixelSize, PixelSizeSource, resolve_mpp
from wsi2d.slides.reader_pool import ReaderPool
from wsi2d.slides.regions import Region, UnreadableRegionError

_BLOCK_PX = 2048  # side of what an overview reads at a time, so that memory does not grow with the slide
# Each tile of a TIFF has an entry of at least 8 bytes, so even empty ones of 2048 px hold at most half a million px a
# byte. Other formats keep their pixels in further files.
_MOST_PX_A_BYTE = 2**20
_ONE_FILE = {".svs", ".tif", ".tiff", ".ndpi", ".scn", ".svslide", ".bif"}
_LONGEST_SIDE = 2**21  # px; the largest slides have some 300,000
_LONGEST_ID = 240  # bytes; a name may have 255, and that of a half-written file begins and ends with more
_MOST_OVERVIEW_PX = 2**28  # 800 MB; at 8 µm/px some 130 × 130 mm
_LEVEL_SLACK = 1.01  # a level up to 1 % coarser than asked for still serves: 2.0005 is "2"


@dataclass(frozen=True)
class Slide:
    """A slide's identity and geometry.

    Attributes:
        slide_id: name under which its features, labels and predictions go.
        path: the file (for a DICOM series, one of its files).
        width, height: size of level 0, px.
        mpp: size of a level-0 pixel, µm.
        mpp_source: ``user``, ``cohort``, ``header`` or ``tiff``.
        level_downsamples: level-0 px per level px, one a level, ascending; the first is 1.
    """

    slide_id: str
    path: Path
    width: int
    height: int
    mpp: float
    mpp_source: PixelSizeSource
    level_downsamples: tuple[float, ...]

    def __post_init__(self) -> None:
        check_slide_id(self.slide_id)
        if self.width <= 0 or self.height <= 0:
            raise SlideError(f"slide '{self.slide_id}': has no pixels ({self.width}×{self.height}); re-export it")
        if max(self.width, self.height) > _LONGEST_SIDE:
            raise SlideError(
                f"slide '{self.slide_id}': says it has {self.width}×{self.height} px; the file is damaged, re-copy or "
                "re-export it"
            )
        if not (math.isfinite(self.mpp) and self.mpp > 0):
            raise SlideError(f"slide '{self.slide_id}': mpp must be > 0, got {self.mpp}")

    def best_level(self, downsample: float) -> int:
        """Index of the coarsest level that is still at least as fine as ``downsample`` (level-0 px per px)."""
        fine_enough = [i for i, d in enumerate(self.level_downsamples) if d <= downsample * _LEVEL_SLACK]
        return fine_enough[-1] if fine_enough else 0


def check_slide_id(slide_id: str) -> None:
    """Whether a slide's files can bear its id.

    Raises:
        SlideError: it is no plain name, and might lead into another folder, no UTF-8, or too long.
    """
    if not slide_id or any(c in slide_id for c in "/\\\0") or slide_id in {".", ".."}:
        raise SlideError(f"slide id '{slide_id}': must be a plain name, since its feature file bears it")
    if any("\ud800" <= c <= "\udfff" for c in slide_id):
        raise SlideError(f"slide '{slide_id}': its file's name is no UTF-8; rename the file")
    size = len(slide_id.encode())
    if size > _LONGEST_ID:
        raise SlideError(
            f"slide '{slide_id}': its name has {size} bytes, and its feature file can bear {_LONGEST_ID}; "
            "rename the file"
        )


class RegionSource(Protocol):
    """What a reader needs of an open slide file, in this process or in another."""

    width: int
    height: int
    level_downsamples: tuple[float, ...]
    header: HeaderPixelSize

    def read_resized(self, x: int, y: int, region: Region) -> np.ndarray:
        """A region from level-0 (x, y): uint8 ``[height, width, 3]``; white outside the slide."""
        ...

    def read_batches(self, corners: np.ndarray, region: Region, batch_size: int) -> Iterator[np.ndarray]:
        """Regions of level-0 (x, y) ``[N, 2]`` in order: uint8 ``[n, height, width, 3]``, with n at most
        ``batch_size``; an array may be overwritten once the next is asked for.

        Raises:
            UnreadableRegionError: one cannot be read.
            SlideError: the file cannot be opened any more.
        """
        ...

    def close(self) -> None:
        """Release the file."""
        ...


class PixelSource(ABC):
    """A file format that is read in this process; gives :class:`RegionSource` what it needs."""

    width: int
    height: int
    level_downsamples: tuple[float, ...]
    header: HeaderPixelSize

    @abstractmethod
    def read(self, x: int, y: int, level: int, width: int, height: int) -> Image.Image:
        """Picture of ``width`` × ``height`` px of ``level`` from level-0 (x, y); white outside the slide. RGB, or RGBA
        that is opaque everywhere."""

    @abstractmethod
    def close(self) -> None:
        """Release the file."""

    def read_resized(self, x: int, y: int, region: Region) -> np.ndarray:
        """See :class:`RegionSource`."""
        width, height = region.size
        whole = (_ceil(width), _ceil(height))
        picture = self.read(x, y, region.level, *whole)
        if picture.size != region.out or whole != region.size:
            box = (0, 0, min(width, whole[0]), min(height, whole[1]))
            picture = picture.convert("RGB").resize(region.out, Image.Resampling(region.how), box=box)
        # Pillow leaves out what is opaque while it packs, in a fifth of the time that a conversion takes.
        return np.frombuffer(picture.tobytes("raw", "RGB"), np.uint8).reshape(region.shape)

    def read_batches(self, corners: np.ndarray, region: Region, batch_size: int) -> Iterator[np.ndarray]:
        """See :class:`RegionSource`."""
        for start in range(0, len(corners), batch_size):
            chosen = corners[start : start + batch_size].tolist()
            yield np.stack([self._read_one(x, y, region) for x, y in chosen])

    def _read_one(self, x: int, y: int, region: Region) -> np.ndarray:
        try:
            return self.read_resized(x, y, region)
        except Exception as error:  # whatever a decoder raises
            raise UnreadableRegionError(x, y, _one_line(error)) from error


class SlideReader:
    """An open slide. Safe to read from several threads; use it as a context manager."""

    def __init__(self, slide: Slide, source: RegionSource) -> None:
        self.slide = slide
        self._source = source

    def __enter__(self) -> SlideReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._source.close()

    def read_patch(self, x: int, y: int, *, size_level0: float, patch_px: int) -> np.ndarray:
        """One square patch, read from the best level and resampled at most once.

        Args:
            x, y: top-left corner, level-0 px; the patch may reach over the slide's edge (white there).
            size_level0: side of the patch, level-0 px; may be fractional.
            patch_px: side of the result, px.

        Returns:
            uint8 ``[patch_px, patch_px, 3]``.

        Raises:
            SlideError: the file cannot be read there.
        """
        return self._read(x, y, self._patch_region(size_level0, patch_px))

    def read_patches(
        self, coords: np.ndarray, *, size_level0: float, patch_px: int, batch_size: int
    ) -> Generator[np.ndarray, None, None]:
        """Many patches, each as :meth:`read_patch` reads it, in batches; a pool's processes read ahead.

        Args:
            coords: int ``[N, 2]``, level-0 (x, y) of top-left corners, px.
            size_level0, patch_px: as in :meth:`read_patch`.
            batch_size: patches a batch; the last may have fewer.

        Yields:
            uint8 ``[n, patch_px, patch_px, 3]`` in the order of ``coords``; a batch may be overwritten once the next is
            asked for.

        Raises:
            SlideError: the file cannot be read; the first patch that cannot is named, whichever process was quicker.
        """
        region = self._patch_region(size_level0, patch_px)
        try:
            yield from self._source.read_batches(coords, region, batch_size)
        except UnreadableRegionError as error:
            raise self._unreadable(error.x, error.y, region, str(error)) from error

    def _patch_region(self, size_level0: float, patch_px: int) -> Region:
        level = self.slide.best_level(size_level0 / patch_px)
        size = size_level0 / self.slide.level_downsamples[level]
        return Region(level, (size, size), (patch_px, patch_px), Image.Resampling.BICUBIC)

    def read_overview(self, downsample: float) -> np.ndarray:
        """The whole slide, each pixel the mean of ``downsample`` × ``downsample`` level-0 pixels.

        Args:
            downsample: level-0 px per result px, at least 1; may be fractional.

        Returns:
            uint8 ``[ceil(height / downsample), ceil(width / downsample), 3]``, white beyond the slide's edge.

        Raises:
            SlideError: the file cannot be read.
        """
        if downsample < 1:
            raise SlideError(f"slide '{self.slide.slide_id}': downsample must be at least 1, got {downsample}")
        level = self.slide.best_level(downsample)
        scale = downsample / self.slide.level_downsamples[level]
        rows, cols = math.ceil(self.slide.height / downsample), math.ceil(self.slide.width / downsample)
        if rows * cols > _MOST_OVERVIEW_PX:
            raise SlideError(
                f"slide '{self.slide.slide_id}': an overview of {cols}×{rows} px is too large; is its pixel size of "
                f"{self.slide.mpp:g} µm right?"
            )
        overview = np.empty((rows, cols, 3), np.uint8)
        step = max(1, int(_BLOCK_PX / scale))
        for top in range(0, rows, step):
            for left in range(0, cols, step):
                h, w = min(step, rows - top), min(step, cols - left)
                x, y = round(left * downsample), round(top * downsample)
                block = self._read(x, y, Region(level, (w * scale, h * scale), (w, h), Image.Resampling.BOX))
                overview[top : top + h, left : left + w] = block
        return overview

    def _read(self, x: int, y: int, region: Region) -> np.ndarray:
        try:
            return self._source.read_resized(x, y, region)
        except SlideError:
            raise
        except Exception as error:  # whatever a decoder raises, the slide is what is bad
            raise self._unreadable(x, y, region, _one_line(error)) from error

    def _unreadable(self, x: int, y: int, region: Region, reason: str) -> SlideError:
        return SlideError(
            f"slide '{self.slide.slide_id}': cannot be read at ({x}, {y}) of level {region.level} ({reason}); "
            "the file is damaged, re-copy or re-export it"
        )


def open_slide(
    path: Path | str,
    *,
    slide_id: str | None = None,
    mpp: float | None = None,
    cohort_mpp: float | None = None,
    pool: ReaderPool | None = None,
) -> SlideReader:
    """Open a slide file or a plain image.

    Args:
        path: whatever OpenSlide opens, or an image that Pillow opens.
        slide_id: its name; the file name without suffix if not given.
        mpp: level-0 pixel size in µm given by the user; goes before everything else.
        cohort_mpp: likewise from the cohort table; goes before the header.
        pool: processes that read it; without them this process does, and dies with a decoder that crashes.

    Raises:
        SlideError: the file is missing, not a slide, damaged, or without a pixel size.
    """
    path = Path(path)
    slide_id = slide_id or path.stem
    if not path.exists():
        raise SlideError(f"slide '{slide_id}': {path} does not exist")
    source: RegionSource = open_source(path, slide_id) if pool is None else pool.open(path, slide_id)
    try:
        value, origin = resolve_mpp(slide_id, user=mpp, cohort=cohort_mpp, header=source.header)
        slide = Slide(slide_id, path, source.width, source.height, value, origin, source.level_downsamples)
    except BaseException:
        source.close()
        raise
    return SlideReader(slide, source)


def open_source(path: Path, slide_id: str) -> PixelSource:
    """Open a file in this process.

    Raises:
        SlideError: it is not a slide, or damaged.
    """
    import openslide

    from wsi2d.slides.sources import OpenSlideSource, PlainImageSource

    try:
        if openslide.OpenSlide.detect_format(path) is None:
            return PlainImageSource(path)
        source = OpenSlideSource(path)
    except openslide.OpenSlideError as error:
        raise SlideError(
            f"slide '{slide_id}': OpenSlide cannot open it ({_one_line(error)}); re-copy or re-export it"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SlideError(
            f"slide '{slide_id}': a plain image too large to hold in memory; convert it to a tiled, pyramidal TIFF"
        ) from error
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise SlideError(
            f"slide '{slide_id}': neither a slide that OpenSlide knows nor an image ({_one_line(error)}); "
            "re-copy or re-export it"
        ) from error
    if path.suffix.lower() in _ONE_FILE and source.width * source.height > path.stat().st_size * _MOST_PX_A_BYTE:
        source.close()
        raise SlideError(
            f"slide '{slide_id}': a file of {path.stat().st_size:,} bytes says it has {source.width}×{source.height} "
            "px; it is damaged, re-copy or re-export it"
        )
    return source


def _ceil(size: float) -> int:
    """Round up, but take 256.0000001 for 256."""
    nearest = round(size)
    return max(1, nearest if abs(size - nearest) < 1e-6 else math.ceil(size))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
