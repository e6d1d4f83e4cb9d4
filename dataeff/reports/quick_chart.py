"""A chart of any table: two columns against each other, a third as colour. For looking, not for publishing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date
from types import NoneType
from typing import Any

import altair as alt

from dataeff.reports.theme import PALETTE, chart_config

Records = list[dict[str, Any]]
MARKS = ("points", "line", "both")
MOST_COLOURS = 18


def drawable(records: Records, x: str, y: str, log_x: bool = False, log_y: bool = False) -> Records:
    """Return the records that have both values, finite, above 0 on a log axis. The others are for the page to count."""

    def placed(value: Any, log: bool) -> bool:
        return value is not None and (not isinstance(value, (int, float)) or (math.isfinite(value) and (value > 0 or not log)))

    return [record for record in records if placed(record[x], log_x) and placed(record[y], log_y)]


def quick_chart(
    records: Records,
    x: str,
    y: str,
    colour: str | None = None,
    mark: str = "points",
    log_x: bool = False,
    log_y: bool = False,
    units: dict[str, str] | None = None,
    dark: bool = False,
) -> alt.LayerChart:
    """Return `y` against `x`, columns of the records, as `mark` of MARKS; records that lack a value are `drawable`'s to drop.

    Numbers have a numeric axis, times a temporal one, the rest one place a value. `colour` of few values (or of text) takes
    the palette; of many numbers a ramp. A line joins records in the order of x. `units` by column go to the titles.
    """
    rows = [{"x": r[x], "y": r[y], "colour": r[colour] if colour else None} for r in records]
    rows = [{key: _plain(value) for key, value in row.items()} for row in rows]

    def title(name: str) -> str:
        return f"{name} ({units[name]})" if units and units.get(name, name) != name else name

    kinds = {name: _kind([record[name] for record in records]) for name in (x, y, colour) if name}

    def axis(make: Any, place: str, name: str, log: bool) -> Any:
        if kinds[name] != "quantitative":
            return make(f"{place}:{kinds[name]}", title=name)
        scale = alt.Scale(type="log", nice=False, padding=12) if log else alt.Scale(zero=False, padding=12, nice=False)
        form = {"format": "~s"} if max(abs(row[place]) for row in rows) >= 1e4 else {}
        return make(f"{place}:quantitative", title=title(name), scale=scale).axis(tickCount=6, **form)

    encoding = {"x": axis(alt.X, "x", x, log_x), "y": axis(alt.Y, "y", y, log_y)}
    if colour:
        encoding["color"] = _colour([row["colour"] for row in rows], kinds[colour], colour, title(colour))
    tips = [alt.Tooltip(f"{key}:{kinds[name]}", title=name) for key, name in (("x", x), ("y", y), ("colour", colour)) if name]
    base = alt.Chart(alt.Data(values=rows)).encode(**encoding, tooltip=tips)
    layers = [base.mark_line(strokeWidth=1.5)] if mark in ("line", "both") else []
    if mark in ("points", "both"):
        layers.append(base.mark_point(size=40, filled=True, opacity=0.85))
    return alt.layer(*layers).properties(width=640, height=360).configure(**chart_config(dark))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (int, float, str, NoneType)):
        return value
    return value.isoformat() if isinstance(value, date) else str(value)


def _kind(given: Sequence[Any]) -> str:
    values = [value for value in given if value is not None]
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return "quantitative"
    return "temporal" if all(isinstance(value, date) for value in values) else "nominal"


def _colour(values: Sequence[Any], kind: str, name: str, title: str) -> alt.Color:
    distinct = list(dict.fromkeys(values))
    if kind == "nominal" or len(distinct) <= len(PALETTE):
        if kind == "quantitative":
            distinct.sort(key=lambda value: (value is None, value))
        scale = alt.Scale(domain=distinct, range=[PALETTE[i % len(PALETTE)] for i in range(len(distinct))])
        legend = alt.Legend(columns=6, symbolLimit=MOST_COLOURS) if len(distinct) <= MOST_COLOURS else None
        return alt.Color("colour:N", title=title if kind == "quantitative" else name, scale=scale, legend=legend)
    return alt.Color(f"colour:{kind}", title=title, scale=alt.Scale(scheme="viridis"))
