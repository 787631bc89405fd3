"""The driver of a cluster's workers, with workers that do as they are told here: who gets what, how often, and why not.

Dask itself, with real workers, is in `tests/cli/test_cluster.py`.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import wsi2d
from wsi2d.compute import CORES_VARIABLE, available_cores
from wsi2d.config import ExtractConfig
from wsi2d.errors import ClusterError, ConfigError, StorageError
from wsi2d.features import cluster as module
from wsi2d.features.cluster import on_cluster
from wsi2d.features.cluster_connection import connect, parse_cluster
from wsi2d.features.cluster_worker import Job, prepare
from wsi2d.features.encoders import get_encoder
from wsi2d.features.exclusive import Order
from wsi2d.features.extract import extract
from wsi2d.features.locks import Locks
from wsi2d.features.outcomes import ExtractProgress, SlideOutcome
from wsi2d.files import unwritable
from wsi2d.slides.discovery import SlideFile

ADDRESS = "tcp://127.0.0.1:1"
DIES = "dies"  # what a worker does, instead of an answer
LOSES_SCHEDULER = "loses its scheduler"
Answer = Callable[[str, Order], Any]


class KilledWorker(Exception):
    """Looks as Dask's."""

    last_worker = type("WorkerState", (), {"address": "tcp://w9:1"})


class FakeConnection:
    """Workers that answer at once.

    Args:
        workers: who is there, and whether they declare a GPU.
        answer: what becomes of a slide at a worker: an outcome, an error, or what befalls the worker.
        unfit: workers of other versions.
        unready: workers that cannot get ready, and why.
    """

    address = ADDRESS

    def __init__(
        self,
        workers: dict[str, bool],
        answer: Answer,
        unfit: dict[str, str] | None = None,
        unready: dict[str, Any] | None = None,
    ) -> None:
        self.present, self.answer, self.unfit, self.unready = dict(workers), answer, unfit or {}, unready or {}
        self.calls: list[tuple[str, str, bool]] = []
        self.held: list[Future[Any]] = []
        self.said: Callable[[dict[str, Any]], None] = lambda message: None
        self.forgotten = False

    def is_alive(self) -> bool:
        return True

    def workers(self) -> dict[str, bool]:
        return dict(self.present)

    def misfits(self, addresses: list[str]) -> dict[str, str]:
        return {a: why for a, why in self.unfit.items() if a in addresses}

    def listen(self, topic: str, handler: Callable[[dict[str, Any]], None]) -> None:
        self.said = handler

    def run_everywhere(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.forgotten = True

    def submit(self, worker: str, gpu: bool, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        if function is prepare:
            answer = self.unready.get(worker, "")
        else:
            order = arguments[1]
            self.calls.append((worker, order.file.slide_id, gpu))
            answer = self.answer(worker, order)
        if answer == DIES:
            del self.present[worker]
            self.held.append(future)
        elif answer == LOSES_SCHEDULER:
            future.cancel()
        elif isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return future


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, SlideOutcome]]]:
    """Extracts slides with a connection of the test's."""
    from contextlib import contextmanager

    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    monkeypatch.setattr(module, "_END_S", 0.05)

    def run(
        connection: FakeConnection, *names: str, device: str = "auto", progress: Any = None, address: str = ADDRESS
    ) -> dict[str, Any]:
        @contextmanager
        def connected(address: str) -> Iterator[FakeConnection]:
            yield connection

        monkeypatch.setattr(module, "connect", connected)
        config, encoder = ExtractConfig(device=device), get_encoder("histology-stats")
        orders = [Order(SlideFile(name, Path(f"{name}.svs")), tmp_path, None, None, None) for name in names]
        with on_cluster(address, tmp_path, config, encoder, progress or ExtractProgress()) as extraction:
            return {outcome.slide_id: outcome for outcome in extraction(orders)}

    yield run
    assert not list(tmp_path.iterdir()), "nothing of the run is left"


def done(worker: str, order: Order) -> SlideOutcome:
    return SlideOutcome(order.file.slide_id, order.file.path, "done", 7)


def tries(connection: FakeConnection, slide_id: str) -> list[str]:
    return [worker for worker, name, _ in connection.calls if name == slide_id]


