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
