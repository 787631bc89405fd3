"""What is kept of a fold: weights with their card, and the point to go on from; complete, or refused in one line."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from wsi2d.data.bags import FeatureSpec, GridBag, collate
from wsi2d.errors import RunError, StorageError
from wsi2d.evaluation.curves import Baseline
from wsi2d.models.registry import build_model, model_config
from wsi2d.training.checkpoint import (
    ModelCard,
    ResumePoint,
    load_card,
    load_model,
    load_resume_point,
    optimizer_tensors,
    restore_optimizer,
    save_model,
    save_resume_point,
)

CPU = torch.device("cpu")
SECTION = {"name": "mamba2d-mil", "dim": 8, "state": 2, "attention_dim": 4, "directions": 1}
FEATURES = FeatureSpec("tiny", "0123", 0.5, 128, 16, 6)
CARD = ModelCard(
    model=model_config(SECTION).model_dump(),
    in_dim=6,
    out_dim=3,
    kind="classification",
    classes=("grade 1", "grade 2", "häufig, “selten”"),
    bin_edges=(),
    features=FEATURES,
    fold=2,
    epoch=7,
)
COX_CARD = replace(
    CARD,
    kind="survival", classes=(), bin_edges=(1.5, 3.0), out_dim=1, log_risk=True, last_event=4.0,
    baseline=Baseline((1.0, 0.1 + 2.0, 4.0), (-1.5, -1.5, 1 / 3)),
)  # fmt: skip


def model_of(card: ModelCard, seed: int = 0) -> nn.Module:
    """A model with random weights, Standardise's statistics included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(card.model, in_dim=card.in_dim, out_dim=card.out_dim)
        model.get_submodule("standardise").fit(torch.randn(card.in_dim), torch.rand(card.in_dim) + 0.5)  # type: ignore[operator]
    return model


def some_batch() -> Any:
    """A batch of one bag, 2×2."""
    features = torch.linspace(-1, 1, 24).reshape(4, 6)
    return collate([GridBag("s", features, torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]), (2, 2))])


def one_line(error: pytest.ExceptionInfo[RunError], *words: str) -> None:
    """The error is one line that holds these words."""
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


# --- weights with their card


