"""What a peer's file says of a slide, in the same words whichever tool wrote it; each tool's layout has its own file.

All of this runs in processes of their own (:mod:`wsi2d.features.imports.isolated`), since a damaged file of HDF5's
older layout, which all of these tools write, can crash or hang its reader.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import h5py
import numpy as np

from wsi2d.errors import FeatureStoreError, one_line
from wsi2d.features.hdf5 import check_bytes, find, read_array
from wsi2d.features.imports.pitch import PitchSource

_LONGEST_NAME = 256


@dataclass(frozen=True)
class PeerSlide:
    """A slide as a peer's file tells of it; lengths are in ``unit``, what the file does not say is None.

    Attributes:
        tool, version: who wrote it.
        features: name of the array ``[N, D]`` of embeddings, for :func:`embeddings`.
        dim: width of an embedding; 0 for an empty slide whose file does not say.
        coords: float64 ``[N, 2]``, (x, y) of the patches' top-left corners.
        unit: ``px`` of level 0, or ``um``.
        encoder: name of the encoder.
        patch_px, mpp: side (px) and resolution (µm/px) of a patch as the encoder saw it.
        nominal_mpp: whether ``mpp`` is that of a magnification (10 µm/px is 1×), which the user may know better.
        patch: side of a patch.
        pitch, pitch_from: distance of neighbouring patches, and how the file tells it.
        one_grid: whether the tool lays one grid over the whole slide.
        usual_pitch: what it is with the tool's usual settings, where the file does not tell.
        size: width and height of the slide.
        slide_mpp: size of a level-0 pixel, µm, as the magnification says.
    """

    tool: str
    features: str
    dim: int
    coords: np.ndarray
    version: str | None = None
    unit: Literal["px", "um"] = "px"
    encoder: str | None = None
    patch_px: int | None = None
    mpp: float | None = None
    nominal_mpp: bool = False
    patch: float | None = None
    pitch: float | None = None
    pitch_from: PitchSource = "attribute"
    one_grid: bool = False
    usual_pitch: float | None = None
    size: tuple[float, float] | None = None
    slide_mpp: float | None = None


class Source:
    """An open file of a peer's; use it as a context manager.

    Attributes:
        file: the file with the embeddings.
        path: where it lies.
        encoder: whose embeddings are wanted, of files that hold those of several.
    """

    def __init__(self, path: Path, patches: Path | None = None, encoder: str | None = None) -> None:
        self.path, self.encoder, self._patches = path, encoder, patches
        self._open = ExitStack()
        self.file = self._open.enter_context(h5py.File(path, "r"))

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @cached_property
    def patches(self) -> h5py.File | None:
        """The file with the patches' coordinates that goes with it, where there is one; opened when it is asked for.

        Raises:
            OSError, ValueError: it is damaged, or holds no coordinates.
        """
        if self._patches is None:
            return None
        try:
            file = self._open.enter_context(h5py.File(self._patches, "r"))
            if isinstance(file.get("coords"), h5py.Dataset):
                return file
        except (OSError, RuntimeError) as error:
            raise OSError(f"{self._patches}: {error}") from error
        raise ValueError(f"{self._patches} holds no coordinates")


@dataclass(frozen=True)
class Attributes:
    """Attributes of a file or an array, as they can be trusted.

    Raises:
        ValueError: in its methods, where an attribute is there and cannot be what it stands for.
    """

    of: Any

    def __contains__(self, name: str) -> bool:
        return name in self.of.attrs

    def text(self, name: str) -> str | None:
        """A name; None where there is none."""
        value = self._value(name)
        if value is None:
            return None
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        text = one_line(text)[:_LONGEST_NAME]
        return text if text and text != "None" else None

    def number(self, name: str, *, least: float = 0.0, above: bool = True) -> float | None:
        """A finite number above ``least``, or no less; None where there is none."""
        value = self._value(name)
        if value is None or (isinstance(value, str | bytes) and value in ("None", b"None")):
            return None
        array = np.asarray(value)
        number = float(array.reshape(-1)[0]) if array.size == 1 and array.dtype.kind in "fiu" else math.nan
        if not math.isfinite(number) or number < least or (above and number == least):
            raise ValueError(f"its attribute {name} is {_short(value)}")
        return number

    def pair(self, name: str) -> tuple[float, float] | None:
        """Two finite numbers above 0; None where there are none."""
        value = self._value(name)
        if value is None:
            return None
        pair = np.asarray(value).reshape(-1)
        if pair.dtype.kind not in "fiu" or pair.size not in (1, 2) or not (np.isfinite(pair) & (pair > 0)).all():
            raise ValueError(f"its attribute {name} is {_short(value)}")
        return float(pair[0]), float(pair[-1])

    def _value(self, name: str) -> Any:
        return self.of.attrs.get(name)


def array_2d(file: h5py.Group, name: str, *, columns: int | None = None) -> h5py.Dataset:
    """An array of numbers ``[N, columns]``; one of shape ``(0,)``, as some tools write for an empty slide, passes too.

    Raises:
        KeyError: there is none of that name.
        ValueError: it is something else, or says that it holds more than the file does.
    """
    data = find(file, name)
    if not isinstance(data, h5py.Dataset) or data.dtype.kind not in "fiu":
        raise ValueError(f"{name} is no array of numbers")
    empty = data.shape == (0,)
    if not empty and (data.ndim != 2 or (columns is not None and data.shape[1] < columns)):
        wanted = f"[N, {columns}]" if columns else "[N, D]"
        raise ValueError(f"{name} is {list(data.shape)}, and not {wanted}, one row a patch")
    check_bytes(data)
    return data


def read_coords(file: h5py.Group) -> np.ndarray:
    """The first two columns of ``coords``, float64 ``[N, 2]``."""
    values = read_array(array_2d(file, "coords", columns=2))
    return values.reshape(len(values), -1)[:, :2].astype(np.float64) if len(values) else np.zeros((0, 2))


def embeddings(file: h5py.Group, name: str, rows: int) -> h5py.Dataset:
    """The array of embeddings.

    Raises:
        ValueError: it has another number of rows than there are coordinates.
    """
    data = array_2d(file, name)
    if len(data) != rows:
        raise ValueError(f"{name} has {len(data)} rows, and coords {rows}")
    return data


def width(data: h5py.Dataset) -> int:
    """How many numbers an embedding has; 0 where an empty array does not say."""
    return int(data.shape[1]) if data.ndim == 2 else 0


def slide_size(attributes: Attributes) -> tuple[float, float] | None:
    """Width and height of level 0 as TRIDENT and AtlasPatch write them."""
    size = attributes.number("level0_width"), attributes.number("level0_height")
    return None if size[0] is None or size[1] is None else (size[0], size[1])


def choose(encoder: str | None, found: Iterable[str], path: Path) -> str:
    """Which of several encoders' embeddings to take.

    Raises:
        FeatureStoreError: it has to be said, or there is none of that name.
    """
    names = sorted(found)
    if not names:
        raise FeatureStoreError(f"{path}: holds coordinates but no features; extract them with the tool that wrote it")
    if encoder is None and len(names) == 1:
        return names[0]
    listed = ", ".join(names)
    if encoder is None:
        raise FeatureStoreError(
            f"{path}: holds features of {len(names)} encoders ({listed}); choose with --encoder, or data.encoder"
        )
    if encoder not in names:
        raise FeatureStoreError(f"{path}: holds no features of encoder '{encoder}'; there are {listed}")
    return encoder


def _short(value: object) -> str:
    return " ".join(repr(value).split())[:60]
