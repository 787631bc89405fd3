"""Fixtures of the data tests: tables, feature files and the published cohorts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wsi2d.features.store import FeatureWriter, Provenance, feature_path
from wsi2d.slides.patching import PatchGrid, cell_coords


@pytest.fixture(scope="session")
def tcga(shared_dir: Path) -> Path:
    """Published cohort tables and splits."""
    return shared_dir / "tcga"


@pytest.fixture
def write_table(tmp_path: Path) -> Callable[..., Path]:
    """Writes lines as a table, the first its header."""

    def write(*lines: str, name: str = "cohort.csv") -> Path:
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        return path

    return write


@pytest.fixture
def write_features(tmp_path: Path) -> Callable[..., Path]:
    """Writes a feature file of a slide with patches at the cells ``index``; ``changes`` are to grid and provenance."""

    def write(
        slide_id: str, index: list[tuple[int, int]], features: np.ndarray | None = None, **changes: object
    ) -> Path:
        cells = np.array(index, np.int32).reshape(-1, 2)
        if features is None:
            features = np.random.default_rng(len(cells)).standard_normal((len(cells), 3)).astype(np.float32)
        grid = {"shape": (50, 60), "patch_px": 256, "mpp": 0.5, "patch_level0": 512.0, "stride_level0": 512.0}
        provenance = {
            "slide_id": slide_id, "encoder": "histology-stats", "encoder_hash": "abc", "slide_mpp": 0.25,
            "mpp_source": "header", "level0_width": 60 * 512, "level0_height": 50 * 512, "tissue": "{}",
        }  # fmt: skip
        grid |= {name: value for name, value in changes.items() if name in grid}
        provenance |= {name: value for name, value in changes.items() if name in provenance}
        path = feature_path(tmp_path, slide_id)
        patches = PatchGrid(**grid, coords=cell_coords(cells, float(grid["stride_level0"])), index=cells)
        with FeatureWriter(
            path, patches, Provenance(**provenance), dim=features.shape[1], dtype=features.dtype.name
        ) as writer:
            writer.append(features)
        return path

    return write
