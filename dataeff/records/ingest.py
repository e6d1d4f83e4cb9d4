"""From facts to rows, inside a write transaction that the caller opened.

A job's result is an immutable fact: its rows are written once and never changed, so recording it again changes nothing. An
attempt's row changes until it has ended. Rows travel as one JSON text a table and become typed rows in DuckDB, set by set.
Nothing here reads weights or decides what is trained.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import duckdb
from pydantic_core import to_json

from dataeff.errors import InputError
from dataeff.facts.job import Attempt, Fact, Job
from dataeff.facts.store import JobFolder, Store, load_fact
from dataeff.records.queries import JOBS, recorded_ids

Rows = Iterable[Mapping[str, Any]]

_CURVES = """INSERT INTO metric BY NAME
    SELECT run_id, name, unnest(step) AS step, unnest(tokens) AS tokens, unnest(value) AS value
    FROM (SELECT unnest(from_json_strict($rows, '[{"run_id": "VARCHAR", "name": "VARCHAR", "step": ["BIGINT"],
        "tokens": ["BIGINT"], "value": ["DOUBLE"]}]'), max_depth := 2))"""


def read_job(kind: str, folder: JobFolder) -> tuple[Job, Fact]:
    """Return the job in a folder and its result. Raises `InputError`, which names the file, for a folder that is not whole."""
    job = load_fact(Job.kinds[kind], folder.spec)
    result = load_fact(job.Result, folder.result)
    owner = next((getattr(result, name) for name in type(result).model_fields if name.endswith("_id")), job.id)
    if not folder.id == job.id == owner:
        holds = f"the result of {kind} {owner} by the spec of {job.id}"
        raise InputError(f"{folder.path} holds {holds}; move the folder back, or away")
    return job, result


def unrecorded(connection: duckdb.DuckDBPyConnection | None, store: Store) -> list[tuple[str, JobFolder]]:
    """Return kind and folder of every job whose result is not in the database, whether it has one or not."""
    recorded = recorded_ids(connection) if connection else set()
    return [(kind, folder) for kind in Job.kinds for folder in store.folders(kind) if folder.id not in recorded]


def record_jobs(
    connection: duckdb.DuckDBPyConnection, jobs: Iterable[tuple[Job, Fact]], corpus_names: Mapping[str, str] | None = None
) -> int:
    """Record results; return how many are new. `corpus_names` gives a name for a corpus' fingerprint."""
    by_id = {job.id: job.rows(result) for job, result in jobs}
    for job_id, _ in connection.execute(f"FROM ({JOBS}) WHERE list_contains($1, id)", [list(by_id)]).fetchall():
        del by_id[job_id]
    new: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for table, rows in chain.from_iterable(tables.items() for tables in by_id.values()):
        new[table] += rows
    for row in new["run"]:
        row["corpus_name"] = (corpus_names or {}).get(row["corpus"])
    if curves := new.pop("curve", None):
        connection.execute(_CURVES, {"rows": to_json(curves).decode()})
    for table, rows in new.items():
        _insert(connection, table, rows)
    return len(by_id)


def record_attempts(connection: duckdb.DuckDBPyConnection, attempts: Iterable[tuple[str, Attempt]]) -> None:
    """Record attempts, with the kind of their job; one recorded before changes only when it has ended since."""
    ended = """ON CONFLICT (job_id, number) DO UPDATE SET ended_at = excluded.ended_at, outcome = excluded.outcome,
        reason = excluded.reason WHERE excluded.outcome <> 'running' AND excluded.outcome <> attempt.outcome"""
    _insert(connection, "attempt", [{"kind": kind, **attempt.model_dump()} for kind, attempt in attempts], ended)


def record_runs(connection: duckdb.DuckDBPyConnection, runs: Rows) -> int:
    """Record runs, mappings of the same columns of table `run`; return how many are new. One recorded before stays as it is."""
    return _insert(connection, "run", list(runs), "ON CONFLICT DO NOTHING")


def delete_cells(connection: duckdb.DuckDBPyConnection, study: str, kept: Sequence[str] = ()) -> int:
    """Delete a study's cells, but those kept, with their trials; return how many. Runs stay."""
    doomed = "cell_id IN (SELECT cell_id FROM cell WHERE study = $1 AND NOT list_contains($2, cell_id))"
    for table in ("trial", "cell_ensemble", "cell"):
        (count,) = connection.execute(f"DELETE FROM {table} WHERE {doomed}", [study, list(kept)]).fetchone()
    return count


def record_study(connection: duckdb.DuckDBPyConnection, row: Mapping[str, Any]) -> None:
    """Record a study, a mapping of every column of its table; one recorded before becomes what is given."""
    connection.execute("DELETE FROM study WHERE name = $1", [row["name"]])
    _insert(connection, "study", [row])


def record_cells(connection: duckdb.DuckDBPyConnection, cells: Rows, trials: Rows = (), ensembles: Rows = ()) -> None:
    """Record cells, mappings of the same columns of table `cell`, with all their trials and ensembles, in place of those before.

    A cell's `search_ended` becomes `search_ended_at`: when the last run that its search used had ended.
    """
    rows = [dict(cell) for cell in cells]
    ids, ended = [row["cell_id"] for row in rows], [row["cell_id"] for row in rows if row.pop("search_ended", False)]
    for table, new in (("trial", trials), ("cell_ensemble", ensembles), ("cell", rows)):
        connection.execute(f"DELETE FROM {table} WHERE list_contains($1, cell_id)", [ids])
        _insert(connection, table, list(new))
    last = "SELECT max(ended_at) FROM trial JOIN run USING (run_id) WHERE trial.cell_id = cell.cell_id AND role = 'search'"
    connection.execute(f"UPDATE cell SET search_ended_at = ({last}) WHERE list_contains($1, cell_id)", [ended])


def record_fits(connection: duckdb.DuckDBPyConnection, owners: Sequence[str], rows: Rows) -> None:
    """Record fits, each a mapping of every column of table `fit`, in place of those of their owners: the study, or for a fit of
    an ensemble its own id.
    """
    connection.execute("DELETE FROM fit WHERE list_contains($1, coalesce(study, fit_id))", [list(owners)])
    _insert(connection, "fit", list(rows))


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: list[Mapping[str, Any]], on_conflict: str = "") -> int:
    """Insert rows, mappings of the same columns, in one statement, with the types the table declares; return how many."""
    if not rows:
        return 0
    types = {name: kind for name, kind, *_ in connection.execute(f"DESCRIBE {table}").fetchall()}
    structure = json.dumps([{name: types[name] for name in rows[0]}])
    (count,) = connection.execute(
        f"INSERT INTO {table} BY NAME SELECT unnest(from_json_strict($rows, '{structure}'), max_depth := 2) {on_conflict}",
        {"rows": to_json(rows).decode()},
    ).fetchone()
    return count
