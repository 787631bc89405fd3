"""Attention that a run kept for its slides, put to the patches of their feature files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from wsi2d.errors import RunError


@dataclass(frozen=True)
class PatchAttention:
    """Attention of one slide's patches, in the order of its features.

    Attributes:
        weights: float64 ``[N]``, the mean over the folds that had the slide on their test side. A slide's sum up to 1,
            or those of all slides of a patient where the run joins them.
        relative: likewise in multiples of what each patch would get if all of its bag got the same.
        percentile: share of patches that have no more of it, percent; the mean rank where some have as much.
    """

    weights: np.ndarray
    relative: np.ndarray
    percentile: np.ndarray


class AttentionFiles:
    """Where attention lies: a run's folds, a folder of ``<slide_id>.h5``, or one such file.

    Args:
        place: the run folder, the folder or the file.

    Raises:
        RunError: there is none.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        folders = sorted(place.glob("fold-*/attention"), key=lambda p: (len(p.parent.name), p.parent.name))
        self._folders = folders or [place]
        if not place.exists() or not (place.is_file() or any(any(f.glob("*.h5")) for f in self._folders)):
            raise RunError(
                f"attention {place}: there is none of any slide; give a run, or a folder or a file of its attention"
            )

    def of(self, slide_id: str) -> tuple[Path, ...]:
        """Files of a slide, in order of the folds.

        Raises:
            RunError: there is none.
        """
        if self._place.is_file():
            return (self._place,)
        found = tuple(path for folder in self._folders if (path := folder / f"{slide_id}.h5").is_file())
        if not found:
            raise RunError(
                f"slide '{slide_id}': no attention in {self._place}, which has that of test slides; leave it out, or "
                "give the run that tested it"
            )
        return found

    def describe(self, slide_id: str) -> str:
        """Whose attention it is, as ``fold-0, fold-3``, or the file's name."""
        files = self.of(slide_id)
        return ", ".join(f.parent.parent.name if f.parent.name == "attention" else f.name for f in files)

    def read(self, slide_id: str, coords: np.ndarray) -> PatchAttention:
        """Attention of a slide.

        Args:
            slide_id: the slide.
            coords: int32 ``[N, 2]``, level-0 (x, y) of its patches.

        Raises:
            RunError: it is not there, damaged, or of other patches.
        """
        weights, bag_patches = zip(*(_read(path, coords) for path in self.of(slide_id)), strict=True)
        mean = np.mean(weights, 0)
        relative = np.mean([w * n for w, n in zip(weights, bag_patches, strict=True)], 0)
        return PatchAttention(mean, relative, _percentile(mean))


def _read(path: Path, coords: np.ndarray) -> tuple[np.ndarray, int]:
    """Weights ``[N]``, and how many patches their bag has."""
    try:
        with h5py.File(path, "r") as file:
            bag_patches = int(file.attrs.get("bag_patches", len(coords)))
            fits = file["attention"].shape == (len(coords),) and file["coords"].shape == coords.shape
            fits = fits and np.array_equal(file["coords"][()], coords)
            weights = file["attention"][()].astype(np.float64) if fits else np.zeros(0)
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise RunError(f"{path}: no readable attention; train the run again, or leave it out") from error
    if not fits:
        raise RunError(f"{path}: is of other patches than the features; export those that the run was trained on")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise RunError(f"{path}: attention must be finite and not negative; train the run again, or leave it out")
    if bag_patches < len(coords):
        raise RunError(f"{path}: says that its bag has {bag_patches} patches, and has more; train the run again")
    return weights, bag_patches


def _percentile(weights: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    ranks: np.ndarray = 100.0 * rankdata(weights) / max(1, len(weights))
    return ranks
