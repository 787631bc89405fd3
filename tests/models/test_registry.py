"""Every registered model with every value of its options: batches, attention, gradients, weights, odd grids."""

import copy
import typing
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union

import pytest
import torch
from pydantic.fields import FieldInfo
from safetensors.torch import load_file, save_file
from torch import nn

from wsi2d.data.bags import GridBag, collate
from wsi2d.errors import ConfigError
from wsi2d.models.blocks import Standardise
from wsi2d.models.patch_model import PatchModelConfig
from wsi2d.models.registry import MODELS, build_model, model_class, model_config

MakeBags = Callable[..., list[GridBag]]
MakeModel = Callable[..., nn.Module]

IN_DIM, OUT_DIM = 6, 3
SHAPES = [(5, 7), (1, 1), (1, 8), (8, 1), (9, 4), (2, 2)]
SMALL = {"dim": 8, "state": 3, "attention_dim": 5}
OTHERS = {"dim": 20, "blocks": 2, "state": 1, "expand": 3, "attention_dim": 1, "dropout": 0.0, "dt_max": 0.5}
PUBLISHED = {"conv": "raster", "directions": 1, "dt_init": "published", "pool": "all", "standardise": False}
# Attention is 0 of patches that hold no maximum, or where an approximation makes it negative.
SPARSE_ATTENTION = {"max", "s4-mil", "torchmil:transmil"}
# Draws besides dropout while it trains.
DRAWS = {"torchmil:dtfd"}
COMBINATIONS: list[dict[str, Any]] = [
    {"name": "mamba2d-mil", **PUBLISHED},
    {"name": "mamba2d-mil", "layout": "row", "conv": "raster", "directions": 2},
    {"name": "mamba2d-mil", "layout": "row", "conv": "none", "blocks": 2},
    {"name": "mamba2d-mil", "conv": "raster", "blocks": 2, "pool": "all", "directions": 2, "share_directions": True},
    {"name": "mamba2d-mil", "empty": "zero", "pool": "all", "scan": False},
    {"name": "abmil", "gated": False, "standardise": False},
]  # fmt: skip


def fields_of(name: str) -> dict[str, FieldInfo]:
    """A model's options; of torchmil's models their own alone, since what they share is tried with ours."""
    fields = dict(model_class({"name": name}).config_class.model_fields)
    if name.startswith("torchmil:"):
        fields = {k: field for k, field in fields.items() if k == "name" or k not in PatchModelConfig.model_fields}
    return fields


def accepted(section: dict[str, Any]) -> bool:
    """Whether a model takes these options."""
    try:
        model_config(section)
    except ConfigError:
        return False
    return True


def small(name: str, **options: Any) -> dict[str, Any]:
    """A model's section with small sizes where it has them, and takes them."""
    section = {"name": name}
    for option, value in SMALL.items():
        if accepted({**section, option: value}):
            section[option] = value
    return section | options


