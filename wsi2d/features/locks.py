"""Locks beside files that several runs may want to write, on storage that machines share.

A lock is a small file that says who holds it. It comes into being by a hard link, which is atomic on NFS as well and
brings its content with it; `flock` and its kin are not relied on, since shared storage may ignore them. A lock is
stale, and is taken over, where its holder's process is gone from this machine, or where the holder is on another
machine and has given no sign of life for :data:`STALE_S`: a holder touches its locks every :data:`BEAT_S`.

Who takes over a stale lock first claims its place, with a lock that bears the stale one's token. One claim is held at a
time, so of two runs that find the same stale lock one gets it, and neither removes what the other has just made.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

from wsi2d.errors import StorageError
from wsi2d.files import partial_path, remove, unwritable

BEAT_S = 30.0
STALE_S = 600.0
_TRIES = 20  # of a lock that keeps changing hands
_TOKEN = re.compile(r"[0-9a-f]{32}")
_MOST_BYTES = 4096  # of a lock's content
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as the lock's file has it.

    Attributes:
        host: name of the machine, for people.
        machine: tells machines apart, also where they bear one name, and containers, whose process ids are their own;
            empty where the system does not say.
        pid, started: the process and when it started, in the system's clock ticks; a pid may be another's later.
        token: of this one lock.
        run: the run it belongs to, where that has processes on several machines; empty where it has one.
    """

    host: str
    machine: str
    pid: int
    started: int
    token: str
    run: str = ""


def lock_path(path: Path) -> Path:
    """Where the lock of a file lies."""
    return path.with_name(f".{path.name}.lock")


class Locks:
    """The locks that a run holds. Use as a context manager: what is held at its end, however it ends, is released.

    Args:
        stale_s: seconds without a sign of life after which a lock of another machine is taken over.
        run: of a run with processes on several machines, in which somebody sees to it that no two have one slide: what
            one of them holds another may take over, since the first is known to be gone.
    """

    def __init__(self, *, stale_s: float = STALE_S, run: str = "") -> None:
        self._stale_s, self._run = stale_s, run
        self._taken: dict[str, FileLock] = {}

    def __enter__(self) -> Locks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lock in list(self._taken.values()):
            lock.release()

    def take(self, path: Path) -> FileLock | None:
        """The lock of a file, or None where another holds it.

        Raises:
            StorageError: the folder does not take it.
        """
        return self._take(lock_path(path))

    def clear(self, folder: Path) -> None:
        """Remove the locks in a folder that killed processes left.

        Raises:
            StorageError: the folder cannot be read.
        """
        try:
            found = [Path(entry.path) for entry in os.scandir(folder) if _is_lock(entry.name)]
        except OSError as error:
            raise StorageError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
        for path in found:
            if (lock := self._take(path)) is not None:
                lock.release()

    def _take(self, path: Path) -> FileLock | None:
        lock = FileLock(path, self._stale_s, self._run)
        self._taken = {token: held for token, held in self._taken.items() if held.open}
        self._taken[lock.token] = lock  # before it is made: an interrupt may come at any time
        return lock if lock.take() else None


def clear_partial(path: Path, locks: Locks) -> None:
    """Remove what a killed process left of a file, unless somebody is writing it.

    Raises:
        StorageError: it cannot be removed.
    """
    if partial_path(path).exists() and (lock := locks.take(path)) is not None:
        with lock:
            remove(partial_path(path))


