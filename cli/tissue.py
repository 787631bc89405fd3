"""``wsi2d tissue``: what extraction will cut."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsi2d.cli.extract import (
    ConfigOption,
    MinTissueOption,
    MppOption,
    OverlapOption,
    OverrideOption,
    PatchOption,
    SlideMppOption,
    SlidesArgument,
    extract_config,
)


def tissue(
    slides: SlidesArgument,
    out: Annotated[Path, typer.Option(help="PNG, PDF or SVG; for several slides a folder, which gets a PNG each.")],
    config: ConfigOption = None,
    mpp: MppOption = None,
    patch_px: PatchOption = None,
    overlap_px: OverlapOption = None,
    min_tissue: MinTissueOption = None,
    slide_mpp: SlideMppOption = None,
    override: OverrideOption = None,
) -> None:
    """Draw slides with the outline of their tissue and the patches that `extract` would cut with the same options.

    Slides that fail are named, the others go on, and the exit code is 1.
    """
    from rich.markup import escape

    from wsi2d.cli import console
    from wsi2d.errors import ConfigError, SlideError
    from wsi2d.explain.tissue_picture import tissue_picture
    from wsi2d.slides.discovery import find_slides
    from wsi2d.slides.pixel_size import check_mpp
    from wsi2d.slides.reader_pool import ReaderPool

    check_mpp(slide_mpp, "--slide-mpp:")
    patch = {"mpp": mpp, "patch_px": patch_px, "overlap_px": overlap_px, "min_tissue": min_tissue}
    settings = extract_config(config, patch, override or [])
    found = find_slides(slides)
    one = bool(out.suffix)
    if one and len(found) > 1:
        raise ConfigError(f"out {out}: {len(found)} slides need a folder; give one without a suffix, or one slide")
    console.check_out(out, folder=not one)
    failed = 0
    with ReaderPool(limit_s=settings.read_limit_s) as pool:
        for file in found:
            picture = out if one else out / f"{file.slide_id}.png"
            try:
                drawn = tissue_picture(
                    file.path, picture, settings, slide_id=file.slide_id, slide_mpp=slide_mpp, pool=pool
                )  # fmt: skip
            except SlideError as error:
                if one:
                    raise
                failed += 1
                console.err.print(f"[red]failed:[/] {escape(str(error))}", soft_wrap=True)
            else:
                console.out.print(f"{escape(drawn.describe())} → {escape(str(picture))}", soft_wrap=True)
    if failed:
        raise typer.Exit(1)
