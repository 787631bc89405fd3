"""What a perfect count would give: how many cells lie between two marks in raster order, and nothing else.

A 1D scan sees a grid as a sequence, and on grids of one width the count tells columns and diagonals. Widths are drawn
from a range, so that the same count stands for either answer more often; this says how often it still tells.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from relations import FIRST, RELATIONS, Shape, place

PAIRS = ("same-column", "same-row", "quadrant")  # relations between two marks of one kind


def best_by_count(task: str, shapes: dict[int, list[Shape]], generator: np.random.Generator) -> float:
    """Accuracy of the best rule that knows the count alone.

    Args:
        task: one of :data:`PAIRS`.
        shapes: for each distance, all alike likely, the shapes of its grids.
        generator: of where marks lie.
    """
    seen: Counter[tuple[int, int]] = Counter()
    for distance, drawn in shapes.items():
        for shape in drawn:
            layouts = place(RELATIONS[task], 16, distance, shape, generator, distractors=0.0)
            cells = np.nonzero(layouts.kinds.reshape(len(layouts), -1) == FIRST)[1].reshape(-1, 2)
            seen.update(zip((cells[:, 1] - cells[:, 0]).tolist(), layouts.label.tolist(), strict=True))
    counts = {count for count, _ in seen}
    return sum(max(seen[count, 0], seen[count, 1]) for count in counts) / seen.total()