def test_each_slide_is_done_once(drive: Any) -> None:
    connection = FakeConnection({"w1": False, "w2": False}, done)
    found = drive(connection, *"abcdefg")
    assert {name: s.outcome for name, s in found.items()} == dict.fromkeys("abcdefg", "done")
    assert sorted(name for _, name, _ in connection.calls) == list("abcdefg")
    assert {worker for worker, _, _ in connection.calls} == {"w1", "w2"}
    assert found["a"].path == Path("a.svs"), "as it was given, though workers are told the whole path"
    assert connection.forgotten


def test_workers_are_told_whole_paths(drive: Any, tmp_path: Path) -> None:
    """Their working directory is another."""

    def look(worker: str, order: Order) -> SlideOutcome:
        assert order.file.path.is_absolute()
        assert order.out == tmp_path.absolute()
        return done(worker, order)

    assert drive(FakeConnection({"w1": False}, look), "a")["a"].outcome == "done"


def test_weights_are_told_by_their_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("weights.bin", "histology-stats"):
        (tmp_path / name).touch()
    whole = f"{tmp_path.absolute()}/weights.bin"
    named = {
        "weights.bin": whole,
        "uni=weights.bin": f"uni={whole}",
        "uni": "uni",
        "histology-stats": "histology-stats",
    }
    assert {encoder: module._whole_path(encoder) for encoder in named} == named


def test_what_fails_three_times_is_named_and_the_others_go_on(drive: Any) -> None:
    def answer(worker: str, order: Order) -> Any:
        name = order.file.slide_id
        return StorageError(f"slide '{name}': no room\non the disk") if name == "b" else done(worker, order)

    connection = FakeConnection({"w1": False, "w2": False}, answer)
    found = drive(connection, "a", "b", "c")
    assert [found[n].outcome for n in "abc"] == ["done", "failed", "done"]
    assert found["b"].error == "slide 'b': failed 3 times, at last: no room on the disk"
    assert tries(connection, "b") in (["w1", "w2", "w1"], ["w2", "w1", "w2"]), "elsewhere, where there is an elsewhere"


def test_the_last_slide_to_fail_is_told_too(drive: Any) -> None:
    connection = FakeConnection({"w1": False}, lambda worker, order: RuntimeError("no\nreason"))
    found = drive(connection, "a")
    assert found["a"].error == "slide 'a': failed 3 times, at last: RuntimeError: no reason"
    assert tries(connection, "a") == ["w1"] * 3


def test_what_is_the_slides_own_fault_is_tried_once(drive: Any) -> None:
    def answer(worker: str, order: Order) -> SlideOutcome:
        return SlideOutcome(order.file.slide_id, order.file.path, "failed", error="slide 'a': is no slide")

    connection = FakeConnection({"w1": False}, answer)
    assert drive(connection, "a")["a"].error == "slide 'a': is no slide"
    assert tries(connection, "a") == ["w1"]


def test_a_worker_that_dies_costs_its_slide_one_try(drive: Any) -> None:
    connection = FakeConnection({"w1": False, "w2": False, "w3": False}, lambda w, o: DIES if w == "w1" else done(w, o))
    found = drive(connection, *"abcde")
    assert {s.outcome for s in found.values()} == {"done"}
    (lost,) = [name for worker, name, _ in connection.calls if worker == "w1"]
    assert len(tries(connection, lost)) == 2
    assert len(connection.calls) == 6, "no other slide was tried again"


def test_a_slide_that_kills_workers_is_named(drive: Any) -> None:
    def answer(worker: str, order: Order) -> Any:
        return DIES if order.file.slide_id == "b" else done(worker, order)

    connection = FakeConnection({f"w{i}": False for i in range(4)}, answer)
    found = drive(connection, *"abcd")
    assert [found[n].outcome for n in "abcd"] == ["done", "failed", "done", "done"]
    last = tries(connection, "b")[-1]
    assert found["b"].error == f"slide 'b': failed 3 times, at last: its worker {last} died"


