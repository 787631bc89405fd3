"""``wsi2d import``: features that other tools extracted, as feature files of ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from wsi2d.features.imports.importing import ImportProgress, ImportReport, SlideImport
    from wsi2d.features.outcomes import Outcome


def import_(
    source: Annotated[
        Path,
        typer.Argument(metavar="SRC", help="A folder of TRIDENT, CLAM, STAMP or AtlasPatch, or of their features."),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the feature files; not needed with --check.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Read and report; write nothing.")] = False,
    encoder: Annotated[
        str | None, typer.Option(help="Encoder, where the files do not say it or hold the features of several.")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="Resolution of the patches, µm/px, where the files do not say.")
    ] = None,
    patch_px: Annotated[int | None, typer.Option(help="Side of a patch, px, where the files do not say.")] = None,
    patches: Annotated[
        Path | None, typer.Option(help="CLAM's folder `patches`, where it does not lie beside the features.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that read files.", min=1, max=1024)] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Import finished slides again.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Snap the patches of other tools' features to a grid, and write a feature file a slide.

    What was found on each slide is printed (docs/imports.md explains the words). Finished slides are skipped. Slides
    that fail are named in failures.csv, the others go on, and the exit code is 1.
    """
    import json as js

    from rich.markup import escape

    from wsi2d.cli import console
    from wsi2d.features.imports.claims import Claims
    from wsi2d.features.imports.importing import import_features

    claims = Claims(encoder, mpp, patch_px)
    if out is not None:
        console.check_out(out, folder=True)
    with console.progress_bars("slides") as bars:
        report = import_features(
            source, out, claims=claims, patches=patches, check=check, overwrite=overwrite, workers=workers,
            progress=bars_for_import(bars),
        )  # fmt: skip
    if json:
        typer.echo(js.dumps(report.as_dict(), indent=2))
    else:
        _print_report(report, None if check else out)
    for failure in report.failures:
        console.err.print(f"[red]failed:[/] {escape(failure.error)}", soft_wrap=True)
    _warn_unknown(report)
    if report.failures:
        raise typer.Exit(1)


def _print_report(report: ImportReport, out: Path | None) -> None:
    from rich.markup import escape

    from wsi2d.cli import console

    console.out.print(escape(f"{report.tool}: {_described(report)}"), soft_wrap=True)
    for slide in report.slides:
        if slide.header is not None:
            console.out.print(escape(f"{slide.slide_id}: {_found(slide)}"), soft_wrap=True)
    said = [(report.count(outcome), what) for outcome, what in _OUTCOMES]
    counts = ", ".join(f"{count} {what}" for count, what in said if count)
    where = "" if out is None else f" → {escape(str(out))}"
    console.out.print(f"slides: {counts}, of {len(report.slides)}{where}", soft_wrap=True)


_OUTCOMES: tuple[tuple[Outcome, str], ...] = (
    ("done", "imported"),
    ("empty", "imported without patches"),
    ("checked", "can be imported"),
    ("skipped", "already finished"),
    ("elsewhere", "in progress elsewhere"),
    ("failed", "failed"),
)
# What is said of a slide where it is not 0, in this order.
_COUNTS = {
    "off_grid": "off the grid",
    "collisions": "collisions",
    "moved": "moved",
    "dropped": "dropped",
    "duplicates": "duplicates",
    "unplaced": "without coordinates",
    "outside": "outside the slide",
    "holes": "holes",
}


def _found(slide: SlideImport) -> str:
    found = slide.as_dict()
    unit = "µm" if found["unit"] == "um" else "px"
    pitch = (
        "no pitch" if found["pitch_from"] == "none" else f"pitch {found['pitch']:.6g} {unit} ({found['pitch_from']})"
    )
    counts = [f"{found[name]} {what}" for name, what in _COUNTS.items() if found[name]]
    return ", ".join([f"{found['patches']} patches in {found['cells']} cells", pitch, *counts])


def _described(report: ImportReport) -> str:
    if report.spec is None:
        return "no patches"
    spec = report.spec
    mpp = "unknown resolution" if spec.mpp is None else f"{spec.mpp:.4g} µm/px"
    side = "patches of unknown size" if spec.patch_px is None else f"patches of {spec.patch_px} px"
    return f"encoder {spec.encoder or 'unknown'}, {mpp}, {side}, {spec.dim} numbers each"


def _warn_unknown(report: ImportReport) -> None:
    from wsi2d.cli import console

    options = {"encoder": "--encoder", "mpp": "--mpp", "patch_px": "--patch-px"}
    missing = [options[name] for name in (report.spec.unknown if report.spec is not None else ())]
    if missing:
        console.err.print(
            f"[yellow]warning:[/] {report.tool}'s files do not say everything; what is unknown is recorded so until "
            f"{', '.join(missing)} is given, now or later, and goes together only with what is unknown too",
            soft_wrap=True,
        )


def bars_for_import(bars: Progress) -> ImportProgress:
    """A bar over the slides, once while they are read and once while they are written."""
    from wsi2d.features.imports.importing import ImportProgress

    class Bars(ImportProgress):
        def started(self, what: str, slides: int) -> None:
            self.task = bars.add_task(what, total=slides, rate="")

        def slide_done(self) -> None:
            bars.advance(self.task)

    return Bars()
