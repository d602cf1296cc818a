"""Bad input: one clear line, the right exit code, no traceback, nothing overwritten."""

from __future__ import annotations

import errno
import importlib
import json
import os
import py_compile
import re
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
from support import PATIENCE, Run, command_line, image_format

from distsgd.cli.main import _report
from distsgd.data.locations import SAMPLE
from distsgd.errors import ResourceError, UsageError, resource_error, system_error
from distsgd.transport.framing import Shape
from distsgd.transport.shared_memory import SharedMemory

TRAIN = ("train", "--dataset", "sample", "--workers", "0", "--epochs", "1")


@pytest.fixture
def distsgd(distsgd_here: Run) -> Run:
    return distsgd_here


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert "bug in distsgd" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line
    assert done.stdout == "" or "{" not in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch-size", "0"), ("--batch-size", "1 or more")),
        (("--batch-size", "1501"), ("--batch-size 1501", "1500")),
        (("--epochs", "0"), ("--epochs",)),
        (("--workers", "-1"), ("--workers",)),
        (("--seed", "-1"), ("--seed",)),
        (("--loss", "hinge"), ("--loss", "softmax, svm")),
        (("--model", "mlp:0"), ("--model cannot be mlp:0", "linear, or mlp:HIDDEN")),
        (("--model", "resnet"), ("--model cannot be resnet", "mlp:100")),
        (("--set", "model=mlp:x"), ("--set model cannot be mlp:x", "mlp:100")),
        (("--sampling", "sorted"), ("--sampling", "shuffle, random, sequential")),
        (("--set", "learning_rate=nan"), ("learning_rate", "nan")),
        (("--set", "learning_rate=inf"), ("learning_rate",)),
        (("--set", "learning_rate=0"), ("learning_rate", "above 0")),
        (("--set", "learning_rate=fast"), ("learning_rate", "a number")),
        (("--set", "momentum=1"), ("momentum",)),
        (("--set", "learn_rate=0.1"), ("learn_rate", "Did you mean --set learning_rate=0.1?")),
        (("--set", "seed"), ("--set seed", "name=value")),
        (("--set", "epochs=3"), ("epochs", "given twice")),
        (("--set", "slot_size=1.5"), ("slot_size", "whole number")),
        (("--config", "missing.toml"), ("--config", "missing.toml")),
        (("--chaos", "delay:p=1:for=1s,burn"), ("--chaos: 'burn'", "There are: kill-worker")),
        (("--chaos", "kill-server:at=9"), ("--chaos: 'kill-server:at=9'", "--workers 0")),
    ],
)
def test_settings_that_cannot_be_used(
    distsgd: Run, private_home: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    given = [*TRAIN, *options] if options[0] != "--epochs" else [*TRAIN[:-2], *options]
    assert_refused(distsgd(*given), 2, *words)
    assert not private_home.exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("epochs = ", "not valid"),
        ("epoch = 3", "Did you mean epochs = 3"),
        ("epochs = true", "true"),
    ],
)
def test_config_files_that_cannot_be_used(
    distsgd: Run, tmp_path: Path, content: str, word: str
) -> None:
    (tmp_path / "bad.toml").write_text(content)
    done = distsgd("train", "--dataset", "sample", "--workers", 0, "--config", "bad.toml")
    assert done.returncode == 2
    assert word.lower() in done.stderr.lower()


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "null"), ("config.json", "[]"), ("config.json", '{"settings": 1}'),
        ("config.json", '{"epochs": 1}'), ("config.json", DEEP), ("config.json", "1" * 5000),
        ("deep.toml", "epochs = " + DEEP), ("bytes.toml", "\udcff"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("flag", ["--config", "--scenario"])
def test_files_that_are_no_settings(
    distsgd: Run, tmp_path: Path, name: str, content: str, flag: str
) -> None:
    (tmp_path / name).write_bytes(os.fsencode(content))
    command = ("train", "--workers", 0) if flag == "--config" else ("simulate",)
    assert_refused(distsgd(*command, flag, tmp_path / name), 2, flag, "is not valid")


def test_unknown_flags_are_usage_errors(distsgd: Run) -> None:
    done = distsgd("train", "--learn", "1")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A copy of the sample, to be broken."""
    return Path(shutil.copytree(SAMPLE, tmp_path / "broken"))


def train_on(distsgd: Run, folder: Path) -> subprocess.CompletedProcess[str]:
    return distsgd("train", "--dataset", folder, "--workers", 0, "--epochs", 1)


def test_no_dataset_there(distsgd: Run, tmp_path: Path) -> None:
    assert_refused(train_on(distsgd, tmp_path / "nothing"), 1, "no dataset at", "nothing")


def test_dataset_not_fetched_yet(distsgd: Run, tmp_path: Path) -> None:
    done = distsgd("train", "--workers", 0, env={"DISTSGD_CACHE": str(tmp_path / "cache")})
    assert_refused(done, 1, "distsgd data fetch")


def test_flipped_byte_in_a_shard(distsgd: Run, broken: Path, private_home: Path) -> None:
    shard = broken / "train-00001-of-00002.arrow"
    content = bytearray(shard.read_bytes())
    content[1_000_000] ^= 1
    shard.write_bytes(content)
    assert_refused(train_on(distsgd, broken), 1, "corrupt", shard.name)
    assert_refused(distsgd("data", "verify", "--dataset", broken), 1, "corrupt", shard.name)
    assert not private_home.exists()


def test_truncated_and_missing_shards(distsgd: Run, broken: Path) -> None:
    shard = broken / "train-00000-of-00002.arrow"
    os.truncate(shard, 1000)
    assert_refused(train_on(distsgd, broken), 1, shard.name)
    shard.unlink()
    assert_refused(train_on(distsgd, broken), 1, "missing", shard.name)


def test_wrong_schema(distsgd: Run, broken: Path) -> None:
    import pyarrow as pa

    from distsgd.data.verified import checksum

    shard = broken / "test-00000-of-00001.arrow"
    table = pa.table({"pixels": list(range(400))})
    with pa.OSFile(str(shard), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    rewrite_manifest(broken, lambda content: content["test"][0].update(
        sha256=checksum(shard), size=shard.stat().st_size))  # fmt: skip
    assert_refused(train_on(distsgd, broken), 1, "schema", shard.name)


def rewrite_manifest(folder: Path, change: object) -> None:
    """Change the manifest and give it a fitting checksum again."""
    from distsgd.data import manifest

    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    del content["digest"]
    change(content)  # type: ignore[operator]
    path.write_text(json.dumps({**content, "digest": manifest._digest(content)}))


@pytest.mark.parametrize("classes", [[], ["one"], None, [str(i) for i in range(10_001)]])
def test_unknown_class_count(distsgd: Run, broken: Path, classes: object) -> None:
    rewrite_manifest(broken, lambda content: content.update(classes=classes))
    assert_refused(train_on(distsgd, broken), 1, "manifest.json")


def test_too_few_classes_for_the_labels(distsgd: Run, broken: Path) -> None:
    rewrite_manifest(broken, lambda content: content.update(classes=["a", "b"]))
    assert train_on(distsgd, broken).returncode == 1


def test_diverging_loss(distsgd: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = distsgd("train", "--dataset", "sample", "--workers", 0, "--loss", "svm",
                   "--set", "learning_rate=1e30", "--run-dir", folder, "--json")  # fmt: skip
    assert_refused(done, 1, "diverged", "learning_rate")
    assert json.loads((folder / "report.json").read_text())["status"] == "diverged"
    assert (folder / "checkpoints" / "step-000000000.npz").exists()


def test_existing_run_folder_is_left_alone(distsgd: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.txt").write_text("all my work")
    assert_refused(distsgd(*TRAIN, "--run-dir", folder), 1, "exists already", "--run-dir")
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    assert (folder / "thesis.txt").read_text() == "all my work"


@pytest.mark.parametrize("place", ["/proc/nothing/run", "file/run"])
def test_run_folder_that_cannot_be_made(distsgd: Run, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(distsgd(*TRAIN, "--run-dir", place), 1, "cannot write")


def test_read_only_run_folder(distsgd: Run, tmp_path: Path) -> None:
    """A folder without write permission; root writes there all the same, so drop it."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.access(closed, os.W_OK):
        pytest.skip("this user may write everywhere")
    assert_refused(distsgd(*TRAIN, "--run-dir", closed / "run"), 1, "cannot write")


def test_full_disk(tmp_path: Path) -> None:
    """No file may grow beyond 100 kB: too little for a checkpoint."""
    done = subprocess.run(
        command_line(*TRAIN, "--run-dir", tmp_path / "run"),
        capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert_refused(done, 1, "cannot write", "checkpoints")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_full_disk_for_real(distsgd: Run, tmp_path: Path) -> None:
    """A file system of 300 kB: room for one checkpoint, which stays whole."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    try:
        assert_refused(distsgd(*TRAIN, "--run-dir", small / "run"), 1, "cannot write", "space")
        kept = [path.name for path in (small / "run" / "checkpoints").iterdir()]
        assert kept == ["step-000000000.npz"]
        assert distsgd("evaluate", small / "run").returncode == 0
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_evaluate_and_predict(distsgd: Run, tmp_path: Path) -> None:
    assert_refused(distsgd("evaluate", "nowhere"), 1, "no run", "runs list")
    assert_refused(distsgd("evaluate", "latest"), 1, "no runs yet")
    assert distsgd(*TRAIN, "--run-dir", "run").returncode == 0
    assert_refused(distsgd("predict", "run", "missing.png", "--strict"), 2, "missing.png")
    (tmp_path / "text.png").write_text("not an image")
    assert_refused(distsgd("predict", "run", "text.png", "--strict"), 2, "text.png")
    assert_refused(distsgd("evaluate", "run", "--split", "all"), 2, "--split")
    (checkpoint,) = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1:]
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    assert_refused(distsgd("evaluate", "run"), 1, "damaged", checkpoint.name)


def test_sources_of_data(distsgd: Run, tmp_path: Path) -> None:
    env = {"DISTSGD_CACHE": str(tmp_path / "cache")}
    (tmp_path / "archive.tar.gz").write_bytes(b"\x1f\x8b\x08\x00truncated")
    for source, word in (("missing.tar.gz", "no file"), ("archive.tar.gz", "archive.tar.gz")):
        done = distsgd("data", "fetch", "--source", source, env=env)
        assert_refused(done, 1, word)
    assert not (tmp_path / "cache" / "datasets" / "cifar10").exists()


def test_debug_shows_the_traceback(distsgd: Run) -> None:
    assert "Traceback" in distsgd("--debug", "evaluate", "nowhere").stderr
    assert "Traceback" in distsgd("evaluate", "nowhere", "--debug").stderr


@pytest.mark.parametrize("lam", ["--parameters", "--examples"])
def test_gradcheck_of_nothing(distsgd: Run, lam: str) -> None:
    assert_refused(distsgd("gradcheck", lam, "0"), 2, lam)


def _wrapped(cause: Exception) -> Exception:
    error = ImportError("numpy could not be imported")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (MemoryError(), "too little memory"),
        (MemoryError("Unable to allocate 1 TiB"), "Unable to allocate 1 TiB"),
        (RuntimeError("can't start new thread"), "no more threads"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "too little memory"),
        (OSError(errno.EMFILE, "Too many open files", "x"), "ulimit -n"),
        (ImportError("libarrow.so: failed to map segment from shared object"), "too little memory"),
        (_wrapped(OSError(errno.EMFILE, "Too many open files")), "ulimit -n"),
    ],
)
def test_what_the_machine_lacks(
    error: Exception, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(resource_error(error), ResourceError)
    assert _report(error, []) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert word in line


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "cannot write to the disk: no space"),
        (OSError(errno.EIO, "Input/output error", b"/dev/x"), "cannot use /dev/x: input/output"),
        (OSError(errno.EACCES, "Permission denied", "/a"), "cannot use /a: .* may read it"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "a connection has"),
        (OSError(errno.ENOSYS, "Function not implemented"), "has refused something: function not"),
        (OSError(), "the system has refused something: oserror"),
        (OSError(errno.EINVAL, "Invalid argument", 5), "has refused something: invalid argument"),
    ],
)
def test_an_error_of_the_system_is_said_as_far_as_it_is_known(
    error: OSError, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """None is said to be of a file that was written, if it may be anything."""
    assert _report(error, []) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(f"^error: .*{says}", line) and "cannot write a file" not in line


def test_an_error_of_the_system_names_the_module_that_met_it(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:  # of a descriptor that is none
        SharedMemory(10**6, Shape(1, "float32", 1, 1, 1))
    said = str(system_error(caught.value, tmp_path))
    assert "refused something in distsgd.transport.shared_memory" in said
    inside = OSError(errno.EACCES, "Permission denied", str(tmp_path / "x"))
    assert "cannot write" in str(system_error(inside, tmp_path))
    assert "cannot use" in str(system_error(inside, tmp_path / "other"))


def test_a_compiled_module_that_is_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a full disk leaves them."""
    (tmp_path / "cut.py").write_text("x = 1\n")
    compiled = Path(py_compile.compile(str(tmp_path / "cut.py")) or "")
    os.truncate(compiled, compiled.stat().st_size - 5)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EOFError) as caught:
        importlib.import_module("cut")
    assert _report(caught.value, []) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: a compiled module") and "__pycache__" in line


def test_other_errors_are_not_of_the_machine() -> None:
    assert resource_error(ValueError("x")) is None
    assert resource_error(UsageError("x")) is None
    assert resource_error(OSError(errno.ENOSPC, "No space left on device")) is None


@pytest.mark.parametrize("command", [("audit",), ("study", "hinges"), ("data", "info")])
def test_too_little_memory_for_the_packages(tmp_path: Path, command: tuple[str, ...]) -> None:
    """With 256 MiB, OpenBLAS and Arrow end the process in the middle of their import."""
    done = subprocess.run(
        command_line(*command),
        capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path, stdin=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28)),
    )  # fmt: skip
    assert_refused(done, 1, "256 MiB of memory", "ulimit -v")


