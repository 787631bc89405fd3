"""`benchmarks/agreement.py`: it prints a row a statistic, and in none do two libraries differ."""

import importlib.util
import re
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "agreement.py"


@pytest.mark.skipif(not SCRIPT.exists(), reason="the tests run without the benchmarks")
def test_agreement(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("agreement", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TABLES", 2)
    monkeypatch.setattr(module, "resamples_both_ways", lambda: (0.01, 4.0))
    module.main()
    printed = capsys.readouterr().out
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| \S+ \| \S+ \| (\S+) \|$", printed, re.MULTILINE)
    assert len(rows) == 31
    assert {library for _, library, _ in rows} == {"scikit-learn", "scikit-survival", "lifelines"}
    heads = [row for row in rows if row[0].startswith("c_index of a linear head")]
    assert len(heads) == 4
    assert all(float(row[2]) < 0.005 for row in heads), "as near as two ends of a search put a few pairs of patients"
    rows = [row for row in rows if row not in heads]
    searched = ("hazard ratio",)  # found by iterations that end where each library sees fit
    assert [row for row in rows if not float(row[2]) < (1e-4 if row[0] in searched else 1e-8)] == []
    assert "10 ms; one by one in scikit-learn 4.0 s" in printed
