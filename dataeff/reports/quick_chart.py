"""A chart of any table: a column against another, a third as colour; Altair infers what they are. For looking, not publishing."""

import re

import altair as alt
import duckdb
import pyarrow

from dataeff.reports.theme import palette

MARKS = {"points": ("point",), "line": ("line",), "both": ("line", "point")}
NUMBER = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?$|FLOAT|DOUBLE|DECIMAL")


def quick_chart(table: pyarrow.Table, names: list[str], mark: str, logs: str, recipes: list[str]) -> alt.LayerChart:
    """Return the second against the first of the columns `names`, a third as colour; log on the axes that `logs` names. Recipes
    have their colours among `recipes`. What is not finite, or not above 0 on a log axis, is not drawn.
    """
    with duckdb.connect() as connection:
        rows = connection.from_arrow(table.select(names).rename_columns(["x", "y", "color"][: len(names)]))
        for name, kind in zip(rows.columns, map(str, rows.types), strict=True):
            if NUMBER.match(kind):
                least = "0" if name in logs else "'-infinity'::DOUBLE"
                cast = f"CASE WHEN isfinite({name}::DOUBLE) AND {name} > {least} THEN {name}::DOUBLE END"
            else:
                cast = f"{name}::{'TIMESTAMP' if kind.startswith(('DATE', 'TIMESTAMP')) else 'VARCHAR'}"
            rows = rows.project(f"* REPLACE ({cast} AS {name})")
        rows = rows.filter("x IS NOT NULL AND y IS NOT NULL").to_arrow_table()
    scale = {axis: alt.Scale(type="log", nice=False) if axis in logs else alt.Scale(zero=False) for axis in "xy"}
    titles = dict(zip(rows.column_names, names, strict=True))
    channels = [alt.X("x", title=names[0], scale=scale["x"]), alt.Y("y", title=names[1], scale=scale["y"])]
    if len(names) == 3:
        values = dict.fromkeys([*(recipes if names[2] == "recipe" else ()), *rows["color"].to_pylist()])
        few = len(values) < 10 or pyarrow.types.is_string(rows["color"].type)
        colour = alt.Color("color:N", scale=palette(values)) if few else alt.Color("color")
        channels.append(colour.title(names[2]))
    base = alt.Chart(rows).encode(*channels, tooltip=[alt.Tooltip(name, title=title) for name, title in titles.items()])
    return alt.layer(*(getattr(base, f"mark_{each}")() for each in MARKS[mark])).properties(width=640, height=360)
