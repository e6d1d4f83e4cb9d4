"""Charts as pure functions from records to Vega-Lite: no query, no file, no page.

    law_figure     points with intervals, the laws through them and their limits; one panel or several
    limits_chart   loss against size, a panel each budget        ratio_figure   data efficiency against data

Solid is what lies within the data, dashed what lies beyond. Limits stand apart, right of a line, with their intervals. What an
axis cannot hold is a triangle at its edge whose tooltip has the number. The `description` of a law figure is its caption.
`theme.themed` gives charts their colours.
"""

import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataeff.errors import InputError
from dataeff.reports.theme import GREY, LINES, PAPER, Chart, palette, themed

Records = list[dict[str, Any]]
LOSS = "validation loss (nats/token)"
NOTES = {  # what a caption says of the layers that are drawn
    "point": "dots: measured, hollow where the optimum is not certified",
    "ratio": "dots: ratios, hollow where the baseline's law is extrapolated",
    "bar": "bars: 90% intervals",
    "subsets": "of members: least to greatest over subsets",
    "curve": "thin lines: ensembles of 1, 2, ... members",
    "law": "solid: laws within the data",
    "beyond": "dashed: beyond the data",
    "predicted": "diamond: the largest point as predicted without it",
    "limit": "right of the line: limits",
    "off": "triangles: beyond the axis, hollow where the tooltip has the number, filled where there is no end",
}
TOOLTIPS = {  # columns that a tooltip shows where the rows have them, and their formats
    **dict.fromkeys(("recipe", "point", "size", "averaging", "state", "run_id")),
    **{"seed_tokens": ",", "members": "d", "parameters_total": ",", "subsets": "d", "lr": ".3~g", "weight_decay": ".3~g"},
    **{"epochs": "~g", "val_loss": ".4f", "ratio": ".3f", "low": ".4f", "high": ".4f"},
}


class Axis(NamedTuple):
    """A logarithmic x axis: its column and title, where labels stand (at round numbers by default), and their format."""

    column: str
    title: str
    ticks: Sequence[float] = ()
    form: str = ","


def law_figure(
    rows: Records, x: Axis, recipes: Sequence[str], y: str = "val_loss", y_title: str = LOSS, log_y: bool = False
) -> Chart:
    """Return rows drawn by their `layer`; each `panel` has its own y axis, two panels a row.

        reference     a thin line at y
        law           a solid line, `beyond` dashed; a line for each `line`
        curve         a thin line with dots; a line for each `line`
        point         a dot with its interval from `low` to `high`, hollow where `hollow`; `predicted`: a diamond
        limit         a dot with its interval, right of all x

    The `recipe` of a row, one of `recipes`, gives its colour; a click on the legend isolates it, and one on a dot opens its
    `href`. An interval of which one end is missing has no end there. The y axis holds points and limits but for outliers.
    """
    rows = [row for row in rows if row.get(y) is not None]
    has = {(row.get("recipe"), row["layer"]) for row in rows}
    drawn = [name for name in recipes if name in {recipe for recipe, _ in has}]
    across, places = _across(rows, x, [name for name in drawn if (name, "limit") in has])
    colours, isolated = palette(recipes), len(drawn) > 1
    colour = {"field": "recipe", "type": "nominal", "scale": {"domain": drawn, "range": [colours[name] for name in drawn]}}
    colour |= {"title": None, "legend": {"symbolType": "circle"} if isolated else None}
    pick = {"name": "pick", "select": {"type": "point", "fields": ["recipe"]}, "bind": "legend", "views": ["first"]}
    filled = {name for row in rows for name, value in row.items() if value is not None}
    charts, seen = [], {note for note, column in (("bar", "low"), ("subsets", "subsets")) if column in filled}
    for name in dict.fromkeys(row.get("panel") for row in rows if row["layer"] == "point"):
        own = [row for row in rows if row.get("panel") == name]
        domain = _domain(own, y, log_y)
        scale = {"type": "log" if log_y else "linear", "domain": domain, "nice": False}
        axis = {"format": "~g", "values": round_numbers(*domain)} if log_y else {"format": "~g", "tickCount": 6}
        up = {"type": "quantitative", "title": y_title, "scale": scale, "axis": axis}
        prepared = _prepared(own, x.column, y, places, domain, log_y)
        layers = _layers(prepared, across, y, up, colour, isolated)
        if not charts:  # the legend listens for the first view that has its colours
            next(layer for layer in layers if "color" in layer["encoding"])["name"] = "first"
        charts.append({"title": name or "", "width": 400, "height": 270, "data": {"values": prepared}, "layer": layers})
        seen |= {row["layer"] for row in prepared}
    seen = seen - {"point"} | {"ratio"} if y == "ratio" else seen
    note = "; ".join(text for layer, text in NOTES.items() if layer in seen) + "."
    layout = {"columns": 2, "spacing": {"row": 18, "column": 24}, "params": [pick] if isolated else []}
    return {"concat": charts, "description": note[0].upper() + note[1:], **layout}


