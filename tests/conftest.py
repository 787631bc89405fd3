"""Fixtures for all tests: slides painted at known places, a small study, the folder of real slides.

Nothing of wsi2d is imported here before a fixture needs it, so that the kernels' tests run with torch alone.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
import pytest

GLASS = 244  # grey of the empty slide


@dataclass(frozen=True)
class Ellipse:
    """A place on a slide: centre and radii, px."""

    x: float
    y: float
    rx: float
    ry: float


@dataclass(frozen=True)
class Painting:
    """A picture and its truth.

    Attributes:
        rgb: uint8 ``[height, width, 3]``.
        tissue: bool ``[height, width]``, where it was painted.
    """

    rgb: np.ndarray
    tissue: np.ndarray


@dataclass(frozen=True)
class SmallStudy:
    """A study of 12 slides of 10 patients that trains in seconds.

    Attributes:
        cohort: CSV with ``slide_id, case_id, subtype, months, status, mpp``.
        features: folder of feature files with ``dim`` random numbers a patch; in subtype ``b`` half of the patches of
            each slide lie 2 standard deviations off in the first four of them.
        splits: folder of three folds by patient.
        label, classes: of the classification task.
        time, event: of the survival task, as the configuration names them; 6 of 10 patients have the event.
        dim: width of the features.
        slide_ids: in the table's order.
    """

    cohort: Path
    features: Path
    splits: Path
    label: str
    classes: tuple[str, ...]
    time: str
    event: str
    dim: int
    slide_ids: tuple[str, ...]


class PaintTissue(Protocol):
    """How :func:`paint_tissue` is called."""

    def __call__(
        self, width: int, height: int, pieces: Sequence[Ellipse], *, holes: Sequence[Ellipse] = (), seed: int = 0
    ) -> Painting: ...


class WriteSlide(Protocol):
    """How :func:`write_slide` is called."""

    def __call__(
        self,
        path: Path,
        rgb: np.ndarray,
        *,
        mpp: float | tuple[float, float] | None = 0.5,
        levels: int = 3,
        compression: str = "jpeg",
        aperio: str | None = None,
    ) -> Path: ...


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of faults, where ``test_faults.py`` was among the tests."""
    import fault_table

    if fault_table.ROWS:
        terminalreporter.section("faults")
        terminalreporter.write("\n".join(fault_table.lines()) + "\n")


@pytest.fixture(scope="session")
def load_module() -> Callable[[str], ModuleType]:
    """Imports a module by its path below this folder: ``load_module("training/tiny_study.py")``."""
    return _load_module


@pytest.fixture(scope="session")
def tiny(load_module: Callable[[str], ModuleType]) -> ModuleType:
    """`tiny_study.py`: writes a study that cross-validates in a second."""
    return load_module("training/tiny_study.py")


@pytest.fixture(scope="session")
def handmade(load_module: Callable[[str], ModuleType]) -> ModuleType:
    """`handmade.py`: writes feature files of any cells and numbers."""
    return load_module("features/handmade.py")


@pytest.fixture
def skip_without_torchmil(request: pytest.FixtureRequest) -> None:
    """Leaves out tests whose parameters name a model of torchmil, where that is not installed."""
    call = getattr(request.node, "callspec", None)
    if call is not None and "torchmil:" in str(call.params) and importlib.util.find_spec("torchmil") is None:
        pytest.skip("torchmil is not installed: pip install 'wsi2d[baselines]'")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Work this small is fastest on one thread, and its numbers do not depend on the machine's cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def ellipse() -> type[Ellipse]:
    """The class of places, for tests that paint."""
    return Ellipse


@pytest.fixture(scope="session")
def paint_tissue() -> PaintTissue:
    """Paints stained-looking tissue on empty glass: ``paint_tissue(width, height, pieces, holes=..., seed=...)``."""
    return _paint_tissue


