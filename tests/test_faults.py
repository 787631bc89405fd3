"""Whole extractions, killed, starved and robbed of their slides: what was finished stays, and a rerun mends the rest.

``pytest tests/test_faults.py -m ""`` prints a table of what was done and what became of it.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("resource", reason="this system has no limits to fill a disk with")
from fault_table import note
from user_commands import (
    Command,
    Ended,
    check_extracted,
    content,
    ignored_if_gone,
    paint_slides,
    refused,
    run,
    said,
    stopped_by,
    writing,
)

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="this system has no /proc to find processes in"
)
SLIDES = ("a", "b", "c")
EQUAL = "a rerun ends with the bytes of an undisturbed run, nothing else is left"
NAMED = "that slide is named, the others are done; a rerun with the whole slide ends with the same bytes"


@dataclass(frozen=True)
class Undisturbed:
    """An extraction that nothing happened to.

    Attributes:
        slides: folder of three slides.
        files: its feature files.
        seconds: from when it notices signals to its end.
    """

    slides: Path
    files: dict[str, bytes]
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(write_slide: Any, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    slides = paint_slides(tmp_path_factory.mktemp("slides"), SLIDES, write_slide)
    out = tmp_path_factory.mktemp("features")
    with Command(*extraction(slides, out)) as command:
        assert command.reaches(command.listens)
        start = time.monotonic()
        ended = command.end()
    assert (ended.code, ended.err) == (0, "")
    files = content(out)
    assert sorted(files) == [f"{name}.h5" for name in SLIDES]
    return Undisturbed(slides, files, time.monotonic() - start)


def extraction(slides: Path, out: Path) -> tuple[object, ...]:
    """The arguments of a command; several batches a slide."""
    return "extract", slides, "--out", out, "--patch-px", 48, "--batch", 32, "--workers", 2


def finish(of: Undisturbed, out: Path, slides: Path | None = None) -> None:
    """The same command, now in peace."""
    ended = run(*extraction(slides or of.slides, out))
    assert (ended.code, ended.err) == (0, "")
    assert content(out) == of.files


def kill_after(delay_s: float, of: Undisturbed, out: Path) -> None:
    """An extraction that is killed so long after it has come to notice signals."""
    with Command(*extraction(of.slides, out)) as command:
        assert command.reaches(command.listens)
        time.sleep(delay_s)
        command.signal(signal.SIGKILL, group=False)
        ended = command.end()
    assert ended.code in (-signal.SIGKILL, 0), ended
    assert "Traceback" not in ended.err
    check_extracted(out, of.files)


def test_killed_at_two_moments(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Twice in the midst of the slides, the second time after it went on."""
    out, chance = tmp_path / "f", random.Random(time.time_ns())
    for _ in range(2):
        kill_after(undisturbed.seconds * chance.uniform(0.3, 0.8), undisturbed, out)
    finish(undisturbed, out)
    note("killed (SIGKILL), killed again after it went on", EQUAL)


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(20))
def test_killed_at_random_moments(undisturbed: Undisturbed, tmp_path: Path, moment: int) -> None:
    """One in each twentieth of the time that three slides take."""
    share = (moment + random.Random(time.time_ns()).random()) / 20
    kill_after(undisturbed.seconds * share, undisturbed, tmp_path / "f")
    finish(undisturbed, tmp_path / "f")
    note("killed (SIGKILL) at a random moment over three slides", EQUAL)


