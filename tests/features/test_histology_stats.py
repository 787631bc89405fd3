"""Each number of ``histology-stats`` against numpy, scipy and scikit-image on a real picture."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from skimage import color, data, measure

from wsi2d.compute import torch_threads
from wsi2d.errors import ConfigError
from wsi2d.features.histology_stats import HistologyStats, feature_names

STAINS = ("haematoxylin", "eosin", "dab")
CORNERS = ((0, 0), (100, 40), (250, 250), (130, 300), (310, 20))
SIDE = 200  # no multiple of 16: what remains at the border of blocks is left out


def cut_patches(side: int = SIDE) -> np.ndarray:
    """Patches of colon in blue and brown, then in pink, since no eosin is in it: uint8 ``[10, side, side, 3]``."""
    picture = data.immunohistochemistry()
    brown = np.stack([picture[y : y + side, x : x + side] for y, x in CORNERS])
    return np.concatenate([brown, brown[..., [0, 2, 0]]])


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    return cut_patches()


@pytest.fixture(scope="module")
def encoded(patches: np.ndarray) -> dict[str, np.ndarray]:
    """The encoder's numbers by name, one a patch."""
    encoder = HistologyStats()
    return dict(zip(encoder.names, encoder.encode(torch.from_numpy(patches)).numpy().T, strict=True))


def densities(patch: np.ndarray) -> np.ndarray:
    """Optical density, float64 ``[height, width, 3]``; a pixel of 255 has none."""
    return -np.log10((patch.astype(np.float64) + 1) / 256)


def stain_maps(patch: np.ndarray) -> np.ndarray:
    """Amounts of haematoxylin, eosin and DAB, float64 ``[3, height, width]``: density = amounts × stain vectors."""
    vectors = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    vectors /= np.sqrt((vectors**2).sum(1, keepdims=True))
    amounts = np.linalg.solve(vectors.T, densities(patch).reshape(-1, 3).T)
    return amounts.reshape(3, *patch.shape[:2])


