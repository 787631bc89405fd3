"""Several runs on one folder: each slide is extracted by one of them, and what a killed one held is not lost."""

import json
import os
import signal
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wsi2d.features.failures import read_failures
from wsi2d.features.locks import Locks, lock_path

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="this system has no /proc to find processes in"
)
SLIDES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def slides(middling_slides: Path) -> Path:
    """Read only."""
    return middling_slides


@pytest.fixture(scope="module")
def features(harness: ModuleType, slides: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The feature files of an extraction that nothing disturbed."""
    out = tmp_path_factory.mktemp("features")
    found: dict[str, bytes] = harness.undisturbed(out, *extraction(slides, out))
    assert sorted(found) == [f"{name}.h5" for name in SLIDES]
    return found


def extraction(slides: Path, out: Path) -> tuple[object, ...]:
    """The arguments of a command; several batches a slide."""
    return "extract", slides, "--out", out, "--patch-px", 48, "--batch-size", 32


def finish(harness: ModuleType, slides: Path, out: Path, features: dict[str, bytes]) -> None:
    """The same command, now in peace."""
    ended = harness.run(*extraction(slides, out))
    assert (ended.code, ended.err) == (0, "")
    assert harness.content(out) == features


def counted(ended: Any, what: str) -> int:
    """A number from the last line, as in ``3 done``."""
    parts = ended.out.rpartition("slides: ")[2].split(", ")
    return next((int(part.split()[0]) for part in parts if part.split(maxsplit=1)[1].startswith(what)), 0)


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_two_runs_at_once(
    harness: ModuleType, slides: Path, features: dict[str, bytes], tmp_path: Path, overwrite: bool
) -> None:
    """Every slide is extracted once, and the files are those of one run."""
    out = tmp_path / "f"
    arguments = [*extraction(slides, out), *(["--overwrite"] if overwrite else [])]
    before = {}
    if overwrite:
        assert harness.run(*arguments).code == 0
        before = {name: (out / name).stat().st_mtime_ns for name in features}
    with harness.Command(*arguments) as first, harness.Command(*arguments) as second:
        ended = [first.end(), second.end()]
    assert [(e.code, harness.said(e)) for e in ended] == [(0, [])] * 2
    assert harness.content(out) == features
    assert sum(counted(e, "done") for e in ended) == len(SLIDES), ended
    for e in ended:
        total = sum(counted(e, what) for what in ("done", "already finished", "in progress elsewhere"))
        assert total == len(SLIDES), e.out
    assert all((out / name).stat().st_mtime_ns != time for name, time in before.items())


@pytest.mark.slow
def test_a_slide_that_another_has_in_hand(
    harness: ModuleType, slides: Path, features: dict[str, bytes], tmp_path: Path
) -> None:
    """It is left to the other, whose half file stays; the rest is done."""
    out = tmp_path / "f"
    out.mkdir()
    (out / ".b.h5.partial").write_bytes(b"half")
    with Locks() as locks:
        assert locks.take(out / "b.h5") is not None
        ended = harness.run(*extraction(slides, out))
        assert (ended.code, ended.err) == (0, "")
        assert "3 done, 0 already finished, 1 in progress elsewhere, of 4" in ended.out
        assert (out / ".b.h5.partial").read_bytes() == b"half"
        assert lock_path(out / "b.h5").exists()
    finish(harness, slides, out, features)


@pytest.mark.slow
def test_it_is_looked_at_again_at_the_end(
    harness: ModuleType, slides: Path, features: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "f"
    out.mkdir()
    with Locks() as locks, harness.Command(*extraction(slides, out)) as command:
        lock = locks.take(out / "a.h5")
        assert lock is not None
        assert command.reaches((out / "c.h5").exists)
        lock.release()
        ended = command.end()
    assert (ended.code, ended.err) == (0, "")
    assert "4 done, 0 already finished, of 4" in ended.out
    assert harness.content(out) == features


@pytest.mark.slow
def test_one_of_two_is_killed(harness: ModuleType, slides: Path, features: dict[str, bytes], tmp_path: Path) -> None:
    """The other finds out at the end, and does the slide that the killed one had in hand."""
    out = tmp_path / "f"
    with harness.Command(*extraction(slides, out)) as first:
        assert first.reaches((out / "a.h5").exists)
        assert first.reaches(lambda: bool(list(out.glob(".*.h5.lock"))))
        first.signal(signal.SIGSTOP)
        (lock,) = out.glob(".*.h5.lock")
        others = [name for name in features if f".{name}.lock" != lock.name]
        with harness.Command(*extraction(slides, out)) as second:
            assert second.reaches(lambda: all((out / name).exists() for name in others[:-1]))
            assert lock.exists()
            first.signal(signal.SIGKILL, group=False)
            first.end()
            ended = second.end()
    assert (ended.code, ended.err) == (0, "")
    assert harness.content(out) == features


@pytest.mark.slow
def test_a_killed_run_is_recognised(
    harness: ModuleType, slides: Path, features: dict[str, bytes], tmp_path: Path
) -> None:
    """Its lock and its half file, and what other killed ones left of slides that are finished or not asked for."""
    out = tmp_path / "f"
    with harness.Command(*extraction(slides, out)) as command:
        assert command.reaches((out / ".b.h5.partial").exists)
        command.signal(signal.SIGKILL, group=False)
        command.end()
    (lock,) = out.glob(".*.h5.lock")
    for name in ("a", "gone"):
        dead = {**json.loads(lock.read_text()), "token": os.urandom(16).hex()}
        (out / f".{name}.h5.lock").write_text(json.dumps(dead))
    finish(harness, slides, out, features)


@pytest.mark.slow
def test_shards_at_once_and_again(
    harness: ModuleType, slides: Path, features: dict[str, bytes], tmp_path: Path
) -> None:
    """All slides, each in one shard; failures side by side; what has been mended is healed by either kind of run."""
    folder, out = tmp_path / "slides", tmp_path / "f"
    folder.mkdir()
    for path in slides.iterdir():
        (folder / path.name).symlink_to(path)
    for name in ("bad", "worse"):
        (folder / f"{name}.svs").write_bytes(name.encode() * 20_000)
    arguments = extraction(folder, out)
    commands = [harness.Command(*arguments, "--shard", f"{k}/3") for k in (1, 2, 3)]
    with commands[0], commands[1], commands[2]:
        ended = [command.end() for command in commands]
    assert sum(counted(e, "done") for e in ended) == len(SLIDES)
    assert sum(counted(e, "failed") for e in ended) == 2
    assert [e.code for e in ended] == [int(counted(e, "failed") > 0) for e in ended]
    assert all(f"in shard {k}/3 (6 in all)" in e.out for k, e in zip((1, 2, 3), ended, strict=True))
    lists = sorted(path.name for path in out.glob("*.csv"))
    assert all(name.startswith("failures-") for name in lists)
    assert [f.slide_id for f in read_failures(out)] == ["bad", "worse"]
    assert {k: v for k, v in harness.content(out).items() if k not in lists} == features

    (folder / "bad.svs").unlink()
    (folder / "bad.tiff").symlink_to(slides / "a.tiff")
    whole = harness.run(*arguments)
    assert whole.code == 1
    assert "1 done, 4 already finished, 1 failed, of 6" in whole.out
    assert sorted(path.name for path in out.glob("*.csv")) == ["failures.csv"]
    assert [f.slide_id for f in read_failures(out)] == ["worse"]


def test_no_such_shard(harness: ModuleType, slides: Path, tmp_path: Path) -> None:
    ended = harness.run(*extraction(slides, tmp_path / "f"), "--shard", "0/3")
    assert ended.code == 2
    assert ended.err == "error: shard 0/3: shards count from 1 to their number; with Slurm: --array=1-3\n"
    assert not (tmp_path / "f").exists()


@pytest.mark.slow
def test_a_run_that_was_suspended_for_long_gives_way(
    harness: ModuleType, slides: Path, features: dict[str, bytes], tmp_path: Path
) -> None:
    """Its lock was taken over meanwhile, as of a machine that gave no sign of life: it leaves the slide alone."""
    out = tmp_path / "f"
    with harness.Command(*extraction(slides, out)) as command:
        assert command.reaches((out / ".b.h5.partial").exists)
        command.signal(signal.SIGSTOP)
        time.sleep(0.2)
        held = json.loads(lock_path(out / "b.h5").read_text())
        lock_path(out / "b.h5").write_text(json.dumps({**held, "token": "e" * 32, "machine": "another"}))
        command.signal(signal.SIGCONT)
        ended = command.end()
    assert ended.code == 0
    assert ended.err == "warning: slide 'b': another run took it over while this one was suspended\n"
    assert "3 done, 0 already finished, 1 in progress elsewhere" in ended.out
    assert {k: v for k, v in harness.content(out).items() if k != ".b.h5.lock"} == {
        k: v for k, v in features.items() if k != "b.h5"
    }
