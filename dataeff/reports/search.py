"""How a cell was searched: its grid, the points that were run and in which order, and what its certificate rests on.

    x, y     the first two tuned axes; a panel for each value of the others where something was run or is missing
    number   place of a point in the search; the path joins points that follow each other within a panel
    missing  neighbours of the optimum, and of points tied with it, that were not run: what an open certificate lacks

With objective 'K' the value of a point is the limit of its members (`grid_point`). Nothing is interpolated: what was not run
is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from dataeff.errors import InputError
from dataeff.records.queries import records
from dataeff.reports.charts import LOSS, heat_map
from dataeff.reports.frames import Records, by_key
from dataeff.reports.theme import ALARM, GREY, INK, PALETTE

if TYPE_CHECKING:
    import duckdb

SQUARE = 34  # of a grid point (pixels)
TOOLTIP = ["point:N", "state:N", alt.Tooltip("number:Q", title="order"), alt.Tooltip("val_loss:Q", format=".4f")]

# Every point of the panels in which something was run or is missing; the axes named in $2 come first among the tuned ones.
# `stretch` numbers the pieces of the path that stay in one panel.
GRID = """
WITH RECURSIVE this AS (
    SELECT shape, axes::MAP(VARCHAR, DOUBLE[]) AS axes, list_transform(list_sort(list_transform(
            list_filter(range(1, len(shape) + 1), lambda i: shape[i] > 1),
            lambda i: {rank: coalesce(list_position($2, json_keys(cell.axes)[i]), 9), i: i})), lambda ranked: ranked.i) AS tuned
    FROM cell WHERE cell_id = $1
), point AS MATERIALIZED (
    SELECT coordinates, run_id, objective_loss AS val_loss, edges, missing, is_best, number
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
    SELECT *, list_transform(tuned, lambda i: map_keys(axes)[i] || ' ' || format('{:g}', valued[i])) AS texts
    FROM (SELECT *, list_transform(coordinates, lambda c, i: map_values(axes)[i][c + 1]) AS valued FROM square)
), path AS (
    SELECT coordinates, sum(moved) OVER (ORDER BY number) AS stretch
    FROM (SELECT coordinates, number, coalesce((panel <> lag(panel) OVER (ORDER BY number))::INT, 0) AS moved
        FROM point JOIN placed USING (coordinates))
)
SELECT coordinates, map_keys(axes)[tuned[1]] AS x_name, valued[tuned[1]] AS x, map_keys(axes)[tuned[2]] AS y_name,
    valued[tuned[2]] AS y, panel AS place, array_to_string(texts[3:], ', ') AS panel, array_to_string(texts, ', ') AS point,
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
    train_seed, data_seed, if(objective = 'K', objective_loss, NULL) AS limit_in_k, run.val_loss, status,
    coalesce(point.is_best, false) AS at_optimum, run.reason, 'runs?run=' || trial.run_id AS run
FROM trial JOIN cell USING (cell_id) JOIN run USING (run_id)
    LEFT JOIN grid_point AS point ON point.cell_id = trial.cell_id AND point.coordinates = trial.coordinates
WHERE trial.cell_id = $1
ORDER BY number, role <> 'search', train_seed, data_seed, trial.run_id
"""


def cell_search(connection: duckdb.DuckDBPyConnection, cell_id: str) -> tuple[Records, Records]:
    """Return the points of a cell's grid, for `search_chart`, and its runs in the order of the search. Losses in nats/token."""
    runs = records(connection, RUNS, [cell_id])
    runs = [{"number": run["number"], "role": run["role"], **run.pop("axes"), **run} for run in runs]
    return cell_grid(connection, cell_id), runs


def cell_grid(connection: duckdb.DuckDBPyConnection, cell_id: str, first: Sequence[str] = ()) -> Records:
    """Return the points of a cell's grid; `first` are the axes to be x and y where they were tuned."""
    return records(connection, GRID, [cell_id, list(first)])


def grid_axes(points: Records) -> list[tuple[str, list[float]]]:
    """Return the name and the values of x and y, as `heat_map` takes them."""
    return [(points[0][f"{axis}_name"] or "", sorted({point[axis] for point in points})) for axis in "xy"]


