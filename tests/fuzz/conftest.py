"""Fixtures of the tests with damaged files: the modules of this folder, and one sound file of each kind."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@dataclass(frozen=True)
class SoundFiles:
    """One sound file of each kind, and a finished run.

    Attributes:
        files: by kind, as in ``child.py``.
        beside: what the readers of a kind need beside the file.
        study: folder of a study with its ``run.yaml`` and its finished ``run``.
    """

    files: dict[str, Path]
    beside: dict[str, Path]
    study: Path


@pytest.fixture(scope="session")
def mutations(load_module: Callable[[str], ModuleType]) -> ModuleType:
    """`mutations.py`: damaged copies of a file."""
    return load_module("fuzz/mutations.py")


@pytest.fixture(scope="session")
def crafted(load_module: Callable[[str], ModuleType]) -> ModuleType:
    """`crafted.py`: files that are wrong on purpose."""
    return load_module("fuzz/crafted.py")


@pytest.fixture(scope="session")
def runner(load_module: Callable[[str], ModuleType]) -> ModuleType:
    """`runner.py`: has files read in a process of its own."""
    return load_module("fuzz/runner.py")


@pytest.fixture(scope="module")
def sound(small_study: Any, tiny: ModuleType, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> SoundFiles:
    """One sound file of each kind."""
    import torch

    from wsi2d.training.checkpoint import ResumePoint, save_resume_point
    from wsi2d.training.crossval import train
    from wsi2d.training.run import open_run

    folder = tmp_path_factory.mktemp("sound")
    train(tiny.write_study(folder))
    run = folder / "run"
    model, _ = open_run(run).model(0, torch.device("cpu"))
    state = dict(model.state_dict())
    moments = {f"{i}.exp_avg": tensor.clone() for i, tensor in enumerate(state.values())}
    save_resume_point(ResumePoint(state, moments, 1, 1, 0.5, [{"epoch": 1.0}]), folder / "last.safetensors")
    lines = ["slide_id,case_id,fold,time,event,risk,hazard_1,hazard_2"]
    lines += [f"s{i},p{i},{i % 2},{20 + 7 * i % 11}.5,{i % 3 % 2},{0.1 * (5 * i % 7):.3f},0.25,0.5" for i in range(16)]
    (folder / "survival.csv").write_text("\n".join(lines) + "\n", "utf-8")
    slide = small_study.slide_ids[0]
    files = {
        "features": small_study.features / f"{slide}.h5",
        "cohort": small_study.cohort,
        "config": run / "config.yaml",
        "splits": small_study.splits / "splits_0.csv",
        "predictions": run / "predictions.csv",
        "survival": folder / "survival.csv",
        "model": run / "fold-0" / "model.safetensors",
        "resume": folder / "last.safetensors",
    }
    return SoundFiles(files, {"splits": small_study.cohort}, folder)


@pytest.fixture(scope="module", autouse=True)
def package_is_found() -> Iterator[None]:
    """Processes of their own import the package that is tested."""
    import wsi2d

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(wsi2d.__file__).parents[1]), *([before] if before else [])])
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
