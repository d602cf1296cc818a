"""`distsgd serve` beside Ray Serve and a plain FastAPI app of the same model.

    python scripts/serve_speed.py [RUN] [--rounds 3] [--requests 2000] [--batches 60]

Each server is a process of its own, with one process that answers. A client, a process too, asks
32 at a time with one image each, and then 4 at a time with batches of 256 as arrays. Rounds are
interleaved; the table has the medians over rounds. Every answer is compared with `distsgd.predict`,
to the last bit. Peers that are not installed are left out, and named:

    pip install fastapi uvicorn 'ray[serve]>=2.60,<2.61'
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

import distsgd
from distsgd.data.dataset import Dataset
from distsgd.data.locations import SAMPLE
from distsgd.engine.blas import blas_kernel

AT_ONCE, ROWS, BATCHES_AT_ONCE = 32, 256, 4

FASTAPI = """
import io, sys
import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from PIL import Image
import distsgd
from distsgd.engine.blas import keep_one_blas_thread

keep_one_blas_thread()
model = distsgd.load(sys.argv[1]).predictor()
app = FastAPI()

@app.post("/predict")
async def predict(request: Request, top: int = 3):
    body = await request.body()
    if request.headers["content-type"] == "application/x-npy":
        given = np.load(io.BytesIO(body), allow_pickle=False)
    else:
        given = Image.open(io.BytesIO(body))
    found = model.likeliest(model.probabilities(given), top)
    return {"model": model.run, "version": model.version, "weights_sha256": model.weights_sha256,
            "predictions": [{"label": c[0], "classes": c, "probabilities": p} for c, p in found]}

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", access_log=False)
"""


def installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def process(command: list[str], url: str) -> Iterator[None]:
    """A server, from when it answers."""
    with tempfile.TemporaryFile() as output:
        running = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            host, port = url.removeprefix("http://").split(":")
            until = time.monotonic() + 120
            while True:
                try:
                    socket.create_connection((host, int(port)), 1).close()
                    break
                except OSError:
                    if running.poll() is not None or time.monotonic() > until:
                        output.seek(0)
                        sys.exit(f"{command[:6]} does not answer:\n{output.read().decode()}")
                    time.sleep(0.05)
            yield
        finally:
            running.terminate()
            running.wait(60)


def png(row: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(row.reshape(3, 32, 32).transpose(1, 2, 0))).save(
        file, "PNG"
    )
    return file.getvalue()


def npy(rows: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()


async def asked(
    url: str, token: str, bodies: list[bytes], kind: str, count: int, at_once: int
) -> tuple[list[float], float, list[tuple[int, Any]]]:
    """Seconds of each request, of all, and the content of each answer by the number of its body."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
    took, found, numbers = [], [], iter(range(count))
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=at_once), headers=headers
    ) as session:

        async def one_after_another() -> None:
            for number in numbers:
                place = number % len(bodies)
                began = time.perf_counter()
                async with session.post(f"{url}/predict?top=10", data=bodies[place]) as answer:
                    content = await answer.read()
                    status = answer.status
                took.append(time.perf_counter() - began)
                found.append((place, content if status == 200 else status))

        began = time.perf_counter()
        await asyncio.gather(*(one_after_another() for _ in range(at_once)))
        return took, time.perf_counter() - began, found


def wrong(found: list[tuple[int, Any]], expected: list[Any]) -> int:
    """Answers that are errors, or that are not those of `predict`."""
    bad = 0
    for place, content in found:
        given = [] if isinstance(content, int) else json.loads(content)["predictions"]
        bad += [(one["classes"], one["probabilities"]) for one in given] != expected[place]
    return bad


def measured(url: str, token: str, pixels: np.ndarray, expected: list[Any], given: Any) -> Any:
    singles = [png(row) for row in pixels]
    batch = np.concatenate([pixels] * (-(-ROWS // len(pixels))))[:ROWS]
    whole = [(expected * (-(-ROWS // len(pixels))))[:ROWS]]
    asyncio.run(asked(url, token, singles, "image/png", 200, AT_ONCE))  # to warm up
    took, seconds, found = asyncio.run(
        asked(url, token, singles, "image/png", given.requests, AT_ONCE)
    )
    errors = wrong(found, [[one] for one in expected])
    many, batch_seconds, found = asyncio.run(
        asked(url, token, [npy(batch)], "application/x-npy", given.batches, BATCHES_AT_ONCE)
    )
    errors += wrong(found, whole)
    low, high = np.percentile(took, [50, 99]) * 1000
    batch_low, batch_high = np.percentile(many, [50, 99]) * 1000
    return (
        low, high, given.requests / seconds, batch_low, batch_high,
        given.batches * ROWS / batch_seconds, errors,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--batches", type=int, default=60)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = given.run or str(Path(folder) / "run")
        if not given.run:
            distsgd.train("sample", workers=0, epochs=2, run_dir=run)
        run = distsgd.load(run).run_dir
        pixels = np.array(next(Dataset(SAMPLE).test.batches())[0][:ROWS])
        expected = [
            ([*one.classes], [*one.probabilities]) for one in distsgd.predict(run, pixels, top=10)
        ]
        compare(run, Path(folder), pixels, expected, given)


def compare(run: str, folder: Path, pixels: np.ndarray, expected: list[Any], given: Any) -> None:
    ours = [sys.executable, "-m", "distsgd", "serve", run, "--token-file", str(folder / "token")]
    (folder / "token").write_text("token\n")
    (folder / "app.py").write_text(FASTAPI)
    servers = {f"distsgd serve (aiohttp {installed('aiohttp')})": ours}
    left_out = []
    if installed("fastapi") and installed("uvicorn"):
        name = f"FastAPI {installed('fastapi')}, uvicorn {installed('uvicorn')}"
        servers[name] = [sys.executable, str(folder / "app.py"), run]
    else:
        left_out.append("FastAPI and uvicorn")
    if installed("starlette") and installed("uvicorn"):
        name = f"distsgd serve --ray (Ray Serve {installed('ray')})"
        servers[name] = [*ours, "--ray", "--replicas", "1"]
    else:
        left_out.append("Ray Serve")
    rounds: dict[str, list[Any]] = {name: [] for name in servers}
    for _ in range(given.rounds):
        for name, command in servers.items():
            port = free_port()
            last = [str(port)] if "app.py" in command[1] else ["--port", str(port)]
            url = f"http://127.0.0.1:{port}"
            with process([*command, *last], url):
                rounds[name].append(measured(url, "token", pixels, expected, given))
                print(f"{name}: {rounds[name][-1][2]:,.0f} requests/s", file=sys.stderr)
    print(
        f"{given.requests:,} requests of one image, {AT_ONCE} at once; {given.batches} of {ROWS}, "
        f"{BATCHES_AT_ONCE} at once; medians of {given.rounds} rounds; Python "
        f"{platform.python_version()}, numpy {np.__version__}, {blas_kernel()}, "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}\n"
    )
    print("| server | p50 ms | p99 ms | images/s | batch p50 ms | p99 ms | images/s | wrong |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, found in rounds.items():
        *middle, errors = zip(*found, strict=True)
        p50, p99, rate, batch50, batch99, batch_rate = map(statistics.median, middle)
        print(
            f"| {name} | {p50:.1f} | {p99:.1f} | {rate:,.0f} | {batch50:.1f} | {batch99:.1f} | "
            f"{batch_rate:,.0f} | {sum(errors)} |"
        )
    if left_out:
        print(f"\nNot installed, so left out: {', '.join(left_out)}.")


if __name__ == "__main__":
    main()
