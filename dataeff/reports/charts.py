"""Charts as pure functions from records to Altair: no query, no file, no page.

    law_figure   points with intervals, the laws through them and their limits; one panel or several
    heat_map     values over two axes of a grid

The same charts serve the command line, the report, the dashboard and notebooks; `theme.themed` gives them their colours.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from dataeff.errors import InputError
from dataeff.reports.theme import ALARM, FAINT, GREY, LIGHT, LINES, PAPER, palette, themed

Records = list[dict[str, Any]]
LOSS = "validation loss (nats/token)"
WHOLE = {"point", "limit"}  # layers whose y is always shown; of the others what lies near
PARTLY = {"reference", "law", "beyond", "curve", "predicted"}


def recipe_colour(recipes: Sequence[str], rows: Records) -> alt.Color:
    """Return the colour of a recipe among the study's; the legend names those of the rows."""
    colours, drawn = palette(recipes), {row.get("recipe") for row in rows}
    kept = [(name, colour) for name, colour in zip(colours.domain, colours.range, strict=True) if name in drawn]
    scale = alt.Scale(domain=[name for name, _ in kept], range=[colour for _, colour in kept])
    legend = alt.Legend(symbolOpacity=1, symbolType="circle", columns=4) if kept else None
    return alt.Color("recipe:N", scale=scale, title=None, legend=legend)


def log_axis(column: str, title: str | None, ticks: Sequence[float] | None = None, form: str = "~s", **scale: Any) -> alt.X:
    """Return a logarithmic x axis with labels at `ticks`, or at round numbers."""
    marks = {"tickCount": 4} if ticks is None else {"values": list(ticks)}
    scale = alt.Scale(type="log", nice=False, **({"padding": 12} | scale))
    return alt.X(f"{column}:Q", title=title, scale=scale).axis(format=form, grid=False, **marks)


