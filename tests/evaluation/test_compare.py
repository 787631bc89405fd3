"""Two runs, paired: numbers against other ways to them, and refusal of what cannot be compared."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, roc_auc_score

from wsi2d.config import EvaluationConfig
from wsi2d.errors import RunError
from wsi2d.evaluation.compare import compare
from wsi2d.evaluation.evaluate import evaluate
from wsi2d.evaluation.statistics import delong_test, patient_weights
from wsi2d.evaluation.survival import survival_metrics

FEW = EvaluationConfig(bootstrap=50)


def table(strength: float, seed: int = 0, *, patients: int = 40) -> pd.DataFrame:
    """Predictions of two folds, one slide a patient; labels do not depend on seed or strength."""
    generator = np.random.default_rng(seed)
    label = np.arange(patients) // 2 % 2
    high = np.clip(generator.random(patients) * (1 - strength) + strength * label, 0.01, 0.99)
    ids = [f"s{i}" for i in range(patients)]
    fold = np.arange(patients) % 2
    names = np.array(["no", "yes"])[label]
    values = {"slide_id": ids, "case_id": ids, "fold": fold, "label": names, "prob_no": 1 - high, "prob_yes": high}
    return pd.DataFrame(values)


def survival_table(noise: float, seed: int) -> pd.DataFrame:
    truth, generator = np.random.default_rng(0), np.random.default_rng(seed)
    time, event = truth.exponential(20, 40).round(2) + 0.1, (truth.random(40) < 0.7).astype(int)
    ids = [f"s{i}" for i in range(40)]
    risk = -time / 20 + noise * generator.normal(size=40)
    return pd.DataFrame(
        {"slide_id": ids, "case_id": ids, "fold": np.arange(40) % 4, "time": time, "event": event, "risk": risk}
    )


def write(folder: Path, first: pd.DataFrame, second: pd.DataFrame) -> tuple[Path, Path]:
    paths = folder / "a.csv", folder / "b.csv"
    for path, frame in zip(paths, (first, second), strict=True):
        frame.to_csv(path, index=False)
    return paths


def test_differences_equal_scikit_learn_on_each_resample(tmp_path: Path) -> None:
    """Whatever the order of rows and of classes in the second table."""
    a, b = table(0.1), table(0.5, seed=1)
    mixed = b.sample(frac=1, random_state=3)[["prob_yes", "fold", "case_id", "slide_id", "prob_no", "label"]]
    found = compare(*write(tmp_path, a, mixed), FEW, seed=4)
    truth = (a["label"] == "yes").to_numpy()
    scores = a["prob_yes"].to_numpy(), b["prob_yes"].to_numpy()
    auc = found.metrics["auc"]
    assert auc.pooled == pytest.approx(roc_auc_score(truth, scores[1]) - roc_auc_score(truth, scores[0]))
    fold = a["fold"].to_numpy()
    means = [np.mean([accuracy_score(truth[fold == f], s[fold == f] > 0.5) for f in (0, 1)]) for s in scores]
    accuracy = found.metrics["accuracy"]
    assert (accuracy.first, accuracy.second, accuracy.mean) == pytest.approx((*means, means[1] - means[0]))
    samples = []
    for weights in np.concatenate(list(patient_weights(a["case_id"], fold.tolist(), resamples=50, seed=4))):
        rows = np.repeat(np.arange(40), weights.astype(int))
        samples.append(roc_auc_score(truth[rows], scores[1][rows]) - roc_auc_score(truth[rows], scores[0][rows]))
    assert auc.pooled_interval == pytest.approx(tuple(np.quantile(samples, [0.025, 0.975])))
    tail = min(np.sum(np.array(samples) <= 0), np.sum(np.array(samples) >= 0))
    assert auc.pooled_p == pytest.approx(2 * (1 + tail) / 51)
    assert auc.delong == delong_test(truth, *scores)
    assert found.notes == ()


def test_a_better_run_is_found_and_an_equal_one_is_not(tmp_path: Path) -> None:
    better = compare(*write(tmp_path, table(0.0), table(0.7, seed=1)), EvaluationConfig(bootstrap=400))
    auc = better.metrics["auc"]
    assert auc.mean_interval is not None
    assert auc.mean_interval[0] > 0
    assert max(auc.mean_p, auc.pooled_p) < 0.02
    same = compare(*write(tmp_path, table(0.3), table(0.3)), FEW).metrics["auc"]
    assert same.delong is not None
    assert (same.mean, same.mean_p, same.t_test.p_value, same.delong.p_value) == (0, 1, 1, 1)


def test_repeats_do_not_make_more_patients_of_those_trained_on(tmp_path: Path) -> None:
    """Nadeau and Bengio's ratio of a cross-validation of four folds, done twice: 10 patients tested, 30 others."""
    a, b = survival_table(1.0, 1), survival_table(0.3, 2)
    twice = [pd.concat([f, f.assign(fold=(np.arange(40) // 10) + 4)], ignore_index=True) for f in (a, b)]
    found = compare(*write(tmp_path, *twice), EvaluationConfig(bootstrap=0)).metrics["c_index"].t_test
    scores = [
        [survival_metrics(*(part[k].to_numpy(float) for k in ("time", "event", "risk")))["c_index"] for _, part in
         frame.groupby("fold")]
        for frame in twice
    ]  # fmt: skip
    differences = np.subtract(scores[1], scores[0])
    error = np.sqrt((1 / 8 + 10 / 30) * differences.var(ddof=1))
    assert found.statistic == pytest.approx(differences.mean() / error)


def test_survival_of_two_runs(tmp_path: Path) -> None:
    found = compare(*write(tmp_path, survival_table(3, 1), survival_table(0.1, 2)), FEW)
    values = json.loads(found.to_json())
    assert (values["schema"], values["kind"], values["folds"]) == ("wsi2d-comparison/1", "survival", [0, 1, 2, 3])
    assert list(found.metrics) == ["c_index", "c_index_uno", "auc_at"]
    assert found.metrics["c_index"].mean > 0.2
    folds = [evaluate(path, FEW).metrics["c_index"].per_fold for path in (tmp_path / "a.csv", tmp_path / "b.csv")]
    plain = stats.ttest_1samp(np.subtract(folds[1], folds[0]), 0).statistic
    # 10 patients tested for 30 trained on: the variance is 1/4 + 1/3 of the folds', not 1/4
    assert found.metrics["c_index"].t_test.statistic == pytest.approx(plain / np.sqrt(1 + 4 / 3))


def test_curves_of_one_run_alone_are_left_out(tmp_path: Path) -> None:
    with_curves = survival_table(0.1, 2).assign(surv_5=0.7, surv_40=0.2)
    assert "brier_integrated" not in compare(*write(tmp_path, survival_table(3, 1), with_curves), FEW).metrics
    other = survival_table(3, 1).assign(surv_30=0.4)
    assert "brier_integrated" in compare(*write(tmp_path, other, with_curves), FEW).metrics


def test_slides_of_one_patient_are_noted(tmp_path: Path) -> None:
    a, b = (table(0.3, seed=s).assign(case_id=[f"p{i // 4}-{i % 2}" for i in range(40)]) for s in (0, 1))
    (note,) = compare(*write(tmp_path, a, b), FEW).notes
    assert "DeLong" in note


def of_slides(seed: int) -> pd.DataFrame:
    """Predictions of 40 slides of 20 patients of two folds, a label a patient."""
    frame = table(0.3, seed=seed)
    patient = np.arange(40) // 2
    label = np.array(["no", "yes"])[patient // 2 % 2]
    return frame.assign(case_id=[f"p{i}" for i in patient], fold=patient % 2, label=label)


def joined(frame: pd.DataFrame) -> pd.DataFrame:
    """The same as a run that joins slides writes it: here with the means over slides."""
    names = frame.groupby("case_id", sort=False)["slide_id"].agg(";".join)
    kept = {"fold": "first", "label": "first", "prob_no": "mean", "prob_yes": "mean"}
    cases = frame.groupby("case_id", sort=False).agg(kept).reset_index()
    return cases.assign(slide_id=cases["case_id"], joined_slides=names.to_numpy())


def test_a_run_on_patients_against_one_on_slides(tmp_path: Path) -> None:
    """Both are counted by patient, in whichever order they stand."""
    a, b = of_slides(0), of_slides(1)
    turned = joined(b).iloc[::-1]
    found = compare(*write(tmp_path, a, turned), FEW, seed=2)
    assert (found.unit, found.slides, found.cases) == ("case", 40, 20)
    assert found.notes == ()
    expected = compare(*write(tmp_path, joined(a), joined(b)), FEW, seed=2)
    backwards = compare(*write(tmp_path, turned, a), FEW, seed=2)
    by_choice = compare(*write(tmp_path, a, b), EvaluationConfig(bootstrap=50, unit="case"), seed=2)
    for name, metric in expected.metrics.items():
        for other in (found, by_choice):
            assert other.metrics[name].mean == pytest.approx(metric.mean)
            assert other.metrics[name].pooled_p == metric.pooled_p
        assert backwards.metrics[name].mean == pytest.approx(-metric.mean)
    assert found.metrics["auc"].delong is not None
    truth = (joined(a)["label"] == "yes").to_numpy()
    scores = joined(a)["prob_yes"].to_numpy(), joined(b)["prob_yes"].to_numpy()
    assert found.metrics["auc"].delong.p_value == pytest.approx(delong_test(truth, *scores).p_value)


def test_slides_that_one_run_lacks_are_noted_where_patients_are_counted(tmp_path: Path) -> None:
    a, b = of_slides(0), of_slides(1).iloc[1:]
    (note,) = compare(*write(tmp_path, a, joined(b)), FEW).notes
    assert note == "1 patients are predicted from other slides in the second than in the first"
    with pytest.raises(RunError, match="1 slides are in one of them only, the first is 's0'"):
        compare(*write(tmp_path, a, b), FEW)
    with pytest.raises(RunError, match=r"1 patients are in one of them only, the first is 'p0'.*the same patients"):
        compare(*write(tmp_path, a, joined(b.iloc[1:])), FEW)


def test_truths_that_differ_are_named_where_patients_are_counted(tmp_path: Path) -> None:
    b = joined(of_slides(1))
    b.loc[3, "label"] = "no"
    with pytest.raises(RunError, match="patient 'p3' has label 'yes' and 'no'; give runs on the same cohort"):
        compare(*write(tmp_path, of_slides(0), b), FEW)
    b = joined(of_slides(1)).assign(fold=0)
    with pytest.raises(RunError, match="patient 'p1' is in fold 0 of one of them only"):
        compare(*write(tmp_path, of_slides(0), b), FEW)


def test_survival_of_slides_against_patients(tmp_path: Path) -> None:
    patient = np.arange(40) // 2
    frames = [survival_table(noise, seed).iloc[patient].reset_index(drop=True) for noise, seed in ((3, 1), (0.1, 2))]
    for k, frame in enumerate(frames):
        frame["slide_id"] = [f"s{i}" for i in range(40)]
        frame["risk"] += np.random.default_rng(k).normal(size=40)
        for t in (5, 30):
            frame[f"surv_{t}"] = np.exp(-t / 20 * np.exp(0.3 * frame["risk"]))
    kept = dict.fromkeys(("fold", "time", "event"), "first")
    kept |= dict.fromkeys(("risk", "surv_5", "surv_30"), "mean")
    cases = frames[1].groupby("case_id", sort=False).agg(kept).reset_index()
    cases = cases.assign(slide_id=cases["case_id"], joined_slides=[f"s{2 * i};s{2 * i + 1}" for i in range(20)])
    found = compare(*write(tmp_path, frames[0], cases.iloc[::-1]), FEW, seed=1)
    expected = compare(*write(tmp_path, *frames), FEW, seed=1)
    assert (found.unit, found.notes) == ("case", ())
    assert {"brier_integrated", "c_index"} <= found.metrics.keys()
    for name, metric in expected.metrics.items():
        assert found.metrics[name].mean == pytest.approx(metric.mean), name
        assert found.metrics[name].pooled_interval == pytest.approx(metric.pooled_interval), name


def test_differences_within_folds(tmp_path: Path) -> None:
    """Where a fold of one run lies on another scale, the pooled figure alone changes."""
    first, second = survival_table(3, 1), survival_table(0.1, 2)
    moved = second.assign(risk=second["risk"] + 50 * second["fold"])
    config = EvaluationConfig(bootstrap=200)
    before, after = (compare(*write(tmp_path, first, b), config).metrics["c_index"] for b in (second, moved))
    assert before.stratified == pytest.approx(after.stratified)
    assert before.stratified_interval == pytest.approx(after.stratified_interval)
    assert before.stratified_p == after.stratified_p
    assert before.pooled > after.pooled + 0.05
    pairs = [evaluate(path, FEW).metrics["c_index"].stratified for path in write(tmp_path, first, second)]
    assert before.stratified == pytest.approx(pairs[1] - pairs[0])
    assert before.stratified_p == pytest.approx(2 / 201)
    auc = compare(*write(tmp_path, table(0.1), table(0.5, seed=1)), FEW).metrics["auc"]
    assert auc.stratified is None
    assert auc.stratified_interval is None


def test_notes_of_runs_are_said_again(tmp_path: Path) -> None:
    runs = []
    for name, notes in (("a", ["val is held out"]), ("b", ["val is held out", "fold 0: 3 patients leak"])):
        runs.append(tmp_path / name)
        runs[-1].mkdir()
        table(0.3).to_csv(runs[-1] / "predictions.csv", index=False)
        (runs[-1] / "notes.json").write_text(json.dumps(notes), "utf-8")
    assert compare(*runs, FEW).notes == ("val is held out", "B: fold 0: 3 patients leak")
    assert compare(*(run / "predictions.csv" for run in runs), FEW).notes == (), "of tables nothing is known"


def changed(column: str, value: object) -> pd.DataFrame:
    frame = table(0.5).astype(object)
    frame.loc[3, column] = value
    return frame


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (table(0.5).iloc[1:], "1 slides are in one of them only, the first is 's0' of {a}; give runs on the same"),
        (changed("fold", 0), "slide 's3' is in fold 0 of one of them only; give runs on the same splits"),
        (changed("case_id", "p9"), "slide 's3' has case_id 's3' and 'p9'; give runs on the same cohort"),
        (changed("label", "no"), "slide 's3' has label 'yes' and 'no'; give runs on the same cohort"),
        (table(0.5).assign(prob_maybe=0.0), "class 'maybe' is in one of them only; give two runs of one task"),
        (survival_table(1, 0), "one is classification, the other survival; give two runs of one task"),
        (pd.concat([table(0.5), table(0.5).iloc[:1]]), "slide 's0' is there twice; leave one row of it in each fold"),
    ],
    ids=["slides", "folds", "patients", "labels", "classes", "tasks", "twice"],
)
def test_what_cannot_be_compared_is_named(tmp_path: Path, other: pd.DataFrame, words: str) -> None:
    a, b = write(tmp_path, table(0.5), other)
    with pytest.raises(RunError) as caught:
        compare(a, b, FEW)
    message = str(caught.value)
    assert words.format(a=a) in message
    assert str(b) in message


def test_a_folder_without_predictions(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no predictions.csv; train it to the end first, or give a table"):
        compare(tmp_path, tmp_path, FEW)
