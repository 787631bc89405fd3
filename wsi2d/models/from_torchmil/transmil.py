"""``torchmil:transmil``: approximate self-attention among all patches."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from wsi2d.models.aggregator import About
from wsi2d.models.from_torchmil.adapter import BagAnswer, TorchMILModel, given_to
from wsi2d.models.patch_model import PatchModelConfig


class HeadsConfig(PatchModelConfig):
    """Options of models with several attention heads."""

    heads: int = Field(4, ge=1, le=1024, description="attention heads; they share the width")

    @model_validator(mode="after")
    def _heads_share_width(self) -> HeadsConfig:
        if self.dim % self.heads:
            raise ValueError(f"heads must divide dim, got {self.heads} and {self.dim}")
        return self


class TorchMILTransMILConfig(HeadsConfig):
    """Options of ``torchmil:transmil``."""

    name: Literal["torchmil:transmil"] = "torchmil:transmil"
    layers: int = Field(2, ge=2, le=1024, description="layers of self-attention")


class TorchMILTransMIL(TorchMILModel):
    """TransMIL: the sequence in raster order bent into a square, Nyström attention, convolutions over the square.

    Attention is the class token's in the last layer, mean over heads; what the approximation makes negative counts as
    0. It is computed for the class token alone: torchmil's own is of all patches to all.

    Source: Z. Shao et al., "TransMIL: Transformer based Correlated Multiple Instance Learning for Whole Slide Image
    Classification", NeurIPS 2021; Y. Xiong et al., "Nyströmformer", AAAI 2021.
    """

    config_class = TorchMILTransMILConfig
    about = About(
        sees="sequence",
        order="raster, squared",
        cost="patches",
        paper="Shao et al. 2021",
        source='Z. Shao et al., "TransMIL: Transformer based Correlated Multiple Instance Learning for Whole Slide '
        'Image Classification", NeurIPS 2021',
    )
    config: TorchMILTransMILConfig

    def make_net(self, models: ModuleType, out_dim: int) -> nn.Module:
        """torchmil's TransMIL with ``out_dim`` logits and a landmark for two channels."""
        c = self.config
        net: Any = models.TransMIL(
            in_shape=(c.dim,), att_dim=c.dim, n_layers=c.layers, n_heads=c.heads, n_landmarks=max(1, c.dim // 2)
        )
        net.classifier = nn.Linear(c.dim, out_dim)
        for layer in net.layers:
            layer.norm2 = nn.Identity()  # of an MLP that there is not
        built: nn.Module = net
        return built

    def answer(self, patches: Tensor, edges: Tensor) -> BagAnswer:
        """Logits of the class token."""
        last, logits = self.net.layers[-1], []
        tokens = given_to(last, lambda: logits.append(self.net(patches.unsqueeze(0)))).detach()
        with torch.no_grad():
            row = class_token_attention(last.att_module, last.norm1(last.in_proj(tokens)))[1 : len(patches) + 1]
            row = row.clamp_min(0)
            total = row.sum()
            attention = row / total if total > 0 else torch.full_like(row, 1 / len(row))
        return BagAnswer(logits[0].reshape(-1), attention)

    def mixed(self, patches: Tensor, edges: Tensor) -> Tensor:
        """As the last layer gets them, in which the class token attends to them."""
        return given_to(self.net.layers[-1], lambda: self.net(patches.unsqueeze(0)))[0, 1 : len(patches) + 1]


def class_token_attention(layer: Any, tokens: Tensor) -> Tensor:
    """The first token's weights ``[tokens]`` of the others in torchmil's Nyström attention, mean over heads.

    With landmarks Q̃, K̃, the means of runs of tokens in front of which zeros are filled in, it is the first row of
    softmax(Q K̃ᵀ) · pinv(softmax(Q̃ K̃ᵀ)) · softmax(Q̃ Kᵀ) (equation 15 of Nyströmformer), and memory that of
    landmarks × tokens.
    """
    from torchmil.nn.attention.nystrom_attention import moore_penrose_iter_pinv

    length, landmarks = tokens.shape[1], layer.n_landmarks
    padded = nn.functional.pad(tokens, (0, 0, -length % landmarks, 0))
    q, k, _ = (
        part.unflatten(-1, (layer.n_heads, -1)).transpose(1, 2) for part in layer._qkv(padded)
    )  # [1, heads, tokens, width]
    q = q * layer.scale_factor
    run = math.ceil(length / landmarks)
    q_marks, k_marks = (part.unflatten(2, (landmarks, run)).mean(3) for part in (q, k))
    first = q[:, :, -length : q.shape[2] - length + 1]
    to_marks = (first @ k_marks.transpose(-1, -2)).softmax(-1)
    among = moore_penrose_iter_pinv((q_marks @ k_marks.transpose(-1, -2)).softmax(-1), layer.pinv_iterations)
    row: Tensor = to_marks @ among @ (q_marks @ k.transpose(-1, -2)).softmax(-1)
    return row[0, :, 0, -length:].mean(0)
