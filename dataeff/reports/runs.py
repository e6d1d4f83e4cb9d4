"""Runs to look at: which ones, what they have in common, how their losses fell, and what surrounds one of them.

Which runs is SQL text, made from choices by `matching`. A typed condition never enters it: `records.untrusted` says which runs
the condition holds for, and `matching` takes their ids. Curves are thinned in SQL before they travel: of each bucket of points
the least and the greatest stay. Frames are lists of records; charts are pure. Losses in nats per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import altair as alt
import pyarrow

from dataeff.errors import QueryError
from dataeff.records import documented, untrusted
from dataeff.records.queries import literal, records
from dataeff.records.store import Database
from dataeff.reports.frames import Records, by_key, readable
from dataeff.reports.theme import GREY, INK, PAPER, palette

if TYPE_CHECKING:
    import duckdb

MOST_LINES, BEST_LINES = 2000, 100
MOST_POINTS = 40_000  # of all curves together: some 4 MB on their way to the browser
PANELS = {
    "loss (nats/token)": ("train_loss", "val_loss"),
    "learning rate": ("lr",),
    "gradient norm": ("gradient_norm",),
}
QUANTITIES = [name for names in PANELS.values() for name in names]
ACROSS = {
    "tokens": "training tokens",
    "epochs": "epochs (tokens seen / D)",
    "FLOPs": "training FLOPs (in proportion to tokens)",
    "seconds": "time (s, in proportion to tokens)",
}
AXES = ["seed_tokens", "parameters_total", "lr", "weight_decay", "epochs", "val_loss"]

alt.data_transformers.disable_max_rows()  # 5,000 otherwise

# Every run with the recipes and sizes of the cells that it serves.
_USED = """(SELECT run.*, recipes, sizes FROM run {join} (
    SELECT run_id, array_to_string(list_sort(list(DISTINCT recipe)), ', ') AS recipes,
        array_to_string(list_sort(list(DISTINCT size)), ', ') AS sizes
    FROM trial JOIN cell USING (cell_id) WHERE {of} GROUP BY run_id) AS used USING (run_id)) AS run"""


def matching(
    study: str | None = None,
    recipes: Sequence[str] = (),
    seed_tokens: Sequence[int] = (),
    sizes: Sequence[str] = (),
    status: Sequence[str] = (),
    ids: str | None = None,
) -> str:
    """Return the SQL, from FROM on, of the runs that a study asks for (or all) and that every choice holds for.

    `recipes` and `sizes` are those of the cells a run serves; nothing chosen is no condition. `ids`, of `ids_where`.
    """
    chosen = {
        "string_split(recipes, ', ')": recipes,
        "string_split(sizes, ', ')": sizes,
        "[seed_tokens::VARCHAR]": seed_tokens,
        "[status]": status,
    }
    tests = [f"list_has_any({of}, [{', '.join(map(literal, values))}])" for of, values in chosen.items() if values]
    tests += [] if ids is None else [f"run_id IN (SELECT unnest(string_split({literal(ids)}, ',')))"]
    used = _USED.format(join="JOIN", of=f"study = {literal(study)}") if study else _USED.format(join="LEFT JOIN", of="true")
    return f"FROM {used} WHERE {' AND '.join(tests) or 'true'}"


def ids_where(path: Path, study: str | None, condition: str) -> str:
    """Return the ids, with commas between them, of the runs of a study (or all) that a stranger's SQL condition holds for.

    Raises `QueryError`, with the names of the columns, where it is refused or fails. The limited process opens the file: a
    caller that held it meanwhile would keep a waiting writer, and so that process, from it.
    """
    text = f"SELECT coalesce(string_agg(run_id, ','), '') AS ids {matching(study)} AND (\n{condition}\n)"
    try:
        answer = untrusted.ask(path, text)
        if answer.cut or answer.table.num_rows != 1 or not isinstance(ids := answer.table.column(0)[0].as_py(), str):
            raise QueryError(f"{condition!r} is not one condition on runs, or holds for too many; give one, such as lr < 0.01")
    except QueryError as error:
        with Database(path).read() as connection:
            raise QueryError(f"{error}\n\nThe columns of a run are: {', '.join(run_columns(connection))}") from error
    return ids


def run_columns(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Return the DuckDB type of every column that `matching` has."""
    return {name: kind for name, kind, *_ in connection.execute(f"DESCRIBE SELECT * {matching()}").fetchall()}


