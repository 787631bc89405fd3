"""An encoder made of a network: preprocessing, the network, its output as float32."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from wsi2d.errors import ConfigError, ModelError
from wsi2d.features.encoders.catalogue import Precision
from wsi2d.features.encoders.packages import one_error
from wsi2d.features.encoders.preprocess import Preprocess
from wsi2d.features.encoders.protocol import check_patches

_VERSION = 1
_MIN_PATCH_PX = 16
_LARGEST_STORED = torch.finfo(torch.float16).max


class NetworkEncoder:
    """A patch encoder around a network; see :class:`~wsi2d.features.encoders.protocol.Encoder` for its attributes.

    Args:
        name: recorded with the features.
        network: from pixels float32 ``[batch, 3, side, side]`` to embeddings ``[batch, dim]``.
        dim: width of an embedding.
        preprocess: from patches to pixels.
        fingerprint: of weights, network and preprocessing (:func:`fingerprint`).
        precision: of autocast on a GPU. A CPU computes in float32.
    """

    min_patch_px = _MIN_PATCH_PX
    store_dtype = "float16"

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        dim: int,
        preprocess: Preprocess,
        fingerprint: str,
        precision: Precision = "float32",
    ) -> None:
        self.name, self.dim, self.fingerprint = name, dim, fingerprint
        self.preprocess, self.precision = preprocess, precision
        self._network = network.float().eval().requires_grad_(False)
        self._device = torch.device("cpu")

    def to(self, device: torch.device) -> NetworkEncoder:
        """Move to a device; returns itself."""
        with self._fits(f"its network does not fit into the memory of {device}; use another device"):
            self._network.to(device)
        self._device = device
        return self

    def encode(self, patches: Tensor) -> Tensor:
        """Embeddings float32 ``[batch, dim]`` of square patches uint8 ``[batch, side, side, 3]`` (RGB).

        Raises:
            ConfigError: the patches are something else, too small, or too many for the device's memory.
            ModelError: an embedding has values that are no numbers, or are too large to be kept.
        """
        return self.settle(self.begin(patches), patches)

    @torch.inference_mode()
    def begin(self, patches: Tensor) -> Tensor:
        """Embeddings that are not looked at: a GPU is given the work, and not waited for. :meth:`settle` looks.

        Raises:
            ConfigError: as :meth:`encode`.
        """
        check_patches(self.name, patches, self.min_patch_px)
        if not len(patches):
            return torch.empty(0, self.dim)
        return self._run(self.preprocess(patches.to(self._device)), self._autocast_dtype())

    @torch.inference_mode()
    def settle(self, features: Tensor, patches: Tensor) -> Tensor:
        """The embeddings of :meth:`begin`, or those in float32 where half precision could not hold them.

        Args:
            features: of :meth:`begin`, on its device or fetched from it.
            patches: of which they are.

        Raises:
            ConfigError, ModelError: as :meth:`encode`.
        """
        if _storable(features):
            return features
        if self._autocast_dtype() is not None:
            features = self._run(self.preprocess(patches.to(self._device)), None)  # half precision has a small range
        if not _storable(features):
            raise ModelError(
                f"encoder '{self.name}': gives values that are no numbers or too large to be kept; its weights are "
                "damaged or belong to another network"
            )
        return features

    def _run(self, pixels: Tensor, dtype: torch.dtype | None) -> Tensor:
        few = f"{len(pixels)} patches at once do not fit into the memory of {self._device}; give a smaller --batch-size"
        with self._fits(few), torch.autocast(self._device.type, dtype, enabled=dtype is not None):
            features: Tensor = self._network(pixels)
        return features.float()

    @contextmanager
    def _fits(self, otherwise: str) -> Iterator[None]:
        """Within it, a GPU whose memory is not enough is an error of one line."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise ConfigError(f"encoder '{self.name}': {otherwise}") from error

    def _autocast_dtype(self) -> torch.dtype | None:
        """That of the model's card on a GPU that has it, else None for float32."""
        if self._device.type != "cuda" or self.precision == "float32":
            return None
        if self.precision == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return None
        return torch.float16 if self.precision == "float16" else torch.bfloat16


def _storable(features: Tensor) -> bool:
    return bool((features.abs() <= _LARGEST_STORED).all())


def fingerprint(weights: str, preprocess: Preprocess, network: Mapping[str, Any]) -> str:
    """What features of one encoder share: a hash of the weights' hash, the preprocessing and the network's definition.

    Args:
        weights: hash of the weights' content.
        preprocess: from patches to pixels.
        network: what else decides the numbers, as JSON values.
    """
    definition = {"version": _VERSION, "weights": weights, "preprocess": asdict(preprocess), "network": dict(network)}
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:16]


@torch.inference_mode()
def probe_width(name: str, network: nn.Module, side_px: int) -> int:
    """Width of a network's embeddings, found by running it once.

    Raises:
        ModelError: it does not take such input, or gives something else than one row a patch.
    """
    network = network.float().eval()
    with one_error(ModelError, f"encoder '{name}': does not take patches of {side_px} px"):
        features = network(torch.zeros(1, 3, side_px, side_px))
    if not isinstance(features, Tensor) or features.ndim != 2 or not features.shape[1]:
        raise ModelError(f"encoder '{name}': does not give one row of numbers a patch; it is no patch encoder")
    return int(features.shape[1])
