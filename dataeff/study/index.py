"""The database as an index of the store: rows of jobs, studies and cells, made from facts, and made again.

    <store>/studies/<name>.json      a StudyFact: what was asked, on which corpus, since when
    <kind folder>/<job id>/          what came of each job
    <store>/imports/<name>/          studies of runs trained elsewhere

Cells and their trials are no facts: they are what `resolve` makes of these.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
from filelock import AcquireReturnProxy, FileLock, Timeout

from dataeff.errors import InputError, NotFoundError, StudyRunningError
from dataeff.facts.job import Fact
from dataeff.facts.store import JobFolder, Store, load_fact, recorded_attempts
from dataeff.records.exchange import is_export, record_export
from dataeff.records.imports import record_import
from dataeff.records.ingest import (
    delete_cells,
    read_job,
    record_attempts,
    record_cells,
    record_jobs,
    record_study,
    unrecorded,
)
from dataeff.records.queries import records, require_study
from dataeff.records.store import Database
from dataeff.search.coordinate_descent import certificate_columns
from dataeff.specs.study import StudySpec
from dataeff.study.demand import Demand
from dataeff.study.fits import renew_fits
from dataeff.study.resolve import CellState, Resolution, resolve
from dataeff.study.results import Results
from dataeff.work.ensemble import EnsembleResult

FOLDERS_AT_ONCE = 2000
Folders = Sequence[tuple[str, JobFolder]]  # with the kind of the job


class StudyFact(Fact):
    """A study as it was last launched, and what its corpus came to."""

    spec: StudySpec
    text: str
    corpus: str
    vocabulary: int
    separator: int
    claims_since: dict[str, datetime] = {}  # when each was first declared as it is
    started_at: datetime
    updated_at: datetime

    @property
    def demand(self) -> Demand:
        return Demand(self.spec, self.corpus, self.vocabulary, self.separator)

    def row(self) -> dict[str, Any]:
        """Return its row of table `study`."""
        columns = self.model_dump(mode="json")
        named = {name: columns["spec"][name] for name in ("name", "question", "baseline")}
        return {**named, **columns, "imported_from": None}


def study_file(store: Store, name: str) -> Path:
    return store.path / "studies" / f"{name}.json"


def study_facts(store: Store) -> list[StudyFact]:
    return [load_fact(StudyFact, path) for path in sorted((store.path / "studies").glob("*.json"))]


def index_jobs(connection: duckdb.DuckDBPyConnection, store: Store, progress: Callable[[int, int], None] | None = None) -> None:
    """Record the results in the store that the database lacks, and all attempts at such jobs."""
    names = {fact.corpus: fact.spec.corpus.name for fact in study_facts(store)}
    folders = unrecorded(connection, store)
    for start in range(0, len(folders), FOLDERS_AT_ONCE):
        batch = folders[start : start + FOLDERS_AT_ONCE]
        record_folders(connection, batch, names)
        if progress:
            progress(start + len(batch), len(folders))


def record_folders(connection: duckdb.DuckDBPyConnection, folders: Folders, names: Mapping[str, str] | None = None) -> None:
    """Record the results in folders of jobs, and all attempts at these. `names`: of corpora, by fingerprint."""
    record_jobs(connection, (read_job(kind, folder) for kind, folder in folders if folder.result.exists()), names)
    record_attempts(connection, ((kind, each) for kind, folder in folders for each in recorded_attempts(folder)))


def load_results(connection: duckdb.DuckDBPyConnection, corpus: str) -> Results:
    """Return what is recorded of jobs on the corpus of this fingerprint, and of all samples."""
    results = Results()
    query = "SELECT run_id, spec, val_loss FROM run WHERE corpus = $1 AND source IS NULL"
    for run_id, spec, loss in connection.execute(query, [corpus]).fetchall():
        results.add_run(run_id, json.loads(spec), loss)
    text = """SELECT ensemble_id, list({averaging: averaging, subset: subset, val_loss: val_loss} ORDER BY number) AS losses,
            any_value(wall_seconds) AS wall_seconds, any_value(device) AS device
        FROM ensemble JOIN ensemble_loss USING (ensemble_id) WHERE corpus = $1 GROUP BY ensemble_id"""
    for row in records(connection, text, [corpus]):
        results.others[row["ensemble_id"]] = EnsembleResult.model_validate(row)
    unread = connection.execute("SELECT sample_id FROM sample UNION ALL SELECT job_id FROM job").fetchall()
    results.others |= {job_id: None for (job_id,) in unread}
    return results


def write_cells(connection: duckdb.DuckDBPyConnection, demand: Demand, states: Iterable[CellState]) -> None:
    """Record cells as they stand, with the runs and ensembles that they used."""
    states = list(states)
    trials, ensembles = [], []
    for state in states:
        for use in state.uses:
            row = {"cell_id": state.cell.id, "role": use.role, "number": use.number, "coordinates": list(use.point)}
            if use.is_ensemble:
                ensembles.append({**row, "ensemble_id": use.job_id, "draw": use.draw})
            else:
                trials.append({**row, "run_id": use.job_id})
    record_cells(connection, [cell_row(demand, state) for state in states], trials, ensembles)


def cell_row(demand: Demand, state: CellState) -> dict[str, Any]:
    """Return the row of table `cell` for a state."""
    cell, recipe = state.cell, demand.recipe(state.cell)
    named = (  # columns that have the name of what they hold
        (cell, ("study", "recipe", "base", "teacher", "seed_tokens")),
        (recipe, ("objective", "averaging", "members")),
        (demand.study.model(cell.size, demand.vocabulary), ("parameters_total", "parameters_non_embedding")),
        (state, ("note", "origin", "runs_left", "flops_left")),
    )
    return {
        "cell_id": cell.id,
        **{name: getattr(owner, name) for owner, names in named for name in names},
        "recipe_limit": recipe.limit,
        "size": cell.size.name,
        "axes": {name: list(values) for name, values in cell.grid.axes.items()},
        "shape": list(cell.grid.shape),
        "starts": [list(point) for point in state.starts],
        "search_stopped": state.stopped,
        **certificate_columns(state.certificate, state.results, cell.grid),
        "state": state.state,  # in place of the certificate's
        "reason": state.reason,
        "search_ended": state.ended and bool(state.results),
    }


def rebuild(database: Database, progress: Callable[[int, int], None] | None = None) -> Path | None:
    """Make the database again from the store next to it, and put it in place of the old one; return where that was moved to.

    Raises `NotFoundError` where there are no files, `InputError` for a fact that is not whole, or a kind of job that is not known
    here: the old file stays as it is then.
    """
    store = Store.beside(database.path)
    if not store.path.is_dir():
        raise NotFoundError(f"there is no folder {store.path} to make {database.path} from; name another file with --database")
    store.require_known_kinds()
    new = Database(database.path.with_name(f".{database.path.name}.new"))
    new.path.unlink(missing_ok=True)
    with new.write() as connection:
        index_jobs(connection, store, progress)
        for folder in sorted((store.path / "imports").glob("[!.]*/")):
            (record_export if is_export(folder) else record_import)(connection, folder)
    for fact in study_facts(store):
        index_study(new, fact)
    renew_fits(new)
    path = database.path
    names = (path.with_name(f"{path.stem}.previous{number}{path.suffix}") for number in count(1))
    previous = next(name for name in names if not name.exists())  # rows of earlier versions may be nowhere else
    database.replace_with(new.path, previous)
    return previous if previous.exists() else None


def index_study(database: Database, fact: StudyFact, timeout: float = 30.0) -> tuple[Resolution, int]:
    """Record a study and how its cells stand; return that, and how many cells it had that it has no longer."""
    demand = fact.demand
    with database.write(timeout) as connection:
        record_study(connection, fact.row())
        deleted = delete_cells(connection, fact.spec.name, list(demand.cells))
    with database.read(timeout) as connection:
        results = load_results(connection, fact.corpus)
    resolution = resolve(demand, results)  # while nobody waits for the file
    with database.write(timeout) as connection:
        write_cells(connection, demand, resolution.states.values())
    return resolution, deleted


def index_studies(database: Database, corpus: str | None = None) -> None:
    """Resolve the launched studies again, those on one corpus or all: runs recorded since may be better than their optima. One
    that is being launched is left to its launch.
    """
    store = Store.beside(database.path)
    for fact in study_facts(store):
        if corpus in (None, fact.corpus):
            with suppress(StudyRunningError), lock_study(store, fact.spec.name):
                index_study(database, fact)


def lock_study(store: Store, name: str) -> AcquireReturnProxy:
    """Hold a study, as its launch does. Raises `StudyRunningError` where another process holds it."""
    try:
        return FileLock(store.path / f"{name}.lock", timeout=0).acquire()
    except Timeout:
        reason = f"study {name} is being run by another process on {store.path}"
        raise StudyRunningError(f"{reason}; wait for it, or stop it") from None


USED = """
WITH used AS (
    SELECT 'train' AS kind, run_id AS id, study FROM trial JOIN cell USING (cell_id)
    UNION SELECT 'ensemble', ensemble_id, study FROM cell_ensemble JOIN cell USING (cell_id)
    UNION SELECT 'sample', samples, study FROM trial JOIN cell USING (cell_id) JOIN run USING (run_id) WHERE samples IS NOT NULL
)
SELECT kind, id, list(study) AS studies FROM used GROUP BY ALL HAVING list_contains(studies, $1)"""
TABLES = {"metric": "run_id", "evaluation": "run_id", "run": "run_id", "ensemble_loss": "ensemble_id", "ensemble": "ensemble_id"}
TABLES |= {"sample": "sample_id", "attempt": "job_id"}


def deletion(connection: duckdb.DuckDBPyConnection, store: Store, name: str) -> tuple[str, list[str]]:
    """Return what `delete_study` would do, in words, and the ids of the jobs that go as well: those of an import, which no
    folder of the store holds. Raises `NotFoundError`, or `InputError` where another study uses such jobs.
    """
    require_study(connection, name)
    used = records(connection, USED, [name])
    imported = [row for row in used if not (store.of_kind(row["kind"]) / row["id"] / "result.json").exists()]
    if others := sorted({study for row in imported for study in row["studies"]} - {name}):
        raise InputError(f"study {others[0]} uses runs that lie in the import of {name} alone; delete {others[0]} first")
    cells, fits = connection.execute(
        "SELECT (SELECT count(*) FROM cell WHERE study = $1), (SELECT count(*) FROM fit WHERE study = $1)", [name]
    ).fetchone()
    runs, gone = (sum(row["kind"] == "train" for row in rows) for rows in (used, imported))
    text = f"its declaration, {cells} cells and {fits} fits will be deleted"
    text += f", and {gone} runs that were imported with it" if gone else ""
    return f"{text}; {runs - gone} runs stay, and other studies can use them", [row["id"] for row in imported]


def delete_study(database: Database, name: str) -> None:
    """Delete a study: first its files, so that `rebuild` does not bring it back, then its rows. Raises as `deletion` and
    `lock_study` do.
    """
    store = Store.beside(database.path)
    folder, hidden = (store.path / "imports" / each for each in (name, f".{name}.deleted"))
    with lock_study(store, name), database.write() as connection:
        _, imported = deletion(connection, store, name)
        for file in (study_file(store, name), *(store.path / "optuna").glob(f"{name}.log*")):
            file.unlink(missing_ok=True)
        if folder.exists():
            folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
        delete_cells(connection, name)
        connection.execute("DELETE FROM fit WHERE study = $1 OR list_contains($2, evidence)", [name, imported])
        connection.execute("DELETE FROM study WHERE name = $1", [name])
        for table, key in TABLES.items() if imported else ():
            connection.execute(f"DELETE FROM {table} WHERE list_contains($1, {key})", [imported])
