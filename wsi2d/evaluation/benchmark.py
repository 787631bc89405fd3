"""Several models on the same folds: one table, with intervals and paired differences to the first."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wsi2d.config import EvaluationConfig
from wsi2d.evaluation.alignment import aligned
from wsi2d.evaluation.curve_columns import read_curves
from wsi2d.evaluation.evaluate import nan_to_null
from wsi2d.evaluation.predictions import PredictionTable
from wsi2d.evaluation.scoring import ScoredTable, score_table
from wsi2d.evaluation.statistics import bootstrap_p_value, bootstrap_values, holm, percentile_interval
from wsi2d.evaluation.survival import Outcomes

BENCHMARK_SCHEMA = "wsi2d-benchmark/1"

Interval = tuple[float, float]


@dataclass(frozen=True)
class Cost:
    """What a model takes; NaN where it is not known.

    Attributes:
        parameters: trainable numbers.
        seconds_an_epoch: median over epochs, folds and seeds; an epoch is a pass over train and a look at val.
        peak_gb: the most memory of any epoch, 10⁹ bytes (``history.csv`` in ``docs/formats.md`` says of what).
    """

    parameters: int
    seconds_an_epoch: float
    peak_gb: float


@dataclass(frozen=True)
class Contestant:
    """A model's out-of-fold predictions.

    Attributes:
        name: as it stands in the table.
        tables: one a seed, all of the same slides and folds.
        cost: what it takes.
        training: time and event of each fold's training patients, for survival.
    """

    name: str
    tables: Sequence[PredictionTable]
    cost: Cost
    training: Mapping[int, Outcomes]


@dataclass(frozen=True)
class Score:
    """A metric of one model. NaN where the data do not define it.

    Attributes:
        per_seed: value in each fold, a row a seed.
        mean, sd: over folds and seeds (sample standard deviation).
        interval: bootstrap interval of the mean, over patients.
        difference, difference_interval: the mean minus the first model's, paired by patient, fold and seed; None for
            the first model itself.
        p_value: two-sided, of no difference; by the bootstrap over patients.
        p_corrected: the same after Holm's correction for as many comparisons as there are models beside the first.
    """

    per_seed: tuple[tuple[float, ...], ...]
    mean: float
    sd: float
    interval: Interval | None
    difference: float | None
    difference_interval: Interval | None
    p_value: float | None
    p_corrected: float | None


@dataclass(frozen=True)
class BenchmarkRow:
    """One model: its name, scores by metric, and cost."""

    name: str
    scores: dict[str, Score]
    cost: Cost


@dataclass(frozen=True)
class Benchmark:
    """Models side by side.

    Attributes:
        kind: ``classification`` or ``survival``.
        rows: one a model, the one that the others are compared with first.
        metrics: names; the first is the one that matters.
        seeds: of the trainings.
        slides, cases, folds: what all predict.
        bootstrap, confidence: resamples of patients, and coverage of the intervals.
        published: figures that others published on these data, by method and metric.
        notes: what a reader must know.
    """

    kind: str
    rows: tuple[BenchmarkRow, ...]
    metrics: tuple[str, ...]
    seeds: tuple[int, ...]
    slides: int
    cases: int
    folds: tuple[int, ...]
    bootstrap: int
    confidence: float
    published: dict[str, dict[str, float]]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """``benchmark.json``; what is not defined is null."""
        return json.dumps(nan_to_null({"schema": BENCHMARK_SCHEMA, **asdict(self)}), indent=2) + "\n"

    def to_csv(self) -> str:
        """A row a model and metric."""
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(
            ["model", "metric", "mean", "sd", "low", "high", "difference", "difference_low", "difference_high",
             "p_value", "p_corrected", "parameters", "seconds_an_epoch", "peak_gb"]
        )  # fmt: skip
        for row in self.rows:
            for metric, s in row.scores.items():
                values = [
                    s.mean, s.sd, *(s.interval or ("", "")), s.difference, *(s.difference_interval or ("", "")),
                    s.p_value, s.p_corrected,
                ]  # fmt: skip
                rows.writerow([row.name, metric, *values, *asdict(row.cost).values()])
        return table.getvalue()

    def to_markdown(self) -> str:
        """The table of the first metric, and below it what it means."""
        lines = [
            "| " + " | ".join(self.header()) + " |",
            "|" + "---|" * len(self.header()),
            *("| " + " | ".join(cells) + " |" for cells in self.cells()),
            "",
            *self.legend(),
        ]
        return "\n".join(lines) + "\n"

    def header(self) -> tuple[str, ...]:
        """Names of the columns of :meth:`cells`."""
        level = f"{self.confidence:.0%}"
        return (
            "model", f"{self.metrics[0]}, mean ± sd [{level}]", f"difference [{level}]", "p", "parameters", "s/epoch",
            "peak GB",
        )  # fmt: skip

    def cells(self) -> list[tuple[str, ...]]:
        """The table of the first metric as texts, and what others published below one's own."""
        metric = self.metrics[0]
        rows: list[tuple[str, ...]] = []
        for row in self.rows:
            s, cost = row.scores[metric], row.cost
            change = "" if s.difference is None else f"{_signed(s.difference)} {_pair(s.difference_interval)}".strip()
            rows.append(
                (
                    row.name,
                    f"{_number(s.mean)} ± {_number(s.sd)} {_pair(s.interval)}".strip(),
                    change,
                    "" if s.p_corrected is None else _number(s.p_corrected),
                    f"{cost.parameters:,}",
                    _number(cost.seconds_an_epoch),
                    _number(cost.peak_gb),
                )
            )
        for method, figures in self.published.items():
            text = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
            rows.append((f"{method} (published)", text, "", "", "", "", ""))
        return rows

    def legend(self) -> list[str]:
        """What a reader of the table must know."""
        seeds = ", ".join(map(str, self.seeds))
        return [
            f"{self.slides} slides, {self.cases} patients, {len(self.folds)} folds, seeds {seeds}. Mean and sd over "
            f"folds and seeds; intervals by {self.bootstrap} resamples of patients. Differences are to "
            f"{self.rows[0].name}, paired; p is corrected for {len(self.rows) - 1} comparisons (Holm 1979).",
            *self.notes,
        ]


