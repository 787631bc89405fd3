"""HDF5 as feature files need it: damage is noticed, and a damaged shape does not fill the memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

# HDF5's layout since 1.10, which has a checksum on all of its own data; the older one can hang a reader where it is
# damaged, and so can strings of variable length in either.
LAYOUT = ("v110", "v110")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_OLD_SUPERBLOCKS = (0, 1)
CHUNK_BYTES = 2**20
_DEFLATE_AT_MOST = 1100  # no compressor of HDF5's makes an array smaller than by that


def has_old_layout(path: Path) -> bool:
    """Whether a file has a layout of HDF5's without checksums, in which damage can make readers hang; ours never do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(len(_SIGNATURE) + 1)
    return start[:-1] == _SIGNATURE and start[-1] in _OLD_SUPERBLOCKS


def create(file: h5py.File, name: str, shape: tuple[int, int], dtype: np.dtype) -> h5py.Dataset:
    """A new array of rows, in chunks of about a megabyte with a checksum each, so that damage is noticed."""
    if not shape[0]:
        return file.create_dataset(name, shape, dtype)
    rows = max(1, CHUNK_BYTES // max(1, shape[1] * dtype.itemsize))
    return file.create_dataset(name, shape, dtype, chunks=(min(rows, shape[0]), shape[1]), fletcher32=True)


def write_attributes(file: h5py.File, values: Mapping[str, Any]) -> None:
    """Attributes of the file; texts are of fixed length."""
    for name, value in values.items():
        if isinstance(value, str):
            raw = value.encode()
            file.attrs.create(name, raw, dtype=h5py.string_dtype("utf-8", max(1, len(raw))))
        else:
            file.attrs[name] = value


def read_attributes(file: h5py.File) -> dict[str, Any]:
    """Attributes of the file; texts of fixed length as str, those of variable length left out."""
    values = {}
    for name in file.attrs:
        kind = file.attrs.get_id(name).get_type()
        if isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str():
            continue  # not ours, and where it is damaged HDF5 can hang on it
        value = file.attrs[name]
        values[name] = value.decode("utf-8") if isinstance(value, bytes) else value
    return values


def find(file: h5py.Group, name: str) -> Any:
    """What a file holds under a name.

    Raises:
        KeyError: nothing bears that name.
        OSError: something does and cannot be opened.
    """
    if name not in file:
        raise KeyError(name)
    try:
        return file[name]
    except KeyError as error:  # what h5py makes of an object that is there and cannot be opened
        raise OSError(f"{name}: {error.args[0]}") from error


def read_array(data: h5py.Dataset, rows: slice = slice(None)) -> np.ndarray:
    """All of an array, or some rows.

    Raises:
        OSError: it is damaged.
    """
    try:
        values: np.ndarray = data[rows]
    except KeyError as error:  # also what h5py makes of a checksum that does not fit
        raise OSError(f"{data.name}: {error.args[0]}") from error
    return values


def check_bytes(data: h5py.Dataset) -> None:
    """Whether the file can hold as much as an array's shape says; a damaged one can ask for terabytes.

    Raises:
        ValueError: it cannot.
    """
    stored = min(data.id.get_storage_size(), Path(data.file.filename).stat().st_size)
    if data.nbytes > (stored * _DEFLATE_AT_MOST if _is_compressed(data) else stored):
        name = str(data.name).lstrip("/")
        raise ValueError(f"{name} says it holds {list(data.shape)}, there are only {stored} bytes")


def _is_compressed(data: h5py.Dataset) -> bool:
    how = data.id.get_create_plist()
    filters = {how.get_filter(i)[0] for i in range(how.get_nfilters())}
    return bool(filters - {h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_SHUFFLE})
