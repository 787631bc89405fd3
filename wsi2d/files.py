"""Files that are complete or absent: written under another name beside their place, and renamed."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wsi2d.errors import FullDiskError, StorageError, one_line

Stamp = tuple[int, int, int]
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


def stamp(path: Path) -> Stamp | None:
    """Tells one state of a file from another; None where there is no file."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # a ValueError where no file can bear that name
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def partial_path(path: Path) -> Path:
    """The name under which a file is written before it is complete."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; when the block ends well the file appears under its name, else nothing stays.

    Raises:
        StorageError: the disk does not take it.
    """
    partial = partial_path(path)
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):  # what led here is to be told; what is left is removed by the next run
            partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a folder to write into; when the block ends well it appears under its name, else nothing stays.

    What was there under that name is replaced.

    Raises:
        StorageError: the disk does not take it.
    """
    partial = partial_path(path)
    before = partial_path(path.with_name(f"{path.name}.before"))
    try:
        discard(partial)
        partial.mkdir()
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _sync(file)
        discard(before)
        if path.exists():
            os.replace(path, before)
        os.replace(partial, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        for left in (partial, before):
            with suppress(StorageError):
                discard(left)


def write_text(path: Path, text: str) -> None:
    """Write a text file, complete or absent.

    Raises:
        StorageError: the disk does not take it.
    """
    with whole_file(path) as partial:
        partial.write_text(text, "utf-8")


def make_folder(path: Path, remedy: str) -> None:
    """Make a folder where there is none.

    Raises:
        StorageError: it cannot be made; the line ends with the remedy.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: the folder cannot be made ({error.strerror}); {remedy}") from error


def remove_partials(folder: Path) -> None:
    """Remove what a killed process has left half written in a folder and below it."""
    for path in folder.rglob(".*.partial"):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file where there is one.

    Raises:
        StorageError: it is there and cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be removed ({error.strerror}); check the folder's permissions") from error


def discard(path: Path) -> None:
    """Remove a file, or a folder with all that it holds, where there is one.

    Raises:
        StorageError: it is there and cannot be removed.
    """
    if not path.is_dir() or path.is_symlink():
        remove(path)
        return
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be removed ({error.strerror}); check the folder's permissions") from error


def unwritable(path: Path, error: BaseException) -> StorageError:
    """The error for a file that the disk does not take."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"errno = (\d+)", str(error))):  # HDF5 has it among much else
        number = int(found[1])
    reason = os.strerror(number) if number else one_line(str(error)) or type(error).__name__
    kind = FullDiskError if number in _NO_ROOM else StorageError
    return kind(f"{path}: cannot be written ({reason}); check the folder and the space on its disk")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
