"""Tables of predictions that nothing of wsi2d has written, evaluated by their documented schema alone."""

import re
from pathlib import Path

import pytest

from wsi2d.config import EvaluationConfig
from wsi2d.errors import RunError
from wsi2d.evaluation.evaluate import Evaluation, evaluate

DOCS = Path(__file__).parents[2] / "docs" / "predictions.md"
NONE = EvaluationConfig(bootstrap=0)

SURVIVAL = """\
risk,time,slide_id,case_id,fold,event,surv_10,surv_30,remark
0.9,5,a,p1,,1,0.5,0.2,seen twice
0.5,10,b,p2,,1,0.5,0.4,
0.6,20,c,p3,,0,0.8,0.6,
0.2,30,d,p4,,1,0.9,0.7,
0.1,40,e1,p5,,0,1.0,0.8,two slides
0.3,40,e2,p5,,0,0.8,0.8,two slides
"""


def of(text: str, folder: Path, config: EvaluationConfig = NONE) -> Evaluation:
    (folder / "theirs.csv").write_text(text, "utf-8")
    return evaluate(folder / "theirs.csv", config)


def test_survival_by_hand(tmp_path: Path) -> None:
    found = of(SURVIVAL, tmp_path, EvaluationConfig(bootstrap=0, at=20))
    assert (found.slides, found.cases, found.folds) == (6, 5, (0,))
    # p1 dies before four others, p2 before three, p4 before one: 8 pairs. p2 and p3 are out of order, and p4 ties with
    # p5, whose risk is the mean over slides.
    assert found.metrics["c_index"].pooled == pytest.approx(6.5 / 8)
    # Up to 20: p1 and p2 died, p4 and p5 are at risk; all four pairs are in order.
    assert found.metrics["auc_at"].pooled == 1
    # Curves at 20, halfway from 10 to 30: .35 .45 .7 .8 and (.9 + .8) / 2; two of five died.
    assert found.metrics["observed_expected"].pooled == pytest.approx(0.4 / (1 - (0.35 + 0.45 + 0.7 + 0.8 + 0.85) / 5))
    assert found.survival is not None
    assert (found.survival.at, found.survival.censoring_from) == (20, "predictions")
    assert found.survival.brier_times == (5, 30)
    groups = found.survival.risk_groups
    assert (groups.cut_from, groups.cuts) == ("predictions", (0.5,))
    assert [(g.patients, g.events) for g in groups.groups] == [(3, 2), (2, 1)]
    (calibration,) = found.survival.calibration
    assert (calibration.patients, calibration.observed) == (5, pytest.approx(0.4))
    assert list(tmp_path.iterdir()) == [tmp_path / "theirs.csv"], "nothing is written beside it"


def test_hazards_with_edges_are_the_same_curves(tmp_path: Path) -> None:
    """Of one slide of each kind; the second fold has a bin less, and the last hazard is never used."""
    by_curve = "slide_id,case_id,fold,time,event,risk,surv_10,surv_20\na,a,0,8,1,2,0.8,0.4\nb,b,0,25,1,1,0.9,0.9\n"
    by_bins = (
        "slide_id,case_id,fold,time,event,risk,hazard_1,hazard_2,hazard_3,edge_1,edge_2\n"
        "a,a,0,8,1,2,0.2,0.5,0.9,10,20\nb,b,0,25,1,1,0.1,0,0.9,10,20\n"
    )
    at = EvaluationConfig(bootstrap=0, at=15)
    first, second = of(by_curve, tmp_path, at), of(by_bins, tmp_path, at)
    assert first.metrics["observed_expected"].pooled == pytest.approx(0.5 / (1 - (0.6 + 0.9) / 2))
    assert second.to_json() == first.to_json()


