"""From run folders to rows."""

from __future__ import annotations

import json

import pytest
from folders import MODEL, NOW, run_spec, write_attempt, write_run

from dataeff.errors import InputError
from dataeff.facts.store import JobFolder, recorded_attempts, write_atomically
from dataeff.records.ingest import read_job, record_attempts, record_cells, record_jobs, record_study
from dataeff.specs.run import Synthetic
from dataeff.work.ensemble import Ensemble, EnsembleResult, SubsetLoss
from dataeff.work.sample import Sample, SampleResult
from dataeff.work.train import Train

TABLES = ("run", "metric", "evaluation", "attempt")


def ingest(connection, folders, names=None, kind="train") -> int:
    """Record what is in the folders, results and attempts; return how many results are new."""
    count = record_jobs(connection, [read_job(kind, each) for each in folders if each.result.exists()], names)
    record_attempts(connection, ((kind, attempt) for each in folders for attempt in recorded_attempts(each)))
    return count


def rows(database, table):
    with database.read() as connection:
        return connection.execute(f"FROM {table} ORDER BY ALL").fetchall()


def test_a_finished_run_becomes_its_rows(database, store):
    spec = run_spec(lr=1e-2)
    folder = write_run(store, spec, 3.5, points=3)
    with database.write() as connection:
        assert ingest(connection, [folder], {"c0ffee": "letters"}) == 1
    with database.read() as connection:
        row = connection.execute(
            """SELECT status, corpus, corpus_name, lr, hidden, "order", val_loss, training_flops, peak_memory_bytes, started_at,
               parameters_total FROM run WHERE run_id = $1""", [spec.id]
        ).fetchone()  # fmt: skip
        (stored,) = connection.execute("SELECT spec FROM run").fetchone()
    assert Train.model_validate(json.loads(stored)) == spec
    assert row[:9] == ("finished", "c0ffee", "letters", 0.01, 8, "same", 3.5, 2.0**60 + 1, 5_000_000_000)
    assert row[9] == NOW
    assert row[10] == MODEL.parameters_total
    assert rows(database, "metric") == sorted(
        (spec.id, step, 16 * step, name, value)
        for step in (1, 2, 3)
        for name, value in (("train_loss", 4.0 / step), ("lr", 1e-3), ("gradient_norm", None))
    )
    assert rows(database, "evaluation") == [(spec.id, 2, 32, "validation", 3.5, 0.01)]
    assert rows(database, "attempt") == [(spec.id, 1, "train", NOW, NOW, "finished", None, "here", 4242, "cpu")]


def test_ingesting_twice_changes_nothing(database, store):
    folders = [write_run(store, run_spec(train_seed=seed)) for seed in range(3)]
    before = None
    for new in (3, 0):
        with database.write() as connection:
            assert ingest(connection, [*folders, folders[0]]) == new
        now = {table: rows(database, table) for table in TABLES}
        assert before in (None, now)
        before = now
    assert [len(before[table]) for table in TABLES] == [3, 18, 3, 3]


def test_a_diverged_run_has_no_loss_and_a_reason(database, store):
    with database.write() as connection:
        ingest(connection, [write_run(store, run_spec(), None)])
        assert connection.execute("SELECT status, val_loss, reason FROM run").fetchone() == (
            "diverged",
            None,
            "loss was not finite",
        )


def test_attempts_of_an_unfinished_run_are_recorded_and_follow_what_happens(database, store):
    spec = run_spec()
    folder = store.folder(spec)
    write_attempt(folder, spec, 1, "running")
    outcomes = []
    for outcome in ("running", "killed"):
        write_attempt(folder, spec, 1, outcome)
        with database.write() as connection:
            ingest(connection, [folder])
            outcomes += connection.execute("SELECT outcome FROM attempt").fetchall()
    assert outcomes == [("running",), ("killed",)]
    write_attempt(folder, spec, 1, "finished")
    with database.write() as connection:
        ingest(connection, [folder])
        assert connection.execute("SELECT outcome, reason FROM attempt").fetchall() == [("finished", None)]
        assert connection.execute("SELECT count(*) FROM run").fetchone() == (0,)


def test_the_axes_beyond_the_paper_have_columns(database, store):
    model = MODEL.model_copy(update={"experts": 4, "experts_per_token": 2, "loops": 3})
    spec = run_spec(model=model, synthetic=Synthetic(samples="s1", share=0.5))
    with database.write() as connection:
        ingest(connection, [write_run(store, spec), write_run(store, run_spec())])
        found = connection.execute("SELECT parameters_active, experts, loops, synthetic_share, samples FROM run ORDER BY loops")
        assert found.fetchall() == [(MODEL.parameters_active, 1, 1, None, None), (model.parameters_active, 4, 3, 0.5, "s1")]


def write_ensemble(store, members=("a", "b@1")) -> JobFolder:
    spec = Ensemble(corpus="c0ffee", members=list(members), validation_sequences=4, precision="float32")
    folder = store.folder(spec)
    losses = [
        SubsetLoss(averaging="logits", subset=subset, val_loss=loss) for subset, loss in (([0], 3.5), ([1], None), ([0, 1], None))
    ]
    result = EnsembleResult(ensemble_id=spec.id, losses=losses, wall_seconds=1.5, device="cpu (test)")
    write_atomically(folder.spec, spec.model_dump_json())
    write_atomically(folder.result, result.model_dump_json())
    return folder


