"""A run folder from somebody else: it touches nothing around it, and has nothing sent anywhere."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import Run

from distsgd.config.settings import TrainConfig
from distsgd.data.dataset import Dataset, open_dataset
from distsgd.data.find import find_dataset
from distsgd.data.locations import REMOTE_SOURCE, SAMPLE
from distsgd.data.remote import fetching
from distsgd.data.remote.addresses import check_known, parse_uri, remember
from distsgd.errors import SourceError
from distsgd.runs.folder import RunFolder, create_run
from distsgd.training import train

COMMANDS = ("resume", "runs show", "evaluate", "audit", "replay", "landscape --run")


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("good") / "run"
    train("sample", workers=0, epochs=1, run_dir=run)
    return run


@pytest.fixture
def run(a_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(a_run, tmp_path / "run")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Files that are not the run's, as what links of the run lead to."""
    folder = tmp_path / "outside"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "file").write_bytes(b'{"precious": 1}\na last line without an end')
    for name in ("step-000000000.npz", "step-000000099.npz", ".x.tmp"):
        (folder / "checkpoints" / name).write_bytes(b"precious")
    return folder


def content(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def a_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / ("checkpoints" if path.name == "checkpoints" else "file"))


def a_link_to_nothing(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "new")


def a_hard_link(path: Path, outside: Path) -> None:
    path.hardlink_to(outside / "file")


def a_pipe(path: Path, outside: Path) -> None:
    os.mkfifo(path)


USED_BY = {
    "metrics.jsonl": ("resume", "runs show"),
    "journal.jsonl": ("resume", "audit"),
    ".running": ("resume", "runs list"),
    "config.json": ("resume", "runs list"),
    "report.json": ("resume",),
    "kernels.json": ("resume",),
    "workers.json": ("resume",),
    "checkpoints": ("resume", "evaluate"),
    "checkpoints/step-000000006.npz": ("resume", "evaluate"),
    f".report.json.{os.getpid()}.tmp": ("resume",),
}
"""File of a run -> commands that meet it first."""

APPENDED = ("metrics.jsonl", "journal.jsonl", ".running")
CASES = [
    *((file, kind) for file in USED_BY for kind in (a_link, a_pipe)),
    *((file, kind) for file in APPENDED for kind in (a_link_to_nothing, a_hard_link)),
]


@pytest.mark.parametrize(("file", "kind"), CASES)
def test_a_link_or_pipe_in_a_run_leads_nowhere(
    run: Path, outside: Path, file: str, kind: Callable[[Path, Path], None], distsgd_here: Run
) -> None:
    if (run / file).is_dir():
        shutil.rmtree(run / file)
    (run / file).unlink(missing_ok=True)
    kind(run / file, outside)
    before = content(outside)
    for command in USED_BY[file]:
        words = command.split() + ([] if command == "runs list" else [run])
        done = distsgd_here(*words, *(["--epochs", 2] if command == "resume" else []))
        assert content(outside) == before
        assert done.returncode in (0, 1)
        if done.returncode:
            assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("file", ["metrics.jsonl", "journal.jsonl", ".running", "config.json"])
def test_what_is_refused_is_named(run: Path, outside: Path, file: str, distsgd_here: Run) -> None:
    (run / file).unlink(missing_ok=True)
    (run / file).symlink_to(outside / "file")
    done = distsgd_here("resume", run, "--epochs", 2)
    assert done.returncode == 1
    assert f"{run / file}: it is a symbolic link, not a file" in done.stderr


def test_a_run_may_be_reached_by_a_link(run: Path, tmp_path: Path, distsgd_here: Run) -> None:
    (tmp_path / "data").symlink_to(tmp_path, target_is_directory=True)
    run.chmod(0o777)
    done = distsgd_here("resume", tmp_path / "data" / "run", "--epochs", 2, "--workers", 0)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("every user may write to") == 1


def test_runs_are_listed_among_thousands_of_odd_entries(
    private_home: Path, distsgd_here: Run
) -> None:
    create_run(None, TrainConfig(), {}).release()
    home = private_home / "runs"
    for number in range(1000):
        os.mkfifo(home / f"pipe{number}")
        (home / f"loop{number}").symlink_to(f"loop{number}")
        (home / f"folder{number}").mkdir()
    (home / "odd").mkdir()
    os.mkfifo(home / "odd" / "config.json")
    done = distsgd_here("runs", "list", "--json")
    assert done.returncode == 0 and done.stdout.count('"run_dir"') == 1


# --- addresses


