"""Paints slides that are hard to tell tissue on, with their truth; nothing of wsi2d takes part in the painting.

``python tests/slides/difficult.py SHEET.png [kind ...]`` prints how well the tissue of each is found and draws a
contact sheet: truth outlined in green, what was found in red.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

MPP = 4.0  # µm per level-0 px
HEIGHT, WIDTH = 1200, 1500
SHAPE = (HEIGHT, WIDTH)
RIM = 2  # px to each side of an outline that nobody can decide

# Optical density per unit of stain, (R, G, B).
HEMATOXYLIN, EOSIN, DAB, COUNTERSTAIN = (
    np.array(stain, np.float32)
    for stain in ((0.60, 0.72, 0.35), (0.15, 0.87, 0.46), (0.27, 0.57, 0.78), (0.72, 0.58, 0.30))
)
BLOOD, ANILINE_BLUE, FUCHSIN, CARBON = (
    np.array(stain, np.float32)
    for stain in ((0.13, 0.72, 0.52), (0.62, 0.36, 0.14), (0.16, 0.80, 0.55), (0.92, 0.98, 1.0))
)
INKS = {"blue": (50, 70, 170), "green": (30, 140, 80), "black": (40, 40, 45), "red": (190, 40, 60)}
CLEAR, YELLOW, DIM = (243, 243, 242), (236, 230, 210), (200, 204, 210)

Point = tuple[float, float]


@dataclass(frozen=True)
class DifficultSlide:
    """A picture and its truth.

    Attributes:
        rgb: uint8 ``[height, width, 3]``.
        tissue: bool ``[height, width]``, where tissue was painted.
        ignore: bool ``[height, width]``, where nobody can decide: rims, pen over tissue.
        mpp: size of a pixel, µm.
        alpha: uint8 ``[height, width]`` of a picture with transparency.
    """

    rgb: np.ndarray
    tissue: np.ndarray
    ignore: np.ndarray
    mpp: float
    alpha: np.ndarray | None = None


@dataclass(frozen=True)
class Score:
    """How well the tissue was found.

    Attributes:
        iou: intersection over union outside ``ignore``; 1 where there is no tissue and none was found.
        false_positive, false_negative: shares of the decidable pixels.
        found: bool ``[height, width]``, the detected tissue at level 0.
    """

    iou: float
    false_positive: float
    false_negative: float
    found: np.ndarray


# --- noise and outlines


def noise(generator: np.random.Generator, scale: float, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Smooth noise of about unit deviation, ``scale`` px from hill to hill."""
    rows, cols = (int(np.ceil(n / scale)) + 4 for n in shape)
    coarse = Image.fromarray(generator.standard_normal((rows, cols), np.float32))
    top, left = 1 + generator.random(2)
    box = (left, top, left + shape[1] / scale, top + shape[0] / scale)
    return 1.5 * np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC, box))


def blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; a wide one is taken at a coarser grid."""
    if sigma < 8:
        return ndimage.gaussian_filter(np.asarray(picture, np.float32), sigma, truncate=3)
    step = int(sigma // 3)
    small = Image.fromarray(np.asarray(picture, np.float32)).reduce(step)
    smooth = ndimage.gaussian_filter(np.asarray(small), sigma / step, truncate=3)
    return np.asarray(Image.fromarray(smooth).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))


def blob(
    generator: np.random.Generator, centre: Point, radii: Point, *, angle: float = 0.0, rough: float = 1.0
) -> np.ndarray:
    """One piece with an irregular outline, without holes; centre and radii (x, y) in px."""
    reach = 1.8 * max(radii)
    (left, right), (top, bottom) = (
        (int(max(0, at - reach)), int(min(end, at + reach))) for at, end in zip(centre, (WIDTH, HEIGHT), strict=True)
    )
    y, x = np.ogrid[top:bottom, left:right]
    dx, dy = np.float32(x - centre[0]), np.float32(y - centre[1])
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / radii[0]
    v = (dy * np.cos(angle) - dx * np.sin(angle)) / radii[1]
    window, size = (bottom - top, right - left), min(radii)
    waves = sum(
        amplitude * noise(generator, scale, window)
        for amplitude, scale in ((0.16, size), (0.07, size / 3), (0.025, size / 9))
    )
    labels, _ = ndimage.label(np.hypot(u, v) + rough * waves + 0.008 * noise(generator, 5, window) < 0.95)
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    piece = np.zeros(SHAPE, bool)
    piece[top:bottom, left:right] = ndimage.binary_fill_holes(labels == counts.argmax())
    return piece


def main_piece(generator: np.random.Generator, size: float = 1.0) -> np.ndarray:
    """The one large piece of most slides, with room for ink around it."""
    centre = (WIDTH * generator.uniform(0.46, 0.54), HEIGHT * generator.uniform(0.46, 0.54))
    radii = (size * generator.uniform(400, 480), size * generator.uniform(310, 370))
    return blob(generator, centre, radii, angle=generator.uniform(-0.4, 0.4))


def rim(mask: np.ndarray) -> np.ndarray:
    """What lies within a few pixels of a mask's outline."""
    return grown(mask, RIM) & ~ndimage.minimum_filter(mask, 2 * RIM + 1)


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    """The mask and what lies within ``by`` px of it along rows and columns."""
    return ndimage.maximum_filter(mask, 2 * by + 1)


