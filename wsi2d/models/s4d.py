"""A diagonal state-space layer (S4D) along sequences, computed as one long convolution by FFT.

For each channel h, with complex states n = 0 … N/2 − 1 (the other half are their conjugates)::

    A_n = −exp(log_A_real) + i · A_imag        K(l) = 2 Re Σ_n C_n · (exp(Δ A_n) − 1) / A_n · exp(Δ A_n l)
    y(t) = Σ_{l ≤ t} K(l) · u(t − l) + D · u(t)

which is the recurrence x(t) = exp(Δ A) x(t − 1) + (exp(Δ A) − 1) / A · u(t), y = 2 Re(C x) + D u, from x(−1) = 0. A and
C do not depend on the input, unlike Mamba's.

Source: A. Gu, A. Gupta, K. Goel, C. Ré, "On the Parameterization and Initialization of Diagonal State Space Models",
NeurIPS 2022 (S4D-Lin, zero-order hold).
"""

from __future__ import annotations

import math

import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn
from torch.nn import functional


class S4DKernel(nn.Module):
    """The kernel K of each channel.

    Args:
        dim: channels.
        state: states a channel, N; even.
        dt_min, dt_max: Δ starts log-uniform between them.
    """

    def __init__(self, dim: int, state: int, dt_min: float, dt_max: float) -> None:
        super().__init__()
        pairs = state // 2
        self.log_dt = nn.Parameter(torch.rand(dim) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min))
        self.C = nn.Parameter(torch.randn(dim, pairs, 2) * 0.5**0.5)  # real and imaginary part, together of variance 1
        self.real_A_log = nn.Parameter(torch.full((dim, pairs), math.log(0.5)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(pairs, dtype=torch.float32).repeat(dim, 1))

    def forward(self, length: int) -> Tensor:
        """K at 0 … length − 1, ``[dim, length]``.

        With l = a · s + b, s near √length, K is a product of two small matrices a channel, so that memory is that of
        the result and never of result × states.
        """
        A = torch.complex(-torch.exp(self.real_A_log), self.A_imag)
        step = A * torch.exp(self.log_dt).unsqueeze(-1)
        weight = torch.view_as_complex(self.C) * _expm1(step) / A
        side = math.isqrt(length - 1) + 1
        ticks = torch.arange(side, device=A.device, dtype=self.log_dt.dtype)
        coarse = weight.unsqueeze(1) * torch.exp(step.unsqueeze(1) * (side * ticks).unsqueeze(-1))  # [dim, a, n]
        fine = torch.exp(step.unsqueeze(-1) * ticks)  # [dim, n, b]
        kernel = coarse.real @ fine.real - coarse.imag @ fine.imag
        return 2 * kernel.flatten(1)[:, :length]


class S4DLayer(nn.Module):
    """S4D, GELU, and a gated linear layer over the channels.

    Args:
        dim: width of the sequences ``[batch, length, dim]``.
        state, dt_min, dt_max: as of :class:`S4DKernel`.
    """

    def __init__(self, dim: int, state: int, dt_min: float, dt_max: float) -> None:
        super().__init__()
        self.kernel = S4DKernel(dim, state, dt_min, dt_max)
        self.D = nn.Parameter(torch.randn(dim))
        self.out_proj = nn.Linear(dim, 2 * dim)

    def forward(self, sequence: Tensor) -> Tensor:
        """``[batch, length, dim]``; each place sees those before it alone."""
        length = sequence.shape[1]
        size = next_fast_len(2 * length - 1, real=True)
        spectrum = torch.fft.rfft(sequence.transpose(1, 2), size) * torch.fft.rfft(self.kernel(length), size)
        seen = torch.fft.irfft(spectrum, size)[..., :length].transpose(1, 2) + self.D * sequence
        mixed: Tensor = self.out_proj(functional.gelu(seen))
        return functional.glu(mixed, -1)


def _expm1(z: Tensor) -> Tensor:
    """exp(z) − 1 of complex numbers, exact near 0: e^a cos b − 1 = expm1(a) cos b − 2 sin²(b/2)."""
    a, b = z.real, z.imag
    real = torch.expm1(a) * torch.cos(b) - 2 * torch.sin(b / 2).square()
    return torch.complex(real, torch.exp(a) * torch.sin(b))
