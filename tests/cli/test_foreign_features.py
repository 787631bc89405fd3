"""Features of other tools, imported or in place, through `train`, `evaluate`, `predict` and `heatmap`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from wsi2d.features.imports.claims import Claims
from wsi2d.features.imports.importing import import_features
from wsi2d.training.checkpoint import load_card

pytestmark = pytest.mark.slow  # the rules themselves have tests of their own, tests/training/test_origin.py

TINY = "--encoder tiny --mpp 0.5"  # what the study's own features are


@pytest.fixture(scope="module")
def peers(load_module: Callable[[str], ModuleType]) -> ModuleType:
    """`peers.py`: writes files as other tools lay them out."""
    return load_module("features/peers.py")


@pytest.fixture(scope="module")
def theirs(peers: ModuleType, finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The study's features as each tool would have written them; by layout the folder with the features."""
    root = tmp_path_factory.mktemp("theirs")
    return {
        layout: peers.rewrite_all(finished_run.parent / "features", layout, root / layout) for layout in peers.FOLDERS
    }


@pytest.fixture(scope="module")
def clam_run(finished_run: Path, theirs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on imported features whose encoder and resolution nobody knows."""
    from wsi2d.config_files import load_run_config
    from wsi2d.training.crossval import train

    folder = tmp_path_factory.mktemp("unknown")
    import_features(theirs["clam"].parent, folder / "features")
    changes = [f"data.features={folder / 'features'}", f"out={folder / 'run'}", "training.epochs=1"]
    train(load_run_config(finished_run.parent / "run.yaml", changes))
    return folder / "run"


def on(study: Path, features: Path, out: Path, *more: str) -> list[object]:
    """`train` on other features."""
    changes = [f"data.features={features}", f"out={out}", *more]
    return ["train", study / "run.yaml", *(word for change in changes for word in ("--set", change))]


def notes(run: Path) -> list[str]:
    """What a reader of the run's numbers must know."""
    found: list[str] = json.loads((run / "notes.json").read_text("utf-8"))
    return found


# --- train


@pytest.mark.parametrize("layout", ["trident", "atlaspatch"])
def test_training_in_place_is_training_on_ours(
    layout: str, cli: Any, finished_run: Path, theirs: dict[str, Path], tmp_path: Path
) -> None:
    """The same numbers in the same cells: the same predictions, whoever wrote the files."""
    more = ["data.encoder=uni_v2"] if layout == "atlaspatch" else []
    result = cli(*on(finished_run.parent, theirs[layout], tmp_path / "run", *more))
    assert result.code == 0, result
    tool = {"trident": "TRIDENT", "atlaspatch": "AtlasPatch"}[layout]
    told = [line for line in result.err.splitlines() if line.startswith("info: ")]
    assert told == [
        f"info: features {theirs[layout]}: files of {tool}, read where they lie: encoder uni_v2, 0.5 µm/px, "
        "patches of 128 px"
    ]
    assert (tmp_path / "run" / "predictions.csv").read_text() == (finished_run / "predictions.csv").read_text()
    spec = load_card(tmp_path / "run" / "fold-0" / "model.safetensors").features
    assert (spec.encoder, spec.encoder_hash, spec.mpp, spec.patch_px, spec.overlap_px) == ("uni_v2", None, 0.5, 128, 0)
    assert notes(tmp_path / "run") == []


def test_training_on_features_of_unknown_origin(
    cli: Any, theirs: dict[str, Path], finished_run: Path, tmp_path: Path
) -> None:
    result = cli(*on(finished_run.parent, theirs["clam"], tmp_path / "run", "training.epochs=1"))
    assert result.code == 0, result
    words = "the features' encoder and resolution (mpp) is not known"
    assert f"warning: {words}" in result.err
    assert any(note.startswith(words) for note in notes(tmp_path / "run"))
    assert words in " ".join(result.out.split()), "with the numbers, too"
    claimed = ["data.encoder=uni", "data.mpp=0.5", "training.epochs=1"]
    result = cli(*on(finished_run.parent, theirs["clam"], tmp_path / "known", *claimed))
    assert result.code == 0, result
    assert "warning" not in result.err
    assert notes(tmp_path / "known") == []
    spec = load_card(tmp_path / "known" / "fold-0" / "model.safetensors").features
    assert (spec.encoder, spec.mpp) == ("uni", 0.5)


def test_training_in_micrometres(cli: Any, theirs: dict[str, Path], finished_run: Path, tmp_path: Path) -> None:
    result = cli(*on(finished_run.parent, theirs["stamp"], tmp_path / "run", "training.epochs=1"))
    assert result.code == 0, result
    spec = load_card(tmp_path / "run" / "fold-0" / "model.safetensors").features
    assert (spec.encoder, spec.mpp, spec.patch_px) == ("mahmood-uni", 0.5, 128)


def test_training_goes_on_with_the_same_claims_alone(
    cli: Any, fails: Any, theirs: dict[str, Path], finished_run: Path, tmp_path: Path
) -> None:
    command = on(finished_run.parent, theirs["clam"], tmp_path / "run", "training.epochs=1")
    assert cli(*command).code == 0
    (tmp_path / "run" / "fold-1" / "predictions.csv").unlink()
    assert "another data.encoder" in fails(*command, "--set", "data.encoder=uni")
    assert cli(*command).code == 0


def test_features_of_several_encoders(fails: Any, theirs: dict[str, Path], finished_run: Path, tmp_path: Path) -> None:
    line = fails(*on(finished_run.parent, theirs["atlaspatch"], tmp_path / "run"))
    assert "features of 2 encoders (conch_v1, uni_v2); choose with --encoder" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("how", "words"), [
    ({"encoder": "conch"}, "encoder conch, not uni_v2"),
    ({"mags": (20, 10)}, "mpp 1.0, not 0.5"),
])  # fmt: skip
def test_training_on_features_of_two_kinds(
    how: dict[str, Any], words: str, fails: Any, peers: ModuleType, theirs: dict[str, Path], finished_run: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    shutil.copytree(theirs["trident"].parents[1], tmp_path / "mixed")
    peers.rewrite(finished_run.parent / "features" / "s03x.h5", "trident", tmp_path / "mixed", **how)
    line = fails(*on(finished_run.parent, tmp_path / "mixed" / peers.FOLDERS["trident"], tmp_path / "run"))
    assert "'s03x' has " in line
    assert words in line


def test_training_on_known_beside_unknown(
    fails: Any, peers: ModuleType, theirs: dict[str, Path], finished_run: Path, tmp_path: Path
) -> None:
    import_features(theirs["clam"].parent, tmp_path / "f")
    import_features(theirs["clam"].parent, tmp_path / "known", claims=Claims("uni", 0.5))
    shutil.copy(tmp_path / "known" / "s05x.h5", tmp_path / "f" / "s05x.h5")
    assert "'s05x' has encoder uni, not unknown as 's00x'" in fails(
        *on(finished_run.parent, tmp_path / "f", tmp_path / "run")
    )


def test_a_damaged_file_in_place(
    fails: Any, peers: ModuleType, theirs: dict[str, Path], finished_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(theirs["trident"], tmp_path / "f")
    whole = (tmp_path / "f" / "s03x.h5").read_bytes()
    (tmp_path / "f" / "s03x.h5").write_bytes(whole[: len(whole) // 2])
    line = fails(*on(finished_run.parent, tmp_path / "f", tmp_path / "run"))
    assert "s03x.h5: " in line
    assert "; copy it again" in line


# --- evaluate and predict: a run of ours, features of theirs


def evaluate(run: Path, features: Path, out: Path, options: str = "") -> list[object]:
    """`evaluate` on another cohort."""
    table = run.parent / "cohort.csv"
    return [
        f"evaluate --bootstrap 0 --allow-leakage {options} --cohort",
        table,
        "--features",
        features,
        "--out",
        out,
        run,
    ]


def predict(run: Path, features: Path, out: Path, options: str = "") -> list[object]:
    """`predict`."""
    return [f"predict {options}", run, features, "--out", out]


@pytest.mark.parametrize("verb", [evaluate, predict])
def test_unknown_features_need_the_users_word(
    verb: Any, cli: Any, fails: Any, finished_run: Path, theirs: dict[str, Path], tmp_path: Path
) -> None:
    clam, out = theirs["clam"], tmp_path / "o.csv"
    line = fails(*verb(finished_run, clam, out))
    assert "its encoder and resolution (mpp) is not known" in line
    assert "--encoder and --mpp" in line
    assert "its resolution (mpp) is not known" in fails(*verb(finished_run, clam, out, "--encoder tiny"))
    assert "has encoder uni, not tiny as the run" in fails(*verb(finished_run, clam, out, "--encoder uni --mpp 0.5"))
    assert "has mpp 0.25, not 0.5 as the run" in fails(*verb(finished_run, clam, out, "--encoder tiny --mpp 0.25"))
    assert "says patch_px 128, not 64" in fails(*verb(finished_run, clam, out, f"{TINY} --patch-px 64"))
    assert not out.exists()
    result = cli(*verb(finished_run, clam, out, TINY))
    assert result.code == 0, result
    assert "warning" not in result.err
    assert out.read_text().count("\n") == 15


def test_predictions_are_those_of_ours(cli: Any, finished_run: Path, theirs: dict[str, Path], tmp_path: Path) -> None:
    assert cli(*predict(finished_run, theirs["clam"], tmp_path / "theirs.csv", TINY)).code == 0
    assert cli(*predict(finished_run, finished_run.parent / "features", tmp_path / "ours.csv")).code == 0
    assert (tmp_path / "theirs.csv").read_text() == (tmp_path / "ours.csv").read_text()


@pytest.mark.parametrize("verb", [evaluate, predict])
def test_an_encoder_by_name_alone(
    verb: Any, cli: Any, fails: Any, peers: ModuleType, finished_run: Path, tmp_path: Path
) -> None:
    """Whether another tool's encoder of that name is the very same only the user can say."""
    ours = finished_run.parent / "features"
    folder = peers.rewrite_all(ours, "trident", tmp_path / "t", encoder="tiny")
    assert "is the run's by name alone" in fails(*verb(finished_run, folder, tmp_path / "o.csv"))
    assert cli(*verb(finished_run, folder, tmp_path / "o.csv", "--encoder tiny")).code == 0
    other = peers.rewrite_all(ours, "trident", tmp_path / "u")
    assert "has encoder uni_v2, not tiny" in fails(*verb(finished_run, other, tmp_path / "o.csv"))


def test_patches_of_unknown_size(cli: Any, fails: Any, peers: ModuleType, finished_run: Path, tmp_path: Path) -> None:
    folder = peers.rewrite_all(finished_run.parent / "features", "clam", tmp_path / "t", patches=False)
    for path in folder.glob("*.h5"):
        if path.stem not in ("s00x", "s01x"):
            path.unlink()
    line = fails(*predict(finished_run, folder, tmp_path / "o.csv", TINY))
    assert "its size of a patch (patch_px) is not known" in line
    assert cli(*predict(finished_run, folder, tmp_path / "o.csv", f"{TINY} --patch-px 128")).code == 0


def test_options_without_another_cohort(fails: Any, finished_run: Path) -> None:
    assert "speak of another --cohort and its --features" in fails("evaluate --encoder uni", finished_run)


# --- a run on features of unknown origin


@pytest.mark.parametrize("verb", [evaluate, predict])
def test_a_run_of_unknown_origin_believes_the_user(
    verb: Any, cli: Any, fails: Any, clam_run: Path, theirs: dict[str, Path], finished_run: Path, tmp_path: Path
) -> None:
    shutil.copy(finished_run.parent / "cohort.csv", clam_run.parent)
    clam, out = theirs["clam"], tmp_path / "o.csv"
    assert "its encoder and resolution (mpp) is not known" in fails(*verb(clam_run, clam, out))
    result = cli(*verb(clam_run, clam, out, "--encoder uni --mpp 0.5"))
    assert result.code == 0, result
    assert "the run was trained on features whose encoder and resolution (mpp) is not known" in " ".join(
        result.err.split()
    )
    assert "has encoder mahmood-uni, not unknown as the run" in fails(*verb(clam_run, theirs["stamp"], out))


# --- heatmaps


@pytest.fixture
def slides(tmp_path: Path, write_slide: Any) -> Path:
    """A folder with a slide file of the study's first slide."""
    folder = tmp_path / "slide files"
    folder.mkdir()
    write_slide(folder / "s00x.tiff", np.full((640, 640, 3), (226, 150, 190), np.uint8), levels=2)
    return folder


def test_heatmap_of_a_run_of_unknown_origin(cli: Any, clam_run: Path, slides: Path, tmp_path: Path) -> None:
    result = cli("heatmap", clam_run, "s00x", "--slides", slides, "--out", tmp_path / "a.png")
    assert result.code == 0, result
    assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.parametrize("layout", ["trident", "clam", "stamp", "atlaspatch"])
def test_attention_lies_where_the_patches_are(
    layout: str, finished_run: Path, theirs: dict[str, Path], slides: Path, tmp_path: Path
) -> None:
    """In level-0 px, also where a tool says places in micrometres."""
    from wsi2d.config_files import load_run_config
    from wsi2d.explain.attention import slide_attention
    from wsi2d.training.crossval import train

    more = ["data.encoder=uni_v2"] if layout == "atlaspatch" else []
    changes = [f"data.features={theirs[layout]}", f"out={tmp_path / 'run'}", "training.epochs=1", *more]
    train(load_run_config(finished_run.parent / "run.yaml", changes))
    ours = slide_attention(finished_run, "s00x", slides=slides)
    found = slide_attention(tmp_path / "run", "s00x", slides=slides)
    assert np.array_equal(found.grid.coords, ours.grid.coords)
    assert (found.grid.stride_level0, found.grid.patch_level0) == (128, 128)
    corners = found.grid.index[:, ::-1] * 128 + np.array(found.grid.origin)
    assert np.array_equal(corners, ours.grid.coords)
    assert found.slide_mpp == (None if layout == "clam" else 0.5)


def test_a_slide_without_features_is_not_extracted_by_another_encoder(
    fails: Any, clam_run: Path, slides: Path, tmp_path: Path
) -> None:
    (slides / "s00x.tiff").rename(slides / "new.tiff")
    line = fails("heatmap", clam_run, "new", "--slides", slides, "--out", tmp_path / "a.png")
    assert "another tool extracted those the run was trained on" in line
