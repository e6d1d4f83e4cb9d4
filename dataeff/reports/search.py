"""How a cell was searched: the points of its grid that were run, in which order, what its certificate lacks, and what mattered.

Of a point, `loss` is what the search compared (with objective 'K' the limit of its members), `single` the mean loss of the
single models trained there (both nats/token), `number` its place in the search. A panel shows the first two tuned axes, x and
y, at one value of the others. Nothing is interpolated: what was not run is empty.
"""

from __future__ import annotations

import json
from itertools import product
from typing import TYPE_CHECKING

import altair as alt

from dataeff.records.queries import records
from dataeff.reports.charts import LOSS, heat_map
from dataeff.reports.frames import Records, by_key
from dataeff.reports.theme import ALARM, GREY, PALETTE

if TYPE_CHECKING:
    import duckdb

SQUARE, LEAST_POINTS = 34, 5  # of a grid point (pixels); for an importance
TOOLTIP = ["point:N", "state:N", alt.Tooltip("number:Q", title="order"), alt.Tooltip("loss:Q", format=".4f"),
           alt.Tooltip("single:Q", format=".4f"), "runs:Q", "run_id:N"]  # fmt: skip

POINTS = """
SELECT coordinates, grid_point.run_id, objective_loss AS loss, avg(run.val_loss) AS single, count(run.val_loss) AS runs,
    min(number) FILTER (role = 'search') AS number, any_value(edges) AS edges, any_value(is_best) AS is_best
FROM grid_point JOIN trial USING (cell_id, coordinates) JOIN run ON run.run_id = trial.run_id
WHERE cell_id = $1 AND role IN ('search', 'member') GROUP BY ALL ORDER BY number
"""

RUNS = """
SELECT number, role, map(json_keys(axes), list_transform(trial.coordinates, lambda c, i:
        map_values(axes::MAP(VARCHAR, DOUBLE[]))[i][c + 1])) AS axes,
    train_seed, data_seed, if(objective = 'K', objective_loss, NULL) AS limit_in_k, run.val_loss, status,
    coalesce(point.is_best, false) AS at_optimum, run.reason, trial.run_id
FROM trial JOIN cell USING (cell_id) JOIN run USING (run_id)
    LEFT JOIN grid_point AS point ON point.cell_id = trial.cell_id AND point.coordinates = trial.coordinates
WHERE trial.cell_id = $1 ORDER BY number, role <> 'search', train_seed, data_seed, trial.run_id
"""


def cell_search(connection: duckdb.DuckDBPyConnection, cell_id: str) -> dict[str, Records]:
    """Return the `points` of the panels that are drawn, the `importances` of the axes, the `runs` in the order of the search."""
    (cell,) = records(connection, "SELECT axes, neighbours_missing FROM cell WHERE cell_id = $1", [cell_id])
    axes: dict[str, list[float]] = json.loads(cell["axes"])
    tuned = [i for i, values in enumerate(axes.values()) if len(values) > 1]
    names = [list(axes)[i] for i in tuned]
    run = {tuple(point["coordinates"][i] for i in tuned): point for point in records(connection, POINTS, [cell_id])}
    missing = {tuple(at[i] for i in tuned) for at in cell["neighbours_missing"] or ()}
    empty = dict.fromkeys(("run_id", "loss", "single", "runs", "number", "edges")) | {"is_best": False}
    points = []
    for place in sorted({at[2:] for at in (*run, *missing)}):
        for at in (xy + place for xy in product(*(range(len(axes[name])) for name in names[:2]))):
            values = [axes[name][i] for name, i in zip(names, at, strict=True)]
            texts, point = [f"{name} {value:g}" for name, value in zip(names, values, strict=True)], run.get(at)
            state = "missing" if at in missing else "not run" if not point else "run" if point["loss"] is not None else "diverged"
            here = {"at": at, "panel": ", ".join(texts[2:]), "point": ", ".join(texts), "state": state}
            points.append({**here, "y": "", **dict(zip("xy", values, strict=False)), **(point or empty)})
    runs = [{"number": 0, "role": "", **row.pop("axes"), **row} for row in records(connection, RUNS, [cell_id])]
    return {"points": points, "importances": importances(names, points), "runs": runs}


