"""What db/README.md says of the database: what columns mean, and questions to ask in SQL.

Its shape is fixed by tests: a heading for each table and view, a row for each column or several of a view, one block of SQL
under "Questions" in which a comment line is a title.
"""

import re
from functools import cache
from typing import Any, NamedTuple

import duckdb

from dataeff.records.queries import query
from dataeff.share import shared_folder


class Question(NamedTuple):
    """A question in SQL. `chart` is what to draw of its answer, as the SQL page has it in its address; "" for none."""

    title: str
    chart: str
    text: str


def _readme() -> str:
    return (shared_folder("db") / "README.md").read_text(encoding="utf-8")


@cache
def meanings() -> dict[tuple[str, str], str]:
    """Return what a column means, by (table or view, column)."""
    meanings: dict[tuple[str, str], str] = {}
    for section in re.split(r"^##+ ", _readme(), flags=re.MULTILINE):
        name = section.split("\n", 1)[0].strip("` ")
        for columns, meaning in re.findall(r"^\| (`.+?) \| (.+) \|$", section, flags=re.MULTILINE):
            meanings |= {(name, column): meaning.replace("`", "") for column in re.findall(r"`(.+?)`", columns)}
    return meanings


@cache
def questions() -> list[Question]:
    block = re.search(r"^## Questions$.+?```sql\n(.+?)```", _readme(), flags=re.MULTILINE | re.DOTALL)
    pieces = re.findall(r"^-- (.+)\n(?:-- (.+)\n)?((?:(?!--).+\n)+)", block[1] if block else "", flags=re.MULTILINE)
    return [Question(title, chart, text.strip().removesuffix(";")) for title, chart, text in pieces]


def columns(connection: duckdb.DuckDBPyConnection) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return (columns, rows): one row a column of a table or view, views first, with its type and what it means."""
    names, rows = query(
        connection,
        """SELECT table_name AS 'table or view', column_name AS column, data_type AS type
        FROM information_schema.columns JOIN information_schema.tables USING (table_catalog, table_schema, table_name)
        WHERE table_schema = 'main' ORDER BY table_type = 'BASE TABLE', table_name, ordinal_position""",
    )
    return [*names, "meaning"], [(*row, meanings().get(row[:2], "")) for row in rows]
