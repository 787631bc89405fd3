"""Several models on the same folds: one table, with intervals and paired differences to the first."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

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
        control_of: the contestant of which this is a control; None where it is none.
    """

    name: str
    tables: Sequence[PredictionTable]
    cost: Cost
    training: Mapping[int, Outcomes]
    control_of: str | None = None


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
        p_corrected: the same after Holm's correction for all comparisons of the metric: of each model beside the first
            with the first, and of each control with its own model where that is not the first.
        own_difference, own_interval, own_p_value, own_p_corrected: the same of a control and its own model, the
            control's mean minus the model's; None for what is no control.
    """

    per_seed: tuple[tuple[float, ...], ...]
    mean: float
    sd: float
    interval: Interval | None
    difference: float | None
    difference_interval: Interval | None
    p_value: float | None
    p_corrected: float | None
    own_difference: float | None = None
    own_interval: Interval | None = None
    own_p_value: float | None = None
    own_p_corrected: float | None = None


@dataclass(frozen=True)
class BenchmarkRow:
    """One model: its name, scores by metric, cost, and the model of which it is a control, if it is one."""

    name: str
    scores: dict[str, Score]
    cost: Cost
    control_of: str | None = None


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
             "p_value", "p_corrected", "parameters", "seconds_an_epoch", "peak_gb", "control_of", "own_difference",
             "own_low", "own_high", "own_p_value", "own_p_corrected"]
        )  # fmt: skip
        for row in self.rows:
            for metric, s in row.scores.items():
                values = [
                    s.mean, s.sd, *(s.interval or ("", "")), s.difference, *(s.difference_interval or ("", "")),
                    s.p_value, s.p_corrected,
                ]  # fmt: skip
                own = [s.own_difference, *(s.own_interval or ("", "")), s.own_p_value, s.own_p_corrected]
                rows.writerow([row.name, metric, *values, *asdict(row.cost).values(), row.control_of, *own])
        return table.getvalue()

    def to_markdown(self) -> str:
        """The table of the first metric, that of controls beside their own models, and below what they mean."""
        lines = [*_markdown(self.header(), self.cells()), ""]
        if self.control_cells():
            lines += [*_markdown(self.control_header(), self.control_cells()), ""]
        return "\n".join([*lines, *self.legend()]) + "\n"

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

    def control_header(self) -> tuple[str, ...]:
        """Names of the columns of :meth:`control_cells`."""
        return "control", "of", f"{self.metrics[0]}, difference [{self.confidence:.0%}]", "p"

    def control_cells(self) -> list[tuple[str, ...]]:
        """Each control beside its own model, by the first metric, as texts."""
        found: list[tuple[str, ...]] = []
        for row in self.rows:
            s = row.scores[self.metrics[0]]
            if row.control_of is not None and s.own_difference is not None:
                change = f"{_signed(s.own_difference)} {_pair(s.own_interval)}".strip()
                p = "" if s.own_p_corrected is None else _number(s.own_p_corrected)
                found.append((row.name, row.control_of, change, p))
        return found

    @property
    def comparisons(self) -> int:
        """How many differences of a metric are tested."""
        return len(_pairs([row.name for row in self.rows], [row.control_of for row in self.rows]))

    def legend(self) -> list[str]:
        """What a reader of the table must know."""
        seeds = ", ".join(map(str, self.seeds))
        least = min(1.0, 2 * self.comparisons / (self.bootstrap + 1))
        finest = f", and with these resamples never below {least:.2g}" if self.bootstrap and self.comparisons else ""
        return [
            f"{self.slides} slides, {self.cases} patients, {len(self.folds)} folds, seeds {seeds}. Mean and sd over "
            f"folds and seeds; intervals by {self.bootstrap} resamples of patients. Differences are to "
            f"{self.rows[0].name}, paired; p is corrected for {self.comparisons} comparisons (Holm 1979){finest}.",
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
    pairs = _pairs([c.name for c in contestants], [c.control_of for c in contestants])
    everyone = _means(scored, names, pairs, np.ones((1, len(rows))))
    samples = bootstrap_values(
        rows["case_id"].tolist(), scored[0][0].fold_of.tolist(), lambda weights: _means(scored, names, pairs, weights),
        resamples=config.bootstrap, seed=seed,
    )  # fmt: skip
    changes = {name: _changes(pairs, name, everyone, samples, config.confidence) for name in names}
    found = []
    for i, c in enumerate(contestants):
        beside = None if c.control_of is None else [each.name for each in contestants].index(c.control_of)
        scores = {
            name: _score(scored[i], (i, beside), name, everyone, samples, changes[name], config) for name in names
        }
        found.append(BenchmarkRow(c.name, scores, c.cost, c.control_of))
    return Benchmark(
        first.kind, tuple(found),
        names, tuple(seeds), sum(map(len, first.slide_ids())), rows["case_id"].nunique(), scored[0][0].folds,
        config.bootstrap, config.confidence, {k: dict(v) for k, v in (published or {}).items()}, tuple(notes),
    )  # fmt: skip


@dataclass(frozen=True)
class _Change:
    """A difference of two models with its interval and p-values."""

    value: float
    interval: Interval | None
    p_value: float | None
    p_corrected: float | None


def _pairs(names: Sequence[str], controls: Sequence[str | None]) -> list[tuple[int, int]]:
    """Which models are compared: each with the first, and each control with its own."""
    own = [(i, names.index(c)) for i, c in enumerate(controls) if c is not None]
    return list(dict.fromkeys([*((i, 0) for i in range(1, len(names))), *own]))


def _means(
    scored: Sequence[Sequence[ScoredTable]],
    names: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    weights: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """Means over folds and seeds ``[B]`` of each model (``0 auc``) and metric, and differences of pairs (``1-0 auc``,
    the second model's minus the first's)."""
    values: dict[str, NDArray[np.float64]] = {}
    for i, own in enumerate(scored):
        found = [table.values(weights) for table in own]
        for name in names:
            values[f"{i} {name}"] = np.mean([v[f"mean {name}"] for v in found], axis=0)
    for i, j in pairs:
        for name in names:
            values[f"{i}-{j} {name}"] = values[f"{i} {name}"] - values[f"{j} {name}"]
    return values


def _changes(
    pairs: Sequence[tuple[int, int]],
    name: str,
    everyone: Mapping[str, NDArray[np.float64]],
    samples: Mapping[str, NDArray[np.float64]],
    confidence: float,
) -> dict[tuple[int, int], _Change]:
    """The differences of a metric, corrected for as many comparisons as there are."""
    keys = [f"{i}-{j} {name}" for i, j in pairs]
    values = [float(everyone[key][0]) for key in keys]
    if any(key not in samples for key in keys):
        return {pair: _Change(value, None, None, None) for pair, value in zip(pairs, values, strict=True)}
    raw = [bootstrap_p_value(samples[key]) for key in keys]
    intervals = [percentile_interval(samples[key], confidence) for key in keys]
    changes = [_Change(*of_it) for of_it in zip(values, intervals, raw, holm(raw), strict=True)]
    return dict(zip(pairs, changes, strict=True))


def _score(
    own: Sequence[ScoredTable],
    at: tuple[int, int | None],
    name: str,
    everyone: Mapping[str, NDArray[np.float64]],
    samples: Mapping[str, NDArray[np.float64]],
    changes: Mapping[tuple[int, int], _Change],
    config: EvaluationConfig,
) -> Score:
    """Of the model at a place of the table, with that of its own model where it is a control."""
    i, beside = at
    weights = np.ones((1, len(own[0].rows)))
    per_seed = tuple(tuple(float(t.values(weights)[f"fold {f} {name}"][0]) for f in t.folds) for t in own)
    defined = [v for values in per_seed for v in values if not math.isnan(v)]
    nothing = _Change(math.nan, None, None, None)
    to_first = changes.get((i, 0), nothing)
    to_own = nothing if beside is None else changes[i, beside]
    key = f"{i} {name}"
    return Score(
        per_seed=per_seed,
        mean=float(everyone[key][0]),
        sd=float(np.std(defined, ddof=1)) if len(defined) > 1 else math.nan,
        interval=percentile_interval(samples[key], config.confidence) if key in samples else None,
        difference=to_first.value if i else None,
        difference_interval=to_first.interval,
        p_value=to_first.p_value,
        p_corrected=to_first.p_corrected,
        own_difference=None if beside is None else to_own.value,
        own_interval=to_own.interval,
        own_p_value=to_own.p_value,
        own_p_corrected=to_own.p_corrected,
    )


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    return ["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *("| " + " | ".join(r) + " |" for r in rows)]


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.3f}"


def _pair(interval: Interval | None) -> str:
    return "" if interval is None else f"[{_number(interval[0])}, {_number(interval[1])}]"
