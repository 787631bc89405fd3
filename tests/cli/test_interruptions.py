"""Ctrl-C, a batch system's termination, a kill and a full disk lose nothing.

No half file bears its final name, no process stays, the user reads one line, and the same command, run again with
room, ends with the bytes of a run that nothing disturbed. The commands run as a user's do: processes of their own.
"""

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors import safe_open

resource = pytest.importorskip("resource", reason="this system has no limits to fill a disk with")
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="this system has no /proc to find processes in"
)

STRESS = pytest.mark.stress
MARK = "WSI2D_TEST_MARK"  # a variable of the environment: whatever comes of a command has it, in whichever session
STOPPED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
SLIDES = ("a", "b", "c", "d", "e")
SIDE = 1100  # px: a slide is encoded for some tenths of a second
LIMIT_S = 180.0  # for whatever comes sooner or later on a machine that is busy otherwise
GONE_S = 20.0  # for processes to end once their command has


# --- commands


@dataclass(frozen=True)
class Ended:
    """What a command left behind; its code is negative where a signal ended it."""

    code: int
    out: str
    err: str


class Command:
    """``wsi2d`` with arguments, in a session of its own as a terminal starts it; nothing of it outlives the block.

    Args:
        arguments: of the command.
        room: bytes that a file may have, as on a disk that is full beyond them.
    """

    def __init__(self, *arguments: object, room: int | None = None) -> None:
        self._mark = uuid.uuid4().hex
        self._process = subprocess.Popen(
            [sys.executable, "-m", "wsi2d.cli.main", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, MARK: self._mark, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            preexec_fn=lambda: _in_the_child(room),
        )

    @property
    def pid(self) -> int:
        """Of the command's own process."""
        return self._process.pid

    def __enter__(self) -> "Command":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self.processes():
            with ignored_if_gone():
                os.kill(pid, signal.SIGKILL)
        self._process.communicate(timeout=LIMIT_S)

    def processes(self) -> list[int]:
        """What runs of it: itself, its children, and theirs."""
        marked = f"{MARK}={self._mark}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with ignored_if_gone():
                if marked in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found

    def reaches(self, moment: Callable[[], bool]) -> bool:
        """Wait for a moment; false where the command ended before it was seen."""
        deadline = time.monotonic() + LIMIT_S
        while not moment():
            if self._process.poll() is not None:
                return False
            assert time.monotonic() < deadline, "the moment did not come"
            time.sleep(0.003)
        return self._process.poll() is None

    def listens(self) -> bool:
        """Whether it would notice a termination (before, Python has hardly started)."""
        with ignored_if_gone():
            status = Path(f"/proc/{self._process.pid}/status").read_text("utf-8")
            caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))
            return bool(caught >> (signal.SIGTERM - 1) & 1)
        return False

    def signal(self, number: signal.Signals, *, group: bool = True) -> None:
        """Send a signal to the whole group, as a terminal does, or to the command alone, as a batch system may."""
        with ignored_if_gone():
            (os.killpg if group else os.kill)(self._process.pid, number)

    def fill_disk(self, room: int = 0) -> None:
        """From now on no file may have more bytes."""
        for pid in self.processes():
            with ignored_if_gone():
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

    def end(self, within_s: float = LIMIT_S) -> Ended:
        """Wait for its end, and for that of all its processes."""
        out, err = self._process.communicate(timeout=within_s)
        deadline = time.monotonic() + GONE_S
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert self.processes() == [], "processes are left"
        return Ended(self._process.returncode, out, err)


@contextmanager
def ignored_if_gone() -> Iterator[None]:
    """For what is done to a process that may have ended."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return


def run(*arguments: object, room: int | None = None) -> Ended:
    """A command from its start to its end."""
    with Command(*arguments, room=room) as command:
        return command.end()


def _in_the_child(room: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs, these tests perhaps, ignore it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if room is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))


@contextmanager
def room_in_this_process(room: int) -> Iterator[None]:
    """No file may have more bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def stopped_by(ended: Ended, number: signal.Signals) -> None:
    """It ended as it was told to, and says so in one line; a shell shows both of these codes as the first."""
    assert ended.code in (128 + number, -number), ended
    assert said(ended) == [f"{STOPPED[number]}; run the same command again to go on"]


