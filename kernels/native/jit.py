"""How numba compiles the kernels: once for all machines' shapes, cached in a folder of the product's own."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba import njit
from numba.core import config

_OPTIONS = {"nogil": True, "error_model": "numpy", "boundscheck": False}


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of kernels, compiled into each of them."""
    part: Callable[..., Any] = njit(forceinline=True, **_OPTIONS)(function)
    return part


def kernel(signature: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function for one signature, or take what was compiled before from the cache."""

    def compile_now(function: Callable[..., Any]) -> Callable[..., Any]:
        folder = cache_folder()
        before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)  # else numba would keep them beside the source, whose other
            compiled: Callable[..., Any] = njit(signature, cache=True, **_OPTIONS)(function)  # modules it does not know
        except (OSError, RuntimeError) as error:
            _warn_once(folder, str(error).splitlines()[0])
            compiled = njit(signature, **_OPTIONS)(function)
        finally:
            config.CACHE_DIR = before
        return compiled

    return compile_now


@cache
def _warn_once(folder: Path, reason: str) -> None:
    warnings.warn(
        f"the CPU scans are compiled anew in each process, since they cannot be kept in {folder} ({reason}); "
        "set NUMBA_CACHE_DIR to a folder that can be written",
        RuntimeWarning,
        stacklevel=2,
    )


def cache_folder() -> Path:
    """Where compiled kernels are kept: one folder for each version of their source and of numba.

    Below ``NUMBA_CACHE_DIR`` where that is set, else below the user's cache folder. numba itself tells processors
    apart, but not versions of a module that another one is compiled from.
    """
    sources = sorted(Path(__file__).parent.glob("*.py"))
    version = hashlib.sha256(b"".join(s.read_bytes() for s in sources) + numba.__version__.encode()).hexdigest()
    return _user_cache() / "wsi2d" / f"scan2d-{version[:16]}"


def _user_cache() -> Path:
    if config.CACHE_DIR:
        return Path(config.CACHE_DIR)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~")).expanduser()
    if sys.platform == "darwin":
        return Path("~/Library/Caches").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
