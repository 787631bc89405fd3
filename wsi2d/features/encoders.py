"""Patch encoders by name. A new one is a file with its class, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from wsi2d.registry import load


class Encoder(Protocol):
    """Turns patches into embeddings.

    Attributes:
        name: under which it is registered and recorded with the features.
        dim: width of an embedding.
        fingerprint: changes whenever the numbers it gives may change (a hash of weights or of a definition).
        min_patch_px: smallest side it accepts, px.
        store_dtype: ``float16`` or ``float32``, how its embeddings are kept on disk.
    """

    name: str
    dim: int
    fingerprint: str
    min_patch_px: int
    store_dtype: str

    def encode(self, patches: torch.Tensor) -> torch.Tensor:
        """Embeddings float32 ``[batch, dim]`` of patches uint8 ``[batch, height, width, 3]`` (RGB).

        The batch may be empty, of no patches at all, and gives ``[0, dim]``.
        """
        ...

    def to(self, device: torch.device) -> Encoder:
        """Move to a device; returns itself."""
        ...


ENCODERS: dict[str, str] = {
    "histology-stats": "wsi2d.features.histology_stats:HistologyStats",
}


def get_encoder(name: str) -> Encoder:
    """Build an encoder by its registered name.

    Raises:
        ConfigError: no encoder has that name.
    """
    factory: Callable[[], Encoder] = load(ENCODERS, name, f"encoder '{name}':")
    return factory()
