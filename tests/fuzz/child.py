"""Runs in a process of its own: reads damaged files as the verbs do and says what became of each.

``python child.py KIND [SOUND]`` takes one path a line, as JSON, and answers with one line of JSON for each: a list of
``[call, verdict, text]``, where the verdict is ``read``, ``refused`` (one line of our own error) or ``raised``.
"""

import io
import json
import os
import resource
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

ROOM = 2 * 2**30  # bytes that reading one small file may take
Reader = Callable[[Path], Any]


def features(sound: Path) -> dict[str, Reader]:
    """Feature files."""
    from wsi2d.data.bags import load_bag, read_spec
    from wsi2d.features.store import read_features, read_header

    return {"read_header": read_header, "read_spec": read_spec, "read_features": read_features, "load_bag": load_bag}


def peers(sound: Path) -> dict[str, Reader]:
    """Feature files of other tools, read where they lie."""
    from wsi2d.data.bags import load_bag, read_spec
    from wsi2d.features.imports.claims import Claims

    claims = Claims("uni_v2") if sound.name == "atlaspatch" else Claims()
    return {"read_spec": lambda path: read_spec(path, claims), "load_bag": lambda path: load_bag(path, claims)}


def cohort(sound: Path) -> dict[str, Reader]:
    """Cohort tables, and folds of them."""
    from wsi2d.config import ClassificationTask, SurvivalTask
    from wsi2d.data.cohort import Cohort, load_cohort, load_cohort_mpp
    from wsi2d.data.splits import make_splits, resolve_fold

    def split(table: Cohort) -> None:
        for fold in make_splits(table, folds=3):
            resolve_fold(fold, table)

    return {
        "classification": lambda path: split(load_cohort(path, ClassificationTask(label="subtype"))),
        "survival": lambda path: split(load_cohort(path, SurvivalTask(time="months", event="status=dead"))),
        "mpp": load_cohort_mpp,
    }


def config(sound: Path) -> dict[str, Reader]:
    """Configurations of runs, their models and losses."""
    from wsi2d.config_files import load_run_config
    from wsi2d.training.run import resolve_sections

    return {"load_run_config": lambda path: resolve_sections(load_run_config(path))}


def splits(sound: Path) -> dict[str, Reader]:
    """Folders of splits, for a sound cohort table."""
    from wsi2d.config import ClassificationTask
    from wsi2d.data.cohort import load_cohort
    from wsi2d.data.splits import read_splits, resolve_fold

    table = load_cohort(sound, ClassificationTask(label="subtype"))
    return {"read_splits": lambda path: [resolve_fold(fold, table) for fold in read_splits(path.parent)]}


def predictions(sound: Path) -> dict[str, Reader]:
    """Tables of predictions, and their numbers."""
    from wsi2d.config import EvaluationConfig
    from wsi2d.evaluation.evaluate import evaluate_table
    from wsi2d.evaluation.predictions import read_predictions

    brief = EvaluationConfig(bootstrap=3)
    return {"evaluate": lambda path: evaluate_table(read_predictions(path), brief)}


def model(sound: Path) -> dict[str, Reader]:
    """Weights with their card."""
    import torch

    from wsi2d.training.checkpoint import load_card, load_model

    return {"load_card": load_card, "load_model": lambda path: load_model(path, torch.device("cpu"))}


def resume(sound: Path) -> dict[str, Reader]:
    """Where a fold goes on from."""
    from wsi2d.training.checkpoint import load_resume_point

    return {"load_resume_point": load_resume_point}


def commands(sound: Path) -> dict[str, Reader]:
    """The command line itself on feature files (``.h5``), tables (``.csv``) and configurations (``.yaml``); ``sound``
    is a finished run."""

    def run(path: Path) -> None:
        beside = path.with_suffix("")
        if path.suffix == ".h5":
            return command("predict", sound, path, "--out", path.with_suffix(".predictions.csv"))
        if path.suffix == ".csv":
            return command("splits", "make", path, "--label", "subtype", "--folds", 3, "--out", beside)
        settings = [f"out={beside}", "training.epochs=1", "evaluation.bootstrap=0"]
        return command("train", path, *(word for setting in settings for word in ("--set", setting)))

    return {"wsi2d": run}


def command(*arguments: object) -> None:
    """One command, in this process; an exit code that is none of ours, or more than a line of error, is an error."""
    from wsi2d.cli.main import main
    from wsi2d.errors import Wsi2dError

    sys.argv = ["wsi2d", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as done:
        code = done.code or 0
    lines = err.getvalue().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if code == 2 and len(errors) == 1 and lines[-1] == errors[0] and not out.getvalue():
        raise Wsi2dError(errors[0])
    if code not in (0, 1) or errors or "Traceback" in err.getvalue():
        raise RuntimeError(f"exit code {code}, {out.getvalue()!r}, {lines[-5:]}")


KINDS = {f.__name__: f for f in (features, peers, cohort, config, splits, predictions, model, resume, commands)}
KINDS["survival"] = predictions  # the same table with other columns


def attempt(read: Reader, path: Path) -> tuple[str, str]:
    """What one call makes of a file."""
    from wsi2d.errors import Wsi2dError

    try:
        read(path)
    except Wsi2dError as error:
        text = str(error)
        return ("refused", text) if text and len(text.splitlines()) == 1 else ("raised", f"several lines: {text!r}")
    except BaseException as error:  # noqa: BLE001  whatever else comes is what this is about
        frames = traceback.extract_tb(error.__traceback__)
        where = [f"{Path(f.filename).name}:{f.name}:{f.lineno}" for f in frames if "wsi2d" in f.filename][-2:]
        return "raised", f"{type(error).__name__} in {' > '.join(where)}: {' '.join(str(error).split())[:300]}"
    return "read", ""


def main() -> None:
    """Answer until there are no more paths."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    warnings.simplefilter("ignore")
    sound = Path(sys.argv[2]) if len(sys.argv) > 2 else Path()
    readers = KINDS[sys.argv[1]](sound)
    for read in readers.values():  # what is imported late is imported before memory is counted
        with suppress(Exception):
            read(Path(sys.argv[3]))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        path = Path(json.loads(line))
        print(json.dumps([[name, *attempt(read, path)] for name, read in readers.items()]), file=answers, flush=True)


if __name__ == "__main__":
    main()
