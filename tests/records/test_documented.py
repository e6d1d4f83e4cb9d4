"""What the README of the database says of its columns and questions."""

from __future__ import annotations

import pytest

from dataeff.records import documented
from dataeff.share import shared_folder


@pytest.fixture
def connection(database):
    with database.write():
        pass
    with database.read() as connection:
        yield connection


def test_every_column_of_every_table_and_view_has_a_meaning(connection):
    names, rows = documented.columns(connection)
    assert names == ["table or view", "column", "type", "meaning"]
    assert len(rows) > 300 and [row[:2] for row in rows if not row[3]] == []


def test_the_comment_of_a_column_is_its_meaning(connection):
    comments = "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE comment IS NOT NULL"
    for table, column, comment in connection.execute(comments).fetchall():
        assert documented.meanings()[table, column] == comment


def test_every_macro_is_in_the_readme(connection):
    text = (shared_folder("db") / "README.md").read_text(encoding="utf-8")
    for (name,) in connection.execute("SELECT DISTINCT function_name FROM duckdb_functions() WHERE NOT internal").fetchall():
        assert f"`{name}(" in text


def test_every_question_runs_on_a_database_without_runs(connection):
    assert len(documented.questions()) > 5
    for question in documented.questions():
        connection.execute(question.text).fetchall()
