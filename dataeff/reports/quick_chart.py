"""A chart of any table: a column against another, a third as colour. For looking, not publishing."""

import re

import duckdb
import pyarrow

from dataeff.reports.theme import Chart, palette

MARKS = {"points": ("point",), "line": ("line",), "both": ("line", "point")}
KINDS = {r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?$|FLOAT|DOUBLE|DECIMAL": ("quantitative", "{}::DOUBLE"),
         "DATE|TIMESTAMP": ("temporal", "epoch_ms({}::TIMESTAMP)"), "": ("nominal", "{}::VARCHAR")}  # fmt: skip


def quick_chart(table: pyarrow.Table, names: list[str], mark: str, logs: str, recipes: list[str]) -> Chart:
    """Return the second against the first of the columns `names`, a third as colour; log on the axes that `logs` names. Recipes
    have their colours among `recipes`. Rows with NULL, infinity, or what is not above 0 on a log axis, are not drawn.
    """
    channels = {}
    with duckdb.connect() as connection:
        rows = connection.from_arrow(table.select(names).rename_columns(["x", "y", "color"][: len(names)]))
        for name, title, column in zip(rows.columns, names, map(str, rows.types), strict=True):
            kind, cast = next(kind for pattern, kind in KINDS.items() if re.match(pattern, column))
            finite = f"isfinite({name})" if kind == "quantitative" else f"{name} IS NOT NULL"
            rows = rows.project(f"* REPLACE ({cast.format(name)} AS {name})").filter(finite)
            rows = rows.filter(f"{name} > 0") if kind == "quantitative" and name in logs else rows
            scale = {"type": "log", "nice": False} if name in logs else {"zero": False}
            channels[name] = {"field": name, "type": kind, "title": title, "scale": scale}
        values = [dict(zip(channels, row, strict=True)) for row in rows.fetchall()]
    if colour := channels.get("color"):
        colours = palette([*(recipes if names[-1] == "recipe" else ()), *(row["color"] for row in values)])
        shades = {"domain": [*colours], "range": [*colours.values()]}
        colour["scale"] = shades if colour["type"] == "nominal" else {"scheme": "viridis"}
    tooltip = [{name: channel[name] for name in ("field", "type", "title")} for channel in channels.values()]
    drawn = {"data": {"values": values}, "encoding": {**channels, "tooltip": tooltip}, "width": 640, "height": 360}
    return {"layer": [{"mark": each} for each in MARKS[mark]], **drawn}
