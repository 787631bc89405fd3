"""Damaged files end in a result or in one line of error: no traceback, no crash, no hang, no gigabytes."""

import csv
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

KINDS = ("features", "cohort", "config", "splits", "predictions", "survival", "model", "resume")
COMMANDS = {"features": "s00x.h5", "cohort": "cohort.csv", "config": "run.yaml"}
FEW, MANY = 40, 300
few_or_many = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
SLIDES_LIMIT_S = {FEW: 120, MANY: 540}
ADDRESS_SPACE = 8 * 2**30  # of each process that reads slides


def write_copies(copies: Any, sound: Path, folder: Path, *, one_a_folder: bool = False) -> list[Path]:
    """Damaged copies as files: ``copies/0007.csv``, or ``0007/splits_0.csv`` where the name must stay."""
    paths = []
    for name, data in copies:
        path = folder / name / sound.name if one_a_folder else folder / "copies" / f"{name}{sound.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        paths.append(path)
    return paths


def complaints(outcomes: Any) -> str:
    """What must not be, one line a copy."""
    return "\n".join(f"{outcome.name}: {outcome.bad}" for outcome in outcomes if outcome.bad)


# --- what is done to files


def test_the_same_seed_does_the_same_damage(mutations: ModuleType, sound: Any) -> None:
    data = sound.files["features"].read_bytes()
    once, again = (dict(mutations.copies(data, count=20)) for _ in range(2))
    assert once == again
    assert mutations.mutate(data, 7) == once["0007"]
    assert len(set(once.values())) == 20
    assert mutations.mutate(b"", 1) == b""


def test_damage_is_small_and_large_and_everywhere(mutations: ModuleType) -> None:
    data = np.random.default_rng(0).bytes(50_000)
    damaged = [copy for _, copy in mutations.copies(data)]
    assert len(damaged) == 300
    assert all(copy != data for copy in damaged[:5])
    assert any(len(copy) < len(data) for copy in damaged)
    assert any(len(copy) > len(data) for copy in damaged)
    same = [copy for copy in damaged if len(copy) == len(data)]
    changed = np.array([np.frombuffer(copy, np.uint8) != np.frombuffer(data, np.uint8) for copy in same])
    assert (changed.sum(1) <= 2).any()
    assert (changed.sum(1) > 1000).any()
    assert changed[:, :1024].any(1).mean() > 0.3
    assert changed[:, 1024:-1024].any(1).mean() > 0.3


# --- files that a study is made of, read as the verbs read them


@few_or_many
@pytest.mark.parametrize("kind", KINDS)
def test_damaged(kind: str, count: int, mutations: ModuleType, runner: ModuleType, sound: Any, tmp_path: Path) -> None:
    file = sound.files[kind]
    copies = mutations.copies(file.read_bytes(), count=count)
    paths = write_copies(copies, file, tmp_path, one_a_folder=kind == "splits")
    beside = sound.beside.get(kind, tmp_path)
    whole = write_copies([("sound", file.read_bytes())], file, tmp_path, one_a_folder=kind == "splits")
    outcomes = runner.read_all(kind, [*whole, *paths], sound=beside, example=file, log=tmp_path / "log")
    assert outcomes[0].read, outcomes[0]
    bad = complaints(outcomes)
    assert not bad, bad
    assert len(outcomes) == count + 1
    assert not all(outcome.read for outcome in outcomes)


@pytest.mark.parametrize("kind", ["cohort", "config", "splits", "predictions", "survival"])
def test_crafted(kind: str, crafted: ModuleType, runner: ModuleType, sound: Any, tmp_path: Path) -> None:
    file = sound.files[kind]
    make = {"cohort": crafted.cohorts, "splits": crafted.splits}
    files = crafted.configs() if kind == "config" else make.get(kind, crafted.predictions)(file.read_bytes())
    names = [(" ".join(name.replace("/", " ").split()), data) for name, data in files.items()]
    paths = write_copies(names, file, tmp_path, one_a_folder=kind == "splits")
    beside = sound.beside.get(kind, tmp_path)
    outcomes = runner.read_all(kind, paths, sound=beside, example=file, log=tmp_path / "log")
    bad = complaints(outcomes)
    assert not bad, bad


