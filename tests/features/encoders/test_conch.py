"""CONCH v1.5's reading of tokens, against torch's own attention and against arithmetic."""

import numpy as np
import torch
from torch import nn

from wsi2d.features.encoders.conch import AttentionPool, fit_positions


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    dim, token_dim, batch, count = 48, 64, 3, 20
    pool = AttentionPool(dim, token_dim)
    with torch.no_grad():
        for value in pool.parameters():
            value.copy_(torch.randn(value.shape))
    whole = nn.MultiheadAttention(dim, 8, bias=False, kdim=token_dim, vdim=token_dim, batch_first=True)
    key_weight, value_weight = pool.to_kv.weight.detach().chunk(2)
    whole.load_state_dict(
        {
            "q_proj_weight": pool.to_q.weight, "k_proj_weight": key_weight, "v_proj_weight": value_weight,
            "out_proj.weight": pool.to_out.weight,
        }
    )  # fmt: skip
    tokens = torch.randn(batch, count, token_dim)
    query, read = pool.ln_q(pool.query).expand(batch, 1, dim), pool.ln_k(tokens)
    expected = whole(query, read, read, need_weights=False)[0][:, 0]
    torch.testing.assert_close(pool(tokens), expected, rtol=1e-4, atol=1e-4)


def cubic_weights(cells: int, side: int, a: float = -0.75) -> np.ndarray:
    """A matrix that interpolates ``side`` values to ``cells`` by cubic convolution, the border's going on beyond it.

    Row i is read at (i + ½) · side / (cells + 0.1) − ½.

    Source: R. Keys, "Cubic convolution interpolation for digital image processing", IEEE Trans. ASSP 29 (1981).
    """
    matrix = np.zeros((cells, side))
    for i in range(cells):
        at = (i + 0.5) * side / (cells + 0.1) - 0.5
        for k in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            d = abs(at - k)
            near, far = ((a + 2) * d - (a + 3)) * d * d + 1, a * (((d - 5) * d + 8) * d - 4)
            matrix[i, min(max(k, 0), side - 1)] += near if d <= 1 else far
    return matrix


def test_positions_are_interpolated_as_dinos_code_does() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(1, 197, 3, generator=generator)
    fitted = fit_positions(embeddings, 28)
    assert torch.equal(fitted[:, 0], embeddings[:, 0])
    matrix = cubic_weights(28, 14)
    grid = embeddings[0, 1:].unflatten(0, (14, 14)).double().numpy()
    expected = np.einsum("ir,jc,rcd->ijd", matrix, matrix, grid)
    np.testing.assert_allclose(fitted[0, 1:].unflatten(0, (28, 28)).numpy(), expected, atol=1e-5)


def test_positions_that_fit_or_are_no_grid_stay() -> None:
    for count in (785, 1, 12):
        embeddings = torch.randn(1, count, 4)
        assert fit_positions(embeddings, 28) is embeddings
