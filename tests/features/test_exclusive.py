"""One run has a slide at a time, in one process: what is locked is left alone, what was made meanwhile is kept."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi2d.config import ExtractConfig
from wsi2d.errors import ConfigError, SlideError
from wsi2d.features.extract import extract
from wsi2d.features.failures import read_failures
from wsi2d.features.locks import Locks, lock_path
from wsi2d.features.outcomes import ExtractProgress, ExtractReport, SlideOutcome
from wsi2d.features.sharding import Shard
from wsi2d.slides.discovery import find_slides

CONFIG = ExtractConfig.model_validate({"patch": {"patch_px": 64}, "batch_size": 4, "device": "cpu", "workers": 1})


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory, write_slide: Callable[..., Path]) -> Path:
    """Two slides that are all tissue."""
    folder = tmp_path_factory.mktemp("slides")
    for i, name in enumerate("ab"):
        rgb = np.full((300, 330, 3), 244, np.uint8)
        rgb[10:-10, 10:-10] = np.array([225, 150, 190]) + np.random.default_rng(i).integers(-8, 9, (280, 310, 3))
        write_slide(folder / f"{name}.tiff", rgb, levels=2)
    return folder


@pytest.fixture
def locks() -> Iterator[Locks]:
    """Those of another run."""
    with Locks() as held:
        yield held


def run(slides: Path, out: Path, config: ExtractConfig = CONFIG, **options: Any) -> ExtractReport:
    return extract(find_slides([slides]), out, config, **options)


def outcomes(report: ExtractReport) -> dict[str, str]:
    return {s.slide_id: s.outcome for s in report.slides}


class Once(ExtractProgress):
    """Calls a function as a slide's encoding begins, or when it is finished; notes what is finished."""

    def __init__(self, name: str, begins: Callable[[], None] = lambda: None, ends: Callable[[], None] = lambda: None):
        self.name, self.begins, self.ends = name, begins, ends
        self.finished: list[SlideOutcome] = []

    def slide_started(self, slide_id: str, patches: int) -> None:
        if slide_id == self.name:
            self.begins()

    def slide_finished(self, outcome: SlideOutcome) -> None:
        self.finished.append(outcome)
        if outcome.slide_id == self.name:
            self.ends()


def test_what_another_has_in_hand_is_left_to_it(slides: Path, tmp_path: Path, locks: Locks) -> None:
    (tmp_path / ".a.h5.partial").write_bytes(b"the other's")
    assert locks.take(tmp_path / "a.h5") is not None
    progress = Once("a")
    assert outcomes(run(slides, tmp_path, progress=progress)) == {"a": "elsewhere", "b": "done"}
    assert sorted(os.listdir(tmp_path)) == [".a.h5.lock", ".a.h5.partial", "b.h5"]
    assert [s.slide_id for s in progress.finished] == ["b", "a"], "it counts once, at the end"


def test_what_another_failed_at_stays_in_its_list(slides: Path, tmp_path: Path, locks: Locks) -> None:
    """A shard's list loses what a later run knows of, and only that."""
    lines = ("slide_id,path,error", "a,a.tiff,slide 'a': broken", "b,b.tiff,slide 'b': broken")
    (tmp_path / "failures-1-of-2.csv").write_text("\n".join(lines) + "\n")
    lock = locks.take(tmp_path / "a.h5")
    assert lock is not None
    run(slides, tmp_path)
    assert [failure.slide_id for failure in read_failures(tmp_path)] == ["a"]
    lock.release()
    run(slides, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "b.h5"]


def test_what_is_free_again_at_the_end_is_done(slides: Path, tmp_path: Path, locks: Locks) -> None:
    lock = locks.take(tmp_path / "a.h5")
    assert lock is not None
    assert outcomes(run(slides, tmp_path, progress=Once("b", ends=lock.release))) == {"a": "done", "b": "done"}
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "b.h5"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_another_made_meanwhile_is_kept(slides: Path, tmp_path: Path, overwrite: bool) -> None:
    if overwrite:
        run(slides, tmp_path)
    other = Once("a", begins=lambda: run_and_note(slides / "b.tiff", tmp_path, overwrite))
    report = run(slides, tmp_path, progress=other, overwrite=overwrite)
    assert outcomes(report) == {"a": "done", "b": "skipped"}
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "b.h5"]


def run_and_note(slide: Path, out: Path, overwrite: bool) -> None:
    before = (out / "b.h5").stat().st_mtime_ns if overwrite else 0
    assert outcomes(run(slide, out, overwrite=overwrite)) == {"b": "done"}
    assert (out / "b.h5").stat().st_mtime_ns > before


