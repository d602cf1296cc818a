"""Who may see the page: the token, the cookie, and the page itself; nobody else."""

from __future__ import annotations

import pytest

from distsgd.serving.listener import HEADERS
from distsgd.watch.access import Access

ACCESS = Access()
HERE = {"Host": "127.0.0.1:8123"}
POST = {**HERE, "Origin": "http://127.0.0.1:8123", "X-Distsgd-Key": ACCESS.key}


def refusal(method="GET", headers=HERE, cookie=ACCESS.session, **more):
    return ACCESS.refusal(method, headers, cookie, **more)


def test_the_token_opens():
    assert ACCESS.opens(ACCESS.token)
    for wrong in (None, "", ACCESS.token[:-1], ACCESS.token + "a", "\udcff", Access().token):
        assert not ACCESS.opens(wrong)


@pytest.mark.parametrize("host", ["127.0.0.1:8123", "localhost:9", "LOCALHOST", "[::1]:80"])
def test_the_page_itself_is_answered(host):
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    assert refusal(headers=headers) == ""


@pytest.mark.parametrize(
    "host",
    ["evil.example:8123", "127.0.0.1.evil.example", "localhost.", "", "a@127.0.0.1", "127.0.0.1:x",
     "0.0.0.0:8123", "[::1", "2130706433"],
)  # fmt: skip
def test_other_names_of_this_machine_are_refused(host):
    assert "127.0.0.1 and localhost" in refusal(headers={"Host": host})


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1", "null", ""])
def test_other_origins_are_refused(origin):
    assert "other pages" in refusal(headers={**HERE, "Origin": origin})


def test_requests_for_other_sites_are_refused():
    for site in ("cross-site", "same-site"):
        assert "other pages" in refusal(headers={**HERE, "Sec-Fetch-Site": site})


@pytest.mark.parametrize("cookie", [None, "", "x", ACCESS.token, ACCESS.key])
def test_without_the_cookie_there_is_nothing(cookie):
    assert "distsgd watch" in refusal(cookie=cookie)


def test_a_link_needs_no_cookie_and_may_come_from_a_mail():
    assert refusal(cookie=None, link=True, headers={**HERE, "Sec-Fetch-Site": "cross-site"}) == ""
    assert refusal(cookie=None, link=True, headers={"Host": "evil.example"})


def test_doing_something_needs_the_key_and_the_origin():
    assert refusal("POST", POST) == ""
    for missing in ("X-Distsgd-Key", "Origin"):
        without = {name: value for name, value in POST.items() if name != missing}
        assert refusal("POST", without)
    assert refusal("POST", {**POST, "X-Distsgd-Key": ACCESS.session})
    assert refusal("POST", POST, cookie=None)


def test_secrets_are_long_and_differ():
    secrets = [ACCESS.token, ACCESS.session, ACCESS.key, Access().token]
    assert len(set(secrets)) == 4 and min(map(len, secrets)) >= 32


def test_pages_may_load_from_here_alone():
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
