"""Files of weights: found in a folder, read once, and told apart by a hash of what is in them.

Safetensors go before pickled files, and of the latter tensors alone are read: code in them is refused, not run.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from wsi2d.compute import available_cores
from wsi2d.errors import ModelError

Weights = dict[str, Tensor]

SAFE_SUFFIX = ".safetensors"
PICKLED_SUFFIXES = (".bin", ".pt", ".pth")
INDEX_FILE = "model.safetensors.index.json"
_OWN = "model.safetensors"
# Under one of these keys training scripts keep the weights beside other things.
_WRAPPERS = ("state_dict", "model")
_LARGEST_JSON = 2**24


def find_weights(folder: Path, names: Sequence[str] = ()) -> Path:
    """The file of weights in a folder: one of the names, or the only one there is; safetensors go first, but not those
    that a repository bears its own model under where the names are of another.

    Args:
        folder: where to look; not below it.
        names: what the file may be called.

    Raises:
        ModelError: there is none, or there are several and none has such a name.
    """
    here = sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
    if _OWN not in names and any(p.name in names for p in here):
        here = [p for p in here if p.name not in (_OWN, INDEX_FILE)]
    for suffixes in ((SAFE_SUFFIX,), PICKLED_SUFFIXES):
        those = [p for p in here if p.suffix in suffixes and not p.name.startswith(".")]
        named = [p for name in names for p in those if p.name == name]
        if named:
            return named[0]
        if SAFE_SUFFIX in suffixes and folder / INDEX_FILE in here:
            return folder / INDEX_FILE
        if len(those) == 1:
            return those[0]
        if those:
            some = ", ".join(p.name for p in those[:3])
            raise ModelError(f"{folder}: holds several files of weights ({some}); give the path of one")
    wanted = f" ({' or '.join(names)})" if names else ""
    raise ModelError(f"{folder}: holds no file of weights{wanted}; give the folder or file that has them")


def read_weights(path: Path) -> Weights:
    """Tensors by name, on the CPU, from a safetensors file, an index of several, or a pickled file of tensors alone.

    Raises:
        ModelError: the file is missing, damaged, or holds something else.
    """
    try:
        path.stat()
        if path.name.endswith(".index.json"):
            return _read_shards(path)
        if path.suffix == SAFE_SUFFIX:
            return load_file(path)
        if path.suffix in PICKLED_SUFFIXES:
            return _read_pickled(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file of weights; give its path") from error
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{path}: not readable weights ({_reason(error)}); download them again") from error
    known = ", ".join((SAFE_SUFFIX, *PICKLED_SUFFIXES))
    raise ModelError(f"{path}: no file of weights by its name; there are {known}")


def _read_shards(index: Path) -> Weights:
    weights: Weights = {}
    for name in shards(index):
        weights.update(load_file(index.parent / name))
    return weights


def shards(index: Path) -> list[str]:
    """The files, beside it, that an index of weights names.

    Raises:
        ModelError: it is no such index, or names a file elsewhere.
    """
    places = read_json(index).get("weight_map")
    names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    if not names or any(Path(name).name != name or not name.endswith(SAFE_SUFFIX) for name in names):
        raise ModelError(f"{index}: names no safetensors files beside it; download it again")
    return names


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelError: the file is missing or something else.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError("too large")
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; it belongs beside the weights") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable JSON ({_reason(error)}); download it again") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: must hold a JSON object, got {type(values).__name__}")
    return values


def _read_pickled(path: Path) -> Weights:
    try:
        with warnings.catch_warnings(action="ignore"):  # of formats that are refused below
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: holds more than tensors, and code from a file is not run; convert it to safetensors"
        ) from error
    for key in _WRAPPERS:
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
    if not isinstance(held, dict) or not held or not all(map(_is_plain, held.values())):
        raise ValueError("it holds no plain tensors by name")
    return {str(name): tensor for name, tensor in held.items()}


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_quantized or value.is_meta)


def _reason(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def weights_hash(weights: Weights) -> str:
    """SHA-256 over names, types, shapes and values, in the order of names: the same for the same tensors, whatever the
    format of their file."""
    with ThreadPoolExecutor(available_cores()) as pool:
        return hashlib.sha256(b"".join(pool.map(_digest, sorted(weights.items())))).hexdigest()


def _digest(named: tuple[str, Tensor]) -> bytes:
    name, tensor = named
    digest = hashlib.sha256(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
    digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
