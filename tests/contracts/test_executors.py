"""What every executor must do, run unchanged on each of them with real work."""

from __future__ import annotations

import os
import pickle
import signal
import time
from pathlib import Path

import pytest
from filelock import FileLock

from dataeff.data.tokens import build_tokens
from dataeff.execution.base import Ended, Request
from dataeff.execution.inline import InlineExecutor
from dataeff.execution.local import LocalExecutor
from dataeff.execution.worker import run_job
from dataeff.facts.job import Attempt, Progress
from dataeff.facts.store import Store, load_fact, recorded_attempts
from dataeff.specs.corpus import CorpusSpec, TokenizerSpec
from dataeff.training.result import RunResult
from dataeff.work.ensemble import Ensemble
from dataeff.work.sample import Sample, open_samples
from dataeff.work.train import Train
from tests.conftest import write_tiny_study
from tests.contracts.total import Total

EXECUTORS = {"inline": InlineExecutor, "local": lambda: LocalExecutor(2)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tokens of the tiny study's text."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_study(folder)
    corpus = CorpusSpec(name="tiny", path="text", validation_fraction=0.2)
    return build_tokens(corpus, TokenizerSpec(kind="bpe", vocabulary=300), folder, Store(folder / "files"))


@pytest.fixture(scope="module", params=EXECUTORS)
def executor(request):
    with EXECUTORS[request.param]() as executor:
        yield executor


@pytest.fixture
def store(tiny, tmp_path) -> Store:
    return store_in(tmp_path, tiny)


def store_in(folder: Path, tiny) -> Store:
    """Return a store that has the tokens and nothing else."""
    store = Store(folder)
    store.tokens.mkdir(parents=True)
    (store.tokens / tiny.folder.name).symlink_to(tiny.folder)
    return store


def run(tiny, seed: int = 0, **changes) -> Train:
    model = {"vocabulary": tiny.vocabulary, "context_length": 16, "hidden": 8, "layers": 1, "heads": 1, "kv_heads": 1}
    plain = {
        "trainer_version": 1,
        "corpus": tiny.fingerprint,
        "seed_tokens": 1024,
        "model": {**model, "feed_forward": 16},
        "epochs": 2,
        "lr": 1e-2,
        "weight_decay": 0.1,
        "batch_size": 8,
        "validation_sequences": 32,
        "precision": "float32",
        "train_seed": seed,
        "data_seed": seed,
    }
    return Train.model_validate({**plain, **changes})


def request_of(tiny, store: Store, seed: int = 0, **changes) -> Request:
    return Request(run(tiny, seed, **changes), store, evaluations=2)


def wait_for_end(executor, job_ids: set[str], seconds: float = 60) -> dict[str, Ended]:
    ended: dict[str, Ended] = {}
    deadline = time.monotonic() + seconds
    while job_ids - ended.keys():
        assert time.monotonic() < deadline, f"no end of {job_ids - ended.keys()}"
        ended |= {event.id: event for event in executor.events(0.1) if isinstance(event, Ended)}
    return ended


def complete(executor, request: Request) -> Ended:
    """Submit a request and return its end."""
    executor.submit(request)
    return wait_for_end(executor, {request.id})[request.id]


def result_of(request: Request) -> RunResult:
    return load_fact(RunResult, request.folder.result)


def test_every_job_ends_finished_with_its_result_on_disk(executor, tiny, store):
    jobs = [request_of(tiny, store, seed) for seed in range(4)]
    for each in jobs:
        executor.submit(each)
    ended = wait_for_end(executor, {each.id for each in jobs})
    assert all(event.outcome == "finished" and event.trained for event in ended.values())
    assert len({result_of(each).val_loss for each in jobs}) == 4
    assert not list(store.path.rglob("checkpoint"))


def test_a_result_does_not_depend_on_the_executor(tiny, tmp_path):
    losses = set()
    for name, make in EXECUTORS.items():
        each = request_of(tiny, store_in(tmp_path / name, tiny))
        with make() as executor:
            executor.submit(each)
            wait_for_end(executor, {each.id})
        losses.add(result_of(each).val_loss)
    assert len(losses) == 1


def test_a_run_that_has_its_result_is_not_trained_again(executor, tiny, store):
    each = request_of(tiny, store)
    for trained in (True, False):
        assert complete(executor, each) == Ended(each.id, "finished", trained=trained)
    assert len(list((each.folder.attempts).glob("*.json"))) == 1
    assert Train.model_validate_json(each.folder.spec.read_bytes()) == each.job
    assert [e.step for e in result_of(each).evaluations] == [8, 16]  # the two that the request asks for


def test_a_diverged_run_is_a_result_and_not_an_error(executor, tiny, store):
    each = request_of(tiny, store, lr=1e6, epochs=64)
    ended = complete(executor, each)
    assert ended.outcome == "diverged" and ended.trained
    result = result_of(each)
    assert result.status == "diverged" and result.val_loss is None and result.reason == ended.reason
    assert complete(executor, each) == Ended(each.id, "diverged", result.reason, trained=False)  # it never had weights


def test_a_failed_job_says_why_and_the_next_one_runs(executor, tiny, store):
    bad, good = request_of(tiny, store, corpus="another"), request_of(tiny, store, seed=1)
    for each in (bad, good):
        executor.submit(each)
    ended = wait_for_end(executor, {bad.id, good.id})
    assert ended[bad.id].outcome == "failed" and "have the fingerprint another" in ended[bad.id].reason
    assert ended[good.id].outcome == "finished"
    assert "Traceback" in (bad.folder.attempts / "0001.txt").read_text()
    assert [attempt.outcome for attempt in recorded_attempts(bad.folder)] == ["failed"]


@pytest.mark.parametrize("name", EXECUTORS)
def test_a_stopped_executor_ends_every_job_and_another_finishes_them(name, tiny, store):
    jobs = [request_of(tiny, store, seed, epochs=96) for seed in range(3)]
    with EXECUTORS[name]() as executor:
        for each in jobs:
            executor.submit(each)
        executor.stop()
        ended = wait_for_end(executor, {each.id for each in jobs})
    assert {event.outcome for event in ended.values()} <= {"preempted", "finished"}
    with InlineExecutor() as second:
        for each in jobs:
            second.submit(each)
        assert {event.outcome for event in wait_for_end(second, {each.id for each in jobs}).values()} == {"finished"}


def test_a_run_that_another_process_is_training_is_waited_for_and_not_trained_twice(tiny, store):
    each = request_of(tiny, store)
    with LocalExecutor(1) as first, LocalExecutor(1) as second:
        first.submit(each)
        second.submit(each)
        ended = [wait_for_end(executor, {each.id})[each.id] for executor in (first, second)]
    assert sorted(event.trained for event in ended) == [False, True]


def test_a_killed_worker_is_replaced_and_its_job_ends_as_killed(tiny, store):
    long, short = request_of(tiny, store, epochs=4096), request_of(tiny, store, seed=1)
    with LocalExecutor(1) as executor:
        executor.submit(long)
        while not any(isinstance(event, Progress) for event in executor.events(0.1)):
            assert executor._workers[0].process.is_alive()
        os.kill(executor._workers[0].process.pid, signal.SIGKILL)
        ended = wait_for_end(executor, {long.id})[long.id]
        assert ended.outcome == "killed" and "-9" in ended.reason
        assert [attempt.outcome for attempt in recorded_attempts(long.folder)] == ["killed"]
        executor.submit(short)
        assert wait_for_end(executor, {short.id})[short.id].outcome == "finished"


def test_a_worker_stops_when_its_controller_is_gone(tiny, store):
    each = request_of(tiny, store, epochs=100_000)
    executor = LocalExecutor(1)
    executor.submit(each)
    while not any(isinstance(event, Progress) for event in executor.events(0.1)):
        assert executor._workers[0].process.is_alive()
    executor._workers[0].connection.close()  # what the end of the controller's process does
    executor._workers[0].process.join(timeout=30)
    assert executor._workers[0].process.exitcode == 0
    assert [attempt.outcome for attempt in recorded_attempts(each.folder)] == ["preempted"]
    with FileLock(each.folder.lock, timeout=1):  # and has let go of the run
        assert each.folder.checkpoint.exists()


def test_a_cpu_worker_computes_with_one_thread(store):
    each = Request(Total(numbers=[1]), store)
    with LocalExecutor(1) as executor:
        complete(executor, each)
    assert load_fact(each.job.Result, each.folder.result).threads == 1


def test_ensembles_and_samples_run_like_any_job(executor, tiny, store):
    members = [run(tiny, seed) for seed in range(2)]
    ensemble = Ensemble(corpus=tiny.fingerprint, members=members, validation_sequences=32, precision="float32")
    sample = Sample(members=members, sequences=64, separator=tiny.separator, seed=0, precision="float32")
    student = run(tiny, synthetic={"samples": sample, "share": 0.5}, teacher_logits={"members": members, "weight": 0.5})
    for job in (*members, ensemble, sample, student):  # inputs first
        assert complete(executor, Request(job, store)) == Ended(job.id, "finished")
        assert complete(executor, Request(job, store)) == Ended(job.id, "finished", trained=False)
        assert store.is_complete(job) and not store.folder(job).checkpoint.exists()
        assert [attempt.outcome for attempt in recorded_attempts(store.folder(job))] == ["finished"]
    losses = load_fact(Ensemble.Result, store.folder(ensemble).result).losses
    assert [loss.subset for loss in losses if loss.averaging == "logits"] == [[0], [0, 1], [1]]
    assert losses[0].val_loss == pytest.approx(load_fact(RunResult, store.folder(members[0]).result).val_loss, abs=1e-5)
    assert open_samples(store, student.synthetic.samples).shape == (64, 16)


def test_an_ensemble_asked_to_stop_leaves_no_result(tiny, store):
    complete(InlineExecutor(), request_of(tiny, store))
    ensemble = Ensemble(corpus=tiny.fingerprint, members=[run(tiny)], validation_sequences=32, precision="float32")
    ended = run_job(Request(ensemble, store), "cpu", lambda event: None, lambda: True)
    assert ended.outcome == "preempted" and not store.has_result(ensemble)


def test_a_job_without_its_inputs_fails_and_says_what_is_missing(executor, tiny, store):
    member = run(tiny)
    ensemble = Ensemble(corpus=tiny.fingerprint, members=[member], validation_sequences=32, precision="float32")
    ended = complete(executor, Request(ensemble, store))
    assert ended.outcome == "failed" and f"{member.id}/spec.json cannot be read" in ended.reason


@pytest.mark.parametrize("outputs", [["weights.safetensors"], ["snapshots/1.safetensors"]])
def test_outputs_that_were_removed_are_made_again_and_the_result_keeps_its_bytes(executor, tiny, store, outputs):
    each = request_of(tiny, store, cycles=2)
    complete(executor, each)
    result = each.folder.result.read_bytes()
    made = {name: (each.folder.path / name).read_bytes() for name in each.job.outputs}
    assert set(outputs) < made.keys()
    for name in outputs:
        (each.folder.path / name).unlink()
    assert complete(executor, each) == Ended(each.id, "finished")
    assert {name: (each.folder.path / name).read_bytes() for name in each.job.outputs} == made
    assert each.folder.result.read_bytes() == result and not each.folder.checkpoint.exists()


def test_samples_that_were_removed_are_drawn_again(executor, tiny, store):
    complete(executor, request_of(tiny, store))
    each = Request(Sample(members=[run(tiny)], sequences=300, separator=0, seed=0, precision="float32"), store)
    complete(executor, each)
    facts, drawn = each.folder.result.read_bytes(), each.folder.tokens.read_bytes()
    each.folder.tokens.unlink()
    assert complete(executor, each).trained
    assert (each.folder.result.read_bytes(), each.folder.tokens.read_bytes()) == (facts, drawn)


def test_a_result_of_a_run_that_was_pruned_is_not_overwritten_by_a_later_attempt(tiny, store):
    each = request_of(tiny, store)
    complete(InlineExecutor(), each)
    result = each.folder.result.read_bytes()
    each.folder.weights.unlink()
    asked = iter([False, True])
    ended = run_job(each, "cpu", lambda event: None, lambda: next(asked, True))
    assert ended.outcome == "preempted" and each.folder.checkpoint.exists() and each.folder.result.read_bytes() == result


def test_a_kind_of_its_own_runs_in_a_graph(executor, tmp_path):
    store = Store(tmp_path)
    leaves = [Total(numbers=[1, 2, 3]), Total(numbers=[10])]
    middle = Total(numbers=[100], parts=leaves)
    root = Total(numbers=[], parts=[middle, leaves[1]])
    assert [each.job for each in root.inputs] == [middle, leaves[1]]
    for job in (*leaves, middle, root):
        assert complete(executor, Request(job, store, evaluations=7)) == Ended(job.id, "finished")
    result = load_fact(Total.Result, store.folder(root).result)
    assert (result.total, result.evaluations) == (126, 7)
    assert store.folder(root).path == tmp_path / "total" / root.id
    (store.folder(middle).path / "total.txt").unlink()
    assert complete(executor, Request(middle, store)).trained
    assert (store.folder(middle).path / "total.txt").read_text() == "116"


@pytest.mark.parametrize("second", EXECUTORS)
def test_a_job_of_its_own_kind_that_was_killed_goes_on_from_its_checkpoint(second, tmp_path):
    leaf = Total(numbers=[5])
    job = Total(numbers=[1, 2, 3, 4], mine=3, parts=[leaf])
    each = Request(job, Store(tmp_path))
    with LocalExecutor(1) as executor:
        complete(executor, Request(leaf, Store(tmp_path)))
        ended = complete(executor, each)
    assert ended.outcome == "killed" and "-9" in ended.reason and each.folder.checkpoint.exists()
    with EXECUTORS[second]() as executor:
        assert complete(executor, each) == Ended(job.id, "finished")
    result = load_fact(Total.Result, each.folder.result)
    assert (result.total, result.numbers_read) == (15, 2)
    assert [attempt.outcome for attempt in recorded_attempts(each.folder)] == ["killed", "finished"]


def test_a_store_is_found_wherever_the_worker_was_started(executor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    each = Request(Total(numbers=[1]), Store(Path("somewhere")))
    monkeypatch.chdir("/")
    complete(executor, each)
    assert (tmp_path / "somewhere" / "total" / each.id / "result.json").exists()
    assert pickle.loads(pickle.dumps(each)) == each


def test_progress_comes_at_intervals_and_at_the_end(executor, tmp_path):
    each = Request(Total(numbers=[1] * 300), Store(tmp_path))
    executor.submit(each)
    began, events = time.monotonic(), []
    while not any(isinstance(event, Ended) for event in events):
        events += executor.events(0.1)
    steps = [event.step for event in events if isinstance(event, Progress)]
    assert steps[0] == 1 and steps[-1] == 300 and steps == sorted(steps)
    assert len(steps) <= 2 + (time.monotonic() - began) / 0.25


def test_a_job_that_does_not_fit_ends_as_out_of_memory(tmp_path):
    each = Request(Total(numbers=[], too_large=True), Store(tmp_path))
    ended = complete(InlineExecutor(), each)
    assert ended.outcome == "out_of_memory" and "use a smaller model" in ended.reason


def test_attempts_of_earlier_versions_are_read(tmp_path):
    each = Request(Total(numbers=[1]), Store(tmp_path))
    complete(InlineExecutor(), each)
    file = each.folder.attempts / "0001.json"
    file.write_text(file.read_text().replace('"job_id"', '"run_id"').replace('"finished"', '"running"'))
    assert load_fact(Attempt, file).job_id == each.id
    each.folder.result.unlink()
    complete(InlineExecutor(), each)
    first, second = recorded_attempts(each.folder)
    assert (first.outcome, second.outcome) == ("killed", "finished") and "disappeared" in first.reason
