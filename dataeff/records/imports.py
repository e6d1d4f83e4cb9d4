"""Results trained elsewhere become runs of a study, and the views answer on them as on runs trained here.

One row of a source (`dataeff.records.sources`) is one run: columns named as those of table `run` fill that row, and all of them
stay in `spec`. The rows of one (recipe, D, size) are a cell; the distinct lr, weight_decay and epochs of a recipe are its grid. A
run id is a hash of all that is known of a row: one imported twice is one run. What cannot be a run is refused before anything is
written. An import is a fact on disk, `imports/<study>/`: the rows in `rows.parquet`, and in `import.json` what they mean.
"""

import filecmp
import json
import math
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import field, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from itertools import groupby, product
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import duckdb
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.dataclasses import dataclass

from dataeff.errors import InputError, QueryError, nearest
from dataeff.facts.store import Store, replacing
from dataeff.records.ingest import delete_cells, record_cells, record_runs, record_study
from dataeff.records.queries import literal, query, records
from dataeff.records.sources import ROW, RowsOfRuns, connect_to
from dataeff.records.store import Database
from dataeff.search.coordinate_descent import certificate, certificate_columns
from dataeff.specs.grid import Grid
from dataeff.specs.identity import canonical_json, identity
from dataeff.specs.study import NAME, NAME_RULE

REQUIRED = ("recipe", "seed_tokens", "parameters_total", "val_loss")
AXES = ("lr", "weight_decay", "epochs")
# Besides the axes, what decides a loss: runs that differ in it are not seeds of one point.
DECISIVE = ("corpus", "batch_size", "optimizer", "dropout", "order", "precision", "context_length", "synthetic_share")
ENDED = ("finished", "completed", "complete", "success", "diverged")
LEFT_OUT = ("crashed", "failed", "killed", "preempted", "preempting", "running", "scheduled", "pending", "queued")
BOOKKEEPING = ("mlflow.*", "wandb.*", "_*")  # columns that trackers add; they need no --ignore
SPELLINGS = {"learning_rate": "lr", "wd": "weight_decay", "seed": "train_seed", "n_params": "parameters_total"}
SPELLINGS |= {"tokens": "seed_tokens", "state": "status", "created": "started_at", "runtime": "wall_seconds"}
SPEC = "dataeff_spec"  # the name under which a query has a whole row of the source
NOT_OF_RUN = ("recipe", "size", "members", "row", "cell_id")  # of what is gathered of a run
SHOWN = 3  # mistakes in one message
_RULES = {  # by kind of pydantic's errors
    "literal_error": f"no such status. Valid: {', '.join((*ENDED, *LEFT_OUT))}",
    "finite_number": "it must be finite; a run that diverged says so, or that it finished, in its status",
    "greater_than_equal": "a cross-entropy is never negative",
    "less_than_equal": 'an ensemble\'s loss is no run; leave ensembles out with --where "{column} = 1"',
}
Count = Annotated[int, Field(gt=0, lt=2**63)]


@dataclass(frozen=True)
class Import:
    """What a study takes from a source. `columns` gives for a column of `run`, or recipe, size and members, one of the source or
    SQL over those; `ignored` may hold patterns with *; `where` is a SQL condition on the source's columns.

    As the content of `import.json` it says where and when too, and `columns` is SQL for every column of `run` that is filled.
    """

    study: str
    columns: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    where: str = "true"
    baseline: str | None = None
    limits: dict[str, str] = field(default_factory=dict)
    question: str | None = None
    source: str = ""
    imported_at: datetime | None = None


class _Cell(BaseModel):
    """What a row says beside the columns of `run`, and what is required of those."""

    model_config = ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False)

    recipe: str
    size: str | None = None
    members: Annotated[Count, Field(le=1)] | None = None
    status: Literal["", *ENDED]
    seed_tokens: Count
    parameters_total: Count
    val_loss: Annotated[float, Field(ge=0)] = None  # may be left out, as of a run that diverged, and not be NULL


