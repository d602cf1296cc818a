"""The server: what it answers, to whom, and how soon it tells what has changed."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import time
from pathlib import Path

import pytest
from PIL import Image
from support import Run
from watching import Page, watched

from distsgd.errors import RunError, UsageError
from distsgd.runs.folder import RunFolder
from distsgd.runs.metrics import MetricsWriter, epoch_rows
from distsgd.watch.listing import Listing
from distsgd.watch.server import WatchServer

TRAIN = ("train", "--dataset", "sample", "--workers", "0", "--epochs", "2")
HOSTILE = "<img src=x onerror=alert(1)> [bold]\u202e 🐈 \x1b[31m\n&amp;"


@pytest.fixture
def run(distsgd_here: Run) -> Path:
    return Path(json.loads(distsgd_here(*TRAIN, "--json").stdout)["run_dir"])


def written(folder: Path) -> dict[str, tuple[int, int]]:
    """Times and sizes of all files below a folder."""
    found = list(folder.rglob("*"))
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


def test_without_the_link_there_is_nothing(run: Path) -> None:
    async def look(page: Page) -> None:
        paths = ["/", "/key", "/view", "/events", "/page/app.js", "/page/nothing", "/?token=wrong",
                 f"/runs/{page.server._listing.look()[0]['id']}/templates/0.png"]  # fmt: skip
        for path in paths:
            status, body, headers = await page.get(path)
            assert status == 403 and run.name.encode() not in body, path
            assert "default-src 'none'" in headers["Content-Security-Policy"]
        link = page.server.url.removeprefix(page.origin)
        assert (await page.get(link, headers={"Host": "evil.example"}))[0] == 403
        assert (await page.get("/"))[0] == 403
        status, _, headers = await page.get(link)
        assert status == 200
        cookie = headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert page.server.url.partition("token=")[2] not in cookie
        assert (await page.get("/"))[0] == 200

    watched(look, enter=False)


def test_other_pages_and_other_names_are_refused(run: Path) -> None:
    async def look(page: Page) -> None:
        for headers in (
            {"Origin": "http://evil.example"},
            {"Origin": "http://127.0.0.1:1"},
            {"Host": "evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
        ):
            assert (await page.get("/view", headers=headers))[0] == 403, headers
        name = (await page.json("/view"))["runs"][0]["id"]
        for headers in ({"X-Distsgd-Key": "x"}, {"Origin": "null"}):
            assert (await page.post(f"/runs/{name}/audit", **headers))[0] == 403
        for path in ("/page/..%2fserver.py", "/page/server.py", "/page/%2e%2e/server.py",
                     "/runs/../../etc/passwd", "/runs/ffffffffffffffff/examples.png"):  # fmt: skip
            assert (await page.get(path))[0] == 404, path
        assert (await page.get("/view?x=version"))[0] == 400
        async with page.session.put(f"{page.origin}/view") as answer:
            assert answer.status in (403, 405)

    watched(look)


def test_numbers_are_those_of_the_files(run: Path) -> None:
    rows = epoch_rows(run / "metrics.jsonl")
    before = written(run)

    async def look(page: Page) -> None:
        view = await page.json("/view?x=update")
        (shown,) = view["runs"]
        assert shown["name"] == run.name and shown["state"] == "finished"
        for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "seconds"):
            assert shown["epochs"][name] == [row[name] for row in rows]
        (loss,) = (one for one in view["curves"]["update"] if one["name"] == "loss")
        (test,) = (line for line in loss["lines"] if line["name"] == "test")
        assert test["x"] == [row["version"] for row in rows]
        assert test["y"] == [row["test_loss"] for row in rows]
        report = json.loads((run / "report.json").read_text())
        assert shown["journal"]["head"] == report["journal_head"]
        for checkpoint in shown["checkpoints"]:
            path = f"/runs/{shown['id']}/templates/{checkpoint['version']}.png"
            status, body, _ = await page.get(path)
            assert status == 200 and Image.open(io.BytesIO(body)).size == (32, 320)
        assert (await page.get(f"/runs/{shown['id']}/templates/999999.png"))[0] == 404

    watched(look)
    assert written(run) == before


def test_what_is_appended_arrives_within_a_second(run: Path) -> None:
    (run / "report.json").unlink()

    async def look(page: Page) -> None:
        async with page.following() as until:
            first = await until("view", lambda view: view["runs"])
            assert first["runs"][0]["state"] == "crashed"
            folder = RunFolder(run)
            folder.hold()
            began = time.monotonic()
            await until("view", lambda view: view["runs"][0]["state"] == "running")
            writer = MetricsWriter(run / "metrics.jsonl")
            row = epoch_rows(run / "metrics.jsonl")[-1]
            writer.write({**row, "kind": "epoch", "epoch": 3, "test_loss": 0.125})
            appended = time.monotonic()
            view = await until("view", lambda view: len(view["runs"][0]["epochs"]["epoch"]) == 3)
            assert view["runs"][0]["epochs"]["test_loss"][-1] == 0.125
            await until("runs", lambda runs: runs["rows"][0]["state"] == "running")
            assert time.monotonic() - appended < 5  # 1 s on a quiet machine; see the browser's test
            folder.release()
            await until("view", lambda view: view["runs"][0]["state"] == "crashed")
            assert time.monotonic() - began < 30

    watched(look)


def test_the_latest_run_is_followed_to_newer_ones(run: Path, distsgd_here: Run) -> None:
    async def look(page: Page) -> None:
        async with page.following("?runs=latest&x=seconds") as until:
            await until("view", lambda view: view["runs"][0]["name"] == run.name)
            await asyncio.to_thread(distsgd_here, *TRAIN, "--run-dir", run.parent / "zz")
            await until("view", lambda view: view["runs"][0]["name"] == "zz")
            rows = (await until("runs", lambda runs: len(runs["rows"]) == 2))["rows"]
            assert [row["name"] for row in rows] == ["zz", run.name]

    watched(look)


def test_several_runs_and_what_differs(run: Path, distsgd_here: Run) -> None:
    for seed, rate in ((1, "0.005"), (2, "0.005")):
        distsgd_here(*TRAIN, "--seed", seed, "--learning-rate", rate)

    async def look(page: Page) -> None:
        async with page.following() as until:
            rows = (await until("runs", lambda runs: len(runs["rows"]) == 3))["rows"]
        names = ",".join(row["id"] for row in rows)
        assert {row["about"] for row in rows if "learning_rate 0.005" in row["about"]}
        view = await page.json(f"/view?runs={names}")
        assert {"seed", "learning_rate"} <= set(view["differing"]["settings"])
        (loss,) = (one for one in view["curves"]["epoch"] if one["name"] == "loss")
        groups = {line["run"]: bool(line["low"]) for line in loss["lines"]}
        assert len(groups) == 2 and sorted(groups.values()) == [False, True]

    watched(look)


def test_hostile_names_are_data(run: Path) -> None:
    folder = run.parent / HOSTILE.replace("/", "")
    Path(run).rename(folder)

    async def look(page: Page) -> None:
        view = await page.json("/view")
        assert view["runs"][0]["name"] == folder.name
        _, body, headers = await page.get("/view")
        assert headers["Content-Type"].startswith("application/json")
        status, body = await page.post(f"/runs/{view['runs'][0]['id']}/audit")
        found = json.loads(body)
        assert status == 200 and found["code"] == 0 and found["result"]["holds"] is True

    watched(look)


def test_a_broken_run_says_why(run: Path) -> None:
    shutil.copytree(run, run.parent / "broken")
    (run.parent / "broken" / "config.json").write_text("{}")
    (run / "journal.jsonl").write_text("x\n")

    async def look(page: Page) -> None:
        rows = {row["name"]: row["id"] for row in page.server._listing.look()}
        view = await page.json(f"/view?runs={rows['broken']}")
        assert "checksum" in view["runs"][0]["problem"]
        status, body = await page.post(f"/runs/{rows[run.name]}/audit")
        found = json.loads(body)
        assert status == 200 and found["code"] == 1 and "error:" in found["said"]

    watched(look)


def test_places(run: Path, tmp_path: Path) -> None:
    assert Listing(run.name).start == Listing(str(run)).start is not None
    assert Listing(str(run.parent)).start is None
    assert len(Listing(str(run.parent)).look()) == 1
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(run, elsewhere)
    assert len(Listing(str(elsewhere)).look()) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no runs"):
        Listing(str(tmp_path / "empty"))
    with pytest.raises(RunError, match="there is no run"):
        Listing("nothing")


def test_links_to_removed_runs_stay(run: Path, tmp_path: Path) -> None:
    link = run.parent / "gone"
    link.symlink_to(tmp_path / "nothing")
    assert len(Listing("latest").look()) == 1
    assert link.is_symlink()


def test_a_port_that_is_taken() -> None:
    first = WatchServer(Listing("latest"))
    with pytest.raises(UsageError, match="cannot be used"):
        WatchServer(Listing("latest"), first.port)
    first._socket.close()


def test_no_runs_yet() -> None:
    async def look(page: Page) -> None:
        assert (await page.json("/view"))["runs"] == []

    watched(look)
