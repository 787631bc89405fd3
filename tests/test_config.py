"""Configuration: strict sections with one-line errors, files with their own relative paths, presets and overrides."""

import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from wsi2d.config import (
    ClassificationTask,
    DataConfig,
    EvaluationConfig,
    ExtractConfig,
    PatchConfig,
    RunConfig,
    SurvivalTask,
    TissueConfig,
    TrainingConfig,
    nearest,
    validate,
)
from wsi2d.config_files import load_preset, load_run_config, merge, read_yaml, save_run_config
from wsi2d.errors import ConfigError
from wsi2d.models.registry import model_config
from wsi2d.training.losses import loss_config

CLASSES = {"kind": "classification", "label": "grade"}
SURVIVAL = {"kind": "survival", "time": "months", "event": "status=dead"}
BASE: dict[str, Any] = {
    "out": "run",
    "data": {"cohort": "cohort.csv", "features": "features", "splits": "splits"},
    "task": CLASSES,
}
PRESETS = sorted(
    entry.name.removesuffix(".yaml") for entry in resources.files("wsi2d.configs").iterdir() if ".yaml" in entry.name
)

WriteConfig = Callable[..., Path]


@pytest.fixture
def write_config(tmp_path: Path) -> WriteConfig:
    """Writes a run's file: the base with other top-level values."""

    def write(folder: str = "study", **values: Any) -> Path:
        path = tmp_path / folder / "run.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({k: v for k, v in (BASE | values).items() if v != "absent"}), "utf-8")
        return path

    return write


