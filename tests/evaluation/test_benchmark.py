"""Models side by side: numbers that `compare` gives as well, a correction done by hand, tables that say the same."""

import csv
import io
import json
import math

import numpy as np
import pandas as pd
import pytest

from wsi2d.config import EvaluationConfig
from wsi2d.errors import RunError
from wsi2d.evaluation.benchmark import Benchmark, Contestant, Cost, score_benchmark
from wsi2d.evaluation.compare import compare
from wsi2d.evaluation.predictions import PredictionTable, read_predictions
from wsi2d.evaluation.statistics import holm

CONFIG = EvaluationConfig(bootstrap=200)


def predictions(seed: int, skill: float) -> pd.DataFrame:
    """Two classes, 60 slides of 40 patients, three folds."""
    truth, guess = np.random.default_rng(0), np.random.default_rng(seed + 1)
    case = np.r_[np.arange(40), truth.integers(40, size=20)]
    label = case % 2
    score = 1 / (1 + np.exp(-(skill * (label - 0.5) + guess.normal(size=60))))
    columns = {"slide_id": [f"s{i}" for i in range(60)], "case_id": [f"p{c}" for c in case], "fold": case // 2 % 3}
    return pd.DataFrame(columns).assign(label=np.where(label, "b", "a"), prob_a=1 - score, prob_b=score)


@pytest.fixture
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PredictionTable]:
    """`weak-0`, `weak-1`, `strong-0`, `strong-1`."""
    folder = tmp_path_factory.mktemp("tables")
    found = {}
    for name, skill in (("weak", 0.5), ("strong", 3.0)):
        for seed in (0, 1):
            path = folder / f"{name}-{seed}.csv"
            predictions(seed, skill).to_csv(path, index=False)
            found[path.stem] = read_predictions(path)
    return found


def contestant(name: str, *tables: PredictionTable) -> Contestant:
    return Contestant(name, tables, Cost(10, 0.5, math.nan), {})


def test_one_seed_is_a_comparison(tables: dict[str, PredictionTable], tmp_path_factory: pytest.TempPathFactory) -> None:
    names = "weak-0", "strong-0"
    found = score_benchmark([contestant(n, tables[n]) for n in names], CONFIG, seeds=[0], seed=7)
    folder = tmp_path_factory.mktemp("again")
    for name, skill in zip(names, (0.5, 3.0), strict=True):
        predictions(0, skill).to_csv(folder / f"{name}.csv", index=False)
    pair = compare(*(folder / f"{n}.csv" for n in names), CONFIG, seed=7)
    for metric, expected in pair.metrics.items():
        first, second = (row.scores[metric] for row in found.rows)
        assert (first.mean, second.mean) == pytest.approx((expected.first, expected.second))
        assert second.difference == pytest.approx(expected.mean)
        assert second.difference_interval == pytest.approx(expected.mean_interval)
        assert second.p_value == second.p_corrected == pytest.approx(expected.mean_p)
        assert (first.difference, first.difference_interval, first.p_value, first.p_corrected) == (None,) * 4
    assert found.metrics[0] == "auc"
    assert (found.slides, found.cases, found.folds) == (60, 40, (0, 1, 2))


def test_seeds_are_averaged(tables: dict[str, PredictionTable]) -> None:
    both = [contestant("weak", tables["weak-0"], tables["weak-1"])]
    single = [[contestant("weak", tables[f"weak-{k}"])] for k in (0, 1)]
    joint = score_benchmark(both, CONFIG, seeds=[0, 1]).rows[0].scores["auc"]
    apart = [score_benchmark(own, CONFIG, seeds=[k]).rows[0].scores["auc"] for k, own in enumerate(single)]
    assert joint.per_seed == (*apart[0].per_seed, *apart[1].per_seed)
    assert joint.mean == pytest.approx(np.mean([s.mean for s in apart]))
    assert joint.sd == pytest.approx(np.std([v for s in apart for v in s.per_seed[0]], ddof=1))
    assert joint.interval is not None
    assert joint.interval[0] < joint.mean < joint.interval[1]


def test_order_of_rows_plays_no_part(tables: dict[str, PredictionTable]) -> None:
    shuffled = tables["strong-0"].rows.sample(frac=1, random_state=3)
    other = PredictionTable("classification", ("a", "b"), shuffled)
    a, b = (
        score_benchmark([contestant("weak", tables["weak-0"]), contestant("x", t)], CONFIG, seeds=[0])
        for t in (tables["strong-0"], other)
    )
    assert a.rows[1] == b.rows[1]


def test_other_slides_are_refused(tables: dict[str, PredictionTable]) -> None:
    fewer = PredictionTable("classification", ("a", "b"), tables["strong-0"].rows.iloc[:-1])
    with pytest.raises(RunError, match="compare weak and x: 1 slides are in one of them only"):
        score_benchmark([contestant("weak", tables["weak-0"]), contestant("x", fewer)], CONFIG, seeds=[0])


@pytest.mark.parametrize(
    ("raw", "corrected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.9, 0.5], [1.0, 1.0]),
        ([math.nan, 0.02, 0.04], [math.nan, 0.04, 0.04]),
        ([], []),
    ],
)
def test_holm(raw: list[float], corrected: list[float]) -> None:
    assert holm(raw) == pytest.approx(corrected, nan_ok=True)