def other_values(name: str, option: str) -> list[Any]:
    """What an option can be besides its default: all words, yes and no, one other number.

    The number, or whatever else it is, is that of ``OTHERS`` where the model takes it; a number that is not there is
    the first near to the default that the model takes.
    """
    field = fields_of(name)[option]
    kinds = [field.annotation]
    if typing.get_origin(field.annotation) in (Union, UnionType):
        kinds = list(typing.get_args(field.annotation))
    known: list[Any] = [OTHERS[option]] if option in OTHERS else []
    known = [value for value in known if accepted(small(name, **{option: value}))]
    found = [*known]
    for kind in kinds:
        if typing.get_origin(kind) is Literal:
            found += typing.get_args(kind)
        elif kind is bool:
            found += [True, False]
        elif kind is type(None):
            found.append(None)
        elif kind in (int, float) and not known:
            start = field.default or 0
            near = [start // 2 if kind is int else start / 2, 2 * start, start + 1, start + 0.5, start - 0.5, 8]
            found += [n for n in near if n != field.default and accepted(small(name, **{option: n}))][:1]
    return [value for value in found if value != field.default]


def sections() -> list[dict[str, Any]]:
    """Each model as it comes, with each value of each option by itself, and some options together.

    A value that a model refuses by itself must be in ``COMBINATIONS``, with what it needs.
    """
    found = []
    for name in MODELS:
        found.append(small(name))
        for option in fields_of(name):
            found += filter(accepted, (small(name, **{option: value}) for value in other_values(name, option)))
    return found + [small(**combination) for combination in COMBINATIONS]


def label(section: dict[str, Any]) -> str:
    options = [f"{k}={v}" for k, v in section.items() if k != "name" and SMALL.get(k) != v]
    return "-".join([section["name"], *options])


EVERY = pytest.mark.parametrize("section", sections(), ids=label)


def test_every_option_is_tried() -> None:
    for name in MODELS:
        tried = [model_config(s).model_dump() for s in sections() if s["name"] == name]
        for option, field in fields_of(name).items():
            values = [values[option] for values in tried]
            missing = [v for v in other_values(name, option) if v not in values]
            assert not missing, f"{name} is not tried with {option} {missing}: add it to COMBINATIONS"
            tried_another = option == "name" or any(v != field.default for v in values)
            assert tried_another, f"{name} is tried with one {option} alone: add another to OTHERS"


# --- numbers -------------------------------------------------------------------------------------------------------


@EVERY
def test_a_batch_equals_one_at_a_time(make_bags: MakeBags, make_model: MakeModel, section: dict[str, Any]) -> None:
    model, bags = make_model(section), make_bags(SHAPES)
    with torch.no_grad():
        together = model(collate(bags))
        alone = [model(collate([bag])) for bag in bags]
    assert together.logits.shape == (len(bags), OUT_DIM)
    assert together.attention.shape == (sum(map(len, bags)),)
    logits, attention = torch.cat([o.logits for o in alone]), torch.cat([o.attention for o in alone])
    assert logits.std(0).min() > 1e-3  # bags differ, or nothing is shown
    torch.testing.assert_close(together.logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.attention, attention, rtol=1e-5, atol=1e-5)


@EVERY
def test_joined_slides_have_one_answer_that_their_batch_does_not_change(
    make_bags: MakeBags, make_model: MakeModel, section: dict[str, Any]
) -> None:
    model, slides = make_model(section), make_bags(SHAPES[:4])
    with torch.no_grad():
        together = model(collate(slides, [1, 3]))
        single, three = model(collate(slides[:1])), model(collate(slides[1:], [3]))
        first = model(collate(slides[1:2]))
    logits, attention = (torch.cat([getattr(o, name) for o in (single, three)]) for name in ("logits", "attention"))
    assert together.logits.shape == (2, OUT_DIM)
    torch.testing.assert_close(together.logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.attention, attention, rtol=1e-5, atol=1e-5)
    assert (three.logits - first.logits).abs().max() > 1e-3, "all of them are looked at"
    assert 0 <= float(three.attention[: len(slides[1])].sum()) < 1 - 1e-4
    full = section.get("pool") != "all"
    assert float(three.attention.sum()) == pytest.approx(1, abs=1e-5) or not full


@EVERY
def test_attention_is_a_distribution_over_tissue(
    make_bags: MakeBags, make_model: MakeModel, section: dict[str, Any]
) -> None:
    model, bags = make_model(section), make_bags(SHAPES)
    with torch.no_grad():
        attention = model(collate(bags)).attention.split([len(bag) for bag in bags])
    sparse = section["name"] in SPARSE_ATTENTION
    assert all((part >= 0).all() if sparse else (part > 0).all() for part in attention)
    for bag, part in zip(bags, attention, strict=True):
        total, full = float(part.sum()), len(bag) == bag.shape[0] * bag.shape[1]
        if section.get("pool") != "all" or full:
            assert total == pytest.approx(1, abs=1e-5)
        else:
            assert 0 < total < 1 - 1e-4  # empty cells take their part


@EVERY
def test_order_of_patches_and_bags_does_not_matter(
    make_bags: MakeBags, make_model: MakeModel, section: dict[str, Any]
) -> None:
    model, bags = make_model(section, dtype=torch.float64), make_bags(SHAPES, dtype=torch.float64)
    orders = [torch.randperm(len(bag), generator=torch.Generator().manual_seed(3)) for bag in bags]
    shuffled = [
        GridBag(b.slide_id, b.features[order], b.index[order], b.shape) for b, order in zip(bags, orders, strict=True)
    ]
    with torch.no_grad():
        before, after = model(collate(bags)), model(collate(shuffled[::-1]))
    torch.testing.assert_close(after.logits.flip(0), before.logits)
    parts = before.attention.split([len(b) for b in bags])
    expected = torch.cat([part[order] for part, order in zip(parts, orders, strict=True)][::-1])
    torch.testing.assert_close(after.attention, expected)


def scans_from_above(section: dict[str, Any], name: str) -> bool:
    """Parameters of a wavefront that nothing reads on a grid flattened to one row."""
    return section["name"] == "m2d-mil" and section.get("layout") == "row" and ".above." in name


@EVERY
def test_gradients_reach_every_parameter(make_bags: MakeBags, make_model: MakeModel, section: dict[str, Any]) -> None:
    model, bags = make_model(section, dtype=torch.float64), make_bags(SHAPES, dtype=torch.float64)
    output = model(collate(bags))
    total = output.trained_logits.square().sum() + output.attention.square().sum()
    if output.penalties is not None:
        total = total + output.penalties.sum()
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if name.endswith("score.bias"):  # a softmax does not feel what is added to all scores
            assert parameter.grad.abs().max() < 1e-12
        elif scans_from_above(section, name):
            assert parameter.grad.abs().max() == 0, f"{name}: one row has no row above it"
        else:
            assert parameter.grad.abs().max() > 1e-9, name


@EVERY
def test_training_step_changes_every_parameter_as_built(make_bags: MakeBags, section: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build_model(section, in_dim=IN_DIM, out_dim=OUT_DIM)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    targets = torch.arange(len(SHAPES)) % OUT_DIM
    for _ in range(2):  # what multiplies a zero at the start moves in the second step
        optimizer.zero_grad()
        output = model(collate(make_bags(SHAPES)))
        loss = sum(nn.functional.cross_entropy(logits, targets) for logits in output.trained_logits.unbind(1))
        if output.penalties is not None:
            loss = loss + output.penalties[torch.arange(len(targets)), targets].sum()
        loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        if not name.endswith("score.bias"):
            assert torch.equal(parameter, before[name]) == scans_from_above(section, name), name


@EVERY
def test_weights_round_trip(
    make_bags: MakeBags, make_model: MakeModel, section: dict[str, Any], tmp_path: Path
) -> None:
    model, batch = make_model(section), collate(make_bags(SHAPES))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(99)
    other = build_model(model_config(section).model_dump(), in_dim=IN_DIM, out_dim=OUT_DIM).eval()
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        first, second = model(batch), other(batch)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.attention, second.attention)


@EVERY
@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (8, 1)], ids=str)
def test_a_cell_a_row_a_column(
    make_bags: MakeBags, make_model: MakeModel, section: dict[str, Any], shape: tuple[int, int]
) -> None:
    (bag,) = make_bags([shape], share=1.0)
    with torch.no_grad():
        output = make_model(section)(collate([bag]))
    assert torch.isfinite(output.logits).all()
    assert float(output.attention.sum()) == pytest.approx(1, abs=1e-5)
    if len(bag) == 1:
        assert output.attention.tolist() == [1.0]


