"""The whole lecture on the embedded sample: numbers, words, and the page."""

import re
import shlex
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest

from distsgd.cli.app import app
from distsgd.data.importing.import_dataset import import_dataset
from distsgd.errors import StorageError, UsageError
from distsgd.lecture.drawing import formula_svg
from distsgd.lecture.page import lecture as lecture_module
from distsgd.lecture.page.findings import Options, at_least, at_most, count_at_most, exactly, near
from distsgd.lecture.page.html import LANGUAGES, lecture_page, page_path, texts, write_page
from distsgd.lecture.page.lecture import CHAPTERS, give_lecture

TIMES = ("speed", "svm_slower", "softmax_slower")
"""Numbers of how long something takes, which depend on the moment."""


@pytest.fixture(scope="session")
def whole():
    return give_lecture(Options(dataset="sample", quick=True, workers=0))


def test_every_number_is_what_it_should_be(whole):
    assert [one.key for one in whole.chapters] == list(CHAPTERS)
    failed = [
        (one.key, check)
        for one in whole.chapters
        for check in one.checks
        # How fast it is says more of what else the machine does.
        if check.passed is False and check.key not in TIMES
    ]
    assert not failed and whole.passed >= 30
    assert all(one.figures and one.checks and one.commands for one in whole.chapters)


def test_on_rows_of_ones_own(tmp_path, monkeypatch):
    """1,500 rows of four numbers, and three classes that are apart; without the long chapters."""
    monkeypatch.setenv("DISTSGD_CACHE", str(tmp_path))
    rng = np.random.default_rng(0)
    kinds = rng.integers(3, size=1_500)
    rows = rng.normal(size=(1_500, 4)) + 3 * np.eye(3, 4)[kinds]
    lines = [
        ",".join(f"{n:.3f}" for n in row) + f",kind{k}" for row, k in zip(rows, kinds, strict=True)
    ]
    (tmp_path / "mine.csv").write_text("\n".join(["a,b,c,d,label", *lines]))
    import_dataset(tmp_path / "mine.csv", "mine")
    chapters = [key for key in CHAPTERS if key not in ("local", "numerical", "why")]
    found = give_lecture(Options(dataset="mine", quick=True, workers=0), only=chapters)
    assert [one.key for one in found.chapters] == chapters
    failed = [c for one in found.chapters for c in one.checks if c.passed is False]
    assert not [check for check in failed if check.key not in TIMES]


QUICK = ("losses", "landscapes", "formulas", "chain_rule", "steps", "sizes", "samplings")
"""Chapters whose commands take a second or two. `--all-chapters` tries the others, too."""


@pytest.mark.parametrize("key", CHAPTERS)
def test_the_commands_of_a_chapter_print_its_numbers(whole, key, capsys, request):
    """All that the page shows, to the last digit; how fast it is depends on the moment."""
    if key not in QUICK and not request.config.getoption("all_chapters"):
        pytest.skip("--all-chapters runs it")
    (chapter,) = (one for one in whole.chapters if one.key == key)
    for command in chapter.commands:
        name, *words = shlex.split(command)
        assert name == "distsgd"
        assert not app(args=words, standalone_mode=False)
    printed = capsys.readouterr().out
    for check in chapter.checks:
        for number in () if check.key in TIMES else re.split(" → | / ", check.shown):
            assert number in printed, check


@pytest.mark.parametrize("dataset", ["sample", "cifar10", "my $data"])
@pytest.mark.parametrize("seed", [0, 3])
def test_commands_can_be_typed(dataset, seed):
    options = Options(dataset=dataset, workers=0, seed=seed)
    words = shlex.split(options.command("study loss --examples 5", workers=True))
    flags = ["--dataset", dataset] if dataset != "cifar10" else []
    assert words == [
        *(["distsgd", "study", "loss", "--examples", "5"]), *flags, "--workers", "0",
        *(["--seed", "3"] if seed else []),
    ]  # fmt: skip
    assert "--seed" not in options.command("study hinges", data=False, seed=False)


