"""Slides read in other processes: the same pixels, and a decoder that crashes or hangs costs one slide."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsi2d.config import ExtractConfig, PatchConfig
from wsi2d.errors import SlideError
from wsi2d.features.extract import extract
from wsi2d.slides import reader_pool
from wsi2d.slides.discovery import find_slides
from wsi2d.slides.reader import open_slide
from wsi2d.slides.reader_pool import ReaderPool
from wsi2d.slides.reader_worker import ReaderProcessError

# Stands in front of the real package on the readers' path, and makes trouble as a file's name asks for it.
FAULTY_OPENSLIDE = """
import os, signal, sys, time
sys.path.remove(os.path.dirname(__file__))
del sys.modules["openslide"]
import openslide

class OpenSlide(openslide.OpenSlide):
    def __init__(self, path):
        self.name = os.path.basename(str(path))
        print("opening", self.name)
        if self.name.startswith("crash-open"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.name.startswith("exit-open"):
            sys.stderr.write("libdecoder: assertion failed\\n")
            os._exit(7)
        super().__init__(path)
        self._osr.name = self.name

well = openslide.lowlevel._read_region

def read_region(slide, buffer, x, y, *more):
    if slide.name.startswith("crash-read") and y > 0:
        os.kill(os.getpid(), signal.SIGABRT)
    if slide.name.startswith("hang-read"):
        time.sleep(60)
    if slide.name.startswith("raise-read"):
        raise MemoryError("tile of\\n 8 TB")
    return well(slide, buffer, x, y, *more)

openslide.OpenSlide = OpenSlide
openslide.lowlevel._read_region = read_region
sys.modules["openslide"] = openslide
"""


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers that start within the test make trouble."""
    (tmp_path / "faulty").mkdir()
    (tmp_path / "faulty" / "openslide.py").write_text(FAULTY_OPENSLIDE)
    monkeypatch.syspath_prepend(tmp_path / "faulty")


def painted(write_slide: Callable[..., Path], path: Path, seed: int = 0) -> Path:
    """Pink texture on glass, 400 × 300 px."""
    rgb = np.full((300, 400, 3), 244, np.uint8)
    rgb[20:280, 20:380] = np.random.default_rng(seed).integers((190, 110, 150), (235, 170, 210), (260, 360, 3))
    return write_slide(path, rgb, levels=2)


@pytest.mark.parametrize("kind", ["tiff", "png"])
def test_the_same_pixels_as_in_this_process(tmp_path: Path, write_slide: Callable[..., Path], kind: str) -> None:
    path = painted(write_slide, tmp_path / "a.tiff")
    if kind == "png":
        path = tmp_path / "b.png"
        Image.fromarray(np.random.default_rng(1).integers(0, 255, (300, 400, 3), np.uint8)).save(path)
    places = [(0, 0, 64.0), (333, 250, 100.5), (-20, 5, 37.3), (120, 60, 256.0)]
    with open_slide(path, mpp=0.5) as here, ReaderPool(2) as pool, open_slide(path, mpp=0.5, pool=pool) as there:
        assert there.slide == here.slide
        assert np.array_equal(there.read_overview(3.7), here.read_overview(3.7))
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda p: there.read_patch(*p[:2], size_level0=p[2], patch_px=48), places * 5))
        expected = [here.read_patch(*p[:2], size_level0=p[2], patch_px=48) for p in places * 5]
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_errors_are_those_of_this_process(tmp_path: Path) -> None:
    (tmp_path / "text.svs").write_text("no slide")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n")
    with ReaderPool() as pool:
        for name in ("text.svs", "torn.png", "none.svs"):
            with pytest.raises(SlideError) as here:
                open_slide(tmp_path / name)
            with pytest.raises(SlideError) as there:
                open_slide(tmp_path / name, pool=pool)
            assert str(there.value) == str(here.value)


@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("crash-open", "cannot be opened (the decoder crashed with SIGSEGV); the file is damaged"),
        ("exit-open", "cannot be opened (libdecoder: assertion failed); the file is damaged"),
        ("crash-read", "level 0 (the decoder crashed with SIGABRT); the file is damaged"),
        ("hang-read", "of level 1 (no answer within 3 s); the file is damaged"),
        ("raise-read", "cannot be read at (0, 0) of level 1 (tile of 8 TB); the file is damaged"),
    ],
)
def test_a_decoder_that_dies_costs_one_slide(
    tmp_path: Path, write_slide: Callable[..., Path], name: str, said: str
) -> None:
    """The slides before and after it are done, and it is named with what became of it."""
    for i, slide in enumerate(("a", name, "z")):
        painted(write_slide, tmp_path / f"{slide}.tiff", seed=i)
    config = ExtractConfig(patch=PatchConfig(patch_px=48, mpp=0.5), workers=2, read_limit_s=3.0)
    report = extract(find_slides([tmp_path / f"{n}.tiff" for n in ("a", name, "z")]), tmp_path / "f", config)
    assert [s.outcome for s in report.slides] == ["done", "failed", "done"]
    assert report.failures[0].error.startswith(f"slide '{name}': ")
    assert said in report.failures[0].error
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == ["a.h5", "failures.csv", "z.h5"]


