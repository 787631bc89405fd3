"""The 2D scans as float64 loops over cells: the reference every implementation is held to.

Cells (i, j), batch b, channel e of dim, state n. The selective scan, forward::

    Δ = softplus(delta + delta_bias), softplus only where asked     a = exp(Δ · A[e,n])     x = Δ · B[i,j,n] · u[i,j,e]
    g[i,j] = a[i,j] · g[i,j-1] + x[i,j]       left to right, zero before the first column
    h[i,j] = a[i,j] · h[i-1,j] + g[i,j]       top to bottom, zero above the first row
    y[i,j,e] = Σ_n C[i,j,n] · h[i,j,e,n] + D[e] · u[i,j,e]          out = y · silu(z) where z is given

Backward, with q = ∂L/∂y::

    P[i,j] = C · q + a[i+1,j] · P[i+1,j]      ∂L/∂h, bottom to top
    Q[i,j] = P[i,j] + a[i,j+1] · Q[i,j+1]     ∂L/∂g = ∂L/∂x, right to left
    ∂L/∂a  = P[i,j] · h[i-1,j] + Q[i,j] · g[i,j-1]

The wavefront scan has a decay and a drive from the top and others from the left, and averages the two; forward::

    aT = exp(Δt · A_t[e,n])     xT = Δt · B_t[i,j,n] · x[i,j,e]     aL, xL likewise
    h[i,j] = ½ · (aT[i,j] · h[i-1,j] + xT[i,j] + aL[i,j] · h[i,j-1] + xL[i,j])
    h[0,j] = aL[0,j] · h[0,j-1] + xL[0,j]     h[i,0] = aT[i,0] · h[i-1,0] + xT[i,0]     h[0,0] = xL[0,0]
    y[i,j,e] = Σ_n C[i,j,n] · h[i,j,e,n] + D[e] · x[i,j,e]

Backward, with w = ½ inside and 1 on the first row and column::

    R[i,j] = C · q + w[i+1,j] · aT[i+1,j] · R[i+1,j] + w[i,j+1] · aL[i,j+1] · R[i,j+1]     ∂L/∂h
    ∂L/∂xT = w · R where i > 0                   ∂L/∂aT = ∂L/∂xT · h[i-1,j]
    ∂L/∂xL = w · R where j > 0, and at (0,0)     ∂L/∂aL = ∂L/∂xL · h[i,j-1]

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
class WavefrontGradients:
    """∂L/∂argument, each in the shape of its argument; None for `D` where it was not given."""

    x: Array
    delta_t: Array
    delta_l: Array
    A_t: Array
    A_l: Array
    B_t: Array
    B_l: Array
    C: Array
    D: Array | None


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


def wavefront_scan_2d_oracle(
    x: ArrayLike,
    delta_t: ArrayLike,
    delta_l: ArrayLike,
    A_t: ArrayLike,
    A_l: ArrayLike,
    B_t: ArrayLike,
    B_l: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None = None,
) -> Array:
    """Forward scan; `x, delta_t, delta_l` `[batch, height, width, dim]`, `A_t, A_l` `[dim, state]`, `B_t, B_l, C`
    `[batch, height, width, state]`, `D` `[dim]`. Returns float64 `[batch, height, width, dim]`."""
    x, delta_t, delta_l, A_t, A_l, B_t, B_l = (_f64(v) for v in (x, delta_t, delta_l, A_t, A_l, B_t, B_l))
    states = _wavefront(x, delta_t, delta_l, A_t, A_l, B_t, B_l)
    y: Array = (_f64(C)[..., None, :] * states).sum(-1)
    return y if D is None else y + _f64(D) * x


def wavefront_scan_2d_backward_oracle(
    grad_out: ArrayLike,
    x: ArrayLike,
    delta_t: ArrayLike,
    delta_l: ArrayLike,
    A_t: ArrayLike,
    A_l: ArrayLike,
    B_t: ArrayLike,
    B_l: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None = None,
) -> WavefrontGradients:
    """Every gradient of the wavefront scan for `grad_out` = ∂L/∂out `[batch, height, width, dim]`, by R."""
    q, x, delta_t, delta_l = (_f64(value) for value in (grad_out, x, delta_t, delta_l))
    A_t, A_l, B_t, B_l, C = (_f64(value) for value in (A_t, A_l, B_t, B_l, C))
    states = _wavefront(x, delta_t, delta_l, A_t, A_l, B_t, B_l)
    decay_t, decay_l = np.exp(delta_t[..., None] * A_t), np.exp(delta_l[..., None] * A_l)
    height, width = x.shape[1:3]

    R, grad_drive_t, grad_drive_l = np.zeros_like(states), np.zeros_like(states), np.zeros_like(states)
    grad_decay_t, grad_decay_l = np.zeros_like(states), np.zeros_like(states)
    for i in reversed(range(height)):
        for j in reversed(range(width)):
            R[:, i, j] = C[:, i, j, None, :] * q[:, i, j, :, None]
            if i + 1 < height:
                R[:, i, j] += _weight(i + 1, j) * decay_t[:, i + 1, j] * R[:, i + 1, j]
            if j + 1 < width:
                R[:, i, j] += _weight(i, j + 1) * decay_l[:, i, j + 1] * R[:, i, j + 1]
            if i > 0:
                grad_drive_t[:, i, j] = _weight(i, j) * R[:, i, j]
                grad_decay_t[:, i, j] = grad_drive_t[:, i, j] * states[:, i - 1, j]
            if j > 0:
                grad_drive_l[:, i, j] = _weight(i, j) * R[:, i, j]
                grad_decay_l[:, i, j] = grad_drive_l[:, i, j] * states[:, i, j - 1]
    grad_drive_l[:, 0, 0] = R[:, 0, 0]

    grad_exponent_t, grad_exponent_l = grad_decay_t * decay_t, grad_decay_l * decay_l  # ∂a/∂(Δ·A) = a
    along_t, along_l = (grad_drive_t * B_t[..., None, :]).sum(-1), (grad_drive_l * B_l[..., None, :]).sum(-1)
    grad_x = along_t * delta_t + along_l * delta_l
    return WavefrontGradients(
        x=grad_x if D is None else grad_x + _f64(D) * q,
        delta_t=(grad_exponent_t * A_t).sum(-1) + along_t * x,
        delta_l=(grad_exponent_l * A_l).sum(-1) + along_l * x,
        A_t=(grad_exponent_t * delta_t[..., None]).sum((0, 1, 2)),
        A_l=(grad_exponent_l * delta_l[..., None]).sum((0, 1, 2)),
        B_t=(grad_drive_t * (delta_t * x)[..., None]).sum(-2),
        B_l=(grad_drive_l * (delta_l * x)[..., None]).sum(-2),
        C=(states * q[..., None]).sum(-2),
        D=None if D is None else (q * x).sum((0, 1, 2)),
    )


def _wavefront(x: Array, delta_t: Array, delta_l: Array, A_t: Array, A_l: Array, B_t: Array, B_l: Array) -> Array:
    """h `[batch, height, width, dim, state]`."""
    decay_t, decay_l = np.exp(delta_t[..., None] * A_t), np.exp(delta_l[..., None] * A_l)
    drive_t, drive_l = (delta_t * x)[..., None] * B_t[..., None, :], (delta_l * x)[..., None] * B_l[..., None, :]
    states = np.zeros_like(drive_t)
    states[:, 0, 0] = drive_l[:, 0, 0]
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            if i > 0:
                states[:, i, j] += _weight(i, j) * (decay_t[:, i, j] * states[:, i - 1, j] + drive_t[:, i, j])
            if j > 0:
                states[:, i, j] += _weight(i, j) * (decay_l[:, i, j] * states[:, i, j - 1] + drive_l[:, i, j])
    return states


def _weight(i: int, j: int) -> float:
    return 0.5 if i > 0 and j > 0 else 1.0


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
