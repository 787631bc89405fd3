"""The orders of 1D scans, cell by cell."""

import pytest
import torch

from wsi2d.models.scan_order import cell_order, taken

ORDERS = {
    ((), False): [0, 1, 2, 3, 4, 5, 6, 7, 8],
    ((), True): [0, 1, 2, 5, 4, 3, 6, 7, 8],
    ((2,), False): [2, 1, 0, 5, 4, 3, 8, 7, 6],
    ((2,), True): [2, 1, 0, 3, 4, 5, 8, 7, 6],
    ((1,), True): [6, 7, 8, 5, 4, 3, 0, 1, 2],
    ((1, 2), False): [8, 7, 6, 5, 4, 3, 2, 1, 0],
    ((1, 2), True): [8, 7, 6, 3, 4, 5, 2, 1, 0],
}
COLUMN_ORDERS = {
    (): [0, 3, 6, 1, 4, 7, 2, 5, 8],
    (1,): [6, 3, 0, 7, 4, 1, 8, 5, 2],
    (1, 2): [8, 5, 2, 7, 4, 1, 6, 3, 0],
}


@pytest.mark.parametrize(("flip", "serpentine"), ORDERS)
def test_orders_of_a_grid_of_three_by_three(flip: tuple[int, ...], serpentine: bool) -> None:
    inside, shapes = torch.ones(1, 3, 3, dtype=torch.bool), torch.tensor([[3, 3]])
    assert cell_order(inside, shapes, flip, serpentine=serpentine)[0].tolist() == ORDERS[flip, serpentine]


@pytest.mark.parametrize("flip", COLUMN_ORDERS)
def test_orders_by_columns(flip: tuple[int, ...]) -> None:
    inside = torch.zeros(2, 3, 4, dtype=torch.bool)
    inside[0, :2, :3] = True
    inside[1, :3, :3] = True
    found = cell_order(inside, torch.tensor([[2, 3], [3, 3]]), flip, by_columns=True)
    wide = [4 * (place // 3) + place % 3 for place in COLUMN_ORDERS[flip]]  # a row of the padded grid has four cells
    assert found[1, :9].tolist() == wide
    low = {(): [0, 4, 1, 5, 2, 6], (1,): [4, 0, 5, 1, 6, 2], (1, 2): [6, 2, 5, 1, 4, 0]}[flip]
    assert found[0, :6].tolist() == low
    assert found.sort(1).values.tolist() == [list(range(12))] * 2


@pytest.mark.parametrize("flip", [(), (1,), (2,), (1, 2)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (4, 3), (3, 5)], ids=str)
def test_serpentine_neighbours_touch_and_padding_comes_last(flip: tuple[int, ...], shape: tuple[int, int]) -> None:
    rows, cols = shape
    inside = torch.zeros(2, 5, 6, dtype=torch.bool)
    inside[0, :rows, :cols] = True
    inside[1] = True
    order = cell_order(inside, torch.tensor([shape, (5, 6)]), flip, serpentine=True)
    assert order.sort(1).values.tolist() == [list(range(30))] * 2
    for k, count in enumerate((rows * cols, 30)):
        own = order[k, :count]
        assert inside[k].flatten()[own].all()
        steps = torch.stack([own // 6, own % 6], 1).diff(dim=0).abs().sum(1)
        assert (steps == 1).all()


def test_what_is_taken_can_be_put_back() -> None:
    order = cell_order(torch.ones(1, 3, 4, dtype=torch.bool), torch.tensor([[3, 4]]), (2,), serpentine=True)
    sequence = torch.randn(1, 12, 2)
    assert taken(sequence, order)[0, 4].tolist() == sequence[0, 4].tolist()
    assert torch.equal(taken(taken(sequence, order), order.argsort(1)), sequence)