def test_what_another_made_meanwhile_with_other_settings_stops_the_run(slides: Path, tmp_path: Path) -> None:
    coarser = CONFIG.model_copy(update={"patch": CONFIG.patch.model_copy(update={"mpp": 0.7})})
    other = Once("a", begins=lambda: outcomes(run(slides / "b.tiff", tmp_path, coarser)))
    with pytest.raises(ConfigError, match=r"b\.h5: was made with patch\.mpp 0\.7, not 0\.5; use another --out"):
        run(slides, tmp_path, progress=other)
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "b.h5"], "no lock is left"


def test_a_lock_that_was_lost_ends_the_slide(slides: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Taken over by another machine while this process was suspended."""

    seen = []

    def taken_over() -> None:
        seen.append(lock_path(tmp_path / "a.h5"))
        if len(seen) > 1:
            return
        text = lock_path(tmp_path / "a.h5").read_text()
        token = text.partition('"token": "')[2][:32]
        lock_path(tmp_path / "a.h5").write_text(text.replace(token, "e" * 32))

    report = run(
        slides, tmp_path, CONFIG.model_copy(update={"batch_size": 1000}), progress=Once("a", begins=taken_over)
    )
    assert len(seen) == 2, "it comes back to the slide, whose lock is nobody's then"
    assert outcomes(report) == {"a": "done", "b": "done"}
    assert "slide 'a': another run took it over while this one was suspended" in caplog.text
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "b.h5"]


def hand_over(out: Path, slide_id: str) -> None:
    """What another machine does that takes a slide over: the lock is its own, and so is the half file."""
    lock = lock_path(out / f"{slide_id}.h5")
    text = lock.read_text()
    token = text.partition('"token": "')[2][:32]
    lock.write_text(text.replace(token, "e" * 32).replace('"machine": "', '"machine": "another '))
    (out / f".{slide_id}.h5.partial").unlink(missing_ok=True)
    (out / f".{slide_id}.h5.partial").write_bytes(b"the other's")


def test_what_the_new_owner_has_written_is_left_alone(
    slides: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Suspended(ExtractProgress):
        def patches_done(self, count: int) -> None:
            if not (tmp_path / "a.h5").exists() and not caplog.records:
                hand_over(tmp_path, "a")

    report = run(slides / "a.tiff", tmp_path, progress=Suspended())
    assert outcomes(report) == {"a": "elsewhere"}
    assert "slide 'a': another run took it over while this one was suspended" in caplog.text
    assert (tmp_path / ".a.h5.partial").read_bytes() == b"the other's"
    assert sorted(os.listdir(tmp_path)) == [".a.h5.lock", ".a.h5.partial"]


def test_an_empty_slide_that_was_taken_over(
    tmp_path: Path, write_slide: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """No patch of it is ever done, so nothing but a last look would tell."""
    slide, out = write_slide(tmp_path / "a.tiff", np.full((300, 330, 3), 244, np.uint8), levels=2), tmp_path / "f"
    report = run(slide, out, progress=Once("a", begins=lambda: hand_over(out, "a")))
    assert outcomes(report) == {"a": "elsewhere"}
    assert sorted(os.listdir(out)) == [".a.h5.lock", ".a.h5.partial"]


def test_a_slide_that_fails_after_it_was_taken_over(slides: Path, tmp_path: Path) -> None:
    """The file that its new owner has made meanwhile, with other settings, is not removed."""
    made = tmp_path / "a.h5"

    class Suspended(ExtractProgress):
        def slide_started(self, slide_id: str, patches: int) -> None:
            if not made.exists():
                hand_over(tmp_path, "a")
                made.write_bytes(b"the other's")
                raise SlideError("slide 'a': gone")

    assert outcomes(run(slides / "a.tiff", tmp_path, progress=Suspended())) == {"a": "elsewhere"}
    assert made.read_bytes() == b"the other's"


def test_an_interrupt_leaves_no_lock(slides: Path, tmp_path: Path) -> None:
    def interrupt() -> None:
        assert lock_path(tmp_path / "a.h5").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(slides, tmp_path, progress=Once("a", begins=interrupt))
    assert os.listdir(tmp_path) == []


def test_shards(slides: Path, tmp_path: Path) -> None:
    """Each does its own; one that has nothing to do says so by being empty."""
    reports = [run(slides, tmp_path, shard=Shard(k, 3)) for k in (1, 2, 3)]
    assert sorted(len(report.slides) for report in reports) == [0, 1, 1]
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "b.h5"]
