"""The encoder around a network: what it takes and gives, when it refuses, what its fingerprint depends on."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wsi2d.errors import ConfigError, ModelError
from wsi2d.features.encoders.network import NetworkEncoder, fingerprint, probe_width
from wsi2d.features.encoders.preprocess import Preprocess

PREPROCESS = Preprocess(32, 32, mean=(0, 0, 0), sd=(1, 1, 1))


class Means(nn.Module):
    """The mean of each colour, with a weight."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float16))
        self.dropout = nn.Dropout(0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        means: Tensor = self.dropout(pixels.mean((2, 3)) * self.factor)
        return means


def encoder(network: nn.Module, **options: Any) -> NetworkEncoder:
    return NetworkEncoder("means", network, dim=3, preprocess=PREPROCESS, fingerprint="f", **options)


def patches(*shape: int, value: int = 255) -> Tensor:
    return torch.full(shape, value, dtype=torch.uint8)


def test_embeddings_of_patches() -> None:
    made = encoder(Means(0.5)).to(torch.device("cpu"))
    features = made.encode(patches(4, 32, 32, 3))
    assert features.dtype == torch.float32
    assert torch.equal(features, torch.full((4, 3), 0.5)), "in evaluation, in float32, half-precision weights too"
    assert made.encode(patches(0, 32, 32, 3)).shape == (0, 3)
    assert made.store_dtype == "float16"


def test_what_is_no_patches() -> None:
    made = encoder(Means())
    for wrong in (torch.zeros(1, 32, 32, 3), patches(1, 3, 32, 32), patches(32, 32, 3)):
        with pytest.raises(ConfigError, match="means: patches must be uint8"):
            made.encode(wrong)
    with pytest.raises(ConfigError, match="means: patch_px must be at least 16, got 8"):
        made.encode(patches(1, 8, 8, 3))
    with pytest.raises(ConfigError, match="must be square"):
        made.encode(patches(1, 32, 64, 3))


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 65504.0 * 2])
def test_embeddings_that_are_no_numbers_or_cannot_be_kept(factor: float) -> None:
    network = Means()
    network.factor.data = torch.tensor(factor)
    with pytest.raises(ModelError, match="encoder 'means': gives values that are no numbers or too large"):
        encoder(network).encode(patches(1, 32, 32, 3))


def test_a_gpu_without_enough_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    made = encoder(Means())

    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(Means, "forward", full)
    with pytest.raises(
        ConfigError, match=r"encoder 'means': 5 patches at once do not fit .* give a smaller --batch-size"
    ):
        made.encode(patches(5, 32, 32, 3))
    monkeypatch.setattr(Means, "to", full)
    with pytest.raises(ConfigError, match="encoder 'means': its network does not fit into the memory of cuda:0"):
        made.to(torch.device("cuda:0"))


def test_a_cpu_computes_in_float32() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exact = encoder(linear).encode(pixels)
    assert torch.equal(exact, encoder(linear, precision="float16").encode(pixels))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_gpu_computes_as_the_card_says(precision: Any) -> None:
    """Half precision is used (it differs) and is near."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 64), nn.GELU(), nn.Linear(64, 3))
    pixels = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8)
    exact = encoder(network).encode(pixels)
    half = encoder(network, precision=precision).to(torch.device("cuda")).encode(pixels)
    assert half.dtype == torch.float32
    error = (half.cpu() - exact).norm() / exact.norm()
    assert 1e-6 < error < 2e-2


@pytest.mark.gpu
def test_what_half_precision_cannot_hold_is_computed_in_float32() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            with torch.no_grad():
                self.up.weight.copy_(torch.eye(3) * 1e6)
                self.down.weight.copy_(torch.eye(3) * 1e-6)

        def forward(self, pixels: Tensor) -> Tensor:
            result: Tensor = self.down(self.up(pixels.mean((2, 3))))
            return result

    features = encoder(Large(), precision="float16").to(torch.device("cuda")).encode(patches(2, 32, 32, 3))
    assert torch.allclose(features.cpu(), torch.ones(2, 3), rtol=1e-4)


def test_the_fingerprint_is_of_weights_preprocessing_and_network() -> None:
    first = fingerprint("a" * 64, PREPROCESS, {"head": "class"})
    assert first == fingerprint("a" * 64, Preprocess(32, 32, mean=(0, 0, 0), sd=(1, 1, 1)), {"head": "class"})
    others = {
        fingerprint("b" * 64, PREPROCESS, {"head": "class"}),
        fingerprint("a" * 64, PREPROCESS, {"head": "pooled"}),
        *(
            fingerprint("a" * 64, changed, {"head": "class"})
            for changed in (
                Preprocess(64, 64, mean=(0, 0, 0), sd=(1, 1, 1)),
                Preprocess(64, 32, 16, mean=(0, 0, 0), sd=(1, 1, 1)),
                Preprocess(64, 32, 15, mean=(0, 0, 0), sd=(1, 1, 1)),
                Preprocess(32, 32, mean=(0, 0, 0.1), sd=(1, 1, 1)),
                Preprocess(32, 32, mean=(0, 0, 0), sd=(1, 1, 0.9)),
                Preprocess(32, 32, mean=(0, 0, 0), sd=(1, 1, 1), interpolation="bilinear"),
            )
        ),
    }
    assert len(others | {first}) == 9
    assert len(first) == 16


def test_the_width_is_found_by_running_it() -> None:
    assert probe_width("x", nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 7)), 32) == 7
    with pytest.raises(ModelError, match="encoder 'x': does not take patches of 16 px"):
        probe_width("x", nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 7)), 16)
    with pytest.raises(ModelError, match="does not give one row of numbers a patch"):
        probe_width("x", nn.Conv2d(3, 4, 1), 32)


def test_nothing_waits_for_the_device_until_embeddings_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a look at a tensor's values nor numbers moved to the device, beyond the first batch."""
    made = NetworkEncoder("means", Means(), dim=3, preprocess=Preprocess(48, 32, 8), fingerprint="f")
    batch = patches(4, 32, 32, 3, value=200)
    expected = made.encode(batch)

    def waits(*_: object, **__: object) -> None:
        raise AssertionError("the device is waited for")

    with monkeypatch.context() as watched:
        watched.setattr(torch, "tensor", waits)
        for name in ("__bool__", "item", "cpu", "tolist"):
            watched.setattr(Tensor, name, waits)
        features = made.begin(batch)
        with pytest.raises(AssertionError, match="waited for"):
            made.settle(features, batch)
    assert torch.equal(made.settle(features, batch), expected)


def test_what_half_precision_could_not_hold_is_found_when_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    made, batch = encoder(Means()), patches(2, 32, 32, 3)
    monkeypatch.setattr(made, "_autocast_dtype", lambda: torch.bfloat16)
    run = made._run
    monkeypatch.setattr(made, "_run", lambda pixels, dtype: run(pixels, None) / (dtype is None))
    features = made.begin(batch)
    assert not torch.isfinite(features).any()
    assert torch.equal(made.settle(features, batch), torch.ones(2, 3))
    monkeypatch.setattr(made, "_autocast_dtype", lambda: None)
    with pytest.raises(ModelError, match="gives values that are no numbers or too large"):
        made.settle(features, batch)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_a_gpu_is_not_waited_for(precision: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    made = NetworkEncoder(
        "means", Means(), dim=3, preprocess=Preprocess(48, 32, 8), fingerprint="f", precision=precision
    ).to(device)
    batch = patches(4, 32, 32, 3, value=200).to(device)
    expected = made.encode(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        features = made.begin(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(made.settle(features.cpu(), batch), expected.cpu())
