"""Laws for anyone's table: columns of a CSV or Parquet file, or of a query on the database, fitted group by group.

One row a group comes out, with what the fit says and what is doubtful about it. No study is needed, and nothing is recorded.
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
from dataeff.laws.fit import WARNINGS, Fit, fit
from dataeff.laws.forms import FORMS
from dataeff.laws.intervals import default_interval, interval
from dataeff.records.queries import literal, query
from dataeff.records.store import Database


@dataclass(frozen=True)
class FittedTable:
    """The rows to show, and per group its name, points and fit, for a chart."""

    columns: list[str]
    rows: list[list[Any]]
    fits: list[tuple[str, Fit]]


def fit_table(
    source: str, form: str, x: Sequence[str], y: str, groups: Sequence[str], database: Database, sd: float | None = None
) -> FittedTable:
    """Fit `form` to the columns of `source`, a file of CSV or Parquet or a SQL query on `database`, for each of its groups.

    `x`: a column for each variable of the form; `sd`: known standard deviation of one y, in its unit. Intervals are 90%.
    Rows whose y is NULL are left out, and counted. Raises `InputError` for an unknown form, the wrong number of columns, and
    when no group can be fitted; `QueryError` for a source that cannot be read or lacks a column.
    """
    if form not in FORMS:
        raise InputError(f"--form {form}: no such form; {nearest(form, FORMS)}")
    chosen = FORMS[form]
    if len(x) != len(chosen.variables):
        raise InputError(f"form {form} has the variables {', '.join(chosen.variables)}; give --x once for each, in this order")
    names = [*chosen.linear, *chosen.bounds]
    columns = [*groups, *names, "limit", "limit_low", "limit_high", "points", "left_out", "rmse", "interval", "doubts"]
    rows, fits = [], []
    for key, xs, ys in _read(source, x, y, groups, database):
        try:
            missing = {i: "y is missing" for i, value in enumerate(ys) if value is None}
            fitted = fit(chosen, xs[0] if len(x) == 1 else xs, ys, leave_out=missing)
        except InputError as error:
            rows.append([*key, *[None] * (len(columns) - len(key) - 1), str(error)])
            continue
        found = interval(fitted, sd=sd)
        method, why = default_interval(fitted.points, fitted.parameters, sd is not None)
        doubts = [WARNINGS[name] for name in fitted.warnings]
        if fitted.rising:
            doubts.append(f"y rises at x = {', '.join(f'{value:g}' for value in fitted.rising)}")
        known = fitted.limit is not None
        ends = (found.low, found.high) if known else (None, None)
        shape = [getattr(fitted.law, name) for name in names]
        facts = [fitted.limit, *ends, fitted.points, len(missing), fitted.rmse]
        rows.append([*key, *shape, *facts, f"{method}: {why}" if method else why, "; ".join(doubts) or None])
        fits.append((" ".join(map(str, key)), fitted))
    if not fits:
        raise InputError(rows[0][-1] if rows else f"{source} has no rows")
    return FittedTable(columns, rows, fits)


def law_on_a_grid(name: str, fitted: Fit) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the points of a law of one variable, and the law from half its least x to four times its greatest, as records."""
    if fitted.x.ndim > 1:
        raise InputError(f"a law of {len(fitted.x)} variables has no chart; leave --plot out")
    across = np.geomspace(fitted.x.min() / 2, fitted.x.max() * 4, 61)
    points = [{"group": name, "x": float(a), "y": float(b)} for a, b in zip(fitted.x, fitted.y, strict=True)]
    return points, [{"group": name, "x": float(a), "y": float(b)} for a, b in zip(across, fitted.law(across), strict=True)]


def _read(
    source: str, x: Sequence[str], y: str, groups: Sequence[str], database: Database
) -> list[tuple[tuple[Any, ...], list[list[Any]], list[Any]]]:
    """Return (group, x columns, y) of each group, groups in the order of their first row."""
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
        wanted = ", ".join(f'"{name}"' for name in (*groups, *x, y))
        _, rows = query(connection, f"SELECT {wanted} FROM {table}")
    found: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for row in rows:
        found.setdefault(row[: len(groups)], []).append(row[len(groups) :])
    columns = {key: [list(column) for column in zip(*of, strict=True)] for key, of in found.items()}
    return [(key, of[:-1], of[-1]) for key, of in columns.items()]
