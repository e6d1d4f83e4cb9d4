"""A chart of any table: two columns against each other, a third as colour. For looking, not for publishing."""

from __future__ import annotations

import altair as alt
import duckdb
import pyarrow
from pyarrow import types

from dataeff.reports.theme import PALETTE, palette

MARKS = ("points", "line", "both")
MOST_COLOURS = 18


def drawable(table: pyarrow.Table, names: dict[str, str], logs: tuple[bool, bool] = (False, False)) -> pyarrow.Table:
    """Return columns `x`, `y` and perhaps `colour`, which have other `names` in the table: numbers as doubles, dates as
    timestamps, all else as text. Rows without x and y, finite, of years 1 to 9999 and above 0 on log axes are left out.
    """
    logs_of, columns = dict(zip("xy", logs, strict=True)), []
    for place, name in names.items():
        kind, column = table.schema.field(name).type, '"' + name.replace('"', '""') + '"'
        if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
            least = "0" if logs_of.get(place) else "'-infinity'::DOUBLE"
            columns.append(f"if(isfinite({column}::DOUBLE) AND {column} > {least}, {column}::DOUBLE, NULL) AS {place}")
        elif types.is_date(kind) or types.is_timestamp(kind):
            columns.append(f"if(year({column}::TIMESTAMP) BETWEEN 1 AND 9999, {column}::TIMESTAMP, NULL) AS {place}")
        else:
            columns.append(f"{column}::VARCHAR AS {place}")
    with duckdb.connect() as connection:
        rows = connection.from_arrow(table).project(", ".join(columns))
        return rows.filter("x IS NOT NULL AND y IS NOT NULL").to_arrow_table()


def quick_chart(
    table: pyarrow.Table, titles: dict[str, str], mark: str = "points", log_x: bool = False, log_y: bool = False
) -> alt.LayerChart:
    """Return y against x, columns of a table made by `drawable`, as `mark` of MARKS; `titles` by column.

    `colour` of few values (or of text) takes the palette; of many numbers a ramp. A line joins rows in the order of x.
    """
    logs, linear = alt.Scale(type="log", nice=False, padding=12), alt.Scale(zero=False, nice=False, padding=12)
    base = alt.Chart(table).encode(
        alt.X("x", title=titles["x"], scale=logs if log_x else linear),
        alt.Y("y", title=titles["y"], scale=logs if log_y else linear),
        tooltip=[alt.Tooltip(name, title=title) for name, title in titles.items()],
    )
    if "colour" in titles:
        values = sorted(table["colour"].unique().to_pylist(), key=lambda value: (value is None, value))
        colour = alt.Color("colour", title=titles["colour"], scale=alt.Scale(scheme="viridis"))
        if types.is_string(table.schema.field("colour").type) or len(values) <= len(PALETTE):
            legend = alt.Legend(columns=6, symbolLimit=MOST_COLOURS) if len(values) <= MOST_COLOURS else None
            colour = alt.Color("colour:N", title=titles["colour"], scale=palette(values), legend=legend)
        base = base.encode(colour)
    layers = [base.mark_line(strokeWidth=1.5)] if mark in ("line", "both") else []
    if mark in ("points", "both"):
        layers.append(base.mark_point(size=40, filled=True, opacity=0.85))
    return alt.layer(*layers).properties(width=640, height=360)
