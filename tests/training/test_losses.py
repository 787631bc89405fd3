"""Losses against probabilities written out, scikit-learn and finite differences."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from wsi2d.errors import ConfigError
from wsi2d.training.losses.registry import (
    DEFAULT_LOSS,
    LOSSES,
    Loss,
    RiskSetConfig,
    _loss_class,
    build_loss,
    loss_config,
)
from wsi2d.training.targets import Targets


def classes(*index: int) -> Targets:
    return Targets(torch.tensor(index), torch.ones(len(index), dtype=torch.bool))


def outcomes(index: list[int], event: list[bool]) -> Targets:
    return Targets(torch.tensor(index), torch.tensor(event))


def kind_of(name: str) -> str:
    return _loss_class(name, "test").kind


def out_dim_of(name: str) -> int:
    """Three classes or bins, or one log-risk."""
    return 1 if issubclass(_loss_class(name, "test").config_class, RiskSetConfig) else 3


def make(name: str, train: Targets, out_dim: int, **options: object) -> Loss:
    return build_loss(loss_config({"name": name, **options}, kind_of(name)), train, out_dim)


# --- survival ------------------------------------------------------------------------------------------------------


def nll_by_loops(logits: np.ndarray, index: list[int], event: list[bool], alpha: float = 0.0) -> float:
    """Minus the log of each patient's likelihood, its factors multiplied out bin by bin."""
    total = 0.0
    for row, at, happened in zip(logits, index, event, strict=True):
        likelihood = 1.0
        for k in range(len(row)):
            hazard = 1 / (1 + math.exp(-row[k]))
            if k < at:
                likelihood *= 1 - hazard  # alive after bin k
            elif k == at:
                likelihood *= hazard if happened else 1 - hazard
        total -= math.log(likelihood) * (1.0 if happened else 1.0 - alpha)
    return total / len(index)


@pytest.mark.parametrize("alpha", [0.0, 0.15, 0.5])
@pytest.mark.parametrize("bins", [2, 4, 7])
def test_nll_equals_probabilities_multiplied_out(bins: int, alpha: float) -> None:
    generator = np.random.default_rng(bins)
    index = [k % bins for k in range(4 * bins)]
    event = [k // bins % 2 == 0 for k in range(4 * bins)]
    logits = generator.normal(0, 2, (len(index), bins))
    loss = make("nll", outcomes(index, event), bins, alpha=alpha)
    found = loss(torch.from_numpy(logits), outcomes(index, event))
    assert float(found) == pytest.approx(nll_by_loops(logits, index, event, alpha), rel=1e-12)


def test_nll_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)  # hazards 1/2, 3/4
    loss = make("nll", outcomes([0], [True]), 2)
    for index, event, likelihood in ((0, True, 1 / 2), (0, False, 1 / 2), (1, True, 3 / 8), (1, False, 1 / 8)):
        found = float(loss(logits, outcomes([index], [event])))
        assert found == pytest.approx(-math.log(likelihood)), (index, event)


def test_bins_after_the_end_of_follow_up_do_not_count() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    targets = outcomes([0, 1, 2], [True, False, True])
    make("nll", targets, 4)(logits, targets).backward()
    for row, at in enumerate((0, 1, 2)):
        assert (logits.grad[row, : at + 1] != 0).all()
        assert (logits.grad[row, at + 1 :] == 0).all()


def test_alpha_lightens_censored_patients_only() -> None:
    logits = torch.randn(2, 3, dtype=torch.float64)
    for event, factor in ((False, 0.6), (True, 1.0)):
        targets = outcomes([1, 2], [event, event])
        plain = make("nll", targets, 3)(logits, targets)
        light = make("nll", targets, 3, alpha=0.4)(logits, targets)
        assert float(light) == pytest.approx(factor * float(plain))


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_nll_gradients(alpha: float) -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    targets = outcomes([0, 1, 2, 3, 3, 0], [True, True, False, True, False, False])
    loss = make("nll", targets, 4, alpha=alpha)
    assert torch.autograd.gradcheck(lambda x: loss(x, targets), logits)


