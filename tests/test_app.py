"""The page, run by Streamlit's own test driver on real databases."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from dataeff.share import shared_folder


@pytest.fixture
def page(monkeypatch):
    def run(database) -> AppTest:
        monkeypatch.setenv("DATAEFF_DATABASE", str(database))
        return AppTest.from_file(shared_folder("app") / "answer.py", default_timeout=60).run()

    return run


def test_the_answer_page_shows_figure_table_and_doubt(page, finished):
    shown = page(finished / "dataeff.duckdb")
    assert not shown.exception and not shown.error
    assert len(shown.dataframe[0].value) == 8
    assert "Run-to-run noise" in shown.text[0].value


def test_without_a_database_the_page_says_what_to_run(page, tmp_path):
    shown = page(tmp_path / "none.duckdb")
    assert not shown.exception
    assert "dataeff run quickstart" in shown.error[0].value
