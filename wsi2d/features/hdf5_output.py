"""What keeps HDF5 from crashing the process that writes: a full disk and an interrupt do not reach it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

_READ_WRITE_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


class Uninterrupted:
    """A thread for work that an interrupt must not reach: it is raised in the main thread only, between any two lines,
    and one that came while HDF5 writes through Python would crash the process.

    Not an executor: an interrupt while the main thread asks a future can leave it locked for ever. Simple queues are
    whole, whenever it comes.

    Attributes:
        end: call it when there are no more steps; forgotten, it is called when this object goes.
    """

    def __init__(self) -> None:
        self._steps: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._told: SimpleQueue[object] = SimpleQueue()
        threading.Thread(target=_take, args=(self._steps, self._told), daemon=True, name="wsi2d-writer").start()
        self.end = weakref.finalize(self, self._steps.put, None)

    def begin(self, step: Callable[..., None], *arguments: Any) -> None:
        """Do a step after those before, beside the caller."""
        self._steps.put(partial(step, *arguments))

    def finish(self) -> None:
        """Until every step is done; raises the first error among them."""
        first, end = None, object()  # an end of its own: a call before this one may have been interrupted
        self._steps.put(partial(self._told.put, end))
        while (told := self._told.get()) is not end:
            first = first or told
        if isinstance(first, BaseException):
            raise first


def _take(steps: SimpleQueue[Callable[[], None] | None], told: SimpleQueue[object]) -> None:
    """Steps in turn, until there is none."""
    while (step := steps.get()) is not None:
        try:
            step()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            told.put(error)
        del step  # what it is bound to may be let go


class Sink:
    """A file that HDF5 writes to and that never fails, not even closed: HDF5 crashes the process where it cannot write
    what it holds. It is a bare descriptor, since Python closes a file object before the HDF5 objects that write to it
    where it finds them all unused at once.

    Args:
        path: of the file; there must be none.

    Attributes:
        error: the first that the disk gave; nothing is written from then on.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = os.open(path, _READ_WRITE_NEW, 0o666)
        self._position = self._size = 0
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write all of it, or note why not."""
        rest = memoryview(data).cast("B")
        size, place = len(rest), self._position
        self._position += size
        self._size = max(self._size, self._position)
        try:
            while rest and self._descriptor is not None and self.error is None:
                os.lseek(self._descriptor, place, os.SEEK_SET)
                written = os.write(self._descriptor, rest)
                rest, place = rest[written:], place + written
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int) -> int:
        """Give the file that size."""
        self._size = size
        try:
            if self._descriptor is not None and self.error is None:
                os.ftruncate(self._descriptor, size)
        except OSError as error:
            self.error = error
        return size

    def readinto(self, buffer: memoryview) -> int:
        """What was not written reads as zeros."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        view[len(data) :] = bytes(len(view) - len(data))
        self._position += len(view) - len(data)
        return len(view)

    def read(self, size: int) -> bytes:
        """What there is of so many bytes from where it stands."""
        parts: list[bytes] = []
        try:
            while size > 0 and self._descriptor is not None:
                os.lseek(self._descriptor, self._position, os.SEEK_SET)
                parts.append(os.read(self._descriptor, size))
                self._position += len(parts[-1])
                size -= len(parts[-1]) or size
        except OSError as error:
            self.error = self.error or error
        return b"".join(parts)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Where it stands."""
        return self._position

    def flush(self) -> None:
        """Nothing is held back."""

    def sync(self) -> None:
        """Until the disk has it all, or said why not."""
        try:
            if self._descriptor is not None and self.error is None:
                os.fsync(self._descriptor)
        except OSError as error:
            self.error = error

    def is_at(self, path: Path) -> bool:
        """Whether a path still leads to this open file, and to no other that has taken its name."""
        try:
            return self._descriptor is not None and os.path.samestat(os.fstat(self._descriptor), path.lstat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
