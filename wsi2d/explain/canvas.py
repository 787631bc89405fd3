"""What all pictures share: how they are saved, and their scale bar."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi2d.errors import ConfigError
from wsi2d.files import make_folder, whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
_SUFFIXES = (".png", ".pdf", ".svg")
# Colours in full resolution, or thin lines would fade.
_JPEG = {"quality": 88, "subsampling": 0}


def check_suffix(out: Path) -> None:
    """Refuse a file that no picture can be saved as.

    Raises:
        ConfigError: its suffix is none of png, pdf and svg.
    """
    if out.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"out {out}: must end in {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}")


def save_figure(figure: Figure, out: Path) -> None:
    """Write a figure, complete or absent, in the format that its suffix names.

    Raises:
        StorageError: it cannot be written.
    """
    make_folder(out.parent, "give another --out")
    picture = io.BytesIO()  # matplotlib's writers trip over a full disk
    kind = out.suffix.lower().removeprefix(".")
    options: dict[str, Any] = {"pil_kwargs": _JPEG} if kind == "jpg" else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(picture, dpi=DPI, format=kind, **options)
    with whole_file(out) as partial:
        partial.write_bytes(picture.getvalue())


def add_title(figure: Figure, text: str, *, fontsize: float | None = None) -> None:
    """A title over a figure, wrapped where it is too long; a name's dollar signs begin no formula."""
    figure.suptitle(text.replace("$", r"\$"), fontsize=fontsize, wrap=True)


def scale_bar(axes: Axes, width_px: int, mpp: float) -> None:
    """A bar of a round length, about a fifth of the picture.

    Args:
        axes: where the picture is shown.
        width_px: width of the picture, px.
        mpp: µm per px of it.
    """
    target = width_px * mpp / 5
    power = 10 ** np.floor(np.log10(target) + 1e-9)
    length = max(n for n in (1, 2, 5) if n * power <= target * (1 + 1e-6)) * power
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    y, x = 0.03, 0.03
    span = length / mpp / width_px
    axes.plot([x, x + span], [y, y], color="black", lw=3, transform=axes.transAxes)
    axes.text(x + span / 2, y + 0.012, label, ha="center", va="bottom", transform=axes.transAxes)
