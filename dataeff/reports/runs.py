"""Runs to look at: which ones, how their losses fell, and what surrounds one of them.

Which runs is SQL text, made from choices by `matching`. Curves are thinned in SQL before they travel: of each bucket of points
the least and the greatest stay. Frames are lists of records; charts are pure. Losses in nats per token.
"""

from collections.abc import Sequence
from typing import Any

import altair as alt
import duckdb

from dataeff.records.queries import literal, records
from dataeff.reports.frames import Records, readable
from dataeff.reports.theme import Chart, palette

MOST_POINTS = 40_000  # of all curves together: some 4 MB on their way to the browser
CURVES = {"loss": ("train_loss", "val_loss"), "learning rate": ("lr",), "gradient norm": ("gradient_norm",)}
ACROSS = {"tokens": "tokens", "epochs": "tokens / seed_tokens", "FLOPs": "training_flops * tokens / tokens_seen",
          "seconds": "wall_seconds * tokens / tokens_seen"}  # fmt: skip
DECIDING = ("recipes", "seed_tokens", "sizes", "lr", "weight_decay", "epochs", "batch_size", "optimizer", "dropout",
            "synthetic_share", "train_seed", "data_seed", "corpus_name", "source")  # fmt: skip

# Every run with the recipes and sizes of the cells that it serves.
USED = """(SELECT run.* EXCLUDE spec, recipes, sizes FROM run LEFT JOIN (
    SELECT run_id, list_sort(list(DISTINCT recipe)) AS recipes, list_sort(list(DISTINCT size)) AS sizes
    FROM trial JOIN cell USING (cell_id) {where} GROUP BY run_id) USING (run_id)) AS run"""

# What the runs of a study, or all, can be chosen by: the arguments of `matching`.
FACETS = """
SELECT list(DISTINCT recipe ORDER BY recipe) AS recipes, list(DISTINCT seed_tokens ORDER BY seed_tokens) AS seed_tokens,
    list_distinct(list(size ORDER BY parameters_total, size)) AS sizes, ['finished', 'diverged'] AS status
FROM cell WHERE $1 IS NULL OR study = $1
"""

# The runs of a run's searches that are one grid step away, with the axis and its values here and there.
NEIGHBOURS = """
SELECT cell_id, map_keys(axis)[i] AS axis, map_values(axis)[i][here[i] + 1] AS here, map_values(axis)[i][there[i] + 1] AS there,
    run.run_id, status, val_loss, val_loss - (SELECT val_loss FROM run WHERE run_id = $1) AS difference
FROM (SELECT cell_id, other.run_id, mine.coordinates AS here, other.coordinates AS there, axes::MAP(VARCHAR, DOUBLE[]) AS axis,
        list_position(list_transform(here, lambda index, i: index <> there[i]), true) AS i
    FROM trial AS mine JOIN trial AS other USING (cell_id) JOIN cell USING (cell_id)
    WHERE mine.run_id = $1 AND mine.role = 'search' AND other.role = 'search'
        AND list_distance(here::DOUBLE[], there::DOUBLE[]) = 1) JOIN run USING (run_id)
ORDER BY cell_id, i, there, run.run_id
"""


def matching(study: str | None = None, **chosen: Sequence[Any]) -> str:
    """Return the SQL, from FROM on, of the runs that a study asks for (or all) and that every choice holds for, see `FACETS`.

    `recipes` and `sizes` are those of the cells a run serves; nothing chosen is no condition.
    """
    tests = ["recipes IS NOT NULL"] if study else ["true"]
    for name, values in chosen.items():
        column = name if name in ("recipes", "sizes") else f"[{name}::VARCHAR]"
        tests += [f"list_has_any({column}, [{', '.join(map(literal, values))}])"] if values else []
    return f"FROM {USED.format(where=f'WHERE study = {literal(study)}' if study else '')} WHERE {' AND '.join(tests)}"


def table_query(matched: str, sort: str, limit: int, offset: int = 0) -> str:
    """Return the query of one page of `matched`, by a column `sort`, descending with a minus before it; `matching` counts all."""
    order = f'"{sort.removeprefix("-")}" {"DESC" if sort.startswith("-") else "ASC"} NULLS LAST, run_id'
    return f"SELECT *, count(*) OVER () AS matching {matched} ORDER BY {order} LIMIT {int(limit)} OFFSET {int(offset)}"


def chosen_runs(connection: duckdb.DuckDBPyConnection, given: Sequence[str]) -> Records:
    """Return the runs whose ids begin with those `given`, in that order, each with a `label` that tells it from the others."""
    text = f"SELECT * {matching()} AND len(list_filter($1, lambda start: starts_with(run_id, start))) > 0"
    rows = records(connection, text, [list(given)])
    names = [name for name in DECIDING if len({readable(row[name]) for row in rows}) > 1][:5]
    for row in rows:
        row["label"] = " ".join([row["run_id"][:8], *(f"{name} {readable(row[name])}" for name in names)])
    return sorted(rows, key=lambda row: next(i for i, start in enumerate(given) if row["run_id"].startswith(start)))


