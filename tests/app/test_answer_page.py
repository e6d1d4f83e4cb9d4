"""The Answer page, in a browser."""

from __future__ import annotations

import shutil

from dataeff.records.exchange import import_study
from dataeff.records.store import Database
from dataeff.reports.answer import study_answer
from tests.conftest import EIGHT_RECIPES

WIDE = "[class*=st-key-wide-] svg.marks"


def middle(shown, selector: str, text: str) -> tuple[float, float]:
    """Return where on the screen the first element that has the text is."""
    element = shown.page.locator(selector).filter(has_text=text).first
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_the_answer_is_one_sentence_then_what_was_trained_figures_limits_and_caveats(tab, laptop):
    shown = tab(laptop).open("?study=laptop")
    with Database(laptop).read() as connection:
        answer = study_answer(connection, "laptop")
    parts = [answer["sentence"], "Loss against size", "Data efficiency", "Limits, all extrapolated", answer["caveats"][0]]
    places = [shown.text.index(part) for part in parts]
    assert places == sorted(places)
    assert shown.page.locator("[data-testid=stDataFrame]").count() == 2
    assert shown.page.locator(WIDE).count() == 2


def test_a_click_on_the_legend_isolates_a_recipe_and_one_on_a_dot_opens_its_cell(tab, laptop):
    shown = tab(laptop).open("?study=laptop")
    shown.page.locator(WIDE).first.wait_for()
    faint = f"{WIDE} path[aria-roledescription=point][opacity^='0.0']"
    assert shown.page.locator(faint).count() == 0
    shown.page.mouse.click(*middle(shown, f"{WIDE} text", "regularized"))
    shown.page.locator(faint).first.wait_for(state="attached")
    label = "[aria-label*='recipe: regularized; size: width64'][aria-label*='seed_tokens: 16,384']"
    dot = shown.page.locator(f"{WIDE} path[aria-roledescription=point]{label}").first
    assert "run_id" in dot.get_attribute("aria-label") and "weight_decay" in dot.get_attribute("aria-label")
    dot.scroll_into_view_if_needed()
    box = dot.bounding_box()
    shown.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    shown.page.wait_for_url("**/study?study=laptop&cell=laptop/regularized/16384/width64")


def test_another_study_is_shown_below_for_comparison(tab, finished, tmp_path):
    path = tmp_path / "two.duckdb"
    shutil.copy(finished / "dataeff.duckdb", path)
    import_study(Database(path), EIGHT_RECIPES)
    text = tab(path).open("?study=laptop&compare=tiny").text
    assert text.index("With compute to spare") < text.index("Does a study of a few seconds") < text.index("Caveats")


def test_page_and_chart_are_dark_where_the_browser_asks_for_it(tab, laptop):
    shades = {}
    for scheme in ("light", "dark"):
        page = tab(laptop, scheme).open("?study=laptop").page
        page.wait_for_selector(WIDE)
        drawn = [
            page.evaluate(f"getComputedStyle(document.querySelector('{part}')).backgroundColor")
            for part in ("[data-testid=stApp]", "[data-testid=stVegaLiteChart] svg.marks")
        ]
        shades[scheme] = [int(colour.split("(")[1].split(",")[0]) for colour in drawn]
    assert min(shades["light"]) > 240 and max(shades["dark"]) < 40, shades


def test_on_a_phone_panels_stand_below_each_other_within_the_page(tab, laptop):
    shown = tab(laptop)
    shown.page.set_viewport_size({"width": 390, "height": 844})
    page = shown.open("?study=laptop").page
    page.wait_for_selector("[class*=st-key-narrow-] svg.marks")
    assert not page.locator(WIDE).first.is_visible()
    widths = page.locator("[class*=st-key-narrow-] svg.marks").evaluate_all("charts => charts.map(chart => chart.clientWidth)")
    assert max(widths) <= 358
