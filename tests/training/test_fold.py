"""One fold: what it learns from, how the epoch is chosen, and that stopping half-way changes nothing."""

import csv
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from wsi2d.config import RunConfig
from wsi2d.data.bags import BagBatch, BagStore, GridBag
from wsi2d.errors import RunError, SplitError, Wsi2dError
from wsi2d.evaluation.predictions import Prediction
from wsi2d.models.aggregator import Aggregator, Embedded
from wsi2d.models.blocks import Standardise
from wsi2d.models.output import ModelOutput
from wsi2d.training import fold as fold_module
from wsi2d.training.fold import HISTORY_FILE, MODEL_FILE, RESUME_FILE, train_fold
from wsi2d.training.run import Study, load_study, resolve_sections

Row = dict[str, float]


class Stop(Exception):
    """What interrupts a training."""


def silent(fold: int, row: Row) -> None:
    """Nobody is told."""


def stop_after(epoch: int) -> Callable[[int, Row], None]:
    """Interrupts when an epoch is done."""

    def callback(fold: int, row: Row) -> None:
        if row["epoch"] == epoch:
            raise Stop

    return callback


def run_fold(config: RunConfig, folder: Path, *, index: int = 0, on_epoch: Any = silent) -> list[Prediction]:
    """Train one fold of a study."""
    config = resolve_sections(config)
    study = load_study(config)
    return train_fold(config, study.cohort, study.folds[index], study.store, folder, on_epoch)


def history_of(folder: Path) -> list[Row]:
    """A fold's history without its times."""
    with (folder / HISTORY_FILE).open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return [{k: v for k, v in row.items() if k not in {"seconds", "peak_gb"}} for row in rows]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The kept weights."""
    return load_file(folder / MODEL_FILE)


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """The same tensors, bit for bit."""
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_same_predictions(a: list[Prediction], b: list[Prediction]) -> None:
    """The same slides with the same scores and attention, bit for bit."""
    assert [p.slide_id for p in a] == [p.slide_id for p in b]
    for p, q in zip(a, b, strict=True):
        assert np.array_equal(p.scores, q.scores)
        assert np.array_equal(p.attention, q.attention)
        assert p.risk == q.risk


@pytest.fixture
def config_of(tiny: ModuleType, tmp_path: Path) -> Callable[..., RunConfig]:
    """Writes a study into the test's folder and gives its configuration."""

    def make(kind: str = "classification", **changes: Any) -> RunConfig:
        return tiny.changed(tiny.write_study(tmp_path / kind, kind), **changes)

    return make


ConfigOf = Callable[..., RunConfig]


# --- the same seed gives the same numbers


@pytest.mark.parametrize("kind", ["classification", "survival"])
@pytest.mark.parametrize("model", ["mamba2d-mil", {"name": "abmil", "dim": 8, "attention_dim": 4}])
def test_same_seed_same_numbers(config_of: ConfigOf, tmp_path: Path, kind: str, model: object) -> None:
    changes = {} if model == "mamba2d-mil" else {"model": model}
    config = config_of(kind, **changes)
    first = run_fold(config, tmp_path / "a")
    torch.manual_seed(77)  # whatever state it is called in
    second = run_fold(config, tmp_path / "b")
    assert_same_predictions(first, second)
    assert_same(weights_of(tmp_path / "a"), weights_of(tmp_path / "b"))
    assert (tmp_path / "a" / MODEL_FILE).read_bytes() == (tmp_path / "b" / MODEL_FILE).read_bytes()
    assert history_of(tmp_path / "a") == history_of(tmp_path / "b")


def test_other_seed_other_numbers(config_of: ConfigOf, tmp_path: Path) -> None:
    first = run_fold(config_of(), tmp_path / "a")
    second = run_fold(config_of(seed=1), tmp_path / "b")
    assert not np.array_equal(first[0].scores, second[0].scores)
    a, b = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    assert not torch.equal(a["project.0.weight"], b["project.0.weight"])


