"""``distsgd lecture``: what it writes, prints and refuses."""

import json
import os

import pytest


@pytest.fixture
def distsgd(distsgd_here):
    return distsgd_here


def test_a_page_and_json(distsgd, tmp_path):
    done = distsgd(
        "lecture", "--quick", "--dataset", "sample", "--workers", "0", "--only", "chain_rule",
        "--only", "losses", "--lang", "ko", "--out", "pages/ko", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["failed"] == 0 and [one["key"] for one in found["chapters"]] == [
        "losses", "chain_rule",
    ]  # fmt: skip
    page = tmp_path / "pages" / "ko" / "lecture-ko.html"
    assert '<html lang="ko">' in page.read_text("utf-8")
    umask = os.umask(0)
    os.umask(umask)
    assert page.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_table(distsgd):
    done = distsgd("lecture", "--dataset", "sample", "--workers", "0", "--only", "chain_rule")
    assert done.returncode == 0 and "2 of 2" in done.stdout


def test_bad_input_is_refused(distsgd, tmp_path):
    (tmp_path / "taken").write_text("")
    for arguments, code, says in (
        (("--lang", "fr"), 2, "--lang cannot be fr"),
        (("--only", "dessert"), 2, "--only cannot be dessert"),
        (("--dataset", "nowhere"), 1, "nowhere"),
        (("--out", "taken"), 1, "taken"),
    ):
        done = distsgd("lecture", "--workers", "0", "--dataset", "sample", *arguments)
        assert done.returncode == code and says in done.stderr and not done.stdout
