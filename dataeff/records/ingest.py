"""From run folders and studies to rows, inside a write transaction that the caller opened.

A run is an immutable fact: its row, metrics, evaluations and artifacts are written once and never changed, so ingesting
a folder again changes nothing. So are an ensemble and a sampling. An attempt's row changes until it has ended. Rows travel
as one JSON text a table and become typed rows in DuckDB, set by set. Nothing here reads weights or decides what is trained.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import duckdb

from dataeff.errors import InputError
from dataeff.specs.ensemble import EnsembleResult, EnsembleSpec, SampleResult, SampleSpec
from dataeff.specs.result import Attempt, RunFolder, RunResult, load_fact
from dataeff.specs.run import RunSpec, Spec

Fact = TypeVar("Fact", EnsembleResult, SampleResult)

_CURVES = """
    INSERT INTO metric BY NAME
    SELECT run_id, unnest(curve.step) AS step, unnest(curve.tokens) AS tokens, name, unnest(values) AS value
    FROM (
        SELECT run_id, curve, unnest([{name: 'train_loss', values: curve.train_loss},
            {name: 'gradient_norm', values: curve.gradient_norm}, {name: 'lr', values: curve.lr}], max_depth := 2)
        FROM (SELECT unnest(from_json_strict($results, '[{"run_id": "VARCHAR", "curve": {"step": ["BIGINT"], "tokens":
            ["BIGINT"], "train_loss": ["DOUBLE"], "gradient_norm": ["DOUBLE"], "lr": ["DOUBLE"]}}]'), max_depth := 2))
    )"""


def ingest(
    connection: duckdb.DuckDBPyConnection,
    folders: Iterable[RunFolder],
    corpus_names: Mapping[str, str] | None = None,
) -> int:
    """Record what the run folders hold, attempts of unfinished runs too; return how many runs are new.

    `corpus_names` gives a name for a corpus' fingerprint. Raises `InputError`, which names the file, for a folder that is
    not whole.
    """
    runs, attempts = [], []
    for folder in folders:
        spec = load_fact(RunSpec, folder.spec)
        if folder.path.name != spec.run_id:
            raise InputError(f"{folder.spec} is the spec of run {spec.run_id}, not of {folder.path.name}; move the folder back")
        attempts += [load_fact(Attempt, path).model_dump() for path in sorted(folder.attempts.glob("*.json"))]
        if folder.result.exists():
            runs.append((folder, spec, _result(folder, spec)))
    _insert(
        connection,
        "attempt",
        attempts,
        """ON CONFLICT (run_id, number) DO UPDATE SET ended_at = excluded.ended_at, outcome = excluded.outcome,
           reason = excluded.reason WHERE excluded.outcome <> 'running' AND excluded.outcome <> attempt.outcome""",
    )
    ids = [spec.run_id for _, spec, _ in runs]
    known = _known(connection, "run", ids)
    new = {spec.run_id: (folder, spec, result) for folder, spec, result in runs if spec.run_id not in known}
    _insert(connection, "run", [_run_row(spec, result, corpus_names or {}) for _, spec, result in new.values()])
    _insert(connection, "evaluation", [row for _, _, result in new.values() for row in _evaluation_rows(result)])
    _insert(connection, "artifact", [row for folder, _, result in new.values() for row in _artifact_rows(folder, result)])
    if new:
        curves = [{"run_id": result.run_id, "curve": result.curve.model_dump(mode="json")} for _, _, result in new.values()]
        connection.execute(_CURVES, {"results": json.dumps(curves)})
    return len(new)


def ingest_ensembles(connection: duckdb.DuckDBPyConnection, folders: Iterable[RunFolder]) -> int:
    """Record the ensembles whose folders hold a result; return how many are new. Raises as `ingest` does."""
    new = _record_facts(connection, "ensemble", folders, EnsembleSpec, EnsembleResult)
    rows = [
        {"ensemble_id": result.ensemble_id, "number": number, **loss.model_dump(mode="json")}
        for result in new
        for number, loss in enumerate(result.losses)
    ]
    _insert(connection, "ensemble_loss", rows)
    return len(new)


def ingest_samples(connection: duckdb.DuckDBPyConnection, folders: Iterable[RunFolder]) -> int:
    """Record the samplings whose folders hold a result; return how many are new. Raises as `ingest` does."""
    return len(_record_facts(connection, "sample", folders, SampleSpec, SampleResult))


def record_runs(connection: duckdb.DuckDBPyConnection, runs: Iterable[Mapping[str, Any]]) -> int:
    """Record runs, mappings of the same columns of table `run`; return how many are new. One recorded before stays as it is."""
    rows = list(runs)
    known = _known(connection, "run", [row["run_id"] for row in rows])
    _insert(connection, "run", new := [row for row in rows if row["run_id"] not in known])
    return len(new)


def take_out(connection: duckdb.DuckDBPyConnection, study: str) -> int:
    """Take a study's cells, trials and fits out, to be recorded anew; return how many cells there were. Runs stay."""
    (cells,) = connection.execute("SELECT count(*) FROM cell WHERE study = $1", [study]).fetchone()
    for table in ("trial", "cell_ensemble"):
        connection.execute(f"DELETE FROM {table} WHERE cell_id IN (SELECT cell_id FROM cell WHERE study = $1)", [study])
    connection.execute("DELETE FROM cell WHERE study = $1", [study])
    connection.execute("DELETE FROM fit WHERE study = $1", [study])
    return cells