def import_runs(database: Database, source: RowsOfRuns, request: Import) -> dict[str, int]:
    """Write the source's rows to `imports/<study>/` next to the database and record them; return how many rows became what.

    Raises `InputError`, naming columns or rows, for what cannot be a run, and when a study of that name was declared here;
    `QueryError` for SQL that DuckDB refuses. Nothing is changed then, on disk or in the database.
    """
    if not NAME.fullmatch(request.study):
        raise InputError(f"--study {request.study}: {NAME_RULE}; choose another")
    rows = source.connection
    columns = [name for name, *_ in rows.execute("DESCRIBE unfiltered").fetchall() if name != ROW]
    fact = replace(request, source=source.name, imported_at=datetime.now(UTC))
    fact = replace(fact, columns=_mapping(fact, columns))
    try:
        query(rows, f"CREATE OR REPLACE TABLE source AS FROM unfiltered WHERE (\n{request.where}\n) ORDER BY {ROW}")
        runs, _ = _runs(rows, fact)
        _check_options(fact, list(dict.fromkeys(run["recipe"] for run in runs)))
    except QueryError as error:
        raise QueryError(f"{error}\nThe columns of {source.name} are: {', '.join(columns)}") from error
    with database.write() as connection:
        if connection.execute("SELECT 1 FROM study WHERE name = $1 AND imported_from IS NULL", [fact.study]).fetchone():
            rule = "was declared and run here, and an import would replace it; give another name with --study"
            raise InputError(f"study {fact.study} {rule}")
        folder = Store.beside(database.path).path / "imports" / fact.study
        _write_folder(folder, rows, fact)
        return record_import(connection, folder)


def record_import(connection: duckdb.DuckDBPyConnection, folder: Path) -> dict[str, int]:
    """Record an import from its folder alone; return the counts of `import_runs`. Recording it again changes nothing; another
    import of the same study replaces cells and trials, and runs stay. Raises `InputError`, naming a folder that cannot be read.
    """
    fact, source = _read_folder(folder)
    runs, left_out = _runs(source, fact)
    new = record_runs(connection, [{name: run[name] for name in run if name not in NOT_OF_RUN} for run in runs])
    cells = list(_cells(runs, fact))
    recorded = connection.execute("SELECT updated_at FROM study WHERE name = $1", [fact.study]).fetchone()
    if recorded != (fact.imported_at,):
        delete_cells(connection, fact.study)
        record_study(connection, _study_row(fact, list(dict.fromkeys(run["recipe"] for run in runs))))
        record_cells(connection, [cell for cell, _ in cells], [trial for _, trials in cells for trial in trials])
    return {"new runs": new, "runs already there": len(runs) - new, "cells": len(cells), **left_out}


def _study_row(fact: Import, recipes: Sequence[str]) -> dict[str, Any]:
    limits = {recipe: {"limit": fact.limits.get(recipe, "best")} for recipe in recipes}
    spec = {"recipes": limits, "columns": fact.columns, "ignored": fact.ignored, "where": fact.where}
    question = fact.question or f"What do the runs of {fact.source} show?"
    row = {"name": fact.study, "question": question, "baseline": fact.baseline, "imported_from": fact.source}
    times = {"claims_since": None, "started_at": fact.imported_at, "updated_at": fact.imported_at}
    return {**row, **times, "text": canonical_json({**spec, **row}), "spec": spec}


def _write_folder(folder: Path, source: duckdb.DuckDBPyConnection, fact: Import) -> None:
    """Write an import's folder in place of an earlier one; an earlier one of the same content stays."""
    with replacing(folder) as new:
        new.mkdir()
        rows = new / "rows.parquet"
        source.execute(f"COPY source TO {literal(rows)} (FORMAT parquet)")
        if folder.exists():
            earlier, _ = _read_folder(folder)
            if replace(fact, imported_at=earlier.imported_at) == earlier and filecmp.cmp(rows, folder / rows.name, shallow=False):
                fact = earlier
        (new / "import.json").write_bytes(TypeAdapter(Import).dump_json(fact, indent=1))


