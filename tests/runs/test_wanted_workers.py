from pathlib import Path

from distsgd.runs.folder import RunFolder, WantedWorkers, clean_up, want_workers


def test_each_word_is_told_once(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    want_workers(run, 7)
    clean_up(run)  # of an earlier session
    wanted = WantedWorkers(run)
    assert wanted() is None
    want_workers(run, 4)
    assert wanted() == 4
    assert wanted() is None


def test_nonsense_is_passed_over(tmp_path: Path) -> None:
    wanted = WantedWorkers(RunFolder(tmp_path))
    for content in ("", "[]", "{}", '{"workers": "many"}', '{"workers": 0}'):
        (tmp_path / "workers.json").write_text(content)
        assert wanted() is None