def test_accuracies_of_cifar10_are_not_expected_of_others(whole):
    (random,) = (one for one in whole.chapters if one.key == "random")
    assert {check.key: check.passed for check in random.checks} == {
        "attempts": True, "accuracy": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("check", "passed"),
    [
        (near("a", 1.02, 1, 0.03), True),
        (near("a", 1.04, 1, 0.03), False),
        (near("a", float("nan"), 1, 0.03), False),
        (near("a", 9.0, 1, 0.03, applies=False), None),
        (at_most("a", 1e-8, 1e-7), True),
        (at_most("a", 1e-6, 1e-7), False),
        (at_most("a", float("nan"), 1e-7), False),
        (at_least("a", 0.5, 0.5, percent=True), True),
        (at_least("a", 0.49, 0.5), False),
        (exactly("a", 30_731, 30_731), True),
        (exactly("a", 30_730, 30_731), False),
        (count_at_most("a", 0, 9), False),
        (count_at_most("a", 10, 9), False),
    ],
)
def test_a_check_passes_or_fails(check, passed):
    assert check.passed is passed


def test_a_wrong_number_fails_the_lecture(monkeypatch):
    right = CHAPTERS["chain_rule"]

    def wrong(options):
        part = right(options)
        return replace(part, checks=(at_most("differences", 1.0, 1e-8), *part.checks[1:]))

    monkeypatch.setitem(lecture_module.CHAPTERS, "chain_rule", wrong)
    found = give_lecture(Options(dataset="sample", workers=0), only=["chain_rule"])
    assert (found.passed, found.failed) == (1, 1)
    page = lecture_page(found, "en")
    assert 'class="summary fail"' in page and '<tr class="fail">' in page


def keys(table, path=()):
    for name, value in table.items():
        if isinstance(value, dict):
            yield from keys(value, (*path, name))
        else:
            yield (*path, name), len(value) if isinstance(value, list) else 0


def test_both_languages_say_the_same_things():
    assert dict(keys(texts("en"))) == dict(keys(texts("ko")))
    english, korean = (texts(language)["chapters"] for language in LANGUAGES)
    for key, chapter in english.items():
        assert chapter.get("formulas") == korean[key].get("formulas")


def test_every_word_is_used(whole):
    for key, chapter in texts("en")["chapters"].items():
        (found,) = (one for one in whole.chapters if one.key == key)
        used = {check.key for check in found.checks} | ({"bits"} if key == "two_layers" else set())
        assert set(chapter["checks"]) == used
        assert set(chapter["figures"]) == set(found.figures)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_is_whole_and_needs_nothing_else(whole, language):
    page = lecture_page(whole, language)
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(one.startswith(("#", "data:")) for one in addresses)
    assert "<script" not in page and "@import" not in page and "url(http" not in page
    assert page.count("<figure") == sum(len(one.figures) for one in whole.chapters)
    for chapter in whole.chapters:
        assert f'<section id="{chapter.key}">' in page
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names))
    balanced = Balanced()
    balanced.feed(page)
    assert not balanced.open


class Balanced(HTMLParser):
    """Elements that were opened and not closed."""

    VOID = ("meta", "link", "br", "path", "use", "stop")

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_formulas_are_pictures_that_can_be_read_out():
    svg = formula_svg(r"\dfrac{a}{b} < c")
    assert 'aria-label="\\dfrac{a}{b} &lt; c"' in svg and "<metadata" not in svg
    assert formula_svg(r"\dfrac{a}{b} < c") == svg
    with pytest.raises(ValueError, match="frac"):
        formula_svg(r"\frac{a")


def test_words_are_data_of_the_package():
    for name in ("en.toml", "ko.toml"):
        assert tomllib.loads((files("distsgd.lecture") / "text" / name).read_text("utf-8"))


def test_bad_input(tmp_path):
    with pytest.raises(UsageError, match="only cannot be dessert"):
        give_lecture(Options(dataset="sample", workers=0), only=["dessert"])
    with pytest.raises(UsageError, match="lang cannot be fr"):
        page_path(tmp_path, "fr")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        page_path(tmp_path / "file", "en")
    with pytest.raises(StorageError):
        write_page(tmp_path / "gone" / "lecture-en.html", "x")
