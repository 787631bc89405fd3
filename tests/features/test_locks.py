"""Locks: one holder at a time whoever comes, the dead give way, and nothing is left."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from wsi2d.errors import StorageError
from wsi2d.features import locks as module
from wsi2d.features.locks import Locks, lock_path

LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc to see processes in")
LIMIT_S = 120.0


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lock_path(path).read_text("utf-8"))
    return found


def rewrite(path: Path, **changes: object) -> None:
    """Another lock in a lock's place, as another process may have made it."""
    values = {**content(path), "token": "f" * 32, **changes}
    lock_path(path).write_text(json.dumps(values), "utf-8")


@contextmanager
def process(code: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """Python in a process of its own, that has ended with the block."""
    started = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate(timeout=LIMIT_S)


HOLDS = """
    import sys
    from pathlib import Path
    from wsi2d.features.locks import Locks
    with Locks() as locks:
        print(locks.take(Path(sys.argv[1])) is not None, flush=True)
        sys.stdin.readline()
"""


def test_one_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with Locks() as first, Locks() as second:
        lock = first.take(path)
        assert lock is not None
        assert names(tmp_path) == [".a.h5.lock"]
        assert second.take(path) is None
        assert first.take(path) is None, "nor does the same run take it twice"
        other = second.take(tmp_path / "b.h5")
        assert other is not None
        assert lock.is_mine()
        lock.release()
        lock.release()
        assert not lock.is_mine()
        assert names(tmp_path) == [".b.h5.lock"]
        assert second.take(path) is not None
    assert names(tmp_path) == [], "what is still held at the end is released"


def test_a_lock_says_who_holds_it(tmp_path: Path) -> None:
    with Locks() as locks:
        assert locks.take(tmp_path / "a.h5") is not None
        found = content(tmp_path / "a.h5")
    assert (found["host"], found["pid"]) == (socket.gethostname(), os.getpid())
    assert len(found["token"]) == 32


def test_an_error_releases_it(tmp_path: Path) -> None:
    def interrupted() -> None:
        with Locks() as locks:
            assert locks.take(tmp_path / "a.h5") is not None
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


def test_a_run_on_several_machines_takes_its_own_over(tmp_path: Path) -> None:
    """Somebody knows that the worker that held it is gone; other runs do not."""
    path = tmp_path / "a.h5"
    with Locks(run="r1") as gone, Locks(run="r1") as again, Locks(run="r2") as other, Locks() as single:
        lost = gone.take(path)
        assert lost is not None
        assert other.take(path) is None
        assert single.take(path) is None
        mine = again.take(path)
        assert mine is not None
        assert mine.is_mine()
        assert not lost.is_mine()
        lost.release()
        assert names(tmp_path) == [".a.h5.lock"]
    assert names(tmp_path) == []


@LINUX
def test_another_process_holds_it_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with process(HOLDS, path) as other, Locks() as locks:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert locks.take(path) is None
        silent = time.time() - 10 * module.STALE_S
        os.utime(lock_path(path), (silent, silent))
        assert locks.take(path) is None, "a process of this machine that was suspended is alive all the same"
        locks.clear(tmp_path)
        assert names(tmp_path) == [".a.h5.lock"]
        other.kill()
        deadline = time.monotonic() + LIMIT_S
        while (lock := locks.take(path)) is None and time.monotonic() < deadline:
            time.sleep(0.01)  # nobody has waited for it yet: it is a zombie
        assert lock is not None
        assert names(tmp_path) == [".a.h5.lock"]
    assert names(tmp_path) == []


@LINUX
def test_a_pid_that_is_another_process_by_now(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with Locks() as first, Locks() as second:
        assert first.take(path) is not None
        with process("input()") as other:
            now = int(Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19])
            rewrite(path, pid=other.pid, started=now)
            assert second.take(path) is None
            rewrite(path, pid=other.pid, started=now - 1)
            assert second.take(path) is not None


@LINUX
def test_what_this_process_forgot_is_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with Locks() as first, Locks() as second:
        assert first.take(path) is not None
        rewrite(path)
        assert second.take(path) is not None


@pytest.mark.parametrize("machine", ["another", ""])
def test_another_machine_is_known_by_its_signs_of_life(tmp_path: Path, machine: str) -> None:
    path = tmp_path / "a.h5"
    with Locks() as first, Locks(stale_s=50) as second:
        mine = first.take(path)
        assert mine is not None
        rewrite(path, machine=machine, pid=os.getpid())
        for silent_s, gets_it in ((0, False), (40, False), (60, True)):
            beat = time.time() - silent_s
            os.utime(lock_path(path), (beat, beat))
            assert (second.take(path) is not None) == gets_it
        assert not mine.is_mine()
        mine.release()
        assert names(tmp_path) == [".a.h5.lock"], "who has lost a lock does not remove the other's"
    assert names(tmp_path) == []


def test_who_holds_a_lock_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "a.h5", tmp_path / "b.h5"
    monkeypatch.setattr(module, "BEAT_S", 0.05)
    monkeypatch.setattr(module, "_heart", module._Heart())
    with Locks() as locks:
        assert locks.take(path) is not None
        assert locks.take(other) is not None
        rewrite(other)
        for each in (path, other):
            os.utime(lock_path(each), (1.0, 1.0))
        deadline = time.monotonic() + LIMIT_S
        while lock_path(path).stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - lock_path(path).stat().st_mtime < LIMIT_S
        assert lock_path(other).stat().st_mtime == 1.0, "another's lock is left to itself"


DAMAGED = {
    "empty": b"",
    "torn": b'{"host": "a", "machi',
    "binary": bytes(range(256)),
    "of others": b"12345\n",
    "wrong types": b'{"host": 1, "machine": 2, "pid": "3", "started": [], "token": "' + b"a" * 32 + b'"}',
    "a way out": b'{"host": "", "machine": "", "pid": 1, "started": 1, "token": "../../../../tmp/somewhere/else"}',
    "nested": b"[" * 4000,
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_lock_that_nobody_can_read_is_a_strangers(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.h5"
    lock_path(path).write_bytes(DAMAGED[how])
    with Locks(stale_s=50) as locks:
        assert locks.take(path) is None
        silent = time.time() - 60
        os.utime(lock_path(path), (silent, silent))
        assert locks.take(path) is not None
    assert names(tmp_path) == []


def test_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*paths: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    test_one_holds_it(tmp_path)
    test_another_machine_is_known_by_its_signs_of_life(tmp_path, "another")


def test_a_folder_that_takes_nothing(tmp_path: Path) -> None:
    with Locks() as locks:
        with pytest.raises(StorageError, match=r"f/\.a\.h5\.lock: cannot be written \(No such file or directory\)"):
            locks.take(tmp_path / "f" / "a.h5")
        with pytest.raises(StorageError, match="f: cannot be read"):
            locks.clear(tmp_path / "f")
        lock_path(tmp_path / "b.h5").mkdir()
        with pytest.raises(StorageError, match=r"\.b\.h5\.lock: cannot be written \(Is a directory\)"):
            locks.take(tmp_path / "b.h5")
    assert names(tmp_path) == [".b.h5.lock"]


@LINUX
def test_what_killed_processes_left_is_cleared(tmp_path: Path) -> None:
    """Of a process that died while it took a lock, and of one that died while it took over that one's."""
    path = tmp_path / "a.h5"
    with process("pass") as gone:
        gone.wait(LIMIT_S)
        pid = gone.pid
    first, second = "a" * 32, "b" * 32
    with Locks() as locks:
        assert locks.take(tmp_path / "x.h5") is not None
        dead = {**content(tmp_path / "x.h5"), "pid": pid, "started": 1}
    holders = {
        ".a.h5.lock": first,
        f".{first}.lock": first,
        f".{first}.next.lock": second,
        f".{second}.lock": second,
        f".{'c' * 32}.next.lock": second,
        ".gone.h5.lock": "d" * 32,
    }
    for name, token in holders.items():
        (tmp_path / name).write_text(json.dumps({**dead, "token": token}), "utf-8")
    for name in (".a.h5.partial", "a.h5", "lock", "b.lock"):
        (tmp_path / name).write_text("not a lock")
    with Locks() as locks:
        lock = locks.take(path)
        assert lock is not None
        locks.clear(tmp_path)
        assert names(tmp_path) == [".a.h5.lock", ".a.h5.partial", "a.h5", "b.lock", "lock"]
        assert lock.is_mine()
    assert names(tmp_path) == [".a.h5.partial", "a.h5", "b.lock", "lock"]


RACE = """
    import json, os, sys, time
    from pathlib import Path
    from wsi2d.features.locks import Locks, lock_path
    folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
    start, mine = folder / "start", []
    print("ready", flush=True)
    while not start.exists():
        pass
    for i in range(rounds):
        path = folder / f"{i}.h5"
        with Locks() as locks:
            lock = locks.take(path)
            if lock is not None:
                assert lock.is_mine()
                try:  # work that only one may do at a time
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL))
                    mine.append(i)
                except FileExistsError:
                    pass
                os.close(os.open(folder / f"{i}.busy", os.O_CREAT | os.O_EXCL))
                time.sleep(0.001)
                os.unlink(folder / f"{i}.busy")
                assert lock.is_mine()
    print(json.dumps(mine), flush=True)
"""


@LINUX
@pytest.mark.parametrize("stale", [False, True])
def test_many_want_it_at_once(tmp_path: Path, stale: bool) -> None:
    """Never two at a time, also where all find the same stale lock."""
    rounds = 60
    if stale:
        with process("pass") as gone:
            gone.wait(LIMIT_S)
            pid = gone.pid
        for i in range(rounds):
            holder = {**vars(module._myself(f"{i:032x}")), "pid": pid, "started": 1}
            lock_path(tmp_path / f"{i}.h5").write_text(json.dumps(holder), "utf-8")
    with (
        process(RACE, tmp_path, rounds) as a,
        process(RACE, tmp_path, rounds) as b,
        process(RACE, tmp_path, rounds) as c,
    ):
        racers = (a, b, c)
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        (tmp_path / "start").touch()
        told = [racer.communicate(timeout=LIMIT_S)[0] for racer in racers]
        assert [racer.returncode for racer in racers] == [0, 0, 0]
    got = sorted(i for words in told for i in json.loads(words))
    assert got == list(range(rounds)), "each was taken by somebody, and only the first made its file"
    assert names(tmp_path) == sorted(["start", *(f"{i}.h5" for i in range(rounds))])


@pytest.mark.parametrize("links", [True, False])
def test_who_was_suspended_while_it_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """Between its last look and the removal another machine took the lock over: the other's stays."""
    path = tmp_path / "a.h5"

    def refused(*paths: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    with Locks() as first, Locks(stale_s=50) as second:
        lost = first.take(path)
        assert lost is not None
        look, mine = lost._bears_our_token, []

        def suspended_after_the_look() -> bool:
            was_ours = look()
            rewrite(path, machine="another", token=lost.token)
            silent = time.time() - 60
            os.utime(lock_path(path), (silent, silent))
            mine.append(second.take(path))
            return was_ours

        monkeypatch.setattr(lost, "_bears_our_token", suspended_after_the_look)
        lost.release()
        assert mine[0] is not None
        assert mine[0].is_mine()
        assert names(tmp_path) == [".a.h5.lock"]
    assert names(tmp_path) == []


FORKS = """
    import os, sys, time
    from pathlib import Path
    from wsi2d.features import locks as module
    from wsi2d.features.locks import Locks, lock_path
    folder = Path(sys.argv[1])
    module.BEAT_S = 0.05
    with Locks() as locks:
        assert locks.take(folder / "parent.h5") is not None
        child = os.fork()
        if not child:
            with Locks() as own:
                assert own.take(folder / "child.h5") is not None
                os.utime(lock_path(folder / "child.h5"), (1.0, 1.0))
                deadline = time.monotonic() + 60
                while lock_path(folder / "child.h5").stat().st_mtime < 2 and time.monotonic() < deadline:
                    time.sleep(0.01)
                alive = lock_path(folder / "child.h5").stat().st_mtime > 2
            locks.__exit__(None, None, None)
            os._exit(0 if alive else 1)
        assert os.waitpid(child, 0)[1] == 0
        print(sorted(os.listdir(folder)), flush=True)
"""


@LINUX
def test_a_fork_has_a_heart_of_its_own(tmp_path: Path) -> None:
    """Its locks give signs of life, and its parent's are not its to release."""
    with process(FORKS, tmp_path) as forks:
        out, _ = forks.communicate(timeout=LIMIT_S)
    assert (forks.returncode, out) == (0, "['.parent.h5.lock']\n")
    assert names(tmp_path) == []
