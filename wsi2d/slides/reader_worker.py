"""A reader process as its parent has it: requests go down one pipe, answers come up another, in order."""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from wsi2d import errors
from wsi2d.slides.reader_process import LENGTH
from wsi2d.slides.regions import UnreadableRegionError

CLOSED = "the readers were closed"
_START_LIMIT_S = 120.0  # a reader imports its packages, perhaps from slow storage, while every core is busy
_CAN_POLL = hasattr(select, "poll")  # elsewhere pipes cannot be waited for
_PIPE_BYTES = 2**20  # where the system lets a pipe be as large
_SLICE_S = 1.0  # that a reader is waited for at a time
# The child finds this very package wherever its parent found it: in a checkout, an installation or a notebook's path.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from wsi2d.slides.reader_process import serve; serve()"
)


class ReaderProcessError(Exception):
    """A reader process crashed or gave no answer; the text says which."""


class RefusedError(ReaderProcessError):
    """What was asked raised; the process is well."""


@dataclass(frozen=True)
class Answer:
    """What a reader process answered; see :mod:`wsi2d.slides.reader_process` for the kinds."""

    kind: str
    content: Any

    def value(self) -> Any:
        """The value.

        Raises:
            Wsi2dError, UnreadableRegionError, RefusedError: it was raised in the process.
        """
        if self.kind == "unreadable":
            raise UnreadableRegionError(*self.content)
        if self.kind == "own error":
            name, text = self.content
            raise getattr(errors, name)(text)
        if self.kind == "error":
            raise RefusedError(self.content)
        return self.content


class Worker:
    """One reader process.

    It is started at once and need not be waited for: what is sent before it is ready is answered then.

    Args:
        number: its own among the readers.
        limit_s: seconds that it may be silent while it is asked something.
        descriptor: of memory that it shares; None for none.

    Attributes:
        number, limit_s: see above.
        ready: whether it is known to have started.
        killed: whether its parent has ended it.
    """

    def __init__(self, number: int, limit_s: float, descriptor: int | None) -> None:
        self.number, self.limit_s = number, limit_s
        self.ready = self.killed = False
        self._late = self._ended = False
        self._waiting, self._silent_s = 0, 0.0
        self._bytes, self._answers = bytearray(), deque[Answer]()
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            pipesize=_PIPE_BYTES,
            pass_fds=() if descriptor is None else (descriptor,),
            start_new_session=True,  # an interrupt from the keyboard is for the parent, which ends its readers itself
        )
        try:
            self.send("ready", descriptor, number)
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def waiting(self) -> bool:
        """Whether an answer is to come, or it has not started yet."""
        return self._waiting > 0

    @property
    def idle(self) -> bool:
        """Whether it is well, as far as is known, and has nothing to do (or to do but start)."""
        return self._waiting == (0 if self.ready else 1) and not self._ended and not self.killed

    def send(self, name: str, *arguments: object) -> None:
        """Ask something.

        Raises:
            ReaderProcessError: the process has ended.
        """
        if not self._waiting:
            self._silent_s = 0.0
        self._waiting += 1  # before it is sent, since an interrupt may come between
        data = memoryview(pickle.dumps((name, arguments), pickle.HIGHEST_PROTOCOL))
        try:
            while data:
                data = data[self._pipes()[0].write(data) or 0 :]
        except (OSError, ValueError) as error:
            raise ReaderProcessError(self._how_it_ended()) from error

    def ask(self, name: str, *arguments: object) -> Any:
        """Ask something and wait for the answer.

        Raises:
            Wsi2dError, RefusedError: it was raised there.
            ReaderProcessError: the process crashed or took too long.
        """
        self.send(name, *arguments)
        while (answer := self.answer()) is None:
            hear([self])
        return answer.value()

    def answer(self) -> Answer | None:
        """The next answer that was heard, None where there is none yet.

        Raises:
            ReaderProcessError: none will come: the process has ended, or was silent for too long and is ended now.
        """
        while self._answers:
            answer = self._answers.popleft()
            self._waiting -= 1
            if self.ready:
                return answer
            answer.value()
            self.ready = True
        if self._silent_s > (self.limit_s if self.ready else _START_LIMIT_S) and not self._ended:
            self._overdue()
            self._ended = True
        if self._waiting and self._ended:
            raise ReaderProcessError(self._how_it_ended())
        return None

    def kill(self) -> None:
        """End the process, whatever it is doing; again is no harm."""
        self.killed = True
        self._process.kill()
        self._process.wait()
        for file in (*self._pipes(), self._complaints):
            with suppress(OSError, ValueError):  # what was not sent any more, or a pipe that is being read
                file.close()

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the reader process was started without pipes")
        return self._process.stdin, self._process.stdout

    def fileno(self) -> int:
        """Of the pipe that its answers come from.

        Raises:
            ValueError: it was killed.
        """
        return self._pipes()[1].fileno()

    def take_in(self) -> None:
        """Read what its pipe holds; wait where it holds nothing."""
        try:
            data = os.read(self.fileno(), _PIPE_BYTES)
        except (OSError, ValueError):  # closed by another thread
            data = b""
        self._ended = not data
        self._silent_s = 0.0
        self._bytes += data
        while len(self._bytes) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._bytes)[0]
            if len(self._bytes) < end:
                break
            kind, value = pickle.loads(memoryview(self._bytes)[LENGTH.size : end])
            del self._bytes[:end]
            if kind != "alive":
                self._answers.append(Answer(kind, value))

    def not_heard(self, waited_s: float) -> None:
        """It was waited for, for so long, and said nothing."""
        if self._waiting:
            self._silent_s += waited_s

    def take_in_alone(self) -> None:
        """As :meth:`take_in`, with the limit held by a watchdog: for systems where pipes cannot be polled."""
        watchdog = threading.Timer(self.limit_s if self.ready else _START_LIMIT_S, self._overdue)
        watchdog.daemon = True
        watchdog.start()
        try:
            self.take_in()
        finally:
            watchdog.cancel()

    def _overdue(self) -> None:
        self._late = True
        self._process.kill()

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        if self.killed:
            return CLOSED
        if self._late:
            return f"no answer within {self.limit_s if self.ready else _START_LIMIT_S:g} s"
        if code < 0:
            name = signal.Signals(-code).name
            return "no answer within its time" if name == "SIGXCPU" else f"the decoder crashed with {name}"
        try:
            self._complaints.seek(0)
            said = self._complaints.read().decode("utf-8", "replace").split("\n")
        except ValueError:  # closed by another thread's `kill`
            return CLOSED
        return next((line.strip() for line in reversed(said) if line.strip()), f"the reader ended with code {code}")


def hear(workers: Sequence[Worker], timeout_s: float | None = None) -> None:
    """Wait until one of several has said something, but not for long; without polling, the first of them."""
    if not _CAN_POLL:
        if timeout_s != 0:
            workers[0].take_in_alone()
        return
    longest_s = min(_SLICE_S, *(w.limit_s for w in workers)) if timeout_s is None else timeout_s
    waiting, by_pipe = select.poll(), {}
    for worker in workers:
        try:
            by_pipe[worker.fileno()] = worker
        except ValueError:  # killed by another thread
            worker.take_in()
            return
        waiting.register(worker.fileno(), select.POLLIN)
    start = time.monotonic()
    said = {pipe for pipe, _ in waiting.poll(longest_s * 1000)}
    # Of a machine that was put to sleep meanwhile no more is counted than it should have waited.
    waited_s = min(time.monotonic() - start, longest_s)
    for pipe, worker in by_pipe.items():
        if pipe in said:
            worker.take_in()
        else:
            worker.not_heard(waited_s)