def block_means(image: np.ndarray, size: int) -> np.ndarray:
    height, width = (n // size * size for n in image.shape)
    return measure.block_reduce(image[:height, :width], size, np.mean)


def agree(
    encoded: dict[str, np.ndarray], patches: np.ndarray, group: str, compute: Callable[[np.ndarray], dict[str, float]]
) -> None:
    """All numbers of a group, and no others, are what an independent computation gives."""
    expected = [compute(patch) for patch in patches]
    names = [name for name in encoded if name.startswith(f"{group}.")]
    assert set(names) == set(expected[0])
    for name in names:
        np.testing.assert_allclose(encoded[name], [e[name] for e in expected], rtol=1e-3, atol=2e-4, err_msg=name)
        assert np.ptp(encoded[name]) > 1e-6, f"{name} is the same for all patches"


def test_names_and_size() -> None:
    encoder = HistologyStats()
    assert encoder.dim == 108 == len(encoder.names) == len(set(encoder.names))
    assert 64 <= encoder.dim <= 256
    assert encoder.names == feature_names()
    groups = [name.split(".")[0] for name in encoder.names]
    assert {g: groups.count(g) for g in dict.fromkeys(groups)} == {
        "stain": 24, "od": 6, "correlation": 3, "share": 9, "gradient": 36, "autocorrelation": 15, "coherence": 6,
        "block": 9,
    }  # fmt: skip


def test_the_stains_are_those_of_scikit_image(patches: np.ndarray) -> None:
    # Its vectors have other lengths and its density another base, so the maps agree up to a factor.
    for patch in patches[:5]:
        theirs = color.separate_stains(patch, color.hed_from_rgb)
        for mine, other in zip(stain_maps(patch), np.moveaxis(theirs, -1, 0), strict=True):
            assert np.corrcoef(np.maximum(mine, 0).ravel(), other.ravel())[0, 1] > 0.95


def test_stain(encoded: dict[str, np.ndarray], patches: np.ndarray) -> None:
    def compute(patch: np.ndarray) -> dict[str, float]:
        numbers = {}
        for name, stain in zip(STAINS, stain_maps(patch), strict=True):
            numbers |= {f"stain.{name}.mean": stain.mean(), f"stain.{name}.sd": stain.std()}
            numbers[f"stain.{name}.skewness"] = stats.skew(stain, axis=None)
            numbers |= {f"stain.{name}.p{p}": np.percentile(stain[::4, ::4], p) for p in (5, 25, 50, 75, 95)}
        return numbers

    agree(encoded, patches, "stain", compute)


def test_od(encoded: dict[str, np.ndarray], patches: np.ndarray) -> None:
    def compute(patch: np.ndarray) -> dict[str, float]:
        channels = np.moveaxis(densities(patch), -1, 0)
        return {f"od.{c}.mean": d.mean() for c, d in zip("rgb", channels, strict=True)} | {
            f"od.{c}.sd": d.std() for c, d in zip("rgb", channels, strict=True)
        }

    agree(encoded, patches, "od", compute)


def test_correlation(encoded: dict[str, np.ndarray], patches: np.ndarray) -> None:
    def compute(patch: np.ndarray) -> dict[str, float]:
        matrix = np.corrcoef(stain_maps(patch).reshape(3, -1))
        return {f"correlation.{STAINS[i]}.{STAINS[j]}": matrix[i, j] for i in range(3) for j in range(i + 1, 3)}

    agree(encoded, patches, "correlation", compute)


def test_share(encoded: dict[str, np.ndarray], patches: np.ndarray) -> None:
    def compute(patch: np.ndarray) -> dict[str, float]:
        return {
            f"share.{name}.above{t}": (stain > t).mean()
            for name, stain in zip(STAINS, stain_maps(patch), strict=True)
            for t in (0.05, 0.15, 0.35)
        }

    agree(encoded, patches, "share", compute)


def test_gradient(encoded: dict[str, np.ndarray], patches: np.ndarray) -> None:
    def compute(patch: np.ndarray) -> dict[str, float]:
        numbers = {}
        for scale in (1, 2, 4, 8):
            for name, stain in zip(STAINS, stain_maps(patch), strict=True):
                pooled = block_means(stain, scale)
                magnitude = np.hypot(*np.gradient(pooled))[1:-1, 1:-1]
                laplacian = ndimage.laplace(pooled)[1:-1, 1:-1]
                numbers |= {
                    f"gradient.{scale}px.{name}.mean": magnitude.mean(),
                    f"gradient.{scale}px.{name}.sd": magnitude.std(),
                    f"gradient.{scale}px.{name}.laplacian": np.abs(laplacian).mean(),
                }
        return numbers

    agree(encoded, patches, "gradient", compute)


def test_autocorrelation(encoded: dict[str, np.ndarray], patches: np.ndarray) -> None:
    def compute(patch: np.ndarray) -> dict[str, float]:
        numbers = {}
        for lag in (1, 2, 4, 8, 16):
            for name, stain in zip(STAINS, stain_maps(patch), strict=True):
                centred = stain - stain.mean()
                products = []
                for axis in (0, 1):
                    here = np.take(centred, range(SIDE - lag), axis)
                    there = np.take(centred, range(lag, SIDE), axis)
                    products.append((here * there).mean())
                numbers[f"autocorrelation.{lag}px.{name}"] = np.mean(products) / (stain.var() + 1e-6)
        return numbers

    agree(encoded, patches, "autocorrelation", compute)


def test_coherence(encoded: dict[str, np.ndarray], patches: np.ndarray) -> None:
    def compute(patch: np.ndarray) -> dict[str, float]:
        numbers = {}
        total = densities(patch).mean(-1)
        dy, dx = (2 * g[1:-1, 1:-1] for g in np.gradient(total))
        for window in (4, 8, 16):
            xx, yy, xy = (block_means(p, window) for p in (dx * dx, dy * dy, dx * dy))
            low, high = np.moveaxis(np.linalg.eigvalsh(np.stack([xx, xy, xy, yy], -1).reshape(*xx.shape, 2, 2)), -1, 0)
            coherence = (high - low) / (high + low + 1e-6)
            numbers[f"coherence.{window}px.mean"], numbers[f"coherence.{window}px.sd"] = (
                coherence.mean(), coherence.std(),
            )  # fmt: skip
        return numbers

    agree(encoded, patches, "coherence", compute)


def test_block(encoded: dict[str, np.ndarray], patches: np.ndarray) -> None:
    def compute(patch: np.ndarray) -> dict[str, float]:
        return {
            f"block.{name}.p{p}": np.percentile(block_means(stain, 16), p)
            for name, stain in zip(STAINS, stain_maps(patch), strict=True)
            for p in (10, 50, 90)
        }

    agree(encoded, patches, "block", compute)


def test_a_stripe_is_coherent_and_noise_is_not() -> None:
    generator = np.random.default_rng(0)
    stripe = np.broadcast_to((128 + 100 * np.sin(np.arange(64) / 2))[:, None, None], (64, 64, 3)).astype(np.uint8)
    noise = generator.integers(0, 256, (64, 64, 1), np.uint8).repeat(3, 2)
    encoder = HistologyStats()
    at = encoder.names.index("coherence.16px.mean")
    striped, noisy = encoder.encode(torch.from_numpy(np.stack([stripe, noise])))[:, at].tolist()
    assert striped > 0.99
    assert noisy < 0.3


def test_it_is_the_same_after_transposing(patches: np.ndarray) -> None:
    encoder = HistologyStats()
    one = encoder.encode(torch.from_numpy(patches))
    other = encoder.encode(torch.from_numpy(np.ascontiguousarray(patches.swapaxes(1, 2))))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_it_tells_patches_apart(patches: np.ndarray) -> None:
    encoder = HistologyStats()
    features = encoder.encode(torch.from_numpy(patches))
    again = encoder.encode(torch.from_numpy(patches[::-1].copy())).flip(0)
    torch.testing.assert_close(features, again, rtol=1e-4, atol=1e-5)
    assert torch.pdist(features).min() > 0.1


@pytest.mark.parametrize("batch", [1, 3, 7, 8, 9, 64])
def test_the_batch_does_not_change_the_numbers(batch: int) -> None:
    encoder = HistologyStats()
    patches = torch.from_numpy(np.tile(cut_patches(64), (2, 1, 1, 1)))
    whole = encoder.encode(patches)
    parts = torch.cat([encoder.encode(part) for part in patches.split(batch)])
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_the_threads_do_not_change_the_numbers(patches: np.ndarray) -> None:
    with torch_threads(1):
        one = HistologyStats().encode(torch.from_numpy(patches))
    with torch_threads(3):
        three = HistologyStats().encode(torch.from_numpy(patches))
    torch.testing.assert_close(one, three, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [0, 1, 127, 255])
def test_even_patches_are_finite_and_calm(value: int) -> None:
    encoder = HistologyStats()
    patches = torch.full((2, 64, 64, 3), value, dtype=torch.uint8)
    features = encoder.encode(patches)
    assert features.isfinite().all()
    numbers = dict(zip(encoder.names, features[0].tolist(), strict=True))
    density = -np.log10((value + 1) / 256)
    assert numbers["od.r.mean"] == pytest.approx(density, abs=1e-5)
    for name, number in numbers.items():
        group, *_, last = name.split(".")
        if group in {"correlation", "gradient", "autocorrelation", "coherence"} or last == "sd":
            assert abs(number) < 0.05, name


@pytest.mark.parametrize("shape", [(48, 48), (48, 100), (63, 65), (256, 200)])
def test_sizes(shape: tuple[int, int]) -> None:
    picture = torch.from_numpy(data.immunohistochemistry()[: shape[0], : shape[1]].copy())
    features = HistologyStats().encode(picture[None])
    assert features.shape == (1, 108)
    assert features.isfinite().all()


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        (torch.zeros(2, 64, 64, 3), r"must be uint8 \[batch, height, width, 3\], got torch.float32 \[2, 64, 64, 3\]"),
        (torch.zeros(64, 64, 3, dtype=torch.uint8), "must be uint8"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), "must be uint8"),
        (torch.zeros(2, 64, 64, 4, dtype=torch.uint8), "must be uint8"),
        (torch.zeros(2, 47, 64, 3, dtype=torch.uint8), "patch_px must be at least 48, got 47"),
        (torch.zeros(2, 64, 40, 3, dtype=torch.uint8), "patch_px must be at least 48, got 40"),
    ],
)
def test_wrong_patches_are_refused(patches: torch.Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=f"histology-stats: .*{message}"):
        HistologyStats().encode(patches)
