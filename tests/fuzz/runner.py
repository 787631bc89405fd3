"""Hands damaged files to a process of its own, with a limit on each: what hangs or dies is named, the rest goes on."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 10.0  # a file
START_S = 120.0  # the process, which imports torch


@dataclass(frozen=True)
class Outcome:
    """What became of one damaged file.

    Attributes:
        name: of the copy.
        calls: ``(call, verdict, text)`` for each call, verdicts as in ``child.py``.
        died: what ended the process, or that it hung; empty where it answered.
    """

    name: str
    calls: tuple[tuple[str, str, str], ...] = ()
    died: str = ""

    @property
    def bad(self) -> str:
        """What must not be, in one line; empty where every call ended in a result or in one line of our error."""
        raised = [f"{call}: {text}" for call, verdict, text in self.calls if verdict == "raised"]
        return "; ".join([self.died] * bool(self.died) + raised)

    @property
    def read(self) -> bool:
        """Whether every call could read it all the same."""
        return not self.died and all(verdict == "read" for _, verdict, _ in self.calls)


class Child:
    """A process that reads files of one kind until it hangs or dies."""

    def __init__(self, kind: str, sound: Path, example: Path, log: Path) -> None:
        command = [sys.executable, str(Path(__file__).with_name("child.py")), kind, str(sound), str(example)]
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8",
                env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
            )  # fmt: skip
        self._lines: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        if self._next(START_S).strip() != "ready":
            self.end()
            raise RuntimeError(f"the reading process for {kind} did not start: {log.read_text('utf-8', 'replace')}")

    def ask(self, path: Path, limit_s: float) -> Outcome:
        """Have one file read."""
        name = path.stem if path.parent.name == "copies" else path.parent.name
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(str(path)) + "\n")  # a path may hold a line break
            self._process.stdin.flush()
            line = self._next(limit_s)
        except queue.Empty:
            self.end()
            return Outcome(name, died=f"hung for {limit_s:g} s")
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            return Outcome(name, died=f"the process ended with {code}")
        return Outcome(name, tuple((c, v, t) for c, v, t in json.loads(line)))

    @property
    def alive(self) -> bool:
        """Whether it can be asked again."""
        return self._process.poll() is None

    def end(self) -> None:
        """End it and let go of its streams."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def _next(self, limit_s: float) -> str:
        return self._lines.get(timeout=limit_s)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")  # it is gone


def read_all(
    kind: str, paths: Iterable[Path], *, sound: Path, example: Path, log: Path, limit_s: float = LIMIT_S
) -> list[Outcome]:
    """Have files read in a process of its own, another one wherever one was lost.

    Args:
        kind: which of ``child.py``'s kinds.
        paths: the damaged copies.
        sound: a sound file that the kind's readers need beside the copy, such as the splits' cohort.
        example: a sound file of the kind.
        log: gets what the processes print.
        limit_s: for each file.
    """
    outcomes = []
    child = None
    try:
        for path in paths:
            if child is None or not child.alive:
                if child is not None:
                    child.end()
                child = Child(kind, sound, example, log)
            outcomes.append(child.ask(path, limit_s))
    finally:
        if child is not None:
            child.end()
    return outcomes
