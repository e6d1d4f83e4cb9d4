"""How a cell was searched: the points of its grid that were run, in which order, what its certificate lacks, and what mattered.

Of a point, `loss` is what the search compared (with objective 'K' the limit of its members), `single` the mean loss of the
single models trained there (both nats/token), `number` its place in the search. A panel shows the first two tuned axes, x and
y, at one value of the others. Nothing is interpolated: what was not run is empty.
"""

import json
from itertools import groupby, product
from operator import itemgetter

import altair as alt
import duckdb

from dataeff.records.queries import records
from dataeff.reports.charts import LOSS
from dataeff.reports.frames import Records
from dataeff.reports.theme import ALARM, GREY, LIGHT, LINES, PALETTE, Chart

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
    train_seed, data_seed, if(objective = 'K', objective_loss, NULL) AS members_together, run.val_loss, status,
    coalesce(point.is_best, false) AS at_optimum, run.reason, trial.run_id
FROM trial JOIN cell USING (cell_id) JOIN run USING (run_id)
    LEFT JOIN grid_point AS point ON point.cell_id = trial.cell_id AND point.coordinates = trial.coordinates
WHERE trial.cell_id = $1 ORDER BY number, role <> 'search', train_seed, data_seed, trial.run_id
"""

PERTURBATION = """
SELECT gamma, models, noises, base_loss, val_loss, rise, rise_error, reason FROM perturbation WHERE cell_id = $1 ORDER BY gamma
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


def search_chart(tuned: list[str], points: Records, value: str = "loss") -> Chart:
    """Return heat maps of `value`, a column of `points`, over the first two of the axes `tuned`; of a single axis one row."""
    rows, losses = [], [point[value] for point in points if point[value] is not None]
    least, most = min(losses, default=0.0), max(losses, default=0.0)
    for point in points:
        label = {"diverged": "\u00d7", "missing": "?"}.get(point["state"], "")
        label += "" if point["number"] is None else str(point["number"])
        excess = None if point[value] is None else point[value] - least
        best = point["is_best"] if value == "loss" else excess == 0
        rows.append({**point, "label": label, "excess": excess, "is_best": best})
    panels = {f"panel {number}": [*own] for number, (_, own) in enumerate(groupby(rows, itemgetter("panel")))}
    drawn = [_grid(name, own, tuned, (most - least) or 1e-9) for name, own in panels.items()]
    chart = alt.concat(*drawn, columns=3, spacing=20).to_dict(validate=False)  # in Altair rows would take a second
    return chart | {"datasets": panels}


def _grid(data: str, panel: Records, tuned: list[str], worst: float) -> alt.LayerChart:
    """Return one panel: squares coloured by `excess` on a square-root scale, which sets points near the best apart, the path of
    the search, and bars along the edges that the optimum lies on, where it is here; the title says other edges.
    """
    xs, ys = (sorted({point[axis] for point in panel}) for axis in "xy")
    right, bottom = SQUARE * len(xs), SQUARE * len(ys)
    ends = {"x lower": 0, "x upper": right, "y lower": bottom, "y upper": 0}
    title, bars, bar = panel[0]["panel"], [], alt.Chart(alt.Data(values=[{}])).mark_rule(color=ALARM, strokeWidth=4)
    for edge in (edge for point in panel for edge in point["edges"] or ()):
        name, side = edge.rsplit(" ", 1)
        axis = "xy"[tuned.index(name)] if name in tuned[:2] else None
        bars += [bar.encode(**{axis: alt.value(ends[f"{axis} {side}"])})] if axis else []
        title += "" if axis else f" ({side} edge)"
    for i, point in enumerate(sorted((point for point in panel if point["number"] is not None), key=itemgetter("number"))):
        point["piece"] = point["number"] - i  # a search leaves a panel and comes back
    (across, up), axis = [name.replace("_", " ") for name in [*tuned, ""][:2]], {"format": "~g", "labelAngle": 0, "ticks": False}
    x = alt.X("x:O", title=across, scale=alt.Scale(domain=xs, padding=0)).axis(**axis, grid=False)
    y = alt.Y("y:O", title=up, scale=alt.Scale(domain=ys[::-1], padding=0)).axis(**axis, grid=False)
    legend = alt.Legend(gradientLength=220, values=[0, worst / 16, worst / 4, worst], format=".2~g", titleLimit=300)
    scale = alt.Scale(type="sqrt", scheme="viridis", reverse=True, domain=[0, worst])
    colour = alt.Color("excess:Q", title="above the best (nats/token)", scale=scale, legend=legend)
    ink = alt.when("!isValid(datum.excess)").then(alt.value(ALARM))
    ink = ink.when(f"datum.excess < {0.32 * worst}").then(alt.value(LIGHT["ink"])).otherwise(alt.value("#ffffff"))
    base, inner = alt.Chart().encode(x, y), {"filled": False, "width": {"band": 0.84}, "height": {"band": 0.84}}
    squares = base.encode(tooltip=TOOLTIP)
    path = base.transform_filter("datum.piece != null").encode(order="number:Q", detail="piece:N")
    corner = {"dx": 6 - SQUARE / 2, "dy": 9 - SQUARE / 2, "align": "left", "fontSize": 10}
    return alt.layer(
        squares.mark_rect(filled=False, stroke=LINES),
        squares.transform_filter("isValid(datum.excess)").mark_rect().encode(color=colour),
        squares.transform_filter("datum.is_best").mark_rect(**inner, stroke=LIGHT["ink"], strokeWidth=2.5),
        squares.transform_filter("datum.label").mark_text(**corner).encode(text="label:N", color=ink),
        base.transform_filter("datum.state == 'missing'").mark_rect(**inner, stroke=ALARM, strokeDash=[3, 3]),
        path.mark_line(strokeWidth=1, color=GREY),
        *bars,
        data=alt.NamedData(data),
        title=alt.TitleParams(title, fontSize=12, anchor="middle"),
        view=alt.ViewBackground(stroke=GREY, strokeOpacity=0.4),
        width=right,
        height=bottom,
    )


def history_chart(points: Records) -> Chart:
    """Return the loss of each point in the order of the search, and the best so far as a line."""
    rows, tried = [p for p in points if p["number"] is not None and p["loss"] is not None], alt.Chart(alt.NamedData("tried"))
    best = tried.transform_window(best="min(loss)", sort=[{"field": "number"}], frame=[None, 0])
    x, scale = alt.X("number:Q", title="order of the search").axis(format="d", tickMinStep=1), alt.Scale(zero=False)
    best = best.mark_line(interpolate="step-after", color=GREY).encode(x, alt.Y("best:Q", title=LOSS, scale=scale))
    points = tried.mark_point(filled=True, opacity=1, color=PALETTE[0]).encode(x, alt.Y("loss:Q", scale=scale), tooltip=TOOLTIP)
    return alt.layer(best, points).properties(width=400, height=200).to_dict(validate=False) | {"datasets": {"tried": rows}}


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