def _read_folder(folder: Path) -> tuple[Import, duckdb.DuckDBPyConnection]:
    """Return an import and a connection whose table `source` has its rows."""
    try:
        fact = TypeAdapter(Import).validate_json((folder / "import.json").read_bytes())
        return fact, connect_to("source", f"FROM {literal(folder / 'rows.parquet')}")
    except (OSError, ValidationError, QueryError) as error:
        raise InputError(f"{folder} cannot be read as an import: {error}; remove it and import {folder.name} again") from error


@cache
def _row_type() -> type[BaseModel]:
    """Return the type of a row: the columns of `run` that a source can fill, and those of `_Cell`."""
    from dataeff.records.tables import Run

    bigint = Annotated[int, Field(gt=-(2**63), lt=2**63)]
    fields: dict[str, Any] = {}
    for name, column in Run.model_fields.items():
        if name not in (*_Cell.model_fields, "run_id", "reason", "spec", "source", "samples"):
            kind = (get_args(column.annotation) or [column.annotation])[0]
            fields[name] = ((bigint if kind is int else kind) | None, None)
    return create_model("Row", __base__=_Cell, **fields)


def _mapping(request: Import, columns: Sequence[str]) -> dict[str, str]:
    """Return the SQL of each target. Raises unless every column has a place and every required target a column."""
    source, targets = request.source, _row_type().model_fields
    for name, text in request.columns.items():
        if name not in targets:
            raise InputError(f"--map {name}={text}: no such column of run; {nearest(name, targets)}")
    ignored: set[str] = set()
    for pattern in (*BOOKKEEPING, *request.ignored):  # a name such as "loss [nats]" is no pattern of itself
        matching = {name for name in columns if name == pattern or fnmatchcase(name, pattern)}
        if not matching and pattern in request.ignored:
            raise InputError(f"--ignore {pattern}: {source} has no such column; {nearest(pattern, columns)}")
        ignored |= matching
    by_name = {name.lower(): name for name in columns if name not in request.ignored}
    chosen = {name: by_name[name] for name in targets if name in by_name} | request.columns
    free = [name for name in (*REQUIRED, *targets) if name not in chosen]
    options = []
    for name in (name for name in columns if name not in ignored and not _used(name, chosen, columns)):
        target = _likely_target(name, free)
        options.append(f"--map {shlex.quote(f'{target}={name}')}" if target else f"--ignore {shlex.quote(name)}")
        free = [name for name in free if name != target]
    mistakes = [f"it has columns that no column of run is named as; add {' '.join(options)}"] if options else []
    if missing := [name for name in REQUIRED if name in free]:
        example = "--map \"recipe='standard'\"" if missing[0] == "recipe" else f"--map {missing[0]}=COLUMN (or SQL over columns)"
        mistakes.append(f"nothing gives {', '.join(missing)}, which every run needs; add {example}")
    if mistakes:
        raise InputError(f"{source}: {'; '.join(mistakes)}. Nothing was imported")
    quoted = {column: '"' + column.replace('"', '""') + '"' for column in columns}
    return {name: quoted.get(text, text) for name, text in chosen.items()}


def _used(name: str, chosen: Mapping[str, str], columns: Sequence[str]) -> bool:
    word = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")
    return any(text == name or (text not in columns and word.search(text)) for text in chosen.values())


def _likely_target(name: str, free: Sequence[str]) -> str | None:
    """Return the target that a column may stand for: by a usual spelling, else by likeness, first of what every run needs."""
    last = re.sub(r"\W+", "_", name.rpartition(".")[2].lower())
    if SPELLINGS.get(last) in free:
        return SPELLINGS[last]
    required = [target for target in free if target in REQUIRED]
    return next(iter(get_close_matches(last, required, 1) or get_close_matches(last, free, 1, cutoff=0.75)), None)


def _check_options(fact: Import, recipes: Sequence[str]) -> None:
    for option, names in (("--baseline", [fact.baseline] if fact.baseline else []), ("--limit", fact.limits)):
        if unknown := [name for name in names if name not in recipes]:
            raise InputError(f"{option} {unknown[0]}: {fact.source} has no such recipe; {nearest(unknown[0], recipes)}")
    if wrong := [f"{recipe}={limit}" for recipe, limit in fact.limits.items() if limit not in ("best", "N")]:
        raise InputError(f"--limit {wrong[0]}: a limit of single models is 'best' (over sizes) or 'N' (the asymptote in N)")