def facets(connection: duckdb.DuckDBPyConnection, study: str | None) -> dict[str, list[Any]]:
    """Return what runs can be chosen by: the `recipes`, `seed_tokens`, `sizes` and `status` there are."""
    cells = "FROM cell WHERE $1 IS NULL OR study = $1"
    text = f"""SELECT (SELECT list(DISTINCT recipe ORDER BY recipe) {cells}) AS recipes,
        (SELECT list(DISTINCT seed_tokens ORDER BY seed_tokens) {matching(study)}) AS seed_tokens,
        (SELECT list(size ORDER BY n, size) FROM (SELECT size, min(parameters_total) AS n {cells} GROUP BY size)) AS sizes,
        (SELECT list(DISTINCT status ORDER BY status) FROM run) AS status"""
    return {name: values or [] for name, values in records(connection, text, [study])[0].items()}


def table_query(matched: str, columns: Sequence[str], sort: str, descending: bool, limit: int, offset: int = 0) -> str:
    """Return the query of one page of `matched`, made by `matching`. `columns` and `sort` are names of its columns."""
    names = ", ".join(f'"{name}"' for name in columns)
    order = f'"{sort}" {"DESC" if descending else "ASC"} NULLS LAST, run_id'
    return f"SELECT {names} {matched} ORDER BY {order} LIMIT {int(limit)} OFFSET {int(offset)}"


def count_query(matched: str) -> str:
    return f"SELECT count(*) AS matching {matched}"


def parallel_query(matched: str) -> str:
    """Return the query of `parallel_chart`: one record a run and axis with its `position` between the axis' ends.

    Of more than 2,000 runs, the 100 of least loss and a random sample: by a hash of their ids.
    All axes but the loss are logarithmic; 0, such as no weight decay, lies a tenth below.
    """
    numbers = ", ".join(f"{name}::DOUBLE AS {name}" for name in AXES)
    return f"""
WITH chosen AS (
    SELECT run_id, val_loss AS loss, {numbers}, count(*) OVER () AS matching {matched}
    ORDER BY row_number() OVER (ORDER BY val_loss) > {BEST_LINES}, hash(run_id) LIMIT {MOST_LINES}
), scaled AS (
    SELECT * RENAME (loss AS val_loss), CASE WHEN axis = 'val_loss' THEN value WHEN value > 0 THEN ln(value) END AS scale
    FROM chosen UNPIVOT INCLUDE NULLS (value FOR axis IN ({", ".join(AXES)}))
), ended AS (
    SELECT *, min(scale) OVER (PARTITION BY axis) AS low, max(scale) OVER (PARTITION BY axis) AS high FROM scaled
)
SELECT run_id, val_loss, axis, value, matching,
    CASE WHEN value = 0 AND scale IS NULL THEN -0.1 WHEN high > low THEN (scale - low) / (high - low) ELSE scale * 0 + 0.5 END
        AS position
FROM ended ORDER BY val_loss DESC NULLS FIRST, run_id"""


def chosen_runs(connection: duckdb.DuckDBPyConnection, given: Sequence[str]) -> tuple[Records, list[str]]:
    """Return the runs of the ids, or beginnings of ids, `given`, in that order, and what to say of those that are none."""
    text = """SELECT given, list(run_id) AS ids FROM (SELECT DISTINCT unnest($1) AS given)
        LEFT JOIN run ON starts_with(run_id, given) GROUP BY given"""
    ids = {row["given"]: [i for i in row["ids"] if i] for row in records(connection, text, [list(given)])}
    wrong = [
        f"{len(ids[name]) or 'no'} run ids begin with '{name}'; "
        + ("give more of it" if ids[name] else "choose runs in the table, or look with `dataeff runs`")
        for name in dict.fromkeys(given)
        if len(ids[name]) != 1
    ]
    order = list(dict.fromkeys(ids[name][0] for name in given if len(ids[name]) == 1))
    text = f"SELECT * EXCLUDE (spec) {matching()} AND list_contains($1, run_id) ORDER BY list_position($1, run_id)"
    return records(connection, text, [order]), wrong


# What decides a loss.
_DECIDING = ("recipes", "seed_tokens", "sizes", "lr", "weight_decay", "epochs", "batch_size", "optimizer", "dropout",
             "synthetic_share", "train_seed", "data_seed", "corpus_name", "source")  # fmt: skip


def differing(runs: Records) -> list[str]:
    """Return the columns that decide a loss and in which these runs differ."""
    return [name for name in _DECIDING if len({run.get(name) for run in runs}) > 1]