def search_chart(tuned: list[str], points: Records, value: str = "loss") -> alt.ConcatChart:
    """Return heat maps of `value`, a column of `points`, over the first two of the axes `tuned`; of a single axis one row."""
    least, rows = min((point[value] for point in points if point[value] is not None), default=0.0), []
    for point in points:
        label = {"diverged": "\u00d7", "missing": "?"}.get(point["state"], "")
        label += "" if point["number"] is None else str(point["number"])
        excess = None if point[value] is None else point[value] - least
        rows.append({**point, "label": label, "excess": excess, "is_best": point["is_best"] if value == "loss" else excess == 0})
    worst = max((row["excess"] for row in rows if row["excess"] is not None), default=0.0) or 1e-9
    return alt.concat(*(_grid(panel, tuned, worst) for panel in by_key(rows, "panel").values()), columns=3, spacing=20)


def _grid(panel: Records, tuned: list[str], worst: float) -> alt.LayerChart:
    """Return one panel, with bars along the edges that the optimum lies on, where it is here; the title says other edges."""
    axes = [(name, sorted({point[axis] for point in panel})) for name, axis in zip([*tuned[:2], ""], "xy", strict=False)]
    right, bottom = (SQUARE * len(values) for _, values in axes)
    ends = {"x lower": 0, "x upper": right, "y lower": bottom, "y upper": 0}
    title, bars, bar = panel[0]["panel"], [], alt.Chart(alt.Data(values=[{}])).mark_rule(color=ALARM, strokeWidth=4)
    for edge in (edge for point in panel for edge in point["edges"] or ()):
        name, side = edge.rsplit(" ", 1)
        axis = "xy"[tuned.index(name)] if name in tuned[:2] else None
        bars += [bar.encode(**{axis: alt.value(ends[f"{axis} {side}"])})] if axis else []
        title += "" if axis else f" ({side} edge)"
    base = alt.Chart().encode(x="x:O", y="y:O")
    path = sorted((point for point in panel if point["number"] is not None), key=lambda point: point["number"])
    pieces = [{**point, "piece": point["number"] - i} for i, point in enumerate(path)]  # a search leaves a panel and comes back
    path = base.properties(data=alt.Data(values=pieces)).mark_line(strokeWidth=1, color=GREY)
    missing = base.properties(data=alt.Data(values=[point for point in panel if point["state"] == "missing"]))
    return alt.layer(
        heat_map(panel, axes, worst, TOOLTIP, (SQUARE, SQUARE), corner=True),
        missing.mark_rect(filled=False, stroke=ALARM, strokeDash=[3, 3], width={"band": 0.84}, height={"band": 0.84}),
        path.encode(order="number:Q", detail="piece:N"),
        *bars,
    ).properties(title=alt.TitleParams(title, fontSize=12, anchor="middle"))


def history_chart(points: Records) -> alt.LayerChart:
    """Return the loss of each point in the order of the search, and the best so far as a line."""
    tried = alt.Chart(alt.Data(values=[point for point in points if point["number"] is not None and point["loss"] is not None]))
    best = tried.transform_window(best="min(loss)", sort=[{"field": "number"}], frame=[None, 0])
    x, scale = alt.X("number:Q", title="order of the search").axis(format="d", tickMinStep=1), alt.Scale(zero=False)
    best = best.mark_line(interpolate="step-after", color=GREY).encode(x, alt.Y("best:Q", title=LOSS, scale=scale))
    points = tried.mark_point(filled=True, opacity=1, color=PALETTE[0]).encode(x, alt.Y("loss:Q", scale=scale), tooltip=TOOLTIP)
    return alt.layer(best, points).properties(width=400, height=200)


def importances(tuned: list[str], points: Records) -> Records:
    """Return the importance of each tuned axis, 1 in all, by Optuna's PED-ANOVA over the points run; none for too few."""
    import optuna

    tried = [point for point in points if point["loss"] is not None]
    if len(tried) < LEAST_POINTS or len(tuned) < 2:
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study, steps = optuna.create_study(), [max(at) for at in zip(*(point["at"] for point in points), strict=True)]
    space = {name: optuna.distributions.IntDistribution(0, most) for name, most in zip(tuned, steps, strict=True)}
    for point in tried:
        params = dict(zip(tuned, point["at"], strict=True))
        study.add_trial(optuna.create_trial(params=params, distributions=space, value=point["loss"]))
    shares = optuna.importance.get_param_importances(study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
    return [{"axis": name, "importance": share} for name, share in shares.items()]
