"""What can be chosen by name: a registry says for each name where its class is, and loads no other."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from wsi2d.config import nearest
from wsi2d.errors import ConfigError


def load(registry: Mapping[str, str], name: str, what: str) -> Any:
    """Import the class that a name stands for.

    Args:
        registry: ``module:Class`` by name.
        name: one of them.
        what: begins the error's line, as ``encoder 'x':``; the word ``unknown`` and a hint follow.

    Raises:
        ConfigError: the registry has no such name.
    """
    if name not in registry:
        raise ConfigError(f"{what} unknown; {nearest(name, list(registry))}")
    module, _, attribute = registry[name].partition(":")
    return getattr(import_module(module), attribute)
