"""What a reader process does: it opens and reads slides, and answers on a pipe, until the pipe closes.

A request is a pickled ``(name, arguments)``. An answer is 8 bytes of length and a pickled ``(kind, value)``: a
``value``; an ``own error`` by name, or another ``error``, as text; what is ``unreadable``, with its place. Where it
takes long, ``alive`` comes before it now and then.
"""

from __future__ import annotations

import os
import pickle
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi2d.errors import SlideError, Wsi2dError
from wsi2d.slides.regions import Region, UnreadableRegionError
from wsi2d.slides.shared_pixels import MappedPixels

if TYPE_CHECKING:
    import numpy as np

    from wsi2d.slides.pixel_size import HeaderPixelSize
    from wsi2d.slides.reader import PixelSource

LENGTH = struct.Struct("<q")
_ALIVE_EVERY_S = 0.25
_MEMORY_BYTES = 8 * 2**30  # what a reader may take; the largest plain image that Pillow opens takes some 2 GB


@dataclass(frozen=True)
class FileKey:
    """A slide file as its reader names it: an opening of the same file later has another number, since it may hold
    something else by then."""

    number: int
    path: str
    slide_id: str


def serve() -> None:
    """Answer requests on standard input until it closes."""
    requests, answers = sys.stdin.buffer, _Answers(os.dup(1))
    os.dup2(2, 1)  # what a library prints must not come between the answers
    import_module("wsi2d.slides.sources")
    slides = _OpenSlides(answers, _Limit())
    functions: dict[str, Callable[..., object]] = {
        "ready": slides.share,
        "open": slides.describe,
        "read": slides.read,
        "patches": slides.read_patches,
        "property": _property,
    }
    while True:
        try:
            name, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answers.send("value", (functions.get(name) or _imported(name))(*arguments))
        except Wsi2dError as error:
            answers.send("own error", (type(error).__name__, str(error)))
        except UnreadableRegionError as error:
            answers.send("unreadable", (error.x, error.y, str(error)))
        except Exception as error:  # noqa: BLE001 - decoders raise many kinds; the parent says which slide it was
            answers.send("error", _one_line(error))


class _Answers:
    """The pipe to the parent."""

    def __init__(self, descriptor: int) -> None:
        self._pipe = os.fdopen(descriptor, "wb")
        self._last_s = time.monotonic()

    def send(self, kind: str, value: object = None) -> None:
        data = pickle.dumps((kind, value), pickle.HIGHEST_PROTOCOL)
        self._pipe.write(LENGTH.pack(len(data)))
        self._pipe.write(data)
        self._pipe.flush()
        self._last_s = time.monotonic()

    def alive(self) -> None:
        """Say that something was read, though not all yet; not more often than is of use."""
        if time.monotonic() - self._last_s > _ALIVE_EVERY_S:
            self.send("alive")


class _Limit:
    """Lets what a damaged file asks for fail, where the system can: a tile of terabytes, say."""

    def __init__(self) -> None:
        statm = Path("/proc/self/statm")
        self._bytes = _MEMORY_BYTES
        try:
            self._resource: Any = import_module("resource")
        except ImportError:  # not a Unix
            return
        if statm.exists():
            self._bytes += int(statm.read_text().split()[0]) * self._resource.getpagesize()
        self.allow(0)

    def allow(self, shared: int) -> None:
        """That many bytes of memory that is shared, beside what this process may take for itself."""
        if not hasattr(self, "_resource"):
            return
        wanted = self._bytes + shared
        _, most = self._resource.getrlimit(self._resource.RLIMIT_AS)
        if most in (self._resource.RLIM_INFINITY, -1) or wanted < most:
            self._resource.setrlimit(self._resource.RLIMIT_AS, (wanted, most))


class _OpenSlides:
    """The slide that a reader process holds open: the last it was asked for."""

    def __init__(self, answers: _Answers, limit: _Limit) -> None:
        self._answers, self._limit = answers, limit
        self._file: FileKey | None = None
        self._source: PixelSource | None = None
        self._shared: MappedPixels | None = None

    def share(self, descriptor: int | None, process: int) -> None:
        if descriptor is not None:
            self._shared = MappedPixels(descriptor, process)

    def describe(self, file: FileKey) -> tuple[int, int, tuple[float, ...], HeaderPixelSize]:
        source = self._open(file)
        return source.width, source.height, source.level_downsamples, source.header

    def read(self, file: FileKey, x: int, y: int, region: Region) -> np.ndarray:
        return self._open(file).read_resized(x, y, region)

    def read_patches(
        self, file: FileKey, corners: tuple[tuple[int, int], ...], region: Region, size: int, offset: int
    ) -> None:
        """Write patches one after the other into shared memory of ``size`` bytes, from ``offset`` on."""
        if self._shared is None:
            raise ValueError("no memory is shared")
        self._limit.allow(size)
        self._shared.map(size)
        for number, (x, y) in enumerate(corners):
            self._shared.count(number)
            try:
                pixels = self.read(file, x, y, region)
            except SlideError:
                raise
            except Exception as error:  # as in `serve`
                raise UnreadableRegionError(x, y, _one_line(error)) from error
            offset = self._shared.write(offset, pixels)
            self._answers.alive()

    def _open(self, file: FileKey) -> PixelSource:
        if self._file != file or self._source is None:
            from wsi2d.slides.reader import open_source

            if self._source is not None:
                self._source.close()
            self._file = self._source = None
            self._source = open_source(Path(file.path), file.slide_id)
            self._file = file
        return self._source


def limit_computing(seconds: int) -> None:
    """End this process where it computes for longer than that from now on, if the system can: what waits for a slow
    disk is not meant, what turns in circles in a damaged file is."""
    try:
        resource = import_module("resource")
    except ImportError:  # not a Unix
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    wanted = int(used.ru_utime + used.ru_stime) + 1 + seconds
    if most in (resource.RLIM_INFINITY, -1) or wanted < most:
        resource.setrlimit(resource.RLIMIT_CPU, (wanted, most))


def _imported(name: str) -> Callable[..., object]:
    module, _, function = name.partition(":")
    found: Callable[..., object] = getattr(import_module(module), function)
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _property(path: str, name: str) -> str | None:
    """A property of a slide that OpenSlide opens; None where it has none of that name, or is no slide."""
    import openslide

    try:
        with openslide.OpenSlide(path) as slide:
            value: str | None = slide.properties.get(name)
            return value
    except openslide.OpenSlideError:
        return None
