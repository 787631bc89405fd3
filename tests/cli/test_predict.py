"""`wsi2d predict`: new slides by the ensemble, into a table."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from wsi2d.training.predict import predict


@pytest.fixture
def features(tiny: ModuleType, tmp_path: Path) -> Path:
    """Three new slides, one of them without tissue."""
    rng = np.random.default_rng(8)
    for name, count in (("n1", 6), ("n2", 11), ("n3", 0)):
        tiny.write_features(tmp_path / "new", name, rng.normal(size=(count, tiny.DIM)).astype(np.float32))
    return tmp_path / "new"


def test_predict(cli: Any, tiny: ModuleType, finished_run: Path, features: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.csv"
    result = cli("predict --device cpu", finished_run, features, "--out", out)
    assert result.code == 0, result.err
    assert result.out == f"2 slides predicted → {out}\n"
    assert "n3" in result.err, "a slide that is left out is named"
    expected = predict(finished_run, features, device="cpu").to_dict("records")
    found = tiny.read_table(out)
    assert [(r["slide_id"], float(r["prob_b"])) for r in found] == [(r["slide_id"], r["prob_b"]) for r in expected]


def test_one_file(cli: Any, tiny: ModuleType, finished_run: Path, features: Path, tmp_path: Path) -> None:
    result = cli("predict", finished_run, features / "n2.h5", "--out", tmp_path / "out.csv")
    assert result.out == f"1 slides predicted → {tmp_path / 'out.csv'}\n"
    assert [row["slide_id"] for row in tiny.read_table(tmp_path / "out.csv")] == ["n2"]


def test_mistakes(fails: Any, tiny: ModuleType, finished_run: Path, features: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out.csv"]
    assert "no config.yaml" in fails("predict", tmp_path, features, *out)
    assert "no .h5 files" in fails("predict", finished_run, tmp_path, *out)
    assert "no slide with tissue" in fails("predict", finished_run, features / "n3.h5", *out)
    assert "device 'cuda:63'" in fails("predict --device cuda:63", finished_run, features, *out)
    tiny.write_features(features, "n4", np.ones((3, tiny.DIM), np.float32), encoder="uni")
    assert "encoder uni, not tiny as the run was trained on" in fails("predict", finished_run, features, *out)
    assert not (tmp_path / "out.csv").exists()