def stopped_at_any_moment(seed: int, *arguments: object) -> Iterator[Ended]:
    """A command, stopped again and again at moments that nobody chose, also by an impatient second Ctrl-C."""
    chance = random.Random(seed)
    for _ in range(4):
        number = chance.choice([signal.SIGINT, signal.SIGTERM])
        with Command(*arguments) as command:
            assert command.reaches(command.listens)
            time.sleep(chance.uniform(0, 4))
            command.signal(number)
            if chance.random() < 0.3:
                time.sleep(chance.uniform(0, 0.2))
                command.signal(number)
            ended = command.end()
        if "→" not in ended.out:  # else it had come to its end
            stopped_by(ended, number)
        yield ended


def refused(ended: Ended, where: Path) -> None:
    """It ended with one line of error, which names a file and a reason."""
    assert ended.code == 2, ended
    (line,) = said(ended)
    assert line.startswith(f"error: {where}"), line
    assert "cannot be written" in line
    assert "File too large" in line
    assert len(line) < len(str(where)) + 200, "a reason, not the storage library's memory addresses"


def said(ended: Ended) -> list[str]:
    """What stderr holds besides warnings and the cohort's description."""
    assert "Traceback" not in ended.err, ended.err
    assert "Exception ignored" not in ended.err, ended.err
    expected = ("warning: ", "14 slides of 12 patients")
    return [line for line in ended.err.splitlines() if not (line.startswith(expected) or "joblib" in line)]


# --- extraction


