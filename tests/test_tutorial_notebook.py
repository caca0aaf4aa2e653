"""The notebook is executed cell by cell, in a kernel of its own."""

import nbclient
import nbformat
import pytest

from helpers import REPOSITORY


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    notebook = nbformat.read(REPOSITORY / "examples" / "tutorial.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in str(output)]
    assert len(pictures) == 4  # of the records, and of each of the three stages
