"""How a cell was searched: its grid, the points that were run and in which order, and what its certificate rests on.

    x, y     the first two tuned axes; a panel for each value of the others where something was run or is missing
    number   place of a point in the search; the path joins points that follow each other within a panel
    missing  neighbours of the optimum, and of points tied with it, that were not run: what an open certificate lacks

With objective 'K' the value of a point is the limit of its members (`grid_point`). Nothing is interpolated: what was not run
is empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from dataeff.errors import InputError
from dataeff.records.queries import records
from dataeff.reports.theme import PALETTE, chart_config

if TYPE_CHECKING:
    import duckdb

Records = list[dict[str, Any]]
SQUARE = 34  # of a grid point (pixels)

# Every point of the panels in which something was run or is missing. `stretch` numbers the pieces of the path that stay in one.
GRID = """
WITH RECURSIVE this AS (
    SELECT shape, axes::MAP(VARCHAR, DOUBLE[]) AS axes, list_filter(range(1, len(shape) + 1), lambda i: shape[i] > 1) AS tuned
    FROM cell WHERE cell_id = $1
), point AS MATERIALIZED (
    SELECT coordinates, run_id, val_loss, edges, missing, is_best, number
    FROM (FROM grid_point WHERE cell_id = $1) LEFT JOIN (SELECT coordinates, min(number) AS number FROM trial
        WHERE cell_id = $1 AND role = 'search' GROUP BY coordinates) USING (coordinates)
), plateau AS (
    SELECT coordinates FROM point WHERE is_best
    UNION
    SELECT point.coordinates FROM plateau JOIN point
        ON missing IS NOT NULL AND list_distance(point.coordinates::DOUBLE[], plateau.coordinates::DOUBLE[]) = 1
), gap AS (
    SELECT DISTINCT coordinates FROM (SELECT unnest(neighbours(coordinates, shape)) AS coordinates FROM plateau, this)
        ANTI JOIN point USING (coordinates)
), mark AS (
    SELECT coordinates, true AS was_run FROM point UNION ALL SELECT coordinates, false FROM gap
), panel AS (
    SELECT DISTINCT list_transform(coordinates, lambda c, i: if(list_contains(tuned[:2], i), 0, c)) AS panel FROM mark, this
), square AS (
    SELECT panel, shape, axes, tuned,
        list_transform(panel, lambda c, i: CASE i WHEN tuned[1] THEN across WHEN tuned[2] THEN up ELSE c END) AS coordinates
    FROM panel, this, unnest(range(coalesce(shape[tuned[1]], 1))) AS xs(across),
        unnest(range(coalesce(shape[tuned[2]], 1))) AS ys(up)
), placed AS (
    SELECT *, list_transform(tuned, lambda i: map_keys(axes)[i] || ' ' || format('{:g}', valued[i])) AS said
    FROM (SELECT *, list_transform(coordinates, lambda c, i: map_values(axes)[i][c + 1]) AS valued FROM square)
), path AS (
    SELECT coordinates, sum(moved) OVER (ORDER BY number) AS stretch
    FROM (SELECT coordinates, number, coalesce((panel <> lag(panel) OVER (ORDER BY number))::INT, 0) AS moved
        FROM point JOIN placed USING (coordinates))
)
SELECT coordinates, valued[tuned[1]] AS x, valued[tuned[2]] AS y, panel AS place,
    array_to_string(said[3:], ', ') AS panel, array_to_string(said, ', ') AS point,
    CASE WHEN NOT was_run THEN 'missing' WHEN was_run IS NULL THEN 'not run' WHEN val_loss IS NULL THEN 'diverged' ELSE 'run' END
        AS state,
    number, val_loss, val_loss - min(val_loss) OVER () AS excess, coalesce(is_best, false) AS is_best,
    if(is_best, edges, NULL) AS edges, run_id, stretch
FROM placed LEFT JOIN mark USING (coordinates) LEFT JOIN point USING (coordinates) LEFT JOIN path USING (coordinates)
ORDER BY place, coordinates
"""

RUNS = """
SELECT number, role, map(json_keys(axes), list_transform(trial.coordinates, lambda c, i:
        map_values(axes::MAP(VARCHAR, DOUBLE[]))[i][c + 1])) AS axes,
    train_seed, data_seed, if(objective = 'K', point.val_loss, NULL) AS limit_in_k, run.val_loss, status,
    coalesce(point.is_best, false) AS at_optimum, reason, 'runs?run=' || trial.run_id AS run
