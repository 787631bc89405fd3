"""``wsi2d models``: the list, one model's options, JSON; names that are not there."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from wsi2d.models.registry import MODELS

pytest.importorskip("torchmil.models", reason="torchmil is not installed: pip install 'wsi2d[baselines]'")


def test_the_list(cli: Any) -> None:
    result = cli("models")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    for name in MODELS:
        assert [line for line in lines if line.split()[:1] == [name]], name
    (row,) = (line.split() for line in lines if line.startswith(" mamba2d-mil ") and "grid" in line)
    assert "317,059" in row
    assert "Zhang et al. 2025" in result.out
    assert "1024 numbers a patch, 2 classes" in result.out


def test_one_model_and_its_options(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = cli("models srmamba-mil --in-dim 8 --classes 4")
    assert result.code == 0
    assert "8 numbers a patch, 4 classes" in result.out
    assert "MICCAI 2024" in result.out
    (row,) = (line for line in result.out.splitlines() if line.split()[:1] == ["rate"])
    assert "10" in row
    assert "stride" in row


def test_json(cli: Any) -> None:
    result = cli("models --json --classes 3")
    whole = json.loads(result.out)
    assert (whole["in_dim"], whole["classes"]) == (1024, 3)
    assert [model["name"] for model in whole["models"]] == list(MODELS)
    for model in whole["models"]:
        assert model["parameters"] > 1000
        assert {"sees", "order", "cost", "paper", "source", "problem", "options"} <= set(model)
    (one,) = json.loads(cli("models max --json").out)["models"]
    assert one["options"][-1]["name"] == "over"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("models mamba2d-mill", "model 'mamba2d-mill' is unknown; did you mean 'mamba2d-mil'?"),
        ("models --classes 0", "the number of classes must be from 1 to 1048576, got 0"),
        ("models mean --in-dim -3 --json", "the width of an embedding must be from 1 to 1048576, got -3"),
    ],
)
def test_what_is_asked_wrongly(fails: Callable[..., str], arguments: str, line: str) -> None:
    assert fails(arguments) == line
