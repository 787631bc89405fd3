"""What patches go through before a network sees them: resized, cropped, normalised, in plain torch on its device.

The published transforms resize with Pillow, which works on bytes: first across, then down, and each time it rounds and
cuts what bicubic interpolation shoots beyond 0 and 255. The same is done here with torch's antialiased interpolation,
which has the same kernels. Where a value lies on a half, Pillow's fixed-point weights may round it the other way:
patches of 96 to 512 px of a real picture, resized to 224 to 518, differ by at most 2 grey levels of 255 at a pixel, and
on the mean by less than 0.1 (bilinear) or 0.01 (bicubic). Where a patch has the size already, nothing is resized.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from wsi2d.errors import ConfigError

Interpolation = Literal["bilinear", "bicubic"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_SD = (0.229, 0.224, 0.225)
_LARGEST_PX = 4096
_INTERPOLATIONS: dict[str, Interpolation] = {"bilinear": "bilinear", "bicubic": "bicubic"}


@dataclass(frozen=True)
class Preprocess:
    """From patches to a network's input.

    Attributes:
        resize_px: side to which a patch is resized.
        crop_px: side of the square that is cut out of it, which the network sees.
        crop_at: where it begins, px from the top and from the left.
        mean, sd: of red, green and blue, where 0 is black and 1 is full intensity.
        interpolation: of the resizing.
    """

    resize_px: int
    crop_px: int
    crop_at: int = 0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    sd: tuple[float, float, float] = IMAGENET_SD
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        if not 0 < self.crop_px <= self.crop_px + self.crop_at <= self.resize_px <= _LARGEST_PX:
            raise ConfigError(
                f"preprocessing: a crop of {self.crop_px} px at {self.crop_at} does not lie in {self.resize_px} px"
            )
        if min(self.sd) <= 0:
            raise ConfigError(f"preprocessing: standard deviations must be > 0, got {list(self.sd)}")

    def __call__(self, patches: Tensor) -> Tensor:
        """Pixels float32 ``[batch, 3, crop_px, crop_px]`` of square patches uint8 ``[batch, side, side, 3]``.

        Raises:
            ConfigError: the patches are not square.
        """
        height, width = patches.shape[1:3]
        if height != width:
            raise ConfigError(f"patches must be square, got {height}×{width} px")
        pixels = patches.permute(0, 3, 1, 2).float()
        if height != self.resize_px:
            for size in ((height, self.resize_px), (self.resize_px, self.resize_px)):
                pixels = functional.interpolate(
                    pixels, size, mode=self.interpolation, align_corners=False, antialias=True
                )
                pixels = pixels.add_(0.5).floor_().clamp_(0, 255)
        end = self.crop_at + self.crop_px
        pixels = pixels[:, :, self.crop_at : end, self.crop_at : end]
        mean, sd = (_levels(values, pixels.device) for values in (self.mean, self.sd))
        return (pixels - mean) / sd


@cache
@torch.inference_mode(False)
def _levels(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Grey levels ``[3, 1, 1]`` on a device. They are kept: a GPU is waited for whenever numbers are moved to it."""
    return (torch.tensor(values)[:, None, None] * 255).to(device)


def per_channel(values: Any) -> tuple[float, float, float]:
    """Numbers for red, green and blue out of a file.

    Raises:
        TypeError, ValueError: they are not three finite numbers.
    """
    red, green, blue = map(float, values)
    if not all(map(math.isfinite, (red, green, blue))):
        raise ValueError(f"{list(values)} are not three numbers")
    return red, green, blue


def known_interpolation(name: str) -> Interpolation:
    """One of those there are.

    Raises:
        ValueError: it is another.
    """
    if name not in _INTERPOLATIONS:
        raise ValueError(f"interpolation '{name}' is not supported; there are {' and '.join(_INTERPOLATIONS)}")
    return _INTERPOLATIONS[name]


def centred(resize_px: int, crop_px: int) -> int:
    """Where torchvision begins a central crop: halves are rounded to the even number."""
    return round((resize_px - crop_px) / 2)