@pytest.fixture(scope="module")
def slides(write_slide: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of slides, each encoded long enough to be interrupted."""
    folder = tmp_path_factory.mktemp("slides")
    for i, name in enumerate(SLIDES):
        rgb = np.full((SIDE, SIDE + 10, 3), 244, np.uint8)
        tissue = rgb[20:-20, 20:-30]
        tissue[:] = np.array([225, 150, 190]) + np.random.default_rng(i).integers(-8, 9, tissue.shape)
        write_slide(folder / f"{name}.tiff", rgb, levels=2)
    return folder


@pytest.fixture(scope="module")
def features(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The feature files of an extraction that nothing disturbed."""
    out = tmp_path_factory.mktemp("features")
    ended = run(*extraction(slides, out))
    assert (ended.code, ended.err) == (0, "")
    found = content(out)
    assert sorted(found) == [f"{name}.h5" for name in SLIDES]
    return found


def extraction(slides: Path, out: Path) -> tuple[object, ...]:
    """The arguments of a command; several batches a slide."""
    return "extract", slides, "--out", out, "--patch-px", 48, "--batch-size", 32


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def check_extracted(out: Path, features: dict[str, bytes]) -> None:
    """What bears its final name is whole; whatever else is there is a partial file of such a name."""
    for name, data in content(out).items() if out.exists() else ():
        final = name.removeprefix(".").removesuffix(".partial")
        assert final in features
        assert name != final or data == features[name], f"{name} is not whole"


def writing(out: Path, name: str) -> Callable[[], bool]:
    """The moment when a slide's patches are being encoded (or just have been)."""
    return lambda: (out / f".{name}.h5.partial").exists() or (out / f"{name}.h5").exists()


def finish_extraction(slides: Path, out: Path, features: dict[str, bytes]) -> None:
    """The same command, now with room and in peace."""
    ended = run(*extraction(slides, out))
    assert (ended.code, ended.err) == (0, "")
    assert content(out) == features


def test_extraction_interrupted_then_out_of_room(slides: Path, features: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "f"
    with Command(*extraction(slides, out)) as command:
        assert command.reaches(writing(out, "b"))
        command.signal(signal.SIGINT)
        stopped_by(command.end(), signal.SIGINT)
    check_extracted(out, features)
    assert (out / "a.h5").exists(), "a finished slide is kept"
    full = run(*extraction(slides, out), room=len(features["b.h5"]) // 2)
    check_extracted(out, features)
    finish_extraction(slides, out, features)
    refused(full, out)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start", "reading", "first slide", "third slide", "slide done"])
@pytest.mark.parametrize(
    "how", ["SIGINT", "SIGKILL", *(pytest.param(how, marks=STRESS) for how in ("SIGTERM", "SIGTERM to it alone"))]
)
def test_extraction_stopped(slides: Path, features: dict[str, bytes], tmp_path: Path, how: str, moment: str) -> None:
    out = tmp_path / "f"
    with Command(*extraction(slides, out)) as command:
        moments = {
            "start": command.listens,
            "reading": lambda: len(command.processes()) > 1,
            "first slide": writing(out, "a"),
            "third slide": writing(out, "c"),
            "slide done": (out / "a.h5").exists,
        }
        assert command.reaches(moments[moment])
        check_end(command, how)
    check_extracted(out, features)
    finish_extraction(slides, out, features)


def check_end(command: Command, how: str) -> None:
    """Send a signal by its name, and see the command end as it should."""
    number = signal.Signals[how.split()[0]]
    command.signal(number, group=number != signal.SIGKILL and "alone" not in how)
    ended = command.end()
    if number == signal.SIGKILL:
        assert ended.code == -number
        assert said(ended) == []
    else:
        stopped_by(ended, number)


@STRESS
@pytest.mark.parametrize("seed", range(3))
def test_extraction_stopped_at_any_moment(slides: Path, features: dict[str, bytes], tmp_path: Path, seed: int) -> None:
    out = tmp_path / "f"
    for _ in stopped_at_any_moment(seed, *extraction(slides, out)):
        check_extracted(out, features)
    finish_extraction(slides, out, features)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.00013, 0.0005, 0.01, 0.1, 0.5, 0.95, 1.0])
def test_extraction_out_of_room(slides: Path, features: dict[str, bytes], tmp_path: Path, share: float) -> None:
    """The feature file fails where it is made, within, and with its last byte."""
    out = tmp_path / "f"
    size = min(map(len, features.values()))
    full = run(*extraction(slides, out), room=min(int(share * size), size - 1))
    assert content(out) == {}, "what is half written is removed at once, the disk being full"
    finish_extraction(slides, out, features)
    refused(full, out)


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 100_000])
def test_disk_fills_while_slides_are_extracted(
    slides: Path, features: dict[str, bytes], tmp_path: Path, room: int
) -> None:
    out = tmp_path / "f"
    with Command(*extraction(slides, out)) as command:
        assert command.reaches(writing(out, "b"))
        command.fill_disk(room)
        full = command.end()
    check_extracted(out, features)
    assert (out / "a.h5").exists()
    finish_extraction(slides, out, features)
    refused(full, out)


@pytest.mark.slow
def test_chunks_written_on_the_way_have_no_room(slides: Path, tmp_path: Path) -> None:
    """A feature file larger than what HDF5 holds back: it fails while patches are encoded."""
    out = tmp_path / "f"
    arguments = "extract", slides / "a.tiff", "--out", out, "--patch-px", 48, "--overlap-px", 36
    full = run(*arguments, room=1_500_000)
    assert content(out) == {}
    assert run(*arguments).code == 0
    assert (out / "a.h5").stat().st_size > 3_000_000
    refused(full, out)


@pytest.mark.slow
def test_a_reader_that_hangs_does_not_hold_up_an_interrupt(slides: Path, tmp_path: Path) -> None:
    """A decoder hangs, or the storage does: who interrupts need not wait for the time limit of a region, 120 s."""
    out = tmp_path / "f"
    with Command(*extraction(slides, out)) as command:
        assert command.reaches(writing(out, "a"))
        for reader in set(command.processes()) - {command.pid}:
            with ignored_if_gone():
                os.kill(reader, signal.SIGSTOP)
        time.sleep(0.5)
        command.signal(signal.SIGINT)
        ended = command.end(within_s=60)
    stopped_by(ended, signal.SIGINT)


# --- training


