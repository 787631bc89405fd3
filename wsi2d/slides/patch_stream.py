"""A slide's patches in batches, read ahead by several processes into memory that they share with their parent.

The caller's thread hands out requests and collects answers whenever it asks for a batch; meanwhile the processes work
off what lies in their pipes. There is no thread, lock or future, so that an interrupt may come at any moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from wsi2d.errors import SlideError
from wsi2d.slides.reader_process import FileKey
from wsi2d.slides.reader_worker import Answer, ReaderProcessError, RefusedError, Worker, hear
from wsi2d.slides.regions import Region, UnreadableRegionError
from wsi2d.slides.shared_pixels import SharedPixels

BATCHES_IN_MEMORY = 3  # one that the caller has, two that are being read
_REQUEST_PATCHES = 8  # enough for a pipe's cost to vanish
_REQUEST_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Batches:
    """Patches of one slide, and how many make a batch.

    Attributes:
        file: the slide.
        region: their size and level.
        corners: int ``[N, 2]``, level-0 (x, y) of top-left corners.
        batch_size: patches a batch; the last may have fewer.
    """

    file: FileKey
    region: Region
    corners: np.ndarray
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.corners) // self.batch_size)

    def size(self, batch: int) -> int:
        """Patches in a batch."""
        return min(self.batch_size, len(self.corners) - batch * self.batch_size)


@dataclass(frozen=True)
class _Request:
    """Neighbouring patches of one batch: the first of them all, in the slide and in its batch, and how many."""

    batch: int
    start: int
    place: int
    count: int


class PatchStream:
    """Reads one slide's patches with processes that nobody else uses meanwhile.

    Args:
        batches: what to read.
        workers: processes; they need not be ready.
        shared: memory that they have.
    """

    def __init__(self, batches: Batches, workers: Sequence[Worker], shared: SharedPixels) -> None:
        self._batches, self._workers, self._shared = batches, list(workers), shared
        size = min(batches.batch_size, len(batches.corners))
        self._slots = min(BATCHES_IN_MEMORY, len(batches))
        shape = (self._slots, size, *batches.region.shape)
        pixels = shared.array(shape)
        self._is_shared = pixels is not None
        self._pixels = np.empty(shape, np.uint8) if pixels is None else pixels
        self._patch_bytes = int(np.prod(batches.region.shape))
        most = max(1, _REQUEST_BYTES // self._patch_bytes) if self._is_shared else 1
        self._request_patches = min(most, _REQUEST_PATCHES, -(-size // (2 * len(workers))))
        # A process may have its share of all that is to be read, so that none is without while the caller is busy.
        self._most_sent = -(-self._slots * -(-size // self._request_patches) // len(workers))
        self._to_send: deque[_Request] = deque()
        self._sent: dict[int, deque[_Request]] = {w.number: deque() for w in workers}
        self._left = {b: batches.size(b) for b in range(len(batches))}
        self._failed: tuple[int, UnreadableRegionError | SlideError] | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Batches uint8 ``[n, height, width, 3]`` in order; each is overwritten once the next is asked for.

        Raises:
            UnreadableRegionError: a patch could not be read, or the process that was to read it ended.
            SlideError: the file cannot be opened any more.
        """
        count, next_batch = len(self._batches), 0
        for batch in range(count):
            while next_batch < min(batch + self._slots, count):
                self._to_send.extend(self._requests(next_batch))
                next_batch += 1
            self._collect(timeout_s=0.0)
            while self._left[batch]:
                self._collect(timeout_s=None)
            yield self._pixels[batch % self._slots, : self._batches.size(batch)]

    def _requests(self, batch: int) -> Iterator[_Request]:
        size = self._batches.size(batch)
        for place in range(0, size, self._request_patches):
            start = batch * self._batches.batch_size + place
            yield _Request(batch, start, place, min(self._request_patches, size - place))

    def _collect(self, timeout_s: float | None) -> None:
        """Hand out what can be, wait for answers, take them, and hand out more."""
        self._hand_out()
        busy = sorted((w for w in self._workers if w.waiting), key=self._first_sent)
        if busy:
            hear(busy, timeout_s)
        for worker in busy:
            self._take_answers(worker)
        if self._failed is not None and all(self._first_sent(w) > self._failed[0] for w in self._workers):
            raise self._failed[1]  # all before it were read, so that it is the first whichever process was quicker
        self._hand_out()

    def _hand_out(self) -> None:
        ready = [w for w in self._workers if w.ready]
        while self._to_send and ready and self._failed is None:
            worker = min(ready, key=lambda w: len(self._sent[w.number]))
            if len(self._sent[worker.number]) >= self._most_sent:
                return
            request = self._to_send.popleft()
            self._sent[worker.number].append(request)
            with suppress(ReaderProcessError):  # it has ended; that is heard in its turn
                self._send(worker, request)

    def _send(self, worker: Worker, request: _Request) -> None:
        file, region = self._batches.file, self._batches.region
        corners = self._corners(request)
        if self._is_shared:
            place = (request.batch % self._slots * self._pixels.shape[1] + request.place) * self._patch_bytes
            worker.send("patches", file, corners, region, self._shared.size, self._shared.offset(place))
        else:
            worker.send("read", file, *corners[0], region)

    def _corners(self, request: _Request) -> tuple[tuple[int, int], ...]:
        corners = self._batches.corners[request.start : request.start + request.count]
        return tuple((int(x), int(y)) for x, y in corners)

    def _take_answers(self, worker: Worker) -> None:
        try:
            while (answer := worker.answer()) is not None:
                self._finish(self._sent[worker.number].popleft(), answer)
        except ReaderProcessError as error:
            self._workers.remove(worker)
            self._ended(worker, str(error))

    def _finish(self, request: _Request, answer: Answer) -> None:
        try:
            value = answer.value()
        except UnreadableRegionError as error:
            self._fail(request, error)
        except SlideError as error:
            self._fail(request, error)
        except RefusedError as error:
            self._fail(request, UnreadableRegionError(*self._corners(request)[0], str(error)))
        else:
            if not self._is_shared:
                self._pixels[request.batch % self._slots, request.place] = value
            self._left[request.batch] -= request.count

    def _ended(self, worker: Worker, why: str) -> None:
        """A process is no more: what it was at has failed; what else it was to do comes after that."""
        sent = self._sent[worker.number]
        if sent:
            at = self._shared.counter(worker.number) if self._is_shared else 0
            request = sent[0]
            self._fail(request, UnreadableRegionError(*self._corners(request)[min(at, request.count - 1)], why))
            sent.clear()
        elif not self._workers and self._to_send:  # none could be started
            request = self._to_send[0]
            self._fail(request, UnreadableRegionError(*self._corners(request)[0], why))

    def _fail(self, request: _Request, error: UnreadableRegionError | SlideError) -> None:
        if self._failed is None or request.start < self._failed[0]:
            self._failed = (request.start, error)

    def _first_sent(self, worker: Worker) -> int:
        """The first patch that a process was asked for and has not answered; beyond all where there is none."""
        sent = self._sent[worker.number]
        return sent[0].start if sent else len(self._batches.corners)