def failure(action: Callable[[], object]) -> str:
    """The one line of the ConfigError that an action ends in."""
    with pytest.raises(ConfigError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- sections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (PatchConfig, {"patch": 256}, "patch: unknown key; did you mean 'patch_px'?"),
        (PatchConfig, {"zzz": 1}, "zzz: unknown key; there are min_tissue, mpp, overlap_px, patch_px"),
        (PatchConfig, {"patch_px": 4}, "patch_px: Input should be greater than or equal to 8, got 4"),
        (PatchConfig, {"patch_px": 5000}, "patch_px: Input should be less than or equal to 4096, got 5000"),
        (PatchConfig, {"patch_px": "big"}, "patch_px: Input should be a valid integer"),
        (PatchConfig, {"patch_px": 25.5}, "patch_px: Input should be a valid integer"),
        (PatchConfig, {"mpp": 0}, "mpp: Input should be greater than 0, got 0"),
        (PatchConfig, {"overlap_px": 256}, "overlap_px must be below patch_px (256), got 256"),
        (PatchConfig, {"min_tissue": 1.5}, "min_tissue: Input should be less than or equal to 1, got 1.5"),
        (TissueConfig, {"min_saturation": 0.5}, "min_saturation must not exceed max_saturation"),
        (TissueConfig, {"close": 3}, "close: unknown key; did you mean 'close_um'?"),
        (ExtractConfig, {"patch": {"pach_px": 3}}, "patch.pach_px: unknown key; did you mean 'patch_px'?"),
        (ExtractConfig, {"tissue": {"mpp": -8}}, "tissue.mpp: Input should be greater than 0, got -8"),
        (ExtractConfig, {"patch": 256}, "patch: Input should be a valid dictionary"),
        (DataConfig, {"cohort": "a", "features": "b"}, "splits: missing"),
        (DataConfig, {"cohort": 5, "features": "b", "splits": "c"}, "cohort: Input is not a valid path"),
        (DataConfig, {"cohort": "a", "features": "b", "splits": "c", "cache_gb": -1}, "cache_gb: Input should be"),
        (
            DataConfig,
            {"cohort": "a", "features": "b", "splits": "c", "missing_features": "ignore"},
            "missing_features: Input should be 'error' or 'skip', got 'ignore'",
        ),
        (ClassificationTask, {}, "label: missing"),
        (ClassificationTask, {"label": 3}, "label: Input should be a valid string, got 3"),
        (ClassificationTask, {"label": "x", "classes": ["a"]}, "classes must name at least two different classes"),
        (ClassificationTask, {"label": "x", "classes": ["a", "a"]}, "classes must name at least two different"),
        (ClassificationTask, {"label": "x", "classes": "a"}, "classes: Input should be a valid tuple, got 'a'"),
        (SurvivalTask, {"time": "t"}, "event: missing"),
        (SurvivalTask, {"time": "t", "event": "died"}, "event must be COLUMN=VALUE"),
        (SurvivalTask, {"time": "t", "event": "=1"}, "the value that means the event happened; got '=1'"),
        (SurvivalTask, {"time": "t", "event": "died="}, "the value that means the event happened; got 'died='"),
        (SurvivalTask, {"time": "t", "event": "d=1", "bins": 1}, "bins: Input should be greater than or equal to 2"),
        (TrainingConfig, {"epoch": 3}, "epoch: unknown key; did you mean 'epochs'?"),
        (TrainingConfig, {"epochs": 0}, "epochs: Input should be greater than or equal to 1, got 0"),
        (TrainingConfig, {"epochs": "ten"}, "epochs: Input should be a valid integer"),
        (TrainingConfig, {"lr": -1e-4}, "lr: Input should be greater than 0, got -0.0001"),
        (TrainingConfig, {"grad_clip": 0}, "grad_clip: Input should be greater than 0, got 0"),
        (TrainingConfig, {"schedule": "step"}, "schedule: Input should be 'cosine' or 'constant', got 'step'"),
        (TrainingConfig, {"inner_val": 0.95}, "inner_val: Input should be less than 0.9, got 0.95"),
        (TrainingConfig, {"loss": 5}, "loss: Input should be a valid dictionary, got 5"),
        (EvaluationConfig, {"confidence": 95}, "confidence: Input should be less than 1, got 95"),
        (EvaluationConfig, {"bootstrap": -1}, "bootstrap: Input should be greater than or equal to 0, got -1"),
    ],
)
def test_errors_of_sections(section: Any, values: dict[str, Any], message: str) -> None:
    found = failure(lambda: validate(section, values, source="here"))
    assert found.startswith("config here: ")
    assert message in found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "absent"}, "data: missing"),
        ({"out": "absent"}, "out: missing"),
        ({"task": "absent"}, "task: missing"),
        ({"dta": {}}, "dta: unknown key; did you mean 'data'?"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0, got -1"),
        ({"seed": "one"}, "seed: Input should be a valid integer"),
        ({"training": {"epoch": 3}}, "training.epoch: unknown key; did you mean 'epochs'?"),
        ({"training": None}, "training: Input should be a valid dictionary"),
        ({"training": {"lr": "fast"}}, "training.lr: Input should be a valid number"),
        ({"evaluation": {"boot": 3}}, "evaluation.boot: unknown key; did you mean 'bootstrap'?"),
        ({"data": {"cohort": "a", "features": "b"}}, "data.splits: missing"),
        ({"task": {"kind": "classification"}}, "task.label: missing"),
        ({"task": {"kind": "survival", "time": "t"}}, "task.event: missing"),
        ({"task": CLASSES | {"lable": "x"}}, "task.lable: unknown key; did you mean 'label'?"),
        ({"task": CLASSES | {"bins": 4}}, "task.bins: unknown key; "),
        ({"task": SURVIVAL | {"label": "x"}}, "task.label: unknown key; "),
        ({"task": SURVIVAL | {"bin": 3}}, "task.bin: unknown key; did you mean 'bins'?"),
        ({"task": SURVIVAL | {"event": "dead"}}, "task.event: event must be COLUMN=VALUE"),
        ({"task": SURVIVAL | {"bins": 99}}, "task.bins: Input should be less than or equal to 50, got 99"),
        ({"task": {"label": "grade"}}, "task.kind: missing; there are classification, survival"),
        ({"task": {"kind": "regression"}}, "task.kind: 'regression' is unknown; there are classification, survival"),
        ({"task": {"kind": "survial"}}, "task.kind: 'survial' is unknown; did you mean 'survival'?"),
        ({"training": {"lr": float("inf")}}, "training.lr: Input should be a finite number, got inf"),
        ({"training": {"lr": float("nan")}}, "training.lr: Input should be"),
        ({"task": "classification"}, "task: Input should be a valid dictionary"),
        ({"model": 5}, "model: Input should be a valid dictionary, got 5"),
        ({3: "x"}, "3: "),
    ],
)
def test_errors_of_files_name_the_file_and_the_key(
    write_config: WriteConfig, values: dict[Any, Any], message: str
) -> None:
    path = write_config(**{k: v for k, v in values.items() if isinstance(k, str)})
    with path.open("a") as file:
        file.writelines(f"{k}: {v}\n" for k, v in values.items() if not isinstance(k, str))
    found = failure(lambda: load_run_config(path))
    assert found.startswith(f"config {path}: ")
    assert message in found


