"""What members are worth: the loss of K of them and its limit, against one model, and where on the grid each is best.

    single      mean loss of one model: of a point's members, each alone
    val_loss    loss of K members, their logits, probabilities or weights averaged; a mean over the subsets evaluated
    limit_loss  the law over K of `ensemble_asymptote`, as K grows; NULL with a reason

An ensemble here is the one of most members at its point. Losses in nats per token. What was not run is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np

from dataeff.laws.forms import PowerLaw
from dataeff.records.queries import records
from dataeff.reports.charts import recipe_colour
from dataeff.reports.frames import recipes
from dataeff.reports.theme import PALETTE, chart_config, page_colour

if TYPE_CHECKING:
    import duckdb

Records = list[dict[str, Any]]
BEYOND = 4  # laws are drawn to so many times the largest K

# Every ensemble of a study at one D under one averaging; of a cell's optimum where `is_best`. One of averaged weights knows only
# its first member alone, so `single` is taken from the averaging that has most.
ENSEMBLES = """
WITH one AS (
    SELECT ensemble_id, arg_max(val_loss, subsets) AS single FROM ensemble_size WHERE members = 1 GROUP BY ensemble_id
)
SELECT cell_id, recipe, cell.seed_tokens, cell.size, cell.parameters_total, ensemble_id, law.averaging, law.members, single,
    law.val_loss, limit_loss, e_low, e_high, a, alpha, e, rmse, interval_reason, law.reason,
    coalesce(best_run.coordinates = law.coordinates, false) AS is_best, list_aggregate(list_transform(law.coordinates,
        lambda c, i: map_keys(axis)[i] || ' ' || format('{:g}', map_values(axis)[i][c + 1])), 'string_agg', ', ') AS point
FROM ensemble_asymptote AS law JOIN (SELECT *, axes::MAP(VARCHAR, DOUBLE[]) AS axis FROM cell) AS cell USING (cell_id)
    LEFT JOIN (SELECT cell_id, coordinates FROM best_run) AS best_run USING (cell_id) LEFT JOIN one USING (ensemble_id)
WHERE study = $1 AND cell.seed_tokens = $2 AND law.averaging = $3
    AND (len($4) = 0 OR list_contains($4, recipe)) AND (len($5) = 0 OR list_contains($5, cell.size))
QUALIFY row_number() OVER (PARTITION BY cell_id, law.coordinates ORDER BY law.members DESC, ensemble_id DESC) = 1
ORDER BY cell.parameters_total, cell.size, recipe, is_best DESC, law.coordinates
"""

CURVES = """
SELECT recipe, cell.size, loss.members, loss.val_loss, least, greatest, subsets
FROM ensemble_size AS loss JOIN cell_ensemble USING (ensemble_id) JOIN cell USING (cell_id)
WHERE loss.averaging = $1 AND list_contains($2, cell_id || ensemble_id) AND loss.val_loss IS NOT NULL
ORDER BY ALL
"""

# Cells that ask for ensembles and have none at their optimum.
MISSING = """
SELECT recipe, cell.seed_tokens, cell.size, best.reason
FROM cell_limit AS best JOIN cell USING (cell_id, study, recipe)
WHERE study = $1 AND cell.seed_tokens = $2 AND ensemble_id IS NULL
    AND (cell.members > 1 OR cell.recipe_limit IN ('K', 'K then N'))
    AND (len($3) = 0 OR list_contains($3, recipe)) AND (len($4) = 0 OR list_contains($4, cell.size))
ORDER BY ALL
"""

CHOICES = """
WITH used AS (
    SELECT recipe, seed_tokens, size, parameters_total, averagings
    FROM cell JOIN cell_ensemble USING (cell_id)
        JOIN (SELECT ensemble_id, list(DISTINCT averaging) AS averagings FROM ensemble_loss GROUP BY ALL) USING (ensemble_id)
    WHERE study = $1
)
SELECT list(DISTINCT recipe ORDER BY recipe) AS recipes, list(DISTINCT seed_tokens ORDER BY seed_tokens DESC) AS seed_tokens,
    (SELECT list(size ORDER BY n, size) FROM (SELECT size, min(parameters_total) AS n FROM used GROUP BY size)) AS sizes,
    list_sort(list_distinct(flatten(list(averagings)))) AS averagings
