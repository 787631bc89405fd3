"""Slides read in processes of their own: a file that crashes or hangs its decoder costs that slide, not the run.

The processes are plain children of this one that answer on a pipe, not those of :mod:`multiprocessing`, so that a
script or a notebook that reads slides needs no ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from wsi2d.errors import SlideError
from wsi2d.slides.pixel_size import HeaderPixelSize

READ_LIMIT_S = 120.0
_START_LIMIT_S = 120.0  # a reader imports its packages, perhaps from slow storage, while every core is busy
_PIPE_BYTES = 2**20  # a patch at once, where the system lets a pipe be as large
_MEMORY_BYTES = 8 * 2**30  # what a reader may take; the largest plain image that Pillow opens takes some 2 GB
_CLOSED = "the readers were closed"
# The child finds this very package wherever its parent found it: in a checkout, an installation or a notebook's path.
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from wsi2d.slides.reader_pool import serve; serve()"


class ReaderProcessError(Exception):
    """A reader process crashed or gave no answer; the text says which."""


class ReaderPool:
    """Processes that open and read slides. Safe to use from several threads; use it as a context manager.

    Args:
        workers: number of processes; each starts when it is first needed.
        limit_s: seconds that opening a slide or reading a region of it may take.
    """

    def __init__(self, workers: int = 1, *, limit_s: float = READ_LIMIT_S) -> None:
        self._limit_s = limit_s
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(workers):
            self._idle.put(None)
        self._started: list[_Worker] = []
        self._opened = itertools.count()
        self._closed = False

    def __enter__(self) -> ReaderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self, path: Path, slide_id: str) -> PooledSource:
        """A slide whose regions are read by the pool.

        Raises:
            SlideError: the file is not a slide, is damaged, or its decoder crashed or took too long.
        """
        key = next(self._opened)
        try:
            width, height, level_downsamples, header = self.call("open", key, str(path), slide_id)
        except ReaderProcessError as error:
            raise SlideError(
                f"slide '{slide_id}': cannot be opened ({error}); the file is damaged, re-copy or re-export it"
            ) from error
        return PooledSource(self, path, slide_id, key, width, height, level_downsamples, header)

    def call(self, name: str, *arguments: object) -> Any:
        """One of the functions that a reader process knows (``open``, ``read``, ``property``), on whichever is idle.

        Raises:
            SlideError: the function raised it.
            ReaderProcessError: the process crashed, took too long, or the function raised something else.
        """
        worker = self._take()
        try:
            if worker is None:
                worker = _Worker()
                self._started.append(worker)
                if self._closed:  # meanwhile, perhaps before the new process was in the list
                    raise ReaderProcessError(_CLOSED)
            return worker.ask((name, arguments), self._limit_s)
        except (SlideError, _Refused):
            raise
        except BaseException:  # also an interrupt: an answer that nobody fetched would be taken for the next one's
            if worker is not None:
                worker.kill()
                with suppress(ValueError):  # interrupted before it was in the list
                    self._started.remove(worker)
            worker = None
            raise
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the processes, also those that are reading: what waits for them gets an error."""
        self._closed = True
        for worker in self._started.copy():  # whoever waits for one takes it out of the list
            worker.kill()

    def _take(self) -> _Worker | None:
        while not self._closed:
            try:
                return self._idle.get(timeout=0.5)
            except queue.Empty:
                continue
        raise ReaderProcessError(_CLOSED)


class PooledSource:
    """A slide file opened in a pool's processes; see :class:`wsi2d.slides.reader.RegionSource`."""

    def __init__(
        self,
        pool: ReaderPool,
        path: Path,
        slide_id: str,
        key: int,
        width: int,
        height: int,
        level_downsamples: tuple[float, ...],
        header: HeaderPixelSize,
    ) -> None:
        self.width, self.height, self.level_downsamples, self.header = width, height, level_downsamples, header
        self._pool, self._file = pool, (key, str(path), slide_id)

    def read_resized(
        self, x: int, y: int, level: int, size: tuple[float, float], out: tuple[int, int], how: int
    ) -> np.ndarray:
        """As :meth:`wsi2d.slides.reader.PixelSource.read_resized`."""
        pixels: np.ndarray = self._pool.call("read", *self._file, (x, y, level, size, out, how))
        return pixels

    def close(self) -> None:
        """Nothing to do: each process closes the file when it opens the next one, or ends."""


class _Refused(ReaderProcessError):
    """The function raised; the process is well."""


