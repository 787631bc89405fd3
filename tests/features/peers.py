"""Files as TRIDENT, CLAM, STAMP and AtlasPatch lay them out, written from coordinates that a test chooses."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np

SLIDE = "s1"


def features(n: int, dim: int = 5, *, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    """Random embeddings whose first number is the row, so that a test sees where each went."""
    values = np.random.default_rng(seed).normal(size=(n, dim)).astype(dtype)
    values[:, 0] = np.arange(n)
    return values


def write_arrays(path: Path, arrays: dict[str, np.ndarray], attributes: dict[str, dict[str, Any]]) -> Path:
    """An HDF5 file of h5py's default layout, a row a chunk as these tools write; attributes by array, '' the file's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            rows = values.ndim > 0 and len(values) > 0
            more = {"chunks": (1, *values.shape[1:]), "maxshape": (None, *values.shape[1:])} if rows else {}
            file.create_dataset(name, data=values, **more)
        for name, values in attributes.items():
            (file[name] if name else file).attrs.update(values)
    return path


def magnification_attributes(
    patch_px: int, patch_level0: float, overlap: float, size: tuple[int, int], mags: tuple[float, float]
) -> dict[str, Any]:
    """What TRIDENT writes on ``coords``, and AtlasPatch on the file."""
    return {
        "patch_size": patch_px, "patch_size_level0": patch_level0, "level0_magnification": mags[0],
        "target_magnification": mags[1], "overlap": overlap, "level0_width": size[0], "level0_height": size[1],
    }  # fmt: skip


def write_trident(
    root: Path,
    xy: np.ndarray,
    values: np.ndarray,
    *,
    slide: str = SLIDE,
    folder: str = "20x_256px_0px_overlap/features_uni_v2",
    patch_px: int = 256,
    patch_level0: float = 256,
    overlap: float = 0,
    size: tuple[int, int] = (50_000, 50_000),
    mags: tuple[float, float] = (20, 20),
    encoder: str | None = "uni_v2",
) -> Path:
    """``20x_256px_0px_overlap/features_uni_v2/<slide>.h5``."""
    attributes = magnification_attributes(patch_px, patch_level0, overlap, size, mags)
    of_features = {"name": slide, "savetodir": "job", **({} if encoder is None else {"encoder": encoder})}
    return write_arrays(
        root / folder / f"{slide}.h5",
        {"features": values, "coords": xy},
        {"coords": {**attributes, "name": slide, "savetodir": "job"}, "features": of_features},
    )


def write_clam(
    root: Path,
    xy: np.ndarray,
    values: np.ndarray,
    *,
    slide: str = SLIDE,
    patch_px: int = 256,
    downsample: tuple[float, float] = (1.0, 1.0),
    size: tuple[int, int] = (50_000, 50_000),
    patches: bool = True,
) -> Path:
    """``h5_files/<slide>.h5`` and ``patches/<slide>.h5``."""
    if patches:
        level_dim = np.array([round(size[0] / downsample[0]), round(size[1] / downsample[1])])
        attributes = {
            "patch_size": patch_px, "patch_level": int(downsample[0] > 1), "downsample": np.array(downsample),
            "downsampled_level_dim": level_dim, "level_dim": level_dim, "name": slide, "save_path": "job",
        }  # fmt: skip
        write_arrays(root / "patches" / f"{slide}.h5", {"coords": xy}, {"coords": attributes})
    return write_arrays(root / "h5_files" / f"{slide}.h5", {"features": values, "coords": xy.astype(np.int32)}, {})


def write_stamp(
    root: Path,
    xy_um: np.ndarray,
    values: np.ndarray,
    *,
    slide: str = SLIDE,
    folder: str = "mahmood-uni",
    tile_um: float = 256.0,
    tile_px: int = 224,
    **attributes: Any,
) -> Path:
    """``<extractor>/<slide>.h5``."""
    said = {
        "stamp_version": "2.4.0", "extractor": folder, "unit": "um", "tile_size_um": tile_um, "tile_size_px": tile_px,
        "code_hash": "0a1b2c3d", "feat_type": "tile", **attributes,
    }  # fmt: skip
    return write_arrays(
        root / folder / f"{slide}.h5",
        {"coords": xy_um.astype(np.float32), "feats": values.astype(np.float16)},
        {"": {name: value for name, value in said.items() if value is not None}},
    )


def write_atlaspatch(
    root: Path,
    xy: np.ndarray,
    values: dict[str, np.ndarray],
    *,
    slide: str = SLIDE,
    patch_px: int = 256,
    patch_level0: int = 256,
    overlap: int = 0,
    size: tuple[int, int] = (50_000, 50_000),
    mags: tuple[float, float] = (20, 20),
) -> Path:
    """``patches/<slide>.h5`` with the features of any number of encoders."""
    coords = np.zeros((len(xy), 5), np.int32)
    coords[:, :2], coords[:, 2:4] = np.asarray(xy).reshape(-1, 2), patch_px
    attributes = magnification_attributes(patch_px, patch_level0, overlap, size, mags)
    passports = np.array([f"{slide}__x{x}_y{y}".encode() for x, y in coords[:, :2]], "S160")
    return write_arrays(
        root / "patches" / f"{slide}.h5",
        {"coords": coords, "passports": passports, **{f"features/{name}": v for name, v in values.items()}},
        {"": {**attributes, "wsi_path": f"slides/{slide}.svs", "passport_version": 2, "num_patches": len(xy)}},
    )


def rewrite(ours: Path, layout: str, root: Path, **how: Any) -> Path:
    """One of our feature files as that tool would have written it."""
    from wsi2d.features.store import read_features

    bag = read_features(ours)
    side = bag.grid.patch_px
    common = {"slide": ours.stem, **how}
    if layout == "trident":
        return write_trident(root, bag.grid.coords, bag.features, patch_px=side, patch_level0=side, **common)
    if layout == "clam":
        return write_clam(root, bag.grid.coords, bag.features, patch_px=side, **common)
    if layout == "stamp":
        return write_stamp(root, bag.grid.coords / 2, bag.features, tile_um=side / 2, tile_px=side, **common)
    values = {"uni_v2": bag.features, "conch_v1": bag.features[:, ::-1]}
    return write_atlaspatch(root, bag.grid.coords, values, patch_px=side, patch_level0=side, **common)


FOLDERS = {
    "trident": "20x_256px_0px_overlap/features_uni_v2",
    "clam": "h5_files",
    "stamp": "mahmood-uni",
    "atlaspatch": "patches",
}


def rewrite_all(ours: Path, layout: str, root: Path, **how: Any) -> Path:
    """A folder of our feature files as that tool would have written them; the folder with the features."""
    for path in sorted(ours.glob("*.h5")):
        rewrite(path, layout, root, **how)
    return root / FOLDERS[layout]
