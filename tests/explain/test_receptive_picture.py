"""Receptive fields drawn: what each colour stands for, one scale for all, both units on the axes."""

import io
from pathlib import Path

import numpy as np
import pytest
from known_fields import field_of
from matplotlib.colors import to_rgba
from PIL import Image

from wsi2d.errors import ConfigError
from wsi2d.explain.receptive_field import ReceptiveField
from wsi2d.explain.receptive_picture import draw, on_window, panel_title, receptive_picture, window_of
from wsi2d.explain.receptive_runs import FieldOptions, RunField


def run_field(
    grid: np.ndarray, name: str = "a run", *, trained: bool = True, pitch_um: float | None = 64.0
) -> RunField:
    """A run's field, as of `field_of`."""
    return RunField(name, Path(name), trained, "mamba2d-mil", (0,), field_of(grid), pitch_um, FieldOptions())


def point(side: int = 7) -> np.ndarray:
    grid = np.zeros((side, side))
    grid[side // 2, side // 2] = 1.0
    return grid


def test_every_offset_lies_in_its_cell() -> None:
    grid = np.arange(1.0, 36.0).reshape(5, 7)
    grid[0, 6] = np.nan
    field = run_field(grid).field
    window = on_window(field, 2)
    np.testing.assert_allclose(window, np.where(np.isnan(grid), np.nan, grid / np.nansum(grid))[:, 1:6])
    wide = on_window(field, 4)
    np.testing.assert_allclose(wide[2:7, 1:8], grid / np.nansum(grid))
    assert np.isnan(wide).sum() == 81 - 34


def test_colours_tell_none_from_little_and_from_never_seen() -> None:
    grid = point()
    grid[3, 4], grid[3, 5], grid[0, 0] = 1e-3, 1e-30, np.nan
    figure = draw([run_field(grid), run_field(np.ones((7, 7)))], columns=2, reach=3)
    first, second = figure.axes[0].images[0], figure.axes[1].images[0]
    assert first.norm is second.norm
    colours = first.to_rgba(first.get_array())
    white, grey = to_rgba("#ffffff"), to_rgba("#d4d4d4")
    assert np.allclose(colours[6, 6], white), "no gradient at all"
    assert np.allclose(colours[0, 0], grey), "no tissue there"
    least = colours[3, 5]
    assert not np.allclose(least, white), "below the scale, but there"
    assert not np.allclose(least, colours[3, 4])
    assert not np.allclose(colours[3, 3], colours[3, 4])


def test_the_window_takes_in_nearly_all_of_every_field() -> None:
    wide = np.ones((41, 41))
    assert window_of([run_field(point()).field]) == 3
    assert 20 <= window_of([run_field(point()).field, run_field(wide).field]) <= 29
    far = ReceptiveField(np.array([[0, 0], [0, 10**6]]), np.ones(2), np.ones(2, np.int64), 1, 1)
    assert window_of([far]) == 250


@pytest.mark.parametrize(("pitch_um", "unit", "edge"), [(64.0, "µm", 3.5 * 64), (512.0, "mm", 3.5 * 0.512)])
def test_axes_in_patches_and_in_micrometres(pitch_um: float, unit: str, edge: float) -> None:
    figure = draw([run_field(point(), pitch_um=pitch_um)], columns=2, reach=3)
    figure.savefig(io.BytesIO())
    axes = figure.axes[0]
    assert axes.get_xlim() == (-3.5, 3.5)
    assert axes.get_ylim() == (3.5, -3.5), "rows grow downwards"
    above, right = axes.child_axes
    assert above.get_xlabel() == right.get_ylabel() == unit
    assert above.get_xlim() == pytest.approx((-edge, edge))
    assert right.get_ylim() == pytest.approx((edge, -edge))


def test_without_a_pitch_there_are_patches_alone() -> None:
    field = run_field(np.ones((7, 7)), pitch_um=None)
    assert draw([field], columns=1, reach=3).axes[0].child_axes == []
    assert "µm" not in panel_title(field)


def test_titles() -> None:
    assert panel_title(run_field(point(), "x")) == "x\na single point: each patch alone"
    stripe = np.zeros((3, 33))
    stripe[1] = 1.0
    title = panel_title(run_field(stripe, "y", trained=False))
    assert title == "y, untrained\n50 % within 8 patches (512 µm),\n90 % within 15 patches (960 µm)"
    near = np.zeros((3, 3))
    near[1] = [0.2, 0.6, 0.2]
    assert panel_title(run_field(near)) == "a run\n50 % in the patch itself,\n90 % within 1 patch (64 µm)"


@pytest.mark.parametrize(("panels", "columns", "shape"), [(1, 3, (1, 1)), (2, 1, (2, 1)), (3, 2, (2, 2))])
def test_panels_beside_each_other(tmp_path: Path, panels: int, columns: int, shape: tuple[int, int]) -> None:
    out = tmp_path / "new" / "a.png"
    fields = [run_field(point(), f"$run_{k}$") for k in range(panels)]
    figure = receptive_picture(fields, out, columns=columns)
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == shape
    with Image.open(out) as picture:
        assert picture.width == pytest.approx(100 * (3.5 * shape[1] + 0.3), abs=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"columns": 0}, "columns must be at least 1"), ({"reach": 251}, "reach must be from 1 to 250, got 251")],
)
def test_what_cannot_be_drawn(tmp_path: Path, options: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        receptive_picture([run_field(point())], tmp_path / "a.png", **options)
    with pytest.raises(ConfigError, match="there are no runs"):
        receptive_picture([], tmp_path / "a.png")