def labels(runs: Records) -> dict[str, str]:
    """Return a name for each run by its id: the beginning of the id, and where it differs from the others."""
    names = differing(runs)[:5]
    digits = 8 if len({run["run_id"][:8] for run in runs}) == len(runs) else None
    texts = {run["run_id"]: [f"{name} {readable(run[name])}" for name in names if run[name] is not None] for run in runs}
    return {run_id: " ".join([run_id[:digits], *parts]) for run_id, parts in texts.items()}


# What is drawn of the curves: smoothed by a mean over a share of the run (the window shrinks at the ends), then thinned. Where
# x is logarithmic so are the buckets, or the first thousandth of a run would be one of them and half of the picture.
# $1 run ids, $2 names, $3 what x is, $4 percent of a run, $5 and $6 whether x and y are logarithmic, $7 most points.
_CURVES = """
WITH chosen AS MATERIALIZED (
    SELECT run_id, seed_tokens, tokens_seen, training_flops, wall_seconds FROM run WHERE list_contains($1, run_id)
), recorded AS (
    SELECT run_id, name, step, tokens, value FROM metric SEMI JOIN chosen USING (run_id) WHERE list_contains($2, name)
    UNION ALL BY NAME
    SELECT run_id, 'val_loss' AS name, step, tokens, val_loss AS value FROM evaluation SEMI JOIN chosen USING (run_id)
    WHERE split = 'validation' AND list_contains($2, 'val_loss')
), placed AS (
    SELECT recorded.*, CASE $3 WHEN 'tokens' THEN tokens WHEN 'epochs' THEN tokens / seed_tokens
            WHEN 'FLOPs' THEN training_flops * tokens / tokens_seen ELSE wall_seconds * tokens / tokens_seen END AS x,
        row_number() OVER (PARTITION BY run_id, name ORDER BY step) AS place,
        count(*) OVER (PARTITION BY run_id, name) AS points
    FROM recorded JOIN chosen USING (run_id)
), smooth AS (
    SELECT * REPLACE (if(value IS NULL OR name = 'val_loss', value, avg(value) OVER around) AS value) FROM placed
    WINDOW around AS (PARTITION BY run_id, name ORDER BY place
        ROWS BETWEEN ($4 * points / 200)::BIGINT PRECEDING AND ($4 * points / 200)::BIGINT FOLLOWING)
), bucketed AS (
    SELECT * REPLACE (if($6 AND value <= 0, NULL, value) AS value), if(points <= $7, place,
        floor(if($5, ln(place) / ln(points + 1), (place - 1) / points) * $7 / 2)) AS bucket
    FROM smooth
)
SELECT run_id, name, step, tokens, x, value, points FROM bucketed
QUALIFY place IN (1, points) OR row_number() OVER (PARTITION BY run_id, name, bucket ORDER BY value NULLS LAST, place) = 1
    OR row_number() OVER (PARTITION BY run_id, name, bucket ORDER BY value DESC NULLS LAST, place) = 1
ORDER BY run_id, name, step
"""