def _across(rows: Records, x: Axis, limited: Sequence[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the x channel, and where the limit of each recipe stands: side by side, right of the line (of no name)."""
    xs = [row[x.column] for row in rows if row["layer"] != "limit" and row.get(x.column) is not None]
    low, high = (end([*xs, *x.ticks], default=1.0) for end in (min, max))
    step = (high / low if high > low else 2.0) ** 0.026
    edge = high * step**1.5
    places = {name: edge * step**i for i, name in enumerate(["", *limited])} if limited else {}
    labels = f"datum.value > {edge} ? '\u221e' : format(datum.value, '{x.form}')"
    ticks = [*(x.ticks or round_numbers(low, high)), *([edge * step ** ((len(limited) + 1) / 2)] if limited else [])]
    scale = {"type": "log", "domain": [low / step**1.5, edge * step ** (len(places) + 0.5)], "nice": False}
    axis = {"values": ticks, "labelExpr": labels, "grid": False}
    return {"field": x.column, "type": "quantitative", "title": x.title, "scale": scale, "axis": axis}, places


def _domain(rows: Records, y: str, log: bool) -> list[float]:
    """Return the ends of the y axis: it holds points and limits within Tukey's fences, and some of what goes beyond them."""

    def values(layers: Sequence[str], *columns: str) -> list[float]:
        found = [row[name] for row in rows if row["layer"] in layers for name in columns if row.get(name) is not None]
        return [math.log(value) if log else value for value in found if value > 0 or not log]

    whole = values(("point", "limit", "predicted"), y) or [1.0]
    first, third = np.quantile(whole, [0.25, 0.75])
    reach = 3 * (third - first) if len(whole) > 6 and third > first else math.inf
    low, high = max(min(whole), first - reach), min(max(whole), third + reach)
    span, ends = (high - low) or 0.1 * (abs(high) or 1), [low, high]
    for share, others in ((0.15, values(("curve", "law", "reference"), y)), (0.5, values(("point", "limit"), "low", "high"))):
        ends += [float(np.clip(value, low - share * span, high + share * span)) for value in others]
    bottom, top = min(ends) - span / 20, max(ends) + span / 20
    return [math.exp(bottom), math.exp(top)] if log else [bottom, top]


def round_numbers(low: float, high: float) -> list[float]:
    """Return three or more round numbers from low to high, for a logarithmic axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        numbers = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(numbers) > 2:
            return numbers
    third = (high - low) / 3 or low
    step = max(step for size in (1, 2, 5) if (step := size * 10.0 ** math.floor(math.log10(third))) <= third)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _prepared(rows: Records, x: str, y: str, places: dict[str, float], domain: Sequence[float], log: bool) -> Records:
    """Return rows as they are drawn: limits with their place, intervals cut at the axis, a row `off` for what is beyond it."""
    (bottom, top), prepared = domain, [{"layer": "edge", x: places[""]}] if places else []
    inner = np.geomspace(bottom, top, 51)[[1, -2]] if log else np.linspace(bottom, top, 51)[[1, -2]]
    for row in rows:
        row, off = {name: value for name, value in row.items() if value is not None}, []
        if row["layer"] == "limit":
            row[x] = places[row["recipe"]]
        if row["layer"] in ("point", "predicted", "limit", "curve") and not bottom <= row[y] <= top:
            off.append(row[y])
        if "low" in row or "high" in row:
            low, high = row.get("low", -math.inf), row.get("high", math.inf)
            row |= {"bottom": max(low, bottom), "top": min(high, top)}
            off += [end for end in (low, high) if not bottom <= end <= top]
        prepared.append(row)
        for value in off:
            shape = {"at": float(inner[int(value > top)]), "shape": "triangle-up" if value > top else "triangle-down"}
            prepared.append({**row, "layer": "off", **shape, "endless": math.isinf(value)})
    return prepared


def _layers(
    rows: Records, x: dict[str, Any], column: str, up: dict[str, Any], colour: dict[str, Any], isolated: bool
) -> list[dict[str, Any]]:
    """Return the layers that have rows, from the back to the front."""
    has, (y, bottom, at) = {name for row in rows for name in row}, ({"field": name, **up} for name in (column, "bottom", "at"))

    def shown(opacity: float) -> dict[str, Any]:
        return {"value": opacity / 12, "condition": {"param": "pick", "value": opacity}} if isolated else {"value": opacity}

    line = {"x": x, "y": y, "color": colour, "detail": {"field": "line", "type": "nominal"}, "opacity": shown(0.9)}
    tips = [{"field": name, "type": "quantitative", "format": form} if form else {"field": name, "type": "nominal"}
            for name, form in TOOLTIPS.items() if name in has]  # fmt: skip
    dot = {"x": x, "y": y, "color": colour, "opacity": shown(1), "tooltip": tips}
    dot |= {"href": {"field": "href", "type": "nominal"}} if "href" in has else {}
    off = dot | {"y": at, "shape": {"field": "shape", "type": "nominal", "scale": None}}
    bar = {"x": x, "y": bottom, "y2": {"field": "top"}, "color": colour, "opacity": shown(1)}
    big, small, thin = {"type": "point", "size": 45}, {"type": "point", "size": 14, "filled": True}, {"strokeWidth": 1.5}
    parts = (  # rows of a layer, or of a condition; the mark; its channels
        ("edge", {"type": "rule", "color": LINES, **thin}, {"x": x}),
        ("reference", {"type": "rule", "color": GREY}, {"y": y}),
        ("beyond", {"type": "line", "strokeDash": [5, 4], **thin}, line),
        ("law", {"type": "line", **thin}, line),
        ("curve", {"type": "line", "strokeWidth": 1}, line | {"opacity": shown(0.5)}),
        ("curve", small, dot),
        ("isValid(datum.bottom) && datum.layer != 'off'", {"type": "rule", "strokeWidth": 2}, bar),
        ("predicted", {**big, "shape": "diamond", "size": 80, "filled": True}, dot),
        ("limit", {**big, "filled": True}, dot),
        ("point", {**big, "filled": True}, dot),
        ("datum.hollow && indexof(['point', 'limit'], datum.layer) >= 0", {**small, "color": PAPER}, {"x": x, "y": y}),
        ("off", {**big, "fill": PAPER, **thin}, off),
        ("datum.endless", {**big, "filled": True}, off),
    )
    present = {row["layer"] for row in rows}
    return [
        {
            "mark": {"clip": channels.get("x") is x, "opacity": 1, **mark},
            "transform": [{"filter": f"datum.layer == '{which}'" if which.isalpha() else which}],
            "encoding": channels,
        }
        for which, mark, channels in parts
        if which in present or not which.isalpha()
    ]


def limits_chart(rows: Records, recipes: Sequence[str], title: str = "") -> Chart:
    """Return loss against total parameters (log), a panel each budget D, of `study_limits`: the paper's first figure."""
    axis = Axis("parameters_total", "parameters (of all members)", form="~s")
    return law_figure(rows, axis, recipes) | {"title": title}


def ratio_figure(rows: Records, recipes: Sequence[str]) -> Chart:
    """Return data efficiency (log) against D (log): `ratio` with its interval `low` to `high` of each recipe and seed_tokens.

    Recipes stand side by side at each D. Of the baseline itself the ratio is 1: the line.
    """
    budgets, order = sorted({row["seed_tokens"] for row in rows}), list(dict.fromkeys(row["recipe"] for row in rows))
    order.sort(key=list(recipes).index)
    step = min(np.divide(budgets[1:], budgets[:-1]), default=2.0) ** (0.8 / max(len(order), 8))
    beside = {name: step ** (i - (len(order) - 1) / 2) for i, name in enumerate(order)}
    placed = [{**row, "layer": "point", "beside": row["seed_tokens"] * beside[row["recipe"]]} for row in rows]
    placed += [{"layer": "reference", "ratio": 1, "panel": name} for name in dict.fromkeys(row.get("panel") for row in rows)]
    return law_figure(placed, Axis("beside", "seed tokens D", budgets), recipes, "ratio", "data efficiency (ratio)", log_y=True)


def laws_chart(points: Records, laws: Records, x: str, y: str) -> Chart:
    """Return points (group, x, y) with their laws (the same, on a fine grid), x log; `x` and `y` name the axes."""
    rows = [{"layer": "law", "line": row["group"], "recipe": row["group"], **row} for row in laws]
    rows += [{"layer": "point", "recipe": row["group"], **row} for row in points]
    return law_figure(rows, Axis("x", x, form="~s"), list(dict.fromkeys(row["group"] for row in points)), "y", y)


def save_chart(figure: Chart, path: Path) -> None:
    """Write a figure with its caption as .svg, .png or .html, by the suffix of `path`. Raises `InputError` for another."""
    if path.suffix not in (".svg", ".png", ".html"):
        raise InputError(f"{path}: a chart cannot be written as '{path.suffix}'; valid: .svg, .png, .html")
    title = {"text": figure.get("title") or " ", "subtitle": textwrap.wrap(figure["description"], 120), "offset": 12}
    path.write_bytes(chart_bytes(themed(figure | {"title": title}), path.suffix[1:]))


def chart_bytes(chart: Chart, form: str) -> bytes:
    """Return a themed chart as a file of `form` "svg", "png" (two pixels a point) or "html" (which needs no network)."""
    import vl_convert

    text = json.dumps(chart)
    if form == "png":
        return vl_convert.vegalite_to_png(text, scale=2)
    return (vl_convert.vegalite_to_svg(text) if form == "svg" else vl_convert.vegalite_to_html(text, bundle=True)).encode()