@pytest.mark.parametrize("value", [-80.0, 80.0])
def test_nll_of_extreme_logits_is_finite(value: float) -> None:
    logits = torch.full((4, 3), value, requires_grad=True)
    targets = outcomes([0, 2, 0, 2], [True, True, False, False])
    found = make("nll", targets, 3)(logits, targets)
    found.backward()
    assert torch.isfinite(found)
    assert torch.isfinite(logits.grad).all()


def test_a_better_hazard_has_a_lower_loss() -> None:
    targets = outcomes([2], [True])
    loss = make("nll", targets, 4)
    right = torch.tensor([[-3.0, -3.0, 3.0, 0.0]])
    for wrong in ([[3.0, -3.0, 3.0, 0.0]], [[-3.0, -3.0, -3.0, 0.0]]):
        assert loss(right, targets) < loss(torch.tensor(wrong), targets)


# --- classification ------------------------------------------------------------------------------------------------


def test_cross_entropy_equals_probabilities() -> None:
    generator = np.random.default_rng(0)
    logits, index = generator.normal(0, 2, (7, 3)), [0, 1, 2, 2, 0, 1, 1]
    expected = np.mean([-math.log(math.exp(row[i]) / np.exp(row).sum()) for row, i in zip(logits, index, strict=True)])
    found = make("cross-entropy", classes(*index), 3)(torch.from_numpy(logits), classes(*index))
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("train", [[0] * 9 + [1] * 3, [2, 0, 0, 1, 1, 1, 1, 1], [0, 1, 2, 3]])
def test_balanced_weights_are_scikit_learns(train: list[int]) -> None:
    out_dim = max(train) + 1
    weights = compute_class_weight("balanced", classes=np.arange(out_dim), y=train)
    loss = make("cross-entropy", classes(*train), out_dim, class_weights="balanced")
    plain = make("cross-entropy", classes(*train), out_dim)
    logits = torch.randn(1, out_dim, dtype=torch.float64)
    for k in range(out_dim):
        assert float(loss(logits, classes(k)) / plain(logits, classes(k))) == pytest.approx(weights[k], rel=1e-6)


def test_balanced_classes_count_alike_whatever_the_batch() -> None:
    """One bag a step still carries its weight: a mean over weights would take it away."""
    train = classes(*[0] * 9, *[1] * 3)
    loss = make("cross-entropy", train, 2, class_weights="balanced")
    logits = torch.randn(12, 2, dtype=torch.float64)
    together = loss(logits, train)
    alone = sum(loss(logits[i : i + 1], classes(int(train.index[i]))) for i in range(12)) / 12
    assert float(together) == pytest.approx(float(alone), rel=1e-12)
    even = torch.zeros(12, 2, dtype=torch.float64)
    shares = [float(loss(even[:1], classes(k))) * n for k, n in ((0, 9), (1, 3))]
    assert shares[0] == pytest.approx(shares[1])


def test_weights_come_from_the_training_fold_alone() -> None:
    loss = make("cross-entropy", classes(0, 0, 0, 1), 2, class_weights="balanced")
    logits = torch.randn(2, 2)
    before = float(loss(logits, classes(0, 1)))
    loss(torch.randn(5, 2), classes(1, 1, 1, 1, 1))
    assert float(loss(logits, classes(0, 1))) == before


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_cross_entropy_gradients(weights: str) -> None:
    logits, targets = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), classes(0, 1, 2, 2, 0)
    loss = make("cross-entropy", targets, 3, class_weights=weights)
    assert torch.autograd.gradcheck(lambda x: loss(x, targets), logits)


# --- names ---------------------------------------------------------------------------------------------------------