@pytest.fixture(scope="module")
def write_study(tiny: ModuleType) -> Callable[..., Path]:
    """Writes the tiny study with one large slide on each test side, whose attention is the largest file of its fold,
    with epochs enough to be interrupted, and an evaluation that takes its time."""

    def write(folder: Path, kind: str = "classification", **training: Any) -> Path:
        path: Path = tiny.write_study(folder, kind, training={"epochs": 8, **training}, evaluation={"bootstrap": 300})
        rng = np.random.default_rng(1)
        for name in ("s00x", "s02x"):
            tiny.write_features(
                folder / "features", name, rng.normal(size=(2200, tiny.DIM)).astype(np.float32), shape=(48, 48)
            )
        return path

    return write


@pytest.fixture(scope="module")
def trained(write_study: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    from wsi2d.training.crossval import train

    path = write_study(tmp_path_factory.mktemp("trained"))
    train(path)
    return path.with_name("run")


def numbers(run_folder: Path) -> dict[str, bytes]:
    """Everything a run computes; not how long it took, nor where and how it ran."""
    told = {"config.yaml", "environment.json"}
    files = content(run_folder)
    return {name: data for name, data in files.items() if name not in told and not name.endswith("history.csv")}


def finish_training(tiny: ModuleType, path: Path, trained: Path) -> None:
    """The same command, now with room and in peace."""
    ended = run("train", path)
    assert ended.code == 0, ended
    assert said(ended) == []
    found = path.with_name("run")
    assert numbers(found) == numbers(trained)
    assert tiny.files_of(found) == tiny.files_of(trained)
    for fold in (0, 1):
        assert history(found, fold) == history(trained, fold)


def history(run_folder: Path, fold: int) -> list[list[str]]:
    """The history without its times."""
    rows = (run_folder / f"fold-{fold}" / "history.csv").read_text("utf-8").splitlines()
    at = rows[0].split(",").index("seconds")
    return [[value for i, value in enumerate(row.split(",")) if i != at] for row in rows]


def check_trained(run_folder: Path, trained: Path) -> None:
    """What bears its final name is whole; whatever else is there is a partial file of such a name."""
    expected = content(trained)
    known = {*expected, *(f"fold-{fold}/last.safetensors" for fold in (0, 1))}
    for name, data in content(run_folder).items() if run_folder.exists() else ():
        path = run_folder / name
        final = path.with_name(path.name.removeprefix(".").removesuffix(".partial"))
        assert final.relative_to(run_folder).as_posix() in known
        if path != final or name == "environment.json":
            continue
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                assert all(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118 - it is no dict
        elif path.name == "history.csv":
            columns = {row.count(",") for row in data.decode().splitlines()}
            assert len(columns) == 1
            assert data.endswith(b"\n")
        elif name == "config.yaml":
            assert data.endswith(expected[name][-20:]), "it ends as the whole one does"
        else:
            assert data == expected[name], f"{name} is not whole"
    for path in run_folder.glob("fold-*/attention/*.h5"):
        with h5py.File(path) as file:
            assert len(file["attention"]) == len(file["coords"])


def test_training_terminated(tiny: ModuleType, write_study: Callable[..., Path], trained: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path)
    found = path.with_name("run")
    with Command("train", path) as command:
        assert command.reaches((found / "fold-0" / "last.safetensors").exists)
        check_end(command, "SIGTERM")
    check_trained(found, trained)
    finish_training(tiny, path, trained)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start", "first epoch", "attention", "second fold", "evaluation"])
@pytest.mark.parametrize(
    ("how", "workers"),
    [
        ("SIGINT", 1),
        ("SIGTERM", 2),
        pytest.param("SIGTERM", 1, marks=STRESS),
        pytest.param("SIGINT", 2, marks=STRESS),
        pytest.param("SIGTERM to it alone", 2, marks=STRESS),
    ],
)
def test_training_stopped(
    tiny: ModuleType,
    write_study: Callable[..., Path],
    trained: Path,
    tmp_path: Path,
    how: str,
    moment: str,
    workers: int,
) -> None:
    path = write_study(tmp_path, workers=workers)
    found = path.with_name("run")
    with Command("train", path) as command:
        moments = {
            "start": command.listens,
            "first epoch": (found / "fold-0" / "history.csv").exists,
            "attention": (found / "fold-0" / "attention").exists,
            "second fold": (found / "fold-1" / "history.csv").exists,
            "evaluation": (found / "predictions.csv").exists,
        }
        assert command.reaches(moments[moment])
        check_end(command, how)
    check_trained(found, trained)
    finish_training(tiny, path, trained)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_training_stopped_while_its_processes_start(
    write_study: Callable[..., Path], trained: Path, tmp_path: Path, how: str
) -> None:
    """They come to nothing, and say nothing of it."""
    path = write_study(tmp_path, workers=2)
    for delay_s in (0.0, 0.5, 1.0, 1.5, 2.0):
        with Command("train", path) as command:
            assert command.reaches(lambda command=command: len(command.processes()) > 1)
            time.sleep(delay_s)
            check_end(command, how)
        check_trained(path.with_name("run"), trained)


@STRESS
@pytest.mark.parametrize(("workers", "seed"), [(1, 0), (1, 1), (2, 2), (2, 3)])
def test_training_stopped_at_any_moment(
    tiny: ModuleType, write_study: Callable[..., Path], trained: Path, tmp_path: Path, workers: int, seed: int
) -> None:
    path = write_study(tmp_path, workers=workers)
    for _ in stopped_at_any_moment(seed, "train", path):
        check_trained(path.with_name("run"), trained)
    finish_training(tiny, path, trained)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "room", "name"),
    [
        (1, 0, "splits/splits_0.csv"),
        (1, 100, "cohort.csv"),
        (1, 400, "config.yaml"),
        (1, 1000, "fold-[01]/model.safetensors"),
        (2, 7000, "fold-[01]/model.safetensors"),
        (1, 15_000, "fold-[01]/last.safetensors"),
        (2, 15_000, "fold-[01]/last.safetensors"),
        (1, 27_000, "fold-[01]/attention/s0[02]x.h5"),
        (2, 27_000, "fold-[01]/attention/s0[02]x.h5"),
        (1, 32_000, "fold-[01]/attention/s0[02]x.h5"),
    ],
)
def test_training_out_of_room(
    tiny: ModuleType,
    write_study: Callable[..., Path],
    trained: Path,
    tmp_path: Path,
    room: int,
    name: str,
    workers: int,
) -> None:
    path = write_study(tmp_path, workers=workers)
    found = path.with_name("run")
    full = run("train", path, room=room)
    check_trained(found, trained)
    assert not list(found.rglob(".*.partial"))
    finish_training(tiny, path, trained)
    refused(full, found)
    where = Path(said(full)[0].removeprefix("error: ").partition(": ")[0])
    assert where.relative_to(found).match(name)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("moment", ["fold-0/history.csv", "fold-0/attention", "predictions.csv"])
