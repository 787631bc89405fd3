"""``wsi2d extract``: slides to feature files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from wsi2d.config import ExtractConfig
    from wsi2d.features.extract import ExtractProgress

# Also those of `wsi2d tissue`.
SlidesArgument = Annotated[list[Path], typer.Argument(help="Slide files, or folders that are searched for them.")]
OverrideOption = Annotated[
    list[str] | None, typer.Option("--set", help="key=value of the configuration, as tissue.ink=keep.")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML with the options below and those of tissue.")]
MppOption = Annotated[float | None, typer.Option("--mpp", help="Resolution of the patches, µm/px. (default: 0.5)")]
PatchOption = Annotated[int | None, typer.Option("--patch-px", help="Side of a patch, px. (default: 256)")]
OverlapOption = Annotated[
    int | None, typer.Option("--overlap-px", help="Overlap of neighbouring patches, px. (default: 0)")
]
MinTissueOption = Annotated[
    float | None, typer.Option("--min-tissue", help="Share of a patch that must be tissue. (default: 0.25)")
]
SlideMppOption = Annotated[float | None, typer.Option("--slide-mpp", help="Pixel size of the slides' level 0, µm/px.")]


def extract(
    slides: SlidesArgument,
    out: Annotated[Path, typer.Option(help="Folder of the feature files.")],
    config: ConfigOption = None,
    encoder: Annotated[str | None, typer.Option(help="Patch encoder. (default: histology-stats)")] = None,
    mpp: MppOption = None,
    patch_px: PatchOption = None,
    overlap_px: OverlapOption = None,
    min_tissue: MinTissueOption = None,
    slide_mpp: SlideMppOption = None,
    cohort: Annotated[Path | None, typer.Option(help="CSV with slide_id and mpp, for slides' pixel sizes.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read patches. (default: 2)")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Patches an encoder call. (default: 64)")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N. (default: auto)")] = None,
    override: OverrideOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo finished slides too.")] = False,
) -> None:
    """Cut slides into patches and encode them, one HDF5 file a slide.

    Finished slides are skipped. Slides that fail are named in failures.csv, the others go on, and the exit code is 1.
    """
    from rich.markup import escape

    from wsi2d.cli import console
    from wsi2d.data.cohort import load_cohort_mpp
    from wsi2d.features.extract import extract as run
    from wsi2d.slides.discovery import find_slides
    from wsi2d.slides.pixel_size import check_mpp

    check_mpp(slide_mpp, "--slide-mpp:")
    patch = {"mpp": mpp, "patch_px": patch_px, "overlap_px": overlap_px, "min_tissue": min_tissue}
    settings = extract_config(
        config, patch, override or [], encoder=encoder, workers=workers, batch_size=batch_size, device=device
    )  # fmt: skip
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


def extract_config(
    config: Path | None, patch: Mapping[str, Any], overrides: Sequence[str], **given: Any
) -> ExtractConfig:
    """Options, and ``key=value`` overrides, laid over a configuration file; what is None was not given."""
    from wsi2d.config import ExtractConfig, validate
    from wsi2d.config_files import apply_override, merge, read_yaml

    options = {k: v for k, v in given.items() if v is not None}
    chosen = {k: v for k, v in patch.items() if v is not None}
    options |= {"patch": chosen} if chosen else {}
    values = merge(read_yaml(config) if config else {}, options)
    for override in overrides:
        apply_override(values, override)
    return validate(ExtractConfig, values, source=str(config or "extract"))


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
