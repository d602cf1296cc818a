"""Print the weights and results of a fixed list of command lines, to compare states of the code.

    python scripts/same_bits.py [--quick] > before.txt
    python scripts/same_bits.py [--quick] --compare before.txt

Every case is a few `distsgd` command lines in a temporary folder with a home of its own, so that
the script knows nothing of the code but its command line. A command that trains prints the SHA-256
of its weights and its test loss; any other prints the SHA-256 of its JSON without paths and times;
the last line is a digest of all others. Bits depend on the processor and on the versions of numpy
and its BLAS, so compare on one machine. `--quick` leaves out Ray and CIFAR-10 and takes a minute
and a half on two quiet cores, the whole list four. With `--compare FILE` the lines that differ from
those of the file are printed with the JSON behind them, and the exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

INLINE = "train --dataset sample --workers 0 --epochs 3 --run-dir run"
"""Three epochs of six minibatches."""

RAY = "train --dataset sample --epochs 3 --run-dir run"
JUDGED = ("evaluate run", "audit run", "replay run")
REPLAYED = re.compile("--(consistency|compress|verify)|journal=|shard|random")
"""Options of the trainings that are audited and replayed too."""

VARIANTS = {
    "svm": "--loss svm",
    "seed": "--seed 7",
    "mlp-svm-adam": "--model mlp:20 --loss svm --optimizer adam --set regularization=0.01",
    "batch-100": "--batch-size 100 --set slot_size=30",
    "batch-full": "--batch-size full --set slot_size=128",
    "float64": "--set dtype=float64",
    "no-regularization": "--set regularization=0 --set init_scale=0.001 --set pixel_scale=32",
    "sampling-random": "--sampling random",
    "sampling-sequential": "--sampling sequential",
    "shuffle-shard": "--shuffle shard --set shuffle_window=2",
    "cache-float32": "--cache float32",
    "cache-uint8": "--cache uint8",
    "cache-none": "--set cache_budget=0",
    "asp": "--consistency asp",
    "ssp": "--consistency ssp --staleness 2",
    "backup": "--consistency backup --backup 2",
    "local": "--consistency local --local-steps 4",
    "fp16": "--compress fp16",
    "topk": "--compress topk:0.05",
    "topk-no-feedback": "--compress topk:0.05 --set error_feedback=false",
    "onebit": "--compress onebit --optimizer momentum",
    "momentum": "--optimizer momentum --set momentum=0.8",
    "nesterov": "--optimizer nesterov",
    "adagrad": "--optimizer adagrad",
    "adam": "--optimizer adam",
    "schedule-constant": "--set schedule=constant --set learning_rate=0.002",
    "schedule-step": "--set schedule=step --set step_epochs=1 --set step_factor=0.3",
    "warm-up": "--scale-lr --batch-size 512 --set warmup_epochs=1.5",
    "journal-bounded": "--set journal=bounded --set checkpoint_seconds=1e-9",
    "verify": "--verify 0.5",
}
"""Trainings in one process."""

ON_RAY = {
    "workers-1": "--workers 1",
    "workers-2": "--workers 2",
    "svm-servers-2": "--workers 2 --loss svm --servers 2",
    "mlp-tcp": "--workers 2 --model mlp:20 --channel tcp",
    "adam-ray-channel": "--workers 2 --optimizer adam --channel ray",
    "local-2": "--workers 2 --consistency local --local-steps 4 --channel shm",
    "asp-1": "--workers 1 --consistency asp",
    "ssp-1": "--workers 1 --consistency ssp --staleness 2 --servers 2",
    "backup-1": "--workers 1 --consistency backup --backup 2",
    "topk-1": "--workers 1 --compress topk:0.05",
    "onebit-1-servers-2": "--workers 1 --compress onebit --servers 2",
    "chaos": "--workers 2 --chaos kill-worker:at=5,dup-push:p=0.2,seed=3",
}

OTHERS = {
    "mlp": (f"{INLINE} --model mlp:20", *JUDGED),
    "resume-longer": (f"{INLINE} --optimizer momentum", "resume run --epochs 5", *JUDGED),
    "resume-compressed": (f"{INLINE} --compress topk:0.05", "resume run --epochs 5", "audit run"),
    "resume-local": (f"{INLINE} --consistency local --local-steps 4", "resume run --epochs 5"),
    "resume-killed": (
        "kill train --dataset sample --workers 0 --epochs 300 --run-dir run",
        "resume run",
        "evaluate run",
    ),
    "predict": (f"{INLINE} --loss svm", "predict run one.ppm two.ppm --top 5",
                "predict run one.ppm"),
    "import-csv": (
        "data import rows.csv --name rows --seed 3",
        "data info --dataset rows", "data verify --dataset rows",
        "train --dataset rows --workers 0 --epochs 4 --batch-size 16 --run-dir run",
        *JUDGED, "predict run rows.csv",
    ),
    "data-sample": ("data info --dataset sample", "data verify --dataset sample"),
    "gradcheck": ("gradcheck", "gradcheck --model mlp:10 --loss svm --parameters 200"),
    "search": (
        "search random --dataset sample --attempts 60 --workers 0",
        "search local --dataset sample --tries 60 --workers 0",
        "gradient numeric --dataset sample --examples 50 --parameters 60 --workers 0",
        "stepsize --dataset sample", "stepsize --dataset sample --loss softmax --examples 300",
    ),
    "landscape": (
        "landscape --dataset sample --workers 0 --points 7 --examples 200",
        f"{INLINE} --set keep_checkpoints=0",
        "landscape --run run --workers 0 --points 5 --examples 200",
        "landscape --dataset sample --workers 0 --points 5 --along random:1 --loss softmax",
    ),
    "study": (
        "study loss --dataset sample", "study hinges", "study convexity --dataset sample",
        "study chain-rule", "study formulas --dataset sample",
        "study copies --dataset sample --originals 50 --times 20",
        "study noise --dataset sample --sizes 16,64 --draws 20",
    ),
    "study-descent": ("study descent --dataset sample --epochs 2",),
    "study-sampling": ("study sampling --dataset sample --epochs 2",),
    "lecture": ("lecture --quick --dataset sample --workers 0 --only losses --out page",),
    "simulate": (
        "simulate --dataset sample --workers 8 --slow 1:4 --consistency ssp --epochs 3",
        "simulate --dataset sample --workers 4 --jitter lognormal:0.5 --fail 1@0.01 "
        "--rejoin 1@0.02 --epochs 3 --consistency asp",
        "simulate compare --dataset sample --workers 4 --slow 1:3 --epochs 2 "
        "--policies bsp,ssp:3,asp,backup:1,local:4",
    ),
}  # fmt: skip

LARGE = {
    "cifar10": ("train --dataset cifar10 --workers 0 --epochs 1 --run-dir run", "evaluate run"),
    "cifar10-mlp": ("train --dataset cifar10 --workers 0 --epochs 1 --model mlp:20 --run-dir run",),
    "cifar10-ray": ("train --dataset cifar10 --workers 2 --epochs 1 --run-dir run",),
    "resume-ray": (
        f"{INLINE} --optimizer adam", "resume run --epochs 5 --workers 2 --servers 2", "replay run",
    ),
    "study-ray": ("search random --dataset sample --attempts 60 --workers 2",),
}  # fmt: skip

VOLATILE = re.compile(r"second|time|duration|wall|_dir$|^(run|page|path|source|folder|created)$")
"""Keys whose values differ between two runs of the same bits."""

Line = tuple[str, str, str]  # the name, what is compared, and the JSON behind it


def cases(quick: bool) -> dict[str, tuple[str, ...]]:
    """The command lines of every case, by its name."""
    found = {"softmax": (INLINE, *JUDGED)}
    for name, options in VARIANTS.items():
        judged = JUDGED[1:] if REPLAYED.search(options) else ()
        found[name] = (f"{INLINE} {options}", *judged)
    found |= OTHERS
    if not quick:
        on_ray = {f"ray {name}": (f"{RAY} {more}", "replay run") for name, more in ON_RAY.items()}
        found |= on_ray | LARGE
    return found


def needs_ray(commands: tuple[str, ...]) -> bool:
    return any(re.search(r"--workers [12]\b", command) for command in commands[:2]) and not any(
        command.startswith("simulate") for command in commands
    )


def write_files(folder: Path) -> None:
    """Two images and a CSV file, the same every time."""
    for number, name in enumerate(("one", "two")):
        pixels = bytes((x * (3 + number) + y * 5 + 80 * c) % 256
                       for y in range(40) for x in range(48) for c in range(3))  # fmt: skip
        (folder / f"{name}.ppm").write_bytes(b"P6 48 40 255\n" + pixels)
    rows = (f"{n % 7},{n * n % 11 / 4},{'low' if n % 7 < 3 else 'high'}\n" for n in range(120))
    (folder / "rows.csv").write_text("u,v,label\n" + "".join(rows))


def without_volatile(value: Any) -> Any:
    """The JSON without times and the folders of paths."""
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    if isinstance(value, dict):
        kept = {key: one for key, one in value.items() if not VOLATILE.search(key)}
        return {key: without_volatile(one) for key, one in kept.items()}
    return [without_volatile(one) for one in value] if isinstance(value, list) else value


def run_killed(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Start a training and kill it after its first checkpoint."""
    with (folder / "killed.txt").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output
        )
        while process.poll() is None and len(list(folder.glob("run/checkpoints/*.npz"))) < 2:
            time.sleep(0.02)
        process.kill()
        process.wait()


