"""What a user says of features, and whether features are alike."""

from dataclasses import replace
from typing import Any

import pytest

from wsi2d.errors import ConfigError, SlideError
from wsi2d.features.imports.claims import NO_CLAIMS, Claims
from wsi2d.features.spec import FeatureSpec, same_mpp, spec_of
from wsi2d.features.store import FeatureHeader, Imported, Provenance
from wsi2d.slides.patching import GridGeometry

SPEC = FeatureSpec("uni", None, 0.5, 256, 0, 1024)


@pytest.mark.parametrize("claims", [{"encoder": " "}, {"patch_px": 0}, {"patch_px": -3}])
def test_impossible_claims(claims: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Claims(**claims)


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_resolutions(mpp: float) -> None:
    with pytest.raises(SlideError, match="mpp: must be > 0"):
        Claims(mpp=mpp)


def test_no_claims() -> None:
    assert Claims() == NO_CLAIMS


@pytest.mark.parametrize(
    ("name", "other", "difference"),
    [
        ("encoder", None, "encoder unknown, not uni"),
        ("encoder", "conch", "encoder conch, not uni"),
        ("encoder_hash", "ab12", "encoder_hash ab12, not unknown"),
        ("mpp", None, "mpp unknown, not 0.5"),
        ("mpp", 0.502, "mpp 0.502, not 0.5"),
        ("mpp", 0.5004, None),
        ("patch_px", None, "patch_px unknown, not 256"),
        ("overlap_px", None, None),
        ("overlap_px", 64, "overlap_px 64, not 0"),
        ("dim", 512, "dim 512, not 1024"),
    ],
)
def test_what_is_alike(name: str, other: Any, difference: str | None) -> None:
    found = replace(SPEC, **{name: other})
    assert SPEC.difference(found) == difference
    assert (found.difference(SPEC) is None) == (difference is None)


def test_what_is_unknown() -> None:
    assert SPEC.unknown == ()
    nothing = FeatureSpec(None, None, None, None, None, 24)
    assert nothing.unknown == ("encoder", "mpp", "patch_px")
    assert nothing.difference(nothing) is None


def test_resolutions_that_are_the_same() -> None:
    assert same_mpp(256 / 224, 1.143)
    assert not same_mpp(0.25, 0.2525)
    assert not same_mpp(None, None)


def header(pitch_from: str) -> FeatureHeader:
    """Of an imported file."""
    imported = Imported("CLAM", None, pitch_from, "stated", {}, 0.0)
    made = Provenance("s", None, None, None, "unknown", 900, 900, "{}", imported)
    return FeatureHeader(made, GridGeometry((3, 3), 256, None, 256.0, 256.0), 5, 24, "float32")


@pytest.mark.parametrize(("pitch_from", "overlap_px"), [("statistics", 0), ("assumed", None)])
def test_an_assumed_pitch_says_nothing_of_the_overlap(pitch_from: str, overlap_px: int | None) -> None:
    assert spec_of(header(pitch_from)) == FeatureSpec(None, None, None, 256, overlap_px, 24)
