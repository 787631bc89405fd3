"""The 2D selective scan as a float64 loop over cells: the reference every implementation is held to.

Cells (i, j), batch b, channel e of dim, state n. Forward::

    Δ = softplus(delta + delta_bias), softplus only where asked     a = exp(Δ · A[e,n])     x = Δ · B[i,j,n] · u[i,j,e]
    g[i,j] = a[i,j] · g[i,j-1] + x[i,j]       left to right, zero before the first column
    h[i,j] = a[i,j] · h[i-1,j] + g[i,j]       top to bottom, zero above the first row
    y[i,j,e] = Σ_n C[i,j,n] · h[i,j,e,n] + D[e] · u[i,j,e]          out = y · silu(z) where z is given

Backward, with q = ∂L/∂y::

    P[i,j] = C · q + a[i+1,j] · P[i+1,j]      ∂L/∂h, bottom to top
    Q[i,j] = P[i,j] + a[i,j+1] · Q[i,j+1]     ∂L/∂g = ∂L/∂x, right to left
    ∂L/∂a  = P[i,j] · h[i-1,j] + Q[i,j] · g[i,j-1]

NumPy only and written from the equations: it shares no code with what it checks, and it is not meant to be fast.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScanGradients:
    """∂L/∂argument, each in the shape of its argument; None where the argument was not given."""

    u: Array
    delta: Array
    A: Array
    B: Array
    C: Array
    D: Array | None
    z: Array | None
    delta_bias: Array | None


@dataclass(frozen=True)
class _States:
    """What the recurrences hold, `[batch, height, width, dim]` for step and `[..., dim, state]` for the others."""

    step: Array
    decay: Array
    row: Array
    cell: Array


def selective_scan_2d_oracle(
    u: ArrayLike,
    delta: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None = None,
    z: ArrayLike | None = None,
    delta_bias: ArrayLike | None = None,
    delta_softplus: bool = False,
) -> Array:
    """Forward scan; `u, delta, z` `[batch, height, width, dim]`, `A` `[dim, state]`, `B, C` `[batch, height, width,
    state]`, `D, delta_bias` `[dim]`. Returns float64 `[batch, height, width, dim]`."""
    states = _scan(_f64(u), _f64(delta), _f64(A), _f64(B), delta_bias, delta_softplus)
    y = _read_out(states, _f64(u), _f64(C), D)
    return y if z is None else y * _f64(z) * _sigmoid(_f64(z))


def selective_scan_2d_backward_oracle(
    grad_out: ArrayLike,
    u: ArrayLike,
    delta: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None = None,
    z: ArrayLike | None = None,
    delta_bias: ArrayLike | None = None,
    delta_softplus: bool = False,
) -> ScanGradients:
    """Every gradient of the scan for `grad_out` = ∂L/∂out `[batch, height, width, dim]`, by the P and Q recurrences."""
    q, u, delta, A, B, C = (_f64(array) for array in (grad_out, u, delta, A, B, C))
    states = _scan(u, delta, A, B, delta_bias, delta_softplus)
    step, decay, row, cell = states.step, states.decay, states.row, states.cell
    height, width = u.shape[1:3]

    grad_z = None
    if z is not None:
        z = _f64(z)
        sigmoid = _sigmoid(z)
        grad_z = q * _read_out(states, u, C, D) * sigmoid * (1 + z * (1 - sigmoid))
        q = q * z * sigmoid

    P, Q, grad_decay = np.zeros_like(cell), np.zeros_like(cell), np.zeros_like(cell)
    for i in reversed(range(height)):
        for j in reversed(range(width)):
            P[:, i, j] = C[:, i, j, None, :] * q[:, i, j, :, None]
            if i + 1 < height:
                P[:, i, j] += decay[:, i + 1, j] * P[:, i + 1, j]
            Q[:, i, j] = P[:, i, j]
            if j + 1 < width:
                Q[:, i, j] += decay[:, i, j + 1] * Q[:, i, j + 1]
            if i > 0:
                grad_decay[:, i, j] += P[:, i, j] * cell[:, i - 1, j]
            if j > 0:
                grad_decay[:, i, j] += Q[:, i, j] * row[:, i, j - 1]

    grad_exponent = grad_decay * decay  # ∂a/∂(Δ·A) = a
    grad_delta = (grad_exponent * A).sum(-1) + (Q * B[..., None, :]).sum(-1) * u
    if delta_softplus:
        grad_delta = grad_delta * _sigmoid(_biased(delta, delta_bias))
    grad_u = step * (Q * B[..., None, :]).sum(-1)
    return ScanGradients(
        u=grad_u if D is None else grad_u + _f64(D) * q,
        delta=grad_delta,
        A=(grad_exponent * step[..., None]).sum((0, 1, 2)),
        B=(Q * (step * u)[..., None]).sum(-2),
        C=(cell * q[..., None]).sum(-2),
        D=None if D is None else (q * u).sum((0, 1, 2)),
        z=grad_z,
        delta_bias=None if delta_bias is None else grad_delta.sum((0, 1, 2)),
    )


def _scan(u: Array, delta: Array, A: Array, B: Array, delta_bias: ArrayLike | None, delta_softplus: bool) -> _States:
    step = _biased(delta, delta_bias)
    if delta_softplus:
        step = np.logaddexp(0.0, step)
    decay = np.exp(step[..., None] * A)
    x = step[..., None] * B[..., None, :] * u[..., None]
    row, cell = np.zeros_like(x), np.zeros_like(x)
    for i in range(u.shape[1]):
        for j in range(u.shape[2]):
            row[:, i, j] = x[:, i, j]
            if j > 0:
                row[:, i, j] += decay[:, i, j] * row[:, i, j - 1]
            cell[:, i, j] = row[:, i, j]
            if i > 0:
                cell[:, i, j] += decay[:, i, j] * cell[:, i - 1, j]
    return _States(step, decay, row, cell)


def _read_out(states: _States, u: Array, C: Array, D: ArrayLike | None) -> Array:
    y: Array = (C[..., None, :] * states.cell).sum(-1)
    return y if D is None else y + _f64(D) * u


def _biased(delta: Array, delta_bias: ArrayLike | None) -> Array:
    return delta if delta_bias is None else delta + _f64(delta_bias)


def _sigmoid(value: Array) -> Array:
    # exp(-softplus(-v)) keeps its relative accuracy far into the negative tail, where 1 / (1 + exp(-v)) overflows
    sigmoid: Array = np.exp(-np.logaddexp(0.0, -value))
    return sigmoid


def _f64(array: ArrayLike) -> Array:
    return np.asarray(array, dtype=np.float64)
