"""The file: schema, locks, crashes, and what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import duckdb
import pytest
from folders import RUN
from sqlalchemy import create_engine
from sqlalchemy.dialects import registry
from sqlmodel import SQLModel, select

from dataeff.errors import DatabaseBusyError, DatabaseError, NotFoundError
from dataeff.records import tables
from dataeff.records.store import Database, database_folder, migrations, views

SHAPE = """SELECT table_name, column_name, data_type, is_nullable FROM duckdb_columns() JOIN duckdb_tables() USING (table_name)
    ORDER BY table_name, column_index"""
COUNT = "SELECT count(*) FROM artifact"
INSERT = "INSERT INTO artifact VALUES ($1, $2, 'path', 1)"

WRITER = f"""
import sys
from dataeff.records.store import Database
database = Database(sys.argv[1])
for i in range(int(sys.argv[3])):
    with database.write(timeout=60) as connection:
        connection.execute("{INSERT}", [sys.argv[2], str(i)])
    print(i, flush=True)
"""
READER = f"""
import sys
from dataeff.records.store import Database
last, reads = 0, 0
while last < int(sys.argv[2]):
    with Database(sys.argv[1]).read(timeout=60) as connection:
        now = connection.execute("{COUNT}").fetchone()[0]
    assert now >= last
    last, reads = now, reads + 1