class FileLock:
    """One lock; use as a context manager once it is taken.

    Attributes:
        token: tells it from every other lock.
        open: whether it may hold anything; false once it is released.
    """

    def __init__(self, path: Path, stale_s: float, run: str) -> None:
        self._path, self._stale_s, self._run = path, stale_s, run
        self.token, self.open = uuid.uuid4().hex, True
        self._new, self._aside = (path.with_name(f".{self.token}.{what}lock") for what in ("", "gone."))
        self._content = json.dumps(asdict(_myself(self.token, run))).encode()
        self._now = 0.0

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def take(self) -> bool:
        """Take the lock; false where another holds it.

        Raises:
            StorageError: the folder does not take it.
        """
        taken = False
        _held[self.token] = self._path
        try:
            self._new.write_bytes(self._content)
            self._now = self._new.stat().st_mtime  # by the storage's clock, as the others' signs of life
            taken = self._take(self._path)
        except OSError as error:
            raise unwritable(self._path, error) from error
        finally:
            if taken:
                with suppress(OSError):
                    self._new.unlink(missing_ok=True)
                _heart.beat()
            else:
                self.release()
        return taken

    def is_mine(self) -> bool:
        """Whether it is still this process': one that was suspended for long may have lost it."""
        try:
            return self._bears_our_token()
        except OSError:
            return True  # the storage does not answer now; what is written next will say so

    def release(self) -> None:
        """Remove the lock where it is ours; again is no harm.

        What cannot be removed is stale once this process ends.
        """
        if self.token in _held:  # not in a fork, which has no part in its parent's locks
            for path in (self._new, self._aside):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            with suppress(OSError):
                if self.open and self._bears_our_token():
                    self._remove()
        self.open = False
        _held.pop(self.token, None)

    def _remove(self) -> None:
        """Remove the lock: it is moved aside and looked at there, since this process may have been suspended after the
        last look, for so long that another took the lock over. That one's is put back."""
        try:
            os.rename(self._path, self._aside)
        except FileNotFoundError:
            return
        found = _read(self._aside)
        if found is not None and found[0].token != self.token:
            try:
                os.link(self._aside, self._path)
            except FileExistsError:
                pass  # a third has it by now, and the second will see that
            except OSError:  # no hard links here
                os.rename(self._aside, self._path)
        self._aside.unlink(missing_ok=True)

    def _bears_our_token(self) -> bool:
        found = _read(self._path)
        return found is not None and found[0].token == self.token

    def _take(self, path: Path) -> bool:
        for _ in range(_TRIES):
            if self._make(path):
                return True
            found = _read(path)
            if found is None:  # released meanwhile
                continue
            holder, beat = found
            if holder.token == self.token:  # made after all: NFS may ask twice, and the second answer is "it exists"
                return True
            is_of_our_run = self._run != "" and holder.run == self._run
            if not (is_of_our_run or _is_stale(holder, self._now - beat, self._stale_s)):
                return False
            claim = path.with_name(f".{holder.token}.next.lock")
            if not self._take(claim):
                return False
            again = _read(path)
            if again is not None and again[0].token == holder.token:
                os.replace(claim, path)
                return True
            claim.unlink(missing_ok=True)
        return False

    def _make(self, path: Path) -> bool:
        """Make the lock where there is none."""
        try:
            os.link(self._new, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            try:
                with path.open("xb") as file:  # its content comes a moment later; until then it is a live stranger's
                    file.write(self._content)
            except FileExistsError:
                return False
        return True


def _is_lock(name: str) -> bool:
    return name.startswith(".") and name.endswith(".lock")


def _read(path: Path) -> tuple[Holder, float] | None:
    """Who holds a lock, and the time of the last sign of life; None where there is no lock."""
    try:
        with path.open("rb") as file:  # opened, NFS asks its server; a bare stat may be minutes old
            content, beat = file.read(_MOST_BYTES), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    try:
        values = json.loads(content)
        holder = Holder(**values)
        if _TOKEN.fullmatch(holder.token) and isinstance(holder.pid, int) and isinstance(holder.started, int):
            return holder, beat
    except (ValueError, TypeError, RecursionError):
        pass
    # Being written, or damaged: a stranger's, known by what it holds.
    return Holder("", "", 0, 0, hashlib.sha256(path.name.encode() + b"\0" + content).hexdigest()[:32]), beat


def _is_stale(holder: Holder, silent_s: float, stale_s: float) -> bool:
    machine = _machine()
    if not machine or holder.machine != machine:
        return silent_s > stale_s
    if holder.pid == os.getpid() and holder.started == _started(os.getpid()):
        return holder.token not in _held
    return _is_gone(holder.pid, holder.started)


def _is_gone(pid: int, started: int) -> bool:
    """Whether a process of this machine has ended."""
    now = _started(pid)
    if now is not None:
        return now != started
    try:
        os.kill(pid, 0)
    except PermissionError:  # another user's, where the system hides those
        return False
    except (ProcessLookupError, OverflowError):
        return True
    return Path(f"/proc/{pid}").exists()  # a process that has ended and that nobody has asked for yet


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks since this machine did; None where none is seen that runs."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])  # state and start: fields 3 and 22 of proc(5)


@cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not a Linux: whether a pid is still the same process cannot be told, signs of life can
        return ""


def _myself(token: str, run: str = "") -> Holder:
    return Holder(socket.gethostname(), _machine(), os.getpid(), _started(os.getpid()) or 0, token, run)


class _Heart:
    """A thread that touches this process' locks, as long as there are any."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._beats = False

    def beat(self) -> None:
        """Begin, if it has not."""
        with self._guard:
            if not self._beats:
                threading.Thread(target=self._run, daemon=True, name="wsi2d-locks").start()
                self._beats = True

    def _run(self) -> None:
        while True:
            time.sleep(BEAT_S)
            for token, path in list(_held.items()):
                with suppress(OSError):
                    found = _read(path)
                    if found is not None and found[0].token == token:
                        os.utime(path)  # no times given: the storage's clock
            with self._guard:
                if not _held:
                    self._beats = False
                    return


def _begin_anew() -> None:
    """In a fork: the parent's locks are the parent's, and its thread is not here to give signs of life."""
    global _heart
    _held.clear()
    _heart = _Heart()


_held: dict[str, Path] = {}
_heart = _Heart()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
