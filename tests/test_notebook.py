"""The notebook runs top to bottom on a demo's run."""

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "attention_heatmaps.ipynb"
BIGGEST = 500_000


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished demo: the one that WSI2D_DEMO names, else a small one made here."""
    if os.environ.get("WSI2D_DEMO"):
        return Path(os.environ["WSI2D_DEMO"])
    from wsi2d.demo import cohort, pipeline

    folder = tmp_path_factory.mktemp("notebook") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohort, "_CELLS_A_SIDE", (8, 9))
        patch.setattr(pipeline, "_CLASS_RUNS", pipeline._CLASS_RUNS[:1])
        pipeline.run_demo(folder, slides=14, folds=2)
    return folder


@pytest.fixture(scope="module")
def committed() -> "nbformat.NotebookNode":
    """The notebook as it is committed."""
    if not NOTEBOOK.exists():
        pytest.skip("the notebooks are not here: these tests run away from a checkout")
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_runs_top_to_bottom(
    committed: "nbformat.NotebookNode", demo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WSI2D_DEMO", str(demo_folder))
    notebook = nbformat.from_dict(committed)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/jpeg" in o.get("data", {})]
    assert len(pictures) == 6
    errors = [o for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type in {"error", "stream"}]
    assert not errors


def test_it_is_committed_with_its_outputs_and_small(committed: "nbformat.NotebookNode") -> None:
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert sum("image/jpeg" in o.get("data", {}) for cell in code for o in cell.outputs) == 6
    assert NOTEBOOK.stat().st_size < BIGGEST
    assert str(Path.home()) not in NOTEBOOK.read_text("utf-8")
