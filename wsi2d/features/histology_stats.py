"""``histology-stats``: what a patch looks like in 108 numbers, without weights and without a network.

A patch becomes optical density and, by colour deconvolution, amounts of haematoxylin, eosin and DAB per pixel. The
embedding describes how much of each there is and how it is spread, coarse and fine:

====================  =======  ==========================================================================
group                 numbers  what
====================  =======  ==========================================================================
``stain.*``              24    mean, standard deviation, skewness and percentiles 5, 25, 50, 75, 95 of
                               each stain (percentiles over every fourth pixel both ways)
``od.*``                  6    mean and standard deviation of optical density in R, G, B
``correlation.*``         3    correlation of each pair of stains over pixels
``share.*``               9    share of pixels with more than 0.05, 0.15 and 0.35 of each stain
``gradient.*``           36    mean and standard deviation of the gradient's magnitude and mean absolute
                               Laplacian of each stain, after averaging 1, 2, 4 and 8 px blocks
``autocorrelation.*``    15    correlation of each stain with itself 1, 2, 4, 8 and 16 px away
``coherence.*``           6    mean and standard deviation of the structure tensor's coherence of total
                               density over windows of 4, 8 and 16 px: 0 isotropic, 1 fibres
``block.*``               9    percentiles 10, 50, 90 of each stain's means over blocks of 16 px
====================  =======  ==========================================================================

All are in units of optical density (base 10) or without unit, of order 0.01 to 10. It tells tissue types apart well
enough for demonstrations, baselines and tests of everything downstream; it is no foundation model.

Source of the stain vectors: A. C. Ruifrok and D. A. Johnston, "Quantification of histochemical staining by color
deconvolution", Anal. Quant. Cytol. Histol. 23 (2001).
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch.nn import functional

from wsi2d.features.encoders.protocol import check_patches

_STAINS = ("haematoxylin", "eosin", "dab")
_STAIN_OD_RGB = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
_PERCENTILES = (5, 25, 50, 75, 95)
_SHARES = (0.05, 0.15, 0.35)
_SCALES = (1, 2, 4, 8)
_LAGS = (1, 2, 4, 8, 16)
_WINDOWS = (4, 8, 16)
_BLOCK = 16
_BLOCK_PERCENTILES = (10, 50, 90)
_PAIRS = ((0, 1), (0, 2), (1, 2))
_VERSION = 1
_EPS = 1e-6
_AT_ONCE = 8  # patches at a time: their maps stay in the processor's cache


def feature_names() -> tuple[str, ...]:
    """The name of each of the 108 numbers, in order."""
    names = [f"stain.{s}.{k}" for s in _STAINS for k in ("mean", "sd", "skewness", *(f"p{p}" for p in _PERCENTILES))]
    names += [f"od.{c}.{k}" for c in "rgb" for k in ("mean", "sd")]
    names += [f"correlation.{_STAINS[i]}.{_STAINS[j]}" for i, j in _PAIRS]
    names += [f"share.{s}.above{t}" for s in _STAINS for t in _SHARES]
    names += [f"gradient.{k}px.{s}.{v}" for k in _SCALES for s in _STAINS for v in ("mean", "sd", "laplacian")]
    names += [f"autocorrelation.{lag}px.{s}" for lag in _LAGS for s in _STAINS]
    names += [f"coherence.{w}px.{v}" for w in _WINDOWS for v in ("mean", "sd")]
    names += [f"block.{s}.p{p}" for s in _STAINS for p in _BLOCK_PERCENTILES]
    return tuple(names)


class HistologyStats:
    """The encoder ``histology-stats`` (see the module's page for what each number means)."""

    name = "histology-stats"
    min_patch_px = 48
    store_dtype = "float32"

    def __init__(self) -> None:
        self.names = feature_names()
        self.dim = len(self.names)
        definition = f"{self.name}/{_VERSION}:{','.join(self.names)}"
        self.fingerprint = hashlib.sha256(definition.encode()).hexdigest()[:16]
        stains = torch.tensor(_STAIN_OD_RGB, dtype=torch.float64)
        stains = stains / stains.norm(dim=1, keepdim=True)
        self._unmix = torch.linalg.inv(stains).T.contiguous().float()

    def to(self, device: torch.device) -> HistologyStats:
        """Move to a device; returns itself."""
        self._unmix = self._unmix.to(device)
        return self

    @torch.inference_mode()
    def encode(self, patches: Tensor) -> Tensor:
        """Embeddings float32 ``[batch, 108]`` of patches uint8 ``[batch, height, width, 3]`` (RGB).

        Raises:
            ConfigError: the patches are not uint8 RGB, or smaller than 48 px.
        """
        check_patches(self.name, patches, self.min_patch_px)
        if not len(patches):
            return torch.empty(0, self.dim)
        patches = patches.to(self._unmix.device)
        return torch.cat([self._encode(part) for part in patches.split(_AT_ONCE)])

    def _encode(self, patches: Tensor) -> Tensor:
        rgb = patches.permute(0, 3, 1, 2).float()
        density = torch.log10(256.0 / (rgb + 1.0))
        stains = torch.einsum("sc,bchw->bshw", self._unmix, density)
        groups = (
            _distribution(stains), _mean_sd(density), _correlations(stains), _shares(stains),
            _gradients(stains), _autocorrelations(stains), _coherences(density.mean(1, keepdim=True)), _blocks(stains),
        )  # fmt: skip
        return torch.cat([group.flatten(1) for group in groups], dim=1)


def _distribution(maps: Tensor) -> Tensor:
    mean, sd = maps.mean((2, 3)), maps.std((2, 3), correction=0)
    standard = (maps - mean[..., None, None]) / (sd[..., None, None] + _EPS)
    skewness = (standard * standard * standard).mean((2, 3))
    quantiles = _quantiles(maps[:, :, ::4, ::4], _PERCENTILES)
    return torch.cat([torch.stack([mean, sd, skewness], -1), quantiles], -1)


def _quantiles(maps: Tensor, percentiles: tuple[int, ...]) -> Tensor:
    q = torch.tensor([p / 100 for p in percentiles], device=maps.device)
    return torch.quantile(maps.flatten(2), q, dim=2).permute(1, 2, 0)


def _mean_sd(maps: Tensor) -> Tensor:
    return torch.stack([maps.mean((2, 3)), maps.std((2, 3), correction=0)], -1)


def _correlations(maps: Tensor) -> Tensor:
    centred = (maps - maps.mean((2, 3), keepdim=True)).flatten(2)
    covariance = torch.einsum("bip,bjp->bij", centred, centred)
    sd = covariance.diagonal(dim1=1, dim2=2).clamp_min(_EPS).sqrt()
    return torch.stack([covariance[:, i, j] / (sd[:, i] * sd[:, j]) for i, j in _PAIRS], -1)


def _shares(maps: Tensor) -> Tensor:
    return torch.stack([(maps > threshold).float().mean((2, 3)) for threshold in _SHARES], -1)


def _gradients(maps: Tensor) -> Tensor:
    parts = []
    for scale in _SCALES:
        pooled = functional.avg_pool2d(maps, scale) if scale > 1 else maps
        inner = pooled[:, :, 1:-1, 1:-1]
        left, right = pooled[:, :, 1:-1, :-2], pooled[:, :, 1:-1, 2:]
        above, below = pooled[:, :, :-2, 1:-1], pooled[:, :, 2:, 1:-1]
        magnitude = 0.5 * torch.hypot(right - left, below - above)
        laplacian = (left + right + above + below - 4 * inner).abs().mean((2, 3))
        parts.append(torch.cat([_mean_sd(magnitude), laplacian[..., None]], -1))
    return torch.stack(parts, 1)


def _autocorrelations(maps: Tensor) -> Tensor:
    centred = maps - maps.mean((2, 3), keepdim=True)
    variance = centred.square().mean((2, 3)) + _EPS
    parts = []
    for lag in _LAGS:
        across = (centred[..., :-lag] * centred[..., lag:]).mean((2, 3))
        down = (centred[..., :-lag, :] * centred[..., lag:, :]).mean((2, 3))
        parts.append(0.5 * (across + down) / variance)
    return torch.stack(parts, 1)


def _coherences(total: Tensor) -> Tensor:
    dx = total[:, :, 1:-1, 2:] - total[:, :, 1:-1, :-2]
    dy = total[:, :, 2:, 1:-1] - total[:, :, :-2, 1:-1]
    products = torch.cat([dx * dx, dy * dy, dx * dy], 1)
    parts = []
    for window in _WINDOWS:
        xx, yy, xy = functional.avg_pool2d(products, window).unbind(1)
        coherence = torch.sqrt((xx - yy) ** 2 + 4 * xy * xy) / (xx + yy + _EPS)
        parts.append(torch.stack([coherence.mean((1, 2)), coherence.std((1, 2), correction=0)], -1))
    return torch.stack(parts, 1)


def _blocks(maps: Tensor) -> Tensor:
    return _quantiles(functional.avg_pool2d(maps, _BLOCK), _BLOCK_PERCENTILES)
