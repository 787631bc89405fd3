"""Commands run as a user's do, in processes of their own, and stopped, killed or short of room as a test likes.

For tests on systems with ``/proc`` and limits of resources.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

MARK = "WSI2D_TEST_MARK"  # a variable of the environment: whatever comes of a command has it, in whichever session
STOPPED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
SIDE = 1100  # px: a slide is encoded for some tenths of a second
LIMIT_S = 180.0  # for whatever comes sooner or later on a machine that is busy otherwise
GONE_S = 20.0  # for processes to end once their command has


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
        module: run instead of ``wsi2d``.
        silent: what it says is of no interest, and may be much.
    """

    def __init__(
        self, *arguments: object, room: int | None = None, module: str = "wsi2d.cli.main", silent: bool = False
    ) -> None:
        self._mark = uuid.uuid4().hex
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdout=subprocess.DEVNULL if silent else subprocess.PIPE,
            stderr=subprocess.DEVNULL if silent else subprocess.PIPE,
            text=True,
            env={**os.environ, MARK: self._mark, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            preexec_fn=lambda: _in_the_child(room),
        )

    @property
    def pid(self) -> int:
        """Of the command's own process."""
        return self._process.pid

    def __enter__(self) -> Command:
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


def paint_slides(folder: Path, names: Sequence[str], write_slide: Any, *, side: int = SIDE) -> Path:
    """Slides of pink tissue on glass, each encoded long enough to be interrupted; ``write_slide`` is the fixture."""
    for i, name in enumerate(names):
        rgb = np.full((side, side + 10, 3), 244, np.uint8)
        tissue = rgb[20:-20, 20:-30]
        tissue[:] = np.array([225, 150, 190]) + np.random.default_rng(i).integers(-8, 9, tissue.shape)
        write_slide(folder / f"{name}.tiff", rgb, levels=2)
    return folder


def undisturbed(out: Path, *arguments: object) -> dict[str, bytes]:
    """The files of an extraction into ``out`` that nothing disturbed."""
    ended = run(*arguments)
    assert (ended.code, ended.err) == (0, "")
    return content(out)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


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


def check_extracted(out: Path, features: dict[str, bytes]) -> None:
    """What bears its final name is whole; whatever else is there is a partial file of such a name, or a lock."""
    for name, data in content(out).items() if out.exists() else ():
        final = name.removeprefix(".").removesuffix(".partial")
        if name.startswith(".") and name.endswith(".lock"):
            continue
        assert final in features
        assert name != final or data == features[name], f"{name} is not whole"


def writing(out: Path, name: str) -> Callable[[], bool]:
    """The moment when a slide's patches are being encoded (or just have been)."""
    return lambda: (out / f".{name}.h5.partial").exists() or (out / f"{name}.h5").exists()
