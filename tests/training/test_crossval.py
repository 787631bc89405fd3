"""All folds: the run folder, going on after whatever stopped it, and settings that a run must not change."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml

import wsi2d
from wsi2d.config import RunConfig
from wsi2d.config_files import load_run_config
from wsi2d.data.bags import load_bag
from wsi2d.data.splits import read_splits
from wsi2d.errors import ConfigError, FeatureStoreError, RunError, SplitError, StorageError
from wsi2d.evaluation.evaluate import evaluate
from wsi2d.evaluation.training_side import training_outcomes
from wsi2d.features.store import read_features
from wsi2d.training.crossval import TrainProgress, _undisturbed, train
from wsi2d.training.predict import load_run_models
from wsi2d.training.run import load_study, open_run

Row = dict[str, float]


class Stop(Exception):
    """What interrupts a training."""


class StopAfter(TrainProgress):
    """Interrupts after that many epochs of all folds together; with 0 when the first fold is done."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def epoch_done(self, fold: int, row: Row) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stop


class Told(TrainProgress):
    """What is told, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def run_started(self, cohort: str, folds: int, epochs: int) -> None:
        self.events.append((cohort, folds * epochs))

    def epoch_done(self, fold: int, row: Row) -> None:
        self.events.append(("epoch", fold))

    def fold_done(self, fold: int) -> None:
        self.events.append(("fold", fold))


@pytest.fixture
def study(tiny: ModuleType, tmp_path: Path) -> Path:
    """The YAML file of a study of this test's own."""
    return tiny.write_study(tmp_path / "study")


# --- a finished run


def test_run_folder_holds_what_the_design_says(tiny: ModuleType, finished_run: Path) -> None:
    study = load_study(load_run_config(finished_run / "config.yaml"))
    expected = {"config.yaml", "cohort.csv", "environment.json", "notes.json", "audit.json", "predictions.csv"}
    expected |= {"metrics.json"}
    for fold in study.folds:
        files = ["model.safetensors", "history.csv", "predictions.csv"]
        files += [f"attention/{s.slide_id}.h5" for s in fold.test]
        expected |= {f"fold-{fold.index}/{name}" for name in files} | {f"splits/splits_{fold.index}.csv"}
    assert tiny.files_of(finished_run) == expected


def test_out_of_fold_predictions(tiny: ModuleType, finished_run: Path) -> None:
    rows = tiny.read_table(finished_run / "predictions.csv")
    truth = {row["slide_id"]: row for row in tiny.read_table(finished_run.parent / "cohort.csv")}
    assert sorted(row["slide_id"] for row in rows) == sorted(truth), "every slide is tested once"
    for row in rows:
        assert list(row) == ["slide_id", "case_id", "fold", "label", "prob_a", "prob_b"]
        assert (row["case_id"], row["label"]) == tuple(truth[row["slide_id"]][c] for c in ("case_id", "label"))
        assert float(row["prob_a"]) + float(row["prob_b"]) == pytest.approx(1, abs=1e-6)
        fold = tiny.read_table(finished_run / "splits" / f"splits_{row['fold']}.csv")
        assert row["case_id"] in {line["test"] for line in fold}
    parts = [tiny.read_table(finished_run / f"fold-{k}" / "predictions.csv") for k in (0, 1)]
    assert rows == parts[0] + parts[1]


def test_attention_files(finished_run: Path) -> None:
    for path in sorted(finished_run.glob("fold-*/attention/*.h5")):
        stored = read_features(finished_run.parent / "features" / path.name)
        with h5py.File(path) as file:
            assert file["attention"].dtype == np.float32
            assert file["attention"][()].sum() == pytest.approx(1, abs=1e-5)
            np.testing.assert_array_equal(file["coords"][()], stored.grid.coords)
            assert file.attrs["slide_id"] == path.stem
            assert file.attrs["patch_level0"] == stored.grid.patch_level0


