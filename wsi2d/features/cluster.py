"""Slides extracted by the workers of a Dask cluster: the driver's side.

The driver hands each worker one slide at a time, so that a worker that dies takes one slide's time with it and no other
slide is suspected, whatever number of threads it was started with. Which worker does what is decided here and not by
Dask: a slide that fails is tried three times, elsewhere where there is an elsewhere.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import wsi2d
from wsi2d.config import ExtractConfig
from wsi2d.errors import ClusterError, ConfigError, FullDiskError, one_line
from wsi2d.features.cluster_connection import Connection, connect
from wsi2d.features.cluster_worker import Job, extract_on_worker, forget, prepare
from wsi2d.features.encoders import Encoder, has_name
from wsi2d.features.exclusive import Order, clear_failed
from wsi2d.features.locks import Locks, clear_partial
from wsi2d.features.outcomes import ExtractProgress, SlideOutcome

if TYPE_CHECKING:
    from distributed import Future

logger = logging.getLogger(__name__)

TRIES = 3
_LOOK_S = 1.0  # between two looks at who is there
_END_S = 15.0  # for workers to let go of their slides once the run ends early
_RESULT_S = 60.0  # for a result to come from its worker


@dataclass
class _Slide:
    """A slide that is to be done, and what became of it so far."""

    order: Order
    tries: int = 0
    last: str = ""  # the worker that failed at it
    error: str = ""


@dataclass
class _Worker:
    """A worker, and what it is doing."""

    address: str
    gpu: bool
    ready: bool = False
    refused: str = ""
    slide: _Slide | None = None
    future: Future[Any] | None = field(default=None, repr=False)


@contextmanager
def on_cluster(
    address: str, out: Path, config: ExtractConfig, encoder: Encoder, progress: ExtractProgress
) -> Iterator[Callable[[Sequence[Order]], Iterator[SlideOutcome]]]:
    """A function that extracts slides on a cluster, and yields what becomes of them as they are finished.

    Args:
        address: ``tcp://HOST:PORT`` of a scheduler, or ``local:N``.
        out: folder of the feature files; it exists.
        config: as all workers are to extract.
        encoder: the driver's, with whose fingerprint the workers' are compared.
        progress: told when slides begin and how far they are.

    Raises:
        ConfigError: the address is none, or Dask is not installed.
        ClusterError: nobody is there, the cluster is of another version, or it went away.
        FullDiskError: a worker finds no room for its file.
        StorageError: what a slide that is given up has left cannot be removed.
    """
    local = address.startswith("local:")
    config = config.model_copy(update={"encoder": _whole_path(config.encoder)})
    job = Job(uuid.uuid4().hex, out.absolute(), config, encoder.fingerprint, wsi2d.__version__, spread=local)
    with Locks(run=job.run) as locks:
        begun: list[Order] = []
        try:
            with connect(address) as connection:
                if locks.take(job.sign) is None:
                    raise ClusterError(f"{job.sign}: is locked, though its name is this run's own")
                driver = _Driver(connection, job, progress, lambda order: clear_failed(order, config, encoder, locks))
                try:
                    yield driver.extract
                finally:
                    begun = driver.end()
        finally:
            if job.spread:  # those workers are gone now, in whatever they were doing; others have let go by themselves
                for order in begun:
                    clear_partial(order.path, locks)
                locks.clear(out)


class _Driver:
    """Hands slides to workers, and listens to them."""

    def __init__(
        self, connection: Connection, job: Job, progress: ExtractProgress, give_up: Callable[[Order], None]
    ) -> None:
        self._connection, self._job, self._progress, self._give_up = connection, job, progress, give_up
        self._workers: dict[str, _Worker] = {}
        self._waiting: deque[_Slide] = deque()
        self._heard: SimpleQueue[Callable[[], SlideOutcome | None]] = SimpleQueue()
        self._gpus_only = self._lonely = False
        self._ended: set[str] = set()
        self._looked = 0.0
        connection.listen(job.run, lambda message: self._heard.put(lambda: self._told(message)))

    def extract(self, orders: Sequence[Order]) -> Iterator[SlideOutcome]:
        """Extract slides; yields what becomes of each as it is known."""
        self._waiting.extend(_Slide(order) for order in orders)
        unknown = len(orders)
        while unknown:
            if time.monotonic() - self._looked > _LOOK_S:
                self._look()
                self._looked = time.monotonic()
            self._hand_out()
            with suppress(Empty):
                outcome = self._heard.get(timeout=_LOOK_S)()
                if outcome is not None:
                    unknown -= 1
                    yield outcome

    def end(self) -> list[Order]:
        """Cancel what is still being done, and wait a while for workers of other machines to let go of it.

        Returns:
            The slides that were begun and not finished.
        """
        busy = [worker for worker in self._workers.values() if worker.slide is not None]
        for worker in self._workers.values():
            future, worker.future = worker.future, None  # what comes of it is of no interest any more
            if future is not None:
                with suppress(Exception):  # the cluster may be what went away
                    future.cancel()
        orders = [worker.slide.order for worker in busy if worker.slide is not None]
        names = {order.file.slide_id for order in orders}
        deadline = time.monotonic() + (0 if self._job.spread else _END_S)
        while self._connection.is_alive() and not names <= self._ended and time.monotonic() < deadline:
            with suppress(Empty):
                self._heard.get(timeout=0.1)()
        if not self._job.spread:
            self._connection.run_everywhere(forget, self._job.run)
        return orders + [slide.order for slide in self._waiting if slide.tries]

    def _told(self, message: dict[str, Any]) -> SlideOutcome | None:
        """A worker says what happens."""
        what, value = message["what"], message["value"]
        if what == "started":
            self._progress.slide_started(*value)
        elif what == "patches":
            self._progress.patches_done(value)
        elif what == "warning":
            logger.warning("%s", value)
        elif what == "ended":
            self._ended.add(value)
        return None

    def _look(self) -> None:
        """Who came, and who went."""
        present = self._connection.workers()
        for address in self._workers.keys() - present.keys():
            worker = self._workers.pop(address)
            if worker.slide is not None:
                self._try_again(worker, f"its worker {address} died")
        new = [address for address in present if address not in self._workers]
        if new:
            unfit = self._connection.misfits(new)
            for address in new:
                self._welcome(_Worker(address, gpu=present[address]), unfit.get(address, ""))
        if not present and not self._lonely:
            logger.warning("%s: no workers yet; waiting for some", self._connection.address)
        self._lonely = not present
        refused = [worker for worker in self._workers.values() if worker.refused]
        if refused and len(refused) == len(self._workers):
            raise ClusterError(f"{self._connection.address}: no worker can be used; {refused[0].refused}")

    def _welcome(self, worker: _Worker, misfit: str) -> None:
        self._workers[worker.address] = worker
        self._gpus_only |= worker.gpu and self._job.config.device != "cpu"
        if misfit:
            self._refuse(worker, misfit)
        else:
            self._submit(worker, prepare, self._job, then=self._prepared)

    def _refuse(self, worker: _Worker, why: str) -> None:
        worker.refused = why
        logger.warning("worker %s is not used: %s", worker.address, why)

    def _prepared(self, worker: _Worker, reason: str | None, error: BaseException | None) -> None:
        if error is not None and "deserialization of the task graph" in str(error):  # the scheduler's own words
            raise ClusterError(f"{self._connection.address}: the scheduler has no wsi2d, or another; install the same")
        if error is not None:
            reason = _text(error)
        if reason:
            self._refuse(worker, reason)
        worker.ready = not reason

    def _hand_out(self) -> None:
        for worker in self._workers.values():
            if not self._waiting:
                return
            if worker.ready and worker.slide is None and (worker.gpu or not self._gpus_only):
                slide = self._choose(worker)
                if slide is not None:
                    worker.slide = slide
                    self._ended.discard(slide.order.file.slide_id)
                    order = replace(slide.order, file=replace(slide.order.file, path=slide.order.file.path.absolute()))
                    order = replace(order, out=self._job.out)
                    self._submit(worker, extract_on_worker, self._job, order, then=self._finished)

    def _choose(self, worker: _Worker) -> _Slide | None:
        """The next slide; one that has failed at this worker is left to another, if there is one."""
        others = any(w.ready and w is not worker for w in self._workers.values())
        for slide in self._waiting:
            if not (others and slide.last == worker.address):
                self._waiting.remove(slide)
                return slide
        return None

    def _submit(self, worker: _Worker, function: Callable[..., Any], *arguments: Any, then: Callable[..., Any]) -> None:
        future = self._connection.submit(worker.address, worker.gpu and self._gpus_only, function, *arguments)
        worker.future = future
        future.add_done_callback(lambda done: self._heard.put(lambda: self._done(worker, done, then)))

    def _done(self, worker: _Worker, future: Future[Any], then: Callable[..., Any]) -> SlideOutcome | None:
        """A task has ended, if it is one that is still wanted."""
        if worker.future is not future or self._workers.get(worker.address) is not worker:
            return None
        worker.future = None
        value, error = None, None
        try:
            value = future.result(timeout=_RESULT_S)
        except Exception as raised:  # noqa: BLE001 - whatever a task raises, or Dask of it
            error = raised
        if future.cancelled():  # not by us: Dask does so when it loses its scheduler
            raise ClusterError(f"{self._connection.address}: the scheduler is gone; {_AGAIN}")
        outcome: SlideOutcome | None = then(worker, value, error)
        return outcome

    def _finished(
        self, worker: _Worker, outcome: SlideOutcome | None, error: BaseException | None
    ) -> SlideOutcome | None:
        slide = worker.slide
        assert slide is not None
        if outcome is not None:
            worker.slide = None
            return replace(outcome, path=slide.order.file.path)
        assert error is not None
        if isinstance(error, ConfigError | FullDiskError):  # which every other slide would meet with too
            raise error
        self._try_again(worker, _text(error))
        return None

    def _try_again(self, worker: _Worker, error: str) -> None:
        """Let another worker try, unless the slide has failed too often."""
        slide, worker.slide, worker.future = worker.slide, None, None
        assert slide is not None
        slide.tries, slide.last, slide.error = slide.tries + 1, worker.address, error
        if slide.tries < TRIES:
            self._waiting.append(slide)
            return
        self._give_up(slide.order)
        name = slide.order.file.slide_id
        said = error.removeprefix(f"slide '{name}': ")
        failed = slide.order.outcome("failed", one_line(f"slide '{name}': failed {TRIES} times, at last: {said}"))
        self._heard.put(lambda: failed)


def _whole_path(encoder: str) -> str:
    """An encoder that is named by a path, or with one (``NAME=PATH``), as workers in other folders find it."""
    name, equals, path = encoder.rpartition("=")
    if (has_name(encoder) and not equals) or not Path(path).exists():
        return encoder
    return f"{name}{equals}{Path(path).absolute()}"


_AGAIN = "run the same command again to go on"


def _text(error: BaseException) -> str:
    if type(error).__name__ == "KilledWorker":
        return f"its worker {getattr(getattr(error, 'last_worker', None), 'address', '')} died"
    said = one_line(str(error))
    return said if isinstance(error, wsi2d.errors.Wsi2dError) and said else f"{type(error).__name__}: {said}"
