"""Patch encoders by name, with those of foundation models, or from a path. See ``docs/encoders.md``."""

from __future__ import annotations

from collections.abc import Callable

from wsi2d.features.encoders.protocol import Encoder as Encoder
from wsi2d.registry import load

# Those without weights. A new one is a file with its class, and a line here; one with weights is an entry in
# catalogue.py.
ENCODERS: dict[str, str] = {
    "histology-stats": "wsi2d.features.histology_stats:HistologyStats",
}


def get_encoder(name: str) -> Encoder:
    """Build an encoder.

    Args:
        name: one of ``ENCODERS`` or of the catalogue (``uni``), ``timm:MODEL``, ``hf:OWNER/NAME``, the path of a folder
            or of a file of weights, or ``NAME=PATH`` for a named one whose weights lie there.

    Raises:
        ConfigError: no encoder has that name, or a package that it needs is missing.
        ModelError: its weights are not here and cannot be had, are damaged, or belong to another network.
    """
    if name in ENCODERS:
        factory: Callable[[], Encoder] = load(ENCODERS, name, f"encoder '{name}':")
        return factory()
    from wsi2d.features.encoders.pretrained import load_pretrained

    return load_pretrained(name)


def has_name(recorded: str) -> bool:
    """Whether the name that is recorded with features is enough to build their encoder again; that of a path is not."""
    from wsi2d.features.encoders.catalogue import CATALOGUE

    return recorded in ENCODERS or recorded in CATALOGUE or recorded.startswith(("timm:", "hf:"))
