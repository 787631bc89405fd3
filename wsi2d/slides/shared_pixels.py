"""Memory that reader processes fill and their parent reads, without a name that could outlive them."""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from typing import IO

import numpy as np

_COUNTER_BYTES = 8
_PAGE = mmap.PAGESIZE


class SharedPixels:
    """An anonymous file that processes map: whoever kills them, the system has it back when the last has ended.

    It begins with one counter a process, which tells how far that process is where it cannot tell so itself any more.

    Args:
        counters: number of processes.

    Attributes:
        descriptor: of the file, for processes that inherit it; None where the system has no such thing.
        size: bytes that may be mapped.
    """

    def __init__(self, counters: int) -> None:
        self._header = -(-counters * _COUNTER_BYTES // _PAGE) * _PAGE
        self._file = _anonymous_file()
        self._memory: mmap.mmap | None = None
        self.descriptor = None if self._file is None else self._file.fileno()
        self.size = 0

    def array(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """The memory as uint8 of that shape; None where the system has not so much to share. An earlier array is of
        the same memory, or of none that is shared any more."""
        wanted = self._header + int(np.prod(shape))
        if self._file is None:
            return None
        if wanted > self.size:
            try:
                os.ftruncate(self._file.fileno(), wanted)
                self._memory = mmap.mmap(self._file.fileno(), wanted)
            except (OSError, OverflowError, ValueError):  # a limit on files' sizes also holds for this one
                return None
            self.size = wanted
        if self._memory is None:
            return None
        return np.frombuffer(self._memory, np.uint8, wanted - self._header, self._header).reshape(shape)

    def offset(self, first: int) -> int:
        """Where in the file a byte of the array lies."""
        return self._header + first

    def counter(self, process: int) -> int:
        """What a process has counted to."""
        if self._memory is None:
            return 0
        value: int = struct.unpack_from("q", self._memory, process * _COUNTER_BYTES)[0]
        return value

    def close(self) -> None:
        """Let the file go; arrays stay what they are until they go too."""
        self._memory = None
        if self._file is not None:
            self._file.close()


class MappedPixels:
    """The same memory in a process that inherited its descriptor.

    Args:
        descriptor: of the file.
        process: number of this one's counter.
    """

    def __init__(self, descriptor: int, process: int) -> None:
        self._descriptor, self._counter = descriptor, process * _COUNTER_BYTES
        self._memory: mmap.mmap | None = None

    def map(self, size: int) -> int:
        """Map as many bytes as the file has by now; returns how many they are."""
        if self._memory is None or len(self._memory) < size:
            # All pages at once, where the system can: one by one they cost more than their pixels.
            self._memory = mmap.mmap(self._descriptor, size, mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
        return len(self._memory)

    def count(self, value: int) -> None:
        """Tell the parent how far this process is."""
        if self._memory is not None:
            struct.pack_into("q", self._memory, self._counter, value)

    def write(self, offset: int, pixels: np.ndarray) -> int:
        """Put pixels into the file from a byte on; returns the byte after them."""
        if self._memory is None:
            raise ValueError("no memory is mapped")
        end = offset + pixels.nbytes
        np.frombuffer(self._memory, np.uint8, pixels.nbytes, offset).reshape(pixels.shape)[...] = pixels
        return end


def _anonymous_file() -> IO[bytes] | None:
    """A file without a name, in memory where the system has such files."""
    if os.name != "posix":  # where children inherit no descriptors
        return None
    try:
        if hasattr(os, "memfd_create"):
            return os.fdopen(os.memfd_create("wsi2d-pixels"), "r+b", buffering=0)
        return tempfile.TemporaryFile(buffering=0)
    except OSError:
        return None
