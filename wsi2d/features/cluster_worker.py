"""What a Dask worker does of an extraction: one slide at a time, with an encoder that stays in its process."""

from __future__ import annotations

import logging
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wsi2d
from wsi2d.config import ExtractConfig
from wsi2d.errors import StorageError, one_line
from wsi2d.features.encoders import Encoder
from wsi2d.features.exclusive import Order, extract_exclusively
from wsi2d.features.locks import Locks, lock_path
from wsi2d.features.outcomes import ExtractProgress, SlideOutcome
from wsi2d.features.settings import load_encoder
from wsi2d.slides.reader_pool import ReaderPool

_TELL_S = 0.5  # between two words on how far a slide is
_SEE_S = 5.0  # for what another machine has just written to be seen here


@dataclass(frozen=True)
class Job:
    """What all slides of a run have in common.

    Attributes:
        run: names the run: in its locks, and as the topic under which workers tell what happens.
        out: folder of the feature files, absolute.
        config: as the run was given it.
        fingerprint: of the driver's encoder.
        version: of the driver's wsi2d.
        spread: whether the workers are processes of one machine that share its GPUs.
    """

    run: str
    out: Path
    config: ExtractConfig
    fingerprint: str
    version: str
    spread: bool = False

    @property
    def sign(self) -> Path:
        """A file that the driver holds in the folder, so that workers know the folder when they see it."""
        return self.out / f"run-{self.run}"


class CancelledError(Exception):
    """The run no longer wants the slide."""


class _Station:
    """What a worker process keeps from slide to slide.

    Attributes:
        config: the run's, with this worker's device.
        encoder: on that device.
        pool: processes that read slides.
        busy: held while a slide is extracted.
    """

    def __init__(self, job: Job, name: object) -> None:
        own = {"device": _own_gpu(job.config.device, name)} if job.spread else {}
        self.config = job.config.model_copy(update=own)
        self.encoder: Encoder = load_encoder(self.config)
        self.pool = ReaderPool(self.config.workers, limit_s=self.config.read_limit_s)
        self.busy = threading.Lock()


_stations: dict[str, _Station] = {}
_loading = threading.Lock()


def prepare(job: Job) -> str:
    """Get a worker ready for a run; why it cannot be, or an empty text."""
    if wsi2d.__version__ != job.version:
        return f"has wsi2d {wsi2d.__version__}, not {job.version}; install the same on all machines"
    if not _is_there(lock_path(job.sign)):
        return (
            f"{job.out} is not the folder that it is for the others; --out must lie on storage that all machines share"
        )
    probe = job.out / f".{uuid.uuid4().hex}.partial"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"{job.out} cannot be written ({error.strerror}); check who may write there from that machine"
    try:
        encoder = _station(job).encoder
    except Exception as error:  # noqa: BLE001 - of weights and devices, which raise many kinds
        return f"encoder '{job.config.encoder}' does not load ({_of(error)})"
    if encoder.fingerprint != job.fingerprint:
        return (
            f"encoder '{encoder.name}' is {encoder.fingerprint} there, {job.fingerprint} here; "
            "give all machines the same weights"
        )
    return ""


def extract_on_worker(job: Job, order: Order) -> SlideOutcome:
    """Extract a slide in a task of Dask's.

    Raises:
        ConfigError: as :func:`wsi2d.features.exclusive.extract_exclusively`.
        StorageError: likewise; or this machine does not see the slide.
        CancelledError: the run no longer wants it.
    """
    slide_id = order.file.slide_id
    try:
        if not _is_there(order.file.path):
            raise StorageError(
                f"slide '{slide_id}': {order.file.path} is not to be seen from {socket.gethostname()}; "
                "slides must lie on storage that all machines share"
            )
        station, progress = _station(job), _Telling(job.run)
        with station.busy, _warnings_told(progress), Locks(run=job.run) as locks:
            outcome = extract_exclusively(order, station.config, station.encoder, station.pool, locks, progress)
        progress.tell_patches()
        return outcome
    finally:
        _tell(job.run, "ended", slide_id)


def forget(run: str) -> None:
    """Let go of what a run kept in this process."""
    with _loading:
        station = _stations.pop(run, None)
    if station is not None:
        station.pool.close()


def _station(job: Job) -> _Station:
    """The run's, made when it is first asked for; those of runs that are over, and said nothing, are let go of."""
    from distributed import get_worker

    with _loading:
        if job.run not in _stations:
            for run in [run for run, station in _stations.items() if not station.busy.locked()]:
                _stations.pop(run).pool.close()
            _stations[job.run] = _Station(job, get_worker().name)
        return _stations[job.run]


class _Telling(ExtractProgress):
    """Tells the driver how far a slide is, not more often than it can see; and ends the work when it is cancelled."""

    def __init__(self, run: str) -> None:
        from distributed import get_worker

        self._run, self._worker = run, get_worker()
        self._key = self._worker.get_current_task()
        self._patches, self._told = 0, time.monotonic()

    def slide_started(self, slide_id: str, patches: int) -> None:
        self._check()
        _tell(self._run, "started", [slide_id, patches])

    def patches_done(self, count: int) -> None:
        self._check()
        self._patches += count
        if time.monotonic() - self._told > _TELL_S:
            self.tell_patches()

    def tell_patches(self) -> None:
        """Say how many patches were encoded since the last time."""
        if self._patches:
            _tell(self._run, "patches", self._patches)
        self._patches, self._told = 0, time.monotonic()

    def warn(self, text: str) -> None:
        """Pass on a warning."""
        _tell(self._run, "warning", text)

    def _check(self) -> None:
        task = self._worker.state.tasks.get(self._key)
        unwanted = task is None or task.state in {"cancelled", "released", "forgotten"}
        if unwanted or self._worker.status.name in {"closing", "closed", "failed"}:
            raise CancelledError("the run no longer wants this slide")


@contextmanager
def _warnings_told(progress: _Telling) -> Iterator[None]:
    """Warnings of the library go to the driver, not to this process' own log."""

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            progress.warn(record.getMessage())

    handler, ours = Told(logging.WARNING), logging.getLogger("wsi2d")
    propagated, ours.propagate = ours.propagate, False
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.propagate = propagated


def _own_gpu(device: str, name: object) -> str:
    """The GPU of one of a machine's workers, which are named 0, 1 and so on."""
    import torch

    if device not in {"auto", "cuda"} or not torch.cuda.is_available():
        return device
    return f"cuda:{int(str(name)) % torch.cuda.device_count()}"


def _tell(run: str, what: str, value: Any) -> None:
    from distributed import get_worker

    get_worker().log_event(run, {"what": what, "value": value})


def _is_there(path: Path) -> bool:
    deadline = time.monotonic() + _SEE_S
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _of(error: BaseException) -> str:
    return one_line(str(error)) or type(error).__name__