class _Worker:
    """One reader process and the pipe to it."""

    def __init__(self) -> None:
        self._late = self._killed = False
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            pipesize=_PIPE_BYTES,
            start_new_session=True,  # an interrupt from the keyboard is for the parent, which ends its readers itself
        )
        try:
            self.ask(("ready", ()), _START_LIMIT_S)
        except BaseException:
            self.kill()
            raise

    def ask(self, request: tuple[str, tuple[object, ...]], limit_s: float) -> Any:
        """Send a request and wait for its answer."""
        requests, answers = self._pipes()
        try:
            pickle.dump(request, requests)
            requests.flush()
            self._await(answers, limit_s)
            kind, value = pickle.load(answers)
            if kind == "pixels":
                return _receive(answers, value)
        except (EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            raise ReaderProcessError(self._how_it_ended(limit_s)) from error
        if kind == "slide error":
            raise SlideError(value)
        if kind == "error":
            raise _Refused(value)
        return value

    def kill(self) -> None:
        """End the process, whatever it is doing; again is no harm."""
        self._killed = True
        self._process.kill()
        self._process.wait()
        for file in (*self._pipes(), self._complaints):
            with suppress(OSError, ValueError):  # what was not sent any more, or a pipe that is being read
                file.close()

    def _pipes(self) -> tuple[IO[bytes], BufferedReader]:
        if self._process.stdin is None or not isinstance(self._process.stdout, BufferedReader):
            raise RuntimeError("the reader process was started without pipes")
        return self._process.stdin, self._process.stdout

    def _await(self, answers: BufferedReader, limit_s: float) -> None:
        """Wait until an answer begins; end the process where none does in time."""
        if os.name == "posix":
            waiting = select.poll()
            waiting.register(answers, select.POLLIN)
            if not waiting.poll(limit_s * 1000):
                self._overdue()
            return
        watchdog = threading.Timer(limit_s, self._overdue)  # elsewhere a pipe cannot be waited for
        watchdog.daemon = True
        watchdog.start()
        try:
            answers.peek(1)
        finally:
            watchdog.cancel()

    def _overdue(self) -> None:
        self._late = True
        self._process.kill()

    def _how_it_ended(self, limit_s: float) -> str:
        code = self._process.wait()
        if self._killed:
            return _CLOSED
        if self._late:
            return f"no answer within {limit_s:g} s"
        if code < 0:
            return f"the decoder crashed with {signal.Signals(-code).name}"
        try:
            self._complaints.seek(0)
            said = self._complaints.read().decode("utf-8", "replace").split("\n")
        except ValueError:  # closed by another thread's `kill`
            return _CLOSED
        return next((line.strip() for line in reversed(said) if line.strip()), f"the reader ended with code {code}")


def _receive(answers: BufferedReader, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels that follow an answer as they lie in memory."""
    pixels = np.empty(shape, np.uint8)
    view = pixels.data.cast("B")
    while view.nbytes:
        count = answers.readinto(view)
        if not count:
            raise EOFError
        view = view[count:]
    return pixels


def serve() -> None:
    """Answer requests on standard input until it closes: what a reader process does."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between the answers
    import_module("wsi2d.slides.sources")
    _limit_memory()
    slides = _OpenSlides()
    functions: dict[str, Callable[..., object]] = {
        "ready": lambda: True,
        "open": slides.describe,
        "read": slides.read,
        "property": _property,
    }
    while True:
        try:
            name, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            result = functions[name](*arguments)
        except SlideError as error:
            _answer(answers, "slide error", str(error))
        except Exception as error:  # noqa: BLE001 - decoders raise many kinds; the parent says which slide it was
            _answer(answers, "error", " ".join(str(error).split()) or type(error).__name__)
        else:
            if isinstance(result, np.ndarray):
                _answer(answers, "pixels", result.shape, np.ascontiguousarray(result).data)
            else:
                _answer(answers, "value", result)


def _limit_memory() -> None:
    """Let what a damaged file asks for fail, where the system can: a tile of terabytes, say."""
    try:
        resource = import_module("resource")
    except ImportError:  # not a Unix
        return
    statm = Path("/proc/self/statm")
    used = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = used + _MEMORY_BYTES
    if most in (resource.RLIM_INFINITY, -1) or wanted < most:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, most))


def _answer(answers: IO[bytes], kind: str, value: object, more: memoryview | bytes = b"") -> None:
    pickle.dump((kind, value), answers)
    answers.write(more)
    answers.flush()


class _OpenSlides:
    """The slide that a reader process holds open: the last it was asked for. Its key tells it from another opening of
    the same file, which may hold something else by then."""

    def __init__(self) -> None:
        self._key = -1
        self._source: Any = None

    def describe(self, key: int, path: str, slide_id: str) -> tuple[int, int, tuple[float, ...], HeaderPixelSize]:
        source = self._open(key, path, slide_id)
        return source.width, source.height, source.level_downsamples, source.header

    def read(self, key: int, path: str, slide_id: str, region: tuple[Any, ...]) -> np.ndarray:
        pixels: np.ndarray = self._open(key, path, slide_id).read_resized(*region)
        return pixels

    def _open(self, key: int, path: str, slide_id: str) -> Any:
        from wsi2d.slides.reader import open_source

        if self._key != key:
            if self._source is not None:
                self._source.close()
            self._key, self._source = -1, None
            self._source = open_source(Path(path), slide_id)
            self._key = key
        return self._source


def _property(path: str, name: str) -> str | None:
    """A property of a slide that OpenSlide opens; None where it has none of that name, or is no slide."""
    import openslide

    try:
        with openslide.OpenSlide(path) as slide:
            value: str | None = slide.properties.get(name)
            return value
    except openslide.OpenSlideError:
        return None