@pytest.fixture
def three(tables: dict[str, PredictionTable]) -> Benchmark:
    contestants = [
        contestant("weak", tables["weak-0"], tables["weak-1"]),
        contestant("strong", tables["strong-0"], tables["strong-1"]),
        contestant("the same", tables["weak-0"], tables["weak-1"]),
    ]
    return score_benchmark(
        contestants, CONFIG, seeds=[0, 1], published={"Theirs": {"auc": 0.9}}, notes=["something to know"]
    )


def test_what_is_better_is_found_and_what_is_not_is_not(three: Benchmark) -> None:
    strong, same = (row.scores["auc"] for row in three.rows[1:])
    assert strong.p_value == pytest.approx(2 / 201)
    assert strong.p_corrected == pytest.approx(4 / 201), "two comparisons"
    assert (same.difference, same.p_value, same.p_corrected) == (0, 1, 1)


@pytest.fixture
def controlled(tables: dict[str, PredictionTable]) -> Benchmark:
    """A model that is not the first, and its control."""
    model = contestant("model", tables["strong-0"], tables["strong-1"])
    control = Contestant("model-less", [tables["weak-0"], tables["weak-1"]], model.cost, {}, "model")
    contestants = [contestant("first", tables["weak-0"], tables["weak-1"]), model, control]
    return score_benchmark(contestants, CONFIG, seeds=[0, 1])


def test_a_control_is_compared_with_its_own_model(controlled: Benchmark) -> None:
    first, model, control = (row.scores["auc"] for row in controlled.rows)
    assert (first.own_difference, model.own_difference, model.own_p_value) == (None, None, None)
    assert control.difference == 0
    assert model.difference is not None
    assert model.difference_interval is not None
    assert control.own_difference == pytest.approx(-model.difference)
    assert control.own_interval == pytest.approx([-v for v in model.difference_interval[::-1]])
    assert (model.p_value, control.own_p_value) == pytest.approx((2 / 201, 2 / 201))
    assert (model.p_corrected, control.own_p_corrected) == pytest.approx((6 / 201, 6 / 201)), "three comparisons"


def test_tables_of_controls(controlled: Benchmark, three: Benchmark) -> None:
    lines = controlled.to_markdown().splitlines()
    assert lines[5:8:2] == ["", "|---|---|---|---|"]
    assert lines[6] == "| control | of | auc, difference [95%] | p |"
    control = controlled.rows[2].scores["auc"]
    assert lines[8].startswith(f"| model-less | model | {control.own_difference:+.3f} [")
    assert "| control |" not in three.to_markdown()
    rows = {row["model"]: row for row in csv.DictReader(io.StringIO(controlled.to_csv())) if row["metric"] == "auc"}
    assert (rows["model"]["control_of"], rows["model"]["own_difference"]) == ("", "")
    assert rows["model-less"]["control_of"] == "model"
    assert float(rows["model-less"]["own_difference"]) == control.own_difference
    assert [float(rows["model-less"][f"own_{end}"]) for end in ("low", "high")] == list(control.own_interval or ())


def test_a_control_of_the_first_is_one_comparison(tables: dict[str, PredictionTable]) -> None:
    model = contestant("model", tables["strong-0"])
    control = Contestant("model-less", [tables["weak-0"]], model.cost, {}, "model")
    found = score_benchmark([model, control], CONFIG, seeds=[0])
    score = found.rows[1].scores["auc"]
    assert found.comparisons == 1
    assert (score.own_difference, score.own_p_corrected) == (score.difference, score.p_corrected)


def test_the_least_p_is_said(three: Benchmark, tables: dict[str, PredictionTable]) -> None:
    """Two comparisons, 200 resamples."""
    assert (
        "p is corrected for 2 comparisons (Holm 1979), and with these resamples never below 0.02." in three.legend()[0]
    )
    none = CONFIG.model_copy(update={"bootstrap": 0})
    plain = score_benchmark([contestant(n, tables["weak-0"]) for n in "ab"], none, seeds=[0])
    assert plain.legend()[0].endswith("p is corrected for 1 comparisons (Holm 1979).")


def test_tables_say_the_same(three: Benchmark) -> None:
    values = json.loads(three.to_json())
    rows = list(csv.DictReader(io.StringIO(three.to_csv())))
    assert len(rows) == 3 * len(three.metrics)
    for row in rows:
        score = next(r for r in values["rows"] if r["name"] == row["model"])["scores"][row["metric"]]
        assert float(row["mean"]) == score["mean"]
        assert [float(row["low"]), float(row["high"])] == score["interval"]
        assert row["p_corrected"] == ("" if score["p_corrected"] is None else str(score["p_corrected"]))
    lines = three.to_markdown().splitlines()
    assert lines[0].startswith("| model | auc, mean ± sd [95%] | difference [95%] | p |")
    assert lines[5] == "| Theirs (published) | auc 0.900 |  |  |  |  |  |"
    assert lines[-1] == "something to know"
    strong = three.rows[1].scores["auc"]
    assert f"| strong | {strong.mean:.3f} ± {strong.sd:.3f} [" in lines[3]
    assert f"| {strong.difference:+.3f} [" in lines[3]
