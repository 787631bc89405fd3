"""What `docs/cluster.md` says works: its array script, its Dask commands and its dask-jobqueue script are run."""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "cluster.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the tests run without the documentation")
LIMIT_S = 180.0


def block(language: str) -> str:
    """The page's one block of a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return str(found)


def commands(first_word: str) -> list[list[str]]:
    """Lines of blocks without a language that begin with a word, as arguments."""
    parts = PAGE.read_text("utf-8").split("```")
    lines = [line for part in parts[1::2] if part.startswith("\n") for line in part.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(f"{first_word} ")]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory, write_slide: Callable[..., Path]) -> Path:
    """Three slides that are all tissue."""
    folder = tmp_path_factory.mktemp("slides")
    for i, name in enumerate("abc"):
        rgb = np.full((600, 630, 3), 244, np.uint8)
        rgb[10:-10, 10:-10] = np.array([225, 150, 190]) + np.random.default_rng(i).integers(-8, 9, (580, 610, 3))
        write_slide(folder / f"{name}.tiff", rgb, levels=2)
    return folder


@pytest.mark.slow
def test_the_array(slides: Path, tmp_path: Path) -> None:
    """As Slurm runs it, job by job; then the line that looks at all slides once more."""
    script = block("bash")
    (count,) = re.findall(r"--array=1-(\d+)$", script, re.M)
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shared = {**os.environ, "PATH": tools, "SLIDES": str(slides), "FEATURES": str(tmp_path / "f")}
    done = []
    for k in (1, 3, 2, int(count)):
        slurm = {"SLURM_ARRAY_TASK_ID": str(k), "SLURM_ARRAY_TASK_COUNT": count}
        job = subprocess.run(
            ["bash", "-eu", "-c", script], env={**shared, **slurm}, capture_output=True, text=True, timeout=LIMIT_S
        )
        assert job.returncode == 0, job.stderr
        done.append(job.stdout.split(" done")[0])
    assert done == ["slides: 1", "slides: 1", "slides: 1", "slides: 0"]
    (wrapped,) = re.findall(r"--wrap '([^']+)'", PAGE.read_text("utf-8"))
    last = subprocess.run(["bash", "-eu", "-c", wrapped], env=shared, capture_output=True, text=True, timeout=LIMIT_S)
    assert (last.returncode, last.stderr) == (0, "")
    assert "0 done, 3 already finished, of 3" in last.stdout
    assert sorted(os.listdir(tmp_path / "f")) == ["a.h5", "b.h5", "c.h5"]


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_the_commands(slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines as they stand, but for the host, a free port and the folders."""
    pytest.importorskip("distributed", reason="Dask is not installed")
    harness = pytest.importorskip(
        "user_commands", reason="this system has no limits of resources", exc_type=ImportError
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "SLIDES").symlink_to(slides)
    found = commands("dask")
    assert [words[1] for words in found] == ["scheduler", "worker", "worker"]
    (extraction,) = [words for words in commands("wsi2d") if "--cluster" in words]
    port = free_port()
    with ExitStack() as stack:

        def here(words: list[str]) -> list[str]:
            return [word.replace("HOST", "127.0.0.1").replace("8786", str(port)) for word in words[1:]]

        local = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
        started = [
            stack.enter_context(harness.Command(*here(words), *local, module="dask", silent=True)) for words in found
        ]
        deadline = time.monotonic() + LIMIT_S
        while not listens(port) and time.monotonic() < deadline:
            time.sleep(0.1)
        ended = harness.run(*here(extraction), "--patch-px", 64)
        assert all(command.processes() for command in started)
    assert ended.code == 0, ended
    assert "3 done" in ended.out
    assert sorted(os.listdir(tmp_path / "features")) == ["a.h5", "b.h5", "c.h5"]


def listens(port: int) -> bool:
    """Whether somebody answers at a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_the_script_for_slurm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It runs up to its job script; what would submit jobs and what follows is noted instead."""
    jobqueue = pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    import wsi2d

    made: list[Any] = []

    class Cluster(jobqueue.SLURMCluster):  # type: ignore[misc, name-defined]
        def __init__(self, **options: Any) -> None:
            options["scheduler_options"] = {**options["scheduler_options"], "dashboard_address": "127.0.0.1:0"}
            super().__init__(**{**options, "interface": "lo"})
            made.append(self)

        def adapt(self, **options: Any) -> None:
            made.append(options)

    calls: list[tuple[Any, ...]] = []
    program = block("python").replace("from dask_jobqueue import SLURMCluster\n", "")
    module: dict[str, Any] = {"__name__": "script", "SLURMCluster": Cluster}
    exec(compile(program, "extract.py", "exec"), module)
    module["wsi2d"] = type(
        "wsi2d",
        (),
        {
            "find_slides": staticmethod(lambda paths: paths),
            "extract": staticmethod(lambda *given, **options: calls.append((*given, options)) or Report),
        },
    )
    try:
        module["main"]()
        address = made[0].scheduler_address
    finally:
        for cluster in made[:1]:
            cluster.close(timeout=20)
    script = capsys.readouterr().out
    assert "#SBATCH --cpus-per-task=8" in script or "#SBATCH -n 1" in script
    assert "#SBATCH --gres=gpu:1" in script
    assert re.search(r"-m distributed\.cli\.dask_worker tcp://127\.0\.0\.1:\d+ .*--resources GPU=1", script)
    assert made[1:] == [{"maximum_jobs": 16}]
    assert address.startswith("tcp://127.0.0.1:")
    assert calls == [(["/shared/slides"], "/shared/features", {"cluster": address})]
    assert callable(wsi2d.extract)


class Report:
    """Of an extraction that took place elsewhere."""

    count = staticmethod(lambda outcome: 0)