def test_a_curve_at_edges_is_the_same_curve(tmp_path: Path) -> None:
    """As models of a log-risk write it; the second fold has an edge less."""
    by_curve = "slide_id,case_id,fold,time,event,risk,surv_10,surv_20\na,a,0,8,1,2,0.8,0.4\nb,b,0,25,1,1,0.9,0.9\n"
    by_edges = (
        "slide_id,case_id,fold,time,event,risk,edge_1,edge_2,survival_1,survival_2\n"
        "a,a,0,8,1,2,10,20,0.8,0.4\nb,b,0,25,1,1,10,20,0.9,0.9\n"
    )
    at = EvaluationConfig(bootstrap=0, at=15)
    first, second = of(by_curve, tmp_path, at), of(by_edges, tmp_path, at)
    assert second.to_json() == first.to_json()
    blank = by_edges.replace("10,20,0.9,0.9", "10,,0.9,")
    assert of(blank, tmp_path, EvaluationConfig(bootstrap=0, at=10)).metrics["observed_expected"].pooled > 0


def test_the_cut_that_a_table_brings(tmp_path: Path) -> None:
    lines = SURVIVAL.splitlines()
    with_cut = "\n".join([lines[0] + ",risk_cut", *(line + ",0.55" for line in lines[1:])]) + "\n"
    found = of(with_cut, tmp_path).survival
    assert found is not None
    assert (found.risk_groups.cut_from, found.risk_groups.cuts) == ("training", (0.55,))
    assert found.risk_groups.groups[1].patients == 2
    some = of(with_cut.replace(",0.55", ",", 1), tmp_path).survival
    assert some is not None
    assert some.risk_groups.cut_from == "predictions", "a cut that a row lacks is not used"
    for wrong in ("0.6", "high"):
        with pytest.raises(RunError, match="risk_cut must be one number in all rows of a fold"):
            of(with_cut.replace(",0.55", f",{wrong}", 1), tmp_path)
    given = of(with_cut, tmp_path, EvaluationConfig(bootstrap=0, cut=0.7)).survival
    assert given is not None
    assert (given.risk_groups.cut_from, given.risk_groups.groups[1].patients) == ("given", 1)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("0.5,0.2,seen", "0.5,0.6,seen", "slide 'a' has a survival curve that rises or leaves 0 to 1"),
        ("0.5,0.2,seen", "1.5,0.2,seen", "slide 'a' has a survival curve that rises or leaves 0 to 1"),
        ("0.5,0.2,seen", "0.5,,seen", "slide 'a' has surv_30 ''; it must be a number"),
        ("surv_30", "surv_late", "column 'surv_late' must end in a time, as surv_12"),
        ("surv_30", "surv_-3", "column 'surv_-3' must end in a time, as surv_12"),
        ("remark", "edge_1", None),
    ],
)
def test_columns_that_cannot_be_used(tmp_path: Path, before: str, after: str, words: str | None) -> None:
    text = SURVIVAL.replace(before, after, 1)
    if words is None:
        assert of(text, tmp_path).cases == 5, "curves come from surv_ columns where there are any"
        return
    with pytest.raises(RunError) as caught:
        of(text, tmp_path)
    assert str(caught.value).startswith(f"predictions {tmp_path / 'theirs.csv'}: ")
    assert words in str(caught.value)


@pytest.mark.skipif(not DOCS.exists(), reason="the tests run without the documentation")
def test_the_documentations_tables_are_evaluated(tmp_path: Path) -> None:
    tables = re.findall(r"^```csv\n(.*?)^```$", DOCS.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    classes, survival = (of(table, tmp_path) for table in tables)
    assert (classes.kind, classes.cases, classes.metrics["auc"].pooled) == ("classification", 5, pytest.approx(8 / 9))
    assert classes.confusion is not None
    assert classes.confusion.counts == ((2, 1), (0, 3))
    assert (survival.kind, survival.slides, survival.cases) == ("survival", 7, 6)
    named = set(re.findall(r"`(\w+)`", DOCS.read_text("utf-8").split("## What is computed")[1]))
    assert {*classes.metrics, *survival.metrics} <= named, "every number is explained"