def test_no_loss_is_loaded_before_it_is_named() -> None:
    code = (
        "import sys\nfrom wsi2d.training.losses.registry import loss_config\n"
        "loaded = lambda: {m.rpartition('.')[2] for m in sys.modules if m.startswith('wsi2d.training.losses.')}\n"
        "assert loaded() == {'registry'}, loaded()\n"
        "loss_config({'name': 'nll'}, 'survival')\n"
        "assert loaded() == {'registry', 'nll'}, loaded()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("kind", ["classification", "survival"])
def test_auto_is_the_tasks_own(kind: str) -> None:
    for section in ({"name": "auto"}, {}):
        assert loss_config(section, kind).name == DEFAULT_LOSS[kind]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_builds_by_its_name(name: str) -> None:
    config = loss_config({"name": name}, kind_of(name))
    assert config.name == name
    assert loss_config(config.model_dump(), kind_of(name)) == config
    targets = example(name)
    logits = torch.randn(12, out_dim_of(name), generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = build_loss(config, targets, out_dim_of(name))(logits, targets)
    assert found.ndim == 0
    assert found.item() > 0
    found.backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad != 0).any()


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_takes_one_slide_at_a_time(name: str) -> None:
    """A batch is one bag unless the configuration says more, and it may be a patient without an event."""
    targets = example(name)
    loss = make(name, targets, out_dim_of(name))
    for i in range(12):
        logits = torch.randn(1, out_dim_of(name), requires_grad=True)
        found = loss(logits, Targets(targets.index[i : i + 1], targets.event[i : i + 1], targets.time[i : i + 1]))
        found.backward()
        assert torch.isfinite(found)
        assert found.item() >= 0
        assert torch.isfinite(logits.grad).all()


def example(name: str) -> Targets:
    """Twelve slides in three classes, or three bins, where half of each bin has the event."""
    index = [0, 1, 2] * 4
    if kind_of(name) == "classification":
        return classes(*index)
    times = torch.tensor([10.0 * at + k // 6 for k, at in enumerate(index)], dtype=torch.float64)
    return replace(outcomes(index, [k < 6 for k in range(12)]), time=times)


@pytest.mark.parametrize(
    ("section", "kind", "message"),
    [
        ({"name": "nll"}, "classification", "'nll' is a loss for survival, the task is classification"),
        ({"name": "cross-entropy"}, "survival", "'cross-entropy' is a loss for classification, the task is survival"),
        ({"name": "crossentropy"}, "classification", "loss 'crossentropy' is unknown; did you mean 'cross-entropy'?"),
        ({"name": "xyz"}, "survival", f"loss 'xyz' is unknown; there are {', '.join(sorted(LOSSES))}"),
        ({"name": ["nll"]}, "survival", "loss '['nll']' is unknown"),
        ({"name": "nll", "alfa": 0.1}, "survival", "alfa: unknown key; did you mean 'alpha'?"),
        ({"name": "nll", "alpha": 1.0}, "survival", "alpha: Input should be less than 1, got 1.0"),
        ({"name": "nll", "alpha": -0.1}, "survival", "alpha: Input should be greater than or equal to 0"),
        ({"alpha": 0.1}, "classification", "alpha: unknown key; "),
        ({"name": "cox", "ties": "exact"}, "survival", "ties: Input should be 'efron' or 'breslow'"),
        ({"name": "cox", "bag": 4}, "survival", "bag: unknown key; did you mean 'bags'?"),
        ({"name": "cox", "bags": 0}, "survival", "bags: Input should be greater than or equal to 1"),
        ({"name": "cox", "bags": 1}, "survival", "bank: must be 1 or more where bags is 1: a bag alone has nobody"),
        ({"name": "ranking", "ties": "efron"}, "survival", "ties: unknown key"),
        ({"name": "ranking"}, "classification", "'ranking' is a loss for survival, the task is classification"),
        ({"class_weights": "some"}, "classification", "class_weights: Input should be 'none' or 'balanced'"),
    ],
)
def test_unusable_sections(section: dict[str, object], kind: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loss_config(section, kind)
    assert str(caught.value).startswith("config training.loss: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
