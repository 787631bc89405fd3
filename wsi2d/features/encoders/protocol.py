"""What every patch encoder keeps to."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from wsi2d.errors import ConfigError


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


@runtime_checkable
class DeferringEncoder(Encoder, Protocol):
    """An encoder that looks at its embeddings only when they have been fetched, so that a GPU is never waited for while
    it could be given its next batch."""

    def begin(self, patches: torch.Tensor) -> torch.Tensor:
        """As :meth:`encode`, of a batch that is not empty, but what comes is not looked at and may be no numbers."""
        ...

    def settle(self, features: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """What :meth:`encode` gives, of what :meth:`begin` gave for the same patches, wherever that has been moved."""
        ...


def check_patches(name: str, patches: torch.Tensor, min_patch_px: int) -> None:
    """Refuse what no encoder takes: anything but uint8 ``[batch, height, width, 3]``, or too small a patch.

    Args:
        name: of the encoder; begins the error's line.
        patches: the batch.
        min_patch_px: smallest side, px.

    Raises:
        ConfigError: the patches are not uint8 RGB, or too small.
    """
    if patches.dtype != torch.uint8 or patches.ndim != 4 or patches.shape[-1] != 3:
        raise ConfigError(
            f"{name}: patches must be uint8 [batch, height, width, 3], got {patches.dtype} {list(patches.shape)}"
        )
    if min(patches.shape[1:3]) < min_patch_px:
        raise ConfigError(f"{name}: patch_px must be at least {min_patch_px}, got {min(patches.shape[1:3])}")
