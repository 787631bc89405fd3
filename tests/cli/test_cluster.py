"""`wsi2d extract --cluster` with real schedulers and workers on 127.0.0.1.

The files are those of one machine, to the bit, whoever is killed; what cannot be is one line; nothing is left.
"""

import json
import os
import random
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("distributed", reason="Dask is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="this system has no /proc to find processes in"),
]
SLIDES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def slides(middling_slides: Path) -> Path:
    """Read only."""
    return middling_slides


@pytest.fixture(scope="module")
def extraction(slides: Path) -> Callable[..., list[object]]:
    """The arguments of a command."""

    def arguments(out: Path, *more: object, folder: Path = slides) -> list[object]:
        return ["extract", folder, "--out", out, "--patch-px", 48, "--batch-size", 32, "--overlap-px", 20, *more]

    return arguments


@pytest.fixture(scope="module")
def features(harness: ModuleType, extraction: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The feature files of an extraction on one machine that nothing disturbed."""
    out = tmp_path_factory.mktemp("features")
    found: dict[str, bytes] = harness.undisturbed(out, *extraction(out))
    assert sorted(found) == [f"{name}.h5" for name in SLIDES]
    return found


class Cluster:
    """A scheduler, and workers that are added to it; all of them end with the block."""

    def __init__(self, harness: ModuleType, folder: Path) -> None:
        self._harness, self._folder, self._stack = harness, folder, ExitStack()
        self.workers: list[Any] = []

    def __enter__(self) -> "Cluster":
        told = self._folder / "scheduler.json"
        self.scheduler = self.start(
            "scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            0,
            "--no-dashboard",
            "--dashboard-address",
            "127.0.0.1:0",
            "--scheduler-file",
            told,
        )
        assert self.scheduler.reaches(told.exists)
        assert self.scheduler.reaches(lambda: told.read_text().strip().endswith("}"))
        self.address = json.loads(told.read_text())["address"]
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def start(self, *arguments: object) -> Any:
        """A command of Dask's."""
        return self._stack.enter_context(self._harness.Command(*arguments, module="dask", silent=True))

    def worker(self, *more: object, preload: str = "") -> Any:
        """A worker, in another working directory than the driver's; it runs some Python first."""
        options = ["--host", "127.0.0.1", "--nthreads", 2, "--no-dashboard", "--local-directory", self._folder, *more]
        if preload:
            file = self._folder / f"preload{len(self.workers)}.py"
            file.write_text(preload)
            options += ["--preload", file]
        self.workers.append(self.start("worker", self.address, *options))
        return self.workers[-1]


@pytest.fixture
def cluster(harness: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler without workers yet."""
    with Cluster(harness, tmp_path_factory.mktemp("dask")) as started:
        yield started


def holders(out: Path) -> dict[str, int]:
    """Which process is at which slide."""
    found = {}
    for lock in out.glob(".*.h5.lock"):
        try:
            found[lock.name] = int(json.loads(lock.read_text())["pid"])
        except (FileNotFoundError, ValueError):
            continue
    return found


def settled(out: Path, expected: dict[str, bytes], content: Callable[[Path], dict[str, bytes]]) -> None:
    """The folder holds these files and, after a moment in which workers let go, nothing else."""
    deadline = time.monotonic() + 30
    while content(out).keys() != expected.keys() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert content(out) == expected


def test_processes_of_this_machine(
    harness: ModuleType, extraction: Any, features: dict[str, bytes], slides: Path, tmp_path: Path, write_slide: Any
) -> None:
    """With a slide that is none and one without tissue: the same is said of them as on one machine."""
    folder, out = tmp_path / "slides", tmp_path / "f"
    folder.mkdir()
    for path in slides.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "bad.svs").write_bytes(b"no slide")
    write_slide(folder / "blank.tiff", np.full((600, 700, 3), 244, np.uint8), levels=2)
    alone = harness.run(*extraction(tmp_path / "alone", folder=folder))
    ended = harness.run(*extraction(out, "--cluster", "local:2", folder=folder))
    assert (ended.code, sorted(ended.err.splitlines())) == (1, sorted(alone.err.splitlines()))
    assert ended.out.rpartition(" → ")[0] == alone.out.rpartition(" → ")[0]
    assert harness.content(out) == harness.content(tmp_path / "alone")
    assert {name: data for name, data in harness.content(out).items() if name in features} == features
    again = harness.run(*extraction(out, "--cluster", "local:2", folder=folder))
    assert "0 done, 5 already finished, 1 failed, of 6" in again.out


@pytest.mark.parametrize(
    ("moment", "how"), [("start", "SIGINT"), ("start", "SIGKILL"), ("slide", "SIGTERM"), ("slide", "SIGKILL")]
)
def test_processes_of_this_machine_end_with_the_run(
    harness: ModuleType, extraction: Any, features: dict[str, bytes], tmp_path: Path, how: str, moment: str
) -> None:
    out = tmp_path / "f"
    with harness.Command(*extraction(out, "--cluster", "local:2")) as command:
        moments = {"start": lambda: len(command.processes()) > 2, "slide": lambda: bool(holders(out))}
        assert command.reaches(moments[moment])
        if how == "SIGKILL":  # processes that were being started may say that they were left alone
            command.signal(signal.SIGKILL, group=False)
            assert command.end().code == -signal.SIGKILL
        else:
            harness.check_end(command, how)
    if how != "SIGKILL":
        assert set(harness.content(out) if out.exists() else {}) <= set(features), "no lock, no half file"
    ended = harness.run(*extraction(out, "--cluster", "local:1"))
    assert (ended.code, ended.err) == (0, "")
    assert harness.content(out) == features


def test_workers_that_are_killed(
    harness: ModuleType, extraction: Any, features: dict[str, bytes], tmp_path: Path, cluster: Cluster
) -> None:
    """Again and again, in the midst of a slide, at moments that nobody chose: only time is lost."""
    chance = random.Random(7)
    cluster.worker()
    cluster.worker("--resources", "GPU=1")
    cluster.worker("--resources", "GPU=1")
    for attempt in range(3):
        out, killed = tmp_path / f"f{attempt}", 0
        with harness.Command(*extraction(out, "--cluster", cluster.address)) as command:
            while killed < 2 and command.reaches(lambda out=out: bool(holders(out))):
                time.sleep(chance.uniform(0, 1.2))
                for pid in list(holders(out).values())[:1]:
                    with harness.ignored_if_gone():
                        os.kill(pid, signal.SIGKILL)
                        killed += 1
                time.sleep(chance.uniform(0, 2))
            ended = command.end()
        assert killed, "it was over before anything could be killed"
        assert (ended.code, ended.err) == (0, "")
        counts = re.search(r"(\d+) done, (\d+) already finished", ended.out)
        assert counts is not None, ended.out
        assert int(counts[1]) + int(counts[2]) == 4
        assert harness.content(out) == features


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_driver_that_ends(
    harness: ModuleType, extraction: Any, features: dict[str, bytes], tmp_path: Path, cluster: Cluster, how: str
) -> None:
    """The workers let go of its slides, and serve the next."""
    out = tmp_path / "f"
    cluster.worker("--no-nanny")
    with harness.Command(*extraction(out, "--cluster", cluster.address)) as command:
        assert command.reaches(lambda: bool(holders(out)))
        harness.check_end(command, how)
    deadline = time.monotonic() + 60
    while holders(out) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [name for name in harness.content(out) if name not in features]
    assert [name for name in left if not name.startswith(".run-")] == []
    assert how == "SIGKILL" or left == []
    ended = harness.run(*extraction(out, "--cluster", cluster.address))
    assert (ended.code, ended.err) == (0, "")
    assert harness.content(out) == features


def test_a_scheduler_that_dies(
    harness: ModuleType, extraction: Any, features: dict[str, bytes], tmp_path: Path, cluster: Cluster
) -> None:
    out = tmp_path / "f"
    cluster.worker()
    with harness.Command(*extraction(out, "--cluster", cluster.address)) as command:
        assert command.reaches(lambda: bool(holders(out)))
        cluster.scheduler.signal(signal.SIGKILL)
        ended = command.end()
    line = f"error: {cluster.address}: the scheduler is gone; run the same command again to go on"
    assert (ended.code, ended.out, harness.said(ended)) == (2, "", [line])
    settled(out, {name: data for name, data in features.items() if (out / name).exists()}, harness.content)
    assert harness.run(*extraction(out)).code == 0
    assert harness.content(out) == features


def test_nobody_answers(harness: ModuleType, extraction: Any, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        ended = harness.run(*extraction(tmp_path / "f", "--cluster", address))
    assert (ended.code, ended.out) == (2, "")
    (line,) = harness.said(ended)
    assert line.startswith(f"error: {address}: no Dask scheduler answers there (")
    assert line.endswith("); start one with `dask scheduler`, or check the address")


UNFIT = {
    "version": (
        "import wsi2d; wsi2d.__version__ = '0.0.9'",
        "has wsi2d 0.0.9, not 0.1.0; install the same on all machines",
    ),
    "folder": (
        "import wsi2d.features.cluster_worker as w; w._is_there = lambda path: False",
        "f is not the folder that it is for the others; --out must lie on storage that all machines share",
    ),
    "encoder": (
        "import wsi2d.features.histology_stats as h; h.hashlib = type('H', (), {'sha256': lambda d: h})\n"
        "h.hexdigest = lambda: 'other'",
        "encoder 'histology-stats' is other there, ",
    ),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_worker_that_does_not_fit(
    harness: ModuleType, extraction: Any, features: dict[str, bytes], tmp_path: Path, cluster: Cluster, what: str
) -> None:
    """Alone it is the end, in one line; beside another it is left out."""
    preload, words = UNFIT[what]
    out = tmp_path / "f"
    cluster.worker("--no-nanny", preload=preload)
    ended = harness.run(*extraction(out, "--cluster", cluster.address))
    assert (ended.code, ended.out) == (2, "")
    (line,) = harness.said(ended)
    assert line.startswith(f"error: {cluster.address}: no worker can be used; ")
    assert words in line
    assert harness.content(out) == {}
    cluster.worker("--no-nanny")
    with harness.Command(*extraction(out, "--cluster", cluster.address)) as command:
        ended = command.end()
    if ended.code == 2:  # it was there before the other was
        ended = harness.run(*extraction(out, "--cluster", cluster.address))
    assert ended.code == 0
    (warning,) = ended.err.splitlines()
    assert warning.startswith("warning: worker tcp://127.0.0.1:")
    assert words in warning
    assert harness.content(out) == features


def test_slides_that_workers_do_not_see(harness: ModuleType, extraction: Any, tmp_path: Path, cluster: Cluster) -> None:
    """Named after three tries; the folder is seen."""
    out = tmp_path / "f"
    cluster.worker(
        "--no-nanny",
        preload="import wsi2d.features.cluster_worker as w; w._is_there = lambda path: path.suffix == '.lock'",
    )
    ended = harness.run(*extraction(out, "--cluster", cluster.address))
    assert ended.code == 1
    assert "0 done, 0 already finished, 4 failed, of 4" in ended.out
    for line in harness.said(ended):
        assert " failed 3 times, at last: " in line
        assert line.endswith("; slides must lie on storage that all machines share")
    assert sorted(harness.content(out)) == ["failures.csv"]
