"""Results trained elsewhere become runs of a study, so that the views answer on them as on what was trained here.

A row of the source is one run: what it says under the names of table `run` fills that row, and all of it stays in `spec`. Rows
of one (recipe, D, size) are a cell; the distinct values of a recipe's lr, weight_decay and epochs are its grid. A run's id is a
hash of all that is known of it, so a row is one run however often it comes; a source that has changed records the study's
cells and trials anew, and its runs stay. Nothing is guessed: a column without a place, a value of another type, a row said
twice stop the import before anything is written. Where the rows come from is for `dataeff.sources` to know.
"""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache, cached_property
from typing import Any

import duckdb
from pydantic import ConfigDict, TypeAdapter, ValidationError

from dataeff.errors import InputError, QueryError, nearest
from dataeff.records.ingest import record_cells, record_runs, record_study, record_trials, take_out
from dataeff.records.queries import query
from dataeff.records.store import Database
from dataeff.specs.identity import canonical_json, identity

REQUIRED = ("recipe", "seed_tokens", "parameters_total", "val_loss")
AXES = ("lr", "weight_decay", "epochs")
# Besides the axes, what decides a loss: runs that differ in it are no repetition of each other.
DECIDES = ("corpus", "batch_size", "optimizer", "dropout", "order", "precision", "context_length", "synthetic_share")
ENDED = ("finished", "completed", "complete", "success", "diverged")
LEFT_OUT = ("crashed", "failed", "killed", "preempted", "preempting", "running", "scheduled", "pending", "queued")
ROW = "dataeff_row"  # the number of a source's row, from 1
BOOKKEEPING = ("mlflow.*", "wandb.*", "_*")  # columns that trackers add; they go to `spec` without being asked about
SPELLINGS = {"learning_rate": "lr", "wd": "weight_decay", "seed": "train_seed", "n_params": "parameters_total"}
SPELLINGS |= {"tokens": "seed_tokens", "state": "status", "created": "started_at", "runtime": "wall_seconds"}
SHOWN = 10


@dataclass(frozen=True)
class Source:
    """Rows of a file or tracker: table `source` of `connection`, numbered in column `ROW`; `name` says where they are from."""

    name: str
    connection: duckdb.DuckDBPyConnection


@dataclass(frozen=True)
class Import:
    """What a study takes from a source. `columns` gives for a column of `run`, or recipe, size and members, one of the source or
    SQL over those; `ignored` may hold patterns with *; `where` is a SQL condition on the source's columns."""

    study: str
    columns: Mapping[str, str] = field(default_factory=dict)
    ignored: Sequence[str] = ()
    where: str = "true"
    baseline: str | None = None
    limits: Mapping[str, str] = field(default_factory=dict)
    question: str | None = None


@dataclass(frozen=True)
class _Row:
    number: int
    values: dict[str, Any]  # by column of `run`, or recipe, size, members
    source: dict[str, Any]
    diverged: str | None  # what the source says of it

    @cached_property
    def run_id(self) -> str:
        known = {name: _plain(value) for name, value in self.values.items() if name not in ("recipe", "size", "members")}
        row = {name: _same(value) for name, value in self.source.items() if value is not None}
        return identity({"external": {"run": {name: v for name, v in known.items() if v is not None}, "row": row}})

    @property
    def cell(self) -> tuple[str, int, str]:
        size = self.values.get("size") or f"{self.values['parameters_total'] / 1e6:.15g}M"  # exact: two counts have two names
        return self.values["recipe"], self.values["seed_tokens"], size


