"""Any folder with a ``config.json``, as transformers or timm write it, and weights; or such a file of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from wsi2d.errors import ConfigError
from wsi2d.features.encoders import timm_models, transformers_models
from wsi2d.features.encoders.network import NetworkEncoder, fingerprint, probe_width
from wsi2d.features.encoders.preprocess import Preprocess
from wsi2d.features.encoders.weights import find_weights, read_json, read_weights, weights_hash

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")


def load_path(path: Path) -> NetworkEncoder:
    """The encoder in a folder, or the one whose weights a file holds, with its ``config.json`` beside it.

    It is called ``local:`` and the network's kind, whatever the folder is called, so that it may be moved.

    Raises:
        ConfigError: the description is missing or not understood.
        ModelError: the weights are missing, damaged, or belong to another network.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(
            f"encoder {path}: no {CONFIG_FILE} says which network it is; put the one of its model's page beside it, "
            "or give NAME=PATH with one of `wsi2d encoders`, as uni=PATH"
        )
    config = read_json(folder / CONFIG_FILE)
    kind = str(config.get("architecture") or config.get("model_type"))[:60]
    weights = find_weights(path, WEIGHT_NAMES) if path.is_dir() else path
    return load_described(f"local:{kind}", config, weights, folder / PREPROCESSOR_FILE)


def load_described(label: str, config: dict[str, Any], weights_file: Path, preprocessor: Path | None) -> NetworkEncoder:
    """The encoder that a ``config.json`` describes.

    Args:
        label: recorded with the features.
        config: values of the ``config.json``.
        weights_file: its weights.
        preprocessor: the ``preprocessor_config.json``, which a network of transformers needs.

    Raises:
        ConfigError, ModelError: as :func:`load_path`.
    """
    if "architecture" in config:
        network, preprocess, definition, digest = _of_timm(label, config, weights_file)
    elif "model_type" in config:
        network, preprocess, definition, digest = _of_transformers(label, config, weights_file, preprocessor)
    else:
        raise ConfigError(
            f"encoder '{label}': {CONFIG_FILE} names no model_type (transformers) and no architecture (timm)"
        )
    return NetworkEncoder(
        label, network,
        dim=probe_width(label, network, preprocess.crop_px),
        preprocess=preprocess,
        fingerprint=fingerprint(digest, preprocess, definition),
    )  # fmt: skip


def _of_transformers(
    label: str, config: dict[str, Any], weights_file: Path, preprocessor: Path | None
) -> tuple[nn.Module, Preprocess, dict[str, Any], str]:
    if preprocessor is None or not preprocessor.is_file():
        raise ConfigError(
            f"encoder '{label}': no {PREPROCESSOR_FILE} says how patches are prepared; put the one of its model's page "
            f"beside {CONFIG_FILE}"
        )
    preprocess = transformers_models.folder_preprocess(label, read_json(preprocessor))
    weights = read_weights(weights_file)
    digest = weights_hash(weights)
    network = transformers_models.build(label, config, weights)
    return network, preprocess, transformers_models.definition(config), digest


def _of_timm(
    label: str, config: dict[str, Any], weights_file: Path
) -> tuple[nn.Module, Preprocess, dict[str, Any], str]:
    preprocess = timm_models.named_preprocess(label, config.get("pretrained_cfg") or config)
    architecture, arguments = str(config["architecture"]), dict(config.get("model_args") or {})
    if config.get("global_pool") is not None:
        arguments.setdefault("global_pool", config["global_pool"])
    weights = read_weights(weights_file)
    digest = weights_hash(weights)
    network = timm_models.build_named(label, architecture, arguments, weights)
    return network, preprocess, {"architecture": architecture, "arguments": arguments}, digest