@EVERY
def test_dropout_only_while_training(make_bags: MakeBags, make_model: MakeModel, section: dict[str, Any]) -> None:
    model, batch = make_model(section), collate(make_bags(SHAPES))
    with torch.no_grad():
        assert torch.equal(model(batch).logits, model(batch).logits)
        model.train()
        same = torch.equal(model(batch).logits, model(batch).logits)
    draws = section["name"] in DRAWS or any(share for option, share in model.config if "drop" in option)
    assert same == (not draws)


@EVERY
def test_global_seed_makes_the_model(section: dict[str, Any]) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build_model(section, in_dim=IN_DIM, out_dim=OUT_DIM).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


# --- names and options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_name_is_enough(name: str) -> None:
    model = build_model({"name": name}, in_dim=IN_DIM, out_dim=2)
    assert model.config == model_config({"name": name})
    assert model.config.name == name
    assert model_config(model.config.model_dump()) == model.config


@EVERY
def test_what_standardises_is_where_training_looks_for_it(section: dict[str, Any]) -> None:
    model = build_model(section, in_dim=IN_DIM, out_dim=OUT_DIM)
    held = [module for module in model.modules() if isinstance(module, Standardise)]
    assert held == ([] if model.standardise is None else [model.standardise])
    assert bool(held) == section.get("standardise", bool(held))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "mamba2d-mill"}, "config model: model 'mamba2d-mill' is unknown; did you mean 'mamba2d-mil'?"),
        ({"name": "ABMIL"}, "config model: model 'ABMIL' is unknown; did you mean 'abmil'?"),
        ({"name": "TransMIL"}, "config model: model 'TransMIL' is unknown; did you mean 'torchmil:transmil'?"),
        ({"name": "resnet"}, f"config model: model 'resnet' is unknown; there are {', '.join(sorted(MODELS))}"),
        ({"name": "abmill"}, "config model: model 'abmill' is unknown; did you mean 'abmil'?"),
        ({"dim": 8}, "config model: name: missing"),
        ({"name": ["abmil"]}, "config model: model '['abmil']' is unknown"),
        ({"name": "abmil", "dims": 8}, "config model: dims: unknown key; did you mean 'dim'?"),
        ({"name": "abmil", "directions": 4}, "config model: directions: unknown key; "),
        ({"name": "mamba2d-mil", "direction": 4}, "config model: direction: unknown key; did you mean 'directions'?"),
        ({"name": "mamba2d-mil", "directions": 3}, "config model: directions: Input should be 1, 2 or 4, got 3"),
        (
            {"name": "mamba2d-mil", "conv": "3d"},
            "config model: conv: Input should be '2d', 'raster' or 'none', got '3d'",
        ),
        (
            {"name": "mamba2d-mil", "scan_order": "cross", "directions": 1},
            "scan_order 'cross' scans rows and columns: directions must be 2 or 4, got 1",
        ),
        ({"name": "mamba2d-mil", "dim": 0}, "config model: dim: Input should be greater than or equal to 1, got 0"),
        ({"name": "mamba2d-mil", "dim": "wide"}, "config model: dim: Input should be a valid integer"),
        ({"name": "mamba2d-mil", "dropout": 1.0}, "config model: dropout: Input should be less than 1, got 1.0"),
        ({"name": "mamba2d-mil", "dt_min": 0.2}, "dt_min must be below dt_max, got 0.2 and 0.1"),
    ],
)
def test_unusable_sections(section: dict[str, Any], message: str) -> None:
    for use in (model_config, lambda values: build_model(values, in_dim=2, out_dim=2)):
        with pytest.raises(ConfigError) as caught:
            use(section)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
