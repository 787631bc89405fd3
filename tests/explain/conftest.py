"""Fixtures of the tests of maps: slides with a brown square at a known place, and runs whose models look for brown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

GLASS, PINK, BROWN = (244, 244, 244), (226, 150, 190), (110, 70, 35)
# Attention by one feature of a patch, with weights that a fixture sets.
BROWN_SEEKER = {"name": "abmil", "dim": 1, "attention_dim": 1, "gated": False, "dropout": 0.0, "standardise": False}


@dataclass(frozen=True)
class BrownSlide:
    """A slide file: pink tissue with glass at its left and lower edge, and a brown square.

    Attributes:
        path: the file.
        centre: (x, y) of the square's centre, level-0 px.
        glass: level-0 px from the left, and from the bottom, that are glass.
    """

    path: Path
    centre: tuple[float, float]
    glass: int


class MakeBrownSlide(Protocol):
    """How :func:`brown_slide` is called."""

    def __call__(
        self, path: Path, centre: tuple[float, float], *, size: tuple[int, int] = ..., mpp: float = ..., side: int = ...
    ) -> BrownSlide: ...


class MakeRun(Protocol):
    """How :func:`handmade_run` is called."""

    def __call__(
        self,
        folder: Path,
        slides: Mapping[str, int],
        /,
        *,
        strengths: Sequence[float] = ...,
        kind: str = ...,
        overlap_px: int = ...,
        **data: Any,
    ) -> Path: ...


@pytest.fixture(scope="module", autouse=True)
def on_one_thread(one_thread: None) -> None:
    """All tests of this folder."""


@pytest.fixture
def brown_slide(write_slide: Any) -> MakeBrownSlide:
    """Writes such a slide: ``brown_slide(path, centre, size=(width, height), mpp=..., side=...)``."""

    def make(
        path: Path,
        centre: tuple[float, float],
        *,
        size: tuple[int, int] = (448, 320),
        mpp: float = 0.5,
        side: int = 64,
    ) -> BrownSlide:
        width, height = size
        glass = round(0.15 * width)
        rgb = np.full((height, width, 3), PINK, np.uint8)
        # A little texture: what is all of one colour has no gradients to be described by.
        rgb = (rgb + np.random.default_rng(0).integers(-6, 7, rgb.shape)).clip(0, 255).astype(np.uint8)
        x, y = (round(c - side / 2) for c in centre)
        rgb[max(y, 0) : y + side, max(x, 0) : x + side] = BROWN
        rgb[:, :glass] = GLASS
        rgb[height - glass :] = GLASS
        path.parent.mkdir(parents=True, exist_ok=True)
        write_slide(path, rgb, mpp=mpp, levels=2, compression="deflate")
        return BrownSlide(path, centre, glass)

    return make


@pytest.fixture
def handmade_run() -> MakeRun:
    """Makes a run folder without training: ``handmade_run(folder, {slide_id: fold}, strengths=(6, 6))``.

    ``folder`` holds ``slides/``; it gets ``features/`` of the slides named, and ``run/`` with one model a strength:
    attention pooling whose score is that strength times (a rising function of) the patch's mean of DAB.
    """
    return _handmade_run


def _handmade_run(
    folder: Path,
    slides: Mapping[str, int],
    /,
    *,
    strengths: Sequence[float] = (6.0, 3.0),
    kind: str = "classification",
    overlap_px: int = 0,
    **data: Any,
) -> Path:
    from wsi2d.config import ExtractConfig, PatchConfig, RunConfig, TissueConfig
    from wsi2d.config_files import save_run_config
    from wsi2d.features.extract import extract
    from wsi2d.features.store import feature_path
    from wsi2d.slides.discovery import find_slides

    task = {
        "classification": {"kind": "classification", "label": "label"},
        "survival": {"kind": "survival", "time": "months", "event": "status=dead"},
    }[kind]
    paths = {"cohort": folder / "cohort.csv", "features": folder / "features", "splits": folder / "splits"}
    config = RunConfig.model_validate(
        {
            "out": folder / "run",
            "data": {**paths, "slides": folder / "slides", **data},
            "task": task,
            "model": BROWN_SEEKER,
        }
    )
    patch = PatchConfig(patch_px=64, mpp=0.5, overlap_px=overlap_px, min_tissue=0.4)
    tissue = TissueConfig(min_piece_um2=3000, min_hole_um2=0, close_um=8)
    found = [f for f in find_slides([folder / "slides"]) if f.slide_id in slides]
    assert len(found) == len(slides)
    report = extract(found, folder / "features", ExtractConfig(patch=patch, tissue=tissue))
    assert report.count("done") == len(slides)
    run = folder / "run"
    for fold, strength in enumerate(strengths):
        (run / f"fold-{fold}").mkdir(parents=True)
        _save_brown_seeker(run / f"fold-{fold}", feature_path(folder / "features", found[0].slide_id), strength, kind)
    if kind == "classification":
        rows = ["slide_id,case_id,fold,label,prob_common,prob_rare"]
        rows += [f"{slide_id},case of {slide_id},{fold},rare,0.25,0.75" for slide_id, fold in slides.items()]
    else:
        rows = ["slide_id,case_id,fold,time,event,risk,hazard_1,hazard_2"]
        rows += [f"{slide_id},case of {slide_id},{fold},7.5,1,-1.2,0.5,0.5" for slide_id, fold in slides.items()]
    (run / "predictions.csv").write_text("\n".join(rows) + "\n", "utf-8")
    save_run_config(config, run / "config.yaml")
    return run


def _save_brown_seeker(folder: Path, example: Path, strength: float, kind: str) -> None:
    import torch

    from wsi2d.data.bags import read_spec
    from wsi2d.features.histology_stats import feature_names
    from wsi2d.models.registry import build_model, model_config
    from wsi2d.training.checkpoint import ModelCard, save_model

    spec, _ = read_spec(example)
    classes = ("common", "rare") if kind == "classification" else ()
    edges = () if kind == "classification" else (12.0,)
    card = ModelCard(model_config(BROWN_SEEKER).model_dump(), spec.dim, 2, kind, classes, edges, spec, 0, 1)
    model = build_model(BROWN_SEEKER, in_dim=spec.dim, out_dim=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter("project.0.weight")[0, feature_names().index("stain.dab.mean")] = 2.0
        model.get_parameter("pool.value.weight").fill_(1.0)
        model.get_parameter("pool.score.weight").fill_(strength)
        model.get_parameter("head.weight").copy_(torch.tensor([[-1.0], [1.0]]))
    save_model(model, replace(card, fold=int(folder.name.removeprefix("fold-"))), folder / "model.safetensors")