# --- stain


@dataclass(frozen=True)
class Texture:
    """Hematoxylin and eosin of tissue everywhere, and where its lumina are."""

    hematoxylin: np.ndarray
    eosin: np.ndarray


def texture(generator: np.random.Generator, *, contrast: float = 1.0, glands: bool = True) -> Texture:
    """Nuclei, fibres with clefts, glands with lumina; ``contrast`` 0 is one even field."""
    cellular = 1 / (1 + np.exp(-2.5 * (noise(generator, 170) + 0.4 * noise(generator, 45) - 0.2)))
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    angle = generator.uniform(0, np.pi)
    course = (x * np.cos(angle) + y * np.sin(angle)).astype(np.float32) / 12 + 5 * noise(generator, 160)
    fibres = np.sin(2 * np.pi * (course + 0.35 * noise(generator, 40) + 0.15 * noise(generator, 9)))
    clefts = np.clip(3 * (0.8 * fibres + 0.75 * noise(generator, 18) - 1.2), 0, 1) * (1 - cellular)
    eosin = 0.30 + 0.07 * fibres * (1 - cellular) + 0.05 * noise(generator, 40) + 0.03 * noise(generator, 3)
    eosin = np.clip(eosin - 0.06 * cellular, 0.05, None) * (1 - 0.85 * clefts)
    density = 0.02 + 0.17 * cellular
    lumen = np.zeros(SHAPE, np.float32)
    if glands:
        ring, lumen = _glands(generator)
        density = density * (1 - ring) + 0.33 * ring
        eosin *= 1 - 0.25 * ring
    nuclei = blur((generator.random(SHAPE, np.float32) < density) * np.float32(1), 0.75)
    hematoxylin = (0.05 + 1.1 * nuclei) * (1 - 0.9 * clefts)
    keep = 1 - 0.97 * lumen
    hematoxylin, eosin = (contrast * part + (1 - contrast) * part.mean() for part in (hematoxylin * keep, eosin * keep))
    return Texture(hematoxylin, eosin)


