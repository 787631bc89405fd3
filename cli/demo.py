"""``wsi2d demo``: the whole pipeline on slides painted for it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wsi2d.demo.pipeline import DemoReport


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")],
    slides: Annotated[int, typer.Option(help="Number of slides.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the cohort, the splits and the trainings.")] = 0,
) -> None:
    """Paint a cohort of slides, extract, split, train five models, evaluate, draw heatmaps, print one table.

    The slides are painted from a real immunohistochemistry picture. The class lies only in how two kinds of patch are
    arranged: a compact nest, or scattered.
    """
    from wsi2d.cli import console
    from wsi2d.cli.extract import bars_for_extraction
    from wsi2d.cli.train import bars_for_training
    from wsi2d.demo.pipeline import DemoProgress, run_demo
    from wsi2d.features.outcomes import ExtractProgress
    from wsi2d.training.crossval import TrainProgress

    console.check_out(out, folder=True)
    start = time.perf_counter()
    with console.progress_bars("slides") as bars:

        class Bars(DemoProgress):
            def step(self, title: str) -> None:
                for task in bars.task_ids:
                    bars.remove_task(task)
                console.err.print(f"[bold]{time.perf_counter() - start:4.0f} s[/]  {title}")
                if title.startswith("painting"):
                    self.painted = bars.add_task("slides", total=slides, rate="")

            def slides_made(self) -> None:
                bars.advance(self.painted)

            def extraction(self) -> ExtractProgress:
                return bars_for_extraction(bars, slides)

            def training(self) -> TrainProgress:
                return bars_for_training(bars)

        report = run_demo(out, slides=slides, seed=seed, progress=Bars())
    _print_report(report, slides, seed, time.perf_counter() - start)


def _print_report(report: DemoReport, slides: int, seed: int, seconds: float) -> None:
    from rich.markup import escape

    from wsi2d.cli import console

    folds = len(report.rows[0].summary.per_fold)
    title = f"{slides} slides, seed {seed}, {folds} folds: AUC of the class, C-index of survival"
    table = console.plain_table(title, "run", "each fold", "mean ± sd", "pooled [95 %]")
    for row in report.rows:
        s = row.summary
        spread = f"{console.number(s.mean)} ± {console.number(s.sd)}"
        pooled = f"{console.number(s.pooled)} {escape(console.interval(s.pooled_interval))}"
        table.add_row(row.run, console.fold_values(s), spread, pooled, end_section=row is report.rows[-2])
    console.out.print(table)
    known = report.arrangement_c_index
    console.out.print(
        "Every slide holds both kinds of patch in like shares; the class is only how\n"
        "they are arranged, so abmil, blind to position, has nothing to go by. The\n"
        "controls (no scan; the grid on one row) solve it too: it shows that position\n"
        "matters, not yet that 2D beats 1D. Survival follows the same arrangement:\n"
        f"knowing it and nothing else gives a C-index of {known:.3f}, to be compared with\n"
        "the mean over folds.",
        soft_wrap=True,
    )
    for path in report.heatmaps:
        console.out.print(f"heatmap → {escape(str(path))}", soft_wrap=True)
    console.out.print(f"done in {seconds / 60:.1f} min")
