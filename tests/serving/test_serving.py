"""Predictions over HTTP: the answers are those of `predict`, and what is wrong is said clearly."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from PIL import Image
from serving_client import TOKEN, Client, npy, png, served

import distsgd
import distsgd.serving.application
import distsgd.serving.server
from distsgd.data.dataset import Dataset
from distsgd.data.importing.import_dataset import import_dataset
from distsgd.runs.checkpoint import checkpoint_path

RUN_NAME = "a run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / RUN_NAME
    distsgd.train(dataset="sample", workers=0, epochs=2, run_dir=folder)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the columns u and v."""
    folder = tmp_path_factory.mktemp("table")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTSGD_CACHE", str(folder / "cache"))
        lines = [f"{n % 7},{(n * 5) % 11 / 4},{'hi' if n % 7 > 3 else 'lo'}" for n in range(200)]
        (folder / "t.csv").write_text("\n".join(["u,v,label", *lines]))
        import_dataset(folder / "t.csv", "t")
        distsgd.train(dataset="t", workers=0, epochs=2, batch_size=16, run_dir=folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def pixels(sample: Dataset) -> np.ndarray:
    return np.array(next(sample.test.batches())[0][:40])


def as_said(found: list[distsgd.Prediction]) -> list[dict[str, Any]]:
    """Predictions as an answer has them."""
    return [
        {"label": one.label, "classes": list(one.classes), "probabilities": [*one.probabilities]}
        for one in found
    ]


def test_images_of_every_kind_are_answered_as_by_predict(run: Path, pixels: np.ndarray) -> None:
    expected = as_said(distsgd.predict(run, pixels, top=10))
    files = [png(row) for row in pixels]
    model = distsgd.load(run).predictor()

    async def look(client: Client) -> None:
        assert await client.predictions(files[0], "image/png") == expected[:1]
        assert await client.predictions(files[1], "application/octet-stream") == expected[1:2]
        form = aiohttp.FormData()
        form.add_field("about", "no file")
        for number, file in enumerate(files):
            form.add_field("file", file, filename=f"{number}.png")
        assert await client.predictions(form, "") == expected
        texts = [base64.b64encode(file).decode() for file in files]
        body = json.dumps({"images": texts, "top": 10})
        assert await client.predictions(body, "application/json", "") == expected
        assert await client.predictions(npy(pixels), "application/x-npy") == expected
        body = json.dumps({"rows": pixels.tolist(), "top": 10})
        assert await client.predictions(body, "application/json", "") == expected
        body = json.dumps({"rows": pixels[3].tolist(), "top": 10})
        assert (
            await client.predictions(body, "application/json; charset=utf-8", "") == expected[3:4]
        )
        (one,) = await client.predictions(files[0], "image/png", "")
        assert one["classes"] == expected[0]["classes"][:3]
        _, content, _ = await client.ask("/predict", files[0], "image/png")
        assert content["model"] == RUN_NAME and content["version"] == 12
        assert content["weights_sha256"] == model.weights_sha256

    served(look, run)


def test_rows_of_columns_by_order_and_by_name(table: Path) -> None:
    rows = [[1, 0.25], [6, 2.5], [3.5, 1]]
    expected = as_said(distsgd.predict(table, np.array(rows), top=2))

    async def look(client: Client) -> None:
        for content in (
            {"rows": rows},
            {"rows": [row[::-1] for row in rows], "columns": ["v", "u"]},
            {"rows": [{"v": v, "u": u, "more": 1} for u, v in rows]},
        ):
            body = json.dumps({**content, "top": 2})
            assert await client.predictions(body, "application/json", "") == expected
        status, content, _ = await client.ask("/predict", b"\x89PNG", "image/png")
        assert status == 422 and "rows of numbers, not images" in content["error"]
        _, model, _ = await client.ask("/model")
        assert (model["columns"], model["shape"], model["width"]) == (["u", "v"], [2], 2)
        for rows_, says in (
            ([{"u": 1}], "row 1 has no v"),
            ([{"u": 1, "v": 2}, {"u": 1, "v": "x"}], "row 2, column 'v' is no number"),
            ([{"u": 1, "v": 2}, [1, 2]], "row 2 has no names"),
        ):
            status, content, _ = await client.ask("/predict", json.dumps({"rows": rows_}), JSON)
            assert status == 422 and says in content["error"], content

    served(look, table)


def bomb() -> bytes:
    file = io.BytesIO()
    Image.new("L", (3000, 2000)).save(file, "PNG")
    return file.getvalue()


JSON, PNG = "application/json", "image/png"
REFUSED = [
    ("not JSON", b"{", JSON, 400, "is not JSON"),
    ("no object", b"[1]", JSON, 400, "no object"),
    ("deep JSON", b"[" * 100_000, JSON, 400, "JSON"),
    ("not UTF-8", b"\xff\xfe\xfd", JSON, 400, "is not JSON"),
    ("nothing", b"{}", JSON, 422, "either rows or images"),
    ("another name", b'{"row": [1]}', JSON, 422, "'row', which is not known"),
    ("no rows", b'{"rows": []}', JSON, 422, "empty"),
    ("ragged", b'{"rows": [[1, 2], [1]]}', JSON, 422, "row 2 is not as long"),
    ("a word", b'{"rows": [[1, "a"]]}', JSON, 422, 'column 2 is no number: "a"'),
    ("nothing there", b'{"rows": [[1, null]]}', JSON, 422, "column 2 is no number: null"),
    ("too narrow", b'{"rows": [[1, 2]]}', JSON, 422, r"Give shape (rows, 3072)"),
    ("too large", b'{"rows": [[1' + b"0" * 400 + b"]]}", JSON, 422, "too large"),
    ("not finite", b'{"rows": [' + json.dumps([float("nan")] * 3072).encode() + b"]}", JSON, 422,
     "not finite"),
    ("no pixels", b'{"rows": [' + json.dumps([0.5] * 3072).encode() + b"]}", JSON, 422,
     "not pixels"),
    ("no names", b'{"rows": [{"u": 1}]}', JSON, 422, "no names"),
    ("too many", json.dumps({"rows": [[1]] * 51}).encode(), JSON, 413, "51 rows are more than 50"),
    ("Base64", b'{"images": ["%"]}', JSON, 422, "image 1 is not in Base64"),
    ("top", b'{"rows": [1], "top": 0}', JSON, 422, ""),
    ("broken image", b"\x89PNG\r\n\x1a\n broken", PNG, 422, "not a readable image"),
    ("half an image", png(np.zeros(3072, np.uint8))[:-40], PNG, 422, "not a readable image"),
    ("no image", b"", PNG, 422, "not a readable image"),
    ("a bomb", bomb(), PNG, 422, "6,000,000 pixels, more than 5,000,000"),
    ("a form without an end", b"--x\r\n\r\n", "multipart/form-data; boundary=x", 400, "incomplete"),
    ("a form without a file", b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--",
     "multipart/form-data; boundary=x", 422, "no file"),
    ("no array", b"\x93NUMPY", "application/x-npy", 400, "not an array"),
    ("an array of objects", npy(np.array([None], dtype=object)), "application/x-npy", 400,
     "no array of numbers"),
    ("an array that lies", npy(np.zeros((2, 3072)))[:-8], "application/x-npy", 400, "not an array"),
    ("another kind", b"a", "text/plain", 415, "text/plain is not known"),
    ("too long", b"\0" * 400_001, PNG, 413, "larger than 400,000 bytes"),
]  # fmt: skip


def test_what_cannot_be_answered_is_refused_clearly(run: Path, pixels: np.ndarray) -> None:
    async def look(client: Client) -> None:
        for name, body, kind, expected, says in REFUSED:
            status, content, headers = await client.ask("/predict", body, kind)
            assert status == expected and says in f"{content['error']}. {content['hint']}", (
                name, content,
            )  # fmt: skip
            assert content["model"] == RUN_NAME and headers["Server"] == "distsgd"
        for top in ("0", "x", "-1", "%F0%9F%98%80", "9" * 99):
            assert (await client.ask(f"/predict?top={top}", png(pixels[0]), PNG))[0] == 422
        status, content, _ = await client.ask("/nothing")
        assert (status, content["error"]) == (404, "there is nothing at /nothing")
        status, _, headers = await client.ask("/predict")
        assert status == 405 and "POST" in headers["Allow"]
        status, content, _ = await client.ask(
            "/predict", b"x", JSON, **{"Content-Encoding": "gzip"}
        )
        assert status == 415 and "compressed" in content["error"]
        assert await client.predictions(png(pixels[0]), PNG)

    served(look, run, rows=50, pixels=5_000_000, body=400_000)


def test_nothing_is_answered_without_the_token(run: Path) -> None:
    async def look(client: Client) -> None:
        for given in ("", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x"):
            for path in ("/model", "/metrics", "/openapi.json", "/nothing"):
                status, content, headers = await client.ask(path, Authorization=given)
                assert status == 401 and headers["WWW-Authenticate"] == "Bearer"
                assert RUN_NAME not in json.dumps(content)
            assert (await client.ask("/predict", b"x", PNG, Authorization=given))[0] == 401
        for path in ("/", "/docs", "/page/app.js", "/page/docs.js", "/page/style.css", "/health"):
            status, content, headers = await client.ask(path, Authorization="")
            assert status == 200 and RUN_NAME not in str(content)
        assert "default-src 'none'" in (await client.ask("/"))[2]["Content-Security-Policy"]

    served(look, run)


def test_slow_senders_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distsgd.serving.server, "_LINGER", 0.1)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    body = "Content-Type: image/png\r\nContent-Length: 100\r\n\r\nsome of it"

    async def look(client: Client) -> None:
        for content in (head, head + body):
            said = await client.said(content.encode())
            assert said.startswith(b"HTTP/1.1 408 ") and b"did not arrive within 0.1 s" in said
        assert await client.said(b"") == b""  # nothing was asked, and nothing is answered
        assert b"400 Bad Request" in await client.said(b"nonsense\r\n\r\n")
        assert (await client.ask("/ready"))[0] == 200

    served(look, run, seconds=0.1)


def test_a_large_body_is_refused_before_it_has_come(run: Path) -> None:
    async def endless() -> Any:
        for _ in range(1000):
            yield b"\0" * 100_000

    async def look(client: Client) -> None:
        status, content, _ = await client.ask("/predict", endless(), PNG)
        assert status == 413 and "larger than 1,000,000 bytes" in content["error"]
        status, _, _ = await client.ask("/predict", b"\0" * 1_000_001, PNG, Expect="100-continue")
        assert status == 413

    served(look, run, body=1_000_000)


def test_connections_are_limited(run: Path) -> None:
    async def look(client: Client) -> None:
        open_ = [await asyncio.open_connection("127.0.0.1", client.port) for _ in range(3)]
        said = await client.said(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 503 ") and b"3 connections are open" in said
        for _, writer in open_:
            writer.close()
            await writer.wait_closed()
        while client.application.metrics._gauges["connections"]._value.get():
            await asyncio.sleep(0)
        assert (await client.ask("/ready"))[0] == 200

    served(look, run, connections=3)


def test_requests_of_one_time_are_computed_together(run: Path, pixels: np.ndarray) -> None:
    expected = as_said(distsgd.predict(run, pixels, top=10))

    async def look(client: Client) -> None:
        asked = [client.predictions(png(row), PNG) for row in pixels]
        found = await asyncio.gather(*asked)
        assert [one for (one,) in found] == expected
        text = (await client.ask("/metrics"))[1].decode()
        counted = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        assert float(counted["distsgd_serve_rows_total"]) == 40
        assert float(counted["distsgd_serve_batch_rows_count"]) < 40
        assert float(counted['distsgd_serve_requests_total{path="/predict",status="200"}']) == 40

    served(look, run, delay=0.05)


def test_too_much_that_waits_is_refused(run: Path, pixels: np.ndarray) -> None:
    async def look(client: Client) -> None:
        asked = [client.ask("/predict", npy(pixels), "application/x-npy") for _ in range(8)]
        found = await asyncio.gather(*asked)
        assert {status for status, _, _ in found} == {200, 503}
        assert all("waiting" in said["error"] for status, said, _ in found if status == 503)
        assert (await client.ask("/predict", npy(pixels), "application/x-npy"))[0] == 200

    served(look, run, waiting=79, delay=0.05)


def test_a_better_checkpoint_replaces_the_model_without_a_failed_request(
    run: Path, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distsgd.serving.application, "_POLL", 0.01)
    copy = tmp_path / RUN_NAME
    shutil.copytree(run, copy)
    later = checkpoint_path(copy / "checkpoints", 12)
    later.rename(tmp_path / "later")
    expected = {
        version: as_said([*distsgd.predict(run, pixels[:1], top=10)])
        if version == 12
        else as_said([*distsgd.predict(copy, pixels[:1], top=10)])
        for version in (6, 12)
    }
    assert expected[6] != expected[12]

    async def look(client: Client) -> None:
        seen: dict[int, int] = {}
        hashes = set()

        async def ask_again_and_again() -> None:
            while seen.get(12, 0) < 20:
                status, content, _ = await client.ask("/predict?top=10", png(pixels[0]), PNG)
                assert status == 200 and content["predictions"] == expected[content["version"]]
                seen[content["version"]] = seen.get(content["version"], 0) + 1
                hashes.add((content["version"], content["weights_sha256"]))

        asking = [asyncio.create_task(ask_again_and_again()) for _ in range(4)]
        while seen.get(6, 0) < 20:
            await asyncio.sleep(0)
        later.write_bytes(b"damaged")
        live = client.application._live
        while not live.failed:
            await asyncio.sleep(0)
        assert live.current.version == 6
        (tmp_path / "later").rename(later)
        await asyncio.gather(*asking)
        assert live.replaced == 1 and len(hashes) == 2
        assert "distsgd_serve_reloads 1.0" in (await client.ask("/metrics"))[1].decode()

    served(look, copy)


def test_open_requests_are_answered_at_the_end(run: Path, pixels: np.ndarray) -> None:
    body = png(pixels[0])
    head = (
        f"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()

    async def look(client: Client) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(head + body[:50])
        while not client.application._batches._open:
            await asyncio.sleep(0)
        client.stop.set()
        while not client.application._stopping:
            await asyncio.sleep(0)
        writer.write(body[50:])
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        writer.close()
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.ask("/ready")

    served(look, run)


def test_the_description_is_that_of_the_answers(run: Path, table: Path, pixels: np.ndarray) -> None:
    jsonschema = pytest.importorskip("jsonschema")

    def check(body: dict[str, Any]) -> Any:
        async def look(client: Client) -> None:
            _, api, _ = await client.ask("/openapi.json")
            assert api["openapi"].startswith("3.1") and api["info"]["title"].startswith("Predict")
            kinds = {"components": api["components"]}

            def fits(content: Any, name: str) -> None:
                schema = {**kinds, "$ref": f"#/components/schemas/{name}"}
                jsonschema.Draft202012Validator(schema).validate(content)

            fits(body, "Rows")
            _, content, _ = await client.ask("/predict", json.dumps(body), JSON)
            fits(content, "Predictions")
            fits((await client.ask("/model"))[1], "Model")
            fits((await client.ask("/ready"))[1], "Status")
            fits((await client.ask("/predict", b"", JSON))[1], "Error")
            for path, methods in api["paths"].items():
                for method in methods:
                    status, _, _ = await client.ask(path, method=method.upper())
                    assert status not in (404, 405), path

        return look

    served(check({"rows": pixels[:2].tolist(), "top": 2}), run)
    served(check({"rows": [{"u": 1, "v": 2}]}), table)
