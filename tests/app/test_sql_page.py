"""The SQL page, in a browser; and its chart."""

from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal
from urllib.parse import quote

import pyarrow
import pytest

from dataeff.reports.charts import chart_bytes
from dataeff.reports.quick_chart import quick_chart
from dataeff.reports.theme import themed


def run(shown, text: str):
    shown.page.get_by_role("textbox", name="Query").fill(text)
    shown.page.get_by_test_id("stBaseButton-primaryFormSubmit").click()
    shown.page.wait_for_function("text => new URL(location).searchParams.get('query') === text", arg=text)
    return shown.look()


def test_a_question_is_answered_with_rows_and_its_chart_and_a_link_repeats_it(tab, laptop):
    shown = tab(laptop).open("sql")
    shown.page.get_by_role("button", name="Loss against epochs", exact=True).click()
    shown.page.wait_for_selector("[data-testid=stVegaLiteChart]")
    address = shown.look().page.url
    assert "rows, asked at" in shown.text and shown.charts == 1 and "colour=recipe" in address
    with shown.page.expect_download() as got:
        shown.page.get_by_role("button", name="CSV", exact=True).click()
    assert got.value.path().read_text().startswith("recipe,epochs,val_loss,runs,diverged\n")
    again = tab(laptop, "dark").open(address.removeprefix(shown.address + "/"))
    assert again.charts == 1 and "min(val_loss)" in again.page.get_by_role("textbox", name="Query").input_value()


def test_an_attack_is_refused_and_the_next_query_is_answered(tab, laptop):
    shown = tab(laptop).open("sql?query=" + quote("FROM read_text('/etc/passwd')"))
    assert "the query was refused, as it may reach no files" in shown.text and "root:" not in shown.text
    assert "give one SELECT" in run(shown, "DROP TABLE run").text
    assert "1 rows, asked at" in run(shown, "SELECT count(*) AS runs FROM run").text
    shown.page.get_by_role("button", name="History (3)").click()
    assert "DROP TABLE run" in shown.page.locator("[data-testid=stPopoverBody]").inner_text()


def test_a_chart_gives_recipes_their_colours_and_leaves_out_what_no_axis_holds():
    table = pyarrow.table({
        "a.b": [1, 10, 0, None, 7], "loss": [4.0, 3.0, 2.0, 1.0, math.inf],
        "recipe": ["distilled", "standard", "standard", "standard", "standard"],
    })  # fmt: skip
    chart = quick_chart(table, ["a.b", "loss", "recipe"], "both", "x", ["standard", "regularized", "distilled"])
    encoding = chart["encoding"]
    assert encoding["color"]["scale"]["domain"] == ["standard", "regularized", "distilled"]
    assert (encoding["x"]["type"], encoding["x"]["title"], encoding["x"]["scale"]["type"]) == ("quantitative", "a.b", "log")
    assert [(row["x"], row["y"]) for row in chart["data"]["values"]] == [(1, 4), (10, 3)]


@pytest.mark.parametrize("column", [
    pyarrow.array([datetime.date(2026, 1, 2)]), pyarrow.array([Decimal("1.5")]), pyarrow.array([[1, 2]]), pyarrow.array(["x"]),
    pyarrow.array([datetime.datetime(2026, 1, 2)]), pyarrow.array([True]),
])  # fmt: skip
def test_every_kind_of_column_is_drawn(column):
    chart = quick_chart(pyarrow.table({"x": column, "y": [1.0]}), ["x", "y"], "points", "", [])
    assert len(json.loads(json.dumps(chart))["data"]["values"]) == 1
    assert chart_bytes(themed(chart), "svg").count(b"aria-roledescription=\"point\"") == 1
