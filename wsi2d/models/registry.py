"""Aggregators by name. A new one is a file with its class and configuration, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsi2d.config import Strict, validate
from wsi2d.errors import ConfigError
from wsi2d.models.aggregator import Aggregator
from wsi2d.registry import load

MODELS: dict[str, str] = {
    "mamba2d-mil": "wsi2d.models.mamba2d_mil:Mamba2DMIL",
    "m2d-mil": "wsi2d.models.m2d_mil:M2DMIL",
    "conv2d-mil": "wsi2d.models.conv2d_mil:Conv2DMIL",
    "mamba-mil": "wsi2d.models.mamba_mil:MambaMIL",
    "srmamba-mil": "wsi2d.models.srmamba_mil:SRMambaMIL",
    "bimamba-mil": "wsi2d.models.bimamba_mil:BiMambaMIL",
    "s4-mil": "wsi2d.models.s4_mil:S4MIL",
    "abmil": "wsi2d.models.abmil:ABMIL",
    "mean": "wsi2d.models.mean:MeanMIL",
    "max": "wsi2d.models.max:MaxMIL",
    "torchmil:abmil": "wsi2d.models.from_torchmil.abmil:TorchMILABMIL",
    "torchmil:clam-sb": "wsi2d.models.from_torchmil.clam_sb:TorchMILCLAM",
    "torchmil:dsmil": "wsi2d.models.from_torchmil.dsmil:TorchMILDSMIL",
    "torchmil:dtfd": "wsi2d.models.from_torchmil.dtfd:TorchMILDTFD",
    "torchmil:transmil": "wsi2d.models.from_torchmil.transmil:TorchMILTransMIL",
    "torchmil:transformer-abmil": "wsi2d.models.from_torchmil.transformer_abmil:TorchMILTransformerABMIL",
    "torchmil:sm-abmil": "wsi2d.models.from_torchmil.sm_abmil:TorchMILSmABMIL",
    "torchmil:sm-transformer-abmil": ("wsi2d.models.from_torchmil.sm_transformer_abmil:TorchMILSmTransformerABMIL"),
    "torchmil:patch-gcn": "wsi2d.models.from_torchmil.patch_gcn:TorchMILPatchGCN",
}


def model_config(section: Mapping[str, Any], *, source: str = "model") -> Strict:
    """Validate a configuration's ``model`` section: ``name`` and that model's options.

    Raises:
        ConfigError: unknown model or option.
    """
    return validate(model_class(section, source=source).config_class, section, source=source)


def build_model(section: Mapping[str, Any], *, in_dim: int, out_dim: int) -> Aggregator:
    """Build an aggregator: called with a :class:`~wsi2d.data.bags.BagBatch`, it returns a
    :class:`~wsi2d.models.output.ModelOutput`.

    Args:
        section: ``name`` and options, as in a configuration.
        in_dim: width of a patch embedding.
        out_dim: number of logits (classes, or discrete-time bins).

    Raises:
        ConfigError: unknown model or option.
        ModelError: a package that the model needs is not installed.
    """
    return model_class(section)(model_config(section), in_dim, out_dim)


def model_class(section: Mapping[str, Any], *, source: str = "model") -> type[Aggregator]:
    """The class of a configuration's ``model`` section; its options are not looked at.

    Raises:
        ConfigError: unknown model.
    """
    if section.get("name") is None:
        raise ConfigError(f"config {source}: name: missing; there are {', '.join(MODELS)}")
    name = str(section["name"])
    found: type[Aggregator] = load(MODELS, name, f"config {source}: model '{name}' is")
    return found