def test_history_says_what_was_chosen(tiny: ModuleType, finished_run: Path) -> None:
    for fold in (0, 1):
        rows = tiny.read_table(finished_run / f"fold-{fold}" / "history.csv")
        names = ["epoch", "lr", "train_loss", "val_loss", "val_metric", "seconds", "peak_gb", "chosen"]
        assert [list(row) for row in rows] == [names] * 2
        assert [row["epoch"] for row in rows] == ["1", "2"]
        _, card = open_run(finished_run).model(fold, torch.device("cpu"))
        assert [row["epoch"] for row in rows if row["chosen"] == "1"] == [str(card.epoch)]
        assert card.fold == fold


def test_environment(finished_run: Path) -> None:
    environment = json.loads((finished_run / "environment.json").read_text("utf-8"))
    assert environment["wsi2d"] == wsi2d.__version__
    assert environment["torch"] == torch.__version__
    assert {"python", "platform", "cores", "device"} <= environment.keys()


def test_metrics_are_what_train_returns(tiny: ModuleType, study: Path) -> None:
    evaluation = train(study)
    run = study.with_name("run")
    assert (run / "metrics.json").read_text("utf-8") == evaluation.to_json()
    config = load_run_config(run / "config.yaml")
    assert evaluate(run, config.evaluation, seed=config.seed).to_json() == evaluation.to_json()
    assert (evaluation.slides, evaluation.cases, evaluation.folds) == (14, 12, (0, 1))


def test_kept_configuration_reproduces_the_run(tiny: ModuleType, finished_run: Path, tmp_path: Path) -> None:
    kept = load_run_config(finished_run / "config.yaml")
    assert kept.out == finished_run
    train(load_run_config(finished_run / "config.yaml", [f"out={tmp_path / 'again'}"]))
    assert tiny.result_bytes(tmp_path / "again") == tiny.result_bytes(finished_run)


def test_a_run_folder_may_move_with_its_study(tiny: ModuleType, study: Path, tmp_path: Path) -> None:
    train(study)
    study.parent.rename(tmp_path / "moved")
    before = tiny.result_bytes(tmp_path / "moved" / "run")
    told = Told()
    train(tmp_path / "moved" / "run.yaml", progress=told)
    assert ("epoch", 0) not in told.events
    assert tiny.result_bytes(tmp_path / "moved" / "run") == before


def test_kept_configuration_holds_every_option(tiny: ModuleType, study: Path) -> None:
    train(study)
    kept = yaml.safe_load((study.with_name("run") / "config.yaml").read_text("utf-8"))
    assert kept["model"]["dt_init"] == "mamba"
    assert kept["training"]["loss"] == {"name": "cross-entropy", "class_weights": "none"}
    assert kept["data"]["cohort"] == "../cohort.csv", "relative, so that a study can move"


def test_options_that_are_off_stay_off(tiny: ModuleType, study: Path) -> None:
    """What the configuration sets to null must not come back as the default."""
    train(tiny.changed(study, training={"grad_clip": None}))
    assert load_run_config(study.with_name("run") / "config.yaml").training.grad_clip is None
    train(tiny.changed(study, training={"grad_clip": None}))


