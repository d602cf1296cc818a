"""The example notebook runs from top to bottom, and shows what it promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE

import distsgd

NOTEBOOK = Path(distsgd.__file__).parent / "docs" / "notebook.ipynb"


def test_it_is_kept_without_output() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def outputs(cell: Any, kind: str) -> list[str]:
    return [output["data"][kind] for output in cell["outputs"] if kind in output.get("data", {})]


@pytest.mark.filterwarnings("ignore")
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=PATIENCE, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (live,), (result,) = outputs(code[0], "text/html"), outputs(code[1], "text/html")
    assert "<progress" in live and "<svg" in live and live.count("<tr>") == 11
    assert result.count("<svg") == 2 and result.count("<img") == 10 and "(finished)" in result
    assert any(outputs(cell, "image/png") for cell in code)
    assert (tmp_path / "home" / "runs").is_dir() and not (tmp_path / "model.npz").exists()