def play(name: str, commands: tuple[str, ...]) -> list[Line]:
    """Run the command lines of a case, and return a line for each."""
    lines = []
    with tempfile.TemporaryDirectory(prefix="bits-", dir="/tmp") as place:
        folder = Path(place)
        write_files(folder)
        environment = {**os.environ, "DISTSGD_HOME": f"{place}/home", "TMPDIR": place}
        if any(command.startswith("data import") for command in commands):
            environment["DISTSGD_CACHE"] = f"{place}/cache"
        for command in commands:
            start = [sys.executable, "-m", "distsgd"]
            if command.startswith("kill "):
                run_killed([*start, *shlex.split(command)[1:]], folder, environment)
                continue
            done = subprocess.run(
                [*start, *shlex.split(command), "--json"],
                cwd=folder, env=environment, text=True, capture_output=True, timeout=600,
            )  # fmt: skip
            result, text = f"exit code {done.returncode}", done.stderr
            if not done.returncode:
                answer = json.loads(done.stdout)
                text = json.dumps(without_volatile(answer), indent=1, sort_keys=True)
                result = hashlib.sha256(text.encode()).hexdigest()
                if command.startswith(("train", "resume")):
                    result = f"{answer['weights_sha256']} {answer['test_loss']!r}"
            words = command.replace(" --dataset sample", "").split()
            lines.append((f"{name}: {' '.join(words[:2])}", result, text))
    return numbered(lines)