def test_survival_end_to_end(tiny: ModuleType, survival_run: Path) -> None:
    rows = tiny.read_table(survival_run / "predictions.csv")
    truth = {row["slide_id"]: row for row in tiny.read_table(survival_run.parent / "cohort.csv")}
    assert len(rows) == 14
    for row in rows:
        known = truth[row["slide_id"]]
        assert float(row["time"]) == float(known["months"])
        assert int(row["event"]) == (known["status"] == "dead")
        hazards = np.array([float(row[f"hazard_{i}"]) for i in range(1, 4)])
        assert float(row["risk"]) == pytest.approx(-np.cumprod(1 - hazards).sum())
    metrics = json.loads((survival_run / "metrics.json").read_text("utf-8"))
    assert metrics["kind"] == "survival"
    assert metrics["cases"] == 12
    assert 0 <= metrics["metrics"]["c_index"]["mean"] <= 1
    for fold in (0, 1):
        _, card = open_run(survival_run).model(fold, torch.device("cpu"))
        split = tiny.read_table(survival_run / "splits" / f"splits_{fold}.csv")
        train_cases = {line["train"] for line in split}
        cases = {r["case_id"]: float(r["months"]) for r in truth.values() if r["status"] == "dead"}
        times = [months for case, months in cases.items() if case in train_cases]
        np.testing.assert_allclose(card.bin_edges, np.quantile(times, [1 / 3, 2 / 3]), rtol=1e-12)
        models = load_run_models(open_run(survival_run), [fold], device="cpu")
        risks: dict[str, list[float]] = {}
        for slide, known in truth.items():
            if known["case_id"] in train_cases:
                bag = load_bag(survival_run.parent / "features" / f"{slide}.h5")
                risks.setdefault(known["case_id"], []).append(models.predict(bag).risk)
        cut = np.median([np.mean(of_patient) for of_patient in risks.values()])
        for row in (r for r in rows if r["fold"] == str(fold)):
            assert float(row["risk_cut"]) == pytest.approx(cut, rel=1e-6)
            assert (float(row["edge_1"]), float(row["edge_2"])) == card.bin_edges
        time, event = training_outcomes(survival_run)[fold]
        known = {r["case_id"]: (float(r["months"]), r["status"] == "dead") for r in truth.values()}
        assert sorted(zip(time, event, strict=True)) == sorted(known[c] for c in train_cases if c)


def test_python_path_and_string_are_the_same(tiny: ModuleType, finished_run: Path, tmp_path: Path) -> None:
    path = tiny.write_study(tmp_path)
    train(str(path))
    assert tiny.result_bytes(path.with_name("run")) == tiny.result_bytes(finished_run)


def test_train_leaves_global_state_alone(study: Path) -> None:
    torch.manual_seed(3)
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    try:
        train(study)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_progress_is_told_in_order(study: Path) -> None:
    told = Told()
    train(study, progress=told)
    (cohort, epochs), *rest = told.events
    assert cohort == "14 slides of 12 patients; label: a 7, b 7"
    assert epochs == 4
    assert rest == [("epoch", 0), ("epoch", 0), ("fold", 0), ("epoch", 1), ("epoch", 1), ("fold", 1)]
    told = Told()
    train(study, progress=told)
    assert told.events[1:] == [("fold", 0), ("fold", 1)]


# --- going on


@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_interrupted_run_ends_with_the_numbers_of_one_that_was_not(
    tiny: ModuleType, finished_run: Path, study: Path, epochs: int
) -> None:
    with pytest.raises(Stop):
        train(study, progress=StopAfter(epochs))
    run = study.with_name("run")
    assert not (run / "predictions.csv").exists()
    assert not (run / "metrics.json").exists()
    train(study)
    assert tiny.result_bytes(run) == tiny.result_bytes(finished_run)
    assert tiny.files_of(run) == tiny.files_of(finished_run)
    assert (run / "metrics.json").read_bytes() == (finished_run / "metrics.json").read_bytes()


def test_finished_folds_are_not_trained_again(tiny: ModuleType, study: Path) -> None:
    with pytest.raises(Stop):
        train(study, progress=StopAfter(3))
    run = study.with_name("run")
    before = {name: (run / name).stat().st_mtime_ns for name in tiny.files_of(run) if name.startswith("fold-0/")}
    assert "fold-0/predictions.csv" in before
    told = Told()
    train(study, progress=told)
    assert told.events[1:] == [("fold", 0), ("epoch", 1), ("fold", 1)]
    after = {name: (run / name).stat().st_mtime_ns for name in tiny.files_of(run) if name.startswith("fold-0/")}
    assert after == before


def test_killed_before_the_last_file_was_tidied_away(tiny: ModuleType, study: Path) -> None:
    train(study)
    left = study.with_name("run") / "fold-0" / "last.safetensors"
    left.write_bytes(b"what a killed run left beside its finished fold")
    train(study)
    assert not left.exists()


def test_interrupts_wait_while_processes_start() -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    done = []

    def disturb() -> None:
        with _undisturbed():
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
                done.append("undisturbed")

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            disturb()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with _undisturbed():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is handlers[signal.SIGTERM]
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert len(done) == 2


