"""One slide is extracted by one run at a time, however many work on a folder."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from wsi2d.config import ExtractConfig
from wsi2d.errors import SlideError, TakenOverError
from wsi2d.features.encoders import Encoder
from wsi2d.features.extract_slide import extract_slide
from wsi2d.features.locks import BEAT_S, FileLock, Locks
from wsi2d.features.outcomes import ExtractProgress, Outcome, SlideOutcome
from wsi2d.features.settings import finished_slides, is_as_asked
from wsi2d.features.store import feature_path
from wsi2d.files import Stamp, partial_path, remove, stamp
from wsi2d.slides.discovery import SlideFile
from wsi2d.slides.reader import check_slide_id
from wsi2d.slides.reader_pool import ReaderPool

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """One slide that is to be extracted.

    Attributes:
        file: the slide.
        out: folder of the feature files; it exists.
        slide_mpp, cohort_mpp: level-0 pixel sizes given by the user and the cohort, µm/px.
        before: its feature file when the run began, which is to be made or made anew; None where there was none.
    """

    file: SlideFile
    out: Path
    slide_mpp: float | None
    cohort_mpp: float | None
    before: Stamp | None

    @property
    def path(self) -> Path:
        """Of the feature file."""
        return feature_path(self.out, self.file.slide_id)

    @property
    def given_mpp(self) -> float | None:
        """The pixel size that goes before the header's, if any is given."""
        return self.slide_mpp if self.slide_mpp is not None else self.cohort_mpp

    def outcome(self, outcome: Outcome, error: str = "") -> SlideOutcome:
        """What became of it, where no patches were encoded."""
        return SlideOutcome(self.file.slide_id, self.file.path, outcome, error=error)


def extract_exclusively(
    order: Order, config: ExtractConfig, encoder: Encoder, pool: ReaderPool, locks: Locks, progress: ExtractProgress
) -> SlideOutcome:
    """Extract a slide (see :func:`wsi2d.features.extract_slide.extract_slide`) unless another run does, or just has.

    Returns:
        ``done``, ``empty``, ``failed``, ``skipped`` where its file has been made since the run began, or ``elsewhere``.

    Raises:
        ConfigError: its file has been made since the run began, with other settings.
        StorageError: the folder or its disk does not take the file.
    """
    try:
        check_slide_id(order.file.slide_id)  # before a lock is made under its name
    except SlideError as error:
        return order.outcome("failed", str(error))
    lock = locks.take(order.path)
    if lock is None:
        return order.outcome("elsewhere")
    with lock:
        if stamp(order.path) != order.before and finished_slides(
            [order.file], order.out, config, encoder, {order.file.slide_id: order.given_mpp}
        ):
            remove(partial_path(order.path))
            return order.outcome("skipped")
        ours = _WhileOurs(lock, progress)
        try:
            return extract_slide(
                order.file, order.out, config, encoder, pool,
                slide_mpp=order.slide_mpp, cohort_mpp=order.cohort_mpp, progress=ours, check=ours.check,
            )  # fmt: skip
        except (_LostLockError, TakenOverError):
            logger.warning("slide '%s': another run took it over while this one was suspended", order.file.slide_id)
            return order.outcome("elsewhere")


def clear_failed(order: Order, config: ExtractConfig, encoder: Encoder, locks: Locks) -> None:
    """Remove what a slide that is given up has left, unless another run has it in hand: its half-written file, and an
    earlier one unless it was made with these very settings.

    Raises:
        StorageError: it cannot be removed.
    """
    try:
        check_slide_id(order.file.slide_id)
    except SlideError:
        return
    lock = locks.take(order.path)
    if lock is None:
        return
    with lock:
        remove(partial_path(order.path))
        if not is_as_asked(order.path, config, encoder, order.given_mpp):
            remove(order.path)


class _LostLockError(Exception):
    """The lock is another's by now."""


class _WhileOurs(ExtractProgress):
    """Passes on what happens, and ends the work on a slide whose lock was lost, at the latest before its file is
    complete: a process that is suspended gives no signs of life."""

    def __init__(self, lock: FileLock, listener: ExtractProgress) -> None:
        self._lock, self._listener = lock, listener
        self._left, self._looked = 0, time.monotonic()

    def check(self) -> None:
        """End the work if the lock was lost."""
        self._looked = time.monotonic()
        if not self._lock.is_mine():
            raise _LostLockError

    def slide_started(self, slide_id: str, patches: int) -> None:
        self.check()
        self._left = patches
        self._listener.slide_started(slide_id, patches)

    def patches_done(self, count: int) -> None:
        self._left -= count
        if self._left <= 0 or time.monotonic() - self._looked > BEAT_S:
            self.check()
        self._listener.patches_done(count)
