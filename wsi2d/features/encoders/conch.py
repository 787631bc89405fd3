"""CONCH v1.5's network: a vision transformer whose tokens are read by one query.

Its authors hand it out in TITAN's repository, through code of their own that is run from there
(``AutoModel.from_pretrained("MahmoodLab/TITAN", trust_remote_code=True).return_conch()``) and was written for an older
transformers. Here no code from a repository is run: the network is built from its published configuration, and its
weights fit it by their names. Facts from TITAN's ``conch_v1_5.py`` and ``configuration_titan.py``: 24 blocks of width
1024 with 16 heads over patches of 16 px, position embeddings of a 14×14 grid that are interpolated (bicubic, with the
0.1 cells that DINO's code adds to the target) to the 28×28 of 448 px, an attention of 8 heads from one learned query to
all tokens, 768 numbers.

Source: T. Ding et al., "Multimodal Whole Slide Foundation Model for Pathology", arXiv 2411.19666 (2024).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_HEADS = 8
_EXTRA_CELLS = 0.1


class AttentionPool(nn.Module):
    """One learned query's attention over normalised tokens.

    Args:
        dim: width of the result.
        token_dim: width of the tokens.
    """

    def __init__(self, dim: int, token_dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, dim))
        self.ln_k, self.ln_q = nn.LayerNorm(token_dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(token_dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """The query's answer ``[batch, dim]`` from tokens ``[batch, count, token_dim]``."""
        batch = len(tokens)
        query = self.to_q(self.ln_q(self.query)).expand(batch, 1, -1)
        key, value = self.to_kv(self.ln_k(tokens)).chunk(2, -1)
        heads = (part.unflatten(-1, (_HEADS, -1)).transpose(1, 2) for part in (query, key, value))
        answer = functional.scaled_dot_product_attention(*heads)
        pooled: Tensor = self.to_out(answer.transpose(1, 2).flatten(2))[:, 0]
        return pooled


class AttentionPooled(nn.Module):
    """A trunk that gives all tokens, the attention over them, and a last norm; named as in the published weights.

    Args:
        trunk: from pixels to tokens.
        dim: width of an embedding.
        token_dim: width of the tokens.
    """

    def __init__(self, trunk: nn.Module, dim: int, token_dim: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = AttentionPool(dim, token_dim)
        self.ln_contrast = nn.LayerNorm(dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings ``[batch, dim]`` of pixels ``[batch, 3, side, side]``."""
        pooled: Tensor = self.ln_contrast(self.attn_pool_contrast(self.trunk(pixels)))
        return pooled


def fit_positions(embeddings: Tensor, cells: int) -> Tensor:
    """Position embeddings ``[1, 1 + n², dim]`` (class token first) for a grid of ``cells`` × ``cells``.

    Those that fit already, and what is no square grid, come back as they are.
    """
    side = math.isqrt(max(embeddings.shape[1] - 1, 0))
    if side in (0, cells) or side * side != embeddings.shape[1] - 1:
        return embeddings
    grid = embeddings[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scale = (cells + _EXTRA_CELLS) / side
    grid = functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([embeddings[:, :1].float(), grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)
