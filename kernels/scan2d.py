"""The two 2D scans as PyTorch operators, on the fastest backend there is.

**2D selective scan** (2DMamba). Over cells (i, j) of a grid, for each channel e and state n, with
Δ = softplus(delta + delta_bias) where asked::

    a = exp(Δ · A[e,n])        x = Δ · B[i,j,n] · u[i,j,e]
    g[i,j] = a[i,j] · g[i,j−1] + x[i,j]        along each row, left to right
    h[i,j] = a[i,j] · h[i−1,j] + g[i,j]        down each column, top to bottom
    y[i,j,e] = Σ_n C[i,j,n] · h[i,j,e,n] + D[e] · u[i,j,e]        out = y · silu(z) where z is given

On a grid of one row it is Mamba's 1D selective scan.

**2D wavefront scan** (Mamba2D), with parameters T for what comes from above and L for what comes from the left::

    aT = exp(ΔT · AT)        aL = exp(ΔL · AL)
    inside         h[i,j] = ½ (aT · h[i−1,j] + ΔT · BT · x + aL · h[i,j−1] + ΔL · BL · x)
    first row      h[i,j] = aL · h[i,j−1] + ΔL · BL · x        with no state to the left of (0, 0)
    first column   h[i,j] = aT · h[i−1,j] + ΔT · BT · x        for i > 0
    y[i,j,e] = Σ_n C[i,j,n] · h[i,j,e,n] + D[e] · x[i,j,e]

No backend holds the states of all cells: forward and backward keep the inputs, and the backward computes the states
again, some channels at a time.

Source: J. Zhang et al., "2DMamba: Efficient State Space Model for Image Representation with Applications on
Giga-Pixel Whole Slide Image Classification", CVPR 2025 (the two passes of its 2D selective scan); E. Baty et al.,
"Mamba2D: A Natively Multi-Dimensional State-Space Model for Vision Tasks", 2024 (the wavefront); A. Gu and T. Dao,
"Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023.

This module needs torch alone; the backend ``native`` needs numba, ``triton`` needs triton.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from wsi2d.kernels import loops

BACKEND_VARIABLE = "WSI2D_SCAN_BACKEND"
_HALF = (torch.float16, torch.bfloat16)
_FLOATING = (*_HALF, torch.float32, torch.float64)

# The arguments in their order, and what each is: c `[batch, height, width, dim]`, s `[batch, height, width, state]`,
# p `[dim, state]` for the first ones and `[dim]` for the last.
_SELECTIVE = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias"), "ccpsspcp"
_WAVEFRONT = ("x", "delta_t", "delta_l", "A_t", "A_l", "B_t", "B_l", "C", "D"), "cccppsssp"
_VECTORS = ("D", "delta_bias")


# --- backends ------------------------------------------------------------------------------------------------------


def available_backends() -> tuple[str, ...]:
    """Names that ``backend`` may take here: ``torch``, ``native`` where numba is installed, and ``triton`` where triton
    is and a GPU or ``TRITON_INTERPRET=1``."""
    found = [name for name, there in (("native", _has_numba()), ("triton", _has_triton())) if there]
    return "torch", *found


def choose_backend(
    device: torch.device, dtype: torch.dtype, name: str | None = None, *, argument: str = "u"
) -> tuple[str, str]:
    """The backend that a call gets, and why.

    Args:
        device, dtype: of the tensors.
        name: what the caller asks for; None for the variable ``WSI2D_SCAN_BACKEND``, else the best one.
        argument: the tensor that an error names.

    Raises:
        ValueError: the backend is not there, or does not take these tensors.
    """
    asked_by, reason = "backend", "asked for"
    if name is None and dtype == torch.float64:
        return "torch", "the one for float64"
    if name is None and (name := os.environ.get(BACKEND_VARIABLE) or None) is not None:
        asked_by, reason = BACKEND_VARIABLE, f"{BACKEND_VARIABLE} is set"
    if name is None:
        return _best(device)
    if name not in available_backends():
        raise ValueError(f"{asked_by} is '{name}', it should be one of {', '.join(available_backends())}")
    if name != "torch" and dtype == torch.float64:
        raise ValueError(
            f"{argument} is float64, it should be float32 or half for {asked_by} '{name}'; or take 'torch'"
        )
    if name == "native" and device.type != "cpu":
        raise ValueError(f"{argument} is on {device}, it should be on the CPU for {asked_by} 'native'")
    if name == "triton" and device.type != "cuda" and not _interpreted():
        raise ValueError(f"{argument} is on {device}, it should be on a GPU for {asked_by} 'triton'")
    return name, reason


def _best(device: torch.device) -> tuple[str, str]:
    """The fastest backend for a device, and why."""
    if device.type == "cpu":
        return ("native", "the fastest on a CPU") if _has_numba() else ("torch", "`native` needs numba")
    if device.type == "cuda":
        return ("triton", "the fastest on a GPU") if _has_triton() else ("torch", "`triton` needs triton")
    return "torch", f"the one for {device.type}"


@cache
def _has_numba() -> bool:
    return find_spec("numba") is not None


def _has_triton() -> bool:
    return find_spec("triton") is not None and (_interpreted() or torch.cuda.is_available())


def _host(name: str) -> ModuleType:
    """What runs the scans of a backend that is not plain PyTorch."""
    return import_module("wsi2d.kernels.native.host" if name == "native" else "wsi2d.kernels.gpu.host")


def _interpreted() -> bool:
    """Whether Triton interprets kernels, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def _named(backend: str | None) -> str:
    """A backend as the operators take it; the empty string leaves the choice to them."""
    if backend == "":
        raise ValueError(f"backend is '', it should be one of {', '.join(available_backends())}")
    return backend or ""