def curves(
    connection: duckdb.DuckDBPyConnection,
    ids: Sequence[str],
    names: Sequence[str] = ("train_loss", "val_loss"),
    across: str = "tokens",
    smoothing: float = 0,
    log_x: bool = False,
    log_y: bool = False,
) -> Records:
    """Return the points to draw (run_id, name, step, tokens, x, value, points) of the curves `names` of the runs `ids`.

    `across`, a key of `ACROSS`, says what x is. Curves but the validation loss are smoothed by a mean over `smoothing` percent
    of their points. `points` is how many are recorded: a curve of more than its share of 40,000 is thinned.
    A value is NULL where it was not finite, or not positive for a logarithmic axis.
    """
    most = min(4000, max(500, MOST_POINTS // max(1, len(ids) * len(names))))
    return records(connection, _CURVES, [list(ids), list(names), across, smoothing, log_x, log_y, most])


def curves_note(points: Records, ids: Sequence[str], names: Sequence[str], across: str) -> list[str]:
    """Say of curves what their picture does not: what is thinned, left out or missing."""
    curves_ = by_key(points, "run_id", "name")
    thinned = [curve for curve in curves_.values() if len(curve) < curve[0]["points"]]
    lines = ["Thin: training; thick, with points: validation. Drag to move, shift and wheel to zoom, double click to reset."]
    if thinned:
        before, after = sum(curve[0]["points"] for curve in thinned), sum(map(len, thinned))
        lines.append(
            f"{len(thinned)} of {len(curves_)} curves are thinned, from {before:,} points to {after:,}: of each bucket of "
            "neighbouring points the least and the greatest are drawn."
        )
    for name in names:
        if missing := [run_id for run_id in ids if (run_id, name) not in curves_]:
            lines.append(
                f"No {name} along training is recorded of {_listed(missing)}: imported results have none, none "
                "was requested, or it diverged before."
            )
    if gaps := sum(point["value"] is None for point in points):
        lines.append(f"Points without a value, as it is not finite, or not positive for a logarithmic axis: {gaps:,}.")
    if unplaced := sorted({point["run_id"] for point in points if point["x"] is None}):
        lines.append(f"{_listed(unplaced)} cannot be placed: what '{ACROSS[across]}' needs is not recorded.")
    return lines if points else lines[1:]


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(run_id[:8] for run_id in ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


def curves_chart(
    points: Records, names: dict[str, str], across: str, log_x: bool = False, log_y: bool = False
) -> alt.VConcatChart:
    """Return curves of runs, losses in one panel and each other quantity in its own. `names`: a label for each run id."""
    rows = [{**point, "run": names[point["run_id"]]} for point in points if point["x"] is not None]
    legend = alt.Legend(columns=2, labelLimit=480, title=None, symbolType="stroke", symbolStrokeWidth=3)
    colour = alt.Color("run:N", scale=palette(names.values()), legend=legend)
    linear, log = alt.Scale(zero=False, nice=False, padding=6), alt.Scale(type="log", nice=False, padding=6)
    form = "~s" if across in ("tokens", "FLOPs") else ",.4~g"
    x = alt.X("x:Q", title=ACROSS[across], scale=log if log_x else linear).axis(format=form, tickCount=8)
    panels = []
    for title, parts in PANELS.items():
        if not any(row["name"] in parts for row in rows):
            continue
        y = alt.Y("value:Q", title=title, scale=log if log_y else linear).axis(format=".3~g")
        tooltip = ["run:N", alt.Tooltip("x:Q", format=",.4~g", title=across), alt.Tooltip("value:Q", format=".4f", title=title)]
        base = alt.Chart().encode(x, y, colour).transform_filter(alt.FieldOneOfPredicate("name", list(parts)))
        validation = base.transform_filter(alt.datum.name == "val_loss")
        layers = [base.transform_filter(alt.datum.name != "val_loss").mark_line(strokeWidth=1.2)]
        if "val_loss" in parts:
            layers += [validation.mark_line(strokeWidth=2), validation.mark_point(size=30, filled=True, opacity=1)]
            layers[-1] = layers[-1].encode(tooltip=tooltip)
        zoom = alt.selection_interval(bind="scales", zoom="wheel![event.shiftKey]", name=f"zoom_{parts[0]}")
        panels.append(alt.layer(*layers).add_params(zoom).properties(width=900, height=320 if "val_loss" in parts else 140))
    # A table, as Altair looks at every value of inline records again and again, which takes seconds.
    return alt.vconcat(*panels, data=pyarrow.Table.from_pylist(rows)).resolve_scale(color="shared")


def parallel_note(lines: Records) -> list[str]:
    """Say of parallel coordinates what they leave out."""
    ends = [line for line in lines if line["axis"] == "val_loss"]
    note = ["Axes are logarithmic but for the loss. The worst tenth of the losses shares a colour."]
    if ends and len(ends) < (matching := ends[0]["matching"]):
        note.insert(0, f"{len(ends):,} of {matching:,} runs are drawn: the {BEST_LINES} of least loss, and a random sample.")
    if lossless := sum(line["value"] is None for line in ends):
        note.append(f"Grey, as they diverged and have no loss: {lossless:,}.")
    for axis in AXES[:-1]:
        if lacking := sum(line["axis"] == axis and line["position"] is None for line in lines):
            note.append(f"Broken lines, as {axis} is not recorded: {lacking:,}.")
    return note


def parallel_chart(lines: Records) -> alt.LayerChart:
    """Return parallel coordinates of the records of `parallel_query`: a line a run, its loss as colour, grey without.

    Axes have a label at each value of at most nine, else at five of them.
    """
    losses = sorted(line["val_loss"] for line in lines if line["axis"] == "val_loss" and line["val_loss"] is not None)
    span = [losses[0], losses[int(0.9 * (len(losses) - 1))]] if losses else [0, 1]  # a few bad losses would eat every colour
    colour = alt.Color("val_loss:Q", title="validation loss (nats/token)", legend=alt.Legend(gradientLength=220, format=".3f"))
    colour = colour.scale(scheme="viridis", reverse=True, domain=span, clamp=True)
    base = alt.Chart().encode(
        alt.X("axis:N", title=None, scale=alt.Scale(domain=AXES, padding=0.6)).axis(labelAngle=0, grid=True),
        alt.Y("position:Q", scale=alt.Scale(domain=[-0.12, 1.04], nice=False), axis=None),
    )
    placed = by_key([line for line in lines if line["position"] is not None], "axis")
    ticks = [tick for values in placed.values() for tick in _ticks(values)]
    label = "datum.value >= 1e4 ? format(datum.value, '.3~s') : format(datum.value, '.4~g')"
    texts = base.properties(data=alt.Data(values=ticks)).transform_calculate(label=label).encode(text="label:N")
    return alt.layer(
        base.mark_line(strokeWidth=1, opacity=0.6).encode(
            color=alt.when("isValid(datum.val_loss)").then(colour).otherwise(alt.value(GREY)), detail="run_id:N"
        ),
        texts.mark_text(align="left", dx=5, fontSize=11, stroke=PAPER, strokeWidth=4),
        texts.mark_text(align="left", dx=5, fontSize=11, color=INK),
        data=pyarrow.Table.from_pylist(lines),
    ).properties(width=900, height=340, padding={"left": 20, "right": 5, "top": 5, "bottom": 5})


def _ticks(rows: Records) -> Records:
    """The rows of an axis whose values are written beside it."""
    places = {row["position"]: {name: row[name] for name in ("axis", "position", "value")} for row in rows}
    if len(places) > 9:
        places = {at: places[min(places, key=lambda place: abs(place - at))] for at in (0, 0.25, 0.5, 0.75, 1)}
    return list(places.values())


_FACTS = {
    "Losses": ("val_loss", "train_loss", "status", "reason", "source"),
    "Training": (
        *("seed_tokens", "parameters_total", "epochs", "lr", "weight_decay", "batch_size", "optimizer", "train_seed"),
        *("data_seed", "corpus_name", "synthetic_share"),
    ),
    "Cost": (
        *("training_flops", "wall_seconds", "tokens_seen", "tokens_per_second", "model_flops_utilisation", "peak_memory_bytes"),
    ),
    "Where": ("device", "host", "torch_version", "started_at", "ended_at"),
}


def run_facts(run: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return what is recorded of a run, as texts with units under four heads; '-' for what is not recorded."""
    units, run = documented.units(), run | {"source": run.get("source") or "trained here"}
    texts = {name: f"{readable(value)} {units.get(name, '') if value is not None else ''}".strip() for name, value in run.items()}
    if (loss := run.get("val_loss")) is not None:
        error = run["val_loss_standard_error"]
        texts["val_loss"] = f"{loss:.4f}{'' if error is None else f' ± {error:.4f}'} nats/token"
    return {head: {name: texts.get(name, "-") for name in names} for head, names in _FACTS.items()}


# The grid points one step from a run in each cell whose search tried it; one that was not tried has no run.
_NEIGHBOURS = """
WITH step AS (
    SELECT cell_id, coordinates, axes::MAP(VARCHAR, DOUBLE[]) AS axis, unnest(neighbours(coordinates, shape)) AS moved
    FROM trial JOIN cell USING (cell_id) WHERE run_id = $1 AND role = 'search'
), named AS (
    SELECT *, list_position(list_transform(coordinates, lambda index, i: index <> moved[i]), true) AS i FROM step
)
SELECT named.cell_id, map_keys(axis)[i] AS axis, map_values(axis)[i][named.coordinates[i] + 1] AS here,
    map_values(axis)[i][moved[i] + 1] AS there, trial.run_id, coalesce(status, 'not run') AS status, val_loss,
    val_loss - (SELECT val_loss FROM run WHERE run_id = $1) AS difference
FROM named LEFT JOIN trial ON trial.cell_id = named.cell_id AND trial.coordinates = moved AND role = 'search'
    LEFT JOIN run ON run.run_id = trial.run_id
ORDER BY named.cell_id, i, there, trial.run_id
"""


def neighbours(connection: duckdb.DuckDBPyConnection, run_id: str) -> Records:
    """Return the runs one grid step away (cell_id, axis, here, there, run_id, status, val_loss, difference in nats/token).

    Of a cell that searches for the limit of an ensemble, too, the losses are those of single runs.
    """
    return records(connection, _NEIGHBOURS, [run_id])