FROM used
"""

TUNED = """
SELECT cell_id, recipe, seed_tokens, size, members, averaging
FROM cell JOIN (SELECT DISTINCT cell_id FROM grid_point) USING (cell_id)
WHERE study = $1 AND objective = 'K' AND seed_tokens = $2 ORDER BY recipe, parameters_total, size
"""

# Every point of a cell tuned for the limit in K. x and y are the first two tuned axes, epochs and weight decay before others;
# `held` says the values of the others. Without a limit a point counts, in the search too, by the loss of all its members.
GRID = """
WITH this AS (
    SELECT *, axes::MAP(VARCHAR, DOUBLE[]) AS axis, map_keys(axis) AS names,
        list_sort(list_transform(range(1, len(shape) + 1), lambda i: {fixed: shape[i] = 1, epochs: names[i] <> 'epochs',
            decay: names[i] <> 'weight_decay', i: i})) AS places,
        places[1].i AS across, places[2].i AS up, list_transform(places[3:], lambda place: place.i) AS others
    FROM cell WHERE cell_id = $1
), single AS (
    SELECT coordinates, avg(run.val_loss) AS val_loss, count(run.val_loss) AS runs
    FROM trial JOIN run USING (run_id) WHERE cell_id = $1 AND role IN ('search', 'member') GROUP BY coordinates
), law AS (
    SELECT coordinates, arg_max(limit_loss IS NOT NULL, (law.members, ensemble_id)) AS has_limit
    FROM ensemble_asymptote AS law JOIN this USING (cell_id, averaging) WHERE law.cell_id = $1 GROUP BY coordinates
), placed AS (
    SELECT point.coordinates, names[across] AS x_name, names[up] AS y_name, list_transform(point.coordinates,
            lambda c, i: map_values(axis)[i][c + 1]) AS valued, valued[across] AS x, valued[up] AS y,
        map_values(axis)[across] AS xs, map_values(axis)[up] AS ys, coalesce(list_aggregate(list_transform(others,
            lambda i: names[i] || ' ' || format('{:g}', valued[i])), 'string_agg', ', '), '') AS held,
        single.val_loss AS single, runs, point.val_loss AS limit_loss, coalesce(has_limit, false) AS has_limit, is_best
    FROM this JOIN grid_point AS point USING (cell_id) LEFT JOIN single ON single.coordinates = point.coordinates
        LEFT JOIN law ON law.coordinates = point.coordinates
)
SELECT * EXCLUDE (coordinates, valued) FROM placed ORDER BY max(is_best) OVER (PARTITION BY held) DESC, coordinates
"""


def ensemble_choices(connection: duckdb.DuckDBPyConnection, study: str) -> dict[str, list[Any]]:
    """Return the `recipes`, `seed_tokens` (largest first), `sizes` and `averagings` of a study's ensembles; None without."""
    return records(connection, CHOICES, [study])[0]


def study_ensembles(
    connection: duckdb.DuckDBPyConnection,
    study: str,
    seed_tokens: int,
    averaging: str,
    chosen: Sequence[str],
    sizes: Sequence[str],
) -> dict[str, Any]:
    """Return `points` (one an ensemble), `curves` and `laws` of those at optima, what is `missing`, and the study's `recipes`.

    Recipes and sizes: those `chosen`, all where none is chosen.
    """
    of = [list(chosen), list(sizes)]
    points = records(connection, ENSEMBLES, [study, seed_tokens, averaging, *of])
    best = [point for point in points if point["is_best"]]
    curves = records(connection, CURVES, [averaging, [point["cell_id"] + point["ensemble_id"] for point in best]])
    across = np.geomspace(1, BEYOND * max((point["members"] for point in best), default=1), 81)
    laws = [
        {"recipe": point["recipe"], "size": point["size"], "members": k, "val_loss": loss}
        for point in best
        if point["limit_loss"] is not None
        for k, loss in zip(
            across.tolist(), PowerLaw(*(point[name] for name in ("a", "alpha", "e")))(across).tolist(), strict=True
        )
    ]
    missing = records(connection, MISSING, [study, seed_tokens, *of])
    return {"points": points, "curves": curves, "laws": laws, "missing": missing, "recipes": recipes(connection, study)}


def tuned_cells(connection: duckdb.DuckDBPyConnection, study: str, seed_tokens: int) -> Records:
    """Return the cells at D that were tuned for the limit of their members, and have a point."""
    return records(connection, TUNED, [study, seed_tokens])