"""


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(*processes):
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def count(database):
    with database.read() as connection:
        return connection.execute(COUNT).fetchone()[0]


def touch(database):
    with database.write() as connection:
        connection.execute(INSERT, ["a", "b"])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_migrations_make_exactly_the_declared_tables(database, tmp_path):
    touch(database)
    registry.register("duckdb", "duckdb_sqlalchemy", "Dialect")
    engine = create_engine(f"duckdb:///{tmp_path / 'declared.duckdb'}")
    SQLModel.metadata.create_all(engine)
    engine.dispose()
    with database.read() as connection:
        migrated = connection.execute(SHAPE).fetchall()
    with duckdb.connect(tmp_path / "declared.duckdb") as connection:
        assert connection.execute(SHAPE).fetchall() == migrated
    assert len(migrated) > 90


def test_a_database_of_the_first_schema_keeps_its_rows(database):
    """Made by the first migration alone, with rows of every table that the later ones change."""
    _, name, schema = migrations()[0]
    with duckdb.connect(database.path) as connection:
        connection.execute(schema)
        connection.execute("INSERT INTO schema_migration VALUES (1, $1, now())", [name])
        old = RUN.replace(", 1 AS parameters_active, 1 AS experts, 1 AS loops", "")
        for id_, loss in (("a", 3.0), ("b", 3.1)):
            connection.execute(old, {"id": id_, "status": "finished", "loss": loss})
        connection.execute("UPDATE run SET parameters_total = 7 WHERE run_id = 'b'")
        connection.execute("INSERT INTO trial VALUES ('s/r/1/n', 'a', 'search', 0, [0]), ('s/r/1/n', 'b', 'replicate', 1, [0])")
        connection.execute("""INSERT INTO cell VALUES ('s/r/1/n', 's', 'r', 'best', 1, 'n', 7, 7, '{"lr": [1]}', [1], '[[0]]',
            '2026-01-02', 'stopped')""")
    touch(database)
    with database.read() as connection:
        versions = connection.execute("SELECT version FROM schema_migration ORDER BY 1").fetchall()
        assert versions == [(n,) for n, *_ in migrations()]
        assert connection.execute("SELECT run_id, val_loss, parameters_active, experts, loops, samples FROM run").fetchall() == [
            ("a", 3.0, 1, 1, 1, None), ("b", 3.1, 7, 1, 1, None)
        ]  # fmt: skip
        cell = connection.execute("SELECT objective, averaging, members, teacher, starts, search_stopped FROM cell").fetchall()
        assert cell == [("single", "logits", 1, None, "[[0]]", "stopped")]
        assert connection.execute("SELECT val_loss_mean, seeds FROM best_run").fetchall() == [(3.05, 2)]


def test_every_table_view_column_and_macro_is_described_in_the_readme(database):
    touch(database)
    sections = {}
    for line in (database_folder() / "README.md").read_text().splitlines():
        if line.startswith("### "):
            body = sections[line.strip("# `")] = []
        elif sections:
            body.append(line)
    with database.read() as connection:
        for name in [row[0] for row in connection.execute("SELECT table_name FROM information_schema.tables").fetchall()]:
            described = "\n".join(sections[name])
            missing = [row[0] for row in connection.execute(f"DESCRIBE {name}").fetchall() if f"`{row[0]}`" not in described]
            assert not missing, f"{name}: {missing}"
        text = (database_folder() / "README.md").read_text()
        for (name,) in connection.execute("SELECT DISTINCT function_name FROM duckdb_functions() WHERE NOT internal").fetchall():
            assert f"`{name}" in text


def test_the_views_work_in_any_shell_that_opens_or_attaches_the_file(database):
    touch(database)
    names = "SELECT view_name FROM duckdb_views() WHERE NOT internal"
    with duckdb.connect(database.path, read_only=True) as shell:
        found = [name for (name,) in shell.execute(names).fetchall()]
        assert {"best_run", "certificate", "noise", "asymptote", "data_law", "data_efficiency"} <= set(found)
        for name in found:
            shell.execute(f"FROM {name}").fetchall()
    with duckdb.connect() as shell:
        shell.execute(f"ATTACH '{database.path}' AS results (READ_ONLY)")
        for name in found:
            shell.execute(f"FROM results.{name}").fetchall()


def test_views_are_made_anew_only_when_their_text_changed(database):
    touch(database)
    stamp = "SELECT hash, applied_at FROM schema_views"
    with database.write() as connection:
        first = connection.execute(stamp).fetchall()
    with database.write() as connection:
        assert connection.execute(stamp).fetchall() == first
        connection.execute("UPDATE schema_views SET hash = 'of an earlier version'")
        connection.execute("CREATE OR REPLACE VIEW noise AS SELECT 1 AS stale")
    with database.write() as connection:
        assert connection.execute(stamp).fetchall()[0][0] == first[0][0]
        assert connection.execute("DESCRIBE noise").fetchone()[0] == "study"
    assert "CREATE OR REPLACE VIEW noise" in views()


def test_a_reader_brings_an_older_file_up_to_date(database):
    version, name, statements = migrations()[0]
    with duckdb.connect(database.path) as old:
        old.execute(statements)
        old.execute("INSERT INTO schema_migration VALUES ($1, $2, now())", [version, name])
    with database.read() as connection:
        assert connection.execute("SELECT max(version) FROM schema_migration").fetchone() == (migrations()[-1][0],)
        assert connection.execute("FROM recipe_summary").fetchall() == []


def test_a_file_that_no_migration_fits_is_left_as_it_is_and_said_so(database):
    with duckdb.connect(database.path) as old:
        old.execute("CREATE TABLE schema_migration (version INTEGER, name VARCHAR, applied_at TIMESTAMPTZ)")
        old.execute("INSERT INTO schema_migration VALUES (1, 'of another making', now())")
    with pytest.raises(DatabaseError, match="stays as it is"), database.read():
        pass
    with duckdb.connect(database.path) as old:
        assert old.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("schema_migration",)]


def test_a_write_that_raises_leaves_nothing(database):
    touch(database)
    with pytest.raises(ZeroDivisionError), database.write() as connection:
        connection.execute(INSERT, ["c", "d"])
        raise ZeroDivisionError
    assert count(database) == 1


def test_four_writers_with_readers_beside_them_lose_nothing_and_see_no_errors(database):
    touch(database)
    readers = [start(READER, database.path, 4 * 15 + 1) for _ in range(4)]
    finish(*(start(WRITER, database.path, name, 15) for name in "wxyz"))
    finish(*readers)
    with database.read() as connection:
        assert connection.execute("SELECT run_id, count(*) FROM artifact GROUP BY 1 ORDER BY 1").fetchall() == [
            ("a", 1), *((name, 15) for name in "wxyz")
        ]  # fmt: skip


def test_threads_of_one_process_read_and_write_side_by_side(database):
    touch(database)
    failures = []

    def work(action):
        try:
            for _ in range(8):
                action()
        except Exception as error:
            failures.append(error)

    def write():
        with database.write() as connection:
            connection.execute("UPDATE artifact SET bytes = bytes + 1")

    threads = [
        threading.Thread(target=work, args=[action])
        for action in (write, write, lambda: count(database), lambda: count(database))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with database.read() as connection:
        assert connection.execute("SELECT bytes FROM artifact").fetchone() == (17,)


@pytest.mark.parametrize("commits", [1, 5])
def test_a_writer_killed_at_any_moment_loses_nothing_it_committed(database, commits):
    touch(database)
    writer = start(WRITER, database.path, "killed", 10_000)
    for _ in range(commits):
        last = int(writer.stdout.readline())
    os.kill(writer.pid, signal.SIGKILL)
    said = writer.communicate()[0].split()
    last = int(said[-1]) if said else last
    with database.read() as connection:  # before any writer has tidied up
        rows = connection.execute("SELECT name::INTEGER FROM artifact WHERE run_id = 'killed' ORDER BY 1").fetchall()
    assert rows in ([(i,) for i in range(last + 1)], [(i,) for i in range(last + 2)])
    with database.write(timeout=5) as connection:
        assert connection.execute(COUNT).fetchone()[0] == len(rows) + 1


def test_a_kill_inside_a_transaction_leaves_no_half_of_it(database):
    touch(database)
    code = f"""
import os, sys
from dataeff.records.store import Database
with Database(sys.argv[1]).write() as connection:
    connection.execute("{INSERT}", ["half", "done"])
    os.kill(os.getpid(), 9)
