"""A picture of a benchmark: each model's metric with its interval, and every fold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wsi2d.evaluation.benchmark import Benchmark
from wsi2d.explain.canvas import check_suffix, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_FILE = "benchmark.png"
_OWN, _FOLD, _PUBLISHED = "#1f4e79", "#9db7d1", "#b5651d"


def benchmark_picture(benchmark: Benchmark, out: Path) -> Figure:
    """Draw the first metric of every model and write the picture.

    Args:
        benchmark: from :func:`wsi2d.evaluation.benchmark.score_benchmark`.
        out: png, pdf or svg.

    Raises:
        ConfigError: the suffix is none of these.
        StorageError: it cannot be written.
    """
    from matplotlib.figure import Figure

    check_suffix(out)
    metric = benchmark.metrics[0]
    figure = Figure(figsize=(7.2, 1.4 + 0.42 * len(benchmark.rows)), layout="constrained")
    axes = figure.add_subplot()
    for y, row in enumerate(benchmark.rows):
        score = row.scores[metric]
        folds = [v for values in score.per_seed for v in values]
        labels = ("a fold of a seed", _mean_label(benchmark)) if y == 0 else (None, None)
        axes.plot(folds, [y] * len(folds), "o", color=_FOLD, ms=4, zorder=1, label=labels[0])
        if score.interval is not None:
            axes.plot(score.interval, [y, y], color=_OWN, lw=2, zorder=2)
        axes.plot(score.mean, y, "D", color=_OWN, ms=6, zorder=3, label=labels[1])
    for method, figures in benchmark.published.items():
        if metric in figures:
            axes.axvline(figures[metric], color=_PUBLISHED, lw=1, ls="--", zorder=0)
            axes.annotate(
                f"{method}, published", (figures[metric], 1), xycoords=("data", "axes fraction"), xytext=(3, 2),
                textcoords="offset points", color=_PUBLISHED, fontsize="small",
            )  # fmt: skip
    axes.set_yticks(range(len(benchmark.rows)), [row.name for row in benchmark.rows])
    axes.set_ylim(len(benchmark.rows) - 0.4, -0.6)
    axes.set_xlabel(metric)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    save_figure(figure, out)
    return figure


def _mean_label(benchmark: Benchmark) -> str:
    return f"mean over folds and seeds, {benchmark.confidence:.0%} interval over patients"