# --- selective scan ------------------------------------------------------------------------------------------------


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
            in float32 inside; other arguments may be float32 beside them.
        delta: step sizes, as ``u``.
        A: state matrix ``[dim, state]``, usually negative.
        B, C: input and output projections ``[batch, height, width, state]``.
        D: skip ``[dim]``.
        z: gate, as ``u``.
        delta_bias: added to ``delta`` before the softplus, ``[dim]``.
        delta_softplus: whether ``delta`` goes through a softplus.
        backend: one of :func:`available_backends`; None for what ``WSI2D_SCAN_BACKEND`` names, else the best there
            is for the tensors.

    Returns:
        ``[batch, height, width, dim]`` in the dtype of ``u``. Every tensor argument gets a gradient. Under autocast
        the arguments that are not parameters are brought to the widest of their dtypes.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit, or the backend is not there.
        MemoryError: the result would not fit in memory.
    """
    tensors = _alike_under_autocast((u, delta, A, B, C, D, z, delta_bias), _SELECTIVE[1])
    _check(_SELECTIVE, tensors)
    out: Tensor = _selective(*tensors, delta_softplus, _named(backend))
    return out


@torch.library.custom_op("wsi2d::selective_scan_2d", mutates_args=())
def _selective(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    backend: str,
) -> Tensor:
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    name, _ = choose_backend(u.device, u.dtype, backend or None)
    _refuse_beyond_memory(tensors, 1)
    if name != "torch":
        out: Tensor = _host(name).selective_forward(*tensors, delta_softplus)
        return out.to(u.dtype)
    return loops.forward(loops.selective, _SELECTIVE[1], tensors, delta_softplus).to(u.dtype)


@torch.library.custom_op("wsi2d::selective_scan_2d_backward", mutates_args=())
def _selective_backward(
    grad_out: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    backend: str,
) -> list[Tensor]:
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    name, _ = choose_backend(u.device, u.dtype, backend or None)
    _refuse_beyond_memory(tensors, 3)
    if name != "torch":
        return _given(tensors, _host(name).selective_backward(grad_out, *tensors, delta_softplus))
    return _given(tensors, loops.backward(loops.selective_backward, _SELECTIVE[1], grad_out, tensors, delta_softplus))


# --- wavefront scan ------------------------------------------------------------------------------------------------


def wavefront_scan_2d(
    x: Tensor,
    delta_t: Tensor,
    delta_l: Tensor,
    A_t: Tensor,
    A_l: Tensor,
    B_t: Tensor,
    B_l: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """2D wavefront scan: each state from the one above and the one to its left (equations at the top of this module).

    Args:
        x: input ``[batch, height, width, dim]``, float16, bfloat16, float32 or float64. Half precisions are computed
            in float32 inside; other arguments may be float32 beside them.
        delta_t, delta_l: step sizes from above and from the left, as ``x``; taken as they are.
        A_t, A_l: state matrices ``[dim, state]``, usually negative.
        B_t, B_l, C: input and output projections ``[batch, height, width, state]``.
        D: skip ``[dim]``.
        backend: as for :func:`selective_scan_2d`.

    Returns:
        ``[batch, height, width, dim]`` in the dtype of ``x``. Every tensor argument gets a gradient, of zeros where
        it plays no part, as those from above do in the first row. Under autocast the arguments that are not
        parameters are brought to the widest of their dtypes.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit, or the backend is not there.
        MemoryError: the result would not fit in memory.
    """
    tensors = _alike_under_autocast((x, delta_t, delta_l, A_t, A_l, B_t, B_l, C, D), _WAVEFRONT[1])
    _check(_WAVEFRONT, tensors)
    out: Tensor = _wavefront(*tensors, _named(backend))
    return out


@torch.library.custom_op("wsi2d::wavefront_scan_2d", mutates_args=())
def _wavefront(
    x: Tensor,
    delta_t: Tensor,
    delta_l: Tensor,
    A_t: Tensor,
    A_l: Tensor,
    B_t: Tensor,
    B_l: Tensor,
    C: Tensor,
    D: Tensor | None,
    backend: str,
) -> Tensor:
    tensors = (x, delta_t, delta_l, A_t, A_l, B_t, B_l, C, D)
    name, _ = choose_backend(x.device, x.dtype, backend or None, argument="x")
    _refuse_beyond_memory(tensors, 1)
    if name != "torch":
        out: Tensor = _host(name).wavefront_forward(*tensors)
        return out.to(x.dtype)
    return loops.forward(loops.wavefront, _WAVEFRONT[1], tensors).to(x.dtype)


@torch.library.custom_op("wsi2d::wavefront_scan_2d_backward", mutates_args=())
def _wavefront_backward(
    grad_out: Tensor,
    x: Tensor,
    delta_t: Tensor,
    delta_l: Tensor,
    A_t: Tensor,
    A_l: Tensor,
    B_t: Tensor,
    B_l: Tensor,
    C: Tensor,
    D: Tensor | None,
    backend: str,
) -> list[Tensor]:
    tensors = (x, delta_t, delta_l, A_t, A_l, B_t, B_l, C, D)
    name, _ = choose_backend(x.device, x.dtype, backend or None, argument="x")
    _refuse_beyond_memory(tensors, 3)
    if name != "torch":
        return _given(tensors, _host(name).wavefront_backward(grad_out, *tensors))
    return _given(tensors, loops.backward(loops.wavefront_backward, _WAVEFRONT[1], grad_out, tensors))


# --- shapes without values ---------------------------------------------------------------------------------------


def _fake_output(first: Tensor, *others: object) -> Tensor:
    """What a scan returns, where only shapes and dtypes are asked for."""
    return torch.empty(first.shape, dtype=first.dtype, device=first.device)


def _fake_gradients(grad_out: Tensor, *arguments: object) -> list[Tensor]:
    """What the backward of a scan returns, likewise: a gradient for each tensor that is there."""
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in tensors]


for _operator in (_selective, _wavefront):
    _operator.register_fake(_fake_output)
for _operator in (_selective_backward, _wavefront_backward):
    _operator.register_fake(_fake_gradients)


# --- autograd ------------------------------------------------------------------------------------------------------


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save the inputs of a scan, and nothing else, for its backward."""
    ctx.save_for_backward(*(t for t in inputs if isinstance(t, Tensor)))
    ctx.missing = [t is None for t in inputs]
    ctx.options = [t for t in inputs if isinstance(t, bool | str)]