FROM trial JOIN cell USING (cell_id) JOIN run USING (run_id)
    LEFT JOIN grid_point AS point ON point.cell_id = trial.cell_id AND point.coordinates = trial.coordinates
WHERE trial.cell_id = $1
ORDER BY number, role <> 'search', train_seed, data_seed, trial.run_id
"""


def cell_search(connection: duckdb.DuckDBPyConnection, cell_id: str) -> tuple[Records, Records]:
    """Return the points of a cell's grid, for `search_chart`, and its runs in the order of the search. Losses in nats/token."""
    found = records(connection, RUNS, [cell_id])
    runs = [{"number": run["number"], "role": run["role"], **run.pop("axes"), **run} for run in found]
    return records(connection, GRID, [cell_id]), runs


def search_chart(cell: dict[str, Any], points: Records, dark: bool = False) -> alt.ConcatChart:
    """Return a cell's search: heat maps over its first two tuned axes, a panel for each value of the others; a line for one.

    `cell` is a record of `study_cells`, `points` those of `cell_search`. Colour is the loss above the best one (nats/token) on
    a square-root scale, so that points near the optimum can be told apart. Raises `InputError` where nothing is tuned.
    """
    if not cell["tuned"]:
        raise InputError(f"nothing is tuned in cell {cell['cell_id']}: its grid is one point; look at the cell it follows")
    worst = max((record["excess"] for record in points if record["excess"] is not None), default=0.0) or 1e-9
    panels: dict[tuple[int, ...], Records] = {}
    for record in points:
        panels.setdefault(tuple(record["place"]), []).append({**record, "label": _label(record)})
    drawn = [
        _heat_map(panel, cell["tuned"], worst, dark) if len(cell["tuned"]) > 1 else _line(panel, cell["tuned"], dark)
        for panel in panels.values()
    ]
    what = "loss" if cell["objective"] == "single" else f"limit in K of {cell['members']} members"
    title = f"{cell['recipe']}, D = {cell['seed_tokens']:,} tokens, {cell['size']}: {what} at the points of the grid"
    return (
        alt.concat(*drawn, columns=3, spacing=20)
        .properties(title=alt.TitleParams(title, subtitle=_said(cell, points), offset=12))
        .configure(**chart_config(dark))
    )


def _label(record: dict[str, Any]) -> str:
    number = "" if record["number"] is None else str(record["number"])
    return {"run": number, "diverged": f"\u00d7{number}", "missing": "?"}.get(record["state"], "")


def _said(cell: dict[str, Any], points: Records) -> list[str]:
    """What the marks mean: those that are drawn."""
    states = {record["state"] for record in points}
    said = ["Numbers: order of the search."]
    said += [f"Outlined: the optimum, {cell['best_loss']:.4f} nats/token."] if cell["best_loss"] is not None else []
    said += ["\u00d7: diverged."] if "diverged" in states else []
    said += ["?: neighbour of the optimum that was not run."] if "missing" in states else []
    said += [f"Bar: edge of the grid that the optimum lies on ({', '.join(cell['edges'])})."] if cell["edges"] else []
    return [" ".join(said), *(["Panels without a mark are left out."] if len(cell["tuned"]) > 2 else [])]


def _inks(dark: bool) -> tuple[str, str, str]:
    """Text, empty squares, and what asks for attention."""
    return ("#eeeeee", "#3a3a3a", PALETTE[1]) if dark else ("#1a1a1a", "#dedede", PALETTE[1])


def _edges(panel: Records, tuned: list[str], width: int, height: int, alarm: str) -> tuple[list[alt.Chart], str]:
    """Bars along the edges that the optimum lies on, where it is in this panel, and the panel's title, which says the rest."""
    places = {"x": {"lower": 0, "upper": width}, "y": {"lower": height, "upper": 0}}
    bars, title = [], panel[0]["panel"]
    for name, side in (edge.rsplit(" ", 1) for record in panel for edge in record["edges"] or ()):
        axis = dict(zip(tuned, "xy", strict=False)).get(name)
        if axis is None:
            title += f" ({side} edge)"
        else:
            bar = alt.Chart(alt.Data(values=[{}])).mark_rule(color=alarm, strokeWidth=4)
            bars.append(bar.encode(**{axis: alt.value(places[axis][side])}))
    return bars, title


