"""The file: schema, locks, crashes, and what is refused."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading

import duckdb
import pytest
from sqlmodel import select

from dataeff.errors import DatabaseBusyError, DatabaseError, NotFoundError, SchemaError
from dataeff.records import tables
from dataeff.records.store import Database
from dataeff.share import shared_folder

COUNT = "SELECT count(*) FROM trial"
INSERT = "INSERT INTO trial VALUES ($1, $2, 'search', 1, [0])"

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


def declared_types(database):
    with database.read() as connection:
        return {name: kind for name, kind, *_ in connection.execute("DESCRIBE cell").fetchall()}


def test_the_classes_make_the_tables_their_keys_and_checks(database):
    touch(database)
    types = declared_types(database)
    assert (types["members"], types["margin"], types["axes"], types["best"]) == ("BIGINT", "DOUBLE", "JSON", "INTEGER[]")
    assert (types["search_ended_at"], types["neighbours_missing"]) == ("TIMESTAMP WITH TIME ZONE", "INTEGER[][]")
    with database.read() as connection:
        keys = "SELECT table_name, constraint_column_names FROM duckdb_constraints() WHERE constraint_type = 'PRIMARY KEY'"
        keys = dict(connection.execute(keys).fetchall())
        nullable = connection.execute("SELECT column_name, is_nullable FROM duckdb_columns() WHERE table_name = 'metric'")
        assert dict(nullable.fetchall()) == {"run_id": False, "step": False, "tokens": False, "name": False, "value": True}
    assert keys.keys() & {"metric", "evaluation", "ensemble_loss"} == set()
    assert (keys["attempt"], keys["trial"]) == (["job_id", "number"], ["cell_id", "run_id"])
    with pytest.raises(duckdb.ConstraintException, match="CHECK"), database.write() as connection:
        connection.execute("INSERT INTO trial VALUES ('c', 'r', 'guess', 0, [0])")


def test_every_column_of_a_table_has_a_comment_in_the_database(database):
    touch(database)
    with duckdb.connect(database.path, read_only=True) as shell:
        comments = shell.execute("SELECT comment FROM duckdb_tables() UNION ALL SELECT comment FROM duckdb_columns() "
                                 "WHERE table_name IN (SELECT table_name FROM duckdb_tables())").fetchall()  # fmt: skip
    assert len(comments) > 150 and all(comment for (comment,) in comments)


def test_the_readme_is_what_the_classes_say():
    with_tables = runpy.run_path(str(shared_folder("db").parent / "docs" / "tables.py"))["with_tables"]
    text = (shared_folder("db") / "README.md").read_text(encoding="utf-8")
    assert with_tables(text) == text, "make it anew: python docs/tables.py"
    assert with_tables(text.replace("D: distinct training tokens", "other")) == text


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


def other_version(path):
    """Make a file as another version of dataeff would have."""
    Database(path).path.parent.mkdir(exist_ok=True)
    with Database(path).write() as connection:
        connection.execute("UPDATE schema SET version = 'another'")
        connection.execute("CREATE OR REPLACE VIEW noise AS SELECT 1 AS other")


def before_versions(path):
    """Make a file as dataeff did when it migrated its databases."""
    with duckdb.connect(path) as old:
        old.execute("CREATE TABLE schema_migration (version INTEGER, name VARCHAR, applied_at TIMESTAMPTZ)")
        old.execute("CREATE TABLE run (run_id VARCHAR)")


@pytest.mark.parametrize("make", [other_version, before_versions])
def test_a_file_of_another_version_is_refused_in_one_line_and_left_alone(database, make):
    make(database.path)
    before = database.path.read_bytes()
    for use in (database.write, database.read, database.session):
        with pytest.raises(SchemaError, match=r"results.duckdb was written by another .*`dataeff rebuild`") as error, use():
            pass
        assert "\n" not in str(error.value)
    with pytest.raises(SchemaError):
        database.require_usable()
    assert database.path.read_bytes() == before


def test_reading_a_file_of_this_version_changes_nothing_in_it(database):
    touch(database)
    before = database.path.read_bytes()
    assert count(database) == 1
    assert database.path.read_bytes() == before


def test_an_empty_duckdb_file_holds_no_runs_and_can_be_written(database):
    duckdb.connect(database.path).close()
    database.require_usable()
    with pytest.raises(NotFoundError, match="holds no runs yet"), database.read():
        pass
    touch(database)
    assert count(database) == 1


@pytest.mark.parametrize("keep", [True, False])
def test_a_file_is_replaced_at_once_and_kept_under_another_name_if_asked(database, tmp_path, keep):
    other_version(database.path)
    before = database.path.read_bytes()
    new, old = tmp_path / "results.new.duckdb", tmp_path / "results.old.duckdb"
    old.write_text("an older one")
    touch(Database(new))
    database.replace_with(new, old if keep else None)
    assert count(database) == 1
    assert old.read_bytes() == (before if keep else b"an older one")
    assert contents(tmp_path).keys() == {"results.duckdb", "results.duckdb.lock", "results.old.duckdb"}


def test_a_damaged_file_is_replaced_and_its_log_does_not_reach_the_next(database, tmp_path):
    database.path.write_bytes(b"not a database\n" * 500)
    (tmp_path / "results.duckdb.wal").write_bytes(b"neither a log")
    touch(Database(tmp_path / "new.duckdb"))
    database.replace_with(tmp_path / "new.duckdb", tmp_path / "old.duckdb")
    assert count(database) == 1
    assert (tmp_path / "old.duckdb.wal").read_bytes() == b"neither a log"


def test_a_file_that_does_not_exist_can_be_replaced(database, tmp_path):
    touch(Database(tmp_path / "new.duckdb"))
    database.replace_with(tmp_path / "new.duckdb", tmp_path / "old.duckdb")
    assert count(database) == 1


def test_a_file_that_is_being_read_is_not_replaced(database, tmp_path):
    touch(database)
    touch(Database(tmp_path / "new.duckdb"))
    with database.read(), pytest.raises(DatabaseBusyError, match="was held by"):
        database.replace_with(tmp_path / "new.duckdb", timeout=0.05)
    assert count(database) == count(Database(tmp_path / "new.duckdb")) == 1


def test_readers_beside_a_file_that_is_replaced_again_and_again_see_no_errors(database, tmp_path):
    touch(database)
    readers = [start(READER, database.path, 4) for _ in range(2)]
    for rows in range(2, 5):
        new = Database(tmp_path / "new.duckdb")
        with new.write() as connection:
            connection.executemany(INSERT, [["new", str(i)] for i in range(rows)])
        database.replace_with(new.path, tmp_path / "old.duckdb")
    finish(*readers)


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
        assert connection.execute("SELECT cell_id, count(*) FROM trial GROUP BY 1 ORDER BY 1").fetchall() == [
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
            connection.execute("UPDATE trial SET number = number + 1")

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
        assert connection.execute("SELECT number FROM trial").fetchone() == (17,)


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
        rows = connection.execute("SELECT run_id::INTEGER FROM trial WHERE cell_id = 'killed' ORDER BY 1").fetchall()
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
        assert connection.execute("SELECT (SELECT count(*) FROM metric), (SELECT count(*) FROM trial)").fetchone() == (0, 1)


def test_times_are_utc_whatever_the_machine_says(database, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    touch(database)
    with database.read() as connection:
        assert connection.execute("SELECT current_setting('TimeZone')").fetchone() == ("UTC",)


def test_a_session_reads_rows_as_models(database):
    touch(database)
    with database.session() as session:
        assert [(row.run_id, row.number, row.coordinates) for row in session.exec(select(tables.Trial))] == [("b", 1, [0])]
