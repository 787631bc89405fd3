"""Networks of timm, in small: each catalogued head against timm's own features; weights that do not fit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wsi2d.errors import ConfigError, ModelError, Wsi2dError
from wsi2d.features.encoders import get_encoder
from wsi2d.features.encoders.catalogue import CATALOGUE
from wsi2d.features.encoders.timm_models import named_preprocess

Patches = Callable[[int, int], Tensor]
# Millions of parameters, as their cards and papers give them, without a classifier.
PUBLISHED_SIZE = {
    "uni": 303, "uni2-h": 681, "virchow": 631, "virchow2": 631, "gigapath": 1135, "h-optimus-0": 1135,
    "h-optimus-1": 1135,
}  # fmt: skip
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def arguments(timm: Any, name: str, **changes: Any) -> dict[str, Any]:
    """Those of a catalogued encoder, with classes for their names."""
    found = dict(CATALOGUE[name].arguments) | changes
    for key, place in (("mlp_layer", timm.layers), ("act_layer", nn)):
        if key in found:
            found[key] = getattr(place, found[key])
    return found


def shake(network: nn.Module) -> nn.Module:
    """Give a network weights that all matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
        for value in network.buffers():  # means and variances
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=generator))
    return network.eval()


def refused(name: str) -> str:
    with pytest.raises(Wsi2dError) as error:
        get_encoder(name)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", PUBLISHED_SIZE)
def test_the_arguments_make_a_network_of_the_published_size(timm: Any, name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(CATALOGUE[name].architecture, pretrained=False, **arguments(timm, name))
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert count == pytest.approx(PUBLISHED_SIZE[name], abs=1)
    twice = 2 if CATALOGUE[name].head == "class+mean" else 1
    assert CATALOGUE[name].width == twice * network.num_features


@pytest.fixture
def small(timm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], nn.Module]:
    """Makes a catalogued vision transformer small within the test, with weights in ``weights.safetensors``; gives the
    network that timm itself builds."""

    def make(name: str) -> nn.Module:
        spec = CATALOGUE[name]
        wide = 64 if spec.head == "class+mean" else 32
        monkeypatch.setitem(CATALOGUE, name, replace(spec, width=wide, arguments={**spec.arguments, **SMALL}))
        network = shake(timm.create_model(spec.architecture, pretrained=False, **arguments(timm, name)))
        save_file(dict(network.state_dict()), tmp_path / "weights.safetensors")
        return network

    return make


