"""Runs to look at: which ones, what they have in common, how their losses fell, and what surrounds one of them.

Which runs is SQL text, made from choices by `matching`. A stranger's condition never enters it: the sandbox says which runs
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
from dataeff.records import sandbox
from dataeff.records.queries import literal, records
from dataeff.records.store import Database
from dataeff.reports.theme import chart_config, recipe_colours

if TYPE_CHECKING:
    import duckdb

Records = list[dict[str, Any]]

MOST_LINES, BEST_LINES = 2000, 100
MOST_POINTS = 40_000  # of all curves together: some 4 MB on their way to the browser
QUANTITIES = {
    **{"train_loss": "training loss", "val_loss": "validation loss", "lr": "learning rate"},
    "gradient_norm": "gradient norm",
}
PANELS = {
    "loss (nats/token)": ("train_loss", "val_loss"),
    "learning rate": ("lr",),
    "gradient norm": ("gradient_norm",),
}
ACROSS = {
    "tokens": "training tokens",
    "epochs": "epochs (tokens seen / D)",
    "FLOPs": "training FLOPs (in proportion to tokens)",
    "seconds": "time (s, in proportion to tokens)",
}
AXES = {
    **{"seed_tokens": "D (tokens)", "parameters_total": "N (parameters)", "lr": "lr", "weight_decay": "weight decay"},
    **{"epochs": "epochs", "val_loss": "validation loss"},
}

alt.data_transformers.disable_max_rows()  # 5,000 otherwise

# Every run with the recipes and sizes of the cells that it serves.
_USED = """(SELECT run.*, recipes, sizes FROM run {join} (
    SELECT run_id, array_to_string(list_sort(list(DISTINCT recipe)), ', ') AS recipes,
        array_to_string(list_sort(list(DISTINCT size)), ', ') AS sizes
    FROM trial JOIN cell USING (cell_id) WHERE {of} GROUP BY run_id HAVING {having}) AS used USING (run_id)) AS run"""


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
    of = f"study = {literal(study)}" if study else "true"
    having = _any("list_has_any(list({}), {})", {"recipe": recipes, "size": sizes})
    join = "JOIN" if study or recipes or sizes else "LEFT JOIN"
    where = _any("list_contains({1}, {0}::VARCHAR)", {"seed_tokens": seed_tokens, "status": status})
    if ids is not None:
        where += f" AND run_id IN (SELECT unnest(string_split({literal(ids)}, ',')))"
    return f"FROM {_USED.format(join=join, of=of, having=having)} WHERE {where}"


def _any(test: str, chosen: dict[str, Sequence[Any]]) -> str:
    tests = [test.format(name, f"[{', '.join(map(literal, values))}]") for name, values in chosen.items() if values]
    return " AND ".join(tests) or "true"


def ids_where(path: Path, study: str | None, condition: str) -> str:
    """Return the ids, with commas between them, of the runs of a study (or all) that a stranger's SQL condition holds for.

    Raises `QueryError`, with the names of the columns, where the sandbox refuses it or it fails. The sandbox opens the file: a
    caller that held it meanwhile would keep a waiting writer, and so the sandbox, from it.
    """
    text = f"SELECT coalesce(string_agg(run_id, ','), '') AS ids {matching(study)} AND (\n{condition}\n)"
    try:
        answer = sandbox.ask(path, text)
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


def table_query(found: str, columns: Sequence[str], sort: str, descending: bool, limit: int, offset: int = 0) -> str:
    """Return the query of one page of `found`, which `matching` made. `columns` and `sort` are names of its columns."""
    names = ", ".join(f'"{name}"' for name in columns)
    order = f'"{sort}" {"DESC" if descending else "ASC"} NULLS LAST, run_id'
    return f"SELECT {names} {found} ORDER BY {order} LIMIT {int(limit)} OFFSET {int(offset)}"


def count_query(found: str) -> str:
    return f"SELECT count(*) AS matching {found}"


def parallel_query(found: str) -> str:
    """Return the query of `parallel_chart`: one record a run and axis with its `position` between the axis' ends.

    Of more than 2,000 runs, the 100 of least loss and others by a hash of their ids, which is as good as by chance.
    All axes but the loss are logarithmic; 0, such as no weight decay, lies a tenth below.
    """
    numbers = ", ".join(f"{name}::DOUBLE AS {name}" for name in AXES)
    pairs = ", ".join(f"{{axis: '{name}', value: {name}}}" for name in AXES)
    return f"""
