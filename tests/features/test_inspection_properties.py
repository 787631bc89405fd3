"""Statistics of features for whatever numbers and blocks."""

import numpy as np
import pytest

pytest.importorskip("hypothesis")
from hypothesis import given
from hypothesis import strategies as some
from hypothesis.extra import numpy as some_numpy

from wsi2d.features.inspection import feature_statistics


@given(
    features=some_numpy.arrays(
        some.sampled_from([np.float16, np.float32]),
        some.tuples(some.integers(0, 12), some.integers(1, 4)),
        elements=some.sampled_from([0.0, 1.0, -2.5, 3.0, float("nan"), float("inf")]),
    ),
    rows=some.integers(1, 13),
)
def test_any_statistics(features: np.ndarray, rows: int) -> None:
    """Counts as their words say, whatever the numbers and the blocks."""
    found = feature_statistics(features[k : k + rows] for k in range(0, len(features), rows))
    texts = [tuple(map(str, row)) for row in features]
    assert found.duplicate_rows == len(texts) - len(set(texts))
    wide = features.shape[1] > 1
    assert found.constant_rows == (sum(len(set(row)) == 1 for row in texts) if wide else 0)
    columns = list(zip(*texts, strict=True))
    assert found.constant_columns == (sum(len(set(column)) == 1 for column in columns) if len(texts) > 1 else 0)
    finite = features[np.isfinite(features)].astype(np.float64)
    if finite.size:
        assert found.mean == pytest.approx(finite.mean(), abs=1e-12)
        assert found.sd == pytest.approx(finite.std(), abs=1e-12)
    else:
        assert np.isnan([found.mean, found.sd, found.minimum, found.maximum]).all()
