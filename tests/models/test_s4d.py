"""The diagonal state-space layer against its recurrence, step by step; its kernel at any length."""

from types import ModuleType

import numpy as np
import pytest
import torch

from wsi2d.models.s4d import S4DKernel, S4DLayer


def make_layer(dim: int = 3, state: int = 6, seed: int = 0) -> S4DLayer:
    torch.manual_seed(seed)
    layer = S4DLayer(dim, state, 0.001, 0.1).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 9, 10, 16, 17, 63, 65])
def test_layer_equals_its_recurrence(loops: ModuleType, length: int) -> None:
    layer = make_layer()
    sequence = torch.randn(2, length, 3, dtype=torch.float64)
    found = layer(sequence).detach().numpy()
    for k in range(2):
        first, second = np.split(loops.linear(layer.out_proj, loops.gelu(loops.s4d(layer, sequence[k].numpy()))), 2, -1)
        np.testing.assert_allclose(found[k], first / (1 + np.exp(-second)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 7, 100, 1000])
def test_kernel_equals_its_sum(length: int) -> None:
    """K(l) = 2 Re Σ C (exp(Δ A) − 1) / A · exp(Δ A l), for each l by itself."""
    kernel = make_layer(state=8).kernel
    found = kernel(length).detach().numpy()
    A = -np.exp(kernel.real_A_log.detach().numpy()) + 1j * kernel.A_imag.detach().numpy()
    C = kernel.C.detach().numpy() @ np.array([1, 1j])
    step = np.exp(kernel.log_dt.detach().numpy())[:, None] * A
    for place in {0, length // 2, length - 1}:
        expected = 2 * (C * (np.exp(step) - 1) / A * np.exp(step * place)).sum(-1).real
        np.testing.assert_allclose(found[:, place], expected, rtol=1e-9, atol=1e-13)
    assert found.shape == (3, length)


def test_kernel_of_a_whole_slide_in_single_precision() -> None:
    """100,000 places: as in double, up to what the angles of its waves lose."""
    torch.manual_seed(0)
    kernel = S4DKernel(16, 32, 0.001, 0.1)
    with torch.no_grad():
        single = kernel(100_000)
        double = kernel.double()(100_000)
    assert torch.isfinite(single).all()
    assert float((single - double).square().mean().sqrt() / double.square().mean().sqrt()) < 1e-5


def test_starting_values() -> None:
    """S4D-Lin: real parts −½, imaginary parts π n; C of variance 1; Δ log-uniform in its range."""
    torch.manual_seed(0)
    kernel = S4DKernel(4096, 16, 0.01, 0.2).requires_grad_(False)
    assert kernel.real_A_log.shape == (4096, 8)
    torch.testing.assert_close(-torch.exp(kernel.real_A_log), torch.full((4096, 8), -0.5))
    torch.testing.assert_close(kernel.A_imag, torch.pi * torch.arange(8.0).expand(4096, 8))
    assert float(kernel.C.square().sum(-1).mean()) == pytest.approx(1, abs=0.03)
    places = (kernel.log_dt - np.log(0.01)) / (np.log(0.2) - np.log(0.01))
    assert 0 <= float(places.min()) < 0.01 < 0.99 < float(places.max()) <= 1
    assert float(places.mean()) == pytest.approx(0.5, abs=0.02)


def test_gradients_are_those_of_the_recurrence() -> None:
    """By finite differences, through the kernel and the Fourier transform."""
    layer = make_layer(dim=2, state=4)
    sequence = torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (sequence,))
    names = [name for name, _ in layer.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in layer.parameters())

    def of_parameters(*given: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.func.functional_call(
            layer, dict(zip(names, given, strict=True)), (sequence.detach(),)
        )
        return out

    assert torch.autograd.gradcheck(of_parameters, values)
