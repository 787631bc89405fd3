"""Both scans as loops in plain PyTorch: slow, on any device, in any floating dtype.

The equations stand in :mod:`wsi2d.kernels.scan2d`. This module needs torch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

STATES_AT_ONCE = 2**23  # cells × channels × states that may be held at once: 32 MiB of float32 a buffer

Tensors = Sequence[Tensor | None]
Forward = Callable[..., Tensor]
Backward = Callable[..., list[Tensor | None]]


# --- selective scan ------------------------------------------------------------------------------------------------


def selective(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, softplus: bool,
) -> Tensor:  # fmt: skip
    """The two recurrences as loops over columns, then rows, vectorised over the rest."""
    step = _step(delta, delta_bias, softplus)
    h = _selective_states(step, u, A, B)[2]
    y = torch.stack([(row @ c.unsqueeze(-1)).squeeze(-1) for row, c in zip(h, C.unbind(1), strict=True)], 1)
    if D is not None:
        y = y + D * u
    return y if z is None else y * functional.silu(z)


def selective_backward(
    grad_out: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, softplus: bool,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of all arguments but the last, with P = ∂L/∂h from bottom to top and Q = ∂L/∂g from right to left::

    P[i,j] = C · q + a[i+1,j] · P[i+1,j]        Q[i,j] = P[i,j] + a[i,j+1] · Q[i,j+1]
    ∂L/∂a = P[i,j] · h[i−1,j] + Q[i,j] · g[i,j−1]
    """
    step = _step(delta, delta_bias, softplus)
    a, g, rows = _selective_states(step, u, A, B)
    h = torch.stack(rows, 1)
    q, grad_z = grad_out, None
    if z is not None:
        y = (h @ C.unsqueeze(-1)).squeeze(-1) + (0 if D is None else D * u)
        sigmoid = torch.sigmoid(z)
        q, grad_z = grad_out * z * sigmoid, grad_out * y * sigmoid * (1 + z * (1 - sigmoid))
    P = torch.stack(_reverse_recurrence(a.unbind(1), (q.unsqueeze(-1) * C.unsqueeze(-2)).unbind(1)), 1)
    Q = torch.stack(_reverse_recurrence(a.unbind(2), P.unbind(2)), 2)
    from_a = torch.zeros_like(a)
    from_a[:, 1:] += P[:, 1:] * h[:, :-1]
    from_a[:, :, 1:] += Q[:, :, 1:] * g[:, :, :-1]
    from_exponent = from_a.mul_(a)
    from_drive = (Q @ B.unsqueeze(-1)).squeeze(-1)
    grad_step = (from_exponent * A).sum(-1) + from_drive * u
    if softplus:
        grad_step = grad_step * torch.sigmoid(delta if delta_bias is None else delta + delta_bias)
    return [
        step * from_drive + (0 if D is None else D * q),
        grad_step,
        (from_exponent * step.unsqueeze(-1)).sum((0, 1, 2)),
        ((step * u).unsqueeze(-2) @ Q).squeeze(-2),
        (q.unsqueeze(-2) @ h).squeeze(-2),
        None if D is None else (q * u).sum((0, 1, 2)),
        grad_z,
        None if delta_bias is None else grad_step.sum((0, 1, 2)),
    ]


def _step(delta: Tensor, delta_bias: Tensor | None, softplus: bool) -> Tensor:
    if delta_bias is not None:
        delta = delta + delta_bias
    return torch.logaddexp(delta, torch.zeros_like(delta)) if softplus else delta  # torch's softplus is cut at 20