# Smoothed by a mean over a share of the run (the window shrinks at the ends), then thinned. Where x is logarithmic so are the
# buckets, or the first thousandth of a run would be one of them and half of the picture. $1 run ids, $2 names, $3 percent of a
# run, $4 whether x is logarithmic, $5 most points.
_CURVES = """
WITH recorded AS (
    SELECT run_id, name, step, tokens, value FROM metric WHERE list_contains($1, run_id) AND list_contains($2, name)
    UNION ALL BY NAME
    SELECT run_id, 'val_loss' AS name, step, tokens, val_loss AS value FROM evaluation
    WHERE list_contains($1, run_id) AND split = 'validation' AND list_contains($2, 'val_loss')
), placed AS (
    SELECT recorded.*, {across} AS x, row_number() OVER curve AS place, count(*) OVER (PARTITION BY run_id, name) AS points
    FROM recorded JOIN (SELECT run_id, seed_tokens, training_flops, wall_seconds, tokens_seen FROM run) USING (run_id)
    WINDOW curve AS (PARTITION BY run_id, name ORDER BY step)
), smooth AS (
    SELECT * REPLACE (if(value IS NULL OR name = 'val_loss', value, avg(value) OVER around) AS value),
        if(points <= $5, place, floor(if($4, ln(place) / ln(points + 1), (place - 1) / points) * $5 / 2)) AS bucket
    FROM placed WINDOW around AS (PARTITION BY run_id, name ORDER BY place
        ROWS BETWEEN ($3 * points / 200)::BIGINT PRECEDING AND ($3 * points / 200)::BIGINT FOLLOWING)
)
SELECT run_id, name, step, tokens, x, value, points FROM smooth
QUALIFY place IN (1, points) OR row_number() OVER (PARTITION BY run_id, name, bucket ORDER BY value NULLS LAST, place) = 1
    OR row_number() OVER (PARTITION BY run_id, name, bucket ORDER BY value DESC NULLS LAST, place) = 1
ORDER BY run_id, name, step
"""


def curves(
    connection: duckdb.DuckDBPyConnection, ids: Sequence[str], curve: str = "loss", across: str = "tokens", smoothing: float = 0,
    log_x: bool = False,
) -> Records:  # fmt: skip
    """Return the points to draw (run_id, name, step, tokens, x, value, points) of a curve, a key of `CURVES`, of the runs `ids`.

    `across`, a key of `ACROSS`, says what x is. Curves but the validation loss are smoothed by a mean over `smoothing` percent
    of their points. `points` is how many are recorded: a curve of more than its share of 40,000 is thinned.
    """
    most = min(4000, max(500, MOST_POINTS // max(1, len(ids) * len(CURVES[curve]))))
    text, parameters = _CURVES.format(across=ACROSS[across]), [list(ids), CURVES[curve], smoothing, log_x, most]
    return [point for point in records(connection, text, parameters) if point["x"] is not None]


def curves_chart(
    points: Records, runs: Records, curve: str, across: str, logs: Sequence[str] = (), recipes: Sequence[str] = ()
) -> Chart:
    """Return a curve of runs, points of `curves`; thick with points where validated. `logs`: axes that are logarithmic.

    Where each run is of one recipe, and no two of the same, runs have the colours of `recipes`; else their own.
    """
    used = [readable(run["recipes"]) for run in runs]
    by_recipe = len(set(used)) == len(runs) and set(used) <= set(recipes)
    names = {run["run_id"]: name for run, name in zip(runs, used if by_recipe else [run["label"] for run in runs], strict=True)}
    scales = {axis: alt.Scale(type="log" if axis in logs else "linear", zero=False, nice=False, padding=6) for axis in "xy"}
    legend = alt.Legend(columns=1, labelLimit=480, title=None, symbolType="stroke", symbolStrokeWidth=3)
    colours, drawn = palette(recipes if by_recipe else names.values()), list(names.values())
    colour = alt.Scale(domain=drawn, range=[colours[name] for name in drawn])
    base = alt.Chart(alt.NamedData("curves")).encode(
        alt.X("x:Q", title=across, scale=scales["x"]).axis(format="~s", tickCount=8),
        alt.Y("value:Q", title="loss (nats/token)" if curve == "loss" else curve, scale=scales["y"]).axis(format=".3~g"),
        alt.Color("run:N", scale=colour, legend=legend),
        tooltip=["run:N", "name:N", alt.Tooltip("x:Q", format=",.4~g", title=across), alt.Tooltip("value:Q", format=".4f")],
    )
    validated = base.transform_filter(alt.datum.name == "val_loss")
    layers = [base.transform_filter(alt.datum.name != "val_loss").mark_line(strokeWidth=1.2)]
    layers += [validated.mark_line(strokeWidth=2), validated.mark_point(size=30, filled=True, opacity=1)]
    zoom = alt.selection_interval(bind="scales", zoom="wheel![event.shiftKey]", name="zoom")
    chart = alt.layer(*layers).add_params(zoom).properties(width=900, height=340).to_dict()  # rows would take Altair seconds
    return chart | {"datasets": {"curves": [{**point, "run": names[point["run_id"]]} for point in points]}}
