"""The examples of CONTRIBUTING.md, added to a copy of the package, do what they say."""

import ast
import csv
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import wsi2d

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "CONTRIBUTING.md"
SECTION = "Adding something"
BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
NAMING = re.compile(r"^`(?P<file>[\w/]+\.py)`(?:, in `(?P<name>\w+)`)?:$")

ENCODER, MODEL, LOSS = "colour-moments", "mean-mil", "focal"
PATCH_PX = 64
GAMMAS = (0.0, 0.5, 2.0, 3.5)
LOGITS = [[0.3, -1.2, 2.0], [4.0, 0.0, -1.0], [-0.5, -0.5, 0.25], [0.0, 7.0, 0.0]]
TRUE_CLASSES = [2, 1, 0, 1]
SLIDES = {"a1": "a", "b1": "b", "a2": "a", "b2": "b", "a3": "a", "b3": "b"}
FOLDS = [
    {"train": ["a1", "b1"], "val": ["a2", "b2"], "test": ["a3", "b3"]},
    {"train": ["a2", "b2"], "val": ["a3", "b3"], "test": ["a1", "b1"]},
    {"train": ["a3", "b3"], "val": ["a1", "b1"], "test": ["a2", "b2"]},
]

# Runs away from the checkout, on the copy: the document's commands, mistyped ones, and the loss by itself.
PROBE = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout

import torch

import wsi2d
from wsi2d.cli.main import main
from wsi2d.training.losses.registry import build_loss, loss_config
from wsi2d.training.targets import Targets

def run(arguments):
    sys.argv = ["wsi2d", *arguments]
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            main()
            code = 0
        except SystemExit as done:
            code = done.code or 0
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}

def loss_of(gamma, logits, index):
    targets = Targets(torch.tensor(index), torch.ones(len(index), dtype=torch.bool))
    logits = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    config = loss_config({"name": asked["loss"], "gamma": gamma}, "classification")
    loss = build_loss(config, targets, 3)(logits, targets)
    loss.backward()
    return {"value": loss.item(), "gradient": logits.grad.tolist()}

asked = json.loads(sys.stdin.read())
certain = [[200.0, 0.0, 0.0]]
answer = {
    "package": wsi2d.__file__,
    "commands": [run(arguments) for arguments in asked["commands"]],
    "mistyped": [run(arguments) for arguments in asked["mistyped"]],
    "losses": [loss_of(gamma, asked["logits"], asked["true_classes"]) for gamma in asked["gammas"]],
    "certain": [loss_of(gamma, certain, [0]) for gamma in asked["gammas"]],
    "certainly_wrong": [loss_of(gamma, certain, [1]) for gamma in asked["gammas"]],
}
print(json.dumps(answer))
"""


# --- from the document to a copy of the package


@dataclass(frozen=True)
class Example:
    """A block of code of the document.

    Attributes:
        file: of the package, as ``wsi2d/models/mean_mil.py``.
        name: of the dict in that file to which it adds; empty for a whole file.
        code: the block.
    """

    file: str
    name: str
    code: str


def section_of(text: str) -> str:
    """The part of the document that has the examples."""
    found = re.search(rf"^## {SECTION}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        pytest.fail(f"CONTRIBUTING.md has no section '## {SECTION}'")
    return found[1]


def examples_in(section: str) -> list[Example]:
    """Every block of Python, with the file that the line above it names."""
    found = []
    for block in BLOCK.finditer(section):
        if block["language"] != "python":
            continue
        above = section[: block.start()].rstrip("\n").rpartition("\n")[2]
        naming = NAMING.match(above)
        if naming is None:
            pytest.fail(
                f"no file is named above a block of Python: after '{above}' comes '{first_line(block['body'])}'"
            )
        found.append(Example(naming["file"], naming["name"] or "", block["body"]))
    if not found:
        pytest.fail(f"the section '{SECTION}' has no block of Python")
    return found


def commands_in(section: str) -> list[list[str]]:
    """The commands of blocks without a language, without ``wsi2d`` itself."""
    lines = [line for block in BLOCK.finditer(section) if not block["language"] for line in block["body"].splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("wsi2d ")]


def first_line(code: str) -> str:
    return code.strip().partition("\n")[0]


def add(example: Example, root: Path) -> None:
    """Write an example's file into the package below a folder, or put its line into the dict that it names."""
    path = root / example.file
    if not example.name:
        if path.exists():
            pytest.fail(f"{example.file} is to be added, but is there already")
        path.write_text(example.code, "utf-8")
        return
    if not path.exists():
        pytest.fail(f"{example.file}, to which an example adds, is not in the package")
    source = path.read_text("utf-8")
    lines = source.splitlines(keepends=True)
    registry = registry_in(source, example)
    last = registry.end_lineno or registry.lineno
    lines.insert(last - 1, f"    {example.code}")
    path.write_text("".join(lines), "utf-8")
    try:
        after = registry_in("".join(lines), example)
    except SyntaxError as error:
        pytest.fail(f"{example.file} is no Python after '{first_line(example.code)}' was added: {error}")
    expected = len(registry.keys) + 1
    if len(after.keys) != expected:
        pytest.fail(f"{example.name} of {example.file} has {len(after.keys)} entries, not {expected}")


