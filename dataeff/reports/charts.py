"""Charts as pure functions from records to Altair: no query, no file, no page.

    law_figure     points with intervals, the laws through them and their limits; one panel or several
    limits_chart   loss against size, a panel each budget        ratio_figure   data efficiency against data
    heat_map       values over two axes of a grid

Solid is what lies within the data, dashed what lies beyond. Limits stand apart, right of a line, with their intervals. What an
axis cannot hold is a triangle at its edge whose tooltip has the number. The `description` of a law figure is its caption.
`theme.themed` gives charts their colours.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from dataeff.errors import InputError
from dataeff.reports.theme import ALARM, FAINT, GREY, LIGHT, LINES, PAPER, palette, themed

Records = list[dict[str, Any]]
LOSS = "validation loss (nats/token)"
NOTES = {  # what a caption says of the layers that are drawn
    "point": "dots: measured, hollow where the optimum is not certified",
    "ratio": "dots: ratios, hollow where the baseline's law is extrapolated",
    "bar": "bars: 90% intervals",
    "curve": "thin lines: ensembles of 1, 2, ... members",
    "law": "solid: laws within the data",
    "beyond": "dashed: beyond the data",
    "predicted": "diamond: the largest point as predicted without it",
    "limit": "right of the line: limits",
    "mark": "right edge: data efficiency by the baseline's law",
    "off": "triangles: beyond the axis, hollow where the tooltip has the number, filled where there is no end",
}
TOOLTIPS = {  # columns that a tooltip shows where the rows have them, and their formats
    **dict.fromkeys(("recipe", "point", "size", "averaging", "state", "run_id")),
    **{"seed_tokens": ",", "members": "d", "parameters_total": ",", "subsets": "d", "lr": ".3~g", "weight_decay": ".3~g"},
    **{"epochs": "~g", "val_loss": ".4f", "ratio": ".3f", "low": ".4f", "high": ".4f", "law": ".4f"},
}


@dataclass(frozen=True)
class Axis:
    """A logarithmic x axis: its column and title, where labels stand (at round numbers by default), and their format."""

    column: str
    title: str
    ticks: Sequence[float] = ()
    form: str = ","


def law_figure(
    rows: Records,
    x: Axis,
    recipes: Sequence[str],
    y: str = "val_loss",
    y_title: str = LOSS,
    log_y: bool = False,
    panels: str | None = None,
    size: tuple[int, int] = (390, 270),
) -> alt.ConcatChart:
    """Return rows drawn by their `layer`; `panels` is a column, two panels a row, each with its own y axis.

        reference     a thin line at y
        mark          the text `mark` at the right edge, at y
        law           a solid line, `beyond` dashed, `rival` grey with a dash for each `form`; a line for each `line`
        curve         a thin line with dots; a line for each `line`
        point         a dot with its interval from `low` to `high`, hollow where `hollow`; `predicted`: a diamond
        limit         a dot with its interval, right of all x

    Every row but marks and references has a `recipe`, one of `recipes`, which gives its colour; a click on the legend isolates
    it, and one on a dot opens its `href`. An interval of which one end is missing has no end there. The y axis holds points and
    limits but for outliers.
    """
    rows = [row for row in rows if row.get(y) is not None]
    drawn = [name for name in recipes if any(row.get("recipe") == name for row in rows)]
    limited = [name for name in drawn if any(row["layer"] == "limit" and row["recipe"] == name for row in rows)]
    across, places = _across(rows, x, limited)
    pick = alt.selection_point(fields=["recipe"], bind="legend") if len(drawn) > 1 else None
    range_ = dict(zip(recipes, palette(recipes).range, strict=True))
    colour = {"scale": alt.Scale(domain=drawn, range=[range_[name] for name in drawn]), "title": None}
    legend = alt.Legend(symbolType="circle") if pick else None
    charts, seen = [], {"bar"} if any(row.get("low") is not None for row in rows) else set()
    for name in dict.fromkeys(row[panels] for row in rows if row["layer"] == "point") if panels else [""]:
        own = [row for row in rows if not panels or row[panels] == name]
        domain = _domain(own, y, log_y)
        up = alt.Y(f"{y}:Q", title=y_title, scale=alt.Scale(type="log" if log_y else "linear", domain=domain, nice=False))
        up = up.axis(format="~g", **({"values": round_numbers(*domain)} if log_y else {"tickCount": 6}))
        prepared = _prepared(own, x.column, y, places, domain, size[1])
        layers = _layers(prepared, across, up, alt.Color("recipe:N", legend=legend, **colour), pick)
        charts.append(alt.layer(*layers, data=alt.Data(values=prepared)).properties(width=size[0], height=size[1], title=name))
        seen |= {row["layer"] for row in prepared}
    charts[:1] = [chart.add_params(pick) if pick else chart for chart in charts[:1]]
    seen = seen - {"point"} | {"ratio"} if y == "ratio" else seen
    note = "; ".join(text for layer, text in NOTES.items() if layer in seen) + "."
    return alt.concat(*charts, columns=2, spacing={"row": 18, "column": 24}).properties(description=note[0].upper() + note[1:])


def _across(rows: Records, x: Axis, limited: Sequence[str]) -> tuple[alt.X, dict[str, float]]:
    """Return the x axis, and where the limit of each recipe stands: side by side, right of the line (of no name)."""
    xs = [row[x.column] for row in rows if row["layer"] != "limit" and row.get(x.column) is not None] or [1.0]
    low, high = min(xs), max(xs)
    step = (high / low if high > low else 2.0) ** 0.026
    edge = high * step**1.5
    places = {name: edge * step**i for i, name in enumerate(["", *limited])} if limited else {}
    labels = f"datum.value > {high * 1.0001} ? '\u221e' : format(datum.value, '{x.form}')"
    ticks = [*(x.ticks or round_numbers(low, high)), *([edge * step ** ((len(limited) + 1) / 2)] if limited else [])]
    scale = alt.Scale(type="log", domain=[low / step**1.5, edge * step ** (len(places) + 0.5)], nice=False)
    return alt.X(f"{x.column}:Q", title=x.title, scale=scale).axis(values=ticks, labelExpr=labels, grid=False), places


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
    for share, others in ((0.15, values(("curve", "law", "reference"), y)), (0.3, values(("point", "limit"), "low", "high"))):
        ends += [float(np.clip(value, low - share * span, high + share * span)) for value in others]
    bottom, top = min(ends) - span / 20, max(ends) + span / 20
    return [math.exp(bottom), math.exp(top)] if log else [bottom, top]


def round_numbers(low: float, high: float) -> list[float]:
    """Return three or more numbers from low to high, the roundest."""
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), [*np.arange(1, 2, 0.1), *np.arange(2, 10, 0.5)]):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        numbers = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(numbers) > 2:
            break
    return numbers


def _prepared(rows: Records, x: str, y: str, places: dict[str, float], domain: Sequence[float], height: int) -> Records:
    """Return rows as they are drawn: limits with their place, intervals cut at the axis, a row `off` for what is beyond it."""
    (bottom, top), prepared, last = domain, [{"layer": "edge", x: places[""]}] if places else [], math.inf
    for row in sorted(rows, key=lambda row: row["layer"] == "mark" and -row[y]):
        row, off = {name: value for name, value in row.items() if value is not None}, []
        if row["layer"] == "limit":
            row[x] = places[row["recipe"]]
        if row["layer"] in ("point", "predicted", "limit", "curve") and not bottom <= row[y] <= top:
            off.append((row[y], False))
        if "low" in row or "high" in row:
            low, high = row.get("low", -math.inf), row.get("high", math.inf)
            row |= {"bottom": max(low, bottom), "top": min(high, top)}
            off += [(end, math.isinf(end)) for end in (low, high) if not bottom <= end <= top]
        if row["layer"] == "mark":
            place = height * (row[y] - bottom) / (top - bottom)
            if not 0 <= place <= min(height, last - 13):
                continue
            last = place
        prepared.append(row)
        for value, endless in off:
            at, shape = (edges[1], "triangle-up") if value > top else (edges[0], "triangle-down")
            prepared.append({**row, "layer": "off", "at": at, "shape": shape, "endless": endless})
    return prepared


def _layers(
    rows: Records, x: alt.X, y: alt.Y, colour: alt.Color, pick: alt.Parameter | None
) -> list[alt.Chart]:
    """Return the layers that have rows, from the back to the front."""
    has = {name for row in rows for name in row}
    bottom, at = y.copy(), y.copy()
    bottom.shorthand, at.shorthand = "bottom:Q", "at:Q"

    def shown(opacity: float) -> Any:
        return alt.when(pick).then(alt.value(opacity)).otherwise(alt.value(opacity / 12)) if pick else alt.value(opacity)

    line = {"x": x, "y": y, "color": colour, "detail": "line:N", "opacity": shown(0.9)}
    tips = [alt.Tooltip(name, format=form or alt.Undefined, type="quantitative" if form else "nominal")
            for name, form in TOOLTIPS.items() if name in has]  # fmt: skip
    dot = {"x": x, "y": y, "color": colour, "opacity": shown(1), "tooltip": tips} | ({"href": "href:N"} if "href" in has else {})
    right, hole = {"x": alt.value("width"), "y": y}, "datum.hollow && (datum.layer == 'point' || datum.layer == 'limit')"
    dash = alt.StrokeDash("form:N", title=None, legend=alt.Legend(symbolStrokeColor=GREY))
    big, small, thin = {"size": 45, "filled": True}, {"size": 14, "filled": True}, {"strokeWidth": 1.5}
    off = dot | {"y": at, "shape": alt.Shape("shape:N", scale=None)}
    parts = (  # rows of a layer, or of a condition; the mark; its channels
        ("edge", {"type": "rule", "color": LINES, **thin}, {"x": x}),
        ("reference", {"type": "rule", "color": GREY}, {"y": y}),
        ("mark", {"type": "tick", "width": 6, "thickness": 1, "orient": "horizontal", "color": FAINT}, right),
        ("mark", {"type": "text", "align": "left", "dx": 6, "fontSize": 10, "color": FAINT}, {**right, "text": "mark:N"}),
        ("rival", {"type": "line", "color": GREY, **thin}, {"x": x, "y": y, "strokeDash": dash}),
        ("beyond", {"type": "line", "strokeDash": [5, 4], **thin}, line),
        ("law", {"type": "line", **thin}, line),
        ("curve", {"type": "line", "strokeWidth": 1}, line | {"opacity": shown(0.5)}),
        ("curve", {"type": "point", **small}, dot),
        ("isValid(datum.bottom) && datum.layer != 'off'", {"type": "rule", "strokeWidth": 2},
         {"x": x, "y": bottom, "y2": alt.Y2("top:Q"), "color": colour, "opacity": shown(1)}),
        ("predicted", {"type": "point", "shape": "diamond", "size": 80, "filled": True}, dot),
        ("limit", {"type": "point", **big}, dot),
        ("point", {"type": "point", **big}, dot),
        (hole, {"type": "point", "color": PAPER, "opacity": 1, **small}, {"x": x, "y": y}),
        ("off", {"type": "point", "size": 45, "strokeWidth": 1.3, "clip": False}, off),
        ("datum.endless", {"type": "point", "size": 45, "filled": True, "clip": False}, off),
    )  # fmt: skip
    present = {row["layer"] for row in rows}
    return [
        alt.Chart(mark=alt.MarkDef(**{"clip": channels.get("x") is x} | mark))
        .transform_filter(alt.datum.layer == which if which.isalpha() else which)
        .encode(**channels)
        for which, mark, channels in parts
        if which in present or not which.isalpha()
    ]


def heat_map(
    rows: Records,
    axes: Sequence[tuple[str, Sequence[float]]],
    worst: float,
    tooltip: Sequence[Any],
    square: tuple[int, int],
    corner: bool = False,
) -> alt.LayerChart:
    """Return squares over `x` and `y`, coloured by `excess` up to `worst` on a square-root scale, which sets points near the best
    apart; a square of which it is None stays empty. The text `label` is in the middle or a corner; `is_best` is outlined.

    `axes`: the name of x and of y, and all their values. `square`: width and height in pixels.
    """
    (x_name, xs), (y_name, ys) = axes
    axis = {"format": "~g", "labelAngle": 0, "ticks": False, "grid": False}
    x = alt.X("x:O", title=x_name.replace("_", " "), scale=alt.Scale(domain=list(xs), padding=0)).axis(**axis)
    y = alt.Y("y:O", title=y_name.replace("_", " "), scale=alt.Scale(domain=list(ys)[::-1], padding=0)).axis(**axis)
    legend = alt.Legend(gradientLength=220, values=[0, worst / 16, worst / 4, worst], format=".2~g", titleLimit=300)
    scale = alt.Scale(type="sqrt", scheme="viridis", reverse=True, domain=[0, worst])
    base = alt.Chart().encode(x, y, tooltip=list(tooltip))
    empty = "!isValid(datum.excess)"
    ink = alt.when(empty).then(alt.value(ALARM)).when(f"datum.excess < {0.32 * worst}").then(alt.value(LIGHT["ink"]))
    place = {"fontSize": 10, "dx": 6 - square[0] / 2, "dy": 9 - square[1] / 2, "align": "left"} if corner else {"fontSize": 10}
    return alt.layer(
        base.mark_rect(filled=False, stroke=LINES),
        base.transform_filter("isValid(datum.excess)")
        .mark_rect()
        .encode(color=alt.Color("excess:Q", title="above the best (nats/token)", scale=scale, legend=legend)),
        base.transform_filter("datum.is_best").mark_rect(
            filled=False, stroke=LIGHT["ink"], strokeWidth=2.5, width={"band": 0.84}, height={"band": 0.84}
        ),
        base.transform_filter("datum.label").mark_text(**place).encode(text="label:N", color=ink.otherwise(alt.value("#ffffff"))),
        data=alt.Data(values=rows),
    ).properties(width=square[0] * len(xs), height=square[1] * len(ys), view=alt.ViewBackground(stroke=GREY, strokeOpacity=0.4))


def limits_chart(rows: Records, recipes: Sequence[str], title: str = "") -> alt.ConcatChart:
    """Return loss against total parameters (log), a panel each budget D: the paper's first figure.

    `rows` and `recipes`: those of `study_limits`. Losses in nats per token. The best over N is a point already, and no limit.
    """
    rows = [row for row in rows if row["layer"] != "limit" or row["state"] != "best over N"]
    figure = law_figure(rows, Axis("parameters_total", "parameters (of all members)", form="~s"), recipes, panels="panel")
    return figure.properties(title=title) if title else figure


def ratio_figure(rows: Records, recipes: Sequence[str], panels: str | None = None) -> alt.ConcatChart:
    """Return data efficiency (log) against D (log): `ratio` with its interval `low` to `high` of each recipe and seed_tokens.

    Recipes stand side by side at each D. Of the baseline itself the ratio is 1: the line.
    """
    budgets = sorted({row["seed_tokens"] for row in rows})
    order = [name for name in recipes if any(row["recipe"] == name for row in rows)]
    closest = min((later / earlier for earlier, later in zip(budgets, budgets[1:], strict=False)), default=2.0)
    step = closest ** (0.8 / max(len(order), 8))
    placed = [
        {**row, "layer": "point", "beside": row["seed_tokens"] * step ** (order.index(row["recipe"]) - (len(order) - 1) / 2)}
        for row in rows
    ]
    names = dict.fromkeys(row[panels] for row in rows) if panels else {None: None}
    placed += [{"layer": "reference", "ratio": 1, "beside": None, **({panels: name} if panels else {})} for name in names]
    return law_figure(placed, Axis("beside", "seed tokens D", budgets), recipes, "ratio", "data efficiency (ratio)", True, panels)


def laws_chart(points: Records, laws: Records, x: str, y: str) -> alt.ConcatChart:
    """Return points (group, x, y) with their laws (the same, on a fine grid), x log; `x` and `y` name the axes."""
    rows = [
        {"layer": layer, "line": row["group"], "recipe": row["group"], **row}
        for layer, of in (("law", laws), ("point", points)) for row in of
    ]  # fmt: skip
    groups = list(dict.fromkeys(row["group"] for row in points))
    return law_figure(rows, Axis("x", x, form="~s"), groups, "y", y, size=(440, 300))


def require_chart_suffix(path: Path) -> None:
    """Raise `InputError` for a file name that says no kind of chart."""
    if path.suffix not in (".svg", ".png", ".html"):
        raise InputError(f"{path}: a chart cannot be written as '{path.suffix}'; valid: .svg, .png, .html")


def save_chart(chart: alt.TopLevelMixin, path: Path) -> None:
    """Write a chart for light pages, above it its title and caption, as .svg, .png or .html, by the suffix of `path`.

    Raises `InputError` for another.
    """
    require_chart_suffix(path)
    title, note = (value if isinstance(value, str) else "" for value in (chart.title, chart.description))
    chart = chart.properties(title=alt.TitleParams(title, subtitle=textwrap.wrap(note, 120), offset=12))
    path.write_bytes(chart_bytes(themed(chart), path.suffix[1:]))


def chart_bytes(chart: alt.TopLevelMixin, form: str) -> bytes:
    """Return a themed chart as a file of `form` "svg", "png" (two pixels a point) or "html" (which needs no network)."""
    import vl_convert

    text = chart.to_json()
    if form == "png":
        return vl_convert.vegalite_to_png(text, scale=2)
    return (vl_convert.vegalite_to_svg(text) if form == "svg" else vl_convert.vegalite_to_html(text, bundle=True)).encode()
