"""Damaged files of other tools end in a result or in one line, imported or read in place: no traceback, crash or hang.

HDF5's older layout, in which these tools write, has no checksums: some of these files do crash or hang HDF5, and with
it the process that reads them.
"""

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FEW, MANY = 25, 300
few_or_many = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
LAYOUTS = ("trident", "clam", "stamp", "atlaspatch")
REAL = {"trident": "20x_256px_0px_overlap/features_resnet50", "clam": "h5_files"}
ENCODER = {"atlaspatch": ["--encoder", "uni_v2"]}
LIMIT_S = 150  # a file in place: what turns in circles is ended after some 10 s of computing, on a busy machine later
IMPORT_LIMIT_S = {FEW: 300, MANY: 580}


@pytest.fixture(scope="session")
def peers(load_module: Callable[[str], ModuleType]) -> ModuleType:
    """`peers.py`: writes files as other tools lay them out."""
    return load_module("features/peers.py")


def sound_file(peers: ModuleType, layout: str, root: Path) -> Path:
    """A slide of two pieces of tissue, with the folders around it."""
    tissue = np.ones((9, 10), bool)
    tissue[3, 4:7] = tissue[0, 0] = False
    xy = np.concatenate([np.argwhere(tissue) * 256, np.argwhere(tissue[:4]) * 256 + (300, 4000)])
    values = peers.features(len(xy), 8)
    if layout == "atlaspatch":
        return peers.write_atlaspatch(root, xy, {"uni_v2": values, "conch_v1": values}, slide="sound")
    return getattr(peers, f"write_{layout}")(root, xy, values, slide="sound")


def damaged(mutations: ModuleType, sound: Path, count: int) -> list[Path]:
    """Copies beside the sound file, each with its own damage, and with the same coordinates' file if there is one."""
    patches = sound.parents[1] / "patches" / sound.name
    paths = []
    for name, data in mutations.copies(sound.read_bytes(), count=count):
        path = sound.with_name(f"slide-{name}.h5")
        path.write_bytes(data)
        if patches.is_file() and patches != sound:
            shutil.copy(patches, patches.with_name(path.name))
        paths.append(path)
    return paths


def check_import(root: Path, sound: Path, out: Path, count: int, options: list[str]) -> None:
    """One command over all: each slide is imported, or named with a line; what is imported is sound."""
    command = [sys.executable, "-m", "wsi2d.cli.main", "import", root, "--out", out, "--workers", "1", *options]
    done = subprocess.run(command, capture_output=True, timeout=IMPORT_LIMIT_S[count])
    errors = done.stderr.decode("utf-8", "replace")
    assert "Traceback" not in errors, errors[-3000:]
    assert done.returncode == 1, errors[-3000:]
    with (out / "failures.csv").open(newline="", encoding="utf-8") as file:
        failures = {row["slide_id"]: row["error"] for row in csv.DictReader(file)}
    assert all(len(error.splitlines()) == 1 and "; " in error for error in failures.values())
    imported = {path.stem for path in out.glob("*.h5")}
    assert not imported & set(failures)
    assert imported | set(failures) == {path.stem for path in sound.parent.glob("*.h5")}
    assert len(imported | set(failures)) == count + 1
    assert sound.stem in imported
    assert not list(out.glob(".*"))
    from wsi2d.features.store import read_features

    for name in imported:
        read_features(out / f"{name}.h5")


@few_or_many
@pytest.mark.parametrize("layout", ["trident", "clam", *(pytest.param(n, marks=pytest.mark.slow) for n in LAYOUTS[2:])])
def test_imported(layout: str, count: int, mutations: ModuleType, peers: ModuleType, tmp_path: Path) -> None:
    root = tmp_path / layout
    sound = sound_file(peers, layout, root)
    damaged(mutations, sound, count)
    check_import(root, sound, tmp_path / "out", count, ENCODER.get(layout, []))


@pytest.mark.slow
@pytest.mark.parametrize("tool", list(REAL))
def test_real_files_imported(tool: str, mutations: ModuleType, shared_dir: Path, tmp_path: Path) -> None:
    root = tmp_path / tool
    shutil.copytree(shared_dir / "peers" / tool, root)
    sound = root / REAL[tool] / "cmu-1-small-region.h5"
    damaged(mutations, sound, MANY)
    check_import(root, sound, tmp_path / "out", MANY, [])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_read_in_place(
    layout: str, mutations: ModuleType, runner: ModuleType, peers: ModuleType, tmp_path: Path
) -> None:
    sound = sound_file(peers, layout, tmp_path / layout)
    paths = damaged(mutations, sound, MANY)
    outcomes: list[Any] = runner.read_all(
        "peers", [sound, *paths], sound=tmp_path / layout, example=sound, log=tmp_path / "log", limit_s=LIMIT_S
    )
    assert outcomes[0].read, outcomes[0]
    bad = "\n".join(f"{path.name}: {o.bad}" for path, o in zip([sound, *paths], outcomes, strict=True) if o.bad)
    assert not bad, bad
    assert len(outcomes) == MANY + 1
    assert not all(outcome.read for outcome in outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_file_alone(
    layout: str, mutations: ModuleType, runner: ModuleType, peers: ModuleType, tmp_path: Path
) -> None:
    """The command on one damaged file alone, and for CLAM on a sound one beside a damaged file of coordinates."""
    sound = sound_file(peers, layout, tmp_path / layout)
    target = tmp_path / "clam" / "patches" / sound.name if layout == "clam" else sound
    for name, data in mutations.copies(target.read_bytes(), count=3, first=5000):
        target.write_bytes(data)
        command = [sys.executable, "-m", "wsi2d.cli.main", "import", sound, "--out", tmp_path / name]
        done = subprocess.run([*command, *ENCODER.get(layout, [])], capture_output=True, timeout=LIMIT_S, text=True)
        errors = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "failed: "))]
        assert "Traceback" not in done.stderr
        assert (done.returncode, len(errors)) in {(0, 0), (1, 1), (2, 1)}, done.stderr