def _runs(source: duckdb.DuckDBPyConnection, fact: Import) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the rows of table `source` as rows of `run` with `NOT_OF_RUN`, and how many were left out, by reason.

    Raises `InputError`, which names the rows that cannot be runs.
    """
    rows = _mapped(source, fact)
    left_out = Counter(f"left out: status {row['status']}" for row in rows if row["status"] in LEFT_OUT)
    rows = [row for row in rows if row["status"] not in LEFT_OUT]
    if not rows:
        raise InputError(f"{fact.source} has no row to import{''.join(f'; {reason}: {n}' for reason, n in left_out.items())}")
    runs = []
    for row, run in zip(rows, _typed(rows, fact), strict=True):
        spec = _plain({name: value for name, value in row[SPEC].items() if name != ROW})
        run["size"] = run["size"] or f"{run['parameters_total'] / 1e6:.15g}M"  # exact: two counts have two names
        run["run_id"] = _run_id({name: value for name, value in run.items() if name not in (*NOT_OF_RUN, "status")}, spec)
        run |= {"spec": spec, "source": fact.source, "row": row["row"]}
        run |= {"status": "diverged" if row["reason"] else "finished", "reason": row["reason"]}
        runs.append(run | {"cell_id": f"{fact.study}/{run['recipe']}/{run['seed_tokens']}/{run['size']}"})
    if clashes := list(_clashes(runs)):
        raise _refusal(fact, clashes)
    return runs, left_out


def _mapped(source: duckdb.DuckDBPyConnection, fact: Import) -> list[dict[str, Any]]:
    """Return the mapped columns of each row, its `row` number, `status` in lower case, the `reason` it diverged, and `SPEC`."""
    status = f"coalesce(lower(CAST({fact.columns.get('status', 'NULL')} AS VARCHAR)), '')"
    loss = f"lower(CAST({fact.columns['val_loss']} AS VARCHAR))"
    reason = f"""'in ' || {literal(fact.source)} || CASE WHEN {status} = 'diverged' THEN ' status is diverged'
        WHEN {status} IN {ENDED} AND {loss} IN ('nan', 'inf', 'infinity') THEN ' val_loss is ' || {loss} END"""
    columns = fact.columns | {"status": status, "reason": reason, "row": ROW}
    selected = ", ".join(f'{text} AS "{name}"' for name, text in columns.items())
    return records(source, f"SELECT {selected}, {SPEC} FROM source AS {SPEC} ORDER BY {ROW}")


def _typed(rows: Sequence[Mapping[str, Any]], fact: Import) -> list[dict[str, Any]]:
    """Return the values of each row by the types of their columns; a run that diverged has no loss."""
    values = [{name: value for name, value in row.items() if name != "val_loss" or not row["reason"]} for row in rows]
    try:
        return [row.model_dump() for row in TypeAdapter(list[_row_type()]).validate_python(values)]
    except ValidationError as error:
        mistakes = []
        for mistake in error.errors(include_url=False):
            index, name = mistake["loc"]
            rule = _RULES.get(mistake["type"], mistake["msg"].replace("Input should be", "it must be"))
            rule = "every run needs one" if mistake["input"] is None else rule.replace("{column}", fact.columns[name])
            mistakes.append((rows[index]["row"], f"{name} = {mistake['input']!r}: {rule}"))
        raise _refusal(fact, mistakes) from error


def _refusal(fact: Import, mistakes: list[tuple[int, str]]) -> InputError:
    shown = [f"row {row}: {mistake}" for row, mistake in sorted(mistakes)[:SHOWN]]
    shown += [f"and {len(mistakes) - SHOWN} more"] if len(mistakes) > SHOWN else []
    return InputError(f"{fact.source}: {'; '.join(shown)}. Correct them, or leave them out with --where. Nothing was imported")


def _clashes(runs: Sequence[dict[str, Any]]) -> Iterator[tuple[int, str]]:
    """Yield the rows that do not go together: equal ones, a grid with holes, what differs within a cell or a point."""
    size, seeds = "has one count; map `size`", "has runs that differ in seeds alone; make two recipes of them"
    with_axis = {(run["recipe"], axis) for run in runs for axis in AXES if run[axis] is not None}
    first: dict[Any, dict[str, Any]] = {}  # row of each run id, cell and point
    for run in runs:
        row, cell, point = run["row"], run["cell_id"], (run["cell_id"], *(run[axis] for axis in AXES))
        if (twin := first.setdefault(("run", run["run_id"]), run)) is not run:
            yield row, f"equals row {twin['row']}: one run is one row; remove one"
        for axis in AXES:
            if run[axis] is None and (run["recipe"], axis) in with_axis:
                yield row, f"{axis} is missing, and other rows of recipe {run['recipe']} have it"
        for name, group, rule in (("parameters_total", cell, size), *((name, point, seeds) for name in DECISIVE)):
            other = first.setdefault(group, run)
            if run[name] != other[name]:
                yield row, f"{name} is {run[name]!r} and in row {other['row']} {other[name]!r}: a point of {cell} {rule}"


def _cells(runs: Sequence[dict[str, Any]], fact: Import) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield each row of `cell` with its rows of `trial`. The first run at a point is the search's, others its replicates."""
    grids: dict[str, dict[str, set[float]]] = defaultdict(lambda: {axis: set() for axis in AXES})
    for run, axis in product(runs, AXES):
        grids[run["recipe"]][axis].add(run[axis])
    for cell_id, group in groupby(sorted(runs, key=itemgetter("cell_id")), itemgetter("cell_id")):
        own = list(group)
        first, axes = own[0], {axis: sorted(values) for axis, values in grids[own[0]["recipe"]].items() if None not in values}
        losses: dict[tuple[int, ...], float | None] = {}
        trials = []
        for number, run in enumerate(own):
            point = tuple(values.index(run[axis]) for axis, values in axes.items())
            use = {"role": "replicate" if point in losses else "search", "number": number, "coordinates": list(point)}
            trials.append({"cell_id": cell_id, "run_id": run["run_id"], **use})
            losses.setdefault(point, run["val_loss"])
        copied = ("cell_id", "recipe", "seed_tokens", "size", "parameters_total", "parameters_non_embedding")
        cell = {name: first[name] for name in copied}
        cell |= {"study": fact.study, "recipe_limit": fact.limits.get(first["recipe"], "best"), "axes": axes, "starts": []}
        cell |= {"shape": [len(values) for values in axes.values()], "origin": cell_id, "search_ended": False}
        yield cell | {"objective": "single", "averaging": "logits", "members": 1, **_certificate(axes, losses)}, trials


def _certificate(axes: Mapping[str, list[float]], losses: Mapping[tuple[int, ...], float | None]) -> dict[str, Any]:
    """Return the certificate of a cell whose points have these losses, None for a diverged run."""
    grid = Grid({axis: tuple(values) for axis, values in axes.items()} or {"point": (0.0,)})
    results = {point or (0,): math.inf if loss is None else loss for point, loss in losses.items()}
    columns = certificate_columns(certificate(results, grid), results, grid)
    if grid.size == 1 and columns["best"]:
        columns |= {"state": "open", "reason": "one point was imported; what was searched around it is not known"}
    return columns | ({} if axes else {"best": columns["best"] and []})


def _run_id(run: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    values = {name: str(value) if isinstance(value, datetime) else value for name, value in run.items() if value is not None}
    return identity({"external": {"run": values, "row": {name: _as_number(v) for name, v in spec.items() if v is not None}}})


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return values as JSON has them; what JSON lacks (times, infinities) as text."""
    return json.loads(json.dumps(row, default=str), parse_constant=lambda name: str(float(name)))


def _as_number(value: Any) -> Any:
    """Return the number that a text means: whether a column was read as text or as numbers depends on its other rows."""
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool) and math.isfinite(number := float(value)):
            return number
    return value
