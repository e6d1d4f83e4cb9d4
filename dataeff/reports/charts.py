"""Charts as pure functions from frames to Altair: no query, no file, no page.

Frames are lists of records, as `dataeff.reports.frames` makes them. The same charts serve the command line, the
report, the dashboard and notebooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt

from dataeff.errors import InputError
from dataeff.reports.theme import chart_config, faint, page_colour, recipe_colours

Records = list[dict[str, Any]]


def recipe_colour(recipes: Sequence[str], points: Records) -> alt.Color:
    """Return the colour of a recipe among the study's; the legend names those of the points."""
    drawn = {p["recipe"] for p in points}
    colours = {recipe: colour for recipe, colour in recipe_colours(recipes).items() if recipe in drawn}
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    return alt.Color("recipe:N", scale=scale, title=None, legend=alt.Legend(symbolOpacity=1, symbolType="circle", columns=4))


def limits_chart(
    points: Records,
    laws: Records,
    curves: Records,
    limits: Records,
    worth: Records,
    recipes: Sequence[str],
    title: str = "",
    dark: bool = False,
) -> alt.HConcatChart:
    """Return loss against total parameters (log), one panel a budget D: the paper's first figure.

    `points`: one record a cell (recipe, seed_tokens, size, members, parameters_total, val_loss, low, high, state), where the
    parameters are those of all members. `laws`: the fitted laws on a fine grid (recipe, seed_tokens, parameters_total,
    val_loss), drawn dashed. `curves`: ensembles of 1, 2, ... members, one record each, like points, drawn thin.
    `limits`: one record a recipe and D (recipe, seed_tokens, limit_loss, limit_low, limit_high, kind), drawn dotted.
    `worth`: losses by the baseline's data law (seed_tokens, ratio, val_loss), the axis of data efficiency on the right.
    Losses in nats per token.
    """
    colours = recipe_colours(recipes)
    colour = alt.Color("recipe:N", scale=alt.Scale(domain=list(colours), range=list(colours.values())), title=None)
    losses = [r[k] for r in (*points, *laws, *curves) for k in ("val_loss", "low", "high") if r.get(k) is not None]
    losses += [r["limit_loss"] for r in limits if r["limit_loss"] is not None]
    low, high = (min(losses), max(losses)) if losses else (0, 1)
    margin = 0.04 * (high - low)
    scale = alt.Scale(domain=[low - margin, high + margin], zero=False, nice=False)
    sizes = [record["parameters_total"] for record in (*points, *laws, *curves)] or [1, 10]
    across = alt.Scale(type="log", domain=[min(sizes) * 0.8, max(sizes) * 1.25], nice=False)
    budgets = sorted({record["seed_tokens"] for record in points})
    width, panels = max(150, min(230, 760 // max(1, len(budgets)))), []
    for place, seed_tokens in enumerate(budgets):

        def of_budget(records: Records, seed_tokens: int = seed_tokens) -> alt.Data:
            return alt.Data(values=[r for r in records if r["seed_tokens"] == seed_tokens])

        y_axis = alt.Axis(title="validation loss (nats/token)" if place == 0 else None, labels=place == 0, ticks=False)
        x = alt.X("parameters_total:Q", scale=across, title="parameters (total)").axis(format="~s", tickCount=4, grid=False)
        y = alt.Y("val_loss:Q", scale=scale, axis=y_axis)
        tooltip = ["recipe:N", "size:N", "members:Q", "state:N", alt.Tooltip("val_loss:Q", format=".4f")]
        scaled = [r for r in worth if low - margin <= r["val_loss"] <= high + margin]
        at_right = alt.Chart(of_budget(scaled)).encode(x=alt.value(width), y=alt.Y("val_loss:Q", scale=scale, axis=y_axis))
        panels.append(
            alt.layer(
                at_right.mark_tick(width=6, thickness=1, orient="horizontal", color=faint(dark)),
                at_right.mark_text(align="left", dx=6, fontSize=10, color=faint(dark)).encode(text=alt.Text("ratio:N")),
                alt.Chart(of_budget(limits))
                .mark_rule(strokeDash=[2, 3], strokeWidth=1.5)
                .encode(y=alt.Y("limit_loss:Q", scale=scale, axis=y_axis), color=colour),
                alt.Chart(of_budget(laws)).mark_line(strokeDash=[6, 4], strokeWidth=1.5).encode(x=x, y=y, color=colour),
                alt.Chart(of_budget(curves))
                .mark_line(strokeWidth=1, point={"size": 12})
                .encode(x=x, y=y, color=colour, detail="size:N"),
                alt.Chart(of_budget(points))
                .mark_rule(strokeWidth=2)
                .encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour),
                alt.Chart(of_budget(points))
                .mark_point(size=45, strokeWidth=2, opacity=1)
                .encode(
                    x=x,
                    y=y,
                    color=colour,
                    fill=alt.condition("datum.state === 'certified'", colour, alt.value(page_colour(dark))),
                    tooltip=tooltip,
                ),
            ).properties(width=width, height=300, title=f"D = {seed_tokens:,} tokens")
        )
    note = [
        "Filled: certified optimum; hollow: on the grid's edge, or open. Bars: 90%, run-to-run noise.",
        "Dashed: law over N. Thin: ensembles of 1, 2, ... members. Dotted: the recipe's limit. Right: data efficiency, by the"
        " baseline's data law.",
    ]
    return (
        alt.hconcat(*panels, spacing=16)
        .resolve_scale(y="shared", color="shared")
        .properties(title=alt.TitleParams(title, subtitle=note) if title else alt.TitleParams(note, fontSize=12))
        .configure(**chart_config(dark))
    )


def laws_chart(points: Records, laws: Records, x: str, y: str, dark: bool = False) -> alt.LayerChart:
    """Return points (group, x, y) with their laws (the same, on a fine grid) dashed, x log; `x` and `y` name the axes."""
    colours = recipe_colours(list(dict.fromkeys(record["group"] for record in points)))
    scale, legend = alt.Scale(domain=list(colours), range=list(colours.values())), alt.Legend() if len(colours) > 1 else None
    colour = alt.Color("group:N", scale=scale, title=None, legend=legend)
    across = alt.X("x:Q", scale=alt.Scale(type="log", nice=False), title=x).axis(format="~s", grid=False, tickCount=5)
    down = alt.Y("y:Q", scale=alt.Scale(zero=False), title=y)
    return (
        alt.layer(
            alt.Chart(alt.Data(values=laws)).mark_line(strokeDash=[6, 4], strokeWidth=1.5).encode(across, down, colour),
            alt.Chart(alt.Data(values=points)).mark_point(size=45, filled=True, opacity=1).encode(across, down, colour),
        )
        .properties(width=420, height=300)
        .configure(**chart_config(dark))
    )


def require_chart_suffix(path: Path) -> None:
    """Raise `InputError` for a file name that says no kind of chart."""
    if path.suffix not in (".svg", ".png", ".html"):
        raise InputError(f"{path}: a chart cannot be written as '{path.suffix}'; valid: .svg, .png, .html")


def save_chart(chart: alt.TopLevelMixin, path: Path) -> None:
    """Write a chart as .svg, .png (two pixels a point) or .html, by the suffix of `path`. Raises `InputError` for another."""
    require_chart_suffix(path)
    path.write_bytes(chart_bytes(chart, path.suffix[1:]))


def chart_bytes(chart: alt.TopLevelMixin, form: str) -> bytes:
    """Return a chart as a file of `form` "svg", "png" (two pixels a point) or "html" (which needs no network)."""
    import vl_convert

    text = chart.to_json()
    if form == "png":
        return vl_convert.vegalite_to_png(text, scale=2)
    return (vl_convert.vegalite_to_svg(text) if form == "svg" else vl_convert.vegalite_to_html(text, bundle=True)).encode()
