"""Networks that timm builds: those of the catalogue, any other by its name there, and folders in timm's own layout."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from wsi2d.errors import ConfigError, ModelError
from wsi2d.features.encoders.catalogue import EncoderSpec
from wsi2d.features.encoders.conch import AttentionPooled, fit_positions
from wsi2d.features.encoders.packages import import_package, one_error
from wsi2d.features.encoders.preprocess import Preprocess, centred, known_interpolation, per_channel
from wsi2d.features.encoders.weights import Weights

_BLOCK_CELL_PX = 16
# What a config.json may not say: it decides how a network is built, not what is read from where.
_NOT_FROM_A_FILE = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


class ClassAndMean(nn.Module):
    """The class token beside the mean of the patch tokens; registers between them are left out."""

    def __init__(self, model: nn.Module, prefix_tokens: int) -> None:
        super().__init__()
        self.model, self.prefix_tokens = model, prefix_tokens

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings ``[batch, 2 × dim]`` of pixels ``[batch, 3, side, side]``."""
        tokens = self.model(pixels)
        return torch.cat([tokens[:, 0], tokens[:, self.prefix_tokens :].mean(1)], 1)


class ThirdStage(nn.Module):
    """The mean over space of what a ResNet's third stage gives; later stages are not computed."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            model.conv1, model.bn1, model.act1, model.maxpool, model.layer1, model.layer2, model.layer3
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings ``[batch, 1024]`` (of a ResNet-50) of pixels ``[batch, 3, side, side]``."""
        pooled: Tensor = self.stages(pixels).mean((2, 3))
        return pooled


def build(spec: EncoderSpec, weights: Weights) -> nn.Module:
    """The network of a catalogued encoder with its weights, every one of which must fit.

    Raises:
        ConfigError: timm is not installed, or does not import.
        ModelError: the weights belong to another network.
    """
    timm = import_package("timm")
    network = _with_weights(timm, spec, weights, torch.device("meta"))
    if any(t.is_meta for t in chain(network.parameters(), network.buffers())):  # a buffer that no file holds
        network = _with_weights(timm, spec, weights, torch.device("cpu"))
    if spec.head == "class+mean":
        return ClassAndMean(network, 1 + int(spec.arguments.get("reg_tokens", 0)))
    return ThirdStage(network) if spec.head == "stage 3" else network


def _with_weights(timm: Any, spec: EncoderSpec, weights: Weights, device: torch.device) -> nn.Module:
    arguments = dict(spec.arguments)
    if "mlp_layer" in arguments:
        arguments["mlp_layer"] = getattr(timm.layers, arguments["mlp_layer"])
    if "act_layer" in arguments:
        arguments["act_layer"] = getattr(nn, arguments["act_layer"])
    with device:
        network: nn.Module = timm.create_model(spec.architecture, pretrained=False, **arguments)
        if spec.head == "attention":
            network = AttentionPooled(network, spec.width, network.num_features)  # type: ignore[arg-type]
    if spec.head == "attention" and "trunk.pos_embed" in weights:
        cells = spec.preprocess.crop_px // _BLOCK_CELL_PX
        weights = {**weights, "trunk.pos_embed": fit_positions(weights["trunk.pos_embed"], cells)}
    load_all(spec.name, network, weights)
    return network


def load_all(name: str, network: nn.Module, weights: Weights, *, unused: tuple[str, ...] = ()) -> None:
    """Give a network its weights: all that it has, and no others.

    Args:
        name: of the encoder, for the error's line.
        network: takes the tensors themselves, without a copy.
        weights: by name.
        unused: beginnings of names that it may have no use for, as those of a classifier.

    Raises:
        ModelError: names or shapes differ.
    """
    with one_error(ModelError, f"encoder '{name}': the weights belong to another network"):
        outcome = network.load_state_dict(weights, strict=False, assign=True)
        if not all(p.is_floating_point() for p in network.parameters()):
            raise ValueError("they are whole numbers, as of a quantised network")
    foreign = [key for key in outcome.unexpected_keys if not key.startswith(unused)]
    for what, keys in (("lack", sorted(outcome.missing_keys)), ("have the unknown", sorted(foreign))):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ModelError(f"encoder '{name}': the weights belong to another network; they {what} {keys[0]}{more}")


def check_name(model: str) -> str:
    """The hub repository of one of timm's own models.

    Raises:
        ConfigError: timm has no such model, or no weights of it on the hub.
    """
    timm = import_package("timm")
    if not timm.is_model(model):
        close = difflib.get_close_matches(model, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "`timm.list_models()` has all"
        raise ConfigError(f"encoder 'timm:{model}': timm {timm.__version__} has no such model; {hint}")
    config = timm.get_pretrained_cfg(model)
    if config is None or not config.hf_hub_id:
        raise ConfigError(f"encoder 'timm:{model}': timm has no weights of it on the hub; give timm:{model}=PATH")
    return str(config.hf_hub_id)


def build_named(label: str, model: str, arguments: Mapping[str, Any], weights: Weights) -> nn.Module:
    """One of timm's models with its weights, without a classifier.

    Args:
        label: of the encoder, for errors.
        model: its name in timm.
        arguments: of its construction.
        weights: in timm's layout, or in one that timm knows how to convert for this model.

    Raises:
        ConfigError: timm is not installed, has no such model, or the arguments are not for it.
        ModelError: the weights belong to another network.
    """
    timm = import_package("timm")
    wrong = [key for key in arguments if key in _NOT_FROM_A_FILE]
    if wrong or not timm.is_model(model):
        what = f"'{wrong[0]}' is no option of a network" if wrong else f"timm {timm.__version__} has no '{model}'"
        raise ConfigError(f"encoder '{label}': {what}; its config.json is not one of timm's")
    with one_error(ConfigError, f"encoder '{label}': timm cannot build '{model}' with its arguments"):
        network: nn.Module = timm.create_model(model, pretrained=False, **{**arguments, "num_classes": 0})
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        with one_error(ModelError, f"encoder '{label}': the weights belong to another network"):
            weights = convert(dict(weights), network)
    classifier = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    load_all(label, network, weights, unused=tuple(f"{n}." for n in names))
    return network


def named_preprocess(label: str, values: Mapping[str, Any]) -> Preprocess:
    """Preprocessing as timm's configuration of a model's weights says it, as at evaluation.

    Raises:
        ConfigError: something is missing, or is not supported.
    """
    try:
        crop_px = int(values["input_size"][-1])
        mean, sd = per_channel(values["mean"]), per_channel(values["std"])
        resize_px = int(crop_px / float(values["crop_pct"]))
        interpolation = known_interpolation(str(values["interpolation"]))
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise ConfigError(
            f"encoder '{label}': its configuration does not say how patches are prepared ({error}); it must have "
            "input_size, mean, std, interpolation and crop_pct"
        ) from error
    return Preprocess(resize_px, crop_px, centred(resize_px, crop_px), mean, sd, interpolation)