def test_disk_fills_while_folds_are_trained(
    tiny: ModuleType, write_study: Callable[..., Path], trained: Path, tmp_path: Path, moment: str, workers: int
) -> None:
    path = write_study(tmp_path, workers=workers)
    found = path.with_name("run")
    with Command("train", path) as command:
        assert command.reaches((found / moment).exists)
        command.fill_disk()
        full = command.end()
    check_trained(found, trained)
    finish_training(tiny, path, trained)
    refused(full, found)


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_in_a_line(
    tiny: ModuleType, write_study: Callable[..., Path], trained: Path, tmp_path: Path
) -> None:
    """What a system short of memory does: it kills the largest process."""
    path = write_study(tmp_path, workers=2)
    found = path.with_name("run")
    with Command("train", path) as command:
        assert command.reaches(lambda: len(list(found.glob("fold-*/history.csv"))) == 2)
        os.kill(max(command.processes()), signal.SIGKILL)  # the last that was started
        ended = command.end()
    check_trained(found, trained)
    finish_training(tiny, path, trained)
    assert ended.code == 2, ended
    (line,) = said(ended)
    assert line.startswith("error: ")
    assert "training.workers" in line


# --- what is written without HDF5: commands in this process


@pytest.mark.parametrize(("room", "name"), [(100, "cohort.csv"), (5000, "model"), (10_000, "last")])
def test_weights_have_no_room(
    cli: Any, tiny: ModuleType, finished_run: Path, tmp_path: Path, room: int, name: str
) -> None:
    path = tiny.write_study(tmp_path / "study")
    found = path.with_name("run")
    with room_in_this_process(room):
        full = cli("train", path)
    refused(full, found)
    assert name in said(full)[0]
    assert not list(found.rglob(".*.partial"))
    assert cli("train", path).code == 0
    assert numbers(found) == numbers(finished_run)


