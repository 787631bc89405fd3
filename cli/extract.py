"""``wsi2d extract``: slides to feature files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from wsi2d.features.extract import ExtractProgress


def extract(
    slides: Annotated[list[Path], typer.Argument(help="Slide files, or folders that are searched for them.")],
    out: Annotated[Path, typer.Option(help="Folder of the feature files.")],
    config: Annotated[Path | None, typer.Option(help="YAML with the options below and those of tissue.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Patch encoder. (default: histology-stats)")] = None,
    mpp: Annotated[float | None, typer.Option(help="Resolution of the patches, µm/px. (default: 0.5)")] = None,
    patch_px: Annotated[int | None, typer.Option(help="Side of a patch, px. (default: 256)")] = None,
    overlap_px: Annotated[int | None, typer.Option(help="Overlap of neighbouring patches, px. (default: 0)")] = None,
    min_tissue: Annotated[
        float | None, typer.Option(help="Share of a patch that must be tissue. (default: 0.25)")
    ] = None,
    slide_mpp: Annotated[float | None, typer.Option(help="Pixel size of the slides' level 0, µm/px.")] = None,
    cohort: Annotated[Path | None, typer.Option(help="CSV with slide_id and mpp, for slides' pixel sizes.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that read patches. (default: 2)")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Patches an encoder call. (default: 64)")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N. (default: auto)")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo finished slides too.")] = False,
) -> None:
    """Cut slides into patches and encode them, one HDF5 file a slide.

    Finished slides are skipped. Slides that fail are named in failures.csv, the others go on, and the exit code is 1.
    """
    from rich.markup import escape

    from wsi2d.cli import console
    from wsi2d.config import ExtractConfig, validate
    from wsi2d.config_files import merge, read_yaml
    from wsi2d.data.cohort import load_cohort_mpp
    from wsi2d.features.extract import extract as run
    from wsi2d.slides.discovery import find_slides

    patch = {"mpp": mpp, "patch_px": patch_px, "overlap_px": overlap_px, "min_tissue": min_tissue}
    given: dict[str, Any] = {"encoder": encoder, "workers": workers, "batch_size": batch_size, "device": device}
    given = {k: v for k, v in given.items() if v is not None}
    patch = {k: v for k, v in patch.items() if v is not None}
    given |= {"patch": patch} if patch else {}
    values = merge(read_yaml(config) if config else {}, given)
    settings = validate(ExtractConfig, values, source=str(config or "extract"))
    found = find_slides(slides)
    sizes = load_cohort_mpp(cohort) if cohort else None
    with console.progress_bars("patches") as bars:
        report = run(
            found, out, settings,
            slide_mpp=slide_mpp, cohort_mpp=sizes, overwrite=overwrite, progress=bars_for_extraction(bars, len(found)),
        )  # fmt: skip
    counts = [f"{report.count('done')} done", f"{report.count('skipped')} already finished"]
    counts += [f"{report.count('empty')} without tissue"] * bool(report.count("empty"))
    counts += [f"{report.count('failed')} failed"] * bool(report.failures)
    console.out.print(f"slides: {', '.join(counts)}, of {len(found)} → {escape(str(out))}", soft_wrap=True)
    for failure in report.failures:
        console.err.print(f"[red]failed:[/] {escape(failure.error)}", soft_wrap=True)
    if report.failures:
        raise typer.Exit(1)


def bars_for_extraction(bars: Progress, slides: int) -> ExtractProgress:
    """A bar over the slides, with the rate of patches, and one over the current slide's patches."""
    from wsi2d.cli.console import rate_text
    from wsi2d.features.extract import ExtractProgress, SlideOutcome

    class Bars(ExtractProgress):
        def __init__(self) -> None:
            self.total = bars.add_task("slides", total=slides, rate="")
            self.current = bars.add_task("", total=0, visible=False, rate="")
            self.done, self.start = 0, time.perf_counter()

        def slide_started(self, slide_id: str, patches: int) -> None:
            bars.reset(self.current, description=slide_id[:32], total=patches, visible=True)

        def patches_done(self, count: int) -> None:
            self.done += count
            bars.advance(self.current, count)
            bars.update(self.total, rate=rate_text(self.done, time.perf_counter() - self.start, "patches"))

        def slide_finished(self, outcome: SlideOutcome) -> None:
            bars.advance(self.total)
            bars.update(self.current, visible=False)

    return Bars()