def cell_grid(connection: duckdb.DuckDBPyConnection, cell_id: str) -> Records:
    """Return every point that a cell tuned for the limit in K has run, those beside its optimum first: frames of `grid_chart`."""
    return records(connection, GRID, [cell_id])


def members_chart(points: Records, curves: Records, laws: Records, recipes: Sequence[str], dark: bool = False) -> alt.ConcatChart:
    """Return loss against K (log), one panel a size: measured, the law dashed to four times the largest K, its limit dotted.

    The frames of `study_ensembles`. The band is from the least to the greatest over the evaluated subsets of K members.
    """
    best, colour = [p for p in points if p["is_best"]], recipe_colour(recipes, points)
    names = ("val_loss", "least", "greatest", "limit_loss")
    losses = [r[name] for r in (*curves, *laws, *best) for name in names if r.get(name) is not None]
    low, high = (min(losses), max(losses)) if losses else (0, 1)
    margin = 0.04 * (high - low) or 0.1
    down = alt.Scale(domain=[low - margin, high + margin], zero=False, nice=False)
    most = max((p["members"] for p in best), default=1) * BEYOND
    across, ticks = alt.Scale(type="log", base=2, domain=[0.9, most * 1.1], nice=False), [2**i for i in range(20) if 2**i <= most]
    panels = []
    for place, size in enumerate(dict.fromkeys(p["size"] for p in best)):

        def of_size(rows: Records, size: str = size) -> alt.Data:
            return alt.Data(values=[r for r in rows if r["size"] == size])

        axis = alt.Axis(title="validation loss (nats/token)" if place % 4 == 0 else None, labels=place % 4 == 0, ticks=False)
        x = alt.X("members:Q", scale=across, title="members K").axis(format="d", values=ticks, grid=False)
        y = alt.Y("val_loss:Q", scale=down, axis=axis)
        tooltip = ["recipe:N", "size:N", "members:Q", *_losses("val_loss", "least", "greatest")]
        panels.append(
            alt.layer(
                alt.Chart(of_size(curves))
                .mark_area(opacity=0.15)
                .encode(x, alt.Y("least:Q", scale=down, axis=axis), alt.Y2("greatest:Q"), colour),
                alt.Chart(of_size([p for p in best if p["limit_loss"] is not None]))
                .mark_rule(strokeDash=[2, 3], strokeWidth=1.5)
                .encode(alt.Y("limit_loss:Q", scale=down, axis=axis), colour),
                alt.Chart(of_size(laws)).mark_line(strokeDash=[6, 4], strokeWidth=1.5).encode(x, y, colour),
                alt.Chart(of_size(curves)).mark_point(size=40, filled=True, opacity=1).encode(x, y, colour, tooltip=tooltip),
            ).properties(width=230, height=270, title=alt.TitleParams(size, frame="group"))
        )
    note = ["Dots: mean over subsets of K members; band: their least to greatest.", "Dashed: law over K. Dotted: its limit."]
    return (
        alt.concat(*panels, columns=4, spacing=12)
        .resolve_scale(color="shared")
        .properties(title=alt.TitleParams("Loss against members", subtitle=note))
        .configure(**chart_config(dark))
    )


def average_chart(points: Records, recipes: Sequence[str], dark: bool = False) -> alt.LayerChart:
    """Return the loss of K members against the mean loss of one, one point an ensemble; the diagonal: no better."""
    there, colour = [p for p in points if p["val_loss"] is not None and p["single"] is not None], recipe_colour(recipes, points)
    ends = [f(p["single"] for p in there) for f in (min, max)] if there else [0, 1]
    scale = alt.Scale(type="log", padding=12, nice=False)
    x = alt.X("single:Q", scale=scale, title="mean loss of one member (nats/token)").axis(grid=False, tickCount=6)
    y = alt.Y("val_loss:Q", scale=scale, title="loss of all members (nats/token)").axis(tickCount=6)
    tooltip = ["recipe:N", "size:N", "point:N", "members:Q", *_losses("single", "val_loss", "limit_loss")]
    note = ["Filled: the cell's optimum; hollow: other points of its search.", "Line: no better than one member."]
    return (
        alt.layer(
            alt.Chart(alt.Data(values=[{"single": end, "val_loss": end} for end in ends]))
            .mark_line(color="#8C8C8C", strokeWidth=1)
            .encode(x, y),
            alt.Chart(alt.Data(values=there))
            .mark_point(size=45, strokeWidth=1.5, opacity=1)
            .encode(x, y, colour, fill=alt.condition("datum.is_best", colour, alt.value(page_colour(dark))), tooltip=tooltip),
        )
        .properties(width=420, height=330, title=alt.TitleParams("Members against their average", subtitle=note))
        .configure(**chart_config(dark))
    )


