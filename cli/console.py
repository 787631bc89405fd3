"""What all verbs share: the console, log lines, progress bars, the table of results."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from wsi2d.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

    from wsi2d.evaluation.evaluate import Evaluation, MetricSummary

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class _LineHandler(logging.Handler):
    """Log records as lines on stderr that do not break progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        err.print(f"[{style}]{record.levelname.lower()}:[/] {escape(record.getMessage())}", soft_wrap=True)


def show_log(level: int = logging.WARNING) -> None:
    """Show the library's log lines."""
    logger = logging.getLogger("wsi2d")
    logger.handlers = [_LineHandler()]
    logger.setLevel(level)


def check_out(out: Path, *, folder: bool = False) -> None:
    """Refuse a place where a file (or a folder) cannot be made, before the work that is to end there begins.

    Raises:
        ConfigError: something else is in the way, or it may not be written.
    """
    existing = next((p for p in (out, *out.absolute().parents) if p.exists()), Path())
    if existing == out and out.is_dir() != folder:
        raise ConfigError(f"out {out}: is a {'file' if folder else 'folder'}; give another --out")
    if existing != out and not existing.is_dir():
        raise ConfigError(f"out {out}: {existing} is a file, not a folder; give another --out")
    if not os.access(existing, os.W_OK):
        raise ConfigError(f"out {out}: {existing} may not be written; give another --out")


@contextmanager
def progress_bars(unit: str) -> Iterator[Progress]:
    """Progress bars on stderr with a rate in ``unit``/s and the time left; nothing where stderr is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        yield progress


def rate_text(done: float, seconds: float, unit: str) -> str:
    """As ``312 patches/s``."""
    return f"{done / seconds:,.0f} {unit}/s" if seconds > 0 else ""


def number(value: float) -> str:
    """A metric to three places; a dash where it is not defined."""
    return "–" if value != value else f"{value:.3f}"


def interval(values: tuple[float, float] | None) -> str:
    """A pair of metrics in brackets."""
    return "" if values is None else f"[{number(values[0])}, {number(values[1])}]"


def fold_values(summary: MetricSummary) -> str:
    """The value of each fold to two places."""
    return " ".join("–" if v != v else f"{v:.2f}" for v in summary.per_fold)


def plain_table(title: str, *columns: str) -> Table:
    """A table without vertical lines, so that five columns fit on a screen of 80; on a narrower one cells wrap."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(escape(name), overflow="fold")
    return table


def print_evaluation(evaluation: Evaluation) -> None:
    """A run's metrics as a table, with what a reader must know below it."""
    level = f"{evaluation.confidence:.0%}"
    size = f"{evaluation.slides} slides, {evaluation.cases} patients, {len(evaluation.folds)} folds"
    summary = plain_table(size, "metric", f"mean ± sd [{level}]", f"pooled [{level}]")
    folds = plain_table("each fold", "metric", *map(str, evaluation.folds))
    for name, m in evaluation.metrics.items():
        spread = f"{number(m.mean)} ± {number(m.sd)} {interval(m.mean_interval)}"
        pooled = f"{number(m.pooled)} {interval(m.pooled_interval)}"
        summary.add_row(name, escape(spread), escape(pooled))
        folds.add_row(name, *map(number, m.per_fold))
    out.print(summary, folds)
    if evaluation.kind == "survival":
        out.print("Folds cut time into their own bins: risks of different folds are not on one scale, prefer the mean.")
    for note in evaluation.notes:
        out.print(f"[yellow]note:[/] {escape(note)}")
