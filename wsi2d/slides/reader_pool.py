"""Files read in processes of their own: one that crashes or hangs its decoder costs that slide, not the run.

The processes are plain children of this one that answer on a pipe, not those of :mod:`multiprocessing`, so that a
script or a notebook that reads slides needs no ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

import numpy as np

from wsi2d.errors import SlideError, Wsi2dError
from wsi2d.slides.patch_stream import Batches, PatchStream
from wsi2d.slides.pixel_size import HeaderPixelSize
from wsi2d.slides.reader_process import FileKey
from wsi2d.slides.reader_worker import CLOSED, ReaderProcessError, RefusedError, Worker
from wsi2d.slides.regions import Region
from wsi2d.slides.shared_pixels import SharedPixels

READ_LIMIT_S = 120.0


class ReaderPool:
    """Processes that open and read slides. Safe to use from several threads; use it as a context manager.

    Args:
        workers: number of processes; each starts when it is first needed.
        limit_s: seconds that opening a slide or reading a region of it may take.
    """

    def __init__(self, workers: int = 1, *, limit_s: float = READ_LIMIT_S) -> None:
        self._limit_s = limit_s
        # Simple queues, as in whatever an interrupt may come upon: others can be left locked by it.
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        self._not_started: SimpleQueue[int] = SimpleQueue()
        for number in range(workers):
            self._not_started.put(number)
        self._workers = workers
        self._started: list[Worker] = []
        self._opened = itertools.count()
        self._shared = SharedPixels(workers)
        self._streaming: set[int] = set()
        self._closed = False

    def __enter__(self) -> ReaderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that have been started."""
        return tuple(w.pid for w in self._started.copy())

    def open(self, path: Path, slide_id: str) -> PooledSource:
        """A slide whose regions are read by the pool.

        Raises:
            SlideError: the file is not a slide, is damaged, or its decoder crashed or took too long.
        """
        file = FileKey(next(self._opened), str(path), slide_id)
        try:
            width, height, level_downsamples, header = self.call("open", file)
        except ReaderProcessError as error:
            raise SlideError(
                f"slide '{slide_id}': cannot be opened ({error}); the file is damaged, re-copy or re-export it"
            ) from error
        return PooledSource(self, file, width, height, level_downsamples, header)

    def call(self, name: str, *arguments: object) -> Any:
        """One of the functions that a reader process knows (``open``, ``read``, ``property``), or any function of a
        module (``package.module:function``), on whichever process is idle.

        Raises:
            Wsi2dError: the function raised it; for slides a SlideError.
            ReaderProcessError: the process crashed, took too long, or the function raised something else.
        """
        worker = self._take()
        try:
            return worker.ask(name, *arguments)
        except (Wsi2dError, RefusedError):
            raise
        except BaseException:  # also an interrupt: an answer that nobody fetched would be taken for the next one's
            worker.kill()
            raise
        finally:
            self._give_back(worker)

    def read_batches(self, file: FileKey, region: Region, corners: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
        """Patches of one slide, read ahead by all processes that are idle; see :class:`PatchStream`."""
        batches = Batches(file, region, corners, batch_size)
        if not len(batches):
            return
        workers = [self._take()]
        self._streaming.add(threading.get_ident())
        try:
            with suppress(Empty):
                while len(workers) < min(self._workers, len(corners)):
                    workers.append(self._idle_or_new())
            yield from PatchStream(batches, workers, self._shared)
        finally:
            self._streaming.discard(threading.get_ident())
            for worker in workers:
                self._give_back(worker)

    def close(self) -> None:
        """End the processes, also those that are reading: what waits for them gets an error."""
        self._closed = True
        for worker in self._started.copy():  # whoever waits for one takes it out of the list
            worker.kill()
        self._shared.close()

    def _take(self) -> Worker:
        """A process that nobody else has until it is given back."""
        while not self._closed:
            try:
                return self._idle_or_new()
            except Empty:
                if threading.get_ident() in self._streaming:
                    raise ReaderProcessError("all readers are at the patches of another slide") from None
            with suppress(Empty):
                return self._idle.get(timeout=0.5)
        raise ReaderProcessError(CLOSED)

    def _idle_or_new(self) -> Worker:
        """One that is idle now, else a new one, which need not be ready.

        Raises:
            Empty: all are busy.
        """
        with suppress(Empty):
            return self._idle.get_nowait()
        number = self._not_started.get_nowait()
        try:
            worker = Worker(number, self._limit_s, self._shared.descriptor)
            self._started.append(worker)
        except BaseException:
            self._not_started.put(number)
            raise
        if self._closed:  # meanwhile, perhaps before the new process was in the list
            self._give_back(worker)
            raise ReaderProcessError(CLOSED)
        return worker

    def _give_back(self, worker: Worker) -> None:
        if worker.idle and not self._closed:
            self._idle.put(worker)
            return
        worker.kill()
        with suppress(ValueError):  # interrupted before it was in the list
            self._started.remove(worker)
        self._not_started.put(worker.number)


class PooledSource:
    """A slide file opened in a pool's processes; see :class:`wsi2d.slides.reader.RegionSource`."""

    def __init__(
        self,
        pool: ReaderPool,
        file: FileKey,
        width: int,
        height: int,
        level_downsamples: tuple[float, ...],
        header: HeaderPixelSize,
    ) -> None:
        self.width, self.height, self.level_downsamples, self.header = width, height, level_downsamples, header
        self._pool, self._file = pool, file

    def read_resized(self, x: int, y: int, region: Region) -> np.ndarray:
        """As :meth:`wsi2d.slides.reader.PixelSource.read_resized`."""
        pixels: np.ndarray = self._pool.call("read", self._file, x, y, region)
        return pixels

    def read_batches(self, corners: np.ndarray, region: Region, batch_size: int) -> Iterator[np.ndarray]:
        """As :meth:`wsi2d.slides.reader.PixelSource.read_batches`."""
        return self._pool.read_batches(self._file, region, corners, batch_size)

    def close(self) -> None:
        """Nothing to do: each process closes the file when it opens the next one, or ends."""
