"""What a model is trained on: several sets of logits, penalties by class, and every registered model in a fold."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from wsi2d.config import RunConfig
from wsi2d.data.bags import FeatureSpec
from wsi2d.errors import RunError
from wsi2d.models.registry import MODELS, build_model, model_config
from wsi2d.training import fold as fold_module
from wsi2d.training.checkpoint import ModelCard, load_model, save_model
from wsi2d.training.losses.registry import build_loss, loss_config
from wsi2d.training.run import load_study, resolve_sections
from wsi2d.training.supervision import LossOverSets, mean_penalty
from wsi2d.training.targets import Targets

CPU = torch.device("cpu")
TASKS = {
    "classes": ("classification", {}),
    "hazards": ("survival", {}),
    "log-risks": ("survival", {"loss": {"name": "cox", "bags": 3}, "batch_size": 2}),
}


@pytest.fixture(autouse=True)
def _its_package_is_there(skip_without_torchmil: None) -> None:
    """All tests of this module."""


def classes(*index: int) -> Targets:
    return Targets(torch.tensor(index), torch.ones(len(index), dtype=torch.bool))


# --- the loss over sets --------------------------------------------------------------------------------------------


def test_one_set_is_the_loss_itself() -> None:
    targets, logits = classes(0, 2, 1), torch.randn(3, 3)
    loss = build_loss(loss_config({}, "classification"), targets, 3)
    assert torch.equal(LossOverSets(loss, (1.0,))(logits.unsqueeze(1), targets), loss(logits, targets))


def test_sets_count_by_their_weights() -> None:
    targets, logits = classes(0, 2, 1), torch.randn(3, 2, 3)
    loss = build_loss(loss_config({}, "classification"), targets, 3)
    expected = 0.5 * loss(logits[:, 0], targets) + 3.0 * loss(logits[:, 1], targets)
    torch.testing.assert_close(LossOverSets(loss, (0.5, 3.0))(logits, targets), expected)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        LossOverSets(loss, (1.0,))(logits, targets)


def test_a_bag_pays_the_penalty_of_its_class() -> None:
    penalties = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]])
    assert float(mean_penalty(penalties, classes(2, 0))) == pytest.approx((100 + 2) / 2)


# --- every model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studies(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run's YAML of a study of each kind of task; read only."""
    folder = tmp_path_factory.mktemp("studies")
    return {kind: tiny.write_study(folder / kind, kind) for kind in ("classification", "survival")}


TrainOne = Callable[..., tuple[dict[str, torch.Tensor], Any]]


@pytest.fixture
def train_one(studies: dict[str, Path], tiny: ModuleType, tmp_path: Path) -> TrainOne:
    """Trains one fold with a model: weights that were kept, and the predictions."""

    def train(model: dict[str, Any], task: str, *, into: str = "fold", on_epoch: Any = None, **training: Any) -> Any:
        kind, changes = TASKS[task]
        config: RunConfig = tiny.changed(studies[kind], model=model, training={"epochs": 1, **changes, **training})
        config = resolve_sections(config)
        study = load_study(config)
        told = on_epoch or (lambda fold, row: None)
        predictions = fold_module.train_fold(config, study.cohort, study.folds[0], study.store, tmp_path / into, told)
        return load_model(tmp_path / into / fold_module.MODEL_FILE, CPU)[0].state_dict(), predictions

    return train


def small(name: str) -> dict[str, Any]:
    return {"name": name, "dim": 8}


SURVIVAL = [pytest.param(task, marks=pytest.mark.slow) for task in ("hazards", "log-risks")]


@pytest.mark.parametrize("task", ["classes", *SURVIVAL])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_every_kind_of_task(name: str, task: str, train_one: TrainOne) -> None:
    """One epoch from features to predictions, of the task's form and finite."""
    weights, predictions = train_one(small(name), task)
    out_dim = {"classes": 2, "hazards": 3, "log-risks": 1}[task]
    assert all(np.isfinite(p.attention).all() and p.attention.sum() == pytest.approx(1, abs=1e-5) for p in predictions)
    assert all(len(p.scores) == (0 if task == "log-risks" else out_dim) for p in predictions)
    assert all((p.risk is None) == (task == "classes") for p in predictions)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names = [n for n, _ in build_model(small(name), in_dim=8, out_dim=out_dim).named_parameters()]
    assert all(torch.isfinite(weights[n]).all() for n in names)


