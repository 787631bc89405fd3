"""Survival metrics, as scikit-survival defines them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

SURVIVAL_METRICS = ("c_index",)


def survival_metrics(
    time: NDArray[np.float64], event: NDArray[np.bool_], risk: NDArray[np.float64]
) -> dict[str, float]:
    """Harrell's concordance index, better when higher; 0.5 is chance.

    Args:
        time: follow-up ``[N]``, in any unit.
        event: bool ``[N]``, true where the event happened.
        risk: ``[N]``, higher is worse.

    Returns:
        ``c_index``; NaN where no two patients can be compared.

    Source: F. E. Harrell et al., "Multivariable prognostic models", Statistics in Medicine 15 (1996).
    """
    from sksurv.exceptions import NoComparablePairException
    from sksurv.metrics import concordance_index_censored

    if not event.any() or len(time) < 2:
        return {"c_index": math.nan}
    try:
        with np.errstate(invalid="ignore"):  # 0 / 0 where all that can be compared died at the same time
            return {"c_index": float(concordance_index_censored(event.astype(bool), time, risk)[0])}
    except NoComparablePairException:
        return {"c_index": math.nan}
