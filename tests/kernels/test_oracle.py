"""The oracles against what can be known without them: sums over paths, sums by hand, finite differences."""

import itertools
import math
from collections.abc import Callable
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

    def loss(changed: dict[str, Array]) -> float:
        return float((grad_out * oracle.selective_scan_2d_oracle(**changed, delta_softplus=softplus)).sum())

    assert_slopes(grads, loss, inputs)
    for name in {"D", "z", "delta_bias"} - inputs.keys():
        assert getattr(grads, name) is None


def assert_slopes(grads: object, loss: Callable[[dict[str, Array]], float], inputs: dict[str, Array]) -> None:
    """Each gradient is the slope of the loss, by central differences."""
    width = 1e-5
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


# --- the wavefront -------------------------------------------------------------------------------------------------


def make_wavefront_inputs(size: tuple[int, int], with_D: bool) -> dict[str, Array]:
    """Random inputs of batch 2, dim 2 and state 3, with decays below and above 1: the equations allow either."""
    rng = np.random.default_rng(9)
    grid, dim, state = (2, *size), 2, 3
    shapes = {"x": (*grid, dim), "delta_t": (*grid, dim), "delta_l": (*grid, dim), "A_t": (dim, state)}
    shapes |= {"A_l": (dim, state), "B_t": (*grid, state), "B_l": (*grid, state), "C": (*grid, state), "D": (dim,)}
    inputs = {name: rng.normal(size=shape) for name, shape in shapes.items() if with_D or name != "D"}
    for name in ("delta_t", "delta_l"):
        inputs[name] = 0.3 + 0.5 * inputs[name]
    for name in ("A_t", "A_l"):
        inputs[name] = 0.5 * inputs[name] - 0.7
    return inputs


def sum_over_lattice_paths(inputs: dict[str, Array]) -> Array:
    """The recurrence solved by hand: what enters at a cell leaves along every path of steps down and to the right.

    A step into a cell halves it, but on the first row and column, and decays it by the cell's aT or aL.
    """
    x, C = inputs["x"], inputs["C"]

    def entry(b: int, row: int, column: int, e: int, n: int) -> float:
        from_top = inputs["delta_t"][b, row, column, e] * inputs["B_t"][b, row, column, n]
        from_left = inputs["delta_l"][b, row, column, e] * inputs["B_l"][b, row, column, n]
        if row > 0 and column > 0:
            return float((from_top + from_left) / 2 * x[b, row, column, e])
        return float((from_top if row > 0 else from_left) * x[b, row, column, e])

    out = np.empty_like(x)
    for b, i, j, e in np.ndindex(*x.shape):
        total = inputs["D"][e] * x[b, i, j, e] if "D" in inputs else 0.0
        for n, top, left in itertools.product(range(C.shape[-1]), range(i + 1), range(j + 1)):
            steps = i - top + j - left
            for downs in itertools.combinations(range(steps), i - top):
                row, column, value = top, left, entry(b, top, left, e, n)
                for step in range(steps):
                    side = "t" if step in downs else "l"
                    row, column = (row + 1, column) if side == "t" else (row, column + 1)
                    value *= math.exp(inputs[f"delta_{side}"][b, row, column, e] * inputs[f"A_{side}"][e, n])
                    value /= 2 if row > 0 and column > 0 else 1
                total += C[b, i, j, n] * value
        out[b, i, j, e] = total
    return out


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("with_D", [False, True], ids=["plain", "D"])
def test_wavefront_forward_is_the_sum_over_lattice_paths(
    oracle: ModuleType, size: tuple[int, int], with_D: bool
) -> None:
    inputs = make_wavefront_inputs(size, with_D)
    got = oracle.wavefront_scan_2d_oracle(**inputs)
    want = sum_over_lattice_paths(inputs)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13 * np.abs(want).max())


def test_wavefront_of_a_grid_worked_by_hand(oracle: ModuleType) -> None:
    # A_t = -ln 2, A_l = -ln 4: aT = 1/2, 1/4 / 1/8, 1/2 and aL = 1/4, 1/4 / 1, 1/16; xT = Δt·x, xL = 3·Δl·x; C = 1
    delta_t = np.array([[1.0, 2.0], [3.0, 1.0]]).reshape(1, 2, 2, 1)
    delta_l = np.array([[1.0, 1.0], [0.0, 2.0]]).reshape(1, 2, 2, 1)
    x = np.array([[8.0, 2.0], [1.0, 4.0]]).reshape(1, 2, 2, 1)
    ones = np.ones((1, 2, 2, 1))
    A_t, A_l = [[-math.log(2)]], [[-math.log(4)]]
    got = oracle.wavefront_scan_2d_oracle(x, delta_t, delta_l, A_t, A_l, ones, 3 * ones, ones)
    # h = 3·8 = 24, 1/4·24 + 3·2 = 12 / 1/8·24 + 3 = 6, 1/2·(1/2·12 + 4 + 1/16·6 + 24) = 17.1875
    np.testing.assert_allclose(got.reshape(2, 2), [[24.0, 12.0], [6.0, 17.1875]], rtol=1e-15)


def test_wavefront_without_decay_counts_steps_from_the_corner(oracle: ModuleType) -> None:
    """Drives of 1 all over: an average of the two neighbours' counts, and one more."""
    ones, zeros = np.ones((2, 5, 7, 3)), np.zeros((3, 1))
    got = oracle.wavefront_scan_2d_oracle(ones, ones, ones, zeros, zeros, *[np.ones((2, 5, 7, 1))] * 3)
    count = 1 + np.arange(5)[:, None] + np.arange(7)
    np.testing.assert_array_equal(got, np.broadcast_to(count[..., None], got.shape))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("with_D", [False, True], ids=["plain", "D"])
def test_wavefront_backward_is_the_slope_of_the_forward(
    oracle: ModuleType, size: tuple[int, int], with_D: bool
) -> None:
    inputs = make_wavefront_inputs(size, with_D)
    grad_out = np.random.default_rng(10).normal(size=inputs["x"].shape)
    grads = oracle.wavefront_scan_2d_backward_oracle(grad_out, **inputs)
    assert_slopes(grads, lambda v: float((grad_out * oracle.wavefront_scan_2d_oracle(**v)).sum()), inputs)
    assert (grads.D is None) is not with_D
