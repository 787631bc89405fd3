"""Aggregators by name. A new one is a file with its class and configuration, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsi2d.config import Strict, validate
from wsi2d.errors import ConfigError
from wsi2d.models.aggregator import Aggregator
from wsi2d.registry import load

MODELS: dict[str, str] = {
    "mamba2d-mil": "wsi2d.models.mamba2d_mil:Mamba2DMIL",
    "abmil": "wsi2d.models.abmil:ABMIL",
}


def model_config(section: Mapping[str, Any], *, source: str = "model") -> Strict:
    """Validate a configuration's ``model`` section: ``name`` and that model's options.

    Raises:
        ConfigError: unknown model or option.
    """
    return validate(_model_class(section, source).config_class, section, source=source)


def build_model(section: Mapping[str, Any], *, in_dim: int, out_dim: int) -> Aggregator:
    """Build an aggregator: called with a :class:`~wsi2d.data.bags.BagBatch`, it returns a
    :class:`~wsi2d.models.output.ModelOutput`.

    Args:
        section: ``name`` and options, as in a configuration.
        in_dim: width of a patch embedding.
        out_dim: number of logits (classes, or discrete-time bins).

    Raises:
        ConfigError: unknown model or option.
    """
    return _model_class(section, "model")(model_config(section), in_dim, out_dim)


def _model_class(section: Mapping[str, Any], source: str) -> type[Aggregator]:
    if section.get("name") is None:
        raise ConfigError(f"config {source}: name: missing; there are {', '.join(MODELS)}")
    name = str(section["name"])
    found: type[Aggregator] = load(MODELS, name, f"config {source}: model '{name}' is")
    return found
