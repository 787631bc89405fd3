"""The oracle against what can be known without it: a sum over paths, sums by hand, finite differences."""

import itertools
import math
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[np.float64]
SIZES = [(1, 1), (1, 5), (5, 1), (2, 2), (3, 5), (5, 3)]
OPTIONS = [
    pytest.param(optional, softplus, id="+".join(optional + ("softplus",) * softplus) or "plain")
    for optional, softplus in [
        ((), False),
        (("D",), False),
        (("z",), False),
        (("delta_bias",), False),
        ((), True),
        (("D", "z", "delta_bias"), True),
    ]
]


def make_inputs(size: tuple[int, int], optional: tuple[str, ...]) -> dict[str, Array]:
    """Random inputs of batch 2, dim 2 and state 3, with decays below and above 1: the equations allow either."""
    rng = np.random.default_rng(7)
    grid, dim, state = (2, *size), 2, 3
    inputs = {
        "u": rng.normal(size=(*grid, dim)),
        "delta": rng.normal(0.3, 0.5, size=(*grid, dim)),
        "A": rng.normal(-0.7, 0.5, size=(dim, state)),
        "B": rng.normal(size=(*grid, state)),
        "C": rng.normal(size=(*grid, state)),
        "D": rng.normal(size=dim),
        "z": rng.normal(size=(*grid, dim)),
        "delta_bias": rng.normal(size=dim),
    }
    return {name: value for name, value in inputs.items() if name in ("u", "delta", "A", "B", "C", *optional)}


def sum_over_paths(inputs: dict[str, Array], softplus: bool) -> Array:
    """The recurrences solved by hand: cell (i', j') reaches (i, j) along its row to column j, then down that column.

    h[i,j] = Σ_{i'≤i, j'≤j} (Π_{k=i'+1..i} a[k,j]) · (Π_{k=j'+1..j} a[i',k]) · x[i',j']
    """
    u, delta, A, B, C = (inputs[name] for name in ("u", "delta", "A", "B", "C"))
    out = np.empty_like(u)
    for b, i, j, e in np.ndindex(*u.shape):

        def step(row: int, column: int, b: int = b, e: int = e) -> float:
            value = delta[b, row, column, e] + (inputs["delta_bias"][e] if "delta_bias" in inputs else 0.0)
            return math.log1p(math.exp(value)) if softplus else float(value)

        total = inputs["D"][e] * u[b, i, j, e] if "D" in inputs else 0.0
        for n, top, left in itertools.product(range(A.shape[1]), range(i + 1), range(j + 1)):
            path = [(top, column) for column in range(left + 1, j + 1)] + [(row, j) for row in range(top + 1, i + 1)]
            weight = math.exp(A[e, n] * sum(step(row, column) for row, column in path))
            total += C[b, i, j, n] * weight * step(top, left) * B[b, top, left, n] * u[b, top, left, e]
        gate = inputs["z"][b, i, j, e] if "z" in inputs else None
        out[b, i, j, e] = total if gate is None else total * gate / (1 + math.exp(-gate))
    return out


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("optional", "softplus"), OPTIONS)
def test_forward_is_the_sum_over_paths(
    oracle: ModuleType, size: tuple[int, int], optional: tuple[str, ...], softplus: bool
) -> None:
    inputs = make_inputs(size, optional)
    got = oracle.selective_scan_2d_oracle(**inputs, delta_softplus=softplus)
    want = sum_over_paths(inputs, softplus)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13 * np.abs(want).max())


def test_forward_of_a_grid_worked_by_hand(oracle: ModuleType) -> None:
    # Δ = 1, 2 / 3, 1 and A = -ln 2, so a = 1/2, 1/4 / 1/8, 1/2 and x = Δ·u; C = 1
    delta = np.array([[1.0, 2.0], [3.0, 1.0]]).reshape(1, 2, 2, 1)
    u = np.array([[8.0, 1.0], [1.0, 4.0]]).reshape(1, 2, 2, 1)
    ones = np.ones((1, 2, 2, 1))
    got = oracle.selective_scan_2d_oracle(u, delta, [[-math.log(2)]], ones, ones)
    # g = 8, 1/4·8+2 = 4 / 3, 1/2·3+4 = 5.5;   h = 8, 4 / 1/8·8+3 = 4, 1/2·4+5.5 = 7.5
    np.testing.assert_allclose(got.reshape(2, 2), [[8.0, 4.0], [4.0, 7.5]], rtol=1e-15)


def test_without_decay_the_scan_is_a_prefix_sum(oracle: ModuleType) -> None:
    u = np.random.default_rng(0).integers(-4, 5, size=(2, 5, 7, 3)).astype(np.float64)
    ones = np.ones((2, 5, 7, 1))
    got = oracle.selective_scan_2d_oracle(u, np.ones_like(u), np.zeros((3, 1)), ones, ones)
    np.testing.assert_array_equal(got, u.cumsum(1).cumsum(2))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("optional", "softplus"), OPTIONS)
def test_backward_is_the_slope_of_the_forward(
    oracle: ModuleType, size: tuple[int, int], optional: tuple[str, ...], softplus: bool
) -> None:
    inputs = make_inputs(size, optional)
    grad_out = np.random.default_rng(8).normal(size=inputs["u"].shape)
    grads = oracle.selective_scan_2d_backward_oracle(grad_out, **inputs, delta_softplus=softplus)
    width = 1e-5

    def loss(changed: dict[str, Array]) -> float:
        return float((grad_out * oracle.selective_scan_2d_oracle(**changed, delta_softplus=softplus)).sum())

    for name, value in inputs.items():
        slope = np.empty_like(value)
        for position in np.ndindex(*value.shape):
            up, down = value.copy(), value.copy()
            up[position] += width
            down[position] -= width
            slope[position] = (loss(inputs | {name: up}) - loss(inputs | {name: down})) / (2 * width)
        got = getattr(grads, name)
        assert got.shape == value.shape, name
        atol = 1e-8 * max(1.0, float(np.abs(slope).max()))  # rounding / width and width², both near 1e-10
        np.testing.assert_allclose(got, slope, rtol=0, atol=atol, err_msg=f"gradient of {name}")
    for name in {"D", "z", "delta_bias"} - inputs.keys():
        assert getattr(grads, name) is None
