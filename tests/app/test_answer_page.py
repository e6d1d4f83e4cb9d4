"""The Answer page, in a browser."""

from __future__ import annotations


def test_the_answer_page_shows_figure_table_and_doubt(tab, finished):
    shown = tab(finished / "dataeff.duckdb").open()
    assert shown.charts == 1
    assert "Run-to-run noise" in shown.text
    assert shown.page.locator("[data-testid=stDataFrame]").count() == 1


def test_without_a_database_the_page_says_what_to_run(tab, empty):
    assert "dataeff run quickstart" in tab(empty).open().text


def test_the_study_in_the_url_is_the_one_shown(tab, laptop):
    assert "At D = 32,768 seed tokens, standard reaches" in tab(laptop, "dark").open("?study=laptop").text