def write_samples(store) -> JobFolder:
    spec = Sample(members=["a"], sequences=8, separator=0, seed=3, precision="float32", temperature=0.9)
    folder = store.folder(spec)
    result = SampleResult(
        sample_id=spec.id, fingerprint="f", sequences=8, context_length=16, dtype="uint16", cross_entropy=2.5,
        entropy=2.25, tokens_per_second=10.0, wall_seconds=12.8, device="cpu (test)",
    )  # fmt: skip
    write_atomically(folder.spec, spec.model_dump_json())
    write_atomically(folder.result, result.model_dump_json())
    return folder


def test_ensembles_and_samples_become_their_rows_once(database, store):
    ensembles, samples = [write_ensemble(store), write_ensemble(store, ["b@1", "a"])], [write_samples(store)]
    (store.path / "ensembles" / "unfinished").mkdir()
    unfinished = JobFolder(store.path / "ensembles" / "unfinished")
    for new in (2, 0):
        with database.write() as connection:
            assert ingest(connection, [*ensembles, ensembles[0], unfinished], kind="ensemble") == new
            assert ingest(connection, samples, kind="sample") == new // 2
    id_ = ensembles[0].path.name
    with database.read() as connection:
        found = connection.execute("FROM ensemble WHERE ensemble_id = $1", [id_]).fetchall()
        assert found == [(id_, "c0ffee", ["a", "b@1"], 4, "float32", 1.5, "cpu (test)")]
        found = connection.execute("FROM ensemble_loss WHERE ensemble_id = $1 ORDER BY number", [id_]).fetchall()
        assert found == [(id_, 0, "logits", [0], 3.5), (id_, 1, "logits", [1], None), (id_, 2, "logits", [0, 1], None)]
        assert connection.execute("SELECT count(*) FROM ensemble_loss").fetchone() == (6,)
        found = connection.execute("SELECT * EXCLUDE sample_id FROM sample").fetchall()
        assert found == [(["a"], "members", 8, 16, 0.9, 1.0, 3, "f", 2.5, 2.25, 10.0, 12.8, "cpu (test)")]


def test_an_ensemble_in_the_folder_of_another_is_refused(database, store):
    moved = write_ensemble(store).path.rename(store.path / "ensembles" / "0123456789abcdef")
    with (
        pytest.raises(InputError, match=r"0123456789abcdef holds the result of ensemble .* move the folder back"),
        database.write() as connection,
    ):
        ingest(connection, [JobFolder(moved)], kind="ensemble")


def test_a_damaged_folder_is_named_and_nothing_of_the_batch_is_recorded(database, store):
    good, bad = write_run(store, run_spec()), write_run(store, run_spec(lr=1e-2))
    write_atomically(bad.result, bad.result.read_text()[:50])
    with database.write():
        pass
    with pytest.raises(InputError, match="result.json cannot be read as a RunResult"), database.write() as connection:
        ingest(connection, [good, bad])
    assert rows(database, "run") == []


def test_a_finished_run_without_a_loss_is_refused(database, store):
    folder = write_run(store, run_spec())
    write_atomically(folder.result, json.dumps(json.loads(folder.result.read_text()) | {"val_loss": None}))
    with pytest.raises(InputError, match="a finished run has a finite validation loss"), database.write() as connection:
        ingest(connection, [folder])


def test_a_folder_that_is_not_of_its_run_is_refused(database, store):
    folder = write_run(store, run_spec())
    moved = folder.path.rename(folder.path.with_name("0123456789abcdef"))
    with (
        pytest.raises(InputError, match="0123456789abcdef holds the result of train .* move the folder back"),
        database.write() as connection,
    ):
        ingest(connection, [store.run(moved.name)])


def test_many_runs_with_long_curves_are_ingested_in_one_go(database, store):
    folders = [write_run(store, run_spec(train_seed=seed), points=500) for seed in range(40)]
    with database.write() as connection:
        assert ingest(connection, folders) == 40
        assert connection.execute("SELECT count(*) FROM metric").fetchone() == (40 * 500 * 3,)


def test_a_study_recorded_again_becomes_what_is_given(database):
    for text in ("first", "second"):
        with database.write() as connection:
            row = {"name": "s", "text": text, "spec": {"sizes": [1]}, "started_at": NOW, "updated_at": NOW}
            record_study(connection, row)
    with database.read() as connection:
        assert connection.execute("SELECT text, spec->'sizes' FROM study").fetchall() == [("second", "[1]")]


def test_a_cell_recorded_again_becomes_what_is_given(database):
    cell = {
        "cell_id": "s/r/1/n",
        "study": "s",
        "recipe": "r",
        "recipe_limit": "N",
        "objective": "single",
        "averaging": "logits",
        "members": 1,
        "seed_tokens": 1,
        "size": "n",
        "parameters_total": 2,
        "parameters_non_embedding": 1,
        "axes": {"lr": [1e-3, 3e-3], "epochs": [1]},
        "shape": [2, 1],
        "starts": [[0, 0]],
        "search_ended_at": None,
        "state": "searching",
        "reason": "no run of the search has finished",
        "origin": "s/r/1/n",
    }
    with database.write() as connection:
        record_cells(connection, [cell])
        record_cells(connection, [cell | {"shape": [2, 2], "search_ended_at": NOW}])
        found = connection.execute("SELECT shape, json_keys(axes), starts, search_ended_at FROM cell").fetchall()
    assert found == [([2, 2], ["lr", "epochs"], "[[0,0]]", NOW)]
