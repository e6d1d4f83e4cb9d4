"""Ids are those of every release before: a store, a database and the bundled results name runs by them."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import duckdb
import pytest

from dataeff.specs.spec import Input
from dataeff.work.ensemble import Ensemble
from dataeff.work.sample import Sample
from dataeff.work.train import Train
from tests.conftest import EIGHT_RECIPES

A, B = "a" * 16, "b" * 16 + "@2"
MODEL = {"vocabulary": 64, "context_length": 16, "hidden": 16, "layers": 2, "heads": 4, "kv_heads": 2, "feed_forward": 32}
RUN = {
    "trainer_version": 1,
    "corpus": "tiny",
    "seed_tokens": 768,
    "model": MODEL,
    "epochs": 4,
    "lr": 0.01,
    "weight_decay": 0.1,
    "batch_size": 8,
    "validation_sequences": 12,
    "precision": "float32",
}
ENSEMBLE = {"corpus": "tiny", "members": [A], "validation_sequences": 12, "precision": "float32"}
SAMPLE = {"members": [A], "sequences": 600, "separator": 5, "seed": 1, "precision": "float32"}


def run(**change: Any) -> Train:
    return Train.model_validate({**RUN, **change})


@pytest.mark.parametrize(
    ("run_id", "change"),
    [
        ("ebb4c0220c46f9de", {}),
        ("13d5cd2b3d27f6de", {"optimizer": "muon", "precision": "bfloat16"}),
        ("b15b7f28efaf02ed", {"dropout": 0.1, "order": "reshuffled", "train_seed": 3}),
        (
            "6ef09d8155f48782",
            {"model": {**MODEL, "experts": 4, "experts_per_token": 2, "loops": 2}, "balance_loss": 0.5},
        ),
        ("b784e71cfd77c9e2", {"synthetic": {"samples": "0123456789abcdef", "share": 0.5}}),
        ("05e0227ceca0cce3", {"teacher_logits": {"members": [A, B], "weight": 0.5, "temperature": 2.0}}),
        ("2a7043f340a5ec5c", {"teacher_logits": {"members": [A], "weight": 1.0}}),
    ],
)
def test_runs_have_their_ids(run_id: str, change: dict[str, Any]) -> None:
    assert run(**change).id == run_id


def test_ensembles_and_samples_have_their_ids() -> None:
    other = {"evaluator_version": 2, "members": [A, B], "precision": "bfloat16"}
    assert Ensemble(**ENSEMBLE).id == "f90ec0dca44b36f5"
    assert Ensemble(**{**ENSEMBLE, **other}).id == "a4f643130f214535"
    other = {"members": [A, B], "pool": "joint", "temperature": 0.7, "top_p": 0.9, "seed": 5, "precision": "bfloat16"}
    assert Sample(**SAMPLE).id == "c7bcc82663f5e693"
    assert Sample(**{**SAMPLE, **other}).id == "628311f246937178"


def test_a_job_given_as_an_input_has_the_id_it_has_when_named() -> None:
    teacher = run()
    ensemble = Ensemble(**{**ENSEMBLE, "members": [teacher, Input(run(train_seed=1), 2)]})
    sample = Sample(**{**SAMPLE, "members": [teacher]})
    student = run(synthetic={"samples": sample, "share": 0.5})
    matched = run(teacher_logits={"members": [teacher], "weight": 0.5})
    assert (ensemble.id, sample.id) == ("1640deb17ba6d30b", "c0b10022157c66ac")
    assert (student.id, matched.id) == ("405e374c6f786f96", "1b0ae8d81f55fa19")
    assert student.id == run(synthetic={"samples": sample.id, "share": 0.5}).id
    assert [each.job for each in student.inputs] == [sample]


@pytest.mark.parametrize("job", [run(), Ensemble(**ENSEMBLE), Sample(**SAMPLE)], ids=lambda job: job.kind)
def test_a_job_read_back_from_its_file_or_sent_to_another_process_is_the_same(job) -> None:
    assert type(job).model_validate_json(job.model_dump_json()) == job
    copy = pickle.loads(pickle.dumps(job))
    assert copy == job and copy.id == job.id


def test_every_bundled_result_has_the_id_of_its_spec() -> None:
    runs = duckdb.sql(f"SELECT run_id, spec FROM '{EIGHT_RECIPES}/run.parquet'").fetchall()
    assert len(runs) > 900
    assert [run_id for run_id, spec in runs if Train.model_validate_json(spec).id != run_id] == []
    facts = "ensemble_id, wall_seconds, device"
    ensembles = duckdb.sql(f"SELECT ensemble_id, * EXCLUDE ({facts}) FROM '{EIGHT_RECIPES}/ensemble.parquet'")
    for ensemble_id, *values in ensembles.fetchall():
        assert Ensemble(**dict(zip(ensembles.columns[1:], values, strict=True))).id == ensemble_id


def test_the_kinds_of_work_are_imported_without_what_does_the_work() -> None:
    heavy = ("torch", "tokenizers", "optuna", "duckdb", "scipy")
    code = f"import sys, dataeff.work; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
