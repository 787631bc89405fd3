"""Networks that transformers builds from a repository's or folder's ``config.json``. Code in there is never run."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsi2d.errors import ConfigError, ModelError
from wsi2d.features.encoders.packages import import_package, one_error
from wsi2d.features.encoders.preprocess import Preprocess, known_interpolation, per_channel
from wsi2d.features.encoders.weights import Weights

# By model type: the class token after the last norm, or what the model itself pools. Others are refused, since what
# stands for a patch in them is not known here.
_HEADS: dict[str, Literal["class", "pooled"]] = {
    **dict.fromkeys(("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "vit_msn"), "class"),
    **dict.fromkeys(("convnext", "convnextv2", "resnet", "swin", "swinv2", "clip_vision_model"), "pooled"),
}
# Weights that a class token does not depend on.
_NOT_NEEDED = ("mask_token", "pooler.dense.weight", "pooler.dense.bias")
# Of a config.json: what does not change numbers.
_INCIDENTAL = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "architectures", "auto_map")
_RESAMPLING = {2: "bilinear", 3: "bicubic"}


class Pooled(nn.Module):
    """One row of a model's output a patch."""

    def __init__(self, model: nn.Module, head: Literal["class", "pooled"]) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings ``[batch, dim]`` of pixels ``[batch, 3, side, side]``."""
        output = self.model(pixel_values=pixels)
        row: Tensor = output.last_hidden_state[:, 0] if self.head == "class" else output.pooler_output.flatten(1)
        return row


def build(label: str, values: Mapping[str, Any], weights: Weights, *, model_type: str = "") -> nn.Module:
    """A network with its weights, every one of which must be there.

    Args:
        label: of the encoder, for errors.
        values: of the ``config.json``.
        weights: as transformers saves them, with or without a classifier.
        model_type: goes before the one that ``values`` names.

    Raises:
        ConfigError: transformers is not installed, or does not know such a model.
        ModelError: the weights belong to another network.
    """
    import_package("transformers")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    kind = (model_type or str(values.get("model_type")))[:60]
    if kind not in _HEADS or kind not in CONFIG_MAPPING:
        raise ConfigError(
            f"encoder '{label}': model type '{kind}' is not supported, and code from a repository is not run; there "
            f"are {', '.join(sorted(_HEADS))}"
        )
    with one_error(ConfigError, f"encoder '{label}': its config.json is not one of a {kind}"):
        config = CONFIG_MAPPING[kind].from_dict({**definition(values), "model_type": kind})
        model_class = MODEL_MAPPING[type(config)]
    return Pooled(_load(label, model_class, config, weights), _HEADS[kind])


def _load(label: str, model_class: Any, config: Any, weights: Weights) -> nn.Module:
    options = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(model_class).parameters else {}
    foreign = f"encoder '{label}': the weights belong to another network than config.json describes"
    with one_error(ModelError, foreign), _quiet():
        model, report = model_class.from_pretrained(
            None, config=config, state_dict=dict(weights), dtype=torch.float32, output_loading_info=True, **options
        )
    lacking = sorted(k for k in report["missing_keys"] if not k.endswith(_NOT_NEEDED))
    lacking += [str(k) for k in report.get("mismatched_keys", ())]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ModelError(f"{foreign}; they lack {lacking[0]}{more}")
    network: nn.Module = model
    return network


def definition(values: Mapping[str, Any]) -> dict[str, Any]:
    """What of a ``config.json`` decides the numbers."""
    return {key: value for key, value in values.items() if key not in _INCIDENTAL}


def folder_preprocess(label: str, values: Mapping[str, Any]) -> Preprocess:
    """Preprocessing as a ``preprocessor_config.json`` says it.

    Raises:
        ConfigError: something is missing or not supported.
    """
    try:
        resize_px = _side(values["size"]) if values.get("do_resize", True) else _side(values["crop_size"])
        cropped = values.get("do_center_crop", "crop_size" in values)
        crop_px = _side(values["crop_size"]) if cropped else resize_px
        interpolation = known_interpolation(_RESAMPLING.get(values["resample"], f"resample {values['resample']}"))
        intensity = 255 * float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 255.0
        mean, sd = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if values.get("do_normalize", True):
            mean, sd = per_channel(values["image_mean"]), per_channel(values["image_std"])
        # There, numbers are of what the rescaling gives; here, of 0 for black to 1 for full intensity.
        mean, sd = per_channel(m / intensity for m in mean), per_channel(s / intensity for s in sd)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise ConfigError(
            f"encoder '{label}': preprocessor_config.json does not say how patches are prepared ({error}); it must "
            "have size, crop_size where there is a crop, resample, image_mean and image_std"
        ) from error
    return Preprocess(resize_px, crop_px, (resize_px - crop_px) // 2, mean, sd, interpolation)


def _side(size: Any) -> int:
    """The side of a square, however the file says it."""
    if isinstance(size, Mapping):
        sides = {int(size[key]) for key in ("height", "width", "shortest_edge") if size.get(key) is not None}
        if len(sides) != 1:
            raise ValueError(f"size {dict(size)} is no square")
        return sides.pop()
    return int(size)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars, and its log lines, which tell at length what the errors here tell in one line."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