def import_runs(database: Database, source: Source, wanted: Import) -> dict[str, int]:
    """Record the source's rows as runs, and their study; return what came of how many rows.

    Raises `InputError`, naming columns or rows, for what cannot be a run, and when a study of that name was declared here;
    `QueryError` for SQL that DuckDB refuses. Nothing is changed then.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", wanted.study):
        raise InputError(f"--study {wanted.study}: a study's name is made of letters, digits, '.', '_' and '-'; choose another")
    rows, left_out = _rows(source, wanted)
    recipes = list(dict.fromkeys(row.values["recipe"] for row in rows))
    for option, named in (("--baseline", [wanted.baseline] if wanted.baseline else []), ("--limit", wanted.limits)):
        if unknown := [name for name in named if name not in recipes]:
            raise InputError(f"{option} {unknown[0]}: {source.name} has no such recipe; {nearest(unknown[0], recipes)}")
    if wrong := [f"{recipe}={limit}" for recipe, limit in wanted.limits.items() if limit not in ("best", "N")]:
        raise InputError(f"--limit {wrong[0]}: a limit of single models is 'best' (over sizes) or 'N' (the asymptote in N)")
    cells, trials = _cells(wanted, rows)
    spec = {
        "imported_from": source.name,
        "recipes": {recipe: {"limit": wanted.limits.get(recipe, "best")} for recipe in recipes},
        "columns": dict(wanted.columns),
        "ignored": list(wanted.ignored),
        "where": wanted.where,
    }
    question = wanted.question or f"What do the runs of {source.name} show?"
    text, asks = canonical_json({**spec, "question": question, "baseline": wanted.baseline}), identity([cells, trials])
    now = datetime.now(UTC)
    with database.write() as connection:
        known = connection.execute(
            "SELECT text, asks, spec ->> 'imported_from' FROM study WHERE name = $1", [wanted.study]
        ).fetchone()
        if known and known[2] is None:
            raise InputError(
                f"study {wanted.study} was declared and run here, and an import would replace it; give another name with --study"
            )
        new = record_runs(connection, [_run(row, source.name, now) for row in rows])
        if known is None or known[:2] != (text, asks):
            take_out(connection, wanted.study)
            record_study(connection, wanted.study, question, wanted.baseline, text, spec, asks)
            record_cells(connection, cells)
            record_trials(connection, trials)
    return {"new runs": new, "runs already there": len(rows) - new, "cells": len(cells), **left_out}


@cache
def _targets() -> dict[str, TypeAdapter[Any]]:
    """What a source's column can be, and its type."""
    from dataeff.records.tables import Run  # slow to load

    ours = ("run_id", "reason", "spec", "source", "samples", "recorded_at")
    kinds: dict[str, Any] = {name: info.annotation for name, info in Run.model_fields.items() if name not in ours}
    kinds |= {"recipe": str, "size": str, "members": int}
    config = ConfigDict(coerce_numbers_to_str=True)
    return {name: TypeAdapter(kind | None, config=config) for name, kind in kinds.items()}


def _mapping(source: Source, wanted: Import, columns: Sequence[str]) -> dict[str, str]:
    """Return the SQL of each target. Raises `InputError` unless every column has a place, and every required target a column."""
    for name in wanted.columns:
        if name not in _targets():
            raise InputError(f"--map {name}={wanted.columns[name]}: no such column of run; {nearest(name, _targets())}")
    for pattern in wanted.ignored:
        if not any(_matches(name, pattern) for name in columns):
            raise InputError(f"--ignore {pattern}: {source.name} has no such column; {nearest(pattern, columns)}")
    same = {name.lower(): name for name in columns if name not in wanted.ignored}
    chosen = {name: same[name] for name in _targets() if name in same} | dict(wanted.columns)
    lacking = [name for name in REQUIRED if name not in chosen]
    free = [name for name in _targets() if name not in chosen]
    lines = []
    for name in columns:
        word = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")
        if any(text == name or (text not in columns and word.search(text)) for text in chosen.values()):
            continue
        if not any(_matches(name, pattern) for pattern in (*BOOKKEEPING, *wanted.ignored)):
            near = _near(name, lacking, free)
            mapped = f"--map {shlex.quote(f'{near}={name}')}, or " if near else ""
            lines.append(f"  {name}: {mapped}--ignore {shlex.quote(name)}")
    if lines:
        lines.insert(0, f"{source.name} has columns that no column of run is named as; map each, or ignore it:")
    if lacking:
        lines.append(f"Nothing gives {', '.join(lacking)}, which every run needs: add --map COLUMN=SOURCE. SOURCE is a column of")
        lines.append(f'{source.name}, or SQL over its columns such as "recipe=\'standard\'" or "seed_tokens=tokens_m * 1e6".')
    if lines:
        raise InputError("\n".join([*lines, f"Columns to map to: {', '.join(_targets())}. Nothing was imported."]))
    return {name: _quoted(text) if text in columns else text for name, text in chosen.items()}


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)  # a name such as "loss [nats]" is no pattern of itself