WITH chosen AS (
    SELECT run_id, {numbers}, count(*) OVER () AS matching {found}
    ORDER BY row_number() OVER (ORDER BY val_loss) > {BEST_LINES}, hash(run_id) LIMIT {MOST_LINES}
), long AS (
    SELECT run_id, val_loss, matching, unnest([{pairs}], max_depth := 2) FROM chosen
), scaled AS (
    SELECT *, if(axis = 'val_loss', value, if(value > 0, ln(value), NULL)) AS scale FROM long
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


# A line says of a run what it does not share with the others.
_TELLING = ("recipes", "seed_tokens", "sizes", "parameters_total", "lr", "weight_decay", "epochs", "batch_size", "optimizer",
            "dropout", "synthetic_share", "train_seed", "data_seed", "corpus_name", "source")  # fmt: skip


def differing(runs: Records) -> list[str]:
    """Return the columns that decide a loss and in which these runs differ."""
    return [name for name in _TELLING if len({run.get(name) for run in runs}) > 1]


def labels(runs: Records) -> dict[str, str]:
    """Return a name for each run by its id: the beginning of the id, and where it differs from the others."""
    names = [name for name in differing(runs) if name != "parameters_total"][:5]
    digits = 8 if len({run["run_id"][:8] for run in runs}) == len(runs) else None
    return {
        run["run_id"]: " ".join(
            [run["run_id"][:digits], *(f"{_SHORT.get(name, name)} {_text(run[name])}" for name in names if run[name] is not None)]
        )
        for run in runs
    }


_SHORT = {"recipes": "", "sizes": "", "seed_tokens": "D", "weight_decay": "wd", "train_seed": "seed", "corpus_name": ""}

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
    recorded, drawn, gaps, unplaced = {}, {}, 0, set()
    for point in points:
        key = point["run_id"], point["name"]
        recorded[key], drawn[key] = point["points"], drawn.get(key, 0) + 1
        gaps += point["value"] is None
        if point["x"] is None:
            unplaced.add(point["run_id"])
    how = "Thin: training; thick, with points: validation. Drag to move, shift and wheel to zoom, double click to reset."
    lines = [how] if points else []
    if thinned := [key for key in recorded if drawn[key] < recorded[key]]:
        before, after = sum(recorded[key] for key in thinned), sum(drawn[key] for key in thinned)
        lines.append(
            f"{len(thinned)} of {len(recorded)} curves are thinned, from {before:,} points to {after:,}: of each bucket of "
            "neighbouring points the least and the greatest are drawn."
        )
    for name in names:
        if missing := [run_id[:8] for run_id in ids if (run_id, name) not in recorded]:
            lines.append(
                f"No {QUANTITIES[name]} along training is recorded of {_listed(missing)}: imported results hold none, none "
                "was asked for, or it diverged before."
            )
    if gaps:
        lines.append(f"Points without a value, as it is not finite, or not positive for a logarithmic axis: {gaps:,}.")
    if unplaced:
        lines.append(f"{_listed([r[:8] for r in unplaced])} cannot be placed: what '{ACROSS[across]}' needs is not recorded.")
    return lines


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _table(records: Records) -> pyarrow.Table:
    """Return records as a table: Altair looks at every value of inline records again and again, which takes seconds."""
    return pyarrow.Table.from_pylist(records) if records else pyarrow.table({"run": pyarrow.array([], pyarrow.string())})


def curves_chart(
    points: Records, names: dict[str, str], across: str, log_x: bool = False, log_y: bool = False, dark: bool = False
) -> alt.VConcatChart:
    """Return curves of runs, losses in one panel and each other quantity in its own. `names`: a label for each run id."""
    colours = recipe_colours(list(names.values()))
    domain = alt.Scale(domain=list(colours), range=list(colours.values()))
    legend = alt.Legend(columns=2, labelLimit=480, title=None, symbolType="stroke", symbolStrokeWidth=3)
    colour = alt.Color("run:N", scale=domain, legend=legend)
    kinds = [alt.Scale(type="linear", nice=False, zero=False, padding=6), alt.Scale(type="log", nice=False, padding=6)]
    form = "~s" if across in ("tokens", "FLOPs") else ",.4~g"
    x = alt.X("x:Q", title=ACROSS[across], scale=kinds[log_x]).axis(format=form, tickCount=8)
    panels = []
    for title, parts in PANELS.items():
        here = [{**p, "run": names[p["run_id"]]} for p in points if p["name"] in parts and p["x"] is not None]
        if not here:
            continue
        y = alt.Y("value:Q", title=title, scale=kinds[log_y])
        y = y.axis(format=".3~g") if title == "learning rate" else y
        tooltip = ["run:N", alt.Tooltip("x:Q", format=",.4~g", title=across), alt.Tooltip("value:Q", format=".4f", title=title)]
        lines = alt.Chart(_table([p for p in here if p["name"] != "val_loss"])).mark_line(strokeWidth=1.2)
        dots = alt.Chart(_table([p for p in here if p["name"] == "val_loss"]))
        layers = [lines.encode(x, y, colour)]
        if "val_loss" in parts:
            layers += [dots.mark_line(strokeWidth=2).encode(x, y, colour),
                       dots.mark_point(size=30, filled=True, opacity=1).encode(x, y, colour, tooltip=tooltip)]  # fmt: skip
        zoom = alt.selection_interval(bind="scales", zoom="wheel![event.shiftKey]", name=f"zoom_{parts[0]}")
        panels.append(alt.layer(*layers).add_params(zoom).properties(width=900, height=320 if "val_loss" in parts else 140))
    return alt.vconcat(*panels).resolve_scale(color="shared").configure(**chart_config(dark))


def parallel_note(lines: Records) -> list[str]:
    """Say of parallel coordinates what they leave out."""
    ends = [line for line in lines if line["axis"] == "val_loss"]
    said = ["Axes are logarithmic but for the loss. The worst tenth of the losses shares a colour."]
    if ends and len(ends) < (matching := ends[0]["matching"]):
        said.insert(0, f"{len(ends):,} of {matching:,} runs are drawn: the {BEST_LINES} of least loss, and others by chance.")
    if lossless := sum(line["value"] is None for line in ends):
        said.append(f"Grey, as they diverged and have no loss: {lossless:,}.")
    for axis, name in AXES.items():
        if axis != "val_loss" and (lacking := sum(line["axis"] == axis and line["position"] is None for line in lines)):
            said.append(f"Broken lines, as {name} is not recorded: {lacking:,}.")
    return said


def parallel_chart(lines: Records, dark: bool = False) -> alt.LayerChart:
    """Return parallel coordinates of the records of `parallel_query`: a line a run, its loss as colour, grey without."""
    axes = [AXES[name] for name in AXES]
    place = alt.X("axis:N", sort=axes, title=None, scale=alt.Scale(domain=axes, padding=0.6)).axis(labelAngle=0, grid=True)
    y = alt.Y("position:Q", scale=alt.Scale(domain=[-0.12, 1.04], nice=False), axis=None)
    losses = sorted(line["val_loss"] for line in lines if line["axis"] == "val_loss" and line["val_loss"] is not None)
    span = [losses[0], losses[int(0.9 * (len(losses) - 1))]] if losses else [0, 1]  # a few bad losses would eat every colour
    legend = alt.Legend(gradientLength=220, format=".3f")
    colour = alt.Color("val_loss:Q", title="validation loss (nats/token)", legend=legend)
    colour = colour.scale(scheme="viridis", domain=span, clamp=True, reverse=dark)
    named = [{**line, "axis": AXES[line["axis"]]} for line in lines]
    strokes = alt.Chart(_table(named)).mark_line(strokeWidth=1, opacity=0.6).encode(
        place, y, color=alt.condition("isValid(datum.val_loss)", colour, alt.value("#8C8C8C")), detail="run_id:N"
    )  # fmt: skip
    marks = alt.Chart(_table(_ticks(lines))).encode(place, y, text="label:N")
    config, font = chart_config(dark), {"align": "left", "dx": 5, "fontSize": 11}
    halo = marks.mark_text(**font, stroke=config["background"], strokeWidth=4)
    texts = marks.mark_text(**font, color=config["axis"]["labelColor"])
    return alt.layer(strokes, halo, texts).properties(width=900, height=340).configure(**config)


def _ticks(lines: Records) -> Records:
    """Return a label at each value of an axis that has at most nine, else at five of them."""
    ticks = []
    for axis, name in AXES.items():
        places = {line["position"]: line["value"] for line in lines if line["axis"] == axis and line["position"] is not None}
        chosen = sorted(places)
        if len(chosen) > 9 and axis == "val_loss":
            low, high = places[chosen[0]], places[chosen[-1]]
            places = {p: low + p * (high - low) for p in (0, 0.25, 0.5, 0.75, 1)}
        elif len(chosen) > 9:
            positive = [p for p in chosen if p >= 0]
            low, high = places[positive[0]], places[positive[-1]]
            places = {p: low * (high / low) ** p for p in (0, 0.25, 0.5, 0.75, 1)} | {p: places[p] for p in chosen if p < 0}
        ticks += [{"axis": name, "position": position, "label": _tick(value)} for position, value in places.items()]
    return ticks


def _tick(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or size > 1e3 and abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.4g}"


def _text(value: Any, form: str = "") -> str:
    """Return a value to read: '-' where it is not known."""
    if value is None or value == "":
        return "-"
    if form or not isinstance(value, (int, float)):
        return f"{value:{form}}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"


def run_facts(run: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return what is recorded of a run, as texts with units under four heads; '-' for what is not known."""

    def text(name: str, form: str = "", unit: str = "", scale: float = 1) -> str:
        value = run.get(name)
        return "-" if value is None else f"{_text(value / scale if scale != 1 else value, form)} {unit}".strip()

    error = f" ± {run['val_loss_standard_error']:.4f}" if run.get("val_loss_standard_error") is not None else ""
    loss = "-" if run.get("val_loss") is None else f"{run['val_loss']:.4f}{error} nats/token"
    synthetic = {"synthetic share": text("synthetic_share", ".3g")} if run.get("synthetic_share") is not None else {}
    return {
        "Losses": {
            **{"validation loss ± standard error": loss, "training loss (end of curve)": text("train_loss", ".4f", "nats/token")},
            **{"status": run.get("status") or "not ended", "reason": text("reason")},
            "source": run.get("source") or "trained here",
        },
        "Training": {
            **{"D (seed tokens)": text("seed_tokens"), "N (parameters)": text("parameters_total"), "epochs": text("epochs")},
            **{"learning rate": text("lr"), "weight decay": text("weight_decay"), "batch size": text("batch_size")},
            **{"optimizer": text("optimizer"), "seeds (train, data)": f"{text('train_seed')}, {text('data_seed')}"},
            **{"corpus": text("corpus_name"), **synthetic},
        },
        "Cost": {
            **{"training": text("training_flops", ".3g", "FLOPs"), "time": text("wall_seconds", ",.1f", "s")},
            **{"tokens seen": text("tokens_seen"), "speed": text("tokens_per_second", ",.0f", "tokens/s")},
            **{"model FLOPs utilisation": text("model_flops_utilisation", ".1%")},
            **{"peak memory": text("peak_memory_bytes", ",.1f", "MiB", 2**20)},
        },
        "Where": {
            **{"device": text("device"), "host": text("host"), "PyTorch": text("torch_version")},
            **{"began": text("started_at", "%Y-%m-%d %H:%M:%S UTC"), "ended": text("ended_at", "%Y-%m-%d %H:%M:%S UTC")},
        },
    }


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