@pytest.mark.parametrize("address", [ADDRESS, "local:4"])
def test_what_a_slide_that_is_given_up_has_left_goes(drive: Any, tmp_path: Path, address: str) -> None:
    """Its half-written file, and one of other settings that it was to replace; not what another run has in hand."""
    for name in "bc":
        (tmp_path / f"{name}.h5").write_bytes(b"of other settings")

    def answer(worker: str, order: Order) -> Any:
        name = order.file.slide_id
        (tmp_path / f".{name}.h5.partial").write_bytes(b"half")
        return DIES

    with Locks() as others:
        assert others.take(tmp_path / "c.h5") is not None
        found = drive(FakeConnection({f"w{i}": False for i in range(7)}, answer), "b", "c", address=address)
        assert [found[n].outcome for n in "bc"] == ["failed", "failed"]
        assert sorted(os.listdir(tmp_path)) == [".c.h5.lock", ".c.h5.partial", "c.h5"]
    for name in (".c.h5.partial", "c.h5"):
        (tmp_path / name).unlink()


def test_a_full_disk_ends_the_run(drive: Any) -> None:
    """No slide after it would find room, and each would be tried three times."""
    full = unwritable(Path("b.h5"), OSError(errno.ENOSPC, "no"))
    connection = FakeConnection({"w1": False, "w2": False}, lambda w, o: full if o.file.slide_id == "b" else done(w, o))
    with pytest.raises(StorageError, match=r"b\.h5: cannot be written \(No space left on device\)"):
        drive(connection, *"abcd")
    assert tries(connection, "b") == ["w2"]
    plain = unwritable(Path("b.h5"), OSError(errno.EACCES, "no"))
    assert type(plain) is StorageError, "which another machine may not meet with"


def test_dasks_own_word_for_it(drive: Any) -> None:
    """Where the scheduler allows no failures, or a worker comes back under its address."""
    connection = FakeConnection({"w1": False}, lambda worker, order: KilledWorker("x", "y", 3))
    assert drive(connection, "a")["a"].error == "slide 'a': failed 3 times, at last: its worker tcp://w9:1 died"


def test_workers_may_come_later(drive: Any, caplog: pytest.LogCaptureFixture) -> None:
    connection = FakeConnection({}, done)
    looked = iter([{}, {}, {"w1": False}])
    connection.workers = lambda: next(looked, {"w1": False})  # type: ignore[method-assign]
    assert drive(connection, "a", "b")["b"].outcome == "done"
    assert caplog.messages == [f"{ADDRESS}: no workers yet; waiting for some"]


def test_an_unfit_worker_is_refused_in_one_line(drive: Any, caplog: pytest.LogCaptureFixture) -> None:
    connection = FakeConnection(
        {"w1": False, "w2": False, "w3": False, "w4": False},
        done,
        unfit={"w2": "has wsi2d 0.0.9, not 0.1.0; install the same on all machines"},
        unready={"w3": "/f cannot be written (Read-only file system)", "w4": RuntimeError("CUDA\nout of memory")},
    )
    assert {s.outcome for s in drive(connection, *"abcdef").values()} == {"done"}
    assert {worker for worker, _, _ in connection.calls} == {"w1"}
    assert sorted(caplog.messages) == [
        "worker w2 is not used: has wsi2d 0.0.9, not 0.1.0; install the same on all machines",
        "worker w3 is not used: /f cannot be written (Read-only file system)",
        "worker w4 is not used: RuntimeError: CUDA out of memory",
    ]


def test_no_worker_can_be_used(drive: Any) -> None:
    connection = FakeConnection({"w1": False}, done, unfit={"w1": "has no wsi2d, not 0.1.0; install the same"})
    with pytest.raises(ClusterError, match=f"{ADDRESS}: no worker can be used; has no wsi2d"):
        drive(connection, "a")


def test_a_scheduler_without_wsi2d(drive: Any) -> None:
    """It reads what is sent to workers; the words are Dask's."""
    error = RuntimeError("Error during deserialization of the task graph. This frequently occurs")
    connection = FakeConnection({"w1": False}, done, unready={"w1": error})
    with pytest.raises(ClusterError, match=f"{ADDRESS}: the scheduler has no wsi2d, or another; install the same"):
        drive(connection, "a")


def test_a_lost_scheduler_ends_the_run(drive: Any) -> None:
    connection = FakeConnection({"w1": False}, lambda worker, order: LOSES_SCHEDULER)
    with pytest.raises(ClusterError, match=f"{ADDRESS}: the scheduler is gone; run the same command again to go on"):
        drive(connection, "a")


def test_other_settings_end_the_run(drive: Any) -> None:
    connection = FakeConnection({"w1": False}, lambda worker, order: ConfigError("a.h5: was made with others"))
    with pytest.raises(ConfigError, match=r"a\.h5: was made with others"):
        drive(connection, "a")