def record_study(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    question: str,
    baseline: str | None,
    text: str,
    spec: Mapping[str, Any],
    asks: str,
) -> None:
    """Record a study, or that it was launched again: `started_at` stays, everything else becomes what is given.

    `asks` is the identity of everything that decides which runs the study asks for.
    """
    now = datetime.now(UTC)
    row = {
        "name": name,
        "question": question,
        "baseline": baseline,
        "text": text,
        "text_hash": hashlib.sha256(text.encode()).hexdigest(),
        "asks": asks,
        "started_at": now,
        "updated_at": now,
        "spec": spec,
    }
    changed = [column for column in row if column not in ("name", "started_at")]
    _insert(connection, "study", [row], _replacing(["name"], changed))


def record_cells(connection: duckdb.DuckDBPyConnection, cells: Iterable[Mapping[str, Any]]) -> None:
    """Record cells, each a mapping of every column of table `cell`; a cell recorded before becomes what is given."""
    rows = list(cells)
    changed = [column for column in rows[0] if column != "cell_id"] if rows else []
    _insert(connection, "cell", rows, _replacing(["cell_id"], changed))


def record_trials(connection: duckdb.DuckDBPyConnection, trials: Iterable[Mapping[str, Any]]) -> None:
    """Record which run tried which point of a cell, each a mapping of every column of table `trial`; never changed after."""
    _insert(connection, "trial", list(trials), "ON CONFLICT DO NOTHING")


def record_cell_ensembles(connection: duckdb.DuckDBPyConnection, rows: Iterable[Mapping[str, Any]]) -> None:
    """Record which ensemble was evaluated at which point of a cell, each a mapping of every column of `cell_ensemble`."""
    _insert(connection, "cell_ensemble", list(rows), "ON CONFLICT DO NOTHING")


