"""A study's records on the move: out to Parquet, CSV or a DuckDB file of its own, and back into any database.

An export is one file a table, holding the rows that the study uses; weights and tokens stay where they are. An imported export is
a fact: its files are copied to `imports/<study>/`. Importing adds what is missing, and of a study that was never launched here
makes the cells those of the export; doing it again does nothing. Fits come out, for readers, and are made again here.
"""

import filecmp
import shutil
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from dataeff.errors import InputError, NotFoundError, SchemaError
from dataeff.facts.store import Store, replacing
from dataeff.records.ingest import delete_cells
from dataeff.records.queries import literal, require_study, study_names
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
    "job": f"inputs[1] IN (SELECT run_id FROM trial WHERE {_CELLS})",  # measures, each of one run
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
    """Keep a copy of an export, of whichever form, next to the database and add its rows; return the new rows of each table.

    Raises `NotFoundError` where there is no export, `InputError` when it is of another version of dataeff, or a study of its
    name is recorded that asks for other runs; nothing is changed then.
    """
    if source.is_file():
        return _import_database(database, source)
    files = _files(source)
    with database.write() as connection:
        for table, file in files.items():
            ours, theirs = (set(connection.sql(f"FROM {rows}").columns) for rows in (table, _rows(file)))
            if ours != theirs:
                differ = f"the columns of {table} differ in {', '.join(sorted(ours ^ theirs))}"
                raise InputError(f"{source} was exported by another version of dataeff: {differ}; export it again with this one")
        name, differs = connection.execute(
            f"""SELECT name, here.spec::VARCHAR <> there.spec::VARCHAR
                FROM {_rows(files["study"])} AS there LEFT JOIN study AS here USING (name)"""
        ).fetchone()
        if differs:
            remedy = "name another database with --database"
            raise InputError(f"study {name} of {database.path} asks for other runs than the one in {source}; {remedy}")
        store, names = Store.beside(database.path).path, [file.name for file in files.values()]
        folder = store / "imports" / name
        if filecmp.cmpfiles(source, folder, names, shallow=False)[0] != names:  # new, or other than what was imported before
            with replacing(folder) as new:
                new.mkdir()
                for file in files.values():
                    shutil.copyfile(file, new / file.name)
            if not (store / "studies" / f"{name}.json").exists():  # cells of a study launched here are what its runs make them
                delete_cells(connection, name)
                connection.execute("DELETE FROM study WHERE name = $1", [name])
        return record_export(connection, folder)


def _import_database(database: Database, source: Path) -> dict[str, int]:
    added: Counter[str] = Counter()
    try:
        with Database(source).read() as connection, TemporaryDirectory() as folder:
            for study in study_names(connection):
                export_study(Database(source), study, Path(folder) / study)
                added.update(import_study(database, Path(folder) / study))
    except SchemaError as error:
        raise InputError(f"{source} was written by another version of dataeff; export its study again with this one") from error
    return dict(added)


def record_export(connection: duckdb.DuckDBPyConnection, folder: Path) -> dict[str, int]:
    """Add the rows of an export; return the new rows of each table. A study that is recorded keeps its cells."""
    files, added = _files(folder), {}
    recorded = connection.execute(f"SELECT 1 FROM study SEMI JOIN {_rows(files['study'])} USING (name)").fetchone()
    for table in dict.fromkeys((*_PARTS, *_ROWS)):  # parts before their whole
        if table in files and not (recorded and table in ("study", "cell", "trial", "cell_ensemble")):
            rows, whole = f"SELECT * FROM {_rows(files[table])}", _PARTS.get(table)
            new = f"WHERE {whole}_id NOT IN (SELECT {whole}_id FROM {whole})" if whole else "ON CONFLICT DO NOTHING"
            (added[table],) = connection.execute(f"INSERT INTO {table} BY NAME {rows} {new}").fetchone()
    return added


def is_export(folder: Path) -> bool:
    """Whether a folder holds an export, and not rows of runs trained elsewhere."""
    return any(folder.glob("study.*"))


def _files(folder: Path) -> dict[str, Path]:
    paths = [folder.resolve() / f"{table}.{form}" for table in _ROWS if table != "fit" for form in ("csv", "parquet")]
    files = {path.stem: path for path in paths if path.is_file()}
    if missing := [table for table in _REQUIRED if table not in files]:
        lacks = f"there is no {missing[0]}.parquet and no {missing[0]}.csv"
        raise NotFoundError(f"{folder} holds no export of a study: {lacks}; `dataeff export STUDY FOLDER` makes one")
    return files


def _rows(file: Path) -> str:
    """Return the rows of a file for SQL. CSV is text until it is inserted: guessed types would make numbers of ids."""
    options = "header = true, all_varchar = true, allow_quoted_nulls = false"
    return f"read_csv({literal(file)}, {options})" if file.suffix == ".csv" else literal(file)
