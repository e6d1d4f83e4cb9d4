"""The report of a study that was really run, opened without a network."""

from __future__ import annotations

import re

import pytest

from dataeff.records.queries import records
from dataeff.records.store import Database
from tests.conftest import dataeff


@pytest.fixture(scope="module")
def written(finished, tmp_path_factory):
    """The folder with report.html, and tiny.md with its charts."""
    folder, database = tmp_path_factory.mktemp("report"), finished / "dataeff.duckdb"
    for arguments in (("-o", "report.html"), ("-o", "tiny.md")):
        done = dataeff("report", "tiny", *arguments, "--database", database, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_the_page_needs_no_network_and_draws_its_charts(written, chromium):
    page, asked, complaints = chromium.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((written / "report.html").as_uri())
    page.wait_for_selector(".chart .marks")
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == [] == complaints
    text = page.inner_text("body")
    assert "Does a study of a few seconds hold together?" in text and " at 2,048 tokens" in text
    assert page.locator(".chart .marks").count() == page.locator(".chart").count() > 0
    page.close()


def test_every_number_has_its_sql_which_runs(written, finished):
    text = (written / "tiny.md").read_text()
    queries = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    assert len(queries) > 5
    with Database(finished / "dataeff.duckdb").read() as connection:
        found = [records(connection, query, ["tiny"]) for query in queries]
        (total,) = connection.execute("SELECT count(*) FROM run").fetchone()
    costs = next(rows for rows in found if rows and "device_hours" in rows[0])
    assert costs[-1]["runs"] == total
    assert f"| all, each run once | {total} |" in text


def test_the_markdown_shows_charts_that_are_there(written):
    charts = re.findall(r"!\[.*?\]\((.*?)\)", (written / "tiny.md").read_text())
    assert charts and all((written / chart).read_bytes().startswith(b"\x89PNG") for chart in charts)


def test_a_form_that_is_none_and_a_study_that_is_none_write_nothing(finished, tmp_path):
    database = finished / "dataeff.duckdb"
    for arguments, said in ((("tiny", "-o", "report.pdf"), "valid: html, md"), (("tny",), "no study 'tny'")):
        refused = dataeff("report", *arguments, "--database", database, cwd=tmp_path)
        assert refused.returncode == 2 and said in refused.stderr
    assert list(tmp_path.iterdir()) == []
