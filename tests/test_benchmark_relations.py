"""`benchmarks/relations.py`: what its grids tell and do not tell, against rules of brute force, and a tiny run."""

import importlib
import json
import sys
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
TASKS = ("same-column", "same-row", "quadrant", "order", "margin", "enclosure", "path")
FIRST, SECOND, DISTRACTOR = 1, 2, 3
Grid = np.ndarray[Any, Any]

pytestmark = pytest.mark.skipif(
    not (FOLDER / "relations.py").exists(), reason="the benchmarks are not here: these tests run away from a checkout"
)


@pytest.fixture(scope="module", autouse=True)
def found() -> Iterator[None]:
    """The benchmarks import each other by name."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def relations() -> ModuleType:
    return importlib.import_module("relations")


@pytest.fixture(scope="module")
def runs() -> ModuleType:
    return importlib.import_module("relation_runs")


def placed(relations: ModuleType, task: str, distance: int, *, n: int = 240, more: int = 3, **options: Any) -> Any:
    relation = relations.RELATIONS[task]
    shape = tuple(side + more for side in relation.smallest(distance))
    return relations.place(relation, n, distance, shape, np.random.default_rng(distance), **options)


# --- rules, written from what is asked


def in_one_line(grid: Grid, axis: int) -> bool:
    (a, b) = np.argwhere(grid == FIRST)
    return bool(a[axis] == b[axis])


def is_diagonal(grid: Grid) -> bool:
    (a, b) = np.argwhere(grid == FIRST)
    return bool(np.prod(b - a) > 0)


def first_is_left(grid: Grid) -> bool:
    return bool(np.argwhere(grid == FIRST)[0, 1] < np.argwhere(grid == SECOND)[0, 1])


def band_follows(grid: Grid) -> bool:
    gaps = [np.flatnonzero(column == SECOND)[0] - np.flatnonzero(column == FIRST)[0] for column in grid.T]
    return len(set(gaps)) == 1


def reached(grid: Grid, start: tuple[int, int], *, steps: list[tuple[int, int]], through: set[int]) -> set[Any]:
    """Cells that a walk from one comes to, through cells of some kinds."""
    seen, queue = {start}, deque([start])
    while queue:
        row, col = queue.popleft()
        for down, right in steps:
            cell = (row + down, col + right)
            inside = 0 <= cell[0] < grid.shape[0] and 0 <= cell[1] < grid.shape[1]
            if inside and cell not in seen and int(grid[cell]) in through:
                seen.add(cell)
                queue.append(cell)
    return seen


def is_enclosed(grid: Grid) -> bool:
    start = tuple(int(n) for n in np.argwhere(grid == FIRST)[0])
    walls = np.pad(grid, 1)
    seen = reached(walls, (start[0] + 1, start[1] + 1), steps=[(0, 1), (1, 0), (0, -1), (-1, 0)], through={0, 1, 3})
    return (0, 0) not in seen


def is_joined(grid: Grid) -> bool:
    a, b = (tuple(int(n) for n in cell) for cell in np.argwhere(grid == FIRST))
    around = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    return b in reached(grid, a, steps=around, through={FIRST, SECOND})


RULES = {
    "same-column": lambda grid: in_one_line(grid, 1),
    "same-row": lambda grid: in_one_line(grid, 0),
    "quadrant": is_diagonal,
    "order": first_is_left,
    "margin": band_follows,
    "enclosure": is_enclosed,
    "path": is_joined,
}


def knob(task: str, grid: Grid) -> int:
    """The distance that a grid shows."""
    marks = np.argwhere(grid == FIRST)
    if task in ("quadrant", "path"):
        apart = np.abs(marks[0] - marks[1])
        return int(apart.min() if task == "quadrant" else apart[1])
    if task in ("same-column", "same-row"):
        return int(np.abs(marks[0] - marks[1])[0 if task == "same-column" else 1])
    others = np.argwhere(grid == SECOND)
    if task == "margin":
        flat = [np.bincount(cells[:, 0]).argmax() for cells in (marks, others)]
        return int(flat[1] - flat[0])
    return int(np.abs(others - marks[0]).max(1).min())


@pytest.mark.parametrize("task", TASKS)
def test_labels_and_distances_are_those_of_the_grids(relations: ModuleType, task: str) -> None:
    relation = relations.RELATIONS[task]
    for distance in sorted({relation.nearest, *relation.trained, *relation.tested[-2:]}):
        for more in (0, 3):
            layouts = placed(relations, task, distance, n=60, more=more)
            assert [int(RULES[task](grid)) for grid in layouts.kinds] == layouts.label.tolist()
            assert {knob(task, grid) for grid in layouts.kinds} == {distance} == set(layouts.distance.tolist())


def test_every_relation_is_tested(relations: ModuleType) -> None:
    assert tuple(relations.RELATIONS) == TASKS
    for relation in relations.RELATIONS.values():
        assert relation.nearest <= relation.trained[0] < relation.trained[1] < relation.tested[-1]
        assert relation.tested[0] >= relation.nearest


# --- what must tell nothing


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("distractors", [0.0, 0.1])
def test_groups_hold_the_same_cells(relations: ModuleType, task: str, distractors: float) -> None:
    generator = np.random.default_rng(0)
    layouts = placed(relations, task, relations.RELATIONS[task].trained[1], distractors=distractors)
    k = layouts.arrangements
    counts = np.array([np.bincount(grid.ravel(), minlength=4) for grid in layouts.kinds]).reshape(-1, k, 4)
    assert (counts == counts[:, :1]).all()
    assert set(counts[:, 0, DISTRACTOR]) == {round(distractors * layouts.kinds[0].size)}
    assert (layouts.label.reshape(-1, k).mean(1) == 0.5).all()
    x = relations.paint(layouts, relations.Marks(), generator)
    cells = np.sort(x.reshape(len(x) // k, k, -1, x.shape[-1]), axis=2)
    np.testing.assert_array_equal(cells, np.broadcast_to(cells[:, :1], cells.shape))
    assert len(np.unique(x[::k].reshape(-1, x.shape[-1]), axis=0)) == x[::k, ..., 0].size, "groups differ"


@pytest.mark.parametrize("task", [task for task in TASKS if task != "order"])
def test_no_place_of_a_single_mark_tells(relations: ModuleType, task: str) -> None:
    """Every cell holds every kind as often where the relation holds as where it does not, group by group."""
    layouts = placed(relations, task, relations.RELATIONS[task].trained[1], more=2, distractors=0.0)
    held = (layouts.kinds[..., None] == np.arange(3)).astype(int)
    signed = held * (2 * layouts.label - 1)[:, None, None, None]
    k = layouts.arrangements
    assert not signed.reshape(-1, k, *signed.shape[1:]).sum(1).any()


def test_where_a_mark_lies_tells_of_order_what_it_must(relations: ModuleType) -> None:
    """On a grid with borders what is on the left lies further left; the balanced relations have no such thing."""
    layouts = placed(relations, "order", 8, n=4000, more=4)
    cols = np.array([np.argwhere(grid == FIRST)[0, 1] for grid in layouts.kinds])
    guess = cols < (layouts.kinds.shape[2] - 1) / 2
    assert 0.7 < (guess == layouts.label).mean() <= 1


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("more", [0, 3])
def test_no_window_tells(relations: ModuleType, task: str, more: int) -> None:
    """Where figures are apart, each group has the same 3×3 windows on both sides, borders included; away from borders
    for ``order``."""
    relation = relations.RELATIONS[task]
    for distance in (relation.apart, relation.apart + 3):
        layouts = placed(relations, task, distance, n=40, more=more, distractors=0.0)
        away = 2 if task == "order" else 0
        windows = [all_windows(np.pad(grid, away)) for grid in layouts.kinds]
        for start in range(0, len(layouts), layouts.arrangements):
            sides = [Counter[bytes](), Counter[bytes]()]
            for k in range(start, start + layouts.arrangements):
                sides[layouts.label[k]] += windows[k]
            assert sides[0] == sides[1]


def all_windows(grid: Grid) -> Counter[bytes]:
    views = np.lib.stride_tricks.sliding_window_view(np.pad(grid, 1, constant_values=9), (3, 3))
    return Counter(view.tobytes() for view in views.reshape(-1, 3, 3))


def test_near_marks_share_windows(relations: ModuleType) -> None:
    """The check above can fail: at distance 1 and 2 a window sees both marks."""
    for distance in (1, 2):
        layouts = placed(relations, "same-column", distance, n=40, distractors=0.0)
        sides = [Counter[bytes](), Counter[bytes]()]
        for grid, label in zip(layouts.kinds, layouts.label, strict=True):
            sides[label] += all_windows(grid)
        assert sides[0] != sides[1]


# --- arguments


def test_draws_are_of_their_generator(relations: ModuleType) -> None:
    one, same, other = (
        relations.draw("margin", 8, np.array([4, 6]), (14, 13), np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert one.x.shape == (8, 14, 13, relations.Marks.dim)
    assert one.x.dtype == np.float32
    assert one.distance.tolist() == [4] * 4 + [6] * 4
    np.testing.assert_array_equal(one.x, same.x)
    assert (one.x != other.x).any()


@pytest.mark.parametrize(
    ("n", "distance", "shape", "words"),
    [
        (6, 2, (9, 9), "n must be a positive multiple of 4 for 'quadrant', got 6"),
        (0, 2, (9, 9), "n must be a positive multiple of 4 for 'quadrant', got 0"),
        (4, 0, (9, 9), "the distance of 'quadrant' must be at least 1, got 0"),
        (4, 5, (11, 10), "'quadrant' at distance 5 needs 11×11 cells, got 11×10"),
    ],
)
def test_what_does_not_fit_is_refused(
    relations: ModuleType, n: int, distance: int, shape: tuple[int, int], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        relations.draw("quadrant", n, distance, shape, np.random.default_rng(0))


# --- sizes


@pytest.mark.parametrize("task", TASKS)
def test_no_distance_goes_with_one_size(relations: ModuleType, runs: ModuleType, task: str) -> None:
    relation, generator = relations.RELATIONS[task], np.random.default_rng(0)
    for distance in relation.tested:
        drawn = [runs.drawn_shape(relation, distance, (9, 13), generator) for _ in range(200)]
        for axis in (0, 1):
            least = relation.smallest(distance)[axis]
            assert {shape[axis] - max(9, least) for shape in drawn} >= {0, 1, 2}
            assert min(shape[axis] for shape in drawn) >= least
            assert len({shape[axis] for shape in drawn}) == 5


def test_a_count_of_cells_tells_all_on_one_size_and_less_on_several(relations: ModuleType, runs: ModuleType) -> None:
    best = importlib.import_module("relation_counting").best_by_count
    generator = np.random.default_rng(0)
    for task in ("same-column", "quadrant"):
        one = best(task, {4: [(12, 12)] * 40}, generator)
        several = best(task, {d: [(12, w) for w in range(9, 15)] * 40 for d in (2, 3, 4)}, generator)
        assert one == 1
        assert 0.5 < several < 0.92
    assert best("same-row", {4: [(12, 12)] * 40}, generator) == 1


# --- mosaics


@pytest.fixture(scope="module")
def mosaics(runs: ModuleType) -> dict[str, Any]:
    cells = importlib.import_module("relation_cells")
    return {side: cells.Mosaic(side, stride_px=40) for side in ("train", "test")}


def test_no_pixel_is_in_training_and_in_tests(mosaics: dict[str, Any]) -> None:
    covered = []
    for mosaic in mosaics.values():
        mask = np.zeros(mosaic.picture.shape[:2], bool)
        for y, x in mosaic.corners:
            mask[y : y + 48, x : x + 48] = True
        assert set(mosaic.kinds) == {0, 1, 2, 3}
        covered.append(mask)
    assert not (covered[0] & covered[1]).any()


def test_a_mosaic_cut_into_patches_is_what_the_model_sees(mosaics: dict[str, Any], relations: ModuleType) -> None:
    """Windows put together to one picture, cut at its grid, and embedded by the library's encoder."""
    import torch

    from wsi2d.features.histology_stats import HistologyStats

    mosaic, generator = mosaics["train"], np.random.default_rng(0)
    layouts = placed(relations, "order", 3, n=2)
    x = relations.paint(layouts, mosaic, generator)[0]
    at = [int(np.abs(mosaic.embeddings - cell).sum(1).argmin()) for cell in x.reshape(-1, x.shape[-1])]
    assert mosaic.kinds[at].tolist() == layouts.kinds[0].ravel().tolist()
    rows = [np.concatenate(list(row), 1) for row in mosaic.windows()[at].reshape(*x.shape[:2], 48, 48, 3)]
    picture = np.concatenate(rows, 0)
    cut = picture.reshape(x.shape[0], 48, x.shape[1], 48, 3).swapaxes(1, 2).reshape(-1, 48, 48, 3)
    embedded = HistologyStats().encode(torch.from_numpy(cut.copy())).numpy()
    np.testing.assert_allclose(embedded.reshape(x.shape), x, rtol=1e-4, atol=1e-5)


