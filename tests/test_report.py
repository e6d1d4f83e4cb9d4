"""The report of a study that was really run, opened without a network."""

from __future__ import annotations

import re

import pytest

from dataeff.records.queries import records
from dataeff.records.store import Database
from dataeff.reports.answer import study_answer
from dataeff.reports.export import write_report
from tests.conftest import dataeff

AUTHORS = ["A. Author", "B. <Author>"]


@pytest.fixture(scope="module")
def written(finished, tmp_path_factory):
    """The folder with report.html, and tiny.md with its charts."""
    folder = tmp_path_factory.mktemp("report")
    with Database(finished / "dataeff.duckdb").read() as connection:
        write_report(connection, "tiny", folder / "report.html", AUTHORS)
        write_report(connection, "tiny", folder / "tiny.md", AUTHORS)
    return folder


@pytest.fixture
def page(written, chromium):
    page = chromium.new_page()
    page.goto((written / "report.html").as_uri())
    page.wait_for_selector(".chart .marks")
    yield page
    page.close()


def test_the_command_writes_a_report(finished, tmp_path):
    done = dataeff("report", "tiny", "-o", "r.html", "--database", finished / "dataeff.duckdb", cwd=tmp_path)
    assert done.returncode == 0 and "Figure 1" in (tmp_path / "r.html").read_text(), done.stderr


def test_the_page_needs_no_network_and_draws_its_charts(written, chromium):
    page, asked, complaints = chromium.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((written / "report.html").as_uri())
    page.wait_for_selector(".chart .marks")
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == [] == complaints
    assert page.locator(".chart .marks").count() == page.locator(".chart").count() > 1
    page.close()


def test_it_begins_with_authors_and_the_answer_and_numbers_its_figures_and_tables(page, finished):
    text = page.inner_text("body")
    with Database(finished / "dataeff.duckdb").read() as connection:
        sentence = study_answer(connection, "tiny")["sentence"]
    parts = ["Does a study of a few seconds hold together?", ", ".join(AUTHORS), sentence, "Table 1.", "Figure 1.", "Methods"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    for kind, selector in (("Figure", ".chart"), ("Table", "table")):
        numbers = [int(number) for number in re.findall(rf"^{kind} (\d+)\.", text, re.MULTILINE)]
        assert numbers == list(range(1, page.locator(selector).count() + 1))


def test_in_print_details_are_open_and_there_is_no_menu(page):
    page.emulate_media(media="print")
    assert page.locator(".vega-embed details").first.is_hidden()
    assert page.locator("pre", has_text="FROM recipe_summary").first.is_visible()


def test_on_a_phone_the_page_does_not_scroll_sideways(written, chromium):
    page = chromium.new_page(viewport={"width": 390, "height": 844})
    page.goto((written / "report.html").as_uri())
    page.wait_for_selector(".chart .marks")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.close()


def test_every_number_has_its_sql_which_runs(written, finished):
    text = (written / "tiny.md").read_text()
    queries = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    assert len(queries) > 3
    with Database(finished / "dataeff.duckdb").read() as connection:
        found = [records(connection, query, ["tiny"]) for query in queries]
        (total,) = connection.execute("SELECT count(*) FROM run").fetchone()
    costs = next(rows for rows in found if rows and "device_hours" in rows[0])
    assert costs[-1]["runs"] == total
    assert f"| all, each run once | {total} |" in text


def test_the_markdown_is_short_and_shows_charts_that_are_there(written):
    text = (written / "tiny.md").read_text()
    charts = re.findall(r"!\[Figure \d\]\((.*?)\)", text)
    assert charts and all((written / chart).read_bytes().startswith(b"\x89PNG") for chart in charts)
    assert "```" not in text.partition("## Appendix")[0] and len(text.partition("## Appendix")[0].split()) < 1300


def test_a_form_that_is_none_and_a_study_that_is_none_write_nothing(finished, tmp_path):
    database = finished / "dataeff.duckdb"
    for arguments, said in ((("tiny", "-o", "report.pdf"), "valid: html, md"), (("tny",), "no study 'tny'")):
        refused = dataeff("report", *arguments, "--database", database, cwd=tmp_path)
        assert refused.returncode == 2 and said in refused.stderr
    assert list(tmp_path.iterdir()) == []