def tooltips(form: str, *names: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{name}:Q", format=form) for name in names]


def law_figure(
    rows: Records,
    x: alt.X,
    y: str,
    colour: alt.Color,
    tooltip: Sequence[Any] = (),
    y_title: str = LOSS,
    log_y: bool = False,
    panels: str | None = None,
    size: tuple[int, int] = (440, 300),
) -> alt.LayerChart | alt.FacetChart:
    """Return rows drawn by their `layer`, from the back to the front; `panels` is a column, at most four panels a row.

        mark          the text `mark` at the right edge, at y
        span, band    from `low` to `high`, across the panel or along x
        reference     a thin grey line
        limit         a dotted line at y, across the panel
        law           a dashed line; `beyond` paler, where it extrapolates; `rival` dotted; a line for each `line`
        curve         a thin line with dots; a line for each `line`
        point         a dot with its interval from `low` to `high`, hollow where `hollow`; a missing end is an arrow
        predicted     a diamond

    The y axis holds all points and limits, and of the other layers what lies not far from these; the rest is cut off.
    """
    domain = _domain(rows, y, log_y)
    scale = alt.Scale(type="log" if log_y else "linear", domain=domain, nice=False)
    up = alt.Y(f"{y}:Q", title=y_title, scale=scale).axis(tickCount=6, format="~g")
    bare = alt.Chart().encode(up)
    wide, grey = bare.encode(colour), bare.encode(x)
    base = grey.encode(colour)
    line = base.encode(detail="line:N")
    dash = {"clip": True, "strokeWidth": 1.5, "strokeDash": [6, 4]}
    layers = {
        "mark": _right_marks(bare, domain, size[0]),
        "span": [_from_low_to_high(wide, up, domain).mark_rect(opacity=0.1, clip=True)],
        "band": [_from_low_to_high(base, up, domain).mark_area(opacity=0.15, clip=True)],
        "reference": [grey.mark_line(strokeWidth=1, color=GREY, clip=True)],
        "limit": [wide.mark_rule(strokeDash=[2, 3], strokeWidth=1.5)],
        "beyond": [line.mark_line(**dash, opacity=0.45)],
        "rival": [line.mark_line(**dash | {"strokeDash": [2, 2]})],
        "law": [line.mark_line(**dash)],
        "curve": [line.mark_line(clip=True, strokeWidth=1, opacity=0.6, point={"size": 12})],
        "point": [
            *_points(base.encode(tooltip=list(tooltip)), up, domain, size[1]),
            grey.transform_filter("datum.hollow").mark_point(size=14, color=PAPER, filled=True, opacity=1, clip=True),
        ],
        "predicted": [base.mark_point(shape="diamond", size=80, filled=True, opacity=1, clip=True)],
    }
    drawn = {"point", *(row["layer"] for row in rows)}
    parts = [
        part.transform_filter(alt.datum.layer == name) for name, charts in layers.items() if name in drawn for part in charts
    ]
    figure = alt.layer(*parts, data=alt.Data(values=rows)).properties(width=size[0], height=size[1])
    order = list(dict.fromkeys(row[panels] for row in rows if row["layer"] == "point")) if panels else []
    if not order:
        return figure
    return figure.facet(alt.Facet(f"{panels}:N", sort=order, title=None), columns=4)


def _domain(rows: Records, y: str, log: bool) -> list[float]:
    """Return the ends of the y axis: points and limits, and so much of lines and intervals as goes on a share of their span."""

    def values(layers: Collection[str], *columns: str) -> list[float]:
        numbers = [row[name] for row in rows if row["layer"] in layers for name in columns if row.get(name) is not None]
        return [math.log(number) if log else number for number in numbers if number > 0 or not log]

    if not (whole := values(WHOLE, y)):
        return [1.0, 10.0]
    low, high = min(whole), max(whole)
    span, ends = (high - low) or 0.1 * (abs(high) or 1), [low, high]
    for share, numbers in ((0.15, values(PARTLY, y)), (0.5, values({"point", "band", "span"}, "low", "high"))):
        ends += [min(max(number, low - share * span), high + share * span) for number in numbers]
    bottom, top = min(ends) - span / 40, max(ends) + span / 40
    return [math.exp(bottom), math.exp(top)] if log else [bottom, top]


def _right_marks(base: alt.Chart, domain: list[float], width: int) -> list[alt.Chart]:
    field = base.encoding.y.shorthand.split(":")[0]
    at_right = base.transform_filter(f"inrange(datum.{field}, {domain})").encode(x=alt.value(width))
    tick = at_right.mark_tick(width=6, thickness=1, orient="horizontal", color=FAINT)
    return [tick, at_right.mark_text(align="left", dx=6, fontSize=10, color=FAINT).encode(text="mark:N")]


def _from_low_to_high(base: alt.Chart, up: alt.Y, domain: list[float]) -> alt.Chart:
    """An interval; where one of its ends is missing it goes to the end of the axis."""
    low, high = (f"isValid(datum.{end}) ? datum.{end} : {edge}" for end, edge in zip(("low", "high"), domain, strict=True))
    bottom = up.copy()
    bottom.shorthand = "bottom:Q"
    either = base.transform_filter("isValid(datum.low) || isValid(datum.high)")
    return either.transform_calculate(bottom=low, top=high).encode(y=bottom, y2="top:Q")


def _points(base: alt.Chart, up: alt.Y, domain: list[float], height: int) -> list[alt.Chart]:
    endless = base.transform_filter("isValid(datum.low) != isValid(datum.high)")
    above, below = (endless.transform_filter(f"!isValid(datum.{end})") for end in ("high", "low"))
    return [
        _from_low_to_high(base, up, domain).mark_rule(strokeWidth=2, clip=True),
        above.encode(y=alt.value(0)).mark_point(shape="triangle-up", size=70, filled=True, opacity=1),
        below.encode(y=alt.value(height)).mark_point(shape="triangle-down", size=70, filled=True, opacity=1),
        base.mark_point(size=45, filled=True, opacity=1, clip=True),
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


def limits_chart(rows: Records, recipes: Sequence[str], title: str = "") -> alt.FacetChart:
    """Return loss against total parameters (log), a panel each budget D: the paper's first figure.

    `rows` and `recipes`: those of `study_limits`. Losses in nats per token.
    """
    x = log_axis("parameters_total", "parameters (total)")
    tooltip = ["recipe:N", "size:N", "members:Q", "state:N", *tooltips(".4f", "val_loss", "low", "high")]
    budgets = {row["panel"] for row in rows if row["layer"] == "point"}
    width = max(150, min(230, 760 // max(1, len(budgets))))
    note = [
        "Filled: certified optimum; hollow: on the grid's edge, or open. Bars: 90%, run-to-run noise. Dashed: law over N.",
        "Thin: ensembles of 1, 2, ... members. Dotted: the recipe's limit. Right: data efficiency, by the baseline's data law.",
    ]
    title = alt.TitleParams(title, subtitle=note) if title else alt.TitleParams(note, fontSize=12)
    figure = law_figure(rows, x, "val_loss", recipe_colour(recipes, rows), tooltip, panels="panel", size=(width, 300))
    return figure.properties(title=title)


def laws_chart(points: Records, laws: Records, x: str, y: str) -> alt.LayerChart:
    """Return points (group, x, y) with their laws (the same, on a fine grid) dashed, x log; `x` and `y` name the axes."""
    rows = [{"layer": layer, "line": row["group"], **row} for layer, of in (("law", laws), ("point", points)) for row in of]
    groups = palette(row["group"] for row in points)
    colour = alt.Color("group:N", scale=groups, title=None, legend=alt.Legend() if len(groups.domain) > 1 else None)
    return law_figure(rows, log_axis("x", x), "y", colour, y_title=y)


def require_chart_suffix(path: Path) -> None:
    """Raise `InputError` for a file name that says no kind of chart."""
    if path.suffix not in (".svg", ".png", ".html"):
        raise InputError(f"{path}: a chart cannot be written as '{path.suffix}'; valid: .svg, .png, .html")


def save_chart(chart: alt.TopLevelMixin, path: Path) -> None:
    """Write a chart for light pages as .svg, .png or .html, by the suffix of `path`. Raises `InputError` for another."""
    require_chart_suffix(path)
    path.write_bytes(chart_bytes(themed(chart), path.suffix[1:]))


def chart_bytes(chart: alt.TopLevelMixin, form: str) -> bytes:
    """Return a themed chart as a file of `form` "svg", "png" (two pixels a point) or "html" (which needs no network)."""
    import vl_convert

    text = chart.to_json()
    if form == "png":
        return vl_convert.vegalite_to_png(text, scale=2)
    return (vl_convert.vegalite_to_svg(text) if form == "svg" else vl_convert.vegalite_to_html(text, bundle=True)).encode()