def _heat_map(panel: Records, tuned: list[str], worst: float, dark: bool) -> alt.LayerChart:
    _, faint, alarm = _inks(dark)
    xs, ys = (sorted({record[axis] for record in panel}) for axis in "xy")
    width, height = SQUARE * len(xs), SQUARE * len(ys)
    axis = alt.Axis(format="~g", labelAngle=0, labelPadding=5, ticks=False, grid=False)
    x = alt.X("x:O", title=tuned[0].replace("_", " "), scale=alt.Scale(domain=xs, padding=0), axis=axis)
    y = alt.Y("y:O", title=tuned[1].replace("_", " "), scale=alt.Scale(domain=ys[::-1], padding=0), axis=axis)
    colour = alt.Color(
        "excess:Q",
        title="above the best (nats/token)",
        scale=alt.Scale(type="sqrt", scheme="viridis", domain=[0, worst], reverse=dark),
        legend=alt.Legend(gradientLength=220, values=[0, worst / 16, worst / 4, worst], format=".2~g"),
    )
    near, far = ("#1a1a1a", "#ffffff") if dark else ("#ffffff", "#1a1a1a")  # on the colours of good and bad losses
    good = f"datum.excess < {(0.32 if dark else 0.18) * worst}"  # where either ink is as easy to read
    number = alt.when(good).then(alt.value(near)).otherwise(alt.value(far))
    tooltip = ["point:N", "state:N", alt.Tooltip("number:Q", title="order"), alt.Tooltip("val_loss:Q", format=".4f")]

    def of(kept: bool | str) -> alt.Chart:
        chosen = [r for r in panel if kept is True or r["state"] == kept or (kept == "best" and r["is_best"])]
        return alt.Chart(alt.Data(values=chosen)).encode(x=x, y=y)

    bars, title = _edges(panel, tuned, width, height, alarm)
    corner = {"fontSize": 10, "dx": -8, "dy": -7}  # off the path
    inner = {"width": alt.RelativeBandSize(0.84), "height": alt.RelativeBandSize(0.84), "filled": False}
    return alt.layer(
        of(True).mark_rect(filled=False, stroke=faint, strokeWidth=1),
        of("run").mark_rect().encode(color=colour, tooltip=tooltip),
        of("missing").mark_rect(stroke=alarm, strokeDash=[3, 3], strokeWidth=1.5, **inner),
        of("missing").mark_text(fontSize=13, color=alarm).encode(text="label:N", tooltip=tooltip),
        of(True)
        .transform_filter("datum.number !== null")
        .mark_line(strokeWidth=1, color="#8C8C8C")
        .encode(order="number:Q", detail="stretch:N"),
        of("best").mark_rect(stroke=near, strokeWidth=2.5, **inner),
        of("run").mark_text(**corner).encode(text="label:N", color=number, tooltip=tooltip),
        of("diverged").mark_text(**corner | {"dx": 0}, color=alarm, fontWeight="bold").encode(text="label:N", tooltip=tooltip),
        *bars,
    ).properties(width=width, height=height, title=alt.TitleParams(title, fontSize=12, anchor="middle"))


def _line(panel: Records, tuned: list[str], dark: bool) -> alt.LayerChart:
    ink, faint, alarm = _inks(dark)
    width, height = 420, 260
    xs = sorted(record["x"] for record in panel)
    scale = alt.Scale(type="log" if xs[0] > 0 else "linear", nice=False, padding=24)
    x = alt.X("x:Q", title=tuned[0].replace("_", " "), scale=scale)
    x = x.axis(format="~g", values=xs, gridColor=faint, labelOverlap=False)
    y = alt.Y("val_loss:Q", title="validation loss (nats/token)", scale=alt.Scale(zero=False))
    tooltip = ["point:N", "state:N", alt.Tooltip("number:Q", title="order"), alt.Tooltip("val_loss:Q", format=".4f")]

    def of(*states: str) -> alt.Chart:
        return alt.Chart(alt.Data(values=[r for r in panel if r["state"] in states])).encode(x=x, tooltip=tooltip)

    best = alt.Chart(alt.Data(values=[r for r in panel if r["is_best"]]))
    bars, _ = _edges(panel, tuned, width, height, alarm)
    return alt.layer(
        of("run").mark_line(strokeWidth=1, color="#8C8C8C").encode(y=y),
        of("run").mark_point(filled=True, opacity=1, size=50, color=PALETTE[0]).encode(y=y),
        best.mark_point(size=220, strokeWidth=2.5, color=ink, shape="square").encode(x=x, y=y),
        of("run").mark_text(dy=-16, color=ink).encode(y=y, text="label:N"),
        of("diverged", "missing").mark_rule(strokeDash=[3, 3], color=alarm),
        of("diverged", "missing").mark_text(dy=12, dx=10, color=alarm).encode(y=alt.value(0), text="label:N"),
        *bars,
    ).properties(width=width, height=height)