def _near(name: str, lacking: Sequence[str], free: Sequence[str]) -> str | None:
    last = re.sub(r"\W+", "_", re.sub(r"^(params|metrics|tags|config|summary)\.", "", name).lower())
    spelt = [SPELLINGS[last]] if SPELLINGS.get(last) in free else []
    return next(iter(spelt or get_close_matches(last, lacking, 1) or get_close_matches(last, free, 1, cutoff=0.75)), None)


def _rows(source: Source, wanted: Import) -> tuple[list[_Row], dict[str, int]]:
    """Return the rows that are runs, in order, and how many were left out for which reason."""
    columns = [name for name, *_ in source.connection.execute("DESCRIBE source").fetchall() if name != ROW]
    mapping = _mapping(source, wanted, columns)
    selected = ", ".join([ROW, *mapping.values(), *map(_quoted, columns)])
    try:
        _, found = query(source.connection, f"SELECT {selected} FROM source WHERE (\n{wanted.where}\n) ORDER BY {ROW}")
    except QueryError as error:
        raise QueryError(f"{error}\nThe columns of {source.name} are: {', '.join(columns)}") from error
    rows, left_out, mistakes = [], Counter(), []
    for number, *values in found:
        raw = dict(zip(mapping, values, strict=False))
        status = str(raw.pop("status", None) or "").lower()
        if status in LEFT_OUT:
            left_out[f"left out: status {status}"] += 1
            continue
        if status not in ("", *ENDED):
            mistakes.append(f"row {number}: status = {status!r}; {nearest(status, [*ENDED, *LEFT_OUT])}")
        loss = str(raw["val_loss"]).lower()
        diverged = f"val_loss is {loss}" if status in ENDED and loss in ("nan", "inf", "infinity") else None
        diverged = "status is diverged" if status == "diverged" else diverged
        typed, wrong = _typed({**raw, "val_loss": None} if diverged else raw, bool(diverged), mapping)
        mistakes += [f"row {number}: {mistake}" for mistake in wrong]
        rows.append(_Row(number, typed, dict(zip(columns, map(_plain, values[len(mapping) :]), strict=True)), diverged))
    if mistakes := mistakes or _between(rows):  # rows are compared once each is whole
        more = [f"and {len(mistakes) - SHOWN} more"] if len(mistakes) > SHOWN else []
        raise InputError(
            f"{source.name} has rows that cannot be runs; correct them, or leave them out with --where. Nothing was imported:\n  "
            + "\n  ".join(mistakes[:SHOWN] + more)
        )
    if not rows:
        raise InputError(f"{source.name} has no row to import{''.join(f'; {why}: {n}' for why, n in left_out.items())}")
    return rows, dict(left_out)


