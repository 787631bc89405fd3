"""Peers' files read in processes of their own, which a damaged file may crash or hang."""

from __future__ import annotations

import atexit
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from wsi2d.errors import FeatureStoreError
from wsi2d.features.imports.claims import NO_CLAIMS, Claims
from wsi2d.features.imports.reading import Recognised
from wsi2d.features.store import FeatureBag, FeatureHeader
from wsi2d.slides.reader_pool import ReaderPool
from wsi2d.slides.reader_worker import ReaderProcessError

_WAIT_S = 1800.0  # with slow storage; what computes in circles is ended long before
# Seconds of computing: for any file, and for each 10 MB, which a chunk a row and compression can make slow.
_COMPUTE_S, _BYTES_PER_S = 10, 1e7
_READING = f"{__package__}.reading"


class PeerReader:
    """Reads peers' files; safe to use from several threads. Use it as a context manager.

    Args:
        workers: number of processes; each starts when it is first needed.
    """

    def __init__(self, workers: int = 1) -> None:
        self._pool = ReaderPool(workers, limit_s=_WAIT_S)

    def __enter__(self) -> PeerReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self._pool.close()

    def recognise(self, path: Path) -> Recognised | None:
        """As :func:`wsi2d.features.imports.reading.recognise`."""
        found: Recognised | None = self._ask("recognise", path)
        return found

    def inspect(self, path: Path, patches: Path | None = None, claims: Claims = NO_CLAIMS) -> FeatureHeader:
        """As :func:`wsi2d.features.imports.reading.inspect`."""
        found: FeatureHeader = self._ask("inspect", path, patches, claims)
        return found

    def read(self, path: Path, patches: Path | None = None, claims: Claims = NO_CLAIMS) -> FeatureBag:
        """As :func:`wsi2d.features.imports.reading.read`."""
        found: FeatureBag = self._ask("read", path, patches, claims)
        return found

    def convert(self, path: Path, out: Path, patches: Path | None = None, claims: Claims = NO_CLAIMS) -> FeatureHeader:
        """As :func:`wsi2d.features.imports.reading.convert`."""
        found: FeatureHeader = self._ask("convert", path, out, patches, claims)
        return found

    def _ask(self, function: str, path: Path, *arguments: object) -> Any:
        if not path.is_file():  # nor what would be waited for, as a pipe
            raise FeatureStoreError(f"{path}: is no file; give feature files or a folder of them")
        seconds = _COMPUTE_S + int(path.stat().st_size / _BYTES_PER_S)
        try:
            return self._pool.call(f"{_READING}:{function}", path, seconds, *arguments)
        except ReaderProcessError as error:
            raise FeatureStoreError(
                f"{path}: cannot be read ({error}); it is damaged, copy it again or extract the slide with "
                "`wsi2d extract`"
            ) from error


_shared: tuple[int, PeerReader] | None = None


def shared_reader() -> PeerReader:
    """One reader for all that read single files; its process starts when it is first needed and ends with this one."""
    global _shared
    if _shared is None or _shared[0] != os.getpid():  # a fork has no part in its parent's readers
        reader = PeerReader()
        atexit.register(reader.close)
        _shared = os.getpid(), reader
    return _shared[1]
