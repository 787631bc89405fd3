"""Damage done to a file's bytes, the same for the same seed: what disks, networks and editors do to files."""

from collections.abc import Iterator

import numpy as np

Area = tuple[int, int]

COPIES = 300
HEAD = 1024
MOST = 20  # changes a copy
_NEAR = 48  # bytes around a word that count as its metadata
_MARKS = (b"TREE", b"SNOD", b"HEAP", b"OHDR", b"OCHK", b"FRHP", b"BTHD")  # HDF5's own blocks
_EDGES = (0x00, 0x01, 0x7F, 0x80, 0xFF)


def copies(data: bytes, *, count: int = COPIES, first: int = 0) -> Iterator[tuple[str, bytes]]:
    """Damaged copies and the seeds that made them: ``("0007", b"…")`` is ``mutate(data, 7)``."""
    areas = metadata(data)
    for seed in range(first, first + count):
        yield f"{seed:04d}", mutate(data, seed, areas)


def mutate(data: bytes, seed: int, areas: list[Area] | None = None) -> bytes:
    """One damaged copy: 1 to 20 changes, few more often than many, half of them in metadata.

    Args:
        data: the sound file.
        seed: the same seed gives the same copy.
        areas: what :func:`metadata` found, where many copies are made of one file.
    """
    rng = np.random.default_rng([71, seed])
    areas = metadata(data) if areas is None else areas
    damaged = bytearray(data)
    for _ in range(min(MOST, int(rng.geometric(0.25)))):
        if not damaged:
            break
        at = _place(rng, areas, len(damaged))
        _CHANGES[rng.choice(len(_CHANGES), p=_ODDS)](damaged, at, rng)
    return bytes(damaged)


def metadata(data: bytes) -> list[Area]:
    """Where a file says what it holds: its head and tail, words in it, HDF5's blocks, a TIFF's directories."""
    areas = [(0, min(HEAD, len(data))), (max(0, len(data) - HEAD), len(data))]
    for mark in _MARKS:
        at = data.find(mark)
        while at >= 0:
            areas.append((at, at + 4 * _NEAR))
            at = data.find(mark, at + 1)
    areas += _words(data)
    areas += _tiff_directories(data)
    return [(a, min(b, len(data))) for a, b in areas if a < min(b, len(data))]


def _place(rng: np.random.Generator, areas: list[Area], size: int) -> int:
    chance = rng.random()
    first, last = (0, size)
    if chance < 0.25:
        first, last = areas[0]
    elif chance < 0.6:
        first, last = areas[int(rng.integers(len(areas)))]
    return min(int(rng.integers(first, last)), size - 1)


def _flip(damaged: bytearray, at: int, rng: np.random.Generator) -> None:
    damaged[at] ^= 1 << int(rng.integers(8))


def _overwrite(damaged: bytearray, at: int, rng: np.random.Generator) -> None:
    for i in range(at, min(at + int(rng.integers(1, 5)), len(damaged))):
        damaged[i] = int(rng.choice(_EDGES)) if rng.random() < 0.7 else int(rng.integers(256))


def _truncate(damaged: bytearray, at: int, rng: np.random.Generator) -> None:
    del damaged[at:]


def _swap(damaged: bytearray, at: int, rng: np.random.Generator) -> None:
    size = _block(damaged, rng)
    other = int(rng.integers(len(damaged)))
    a, b = sorted((at, other))
    size = min(size, b - a, len(damaged) - b)
    damaged[a : a + size], damaged[b : b + size] = damaged[b : b + size], damaged[a : a + size]


def _zero(damaged: bytearray, at: int, rng: np.random.Generator) -> None:
    size = min(_block(damaged, rng), len(damaged) - at)
    damaged[at : at + size] = bytes(size)


def _duplicate(damaged: bytearray, at: int, rng: np.random.Generator) -> None:
    size = min(_block(damaged, rng), len(damaged) - at)
    block = damaged[at : at + size]
    if rng.random() < 0.5:  # elsewhere, over what was there; else right behind, which moves all that follows
        to = int(rng.integers(len(damaged)))
        damaged[to : to + size] = block[: len(damaged) - to]
    else:
        damaged[at + size : at + size] = block


def _block(damaged: bytearray, rng: np.random.Generator) -> int:
    """A block's size: from one byte to an eighth of the file and no more than a disk's block, small ones as often."""
    most = min(4096, max(2, len(damaged) // 8))
    return round(float(np.exp(rng.uniform(0, np.log(most)))))


_CHANGES = (_flip, _overwrite, _truncate, _swap, _zero, _duplicate)
_ODDS = (0.38, 0.2, 0.06, 0.12, 0.12, 0.12)


def _words(data: bytes) -> list[Area]:
    """Runs of at least six letters, as names are and numbers seldom."""
    raw = np.frombuffer(data, np.uint8)
    letter = (raw >= 0x61) & (raw <= 0x7A) | (raw == 0x5F)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], letter, [False]]).astype(np.int8)))
    return [(max(0, int(a) - _NEAR), int(b) + _NEAR) for a, b in edges.reshape(-1, 2) if b - a >= 6]


def _tiff_directories(data: bytes) -> list[Area]:
    if data[:4] != b"II*\0":
        return []
    areas: list[Area] = []
    at = int.from_bytes(data[4:8], "little")
    while 0 < at < len(data) - 2 and len(areas) < 32:
        end = at + 2 + 12 * int.from_bytes(data[at : at + 2], "little")
        areas.append((at, end + 4))
        at = int.from_bytes(data[end : end + 4], "little")
    return 4 * areas  # as likely as the words together
