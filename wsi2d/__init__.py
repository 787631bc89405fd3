"""wsi2d: whole-slide images in, slide-level answers out.

The names below are loaded on first use, so that ``import wsi2d`` stays fast and needs neither OpenSlide, Triton nor
matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_EXPORTS = {
    "open_slide": "wsi2d.slides.reader",
    "find_slides": "wsi2d.slides.discovery",
    "segment_tissue": "wsi2d.slides.tissue",
    "make_patch_grid": "wsi2d.slides.patching",
    "extract": "wsi2d.features.extract",
    "get_encoder": "wsi2d.features.encoders",
    "list_encoders": "wsi2d.features.encoders.status",
    "Claims": "wsi2d.features.imports.claims",
    "import_features": "wsi2d.features.imports.importing",
    "read_features": "wsi2d.features.anyones",
    "inspect_features": "wsi2d.features.inspection",
    "load_cohort": "wsi2d.data.cohort",
    "make_splits": "wsi2d.data.splits",
    "load_bag": "wsi2d.data.bags",
    "list_models": "wsi2d.models.catalogue",
    "build_model": "wsi2d.models.registry",
    "Mamba2DBlock": "wsi2d.models.blocks",
    "evaluate": "wsi2d.evaluation.evaluate",
    "compare": "wsi2d.evaluation.compare",
    "train": "wsi2d.training.crossval",
    "predict": "wsi2d.training.predict",
    "heatmap": "wsi2d.explain.heatmap",
    "receptive_fields": "wsi2d.explain.receptive_fields",
    "tissue_picture": "wsi2d.explain.tissue_picture",
    "Thumbnails": "wsi2d.explain.thumbnails",
    "export": "wsi2d.exports.export",
    "ExportOptions": "wsi2d.exports.target",
    "make_demo_cohort": "wsi2d.demo.cohort",
}

__all__ = ["__version__", *_EXPORTS]

if TYPE_CHECKING:
    from wsi2d.data.bags import load_bag as load_bag
    from wsi2d.data.cohort import load_cohort as load_cohort
    from wsi2d.data.splits import make_splits as make_splits
    from wsi2d.demo.cohort import make_demo_cohort as make_demo_cohort
    from wsi2d.evaluation.compare import compare as compare
    from wsi2d.evaluation.evaluate import evaluate as evaluate
    from wsi2d.explain.heatmap import heatmap as heatmap
    from wsi2d.explain.receptive_fields import receptive_fields as receptive_fields
    from wsi2d.explain.thumbnails import Thumbnails as Thumbnails
    from wsi2d.explain.tissue_picture import tissue_picture as tissue_picture
    from wsi2d.exports.export import export as export
    from wsi2d.exports.target import ExportOptions as ExportOptions
    from wsi2d.features.anyones import read_features as read_features
    from wsi2d.features.encoders import get_encoder as get_encoder
    from wsi2d.features.encoders.status import list_encoders as list_encoders
    from wsi2d.features.extract import extract as extract
    from wsi2d.features.imports.claims import Claims as Claims
    from wsi2d.features.imports.importing import import_features as import_features
    from wsi2d.features.inspection import inspect_features as inspect_features
    from wsi2d.models.blocks import Mamba2DBlock as Mamba2DBlock
    from wsi2d.models.catalogue import list_models as list_models
    from wsi2d.models.registry import build_model as build_model
    from wsi2d.slides.discovery import find_slides as find_slides
    from wsi2d.slides.patching import make_patch_grid as make_patch_grid
    from wsi2d.slides.reader import open_slide as open_slide
    from wsi2d.slides.tissue import segment_tissue as segment_tissue
    from wsi2d.training.crossval import train as train
    from wsi2d.training.predict import predict as predict

if not TYPE_CHECKING:  # a type checker that saw it would take any name for an attribute

    def __getattr__(name: str) -> object:
        if name in _EXPORTS:
            return getattr(import_module(_EXPORTS[name]), name)
        raise AttributeError(f"module 'wsi2d' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