"""
    start(code, database.path).communicate()
    assert count(database) == 1
    with database.write(timeout=5) as connection:
        connection.execute(INSERT, ["after", "the kill"])
    assert count(database) == 2


def test_a_file_that_another_program_holds_is_busy_and_names_the_process(database):
    touch(database)
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code, database.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    for use in (database.write, database.read):
        with pytest.raises(DatabaseBusyError, match=f"results.duckdb was held by process {holder.pid} "), use(timeout=0.1):
            pass
    holder.communicate()
    assert count(database) == 1


def test_a_second_writer_waits_no_longer_than_it_was_told(database):
    failures = []

    def second():
        try:
            with database.write(timeout=0.05):
                pass
        except DatabaseBusyError as error:
            failures.append(str(error))

    with database.write():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "held by another writer" in failures[0]


def test_reading_a_missing_database_names_it_and_creates_nothing(tmp_path):
    database = Database(tmp_path / "none.duckdb")
    with pytest.raises(NotFoundError, match=r"none.duckdb.*dataeff run quickstart.*--database"), database.read():
        pass
    assert contents(tmp_path) == {}


def test_a_newer_schema_is_refused_and_left_alone(database, tmp_path):
    touch(database)
    with database.write() as connection:
        connection.execute("INSERT INTO schema_migration VALUES (99, '0099_future', now())")
    before = contents(tmp_path)
    for use in (database.write, database.read):
        with (
            pytest.raises(DatabaseError, match=rf"version 99, this dataeff knows up to {migrations()[-1][0]}; install the newer"),
            use(),
        ):
            pass
    assert contents(tmp_path) == before


@pytest.mark.parametrize("junk", [b"", b"not a database\n" * 500])
def test_a_file_that_is_no_database_is_refused_and_left_alone(database, junk):
    database.path.write_bytes(junk)
    for use in (database.write, database.read):
        with pytest.raises(DatabaseError, match="cannot be opened"), use():
            pass
    assert database.path.read_bytes() == junk


def test_a_damaged_database_is_refused_and_left_alone(database):
    touch(database)
    whole = database.path.read_bytes()
    damaged = whole[:4096] + b"\xff" * 8192 + whole[12288:]
    database.path.write_bytes(damaged)
    with pytest.raises(DatabaseError), database.write():
        pass
    assert database.path.read_bytes() == damaged


def test_another_programs_database_is_refused_and_left_alone(database):
    with duckdb.connect(database.path) as connection:
        connection.execute("CREATE TABLE customer (name VARCHAR)")
    before = database.path.read_bytes()
    for use in (database.write, database.read):
        with pytest.raises(DatabaseError, match=r"not a dataeff database: it has tables \(customer\)"), use():
            pass
    assert database.path.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DatabaseError, match="check that the folder can be written"),
        Database(tmp_path / "file" / "a.duckdb").write(),
    ):
        pass


def test_a_read_only_folder_can_be_read_and_not_written(database, tmp_path):
    touch(database)
    (tmp_path / "results.duckdb.lock").unlink()
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write to read-only folders")
        assert count(database) == 1
        with pytest.raises(DatabaseError, match="could not be written"), database.write():
            pass
    finally:
        tmp_path.chmod(0o700)


def test_a_lock_that_cannot_be_made_does_not_keep_readers_out(database, tmp_path):
    touch(database)
    (tmp_path / "results.duckdb.lock").unlink()
    (tmp_path / "results.duckdb.lock").mkdir()
    assert count(database) == 1
    with pytest.raises(DatabaseError, match="could not be written"), database.write():
        pass


def test_a_full_disk_is_told_and_leaves_what_was_there(database):
    """A limit on the size of files stands in for the disk."""
    touch(database)
    code = """
import resource, sys
from pathlib import Path
from dataeff.errors import DatabaseError
from dataeff.records.store import Database
size = Path(sys.argv[1]).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 2**18, size + 2**18))
try:
    with Database(sys.argv[1]).write() as connection:
        connection.execute("INSERT INTO metric SELECT 'r', i, i, md5(i::VARCHAR), random() FROM range(300000) AS t(i)")
except DatabaseError as error:
    print(error)
"""
    full = start(code, database.path)
    said, errors = full.communicate(timeout=60)
    assert "could not be written" in said and "disk has space" in said, errors
    with database.write() as connection:
        assert connection.execute("SELECT (SELECT count(*) FROM metric), (SELECT count(*) FROM artifact)").fetchone() == (0, 1)


def test_times_are_utc_whatever_the_machine_says(database, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    touch(database)
    with database.read() as connection:
        assert connection.execute("SELECT current_setting('TimeZone')").fetchone() == ("UTC",)


def test_a_session_reads_rows_as_models(database):
    touch(database)
    with database.session() as session:
        assert [(row.run_id, row.bytes) for row in session.exec(select(tables.Artifact))] == [("a", 1)]
