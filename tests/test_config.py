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
from wsi2d.training.losses.registry import loss_config

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
        (TissueConfig, {"ink": "remove"}, "ink: Input should be 'drop' or 'keep', got 'remove'"),
        (TissueConfig, {"ink": True}, "ink: Input should be 'drop' or 'keep', got True"),
        (TissueConfig, {"grow_saturation": 0}, "grow_saturation: Input should be greater than 0, got 0"),
        (TissueConfig, {"grow_saturation": 1.5}, "grow_saturation: Input should be less than or equal to 1, got 1.5"),
        (ExtractConfig, {"batch_size": 65_537}, "batch_size: Input should be less than or equal to 65536, got 65537"),
        (ExtractConfig, {"workers": 10**6}, "workers: Input should be less than or equal to 1024, got 1000000"),
        (ExtractConfig, {"read_limit_s": 0}, "read_limit_s: Input should be greater than 0, got 0"),
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
        (TrainingConfig, {"epochs": 10**7}, "epochs: Input should be less than or equal to 1000000, got 10000000"),
        (TrainingConfig, {"batch_size": 10**6}, "batch_size: Input should be less than or equal to 65536, got 1000000"),
        (TrainingConfig, {"workers": 1025}, "workers: Input should be less than or equal to 1024, got 1025"),
        (TrainingConfig, {"threads": 1025}, "threads: Input should be less than or equal to 1024, got 1025"),
        (TrainingConfig, {"lr": -1e-4}, "lr: Input should be greater than 0, got -0.0001"),
        (TrainingConfig, {"grad_clip": 0}, "grad_clip: Input should be greater than 0, got 0"),
        (TrainingConfig, {"schedule": "step"}, "schedule: Input should be 'cosine' or 'constant', got 'step'"),
        (TrainingConfig, {"inner_val": 0.95}, "inner_val: Input should be less than 0.9, got 0.95"),
        (TrainingConfig, {"loss": 5}, "loss: Input should be a valid dictionary, got 5"),
        (EvaluationConfig, {"confidence": 95}, "confidence: Input should be less than 1, got 95"),
        (
            SurvivalTask,
            {"time": "t", "event": "d=1", "bins": 51},
            "bins: Input should be less than or equal to 50, got 51",
        ),
        (EvaluationConfig, {"bootstrap": 10**7}, "bootstrap: Input should be less than or equal to 1000000"),
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
        ({"seed": 2**32}, "seed: Input should be less than 4294967296, got 4294967296"),
        ({"training": {"epoch": 3}}, "training.epoch: unknown key; did you mean 'epochs'?"),
        ({"training": None}, "training: Input should be a valid dictionary"),
        ({"training": {"lr": "fast"}}, "training.lr: Input should be a valid number"),
        ({"evaluation": {"boot": 3}}, "evaluation.boot: unknown key; did you mean 'bootstrap'?"),
        ({"data": {"cohort": "a", "features": "b"}}, "data: splits: missing"),
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


GLASS_TEXT = "must be auto, or red, green and blue from 1 to 255 as 236,230,210; got "


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("auto", "auto"),
        ("236,230,210", "236,230,210"),
        (" 236 , 230,\t210 ", "236,230,210"),
        ("1,1,255", "1,1,255"),
        ([236, 230, 210], "236,230,210"),
        ((236, 230, 210), "236,230,210"),
        (["236", "230", "210"], "236,230,210"),
    ],
)
def test_colours_of_glass(given: Any, kept: str) -> None:
    config = validate(TissueConfig, {"glass": given}, source="here")
    assert config.glass == kept
    assert validate(TissueConfig, config.model_dump(), source="again") == config


