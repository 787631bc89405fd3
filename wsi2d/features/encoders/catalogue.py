"""The encoders with weights that are known by name: what each was made for, and how a patch becomes its numbers.

Where a fact comes from stands beside it. "Card" is the model's page on huggingface.co, as it was quoted by the sources
that are named in ``docs/encoders.md``; a fact that no source gave is marked as ours. ``gated`` is None where sources
disagree. Nothing here has been run on the published weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from wsi2d.features.encoders.preprocess import Preprocess

Backend = Literal["timm", "transformers"]
Precision = Literal["float32", "float16", "bfloat16"]
# What is taken of a network's output: `pooled`: what it gives itself; `class`: the class token; `class+mean`: the class
# token and the mean of the patch tokens, without registers; `stage 3`: the mean over space of a ResNet's third stage;
# `attention`: one query's attention over all tokens.
Head = Literal["pooled", "class", "class+mean", "stage 3", "attention"]


@dataclass(frozen=True)
class EncoderSpec:
    """A pretrained patch encoder.

    Attributes:
        name: under which it is asked for.
        backend: the package that builds the network.
        hub: its repository on huggingface.co.
        weights: names of its weights there, of which one is needed, in the order in which they are looked for.
        width: of an embedding.
        patch_px, mpp: side (px) and resolution (µm/px) of the patches that it was made for.
        preprocess: from patches to its input.
        licence: of the weights.
        gated: whether their terms must be accepted first; None where this is not known.
        head: what is taken of its output.
        precision: of autocast on a GPU; a CPU computes in float32.
        also_mpp: other resolutions that it was trained on, µm/px.
        architecture, arguments: how the backend builds it (for ``transformers`` the repository's config.json says that,
            and ``architecture`` is the model type, where that is not the one that config.json names).
        also_hub: other spellings of the repository, under which the weights may lie in the local cache.
    """

    name: str
    backend: Backend
    hub: str
    weights: tuple[str, ...]
    width: int
    patch_px: int
    preprocess: Preprocess
    licence: str
    gated: bool | None
    head: Head = "pooled"
    precision: Precision = "float32"
    mpp: float = 0.5
    also_mpp: tuple[float, ...] = ()
    architecture: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    also_hub: tuple[str, ...] = ()

    @property
    def page(self) -> str:
        """Where its card is, and its terms are accepted."""
        return f"https://huggingface.co/{self.hub}"

    @property
    def files(self) -> tuple[str, ...]:
        """What must be there besides the weights."""
        return ("config.json",) if self.backend == "transformers" else ()


_NON_COMMERCIAL = "CC-BY-NC-ND-4.0"
_OWKIN = "Owkin non-commercial"
_H_OPTIMUS_MEAN, _H_OPTIMUS_SD = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
_HIBOU_MEAN, _HIBOU_SD = (0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816)
_BIN, _SAFETENSORS = "pytorch_model.bin", "model.safetensors"
_BILINEAR_224, _BICUBIC_224 = Preprocess(224, 224, interpolation="bilinear"), Preprocess(224, 224)
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_VIRCHOW = {
    "img_size": 224, "init_values": 1e-5, "num_classes": 0, "mlp_ratio": 5.3375, "global_pool": "",
    "dynamic_img_size": True, **_SWIGLU,
}  # fmt: skip

_MAHMOOD = (
    EncoderSpec(
        "uni", "timm", "MahmoodLab/UNI", (_BIN, _SAFETENSORS),
        width=1024,  # card
        patch_px=256, mpp=0.5,  # paper (doi 10.1038/s41591-024-02857-3): 256 px at 20x
        preprocess=_BILINEAR_224,  # github.com/mahmoodlab/UNI, get_encoder: Resize(224), ImageNet
        precision="float16",  # TRIDENT, of the same laboratory; the card names none
        architecture="vit_large_patch16_224",  # arguments: github.com/mahmoodlab/UNI, get_encoder
        arguments={
            "img_size": 224, "patch_size": 16, "init_values": 1e-5, "num_classes": 0, "dynamic_img_size": True,
        },
        licence=_NON_COMMERCIAL, gated=True,  # card
        also_hub=("MahmoodLab/uni",),  # as the card's own example spells it
    ),
    EncoderSpec(
        "uni2-h", "timm", "MahmoodLab/UNI2-h", (_BIN, _SAFETENSORS),
        width=1536,  # card
        patch_px=256, mpp=0.5,  # its published TCGA features (datasets/MahmoodLab/UNI2-h-features): 256 px at 20x
        preprocess=_BILINEAR_224,  # github.com/mahmoodlab/UNI, get_encoder
        precision="bfloat16",  # TRIDENT, of the same laboratory; the card names none
        architecture="vit_giant_patch14_224",  # arguments: card
        arguments={
            "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2, "num_classes": 0, "no_embed_class": True, "reg_tokens": 8,
            "dynamic_img_size": True, **_SWIGLU,
        },
        licence=_NON_COMMERCIAL, gated=True,  # card
    ),
    EncoderSpec(
        "conch-v1.5", "timm", "MahmoodLab/conchv1_5", ("pytorch_model_vision.bin", "conch_v1_5_pytorch_model.bin"),
        width=768,  # TITAN's card
        patch_px=512, mpp=0.5,  # github.com/mahmoodlab/TITAN: 512 px of level 0 at 20x, 1024 at 40x
        preprocess=Preprocess(448, 448, interpolation="bilinear"),  # TITAN's return_conch: Resize, CenterCrop 448
        head="attention",
        precision="float16",  # TITAN's example and TRIDENT
        architecture="vit_large_patch16_224",  # TITAN's conch_config: 24 blocks of 1024, 16 heads, LayerScale
        arguments={"img_size": 448, "init_values": 1e-6, "num_classes": 0, "global_pool": ""},
        licence=_NON_COMMERCIAL, gated=True,  # TITAN's card
    ),
)  # fmt: skip

_PAIGE = (
    EncoderSpec(
        "virchow", "timm", "paige-ai/Virchow", (_SAFETENSORS, _BIN),
        width=2560, head="class+mean",  # card: class token and mean of the 256 patch tokens
        patch_px=224, mpp=0.5,  # card: 224 px at 20x
        preprocess=_BICUBIC_224,  # card's own timm configuration, as TRIDENT writes it out
        precision="float16",  # card
        architecture="vit_huge_patch14_224", arguments=_VIRCHOW,  # card, with the configuration that TRIDENT writes out
        licence="Apache-2.0", gated=True,  # card
    ),
    EncoderSpec(
        "virchow2", "timm", "paige-ai/Virchow2", (_SAFETENSORS, _BIN),
        width=2560, head="class+mean",  # card: as Virchow, but tokens 1 to 4 are registers and left out
        patch_px=224, mpp=0.5, also_mpp=(2.0, 1.0, 0.25),  # paper (arXiv 2408.00738): 5x, 10x, 20x and 40x
        preprocess=_BICUBIC_224,  # as for Virchow
        precision="float16",  # card
        architecture="vit_huge_patch14_224", arguments={**_VIRCHOW, "reg_tokens": 4},  # as for Virchow
        licence=_NON_COMMERCIAL, gated=True,  # card
    ),
)  # fmt: skip

_MICROSOFT = (
    EncoderSpec(
        "gigapath", "timm", "prov-gigapath/prov-gigapath", (_BIN, _SAFETENSORS),
        width=1536,  # card
        patch_px=256, mpp=0.5,  # paper (doi 10.1038/s41586-024-07441-w): 256 px at 0.5 µm/px
        preprocess=Preprocess(256, 224, crop_at=16),  # card: Resize(256, bicubic), CenterCrop(224), ImageNet
        precision="float16",  # github.com/prov-gigapath/prov-gigapath, pipeline.py
        architecture="vit_giant_patch14_dinov2",  # arguments: the repository's config.json, as TRIDENT writes it out
        arguments={
            "img_size": 224, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 5.33334,
            "num_classes": 0,
        },
        licence="Apache-2.0", gated=True,  # card, and that of prov-gigapath-flash
    ),
)  # fmt: skip

_BIOPTIMUS = tuple(
    EncoderSpec(
        name, "timm", hub, weights,
        width=1536,  # card
        patch_px=224, mpp=0.5,  # card
        # Card: mean and deviation, no resizing; the interpolation for patches of another size is ours.
        preprocess=Preprocess(224, 224, mean=_H_OPTIMUS_MEAN, sd=_H_OPTIMUS_SD),
        precision="float16",  # card
        architecture="vit_giant_patch14_reg4_dinov2",  # card, with the configuration that TRIDENT writes out
        arguments={"img_size": 224, "init_values": 1e-5, "num_classes": 0, "global_pool": "token"},
        licence=licence, gated=gated,
    )
    for name, hub, weights, licence, gated in (
        # TRIDENT's loader of H-optimus-0 asks for access that was granted, and a token.
        ("h-optimus-0", "bioptimus/H-optimus-0", (_BIN, _SAFETENSORS), "Apache-2.0", True),
        ("h-optimus-1", "bioptimus/H-optimus-1", (_SAFETENSORS, _BIN), _NON_COMMERCIAL, True),
    )
)  # fmt: skip

_OWKIN_S = (
    EncoderSpec(
        "phikon", "transformers", "owkin/phikon", (_SAFETENSORS, _BIN),
        width=768, head="class",  # card: ViTModel, last_hidden_state[:, 0]
        patch_px=224, mpp=0.5,  # card: 224 px at 20x
        preprocess=_BILINEAR_224,  # its preprocessor_config.json: 224 px, ImageNet; bilinear by default
        licence=_OWKIN, gated=False,  # card
    ),
    EncoderSpec(
        "phikon-v2", "transformers", "owkin/phikon-v2", (_SAFETENSORS,),
        width=1024, head="class",  # card: last_hidden_state[:, 0]
        patch_px=224, mpp=0.5,  # paper (arXiv 2409.09173): 224 px at 20x
        preprocess=_BICUBIC_224,  # paper: ImageNet; the interpolation for patches of another size is ours
        licence=_OWKIN, gated=False,  # card
    ),
)  # fmt: skip

_HISTAI = tuple(
    EncoderSpec(
        name, "transformers", hub, (_SAFETENSORS,),
        width=width, head="class",  # its pooler_output, which is the class token after the last norm, as in DINOv2
        patch_px=224, mpp=0.5,  # 224 px: the model's page on ai.azure.com; resolution: LazySlide and slide2vec
        preprocess=Preprocess(224, 224, mean=_HIBOU_MEAN, sd=_HIBOU_SD),  # its processor, as quoted by TRIDENT
        architecture="dinov2_with_registers",  # card: DINOv2 with registers, in code of its own, which is not run
        licence="Apache-2.0", gated=gated,
    )
    for name, hub, width, gated in (
        ("hibou-b", "histai/hibou-b", 768, None),  # gated: sources disagree
        ("hibou-l", "histai/hibou-L", 1024, True),  # card
    )
)  # fmt: skip

_NATURAL_IMAGES = (
    *(
        EncoderSpec(
            f"dinov2-{size}", "transformers", f"facebook/dinov2-{size}", (_SAFETENSORS, _BIN),
            width=width, head="class",  # arXiv 2304.07193
            # The resize of its preprocessor_config.json is to 256 px, so that nothing is resized; the resolution is
            # ours: natural images have none.
            patch_px=256, mpp=0.5,
            preprocess=Preprocess(256, 224, crop_at=16),  # preprocessor_config.json: 256 px bicubic, crop 224, ImageNet
            licence="Apache-2.0", gated=False,  # card
        )
        for size, width in (("small", 384), ("base", 768), ("large", 1024), ("giant", 1536))
    ),
    EncoderSpec(
        "resnet50", "timm", "timm/resnet50.tv_in1k", (_SAFETENSORS, _BIN),
        width=1024, head="stage 3",  # CLAM (doi 10.1038/s41551-020-00682-w): mean over space of the third stage
        patch_px=256, mpp=0.5,  # CLAM: 256 px at 20x
        preprocess=_BILINEAR_224,  # TRIDENT; CLAM itself does not resize
        architecture="resnet50",
        licence="BSD-3-Clause", gated=False,  # card
    ),
)  # fmt: skip

CATALOGUE: dict[str, EncoderSpec] = {
    spec.name: spec for spec in (*_MAHMOOD, *_PAIGE, *_MICROSOFT, *_BIOPTIMUS, *_OWKIN_S, *_HISTAI, *_NATURAL_IMAGES)
}