@pytest.mark.parametrize(
    "card",
    [
        CARD,
        replace(CARD, kind="survival", classes=(), bin_edges=(0.1 + 0.2, 3.25)),
        COX_CARD,
        replace(
            CARD, model=model_config({"name": "abmil", "dim": 4}).model_dump(), in_dim=1, out_dim=2, classes=("a", "b")
        ),
    ],
    ids=["classification", "survival", "log-risk", "abmil"],
)
def test_model_and_card_round_trip(tmp_path: Path, card: ModelCard) -> None:
    model = model_of(card)
    save_model(model, card, tmp_path / "m.safetensors")
    loaded, read = load_model(tmp_path / "m.safetensors", CPU)
    assert read == card
    assert load_card(tmp_path / "m.safetensors") == card
    assert type(loaded) is type(model)
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_loaded_model_gives_the_same_output(tmp_path: Path) -> None:
    model = model_of(CARD).eval()
    save_model(model, CARD, tmp_path / "m.safetensors")
    loaded, _ = load_model(tmp_path / "m.safetensors", CPU)
    with torch.inference_mode():
        assert torch.equal(model(some_batch()).logits, loaded(some_batch()).logits)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        save_model(model_of(CARD), CARD, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    save_model(model_of(CARD, seed=1), CARD, tmp_path / "c")
    assert (tmp_path / "c").read_bytes() != (tmp_path / "a").read_bytes()


def test_weights_are_plain_safetensors_with_a_readable_card(tmp_path: Path) -> None:
    save_model(model_of(CARD), CARD, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "np") as file:
        metadata = file.metadata()
        assert "head.weight" in file.keys()  # noqa: SIM118
    (card,) = (json.loads(value) for value in metadata.values())
    assert card["classes"][0] == "grade 1"
    assert card["features"]["encoder"] == "tiny"
    assert card["model"]["dt_min"] == 0.001, "options are spelled out"


@pytest.mark.parametrize(
    "change",
    [
        {"model": model_config({**SECTION, "dim": 16}).model_dump()},
        {"model": model_config({**SECTION, "blocks": 2}).model_dump()},
        {"model": model_config({"name": "abmil", "dim": 8}).model_dump()},
        {"in_dim": 7},
        {"out_dim": 2, "classes": ("a", "b")},
    ],
    ids=["width", "blocks", "name", "in_dim", "out_dim"],
)
def test_weights_of_another_model(tmp_path: Path, change: dict[str, Any]) -> None:
    card = replace(CARD, **change)
    save_model(model_of(CARD), card, tmp_path / "m.safetensors")
    with pytest.raises(RunError) as error:
        load_model(tmp_path / "m.safetensors", CPU)
    one_line(error, "m.safetensors", "its weights are not those of a", card.model["name"])


@pytest.mark.parametrize(
    "change",
    [{"in_dim": 0}, {"in_dim": 10**9}, {"out_dim": 2}, {"kind": "survival"}, {"bin_edges": (1.0,), "kind": "survival"},
     {"classes": ("a", "b")}],
)  # fmt: skip
def test_a_card_that_contradicts_itself(tmp_path: Path, change: dict[str, Any]) -> None:
    save_model(model_of(CARD), replace(CARD, **change), tmp_path / "m.safetensors")
    with pytest.raises(RunError) as error:
        load_card(tmp_path / "m.safetensors")
    one_line(error, "m.safetensors: damaged (", "train again")


@pytest.mark.parametrize(
    "change",
    [{"baseline": Baseline((), ())}, {"baseline": Baseline((1.0, 2.0), (0.0,))}, {"bin_edges": ()},
     {"baseline": Baseline((2.0, 1.0), (0.0, 1.0))}, {"baseline": Baseline((1.0, 1.0), (0.0, 1.0))},
     {"baseline": Baseline((1.0, 2.0), (1.0, 0.0))}, {"baseline": Baseline((1.0, math.inf), (0.0, 1.0))},
     {"baseline": Baseline((1.0, 2.0), (math.nan, 1.0))}, {"bin_edges": (3.0, 1.5)}, {"bin_edges": (math.nan,)},
     {"last_event": math.nan}],
    ids=str,
)  # fmt: skip
def test_a_card_whose_times_make_no_curve(tmp_path: Path, change: dict[str, Any]) -> None:
    save_model(model_of(COX_CARD), replace(COX_CARD, **change), tmp_path / "m.safetensors")
    with pytest.raises(RunError) as error:
        load_card(tmp_path / "m.safetensors")
    one_line(error, "m.safetensors: damaged (survival times or a baseline that do not grow)", "train again")


def test_a_card_from_before_log_risks_is_read(tmp_path: Path) -> None:
    card = replace(CARD, kind="survival", classes=(), bin_edges=(1.5, 3.0))
    save_model(model_of(card), card, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        ((key, text),) = file.metadata().items()
    values = json.loads(text)
    assert [values.pop(name) for name in ("last_event", "log_risk", "baseline")] == [None, False, None]
    save_file(tensors, tmp_path / "old.safetensors", {key: json.dumps(values)})
    assert load_card(tmp_path / "old.safetensors") == card


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    model = model_of(CARD)
    next(model.parameters()).data.view(-1)[3] = value
    save_model(model, CARD, tmp_path / "m.safetensors")
    with pytest.raises(RunError, match=r"damaged \(its weights hold NaN or infinity\)"):
        load_model(tmp_path / "m.safetensors", CPU)


@pytest.mark.parametrize("card", [None, "{", "{}", "[1]", '{"features": 3}'])
def test_weights_without_a_card(tmp_path: Path, card: str | None) -> None:
    save_model(model_of(CARD), CARD, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        (key,) = file.metadata()
    save_file({"a": torch.zeros(1)}, tmp_path / "m.safetensors", None if card is None else {key: card})
    for load in (load_card, partial(load_model, device=CPU)):
        with pytest.raises(RunError) as error:
            load(tmp_path / "m.safetensors")
        one_line(error, "has no model card", "wsi2d train")


def test_a_card_of_a_model_that_is_not_known_here(tmp_path: Path) -> None:
    save_model(model_of(CARD), replace(CARD, model={"name": "transmil"}), tmp_path / "m.safetensors")
    with pytest.raises(Exception, match=r"transmil.*unknown") as error:
        load_model(tmp_path / "m.safetensors", CPU)
    one_line(error)


@pytest.mark.parametrize("keep", [0, 4, 100, -40])
def test_damaged_weights(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "m.safetensors"
    save_model(model_of(CARD), CARD, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError) as error:
        load_model(path, CPU)
    one_line(error, "m.safetensors: damaged", "train again")


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"m\.safetensors: no such file; train the fold"):
        load_model(tmp_path / "m.safetensors", CPU)


def test_a_failed_save_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    save_model(model_of(CARD), CARD, path)
    before = path.read_bytes()

    def full_disk(partial: Path, whole: bytes) -> int:
        with partial.open("wb") as file:
            file.write(whole[: len(whole) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(StorageError, match=r"m\.safetensors: cannot be written \(No space"):
        save_model(model_of(CARD, seed=1), CARD, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


# --- the point to go on from


def trained(steps: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Some steps on one batch."""
    for _ in range(steps):
        optimizer.zero_grad()
        model(some_batch()).logits.square().sum().backward()
        optimizer.step()


def test_going_on_is_not_seen_in_the_numbers(tmp_path: Path) -> None:
    """Weights and the optimizer's moments: three steps and two more are five."""
    torch.manual_seed(0)
    whole, parts = model_of(CARD).eval(), model_of(CARD).eval()
    a = torch.optim.AdamW(whole.parameters(), lr=0.01)
    b = torch.optim.AdamW(parts.parameters(), lr=0.01)
    trained(5, whole, a)
    trained(3, parts, b)
    history = [{"epoch": k, "val_metric": math.nan, "val_loss": 0.1 + k / 10} for k in (1, 2, 3)]
    point = ResumePoint(parts.state_dict(), optimizer_tensors(b), 3, 2, math.inf, history)
    save_resume_point(point, tmp_path / "last")
    read = load_resume_point(tmp_path / "last")
    assert read is not None
    assert (read.epoch, read.best_epoch, read.best_score) == (3, 2, math.inf)
    assert read.history[1]["val_loss"] == 0.1 + 2 / 10
    assert math.isnan(read.history[0]["val_metric"])
    other = model_of(CARD, seed=5).eval()
    other.load_state_dict(read.model)
    c = torch.optim.AdamW(other.parameters(), lr=0.01)
    restore_optimizer(c, read.optimizer)
    trained(2, other, c)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_optimizer_keeps_its_own_groups() -> None:
    """What a configuration says of decay and rate is not taken from the file."""
    model = model_of(CARD)
    a = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.5)
    trained(1, model, a)
    b = torch.optim.AdamW(model.parameters(), lr=0.002, weight_decay=0.0)
    restore_optimizer(b, optimizer_tensors(a))
    assert b.param_groups[0]["lr"] == 0.002
    assert b.param_groups[0]["weight_decay"] == 0.0
    first = next(model.parameters())
    assert torch.equal(b.state[first]["exp_avg"], a.state[first]["exp_avg"])


def test_no_point_yet(tmp_path: Path) -> None:
    assert load_resume_point(tmp_path / "last") is None


@pytest.mark.parametrize("content", [b"", b"junk" * 9])
def test_damaged_point(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last").write_bytes(content)
    with pytest.raises(RunError) as error:
        load_resume_point(tmp_path / "last")
    one_line(error, "last: damaged", "delete it")


@pytest.mark.parametrize("metadata", [None, {"wsi2d-resume": "{"}, {"wsi2d-resume": '{"epoch": 1}'}])
def test_a_point_without_its_state(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"model.a": torch.zeros(1)}, tmp_path / "last", metadata)
    with pytest.raises(RunError) as error:
        load_resume_point(tmp_path / "last")
    one_line(error, "last: damaged", "delete it")