KILLER = """
import os, signal, sys
from contextlib import contextmanager
from wsi2d.files import partial_path
from pathlib import Path
from wsi2d.training import crossval, fold

at = int(sys.argv[2])

class Killer(crossval.TrainProgress):
    def epoch_done(self, fold, row):
        global at
        at -= 1
        if at == 0:
            os.kill(os.getpid(), signal.SIGKILL)

@contextmanager
def in_the_middle(path):
    partial_path(path).write_bytes(b"half a file")
    os.kill(os.getpid(), signal.SIGKILL)
    yield

if at == 0:
    crossval.whole_file = in_the_middle
crossval.train(sys.argv[1], progress=Killer())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize("at", [0, 3], ids=["writing attention", "second fold"])
def test_killed_run_goes_on(tiny: ModuleType, finished_run: Path, study: Path, at: int) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLER, study, str(at)], capture_output=True, text=True, timeout=120, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = study.with_name("run")
    assert not (run / "predictions.csv").exists()
    train(study)
    assert tiny.result_bytes(run) == tiny.result_bytes(finished_run)
    assert tiny.files_of(run) == tiny.files_of(finished_run)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize("workers", [1, 2])
def test_command_killed_at_any_moment(tiny: ModuleType, tmp_path: Path, workers: int) -> None:
    """The command line, killed four times at moments that nobody chose, and run to the end."""
    epochs = {"epochs": 60}
    whole = tiny.write_study(tmp_path / "whole", training=epochs)
    train(whole)
    path = tiny.write_study(tmp_path / "parts", training={**epochs, "workers": workers})
    command = [sys.executable, "-m", "wsi2d.cli.main", "train", str(path)]
    run = path.with_name("run")
    for kill in range(4):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        earlier = newest(run)
        deadline = time.monotonic() + 60
        while newest(run) == earlier and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.13 * kill)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert tiny.result_bytes(run) == tiny.result_bytes(whole.with_name("run"))
    assert tiny.files_of(run) == tiny.files_of(whole.with_name("run"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc to count processes in")
@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_workers_end_with_their_run(tiny: ModuleType, tmp_path: Path, how: str) -> None:
    """Killed or interrupted, a run leaves no process behind that goes on writing, and begins no further fold."""
    path = tiny.write_study(tmp_path, training={"epochs": 1000, "workers": 2})
    for k, names in enumerate((["p02", "p03"], ["p00", "p01"]), start=2):
        tiny.write_fold(tmp_path / "splits", k, train=["p08", "p09", "p10"], val=["p04", "p05"], test=names)
    command = [sys.executable, "-m", "wsi2d.cli.main", "train", str(path)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while len(list(path.parent.glob("run/fold-*/last.safetensors"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(session_of(process.pid)) >= 3, "the folds train in processes of their own"
        if how == "kill":
            process.kill()
            process.wait(30)
        else:
            os.killpg(process.pid, signal.SIGINT)
            _, errors = process.communicate(timeout=30)
            assert process.returncode == 130
            assert errors.decode().splitlines()[-1] == "interrupted; run the same command again to go on"
        deadline = time.monotonic() + 20
        while session_of(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert session_of(process.pid) == []
        assert len(list(path.parent.glob("run/fold-*"))) == 2
    finally:
        for pid in session_of(process.pid):
            os.kill(pid, signal.SIGKILL)


def session_of(leader: int) -> list[int]:
    """Processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == leader and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def newest(run: Path) -> int:
    """When the latest point to go on from was written."""
    times = [0]
    for path in run.glob("fold-*/last.safetensors"):
        try:
            times.append(path.stat().st_mtime_ns)
        except FileNotFoundError:
            continue
    return max(times)