def test_long_values_are_not_repeated(write_config: WriteConfig) -> None:
    path = write_config(training={"lr": "x" * 500})
    assert len(failure(lambda: load_run_config(path))) < len(str(path)) + 150


def test_sections_do_not_change() -> None:
    config = PatchConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.patch_px = 512


def test_nearest() -> None:
    assert nearest("epoch", ["epochs", "lr"]) == "did you mean 'epochs'?"
    assert nearest("xyz", ["epochs", "batch"]) == "there are batch, epochs"


@pytest.mark.parametrize(
    ("event", "column", "value"),
    [("status=dead", "status", "dead"), ("c=0", "c", "0"), ("vital=1:DECEASED=x", "vital", "1:DECEASED=x")],
)
def test_event_is_a_column_and_a_value(event: str, column: str, value: str) -> None:
    task = SurvivalTask(time="t", event=event)
    assert (task.event_column, task.event_value) == (column, value)


def test_classes_that_yaml_reads_as_numbers_are_names() -> None:
    assert ClassificationTask(label="isup", classes=[0, 1, 2]).classes == ("0", "1", "2")


def test_a_name_stands_for_its_section(write_config: WriteConfig) -> None:
    config = load_run_config(write_config(model="abmil", training={"loss": "cross-entropy"}))
    assert config.model == {"name": "abmil"}
    assert config.training.loss == {"name": "cross-entropy"}


def test_defaults(write_config: WriteConfig) -> None:
    config = load_run_config(write_config())
    assert config.model == {"name": "mamba2d-mil"}
    assert config.training == TrainingConfig()
    assert config.training.loss == {"name": "auto"}
    assert (config.training.epochs, config.training.batch_size, config.training.lr) == (20, 1, 1e-4)
    assert config.seed == 0


