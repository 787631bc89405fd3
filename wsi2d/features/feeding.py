"""Batches of patches through an encoder, so that it waits for nothing it need not wait for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from wsi2d.features.encoders import Encoder
from wsi2d.features.encoders.protocol import DeferringEncoder

Features = Generator[np.ndarray, None, None]


def encode_batches(encoder: Encoder, batches: Iterable[np.ndarray], device: torch.device) -> Features:
    """Embeddings of batches, in order.

    On a GPU a batch is copied from pinned memory while the one before it is encoded, and the embeddings of a batch are
    fetched while the next is, where the encoder does not wait for them itself (:class:`DeferringEncoder`). Mixed
    precision is the encoder's own affair.

    Args:
        encoder: on the device.
        batches: uint8 ``[n, height, width, 3]``; each may be overwritten once the next is asked for.
        device: of the encoder.

    Yields:
        float32 ``[n, D]``, memory of its own.
    """
    if device.type == "cuda":
        yield from _on_gpu(encoder, batches, device)
        return
    for batch in batches:
        yield encoder.encode(torch.from_numpy(batch)).cpu().numpy()


@dataclass
class _Staging:
    """Pinned memory of one batch on its way to the GPU, and the moment from which it may be filled again."""

    patches: Tensor
    copied: torch.cuda.Event

    @classmethod
    def like(cls, batch: np.ndarray) -> _Staging:
        return cls(torch.empty(batch.shape, dtype=torch.uint8, pin_memory=True), torch.cuda.Event())


@dataclass(frozen=True)
class _OnTheWay:
    """Embeddings that are being fetched, the moment when they are there, and how they are looked at then."""

    features: Tensor
    there: torch.cuda.Event
    settle: Callable[[Tensor], Tensor]

    def get(self) -> np.ndarray:
        self.there.synchronize()
        return self.settle(self.features).cpu().numpy()


def _on_gpu(encoder: Encoder, batches: Iterable[np.ndarray], device: torch.device) -> Features:
    """Two staging areas take turns; the GPU has its next batch before the last one's embeddings are waited for."""
    with torch.cuda.device(device):
        copying, computing = torch.cuda.Stream(), torch.cuda.current_stream()
        staging: list[_Staging] = []
        before: _OnTheWay | None = None
        for number, batch in enumerate(batches):
            if len(staging) < 2:
                staging.append(_Staging.like(batch))
            area = staging[number % 2]
            if len(area.patches) < len(batch):
                area = staging[number % 2] = _Staging.like(batch)
            area.copied.synchronize()
            area.patches[: len(batch)].copy_(torch.from_numpy(batch))
            with torch.cuda.stream(copying):
                patches = area.patches[: len(batch)].to(device, non_blocking=True)
                area.copied.record(copying)
            computing.wait_event(area.copied)
            patches.record_stream(computing)
            after = _begin(encoder, patches, computing)
            if before is not None:
                yield before.get()
            before = after
        if before is not None:
            yield before.get()


def _begin(encoder: Encoder, patches: Tensor, computing: torch.cuda.Stream) -> _OnTheWay:
    """Begin to encode patches and to fetch their embeddings; an encoder may have them on the CPU already."""
    settle: Callable[[Tensor], Tensor] = _as_they_are
    if isinstance(encoder, DeferringEncoder):
        features, settle = encoder.begin(patches), partial(encoder.settle, patches=patches)
    else:
        features = encoder.encode(patches)
    there = torch.cuda.Event()
    if features.is_cuda:
        pinned = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
        features = pinned.copy_(features, non_blocking=True)
    there.record(computing)
    return _OnTheWay(features, there, settle)


def _as_they_are(features: Tensor) -> Tensor:
    return features