@pytest.mark.parametrize(
    ("device", "used"), [("auto", {("g", True)}), ("cuda", {("g", True)}), ("cpu", {("g", False), ("w", False)})]
)
def test_gpus_go_by_daskss_resources(drive: Any, device: str, used: set[tuple[str, bool]]) -> None:
    """Where workers say that they have one, the others get nothing that is to run on one."""
    connection = FakeConnection({"w": False, "g": True}, done)
    drive(connection, *"abcdef", device=device)
    assert {(worker, gpu) for worker, _, gpu in connection.calls} == used


def test_what_workers_say_is_passed_on(drive: Any, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[tuple[Any, ...]] = []

    class Listener(ExtractProgress):
        def slide_started(self, slide_id: str, patches: int) -> None:
            heard.append((slide_id, patches))

        def patches_done(self, count: int) -> None:
            heard.append((count,))

    def answer(worker: str, order: Order) -> SlideOutcome:
        for what, value in (("started", ["a", 9]), ("patches", 4), ("warning", "pale"), ("patches", 5), ("ended", "a")):
            connection.said({"what": what, "value": value})
        return done(worker, order)

    connection = FakeConnection({"w1": False}, answer)
    drive(connection, "a", progress=Listener())
    assert heard == [("a", 9), (4,), (5,)]
    assert caplog.messages == ["pale"]


def test_an_interrupt_cancels_what_is_being_done(drive: Any) -> None:
    """And is no lost scheduler, though what it cancels looks like one."""
    connection = FakeConnection({"w1": False, "w2": False}, lambda w, o: done(w, o) if w == "w1" else "hangs")
    submitted: list[Future[Any]] = []
    plain = connection.submit

    def submit(worker: str, gpu: bool, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        if function is not prepare and worker == "w2":
            submitted.append(Future())
            return submitted[-1]
        return plain(worker, gpu, function, *arguments)

    class Interrupt(ExtractProgress):
        def slide_started(self, slide_id: str, patches: int) -> None:
            raise KeyboardInterrupt

    connection.submit = submit  # type: ignore[method-assign]
    connection.answer = lambda w, o: (connection.said({"what": "started", "value": ["a", 1]}), done(w, o))[1]
    with pytest.raises(KeyboardInterrupt):
        drive(connection, "a", "b", progress=Interrupt())
    assert len(submitted) == 1
    assert submitted[0].cancelled()
    with pytest.raises(CancelledError):
        submitted[0].result(timeout=1)


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:8786", "tls://node-7.cluster:8786", "tcp://[::1]:80"])
def test_addresses(text: str) -> None:
    assert parse_cluster(text) == 0
    assert parse_cluster("local:4") == 4


@pytest.mark.parametrize(
    "text",
    ["", "local", "local:0", "local:-1", "local:x", "host:8786", "http://h:1", "tcp://h", "tcp://:1", "tcp://h:x"],
)
def test_no_addresses(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be tcp://HOST:PORT of a Dask scheduler, or local:N for N processes"):
        extract([SlideFile("a", tmp_path / "a.svs")], tmp_path / "f", cluster=text)
    assert not (tmp_path / "f").exists()


def test_without_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(
        ConfigError, match=r"--cluster needs Dask, which is not installed; pip install 'wsi2d\[cluster\]'"
    ):
        connect("local:1").__enter__()


def test_a_worker_that_does_not_see_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wsi2d.features import cluster_worker

    monkeypatch.setattr(cluster_worker, "_SEE_S", 0.05)
    job = Job("r", tmp_path, ExtractConfig(), "x", wsi2d.__version__)
    said = f"{tmp_path} is not the folder that it is for the others; --out must lie on storage that all machines share"
    assert prepare(job) == said
    other = f"has wsi2d {wsi2d.__version__}, not 0.0.9; install the same on all machines"
    assert prepare(replace(job, version="0.0.9")) == other


@pytest.mark.parametrize(("given", "cores"), [("1", 1), ("0", 1), ("100000", None), ("", None), ("x", None)])
def test_processes_that_share_a_machine(monkeypatch: pytest.MonkeyPatch, given: str, cores: int | None) -> None:
    monkeypatch.delenv(CORES_VARIABLE, raising=False)
    every = available_cores()
    monkeypatch.setenv(CORES_VARIABLE, given)
    assert available_cores() == (cores or every)