def search_chart(cell: dict[str, Any], points: Records) -> alt.ConcatChart:
    """Return a cell's search: heat maps over its first two tuned axes, a panel for each value of the others; a line for one.

    `cell` is a record of `study_cells`, `points` those of `cell_search`. Colour is the loss above the best one (nats/token).
    Raises `InputError` where nothing is tuned.
    """
    if not cell["tuned"]:
        raise InputError(f"nothing is tuned in cell {cell['cell_id']}: its grid is one point; look at the cell it follows")
    worst = max((point["excess"] for point in points if point["excess"] is not None), default=0.0) or 1e-9
    panels = by_key([{**point, "label": _label(point), "place": tuple(point["place"])} for point in points], "place")
    drawn = [
        _grid(panel, cell["tuned"], worst) if len(cell["tuned"]) > 1 else _line(panel, cell["tuned"]) for panel in panels.values()
    ]
    what = "loss" if cell["objective"] == "single" else f"limit in K of {cell['members']} members"
    title = f"{cell['recipe']}, D = {cell['seed_tokens']:,} tokens, {cell['size']}: {what} at the points of the grid"
    return alt.concat(*drawn, columns=3, spacing=20).properties(
        title=alt.TitleParams(title, subtitle=_note(cell, points), offset=12)
    )


def _label(point: dict[str, Any]) -> str:
    number = "" if point["number"] is None else str(point["number"])
    return {"run": number, "diverged": f"\u00d7{number}", "missing": "?"}.get(point["state"], "")


def _note(cell: dict[str, Any], points: Records) -> list[str]:
    """What the marks mean: those that are drawn."""
    states = {point["state"] for point in points}
    note = ["Numbers: order of the search."]
    note += [f"Outlined: the optimum, {cell['best_loss']:.4f} nats/token."] if cell["best_loss"] is not None else []
    note += ["\u00d7: diverged."] if "diverged" in states else []
    note += ["?: neighbour of the optimum that was not run."] if "missing" in states else []
    note += [f"Bar: edge of the grid that the optimum lies on ({', '.join(cell['edges'])})."] if cell["edges"] else []
    return [" ".join(note), *(["Panels without a mark are left out."] if len(cell["tuned"]) > 2 else [])]


def _edges(panel: Records, tuned: list[str], width: int, height: int) -> tuple[list[alt.Chart], str]:
    """Bars along the edges that the optimum lies on, where it is in this panel, and the panel's title, which says the rest."""
    places = {"x": {"lower": 0, "upper": width}, "y": {"lower": height, "upper": 0}}
    bars, title = [], panel[0]["panel"]
    for name, side in (edge.rsplit(" ", 1) for point in panel for edge in point["edges"] or ()):
        axis = dict(zip(tuned, "xy", strict=False)).get(name)
        if axis is None:
            title += f" ({side} edge)"
        else:
            bar = alt.Chart(alt.Data(values=[{}])).mark_rule(color=ALARM, strokeWidth=4)
            bars.append(bar.encode(**{axis: alt.value(places[axis][side])}))
    return bars, title


def _grid(panel: Records, tuned: list[str], worst: float) -> alt.LayerChart:
    axes = grid_axes(panel)
    bars, title = _edges(panel, tuned, *(SQUARE * len(values) for _, values in axes))
    base = alt.Chart(alt.Data(values=panel)).encode(x="x:O", y="y:O")
    missing = base.transform_filter("datum.state === 'missing'")
    path = base.transform_filter("datum.number !== null").mark_line(strokeWidth=1, color=GREY)
    return alt.layer(
        heat_map(panel, axes, worst, TOOLTIP, (SQUARE, SQUARE), corner=True),
        missing.mark_rect(filled=False, stroke=ALARM, strokeDash=[3, 3], width={"band": 0.84}, height={"band": 0.84}),
        path.encode(order="number:Q", detail="stretch:N"),
        *bars,
    ).properties(title=alt.TitleParams(title, fontSize=12, anchor="middle"))


def _line(panel: Records, tuned: list[str]) -> alt.LayerChart:
    width, height = 420, 260
    xs = sorted(point["x"] for point in panel)
    scale = alt.Scale(type="log" if xs[0] > 0 else "linear", nice=False, padding=24)
    x = alt.X("x:Q", title=tuned[0].replace("_", " "), scale=scale).axis(format="~g", values=xs, labelOverlap=False)
    y = alt.Y("val_loss:Q", title=LOSS, scale=alt.Scale(zero=False))
    base = alt.Chart().encode(x, tooltip=TOOLTIP)
    run, other = base.transform_filter("datum.state === 'run'").encode(y), base.transform_filter("datum.state !== 'run'")
    bars, _ = _edges(panel, tuned, width, height)
    return alt.layer(
        run.mark_line(strokeWidth=1, color=GREY),
        run.mark_point(filled=True, opacity=1, size=50, color=PALETTE[0]),
        run.transform_filter("datum.is_best").mark_point(size=220, strokeWidth=2.5, color=INK, shape="square"),
        run.mark_text(dy=-16, color=INK).encode(text="label:N"),
        other.transform_filter("datum.label !== ''").mark_rule(strokeDash=[3, 3], color=ALARM),
        other.mark_text(dy=12, dx=10, color=ALARM).encode(y=alt.value(0), text="label:N"),
        *bars,
        data=alt.Data(values=panel),
    ).properties(width=width, height=height)