def test_epochs_differ_in_order_and_dropout(config_of: ConfigOf, tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[list[str]] = []
    load = BagStore.load
    monkeypatch.setattr(BagStore, "load", lambda self, name, *draw: seen[-1].append(name) or load(self, name, *draw))
    train_epoch = fold_module._train_epoch

    def recorded(*args: Any) -> float:
        seen.append([])
        loss = train_epoch(*args)
        seen.append([])
        return loss

    seen.append([])
    monkeypatch.setattr(fold_module, "_train_epoch", recorded)
    run_fold(config_of(training={"epochs": 3}), tmp_path / "a")
    orders = seen[1::2]
    assert len(orders) == 3
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert orders[0] != orders[1]


def test_global_random_state_is_left_alone(config_of: ConfigOf, tmp_path: Path) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    run_fold(config_of(), tmp_path / "a")
    with pytest.raises(Stop):
        run_fold(config_of(), tmp_path / "b", on_epoch=stop_after(1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]


# --- interrupted and gone on


@pytest.mark.parametrize("epoch", [1, 2, 3])
@pytest.mark.parametrize("kind", ["classification", "survival"])
def test_interrupted_fold_ends_with_the_numbers_of_one_that_was_not(
    config_of: ConfigOf, tmp_path: Path, kind: str, epoch: int
) -> None:
    config = config_of(kind, training={"epochs": 3, "batch_size": 3})
    whole = run_fold(config, tmp_path / "whole")
    with pytest.raises(Stop):
        run_fold(config, tmp_path / "parts", on_epoch=stop_after(epoch))
    assert (tmp_path / "parts" / RESUME_FILE).exists()
    told: list[float] = []
    parts = run_fold(config, tmp_path / "parts", on_epoch=lambda fold, row: told.append(row["epoch"]))
    assert told == list(range(epoch + 1, 4))
    assert_same_predictions(whole, parts)
    assert (tmp_path / "whole" / MODEL_FILE).read_bytes() == (tmp_path / "parts" / MODEL_FILE).read_bytes()
    assert history_of(tmp_path / "whole") == history_of(tmp_path / "parts")


@pytest.mark.parametrize("step", ["save_model", "save_resume_point", "_write_history", "load_model"])
def test_killed_between_any_two_writes(config_of: ConfigOf, tmp_path: Path, monkeypatch: Any, step: str) -> None:
    config = config_of()
    whole = run_fold(config, tmp_path / "whole")
    monkeypatch.setattr(fold_module, step, fails_at(getattr(fold_module, step), 1 if step == "load_model" else 2))
    with pytest.raises(Stop):
        run_fold(config, tmp_path / "parts")
    monkeypatch.undo()
    assert_same_predictions(whole, run_fold(config, tmp_path / "parts"))
    assert (tmp_path / "whole" / MODEL_FILE).read_bytes() == (tmp_path / "parts" / MODEL_FILE).read_bytes()
    assert history_of(tmp_path / "whole") == history_of(tmp_path / "parts")


def test_the_best_epoch_before_the_interruption_stays_the_best(config_of: ConfigOf, tmp_path: Path) -> None:
    config = config_of(training={"epochs": 6, "lr": 0.3, "schedule": "constant"})
    run_fold(config, tmp_path / "whole")
    history = history_of(tmp_path / "whole")
    chosen = [row["chosen"] for row in history].index(1) + 1
    assert chosen < 6, "worse ones follow"
    with pytest.raises(Stop):
        run_fold(config, tmp_path / "parts", on_epoch=stop_after(chosen))
    run_fold(config, tmp_path / "parts")
    assert history_of(tmp_path / "parts") == history
    assert (tmp_path / "whole" / MODEL_FILE).read_bytes() == (tmp_path / "parts" / MODEL_FILE).read_bytes()


def fails_at(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """A function that works until it is called for the n-th time."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Stop
        return function(*args, **kwargs)

    return wrapped


def test_a_damaged_point_to_go_on_from_is_one_line(config_of: ConfigOf, tmp_path: Path) -> None:
    config = config_of()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / RESUME_FILE).write_bytes(b"not tensors")
    with pytest.raises(RunError, match=r"last\.safetensors: damaged .*delete it") as caught:
        run_fold(config, tmp_path / "a")
    assert "\n" not in str(caught.value)


# --- the epoch is chosen on val alone, test is scored once


@pytest.mark.parametrize(("select", "best"), [("loss", min), ("metric", max)])
def test_validation_chooses_the_epoch(
    config_of: ConfigOf, tiny: ModuleType, tmp_path: Path, select: str, best: Callable[..., Any]
) -> None:
    training = {"epochs": 6, "lr": 0.05, "schedule": "constant", "select": select}
    config = config_of(training=training)
    run_fold(config, tmp_path / "a")
    history = history_of(tmp_path / "a")
    values = [row["val_loss" if select == "loss" else "val_metric"] for row in history]
    chosen = [i for i, row in enumerate(history) if row["chosen"]]
    assert chosen == [values.index(best(values))], "the first of the best"
    assert len(set(values)) > 1, "the history leaves nothing to choose"
    # Weights of that epoch: what a training that ends there (at a constant rate) has last.
    epoch = chosen[0] + 1
    with pytest.raises(Stop):
        run_fold(config, tmp_path / "b", on_epoch=stop_after(epoch))
    last = load_file(tmp_path / "b" / RESUME_FILE)
    expected = {k.removeprefix("model."): v for k, v in last.items() if k.startswith("model.")}
    assert_same(weights_of(tmp_path / "a"), expected)


def test_survival_epoch_by_c_index(config_of: ConfigOf, tmp_path: Path) -> None:
    config = config_of("survival", training={"epochs": 5, "lr": 0.05, "select": "metric"})
    run_fold(config, tmp_path / "a")
    history = history_of(tmp_path / "a")
    metric = [row["val_metric"] for row in history]
    assert all(0 <= m <= 1 for m in metric)
    assert [row["chosen"] for row in history].index(1) == metric.index(max(metric))


def with_labels(study: Study, side: str, change: Callable[[str], str]) -> Study:
    """A study in which the labels of one side of the first fold are others."""
    fold = study.folds[0]
    slides = tuple(replace(s, label=change(str(s.label))) for s in getattr(fold, side))
    return replace(study, folds=(replace(fold, **{side: slides}), *study.folds[1:]))


def test_labels_of_the_test_side_change_no_weight(config_of: ConfigOf, tmp_path: Path) -> None:
    config = resolve_sections(config_of(training={"epochs": 4, "lr": 0.05, "select": "metric"}))
    study = load_study(config)
    swap = {"a": "b", "b": "a"}.__getitem__
    told = {}
    for name, made in {
        "as is": study,
        "test": with_labels(study, "test", swap),
        "val": with_labels(study, "val", swap),
        "train": with_labels(study, "train", swap),
    }.items():
        predictions = train_fold(config, made.cohort, made.folds[0], made.store, tmp_path / name, silent)
        told[name] = (tmp_path / name / MODEL_FILE).read_bytes(), history_of(tmp_path / name), predictions
    assert told["test"][0] == told["as is"][0]
    assert told["test"][1] == told["as is"][1]
    assert_same_predictions(told["test"][2], told["as is"][2])
    assert [p.label for p in told["test"][2]] == [swap(str(p.label)) for p in told["as is"][2]]
    # The same change on the other sides is seen.
    assert told["val"][1] != told["as is"][1]
    assert told["train"][0] != told["as is"][0]


def test_test_slides_are_read_once_and_after_the_last_epoch(config_of: ConfigOf, tmp_path: Path) -> None:
    config = resolve_sections(config_of(training={"epochs": 3}, data={"cache_gb": 0}))
    study = load_study(config)
    events: list[str] = []

    class Store:
        spec = study.store.spec

        def __contains__(self, slide_id: str) -> bool:
            return slide_id in study.store

        def load(self, slide_id: str, draw: int | None = None) -> GridBag:
            events.append(slide_id)
            return study.store.load(slide_id, draw)

    store: Any = Store()
    train_fold(config, study.cohort, study.folds[0], store, tmp_path / "a", lambda fold, row: events.append("epoch"))
    assert events.count("epoch") == 3
    last = len(events) - 1 - events[::-1].index("epoch")
    test = [s.slide_id for s in study.folds[0].test]
    assert events[last + 1 :] == test
    assert not set(test) & set(events[:last])


# --- standardisation, empty slides, sides that cannot be learned from


def test_standardise_takes_the_train_side_alone(config_of: ConfigOf, tiny: ModuleType, tmp_path: Path) -> None:
    config = config_of()
    study = load_study(config)
    fold = study.folds[0]
    run_fold(config, tmp_path / "a")
    patches = np.concatenate([study.store.load(s.slide_id).features.numpy() for s in fold.train]).astype(np.float64)
    kept = weights_of(tmp_path / "a")
    np.testing.assert_allclose(kept["standardise.mean"], patches.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kept["standardise.scale"], patches.std(0), rtol=1e-5)
    before = (tmp_path / "a" / MODEL_FILE).read_bytes()
    rng = np.random.default_rng(9)
    for slide in fold.test:
        tiny.write_features(config.data.features, slide.slide_id, rng.normal(50, 9, (11, tiny.DIM)).astype(np.float32))
    run_fold(config, tmp_path / "b")
    assert (tmp_path / "b" / MODEL_FILE).read_bytes() == before, "the test side's features are in the model"
    other = study.folds[1]
    run_fold(config, tmp_path / "c", index=1)
    assert other.train[0] in fold.test
    assert float(weights_of(tmp_path / "c")["standardise.mean"].min()) > 5


def test_standardise_can_be_left_out(config_of: ConfigOf, tiny: ModuleType, tmp_path: Path) -> None:
    run_fold(config_of(model={**tiny.MODEL, "standardise": False}), tmp_path / "a")
    assert not any("standardise" in name for name in weights_of(tmp_path / "a"))


def test_standardise_under_another_name_is_not_passed_over(
    config_of: ConfigOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left unfitted in silence, it would train on features as they come."""

    class Misspelt(Aggregator):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.standardize = Standardise(dim)

        def embed(self, batch: BagBatch) -> Embedded:
            raise AssertionError("it must not come to this")

        def aggregate(self, embedded: Embedded) -> ModelOutput:
            raise AssertionError("nor to this")

    monkeypatch.setattr(fold_module, "build_model", lambda section, in_dim, out_dim: Misspelt(in_dim))
    with pytest.raises(AttributeError, match="'Misspelt' object has no attribute 'standardise'"):
        run_fold(config_of(), tmp_path / "a")


def test_a_feature_that_never_varies_is_only_centred(config_of: ConfigOf, tiny: ModuleType, tmp_path: Path) -> None:
    config = config_of()
    for slide in load_study(config).cohort.slides:
        features = np.random.default_rng(1).normal(size=(9, tiny.DIM)).astype(np.float32)
        features[:, 3] = 7.0
        tiny.write_features(config.data.features, slide.slide_id, features)
    predictions = run_fold(config, tmp_path / "a")
    kept = weights_of(tmp_path / "a")
    assert kept["standardise.mean"][3] == 7
    assert kept["standardise.scale"][3] == 1
    assert all(np.isfinite(p.scores).all() for p in predictions)


def test_empty_slides_are_left_out(config_of: ConfigOf, tiny: ModuleType, tmp_path: Path) -> None:
    config = config_of()
    fold = load_study(config).folds[0]
    empty = [side[0].slide_id for side in (fold.train, fold.val, fold.test)]
    for slide_id in empty:
        tiny.write_features(config.data.features, slide_id, np.zeros((0, tiny.DIM), np.float32))
    predictions = run_fold(config, tmp_path / "a")
    assert [p.slide_id for p in predictions] == [s.slide_id for s in fold.test if s.slide_id not in empty]


@pytest.mark.parametrize("side", ["train", "val", "test"])
def test_a_side_without_tissue_is_one_line(config_of: ConfigOf, tiny: ModuleType, tmp_path: Path, side: str) -> None:
    config = config_of()
    for slide in getattr(load_study(config).folds[1], side):
        tiny.write_features(config.data.features, slide.slide_id, np.zeros((0, tiny.DIM), np.float32))
    with pytest.raises(SplitError, match=f"fold 1: no slide of its {side} side has features with tissue") as caught:
        run_fold(config, tmp_path / "a", index=1)
    assert "\n" not in str(caught.value)


def test_a_class_that_train_lacks_is_one_line(config_of: ConfigOf, tiny: ModuleType, tmp_path: Path) -> None:
    config = config_of()
    tiny.write_fold(config.data.splits, 0, train=["p00", "p02", "p04"], val=["p01", "p06"], test=["p03", "p08"])
    with pytest.raises(SplitError, match="fold 0: its train side has no slide of class 'b'") as caught:
        run_fold(config, tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_no_event_in_train_is_one_line(config_of: ConfigOf, tiny: ModuleType, tmp_path: Path) -> None:
    config = config_of("survival")
    tiny.write_fold(config.data.splits, 0, train=["p04", "p09"], val=["p01", "p06"], test=["p03", "p08"])
    with pytest.raises(SplitError, match="fold 0: no event among its training patients") as caught:
        run_fold(config, tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_val_of_one_class_falls_back_to_the_loss(config_of: ConfigOf, tiny: ModuleType, tmp_path: Path) -> None:
    config = config_of(training={"select": "metric", "epochs": 3, "lr": 0.05})
    tiny.write_fold(config.data.splits, 0, train=["p00", "p01", "p02"], val=["p04", "p06"], test=["p03", "p08"])
    run_fold(config, tmp_path / "a")
    history = history_of(tmp_path / "a")
    losses = [row["val_loss"] for row in history]
    assert all(math.isnan(row["val_metric"]) for row in history)
    assert [row["chosen"] for row in history].index(1) == losses.index(min(losses))


def test_a_training_that_diverges_is_one_line(config_of: ConfigOf, tiny: ModuleType, tmp_path: Path) -> None:
    config = config_of(training={"lr": 1e30, "grad_clip": None, "epochs": 3})
    with pytest.raises(Wsi2dError, match=r"fold 0: .*lr") as caught:
        run_fold(config, tmp_path / "a")
    assert "\n" not in str(caught.value)


# --- the optimisation


def optimisers_of(monkeypatch: Any) -> tuple[list[nn.Module], list[torch.optim.Optimizer]]:
    """The models and optimizers that a training makes, as it makes them."""
    models: list[nn.Module] = []
    optimizers: list[torch.optim.Optimizer] = []
    build = fold_module.build_model

    def build_and_keep(*args: Any, **kwargs: Any) -> nn.Module:
        models.append(build(*args, **kwargs))
        return models[-1]

    class Kept(torch.optim.AdamW):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.rates: list[float] = []
            optimizers.append(self)

        def step(self, closure: Any = None) -> Any:
            self.rates.append(self.param_groups[0]["lr"])
            assert all(group["lr"] == self.rates[-1] for group in self.param_groups)
            return super().step(closure)

    monkeypatch.setattr(fold_module, "build_model", build_and_keep)
    monkeypatch.setattr(torch.optim, "AdamW", Kept)
    return models, optimizers


def decayed_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[set[str], set[str], set[float]]:
    """Names of the parameters that decay, of those that do not, and the strengths of decay."""
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, spared, strengths = set(), set(), set()
    for group in optimizer.param_groups:
        for p in group["params"]:
            (decayed if group["weight_decay"] else spared).add(names[id(p)])
            strengths |= {group["weight_decay"]} if group["weight_decay"] else set()
    return decayed, spared, strengths


def test_weight_decay_spares_what_it_should(config_of: ConfigOf, tmp_path: Path, monkeypatch: Any) -> None:
    models, optimizers = optimisers_of(monkeypatch)
    run_fold(config_of(training={"weight_decay": 0.02}), tmp_path / "a")
    decayed, spared, strengths = decayed_names(models[0], optimizers[0])
    assert strengths == {0.02}
    assert decayed | spared == {name for name, _ in models[0].named_parameters()}
    last = {name.rpartition(".")[2] for name in spared}
    assert {"A_log", "D", "bias", "dt_bias", "empty_token"} <= last
    assert all(name in spared for name, _ in models[0].named_parameters() if "norm" in name)
    assert not any(name.endswith(("A_log", ".D", "bias", "token")) or "norm" in name for name in decayed)
    assert {"project.0.weight", "head.weight", "blocks.0.mixer.in_proj.weight"} <= decayed


def test_decay_all(config_of: ConfigOf, tmp_path: Path, monkeypatch: Any) -> None:
    models, optimizers = optimisers_of(monkeypatch)
    run_fold(config_of(training={"weight_decay": 0.02, "decay_all": True}), tmp_path / "a")
    decayed, spared, _ = decayed_names(models[0], optimizers[0])
    assert decayed == {name for name, _ in models[0].named_parameters()}
    assert not spared


@pytest.mark.parametrize("batch_size", [1, 4])
def test_learning_rate(config_of: ConfigOf, tmp_path: Path, monkeypatch: Any, batch_size: int) -> None:
    _, optimizers = optimisers_of(monkeypatch)
    config = config_of(training={"epochs": 3, "lr": 0.01, "batch_size": batch_size})
    run_fold(config, tmp_path / "cosine")
    train = len(load_study(config).folds[0].train)
    steps = 3 * math.ceil(train / batch_size)
    expected = [0.005 * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]
    np.testing.assert_allclose(optimizers[0].rates, expected, rtol=1e-12)
    assert optimizers[0].rates[0] == 0.01
    run_fold(config_of(training={"epochs": 2, "lr": 0.01, "schedule": "constant"}), tmp_path / "constant")
    assert set(optimizers[1].rates) == {0.01}


@pytest.mark.parametrize("limit", [1.0, 0.25, None])
def test_gradients_are_clipped_where_asked(
    config_of: ConfigOf, tmp_path: Path, monkeypatch: Any, limit: float | None
) -> None:
    limits: list[float] = []
    clip = nn.utils.clip_grad_norm_

    def recorded(parameters: Any, max_norm: float) -> torch.Tensor:
        limits.append(max_norm)
        return clip(parameters, max_norm)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", recorded)
    run_fold(config_of(training={"grad_clip": limit}), tmp_path / "a")
    assert set(limits) == (set() if limit is None else {limit})


def test_loss_divisor_and_batches(config_of: ConfigOf, tmp_path: Path) -> None:
    """With one step an epoch, the first epoch's training loss is that of the untrained model."""
    losses = {}
    for divisor in (1, 32):
        config = config_of("survival", training={"epochs": 1, "batch_size": 20, "loss_divisor": divisor})
        run_fold(config, tmp_path / str(divisor))
        losses[divisor] = history_of(tmp_path / str(divisor))[0]
    assert losses[32]["train_loss"] == pytest.approx(losses[1]["train_loss"] / 32, rel=1e-6)
    assert losses[32]["val_loss"] < losses[1]["val_loss"] / 16


def test_training_loss_is_the_mean_over_slides(config_of: ConfigOf, tiny: ModuleType, tmp_path: Path) -> None:
    """However the slides fall into batches, the last of which is smaller."""
    losses = []
    for batch_size in (1, 2, 3):
        model = {**tiny.MODEL, "dropout": 0}
        config = config_of(model=model, training={"epochs": 1, "lr": 1e-12, "batch_size": batch_size})
        assert len(load_study(config).folds[0].train) == 4
        run_fold(config, tmp_path / str(batch_size))
        losses.append(history_of(tmp_path / str(batch_size))[0]["train_loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_dropout_while_training_and_never_else(config_of: ConfigOf, tmp_path: Path, monkeypatch: Any) -> None:
    models, _ = optimisers_of(monkeypatch)
    modes: list[bool] = []
    build = fold_module.build_model

    def watched(*args: Any, **kwargs: Any) -> nn.Module:
        model = build(*args, **kwargs)
        model.register_forward_hook(lambda module, inputs, output: modes.append(module.training))
        return model

    monkeypatch.setattr(fold_module, "build_model", watched)
    config = config_of()
    run_fold(config, tmp_path / "a")
    fold = load_study(config).folds[0]
    epoch = [True] * len(fold.train) + [False] * len(fold.val)
    assert modes == epoch * 2
    assert len(models) == 1


def test_batch_of_predictions_does_not_matter(config_of: ConfigOf, tmp_path: Path, monkeypatch: Any) -> None:
    """Val and test are scored in batches; the numbers are those of one slide at a time, in the slides' order."""
    whole = run_fold(config_of(training={"epochs": 1, "lr": 1e-12}), tmp_path / "one")
    batched = run_fold(config_of(training={"epochs": 1, "lr": 1e-12, "batch_size": 4}), tmp_path / "four")
    assert [p.slide_id for p in whole] == [p.slide_id for p in batched]
    for a, b in zip(whole, batched, strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
        np.testing.assert_allclose(a.attention, b.attention, atol=1e-5)


def test_what_a_prediction_holds(config_of: ConfigOf, tmp_path: Path) -> None:
    config = config_of()
    study = load_study(config)
    for p, slide in zip(run_fold(config, tmp_path / "a"), study.folds[0].test, strict=True):
        assert (p.slide_id, p.case_id, p.label, p.fold) == (slide.slide_id, slide.case_id, slide.label, 0)
        assert p.scores.sum() == pytest.approx(1)
        assert len(p.attention) == len(study.store.load(p.slide_id))
        assert p.attention.sum() == pytest.approx(1, abs=1e-5)
    config = config_of("survival")
    study = load_study(config)
    for p, slide in zip(run_fold(config, tmp_path / "b", index=1), study.folds[1].test, strict=True):
        assert (p.time, p.event, p.fold) == (slide.time, slide.event, 1)
        assert ((p.scores > 0) & (p.scores < 1)).all()
        # risk = −Σ S over the bins, S the running product of 1 − hazard
        assert p.risk == pytest.approx(-np.cumprod(1 - p.scores).sum())


def test_a_model_can_learn(config_of: ConfigOf, tmp_path: Path) -> None:
    """Train, val and test agree about which logit is whose: a class that can be told apart is learned."""
    model = {"name": "abmil", "dim": 8, "attention_dim": 4, "dropout": 0}
    predictions = run_fold(config_of(model=model, training={"epochs": 40, "lr": 0.01}), tmp_path / "a")
    assert [("a", "b")[int(p.scores.argmax())] for p in predictions] == [p.label for p in predictions]