def test_folds_in_processes_of_their_own_give_the_same_numbers(
    tiny: ModuleType, finished_run: Path, study: Path
) -> None:
    """In a process of its own, as a user's script would: children import the main module."""
    script = study.with_name("script.py")
    script.write_text(
        "import sys, wsi2d\nif __name__ == '__main__':\n    print(wsi2d.train(sys.argv[1]).metrics['auc'].mean)\n"
    )
    changed = study.with_name("changed.yaml")
    tiny.changed(study, training={"workers": 2})
    done = subprocess.run([sys.executable, script, changed], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    run = study.with_name("run")
    assert tiny.result_bytes(run) == tiny.result_bytes(finished_run)
    assert tiny.files_of(run) == tiny.files_of(finished_run)


@pytest.mark.slow
def test_an_error_in_a_worker_is_the_error(tiny: ModuleType, study: Path) -> None:
    splits = study.parent / "splits"
    tiny.write_fold(splits, 1, train=["p00", "p02", "p04"], val=["p01", "p06"], test=["p03", "p08"])
    tiny.changed(study, training={"workers": 2})
    command = [sys.executable, "-m", "wsi2d.cli.main", "train", str(study.with_name("changed.yaml"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert errors == ["error: fold 1: its train side has no slide of class 'b'; use fewer folds"]
    assert "Traceback" not in done.stderr


# --- settings that a run must not change, and those it may


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("seed", {"seed": 4}),
        ("training.epochs", {"training": {"epochs": 3}}),
        ("training.lr", {"training": {"lr": 0.02}}),
        ("training.grad_clip", {"training": {"grad_clip": 0.5}}),
        ("training.loss.class_weights", {"training": {"loss": {"class_weights": "balanced"}}}),
        ("model.state", {"model": {"name": "mamba2d-mil", "dim": 8, "state": 3, "attention_dim": 8, "directions": 2}}),
        ("model.attention_dim", {"model": {"name": "abmil", "dim": 8}}),
        ("data.case_column", {"data": {"case_column": "slide_id"}}),
        ("data.missing_features", {"data": {"missing_features": "skip"}}),
        ("task.classes", {"task": {"classes": ["b", "a"]}}),
    ],
)
def test_changed_settings_are_refused_by_name(
    tiny: ModuleType, finished_run: Path, tmp_path: Path, key: str, change: dict[str, Any]
) -> None:
    before = {name: (finished_run / name).stat().st_mtime_ns for name in tiny.files_of(finished_run)}
    config = tiny.changed(finished_run.parent / "run.yaml", **change)
    if key == "data.case_column":  # the splits name patients, whom such a cohort does not know
        splits = tmp_path / "splits"
        for k, half in enumerate((["s00x", "s01x", "s02x"], ["s04x", "s05x", "s06x"])):
            tiny.write_fold(splits, k, train=["s07x", "s08x"], val=["s09x", "s10x"], test=half)
        config = config.model_copy(update={"data": config.data.model_copy(update={"splits": splits})})
    with pytest.raises(RunError, match=f"holds a run with another {key}; give another out") as caught:
        train(config)
    assert "\n" not in str(caught.value)
    assert {name: (finished_run / name).stat().st_mtime_ns for name in tiny.files_of(finished_run)} == before


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"workers": 2}},
        {"training": {"threads": 2}},
        {"training": {"device": "auto"}},
        {"evaluation": {"bootstrap": 3}},
        {"data": {"cache_gb": 0}},
        {"data": {"slides": "elsewhere"}},
    ],
)
def test_settings_that_change_no_number_may_change(
    tiny: ModuleType, finished_run: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    study = tmp_path / "study" / "run.yaml"
    shutil.copytree(finished_run.parent, study.parent)
    before = tiny.result_bytes(finished_run)
    told = Told()
    evaluation = train(tiny.changed(study, **change), progress=told)
    assert ("epoch", 0) not in told.events
    assert tiny.result_bytes(study.with_name("run")) == before
    if "evaluation" in change:
        assert evaluation.bootstrap == 3


def test_a_run_begun_on_another_device_goes_on(tiny: ModuleType, study: Path) -> None:
    train(study)
    path = study.with_name("run") / "config.yaml"
    path.write_text(path.read_text("utf-8").replace("device: cpu", "device: cuda:63"), "utf-8")
    assert load_run_config(path).training.device == "cuda:63"
    train(study)


def test_relative_paths_in_python(tiny: ModuleType, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration made in Python, twice, from a folder beside the study's."""
    values = yaml.safe_load(study.read_text("utf-8"))
    values["data"] = {name: f"../{study.parent.name}/{value}" for name, value in values["data"].items()}
    (study.parent.parent / "elsewhere").mkdir()
    monkeypatch.chdir(study.parent.parent / "elsewhere")
    first = train(RunConfig.model_validate(values))
    again = train(RunConfig.model_validate(values))
    assert first == again
    assert load_run_config(Path("run/config.yaml")).data.cohort == study.parent / "cohort.csv"


def test_other_splits_under_the_same_name_are_refused(tiny: ModuleType, study: Path) -> None:
    """Finished folds are not trained again, so a run that went on with other splits would mix two cross-validations."""
    with pytest.raises(Stop):
        train(study, progress=StopAfter(3))
    folds = read_splits(study.parent / "splits")
    swapped = [folds[1], folds[0]]
    for k, fold in enumerate(swapped):
        tiny.write_fold(study.parent / "splits", k, train=fold.train, val=fold.val, test=fold.test)
    with pytest.raises(RunError, match="splits") as caught:
        train(study)
    assert "\n" not in str(caught.value)


def test_other_features_under_the_same_name_are_refused(tiny: ModuleType, study: Path) -> None:
    with pytest.raises(Stop):
        train(study, progress=StopAfter(3))
    for slide in load_study(load_run_config(study)).cohort.slides:
        features = np.random.default_rng(0).normal(size=(9, tiny.DIM)).astype(np.float32)
        tiny.write_features(study.parent / "features", slide.slide_id, features, encoder="other")
    with pytest.raises(RunError, match="encoder other, not tiny") as caught:
        train(study)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["label", "patient", "patches"])
def test_other_data_under_the_same_names_are_refused(tiny: ModuleType, study: Path, what: str) -> None:
    """Finished folds were trained on the labels, patients and patches of then."""
    with pytest.raises(Stop):
        train(study, progress=StopAfter(3))
    if what == "patches":
        features = np.random.default_rng(0).normal(size=(3, tiny.DIM)).astype(np.float32)
        tiny.write_features(study.parent / "features", "s03x", features)
    else:
        change = {"label": {"label": "a"}, "patient": {"case_id": "p05"}}[what]
        rows = tiny.read_table(study.parent / "cohort.csv")
        rows = [{**row, **change} if row["slide_id"] == "s03x" else row for row in rows]
        tiny.write_table(study.parent / "cohort.csv", list(rows[0]), [list(row.values()) for row in rows])
        if what == "patient":  # else the splits would name a patient that is gone
            tiny.write_features(study.parent / "features", "s99x", np.zeros((4, tiny.DIM), np.float32))
            with (study.parent / "cohort.csv").open("a", encoding="utf-8") as table:
                table.write("s99x,p03,b,9,dead\n")
    with pytest.raises(RunError, match=r"began with other slides, labels or features.*'s03x,p0[35],[ab],\d+'"):
        train(study)


def test_data_that_moved_are_the_same_data(tiny: ModuleType, study: Path, tmp_path: Path) -> None:
    """A run goes on where its data are elsewhere, and its configuration tells where they are now."""
    with pytest.raises(Stop):
        train(study, progress=StopAfter(3))
    first = (study.parent / "run" / "fold-0" / "model.safetensors").read_bytes()
    moved = tmp_path / "elsewhere"
    study.parent.rename(moved)
    (moved / "run").rename(tmp_path / "run")
    data = {name: str(moved / name) for name in ("features", "splits")}
    config = tiny.changed(
        moved / "run.yaml", out=str(tmp_path / "run"), data={"cohort": str(moved / "cohort.csv"), **data}
    )
    assert train(config).slides == 14
    assert (tmp_path / "run" / "fold-0" / "model.safetensors").read_bytes() == first
    assert load_run_config(tmp_path / "run" / "config.yaml").data.features == moved / "features"


@pytest.mark.parametrize("content", ["file in it", "file of that name"])
def test_a_folder_that_is_no_run(tiny: ModuleType, study: Path, content: str) -> None:
    out = study.with_name("run")
    if content == "file in it":
        out.mkdir()
        (out / "thesis.docx").write_text("years of work")
        with pytest.raises(RunError, match="is not empty and no run; give another out"):
            train(study)
        assert (out / "thesis.docx").read_text() == "years of work"
        assert tiny.files_of(out) == {"thesis.docx"}
    else:
        out.write_text("a file")
        with pytest.raises(StorageError, match="give another out"):
            train(study)


def test_killed_while_the_folder_was_made(tiny: ModuleType, finished_run: Path, study: Path) -> None:
    """The configuration comes last: what lies there before it is the beginning of a run."""
    out = study.with_name("run")
    (out / "splits").mkdir(parents=True)
    (out / "splits" / "splits_0.csv").write_text(",train,val,test\n")
    (out / "environment.json").write_text("{")
    train(study)
    assert tiny.result_bytes(out) == tiny.result_bytes(finished_run)
    assert tiny.files_of(out) == tiny.files_of(finished_run)


def test_nothing_is_written_before_the_input_is_checked(tiny: ModuleType, study: Path) -> None:
    (study.parent / "features" / "s04x.h5").unlink()
    with pytest.raises(FeatureStoreError, match="1 of 14 slides have none"):
        train(study)
    with pytest.raises(ConfigError, match="dimm: unknown key; did you mean 'dim'"):
        train(tiny.changed(study, model={"name": "abmil", "dimm": 3}))
    with pytest.raises(ConfigError, match=r"device 'cuda:63'"):
        train(tiny.changed(study, training={"device": "cuda:63"}, data={"missing_features": "skip"}))
    with pytest.raises(ConfigError, match="'nll' is a loss for survival"):
        train(tiny.changed(study, training={"loss": "nll"}))
    assert not study.with_name("run").exists()


# --- leakage, two-sided splits, slides left out


def leak(tiny: ModuleType, study: Path) -> None:
    """One patient of fold 0's test side is in train as well."""
    fold = read_splits(study.parent / "splits")[0]
    sides = {"train": [*fold.train, fold.test[0]], "val": list(fold.val), "test": list(fold.test)}
    tiny.write_fold(study.parent / "splits", 0, **sides)


def test_leakage_is_refused(tiny: ModuleType, study: Path) -> None:
    leak(tiny, study)
    with pytest.raises(SplitError, match=r"fold 0: 1 patients are on two sides .*'p00'.*data\.allow_leakage") as caught:
        train(study)
    assert "\n" not in str(caught.value)
    assert not study.with_name("run").exists()


def test_leakage_by_slides_of_one_patient(tiny: ModuleType, study: Path) -> None:
    """Splits of slide ids: no slide on two sides, but a patient."""
    sides = {"train": ["s00x", "s01x", "s02x", "s03x"], "val": ["s04x", "s05x"], "test": ["s00y", "s07x"]}
    tiny.write_fold(study.parent / "splits", 0, **sides)
    with pytest.raises(SplitError, match="1 patients are on two sides"):
        train(study)


def test_leakage_that_is_allowed_is_said(tiny: ModuleType, study: Path) -> None:
    leak(tiny, study)
    evaluation = train(tiny.changed(study, data={"allow_leakage": True}))
    notes = ("fold 0: 1 patients leak between its sides",)
    assert evaluation.notes == notes
    assert tuple(json.loads((study.with_name("run") / "metrics.json").read_text("utf-8"))["notes"]) == notes
    assert train(tiny.changed(study, data={"allow_leakage": True})).notes == notes, "also when it goes on"


def test_the_audit_of_the_splits_is_kept_and_its_warnings_said(
    tiny: ModuleType, study: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Slides of two sites of TCGA on two sides of both folds, a slide on none, and labels that differ by much."""
    rows = tiny.read_table(study.with_name("cohort.csv"))
    sites = {f"p{i:02d}": ("A1", "B2", "C3")[min(i // 3, 2)] for i in range(tiny.PATIENTS)}
    for row in rows:
        name = f"TCGA-{sites[row['case_id']]}-00{row['case_id'][1:]}-{row['slide_id'][-1]}"
        (study.parent / "features" / f"{row['slide_id']}.h5").rename(study.parent / "features" / f"{name}.h5")
        row["slide_id"] = name
    rows += [{**rows[0], "slide_id": "TCGA-Z9-0099-x", "case_id": "p99"}]
    tiny.write_table(study.with_name("cohort.csv"), list(rows[0]), [list(row.values()) for row in rows])
    with caplog.at_level(logging.WARNING, "wsi2d"):
        train(study)
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("audit: ")]
    assert said == [
        "audit: 3 tissue source sites are on two sides, in 2 of 2 folds",
        "audit: 1 slides are on no side, in 2 of 2 folds",
    ]
    kept = json.loads((study.with_name("run") / "audit.json").read_text("utf-8"))
    assert (kept["slides"], kept["patients"], kept["leaks"]) == (15, 13, False)
    assert [fold["shared_sites"] for fold in kept["folds"]] == [["A1", "B2", "C3"]] * 2
    assert kept["folds"][0]["missing"] == ["TCGA-Z9-0099-x"]
    assert sum(kept["folds"][0]["sides"]["test"]["classes"].values()) == 8
    before = (study.with_name("run") / "audit.json").read_bytes()
    train(study)
    assert (study.with_name("run") / "audit.json").read_bytes() == before


def test_splits_without_a_test_side(tiny: ModuleType, study: Path) -> None:
    """The field's published splits: val is held out, the epoch is chosen on a part of train."""
    cases = [f"p{i:02d}" for i in range(tiny.PATIENTS)]
    for k, held_out in enumerate((cases[:4], cases[8:])):
        rest = [c for c in cases if c not in held_out]
        tiny.write_fold(study.parent / "splits", k, train=rest, val=held_out, test=[])
    evaluation = train(tiny.changed(study, training={"inner_val": 0.25}))
    assert len(evaluation.notes) == 1
    assert "val is the held-out side" in evaluation.notes[0]
    rows = tiny.read_table(study.with_name("run") / "predictions.csv")
    assert {row["case_id"] for row in rows if row["fold"] == "0"} == set(cases[:4])
    assert {row["case_id"] for row in rows if row["fold"] == "1"} == set(cases[8:])


def test_slides_without_tissue_or_features_are_said(tiny: ModuleType, study: Path) -> None:
    tiny.write_features(study.parent / "features", "s05x", np.zeros((0, tiny.DIM), np.float32))
    (study.parent / "features" / "s06x.h5").unlink()
    evaluation = train(tiny.changed(study, data={"missing_features": "skip"}))
    assert evaluation.notes == (
        "1 slides without tissue are left out: s05x",
        "1 slides without features are left out: s06x",
    )
    rows = tiny.read_table(study.with_name("run") / "predictions.csv")
    assert len(rows) == 12
    assert not {row["slide_id"] for row in rows} & {"s05x", "s06x"}
    assert evaluation.slides == 12


# --- a run folder that is opened


def test_open_run(finished_run: Path, tmp_path: Path) -> None:
    run = open_run(finished_run)
    assert run.folds == (0, 1)
    assert run.folder == finished_run
    with pytest.raises(RunError, match=r"no config\.yaml; give the folder that `wsi2d train` wrote"):
        open_run(tmp_path)
    with pytest.raises(RunError, match=r"no config\.yaml"):
        open_run(tmp_path / "nowhere")
    (tmp_path / "config.yaml").write_bytes((finished_run / "config.yaml").read_bytes())
    with pytest.raises(RunError, match="no fold is trained yet"):
        open_run(tmp_path)


def test_ten_folds_are_in_order(tiny: ModuleType, finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes((finished_run / "config.yaml").read_bytes())
    for k in (10, 2, 0):
        (tmp_path / f"fold-{k}").mkdir()
        (tmp_path / f"fold-{k}" / "model.safetensors").write_bytes(b"")
    assert open_run(tmp_path).folds == (0, 2, 10)
