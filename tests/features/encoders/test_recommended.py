"""An encoder's own patches are the default where none are asked for; others are told in one line."""

import logging
from typing import Any

import pytest

from wsi2d.config import ExtractConfig, PatchConfig
from wsi2d.errors import ConfigError
from wsi2d.features.encoders.catalogue import CATALOGUE
from wsi2d.features.encoders.recommended import fit_patches


def fitted(caplog: pytest.LogCaptureFixture, encoder: str, **patch: Any) -> tuple[PatchConfig, list[str]]:
    """The patches for an encoder where these are asked for, and what is logged."""
    caplog.clear()
    values = {"encoder": encoder, "batch_size": 7, **({"patch": patch} if patch else {})}
    with caplog.at_level(logging.WARNING, "wsi2d"):
        config = fit_patches(ExtractConfig.model_validate(values))
    assert config.batch_size == 7
    assert config.encoder == encoder
    return config.patch, [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_an_encoders_own_patches_are_the_default(caplog: pytest.LogCaptureFixture, name: str) -> None:
    spec = CATALOGUE[name]
    for encoder in (name, f"{name}=some/where"):
        patch, told = fitted(caplog, encoder)
        assert (patch.patch_px, patch.mpp, patch.overlap_px) == (spec.patch_px, spec.mpp, 0)
        assert told == []


@pytest.mark.parametrize("encoder", ["histology-stats", "timm:resnet18", "hf:owner/name", "./folder", "unknown"])
def test_others_keep_the_configurations_defaults(caplog: pytest.LogCaptureFixture, encoder: str) -> None:
    assert fitted(caplog, encoder) == (PatchConfig(), [])
    assert fitted(caplog, encoder, patch_px=64, mpp=2.0) == (PatchConfig(patch_px=64, mpp=2.0), [])


def test_what_is_asked_for_stays(caplog: pytest.LogCaptureFixture) -> None:
    patch, told = fitted(caplog, "virchow", mpp=1.0, min_tissue=0.7)
    assert (patch.patch_px, patch.mpp, patch.min_tissue) == (224, 1.0, 0.7)
    assert told == ["encoder 'virchow' was made for patches of 224 px at 0.5 µm/px; it is given 224 px at 1 µm/px"]
    patch, told = fitted(caplog, "virchow", patch_px=256)
    assert (patch.patch_px, patch.mpp) == (256, 0.5)
    assert told == ["encoder 'virchow' was made for patches of 224 px at 0.5 µm/px; it is given 256 px at 0.5 µm/px"]
    assert fitted(caplog, "virchow", patch_px=224, mpp=0.499)[1] == []
    assert fitted(caplog, "virchow2", mpp=1.0)[1] == [], "which it was trained on, too"
    assert len(fitted(caplog, "virchow2", mpp=0.7)[1]) == 1


def test_the_default_asked_for_is_not_the_default(caplog: pytest.LogCaptureFixture) -> None:
    """256 px said is 256 px, though it is also what is taken where nothing is said."""
    patch, told = fitted(caplog, "conch-v1.5", patch_px=256, mpp=0.5)
    assert patch.patch_px == 256
    assert len(told) == 1


def test_silently(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "wsi2d"):
        fit_patches(ExtractConfig(encoder="uni", patch=PatchConfig(mpp=2.0)), warn=False)
    assert not caplog.records


def test_again_changes_nothing() -> None:
    once = fit_patches(ExtractConfig(encoder="phikon", patch=PatchConfig(overlap_px=16)))
    assert fit_patches(once) == once


def test_an_overlap_that_does_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"encoder 'phikon': .*overlap_px must be below patch_px \(224\), got 230"):
        fit_patches(ExtractConfig(encoder="phikon", patch=PatchConfig(overlap_px=230)))
