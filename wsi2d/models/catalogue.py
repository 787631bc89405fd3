"""Which aggregators there are, what they see and cost, and what can be set of each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, get_origin

import torch
from pydantic.fields import FieldInfo

from wsi2d.config import nearest
from wsi2d.errors import ConfigError, ModelError
from wsi2d.models.registry import MODELS, build_model, model_class

_MOST_WIDE = 2**20


@dataclass(frozen=True)
class ModelOption:
    """One option of an aggregator, as ``model.NAME`` of a configuration.

    Attributes:
        name, default: as in YAML.
        values: what it may be, in words.
        description: what it does; empty where its name says it.
    """

    name: str
    default: Any
    values: str
    description: str


@dataclass(frozen=True)
class ModelEntry:
    """One aggregator with its default options.

    Attributes:
        name: as in ``model.name``.
        sees, order, cost, paper, source: as of :class:`wsi2d.models.aggregator.About`.
        parameters: how many are trained; None where it cannot be built here.
        problem: why it cannot, and the remedy; empty where it can.
        options: what can be set.
    """

    name: str
    sees: str
    order: str
    cost: str
    paper: str
    source: str
    parameters: int | None
    problem: str
    options: tuple[ModelOption, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def list_models(*, in_dim: int = 1024, out_dim: int = 2) -> list[ModelEntry]:
    """All aggregators in the registry's order.

    Args:
        in_dim: width of a patch embedding, for which parameters are counted.
        out_dim: number of logits (classes, or discrete-time bins), likewise.

    Raises:
        ConfigError: a width makes no sense.
    """
    return [describe_model(name, in_dim=in_dim, out_dim=out_dim) for name in MODELS]


def describe_model(name: str, *, in_dim: int = 1024, out_dim: int = 2) -> ModelEntry:
    """One aggregator; arguments as of :func:`list_models`.

    Raises:
        ConfigError: there is no such model, or a width makes no sense.
    """
    for what, value in (("the width of an embedding", in_dim), ("the number of classes", out_dim)):
        if not 1 <= value <= _MOST_WIDE:
            raise ConfigError(f"{what} must be from 1 to {_MOST_WIDE}, got {value}")
    if name not in MODELS:
        raise ConfigError(f"model '{name}' is unknown; {nearest(name, list(MODELS))}")
    found = model_class({"name": name})
    parameters, problem = _count(name, in_dim, out_dim)
    options = tuple(_option(key, field) for key, field in found.config_class.model_fields.items() if key != "name")
    return ModelEntry(name, **asdict(found.about), parameters=parameters, problem=problem, options=options)


def _count(name: str, in_dim: int, out_dim: int) -> tuple[int | None, str]:
    """Trained parameters, counted without their memory; or why there are none."""
    try:
        with torch.device("meta"):
            model = build_model({"name": name}, in_dim=in_dim, out_dim=out_dim)
    except ModelError as error:
        return None, str(error)
    return sum(parameter.numel() for parameter in model.parameters()), ""


def _option(name: str, field: FieldInfo) -> ModelOption:
    return ModelOption(name, field.default, _values(field), field.description or "")


def _values(field: FieldInfo) -> str:
    """What an option may be: its words, or its type with its bounds."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(map(str, get_args(field.annotation)))
    if field.annotation is bool:
        return "true, false"
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "multiple of"}
    bounds = [f"{sign} {getattr(m, key):g}" for m in field.metadata for key, sign in signs.items() if hasattr(m, key)]
    return ", ".join([getattr(field.annotation, "__name__", str(field.annotation)), *bounds])