def test_clams_classifiers_learn_from_classes_alone(train_one: TrainOne, monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, torch.Tensor] = {}
    build = fold_module.build_model

    def recorded(*args: Any, **options: Any) -> Any:
        model = build(*args, **options)
        started.update({n: p.detach().clone() for n, p in model.named_parameters()})
        return model

    monkeypatch.setattr(fold_module, "build_model", recorded)
    pytest.importorskip("torchmil.models", reason="torchmil is not installed")
    for task, moved in (("classes", True), ("hazards", False)):
        weights, _ = train_one(small("torchmil:clam-sb"), task, into=task)
        for name in ("net.inst_classifiers.0.weight", "net.inst_classifiers.1.weight"):
            assert torch.equal(weights[name], started[name]) != moved, (task, name)
        assert not torch.equal(weights["net.classifier.weight"], started["net.classifier.weight"])


@pytest.mark.parametrize(
    ("name", "trained"), [("dsmil", "net.inst_classifier.weight"), ("dtfd", "net.classifier.weight")]
)
def test_tiers_besides_the_last_learn_too(
    name: str, trained: str, train_one: TrainOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchmil.models", reason="torchmil is not installed")
    first, _ = train_one(small(f"torchmil:{name}"), "hazards", into="a", lr=1e-12)
    second, _ = train_one(small(f"torchmil:{name}"), "hazards", into="b", lr=0.01)
    assert not torch.allclose(first[trained], second[trained], atol=1e-4)


class Stop(Exception):
    """What interrupts a training."""


@pytest.mark.parametrize(
    "name", ["torchmil:dtfd", *(pytest.param(n, marks=pytest.mark.slow) for n in ("srmamba-mil", "m2d-mil", "s4-mil"))]
)
def test_a_training_that_was_stopped_ends_the_same(name: str, train_one: TrainOne) -> None:
    """What is drawn besides dropout comes from the epoch's seed as well."""

    def stop(fold: int, row: dict[str, float]) -> None:
        if row["epoch"] == 1:
            raise Stop

    with pytest.raises(Stop):
        train_one(small(name), "classes", into="stopped", on_epoch=stop, epochs=2)
    weights, predictions = train_one(small(name), "classes", into="stopped", epochs=2)
    others, expected = train_one(small(name), "classes", into="whole", epochs=2)
    assert all(torch.equal(weights[n], others[n]) for n in others)
    assert all(np.array_equal(p.scores, q.scores) for p, q in zip(predictions, expected, strict=True))


# --- checkpoints ---------------------------------------------------------------------------------------------------


def card_of(name: str) -> ModelCard:
    features = FeatureSpec("tiny", "0123", 0.5, 128, 16, 6)
    section = model_config(small(name)).model_dump()
    return ModelCard(section, 6, 3, "classification", ("a", "b", "c"), (), features, 0, 1)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    card = card_of(name)
    model = build_model(card.model, in_dim=6, out_dim=3)
    save_model(model, card, tmp_path / "m.safetensors")
    loaded, read = load_model(tmp_path / "m.safetensors", CPU)
    assert read == card
    assert not loaded.training
    assert type(loaded) is type(model)
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


PAIRS = [("mamba2d-mil", "conv2d-mil"), ("mamba-mil", "srmamba-mil"), ("srmamba-mil", "mamba-mil"), ("abmil", "mean"),
         ("m2d-mil", "mamba2d-mil"), ("s4-mil", "max"), ("torchmil:abmil", "abmil"),
         ("torchmil:abmil", "torchmil:clam-sb")]  # fmt: skip


@pytest.mark.parametrize(("held", "said"), PAIRS)
def test_weights_of_another_model_are_refused(held: str, said: str, tmp_path: Path) -> None:
    model = build_model(small(held), in_dim=6, out_dim=3)
    save_model(model, card_of(said), tmp_path / "m.safetensors")
    with pytest.raises(RunError) as caught:
        load_model(tmp_path / "m.safetensors", CPU)
    assert str(caught.value) == f"{tmp_path / 'm.safetensors'}: its weights are not those of a {said}; train again"


def test_more_classes_than_the_head_has(tmp_path: Path) -> None:
    model = build_model(small("mean"), in_dim=6, out_dim=3)
    save_model(model, replace(card_of("mean"), classes=("a", "b", "c", "d"), out_dim=4), tmp_path / "a.safetensors")
    with pytest.raises(RunError, match="its weights are not those of a mean; train again"):
        load_model(tmp_path / "a.safetensors", CPU)
    save_model(model, replace(card_of("mean"), classes=("a", "b", "c", "d")), tmp_path / "b.safetensors")
    with pytest.raises(RunError, match=r"damaged \(3 logits for 4 outputs\)"):
        load_model(tmp_path / "b.safetensors", CPU)
