"""Ctrl-C, a batch system's termination, a kill and a full disk lose nothing.

No half file bears its final name, no process stays, the user reads one line, and the same command, run again with
room, ends with the bytes of a run that nothing disturbed. The commands run as a user's do: processes of their own.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors import safe_open

pytest.importorskip("resource", reason="this system has no limits to fill a disk with")
from user_commands import (
    Command,
    check_end,
    check_extracted,
    content,
    ignored_if_gone,
    paint_slides,
    refused,
    room_in_this_process,
    run,
    said,
    stopped_at_any_moment,
    stopped_by,
    writing,
)

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="this system has no /proc to find processes in"
)

STRESS = pytest.mark.stress
SLIDES = ("a", "b", "c", "d", "e")


# --- extraction


@pytest.fixture(scope="module")
def slides(write_slide: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of slides, each encoded long enough to be interrupted."""
    return paint_slides(tmp_path_factory.mktemp("slides"), SLIDES, write_slide)


@pytest.fixture(scope="module")
def features(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The feature files of an extraction that nothing disturbed."""
    out = tmp_path_factory.mktemp("features")
    ended = run(*extraction(slides, out))
    assert (ended.code, ended.err) == (0, "")
    found = content(out)
    assert sorted(found) == [f"{name}.h5" for name in SLIDES]
    return found


def extraction(slides: Path, out: Path) -> tuple[object, ...]:
    """The arguments of a command; several batches a slide."""
    return "extract", slides, "--out", out, "--patch-px", 48, "--batch-size", 32


def finish_extraction(slides: Path, out: Path, features: dict[str, bytes]) -> None:
    """The same command, now with room and in peace."""
    ended = run(*extraction(slides, out))
    assert (ended.code, ended.err) == (0, "")
    assert content(out) == features


def test_extraction_interrupted_then_out_of_room(slides: Path, features: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "f"
    with Command(*extraction(slides, out)) as command:
        assert command.reaches(writing(out, "b"))
        command.signal(signal.SIGINT)
        stopped_by(command.end(), signal.SIGINT)
    check_extracted(out, features)
    assert not list(out.glob(".*")), "neither a half file nor a lock is left"
    assert (out / "a.h5").exists(), "a finished slide is kept"
    full = run(*extraction(slides, out), room=len(features["b.h5"]) // 2)
    check_extracted(out, features)
    finish_extraction(slides, out, features)
    refused(full, out)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start", "reading", "first slide", "third slide", "slide done"])
@pytest.mark.parametrize(
    "how", ["SIGINT", "SIGKILL", *(pytest.param(how, marks=STRESS) for how in ("SIGTERM", "SIGTERM to it alone"))]
)
def test_extraction_stopped(slides: Path, features: dict[str, bytes], tmp_path: Path, how: str, moment: str) -> None:
    out = tmp_path / "f"
    with Command(*extraction(slides, out)) as command:
        moments = {
            "start": command.listens,
            "reading": lambda: len(command.processes()) > 1,
            "first slide": writing(out, "a"),
            "third slide": writing(out, "c"),
            "slide done": (out / "a.h5").exists,
        }
        assert command.reaches(moments[moment])
        check_end(command, how)
    check_extracted(out, features)
    finish_extraction(slides, out, features)


@STRESS
@pytest.mark.parametrize("seed", range(3))
def test_extraction_stopped_at_any_moment(slides: Path, features: dict[str, bytes], tmp_path: Path, seed: int) -> None:
    out = tmp_path / "f"
    for _ in stopped_at_any_moment(seed, *extraction(slides, out)):
        check_extracted(out, features)
    finish_extraction(slides, out, features)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.00013, 0.0005, 0.01, 0.1, 0.5, 0.95, 1.0])
def test_extraction_out_of_room(slides: Path, features: dict[str, bytes], tmp_path: Path, share: float) -> None:
    """The feature file fails where it is made, within, and with its last byte."""
    out = tmp_path / "f"
    size = min(map(len, features.values()))
    full = run(*extraction(slides, out), room=min(int(share * size), size - 1))
    assert content(out) == {}, "what is half written is removed at once, the disk being full"
    finish_extraction(slides, out, features)
    refused(full, out)


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 100_000])
def test_disk_fills_while_slides_are_extracted(
    slides: Path, features: dict[str, bytes], tmp_path: Path, room: int
) -> None:
    out = tmp_path / "f"
    with Command(*extraction(slides, out)) as command:
        assert command.reaches(writing(out, "b"))
        command.fill_disk(room)
        full = command.end()
    check_extracted(out, features)
    assert (out / "a.h5").exists()
    finish_extraction(slides, out, features)
    refused(full, out)


@pytest.mark.slow
def test_chunks_written_on_the_way_have_no_room(slides: Path, tmp_path: Path) -> None:
    """A feature file larger than what HDF5 holds back: it fails while patches are encoded."""
    out = tmp_path / "f"
    arguments = "extract", slides / "a.tiff", "--out", out, "--patch-px", 48, "--overlap-px", 36
    full = run(*arguments, room=1_500_000)
    assert content(out) == {}
    assert run(*arguments).code == 0
    assert (out / "a.h5").stat().st_size > 3_000_000
    refused(full, out)


@pytest.mark.slow
def test_a_reader_that_hangs_does_not_hold_up_an_interrupt(slides: Path, tmp_path: Path) -> None:
    """A decoder hangs, or the storage does: who interrupts need not wait for the time limit of a region, 120 s."""
    out = tmp_path / "f"
    with Command(*extraction(slides, out)) as command:
        assert command.reaches(writing(out, "a"))
        for reader in set(command.processes()) - {command.pid}:
            with ignored_if_gone():
                os.kill(reader, signal.SIGSTOP)
        time.sleep(0.5)
        command.signal(signal.SIGINT)
        ended = command.end(within_s=60)
    stopped_by(ended, signal.SIGINT)


# --- training


@pytest.fixture(scope="module")
def write_study(tiny: ModuleType) -> Callable[..., Path]:
    """Writes the tiny study with one large slide on each test side, whose attention is the largest file of its fold,
    with epochs enough to be interrupted, and an evaluation that takes its time."""

    def write(folder: Path, kind: str = "classification", **training: Any) -> Path:
        path: Path = tiny.write_study(folder, kind, training={"epochs": 8, **training}, evaluation={"bootstrap": 300})
        rng = np.random.default_rng(1)
        for name in ("s00x", "s02x"):
            tiny.write_features(
                folder / "features", name, rng.normal(size=(2200, tiny.DIM)).astype(np.float32), shape=(48, 48)
            )
        return path

    return write


@pytest.fixture(scope="module")
def trained(write_study: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    from wsi2d.training.crossval import train

    path = write_study(tmp_path_factory.mktemp("trained"))
    train(path)
    return path.with_name("run")


def numbers(run_folder: Path) -> dict[str, bytes]:
    """Everything a run computes; not how long it took, nor where and how it ran."""
    told = {"config.yaml", "environment.json"}
    files = content(run_folder)
    return {name: data for name, data in files.items() if name not in told and not name.endswith("history.csv")}


def finish_training(tiny: ModuleType, path: Path, trained: Path) -> None:
    """The same command, now with room and in peace."""
    ended = run("train", path)
    assert ended.code == 0, ended
    assert said(ended) == []
    found = path.with_name("run")
    assert numbers(found) == numbers(trained)
    assert tiny.files_of(found) == tiny.files_of(trained)
    for fold in (0, 1):
        assert history(found, fold) == history(trained, fold)


def history(run_folder: Path, fold: int) -> list[list[str]]:
    """The history without its times and memory."""
    rows = (run_folder / f"fold-{fold}" / "history.csv").read_text("utf-8").splitlines()
    measured = {rows[0].split(",").index(name) for name in ("seconds", "peak_gb")}
    return [[value for i, value in enumerate(row.split(",")) if i not in measured] for row in rows]


def check_trained(run_folder: Path, trained: Path) -> None:
    """What bears its final name is whole; whatever else is there is a partial file of such a name."""
    expected = content(trained)
    known = {*expected, *(f"fold-{fold}/last.safetensors" for fold in (0, 1))}
    for name, data in content(run_folder).items() if run_folder.exists() else ():
        path = run_folder / name
        final = path.with_name(path.name.removeprefix(".").removesuffix(".partial"))
        assert final.relative_to(run_folder).as_posix() in known
        if path != final or name == "environment.json":
            continue
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                assert all(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118 - it is no dict
        elif path.name == "history.csv":
            columns = {row.count(",") for row in data.decode().splitlines()}
            assert len(columns) == 1
            assert data.endswith(b"\n")
        elif name == "config.yaml":
            assert data.endswith(expected[name][-20:]), "it ends as the whole one does"
        else:
            assert data == expected[name], f"{name} is not whole"
    for path in run_folder.glob("fold-*/attention/*.h5"):
        with h5py.File(path) as file:
            assert len(file["attention"]) == len(file["coords"])


def test_training_terminated(tiny: ModuleType, write_study: Callable[..., Path], trained: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path)
    found = path.with_name("run")
    with Command("train", path) as command:
        assert command.reaches((found / "fold-0" / "last.safetensors").exists)
        check_end(command, "SIGTERM")
    check_trained(found, trained)
    finish_training(tiny, path, trained)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start", "first epoch", "attention", "second fold", "evaluation"])
@pytest.mark.parametrize(
    ("how", "workers"),
    [
        ("SIGINT", 1),
        ("SIGTERM", 2),
        pytest.param("SIGTERM", 1, marks=STRESS),
        pytest.param("SIGINT", 2, marks=STRESS),
        pytest.param("SIGTERM to it alone", 2, marks=STRESS),
    ],
)
def test_training_stopped(
    tiny: ModuleType,
    write_study: Callable[..., Path],
    trained: Path,
    tmp_path: Path,
    how: str,
    moment: str,
    workers: int,
) -> None:
    path = write_study(tmp_path, workers=workers)
    found = path.with_name("run")
    with Command("train", path) as command:
        moments = {
            "start": command.listens,
            "first epoch": (found / "fold-0" / "history.csv").exists,
            "attention": (found / "fold-0" / "attention").exists,
            "second fold": (found / "fold-1" / "history.csv").exists,
            "evaluation": (found / "predictions.csv").exists,
        }
        assert command.reaches(moments[moment])
        check_end(command, how)
    check_trained(found, trained)
    finish_training(tiny, path, trained)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_training_stopped_while_its_processes_start(
    write_study: Callable[..., Path], trained: Path, tmp_path: Path, how: str
) -> None:
    """They come to nothing, and say nothing of it."""
    path = write_study(tmp_path, workers=2)
    for delay_s in (0.0, 0.5, 1.0, 1.5, 2.0):
        with Command("train", path) as command:
            assert command.reaches(lambda command=command: len(command.processes()) > 1)
            time.sleep(delay_s)
            check_end(command, how)
        check_trained(path.with_name("run"), trained)


@STRESS
@pytest.mark.parametrize(("workers", "seed"), [(1, 0), (1, 1), (2, 2), (2, 3)])
def test_training_stopped_at_any_moment(
    tiny: ModuleType, write_study: Callable[..., Path], trained: Path, tmp_path: Path, workers: int, seed: int
) -> None:
    path = write_study(tmp_path, workers=workers)
    for _ in stopped_at_any_moment(seed, "train", path):
        check_trained(path.with_name("run"), trained)
    finish_training(tiny, path, trained)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "room", "name"),
    [
        (1, 0, "splits/splits_0.csv"),
        (1, 100, "cohort.csv"),
        (1, 400, "config.yaml"),
        (1, 3000, "fold-[01]/model.safetensors"),
        (2, 7000, "fold-[01]/model.safetensors"),
        (1, 15_000, "fold-[01]/last.safetensors"),
        (2, 15_000, "fold-[01]/last.safetensors"),
        (1, 27_000, "fold-[01]/attention/s0[02]x.h5"),
        (2, 27_000, "fold-[01]/attention/s0[02]x.h5"),
        (1, 32_000, "fold-[01]/attention/s0[02]x.h5"),
    ],
)
def test_training_out_of_room(
    tiny: ModuleType,
    write_study: Callable[..., Path],
    trained: Path,
    tmp_path: Path,
    room: int,
    name: str,
    workers: int,
) -> None:
    path = write_study(tmp_path, workers=workers)
    found = path.with_name("run")
    full = run("train", path, room=room)
    check_trained(found, trained)
    assert not list(found.rglob(".*.partial"))
    finish_training(tiny, path, trained)
    refused(full, found)
    where = Path(said(full)[0].removeprefix("error: ").partition(": ")[0])
    assert where.relative_to(found).match(name)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("moment", ["fold-0/history.csv", "fold-0/attention", "predictions.csv"])
def test_disk_fills_while_folds_are_trained(
    tiny: ModuleType, write_study: Callable[..., Path], trained: Path, tmp_path: Path, moment: str, workers: int
) -> None:
    path = write_study(tmp_path, workers=workers)
    found = path.with_name("run")
    with Command("train", path) as command:
        assert command.reaches((found / moment).exists)
        command.fill_disk()
        full = command.end()
    check_trained(found, trained)
    finish_training(tiny, path, trained)
    refused(full, found)


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_in_a_line(
    tiny: ModuleType, write_study: Callable[..., Path], trained: Path, tmp_path: Path
) -> None:
    """What a system short of memory does: it kills the largest process."""
    path = write_study(tmp_path, workers=2)
    found = path.with_name("run")
    with Command("train", path) as command:
        assert command.reaches(lambda: len(list(found.glob("fold-*/history.csv"))) == 2)
        os.kill(max(command.processes()), signal.SIGKILL)  # the last that was started
        ended = command.end()
    check_trained(found, trained)
    finish_training(tiny, path, trained)
    assert ended.code == 2, ended
    (line,) = said(ended)
    assert line.startswith("error: ")
    assert "training.workers" in line


# --- what is written without HDF5: commands in this process


@pytest.mark.parametrize(("room", "name"), [(100, "cohort.csv"), (5000, "model"), (10_000, "last")])
def test_weights_have_no_room(
    cli: Any, tiny: ModuleType, finished_run: Path, tmp_path: Path, room: int, name: str
) -> None:
    path = tiny.write_study(tmp_path / "study")
    found = path.with_name("run")
    with room_in_this_process(room):
        full = cli("train", path)
    refused(full, found)
    assert name in said(full)[0]
    assert not list(found.rglob(".*.partial"))
    assert cli("train", path).code == 0
    assert numbers(found) == numbers(finished_run)


@pytest.mark.parametrize("name", ["metrics.json", "predictions.csv"])
def test_results_have_no_room(cli: Any, tiny: ModuleType, tmp_path: Path, name: str) -> None:
    """A finished run that is run again: its tables are written anew."""
    kind = {"metrics.json": "classification", "predictions.csv": "survival"}[name]  # which of the tables is the larger
    path = tiny.write_study(tmp_path, kind)
    assert cli("train", path).code == 0
    found = path.with_name("run")
    before = content(found)
    verbs = [("train", path)] + [("evaluate --bootstrap 20", found)] * (name == "metrics.json")
    for verb, of in verbs:
        with room_in_this_process(len(before[name]) - 1):
            full = cli(verb, of)
        refused(full, found / name)
        after = content(found)
        assert after.pop(name, before[name]) == before[name]
        assert after == {k: v for k, v in before.items() if k in after}
        assert cli("train", path).code == 0
        assert content(found) == before


def test_failures_have_no_room(cli: Any, write_slides: Any, tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    for i in range(20):
        (slides / f"torn-{i}.svs").write_bytes(b"no slide")
    command = "extract", slides, "--out", tmp_path / "f"
    with room_in_this_process(1000):  # enough for a lock
        full = cli(*command)
    refused(full, tmp_path / "f" / "failures.csv")
    assert content(tmp_path / "f") == {}
    assert cli(*command).code == 1
    assert sorted(content(tmp_path / "f")) == ["failures.csv"]


@pytest.mark.parametrize("room", [0, 60])
def test_splits_have_no_room(cli: Any, finished_run: Path, tmp_path: Path, room: int) -> None:
    command = "splits make --folds 2 --label label", finished_run.parent / "cohort.csv", "--out", tmp_path / "s"
    with room_in_this_process(room):
        full = cli(*command)
    refused(full, tmp_path / "s")
    assert content(tmp_path / "s") == {}
    assert cli(*command).code == 0


def test_predictions_have_no_room(cli: Any, finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    command = "predict --device cpu", finished_run, finished_run.parent / "features", "--out", out
    assert cli(*command).code == 0
    before = out.read_bytes()
    for room in (0, 100, len(before) - 1):
        with room_in_this_process(room):
            full = cli(*command)
        refused(full, out)
        assert content(tmp_path) == {"out.csv": before}, "what was there stays"


@pytest.mark.parametrize(
    ("verb", "suffix"),
    [
        ("heatmap", "png"),
        ("heatmap", "pdf"),
        ("heatmap", "svg"),
        ("tissue", "png"),
        pytest.param("tissue", "pdf", marks=pytest.mark.slow),
        pytest.param("tissue", "svg", marks=pytest.mark.slow),
    ],
)
def test_pictures_have_no_room(
    cli: Any, write_slides: Any, finished_run: Path, tmp_path: Path, verb: str, suffix: str
) -> None:
    slide = write_slides(tmp_path / "slides", "s00x") / "s00x.tiff"
    out = tmp_path / "out" / f"picture.{suffix}"
    command = {
        "heatmap": ("heatmap --device cpu", finished_run, slide, "--out", out),
        "tissue": ("tissue", slide, "--out", out),
    }[verb]
    assert cli(*command).code == 0
    before = out.read_bytes()
    for room in (100, len(before) // 2):
        with room_in_this_process(room):
            full = cli(*command)
        refused(full, out)
        assert content(out.parent) == {out.name: before}, "what was there stays"
