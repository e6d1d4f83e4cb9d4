"""Jobs without a study: a kind of job defined in a test module is planned, made, killed, resumed, recorded and shown."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pytest

from dataeff.errors import InputError, TrainingError
from dataeff.execution.inline import InlineExecutor
from dataeff.execution.local import LocalExecutor
from dataeff.facts.store import Store, recorded_attempts
from dataeff.records.store import Database
from dataeff.study.index import rebuild
from dataeff.study.make import make_jobs, missing_jobs
from tests.conftest import dataeff
from tests.contracts.total import Total


def graph(**middle) -> tuple[Total, Total, Total]:
    leaf = Total(numbers=[1, 2, 3])
    middle = Total(numbers=[10, 20, 30], parts=[leaf], **middle)
    return leaf, middle, Total(numbers=[], parts=[middle, leaf])


@pytest.fixture
def database(tmp_path) -> Database:
    return Database(tmp_path / "jobs.duckdb")


def test_a_plan_names_each_job_after_its_inputs_and_leaves_out_what_is_there(database):
    leaf, middle, root = graph()
    store = Store.beside(database.path)
    assert missing_jobs([root, middle], store) == [leaf, middle, root]
    with InlineExecutor() as executor:
        make_jobs([leaf], database, executor)
    assert missing_jobs([root], store) == [middle, root]


def test_a_graph_whose_worker_is_killed_is_made_recorded_and_shown(database):
    leaf, middle, root = graph(mine=20)
    with LocalExecutor(1) as executor:
        (result,) = make_jobs([root], database, executor)
    assert result.total == 72
    attempts = recorded_attempts(Store.beside(database.path).folder(middle))
    assert [attempt.outcome for attempt in attempts] == ["killed", "finished"]
    with duckdb.connect(database.path, read_only=True) as connection:
        rows = connection.execute("SELECT job_id, kind, inputs, result ->> 'total' FROM job").fetchall()
        tried = connection.execute("SELECT kind, outcome FROM attempt WHERE job_id = $1 ORDER BY number", [middle.id]).fetchall()
    assert sorted(rows) == sorted(
        [
            (leaf.id, "total", [], "6"),
            (middle.id, "total", [leaf.id], "66"),
            (root.id, "total", [middle.id, leaf.id], "72"),
        ]
    )
    assert tried == [("total", "killed"), ("total", "finished")]
    shown = dataeff("show", root.id[:6], "--database", database.path, "--format=json", cwd=Path(database.path).parent)
    assert shown.returncode == 0, shown.stderr
    details = json.loads(shown.stdout)
    assert details["kind"] == "total" and json.loads(details["row"]["result"])["total"] == 72


def test_a_second_call_makes_nothing_and_an_output_that_is_gone_is_made_again_only_where_it_is_needed(database):
    leaf, middle, root = graph()
    store = Store.beside(database.path)
    with InlineExecutor() as executor:
        make_jobs([root], database, executor)
        (store.folder(leaf).path / "total.txt").unlink()
        make_jobs([root], database, executor)
        assert not (store.folder(leaf).path / "total.txt").exists()  # nobody needed it
        make_jobs([Total(numbers=[1], parts=[leaf])], database, executor)
        assert (store.folder(leaf).path / "total.txt").exists()
    assert len(recorded_attempts(store.folder(root))) == 1


def test_what_waits_for_a_job_that_fails_is_given_up_with_the_reason_and_the_rest_is_made(database):
    large = Total(numbers=[], too_large=True)
    root, other = Total(numbers=[1], parts=[large]), Total(numbers=[2])
    reason = rf"total {root.id}: its input {large.id}: out_of_memory"
    with InlineExecutor() as executor, pytest.raises(TrainingError, match=reason):
        make_jobs([root, other], database, executor)
    assert Store.beside(database.path).has_result(other)


def test_a_rebuilt_database_has_jobs_of_every_kind_that_is_known_and_refuses_to_lose_others(database, tmp_path):
    *_, root = graph()
    with InlineExecutor() as executor:
        make_jobs([root], database, executor)
    database.path.unlink()
    rebuild(database)
    with database.read() as connection:
        assert connection.execute("SELECT count(*) FROM job").fetchone() == (3,)
    refused = dataeff("rebuild", "--database", database.path, cwd=tmp_path)  # a process that does not know the kind
    assert refused.returncode == 2 and "holds jobs of a kind that is not known" in refused.stderr
    with database.read() as connection:
        assert connection.execute("SELECT count(*) FROM job").fetchone() == (3,)


def test_an_input_of_which_only_the_id_is_known_is_refused(database):
    leaf, *_ = graph()
    with InlineExecutor() as executor, pytest.raises(InputError, match=f"input {leaf.id}, of which only the id is known"):
        make_jobs([Total(numbers=[], parts=[leaf.id])], database, executor)