def numbered(lines: list[Line]) -> list[Line]:
    """Give names that occur several times a number."""
    seen: dict[str, int] = {}
    found = []
    for name, result, text in lines:
        seen[name] = seen.get(name, 0) + 1
        found.append((f"{name} {seen[name]}" if seen[name] > 1 else name, result, text))
    return found


def play_all(chosen: dict[str, tuple[str, ...]], jobs: int) -> list[Line]:
    """Play the cases without Ray several at a time, then those with Ray one by one; print lines."""
    inline = [name for name, commands in chosen.items() if not needs_ray(commands)]
    on_ray = [name for name, commands in chosen.items() if needs_ray(commands)]
    lines = []
    with ThreadPoolExecutor(jobs) as pool:
        for results in chain(
            pool.map(lambda name: play(name, chosen[name]), inline),
            (play(name, chosen[name]) for name in on_ray),
        ):
            for line in results:
                print(*line[:2], flush=True)
                lines.append(line)
    return lines


def differences(lines: list[Line], file: Path) -> list[Line]:
    """The lines that are not in the file; those of the file that were not played are ignored."""
    before = set(file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if f"{line[0]} {line[1]}" not in before]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="without Ray and CIFAR-10")
    parser.add_argument("--only", metavar="PATTERN", help="cases whose name matches this regex")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="an earlier output")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time, without Ray")
    given = parser.parse_args()
    chosen = cases(given.quick)
    if given.only:
        chosen = {name: one for name, one in chosen.items() if re.search(given.only, name)}
    lines = play_all(chosen, given.jobs)
    failed = [line for line in lines if line[1].startswith("exit code")]
    every = "\n".join(f"{name} {result}" for name, result, _ in lines)
    print(f"all {len(lines)} lines: {hashlib.sha256(every.encode()).hexdigest()}")
    different = differences(lines, given.compare) if given.compare else []
    for name, result, text in {*different, *failed}:
        print(f"\nDIFFERS: {name} {result}\n{text[:3000]}")
    if given.compare:
        print(f"{len(different)} of {len(lines)} lines differ")
    return int(bool(different or failed))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
