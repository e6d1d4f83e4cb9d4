"""A study's records on the move: out to Parquet, CSV or a DuckDB file of its own, and back into any database.

An export is one file a table, holding the rows that the study uses: runs with their curves and attempts, cells, trials,
ensembles, samples. Weights and tokens stay where they are. Importing adds what is missing and changes nothing else, so
doing it again does nothing. Fits come out, for readers of the files, but not in: whoever adds runs makes them again.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from dataeff.errors import InputError, NotFoundError
from dataeff.records.queries import literal, require_study
from dataeff.records.store import Database

_CELLS = "cell_id IN (SELECT cell_id FROM cell WHERE study = $1)"
_RUNS = f"run_id IN (SELECT run_id FROM trial WHERE {_CELLS})"
_ENSEMBLES = f"ensemble_id IN (SELECT ensemble_id FROM cell_ensemble WHERE {_CELLS})"

# What of each table belongs to study $1.
_ROWS = {
    "study": "name = $1",
    "cell": "study = $1",
    "trial": _CELLS,
    "cell_ensemble": _CELLS,
    "ensemble": _ENSEMBLES,
    "ensemble_loss": _ENSEMBLES,
    "sample": f"sample_id IN (SELECT samples FROM run WHERE {_RUNS})",
    "attempt": _RUNS,
    "evaluation": _RUNS,
    "metric": _RUNS,
    "run": _RUNS,
    "fit": "study = $1",
}
_PARTS = {"evaluation": "run", "metric": "run", "ensemble_loss": "ensemble"}  # have no key, and come with a new whole alone


def export_study(database: Database, study: str, target: Path) -> dict[str, int]:
    """Write a study's rows to `target`: a folder of Parquet files, a new DuckDB file (.duckdb), or a folder whose name ends in
    .csv of CSV files. Returns the rows of each table.

    Raises `NotFoundError` for a study that is not recorded, `InputError` for a target that holds something else.
    """
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise InputError(f"{target} is there already, and an export overwrites nothing; name a new folder or .duckdb file")
    form = target.suffix.removeprefix(".")
    with database.read() as connection:
        require_study(connection, study)
        if form != "duckdb":
            target.mkdir(parents=True, exist_ok=True)
            form = "csv" if form == "csv" else "parquet"
            return {table: _copy(connection, study, table, target / f"{table}.{form}") for table in _ROWS}
    counts = {}
    with Database(target).write() as new:
        new.execute(f"ATTACH {literal(database.path.resolve())} AS source (READ_ONLY)")
        for table, rows in _ROWS.items():
            chosen = rows.replace("FROM ", "FROM source.")
            (counts[table],) = new.execute(
                f"INSERT INTO {table} BY NAME SELECT * FROM source.{table} WHERE {chosen}", [study]
            ).fetchone()
    return counts


def import_study(database: Database, source: Path) -> dict[str, int]:
    """Add the rows of an export in folder `source`, of Parquet files; return the new rows of each table.

    Raises `NotFoundError` when the folder holds no export, `InputError` when a study of that name is recorded that asks for
    other runs; nothing is changed then.
    """
    files = {table: source / f"{table}.parquet" for table in _ROWS if table != "fit" and (source / f"{table}.parquet").is_file()}
    if lacking := {"study", "cell", "trial", "run"} - files.keys():
        raise NotFoundError(
            f"{source} holds no export of a study: there is no {min(lacking)}.parquet; `dataeff export STUDY FOLDER` makes one"
        )
    added = {}
    with database.write() as connection:
        known = connection.execute(
            f"""SELECT name, here.asks <> there.asks
                FROM study AS here JOIN {literal(files["study"].resolve())} AS there USING (name)"""
        ).fetchone()
        if known and known[1]:
            raise InputError(
                f"study {known[0]} is recorded in {database.path} and asks for other runs than the one in {source}; "
                "name another database with --database"
            )
        for table in (*_PARTS, *(table for table in _ROWS if table not in _PARTS)):  # parts before their whole
            if table in files:
                rows, whole = f"SELECT * FROM {literal(files[table].resolve())}", _PARTS.get(table)
                new = f"WHERE {whole}_id NOT IN (SELECT {whole}_id FROM {whole})" if whole else "ON CONFLICT DO NOTHING"
                (added[table],) = connection.execute(f"INSERT INTO {table} BY NAME {rows} {new}").fetchone()
    return added


def _copy(connection: duckdb.DuckDBPyConnection, study: str, table: str, file: Path) -> int:
    options = "(FORMAT parquet, COMPRESSION zstd)" if file.suffix == ".parquet" else "(FORMAT csv, HEADER)"
    rows = f"SELECT * FROM {table} WHERE {_ROWS[table]} ORDER BY ALL"
    return connection.execute(f"COPY ({rows}) TO {literal(file.resolve())} {options}", [study]).fetchone()[0]
