"""A chart of any table: a column against another, a third as colour; Altair infers what they are. For looking, not publishing."""

import re

import altair as alt
import duckdb
import pyarrow

from dataeff.reports.theme import palette

MARKS = {"points": ("point",), "line": ("line",), "both": ("line", "point")}
TYPES = {r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?$|FLOAT|DOUBLE|DECIMAL": "DOUBLE", "DATE|TIMESTAMP": "TIMESTAMP", "": "VARCHAR"}


def quick_chart(table: pyarrow.Table, names: list[str], mark: str, logs: str, recipes: list[str]) -> alt.LayerChart:
    """Return the second against the first of the columns `names`, a third as colour; log on the axes that `logs` names. Recipes
    have their colours among `recipes`. Rows with NULL, infinity, or what is not above 0 on a log axis, are not drawn.
    """
    with duckdb.connect() as connection:
        rows = connection.from_arrow(table.select(names).rename_columns(["x", "y", "color"][: len(names)]))
        for name, kind in zip(rows.columns, map(str, rows.types), strict=True):
            cast = next(cast for pattern, cast in TYPES.items() if re.match(pattern, kind))
            finite = f"isfinite({name})" if cast == "DOUBLE" else f"{name} IS NOT NULL"
            rows = rows.project(f"* REPLACE ({name}::{cast} AS {name})").filter(finite)
            rows = rows.filter(f"{name} > 0") if cast == "DOUBLE" and name in logs else rows
        rows = rows.to_arrow_table()
    scales = {axis: alt.Scale(type="log", nice=False) if axis in logs else alt.Scale(zero=False) for axis in "xy"}
    values = dict.fromkeys([*(recipes if names[-1] == "recipe" else ()), *rows[-1].to_pylist()])
    scales["color"] = palette(values) if pyarrow.types.is_string(rows[-1].type) else alt.Scale(scheme="viridis")
    titles = dict(zip(rows.column_names, names, strict=True))
    channels = {name: getattr(alt, name.capitalize())(name, title=title, scale=scales[name]) for name, title in titles.items()}
    base = alt.Chart(rows).encode(**channels, tooltip=[alt.Tooltip(name, title=title) for name, title in titles.items()])
    return alt.layer(*(getattr(base, f"mark_{each}")() for each in MARKS[mark])).properties(width=640, height=360)
