"""What all verbs share: the console, log lines, progress bars, the table of results."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from wsi2d.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress
    from rich.table import Table

    from wsi2d.evaluation.benchmark import Benchmark
    from wsi2d.evaluation.compare import Comparison
    from wsi2d.evaluation.evaluate import Confusion, Evaluation, MetricSummary
    from wsi2d.evaluation.risk_groups import RiskGroups, StratifiedTest
    from wsi2d.evaluation.survival_details import SurvivalDetails
    from wsi2d.models.catalogue import ModelEntry

_SPELLED = str.maketrans({"×": "x", "µ": "u", "²": "2", "−": "-", "–": "-", "…": "...", "→": "->", "─": "-"})

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
    # Which tool's files are read in place is worth a line even where nothing is wrong.
    logging.getLogger("wsi2d.features.anyones").setLevel(min(level, logging.INFO))


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


def can_print(text: str) -> bool:
    """Whether stdout's encoding has all of these letters."""
    try:
        text.encode(out.encoding)
    except UnicodeEncodeError:
        return False
    return True


def print_anywhere(*parts: RenderableType) -> None:
    """Print to stdout; what its encoding lacks is spelled with what it has."""
    with out.capture() as captured:
        for part in parts:
            out.print(part)
    text = "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
    if not can_print(text):
        text = text.translate(_SPELLED).encode(out.encoding, "replace").decode(out.encoding)
    out.file.write(text)


def size_text(count: int) -> str:
    """Bytes as ``1.2 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


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
    if evaluation.confusion is not None:
        _print_confusion(evaluation.confusion, "patients" if evaluation.unit == "case" else "slides")
    if evaluation.survival is not None:
        if len(evaluation.folds) > 1:
            _print_stratified(evaluation.metrics, level)
        _print_survival(evaluation.survival, level)
    for note in evaluation.notes:
        out.print(f"[yellow]note:[/] {escape(note)}")


def _print_stratified(metrics: Mapping[str, MetricSummary], level: str) -> None:
    table = plain_table("pairs of patients of the same fold", "metric", f"stratified [{level}]")
    for name, m in metrics.items():
        if m.stratified is not None:
            table.add_row(name, escape(f"{number(m.stratified)} {interval(m.stratified_interval)}"))
    if table.row_count:
        out.print(table)
        out.print("Risks of different folds are not on one scale: of these take mean or stratified, not pooled.")


def _print_confusion(confusion: Confusion, unit: str) -> None:
    table = plain_table(f"{unit}: true by row, predicted by column", "", *confusion.classes)
    for name, counts, rates in zip(confusion.classes, confusion.counts, confusion.rates, strict=True):
        shares = ("" if r != r else f" ({r:.0%})" for r in rates)
        table.add_row(escape(name), *(f"{n}{share}" for n, share in zip(counts, shares, strict=True)))
    out.print(table)


_WHOSE_CUT = {
    "given": "given",
    "training": "the training patients' median of each fold",
    "predictions": "the evaluated patients' own median of each fold, since the training side is not known",
}


def _print_survival(details: SurvivalDetails, level: str) -> None:
    groups = details.risk_groups
    table = plain_table("risk groups, all folds", "risk", "patients", "events", f"median time [{level}]")
    for g in groups.groups:
        ends = ", ".join("–" if v != v else f"{v:.4g}" for v in g.median_interval)
        median = "–" if g.median_time != g.median_time else f"{g.median_time:.4g}"
        table.add_row(g.name, str(g.patients), str(g.events), escape(f"{median} [{ends}]"))
    out.print(table)
    out.print(escape(f"Hazard ratio of high risk {_test(groups)}; cut: {_WHOSE_CUT[groups.cut_from]}."))
    if groups.stratified is not None:
        out.print(escape(f"Stratified by fold: hazard ratio {_test(groups.stratified)}."))
    if details.calibration:
        table = plain_table(f"events up to {details.at:.4g}", "patients", "expected", f"observed [{level}]")
        for c in details.calibration:
            table.add_row(str(c.patients), number(c.expected), escape(f"{number(c.observed)} {interval(c.interval)}"))
        out.print(table)
    whose = "training patients" if details.censoring_from == "training" else "evaluated patients themselves"
    at = "–" if details.at != details.at else f"{details.at:.4g}"
    out.print(f"auc_at and observed_expected at time {at}; censoring of each fold estimated from its {whose}.")


def _test(groups: RiskGroups | StratifiedTest) -> str:
    p = "–" if groups.p_value != groups.p_value else f"{groups.p_value:.3g}"
    return f"{number(groups.hazard_ratio)} {interval(groups.hazard_ratio_interval)}, log-rank p {p}"


def print_comparison(comparison: Comparison) -> None:
    """Two runs' metrics side by side, and what the tests say."""
    level = f"{comparison.confidence:.0%}"
    size = f"{comparison.slides} slides, {comparison.cases} patients, {len(comparison.folds)} folds"
    means = plain_table(f"{size}: mean over folds", "metric", "A", "B", f"B − A [{level}]", "p", "p, folds")
    pooled = plain_table("all folds together", "metric", f"B − A [{level}]", "p", "p, DeLong")
    stratified = plain_table("pairs of patients of the same fold", "metric", f"B − A [{level}]", "p")
    for name, m in comparison.metrics.items():
        change = escape(f"{number(m.mean)} {interval(m.mean_interval)}")
        means.add_row(name, number(m.first), number(m.second), change, number(m.mean_p), number(m.t_test.p_value))
        delong = "" if m.delong is None else number(m.delong.p_value)
        change = escape(f"{number(m.pooled)} {interval(m.pooled_interval)}")
        pooled.add_row(name, change, number(m.pooled_p), delong)
        if m.stratified is not None and len(comparison.folds) > 1:
            change = escape(f"{number(m.stratified)} {interval(m.stratified_interval)}")
            stratified.add_row(name, change, number(m.stratified_p))
    out.print(f"A: {comparison.first}\nB: {comparison.second}", markup=False, soft_wrap=True)
    out.print(means, pooled)
    if stratified.row_count:
        out.print(stratified)
    out.print("p: bootstrap over patients. p, folds: corrected resampled t-test (Nadeau and Bengio 2003).")
    for note in comparison.notes:
        out.print(f"[yellow]note:[/] {escape(note)}")