def _typed(raw: Mapping[str, Any], diverged: bool, mapping: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a row by the types of their columns, and what is wrong with them."""
    typed: dict[str, Any] = {}
    wrong = []
    for name, given in raw.items():
        try:
            value = typed[name] = _targets()[name].validate_python(given)
        except ValidationError as error:
            wrong.append(f"{name} = {given!r}: {error.errors()[0]['msg'].replace('Input should be', 'it must be')}")
            continue
        rule = None
        if value is None:
            rule = "every run needs one" if name in REQUIRED and not (name == "val_loss" and diverged) else None
        elif name == "members" and value != 1:
            rule = f'an ensemble\'s loss is no run; leave ensembles out with --where "{mapping[name]} = 1"'
        elif isinstance(value, float) and not math.isfinite(value):
            rule = "it must be finite; a run that diverged says so, or that it finished, in its status"
        elif name == "val_loss" and value < 0:
            rule = "a cross-entropy is never negative"
        elif name in ("seed_tokens", "parameters_total") and value <= 0:
            rule = "it must be greater than 0"
        if rule:
            wrong.append(f"{name} = {value}: {rule}")
    return typed, wrong


def _between(rows: Sequence[_Row]) -> list[str]:
    """Say which rows do not go together: equal ones, a size of two counts, a grid with holes, replicates that are none."""
    found = []
    firsts: dict[Any, _Row] = {}
    axes = _axes(rows)
    for row in rows:
        recipe, where = row.values["recipe"], ", ".join(map(str, row.cell))
        twin, of_cell, of_point = (firsts.setdefault(key, row) for key in (row.run_id, row.cell, (row.cell, _point(row, axes))))
        if twin is not row:
            found.append(f"row {row.number} equals row {twin.number}: one run is one row; remove one")
        if holes := [axis for axis in axes[recipe] if row.values[axis] is None]:
            found.append(f"row {row.number}: {holes[0]} is missing, and other rows of recipe {recipe} have it")
        for other, names, remedy in (
            (of_cell, ("parameters_total",), "one cell, which has one count; map `size`"),
            (of_point, DECIDES, "one point, whose runs differ in seeds alone; make two recipes of them"),
        ):
            if differ := [name for name in names if row.values.get(name) != other.values.get(name)]:
                values = f"{row.values[differ[0]]!r} and in row {other.number} {other.values[differ[0]]!r}"
                found.append(f"row {row.number}: {differ[0]} is {values}: both are ({where}), {remedy}")
    return found


def _axes(rows: Sequence[_Row]) -> dict[str, dict[str, list[Any]]]:
    """Return the grid of each recipe: the distinct values of those axes that are known of it."""
    grids: dict[str, dict[str, list[Any]]] = {}
    for recipe in dict.fromkeys(row.values["recipe"] for row in rows):
        of = [row.values for row in rows if row.values["recipe"] == recipe]
        known = {axis: sorted({values[axis] for values in of if values.get(axis) is not None}) for axis in AXES}
        grids[recipe] = {axis: distinct for axis, distinct in known.items() if distinct}
    return grids


def _point(row: _Row, axes: Mapping[str, Mapping[str, list[Any]]]) -> tuple[Any, ...]:
    return tuple(row.values[axis] for axis in axes[row.values["recipe"]])


def _cells(wanted: Import, rows: Sequence[_Row]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of tables `cell` and `trial`. The first run at a point is the search's, the others are its replicates."""
    axes = _axes(rows)
    cells: dict[tuple[str, int, str], dict[str, Any]] = {}
    trials, numbers, points = [], Counter(), set()
    for row in rows:
        recipe, seed_tokens, size = row.cell
        grid, point = axes[recipe], _point(row, axes)
        cell = cells.setdefault(
            row.cell,
            {
                "cell_id": f"{wanted.study}/{recipe}/{seed_tokens}/{size}",
                "study": wanted.study,
                "recipe": recipe,
                "recipe_limit": wanted.limits.get(recipe, "best"),
                "objective": "single",
                "averaging": "logits",
                "members": 1,
                "seed_tokens": seed_tokens,
                "size": size,
                "parameters_total": row.values["parameters_total"],
                "parameters_non_embedding": row.values.get("parameters_non_embedding"),
                "axes": grid,
                "shape": [len(values) for values in grid.values()],
                "starts": [],  # unknown; without a note no view takes a reason from them
            },
        )
        trials.append(
            {
                "cell_id": cell["cell_id"],
                "run_id": row.run_id,
                "role": "replicate" if (row.cell, point) in points else "search",
                "number": numbers[row.cell],
                "coordinates": [values.index(value) for values, value in zip(grid.values(), point, strict=True)],
            }
        )
        points.add((row.cell, point))
        numbers[row.cell] += 1
    return list(cells.values()), trials


def _run(row: _Row, source: str, now: datetime) -> dict[str, Any]:
    return {
        **{name: value for name, value in row.values.items() if name not in ("recipe", "size", "members")},
        "run_id": row.run_id,
        "status": "diverged" if row.diverged else "finished",
        "reason": f"in {source} {row.diverged}" if row.diverged else None,
        "spec": row.source,
        "source": source,
        "recorded_at": now,
    }


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; what JSON lacks (times, infinities) as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    known = value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
    return value if known else str(value)


def _same(value: Any) -> Any:
    """Return a plain value so that a number is the same whether it was read as text, integer or real: other rows decide that."""
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return number if math.isfinite(number := float(value)) else value
        except (ValueError, OverflowError):
            return value
    return value