def test_options_of_the_default_model_need_no_name(write_config: WriteConfig) -> None:
    config = load_run_config(write_config(model={"dim": 32}))
    assert config.model == {"name": "mamba2d-mil", "dim": 32}


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001"])
def test_numbers_as_people_write_them(write_config: WriteConfig, text: str) -> None:
    path = write_config()
    path.write_text(path.read_text() + f"training:\n  lr: {text}\n")
    assert load_run_config(path).training.lr == 1e-4
    assert load_run_config(write_config(), [f"training.lr={text}"]).training.lr == 1e-4


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "not valid YAML ("),
        ("a: b: c", "not valid YAML ("),
        ("\tx: 1", "not valid YAML ("),
        ("- 1\n- 2\n", "must be a mapping of keys to values, got list"),
        ("just words", "must be a mapping of keys to values, got str"),
        ("", "must be a mapping of keys to values, got NoneType"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML ("),
    ],
)
def test_files_that_are_no_mapping(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert failure(lambda: read_yaml(path)).startswith(f"config {path}: {message}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    found = failure(lambda: load_run_config(missing))
    assert found == f"config {missing}: cannot be read (No such file or directory); give the path of a YAML file"
    assert "cannot be read (Is a directory)" in failure(lambda: read_yaml(tmp_path))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    assert "not valid YAML" in failure(lambda: read_yaml(binary))


# --- paths ---------------------------------------------------------------------------------------------------------


def test_paths_are_relative_to_the_file(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"cohort": "../tables/c.csv", "features": "features", "splits": "./x/../splits", "slides": "/data/slides"}
    path = write_config(data=data)
    for start, given in ((tmp_path, path.relative_to(tmp_path)), (path.parent, Path("run.yaml")), (Path("/"), path)):
        monkeypatch.chdir(start)
        config = load_run_config(given)
        study = tmp_path / "study"
        assert config.out == study / "run"
        assert config.data.cohort == tmp_path / "tables" / "c.csv"
        assert (config.data.features, config.data.splits) == (study / "features", study / "splits")
        assert config.data.slides == Path("/data/slides")


def test_paths_in_overrides_are_relative_to_the_working_directory(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_run_config(path, ["out=here", "data.splits=s", "data.slides=/abs", "data.features=../f"])
    assert config.out == tmp_path / "elsewhere" / "here"
    assert config.data.splits == tmp_path / "elsewhere" / "s"
    assert config.data.slides == Path("/abs")
    assert os.path.normpath(config.data.features) == str(tmp_path / "f")
    assert config.data.cohort == tmp_path / "study" / "cohort.csv"


# --- overrides -----------------------------------------------------------------------------------------------------


def test_overrides_are_yaml(write_config: WriteConfig) -> None:
    config = load_run_config(
        write_config(),
        [
            "training.epochs=7", "training.grad_clip=null", "task.classes=[b, a]", "task.label=a=b",
            "data.allow_leakage=true", "model={name: abmil, dim: 4}", "training.loss.class_weights=balanced", "seed=3",
            "seed=4",
        ],
    )  # fmt: skip
    assert (config.training.epochs, config.training.grad_clip, config.seed) == (7, None, 4)
    assert (config.task.label, config.task.classes) == ("a=b", ("b", "a"))
    assert config.data.allow_leakage
    assert config.model == {"name": "abmil", "dim": 4}
    assert config.training.loss["class_weights"] == "balanced"


def test_overriding_a_name_drops_the_options_of_the_other(write_config: WriteConfig) -> None:
    path = write_config(model={"name": "mamba2d-mil", "state": 4, "conv": "raster"})
    assert load_run_config(path, ["model.name=abmil"]).model == {"name": "abmil"}
    assert load_run_config(path, ["model.name=abmil", "model.dim=8"]).model == {"name": "abmil", "dim": 8}
    assert load_run_config(path, ["model.name=mamba2d-mil", "model.dim=8"]).model == {
        "name": "mamba2d-mil", "state": 4, "conv": "raster", "dim": 8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "override 'training.epochs': must be key=value, as in training.epochs=10"),
        ("=3", "override '=3': must be key=value, as in training.epochs=10"),
        ("seed.x=3", "override 'seed.x=3': 'seed' is a value, not a section"),
        ("training.loss.name.x=3", "override 'training.loss.name.x=3': 'name' is a value, not a section"),
        ("seed=[1, 2", "override 'seed=[1, 2': the value is not valid YAML"),
        ("training.epoch=3", "training.epoch: unknown key; did you mean 'epochs'?"),
        ("trainin.epochs=3", "trainin: unknown key; did you mean 'training'?"),
        ("training.epochs=many", "training.epochs: Input should be a valid integer"),
        ("training.epochs=", "training.epochs: Input should be a valid integer"),
        ("out=", "out: Input is not a valid path"),
        ("preset=nothing", "preset 'nothing': unknown; there are "),
    ],
)
def test_bad_overrides(write_config: WriteConfig, override: str, message: str) -> None:
    path = write_config(seed=1, training={"loss": {"name": "auto"}})
    assert message in failure(lambda: load_run_config(path, [override]))


# --- presets -------------------------------------------------------------------------------------------------------


def test_merge_lays_sections_over_each_other() -> None:
    base = {"a": {"x": 1, "y": {"p": 1, "q": 2}}, "b": 1, "c": [1, 2]}
    over = {"a": {"y": {"q": 3}}, "c": [3], "d": None}
    assert merge(base, over) == {"a": {"x": 1, "y": {"p": 1, "q": 3}}, "b": 1, "c": [3], "d": None}
    assert base == {"a": {"x": 1, "y": {"p": 1, "q": 2}}, "b": 1, "c": [1, 2]}


@pytest.mark.parametrize(
    ("over", "merged"),
    [
        ({"name": "abmil", "dim": 8}, {"name": "abmil", "dim": 8}),
        ({"name": "mamba2d-mil", "dim": 8}, {"name": "mamba2d-mil", "dim": 8, "state": 4}),
        ({"dim": 8}, {"name": "mamba2d-mil", "dim": 8, "state": 4}),
        ("abmil", {"name": "abmil"}),
        ("mamba2d-mil", {"name": "mamba2d-mil", "dim": 64, "state": 4}),
    ],
    ids=str,
)
def test_a_section_with_another_name_replaces(over: Any, merged: dict[str, Any]) -> None:
    assert merge({"model": {"name": "mamba2d-mil", "dim": 64, "state": 4}}, {"model": over})["model"] == merged


def test_preset_lies_under_the_file_and_overrides_over_it(write_config: WriteConfig) -> None:
    demo = load_preset("demo", "classification")
    path = write_config(preset="demo", training={"epochs": 3})
    config = load_run_config(path, ["training.batch_size=2", "model.state=5"])
    assert config.preset == "demo"
    assert config.training.lr == demo["training"]["lr"]
    assert (config.training.epochs, config.training.batch_size) == (3, 2)
    assert config.model == demo["model"] | {"state": 5}


def test_a_presets_model_gives_way_to_another(write_config: WriteConfig) -> None:
    for config in (
        load_run_config(write_config(preset="demo", model={"name": "abmil", "dim": 8})),
        load_run_config(write_config(preset="demo"), ["model.name=abmil", "model.dim=8"]),
        load_run_config(write_config(preset="demo", model="abmil"), ["model={name: abmil, dim: 8}"]),
    ):
        assert config.model == {"name": "abmil", "dim": 8}


@pytest.mark.parametrize(
    ("task", "loss", "schedule"), [(CLASSES, "cross-entropy", "cosine"), (SURVIVAL, "nll", "constant")]
)
def test_published_preset_by_task(write_config: WriteConfig, task: dict[str, str], loss: str, schedule: str) -> None:
    config = load_run_config(write_config(preset="published", task=task))
    assert config.training.loss["name"] == loss
    assert config.training.schedule == schedule
    assert config.training.grad_clip is None


def test_unknown_preset(write_config: WriteConfig) -> None:
    path = write_config(preset="publised")
    assert failure(lambda: load_run_config(path)) == f"preset 'publised': unknown; there are {', '.join(PRESETS)}"
    path = write_config(preset="published", task="absent")
    assert "preset 'published'" in failure(lambda: load_run_config(path))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_shipped_preset_makes_a_whole_run(write_config: WriteConfig, preset: str) -> None:
    values = load_preset(preset, None)
    assert set(values) <= set(RunConfig.model_fields)
    fixed = (values.get("training") or {}).get("loss", {}).get("name")
    tasks = {"cross-entropy": [CLASSES], "nll": [SURVIVAL]}.get(fixed, [CLASSES, SURVIVAL])
    if "task" in values:
        tasks = [values["task"]]
    for task in tasks:
        config = load_run_config(write_config(preset=preset, task=task))
        kind = config.task.kind
        assert model_config(config.model).model_dump().items() >= config.model.items()
        assert (
            loss_config(config.training.loss, kind).name == {"classification": "cross-entropy", "survival": "nll"}[kind]
        )
        for key, value in (values.get("training") or {}).items():
            assert getattr(config.training, key) == value


# --- saving --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"preset": "published"},
        {"preset": "published", "task": SURVIVAL},
        {"preset": "demo", "model": {"name": "abmil", "gated": False}},
        {"data": BASE["data"] | {"slides": "/far/away/slides"}, "task": CLASSES | {"classes": ["0", "1"]}},
        {"training": {"grad_clip": None, "threads": 2, "loss": {"name": "cross-entropy", "class_weights": "balanced"}}},
    ],
    ids=str,
)
def test_saved_configuration_loads_again_from_anywhere(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    config = load_run_config(write_config(**values))
    saved = tmp_path / "runs" / "deep" / "config.yaml"
    saved.parent.mkdir(parents=True)
    for start in (tmp_path, Path("/")):
        monkeypatch.chdir(start)
        save_run_config(config, saved)
        monkeypatch.chdir(saved.parent)
        again = load_run_config(Path("config.yaml"))
        assert again == config.model_copy(update={"preset": None})


def test_saved_paths_are_relative_so_that_a_study_moves_as_a_whole(write_config: WriteConfig, tmp_path: Path) -> None:
    config = load_run_config(write_config())
    config.out.mkdir()
    save_run_config(config, config.out / "config.yaml")
    (tmp_path / "study").rename(tmp_path / "moved")
    again = load_run_config(tmp_path / "moved" / "run" / "config.yaml")
    assert again.out == tmp_path / "moved" / "run"
    assert again.data.cohort == tmp_path / "moved" / "cohort.csv"


def test_a_configuration_made_in_python_saves_its_relative_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = validate(RunConfig, BASE | {"out": "runs/a"}, source="test")
    saved = tmp_path / "runs" / "a" / "config.yaml"
    saved.parent.mkdir(parents=True)
    save_run_config(config, saved)
    again = load_run_config(saved)
    assert (again.out, again.data.cohort) == (tmp_path / "runs" / "a", tmp_path / "cohort.csv")