def _glands(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Epithelium and lumen of glands, 0 to 1, in some regions."""
    half = (HEIGHT // 2, WIDTH // 2)
    where = noise(generator, 260)[::2, ::2] > 0.3
    pitch = 27
    rows, cols = np.mgrid[pitch // 2 : half[0] : pitch, pitch // 2 : half[1] : pitch]
    places = np.stack([rows.ravel(), cols.ravel()], 1) + generator.integers(-8, 9, (rows.size, 2))
    places = np.clip(places, 0, np.array(half) - 1)
    places = places[where[tuple(places.T)] & (generator.random(len(places)) < 0.85)]
    if not len(places):
        return np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    seeds = np.ones(half, bool)
    seeds[tuple(places.T)] = False
    radius = np.zeros(half, np.float32)
    radius[tuple(places.T)] = generator.uniform(5, 14, len(places))
    distance, nearest = ndimage.distance_transform_edt(seeds, return_indices=True)
    near = distance / radius[tuple(nearest)] + 0.22 * noise(generator, 14)[::2, ::2]
    ring, lumen = np.clip(5 * (1 - near), 0, 1), np.clip(5 * (0.5 - near), 0, 1)
    full = [
        np.asarray(Image.fromarray(part.astype(np.float32)).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))
        for part in (ring, lumen)
    ]
    return full[0], full[1]


def adipose(generator: np.random.Generator, region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fat of whole cells about a region: its membranes (0 to 1) and what it covers."""
    pitch = 23
    rows, cols = np.mgrid[pitch // 2 : HEIGHT : pitch, pitch // 2 : WIDTH : pitch]
    places = np.stack([rows.ravel(), cols.ravel()], 1) + generator.integers(-8, 9, (rows.size, 2))
    places = np.clip(places, 0, np.array(SHAPE) - 1)[generator.random(rows.size) < 0.9]
    seeds = np.ones(SHAPE, bool)
    seeds[tuple(places.T)] = False
    nearest = ndimage.distance_transform_edt(seeds, return_distances=False, return_indices=True)
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    row = np.clip(y + 3 * noise(generator, 20), 0, HEIGHT - 1).astype(int)
    col = np.clip(x + 3 * noise(generator, 20), 0, WIDTH - 1).astype(int)
    cell = (nearest[0] * WIDTH + nearest[1])[row, col]
    fat = region.ravel()[cell]
    walls = np.zeros(SHAPE, bool)
    walls[:-1] |= cell[:-1] != cell[1:]
    walls[:, :-1] |= cell[:, :-1] != cell[:, 1:]
    fat = ndimage.binary_fill_holes(fat)
    lines = blur(walls, 0.7)
    corners = np.clip(blur(walls, 2.2) - 0.3, 0, None)
    return np.clip(1.1 * lines + 2 * corners, 0, 1) * blur(fat, 0.6), fat


# --- the scene


class Scene:
    """Glass, what lies on it as optical density, and the truth."""

    def __init__(self, seed: int, number: int, glass: tuple[int, int, int] = CLEAR) -> None:
        self.generator = np.random.default_rng([seed, number])
        self.glass = np.array(glass, np.float32) + np.float32(self.generator.uniform(-2, 2))
        self.density = np.zeros((*SHAPE, 3), np.float32)
        self.light = self._illumination()
        self.tissue = np.zeros(SHAPE, bool)
        self.ignore = np.zeros(SHAPE, bool)

    def _illumination(self) -> np.ndarray:
        """Brightness of the empty field: a gradient, a tint, vignetting, the scanner's lanes."""
        y, x = np.linspace(-1, 1, HEIGHT, dtype=np.float32)[:, None], np.linspace(-1, 1, WIDTH, dtype=np.float32)
        tilt = self.generator.uniform(-0.008, 0.008, 2)
        tint = self.generator.uniform(-0.004, 0.004, 3)
        lanes = np.repeat(self.generator.normal(0, 0.002, 12), WIDTH // 12 + 1)[:WIDTH]
        grey = 1 + tilt[0] * x + tilt[1] * y - 0.006 * (x * x + y * y) + lanes
        return (grey[..., None] + x[..., None] * tint).astype(np.float32)

    def add(self, amount: np.ndarray, stain: np.ndarray) -> None:
        """Lay stain on the glass."""
        for channel in range(3):
            self.density[..., channel] += amount * stain[channel]

    def stain(
        self,
        outline: np.ndarray,
        cut: Texture | None = None,
        *,
        strength: float | np.ndarray = 1.0,
        ground: float = 0.02,
    ) -> None:
        """Lay hematoxylin and eosin on an outline; the edge takes a little more, as it does."""
        cut = cut or texture(self.generator)
        soft = blur(outline, 1.0)
        amount = strength * soft * (1 + 0.5 * np.clip(soft - blur(outline, 9) - 0.1, 0, None))
        tone = self.generator.uniform(0.85, 1.15, 2)
        self.add(tone[0] * cut.hematoxylin * amount, HEMATOXYLIN)
        self.add((tone[1] * cut.eosin + ground) * amount, EOSIN)
        self.tissue |= outline

    def ink(self, drawn: Image.Image, colour: str, *, strength: float = 1.0) -> None:
        """Ink over what is drawn: uneven, pooled at its edges, and nobody's truth on tissue."""
        cover = blur(np.asarray(drawn, np.float32) / 255, 1.6)
        pooled = np.clip(cover - blur(cover, 8), 0, 1)
        uneven = 0.72 + 0.14 * noise(self.generator, 70) + 0.07 * noise(self.generator, 9) + 0.5 * pooled
        amount = strength * cover * np.clip(uneven, 0.3, 1.15)
        self.density += amount[..., None] * -np.log10(np.array(INKS[colour], np.float32) / 243)
        self.ignore |= self.tissue & (cover > 0.02)

    def shade(self, factor: np.ndarray, tint: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> None:
        """Take light away from tissue and glass alike; a colour of smaller ``tint`` loses less."""
        self.density -= np.log10(np.clip(factor, 0.01, None))[..., None].astype(np.float32) * np.float32(tint)

    def picture(self, quality: int = 85) -> np.ndarray:
        """The scanner's picture: light through the stains, sensor noise, JPEG."""
        light = np.exp(-math.log(10) * self.density)
        light *= self.light * self.glass
        light += self.generator.standard_normal((*SHAPE, 1), np.float32)
        light += 0.8 * self.generator.standard_normal(light.shape, np.float32)
        return jpeg(light, quality)

    def slide(self, rgb: np.ndarray | None = None, alpha: np.ndarray | None = None) -> DifficultSlide:
        """What the test gets."""
        rgb = self.picture() if rgb is None else rgb
        return DifficultSlide(rgb, self.tissue, self.ignore | rim(self.tissue), MPP, alpha)


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    """The picture after JPEG."""
    file = io.BytesIO()
    Image.fromarray(np.clip(np.rint(picture), 0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


# --- pens


def stroke(generator: np.random.Generator, draw: ImageDraw.ImageDraw, points: Sequence[Point], width: float) -> None:
    """A line by hand: it wobbles, and its width with it."""
    points = np.asarray(points, float)
    along = np.r_[0, np.cumsum(np.hypot(*np.diff(points, axis=0).T))]
    steps = np.arange(0, along[-1], 3.0)
    sway = ndimage.gaussian_filter1d(generator.normal(0, 1, (3, len(steps))), 15, axis=1) * 5
    for x, y, more, *sway_xy in zip(
        np.interp(steps, along, points[:, 0]), np.interp(steps, along, points[:, 1]), sway[2], sway[0], sway[1],
        strict=True,
    ):  # fmt: skip
        r = max(2.0, width / 2 * (1 + 0.1 * more))
        x, y = x + 4 * sway_xy[0], y + 4 * sway_xy[1]
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)


def around(tissue: np.ndarray, gap: float) -> np.ndarray:
    """Points (x, y) on a line around everything, ``gap`` px away."""
    rows, cols = np.nonzero(tissue[::8, ::8])
    centre = np.array([cols.mean(), rows.mean()]) * 8
    angles = np.linspace(0, 2 * np.pi, 90)
    rays = np.stack([np.cos(angles), np.sin(angles)], 1)
    reach = ((np.stack([cols, rows], 1) * 8 - centre) @ rays.T).max(0) + gap
    reach = ndimage.gaussian_filter1d(reach, 2, mode="wrap")
    return np.clip(centre + reach[:, None] * rays, 20, (WIDTH - 20, HEIGHT - 20))


def pen_marks(scene: Scene, colour: str, *, crossing: bool = True) -> None:
    """Thick lines of different strengths, a dotted outline, and a line across the tissue."""
    generator = scene.generator
    lines, dots, faint = (Image.new("L", (WIDTH, HEIGHT)) for _ in range(3))
    draw = ImageDraw.Draw(lines)
    stroke(generator, draw, [(60, 250), (80, 80), (260, 60)], generator.uniform(30, 60))
    stroke(generator, draw, [(WIDTH - 70, HEIGHT - 330), (WIDTH - 90, HEIGHT - 60)], generator.uniform(50, 75))
    path = around(scene.tissue if scene.tissue.any() else blob(generator, (750, 600), (430, 330)), 45)
    for x, y in path[::2] + generator.normal(0, 4, (len(path[::2]), 2)):
        r = generator.uniform(12, 22)
        ImageDraw.Draw(dots).ellipse((x - r, y - r, x + r, y + r), fill=255)
    stroke(generator, ImageDraw.Draw(faint), [(70, HEIGHT - 60), (420, HEIGHT - 110)], generator.uniform(28, 50))
    if crossing:
        stroke(generator, draw, [(WIDTH * 0.62, 25), (WIDTH * 0.55, HEIGHT - 30)], generator.uniform(25, 40))
    scene.ink(lines, colour)
    scene.ink(dots, colour, strength=0.85)
    scene.ink(faint, colour, strength=0.45)


# --- kinds


def plain(seed: int, *, number: int = 0, glass: tuple[int, int, int] = CLEAR, strength: float = 1.0) -> DifficultSlide:
    """One piece of ordinary tissue with a tear in it."""
    scene = Scene(seed, number, glass)
    scene.stain(torn(scene.generator, main_piece(scene.generator)), strength=strength)
    return scene.slide()


def torn(generator: np.random.Generator, piece: np.ndarray) -> np.ndarray:
    """The piece with a hole of some 0.2 mm² in it."""
    rows, cols = np.nonzero(ndimage.binary_erosion(piece[::8, ::8], iterations=16))
    pick = generator.integers(len(rows))
    hole = blob(generator, (8.0 * cols[pick], 8.0 * rows[pick]), (95, 55), angle=generator.uniform(0, 3))
    return piece & ~hole


def pale(seed: int) -> DifficultSlide:
    """Hardly stained."""
    scene = Scene(seed, 1)
    scene.stain(main_piece(scene.generator), texture(scene.generator, contrast=0.8), strength=(0.17, 0.11)[seed % 2])
    return scene.slide()


def pen(seed: int, colour: str) -> DifficultSlide:
    """Marker lines of one colour around and across the tissue."""
    scene = Scene(seed, 10 + list(INKS).index(colour))
    scene.stain(main_piece(scene.generator, 0.85))
    pen_marks(scene, colour)
    return scene.slide()


def pen_filled(seed: int) -> DifficultSlide:
    """A large filled dot and a letter."""
    scene = Scene(seed, 14)
    generator = scene.generator
    scene.stain(main_piece(generator, 0.8))
    drawn = Image.new("L", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(drawn)
    r = generator.uniform(90, 130)
    draw.ellipse((150 - r, 150 - r, 150 + 1.2 * r, 150 + r), fill=255)
    x, y = WIDTH - 210, HEIGHT - 260
    stroke(generator, draw, [(x, y + 210), (x + 80, y), (x + 160, y + 210)], 44)
    stroke(generator, draw, [(x + 35, y + 130), (x + 125, y + 130)], 40)
    scene.ink(drawn, ("blue", "black", "green", "red")[seed % 4], strength=1.1)
    return scene.slide()


def fat(seed: int) -> DifficultSlide:
    """Adipose tissue beside stained tissue."""
    scene = Scene(seed, 2)
    generator = scene.generator
    piece = main_piece(generator)
    _, x = np.ogrid[:HEIGHT, :WIDTH]
    side = generator.choice([-1, 1])
    inwards = side * (x - WIDTH / 2) / 300 + 0.5 * noise(generator, 200) + 0.1 * noise(generator, 40)
    solid = piece & (inwards > np.quantile(inwards[piece], 0.5))
    walls, cells = adipose(generator, piece & ~solid)
    septa = np.clip(1 - np.abs(noise(generator, 190)) * 14, 0, 1) * cells
    scene.stain(solid)
    bare = (cells & ~solid) * np.float32(1)
    scene.add((0.1 * walls + 0.1 * septa) * bare, HEMATOXYLIN)
    scene.add((0.2 * walls + 0.2 * septa) * bare, EOSIN)
    scene.tissue |= cells
    return scene.slide()


def folds(seed: int) -> DifficultSlide:
    """Tissue that lies double and threefold in dark bands."""
    scene = Scene(seed, 3)
    generator = scene.generator
    piece = main_piece(generator)
    cut = texture(generator)
    more = np.zeros(SHAPE, np.float32)
    for _ in range(3):
        y, x = np.ogrid[:HEIGHT, :WIDTH]
        angle = generator.uniform(0, np.pi)
        away = (x - WIDTH * generator.uniform(0.35, 0.65)) * np.cos(angle)
        away = away + (y - HEIGHT * generator.uniform(0.35, 0.65)) * np.sin(angle) + 40 * noise(generator, 260)
        width = generator.uniform(8, 20) * np.clip(1 + 0.6 * noise(generator, 180), 0, None)
        more = np.maximum(more, np.clip(width - np.abs(away), 0, 2) / 2)
    scene.stain(piece, Texture(cut.hematoxylin * (1 + 1.6 * more) + 0.35 * more, cut.eosin * (1 + 1.6 * more)))
    return scene.slide()


def dark_edges(seed: int) -> DifficultSlide:
    """Black stripes and a dark frame at the picture's sides, the shadow of the coverslip's edge."""
    scene = Scene(seed, 4)
    generator = scene.generator
    scene.stain(main_piece(generator, 0.85))
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    from_side = [np.broadcast_to(side, SHAPE) for side in (x, WIDTH - 1 - x, y, HEIGHT - 1 - y)]
    factor = np.ones(SHAPE, np.float32)
    for side in generator.permutation(4)[: 2 + seed % 2]:
        depth = from_side[side] - generator.uniform(14, 45) + 1.5 * noise(generator, 90)
        factor *= 0.13 + 0.87 / (1 + np.exp(-depth / 1.5))
        factor *= 1 - 0.45 * np.exp(-np.clip(depth, 0, None) / 22)
    slope, at = generator.uniform(-0.02, 0.02), generator.uniform(75, 95)
    line = y - at - slope * x
    factor *= 1 - 0.35 * np.exp(-((line / 3.0) ** 2)) - 0.1 * np.exp(-(((line - 9) / 5) ** 2))
    scene.ignore |= scene.tissue & (factor < 0.9)
    scene.shade(factor, ((1.0, 1.0, 0.93), (0.96, 0.98, 1.0))[seed % 2])
    return scene.slide()


def scanned_tiles(tissue: np.ndarray, side: int, margin: int) -> np.ndarray:
    """The tiles that a scanner took to hold the tissue."""
    rows, cols = -(-HEIGHT // side), -(-WIDTH // side)
    padded = np.zeros((rows * side, cols * side), bool)
    padded[:HEIGHT, :WIDTH] = grown(tissue, margin)
    taken = padded.reshape(rows, side, cols, side).any((1, 3))
    return np.kron(taken, np.ones((side, side), bool))[:HEIGHT, :WIDTH]


def unscanned(seed: int, fill: int, number: int) -> DifficultSlide:
    """Tiles that were never scanned, black or white."""
    scene = Scene(seed, number, (241, 238, 240))
    scene.stain(main_piece(scene.generator, 0.9))
    rgb = scene.picture()
    if seed % 2:
        taken = scanned_tiles(scene.tissue, 128, 30)
    else:
        taken = np.zeros(SHAPE, bool)
        rows, cols = np.nonzero(scene.tissue)
        taken[max(0, rows.min() - 40) : rows.max() + 40, max(0, cols.min() - 60) : cols.max() + 60] = True
    rgb[~taken] = fill
    return scene.slide(rgb)


def black_everywhere(seed: int) -> DifficultSlide:
    """Tissue on black."""
    scene = Scene(seed, 7)
    outline = torn(scene.generator, main_piece(scene.generator))
    scene.stain(outline)
    rgb = scene.picture() * blur(outline, 0.7)[..., None]
    dark = np.abs(scene.generator.normal(0, 2.0, SHAPE))[..., None]
    return scene.slide(jpeg(np.maximum(rgb, dark), 90))


def transparent(seed: int) -> DifficultSlide:
    """Nothing but the tissue; the rest has alpha 0 and black under it."""
    scene = Scene(seed, 8)
    outline = torn(scene.generator, main_piece(scene.generator))
    scene.stain(outline)
    rgb = scene.picture() * outline[..., None]
    return scene.slide(rgb.astype(np.uint8), (255 * outline).astype(np.uint8))


def full(seed: int, *, even: bool) -> DifficultSlide:
    """Tissue without any glass."""
    scene = Scene(seed, 20 + even)
    cut = texture(scene.generator, contrast=0.2 if even else 1.0, glands=not even)
    scene.stain(np.ones(SHAPE, bool), cut, strength=1.1)
    return scene.slide()


def sections(seed: int) -> DifficultSlide:
    """Pieces of many sizes and strengths, two of them nearly touching."""
    scene = Scene(seed, 22)
    generator = scene.generator
    cut = texture(generator)
    count = int(generator.integers(6, 10))
    slots = [(col, row) for row in range(3) for col in range(4)][: 12 - seed % 2]
    slots = [slots[i] for i in generator.permutation(len(slots))[:count]]
    strengths = [0.2, 1.5, *generator.uniform(0.6, 1.2, count - 2)]
    amount = np.zeros(SHAPE, np.float32)
    for place, ((col, row), strength) in enumerate(zip(slots, strengths, strict=True)):
        centre = (190 + 375 * col + generator.uniform(-20, 20), 205 + 395 * row + generator.uniform(-25, 25))
        core = place == 2
        radii = (36.0, 50.0) if core else (generator.uniform(70, 165), generator.uniform(70, 165))
        piece = blob(generator, centre, radii, angle=0 if core else generator.uniform(0, 3), rough=0.6)
        if place == count - 1:
            gap = blob(generator, centre, (13, 400), angle=generator.uniform(-0.4, 0.4), rough=0.15)
            piece &= ~gap
        amount[piece & ~grown(amount > 0, 18)] = strength
    scene.stain(amount > 0, cut, strength=blur(amount, 1.0))
    return scene.slide()


def ihc(seed: int) -> DifficultSlide:
    """Brown where the antibody binds, blue nuclei, little else."""
    scene = Scene(seed, 23, (240, 241, 243))
    generator = scene.generator
    outline = main_piece(generator)
    cut = texture(generator)
    soft = blur(outline, 1.0)
    positive = np.clip(1.5 * (noise(generator, 130) + 0.3 * noise(generator, 20)) - 0.6, 0, 1)
    spots = blur((generator.random(SHAPE, np.float32) < 0.22).astype(np.float32), 0.9)
    fibres = np.clip(cut.eosin / 0.3, 0, 1)
    scene.add((0.35 * cut.hematoxylin * (1 - 0.5 * positive) + 0.05 * fibres) * soft, COUNTERSTAIN)
    scene.add((positive * (0.15 + 1.6 * spots) + 0.015) * fibres * soft, DAB)
    scene.tissue |= outline
    return scene.slide()


def bloody(seed: int) -> DifficultSlide:
    """Lakes of red cells, as red as a red pen."""
    scene = Scene(seed, 32)
    generator = scene.generator
    outline = main_piece(generator)
    lakes = np.clip(2.5 * (noise(generator, 140) + 0.25 * noise(generator, 22)) - 1.5, 0, 1)
    cells = blur((generator.random(SHAPE, np.float32) < 0.5).astype(np.float32), 0.9)
    scene.stain(outline, strength=1 - 0.85 * lakes)
    scene.add(lakes * (0.2 + 0.7 * cells) * blur(outline, 1.0), BLOOD)
    return scene.slide()


def blue_stained(seed: int) -> DifficultSlide:
    """Lymphoid tissue with much hematoxylin and hardly any eosin, as blue as a faint blue pen."""
    scene = Scene(seed, 33)
    cut = texture(scene.generator, glands=False)
    outline = main_piece(scene.generator)
    soft = blur(outline, 1.0)
    scene.add((1.5 * cut.hematoxylin + 0.08) * soft, COUNTERSTAIN)
    scene.add(0.2 * cut.eosin * soft, EOSIN)
    scene.tissue |= outline
    return scene.slide()


def trichrome(seed: int) -> DifficultSlide:
    """Masson's stain: blue collagen, red muscle."""
    scene = Scene(seed, 34)
    generator = scene.generator
    cut = texture(generator, glands=False)
    outline = main_piece(generator)
    collagen = 1 / (1 + np.exp(-6 * (noise(generator, 110) + 0.4 * noise(generator, 25))))
    soft = blur(outline, 1.0)
    scene.add(1.5 * cut.eosin * collagen * soft, ANILINE_BLUE)
    scene.add(1.3 * cut.eosin * (1 - collagen) * soft, FUCHSIN)
    scene.add(0.5 * cut.hematoxylin * soft, HEMATOXYLIN)
    scene.tissue |= outline
    return scene.slide()


def pigmented(seed: int) -> DifficultSlide:
    """Patches of black pigment, as black as a black pen."""
    scene = Scene(seed, 35)
    generator = scene.generator
    outline = main_piece(generator)
    patches = np.clip(3 * (noise(generator, 80) + 0.5 * noise(generator, 18)) - 3.2, 0, 1)
    grains = blur((generator.random(SHAPE, np.float32) < 0.3).astype(np.float32), 1.0)
    scene.stain(outline)
    scene.add(patches * np.clip(0.1 + 1.6 * grains, 0, 1.2) * blur(outline, 1.0), CARBON)
    return scene.slide()


def dust(seed: int) -> DifficultSlide:
    """Specks, a fibre and an air bubble beside the tissue."""
    scene = Scene(seed, 24)
    generator = scene.generator
    scene.stain(main_piece(generator, 0.8))
    debris(scene)
    return scene.slide()


def debris(scene: Scene) -> None:
    """Small dark specks, a fibre, the grey ring of an air bubble."""
    generator = scene.generator
    drawn = Image.new("L", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(drawn)
    for x, y in generator.uniform((0, 0), (WIDTH, HEIGHT), (70, 2)):
        a, b = generator.uniform(0.8, 5.5, 2)
        draw.ellipse((x - a, y - b, x + a, y + b), fill=int(generator.integers(120, 256)))
    start = generator.uniform((100, 40), (400, 120))
    path = start + np.cumsum(
        ndimage.gaussian_filter1d(generator.normal(0, 6, (60, 2)), 6, axis=0) + np.array([4, 1]), axis=0
    )
    draw.line([tuple(p) for p in path], fill=190, width=2)
    factor = 1 - 0.8 * blur(np.asarray(drawn, np.float32) / 255, 0.7)
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    for low, high in ((110, 190), (25, 60)):
        centre = (generator.uniform(120, 260), generator.uniform(HEIGHT - 260, HEIGHT - 130))
        away = np.hypot(x - centre[0], y - centre[1]) * (1 + 0.02 * noise(generator, 200))
        ring = away - generator.uniform(low, high)
        factor = factor * (1 - 0.5 * np.exp(-((ring / 2.4) ** 2)) - 0.1 * np.exp(-(((ring + 8) / 5) ** 2)))
        factor += 0.008 * (ring < 0)
    scene.shade(factor)


def blank(
    seed: int, *, ink: str | None = None, dirty: bool = False, glass: tuple[int, int, int] = CLEAR
) -> DifficultSlide:
    """No tissue."""
    scene = Scene(seed, 25 + (ink is not None) + 2 * dirty, glass)
    if ink:
        pen_marks(scene, ink, crossing=False)
    if dirty:
        debris(scene)
    return scene.slide()


def blank_pen(seed: int) -> DifficultSlide:
    """Nothing but ink."""
    return blank(seed, ink=tuple(INKS)[seed % 4])


KINDS: dict[str, Callable[[int], DifficultSlide]] = {
    "plain": plain,
    "pale": pale,
    **{f"pen-{colour}": partial(pen, colour=colour) for colour in INKS},
    "pen-filled": pen_filled,
    "fat": fat,
    "folds": folds,
    "dark-edges": dark_edges,
    "black-unscanned": partial(unscanned, fill=0, number=5),
    "white-unscanned": partial(unscanned, fill=255, number=6),
    "black-everywhere": black_everywhere,
    "transparent": transparent,
    "full": partial(full, even=False),
    "full-even": partial(full, even=True),
    "sections": sections,
    "ihc": ihc,
    "bloody": bloody,
    "blue-stained": blue_stained,
    "trichrome": trichrome,
    "pigmented": pigmented,
    "yellow-glass": partial(plain, number=30, glass=YELLOW),
    "dim-glass": partial(plain, number=31, glass=DIM),
    "dust": dust,
    "blank": blank,
    "blank-yellow": partial(blank, glass=YELLOW),
    "blank-dim": partial(blank, glass=DIM),
    "blank-dust": partial(blank, dirty=True),
    "blank-pen": blank_pen,
}


# --- the test's other half


def find_tissue(slide: DifficultSlide, path: Path) -> Score:
    """Write a slide as PNG, let wsi2d find its tissue with default settings, and compare at level 0."""
    from wsi2d.config import TissueConfig
    from wsi2d.slides.reader import open_slide
    from wsi2d.slides.tissue import segment_tissue

    pixels = slide.rgb if slide.alpha is None else np.dstack([slide.rgb, slide.alpha])
    Image.fromarray(pixels).save(path, compress_level=1)
    with open_slide(path, mpp=slide.mpp) as reader:
        mask = segment_tissue(reader, TissueConfig())
    rows, cols = (((np.arange(n) + 0.5) / mask.downsample).astype(int) for n in slide.tissue.shape)
    found = np.asarray(mask.mask, bool)[np.ix_(rows, cols)]
    decidable = ~slide.ignore
    union = (found | slide.tissue)[decidable].sum()
    return Score(
        float((found & slide.tissue)[decidable].sum() / union) if union else 1.0,
        float((found & ~slide.tissue)[decidable].mean()),
        float((slide.tissue & ~found)[decidable].mean()),
        found,
    )


def thumbnail(slide: DifficultSlide, found: np.ndarray | None, step: int = 3) -> Image.Image:
    """A small picture on white, the truth outlined in green and what was found in red."""
    rgb = slide.rgb if slide.alpha is None else np.where(slide.alpha[..., None] > 0, slide.rgb, 255).astype(np.uint8)
    picture = np.array(Image.fromarray(rgb).reduce(step))
    if found is not None:
        for mask, colour in ((slide.tissue, (0, 190, 0)), (found, (235, 0, 0))):
            small = mask[::step, ::step][: picture.shape[0], : picture.shape[1]]
            picture[small & ~ndimage.binary_erosion(small, border_value=0)] = colour
    return Image.fromarray(picture)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and draw the contact sheet."""
    parser = argparse.ArgumentParser(description="how well the tissue of difficult slides is found")
    parser.add_argument("sheet", type=Path, help="picture to write")
    parser.add_argument("kinds", nargs="*", metavar="kind", help="some of them; all if not given")
    parser.add_argument("--seeds", type=int, default=2, help="slides a kind")
    parser.add_argument("--bare", action="store_true", help="paint only: no table, no outlines")
    given = parser.parse_args(arguments)
    tiles: list[tuple[str, Image.Image]] = []
    if not given.bare:
        sys.stdout.write(f"{'kind':18}{'seed':>5}{'IoU':>8}{'false +':>9}{'false -':>9}\n")
    with tempfile.TemporaryDirectory() as folder:
        for kind in given.kinds or KINDS:
            for seed in range(given.seeds):
                slide = KINDS[kind](seed)
                score = None if given.bare else find_tissue(slide, Path(folder, "slide.png"))
                words = f"{kind} {seed}"
                if score is not None:
                    shares = f"{score.false_positive:9.4f}{score.false_negative:9.4f}"
                    sys.stdout.write(f"{kind:18}{seed:5}{score.iou:8.3f}{shares}\n")
                    sys.stdout.flush()
                    words = f"{words}  IoU {score.iou:.3f}"
                tiles.append((words, thumbnail(slide, None if score is None else score.found)))
    columns = min(6, len(tiles))
    width, height = tiles[0][1].size
    sheet = Image.new("RGB", (columns * (width + 6), -(-len(tiles) // columns) * (height + 20)), "grey")
    for place, (words, tile) in enumerate(tiles):
        x, y = place % columns * (width + 6), place // columns * (height + 20)
        sheet.paste(tile, (x, y + 14))
        ImageDraw.Draw(sheet).text((x + 4, y + 1), words, fill="white")
    sheet.save(given.sheet)


if __name__ == "__main__":
    main()