def test_a_backend_that_matplotlib_does_not_know(tmp_path: Path) -> None:
    done = subprocess.run(
        command_line("study", "hinges", "--plot", tmp_path / "figure.png"),
        env={**os.environ, "MPLBACKEND": "nonsense"},
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert image_format(tmp_path / "figure.png") == "PNG"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train --lr 0.1", "--learning-rate LEARNING_RATE"),
        ("train --momentum 0.9", "--set momentum=MOMENTUM"),
        ("train --num-workers 3", "--workers WORKERS"),
        ("simulate --bs 3", "--batch-size BATCH_SIZE"),
        ("simulate compare --wd 1 --policies bsp", "--regularization REGULARIZATION"),
        ("train --channel foo", "error: --channel cannot be foo"),
        ("train --shuffle foo", "error: --shuffle cannot be foo"),
        ("train --cache foo", "error: --cache cannot be foo"),
        ("train --cache-size -1", "error: --cache-size cannot be -1"),
        ("train --set channel=foo", "error: --set channel cannot be foo"),
        ("simulate --set sampling=foo", "error: --set sampling cannot be foo"),
        ("submit -- --channel foo", "error: --channel cannot be foo"),
        ("submit -- --set lr=1", "Did you mean --set learning_rate=1?"),
    ],
)
def test_settings_are_named_as_they_were_typed(
    line: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from distsgd.cli.main import main

    monkeypatch.setattr("sys.argv", ["distsgd", *line.split()])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("pipe.csv", ("data", "import", "PATH", "--name", "x")),
        ("pipe.parquet", ("data", "import", "PATH", "--name", "x")),
        ("pipe.npz", ("data", "import", "PATH", "--name", "x")),
        ("pipe", ("data", "fetch", "--force", "--source", "PATH")),
        ("pipe.toml", ("train", "--workers", "0", "--config", "PATH")),
        ("pipe.toml", ("simulate", "--scenario", "PATH")),
        ("pipe.png", ("predict", "run", "PATH")),
    ],
)
def test_a_pipe_is_no_file(
    distsgd: Run, tmp_path: Path, name: str, command: tuple[str, ...]
) -> None:
    """Nobody writes into it: the command would wait for ever."""
    if command[0] == "predict":
        assert distsgd(*TRAIN, "--run-dir", tmp_path / "run").returncode == 0
    os.mkfifo(tmp_path / name)
    words = [str(tmp_path / name) if word == "PATH" else word for word in command]
    done = distsgd(*words, env={"DISTSGD_CACHE": str(tmp_path / "cache")})
    assert_refused(done, done.returncode, name, "not a file")