@pytest.mark.parametrize(
    "given",
    [
        "", "white", "Auto", "#ece6d2", "236", "236,230", "236,230,210,255", "236;230;210", "236 230 210", "0,230,210",
        "236,256,210", "-1,230,210", "236.5,230,210", "236,230,", "236,,210", "1e2,230,210", "²,1,1",
        [], [236, 230], [236, 230, 0], [236, 230, 256], [0.9, 0.9, 0.8], [True, True, True], ["auto"],
        [[236], 230, 210],
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_colour_of_glass(given: Any) -> None:
    """Black is no glass either: what is divided by it is infinite."""
    line = failure(lambda: validate(TissueConfig, {"glass": given}, source="here"))
    assert line == f"config here: glass: {GLASS_TEXT}{given}".rstrip()


@pytest.mark.parametrize("given", [5, None, 2.5, True, {"red": 1}], ids=str)
def test_glass_is_a_text(given: Any) -> None:
    assert "glass: Input should be a valid string" in failure(
        lambda: validate(TissueConfig, {"glass": given}, source="here")
    )


@pytest.mark.parametrize("section", ["out", "data.cohort", "data.features", "data.splits", "data.slides"])
@pytest.mark.parametrize("character", ["\0", "\n", "\r", "\t", "\x0b", "\x1b", "\x7f", "\x85", "\u2028"], ids=ascii)
def test_paths_without_control_characters(section: str, character: str) -> None:
    """A NUL ends a path for the system; the others end or change the line that names it."""
    name = f"runs/a{character}b"
    outer, _, inner = section.partition(".")
    values = {**BASE, outer: {**BASE["data"], inner: name} if inner else name}
    line = failure(lambda: validate(RunConfig, values, source="here"))
    assert line == f"config here: {section}: must be a path that a file can have, got {name!r}"


@pytest.mark.parametrize(
    "name",
    ["plain", "with blanks", "ä/日本/é", "$HOME/~", "it's", "a\\b", "no\u00a0break", "全角\u3000空白", "می\u200cخواهم"],
)
def test_paths_as_people_have_them(name: str) -> None:
    """Also with the blanks that other scripts and other systems put into names."""
    assert validate(RunConfig, {**BASE, "out": name}, source="here").out == Path(name)


def test_a_long_bad_path_is_not_repeated() -> None:
    assert len(failure(lambda: validate(RunConfig, {**BASE, "out": "x" * 5000 + "\0"}, source="here"))) < 200


@pytest.mark.parametrize("option", ["dim", "attention_dim"])
def test_widths_of_models_have_a_bound(option: str) -> None:
    for name in ("abmil", "mamba2d-mil"):
        line = failure(lambda name=name: model_config({"name": name, option: 10**9}))
        assert f"{option}: Input should be less than or equal to 65536, got 1000000000" in line


def test_sections_do_not_change() -> None:
    config = PatchConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.patch_px = 512


def test_nearest() -> None:
    assert nearest("epoch", ["epochs", "lr"]) == "did you mean 'epochs'?"
    assert nearest("xyz", ["epochs", "batch"]) == "there are batch, epochs"


@pytest.mark.parametrize(
    ("name", "meant"), [("clam", "x:clam-sb"), ("DTFD", "x:dtfd"), ("abmil", "abmil"), ("x:ab-mil", "x:abmil")]
)
def test_nearest_without_what_stands_before_a_colon(name: str, meant: str) -> None:
    assert nearest(name, ["mamba-mil", "abmil", "x:abmil", "x:clam-sb", "x:dtfd"]) == f"did you mean '{meant}'?"


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
        ("a: &x [1]\nb: *x\n", "not valid YAML (aliases (*name) are not supported"),
        ("a: &x {b: 1}\nc: {<<: *x}\n", "not valid YAML (aliases (*name) are not supported"),
        ("a: &x [*x]\n", "not valid YAML (aliases (*name) are not supported"),
        ("seed: 2024-13-45\n", "not valid YAML ("),
        ("seed: 2024-01-01 00:00:00 +99:99\n", "not valid YAML ("),
        ("seed: 9223372036854775808\n", "not valid YAML (a whole number is too large"),
        ("seed: -9223372036854775808\n", "not valid YAML (a whole number is too large"),
        (f"seed: 0x{'f' * 40}\n", "not valid YAML (a whole number is too large"),
        (f"seed: {'9' * 10_000}\n", "not valid YAML ("),
        (f"seed: {'[' * 10_000}\n", "not valid YAML (nested too deeply)"),
        (f"seed: {'{a: ' * 10_000}\n", "not valid YAML (nested too deeply)"),
        ("- " * 10_000, "not valid YAML ("),
        ("seed: !!timestamp soon\n", "not valid YAML ("),
        ("seed: !!int many\n", "not valid YAML ("),
        ("seed: !!float many\n", "not valid YAML ("),
        ("seed: !!bool many\n", "not valid YAML ("),
        ("seed: !!binary µ\n", "not valid YAML ("),
        ("? [a, b]\n: c\n", "not valid YAML ("),
        ("a: 1\n---\nb: 2\n", "not valid YAML ("),
        ("a: \x00\n", "not valid YAML ("),
    ],
    ids=lambda text: ascii(text[:30]),
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


def test_a_bomb_of_aliases_is_refused_at_once(tmp_path: Path) -> None:
    """Nine lines that stand for a billion words."""
    lines = ["a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    for below, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]")
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    assert "aliases" in failure(lambda: load_run_config(tmp_path / "run.yaml"))


def test_an_anchor_that_nobody_uses_is_no_alias(write_config: WriteConfig) -> None:
    path = write_config()
    path.write_text(path.read_text() + "seed: &s 3\n")
    assert load_run_config(path).seed == 3


def test_whole_numbers_up_to_the_largest(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 9223372036854775807\nb: -9223372036854775807\nc: 0x10\nd: 1_000\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": 2**63 - 1, "b": 1 - 2**63, "c": 16, "d": 1000}


@pytest.mark.parametrize("key", ["seed", "out", "task", "model", "data", "training", "preset", "evaluation"])
@pytest.mark.parametrize(
    "text",
    ["2024-01-01", "2024-01-01T10:00:00Z", "[[[[[[1]]]]]]", "!!binary aGk=", "!!set {a, b}", "{1: 2}", "1:30:00"],
)
def test_values_of_kinds_that_nobody_expects(write_config: WriteConfig, key: str, text: str) -> None:
    path = write_config(**{key: "absent"})
    path.write_text(path.read_text() + f"{key}: {text}\n")
    try:
        line = failure(lambda: model_config(load_run_config(path).model))
    except pytest.fail.Exception:
        assert (key, text) == ("seed", "1:30:00"), "90 minutes are a number to YAML"
    else:
        assert len(line) < 400


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


def test_overrides_below_a_bare_name(write_config: WriteConfig) -> None:
    """`model: abmil` is short for `model: {name: abmil}`; its options can be overridden all the same."""
    path = write_config(model="abmil", task=SURVIVAL, training={"loss": "nll"})
    config = load_run_config(path, ["model.dim=8", "training.loss.alpha=0.3"])
    assert config.model == {"name": "abmil", "dim": 8}
    assert config.training.loss == {"name": "nll", "alpha": 0.3}
    assert load_run_config(path, ["model.name=mamba2d-mil", "model.dim=8"]).model == {"name": "mamba2d-mil", "dim": 8}
    assert load_run_config(path, ["training.loss.name=nll"]).training.loss == {"name": "nll"}
    assert load_run_config(path, ["model={dim: 8}", "model.state=3"]).model == {
        "name": "mamba2d-mil", "dim": 8, "state": 3,
    }  # fmt: skip


def test_overrides_below_what_is_no_name(write_config: WriteConfig) -> None:
    path = write_config(preset="demo")
    for override in ("preset.dim=8", "out.x=1", "data.cohort.x=1", "task.label.x=1"):
        assert "is a value, not a section" in failure(lambda override=override: load_run_config(path, [override]))


def test_overrides_below_a_presets_name(write_config: WriteConfig) -> None:
    """What the preset says of its model stays; where the file names another model, it goes."""
    demo = load_preset("demo", "classification")["model"]
    assert load_run_config(write_config(preset="demo"), ["model.dim=9"]).model == demo | {"dim": 9}
    path = write_config(preset="demo", model=demo["name"])
    assert load_run_config(path, ["model.dim=9"]).model == demo | {"dim": 9}
    path = write_config(preset="demo", model="abmil")
    assert load_run_config(path, ["model.dim=9"]).model == {"name": "abmil", "dim": 9}


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
        ("seed=*x", "the value is not valid YAML (aliases (*name) are not supported"),
        ("seed=2024-02-30", "the value is not valid YAML ("),
        ("seed=2024-02-03", "seed: Input should be a valid integer"),
        (f"seed={10**20}", "the value is not valid YAML (a whole number is too large"),
        (f"seed={'[' * 5000}", "the value is not valid YAML (nested too deeply)"),
        ('out="a\\0b"', "out: must be a path that a file can have"),
        ('data.slides="a\\nb"', "data.slides: must be a path that a file can have"),
        (".=1", "unknown key"),
        ("training..epochs=1", "unknown key"),
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


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../configs/demo", "./demo", "demo.yaml", "demo/", "/demo", "..", ".", "~", "DEMO", "dem*"]
)
def test_presets_are_names_and_no_paths(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Also where such a file exists."""
    (tmp_path / "demo.yaml").write_text("seed: 7\n")
    monkeypatch.chdir(tmp_path)
    for preset in (name, str(tmp_path / "demo"), str(tmp_path / "demo.yaml")):
        line = failure(lambda preset=preset: load_run_config(write_config(preset=preset)))
        assert line == f"preset '{preset[:60]}': unknown; there are {', '.join(PRESETS)}"


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


def test_splits_of_a_run_stand_for_those_of_its_preset(tmp_path: Path) -> None:
    run = {"out": "o", "preset": "bracs", "data": {"cohort": "c.csv", "features": "f"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    assert load_run_config(tmp_path / "run.yaml").data.split_column == "split"
    config = load_run_config(tmp_path / "run.yaml", ["data.splits=mine"])
    assert (config.data.splits, config.data.split_column) == (Path("mine").absolute(), None)
    save_run_config(config, tmp_path / "saved.yaml")
    assert load_run_config(tmp_path / "saved.yaml").data == config.data
    with pytest.raises(ConfigError, match=r"data: splits and split_column are both given \(a, b\)"):
        validate(RunConfig, {**run, "data": {**run["data"], "splits": "a", "split_column": "b"}}, source="x")  # type: ignore[dict-item]


def test_a_pattern_of_patients_must_be_one() -> None:
    with pytest.raises(ConfigError, match=r"case_pattern: must be a regular expression \(.*\), got \("):
        validate(DataConfig, {"cohort": "a", "features": "b", "splits": "c", "case_pattern": "("}, source="x")
