"""Laws for any table: columns of a file, or of a query on the database, fitted group by group.

One row a group: the law, its limit with a 90% interval, and caveats. No study is needed, and nothing is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from dataeff.errors import InputError, QueryError, nearest
from dataeff.laws.fit import WARNINGS, Array, Fit, fit
from dataeff.laws.forms import FORMS
from dataeff.laws.intervals import interval
from dataeff.records.queries import literal, query
from dataeff.records.store import Database


@dataclass(frozen=True)
class FittedTable:
    """One row a group; and for a chart, the name and the fit of each group that has one."""

    columns: list[str]
    rows: list[list[Any]]
    fits: list[tuple[str, Fit]]


def fit_table(
    source: str, form: str, x: Sequence[str], y: str, groups: Sequence[str], database: Database, sd: float | None = None
) -> FittedTable:
    """Fit `form` to columns of `source`, a file of CSV, JSON or Parquet or a SQL query on `database`, for each group of rows.

    `x`: a column for each variable of the form; `sd`: known standard deviation of one y, in its unit. Rows whose y is NULL are
    counted and not used. Raises `InputError` for an unknown form, the wrong number of columns, and when no group can be
    fitted; `QueryError` for a source that cannot be read or lacks a column.
    """
    if form not in FORMS:
        raise InputError(f"--form {form}: no such form; {nearest(form, FORMS)}")
    law, names = FORMS[form], [*FORMS[form].linear, *FORMS[form].bounds]
    if len(x) != len(law.variables):
        raise InputError(f"form {form} has the variables {', '.join(law.variables)}; give --x once for each, in this order")
    columns = [*groups, *names, "limit", "limit_low", "limit_high", "points", "left_out", "rmse", "interval", "doubts"]
    rows, fits = [], []
    for row in _read(source, x, y, groups, database):
        key, left_out, xs, ys = row[: len(groups)], row[len(groups)], row[len(groups) + 1 : -1], row[-1]
        try:
            fitted = fit(law, xs[0] if len(x) == 1 else xs, ys)
        except InputError as error:
            rows.append([*key, *[None] * (len(columns) - len(key) - 1), str(error)])
            continue
        ends = interval(fitted, sd=sd)
        limit = [None] * 3 if fitted.limit is None else [fitted.limit, ends.low, ends.high]
        doubts = [WARNINGS[name] for name in fitted.warnings]
        if fitted.rising:
            doubts.append(f"y rises at x = {', '.join(f'{value:g}' for value in fitted.rising)}")
        parameters = [getattr(fitted.law, name) for name in names]
        rows.append([*key, *parameters, *limit, fitted.points, left_out, fitted.rmse, ends.reason, "; ".join(doubts) or None])
        fits.append((" ".join(map(str, key)), fitted))
    if not rows:
        raise InputError(f"{source} has no rows")
    if not fits:
        raise InputError(rows[0][-1] + ("" if groups else "; --group COLUMN fits the rows of each of its values apart"))
    return FittedTable(columns, rows, fits)


def law_on_a_grid(name: str, fitted: Fit) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the points of a law of one variable, and the law from half its least x to four times its greatest, as records."""
    if fitted.x.ndim > 1:
        raise InputError(f"a law of {len(fitted.x)} variables has no chart; leave --plot out")
    grid = np.geomspace(fitted.x.min() / 2, fitted.x.max() * 4, 61)

    def records(x: Array, y: Array) -> list[dict[str, Any]]:
        return [{"group": name, "x": a, "y": b} for a, b in zip(x.tolist(), y.tolist(), strict=True)]

    return records(fitted.x, fitted.y), records(grid, fitted.law(grid))


def _read(source: str, x: Sequence[str], y: str, groups: Sequence[str], database: Database) -> list[tuple[Any, ...]]:
    """Return one row a group: its values, how many y are missing, and of the other rows a list of each x and of y."""
    file = Path(source)
    is_file = file.suffix.lower() in (".csv", ".tsv", ".parquet", ".json", ".jsonl")
    if is_file and not file.is_file():
        raise QueryError(f"there is no file {file}; give a CSV or Parquet file, or a SQL query on the database")
    table = literal(source) if is_file else f"({source.rstrip(' ;')})"
    with nullcontext(duckdb.connect()) if is_file else database.read() as connection:
        present, _ = query(connection, f"SELECT * FROM {table} LIMIT 0")
        for name in (*groups, *x, y):
            if name not in present:
                raise QueryError(f"{source} has no column '{name}'; {nearest(name, present)}")
        keys = "".join(f'"{name}", ' for name in groups)
        lists = [f'coalesce(list("{name}" ORDER BY number) FILTER ("{y}" IS NOT NULL), [])' for name in (*x, y)]
        text = f"""SELECT {keys} count(*) - count("{y}"), {", ".join(lists)}
            FROM (SELECT *, row_number() OVER () AS number FROM {table}) GROUP BY ALL HAVING count(*) > 0 ORDER BY {keys} 1"""
        return query(connection, text)[1]
