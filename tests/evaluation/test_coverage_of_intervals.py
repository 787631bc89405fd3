"""Simulated cohorts whose truth is known: how often the bootstrap's intervals hold it."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from wsi2d.config import EvaluationConfig
from wsi2d.evaluation.evaluate import evaluate_table
from wsi2d.evaluation.predictions import PredictionTable

COHORTS = 300
CONFIG = EvaluationConfig(bootstrap=500)


def held(table: PredictionTable, metric: str, truth: float, seed: int) -> bool:
    interval = evaluate_table(table, CONFIG, seed=seed).metrics[metric].pooled_interval
    assert interval is not None
    return interval[0] <= truth <= interval[1]


def frame(count: int, **columns: np.ndarray) -> pd.DataFrame:
    ids = [f"s{i}" for i in range(count)]
    return pd.DataFrame({"slide_id": ids, "case_id": ids, "fold": 0, **columns})


@pytest.mark.slow
def test_intervals_of_the_auc_hold_the_truth() -> None:
    """Scores of the classes are normal, one deviation apart: the area is Φ(1/√2)."""
    generator = np.random.default_rng(7)
    truth, found = float(norm.cdf(1 / math.sqrt(2))), 0
    for seed in range(COHORTS):
        label = (generator.random(150) < 0.5).astype(int)
        score = norm.cdf(generator.normal(label))
        rows = frame(150, label=np.array(["a", "b"])[label], prob_a=1 - score, prob_b=score)
        found += held(PredictionTable("classification", ("a", "b"), rows), "auc", truth, seed)
    assert 0.92 <= found / COHORTS <= 0.98


@pytest.mark.slow
def test_intervals_of_the_c_index_hold_the_truth() -> None:
    """Two kinds of patients whose hazards are as 3 to 1, censored at random; risk tells the kinds apart.

    Of two patients of different kinds the worse dies first with 3/4; of a kind, risks tie and count half. Harrell's
    limit weighs both by how often the first death of a pair is seen, before either is censored (rate ½): pairs of
    total hazard h are comparable with h / (h + 1), so 6/7, 4/5 and 2/3.
    """
    generator = np.random.default_rng(8)
    both, mixed, none = 0.25 * 6 / 7, 0.5 * 4 / 5, 0.25 * 2 / 3
    truth, found = (0.5 * both + 0.75 * mixed + 0.5 * none) / (both + mixed + none), 0
    for seed in range(COHORTS):
        risk = (generator.random(150) < 0.5).astype(float)
        death, censoring = generator.exponential(1 / np.where(risk, 3.0, 1.0)), generator.exponential(2.0, 150)
        rows = frame(150, time=np.minimum(death, censoring), event=(death <= censoring).astype(int), risk=risk)
        found += held(PredictionTable("survival", (), rows), "c_index", truth, seed)
    assert 0.92 <= found / COHORTS <= 0.98