def score_benchmark(
    contestants: Sequence[Contestant],
    config: EvaluationConfig,
    *,
    seeds: Sequence[int],
    seed: int = 0,
    published: Mapping[str, Mapping[str, float]] | None = None,
    notes: Sequence[str] = (),
) -> Benchmark:
    """Score models on the same resamples of patients.

    Args:
        contestants: the models, the one that the others are compared with first.
        config: resamples, coverage, and what the numbers are to be of.
        seeds: of the trainings, as many as each has tables.
        seed: of the bootstrap.
        published, notes: kept as they are.

    Raises:
        RunError: two tables are not of the same slides, folds and truth.
    """
    first = contestants[0].tables[0]
    if any(table.joined for c in contestants for table in c.tables):
        config = config.model_copy(update={"unit": "case"})
    names_of = [(contestants[0].name, c.name) for c in contestants]
    tables = [
        [table if table is first else aligned(first, table, names, config.unit) for table in c.tables]
        for c, names in zip(contestants, names_of, strict=True)
    ]
    curves = [read_curves(t.rows) for own in tables for t in own if t.kind == "survival"]
    until = min((c.end for c in curves if c is not None), default=math.inf)
    scored = [
        [score_table(table, config, c.training, until=until) for table in own]
        for c, own in zip(contestants, tables, strict=True)
    ]
    names = scored[0][0].names
    rows = scored[0][0].rows
    everyone = _means(scored, names, np.ones((1, len(rows))))
    samples = bootstrap_values(
        rows["case_id"].tolist(), scored[0][0].fold_of.tolist(), lambda weights: _means(scored, names, weights),
        resamples=config.bootstrap, seed=seed,
    )  # fmt: skip
    scores = [
        {name: _score(scored[i], i, name, everyone, samples, config.confidence) for name in names}
        for i in range(len(contestants))
    ]
    _correct(scores, names)
    return Benchmark(
        first.kind,
        tuple(BenchmarkRow(c.name, own, c.cost) for c, own in zip(contestants, scores, strict=True)),
        names, tuple(seeds), sum(map(len, first.slide_ids())), rows["case_id"].nunique(), scored[0][0].folds,
        config.bootstrap, config.confidence, {k: dict(v) for k, v in (published or {}).items()}, tuple(notes),
    )  # fmt: skip


def _means(
    scored: Sequence[Sequence[ScoredTable]], names: Sequence[str], weights: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Means over folds and seeds ``[B]`` of each model (``0 auc``) and metric, and differences to the first
    (``1-0 auc``)."""
    values: dict[str, NDArray[np.float64]] = {}
    for i, own in enumerate(scored):
        found = [table.values(weights) for table in own]
        for name in names:
            values[f"{i} {name}"] = np.mean([v[f"mean {name}"] for v in found], axis=0)
            if i:
                values[f"{i}-0 {name}"] = values[f"{i} {name}"] - values[f"0 {name}"]
    return values


def _score(
    own: Sequence[ScoredTable],
    i: int,
    name: str,
    everyone: Mapping[str, NDArray[np.float64]],
    samples: Mapping[str, NDArray[np.float64]],
    confidence: float,
) -> Score:
    weights = np.ones((1, len(own[0].rows)))
    per_seed = tuple(tuple(float(t.values(weights)[f"fold {f} {name}"][0]) for f in t.folds) for t in own)
    defined = [v for values in per_seed for v in values if not math.isnan(v)]
    intervals = {key: percentile_interval(sample, confidence) for key, sample in samples.items() if key.endswith(name)}
    change = f"{i}-0 {name}"
    return Score(
        per_seed=per_seed,
        mean=float(everyone[f"{i} {name}"][0]),
        sd=float(np.std(defined, ddof=1)) if len(defined) > 1 else math.nan,
        interval=intervals.get(f"{i} {name}"),
        difference=float(everyone[change][0]) if i else None,
        difference_interval=intervals.get(change) if i else None,
        p_value=bootstrap_p_value(samples[change]) if i and change in samples else None,
        p_corrected=None,
    )


def _correct(scores: list[dict[str, Score]], names: Sequence[str]) -> None:
    """Put in the p-values corrected for as many comparisons as there are."""
    for name in names:
        raw = [own[name].p_value for own in scores[1:]]
        if any(p is None for p in raw):
            continue
        for own, p in zip(scores[1:], holm([p for p in raw if p is not None]), strict=True):
            own[name] = replace(own[name], p_corrected=p)


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.3f}"


def _pair(interval: Interval | None) -> str:
    return "" if interval is None else f"[{_number(interval[0])}, {_number(interval[1])}]"
