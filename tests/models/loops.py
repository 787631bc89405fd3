"""Oracles of the model tests: layers as loops over cells, in numpy and float64, written from the equations.

They share nothing with the library but the parameters' names.
"""

import math

import numpy as np
from torch import Tensor, nn


def array(tensor: Tensor) -> np.ndarray:
    """Its numbers."""
    return tensor.detach().numpy()


def silu(x: np.ndarray) -> np.ndarray:
    """x · sigmoid(x)."""
    return x / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    """x · Φ(x)."""
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def softplus(x: np.ndarray) -> np.ndarray:
    """log(1 + exp x)."""
    return np.log1p(np.exp(x))


def linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    """A layer over the last axis."""
    out = x @ array(layer.weight).T
    return out if layer.bias is None else out + array(layer.bias)


def layer_norm(layer: nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    """LayerNorm over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + layer.eps) * array(layer.weight) + array(layer.bias)


def near_cells(weight: np.ndarray, bias: np.ndarray | float, u: np.ndarray) -> np.ndarray:
    """Depthwise 3×3 cross-correlation of ``[rows, cols, dim]`` with ``[dim, 3, 3]``; zeros outside."""
    rows, cols, _ = u.shape
    out = np.zeros_like(u) + bias
    for i in range(rows):
        for j in range(cols):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < rows and 0 <= j + dj < cols:
                        out[i, j] += weight[:, di + 1, dj + 1] * u[i + di, j + dj]
    return out


def cells_before(weight: np.ndarray, bias: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Depthwise causal convolution of ``[length, dim]`` with ``[dim, 4]``: a place and the three before it."""
    out = np.zeros_like(u) + bias
    for t in range(len(u)):
        for back in range(min(3, t) + 1):
            out[t] += weight[:, 3 - back] * u[t - back]
    return out


def selective_scan(parameters: nn.Module, u: np.ndarray) -> np.ndarray:
    """2DMamba's scan of ``[rows, cols, inner]`` with Δ, B and C from its input; on one row it is Mamba's.

    g[i,j] = a · g[i,j−1] + Δ B u, h[i,j] = a · h[i−1,j] + g[i,j], y = C h + D u, a = exp(Δ A).
    """
    rows, cols, inner = u.shape
    A, D = -np.exp(array(parameters.A_log)), array(parameters.D)
    state = A.shape[1]
    projected = linear(parameters.x_proj, u)
    rank = projected.shape[-1] - 2 * state
    delta = softplus(projected[..., :rank] @ array(parameters.dt_weight).T + array(parameters.dt_bias))
    B, C = projected[..., rank : rank + state], projected[..., rank + state :]
    h, out = np.zeros((rows, cols, inner, state)), np.zeros_like(u)
    for i in range(rows):
        g = np.zeros((inner, state))
        for j in range(cols):
            a = np.exp(delta[i, j][:, None] * A)
            g = a * g + (delta[i, j] * u[i, j])[:, None] * B[i, j]
            h[i, j] = g + (a * h[i - 1, j] if i else 0)
            out[i, j] = h[i, j] @ C[i, j] + D * u[i, j]
    return out


def wavefront_scan(parameters: nn.Module, x: np.ndarray) -> np.ndarray:
    """Mamba2D's scan of ``[rows, cols, inner]`` with Δ, B and C from its input.

    Inside h = ½ (aT · h above + ΔT BT x + aL · h left + ΔL BL x); on the first row only what comes from the left, on
    the first column only what comes from above, whole; y = C h + D x.
    """
    rows, cols, inner = x.shape
    A_t, A_l = (-np.exp(array(side.A_log)) for side in (parameters.above, parameters.left))
    state = A_t.shape[1]
    projected = linear(parameters.x_proj, x)
    rank = (projected.shape[-1] - 3 * state) // 2
    ends = np.cumsum([rank, rank, state, state])
    low_t, low_l, B_t, B_l, C = np.split(projected, ends, -1)
    delta_t, delta_l = (
        softplus(low @ array(side.dt_weight).T + array(side.dt_bias))
        for low, side in ((low_t, parameters.above), (low_l, parameters.left))
    )
    h, out = np.zeros((rows, cols, inner, state)), np.zeros_like(x)
    for i in range(rows):
        for j in range(cols):
            step_t, step_l = delta_t[i, j][:, None], delta_l[i, j][:, None]
            from_above = np.exp(step_t * A_t) * (h[i - 1, j] if i else 0) + step_t * B_t[i, j] * x[i, j][:, None]
            from_left = np.exp(step_l * A_l) * (h[i, j - 1] if j else 0) + step_l * B_l[i, j] * x[i, j][:, None]
            if i and j:
                h[i, j] = (from_above + from_left) / 2
            else:
                h[i, j] = from_above if i else from_left
            out[i, j] = h[i, j] @ C[i, j] + array(parameters.D) * x[i, j]
    return out


def s4d(layer: nn.Module, u: np.ndarray) -> np.ndarray:
    """S4D's recurrence along ``[length, dim]``, step by step, before what mixes the channels.

    x(t) = exp(Δ A) x(t − 1) + (exp(Δ A) − 1) / A · u(t), y(t) = 2 Re Σ C x(t) + D u(t), over half of the states.
    """
    kernel = layer.kernel
    A = -np.exp(array(kernel.real_A_log)) + 1j * array(kernel.A_imag)
    C = array(kernel.C)[..., 0] + 1j * array(kernel.C)[..., 1]
    delta = np.exp(array(kernel.log_dt))[:, None]
    decay, drive = np.exp(delta * A), (np.exp(delta * A) - 1) / A
    state, out = np.zeros_like(A), np.zeros_like(u)
    for t in range(len(u)):
        state = decay * state + drive * u[t][:, None]
        out[t] = 2 * (C * state).sum(-1).real + array(layer.D) * u[t]
    return out
