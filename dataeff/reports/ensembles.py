"""Ensembles: the loss of K members and its limit, against one model, and where on the grid each is best.

    single      mean loss of one model: of a point's members, each alone
    val_loss    loss of K members, their logits, probabilities or weights averaged; a mean over the subsets evaluated
    limit_loss  the law over K of `ensemble_asymptote`, as K grows; NULL with a reason

An ensemble here is the one of most members at its point. Losses in nats per token. What was not run is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from dataeff.laws.forms import PowerLaw
from dataeff.records.queries import records
from dataeff.reports.charts import heat_map, law_figure, log_axis, recipe_colour, tooltips
from dataeff.reports.frames import Records, law_line, recipes
from dataeff.reports.search import cell_grid, grid_axes

if TYPE_CHECKING:
    import duckdb

BEYOND = 4  # laws are drawn to so many times the largest K

# Every ensemble of a study at one D under one averaging; of a cell's optimum where `is_best`. One of averaged weights knows only
# its first member alone, so `single` is taken from the averaging that has most.
ENSEMBLES = """
WITH one AS (
    SELECT ensemble_id, arg_max(mean_loss, subsets) AS single FROM ensemble_size WHERE members = 1 GROUP BY ensemble_id
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
SELECT recipe, cell.size, loss.members, mean_loss AS val_loss, least, greatest, subsets
FROM ensemble_size AS loss JOIN cell_ensemble USING (ensemble_id) JOIN cell USING (cell_id)
WHERE loss.averaging = $1 AND list_contains($2, cell_id || ensemble_id) AND mean_loss IS NOT NULL
ORDER BY cell.parameters_total, cell.size, recipe, loss.members
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
SELECT DISTINCT recipe, seed_tokens, size, parameters_total, loss.averaging
FROM cell JOIN cell_ensemble USING (cell_id) JOIN ensemble_loss AS loss USING (ensemble_id)
WHERE study = $1 ORDER BY seed_tokens DESC, parameters_total, size, recipe, averaging
"""

TUNED = """
SELECT cell_id, recipe, seed_tokens, size, members, averaging
FROM cell JOIN (SELECT DISTINCT cell_id FROM grid_point) USING (cell_id)
WHERE study = $1 AND objective = 'K' AND seed_tokens = $2 ORDER BY recipe, parameters_total, size
"""

# By point of a cell's grid, the loss of one model and whether its members have a limit.
SINGLES = """
SELECT coordinates, avg(run.val_loss) AS single, count(run.val_loss) AS runs, coalesce(any_value(has_limit), false) AS has_limit
FROM trial JOIN run USING (run_id) LEFT JOIN (
    SELECT coordinates, arg_max(limit_loss IS NOT NULL, (law.members, ensemble_id)) AS has_limit
    FROM ensemble_asymptote AS law JOIN cell USING (cell_id, averaging) WHERE cell_id = $1 GROUP BY coordinates
) USING (coordinates)
WHERE cell_id = $1 AND role IN ('search', 'member') GROUP BY coordinates
"""


def ensemble_choices(connection: duckdb.DuckDBPyConnection, study: str) -> dict[str, list[Any]]:
    """Return each `recipe`, `seed_tokens` (largest first), `size` and `averaging` of a study's ensembles."""
    rows = records(connection, CHOICES, [study])
    return {name: list(dict.fromkeys(row[name] for row in rows)) for name in ("recipe", "seed_tokens", "size", "averaging")}


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
    most = BEYOND * max((point["members"] for point in best), default=1)
    laws = [
        row
        for p in best
        if p["limit_loss"] is not None
        for row in law_line(PowerLaw(p["a"], p["alpha"], p["e"]), 1, most, "members", recipe=p["recipe"], size=p["size"])
    ]
    missing = records(connection, MISSING, [study, seed_tokens, *of])
    return {"points": points, "curves": curves, "laws": laws, "missing": missing, "recipes": recipes(connection, study)}


def tuned_cells(connection: duckdb.DuckDBPyConnection, study: str, seed_tokens: int) -> Records:
    """Return the cells at D that were tuned for the limit of their members, and have a point."""
    return records(connection, TUNED, [study, seed_tokens])


def cell_losses(connection: duckdb.DuckDBPyConnection, cell_id: str) -> Records:
    """Return `search.cell_grid` of a cell tuned for the limit in K, with the losses `single` and `limit_loss`, and `runs`.

    Where not `has_limit`, `limit_loss` is the loss of all members, by which the point counts in the search, too.
    """
    singles = {tuple(row.pop("coordinates")): row for row in records(connection, SINGLES, [cell_id])}
    none = {"single": None, "runs": 0, "has_limit": False}
    points = cell_grid(connection, cell_id, ("epochs", "weight_decay"))
    return [{**point, **singles.get(tuple(point["coordinates"]), none), "limit_loss": point["val_loss"]} for point in points]


def members_chart(points: Records, curves: Records, laws: Records, recipes: Sequence[str]) -> alt.FacetChart:
    """Return loss against K (log), one panel a size: measured, the law dashed to four times the largest K, its limit dotted.

    The frames of `study_ensembles`. The band is from the least to the greatest over the evaluated subsets of K members.
    """
    best = [point for point in points if point["is_best"]]
    limits = [{**point, "val_loss": point["limit_loss"], "members": None} for point in best if point["limit_loss"] is not None]
    bands = [{**row, "low": row["least"], "high": row["greatest"]} for row in curves]
    layers = {"point": curves, "band": bands, "limit": limits, "law": laws}
    rows = [{"layer": layer, "line": row["recipe"], **row} for layer, of in layers.items() for row in of]
    ticks = [2**i for i in range(20) if 2**i <= BEYOND * max(point["members"] for point in best)]
    tooltip = ["recipe:N", "size:N", "members:Q", *tooltips(".4f", "val_loss", "least", "greatest")]
    figure = law_figure(
        rows, log_axis("members", "members K", ticks, "d"), "val_loss", recipe_colour(recipes, points), tooltip, panels="size",
        size=(215, 270),
    )  # fmt: skip
    note = ["Dots: mean over subsets of K members; band: their least to greatest.", "Dashed: law over K. Dotted: its limit."]
    return figure.properties(title=alt.TitleParams("Loss against members", subtitle=note))


def average_chart(points: Records, recipes: Sequence[str]) -> alt.LayerChart:
    """Return the loss of K members against the mean loss of one, one point an ensemble; the diagonal: no better."""
    finite = [point for point in points if point["val_loss"] is not None and point["single"] is not None]
    rows = [{"layer": "point", "hollow": not point["is_best"], **point} for point in finite]
    ends = [end(point["single"] for point in finite) for end in (min, max)] if finite else []
    rows += [{"layer": "reference", "single": end, "val_loss": end} for end in ends]
    x = log_axis("single", "mean loss of one member (nats/token)", form="~g")
    tooltip = ["recipe:N", "size:N", "point:N", "members:Q", *tooltips(".4f", "single", "val_loss", "limit_loss")]
    colour, title = recipe_colour(recipes, points), "loss of all members (nats/token)"
    note = ["Filled: the cell's optimum; hollow: other points of its search.", "Line: no better than one member."]
    return law_figure(rows, x, "val_loss", colour, tooltip, title, log_y=True, size=(420, 330)).properties(
        title=alt.TitleParams("Members against their average", subtitle=note)
    )


def grid_chart(points: Records, title: str) -> alt.HConcatChart:
    """Return two heat maps of a cell tuned for the limit in K, side by side and under one colour scale: one model, and the limit.

    `points`: those of `cell_losses` of one `panel`. The paper's figure of why ensembles want more epochs and less weight decay.
    """
    panels = {"single": "One model (mean of the point's members)", "limit_loss": "K \u2192 \u221e (limit of the members)"}
    losses = [point[name] for point in points for name in panels if point[name] is not None] or [0.0]
    worst = max(losses) - min(losses) or 1e-9
    tooltip = ["point:N", *tooltips(".4f", *panels), "runs:Q"]
    drawn = [
        heat_map(_squares(points, name, min(losses)), grid_axes(points), worst, tooltip, (46, 26)).properties(title=heading)
        for name, heading in panels.items()
    ]
    starred = any("*" in square["label"] for square in _squares(points, "limit_loss", 0))
    note = [f"{_best(points, 'single', 'One model')}; {_best(points, 'limit_loss', 'the limit')} (outlined).", "Empty: not run."]
    note[1] += " \u00d7: a member diverged." + (" *: no limit there; the loss of all members." if starred else "")
    return alt.hconcat(*drawn, spacing=24).properties(title=alt.TitleParams(title, subtitle=note, offset=10))


def _best(points: Records, name: str, what: str) -> str:
    best = min((point for point in points if point[name] is not None), key=lambda point: point[name], default=None)
    if best is None:
        return f"{what} has no value"
    at = ", ".join(f"{best[f'{axis}_name']} {best[axis]:g}".replace("_", " ") for axis in "yx" if best[axis] is not None)
    return f"{what} is best at {at}: {best[name]:.4f} nats/token"


def _squares(points: Records, name: str, least: float) -> Records:
    """Points as `heat_map` takes them, by one of their losses."""
    best = min((point[name] for point in points if point[name] is not None), default=None)
    squares = []
    for point in points:
        loss = point[name]
        square = {"excess": None, "label": "\u00d7" if point["state"] in ("run", "diverged") else "", "is_best": False}
        if loss is not None:
            star = "*" if name == "limit_loss" and not point["has_limit"] else ""
            square = {"excess": loss - least, "label": f"{loss:.3f}{star}", "is_best": loss == best}
        squares.append({**point, **square})
    return squares
