"""Preprocessing in plain torch against Pillow, against transformers' own processors and timm's own transforms."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wsi2d.errors import ConfigError
from wsi2d.features.encoders.catalogue import CATALOGUE
from wsi2d.features.encoders.preprocess import Preprocess, centred
from wsi2d.features.encoders.timm_models import named_preprocess
from wsi2d.features.encoders.transformers_models import folder_preprocess

Patches = Callable[[int, int], torch.Tensor]

# Grey levels of 255: at any pixel, and on the mean; see the module's page.
MAXIMUM = 2.0
MEAN = {"bilinear": 0.1, "bicubic": 0.01}
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def assert_close(got: torch.Tensor, expected: np.ndarray, interpolation: str, sd: Any = (1.0, 1.0, 1.0)) -> None:
    """Within the stated tolerance, of arrays ``[batch, 3, side, side]`` that were divided by 255 and ``sd``."""
    assert got.shape == expected.shape
    levels = np.abs(got.numpy() - expected) * 255 * np.array(sd)[:, None, None]
    assert levels.max() <= MAXIMUM + 1e-3
    assert levels.mean() <= MEAN[interpolation]


def by_pillow(patches: torch.Tensor, p: Preprocess) -> np.ndarray:
    """The published way: Pillow, cropped, divided, normalised."""
    resampling, box = RESAMPLING[p.interpolation], slice(p.crop_at, p.crop_at + p.crop_px)
    size = (p.resize_px, p.resize_px)
    resized = np.stack([np.asarray(Image.fromarray(x).resize(size, resampling)) for x in patches.numpy()])
    pixels = resized[:, box, box].astype(np.float64) / 255
    return ((pixels - p.mean) / p.sd).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [96, 180, 224, 256, 333, 512])
@pytest.mark.parametrize("target", [224, 448, 518])
def test_resizing_is_pillows(real_patches: Patches, side: int, target: int, interpolation: Any) -> None:
    preprocess = Preprocess(target, target, mean=(0, 0, 0), sd=(1, 1, 1), interpolation=interpolation)
    patches = real_patches(1 if side > 500 else 3, side)
    assert_close(preprocess(patches), by_pillow(patches, preprocess), interpolation)


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_each_catalogued_encoder_sees_what_was_published(real_patches: Patches, name: str) -> None:
    spec = CATALOGUE[name]
    for side in (spec.patch_px, 300):
        patches = real_patches(2, side)
        got = spec.preprocess(patches)
        assert got.shape == (2, 3, spec.preprocess.crop_px, spec.preprocess.crop_px)
        assert_close(got, by_pillow(patches, spec.preprocess), spec.preprocess.interpolation, spec.preprocess.sd)


def test_a_patch_of_the_right_size_is_only_normalised(real_patches: Patches) -> None:
    patches = real_patches(2, 224)
    got = Preprocess(224, 224)(patches)
    expected = (patches.double() / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(got.double(), expected.permute(0, 3, 1, 2), rtol=0, atol=1e-5)


def test_the_middle_is_cut_out() -> None:
    patches = torch.zeros(1, 256, 256, 3, dtype=torch.uint8)
    patches[:, 16:240, 16:240] = 255
    assert (Preprocess(256, 224, centred(256, 224), (0, 0, 0), (1, 1, 1))(patches) == 1).all()


PROCESSORS: dict[str, dict[str, Any]] = {
    "bit": {
        "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "resample": 3,
        "crop_size": {"height": 224, "width": 224}, "do_center_crop": True,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    },
    "odd crop": {
        "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 235}, "resample": 3,
        "crop_size": {"height": 224, "width": 224}, "do_center_crop": True,
        "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4],
    },
    "vit": {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, "resample": 2,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    },
    "no resize": {
        "image_processor_type": "BitImageProcessor", "do_resize": False, "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "resample": 3,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    },
    "no normalisation": {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, "resample": 2,
        "do_normalize": False,
    },
    "another range": {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, "resample": 2,
        "rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0],
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_processors_file_is_read_as_transformers_reads_it(
    real_patches: Patches, networks: ModuleType, tmp_path: Path, kind: str
) -> None:
    from transformers import AutoImageProcessor

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[kind]))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    preprocess = folder_preprocess("x", PROCESSORS[kind])
    for side in (224,) if kind == "no resize" else (256, 300):
        patches = real_patches(2, side)
        expected = processor(list(patches.numpy()), return_tensors="np")["pixel_values"]
        assert_close(preprocess(patches), expected, preprocess.interpolation, preprocess.sd)


@pytest.mark.parametrize("model", ["resnet50.tv_in1k", "vit_base_patch16_224.augreg_in1k", "convnext_tiny.fb_in1k"])
def test_a_timm_configuration_is_read_as_timm_reads_it(timm: Any, real_patches: Patches, model: str) -> None:
    config = timm.get_pretrained_cfg(model).to_dict()
    preprocess = named_preprocess("x", config)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(config))
    for side in (224, 256, 300):
        patches = real_patches(2, side)
        expected = np.stack([transform(Image.fromarray(p)).numpy() for p in patches.numpy()])
        assert_close(preprocess(patches), expected, preprocess.interpolation, preprocess.sd)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"resample": 1}, "interpolation 'resample 1' is not supported; there are bilinear and bicubic"),
        ({"resample": [3]}, "does not say how patches are prepared"),
        ({"resample": None}, "does not say how patches are prepared"),
        ({"image_mean": [0.5]}, "does not say how patches are prepared"),
        ({"image_std": [0.2, float("nan"), 0.2]}, "does not say how patches are prepared"),
        ({"image_mean": None}, "does not say how patches are prepared"),
        ({"size": {"height": 224, "width": 200}}, "is no square"),
        ({"size": {}}, "is no square"),
        ({"size": "large"}, "does not say how patches are prepared"),
        ({"size": {"shortest_edge": 10**9}}, "does not lie in 1000000000 px"),
        ({"size": {"shortest_edge": 200}, "crop_size": 224, "do_center_crop": True}, "a crop of 224 px at -12"),
        ({"image_std": [0.2, 0.0, 0.2]}, "standard deviations must be > 0"),
        ({"rescale_factor": -1.0}, "standard deviations must be > 0"),
        ({"rescale_factor": 0}, "does not say how patches are prepared"),
    ],
)
def test_a_processors_file_that_is_not_understood(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        folder_preprocess("x", {**PROCESSORS["vit"], **changes})
    assert line in str(error.value)


@pytest.mark.parametrize("key", ["input_size", "mean", "std", "interpolation", "crop_pct"])
def test_a_timm_configuration_that_lacks_something(key: str) -> None:
    whole = {
        "input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 0.9,
    }  # fmt: skip
    assert named_preprocess("x", whole).resize_px == 248
    with pytest.raises(ConfigError, match="does not say how patches are prepared"):
        named_preprocess("x", {k: v for k, v in whole.items() if k != key})
    with pytest.raises(ConfigError, match="interpolation 'lanczos' is not supported"):
        named_preprocess("x", {**whole, "interpolation": "lanczos"})


def test_patches_must_be_square() -> None:
    with pytest.raises(ConfigError, match="must be square, got 32×48"):
        Preprocess(224, 224)(torch.zeros(1, 32, 48, 3, dtype=torch.uint8))
