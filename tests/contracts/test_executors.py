"""What every executor must do, run unchanged on each of them with real training."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from filelock import FileLock

from dataeff.data.tokens import build_tokens
from dataeff.execution.attempts import recorded_attempts
from dataeff.execution.base import Ended, Job, Progressed
from dataeff.execution.inline import InlineExecutor
from dataeff.execution.local import LocalExecutor
from dataeff.specs.demand import Demand
from dataeff.specs.result import RunResult, Store
from dataeff.specs.study import Study
from tests.conftest import write_tiny_study

EXECUTORS = {"inline": InlineExecutor, "local": lambda: LocalExecutor(2)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(study, tokens) of the tiny study."""
    folder = tmp_path_factory.mktemp("tiny")
    study = Study.load(write_tiny_study(folder))
    return study, build_tokens(study.spec.corpus, study.spec.tokenizer, study.directory, Store(folder / "files"))


@pytest.fixture(params=EXECUTORS)
def executor(request):
    with EXECUTORS[request.param]() as made:
        yield made


def job(tiny, store: Store, seed: int = 0, **changes) -> Job:
    study, tokens = tiny
    cell = study.spec.cells[0]
    demand = Demand(study.spec, tokens.fingerprint, tokens.vocabulary, tokens.separator)
    spec = demand.run(cell, cell.grid.middle, seed, seed)
    return Job(type(spec)(**{**dict(spec), **changes}), store, tokens.folder, evaluations=2)


def wait_for_end(executor, run_ids: set[str], seconds: float = 60) -> dict[str, Ended]:
    ended: dict[str, Ended] = {}
    deadline = time.monotonic() + seconds
    while run_ids - ended.keys():
        assert time.monotonic() < deadline, f"no end of {run_ids - ended.keys()}"
        ended |= {event.id: event for event in executor.events(0.1) if isinstance(event, Ended)}
    return ended


def result_of(job: Job) -> RunResult:
    return RunResult.model_validate_json(job.folder.result.read_bytes())


def test_every_job_ends_finished_with_its_result_on_disk(executor, tiny, tmp_path):
    jobs = [job(tiny, Store(tmp_path), seed) for seed in range(4)]
    for each in jobs:
        executor.submit(each)
    ended = wait_for_end(executor, {each.id for each in jobs})
    assert all(event.outcome == "finished" and event.trained for event in ended.values())
    assert len({result_of(each).val_loss for each in jobs}) == 4
    assert not list(tmp_path.rglob("checkpoint"))


def test_a_result_does_not_depend_on_the_executor(tiny, tmp_path):
    losses = set()
    for name, make in EXECUTORS.items():
        each = job(tiny, Store(tmp_path / name))
        with make() as executor:
            executor.submit(each)
            wait_for_end(executor, {each.id})
        losses.add(result_of(each).val_loss)
    assert len(losses) == 1


def test_a_run_that_has_its_result_is_not_trained_again(executor, tiny, tmp_path):
    each = job(tiny, Store(tmp_path))
    for trained in (True, False):
        executor.submit(each)
        assert wait_for_end(executor, {each.id})[each.id].trained is trained
    assert len(list((each.folder.attempts).glob("*.json"))) == 1


def test_a_diverged_run_is_a_result_and_not_an_error(executor, tiny, tmp_path):
    each = job(tiny, Store(tmp_path), lr=1e6, epochs=64)
    executor.submit(each)
    assert wait_for_end(executor, {each.id})[each.id].outcome == "diverged"
    result = result_of(each)
    assert result.status == "diverged" and result.val_loss is None and result.reason


def test_a_failed_job_says_why_and_the_next_one_runs(executor, tiny, tmp_path):
    bad, good = job(tiny, Store(tmp_path), corpus="another"), job(tiny, Store(tmp_path), seed=1)
    bad = Job(bad.spec, bad.store, Path(tmp_path / "no tokens"), 2)
    for each in (bad, good):
        executor.submit(each)
    ended = wait_for_end(executor, {bad.id, good.id})
    assert ended[bad.id].outcome == "failed" and "no tokens" in ended[bad.id].reason
    assert ended[good.id].outcome == "finished"
    assert "Traceback" in (bad.folder.attempts / "0001.txt").read_text()
    assert [attempt.outcome for attempt in recorded_attempts(Store(tmp_path).run(bad.id))] == ["failed"]


def test_a_stopped_executor_ends_every_job_and_another_finishes_them(executor, tiny, tmp_path):
    jobs = [job(tiny, Store(tmp_path), seed, epochs=96) for seed in range(3)]
    for each in jobs:
        executor.submit(each)
    executor.stop()
    ended = wait_for_end(executor, {each.id for each in jobs})
    assert {event.outcome for event in ended.values()} <= {"preempted", "finished"}
    with InlineExecutor() as second:
        for each in jobs:
            second.submit(each)
        assert {event.outcome for event in wait_for_end(second, {each.id for each in jobs}).values()} == {"finished"}


def test_a_run_that_another_process_is_training_is_waited_for_and_not_trained_twice(tiny, tmp_path):
    each = job(tiny, Store(tmp_path))
    with LocalExecutor(1) as first, LocalExecutor(1) as second:
        first.submit(each)
        second.submit(each)
        ended = [wait_for_end(executor, {each.id})[each.id] for executor in (first, second)]
    assert sorted(event.trained for event in ended) == [False, True]


def test_a_killed_worker_is_replaced_and_its_job_ends_as_killed(tiny, tmp_path):
    store = Store(tmp_path)
    long, short = job(tiny, store, epochs=4096), job(tiny, store, seed=1)
    with LocalExecutor(1) as executor:
        executor.submit(long)
        while not any(isinstance(event, Progressed) for event in executor.events(0.1)):
            assert executor._workers[0].process.is_alive()
        os.kill(executor._workers[0].process.pid, signal.SIGKILL)
        ended = wait_for_end(executor, {long.id})[long.id]
        assert ended.outcome == "killed" and "-9" in ended.reason
        assert [attempt.outcome for attempt in recorded_attempts(store.run(long.id))] == ["killed"]
        executor.submit(short)
        assert wait_for_end(executor, {short.id})[short.id].outcome == "finished"


def test_a_worker_stops_when_its_controller_is_gone(tiny, tmp_path):
    each = job(tiny, Store(tmp_path), epochs=100_000)
    executor = LocalExecutor(1)
    executor.submit(each)
    while not any(isinstance(event, Progressed) for event in executor.events(0.1)):
        assert executor._workers[0].process.is_alive()
    executor._workers[0].connection.close()  # what the end of the controller's process does
    executor._workers[0].process.join(timeout=30)
    assert executor._workers[0].process.exitcode == 0
    assert [attempt.outcome for attempt in recorded_attempts(Store(tmp_path).run(each.id))] == ["preempted"]
    with FileLock(each.folder.lock, timeout=1):  # and has let go of the run
        assert each.folder.checkpoint.exists()


def test_a_cpu_worker_computes_with_one_thread(tiny, tmp_path):
    each = job(tiny, Store(tmp_path))
    with LocalExecutor(1) as executor:
        executor.submit(each)
        wait_for_end(executor, {each.id})
    (attempt,) = recorded_attempts(Store(tmp_path).run(each.id))
    assert attempt.device.endswith("1 CPU thread(s)")  # read in the worker, after all imports