@pytest.fixture(scope="session")
def write_slide() -> WriteSlide:
    """Writes a tiled, pyramidal TIFF that OpenSlide opens.

    ``mpp`` goes into the resolution tags, sane or not, as one number or as (x, y); with None there are none.
    ``aperio`` makes an Aperio SVS whose header holds those words, such as ``MPP = 0.25|AppMag = 40``.
    ``compression`` is ``jpeg`` (quality 95) or ``deflate`` (lossless).
    """
    return _write_slide


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real slides and peers' files; skips where it is absent."""
    named = os.environ.get("WSI2D_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "slides").is_dir():
        pytest.skip(f"no real slides in {folder}; set WSI2D_SHARED to the shared folder")
    return folder


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> SmallStudy:
    """A cohort table, its feature files and its splits; shared by all tests, so read only."""
    from wsi2d.config import ClassificationTask
    from wsi2d.data.cohort import load_cohort
    from wsi2d.data.splits import make_splits, write_splits

    root = tmp_path_factory.mktemp("small_study")
    (root / "features").mkdir()
    lines = ["slide_id,case_id,subtype,months,status,mpp"]
    slide_ids = []
    months = (3.5, 41, 8, 60.5, 15, 33, 22, 52, 5, 28)
    status = ("dead", "alive", "dead", "alive", "dead", "alive", "dead", "dead", "dead", "alive")
    for patient in range(10):
        subtype = "ab"[patient % 2]
        for part in "AB" if patient in (2, 7) else "A":
            slide_ids.append(f"P{patient:02d}-{part}")
            lines.append(f"{slide_ids[-1]},P{patient:02d},{subtype},{months[patient]},{status[patient]},0.5")
            _write_random_features(root / "features", slide_ids[-1], seed=len(slide_ids), shifted=subtype == "b")
    (root / "cohort.csv").write_text("\n".join(lines) + "\n", "utf-8")
    cohort = load_cohort(root / "cohort.csv", ClassificationTask(label="subtype"))
    write_splits(make_splits(cohort, folds=3, seed=0), root / "splits")
    return SmallStudy(
        root / "cohort.csv", root / "features", root / "splits",
        "subtype", ("a", "b"), "months", "status=dead", 16, tuple(slide_ids),
    )  # fmt: skip


def _load_module(path: str) -> ModuleType:
    """By its path: found wherever this folder stands and whatever pytest's import mode puts on `sys.path`."""
    name = f"tests_{path.removesuffix('.py').replace('/', '_')}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / path)
        if spec is None or spec.loader is None:
            raise ImportError(f"no loader for {path} beside {__file__}")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _write_random_features(folder: Path, slide_id: str, *, seed: int, shifted: bool) -> None:
    from wsi2d.features.store import FeatureWriter, Provenance, feature_path
    from wsi2d.slides.patching import PatchGrid, cell_coords

    generator = np.random.default_rng([20, seed])
    shape = (int(generator.integers(5, 9)), int(generator.integers(5, 9)))
    tissue = generator.random(shape) < 0.8
    tissue[0, 0] = tissue[-1, -1] = True
    index = np.argwhere(tissue).astype(np.int32)
    grid = PatchGrid(shape, 256, 0.5, 256.0, 256.0, cell_coords(index, 256.0), index)
    features = generator.normal(size=(len(index), 16)).astype(np.float32)
    if shifted:
        features[: len(index) // 2, :4] += 2.0
    provenance = Provenance(
        slide_id, "random", "0" * 16, 0.5, "header", shape[1] * 256, shape[0] * 256, '{"min_tissue": 0.25}'
    )
    with FeatureWriter(feature_path(folder, slide_id), grid, provenance, dim=16, dtype="float32") as writer:
        writer.append(features)


def _paint_tissue(
    width: int, height: int, pieces: Sequence[Ellipse], *, holes: Sequence[Ellipse] = (), seed: int = 0
) -> Painting:
    from PIL import Image

    generator = np.random.default_rng(seed)
    tissue = _inside(width, height, pieces) & ~_inside(width, height, holes)
    coarse = generator.random((height // 12 + 2, width // 12 + 2), np.float32)
    share = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    nuclei, stroma = np.array([105, 65, 150], np.float32), np.array([222, 150, 195], np.float32)
    rgb = np.full((height, width, 3), GLASS, np.uint8)
    rgb[tissue] = np.rint(share * nuclei + (1 - share) * stroma)[tissue]
    return Painting(rgb, tissue)


def _inside(width: int, height: int, places: Sequence[Ellipse]) -> np.ndarray:
    y, x = np.ogrid[:height, :width]
    inside = np.zeros((height, width), bool)
    for e in places:
        inside |= ((x + 0.5 - e.x) / e.rx) ** 2 + ((y + 0.5 - e.y) / e.ry) ** 2 <= 1
    return inside


def _write_slide(
    path: Path,
    rgb: np.ndarray,
    *,
    mpp: float | tuple[float, float] | None = 0.5,
    levels: int = 3,
    compression: str = "jpeg",
    aperio: str | None = None,
) -> Path:
    import tifffile
    from PIL import Image

    options = {"tile": (128, 128), "photometric": "rgb", "metadata": None, "compression": compression}
    if compression == "jpeg":
        options["compressionargs"] = {"level": 95}
    picture = rgb
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            more = {}
            if mpp is not None:
                x, y = mpp if isinstance(mpp, tuple) else (mpp, mpp)
                more = {"resolution": (1e4 / (x * 2**level), 1e4 / (y * 2**level)), "resolutionunit": "CENTIMETER"}
            if aperio is not None:
                size = f"{rgb.shape[1]}x{rgb.shape[0]}"
                more["description"] = f"Aperio Image Library v12.0.0 \r\n{size} (128x128) JPEG/RGB Q=95|{aperio}"
            file.write(picture, subfiletype=int(level > 0 and aperio is None), **options, **more)
            picture = np.asarray(Image.fromarray(picture).reduce(2))
    return path
