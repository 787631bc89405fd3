"""The 2D selective scan of 2DMamba, in plain PyTorch.

Over cells (i, j) of a grid, for each channel e and state n, with Δ = softplus(delta + delta_bias) where asked::

    a = exp(Δ · A[e,n])        x = Δ · B[i,j,n] · u[i,j,e]
    g[i,j] = a[i,j] · g[i,j−1] + x[i,j]        along each row, left to right
    h[i,j] = a[i,j] · h[i−1,j] + g[i,j]        down each column, top to bottom
    y[i,j,e] = Σ_n C[i,j,n] · h[i,j,e,n] + D[e] · u[i,j,e]        out = y · silu(z) where z is given

On a grid of one row it is Mamba's 1D selective scan.

Source: J. Zhang et al., "2DMamba: Efficient State Space Model for Image Representation with Applications on
Giga-Pixel Whole Slide Image Classification", CVPR 2025 (the two passes of its 2D selective scan); A. Gu and T. Dao,
"Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023.

This module needs torch alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

_HALF = (torch.float16, torch.bfloat16)
_STATES_AT_ONCE = 2**23  # cells × channels × states that may be held at once: 32 MiB of float32 a buffer


class _Arguments(NamedTuple):
    """The tensors of a scan, as :func:`selective_scan_2d` describes them."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None


def available_backends() -> tuple[str, ...]:
    """Names that ``backend`` may take here."""
    return ("torch",)


def selective_scan_2d(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    """2D selective scan: along every row, then down every column (equations at the top of this module).

    Args:
        u: input ``[batch, height, width, dim]``, float16, bfloat16, float32 or float64. Half precisions are computed
            in float32 inside.
        delta: step sizes, as ``u``.
        A: state matrix ``[dim, state]``, usually negative.
        B, C: input and output projections ``[batch, height, width, state]``.
        D: skip ``[dim]``.
        z: gate, as ``u``.
        delta_bias: added to ``delta`` before the softplus, ``[dim]``.
        delta_softplus: whether ``delta`` goes through a softplus.
        backend: ``torch``, or None for the best there is.

    Returns:
        ``[batch, height, width, dim]`` in the dtype of ``u``. Every tensor argument gets a gradient.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit, or the backend is not there.
    """
    if backend is not None and backend not in available_backends():
        raise ValueError(f"backend is '{backend}', it should be one of {', '.join(available_backends())}")
    arguments = _Arguments(u, delta, A, B, C, D, z, delta_bias)
    _check(arguments)
    dtype = torch.float32 if u.dtype in _HALF else u.dtype
    required = (t.to(dtype) for t in (u, delta, A, B, C))
    optional = (None if t is None else t.to(dtype) for t in (D, z, delta_bias))
    wide = _Arguments(*required, *optional)
    return _scan_in_channel_blocks(wide, delta_softplus).to(u.dtype)


def _scan_in_channel_blocks(arguments: _Arguments, delta_softplus: bool) -> Tensor:
    """Channels are independent: where all states at once would not fit, take some at a time and keep none of them.

    The backward then scans a block again instead of remembering its states, which costs one forward.
    """
    u, delta, A, B, C, D, z, delta_bias = arguments
    dim, cells = A.shape[0], u.shape[0] * u.shape[1] * u.shape[2]
    block = max(1, _STATES_AT_ONCE // max(1, cells * A.shape[1]))
    if block >= dim:
        return _scan_torch(arguments, delta_softplus)
    parts = []
    for channels in torch.arange(dim).split(block):
        cut = slice(int(channels[0]), int(channels[-1]) + 1)
        optional = (None if t is None else t[..., cut] for t in (D, z, delta_bias))
        part = _Arguments(u[..., cut], delta[..., cut], A[cut], B, C, *optional)
        parts.append(checkpoint(_scan_torch, part, delta_softplus, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(parts, -1)


def _scan_torch(arguments: _Arguments, delta_softplus: bool) -> Tensor:
    """The two recurrences as loops over columns, then rows, vectorised over the rest."""
    u, delta, A, B, C, D, z, delta_bias = arguments
    if u.numel() == 0:
        return torch.zeros_like(u) + _anchor(*arguments)
    if delta_bias is not None:
        delta = delta + delta_bias
    if delta_softplus:
        delta = functional.softplus(delta)
    a = torch.exp(delta.unsqueeze(-1) * A)
    x = (delta * u).unsqueeze(-1) * B.unsqueeze(-2)
    g = torch.stack(_recurrence(a.unbind(2), x.unbind(2)), 2)
    h = _recurrence(a.unbind(1), g.unbind(1))
    y = torch.stack([(row @ c.unsqueeze(-1)).squeeze(-1) for row, c in zip(h, C.unbind(1), strict=True)], 1)
    if u.shape[1] == u.shape[2] == 1:
        y = y + _anchor(A)
    if D is not None:
        y = y + D * u
    return y if z is None else y * functional.silu(z)


def _anchor(*tensors: Tensor | None) -> Tensor:
    """Zero, through which arguments that the result does not depend on get a gradient of zeros instead of none."""
    return torch.stack([t[:0].sum() for t in tensors if t is not None]).sum()


def _recurrence(a: tuple[Tensor, ...], x: tuple[Tensor, ...]) -> list[Tensor]:
    """h[t] = a[t] · h[t−1] + x[t], with nothing before the first."""
    states = [x[0]]
    for a_t, x_t in zip(a[1:], x[1:], strict=True):
        states.append(torch.addcmul(x_t, a_t, states[-1]))
    return states


def _check(arguments: _Arguments) -> None:
    u, delta, A, B, C, D, z, delta_bias = arguments
    if u.ndim != 4:
        raise ValueError(f"u is {list(u.shape)}, it should be [batch, height, width, dim]")
    if u.dtype not in (*_HALF, torch.float32, torch.float64):
        raise ValueError(f"u is {u.dtype}, it should be float16, bfloat16, float32 or float64")
    if A.ndim != 2 or A.shape[0] != u.shape[3]:
        raise ValueError(f"A is {list(A.shape)}, it should be [dim, state] = [{u.shape[3]}, state]")
    dim, cells = list(u.shape[3:]), [*u.shape[:3], A.shape[1]]
    expected = {
        "delta": (delta, list(u.shape)), "B": (B, cells), "C": (C, cells), "D": (D, dim),
        "z": (z, list(u.shape)), "delta_bias": (delta_bias, dim),
    }  # fmt: skip
    for name, (tensor, shape) in expected.items():
        if tensor is not None and list(tensor.shape) != shape:
            raise ValueError(f"{name} is {list(tensor.shape)}, it should be {shape}")
    for name, tensor in (("A", A), *((n, t) for n, (t, _) in expected.items())):
        if tensor is None:
            continue
        if tensor.device != u.device:
            raise ValueError(f"{name} is on {tensor.device}, it should be on {u.device} as u is")
        if not _compatible(tensor.dtype, u.dtype):
            raise ValueError(f"{name} is {tensor.dtype}, it should be {u.dtype} as u is")


def _compatible(dtype: torch.dtype, u: torch.dtype) -> bool:
    """Parameters may stay in float32 beside half-precision activations, as under autocast."""
    return dtype == u or (u in _HALF and dtype == torch.float32)
