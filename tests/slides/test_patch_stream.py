"""Patches in batches: the same whatever the processes, the batch and the way the pixels take; in bounded memory."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi2d.errors import SlideError
from wsi2d.slides import patch_stream, reader_worker, shared_pixels, sources
from wsi2d.slides.reader import SlideReader, open_slide
from wsi2d.slides.reader_pool import ReaderPool
from wsi2d.slides.reader_worker import ReaderProcessError
from wsi2d.slides.regions import Region

SIDE = 48


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory, write_slide: Callable[..., Path]) -> Path:
    rgb = np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)
    return write_slide(tmp_path_factory.mktemp("slide") / "a.tiff", rgb, levels=2)


def corners(count: int, seed: int = 0) -> np.ndarray:
    """Places on the slide and over its edges."""
    return np.random.default_rng(seed).integers((-20, -20), (490, 390), (count, 2)).astype(np.int32)


def read(reader: SlideReader, coords: np.ndarray, batch_size: int, size_level0: float = 61.5) -> list[np.ndarray]:
    batches = reader.read_patches(coords, size_level0=size_level0, patch_px=SIDE, batch_size=batch_size)
    return [batch.copy() for batch in batches]


def expected(path: Path, coords: np.ndarray, size_level0: float = 61.5) -> np.ndarray:
    """One by one, in this process."""
    with open_slide(path, mpp=0.5) as reader:
        return np.stack(
            [reader.read_patch(int(x), int(y), size_level0=size_level0, patch_px=SIDE) for x, y in coords]
        )  # fmt: skip


WAYS = {
    "shared memory": lambda patch: None,
    "no shared memory": lambda patch: patch.setattr(shared_pixels.SharedPixels, "array", lambda *_: None),
    "no anonymous files": lambda patch: patch.setattr(shared_pixels, "_anonymous_file", lambda: None),
    "a named file, unlinked": lambda patch: patch.delattr(os, "memfd_create", raising=False),
    "no polling": lambda patch: patch.setattr(reader_worker, "_CAN_POLL", False),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_patches_by_any_way(slide: Path, monkeypatch: pytest.MonkeyPatch, workers: int, way: str) -> None:
    WAYS[way](monkeypatch)
    coords = corners(83)
    truth = expected(slide, coords)
    with ReaderPool(workers) as pool, open_slide(slide, mpp=0.5, pool=pool) as reader:
        for count, batch_size in ((83, 16), (83, 100), (83, 1), (1, 16), (0, 16), (32, 16), (17, 16)):
            batches = read(reader, coords[:count], batch_size)
            sizes = [min(batch_size, count - start) for start in range(0, count, batch_size)]
            assert [len(b) for b in batches] == sizes
            assert np.array_equal(np.concatenate([truth[:0], *batches]), truth[:count])


def test_the_same_patches_in_this_process(slide: Path) -> None:
    coords = corners(21)
    with open_slide(slide, mpp=0.5) as reader:
        assert np.array_equal(np.concatenate(read(reader, coords, 8)), expected(slide, coords))


def test_memory_is_that_of_three_batches(slide: Path) -> None:
    """However many patches there are; what the caller has is left alone while others are read."""
    coords = corners(300)
    truth = expected(slide, coords)
    with ReaderPool(2) as pool, open_slide(slide, mpp=0.5, pool=pool) as reader:
        for number, batch in enumerate(reader.read_patches(coords, size_level0=61.5, patch_px=SIDE, batch_size=10)):
            time.sleep(0.01)  # readers may go ahead
            assert np.array_equal(batch, truth[10 * number : 10 * number + 10])
        assert pool._shared.size < 3 * 10 * SIDE * SIDE * 3 + 2 * 4096


def test_a_caller_that_leaves_takes_nothing_along(slide: Path) -> None:
    """What was asked for and not fetched is not taken for the answer to anything else."""
    coords = corners(200)
    with ReaderPool(2) as pool, open_slide(slide, mpp=0.5, pool=pool) as reader, open_slide(slide, mpp=0.5) as here:
        for _ in range(3):
            batches = reader.read_patches(coords, size_level0=61.5, patch_px=SIDE, batch_size=8)
            next(batches)
            batches.close()
            assert np.array_equal(reader.read_overview(4.0), here.read_overview(4.0))
        assert np.array_equal(np.concatenate(read(reader, coords, 8)), expected(slide, coords))


def test_a_second_slide_meanwhile_is_refused_not_waited_for(slide: Path) -> None:
    with ReaderPool(1) as pool, open_slide(slide, mpp=0.5, pool=pool) as reader:
        batches = reader.read_patches(corners(50), size_level0=61.5, patch_px=SIDE, batch_size=8)
        next(batches)
        with pytest.raises(SlideError, match="all readers are at the patches of another slide"):
            open_slide(slide, mpp=0.5, pool=pool)
        batches.close()
        open_slide(slide, mpp=0.5, pool=pool).close()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_first_patch_that_fails_is_named(tmp_path: Path, workers: int, slide: Path) -> None:
    """Whichever process comes to a bad one first."""
    bad = tmp_path / "b.tiff"
    bad.write_bytes(slide.read_bytes())
    with tifffile.TiffFile(bad) as file, bad.open("r+b") as raw:
        for tile in (6, 7, 9):  # of 4 × 4, the last cut off
            raw.seek(file.pages[0].dataoffsets[tile])
            raw.write(b"\xff" * file.pages[0].databytecounts[tile])
    coords = np.stack(np.meshgrid(np.arange(0, 480, 24), np.arange(0, 384, 24)), -1).reshape(-1, 2)
    errors = []
    with ReaderPool(workers) as pool:
        for _ in range(3):
            with open_slide(bad, mpp=0.5, pool=pool) as reader, pytest.raises(SlideError) as error:
                read(reader, coords, 16, size_level0=48.0)
            errors.append(str(error.value))
    with open_slide(bad, mpp=0.5) as reader, pytest.raises(SlideError) as here:
        read(reader, coords, 16, size_level0=48.0)
    assert errors == [str(here.value)] * 3
    assert "cannot be read at (216, 96) of level 0" in errors[0]


def test_a_slow_slide_is_alive(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is one of each region: several of them may take longer together."""
    (tmp_path / "openslide.py").write_text(
        textwrap.dedent("""
        import os, sys, time
        sys.path.remove(os.path.dirname(__file__))
        del sys.modules["openslide"]
        import openslide
        read = openslide.lowlevel._read_region
        openslide.lowlevel._read_region = lambda *a: (time.sleep(0.4), read(*a))[1]
        sys.modules["openslide"] = openslide
    """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    with ReaderPool(1, limit_s=1.0) as pool, open_slide(slide, mpp=0.5, pool=pool) as reader:
        assert np.array_equal(np.concatenate(read(reader, corners(8), 16)), expected(slide, corners(8)))


def test_time_that_nobody_waited_does_not_count(slide: Path) -> None:
    """An encoder may take longer than a region may, and a laptop may be closed meanwhile."""
    coords = corners(60)
    with ReaderPool(2, limit_s=0.5) as pool, open_slide(slide, mpp=0.5, pool=pool) as reader:
        found = []
        for batch in reader.read_patches(coords, size_level0=61.5, patch_px=SIDE, batch_size=20):
            found.append(batch.copy())
            for pid in pool.pids:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(0.8)
            for pid in pool.pids:
                os.kill(pid, signal.SIGCONT)
        assert np.array_equal(np.concatenate(found), expected(slide, coords))


def test_a_process_that_cannot_start_is_done_without(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ReaderPool(3) as pool, open_slide(slide, mpp=0.5, pool=pool) as reader:
        monkeypatch.setattr(reader_worker, "_START", "raise SystemExit('no room for more processes')")
        assert np.array_equal(np.concatenate(read(reader, corners(90), 16)), expected(slide, corners(90)))
    with ReaderPool(1) as pool, pytest.raises(ReaderProcessError, match="no room for more processes"):
        pool.call("property", "a", "b")


def test_other_threads_wait_for_their_turn(slide: Path) -> None:
    found: list[np.ndarray] = []
    with ReaderPool(1) as pool, open_slide(slide, mpp=0.5, pool=pool) as reader:
        batches = reader.read_patches(corners(30), size_level0=61.5, patch_px=SIDE, batch_size=8)
        next(batches)
        other = threading.Thread(target=lambda: found.append(reader.read_overview(4.0)))
        other.start()
        time.sleep(0.3)
        assert not found
        for _ in batches:
            pass
        other.join(timeout=30)
    with open_slide(slide, mpp=0.5) as here:
        assert np.array_equal(found[0], here.read_overview(4.0))


def test_requests_are_shared_out(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process has some of the patches of a batch, several at once."""
    asked: dict[int, list[int]] = {}
    send = patch_stream.PatchStream._send

    def noted(self: patch_stream.PatchStream, worker: reader_worker.Worker, request: patch_stream._Request) -> None:
        asked.setdefault(worker.number, []).append(request.count)
        send(self, worker, request)

    monkeypatch.setattr(patch_stream.PatchStream, "_send", noted)
    with ReaderPool(2) as pool, open_slide(slide, mpp=0.5, pool=pool) as reader:
        deadline = time.monotonic() + 60
        while len(asked) < 2 and time.monotonic() < deadline:  # until both have started
            read(reader, corners(64), 32)
        asked.clear()
        read(reader, corners(640), 32)
    assert sorted(asked) == [0, 1]
    assert sum(map(sum, asked.values())) == 640
    assert {count for counts in asked.values() for count in counts} == {8}
    assert min(map(sum, asked.values())) > 64


def test_shared_memory_goes_with_the_last_process(slide: Path) -> None:
    """Also where the parent is killed: nothing of it has a name that could stay."""
    script = textwrap.dedent(f"""
        import time, numpy as np
        from wsi2d.slides.reader import open_slide
        from wsi2d.slides.reader_pool import ReaderPool
        pool = ReaderPool(2)
        reader = open_slide({str(slide)!r}, mpp=0.5, pool=pool)
        batches = reader.read_patches(np.zeros((9000, 2), int), size_level0=64.0, patch_px=64, batch_size=64)
        next(batches)
        print(*pool.pids, flush=True)
        for _ in batches:
            time.sleep(0.5)
    """)
    named = Path("/dev/shm")
    if not named.is_dir() or not Path("/proc/self/maps").exists():
        pytest.skip("this system has no /dev/shm and /proc to look into")
    before = set(named.iterdir())
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [parent.pid, *map(int, parent.stdout.readline().split())]
    assert len(pids) == 3
    deadline = time.monotonic() + 60
    while not all(maps(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(maps(pid) for pid in pids)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(maps(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(maps(pid) for pid in pids)
    assert not {path for path in set(named.iterdir()) - before if "wsi2d" in path.name}


def maps(pid: int) -> bool:
    """Whether a process has the memory still."""
    try:
        return "memfd:wsi2d-pixels" in Path(f"/proc/{pid}/maps").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False


def test_patches_are_the_same_by_way_of_a_picture(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read straight from OpenSlide is what openslide-python gives, on the slide and over its edges."""
    coords = corners(60)
    assert sources._READ_REGION is not None, "this openslide-python has it no more: patches are read more slowly"
    quick = expected(slide, coords, float(SIDE))
    monkeypatch.setattr(sources, "_READ_REGION", None)
    assert np.array_equal(quick, expected(slide, coords, float(SIDE)))
    monkeypatch.setattr(sources, "_READ_REGION", lambda *_: pytest.fail("asked for resampled patches"))
    expected(slide, coords, SIDE + 0.5)


def test_a_picture_is_read_by_its_region(tmp_path: Path) -> None:
    """Opaque pictures with an alpha channel are as those without."""
    rgb = np.random.default_rng(1).integers(0, 256, (90, 80, 3), np.uint8)
    for name, picture in (("a", Image.fromarray(rgb)), ("b", Image.fromarray(rgb).convert("RGBA"))):
        picture.save(tmp_path / f"{name}.png")
        with open_slide(tmp_path / f"{name}.png", mpp=0.5) as reader:
            source = reader._source
            assert np.array_equal(source.read_resized(3, 5, Region(0, (40.0, 30.0), (40, 30), 3)), rgb[5:35, 3:43])


@pytest.mark.slow
def test_interrupts_at_any_moment(slide: Path) -> None:
    """None is lost, none is waited for, and no process stays."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a shell ignore it
    chance, main, interrupted = random.Random(0), threading.main_thread().ident or 0, 0
    pids: set[int] = set()
    try:
        for _ in range(25):
            timer = threading.Timer(chance.uniform(0.3, 1.2), signal.pthread_kill, [main, signal.SIGINT])
            try:
                with ReaderPool(2) as pool, open_slide(slide, mpp=0.5, pool=pool) as reader:
                    timer.start()
                    for _ in range(1000):
                        read(reader, corners(40), 8)
                        pids.update(pool.pids)
            except KeyboardInterrupt:
                interrupted += 1
            timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert interrupted == 25
    deadline = time.monotonic() + 20
    while any(maps(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(maps(pid) for pid in pids)