def _selective_states(step: Tensor, u: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """a and g of all cells, and h of each row."""
    a = torch.exp(step.unsqueeze(-1) * A)
    x = (step * u).unsqueeze(-1) * B.unsqueeze(-2)
    g = torch.stack(_recurrence(a.unbind(2), x.unbind(2)), 2)
    return a, g, _recurrence(a.unbind(1), g.unbind(1))


def _recurrence(a: Sequence[Tensor], x: Sequence[Tensor]) -> list[Tensor]:
    """h[t] = a[t] · h[t−1] + x[t], with nothing before the first."""
    states = [x[0]]
    for a_t, x_t in zip(a[1:], x[1:], strict=True):
        states.append(torch.addcmul(x_t, a_t, states[-1]))
    return states


def _reverse_recurrence(a: Sequence[Tensor], x: Sequence[Tensor]) -> list[Tensor]:
    """p[t] = a[t+1] · p[t+1] + x[t], with nothing after the last."""
    states = [x[-1]]
    for a_t, x_t in zip(a[:0:-1], x[-2::-1], strict=True):
        states.append(torch.addcmul(x_t, a_t, states[-1]))
    return states[::-1]


# --- wavefront scan ------------------------------------------------------------------------------------------------


def wavefront(
    x: Tensor, delta_t: Tensor, delta_l: Tensor, A_t: Tensor, A_l: Tensor,
    B_t: Tensor, B_l: Tensor, C: Tensor, D: Tensor | None,
) -> Tensor:  # fmt: skip
    """A loop over anti-diagonals, whose cells do not depend on each other."""
    sheared = _Sheared(x, (delta_t, delta_l), (A_t, A_l), (B_t, B_l))
    outputs, parts, h = C.flatten(1, 2), [], None
    for d, at in enumerate(sheared.at):
        _, h = sheared.states(d, h)
        parts.append((h @ outputs[:, at].unsqueeze(-1)).squeeze(-1))
    cells = torch.arange(x.shape[1] * x.shape[2], device=x.device)
    order = torch.cat([cells[at] for at in sheared.at])
    y = torch.cat(parts, 1)[:, order.argsort()].reshape(x.shape)
    return y if D is None else y + D * x


def wavefront_backward(
    grad_out: Tensor, x: Tensor, delta_t: Tensor, delta_l: Tensor, A_t: Tensor, A_l: Tensor,
    B_t: Tensor, B_l: Tensor, C: Tensor, D: Tensor | None,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of all arguments, with R = w · ∂L/∂h from the last anti-diagonal to the first::

        R[i,j] = w[i,j] · (C · q + aT[i+1,j] · R[i+1,j] + aL[i,j+1] · R[i,j+1])

    w = ½ inside, 1 on the first row and column. What comes from above plays no part in the first row, what comes from
    the left none in the first column below (0, 0).
    """
    sheared = _Sheared(x, (delta_t, delta_l), (A_t, A_l), (B_t, B_l))
    states: list[tuple[list[Tensor], Tensor]] = []
    for d in range(len(sheared.at)):
        states.append(sheared.states(d, states[-1][1] if states else None))
    grads_out, outputs = grad_out.flatten(1, 2), C.flatten(1, 2)
    grad_x, *grad_steps = (torch.empty_like(grads_out) for _ in range(3))
    grad_C, *grad_B = (torch.empty_like(outputs) for _ in range(3))
    grad_A = [torch.zeros_like(A_t), torch.zeros_like(A_l)]
    sent: list[Tensor] = []  # aT · R and aL · R of the diagonal after
    for d in range(len(states) - 1, -1, -1):
        at, (decays, h) = sheared.at[d], states[d]
        q, x_d = grads_out[:, at], sheared.x[:, at]
        R = q.unsqueeze(-1) * outputs[:, at].unsqueeze(-2)
        if sent:
            first, last = sheared.rows[d]
            top = sheared.rows[d + 1][0]
            R = R + _rows(sent[0], top - 1, first, last) + _rows(sent[1], top, first, last)
        R = R * sheared.weight[at]
        before = sheared.before(d, states[d - 1][1]) if d else [torch.zeros_like(h)] * 2
        grad_C[:, at] = (q.unsqueeze(-2) @ h).squeeze(-2)
        grad_x[:, at] = torch.zeros_like(q) if D is None else D * q
        sent = []
        for k, (a, neighbour) in enumerate(zip(decays, before, strict=True)):
            step, inactive = sheared.steps[k][:, at], ~sheared.active[k][at]
            sent.append((a * R).masked_fill(inactive.unsqueeze(-1), 0.0))
            from_exponent = sent[k] * neighbour
            from_drive = (R @ sheared.B[k][:, at].unsqueeze(-1)).squeeze(-1)
            grad_x[:, at] += step * from_drive
            grad_A[k] += (from_exponent * step.unsqueeze(-1)).sum((0, 1))
            grad_step = (from_exponent * sheared.A[k]).sum(-1) + from_drive * x_d
            grad_steps[k][:, at] = grad_step.masked_fill(inactive, 0.0)
            grad_B[k][:, at] = ((step * x_d).unsqueeze(-2) @ R).squeeze(-2).masked_fill(inactive, 0.0)
    return [
        *(gradient.reshape(x.shape) for gradient in (grad_x, *grad_steps)),
        *grad_A,
        *(gradient.reshape(C.shape) for gradient in (*grad_B, grad_C)),
        None if D is None else (grad_out * x).sum((0, 1, 2)),
    ]


class _Sheared:
    """A wavefront scan cut into anti-diagonals; pairs are of what comes from above, then from the left.

    Attributes:
        x, steps, B: with the cells of the grid in one axis; zero where a direction plays no part, so that not even
            what is not finite there does.
        at: the cells of each diagonal, its rows from top to bottom.
        rows: the first and the last of them.
        weight: ½ inside, 1 on the first row and column, ``[cells, 1, 1]``.
        active: where a direction plays a part, ``[cells, 1]``.
    """

    def __init__(self, x: Tensor, steps: Sequence[Tensor], A: Sequence[Tensor], B: Sequence[Tensor]) -> None:
        _, height, width, _ = x.shape
        row = torch.arange(height, device=x.device).repeat_interleave(width).unsqueeze(-1)
        column = torch.arange(width, device=x.device).repeat(height).unsqueeze(-1)
        self.active = (row > 0, (column > 0) | (row == 0))
        self.weight = torch.where((row > 0) & (column > 0), 0.5, 1.0).to(x.dtype).unsqueeze(-1)
        self.x, self.A = x.flatten(1, 2), A
        self.steps = [t.flatten(1, 2).masked_fill(~on, 0.0) for t, on in zip(steps, self.active, strict=True)]
        self.B = [t.flatten(1, 2).masked_fill(~on, 0.0) for t, on in zip(B, self.active, strict=True)]
        self.rows = [(max(0, d - width + 1), min(height - 1, d)) for d in range(height + width - 1)]
        apart = max(width - 1, 1)
        starts = [first * width + d - first for d, (first, _) in enumerate(self.rows)]
        self.at = [
            slice(start, start + (last - first) * apart + 1, apart)
            for start, (first, last) in zip(starts, self.rows, strict=True)
        ]

    def states(self, d: int, previous: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """aT and aL of a diagonal, and its h, from the h of the one before: ``[batch, cells, dim, state]``."""
        at = self.at[d]
        decays = [torch.exp(t[:, at].unsqueeze(-1) * A) for t, A in zip(self.steps, self.A, strict=True)]
        drives = ((t[:, at] * self.x[:, at]).unsqueeze(-1) * B[:, at].unsqueeze(-2)
                  for t, B in zip(self.steps, self.B, strict=True))  # fmt: skip
        h = torch.add(*drives)
        if previous is not None:
            for a, neighbour in zip(decays, self.before(d, previous), strict=True):
                h = torch.addcmul(h, a, neighbour)
        return decays, h * self.weight[at]

    def before(self, d: int, previous: Tensor) -> list[Tensor]:
        """h above the cells of a diagonal and to their left, from the diagonal before; zeros outside the grid."""
        (first, last), top = self.rows[d], self.rows[d - 1][0]
        return [_rows(previous, top, first - 1, last - 1), _rows(previous, top, first, last)]


def _rows(states: Tensor, top: int, first: int, last: int) -> Tensor:
    """Rows ``first`` to ``last`` of states that begin at row ``top``; zeros where there are none."""
    bottom = top + states.shape[1] - 1
    kept = states[:, max(first, top) - top : max(min(last, bottom) - top + 1, 0)]
    missing = max(top - first, 0), max(last - bottom, 0)
    return functional.pad(kept, (0, 0, 0, 0, *missing)) if any(missing) else kept


# --- channel blocks ------------------------------------------------------------------------------------------------


def forward(loop: Forward, kinds: str, tensors: Tensors, *options: object) -> Tensor:
    """A loop over as many channels at once as their states fit.

    Args:
        kinds: of each tensor: ``c`` with channels last, ``s`` with states last, ``p`` with channels first.
        tensors: what the loop takes, in its order; half precisions are computed in float32.
    """
    wide = [None if t is None else _wide(t) for t in tensors]
    parts = [loop(*_cut(kinds, wide, channels), *options) for channels in _channel_blocks(kinds, wide)]
    first = wide[0]
    assert first is not None
    return torch.cat(parts, -1) if parts else torch.zeros_like(first)


def backward(loop: Backward, kinds: str, grad_out: Tensor, tensors: Tensors, *options: object) -> list[Tensor | None]:
    """Gradients of a loop's tensors, a block of channels at a time; None where there is no tensor. Of half precisions
    in float32."""
    wide = [None if t is None else _wide(t) for t in tensors]
    gradients = [None if t is None else torch.zeros_like(t, memory_format=torch.contiguous_format) for t in wide]
    for channels in _channel_blocks(kinds, wide):
        parts = loop(_wide(grad_out)[..., channels], *_cut(kinds, wide, channels), *options)
        for part, total in zip(parts, _cut(kinds, gradients, channels), strict=True):
            if part is not None and total is not None:
                total += part
    return gradients


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _channel_blocks(kinds: str, tensors: Tensors) -> list[slice]:
    """Blocks of channels whose states may be held at once; none for an empty grid."""
    first, A = tensors[0], tensors[kinds.index("p")]
    assert first is not None
    assert A is not None
    if not first.numel():
        return []
    dim, state = A.shape
    block = max(1, STATES_AT_ONCE // (first.numel() // dim * state))
    return [slice(start, min(start + block, dim)) for start in range(0, dim, block)]


def _cut(kinds: str, tensors: Tensors, channels: slice) -> list[Tensor | None]:
    """Views of some channels."""
    return [
        t if t is None or kind == "s" else t[..., channels] if kind == "c" else t[channels]
        for kind, t in zip(kinds, tensors, strict=True)
    ]