def print_benchmark(benchmark: Benchmark) -> None:
    """Models side by side by the first metric, and what they cost."""
    header, rows = benchmark.header(), benchmark.cells()
    for columns in ((0, 1, 2, 3), (0, 4, 5, 6)):
        table = plain_table("", *(header[i] for i in columns))
        for cells in rows:
            if any(cells[i] for i in columns[1:]):
                table.add_row(*(escape(cells[i]) for i in columns))
        out.print(table)
    if controls := benchmark.control_cells():
        table = plain_table("controls beside their own models", *benchmark.control_header())
        for cells in controls:
            table.add_row(*(escape(cell) for cell in cells))
        out.print(table)
    for line in benchmark.legend():
        out.print(escape(line))


def print_models(models: list[ModelEntry], in_dim: int, classes: int) -> None:
    """The aggregators, their sources, and why some cannot be built here."""
    title = f"default options, {in_dim} numbers a patch, {classes} classes"
    table = plain_table(title, "name", "sees", "order", "weights", "cost")
    papers = plain_table("where they come from", "name", "paper")
    table.columns[0].no_wrap = table.columns[1].no_wrap = papers.columns[0].no_wrap = True
    table.columns[3].justify = "right"
    for m in models:
        count = "–" if m.parameters is None else f"{m.parameters:,}"
        table.add_row(escape(m.name), m.sees, m.order, count, m.cost)
        papers.add_row(escape(m.name), escape(m.paper))
    out.print(table)
    out.print("Order: of patches. Cost: what time grows with; cells are those of the tissue's bounding box, with gaps.")
    out.print(papers)
    out.print("wsi2d models NAME prints a model's options, and its source in full.")
    needs = {m.problem.partition(" needs ")[2] for m in models if m.problem}
    for need in sorted(needs):
        out.print(f"[yellow]note:[/] models with a dash need {escape(need)}", soft_wrap=True)


def print_model(model: ModelEntry, in_dim: int, classes: int) -> None:
    """One aggregator with its options."""
    out.print(f"{model.name}: sees a {model.sees}; order: {model.order}; cost: {model.cost}", markup=False)
    if model.parameters is not None:
        out.print(f"{model.parameters:,} parameters with these defaults, {in_dim} numbers a patch, {classes} classes")
    out.print(f"Source: {model.source}", markup=False)
    if model.problem:
        out.print(f"[yellow]note:[/] {escape(model.problem)}", soft_wrap=True)
    table = plain_table("", "model.…", "default", "may be", "")
    for option in model.options:
        default = str(option.default).lower() if isinstance(option.default, bool) else f"{option.default}"
        table.add_row(escape(option.name), escape(default), escape(option.values), escape(option.description))
    out.print(table)