@pytest.fixture
def interrupts() -> Iterator[None]:
    """An interrupt is an exception, also where the tests run in the background of a shell, which ignores it there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("faulty", "interrupts")
def test_an_interrupted_call_leaves_no_answer_behind(
    tmp_path: Path, write_slide: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = (painted(write_slide, tmp_path / f"{n}.tiff") for n in ("hang-read", "quick"))
    with ReaderPool() as pool, open_slide(slow, pool=pool) as reader:
        main = threading.main_thread().ident or 0
        threading.Timer(1.0, signal.pthread_kill, [main, signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            reader.read_overview(4.0)
        with open_slide(quick, pool=pool) as after, open_slide(quick) as here:
            assert np.array_equal(after.read_overview(4.0), here.read_overview(4.0))


def test_what_the_file_was_when_it_was_opened_is_held_no_longer_than_needed(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    with ReaderPool() as pool:
        with open_slide(tmp_path / "a.png", mpp=1.0, pool=pool) as reader:
            assert not reader.read_overview(1.0).any()
        Image.fromarray(np.full((9, 9, 3), 255, np.uint8)).save(tmp_path / "a.png")
        with open_slide(tmp_path / "a.png", mpp=1.0, pool=pool) as reader:
            assert reader.read_overview(1.0).all()


def test_processes_end_with_the_pool() -> None:
    with ReaderPool() as pool:
        with pytest.raises(ReaderProcessError, match="expected str"):
            pool.call("property", 5, "a")
        (pid,) = pool.pids
        assert _runs(pid)
    assert not _runs(pid)


@pytest.mark.usefixtures("faulty")
def test_closing_ends_what_still_reads(tmp_path: Path, write_slide: Callable[..., Path]) -> None:
    """The threads that read take their processes out of the list that is being closed."""
    slow = painted(write_slide, tmp_path / "hang-read.tiff")
    with ReaderPool(4) as pool, open_slide(slow, pool=pool) as reader, ThreadPoolExecutor(4) as threads:
        reads = [threads.submit(reader.read_overview, 4.0) for _ in range(4)]
        deadline = time.monotonic() + 60
        while len(pool.pids) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        processes = pool.pids
        pool.close()
        assert not any(_runs(pid) for pid in processes)
        errors = [str(read.exception(timeout=20)) for read in reads]
    assert len(processes) == 4
    assert all("the readers were closed" in error for error in errors), errors


def test_a_process_that_starts_while_the_pool_closes_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    class Worker(reader_pool.Worker):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            started.append(self)
            pool.close()

    monkeypatch.setattr(reader_pool, "Worker", Worker)
    pool = ReaderPool()
    with pytest.raises(ReaderProcessError, match=r"^the readers were closed$"):
        pool.call("property", "a", "b")
    assert [worker._process.poll() for worker in started] == [-signal.SIGKILL]


@pytest.mark.parametrize("when", ["before", "while it is read"])
def test_what_a_process_said_last_goes_with_it(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its complaints are asked for in one thread and closed by another."""
    worker = reader_pool.Worker(0, 5.0, None)
    worker._process.terminate()
    worker._process.wait()
    monkeypatch.setattr(worker._process, "wait", lambda: 7)  # as if it had ended by itself
    if when == "before":
        worker.kill()
        worker.kill()
    else:
        monkeypatch.setattr(worker._process, "wait", lambda: worker._complaints.close() or 7)
    with pytest.raises(ReaderProcessError, match=r"^the readers were closed$"):
        worker.ask("property", "a", "b")
    worker.kill()
    assert worker._complaints.closed


def test_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    script = textwrap.dedent(f"""
        import time
        from wsi2d.slides.reader import open_slide
        from wsi2d.slides.reader_pool import ReaderPool
        pool = ReaderPool()
        reader = open_slide({str(tmp_path / "a.png")!r}, mpp=1.0, pool=pool)
        print(*pool.pids, flush=True)
        time.sleep(60)
    """)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")  # a process whose end nobody has asked for is still listed
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")
