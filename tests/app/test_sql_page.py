"""The SQL page, in a browser."""

from __future__ import annotations

from urllib.parse import quote


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


def test_without_a_database_the_page_says_what_to_run(tab, empty):
    assert "dataeff run quickstart" in tab(empty).open("sql").text
