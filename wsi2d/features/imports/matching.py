"""Patches whose cell is taken go to free cells near by: as many as can, over distances as short as can be."""

from __future__ import annotations

import numpy as np

AT_ONCE = 5000  # patches that are matched in one go; more are matched block by block
BLOCK = 24  # cells along a block's side
_REACH = 1.0 + 1e-9  # pitches along each axis
# Only the 25 patches nearest to a cell can need it. Their other cells are among the 24 within two pitches of this
# one, so were it given to a patch farther away, one of the 25 at least would have no cell, and could take it at a
# lower price.
_RIVALS = 25
_LEFT_OUT = 1e5  # more than any number of moves within a block can save
_EVEN = 1e-6  # what the solver takes for an edge that is not there is 0


def match(places: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Give patches free cells within one pitch along each axis, each cell once.

    Args:
        places: float64 ``[n, 2]``, (row, col) of the patches in pitches, fractional; best in an order that does not
            depend on the file's.
        taken: bool ``[rows, cols]``, cells that are occupied; the ones given away are marked in it. Every patch lies at
            least two cells from its border.

    Returns:
        int64 ``[n, 2]``: the (row, col) of each patch's cell, −1 where none is left for it.

    Up to :data:`AT_ONCE` patches are placed as many as possible, and over the least sum of squared distances (minimum
    weight matching). More are matched so in blocks of :data:`BLOCK` by :data:`BLOCK` cells, one after the other.
    """
    cells = np.full((len(places), 2), -1)
    if len(places) <= AT_ONCE:
        blocks = [np.arange(len(places))] if len(places) else []
    else:
        rows, cols = np.floor(places / BLOCK).astype(np.int64).T
        key = rows * (taken.shape[1] + 1) + cols
        order = np.argsort(key, kind="stable")
        blocks = np.split(order, np.flatnonzero(np.diff(key[order])) + 1)
    for block in blocks:
        cells[block] = _match_block(places[block], taken)
        given = cells[block][cells[block][:, 0] >= 0]
        taken[tuple(given.T)] = True
    return cells


def _match_block(places: np.ndarray, taken: np.ndarray) -> np.ndarray:
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    patch, cell, distance = _in_reach(places, taken)
    result = np.full((len(places), 2), -1)
    if not len(patch):
        return result
    ids, column = np.unique(cell, return_inverse=True)
    patches, row = np.unique(patch, return_inverse=True)
    n, m = len(patches), len(ids)
    # Each patch may also stay out, at a price, so that a full matching always exists.
    weights = np.concatenate([distance + _EVEN, np.full(n, _LEFT_OUT)])
    rows, columns = np.concatenate([row, np.arange(n)]), np.concatenate([column, m + np.arange(n)])
    chosen_row, chosen = min_weight_full_bipartite_matching(csr_matrix((weights, (rows, columns)), (n, m + n)))
    placed = chosen < m
    result[patches[chosen_row[placed]]] = np.stack(np.divmod(ids[chosen[placed]], taken.shape[1]), 1)
    return result


def _in_reach(places: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of patch and free cell (as row × columns + col) with their squared distance, those that matter alone."""
    base = np.floor(places).astype(np.int64)
    steps = np.stack(np.meshgrid(*[np.arange(-1, 3)] * 2, indexing="ij"), -1).reshape(-1, 2)
    cells = base[:, None] + steps
    offset = cells - places[:, None]
    near = (np.abs(offset) <= _REACH).all(2) & ~taken[cells[..., 0], cells[..., 1]]
    patch, which = np.nonzero(near)
    cell = cells[patch, which, 0] * taken.shape[1] + cells[patch, which, 1]
    distance = np.square(offset[patch, which]).sum(1)
    order = np.lexsort((patch, distance, cell))
    patch, cell, distance = patch[order], cell[order], distance[order]
    first = np.flatnonzero(np.diff(cell, prepend=-1))
    rank = np.arange(len(cell)) - np.repeat(first, np.diff(first, append=len(cell)))
    kept = rank < _RIVALS
    return patch[kept], cell[kept], distance[kept]
