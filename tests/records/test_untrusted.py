"""Untrusted SQL on a real database: it is answered, or refused, or stopped; nothing else happens."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from dataeff.errors import NotFoundError, QueryError
from dataeff.records import untrusted
from dataeff.records.documented import columns, questions
from dataeff.records.exchange import import_study
from dataeff.records.store import Database
from dataeff.records.untrusted import ask
from tests.conftest import EIGHT_RECIPES

SECRET = "hunter2"


@pytest.fixture(scope="module")
def laptop(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("untrusted")
    (folder / "secret.csv").write_text(f"a\n{SECRET}\n")
    import_study(Database(folder / "laptop.duckdb"), EIGHT_RECIPES)
    return folder / "laptop.duckdb"


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "empty.duckdb"
    with Database(path).write():
        return path


@pytest.fixture
def unharmed(laptop):
    """Fails unless everything in the database's folder is as it was, byte for byte."""

    def state() -> dict[str, str]:
        return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in laptop.parent.rglob("*") if file.is_file()}

    before = state()
    yield
    assert state() == before


FILES = [
    "SELECT * FROM read_csv('{folder}/secret.csv')",
    "FROM '{folder}/secret.csv'",
    "FROM read_text('{folder}/secret.csv')",
    "FROM read_blob('{folder}/*')",
    "FROM glob('/*')",
    "FROM sniff_csv('{folder}/secret.csv')",
    "FROM parquet_scan('{folder}/secret.csv')",
    "FROM read_duckdb('{folder}/laptop.duckdb')",
    "SELECT (SELECT content FROM read_text('{folder}/secret.csv')) FROM run",
    "FROM query('FROM read_text(''{folder}/secret.csv'')')",
    "FROM query_table('{folder}/secret.csv')",
    "FROM json_execute_serialized_sql(json_serialize_sql('FROM read_text(''{folder}/secret.csv'')'))",
    "IMPORT DATABASE '{folder}'",
    "FROM enable_logging('QueryLog', storage := 'file', storage_path := '{folder}/log')",
    "FROM enable_profiling(save_location := '{folder}/profile.json')",
    "FROM duckdb_extensions()",
    "FROM read_csv('https://example.org/a.csv')",
    "FROM 's3://bucket/a.parquet'",
    "SELECT getenv('HOME')",
    "FROM connection",
]
STATEMENTS = [
    "COPY run TO '{folder}/run.csv'",
    "COPY run FROM '{folder}/secret.csv'",
    "EXPORT DATABASE '{folder}/out'",
    "ATTACH '{folder}/new.duckdb'",
    "DETACH laptop",
    "USE memory",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET lock_configuration = false",
    "SET memory_limit = '100GB'",
    "RESET enable_external_access",
    "PRAGMA memory_limit = '100GB'",
    "PRAGMA enable_profiling",
    "CREATE TABLE a (i INT)",
    "CREATE TEMP TABLE a AS FROM run",
    "CREATE MACRO m() AS 1",
    "CREATE SECRET (TYPE s3, KEY_ID 'a', SECRET 'b')",
    "INSERT INTO run SELECT * FROM run",
    "UPDATE run SET val_loss = 0",
    "DELETE FROM run",
    "DROP TABLE run",
    "ALTER TABLE run ADD COLUMN a INT",
    "MERGE INTO run USING run AS r ON false WHEN MATCHED THEN DELETE",
    "BEGIN",
    "PREPARE a AS SELECT 1",
    "EXECUTE a",
    "CALL pragma_version()",
    "CHECKPOINT",
    "VACUUM",
    "EXPLAIN ANALYZE INSERT INTO run SELECT * FROM run",
    "EXPLAIN /* */ ANALYZE DELETE FROM run",
    "EXPLAIN ANALYZE COPY run TO '{folder}/run.csv'",
    "EXPLAIN ANALYZE CREATE TEMP TABLE a AS SELECT 1",
    "SELECT 1; DROP TABLE run",
    "CREATE TYPE a AS ENUM ('b'); SELECT 1",
    "-- nothing",
]


@pytest.mark.parametrize("text", FILES)
def test_no_file_address_or_variable_is_reached(laptop, unharmed, text):
    with pytest.raises(QueryError) as refused:
        ask(laptop, text.format(folder=laptop.parent))
    assert SECRET not in str(refused.value)
    assert "failed" in str(refused.value) or "may reach no files" in str(refused.value)


@pytest.mark.parametrize("text", STATEMENTS)
def test_what_is_not_one_select_is_refused(laptop, unharmed, text):
    with pytest.raises(QueryError, match="give one SELECT"):
        ask(laptop, text.format(folder=laptop.parent))