def _differentiate(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The autograd formula of a scan, from the operator that computes the gradients of all its tensors."""

    def formula(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        count = len(ctx.missing) - len(ctx.options)
        tensors = [None if gone else next(saved) for gone in ctx.missing[:count]]
        gradients = iter(backward(grad_out, *tensors, *ctx.options))
        return *(None if t is None else next(gradients) for t in tensors), *(None for _ in ctx.options)

    return formula


_selective.register_autograd(_differentiate(_selective_backward), setup_context=_keep)
_wavefront.register_autograd(_differentiate(_wavefront_backward), setup_context=_keep)


def _given(tensors: Sequence[Tensor | None], gradients: Sequence[Tensor | None]) -> list[Tensor]:
    """Gradients of the tensors that are there, in their dtypes."""
    pairs = zip(tensors, gradients, strict=True)
    return [g.to(t.dtype) for t, g in pairs if t is not None and g is not None]


# --- what is asked of arguments ------------------------------------------------------------------------------------


def _alike_under_autocast(tensors: tuple[Tensor | None, ...], kinds: str) -> tuple[Tensor | None, ...]:
    """Under autocast some activations come in half precision, others in float32: the widest dtype for all of them."""
    first = tensors[0]
    if not isinstance(first, Tensor) or not torch.is_autocast_enabled(first.device.type):
        return tensors
    cells = [kind != "p" and t is not None and t.is_floating_point() for kind, t in zip(kinds, tensors, strict=True)]
    dtype = first.dtype
    for tensor, cell in zip(tensors, cells, strict=True):
        if cell and tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    pairs = zip(tensors, cells, strict=True)
    return tuple(t if t is None or (not cell and _compatible(t.dtype, dtype)) else t.to(dtype) for t, cell in pairs)


def _check(description: tuple[tuple[str, ...], str], tensors: Sequence[Tensor | None]) -> None:
    names, kinds = description
    (first, u), A_name = (names[0], tensors[0]), names[kinds.index("p")]
    A = tensors[kinds.index("p")]
    assert u is not None
    assert A is not None
    if u.ndim != 4:
        raise ValueError(f"{first} is {list(u.shape)}, it should be [batch, height, width, dim]")
    if u.dtype not in _FLOATING:
        raise ValueError(f"{first} is {u.dtype}, it should be float16, bfloat16, float32 or float64")
    if A.ndim != 2 or A.shape[0] != u.shape[3]:
        raise ValueError(f"{A_name} is {list(A.shape)}, it should be [dim, state] = [{u.shape[3]}, state]")
    dim, state = u.shape[3], A.shape[1]
    shapes = {"c": [*u.shape], "s": [*u.shape[:3], state], "p": [dim, state]}
    for name, kind, tensor in zip(names, kinds, tensors, strict=True):
        if tensor is None:
            continue
        shape = [dim] if name in _VECTORS else shapes[kind]
        if list(tensor.shape) != shape:
            raise ValueError(f"{name} is {list(tensor.shape)}, it should be {shape}")
        if tensor.device != u.device:
            raise ValueError(f"{name} is on {tensor.device}, it should be on {u.device} as {first} is")
        if not _compatible(tensor.dtype, u.dtype):
            raise ValueError(f"{name} is {tensor.dtype}, it should be {u.dtype} as {first} is")


def _compatible(dtype: torch.dtype, u: torch.dtype) -> bool:
    """float32 may stand beside half-precision activations, as parameters and steps often do."""
    return dtype == u or (u in _HALF and dtype == torch.float32)


def _refuse_beyond_memory(tensors: Sequence[Tensor | None], grids: int) -> None:
    """Refuse a scan whose results, ``grids`` tensors like the input, would not fit in memory."""
    u = tensors[0]
    assert u is not None
    wanted = grids * u.numel() * max(u.element_size(), 4)
    if wanted < 2**28:
        return
    if u.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return
    free = free_memory(u.device)
    if wanted > free:
        raise MemoryError(f"a grid of {list(u.shape)} needs {wanted} bytes for its result, {free} are free")


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a device, as far as the system tells it."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    limits = [2**62]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        limits.append(limit - used)
    except (OSError, ValueError):
        pass  # no cgroup, or one without a limit
    return max(min(limits), 0)
