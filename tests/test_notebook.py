"""The notebook, executed from top to bottom on the zoo with short settings."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_quickstart_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("RLHF_MIN_SHORT", "1")
    monkeypatch.setenv("RLHF_MIN_OUT", str(tmp_path))
    notebook = nbformat.read(ROOT / "notebooks" / "quickstart.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()
    printed = "".join(
        o.get("text", "") for o in notebook.cells[-4].outputs + notebook.cells[-3].outputs
    )
    assert "policy-1" in printed and "after" in printed
    assert (tmp_path / "policy-1" / "report.html").exists()
