"""Batches through an encoder: in order, on a CPU as on a GPU, where nothing is overwritten before it is used."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from wsi2d.features.encoders import Encoder, get_encoder
from wsi2d.features.feeding import encode_batches


def batches(sizes: list[int]) -> Iterator[np.ndarray]:
    """Batches in one piece of memory, each overwritten by the next, as readers do it."""
    memory = np.empty((max(sizes), 64, 64, 3), np.uint8)
    for number, size in enumerate(sizes):
        memory[:] = 255 - number
        memory[:size] = np.random.default_rng(number).integers(0, 256, (size, 64, 64, 3), np.uint8)
        yield memory[:size]


SIZES = [5, 8, 8, 3, 8, 1]


def alone(encoder: Encoder) -> list[np.ndarray]:
    return [encoder.encode(torch.from_numpy(batch.copy())).cpu().numpy() for batch in batches(SIZES)]


def test_in_order_on_a_cpu() -> None:
    encoder = get_encoder("histology-stats")
    found = list(encode_batches(encoder, batches(SIZES), torch.device("cpu")))
    assert [len(f) for f in found] == SIZES
    assert all(np.array_equal(a, b) for a, b in zip(found, alone(encoder), strict=True))


def test_no_batches_are_no_embeddings() -> None:
    assert list(encode_batches(get_encoder("histology-stats"), iter(()), torch.device("cpu"))) == []


@pytest.mark.gpu
def test_in_order_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    device = torch.device("cuda")
    encoder = get_encoder("histology-stats").to(device)
    for _ in range(5):  # a race would not be lost every time
        found = list(encode_batches(encoder, batches(SIZES * 4), device))
        expected = [encoder.encode(torch.from_numpy(b.copy()).to(device)).cpu().numpy() for b in batches(SIZES * 4)]
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


class Deferring:
    """Notes when it begins and when it looks; the second batch's embeddings are no numbers until it has looked."""

    name, dim, fingerprint, min_patch_px, store_dtype = "deferring", 1, "f", 1, "float32"

    def __init__(self) -> None:
        self.said: list[str] = []

    def to(self, device: torch.device) -> "Deferring":
        return self

    def encode(self, patches: torch.Tensor) -> torch.Tensor:
        raise AssertionError("it would wait")

    def begin(self, patches: torch.Tensor) -> torch.Tensor:
        self.said.append(f"begin {len(patches)}")
        features = patches.float().mean((1, 2, 3))[:, None]
        return features * float("nan") if len(patches) == SIZES[1] else features

    def settle(self, features: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        self.said.append(f"settle {len(patches)}")
        return patches.float().mean((1, 2, 3))[:, None] if features.isnan().any() else features


class Anything:
    """Stands for a stream, an event, or what enters one."""

    def __init__(self, *_: object) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...
    def synchronize(self) -> None: ...
    def record(self, stream: object) -> None: ...
    def wait_event(self, event: object) -> None: ...


def test_a_gpu_has_its_next_batch_before_the_last_ones_embeddings_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a GPU would be asked for, in order, where there is none."""
    for name in ("device", "Stream", "current_stream", "Event", "stream"):
        monkeypatch.setattr(torch.cuda, name, Anything)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **kind: empty(*shape, **kind))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor.clone())
    encoder, device = Deferring(), type("Device", (), {"type": "cuda"})()
    found = list(encode_batches(encoder, batches(SIZES[:4]), device))
    assert encoder.said == [
        "begin 5", "begin 8", "settle 5", "begin 8", "settle 8", "begin 3", "settle 8", "settle 3",
    ]  # fmt: skip
    expected = [batch.astype(np.float32).mean((1, 2, 3))[:, None] for batch in batches(SIZES[:4])]
    assert all(np.allclose(a, b) for a, b in zip(found, expected, strict=True))
