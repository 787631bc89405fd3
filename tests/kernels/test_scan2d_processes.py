"""The scans in processes that fork, use threads, count their CPU and memory, or have no place for a cache."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import wsi2d


def run_in_a_process(what: str, backend: str, **variables: str | None) -> None:
    """`in_a_process.py` must end well within two minutes; what it left running is stopped with it."""
    environment = dict(os.environ) | {name: value for name, value in variables.items() if value is not None}
    for name in ("WSI2D_SCAN_BACKEND", *(name for name, value in variables.items() if value is None)):
        environment.pop(name, None)
    script = Path(__file__).with_name("in_a_process.py")
    process = subprocess.Popen(
        [sys.executable, str(script), what, backend],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, f"{what} ended with {process.returncode}\n{errors[-4000:]}"


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.mark.parametrize("what", ["fork", "loader", "threads"])
def test_forks_workers_and_threads(what: str) -> None:
    run_in_a_process(what, "native", OMP_NUM_THREADS=None)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_as_many_threads_as_torch_has() -> None:
    run_in_a_process("cpu", "native", OMP_NUM_THREADS=None)


def test_memory_of_a_large_grid() -> None:
    run_in_a_process("memory", "native")


@pytest.mark.slow
def test_without_a_place_for_a_cache(tmp_path: Path) -> None:
    """Every folder a cache could go to lies below a file, also beside the package: right numbers all the same."""
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "cache")
    (package,) = wsi2d.__path__
    shutil.copytree(package, tmp_path / "copy" / "wsi2d", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (tmp_path / "copy").rglob("*/"):
        (folder / "__pycache__").touch()
    variables = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "TMPDIR"), nowhere)
    run_in_a_process("cache", "native", PYTHONPATH=str(tmp_path / "copy"), **variables)
