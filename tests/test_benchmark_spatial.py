"""`benchmarks/spatial.py` and its parts: models of one size, mosaics of the same cells, intervals, runs that go on."""

import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from wsi2d.models.registry import build_model

FOLDER = Path(__file__).parents[1] / "benchmarks"
MODULES = ("grid_models", "grid_training", "spatial_data", "spatial_report", "spatial")

pytestmark = pytest.mark.skipif(
    not FOLDER.exists(), reason="the benchmarks are not here: these tests run away from a checkout"
)


@pytest.fixture(scope="module")
def spatial() -> Iterator[ModuleType]:
    """``spatial.py``; the modules that it is made of stand beside it in ``sys.modules``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        import spatial  # type: ignore[import-not-found]

        yield spatial
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def models(spatial: ModuleType) -> ModuleType:
    return sys.modules["grid_models"]


@pytest.fixture(scope="module")
def pictures(spatial: ModuleType) -> ModuleType:
    return sys.modules["spatial_data"]


@pytest.fixture(scope="module")
def training(spatial: ModuleType) -> ModuleType:
    return sys.modules["grid_training"]


@pytest.fixture(scope="module")
def reporting(spatial: ModuleType) -> ModuleType:
    return sys.modules["spatial_report"]


# --- models --------------------------------------------------------------------------------------------------------


def test_all_contenders_are_of_one_size(spatial: ModuleType, models: ModuleType) -> None:
    for name in models.CONTENDERS:
        blocks = 2 if "mamba2d" in name else 1
        model = models.make(name, in_dim=1, classes=10, budget=10_000, blocks=blocks, state=8)
        assert models.trained_weights(model) == pytest.approx(10_000, rel=0.01), name
        depth = getattr(model.config, "blocks", None)
        assert depth in (None, blocks, 2 * blocks), name
        assert (depth == 2 * blocks) == (name == "convolution-deep"), name


def test_what_makes_a_contender_is_not_overridden(models: ModuleType) -> None:
    found = models.section("mamba2d-1", in_dim=1, classes=2, budget=9000, directions=4, dropout=0.0, rate=3)
    assert (found["directions"], found["dropout"]) == (1, 0.0)
    assert "rate" not in found, "an option of other models"


def test_budgets_that_cannot_be_met_and_names_that_are_not_there(models: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"^contender 'mamba2d-mil': .* weights are the nearest to a budget of 50; "):
        models.make("mamba2d-mil", in_dim=1, classes=2, budget=50)
    with pytest.raises(ValueError, match=r"^contender is 'mamba', it should be one of order-free, "):
        models.section("mamba", in_dim=1, classes=2, budget=9000)


def test_grids_are_packed_cell_by_cell(models: ModuleType) -> None:
    grids = torch.arange(2 * 3 * 4 * 2.0).view(2, 3, 4, 2)
    whole = models.pack(grids)
    assert len(whole.features) == 24
    row, col = whole.index.T
    assert torch.equal(whole.features, grids[whole.bag, row, col])
    assert whole.shapes.tolist() == [[3, 4], [3, 4]]
    occupied = torch.ones(2, 3, 4, dtype=torch.bool)
    occupied[0, 1, 1] = False
    some = models.pack(grids, sizes=torch.tensor([[2, 2], [3, 4]]), occupied=occupied)
    assert some.index[some.bag == 0].tolist() == [[0, 0], [0, 1], [1, 0]]
    assert some.shapes.tolist() == [[2, 2], [3, 4]]
    row, col = some.index.T
    assert torch.equal(some.features, grids[some.bag, row, col])
    with pytest.raises(ValueError, match=r"^occupied: a grid has no cell"):
        models.pack(grids, occupied=torch.zeros(2, 3, 4, dtype=torch.bool))


def answers(model: torch.nn.Module, models: ModuleType, grids: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model.eval()(models.pack(grids)).logits
    return logits


def test_the_raster_contender_scans_the_flattened_grid(models: ModuleType) -> None:
    """Its convolution aside, which stays on the grid."""
    section = models.section("raster", in_dim=2, classes=3, budget=5000, conv="none", state=4)
    torch.manual_seed(0)
    raster = build_model(section, in_dim=2, out_dim=3)
    flat = build_model({**section, "layout": "row", "scan_order": "2d"}, in_dim=2, out_dim=3)
    flat.load_state_dict(raster.state_dict())
    grids = torch.randn(3, 4, 5, 2)
    torch.testing.assert_close(answers(raster, models, grids), answers(flat, models, grids))
    one_row = answers(flat, models, grids.reshape(3, 1, 20, 2))
    torch.testing.assert_close(answers(raster, models, grids), one_row)


def test_the_serpentine_contender_takes_every_second_row_backwards(models: ModuleType) -> None:
    section = models.section("serpentine", in_dim=2, classes=3, budget=5000, conv="none", state=4)
    torch.manual_seed(0)
    serpentine = build_model(section, in_dim=2, out_dim=3)
    raster = build_model({**section, "scan_order": "raster"}, in_dim=2, out_dim=3)
    raster.load_state_dict(serpentine.state_dict())
    grids = torch.randn(3, 4, 5, 2)
    turned = grids.clone()
    turned[:, 1::2] = grids[:, 1::2].flip(2)
    torch.testing.assert_close(answers(serpentine, models, grids), answers(raster, models, turned))
    assert (answers(serpentine, models, grids) - answers(raster, models, grids)).abs().max() > 1e-4


# --- mosaics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nests", "margins"])
def test_pairs_of_mosaics_hold_the_same_cells(pictures: ModuleType, name: str) -> None:
    data = pictures.DATA[name](tuning=False)
    first, second = data.grids[::2].flatten(1, 2), data.grids[1::2].flatten(1, 2)
    assert first.shape[0] == second.shape[0] >= 100
    assert data.labels.tolist() == [0, 1] * len(first)
    for a, b in zip(first.tolist()[::9], second.tolist()[::9], strict=True):
        assert sorted(a) == sorted(b)
    assert not torch.equal(first, second)
    assert torch.equal(data.strips[::2], data.strips[1::2])
    assert data.cases.bincount().tolist() == [2] * len(first)


@pytest.mark.parametrize("level", [False, True])
def test_strips_share_no_pixel(pictures: ModuleType, level: bool) -> None:
    taken = np.zeros((5, 512, 512), bool)
    for strip in range(5):
        for y, x in pictures.cell_corners(strip, (512, 512), level=level):
            assert 0 <= y <= 512 - pictures.CELL_PX
            assert 0 <= x <= 512 - pictures.CELL_PX
            taken[strip, y : y + pictures.CELL_PX, x : x + pictures.CELL_PX] = True
    assert taken.any((1, 2)).all()
    assert taken.sum(0).max() == 1


def test_mosaics_are_trained_and_tested_on_different_strips(pictures: ModuleType) -> None:
    data = pictures.DATA["nests"](tuning=False)
    sides = list(data.folds(5, seed=3))
    assert torch.cat([test for _, test in sides]).sort().values.tolist() == list(range(len(data.labels)))
    for train, test in sides:
        assert not set(data.strips[train].tolist()) & set(data.strips[test].tolist())
        assert len(train) + len(test) == len(data.labels)
    with pytest.raises(ValueError, match=r"^nests: is made from 5 strips and has as many folds, not 3$"):
        list(data.folds(3, seed=0))


def test_a_ring_and_its_nest_lie_anywhere_alike_in_both_classes(pictures: ModuleType) -> None:
    """What a cell holds on average must not tell the class, nor how many stained cells touch."""
    generator = np.random.default_rng(0)
    drawn = [pictures.ring_around_or_beside(generator) for _ in range(1000)]
    beside, around = (np.stack([pair[k] for pair in drawn]).astype(float) for k in (0, 1))
    assert (beside.sum((1, 2)) == around.sum((1, 2))).all()
    apart = np.abs(beside.mean(0) - around.mean(0))
    assert apart.max() < 5 * math.sqrt(0.5 / 1000)
    assert apart.mean() < math.sqrt(0.5 / 1000)

    def touching(grids: np.ndarray) -> float:
        return float((grids[:, 1:] * grids[:, :-1]).sum() + (grids[:, :, 1:] * grids[:, :, :-1]).sum())

    assert touching(beside) == pytest.approx(touching(around), rel=0.05)


def test_nests_are_compact(pictures: ModuleType) -> None:
    scattered, nest = pictures.nest_or_scattered(np.random.default_rng(1))
    assert scattered.sum() == nest.sum() == 21
    rows, cols = np.nonzero(nest)
    assert max(np.ptp(rows), np.ptp(cols)) <= 6
    assert np.ptp(np.nonzero(scattered)[0]) > 6


def test_faces_are_the_first_half(pictures: ModuleType) -> None:
    data = pictures.DATA["faces"](tuning=False)
    assert data.grids.shape == (200, 25, 25, 1)
    flat = data.grids.flatten(1)
    alike = torch.corrcoef(flat)
    within = [alike[data.labels == k][:, data.labels == k].mean() for k in (0, 1)]
    assert within[1] > 1.2 * within[0], "faces are alike"


# --- training ------------------------------------------------------------------------------------------------------


def test_the_rate_rises_and_falls(training: ModuleType) -> None:
    share = training.rate_at(100, 0.1)
    rates = [share(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == rates[9] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)
    assert all(a <= b for a, b in itertools.pairwise(rates[:11]))
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_shifts_move_whole_grids(training: ModuleType) -> None:
    torch.manual_seed(0)
    grids = torch.zeros(200, 5, 4, 1)
    grids[:, 2, 1] = 1
    moved = training.shifted(grids, 1)
    assert moved.shape == grids.shape
    places = moved[..., 0].nonzero()
    assert len(places) == 200
    assert set(map(tuple, places[:, 1:].tolist())) == {(r, c) for r in (1, 2, 3) for c in (0, 1, 2)}
    assert training.shifted(grids, 0) is grids


def test_decay_spares_what_the_library_spares(models: ModuleType, training: ModuleType) -> None:
    model = models.make("mamba2d-mil", in_dim=1, classes=2, budget=5000)
    decayed, spared = training.parameter_groups(model, 0.3)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    kept = {names[id(p)].rpartition(".")[2] for p in spared["params"]}
    assert {"A_log", "D", "dt_bias", "empty_token", "bias"} <= kept
    assert {names[id(p)].rpartition(".")[2] for p in decayed["params"]} == {"weight", "dt_weight"}


# --- intervals -----------------------------------------------------------------------------------------------------


def test_scores_of_a_case_done_by_hand(reporting: ModuleType) -> None:
    """Four items, two folds, two seeds; the other model is right wherever the first is, and less often."""
    tested = {(s, k): np.array([2 * k, 2 * k + 1]) for s in (0, 1) for k in (0, 1)}
    ours = {(0, 0): [1, 1], (0, 1): [1, 0], (1, 0): [1, 1], (1, 1): [1, 1]}
    theirs = {(0, 0): [1, 0], (0, 1): [1, 0], (1, 0): [1, 0], (1, 1): [1, 0]}
    found = {
        "a": {fit: np.array(v, bool) for fit, v in ours.items()},
        "b": {fit: np.array(v, bool) for fit, v in theirs.items()},
    }
    rows = reporting.score(found, tested, reference="a", cases=[0, 1, 2, 3], strata=[0, 0, 0, 0])
    assert rows["a"].accuracy == pytest.approx(7 / 8)
    assert rows["a"].sd == pytest.approx(np.std([1, 0.5, 1, 1], ddof=1))
    assert rows["b"].accuracy == pytest.approx(4 / 8)
    assert math.isnan(rows["a"].difference)
    assert rows["b"].difference == pytest.approx(3 / 8)
    # By item the differences are 0, 1, 0, ½: a mean of four draws of these, and never below 0.
    low, high = rows["b"].difference_interval
    sums = np.add.outer(np.add.outer([0, 1, 0, 0.5], [0, 1, 0, 0.5]), np.add.outer([0, 1, 0, 0.5], [0, 1, 0, 0.5]))
    exact = np.quantile(sums.ravel() / 4, [0.025, 0.975])
    assert (low, high) == pytest.approx(tuple(exact), abs=0.13)
    # Over fits they are ½, 0, ½, ½: mean 3/8, variance 1/16, enlarged by 1/4 + 1.
    t = (3 / 8) / math.sqrt((1 / 4 + 1) / 16)
    assert rows["b"].p_value == pytest.approx(2 * student_above(t, 3), rel=1e-6)


def student_above(t: float, freedom: int) -> float:
    """Student's t with three degrees of freedom above ``t``, in closed form."""
    assert freedom == 3
    x = t / math.sqrt(3)
    return 0.5 - (math.atan(x) + x / (1 + x * x)) / math.pi


