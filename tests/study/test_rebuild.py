"""The database is an index: deleted, of another version, or damaged, it is rebuilt from the files next to it, row by row."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pytest

from tests.conftest import dataeff

PUBLISHED = Path(__file__).parents[1] / "records" / "published_209m.csv"
MAPPING = ("--study", "published", "--map", "parameters_total=parameters_nominal", "--baseline", "standard")


def tables(path: Path) -> dict[str, list[tuple]]:
    """Every row of every table; of fits, which are made again from rows in any order, values to four digits."""
    with duckdb.connect(path, read_only=True) as connection:
        names = [name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        columns = {"fit": "fit_id, round(value, 4), points, resamples, reason, run_ids, evidence", "schema": "version"}
        return {
            name: connection.execute(f"SELECT {columns.get(name, '*')} FROM {name} ORDER BY ALL").fetchall() for name in names
        }


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """The finished tiny study, a table of runs trained elsewhere, and a study that was exported."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for command in (("import", PUBLISHED, *MAPPING), ("import", "laptop")):
        done = dataeff(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    return tmp_path


def test_a_deleted_database_is_rebuilt_row_by_row(folder):
    database = folder / "dataeff.duckdb"
    before = tables(database)
    assert {study[0] for study in before["study"]} == {"tiny", "published", "laptop"}
    assert all(before[name] for name in ("run", "metric", "evaluation", "attempt", "cell", "trial", "ensemble", "sample", "fit"))
    database.unlink()
    done = dataeff("rebuild", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert tables(database) == before


def test_a_rebuilt_database_takes_the_place_of_the_old_one_which_is_kept(folder):
    before = tables(folder / "dataeff.duckdb")
    done = dataeff("rebuild", cwd=folder)
    assert done.returncode == 0 and "dataeff.previous1.duckdb" in done.stderr
    assert tables(folder / "dataeff.previous1.duckdb") == before == tables(folder / "dataeff.duckdb")
    assert "dataeff.previous2.duckdb" in dataeff("rebuild", cwd=folder).stderr  # and no earlier file is replaced


def test_a_database_of_another_version_is_refused_to_readers_and_made_anew_by_a_launch(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    database = tmp_path / "dataeff.duckdb"
    before = tables(database)
    with duckdb.connect(database) as connection:
        connection.execute("UPDATE schema SET version = 'another'")
    content = database.read_bytes()
    for command in (("status",), ("answer", "tiny"), ("plan", "tiny.toml"), ("sql", "from run")):
        refused = dataeff(*command, cwd=tmp_path)
        assert refused.returncode == 1 and "written by another version of dataeff" in refused.stderr, command
        assert len(refused.stderr.strip().splitlines()) == 1
    assert database.read_bytes() == content
    done = dataeff("run", "tiny.toml", cwd=tmp_path)
    assert done.returncode == 0 and "0 trained" in done.stderr, done.stderr
    after = tables(database)
    assert {name: rows for name, rows in after.items() if name not in ("study", "schema")} == {
        name: rows for name, rows in before.items() if name not in ("study", "schema")
    }


def test_an_older_database_whose_rows_are_nowhere_else_is_kept(tmp_path):
    database = tmp_path / "dataeff.duckdb"
    with duckdb.connect(database) as connection:  # as versions with numbered migrations made it
        connection.execute("CREATE TABLE schema_migration (version INT); CREATE TABLE run (run_id VARCHAR)")
        connection.execute("INSERT INTO run VALUES ('abc')")
    refused = dataeff("rebuild", cwd=tmp_path)
    assert refused.returncode == 2 and "there is no folder dataeff.files to make dataeff.duckdb from" in refused.stderr
    (tmp_path / "dataeff.files").mkdir()
    done = dataeff("rebuild", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with duckdb.connect(tmp_path / "dataeff.previous1.duckdb", read_only=True) as connection:
        assert connection.execute("FROM run").fetchall() == [("abc",)]


def test_a_fact_that_is_not_whole_is_named_and_the_database_stays(folder):
    content = (folder / "dataeff.duckdb").read_bytes()
    (file, *_) = sorted((folder / "dataeff.files" / "runs").glob("*/result.json"))
    file.write_text(file.read_text()[:40])
    failed = dataeff("rebuild", cwd=folder)
    assert failed.returncode == 2 and f"{file.parent.name}/result.json cannot be read" in failed.stderr
    assert (folder / "dataeff.duckdb").read_bytes() == content


def test_attempts_at_jobs_that_have_no_result_are_rebuilt_too(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (result, *_) = sorted((tmp_path / "dataeff.files" / "runs").glob("*/result.json"))
    result.unlink()  # as if its only attempt had failed
    assert dataeff("rebuild", cwd=tmp_path).returncode == 0
    with duckdb.connect(tmp_path / "dataeff.duckdb", read_only=True) as connection:
        query = "SELECT count(*) FROM attempt WHERE job_id = $1 AND job_id NOT IN (SELECT run_id FROM run)"
        assert connection.execute(query, [result.parent.name]).fetchone() == (1,)
