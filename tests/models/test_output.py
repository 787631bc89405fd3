"""What logits mean: classes, hazards, survival and risk."""

import numpy as np
import pytest
import torch

from wsi2d.models.output import class_probabilities, hazards, risk, survival


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_classes() -> None:
    found = class_probabilities(logits([0.0, 1.0, -2.0], [3.0, 3.0, 3.0])).numpy()
    weights = np.exp([0.0, 1.0, -2.0])
    np.testing.assert_allclose(found, [weights / weights.sum(), [1 / 3] * 3], rtol=1e-12)


def test_hazards_survival_and_risk_by_hand() -> None:
    wanted = np.array([[0.1, 0.5, 0.25], [0.9, 0.0001, 0.3]])
    rows = torch.from_numpy(np.log(wanted / (1 - wanted)))
    np.testing.assert_allclose(hazards(rows), wanted, rtol=1e-12)
    curve = np.array([[0.9, 0.9 * 0.5, 0.9 * 0.5 * 0.75], [0.1, 0.1 * 0.9999, 0.1 * 0.9999 * 0.7]])
    np.testing.assert_allclose(survival(rows), curve, rtol=1e-12)
    np.testing.assert_allclose(risk(rows), -curve.sum(1), rtol=1e-12)


@pytest.mark.parametrize("bins", [2, 4, 7])
def test_risk_grows_with_every_hazard(bins: int) -> None:
    base = torch.randn(bins, generator=torch.Generator().manual_seed(0)).double()
    for k in range(bins):
        higher = base.clone()
        higher[k] += 0.5
        low, high = risk(torch.stack([base, higher]))
        assert high > low
    sure = torch.full((bins,), 30.0).double()
    assert risk(torch.stack([-sure, sure])).tolist() == pytest.approx([-bins, 0], abs=1e-9)


def test_an_early_event_is_worse_than_a_late_one() -> None:
    early, late = risk(logits([5.0, -5.0, -5.0, -5.0], [-5.0, -5.0, -5.0, 5.0]))
    assert early > late


@pytest.mark.parametrize("value", [-200.0, 200.0])
def test_extreme_logits_stay_finite(value: float) -> None:
    rows = torch.full((1, 4), value, requires_grad=True)
    for found in (hazards(rows), survival(rows), risk(rows)):
        assert torch.isfinite(found).all()
    risk(rows).sum().backward()
    assert torch.isfinite(rows.grad).all()
    assert (survival(rows).diff() <= 0).all()
