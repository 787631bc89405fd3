"""Encoders by name: each keeps the protocol, an unknown one is told the nearest."""

import subprocess
import sys

import pytest
import torch

from wsi2d.errors import ConfigError
from wsi2d.features.encoders import ENCODERS, get_encoder


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_a_registered_encoder_keeps_the_protocol(name: str) -> None:
    encoder = get_encoder(name)
    assert encoder.name == name
    assert encoder.fingerprint
    assert encoder.fingerprint == get_encoder(name).fingerprint
    assert encoder.store_dtype in {"float16", "float32"}
    assert encoder.to(torch.device("cpu")) is encoder
    side = max(64, encoder.min_patch_px)
    patches = torch.randint(0, 256, (3, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = patches.clone()
    features = encoder.encode(patches)
    assert (features.shape, features.dtype) == ((3, encoder.dim), torch.float32)
    assert features.isfinite().all()
    assert torch.equal(patches, before)
    assert torch.equal(features, encoder.encode(patches))
    assert encoder.encode(patches[:0]).shape == (0, encoder.dim)


@pytest.mark.parametrize("name", ["histology-stat", "histologystats", "histology_stats"])
def test_an_unknown_name_is_told_the_nearest(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        get_encoder(name)
    assert str(error.value) == f"encoder '{name}': unknown; did you mean 'histology-stats'?"


def test_a_name_near_to_none_is_told_all() -> None:
    with pytest.raises(ConfigError, match=r"encoder 'xyz': unknown; there are .*histology-stats"):
        get_encoder("xyz")


def test_the_registry_loads_no_encoder() -> None:
    code = (
        "import sys, wsi2d.features.encoders;"
        "assert not [m for m in sys.modules if m.startswith('wsi2d.features.histology')"
        " or m.split('.')[0] in ('timm', 'transformers', 'openslide')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