@pytest.fixture
def stranger() -> Iterator[tuple[str, Callable[[], int]]]:
    """The address of a listening socket, and how many connections have come to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        def connections() -> int:
            count = 0
            while True:
                try:
                    listener.accept()[0].close()
                except BlockingIOError:
                    return count
                count += 1

        yield f"127.0.0.1:{listener.getsockname()[1]}", connections


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    monkeypatch.setattr(fetching, "PAUSES", ())


def set_dataset(run: Path, name: str, folder: Path) -> None:
    """Let a run have been trained on another dataset, in a whole and valid file."""
    opened = RunFolder(run)
    config = opened.read("config.json")
    config["settings"]["dataset"], config["dataset"]["folder"] = name, str(folder)
    opened.write("config.json", config)


URIS = (
    "s3://bucket/set?endpoint_override={host}&scheme=http",
    "http://{host}/set",
    "gs://bucket/set?endpoint_override={host}&scheme=http&anonymous=true",
)


@pytest.mark.parametrize(
    ("command", "uri"), [*((c, URIS[0]) for c in COMMANDS), *(("evaluate", u) for u in URIS[1:])]
)
def test_the_settings_of_a_run_have_nothing_sent(
    run: Path,
    stranger: tuple[str, Callable[[], int]],
    command: str,
    uri: str,
    distsgd_here: Run,
    private_home: Path,
) -> None:
    host, connections = stranger
    set_dataset(run, uri.format(host=host), Path("/nowhere"))
    done = distsgd_here(*command.split(), run)
    assert connections() == 0
    if command != "runs show":
        assert done.returncode == 1
        assert host in done.stderr and "nothing was sent there" in done.stderr
        assert "distsgd data info --dataset" in done.stderr
    assert not (private_home / "addresses").exists()


def test_nor_do_they_by_way_of_a_settings_file(
    run: Path, stranger: tuple[str, Callable[[], int]], distsgd_here: Run
) -> None:
    host, connections = stranger
    set_dataset(run, f"http://{host}/set", SAMPLE)
    for command in (["train"], ["train", "--batch-size", "full"], ["submit"]):
        done = distsgd_here(*command, "--config", run / "config.json")
        assert done.returncode == 1 and "nothing was sent there" in done.stderr
    assert connections() == 0


def test_nor_does_a_dataset_that_says_where_it_lies(
    run: Path, tmp_path: Path, stranger: tuple[str, Callable[[], int]], distsgd_here: Run
) -> None:
    """Only in the cache does such a file count, and only for an address that is known."""
    host, connections = stranger
    folder = tmp_path / "set"
    folder.mkdir()
    shutil.copy(SAMPLE / "manifest.json", folder)
    (folder / REMOTE_SOURCE).write_text(f'{{"uri": "http://{host}/set"}}')
    set_dataset(run, str(folder), folder)
    done = distsgd_here("evaluate", run)
    assert done.returncode == 1 and "is missing" in done.stderr
    cached = tmp_path / "cache" / "remote" / "set"
    shutil.copytree(folder, cached)
    set_dataset(run, str(folder), cached)
    done = distsgd_here("evaluate", run, env={"DISTSGD_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 1 and "nothing was sent there" in done.stderr
    assert connections() == 0


def test_an_address_is_known_once_it_was_given(
    stranger: tuple[str, Callable[[], int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, connections = stranger
    uri = parse_uri(f"s3://bucket/set?endpoint_override={host}&scheme=http")
    with pytest.raises(SourceError, match="nothing was sent there"):
        find_dataset(uri.text, trusted=False)
    remember(uri)
    remember(uri)
    check_known(uri)
    assert (tmp_path / "home" / "addresses").read_text().count("\n") == 1
    assert (tmp_path / "home" / "addresses").stat().st_mode & 0o777 == 0o600
    for other in (
        "s3://other/set?endpoint_override={host}&scheme=http",
        "s3://bucket/set?endpoint_override={host}1&scheme=http",
        "s3://bucket/set?endpoint_override={host}&scheme=https",
        "s3://bucket/set",
        "http://{host}/set",
        "http://{host}%0Ahttp:/set",
    ):
        with pytest.raises(SourceError):
            check_known(parse_uri(other.format(host=host)))
    check_known(parse_uri(f"s3://bucket/another?scheme=http&endpoint_override={host}"))
    assert connections() == 0


def test_a_job_names_no_address_for_a_dataset_that_is_here(sample: Dataset) -> None:
    """Where it is not, a worker asks what the job names."""
    from distsgd.config.jobs import make_job

    config = TrainConfig(dataset="http://example.org/set")
    assert make_job(config, sample).dataset == ""
    assert make_job(TrainConfig(dataset="sample"), sample).dataset == "sample"


def test_a_worker_fetches_into_the_cache_of_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same machine, whatever its own cache is; elsewhere into its own."""
    from distsgd.config.jobs import make_job
    from distsgd.engine.worker import dataset_of

    monkeypatch.setenv("DISTSGD_CACHE", str(tmp_path / "drivers"))
    uri = f"file://{SAMPLE}"
    driver = open_dataset(uri)
    job = make_job(TrainConfig(dataset=uri), driver)
    monkeypatch.setenv("DISTSGD_CACHE", str(tmp_path / "own"))
    here = dataset_of(job)
    assert here.remote and here.folder == driver.folder and not (tmp_path / "own").exists()
    shutil.rmtree(tmp_path / "drivers")
    here = dataset_of(job)
    assert here.remote and here.folder.is_relative_to(tmp_path / "own")
    assert len(here.test) == len(Dataset(SAMPLE).test)