# --- runs


TINY = ("--steps", "2", "--tested", "32", "--tasks", "order,same-column", "--cells", "marks", "--seeds", "0")


def test_a_tiny_run_prints_all_rows_goes_on_and_draws(
    runs: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results, models = tmp_path / "results.json", "order-free,raster,mamba2d-1"
    runs.main([*TINY, "--json", str(results), "--models", "order-free,mamba2d-1"])
    before = json.loads(results.read_text("utf-8"))["runs"]
    assert len(before) == 4
    monkeypatch.setattr(runs, "train", counted(runs.train, trained := []))
    capsys.readouterr()
    runs.main([*TINY, "--json", str(results), "--models", models, "--figure", str(tmp_path / "pictures")])
    assert len(trained) == 2, "what is there is not trained again"
    after = json.loads(results.read_text("utf-8"))["runs"]
    assert len(after) == 6
    assert [row for row in after if row["model"] != "raster"] == before
    printed = capsys.readouterr().out
    for task in ("order", "same-column"):
        assert printed.count(f"| `{task}`, marks |") == 1
    for name in models.split(","):
        assert printed.count(f"| `{name}` |") == 2
    assert "6 trainings" in printed
    for name in ("order", "same-column"):
        assert (tmp_path / "pictures" / f"relation-{name}.png").read_bytes()[:4] == b"\x89PNG"


def counted(function: Any, calls: list[int]) -> Any:
    def call(*arguments: Any) -> Any:
        calls.append(1)
        return function(*arguments)

    return call


def test_a_run_is_the_same_again(runs: ModuleType) -> None:
    settings = runs.Settings(steps=2, tested=32)
    timed = ("cpu_s", "test_cpu_s")
    rows = [runs.measure("order", "marks", "raster", seed, settings) for seed in (0, 0, 1)]
    one, same, other = ({key: value for key, value in row.items() if key not in timed} for row in rows)
    assert one == same
    assert one["loss"] != other["loss"]


def test_rows_of_other_settings_are_not_mixed_in(runs: ModuleType, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    row = runs.measure("order", "marks", "order-free", 0, runs.Settings(steps=1, tested=32))
    runs.write_rows(results, [row])
    with pytest.raises(SystemExit, match="'order' was trained with steps 1, now 2; give another --json"):
        runs.main([*TINY, "--json", str(results)])


def test_each_row_keeps_the_machine_on_which_it_was_measured(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of one head for all its rows is read, and going on elsewhere changes nothing of what it says."""
    results = tmp_path / "results.json"
    rows = [runs.measure("order", "marks", "order-free", seed, runs.Settings(steps=1, tested=32)) for seed in (0, 1)]
    first, second = ({key: value for key, value in row.items() if key != "machine"} for row in rows)
    head = {"machine": "x86_64, 1 thread", "python": "3.10.0", "torch": "2.0", "numpy": "1.9", "numba": "0.5"}
    results.write_text(json.dumps({**head, "runs": [first]}), "utf-8")
    (kept,) = runs.read_rows(results)
    assert kept["machine"] == "x86_64, 1 thread, Python 3.10.0, torch 2.0, numpy 1.9, numba 0.5"
    monkeypatch.setattr(runs, "machine", lambda: "another")
    runs.write_rows(results, [kept, {**second, "machine": runs.machine()}])
    found = runs.read_rows(results)
    assert [row["machine"] for row in found] == [kept["machine"], "another"]
    runs.print_tables(found)
    assert capsys.readouterr().out.endswith(f"\n1 on {kept['machine']}\n1 on another\n")


def test_a_measurement_says_on_what(runs: ModuleType) -> None:
    row = runs.measure("order", "marks", "order-free", 0, runs.Settings(steps=1, tested=32))
    assert row["machine"] == runs.machine()
    assert f"torch {runs.version('torch')}" in row["machine"]


@pytest.mark.parametrize("text", ["", "[]", '{"runs": [{"task": 1}]}', "{"])
def test_files_of_something_else_are_refused(runs: ModuleType, tmp_path: Path, text: str) -> None:
    results = tmp_path / "results.json"
    results.write_text(text, "utf-8")
    with pytest.raises(SystemExit, match="no results of this benchmark"):
        runs.main([*TINY, "--json", str(results)])
    assert results.read_text("utf-8") == text


def test_names_that_are_not_there(runs: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--tasks", "--models", "--cells"):
        with pytest.raises(SystemExit):
            runs.parse([option, "nowhere"])
        assert "'nowhere' is unknown; there are " in capsys.readouterr().err


def test_labels_of_pictures_stay_apart(runs: ModuleType) -> None:
    spread_apart = importlib.import_module("relation_figures").spread_apart
    generator = np.random.default_rng(0)
    for count in (1, 2, 9):
        values = generator.choice([0.5, 0.51, 0.9, 1.0], count)
        places = np.array(spread_apart(values, 0.04, 0.4, 1.0))
        order = np.argsort(values, kind="stable")
        assert (np.diff(places[order]) >= 0.04 - 1e-9).all()
        assert places.min() >= 0.4 - 1e-9
        assert places.max() <= 1 + 1e-9
    assert spread_apart([0.5, 0.9], 0.04, 0.4, 1.0) == pytest.approx([0.5, 0.9])