@pytest.mark.parametrize("name", ["metrics.json", "predictions.csv"])
def test_results_have_no_room(cli: Any, tiny: ModuleType, tmp_path: Path, name: str) -> None:
    """A finished run that is run again: its tables are written anew."""
    kind = {"metrics.json": "classification", "predictions.csv": "survival"}[name]  # which of the tables is the larger
    path = tiny.write_study(tmp_path, kind)
    assert cli("train", path).code == 0
    found = path.with_name("run")
    before = content(found)
    verbs = [("train", path)] + [("evaluate --bootstrap 20", found)] * (name == "metrics.json")
    for verb, of in verbs:
        with room_in_this_process(len(before[name]) - 1):
            full = cli(verb, of)
        refused(full, found / name)
        after = content(found)
        assert after.pop(name, before[name]) == before[name]
        assert after == {k: v for k, v in before.items() if k in after}
        assert cli("train", path).code == 0
        assert content(found) == before


def test_failures_have_no_room(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    (slides / "torn.svs").write_bytes(b"no slide")
    command = "extract", slides, "--out", tmp_path / "f"
    with room_in_this_process(50):
        full = cli(*command)
    refused(full, tmp_path / "f" / "failures.csv")
    assert content(tmp_path / "f") == {}
    assert cli(*command).code == 1
    assert sorted(content(tmp_path / "f")) == ["failures.csv"]


@pytest.mark.parametrize("room", [0, 60])
def test_splits_have_no_room(cli: Any, finished_run: Path, tmp_path: Path, room: int) -> None:
    command = "splits make --folds 2 --label label", finished_run.parent / "cohort.csv", "--out", tmp_path / "s"
    with room_in_this_process(room):
        full = cli(*command)
    refused(full, tmp_path / "s")
    assert content(tmp_path / "s") == {}
    assert cli(*command).code == 0


def test_predictions_have_no_room(cli: Any, finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    command = "predict --device cpu", finished_run, finished_run.parent / "features", "--out", out
    assert cli(*command).code == 0
    before = out.read_bytes()
    for room in (0, 100, len(before) - 1):
        with room_in_this_process(room):
            full = cli(*command)
        refused(full, out)
        assert content(tmp_path) == {"out.csv": before}, "what was there stays"


@pytest.mark.parametrize(
    ("verb", "suffix"),
    [
        ("heatmap", "png"),
        ("heatmap", "pdf"),
        ("heatmap", "svg"),
        ("tissue", "png"),
        pytest.param("tissue", "pdf", marks=pytest.mark.slow),
        pytest.param("tissue", "svg", marks=pytest.mark.slow),
    ],
)
def test_pictures_have_no_room(
    cli: Any, write_slides: Any, finished_run: Path, tmp_path: Path, verb: str, suffix: str
) -> None:
    slide = write_slides(tmp_path / "slides", "s00x") / "s00x.tiff"
    out = tmp_path / "out" / f"picture.{suffix}"
    command = {
        "heatmap": ("heatmap --device cpu", finished_run, slide, "--out", out),
        "tissue": ("tissue", slide, "--out", out),
    }[verb]
    assert cli(*command).code == 0
    before = out.read_bytes()
    for room in (100, len(before) // 2):
        with room_in_this_process(room):
            full = cli(*command)
        refused(full, out)
        assert content(out.parent) == {out.name: before}, "what was there stays"
