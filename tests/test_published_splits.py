"""`benchmarks/published_splits.py`: it prints what the documentation shows of the published tables."""

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT, PAGE = ROOT / "benchmarks" / "published_splits.py", ROOT / "docs" / "splits.md"
needs_them = pytest.mark.skipif(
    not (SCRIPT.exists() and PAGE.exists()), reason="the tests run without benchmarks and documentation"
)


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("published_splits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_them
def test_the_documented_command_prints_the_documented_table(
    script: ModuleType, shared_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = PAGE.read_text("utf-8")
    command = re.search(r"^python benchmarks/published_splits\.py \\\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert command is not None
    arguments = []
    for argument in shlex.split(command[1].replace("\\\n", " ")):
        preset, _, files = argument.partition("=")
        found = [next((shared_dir / "tcga").glob(f"*/{name}")) for name in files.split(",")]
        arguments.append(f"{preset}={','.join(map(str, found))}")
    script.main(arguments)
    printed = capsys.readouterr().out
    assert printed in page
    assert len(printed.splitlines()) == 2 + 9


@needs_them
def test_a_row(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text(
        "case_id,slide_id,survival_months,censorship\n"
        + "".join(f"TCGA-A{i}-0000,TCGA-A{i}-0000-01,{i + 1},0\n" for i in range(6)),
        "utf-8",
    )
    (tmp_path / "splits").mkdir()
    for k, val in enumerate(("TCGA-A2-0000", "TCGA-A5-0000")):
        rows = "".join(f"{i},TCGA-A{i}-0000,{val if i == 0 else ''},\n" for i in range(5))
        (tmp_path / "splits" / f"splits_{k}.csv").write_text(f",train,val,test\n{rows}", "utf-8")
    script.main([f"kirc={tmp_path / 't.csv'},{tmp_path / 'splits'}"])
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == "| kirc | 6 | 6 | 2 | 1, 0 in train and val | 0 | 0 | 0 to 1 | none |"
    )
    with pytest.raises(SystemExit, match="PRESET=COHORT"):
        script.main([])