def test_crafted_feature_files(crafted: ModuleType, runner: ModuleType, sound: Any, tmp_path: Path) -> None:
    file = sound.files["features"]
    (tmp_path / "copies").mkdir()
    paths = list(crafted.feature_files(file, tmp_path / "copies"))
    outcomes = runner.read_all("features", paths, sound=tmp_path, example=file, log=tmp_path / "log")
    bad = complaints(outcomes)
    assert not bad, bad
    assert not any(outcome.read for outcome in outcomes if "not written" in outcome.name)


# --- the command line


@pytest.mark.parametrize("kind", list(COMMANDS))
def test_commands(
    kind: str, mutations: ModuleType, runner: ModuleType, sound: Any, small_study: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "copies"
    shutil.copytree(sound.study, folder, ignore=shutil.ignore_patterns("run", "*.safetensors", "config.yaml"))
    sources = {"features": folder / "features", "cohort": small_study.cohort.parent, "config": folder}
    file = sources[kind] / COMMANDS[kind]
    copies = [("sound", file.read_bytes()), *mutations.copies(file.read_bytes(), count=12, first=1000)]
    paths = write_copies(copies, file, tmp_path)
    example = paths[0]
    outcomes = runner.read_all("commands", paths, sound=sound.study / "run", example=example, log=tmp_path / "log")
    assert outcomes[0].read, outcomes[0]
    bad = complaints(outcomes)
    assert not bad, bad
    assert not all(outcome.read for outcome in outcomes)


# --- slides


@few_or_many
def test_damaged_slides(
    count: int, mutations: ModuleType, paint_tissue: Any, write_slide: Any, ellipse: Any, tmp_path: Path
) -> None:
    size = (256, 192) if count == FEW else (512, 384)
    rgb = paint_tissue(*size, [ellipse(size[0] / 2, size[1] / 2, size[0] / 3, size[1] / 3)]).rgb
    slides = tmp_path / "slides"
    slides.mkdir()
    kinds = {
        "jpeg.tiff": {"compression": "jpeg"},
        "deflate.tiff": {"compression": "deflate"},
        "aperio.svs": {"compression": "jpeg", "mpp": None, "aperio": "MPP = 0.5|AppMag = 20"},
    }
    share = MANY if count == MANY else count // len(kinds)
    for i, (name, how) in enumerate(kinds.items()):
        whole = write_slide(slides / name, rgb, levels=2, **how)
        for seed, damaged in mutations.copies(whole.read_bytes(), count=share, first=1000 * i):
            (slides / f"{whole.stem}-{seed}{whole.suffix}").write_bytes(damaged)
    out = tmp_path / "features"
    command = [sys.executable, "-m", "wsi2d.cli.main", "extract", slides, "--out", out, "--patch-px", "64"]
    done = subprocess.run(
        [*command, "--slide-mpp", "0.5", "--device", "cpu"],
        capture_output=True, timeout=SLIDES_LIMIT_S[count], preexec_fn=limit_memory,
    )  # fmt: skip
    errors = done.stderr.decode("utf-8", "replace")
    assert "Traceback" not in errors, errors[-3000:]
    assert done.returncode == 1, errors[-3000:]
    failures = {row["slide_id"]: row["error"] for row in read_rows(out / "failures.csv")}
    assert all(len(error.splitlines()) == 1 for error in failures.values())
    names = {path.stem for path in slides.iterdir()}
    assert len(names) == (share + 1) * len(kinds)
    extracted = {path.stem for path in out.glob("*.h5")}
    assert not extracted & set(failures)
    assert extracted | set(failures) == names
    assert {"jpeg", "deflate", "aperio"} <= extracted
    from wsi2d.features.store import read_features

    for name in extracted:
        read_features(out / f"{name}.h5")


def limit_memory() -> None:
    """A process that wants more than this is told so, and the machine is spared."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
