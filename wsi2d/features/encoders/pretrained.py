"""Encoders with weights: what a name means, where its weights are, and the encoder they make."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from wsi2d.config import nearest
from wsi2d.errors import ConfigError
from wsi2d.features.encoders import ENCODERS, timm_models, transformers_models
from wsi2d.features.encoders.catalogue import CATALOGUE, EncoderSpec
from wsi2d.features.encoders.folders import CONFIG_FILE, PREPROCESSOR_FILE, WEIGHT_NAMES, load_described, load_path
from wsi2d.features.encoders.hub import HubFiles, check_repository
from wsi2d.features.encoders.network import NetworkEncoder, fingerprint, probe_width
from wsi2d.features.encoders.packages import import_package
from wsi2d.features.encoders.weights import (
    INDEX_FILE,
    PICKLED_SUFFIXES,
    SAFE_SUFFIX,
    find_weights,
    read_json,
    read_weights,
    shards,
    weights_hash,
)

_TIMM, _HUB = "timm:", "hf:"
_LONG_NAME = 200


@dataclass(frozen=True)
class Asked:
    """What a name asks for.

    Attributes:
        name: without a path; recorded with the features.
        path: where its weights are said to lie; the whole of what was asked for where ``name`` is empty.
    """

    name: str
    path: Path | None = None

    @property
    def spec(self) -> EncoderSpec | None:
        """Its entry in the catalogue, if it has one."""
        return CATALOGUE.get(self.name)


def parse_name(text: str) -> Asked:
    """Tell names from paths: a known name goes before a folder of that name (``./uni`` means the folder).

    Raises:
        ConfigError: it is neither a name nor a path.
    """
    if text in CATALOGUE or (text.startswith((_TIMM, _HUB)) and "=" not in text):
        return Asked(text)
    name, separator, path = text.partition("=")
    if separator and path and (name in CATALOGUE or name.startswith(_TIMM)):
        return Asked(name, Path(os.path.expanduser(path)))
    if os.path.exists(there := os.path.expanduser(text)):
        return Asked("", Path(there))
    shown = text if len(text) < _LONG_NAME else f"{text[:_LONG_NAME]}…"
    if os.sep in text or "/" in text or text.endswith((SAFE_SUFFIX, *PICKLED_SUFFIXES)):
        raise ConfigError(f"encoder {shown}: no such file or folder; give its path, or one of `wsi2d encoders`")
    raise ConfigError(f"encoder '{shown}': unknown; {nearest(text, [*ENCODERS, *CATALOGUE])}")


def load_pretrained(text: str) -> NetworkEncoder:
    """The encoder with weights that a name or a path asks for.

    Raises:
        ConfigError, ModelError: as :func:`wsi2d.features.encoders.get_encoder`.
    """
    asked = parse_name(text)
    if asked.spec is not None:
        return _load_catalogued(asked.spec, asked.path)
    if asked.name.startswith(_TIMM):
        return _load_timm(asked.name, asked.path)
    if asked.path is not None:
        return load_path(asked.path)
    return _load_repository(asked.name)


def hub_files(spec: EncoderSpec) -> HubFiles:
    """What a catalogued encoder needs of the hub."""
    use = f"--encoder {spec.name}=FOLDER"
    return HubFiles(spec.name, spec.hub, spec.weights, spec.files, use, spec.gated, spec.also_hub)


def _load_catalogued(spec: EncoderSpec, path: Path | None) -> NetworkEncoder:
    import_package(spec.backend, f"encoder '{spec.name}': ")  # before gigabytes are downloaded for it
    file = hub_files(spec).fetch() if path is None else _named_weights(path, spec.weights)
    definition = {"head": spec.head, "architecture": spec.architecture, "arguments": dict(spec.arguments)}
    weights = read_weights(file)
    digest = weights_hash(weights)
    if spec.backend == "timm":
        network = timm_models.build(spec, weights)
    else:
        config = read_json(file.parent / CONFIG_FILE)
        definition |= {"config": transformers_models.definition(config)}
        network = transformers_models.build(spec.name, config, weights, model_type=spec.architecture)
    del weights
    width = probe_width(spec.name, network, spec.preprocess.crop_px) if spec.backend == "transformers" else spec.width
    if width != spec.width:
        raise ConfigError(
            f"encoder '{spec.name}': {file.parent / CONFIG_FILE} describes a network of width {width}, not "
            f"{spec.width}; it is not the one of {spec.page}"
        )
    return NetworkEncoder(
        spec.name, network,
        dim=spec.width, preprocess=spec.preprocess, precision=spec.precision,
        fingerprint=fingerprint(digest, spec.preprocess, definition),
    )  # fmt: skip


def _named_weights(path: Path, names: tuple[str, ...]) -> Path:
    return find_weights(path, names) if path.is_dir() else path


def _load_timm(label: str, path: Path | None) -> NetworkEncoder:
    timm = import_package("timm", f"encoder '{label}': ")
    model = label.removeprefix(_TIMM)
    repository = timm_models.check_name(model) if path is None else ""
    config = timm.get_pretrained_cfg(model)
    values = {"architecture": model, "pretrained_cfg": {} if config is None else config.to_dict()}
    files = HubFiles(label, repository, WEIGHT_NAMES, (), f"--encoder {label}=FOLDER")
    weights = files.fetch() if path is None else _named_weights(path, WEIGHT_NAMES)
    return load_described(label, values, weights, None)


def _load_repository(label: str) -> NetworkEncoder:
    repository = label.removeprefix(_HUB)
    check_repository(label, repository)
    names = (WEIGHT_NAMES[0], INDEX_FILE, WEIGHT_NAMES[1])
    files = HubFiles(label, repository, names, (CONFIG_FILE,), "--encoder FOLDER", whole=True)
    weights = files.fetch()
    config = read_json(weights.parent / CONFIG_FILE)
    for name in shards(weights) if weights.name == INDEX_FILE else ():
        if files.fetch_beside(name) is None:
            raise files.absent(name)
    preprocessor = None if "architecture" in config else files.fetch_beside(PREPROCESSOR_FILE)
    return load_described(label, config, weights, preprocessor)
