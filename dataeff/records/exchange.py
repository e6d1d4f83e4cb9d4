"""A study's records on the move: out to Parquet, CSV or a DuckDB file of its own, and back into any database.

An export is one file a table, holding the rows that the study uses: runs with their curves and attempts, cells, trials,
ensembles, samples. Weights and tokens stay where they are. An imported export is a fact: its files are copied to
`imports/<study>/`. Importing adds what is missing and changes nothing else, so doing it again does nothing. Fits come out, for
readers of the files, but not in: they are made again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from dataeff.errors import InputError, NotFoundError
from dataeff.facts.store import Store
from dataeff.records.queries import literal, require_study
from dataeff.records.store import Database

_CELLS = "cell_id IN (SELECT cell_id FROM cell WHERE study = $1)"
_RUNS = f"run_id IN (SELECT run_id FROM trial WHERE {_CELLS})"
_ENSEMBLES = f"ensemble_id IN (SELECT ensemble_id FROM cell_ensemble WHERE {_CELLS})"
_SAMPLES = f"sample_id IN (SELECT samples FROM run WHERE {_RUNS})"

# What of each table belongs to study $1.
_ROWS = {
    "study": "name = $1",
    "cell": "study = $1",
    "trial": _CELLS,
    "cell_ensemble": _CELLS,
    "ensemble": _ENSEMBLES,
    "ensemble_loss": _ENSEMBLES,
    "sample": _SAMPLES,
    "attempt": " OR ".join(f"job_id {rows.partition(' ')[2]}" for rows in (_RUNS, _ENSEMBLES, _SAMPLES)),
    "evaluation": _RUNS,
    "metric": _RUNS,
    "run": _RUNS,
    "fit": f"study = $1 OR evidence {_ENSEMBLES.partition(' ')[2]}",
}
_PARTS = {"evaluation": "run", "metric": "run", "ensemble_loss": "ensemble"}  # have no key, and come with a new whole alone
_REQUIRED = ("study", "cell", "trial", "run")


def export_study(database: Database, study: str, target: Path) -> dict[str, int]:
    """Write a study's rows to `target`: a folder of Parquet files, a new DuckDB file (.duckdb), or a folder whose name ends in
    .csv of CSV files. Returns the rows of each table.

    Raises `NotFoundError` for a study that is not recorded, `InputError` for a target that holds something else.
    """
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise InputError(f"{target} is there already, and an export overwrites nothing; name a new folder or .duckdb file")
    if target.suffix == ".duckdb":
        with TemporaryDirectory() as folder:
            counts = export_study(database, study, Path(folder))
            with Database(target).write() as new:
                for table in counts:
                    new.execute(f"INSERT INTO {table} BY NAME FROM {literal(Path(folder) / f'{table}.parquet')}")
            return counts
    form, options = ("csv", "HEADER") if target.suffix == ".csv" else ("parquet", "COMPRESSION zstd")
    with database.read() as connection:
        require_study(connection, study)
        target.mkdir(parents=True, exist_ok=True)
        counts = {}
        for table, condition in _ROWS.items():
            file = literal(target.resolve() / f"{table}.{form}")
            rows = f"SELECT * FROM {table} WHERE {condition} ORDER BY ALL"
            (counts[table],) = connection.execute(f"COPY ({rows}) TO {file} (FORMAT {form}, {options})", [study]).fetchone()
    return counts


def import_study(database: Database, source: Path) -> dict[str, int]:
    """Keep a copy of an export in folder `source`, of Parquet files, beside the database and add its rows; return the new rows
    of each table.

    Raises `NotFoundError` when the folder holds no export, `InputError` when it is of another version of dataeff, or a study of
    that name is recorded that asks for other runs; nothing is changed then.
    """
    files = _files(source)
    with database.write() as connection:
        _require_columns(connection, source, files)
        name, differs = connection.execute(
            f"""SELECT name, here.spec::VARCHAR <> there.spec::VARCHAR
                FROM {literal(files["study"])} AS there LEFT JOIN study AS here USING (name)"""
        ).fetchone()
        if differs:
            raise InputError(
                f"study {name} is recorded in {database.path} and asks for other runs than the one in {source}; "
                "name another database with --database"
            )
        folder = Store.beside(database.path).path / "imports" / name
        if source.resolve() != folder.resolve():
            with replacing_folder(folder) as new:
                for file in files.values():
                    shutil.copyfile(file, new / file.name)
        return record_export(connection, folder)


def record_export(connection: duckdb.DuckDBPyConnection, folder: Path) -> dict[str, int]:
    """Add the rows of an export; return the new rows of each table. Cells of a study that is recorded stay as they are."""
    files, added = _files(folder), {}
    recorded = connection.execute(f"SELECT 1 FROM study SEMI JOIN {literal(files['study'])} USING (name)").fetchone()
    skipped = ("study", "cell", "trial", "cell_ensemble") if recorded else ()
    for table in (*_PARTS, *(table for table in _ROWS if table not in _PARTS)):  # parts before their whole
        if table in files and table not in skipped:
            rows, whole = f"SELECT * FROM {literal(files[table])}", _PARTS.get(table)
            new = f"WHERE {whole}_id NOT IN (SELECT {whole}_id FROM {whole})" if whole else "ON CONFLICT DO NOTHING"
            (added[table],) = connection.execute(f"INSERT INTO {table} BY NAME {rows} {new}").fetchone()
    return added


def is_export(folder: Path) -> bool:
    """Whether a folder holds an export, and not rows of runs trained elsewhere."""
    return (folder / "study.parquet").is_file()


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` at the end: it is there whole or not at all."""
    new, old = (folder.with_name(f".{folder.name}.{state}") for state in ("new", "old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    for path in new.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _files(folder: Path) -> dict[str, Path]:
    paths = {table: folder.resolve() / f"{table}.parquet" for table in _ROWS if table != "fit"}
    files = {table: path for table, path in paths.items() if path.is_file()}
    if missing := [table for table in _REQUIRED if table not in files]:
        raise NotFoundError(
            f"{folder} holds no export of a study: there is no {missing[0]}.parquet; `dataeff export STUDY FOLDER` makes one"
        )
    return files


def _require_columns(connection: duckdb.DuckDBPyConnection, source: Path, files: dict[str, Path]) -> None:
    for table, file in files.items():
        ours, theirs = (set(connection.sql(f"FROM {rows}").columns) for rows in (table, literal(file)))
        if ours != theirs:
            raise InputError(
                f"{source} was exported by another version of dataeff: the columns of {table} differ in "
                f"{', '.join(sorted(ours ^ theirs))}; export it again with this version"
            )
