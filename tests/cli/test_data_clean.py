"""`distsgd data clean`: datasets of arrays that no run was trained on."""

from typer.testing import CliRunner

import distsgd
from distsgd.cli.app import app
from distsgd.data.importing.arrays import store_arrays
from distsgd.data.locations import imported_datasets


def test_datasets_of_arrays_that_no_run_needs_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTSGD_CACHE", str(tmp_path / "cache"))
    X, y = [[float(number), 1.0] for number in range(20)], [0, 1] * 10
    run = distsgd.train(X, y, workers=0, epochs=1, run_dir=tmp_path / "elsewhere")
    other = store_arrays(X[::-1], y)
    assert sorted(imported_datasets()) == sorted([run.dataset, other])
    runner = CliRunner()
    listed = runner.invoke(app, ["data", "list"])
    assert "distsgd data clean" in listed.output
    assert runner.invoke(app, ["data", "clean"], input="n\n").exit_code == 1
    assert len(imported_datasets()) == 2
    found = runner.invoke(app, ["data", "clean", "--yes"])
    assert found.exit_code == 0 and f"removed {other}" in found.output
    assert imported_datasets() == [run.dataset]
    distsgd.audit(run.run_dir)
