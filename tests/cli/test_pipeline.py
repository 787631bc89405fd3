"""From slide files to a heatmap with nothing but commands."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image


def test_slides_to_heatmaps(
    cli: Any, fails: Any, write_slides: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain, brown = [f"P{i:02d}" for i in range(0, 10, 2)], [f"P{i:02d}" for i in range(1, 10, 2)]
    write_slides(tmp_path / "slides", *plain)
    write_slides(tmp_path / "slides", *brown, brown=True)
    rows = [f"{name}.tiff,{name},{kind}" for kind, names in (("plain", plain), ("brown", brown)) for name in names]
    Path("cohort.csv").write_text("slide_id,case_id,kind\n" + "\n".join(sorted(rows)) + "\n")
    assert cli("extract slides --out features --patch-px 64").code == 0
    assert cli("splits make cohort.csv --out splits --label kind --folds 2 --val-share 0.4").code == 0
    values = {
        "out": "run",
        "data": {"cohort": "cohort.csv", "features": "features", "splits": "splits", "slides": "slides"},
        "task": {"kind": "classification", "label": "kind"},
        "model": {"name": "abmil", "dim": 8, "attention_dim": 4},
        "training": {"epochs": 2, "lr": 0.01},
        "evaluation": {"bootstrap": 10},
    }
    Path("run.yaml").write_text(yaml.safe_dump(values))
    assert cli("train run.yaml").code == 0
    metrics = json.loads(cli("evaluate run --json").out)
    assert metrics["slides"] == 10

    # A slide of the cohort, by its id and by its path: the fold that tested it.
    with Path("run/predictions.csv").open(newline="") as file:
        tested = {row["slide_id"]: row for row in csv.DictReader(file)}
    result = cli("heatmap run P03 --out maps/a.png")
    assert result.code == 0, result.err
    says = max(("plain", "brown"), key=lambda kind: float(tested["P03"][f"prob_{kind}"]))
    score = float(tested["P03"][f"prob_{says}"])
    fold = tested["P03"]["fold"]
    assert result.out == f"P03: {says} {score:.2f} (fold {fold}; known: brown) → maps/a.png\n"
    assert Image.open("maps/a.png").width > 600
    assert cli("heatmap run slides/P03.tiff --out maps/b.png").out == result.out.replace("a.png", "b.png")
    assert Path("maps/a.png").read_bytes() == Path("maps/b.png").read_bytes()

    # A new slide: extracted on the way, shown by both folds, and predicted likewise.
    write_slides(tmp_path / "new", "N1", brown=True)
    result = cli("heatmap run new/N1.tiff --out maps/n.svg")
    assert result.code == 0, result.err
    assert "(mean of 2 folds)" in result.out
    assert cli("extract new --out new_features --patch-px 64").code == 0
    assert cli("predict run new_features --out new.csv").code == 0
    (row,) = csv.DictReader(io.StringIO(Path("new.csv").read_text()))
    best = max(float(row["prob_plain"]), float(row["prob_brown"]))
    assert f"{best:.2f} (mean of 2 folds)" in result.out

    # From another folder of slides and of features.
    write_slides(tmp_path / "unsized", "N2", mpp=None)
    assert "--slide-mpp" in fails("heatmap run N2 --slides unsized --out maps/m.png")
    assert cli("heatmap run N2 --slides unsized --slide-mpp 0.5 --device cpu --out maps/m.png").code == 0
    assert cli("heatmap run N1 --slides new --features new_features --out maps/k.png").code == 0

    assert "must end in .png, .pdf or .svg" in fails("heatmap run P03 --out maps/a.gif")
    assert "no slide of that name is in" in fails("heatmap run P99 --out maps/z.png")
    assert "nowhere does not exist" in fails("heatmap run P03 --slides nowhere --out maps/z.png")
    assert "no config.yaml" in fails("heatmap . P03 --out maps/z.png")
    assert not Path("maps/z.png").exists()
    assert np.asarray(Image.open("maps/m.png")).std() > 5
