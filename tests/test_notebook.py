"""The notebooks hold no outputs, their cells compile, and they run from the first cell to the last."""

from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


# How many images a notebook shows, and a line that it prints.
SHOWS = {
    "ddpm_digits": (8, "the loaded model draws the same"),
    "exact_laboratory": (5, "the first coordinate is 0.100000 to 0.100000"),
}


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == sorted(SHOWS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_compile_and_are_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            # IPython's own translation of lines such as `%pip install`.
            compile(TransformerManager().transform_cell(cell.source), f"{path.name}, cell {number}", "exec")
            assert not cell.outputs and cell.execution_count is None, f"cell {number} was stored with outputs"


@pytest.mark.processes
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_at_toy_size(path, tmp_path, monkeypatch, request):
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    monkeypatch.setenv("DDPM_JAX_SMOKE", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    # A toy network is quicker run slowly than compiled well.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(request.config.cache.mkdir("jax_compilation")))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": FOLDER}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if {"image/png", "image/gif"} & set(output.get("data", {}))]
    num_pictures, text = SHOWS[path.stem]
    assert len(pictures) >= num_pictures
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert text in printed
