"""Every notebook is stored with what it printed and drew, and runs from a fresh kernel."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_a_fresh_kernel(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    # tqdm's warning is of Jupyter's widgets, which nobody needs here.
    monkeypatch.setenv("PYTHONWARNINGS", "error::UserWarning,ignore:IProgress not found")
    notebook = nbformat.read(path, as_version=4)
    stored = kinds(notebook)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert kinds(notebook) == stored


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_with_its_figures_and_without_a_trace_of_where_it_ran(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].source.startswith("# ")
    assert sum("image/png" in found for found in kinds(notebook)) >= 2
    assert "## Decision" in "".join(cell.source for cell in notebook.cells)
    text = path.read_text()
    assert "stderr" not in text and '"error"' not in text
    assert not any(place in text for place in ("/tmp/", "/home/", "/root/", str(ROOT)))
    assert path.stat().st_size < 600_000


def kinds(notebook: nbformat.NotebookNode) -> list[tuple[str, ...]]:
    """What each output is: text that was printed, or a table or a picture that is shown."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return [tuple(sorted(out.get("data", {"printed": ""}))) for out in outputs]
