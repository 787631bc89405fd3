"""``wsi2d heatmap``: where the model looked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def heatmap(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    slide: Annotated[str, typer.Argument(help="A slide's id, or a slide file.")],
    out: Annotated[Path, typer.Option(help="PNG, PDF or SVG.")],
    slides: Annotated[Path | None, typer.Option(help="Folder of slide files. (default: the run's data.slides)")] = None,
    features: Annotated[Path | None, typer.Option(help="Folder of feature files. (default: the run's)")] = None,
    slide_mpp: Annotated[float | None, typer.Option(help="Pixel size of a new slide's level 0, µm/px.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Draw the attention over a slide.

    A slide of the cohort is shown by the model of the fold that did not see it, a new one by the mean of all folds.
    """
    from rich.markup import escape

    from wsi2d.cli import console
    from wsi2d.explain.heatmap import caption
    from wsi2d.explain.heatmap import heatmap as draw
    from wsi2d.slides.pixel_size import check_mpp

    check_mpp(slide_mpp, "--slide-mpp:")
    console.check_out(out)
    attention = draw(run, slide, out, slides=slides, features=features, slide_mpp=slide_mpp, device=device)
    console.out.print(f"{escape(caption(attention))} → {escape(str(out))}", soft_wrap=True)
