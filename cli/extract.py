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
    from wsi2d.explain.thumbnails import Thumbnails
    from wsi2d.features.estimate import ExtractEstimate
    from wsi2d.features.outcomes import ExtractProgress, ExtractReport
    from wsi2d.slides.discovery import SlideFile

# Also those of `wsi2d tissue`.
SlidesArgument = Annotated[list[Path], typer.Argument(help="Slide files, or folders that are searched for them.")]
OverrideOption = Annotated[
    list[str] | None, typer.Option("--set", help="key=value of the configuration, as tissue.ink=keep.")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML with the options below and those of tissue.")]
MppOption = Annotated[
    float | None, typer.Option("--mpp", help="Resolution of the patches, µm/px. (default: 0.5, or the encoder's own)")
]
PatchOption = Annotated[
    int | None, typer.Option("--patch-px", help="Side of a patch, px. (default: 256, or the encoder's own)")
]
OverlapOption = Annotated[
    int | None, typer.Option("--overlap-px", help="Overlap of neighbouring patches, px. (default: 0)")
]
MinTissueOption = Annotated[
    float | None, typer.Option("--min-tissue", help="Share of a patch that must be tissue. (default: 0.25)")
]
EncoderOption = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        help="Patch encoder: one of `wsi2d encoders`, timm:MODEL, hf:OWNER/NAME, the PATH of a folder or file of "
        "weights, or NAME=PATH for the weights of a named one. (default: histology-stats)",
    ),
]
SlideMppOption = Annotated[float | None, typer.Option("--slide-mpp", help="Pixel size of the slides' level 0, µm/px.")]


def extract(
    slides: SlidesArgument,
    out: Annotated[Path, typer.Option(help="Folder of the feature files.")],
    config: ConfigOption = None,
    encoder: EncoderOption = None,
    mpp: MppOption = None,
    patch_px: PatchOption = None,
    overlap_px: OverlapOption = None,
    min_tissue: MinTissueOption = None,
    slide_mpp: SlideMppOption = None,
    cohort: Annotated[Path | None, typer.Option(help="CSV with slide_id and mpp, for slides' pixel sizes.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read patches. (default: 2)")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch", "--batch-size", help="Patches an encoder call. (default: 64)")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N. (default: auto)")] = None,
    override: OverrideOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo finished slides too.")] = False,
    shard: Annotated[str | None, typer.Option(metavar="K/N", help="Only the K-th of N shares, as 1/8 to 8/8.")] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Extract on a Dask cluster: tcp://HOST:PORT, or local:N for N processes here.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would take: patches, bytes, time. Writes nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: for programs.")] = False,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="A picture a slide of what was cut, also of finished slides.")
    ] = False,
) -> None:
    """Cut slides into patches and encode them, one HDF5 file a slide.

    Finished slides are skipped. Slides that fail are named in failures.csv, the others go on, and the exit code is 1.
    Several runs may share a folder: a slide that another has in hand is left to it.
    """
    from wsi2d.cli import console
    from wsi2d.data.cohort import load_cohort_mpp
    from wsi2d.errors import ConfigError
    from wsi2d.explain.thumbnails import Thumbnails
    from wsi2d.features.extract import extract as run
    from wsi2d.features.sharding import Shard
    from wsi2d.slides.discovery import find_slides
    from wsi2d.slides.pixel_size import check_mpp

    if as_json and not dry_run:
        raise ConfigError("--json: belongs to --dry-run; give both")
    check_mpp(slide_mpp, "--slide-mpp:")
    patch = {"mpp": mpp, "patch_px": patch_px, "overlap_px": overlap_px, "min_tissue": min_tissue}
    settings = extract_config(
        config, patch, override or [], encoder=encoder, workers=workers, batch_size=batch_size, device=device
    )  # fmt: skip
    share = Shard.parse(shard) if shard is not None else None
    found = find_slides(slides)
    sizes = load_cohort_mpp(cohort) if cohort else None
    chosen = found if share is None else share.take(found)
    if dry_run:
        if cluster is not None:
            said = f"--dry-run measures on this machine; nothing is asked of --cluster {cluster}"
            console.err.print(said, markup=False, soft_wrap=True)
        _dry_run(chosen, out, settings, as_json, slide_mpp=slide_mpp, cohort_mpp=sizes, overwrite=overwrite)
        return
    with console.progress_bars("patches") as bars:
        progress = bars_for_extraction(bars, len(chosen), together=cluster is not None)
        pictures = Thumbnails(out, progress, limit_s=settings.read_limit_s) if thumbnails else None
        report = run(
            found, out, settings,
            slide_mpp=slide_mpp, cohort_mpp=sizes, overwrite=overwrite, shard=share, cluster=cluster,
            progress=pictures or progress,
        )  # fmt: skip
    _print_report(report, pictures, out, "" if share is None else f" in shard {share} ({len(found)} in all)")