def registry_in(source: str, example: Example) -> ast.Dict:
    """The dict that bears a name at the top level of a module."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        if isinstance(node.value, ast.Dict) and example.name in map(ast.unparse, targets):
            return node.value
    pytest.fail(f"{example.file} has no dict '{example.name}' at its top level, to which an example is to be added")


@pytest.fixture(scope="module")
def section() -> str:
    """The section of the document; skips away from a checkout."""
    if not DOCUMENT.exists():
        pytest.skip("CONTRIBUTING.md is not here: these tests run away from a checkout")
    return section_of(DOCUMENT.read_text("utf-8"))


@pytest.fixture(scope="module")
def examples(section: str) -> list[Example]:
    """All examples of the document."""
    return examples_in(section)


@pytest.fixture(scope="module")
def copy(examples: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package to which the examples were added."""
    root = tmp_path_factory.mktemp("copy")
    package = Path(wsi2d.__file__).parent
    shutil.copytree(package, root / "wsi2d", ignore=shutil.ignore_patterns("__pycache__"))  # links become folders
    for example in examples:
        add(example, root)
    return root


# --- a study in the copy


@dataclass(frozen=True)
class Study:
    """What the document's commands made.

    Attributes:
        folder: with ``SLIDES``, ``features``, ``run.yaml`` and ``run``.
        pictures: uint8 ``[height, width, 3]`` of each slide.
        answer: what the probe printed.
    """

    folder: Path
    pictures: dict[str, np.ndarray]
    answer: dict[str, Any]

    def features(self, slide_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Features float64 ``[N, 6]`` of a slide, computed here, and the file's coords ``[N, 2]``, level-0 (x, y)."""
        with h5py.File(self.folder / "features" / f"{slide_id}.h5") as file:
            coords = file["coords"][()]
        picture = self.pictures[slide_id].astype(np.float64) / 255
        patches = [picture[y : y + PATCH_PX, x : x + PATCH_PX].reshape(-1, 3) for x, y in coords]
        return np.array([[*pixels.mean(0), *np.sqrt(pixels.var(0))] for pixels in patches]), coords


def environment(copy: Path) -> dict[str, str]:
    """That of a process which imports the copy."""
    return {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def study(
    section: str, copy: Path, write_slide: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Study:
    """Six slides, extracted and trained on with the copy, by the commands of the document."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "SLIDES").mkdir()
    pictures = {}
    for i, (slide_id, label) in enumerate(SLIDES.items()):
        pictures[slide_id] = paint(i, brown=label == "b")
        write_slide(folder / "SLIDES" / f"{slide_id}.tiff", pictures[slide_id], levels=1, compression="deflate")
    lines = ["slide_id,case_id,label", *(f"{s},p-{s},{label}" for s, label in SLIDES.items())]
    (folder / "cohort.csv").write_text("\n".join(lines), "utf-8")
    (folder / "splits").mkdir()
    for k, sides in enumerate(FOLDS):
        rows = [",train,val,test", *(f"{i},{','.join(row)}" for i, row in enumerate(zip(*sides.values(), strict=True)))]
        (folder / "splits" / f"splits_{k}.csv").write_text("\n".join(rows), "utf-8")
    run = {
        "out": "run",
        "data": {"cohort": "cohort.csv", "features": "features", "splits": "splits"},
        "task": {"kind": "classification", "label": "label"},
        "model": {"name": "mamba2d-mil", "directions": 1},
        "training": {"epochs": 2, "batch_size": 2, "lr": 0.01, "threads": 1, "device": "cpu"},
        "evaluation": {"bootstrap": 20},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run), "utf-8")
    extract, train = commands_in(section)
    assert (extract[0], train[0]) == ("extract", "train")
    asked = {
        "commands": [[*extract, "--patch-px", str(PATCH_PX), "--device", "cpu"], train],
        "mistyped": [[word + "l" if word.endswith(name) else word for word in command]
                     for command, name in ((extract, ENCODER), (train, MODEL), (train, LOSS))],
        "loss": LOSS,
        "logits": LOGITS,
        "true_classes": TRUE_CLASSES,
        "gammas": GAMMAS,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROBE], input=json.dumps(asked), capture_output=True, text=True, timeout=120,
        cwd=folder, env=environment(copy), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert Path(answer["package"]).is_relative_to(copy), "the copy was imported"
    for result in answer["commands"]:
        assert result["code"] == 0, result["err"]
    return Study(folder, pictures, answer)


def paint(seed: int, *, brown: bool) -> np.ndarray:
    """A slide of 7×7 patches: coloured noise on glass, a piece of another size for each seed."""
    rng = np.random.default_rng(seed)
    rgb = np.full((7 * PATCH_PX, 7 * PATCH_PX, 3), 244, np.uint8)
    tissue = rgb[30 : 320 + 20 * seed, 40:400]
    colour = (150, 100, 60) if brown else (225, 150, 190)
    tissue[:] = np.array(colour) + rng.integers(-30, 31, tissue.shape)
    return rgb


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def logits_of(weights: dict[str, np.ndarray], features: np.ndarray) -> np.ndarray:
    """A slide's logits: standardised, projected, GELU, averaged, projected; in float64."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    standard = (features - weights["standardise.mean"]) / weights["standardise.scale"]
    hidden = standard @ weights["project.0.weight"].T + weights["project.0.bias"]
    hidden = 0.5 * hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    logits: np.ndarray = weights["head.weight"] @ hidden.mean(0) + weights["head.bias"]
    return logits


def focal_loss(logits: np.ndarray, true_classes: list[int], gamma: float) -> float:
    """The mean of −(1 − p)^γ log p, p the true class's share of the exponentials."""
    shares = [np.exp(row[k]) / np.exp(row).sum() for row, k in zip(np.asarray(logits), true_classes, strict=True)]
    return float(np.mean([-((1 - p) ** gamma) * np.log(p) for p in shares]))


# --- what it shows


def test_each_is_one_file_and_one_line(examples: list[Example]) -> None:
    assert [example.name for example in examples] == ["", "ENCODERS", "", "MODELS", "", "LOSSES"]
    for example in examples:
        if example.name:
            assert example.code.count("\n") == 1
            assert example.code.startswith('"')


def test_the_library_does_not_have_them(examples: list[Example]) -> None:
    from wsi2d.features.encoders import ENCODERS
    from wsi2d.models.registry import MODELS
    from wsi2d.training.losses.registry import LOSSES

    for name, registry in ((ENCODER, ENCODERS), (MODEL, MODELS), (LOSS, LOSSES)):
        assert name not in registry, f"'{name}' is registered: take another example"
    files = {e.file for e in examples if not e.name}
    assert not [f for f in files if (Path(wsi2d.__file__).parents[1] / f).exists()]


def test_features_are_the_moments_of_the_painted_pixels(study: Study) -> None:
    for slide_id in SLIDES:
        expected, coords = study.features(slide_id)
        assert len(coords) >= 16
        with h5py.File(study.folder / "features" / f"{slide_id}.h5") as file:
            assert file.attrs["encoder"].decode() == ENCODER
            assert file["features"].dtype == np.float32
            np.testing.assert_allclose(file["features"][()], expected, rtol=1e-5, atol=1e-6)


def test_the_run_says_what_it_is(study: Study) -> None:
    config = yaml.safe_load((study.folder / "run" / "config.yaml").read_text("utf-8"))
    assert config["model"] == {"name": MODEL, "dim": 128, "dropout": 0.25, "standardise": True}
    assert config["training"]["loss"] == {"name": LOSS, "gamma": 2.0}


def test_every_slide_is_predicted_by_the_mean_of_its_patches(study: Study) -> None:
    rows = {row["slide_id"]: row for row in read_table(study.folder / "run" / "predictions.csv")}
    assert rows.keys() == SLIDES.keys()
    for k, sides in enumerate(FOLDS):
        weights = load_file(study.folder / "run" / f"fold-{k}" / "model.safetensors")
        for slide_id in sides["test"]:
            logits = logits_of(weights, study.features(slide_id)[0])
            row = rows[slide_id]
            assert (row["fold"], row["label"]) == (str(k), SLIDES[slide_id])
            assert float(row["prob_b"]) == pytest.approx(1 / (1 + np.exp(logits[0] - logits[1])), rel=1e-4)


def test_features_are_standardised_by_the_training_side(study: Study) -> None:
    for k, sides in enumerate(FOLDS):
        weights = load_file(study.folder / "run" / f"fold-{k}" / "model.safetensors")
        train = np.concatenate([study.features(slide_id)[0] for slide_id in sides["train"]])
        np.testing.assert_allclose(weights["standardise.mean"], train.mean(0), rtol=1e-4)
        np.testing.assert_allclose(weights["standardise.scale"], train.std(0), rtol=1e-3)


def test_attention_is_even_and_sums_to_one(study: Study) -> None:
    for k, sides in enumerate(FOLDS):
        for slide_id in sides["test"]:
            with h5py.File(study.folder / "run" / f"fold-{k}" / "attention" / f"{slide_id}.h5") as file:
                attention = file["attention"][()]
            assert len(attention) == len(study.features(slide_id)[1])
            assert attention.sum() == pytest.approx(1, abs=1e-5)
            np.testing.assert_allclose(attention, 1 / len(attention), rtol=1e-6)


def test_the_loss_is_its_formula(study: Study) -> None:
    for gamma, found in zip(GAMMAS, study.answer["losses"], strict=True):
        expected = focal_loss(np.array(LOGITS), TRUE_CLASSES, gamma)
        assert found["value"] == pytest.approx(expected, rel=1e-9), gamma
        assert expected > 0.01


def test_the_loss_has_a_gradient_where_the_model_is_certain(study: Study) -> None:
    for right, wrong in zip(study.answer["certain"], study.answer["certainly_wrong"], strict=True):
        assert right["value"] == pytest.approx(0, abs=1e-12)
        np.testing.assert_allclose(right["gradient"], 0, atol=1e-12)
        assert wrong["value"] == pytest.approx(200)
        np.testing.assert_allclose(wrong["gradient"], [[1, -1, 0]], atol=1e-9)


def test_the_run_was_trained_with_the_loss(study: Study) -> None:
    """The chosen epoch's loss on val, computed from the weights that were kept."""
    for k, sides in enumerate(FOLDS):
        folder = study.folder / "run" / f"fold-{k}"
        weights = load_file(folder / "model.safetensors")
        history = read_table(folder / "history.csv")
        assert len(history) == 2
        (chosen,) = [row for row in history if row["chosen"] == "1"]
        logits = np.array([logits_of(weights, study.features(slide_id)[0]) for slide_id in sides["val"]])
        expected = focal_loss(logits, ["ab".index(SLIDES[slide_id]) for slide_id in sides["val"]], 2.0)
        assert float(chosen["val_loss"]) == pytest.approx(expected, rel=1e-3)


def test_a_mistyped_name_is_told_the_new_one(study: Study) -> None:
    for name, result in zip((ENCODER, MODEL, LOSS), study.answer["mistyped"], strict=True):
        assert result["code"] == 2
        assert len(result["err"].splitlines()) == 1
        assert result["err"].startswith("error: ")
        assert f"'{name}l'" in result["err"]
        assert f"did you mean '{name}'?" in result["err"]


def test_the_examples_are_in_style(examples: list[Example], copy: Path) -> None:
    pytest.importorskip("ruff", reason="ruff is not installed")
    files = sorted({example.file for example in examples})
    for command in (["check"], ["format", "--check", "--diff"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "--config", str(ROOT / "pyproject.toml"), *files],
            capture_output=True, text=True, timeout=60, cwd=copy, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_examples_are_typed(examples: list[Example], copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    files = sorted({example.file for example in examples})
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path),
         "--config-file", str(ROOT / "pyproject.toml"), *files],
        capture_output=True, text=True, timeout=300, cwd=copy, env=environment(copy), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_tests_of_all_that_is_registered_hold_for_them(copy: Path) -> None:
    """Those that go through the registries, and the house's rules, with the copy in the package's place."""
    files = ["features/test_encoders.py", "models/test_registry.py", "training/test_losses.py", "test_house.py"]
    chosen = f"{ENCODER} or {MODEL} or {LOSS} or one_direction or documented"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "-k", chosen,
         *(str(ROOT / "tests" / file) for file in files)],
        capture_output=True, text=True, timeout=300, cwd=copy, env=environment(copy), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    passed = [line for line in done.stdout.splitlines() if " PASSED" in line]
    for words in (ENCODER, MODEL, LOSS, "test_imports_run_in_one_direction", "test_everything_public_is_documented"):
        assert [line for line in passed if words in line], words


# --- what the document can get wrong


def test_a_block_that_names_no_file_is_found() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"no file is named above .* after 'Like this:' comes 'x = 1'"):
        examples_in("`wsi2d/a.py`:\n\n```python\ny = 1\n```\n\nLike this:\n\n```python\nx = 1\n```\n")
    with pytest.raises(pytest.fail.Exception, match="has no block of Python"):
        examples_in("```\nwsi2d train run.yaml\n```\n")
    with pytest.raises(pytest.fail.Exception, match="has no section '## Adding something'"):
        section_of("# Contributing\n\n## Rules\n")


def test_a_section_is_read_to_its_end() -> None:
    block = "`wsi2d/a.py`, in `B`:\n\n```python\n# ## no\n1\n```\n"
    text = f"# C\n\n```python\n```\n\n## Adding something\n\n### A\n\n{block}\n## Rules\n\n```python\n```\n"
    assert examples_in(section_of(text)) == [Example("wsi2d/a.py", "B", "# ## no\n1\n")]


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example("wsi2d/gone.py", "THINGS", '"c": 3,\n'), "wsi2d/gone.py, to which an example adds, is not in"),
        (Example("wsi2d/here.py", "", "x = 1\n"), "wsi2d/here.py is to be added, but is there already"),
        (Example("wsi2d/here.py", "THING", '"c": 3,\n'), "wsi2d/here.py has no dict 'THING' at its top level"),
        (Example("wsi2d/here.py", "ELSE", '"c": 3,\n'), "wsi2d/here.py has no dict 'ELSE' at its top level"),
        (Example("wsi2d/here.py", "THINGS", '"c" 3,\n'), "wsi2d/here.py is no Python after '\"c\" 3,' was added"),
        (Example("wsi2d/here.py", "THINGS", "# c\n"), "THINGS of wsi2d/here.py has 2 entries, not 3"),
    ],
)
def test_a_place_that_is_not_there_is_named(tmp_path: Path, example: Example, message: str) -> None:
    (tmp_path / "wsi2d").mkdir()
    (tmp_path / "wsi2d" / "here.py").write_text('THINGS: dict[str, int] = {\n    "a": 1,\n    "b": 2,\n}\nELSE = [1]\n')
    with pytest.raises(pytest.fail.Exception, match=re.escape(message)):
        add(example, tmp_path)


def test_a_file_and_a_line_find_their_places(tmp_path: Path) -> None:
    path = tmp_path / "here.py"
    path.write_text('X = 1\n\n\nTHINGS = {\n    "a": 1,\n}\nY = 2\n')
    add(Example("new.py", "", "class A:\n    pass\n"), tmp_path)
    add(Example("here.py", "THINGS", '"c": 3,\n'), tmp_path)
    assert path.read_text() == 'X = 1\n\n\nTHINGS = {\n    "a": 1,\n    "c": 3,\n}\nY = 2\n'
    assert (tmp_path / "new.py").read_text() == "class A:\n    pass\n"
