"""Every page, in a browser, on databases of every kind: no exception, no error in the console, no sideways scroll; and what
pages share: the study and the choices survive links, reloads, Back and a second tab.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import time
from pathlib import Path

import pytest

from dataeff.records.exchange import import_study
from dataeff.records.store import Database
from tests.conftest import EIGHT_RECIPES

PAGES = ("", "study", "runs", "laws", "sql?query=FROM+run")
BENCHMARK = Path(__file__).parent.parent.parent / "benchmarks" / "dashboard.py"
CELL = "laptop/joint/16384/width128"


@pytest.mark.parametrize("kind", ["a whole study", "open cells"])
def test_no_page_complains(tab, request, kind):
    finished, laptop = request.getfixturevalue("finished") / "dataeff.duckdb", request.getfixturevalue("laptop")
    database = laptop if kind == "open cells" else finished
    shown = tab(database, "dark" if kind == "open cells" else "light")
    for page in PAGES:
        shown.open(page)


@pytest.mark.parametrize("page", ["", "study?cell=laptop/regularized/16384/width64", "runs", "runs?run=e1f5", "laws", PAGES[-1]])
def test_no_page_scrolls_sideways_on_a_phone(tab, laptop, page):
    shown = tab(laptop)
    shown.page.set_viewport_size({"width": 390, "height": 844})
    shown.open(page)
    shown.page.wait_for_timeout(1000)  # until charts are drawn
    widths = "[...document.querySelectorAll('html, [data-testid=stMain]')].map(e => e.scrollWidth)"
    assert shown.page.evaluate(widths) == [390, 390]


def test_an_empty_database_says_what_to_run_and_every_page_recovers_by_itself(tab, tmp_path):
    database = tmp_path / "new.duckdb"
    tabs = [tab(database).open(page) for page in ("", "study", "sql")]
    for shown in tabs:
        assert f"dataeff run quickstart --database {database}" in shown.text and "dataeff import laptop" in shown.text
    import_study(Database(database), EIGHT_RECIPES)
    for shown, text in zip(tabs, ("With compute to spare", "81 of 92", "Query"), strict=True):
        shown.page.get_by_text(text).first.wait_for()  # no reload
        assert "study=laptop" in shown.look().page.url


@pytest.fixture(scope="module")
def two_studies(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp("two") / "two.duckdb"
    shutil.copy(finished / "dataeff.duckdb", path)
    import_study(Database(path), EIGHT_RECIPES)
    return path


def test_links_keep_the_study_and_lead_back_to_the_page_as_it_was(tab, two_studies):
    shown, here = tab(two_studies), re.compile("study=tiny.*cell=|cell=.*study=tiny")
    shown.open("study?study=tiny&recipe=regularized&cell=tiny/regularized/2048/b")
    for name in ("Laws", "Runs", "SQL", "Answer"):
        shown.page.get_by_role("link", name=name, exact=True).click()
        shown.page.wait_for_url(re.compile(r"study=tiny"))
        shown.look()
    shown.page.get_by_role("link", name="Study", exact=True).click()
    shown.page.wait_for_url(here)
    assert "regularized, D = 2,048 tokens, b" in shown.look().text
    assert "recipe=regularized" in shown.page.url


def test_back_and_reload_restore_filters_and_cell(tab, laptop):
    shown = tab(laptop).open(f"study?study=laptop&recipe=joint&cell={CELL}")
    shown.page.get_by_role("link", name="Laws", exact=True).click()
    shown.page.wait_for_url(re.compile("laws"))
    shown.look().page.go_back()
    shown.page.get_by_text("joint, D = 16,384 tokens, width128").wait_for()
    assert "recipe=joint" in shown.look().page.url
    shown.page.get_by_role("button", name="boundary").click()  # a choice, then back from it
    shown.page.wait_for_url(re.compile("state=boundary"))
    shown.look().page.go_back()
    shown.page.wait_for_url(lambda url: "state=" not in url)
    shown.look().page.reload()
    assert "joint, D = 16,384 tokens, width128" in shown.look().text


def test_two_tabs_keep_their_own_study(tab, two_studies):
    one, other = (tab(two_studies).open(f"study?study={name}") for name in ("tiny", "laptop"))
    for shown in (one, other):
        shown.page.get_by_role("link", name="Runs", exact=True).click()
        shown.page.wait_for_url(re.compile("runs"))
        shown.look()
    assert ("study=tiny" in one.page.url, "study=laptop" in other.page.url) == (True, True)
    assert "959 runs match" in other.text and "959 runs match" not in one.text


def test_a_study_that_is_not_recorded_is_said(tab, laptop):
    shown = tab(laptop).open("study?study=lap")
    assert "No study 'lap' is recorded here: this is laptop." in shown.page.inner_text("body")


@pytest.mark.slow
def test_no_page_complains_of_a_hundred_thousand_runs_and_each_is_there_soon(tab, tmp_path):
    """The second visit, with the queries cached, as of a page that is looked at while a study rests. Seconds are printed."""
    spec = importlib.util.spec_from_file_location("dashboard", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    benchmark.build(tmp_path / "large.duckdb")
    shown = tab(tmp_path / "large.duckdb")
    for page in PAGES:
        seconds = []
        for _ in range(2):
            begin = time.perf_counter()
            shown.open(page)
            seconds.append(time.perf_counter() - begin)
        print(f"{page or 'answer':<35} first {seconds[0]:.1f} s, again {seconds[1]:.1f} s")
