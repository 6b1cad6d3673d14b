"""Every tutorial runs from top to bottom, as a reader would run it."""

import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

TUTORIALS = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))

SECONDS_PER_CELL = 600


class ThisPython(AsyncKernelManager):
    """Starts kernels of the running interpreter, whatever others are installed.

    Where no folder is searched for kernels, ipykernel's own remains.
    """

    def __init__(self, **options: object) -> None:
        kernels = KernelSpecManager(kernel_dirs=[])
        super().__init__(kernel_spec_manager=kernels, **options)


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run a notebook in ``folder``; fill in its outputs."""
    return NotebookClient(
        notebook,
        kernel_manager_class=ThisPython,
        timeout=SECONDS_PER_CELL,
        resources={"metadata": {"path": str(folder)}},
    ).execute()


@pytest.fixture
def as_readers_see_it(monkeypatch, tmp_path_factory) -> None:
    """Figures are rendered into the notebook; no one's own settings are read."""
    # The kernel then chooses its own way, which draws by Agg and needs no screen.
    monkeypatch.delenv("MPLBACKEND")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
@pytest.mark.usefixtures("as_readers_see_it")
def test_a_tutorial_runs(path):
    notebook = nbformat.read(path, as_version=4)
    execute(notebook, TUTORIALS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_tutorial_is_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            assert not cell.outputs, (
                f"cell {i} of {path.name} has outputs: clear them before committing"
            )
            assert cell.execution_count is None


@pytest.mark.usefixtures("as_readers_see_it")
def test_a_notebook_runs_by_this_python_in_its_folder(tmp_path):
    code = [
        "import os, sys\nprint(sys.executable)\nprint(os.getcwd())",
        "import matplotlib.pyplot as plt\n_ = plt.plot([1, 2])",
    ]
    cells = [new_markdown_cell("# Words"), *map(new_code_cell, code)]
    executed = execute(new_notebook(cells=cells), tmp_path)
    [printed] = executed.cells[1].outputs
    assert printed.text.split() == [sys.executable, str(tmp_path.resolve())]
    [figure] = executed.cells[2].outputs
    assert figure.data["image/png"]


def test_a_notebook_that_fails_tells_the_cell_and_the_error(tmp_path):
    notebook = new_notebook(cells=[new_code_cell("1 / 0")])
    with pytest.raises(CellExecutionError, match=r"1 / 0[\s\S]*ZeroDivisionError"):
        execute(notebook, tmp_path)
