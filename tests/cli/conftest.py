"""Fixtures of the command line's tests: the command in this process, and a study taken through all of it."""

import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture(scope="module", autouse=True)
def on_one_thread(one_thread: None) -> None:
    """All tests of this folder."""


@pytest.fixture(scope="session")
def harness() -> ModuleType:
    """`user_commands.py`: commands as processes of their own."""
    return pytest.importorskip("user_commands", reason="this system has no limits of resources", exc_type=ImportError)


@pytest.fixture(scope="module")
def middling_slides(harness: ModuleType, write_slide: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four slides, each encoded for a while."""
    folder: Path = harness.paint_slides(tmp_path_factory.mktemp("slides"), "abcd", write_slide, side=700)
    return folder


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs ``wsi2d`` with arguments, given one by one or as one string: ``cli("evaluate --json", folder)``.

    As a user's shell would, it sees an exit code and two streams; what is raised otherwise is a traceback to a user.
    """
    from wsi2d.cli.main import main

    def run(first: str, *more: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["wsi2d", *shlex.split(first), *map(str, more)])
        capsys.readouterr()
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with pytest.raises(SystemExit) as done:
                main()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        printed = capsys.readouterr()
        code = done.value.code
        return Result(int(code) if code is not None else 0, printed.out, printed.err)

    return run


@pytest.fixture
def fails(cli: Cli) -> Callable[..., str]:
    """Runs a command that a user got wrong: exit code 2, nothing on stdout, one line of error, which is returned."""

    def run(first: str, *more: object) -> str:
        result = cli(first, *more)
        assert result.code == 2, result
        assert result.out == ""
        *before, last = result.err.splitlines()
        assert last.startswith("error: "), result.err
        assert not any(line.startswith("error:") for line in before)
        return last.removeprefix("error: ")

    return run


@pytest.fixture(scope="module")
def finished_run(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished classification run (its study lies beside it)."""
    from wsi2d.training.crossval import train

    path = tiny.write_study(tmp_path_factory.mktemp("finished"))
    train(path)
    return path.with_name("run")


@pytest.fixture
def write_slides(write_slide: Any) -> Callable[..., Path]:
    """Writes small slides of pink tissue on glass: ``write_slides(folder, "a", "b", mpp=0.5, brown=...)``."""

    def write(folder: Path, *names: str, mpp: float | None = 0.5, brown: bool = False) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(names):
            rng = np.random.default_rng([i, *name.encode()])
            rgb = np.full((320, 330, 3), 244, np.uint8)
            tissue = rgb[20:290, 20:300]
            tissue[:] = np.array([225, 150, 190]) + rng.integers(-8, 9, (270, 280, 3))
            if brown:
                tissue[100:180, 100:180] = (120, 80, 40)
            write_slide(folder / f"{name}.tiff", rgb, mpp=mpp, levels=2)
        return folder

    return write