@pytest.mark.slow
def test_a_reader_is_killed(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """As a system that is short of memory does."""
    out = tmp_path / "f"
    with Command(*extraction(undisturbed.slides, out)) as command:
        assert command.reaches(writing(out, "b"))
        for reader in set(command.processes()) - {command.pid}:
            with ignored_if_gone():
                os.kill(reader, signal.SIGKILL)
        ended = command.end()
    assert ended.code == 1, ended
    (name,) = failed(ended)
    assert "the decoder crashed with SIGKILL" in ended.err
    assert sorted(content(out)) == sorted([*(f"{n}.h5" for n in SLIDES if n != name), "failures.csv"])
    finish(undisturbed, out)
    note("its reading processes killed (SIGKILL)", NAMED)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_the_disk_fills_up(undisturbed: Undisturbed, tmp_path: Path, share: float) -> None:
    """By a limit on the size of files, from the second slide on."""
    out = tmp_path / "f"
    with Command(*extraction(undisturbed.slides, out)) as command:
        assert command.reaches(writing(out, "b"))
        command.fill_disk(int(share * len(undisturbed.files["b.h5"])))
        full = command.end()
    check_extracted(out, undisturbed.files)
    assert (out / "a.h5").exists(), "a finished slide is kept"
    finish(undisturbed, out)
    refused(full, out)
    note("the disk fills up (a limit on the size of files)", f"one line of error, exit code 2; {EQUAL}")


@pytest.fixture
def small_disk(tmp_path: Path, undisturbed: Undisturbed) -> Iterator[Path]:
    """A disk with room for one feature file and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(map(len, undisturbed.files.values())) // 2
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "wsi2d-test", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_small_disk(undisturbed: Undisturbed, small_disk: Path, tmp_path: Path) -> None:
    full = run(*extraction(undisturbed.slides, small_disk / "f"))
    check_extracted(small_disk / "f", undisturbed.files)
    assert (small_disk / "f" / "a.h5").exists()
    assert full.code == 2, full
    (line,) = said(full)
    assert "No space left on device" in line
    shutil.copytree(small_disk / "f", tmp_path / "larger")
    finish(undisturbed, tmp_path / "larger")
    note("a disk too small for its slides", f"one line of error, exit code 2; {EQUAL}, on a larger disk")


def failed(ended: Ended) -> list[str]:
    """Ids of the slides that a command names as failed."""
    lines = said(ended)
    assert all(line.startswith("failed: slide '") for line in lines), ended
    return [line.split("'")[1] for line in lines]


def failures_of(out: Path) -> dict[str, bytes]:
    """The table of failed slides, where there is one."""
    return {path.name: path.read_bytes() for path in out.glob("failures.csv")}


def vanish(path: Path) -> None:
    path.unlink()


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "what", "fault"),
    [
        ("c", vanish, "a slide vanishes before its turn"),
        ("b", shrink, "a slide shrinks while it is read"),
        ("c", shrink, "a slide shrinks before its turn"),
    ],
)
def test_a_slide_goes(
    undisturbed: Undisturbed, tmp_path: Path, name: str, what: Callable[[Path], None], fault: str
) -> None:
    out, slides = tmp_path / "f", tmp_path / "slides"
    shutil.copytree(undisturbed.slides, slides)
    with Command(*extraction(slides, out)) as command:
        assert command.reaches((out / ".b.h5.partial").exists)
        what(slides / f"{name}.tiff")
        ended = command.end()
    assert ended.code == 1, ended
    assert failed(ended) == [name]
    assert sorted(content(out)) == sorted([*(f"{n}.h5" for n in SLIDES if n != name), "failures.csv"])
    check_extracted(out, undisturbed.files | failures_of(out))
    shutil.copyfile(undisturbed.slides / f"{name}.tiff", slides / f"{name}.tiff")
    finish(undisturbed, out, slides)
    note(fault, NAMED)


@pytest.mark.slow
def test_a_slide_vanishes_while_it_is_read(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Whoever has it open may read it to its end."""
    out, slides = tmp_path / "f", tmp_path / "slides"
    shutil.copytree(undisturbed.slides, slides)
    with Command(*extraction(slides, out)) as command:
        assert command.reaches((out / ".b.h5.partial").exists)
        vanish(slides / "b.tiff")
        ended = command.end()
    assert (ended.code, ended.err) == (0, "") or failed(ended) == ["b"]
    check_extracted(out, undisturbed.files | failures_of(out))
    shutil.copyfile(undisturbed.slides / "b.tiff", slides / "b.tiff")
    finish(undisturbed, out, slides)
    note("a slide vanishes while it is read", f"it is read to its end, or named; {EQUAL}")


@pytest.mark.slow
def test_names_that_mean_something_elsewhere(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Killed and finished, whatever the slides are called; a terminal's and a shell's characters among them."""
    names = ("-rf", "a..b", "$(touch x) 'b'", "ein Schnitt äß 雪 🔬")
    out, slides = tmp_path / "out with spaces", tmp_path / "slïdes"
    slides.mkdir()
    for name in names:
        shutil.copyfile(undisturbed.slides / "a.tiff", slides / f"{name}.tiff")
    with Command(*extraction(slides, out)) as command:
        assert command.reaches(lambda: bool(list(out.glob("*.h5"))))
        command.signal(signal.SIGTERM)
        stopped_by(command.end(), signal.SIGTERM)
    ended = run(*extraction(slides, out))
    assert (ended.code, ended.err) == (0, "")
    assert sorted(content(out)) == sorted(f"{name}.h5" for name in names)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([out.name, slides.name])
    note("slides called " + ", ".join(f"`{n}`" for n in names), "files of these names, in OUT")


@pytest.mark.parametrize("slide_id", ["../evil", "/etc/evil", "..", "a/../../evil", "..\\evil", "", "nul\0"])
def test_an_id_that_leads_elsewhere(write_slide: Any, tmp_path: Path, slide_id: str) -> None:
    """From a table or a program; a file's name cannot hold it. What lies there is not touched."""
    from wsi2d.config import ExtractConfig
    from wsi2d.features.extract import extract
    from wsi2d.slides.discovery import SlideFile

    slide = paint_slides(tmp_path, ("a",), write_slide) / "a.tiff"
    for name in ("evil.h5", ".evil.h5.partial"):
        (tmp_path / name).write_text("not ours")
    report = extract([SlideFile(slide_id, slide)], tmp_path / "out", ExtractConfig(device="cpu"))
    assert "must be a plain name" in report.failures[0].error
    assert list(content(tmp_path / "out")) == ["failures.csv"]
    assert {(tmp_path / name).read_text() for name in ("evil.h5", ".evil.h5.partial")} == {"not ours"}
    note("an id such as `../evil`", "that slide is named; nothing outside OUT is made, changed or removed")
