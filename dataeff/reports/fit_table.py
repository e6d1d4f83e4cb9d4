"""Laws for any table: columns of a file, or of a query on the database, fitted group by group.

One row a group: the law, its limit with a 90% interval, and caveats. No study is needed, and nothing is recorded.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from dataeff.errors import InputError, QueryError, nearest
from dataeff.laws.chain import birge_scale
from dataeff.laws.fit import LOSSES, WARNINGS, Fit, fit
from dataeff.laws.forms import FORMS, Form, hold
from dataeff.laws.intervals import Interval, interval
from dataeff.records.queries import literal, query
from dataeff.records.store import Database

MEMBERS = ("x counts 1, 2, 3, ...: losses of members of one ensemble share their noise, and then this interval is too narrow; "
           "the view ensemble_asymptote has the jackknife over members")  # fmt: skip
NO_LOWER_END = "no lower end: a limit of 0 cannot be excluded"
WIDENED = "residuals are {:.1f} times the given sd, and the interval is widened by that"


@dataclass(frozen=True)
class Law:
    """What is fitted: a name of `FORMS`, the loss that the fit makes least, and parameters that are held."""

    form: str = "power"
    loss: str = "least_squares"
    constants: Mapping[str, float] = field(default_factory=dict)

    def held_form(self) -> type[Form]:
        """Raises `InputError`, which names the option."""
        if self.form not in FORMS:
            raise InputError(f"--form {self.form}: no such form; {nearest(self.form, FORMS)}")
        if self.loss not in LOSSES:
            raise InputError(f"--loss {self.loss}: no such loss; {nearest(self.loss, LOSSES)}")
        try:
            return hold(FORMS[self.form], self.constants)
        except InputError as error:
            raise InputError(f"--fix: {error}") from error


def fit_table(
    source: str, law: Law, x: Sequence[str], y: str, groups: Sequence[str], database: Database, sd: str | None = None
) -> tuple[list[str], list[list[Any]], list[tuple[str, Fit]]]:
    """Fit a law to columns of `source`, a file of CSV, JSON or Parquet or a SQL query on `database`, for each group of rows.

    `x`: a column for each variable of the form; `sd`: known standard deviation of y, in its unit: a number, or a column; rows
    count by 1 / sd^2. Rows without finite numbers are counted and left out. Returns columns, one row a group, and the names and
    fits of the groups that have one. Raises `InputError` for what cannot be fitted at all, `QueryError` for what cannot be read.
    """
    form = law.held_form()
    names, rows, fits = [*FORMS[law.form].linear, *FORMS[law.form].bounds], [], []
    if len(x) != len(form.variables):
        raise InputError(f"form {law.form} has the variables {', '.join(form.variables)}; give --x once for each, in this order")
    noise = _sd(sd)
    columns = [*groups, *names, "limit", "limit_low", "limit_high", "points", "left_out", "rmse", "interval", "doubts"]
    numbers = [*x, y, *([sd] if isinstance(noise, str) else [])]
    for key, members in groupby(_read(source, numbers, groups, database), lambda row: row[: len(groups)]):
        given = np.array([row[len(groups) :] for row in members], dtype=np.float64)
        kept = given[np.isfinite(given).all(axis=1)].T
        xs, ys, sds = kept[: len(x)], kept[len(x)], kept[len(x) + 1] if isinstance(noise, str) else noise
        counts = len(ys), len(given) - len(ys)
        try:
            if sds is not None and not np.all(sds > 0):
                raise InputError(f"--sd {sd}: a standard deviation is above 0; leave these rows out")
            weights = None if sds is None else np.broadcast_to(1 / np.square(sds), ys.shape)
            fitted = fit(form, xs[0] if len(x) == 1 else xs, ys, loss=law.loss, weights=weights)
        except InputError as error:
            rows.append([*key, *[None] * (len(names) + 3), *counts, None, None, str(error)])
            continue
        scale = 1.0 if sds is None or law.loss == "huber" else birge_scale(fitted, np.asarray(sds))
        ends, parameters = interval(fitted, sd=None if sds is None else scale), [getattr(fitted.law, name) for name in names]
        limit = [None] * 3 if fitted.limit is None else [fitted.limit, ends.low or None, ends.high]
        doubts = _doubts(fitted, ends) + [WIDENED.format(scale)] * (scale > 1)
        rows.append([*key, *parameters, *limit, *counts, fitted.rmse, ends.reason, "; ".join(doubts) or None])
        fits.append((" ".join(map(str, key)), fitted))
    if not fits:
        reason = rows[0][-1] if rows else f"{source} has no rows"
        raise InputError(reason + ("" if groups else "; --group COLUMN fits the rows of each of its values apart"))
    return columns, rows, fits


def _sd(sd: str | None) -> float | str | None:
    """Return a number, or the name of a column."""
    try:
        value = None if sd is None else float(sd)
    except ValueError:
        return sd
    if value is not None and not value > 0:
        raise InputError(f"--sd {value:g}: a standard deviation is above 0; leave it out where it is not known")
    return value


def _doubts(fitted: Fit, ends: Interval) -> list[str]:
    doubts = [WARNINGS[name] for name in fitted.warnings]
    if fitted.rising:
        doubts.append(f"y rises at x = {', '.join(f'{value:g}' for value in fitted.rising)}")
    if fitted.x.ndim == 1 and np.array_equal(np.sort(fitted.x), np.arange(1, fitted.points + 1)):
        doubts.append(MEMBERS)
    if fitted.limit and ends.low == 0:
        doubts.append(NO_LOWER_END)
    if fitted.limit is not None and None not in (ends.low, ends.high) and np.all(fitted.y > 0):
        (other,) = {*LOSSES} - {fitted.loss}
        limit = fit(type(fitted.law), fitted.x, fitted.y, loss=other, weights=fitted.weights).law.limit
        if abs(limit - fitted.limit) > (ends.high - ends.low) / 2:
            doubts.append(f"--loss {other} gives the limit {limit:.4f}, more than half the interval away: a few points decide")
    return doubts


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


def _read(source: str, numbers: Sequence[str], groups: Sequence[str], database: Database) -> list[tuple[Any, ...]]:
    """Return the columns of the groups and of the numbers, sorted by group."""
    is_file = (file := Path(source)).suffix.lower() in (".csv", ".tsv", ".parquet", ".json", ".jsonl")
    if is_file and not file.is_file():
        raise QueryError(f"there is no file {file}; give a CSV or Parquet file, or a SQL query on the database")
    table = literal(source) if is_file else f"({source.rstrip(' ;')})"
    with nullcontext(duckdb.connect()) if is_file else database.read() as connection:
        types = dict(query(connection, f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {table})")[1])
        for name in (*groups, *numbers):
            if name not in types:
                raise QueryError(f"{source} has no column '{name}'; {nearest(name, types)}")
            if name not in groups and not re.match("U?(TINY|SMALL|BIG|HUGE)?INT|FLOAT|DOUBLE|DECIMAL", types[name]):
                raise QueryError(f"column '{name}' holds {types[name]}, not numbers; give another, or a query that casts it")
        chosen = ", ".join(f'"{name}"' for name in (*groups, *numbers))
        order = ", ".join(str(place + 1) for place in range(len(groups))) or "ALL"
        return query(connection, f"SELECT {chosen} FROM {table} ORDER BY {order}")[1]
