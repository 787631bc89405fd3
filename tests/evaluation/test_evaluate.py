"""From hand-made predictions to metrics: folds, mean ± sd, pooled, intervals, `metrics.json`."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sksurv.metrics import concordance_index_censored

from wsi2d.config import EvaluationConfig
from wsi2d.errors import RunError
from wsi2d.evaluation.evaluate import METRICS_SCHEMA, Evaluation, evaluate, evaluate_table
from wsi2d.evaluation.predictions import PredictionTable, read_predictions

NONE = EvaluationConfig(bootstrap=0)
FEW = EvaluationConfig(bootstrap=20)


def class_table(folds: int = 3, per_fold: int = 14, seed: int = 0, strength: float = 0.2) -> pd.DataFrame:
    """Predictions of patients with one or two slides, both classes in each fold."""
    generator = np.random.default_rng(seed)
    rows = []
    for fold in range(folds):
        for i in range(per_fold):
            case, label = f"f{fold}-c{i // 2 if i < 6 else i}", i // 2 % 2 if i < 6 else i % 2
            high = float(np.clip(generator.random() * (1 - strength) + strength * label, 0.01, 0.99))
            rows.append((f"{fold}-{i}", case, fold, ["no", "yes"][label], 1 - high, high))
    return pd.DataFrame(rows, columns=["slide_id", "case_id", "fold", "label", "prob_no", "prob_yes"])


def survival_table(folds: int = 3, per_fold: int = 16, seed: int = 0) -> pd.DataFrame:
    """Predictions of patients with one or two slides that share an outcome."""
    generator = np.random.default_rng(seed)
    rows = []
    for fold in range(folds):
        for i in range(per_fold):
            time, event = float(generator.integers(1, 60)), int(generator.random() < 0.6)
            for part in range(1 + (i % 4 == 0)):
                risk = -time / 30 + generator.normal()
                rows.append((f"{fold}-{i}-{part}", f"{fold}-{i}", fold, time, event, risk))
    return pd.DataFrame(rows, columns=["slide_id", "case_id", "fold", "time", "event", "risk"])


def evaluated(frame: pd.DataFrame, folder: Path, config: EvaluationConfig = NONE, *, seed: int = 0) -> Evaluation:
    """Evaluate a table as a run folder would be."""
    frame.to_csv(folder / "predictions.csv", index=False)
    return evaluate(folder, config, seed=seed)


# --- numbers -------------------------------------------------------------------------------------------------------


def test_classification_by_hand(tmp_path: Path) -> None:
    rows = [
        ("a", "a", 0, "no", 0.9, 0.1),
        ("b", "b", 0, "yes", 0.2, 0.8),
        ("c", "c", 0, "yes", 0.6, 0.4),
        ("d", "d", 1, "no", 0.3, 0.7),
        ("e", "e", 1, "yes", 0.4, 0.6),
    ]
    frame = pd.DataFrame(rows, columns=["slide_id", "case_id", "fold", "label", "prob_no", "prob_yes"])
    found = evaluated(frame, tmp_path)
    assert (found.kind, found.unit, found.slides, found.cases, found.folds) == ("classification", "slide", 5, 5, (0, 1))
    auc, accuracy = found.metrics["auc"], found.metrics["accuracy"]
    assert auc.per_fold == (1.0, 0.0)
    assert (auc.mean, auc.sd) == pytest.approx((0.5, math.sqrt(0.5)))  # a sample's: over n − 1
    assert auc.pooled == pytest.approx(4 / 6)  # .8 .4 .6 above .1; .8 above .7
    assert accuracy.per_fold == pytest.approx((2 / 3, 1 / 2))
    assert accuracy.mean == pytest.approx(7 / 12)
    assert accuracy.pooled == pytest.approx(3 / 5)
    assert found.metrics["balanced_accuracy"].per_fold == pytest.approx(((1 + 0.5) / 2, 0.5))
    assert auc.mean_interval is None
    assert auc.pooled_interval is None


@pytest.mark.parametrize("seed", range(3))
def test_classification_folds_and_pooled(tmp_path: Path, seed: int) -> None:
    frame = class_table(seed=seed)
    found = evaluated(frame.sample(frac=1, random_state=seed), tmp_path)
    assert (found.slides, found.cases, found.folds) == (42, frame["case_id"].nunique(), (0, 1, 2))
    truth = (frame["label"] == "yes").to_numpy()
    for name, score in {
        "auc": lambda y, p: roc_auc_score(y, p),
        "balanced_accuracy": lambda y, p: balanced_accuracy_score(y, p > 0.5),
    }.items():
        per_fold = [
            score(truth[frame["fold"] == k], frame.loc[frame["fold"] == k, "prob_yes"].to_numpy()) for k in range(3)
        ]
        summary = found.metrics[name]
        assert summary.per_fold == pytest.approx(per_fold)
        assert summary.mean == pytest.approx(np.mean(per_fold))
        assert summary.sd == pytest.approx(np.std(per_fold, ddof=1))
        assert summary.pooled == pytest.approx(score(truth, frame["prob_yes"].to_numpy()))


@pytest.mark.parametrize("seed", range(3))
def test_survival_counts_patients_by_their_mean_risk(tmp_path: Path, seed: int) -> None:
    frame = survival_table(seed=seed)
    found = evaluated(frame.sample(frac=1, random_state=seed), tmp_path)
    assert (found.kind, found.unit, found.slides, found.cases) == ("survival", "case", len(frame), 48)
    cases: dict[str, list[pd.Series]] = {}
    for _, row in frame.iterrows():
        cases.setdefault(row["case_id"], []).append(row)
    people = [(r[0]["fold"], r[0]["time"], r[0]["event"] == 1, np.mean([x["risk"] for x in r])) for r in cases.values()]

    def c_index(chosen: list[tuple]) -> float:
        _, time, event, risk = (np.array(column) for column in zip(*chosen, strict=True))
        return concordance_index_censored(event.astype(bool), time, risk)[0]

    per_fold = [c_index([p for p in people if p[0] == k]) for k in range(3)]
    summary = found.metrics["c_index"]
    assert summary.per_fold == pytest.approx(per_fold)
    assert (summary.mean, summary.sd) == pytest.approx((np.mean(per_fold), np.std(per_fold, ddof=1)))
    assert summary.pooled == pytest.approx(c_index(people))


@pytest.mark.parametrize("seed", range(3))
def test_patients_by_the_mean_of_their_slides(tmp_path: Path, seed: int) -> None:
    """As if each patient were one slide with the mean of the probabilities."""
    frame = class_table(seed=seed)
    by_case = EvaluationConfig(bootstrap=20, unit="case")
    found = evaluated(frame.sample(frac=1, random_state=seed), tmp_path, by_case)
    mean = frame.groupby(["fold", "case_id"], as_index=False).agg(
        {"label": "first", "prob_no": "mean", "prob_yes": "mean"}
    )
    assert (found.unit, found.slides, found.cases) == ("case", 42, len(mean)) == ("case", 42, 33)
    expected = evaluated(mean.assign(slide_id=mean["case_id"]), tmp_path, NONE)
    for name, summary in expected.metrics.items():
        assert found.metrics[name].per_fold == pytest.approx(summary.per_fold)
        assert found.metrics[name].pooled == pytest.approx(summary.pooled)
    assert found.confusion is not None
    assert expected.confusion is not None
    assert found.confusion.counts == expected.confusion.counts
    assert sum(map(sum, found.confusion.counts)) == 33
    slides = evaluated(frame, tmp_path, NONE).metrics["auc"]
    assert slides.pooled != pytest.approx(found.metrics["auc"].pooled)


def test_a_patient_with_two_labels_cannot_be_counted(tmp_path: Path) -> None:
    frame = class_table()
    frame.loc[1, "label"] = {"yes": "no", "no": "yes"}[frame.loc[0, "label"]]
    assert evaluated(frame, tmp_path).unit == "slide"
    with pytest.raises(RunError) as caught:
        evaluated(frame, tmp_path, EvaluationConfig(unit="case"))
    assert "the slides of patient 'f0-c0' are no and yes; count slides" in str(caught.value)


def test_joined_rows_are_patients(tmp_path: Path) -> None:
    frame = class_table().drop_duplicates("case_id")
    frame["slide_id"] = frame["case_id"]
    joined = frame.assign(joined_slides=[f"{case}-a;{case}-b" if i % 2 else f"{case}-a" for i, case in
                                         enumerate(frame["case_id"])])  # fmt: skip
    plain, found = (evaluated(f, tmp_path, NONE) for f in (frame, joined))
    assert (plain.unit, plain.slides, plain.cases) == ("slide", 33, 33)
    assert (found.unit, found.slides, found.cases) == ("case", 33 + 16, 33)
    assert found.metrics == plain.metrics


def test_folds_by_number_not_by_name(tmp_path: Path) -> None:
    frame = class_table(folds=11, per_fold=8)
    assert evaluated(frame, tmp_path).folds == tuple(range(11))


def test_an_ensembles_predictions_are_one_fold(tmp_path: Path) -> None:
    frame = class_table()
    frame["fold"] = ""
    found = evaluated(frame, tmp_path)
    assert found.folds == (0,)
    assert found.metrics["auc"].per_fold == (found.metrics["auc"].pooled,)
    frame = survival_table()
    frame["fold"] = None
    found = evaluate_table(PredictionTable("survival", (), frame), NONE)
    assert (found.cases, found.folds) == (48, (0,))


def test_a_fold_that_defines_nothing_is_left_out_of_the_mean(tmp_path: Path) -> None:
    frame = class_table()
    frame = frame[(frame["fold"] != 1) | (frame["label"] == "yes")]
    summary = evaluated(frame, tmp_path, FEW).metrics["auc"]
    assert math.isnan(summary.per_fold[1])
    assert summary.mean == pytest.approx((summary.per_fold[0] + summary.per_fold[2]) / 2)
    assert summary.sd == pytest.approx(abs(summary.per_fold[0] - summary.per_fold[2]) / math.sqrt(2))
    assert summary.mean_interval is not None
    assert not any(map(math.isnan, summary.mean_interval))


# --- intervals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [class_table(), survival_table()], ids=["classes", "survival"])
def test_intervals_hold_their_estimate(tmp_path: Path, frame: pd.DataFrame) -> None:
    found = evaluated(frame, tmp_path, FEW)
    assert (found.bootstrap, found.confidence) == (20, 0.95)
    for summary in found.metrics.values():
        for interval, value in ((summary.mean_interval, summary.mean), (summary.pooled_interval, summary.pooled)):
            assert interval is not None
            assert interval[0] <= value <= interval[1]
            assert interval[0] < interval[1]


def test_intervals_depend_on_the_seed_alone(tmp_path: Path) -> None:
    frame = class_table(folds=1, per_fold=24)
    found = [evaluated(frame, tmp_path, FEW, seed=seed).metrics["auc"].pooled_interval for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_confidence_widens_intervals(tmp_path: Path) -> None:
    frame = class_table(folds=1, per_fold=24)
    wide, narrow = (
        evaluated(frame, tmp_path, EvaluationConfig(bootstrap=50, confidence=c)).metrics["auc"].pooled_interval
        for c in (0.99, 0.6)
    )
    assert wide is not None
    assert narrow is not None
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_copies_of_slides_do_not_narrow_an_interval(tmp_path: Path) -> None:
    frame = class_table(folds=1, per_fold=24)
    copies = pd.concat([frame.assign(slide_id=frame["slide_id"] + f"-{i}") for i in range(5)])
    config = EvaluationConfig(bootstrap=60)
    once, often = (evaluated(f, tmp_path, config).metrics["auc"].pooled_interval for f in (frame, copies))
    assert once is not None
    assert often is not None
    assert often[1] - often[0] == pytest.approx(once[1] - once[0], rel=0.25)


# --- metrics.json --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [NONE, FEW], ids=["no-bootstrap", "bootstrap"])
@pytest.mark.parametrize("frame", [class_table(), survival_table()], ids=["classes", "survival"])
def test_metrics_file_matches_its_schema(tmp_path: Path, frame: pd.DataFrame, config: EvaluationConfig) -> None:
    found = evaluated(frame, tmp_path, config)
    values = strict_json(tmp_path / "metrics.json")
    assert list(values) == [
        "schema", "kind", "unit", "slides", "cases", "folds", "metrics", "bootstrap", "confidence", "notes",
        "confusion", "survival",
    ]  # fmt: skip
    assert values["schema"] == METRICS_SCHEMA == "wsi2d-metrics/1"
    assert (values["kind"], values["unit"]) in (("classification", "slide"), ("survival", "case"))
    assert [type(values[name]) for name in ("slides", "cases", "bootstrap")] == [int] * 3
    assert values["folds"] == [0, 1, 2]
    names = {
        "classification": ["auc", "f1", "accuracy", "balanced_accuracy", "auprc", "ece"],
        "survival": ["c_index", "c_index_uno", "auc_at"],
    }
    assert (values["confusion"] is None) == (values["kind"] == "survival") == (values["survival"] is not None)
    assert list(values["metrics"]) == names[values["kind"]]
    for name, summary in values["metrics"].items():
        assert list(summary) == [
            "per_fold", "mean", "sd", "mean_interval", "pooled", "pooled_interval", "stratified", "stratified_interval",
        ]  # fmt: skip
        assert (summary["stratified"] is None) == (values["kind"] == "classification")
        assert len(summary["per_fold"]) == 3
        assert summary["pooled"] == found.metrics[name].pooled
        for interval in (summary["mean_interval"], summary["pooled_interval"]):
            assert interval is None if config is NONE else len(interval) == 2


def test_metrics_file_has_null_where_nothing_is_defined(tmp_path: Path) -> None:
    frame = class_table(folds=1)
    found = evaluated(frame[frame["label"] == "yes"], tmp_path, FEW)
    summary = strict_json(tmp_path / "metrics.json")["metrics"]["auc"]
    assert math.isnan(found.metrics["auc"].pooled)
    assert summary == {
        "per_fold": [None], "mean": None, "sd": None, "mean_interval": [None, None], "pooled": None,
        "pooled_interval": [None, None], "stratified": None, "stratified_interval": None,
    }  # fmt: skip
    assert strict_json(tmp_path / "metrics.json")["metrics"]["accuracy"]["sd"] is None  # one fold has no spread


def strict_json(path: Path) -> dict:
    """Parse JSON as the standard has it: NaN and infinity are no JSON."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    return json.loads(path.read_text("utf-8"), parse_constant=refuse)