@pytest.mark.parametrize(
    "text",
    [
        "WITH RECURSIVE a(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM a) SELECT max(i) FROM a",
        "SELECT count(*) FROM range(100000000) a, range(100000000) b WHERE a.range * b.range % 7 = 3",
        "SELECT sum(range) FROM range(1000000000000000)",
        "SELECT levenshtein(repeat('a', 1000000), repeat('b', 1000000))",  # no interrupt is heeded within one call
        "SELECT list_sum(list_transform(range(50000000), lambda x: list_sum(range(x))))",
    ],
)
def test_a_query_without_end_is_stopped(laptop, unharmed, text):
    with pytest.raises(QueryError, match="stopped after 0.5 s, the limit here"):
        ask(laptop, text, 0.5)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT len(range(1000000000))",
        "SELECT repeat('x', 4000000000)",
        "SELECT repeat('x', 1000000000)",
        "SELECT list(range) FROM range(1000000000)",
        "SELECT * FROM run a, run b, run c ORDER BY a.val_loss * b.val_loss + c.lr",
        "SELECT json_structure(repeat('[', 10000000) || repeat(']', 10000000))",  # overruns the stack
    ],
)
def test_a_query_that_takes_too_much_is_stopped(laptop, unharmed, text):
    with pytest.raises(QueryError, match="memory, the limit here|stopped after|crashed|maximum length"):
        ask(laptop, text, 1)


def test_of_many_rows_the_first_come_and_it_is_said(laptop):
    answer = ask(laptop, "FROM range(1000000000000)")
    assert answer.table.num_rows == untrusted.ROWS and answer.cut == "the first 10,000 rows; there are more"
    wide = ask(laptop, "SELECT repeat('x', 100000) AS a FROM range(10000)")
    assert 100 < wide.table.num_rows < 200 and "16 MB" in wide.cut
    assert ask(laptop, "FROM range(10000)").cut is None


def test_the_limits_hold_inside_and_nothing_is_left_of_the_environment(laptop, monkeypatch):
    monkeypatch.setenv("DATAEFF_TOKEN", SECRET)
    rows = ask(laptop, "SELECT name, value FROM duckdb_settings()").table.to_pydict()
    settings = dict(zip(rows["name"], rows["value"], strict=True))
    assert settings["enable_external_access"] == "false" and settings["lock_configuration"] == "true"
    assert SECRET not in str(settings) and str(Path.home()) not in str(settings)
    assert ask(laptop, "FROM duckdb_secrets()").table.num_rows == 0


def test_while_one_query_runs_another_is_answered_and_a_writer_writes_after(laptop):
    def endless() -> None:
        with pytest.raises(QueryError, match="stopped"):
            ask(laptop, "SELECT sum(range) FROM range(1000000000000000)", 3)

    first = threading.Thread(target=endless)
    first.start()
    assert ask(laptop, "SELECT count(*) AS n FROM run").table["n"].to_pylist() == [959]
    assert first.is_alive()
    with Database(laptop).read() as connection:  # the pages of this very process
        assert connection.execute("SELECT count(*) FROM run").fetchone() == (959,)
    with Database(laptop).write():
        assert not first.is_alive() or first.join(5) is None


def test_every_type_comes_back_and_equal_names_are_made_to_differ(laptop):
    assert ask(laptop, "FROM test_all_types()").table.num_rows == 3
    assert ask(laptop, "SELECT 1 AS a, 2 AS a, 3 AS a_1").table.to_pydict() == {"a": [1], "a_1": [2], "a_1_1": [3]}


@pytest.mark.parametrize(
    "text", ["EXPLAIN ANALYZE FROM run", "/* a */ explain -- b\n from run", "explain (format json) from run", "DESCRIBE run",
             "SUMMARIZE cell", "SHOW TABLES", "PRAGMA table_info('run')", "PIVOT best_run ON recipe USING min(val_loss)"],
)  # fmt: skip
def test_what_reads_in_other_words_is_answered(laptop, text):
    assert ask(laptop, text).table.num_rows


def test_a_missing_database_is_reported_as_everywhere(tmp_path):
    with pytest.raises(NotFoundError, match="dataeff run quickstart"):
        ask(tmp_path / "none.duckdb", "SELECT 1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("question", questions(), ids=lambda question: question.title)
def test_the_questions_of_the_readme_are_answered_on_every_database(laptop, empty, question):
    names = ask(empty, question.text, 30).table.column_names
    assert ask(laptop, question.text, 30).table.column_names == names
    for name, value in (pair.split("=") for pair in question.chart.split("&") if pair):
        assert value in names or name not in ("x", "y", "colour")


def test_every_column_has_a_meaning(laptop):
    with Database(laptop).read() as connection:
        names, rows = columns(connection)
    assert names == ["table or view", "column", "type", "meaning"]
    assert not [row[:2] for row in rows if not row[3]]