def grid_chart(points: Records, title: str, dark: bool = False) -> alt.HConcatChart:
    """Return two heat maps of a cell tuned for the limit in K, side by side and under one colour scale: one model, and the limit.

    `points`: those of `cell_grid` that share `held`. The paper's figure of why ensembles want more epochs and less weight decay.
    """
    panels = {"single": "One model (mean of the point's members)", "limit_loss": "Members without end (limit, K \u2192 \u221e)"}
    losses = [p[name] for p in points for name in panels if p[name] is not None]
    least, worst = (min(losses), max(losses) - min(losses)) if losses else (0.0, 1.0)
    worst = worst or 1e-9
    drawn = [_heat_map(points, name, said, least, worst, dark) for name, said in panels.items()]
    starred = any(not p["has_limit"] and p["limit_loss"] is not None for p in points)
    note = [f"{_best(points, 'single', 'One model')}; {_best(points, 'limit_loss', 'the limit')} (outlined).", "Empty: not run."]
    note[1] += " \u00d7: a member diverged." + (" *: no limit there; the loss of all members." if starred else "")
    return (
        alt.hconcat(*drawn, spacing=24)
        .resolve_scale(color="shared")
        .properties(title=alt.TitleParams(title, subtitle=note, offset=10))
        .configure(**chart_config(dark))
    )


def _best(points: Records, name: str, said: str) -> str:
    best = min((p for p in points if p[name] is not None), key=lambda p: p[name], default=None)
    if best is None:
        return f"{said} is known nowhere"
    at = ", ".join(f"{best[f'{axis}_name']} {best[axis]:g}".replace("_", " ") for axis in "yx" if best[axis] is not None)
    return f"{said} is best at {at}: {best[name]:.4f} nats/token"


def _heat_map(points: Records, name: str, said: str, least: float, worst: float, dark: bool) -> alt.LayerChart:
    known = [p[name] for p in points if p[name] is not None]
    values = []
    for p in points:
        loss, starred = p[name], name == "limit_loss" and not p["has_limit"]
        values.append({
            **p,
            "excess": None if loss is None else loss - least,
            "label": "\u00d7" if loss is None else f"{loss:.3f}{'*' if starred else ''}",
            "least": loss is not None and loss == min(known),
        })  # fmt: skip
    first = points[0]
    x = alt.X("x:O", title=first["x_name"].replace("_", " "), scale=alt.Scale(domain=first["xs"]))
    x = x.axis(format="~g", labelAngle=0, ticks=False)
    y = alt.Y("y:O", title=(first["y_name"] or "").replace("_", " "), scale=alt.Scale(domain=(first["ys"] or [None])[::-1]))
    y = y.axis(format="~g", ticks=False)
    scale = alt.Scale(type="sqrt", scheme="viridis", domain=[0, worst], reverse=dark)
    legend = alt.Legend(format=".2~g", gradientLength=240, values=[0, worst / 16, worst / 4, worst], titleLimit=300)
    colour = alt.Color("excess:Q", scale=scale, legend=legend, title="above the least of both (nats/token)")
    bright = f"datum.excess {'<' if dark else '>'} {worst * (0.16 if dark else 0.36)}"
    base = alt.Chart(alt.Data(values=values)).encode(x, y)
    tooltip = ["x:Q", "y:Q", *_losses("single", "limit_loss"), "runs:Q"]
    return alt.layer(
        base.transform_filter("datum.excess !== null").mark_rect().encode(color=colour, tooltip=tooltip),
        base.transform_filter("datum.least").mark_rect(filled=False, stroke=PALETTE[1], strokeWidth=3),
        base.mark_text(fontSize=10).encode(text="label:N", color=alt.condition(
            f"datum.excess === null ? {str(not dark).lower()} : {bright}", alt.value("#1a1a1a"), alt.value("#f5f5f5"))),
    ).properties(width=46 * len(first["xs"]), height=26 * len(first["ys"] or [1]), title=said,
        view=alt.ViewBackground(stroke="#8C8C8C", strokeOpacity=0.4))  # fmt: skip


def _losses(*names: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{name}:Q", format=".4f") for name in names]