def test_notes_of_a_run_are_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text(json.dumps(["fold 0: 3 patients leak – beware"]), "utf-8")
    assert evaluated(class_table(), tmp_path).notes == ("fold 0: 3 patients leak – beware",)
    assert strict_json(tmp_path / "metrics.json")["notes"] == ["fold 0: 3 patients leak – beware"]


@pytest.mark.parametrize("content", [b'["fold 0: 3 pat', b"", b"\xff\xfe", b"3", b'{"fold 0": "leaks"}', b"[1, 2]"])
def test_notes_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    """Numbers without the notes that belong to them are not given."""
    (tmp_path / "notes.json").write_bytes(content)
    with pytest.raises(RunError) as caught:
        evaluated(class_table(), tmp_path)
    remedy = "mend it, or delete it and do without the run's notes"
    assert str(caught.value) == f"notes {tmp_path / 'notes.json'}: not a JSON list of texts; {remedy}"
    assert not (tmp_path / "metrics.json").exists()


def test_folder_without_predictions(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(RunError) as caught:
            evaluate(folder)
        assert str(caught.value) == f"run {folder}: no predictions.csv; train it to the end first"


def test_a_table_from_elsewhere_is_evaluated_alike(tmp_path: Path) -> None:
    frame = class_table(folds=1, per_fold=24)
    by_run = evaluated(frame, tmp_path, FEW, seed=3)
    by_table = evaluate_table(read_predictions(tmp_path / "predictions.csv"), FEW, seed=3)
    assert by_table.to_json() == by_run.to_json()
