"""Numbers of R's packages pROC 1.18.0 and survival 3.5-3 (R 4.2.2) on published data, to the digits that R prints.

The commands stand with each test. R is not needed to run them.
"""

import numpy as np
import pytest
from lifelines.datasets import load_lung

from wsi2d.evaluation import counting
from wsi2d.evaluation.risk_groups import risk_groups
from wsi2d.evaluation.statistics import delong_test

# Ovarian cancer with bowel obstruction (E. R. DeLong et al., Biometrics 44, 1988, section 3): the 43 patients of whom
# three tests are known, as the SAS/STAT User's Guide lists them under "Comparing Receiver Operating Characteristic
# Curves". Each row: the outcome as it is coded there, albumin, total protein, K-G score.
OVARIAN = np.array([
    (0, 3.0, 5.8, 10), (1, 3.2, 6.3, 5), (1, 3.9, 6.8, 3), (0, 2.8, 4.8, 6), (1, 3.2, 5.8, 3), (0, 0.9, 4.0, 5),
    (0, 2.5, 5.7, 8), (1, 1.6, 5.6, 5), (1, 3.8, 5.7, 5), (1, 3.7, 6.7, 6), (1, 3.2, 5.4, 4), (1, 3.8, 6.6, 6),
    (1, 4.1, 6.6, 5), (1, 3.6, 5.7, 5), (1, 4.3, 7.0, 4), (0, 3.6, 6.7, 4), (1, 2.3, 4.4, 6), (0, 4.2, 7.6, 4),
    (0, 4.0, 6.6, 6), (1, 3.5, 5.8, 6), (1, 3.8, 6.8, 7), (0, 3.0, 4.7, 8), (1, 4.5, 7.4, 5), (1, 3.7, 7.4, 5),
    (1, 3.1, 6.6, 6), (1, 4.1, 8.2, 6), (1, 4.3, 7.0, 5), (1, 4.3, 6.5, 4), (1, 3.2, 5.1, 5), (1, 2.6, 4.7, 6),
    (0, 3.3, 6.8, 6), (0, 1.7, 4.0, 7), (1, 3.7, 6.1, 5), (1, 3.3, 6.3, 7), (1, 4.2, 7.7, 6), (1, 3.5, 6.2, 5),
    (0, 2.9, 5.7, 9), (1, 2.1, 4.8, 7), (0, 2.8, 6.2, 8), (1, 4.0, 7.0, 7), (1, 3.3, 5.7, 6), (1, 3.7, 6.9, 5),
    (1, 3.6, 6.6, 5),
])  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "statistic", "p_value", "interval"),
    [
        ("albumin", "K-G", 0.112778269044526, 0.910206347201035, (-0.176117368734695, 0.197622745078781)),
        ("protein", "K-G", -0.745218389657994, 0.456139707507473, (-0.282988015572399, 0.127074037077776)),
        ("albumin", "protein", 1.59002925832072, 0.111828210120696, (-0.0206391109203821, 0.198058465759092)),
    ],
)
def test_delong_is_procs(
    first: str, second: str, statistic: float, p_value: float, interval: tuple[float, float]
) -> None:
    """``roc.test(roc(y, -albumin), roc(y, kg), method = "delong")`` and so on; the first minus the second.

    The data have ties in all three tests.
    """
    outcome, albumin, protein, score = OVARIAN.T
    tests = {"albumin": -albumin, "protein": -protein, "K-G": score}
    found = delong_test(outcome == 0, tests[second], tests[first])
    assert found.statistic == pytest.approx(statistic, abs=1e-12)
    assert found.p_value == pytest.approx(p_value, abs=1e-12)
    assert found.interval == pytest.approx(interval, abs=1e-12)


@pytest.fixture(scope="module")
def lung() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Time, event, institution, sex and age of 227 patients with lung cancer (NCCTG), as lifelines ships them."""
    table = load_lung().dropna(subset=["inst"])
    event = (table["status"] == table["status"].max()).to_numpy()
    columns = (table[name].to_numpy(float) for name in ("inst", "sex", "age"))
    return (table["time"].to_numpy(float), event, *columns)


def test_strata_are_survivals(lung: tuple[np.ndarray, ...]) -> None:
    """``survdiff(Surv(time, event) ~ sex + strata(inst))``, ``coxph`` of the same; and both without strata."""
    time, event, institution, sex, _ = lung
    found = risk_groups(time, event, sex, institution.astype(int), cut=1.5)
    assert found.stratified is not None
    assert found.stratified.log_rank == pytest.approx(8.52446736332317, rel=1e-12)
    assert found.stratified.p_value == pytest.approx(0.00350403287006081, rel=1e-10)
    assert found.stratified.hazard_ratio == pytest.approx(0.592921211761854, rel=1e-8)
    assert found.stratified.hazard_ratio_interval == pytest.approx((0.416090103179534, 0.844902487876422), rel=1e-7)
    assert found.log_rank == pytest.approx(10.2056556937204, rel=1e-12)
    assert found.hazard_ratio == pytest.approx(0.589352022351975, rel=1e-8)
    assert found.hazard_ratio_interval == pytest.approx((0.424488152596259, 0.818246172775338), rel=1e-7)


def test_pairs_within_strata_are_survivals(lung: tuple[np.ndarray, ...]) -> None:
    """``concordance(Surv(time, event) ~ age + strata(inst), reverse = TRUE)``: 877 right, 645 wrong, 46 tied."""
    time, event, institution, _, age = lung
    parts = []
    for place in np.unique(institution):
        chosen = institution == place
        everyone = np.ones((1, chosen.sum()))
        parts.append(counting.concordance(time[chosen], event[chosen], age[chosen], everyone)[0])
    together = counting.Pairs.together(parts)
    assert (together.right[0], together.compared[0]) == (877 + 46 / 2, 877 + 645 + 46)
    assert together.share[0] == pytest.approx(0.573979591836735, abs=1e-14)
    (whole,) = counting.concordance(time, event, age, np.ones((1, len(time))))[0].share
    assert whole == pytest.approx(0.550741450620397, abs=1e-14)