@pytest.mark.parametrize("name", PUBLISHED_SIZE)
def test_a_vision_transformer_and_its_head(
    small: Callable[[str], nn.Module], real_patches: Patches, tmp_path: Path, name: str
) -> None:
    network: Any = small(name)
    spec = CATALOGUE[name]
    encoder = get_encoder(f"{name}={tmp_path / 'weights.safetensors'}")
    assert (encoder.name, encoder.dim) == (name, spec.width)
    patches = real_patches(2, spec.patch_px)
    with torch.inference_mode():
        tokens = network.forward_features(spec.preprocess(patches))
    registers = {"uni2-h": 8, "virchow2": 4, "h-optimus-0": 4, "h-optimus-1": 4}.get(name, 0)
    assert tokens.shape[1] == 1 + registers + (224 // (16 if name in ("uni", "gigapath") else 14)) ** 2
    expected = tokens[:, 0]
    if name.startswith("virchow"):
        expected = torch.cat([expected, tokens[:, 1 + registers :].mean(1)], 1)
    torch.testing.assert_close(encoder.encode(patches), expected, rtol=1e-4, atol=1e-4)
    assert expected.std(0).min() > 0, "patches differ"


def test_conch_reads_its_trunk(
    timm: Any, real_patches: Patches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Position embeddings of a 14×14 grid, the published names; the pooling has tests of its own."""
    spec = replace(CATALOGUE["conch-v1.5"], width=48, arguments={**CATALOGUE["conch-v1.5"].arguments, **SMALL})
    monkeypatch.setitem(CATALOGUE, "conch-v1.5", spec)
    trunk = shake(timm.create_model(spec.architecture, **{**spec.arguments, "img_size": 224}))
    pool = {"query": (1, 48), "ln_k.weight": (32,), "ln_k.bias": (32,), "ln_q.weight": (48,), "ln_q.bias": (48,),
            "to_q.weight": (48, 48), "to_kv.weight": (96, 32), "to_out.weight": (48, 48)}  # fmt: skip
    torch.manual_seed(0)
    weights = {
        **{f"trunk.{key}": value for key, value in trunk.state_dict().items()},
        **{f"attn_pool_contrast.{key}": torch.randn(shape) for key, shape in pool.items()},
        "ln_contrast.weight": torch.ones(48),
        "ln_contrast.bias": torch.zeros(48),
    }
    torch.save(weights, tmp_path / "pytorch_model_vision.bin")
    assert weights["trunk.pos_embed"].shape[1] == 197
    features = get_encoder(f"conch-v1.5={tmp_path}").encode(real_patches(2, 300))
    assert features.shape == (2, 48)
    torch.testing.assert_close(features.mean(1), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.std(1, correction=0), torch.ones(2), rtol=1e-3, atol=1e-3)
    assert (features[0] - features[1]).abs().max() > 1e-3
    del weights["attn_pool_contrast.query"]
    torch.save(weights, tmp_path / "pytorch_model_vision.bin")
    assert "they lack attn_pool_contrast.query" in refused(f"conch-v1.5={tmp_path}")


def test_a_resnet_up_to_its_third_stage(timm: Any, real_patches: Patches, tmp_path: Path) -> None:
    network = shake(timm.create_model("resnet50"))
    save_file(dict(network.state_dict()), tmp_path / "model.safetensors")
    encoder = get_encoder(f"resnet50={tmp_path}")
    assert encoder.dim == 1024
    patches = real_patches(1, 256)
    with torch.inference_mode():
        maps = network.forward_intermediates(CATALOGUE["resnet50"].preprocess(patches), intermediates_only=True)[3]
    torch.testing.assert_close(encoder.encode(patches), maps.mean((2, 3)), rtol=1e-4, atol=1e-4)


def test_weights_that_do_not_fit(small: Callable[[str], nn.Module], tmp_path: Path) -> None:
    network = small("uni")
    path, weights = tmp_path / "weights.safetensors", dict(network.state_dict())
    save_file({k: v for k, v in weights.items() if k != "norm.bias"}, path)
    assert refused(f"uni={path}").endswith("the weights belong to another network; they lack norm.bias")
    save_file(weights | {"head.weight": torch.zeros(2), "head.bias": torch.zeros(2)}, path)
    assert refused(f"uni={path}").endswith("they have the unknown head.bias and 1 more")
    save_file(weights | {"norm.bias": torch.zeros(31)}, path)
    assert "another network (size mismatch for norm.bias: " in refused(f"uni={path}")
    save_file(weights | {"norm.bias": torch.zeros(32, dtype=torch.int8)}, path)
    assert "another network (" in refused(f"uni={path}")


@pytest.fixture
def folder(timm: Any, tmp_path: Path) -> Path:
    """A small vision transformer in a folder as timm saves it for the hub, with a classifier."""
    network = shake(timm.create_model("vit_tiny_patch16_224", embed_dim=24, depth=2, num_heads=2, num_classes=5))
    timm.models.save_for_hf(
        network, tmp_path / "net", model_args={"embed_dim": 24, "depth": 2, "num_heads": 2}, safe_serialization=True
    )
    return tmp_path / "net"


def test_a_folder_of_timm(timm: Any, real_patches: Patches, folder: Path) -> None:
    from safetensors.torch import load_file

    encoder = get_encoder(str(folder))
    assert (encoder.name, encoder.dim) == ("local:vit_tiny_patch16_224", 24)
    values = json.loads((folder / "config.json").read_text())
    patches = real_patches(2, 256)
    network = timm.create_model("vit_tiny_patch16_224", embed_dim=24, depth=2, num_heads=2, num_classes=0).eval()
    network.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    with torch.inference_mode():
        expected = network(named_preprocess("x", values["pretrained_cfg"])(patches))
    torch.testing.assert_close(encoder.encode(patches), expected, rtol=1e-4, atol=1e-4)
    assert "the weights belong to another network" in refused(f"timm:vit_tiny_patch16_224={folder}")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"architecture": "no_such_net"}, "has no 'no_such_net'; its config.json is not one of timm's"),
        ({"architecture": "hf-hub:owner/name"}, "its config.json is not one of timm's"),
        ({"model_args": {"checkpoint_path": "x.pt"}}, "'checkpoint_path' is no option of a network"),
        ({"model_args": {"pretrained": True}}, "'pretrained' is no option of a network"),
        ({"model_args": {"wings": 2}}, "timm cannot build 'vit_tiny_patch16_224' with its arguments"),
        ({"model_args": {"depth": 3, "embed_dim": 24, "num_heads": 2}}, "belong to another network"),
        ({"pretrained_cfg": {"mean": [0.5] * 3}}, "does not say how patches are prepared"),
    ],
)
def test_a_folder_whose_description_does_not_fit(folder: Path, changes: dict[str, Any], line: str) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    assert line in refused(str(folder))


def test_one_of_timms_own_by_its_name(timm: Any, real_patches: Patches, tmp_path: Path) -> None:
    network = shake(timm.create_model("resnet18", num_classes=7))
    save_file(dict(network.state_dict()), tmp_path / "model.safetensors")
    encoder = get_encoder(f"timm:resnet18={tmp_path}")
    assert (encoder.name, encoder.dim) == ("timm:resnet18", 512)
    patches = real_patches(2, 256)
    pixels = named_preprocess("x", timm.get_pretrained_cfg("resnet18").to_dict())(patches)
    with torch.inference_mode():
        expected = network.forward_features(pixels).mean((2, 3))
    torch.testing.assert_close(encoder.encode(patches), expected, rtol=1e-4, atol=1e-4)


def test_names_that_timm_does_not_have(timm: Any, no_network: None) -> None:
    with pytest.raises(ConfigError, match=r"encoder 'timm:resnet1': timm .* has no such model; did you mean resnet1"):
        get_encoder("timm:resnet1")
    with pytest.raises(ConfigError, match=r"has no such model; `timm.list_models\(\)` has all"):
        get_encoder("timm:")


def test_one_of_timms_own_from_the_hub(timm: Any, hub: Any, tmp_path: Path) -> None:
    network = shake(timm.create_model("resnet18"))
    save_file(dict(network.state_dict()), tmp_path / "model.safetensors")
    hub.files["timm/resnet18.a1_in1k/model.safetensors"] = (tmp_path / "model.safetensors").read_bytes()
    assert get_encoder("timm:resnet18").fingerprint == get_encoder(f"timm:resnet18={tmp_path}").fingerprint
    hub.files.clear()
    with pytest.raises(
        ModelError, match=r"encoder 'uni': https://huggingface\.co/MahmoodLab/UNI has no pytorch_model\.bin"
    ):
        get_encoder("uni")