def test_seeds_do_not_make_intervals_narrower(reporting: ModuleType) -> None:
    """The same answers from three seeds say no more than from one."""
    right = np.random.default_rng(0).random((2, 100)) < 0.8
    widths = []
    for seeds in ([0], [0, 1, 2]):
        tested = {(s, k): np.arange(50 * k, 50 * k + 50) for s in seeds for k in (0, 1)}
        found = {name: {fit: r[tested[fit]] for fit in tested} for name, r in zip("ab", right, strict=True)}
        rows = reporting.score(found, tested, reference="a", cases=list(range(100)), strata=[0] * 100)
        widths.append([np.ptp(rows["a"].interval), np.ptp(rows["b"].difference_interval)])
    assert widths[0] == pytest.approx(widths[1])
    paired = reporting.score(found, tested, reference="a", cases=[k // 2 for k in range(100)], strata=[0] * 100)
    assert paired["a"].interval != rows["a"].interval, "items of one case are drawn together"


def test_items_that_are_not_tested_once_a_seed(reporting: ModuleType) -> None:
    tested = {(0, 0): np.array([0, 1]), (0, 1): np.array([1, 2])}
    found = {"a": {fit: np.ones(2, bool) for fit in tested}}
    with pytest.raises(ValueError, match=r"^tested: every item should be tested once a seed$"):
        reporting.score(found, tested, reference="a", cases=[0, 1, 2], strata=[0, 0, 0])


# --- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(spatial: ModuleType, pictures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Digits of two classes, few of them, a tenth of the weights, and steps that take no time."""
    whole = pictures.digits(tuning=False)
    few = (whole.labels < 2).nonzero()[:40, 0]

    def digits(*, tuning: bool) -> object:
        return pictures.GridData("digits", "few digits", whole.grids[few], whole.labels[few])

    monkeypatch.setitem(spatial.DATA, "digits", digits)
    monkeypatch.setattr(spatial, "BUDGET", 1500)
    return spatial


ARGUMENTS = ["--data", "digits", "--models", "order-free,convolution,mamba2d-mil", "--folds", "2", "--seeds", "0,1"]
ARGUMENTS += ["--rates", "0.01,0.05"]


def test_a_run_prints_every_model_and_goes_on(
    tiny: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*ARGUMENTS, "--epochs", "1", "--out", str(tmp_path)]
    done: list[tuple[str, object, object]] = []
    interrupted: list[tuple[str, object, object]] = []
    fit_once = tiny.fit_once

    def counted(task: object, name: str, **job: object) -> object:
        done.append((name, job["seed"], job["fold"]))
        if len(done) == 8 and not interrupted:
            interrupted.append(done.pop())
            raise KeyboardInterrupt
        return fit_once(task, name, **job)

    monkeypatch.setattr(tiny, "fit_once", counted)
    with pytest.raises(KeyboardInterrupt):
        tiny.main(command)
    capsys.readouterr()
    assert len(done) == 7
    tiny.main([*command, "--print"])
    assert capsys.readouterr().out.strip().endswith("no seed is finished yet")
    tiny.main(command)
    names = ["order-free", "convolution", "mamba2d-mil"]
    every = [(n, 100, 0) for n in names for _ in range(2)] + [(n, s, k) for s in (0, 1) for k in (0, 1) for n in names]
    assert done == every, "none twice, and the one that was interrupted again"
    assert done[7] == interrupted[0]
    printed = capsys.readouterr().out
    assert "40 grids, 2 folds, seeds 0, 1; 1 epochs" in printed
    assert [f"`{name}`" in printed for name in names] == [True] * 3
    assert printed.count("\n| ") == 1 + 3
    kept = json.loads((tmp_path / "spatial-digits.json").read_text("utf-8"))
    assert len(kept["fits"]) == len(every)
    assert all(len(fit["predicted"]) == 20 for fit in kept["fits"])
    for name in names:
        mine = [fit for fit in kept["fits"] if fit["model"] == name]
        best = max(mine[:2], key=lambda fit: (fit["accuracy"], -fit["loss"]))
        assert {fit["lr"] for fit in mine[2:]} == {best["lr"]}
    before = (tmp_path / "spatial-digits.json").read_bytes()
    tiny.main(command)
    assert capsys.readouterr().out == printed
    assert (tmp_path / "spatial-digits.json").read_bytes() == before
    with pytest.raises(SystemExit, match=r"spatial-digits.json: was made with other settings, .*; give another --out$"):
        tiny.main([*ARGUMENTS, "--epochs", "2", "--out", str(tmp_path)])


def test_each_fit_keeps_the_machine_on_which_it_was_made(
    tiny: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of one head for all its fits is read, and going on elsewhere changes nothing of what it says."""
    command = ["--data", "digits", "--models", "order-free", "--folds", "2", "--epochs", "1", "--out", str(tmp_path)]
    path = tmp_path / "spatial-digits.json"
    tiny.main([*command, "--seeds", "0"])
    kept = json.loads(path.read_text("utf-8"))
    for fit in kept["fits"]:
        del fit["machine"]
    path.write_text(json.dumps({"settings": kept["settings"], "machine": "an old one", "fits": kept["fits"]}), "utf-8")
    monkeypatch.setattr(tiny, "machine", lambda: "a new one")
    capsys.readouterr()
    tiny.main([*command, "--seeds", "0,1"])
    found = json.loads(path.read_text("utf-8"))["fits"]
    assert [fit["machine"] for fit in found] == ["an old one"] * 2 + ["a new one"] * 2
    assert capsys.readouterr().out.strip().endswith("2 fits on an old one\n2 fits on a new one")


def test_a_run_stops_where_its_time_is_used(
    tiny: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.main([*ARGUMENTS, "--epochs", "1", "--out", str(tmp_path), "--minutes", "0"])
    found = capsys.readouterr()
    assert "stopped after 0 minutes" in found.err
    assert found.out.strip().endswith("no seed is finished yet")


def test_a_fit_is_the_same_again(tiny: ModuleType, tmp_path: Path) -> None:
    data = tiny.DATA["digits"](tuning=False)
    task = tiny.Task(data, data, tiny.Recipe(epochs=12, batch=5), 2, (0.02,), tmp_path / "x.json")
    first, second, other = (tiny.fit_once(task, "mamba2d-mil", seed=s, fold=0, lr=0.02) for s in (0, 0, 1))
    assert (first["loss"], first["predicted"]) == (second["loss"], second["predicted"])
    assert other["loss"] != first["loss"]
    assert first["accuracy"] >= 0.9, "a nought is told from a one"
    assert first["accuracy"] == pytest.approx(tiny.right(task, first).mean(), abs=1e-5)


def test_names_that_are_not_there(spatial: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^model 'mamba' is unknown; there are order-free, "):
        spatial.main(["--models", "mamba", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^data set 'letters' is unknown; there are digits, faces, nests, margins$"):
        spatial.main(["--data", "letters", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^--seeds: 100 is what rates are chosen on; leave it out$"):
        spatial.main(["--seeds", "0,100", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^--folds: 1 is not what digits can be cut into; mosaics take 5$"):
        spatial.main(["--data", "digits", "--folds", "1", "--out", str(tmp_path)])