def _print_report(report: ExtractReport, pictures: Thumbnails | None, out: Path, where: str) -> None:
    """The last line on stdout, and a line for each failure, with which the exit code is 1."""
    from rich.markup import escape

    from wsi2d.cli import console
    from wsi2d.explain.thumbnails import FOLDER

    counts = [f"{report.count('done')} done", f"{report.count('skipped')} already finished"]
    counts += [f"{report.count('empty')} without tissue"] * bool(report.count("empty"))
    counts += [f"{report.count('elsewhere')} in progress elsewhere"] * bool(report.count("elsewhere"))
    counts += [f"{report.count('failed')} failed"] * bool(report.failures)
    line = f"slides: {', '.join(counts)}, of {len(report.slides)}{where} → {escape(str(out))}"
    console.out.print(line, soft_wrap=True)
    if pictures is not None:
        console.out.print(f"thumbnails: {pictures.drawn} drawn → {escape(str(out / FOLDER))}", soft_wrap=True)
    failures = [failure.error for failure in report.failures] + (pictures.failures if pictures is not None else [])
    for failure in failures:
        console.err.print(f"[red]failed:[/] {escape(failure)}", soft_wrap=True)
    if failures:
        raise typer.Exit(1)


def _dry_run(slides: Sequence[SlideFile], out: Path, settings: ExtractConfig, as_json: bool, **options: Any) -> None:
    """What the extraction would take, as a table or for programs."""
    import json
    from dataclasses import asdict

    from rich.markup import escape

    from wsi2d.cli import console
    from wsi2d.features.estimate import estimate

    console.check_out(out, folder=True)
    with console.progress_bars("patches") as bars:
        found = estimate(slides, out, settings, progress=bars_for_extraction(bars, len(slides)), **options)
    if as_json:
        totals = {"patches": found.patches, "bytes": found.bytes, "seconds": found.seconds}
        typer.echo(json.dumps({**asdict(found), **totals}, indent=2, default=str))
    else:
        _print_estimate(found)
        for failure in found.failures:
            console.err.print(f"[red]failed:[/] {escape(failure.error)}", soft_wrap=True)
    if found.failures:
        raise typer.Exit(1)


def _print_estimate(found: ExtractEstimate) -> None:
    from datetime import timedelta

    from rich.filesize import decimal
    from rich.markup import escape

    from wsi2d.cli import console

    def duration(seconds: float) -> str:
        return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))

    table = console.plain_table("what extracting would take", "slide", "", "patches", "feature file", "time")
    for s in found.slides:
        takes = (f"{s.patches:,}", decimal(s.bytes), duration(s.seconds)) if s.bytes else ()
        table.add_row(escape(s.slide_id), s.state, *takes)
    table.add_row("in all", "", f"{found.patches:,}", decimal(found.bytes), duration(found.seconds))
    console.out.print(table)
    if found.sample is not None:
        rates = f"{found.sample.median:,.0f} patches/s ({found.sample.lowest:,.0f} to {found.sample.highest:,.0f})"
        console.out.print(
            f"Read and encoded for this: {found.sample.patches} patches of {found.sample.slides} slides, {rates}; "
            f"with these, {duration(found.fastest_s)} to {duration(found.slowest_s)} in all.", soft_wrap=True,
        )  # fmt: skip


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


def bars_for_extraction(bars: Progress, slides: int, *, together: bool = False) -> ExtractProgress:
    """A bar over the slides, with the rate of patches, and one over the current slide's patches.

    With ``together``, where several slides are extracted at a time, the second is over the patches of all that began.
    """
    from wsi2d.cli.console import rate_text
    from wsi2d.features.outcomes import ExtractProgress, SlideOutcome

    class Bars(ExtractProgress):
        def __init__(self) -> None:
            self.total = bars.add_task("slides", total=slides, rate="")
            self.current = bars.add_task("", total=0, visible=False, rate="")
            self.done, self.known, self.start = 0, 0, time.perf_counter()

        def slide_started(self, slide_id: str, patches: int) -> None:
            self.known += patches
            if together:
                bars.update(self.current, description="patches", total=self.known, visible=True)
            else:
                bars.reset(self.current, description=slide_id[:32], total=patches, visible=True)

        def patches_done(self, count: int) -> None:
            self.done += count
            bars.advance(self.current, count)
            bars.update(self.total, rate=rate_text(self.done, time.perf_counter() - self.start, "patches"))

        def slide_finished(self, outcome: SlideOutcome) -> None:
            bars.advance(self.total)
            bars.update(self.current, visible=together and self.done < self.known)

    return Bars()
