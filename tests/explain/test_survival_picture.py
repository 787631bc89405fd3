"""The picture of two risk groups: what stands in it, and where it cannot be drawn."""

from pathlib import Path

import numpy as np
import pytest

from wsi2d.errors import ConfigError
from wsi2d.evaluation.risk_groups import RiskGroups, risk_groups
from wsi2d.explain.survival_picture import survival_picture

TIME = np.array([1.0, 2, 3, 4, 5, 6, 8, 10])


def groups(cut: float = 4.5, event: np.ndarray | None = None) -> RiskGroups:
    return risk_groups(TIME, np.arange(8) != 5 if event is None else event, 10 - TIME, np.zeros(8, int), cut=cut)


def test_curves_counts_and_test(tmp_path: Path) -> None:
    (axes,) = survival_picture(groups(), tmp_path / "picture.png").axes
    low, high = axes.get_lines()
    # of three of low risk, followed 6 (censored), 8 and 10, the second halves what is left
    assert list(zip(low.get_xdata(), low.get_ydata(), strict=True)) == [(0, 1), (6, 1), (8, 0.5), (10, 0)]
    assert len(high.get_xdata()) == 6
    labels = [label.get_text().split("\n") for label in axes.get_xticklabels()]
    assert labels == [
        ["0", "3", "5"],
        ["2", "3", "4"],
        ["4", "3", "2"],
        ["6", "3", "0"],
        ["8", "2", "0"],
        ["10", "1", "0"],
    ]
    assert "log-rank p = " in axes.get_title()
    assert "cut as given" in axes.get_title()
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_one_group_alone(tmp_path: Path) -> None:
    (axes,) = survival_picture(groups(cut=99), tmp_path / "picture.svg").axes
    assert "hazard ratio not defined; no log-rank test" in axes.get_title()


def test_no_picture_of_that_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must end in"):
        survival_picture(groups(), tmp_path / "picture.doc")


def test_folds_and_leaks_are_told(tmp_path: Path) -> None:
    fold = np.array([0, 1] * 4)
    found = risk_groups(TIME, np.arange(8) != 5, 10 - TIME, fold, cut=4.5)
    notes = ["fold 1: 2 patients leak between its sides", "3 slides without tissue are left out: a, b, c"]
    (axes,) = survival_picture(found, tmp_path / "picture.png", notes).axes
    first, second, third, *more = axes.get_title().split("\n")
    assert first.startswith("hazard ratio ")
    assert second.startswith("stratified by fold: hazard ratio ")
    assert second.removeprefix("stratified by fold: ") != first
    assert third == "cut as given"
    assert more == notes[:1]
    assert "stratified" not in survival_picture(groups(), tmp_path / "one.png").axes[0].get_title()
