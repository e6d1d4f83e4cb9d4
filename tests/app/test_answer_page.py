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
    assert "were worth 2.9x the data" in tab(laptop, "dark").open("?study=laptop").text


def test_page_and_chart_are_dark_where_the_browser_asks_for_it(tab, laptop):
    shades = {}
    for scheme in ("light", "dark"):
        page = tab(laptop, scheme).open("?study=laptop").page
        page.wait_for_selector("[data-testid=stVegaLiteChart] svg.marks")
        drawn = [
            page.evaluate(f"getComputedStyle(document.querySelector('{part}')).backgroundColor")
            for part in ("[data-testid=stApp]", "[data-testid=stVegaLiteChart] svg.marks")
        ]
        shades[scheme] = [int(colour.split("(")[1].split(",")[0]) for colour in drawn]
    assert min(shades["light"]) > 240 and max(shades["dark"]) < 40, shades
