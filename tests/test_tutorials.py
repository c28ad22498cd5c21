"""The tutorials' cells run, from the first to the last."""

from pathlib import Path

import nbformat
import pytest
from myst_nb.core.read import read_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "tutorials"
TUTORIALS = sorted(FOLDER.glob("*.md"))


def run(text: str, folder: Path) -> nbformat.NotebookNode:
    """A tutorial with what its cells gave, run in a folder by a kernel of its own."""
    notebook = read_myst_markdown_notebook(text, MdParserConfig())
    return NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()


@pytest.mark.processes
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_and_draws(page: Path, tmp_path: Path) -> None:
    cells = run(page.read_text(), tmp_path).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