def record_fits(connection: duckdb.DuckDBPyConnection, studies: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Record the fits of studies, each a mapping of every column of table `fit`, in place of those they had."""
    connection.execute("DELETE FROM fit WHERE list_contains($1, study)", [list(studies)])
    _insert(connection, "fit", list(rows))


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: list[Mapping[str, Any]], on_conflict: str = "") -> None:
    """Insert rows, mappings of the same columns, in one statement, with the types the table declares."""
    if not rows:
        return
    types = {name: kind for name, kind, *_ in connection.execute(f"DESCRIBE {table}").fetchall()}
    structure = json.dumps([{name: types[name] for name in rows[0]}])
    connection.execute(
        f"INSERT INTO {table} BY NAME SELECT unnest(from_json_strict($rows, '{structure}'), max_depth := 2) {on_conflict}",
        {"rows": json.dumps(rows, default=_json, allow_nan=False)},
    )


def _known(connection: duckdb.DuckDBPyConnection, table: str, ids: list[str]) -> set[str]:
    """Return those of `ids` that the table has rows of."""
    found = connection.execute(f"SELECT {table}_id FROM {table} WHERE list_contains($1, {table}_id)", [ids]).fetchall()
    return {row[0] for row in found}


def _record_facts(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    folders: Iterable[RunFolder],
    spec_type: type[Spec],
    result_type: type[Fact],
) -> list[Fact]:
    """Insert a row of `table`, what spec and result say of its columns, for each folder that is new; return those results."""
    columns = [name for name, *_ in connection.execute(f"DESCRIBE {table}").fetchall()]
    results, rows = {}, {}
    for folder in folders:
        if not folder.result.exists():
            continue
        spec, result = load_fact(spec_type, folder.spec), load_fact(result_type, folder.result)
        wanted, found = getattr(spec, f"{table}_id"), getattr(result, f"{table}_id")
        if not folder.path.name == wanted == found:
            raise InputError(f"{folder.path} holds {table} {found} by the spec of {wanted}; move the folder back, or away")
        results[found] = result
        values = spec.model_dump(mode="json") | result.model_dump(mode="json") | {"recorded_at": datetime.now(UTC)}
        rows[found] = {name: values[name] for name in columns}
    new = rows.keys() - _known(connection, table, list(rows))
    _insert(connection, table, [row for id_, row in rows.items() if id_ in new])
    return [result for id_, result in results.items() if id_ in new]


def _json(value: object) -> object:
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot become a column")


def _replacing(keys: list[str], columns: list[str]) -> str:
    return f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {', '.join(f'{c} = excluded.{c}' for c in columns)}"


def _result(folder: RunFolder, spec: RunSpec) -> RunResult:
    result = load_fact(RunResult, folder.result)
    if result.run_id != spec.run_id:
        raise InputError(f"{folder.result} is the result of run {result.run_id}, not of {spec.run_id}; move its run folder away")
    if result.status == "finished" and (result.val_loss is None or not math.isfinite(result.val_loss)):
        raise InputError(
            f"{folder.result} says finished with a validation loss of {result.val_loss}; a finished run has a finite one"
        )
    return result


def _run_row(spec: RunSpec, result: RunResult, corpus_names: Mapping[str, str]) -> dict[str, Any]:
    declared = spec.model_dump(mode="json")
    ours = {"corpus", "seed_tokens", "lr", "weight_decay", "epochs", "batch_size", "optimizer", "dropout", "order", "precision"}
    ours |= {"train_seed", "data_seed", "trainer_version"}
    shape = {"hidden", "layers", "heads", "kv_heads", "feed_forward", "vocabulary", "context_length", "experts", "loops"}
    row = result.model_dump(mode="json", exclude={"evaluations", "curve", "weights_bytes", "val_loss"})
    return {
        **row,
        **{name: declared[name] for name in ours},
        **{name: declared["model"][name] for name in shape},
        "parameters_active": spec.model.parameters_active,
        "synthetic_share": spec.synthetic_share,
        "samples": spec.synthetic.samples if spec.synthetic else None,
        "val_loss": result.val_loss if result.status == "finished" else None,
        "corpus_name": corpus_names.get(spec.corpus),
        "started_at": result.started_at,
        "ended_at": result.ended_at,
        "spec": declared,
        "recorded_at": datetime.now(UTC),
    }


def _evaluation_rows(result: RunResult) -> list[dict[str, Any]]:
    return [{"run_id": result.run_id, "split": "validation", **e.model_dump(mode="json")} for e in result.evaluations]


def _artifact_rows(folder: RunFolder, result: RunResult) -> list[dict[str, Any]]:
    if result.weights_bytes is None:
        return []
    path = folder.weights.relative_to(folder.path.parent.parent).as_posix()
    return [{"run_id": result.run_id, "name": "weights", "path": path, "bytes": result.weights_bytes}]
