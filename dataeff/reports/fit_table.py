"""Laws for any table: columns of a file, or of a query on the database, fitted group by group.

One row a group: the law, its limit with a 90% interval, and caveats. No study is needed, and nothing is recorded.
"""

import re
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from dataeff.errors import InputError, QueryError, nearest
from dataeff.laws.fit import WARNINGS, Fit, fit
from dataeff.laws.forms import FORMS
from dataeff.laws.intervals import interval
from dataeff.records.queries import literal, query
from dataeff.records.store import Database


def fit_table(
    source: str, form: str, x: Sequence[str], y: str, groups: Sequence[str], database: Database, sd: float | None = None
) -> tuple[list[str], list[list[Any]], list[tuple[str, Fit]]]:
    """Fit `form` to columns of `source`, a file of CSV, JSON or Parquet or a SQL query on `database`, for each group of rows.

    `x`: a column for each variable of the form; `sd`: known standard deviation of one y, in its unit. Rows without finite x and
    y are counted and left out. Returns columns, one row a group, and the names and fits of the groups that have one. Raises
    `InputError` for what cannot be fitted at all, `QueryError` for what cannot be read.
    """
    if form not in FORMS:
        raise InputError(f"--form {form}: no such form; {nearest(form, FORMS)}")
    if sd is not None and not sd > 0:
        raise InputError(f"--sd {sd:g}: a standard deviation is above 0; leave it out where it is not known")
    law, names, rows, fits = FORMS[form], [*FORMS[form].linear, *FORMS[form].bounds], [], []
    if len(x) != len(law.variables):
        raise InputError(f"form {form} has the variables {', '.join(law.variables)}; give --x once for each, in this order")
    columns = [*groups, *names, "limit", "limit_low", "limit_high", "points", "left_out", "rmse", "interval", "doubts"]
    for key, members in groupby(_read(source, x, y, groups, database), lambda row: row[: len(groups)]):
        given = np.array([row[len(groups) :] for row in members], dtype=np.float64)
        *xs, ys = given[np.isfinite(given).all(axis=1)].T
        counts = len(ys), len(given) - len(ys)
        try:
            fitted = fit(law, xs[0] if len(x) == 1 else xs, ys)
        except InputError as error:
            rows.append([*key, *[None] * (len(names) + 3), *counts, None, None, str(error)])
            continue
        ends, parameters = interval(fitted, sd=sd), [getattr(fitted.law, name) for name in names]
        limit = [None] * 3 if fitted.limit is None else [fitted.limit, ends.low, ends.high]
        doubts = [WARNINGS[name] for name in fitted.warnings]
        if fitted.rising:
            doubts.append(f"y rises at x = {', '.join(f'{value:g}' for value in fitted.rising)}")
        rows.append([*key, *parameters, *limit, *counts, fitted.rmse, ends.reason, "; ".join(doubts) or None])
        fits.append((" ".join(map(str, key)), fitted))
    if not fits:
        reason = rows[0][-1] if rows else f"{source} has no rows"
        raise InputError(reason + ("" if groups else "; --group COLUMN fits the rows of each of its values apart"))
    return columns, rows, fits


def points_and_laws(fits: list[tuple[str, Fit]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the points of laws of one variable, and the laws from half their least x to 4 times their greatest, as records."""
    points, laws = [], []
    for name, fitted in fits:
        if fitted.x.ndim > 1:
            raise InputError(f"a law of {len(fitted.x)} variables has no chart; leave --plot out")
        grid = np.geomspace(fitted.x.min() / 2, fitted.x.max() * 4, 61)
        for records, drawn in ((points, (fitted.x, fitted.y)), (laws, (grid, fitted.law(grid)))):
            records += [{"group": name, "x": x, "y": y} for x, y in np.transpose(drawn).tolist()]
    return points, laws


def _read(source: str, x: Sequence[str], y: str, groups: Sequence[str], database: Database) -> list[tuple[Any, ...]]:
    """Return the columns of the groups, of x and of y, sorted by group."""
    is_file = (file := Path(source)).suffix.lower() in (".csv", ".tsv", ".parquet", ".json", ".jsonl")
    if is_file and not file.is_file():
        raise QueryError(f"there is no file {file}; give a CSV or Parquet file, or a SQL query on the database")
    table = literal(source) if is_file else f"({source.rstrip(' ;')})"
    with nullcontext(duckdb.connect()) if is_file else database.read() as connection:
        types = dict(query(connection, f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {table})")[1])
        for name in (*groups, *x, y):
            if name not in types:
                raise QueryError(f"{source} has no column '{name}'; {nearest(name, types)}")
            if name not in groups and not re.match("U?(TINY|SMALL|BIG|HUGE)?INT|FLOAT|DOUBLE|DECIMAL", types[name]):
                raise QueryError(f"column '{name}' holds {types[name]}, not numbers; give another, or a query that casts it")
        chosen = ", ".join(f'"{name}"' for name in (*groups, *x, y))
        order = ", ".join(str(place + 1) for place in range(len(groups))) or "ALL"
        return query(connection, f"SELECT {chosen} FROM {table} ORDER BY {order}")[1]
